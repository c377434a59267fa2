//! Hosts, devices and epochs, without TAP interfaces.

use super::*;

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

#[test]
fn p05_host_gets_its_own_devices_of_this_generation_only() {
    let folder = tempfile::tempdir().unwrap();
    let director = Director::start(&lab(folder.path())).unwrap();
    let books = &director.books;
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
fn unknown_host_is_told_the_next_step() {
    let folder = tempfile::tempdir().unwrap();
    let director = Director::start(&lab(folder.path())).unwrap();
    assert!(director.books.admit("host1").is_ok());
    let refusal = director.books.admit("host9").unwrap_err();
    assert!(refusal.contains("add a [[host]]"), "{refusal}");
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
