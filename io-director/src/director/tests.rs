//! Hosts, devices and epochs, without TAP interfaces.

use super::*;
use fabric_transport::link::in_process_pair;
use proptest::prelude::*;

fn lab(folder: &std::path::Path) -> LabConfig {
    let file = folder.join("lun0.img");
    std::fs::File::create(&file)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let text = format!(
        r#"
        [director]
        name = "director1"
        listen = ["tcp:127.0.0.1:0", "unix:{folder}/director"]
        [[lun]]
        name = "lun0"
        port = "12/1"
        file = "{file}"
        [[host]]
        name = "host1"
        embedded = true
        run-dir = "{folder}"
        rate = "10G"
        [[host.vm]]
        name = "vm1"
        [[host.vm.vhba]]
        name = "vh01"
        id = 11
        generation = 3
        port = "12/1"
        luns = [ {{ lun = 0, name = "lun0" }} ]
        [[host]]
        name = "host2"
        embedded = true
        run-dir = "{folder}"
        rate = "10G"
        "#,
        folder = folder.display(),
        file = file.display(),
    );
    text.parse().unwrap()
}

fn endpoint(director: &Director) -> Arc<Endpoint> {
    let (near, far) = in_process_pair("test");
    let config = director.endpoint_config();
    let started = Endpoint::start(config, far, director.directory(), "director").unwrap();
    // Nobody speaks at the other end; the session is only handed around.
    drop(near);
    started.0
}

#[test]
fn p05_host_gets_its_own_devices_of_this_generation_only() {
    let folder = tempfile::tempdir().unwrap();
    let director = Director::start(&lab(folder.path())).unwrap();
    let books = director.directory();
    assert!(books.attach("host1", DeviceId(11), 3).is_ok());
    assert_eq!(
        books.attach("host2", DeviceId(11), 3).unwrap_err(),
        "dev-0000000b is no device of host host2; correct the lab file"
    );
    assert!(
        books
            .attach("host1", DeviceId(12), 0)
            .unwrap_err()
            .contains("no device of host")
    );
    assert_eq!(
        books.attach("host1", DeviceId(11), 2).unwrap_err(),
        "dev-0000000b has generation 3, not 2; both sides need the same lab file"
    );
}

#[test]
fn newer_session_of_a_host_replaces_the_older() {
    let folder = tempfile::tempdir().unwrap();
    let director = Director::start(&lab(folder.path())).unwrap();
    let books = director.directory();
    let (first, second) = (endpoint(&director), endpoint(&director));
    assert!(
        books
            .greeted(&first, "host9", 1)
            .unwrap_err()
            .contains("add a [[host]]")
    );
    let epoch = books.greeted(&first, "host1", 1).unwrap();
    assert!(epoch_is_later(
        books.greeted(&second, "host1", 2).unwrap(),
        epoch
    ));
    assert_eq!(
        first.state(),
        fabric_transport::session::SessionState::Closed
    );
}

#[test]
fn director_listens_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let config = lab(folder.path());
    let mut director = Director::start(&config).unwrap();
    director.listen().unwrap();
    assert_eq!(director.addresses().count(), 2);
    assert!(folder.path().join("director").exists());
    let busy = Director::start(&config).unwrap_err();
    let anyhow = format!("{:#}", anyhow::Error::from(busy));
    assert!(
        anyhow.contains("lun lun0: ") && anyhow.contains("served by another"),
        "{anyhow}"
    );
    drop(director);
    assert!(!folder.path().join("director").exists());
    // The files are free again.
    Director::check(&config).unwrap();
}

#[test]
fn missing_file_names_object_path_and_next_step() {
    let folder = tempfile::tempdir().unwrap();
    let config = lab(folder.path());
    std::fs::remove_file(folder.path().join("lun0.img")).unwrap();
    let error = format!(
        "{:#}",
        anyhow::Error::from(Director::start(&config).unwrap_err())
    );
    assert!(error.starts_with("lun lun0: cannot open "), "{error}");
    assert!(error.contains("truncate -s"), "{error}");
}

proptest! {
    #[test]
    fn epoch_is_later_than_the_last_and_never_zero(last in 1u16.., seconds: u64) {
        let epoch = next_epoch(last, seconds);
        prop_assert!(epoch != 0);
        prop_assert!(epoch_is_later(epoch, last), "{} after {}", epoch, last);
    }

    #[test]
    fn first_epoch_after_a_restart_is_later_than_the_last_before(sessions in 1u64..100, uptime in 100u64..10_000, start: u32) {
        let mut last = 0;
        for session in 0..sessions {
            last = next_epoch(last, u64::from(start) + session * uptime / 100);
        }
        let epoch = next_epoch(0, u64::from(start) + uptime + 2);
        prop_assert!(epoch_is_later(epoch, last), "{} after {}", epoch, last);
    }
}
