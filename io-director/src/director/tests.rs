//! Hosts, devices and epochs, without TAP interfaces.

use fabric_config::{ChangeKind, Outcome};

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

#[test]
fn p05_a_device_that_is_replaced_is_granted_by_its_new_generation_only() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = lab(folder.path());
    let director = Director::start(&config).unwrap();
    let device = DeviceId(11);
    let granted = director.books.attach("host1", device, 3).unwrap();
    let vhba = &mut config.hosts[0].vms[0].vhbas[0];
    vhba.generation = 4;
    vhba.queues = 2;
    let report = director.apply(config.clone()).unwrap();
    let [object] = &report.objects[..] else {
        panic!("{report:?}")
    };
    assert_eq!(object.object, "vhba vh01.vm1");
    assert_eq!(object.change, ChangeKind::Replaced);
    assert_eq!(object.outcome, Outcome::Done);
    assert!(!director.books.serves("host1", device, 3));
    assert!(director.books.serves("host1", device, 4));
    director.books.attach("host1", device, 3).unwrap_err();
    director.books.attach("host1", device, 4).unwrap();
    drop(granted);
    // Gone, then another host's.
    let vhba = config.hosts[0].vms[0].vhbas.remove(0);
    director.apply(config.clone()).unwrap();
    director.books.attach("host1", device, 4).unwrap_err();
    let vm = fabric_config::VmConfig {
        name: "vm2".into(),
        vhbas: vec![vhba],
        ..config.hosts[0].vms[0].clone()
    };
    config.hosts[1].vms.push(vm);
    director.apply(config).unwrap();
    director.books.attach("host1", device, 4).unwrap_err();
    director.books.attach("host2", device, 4).unwrap();
}

/// A port that is nearly full: what one gives up another gets, in one file.
#[test]
fn reservations_move_between_devices_of_a_full_port() {
    let rate = |text: &str| text.parse::<qos::BitRate>().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut config = lab(folder.path());
    let port = config.hosts[0].vms[0].vhbas[0].port;
    let budget = LinkBudget::new("san-port 12/1", rate("1G"));
    let budget = Some(budget);
    config
        .san_ports
        .push(fabric_config::SanPortConfig { port, budget });
    let mut other = config.hosts[0].vms[0].vhbas[0].clone();
    other.name = "vh02.vm1".into();
    other.id = DeviceId(12);
    config.hosts[0].vms[0].vhbas.push(other);
    let give = |config: &mut LabConfig, shares: [&str; 2]| {
        let vhbas = &mut config.hosts[0].vms[0].vhbas;
        for (vhba, share) in vhbas.iter_mut().zip(shares) {
            vhba.ingress.cir = rate(share);
        }
    };
    give(&mut config, ["800M", "100M"]);
    let director = Director::start(&config).unwrap();
    let devices = [DeviceId(11), DeviceId(12)];
    let grants = devices.map(|device| director.books.attach("host1", device, 3).unwrap());
    let reserved = || {
        let hops = director.hops();
        let mut hops = hops.iter().filter_map(|hop| hop.snapshot());
        let hop = hops.find(|hop| hop.hop == "san-port 12/1 ingress").unwrap();
        let devices = hop.devices.iter();
        let devices = devices.map(|device| (device.name.clone(), device.rate.cir));
        let mut devices: Vec<_> = devices.collect();
        devices.sort();
        (hop.reserved, devices)
    };
    for shares in [["100M", "800M"], ["850M", "50M"], ["450M", "450M"]] {
        give(&mut config, shares);
        let report = director.apply(config.clone()).unwrap();
        let done = |object: &fabric_config::ObjectReport| {
            object.outcome == Outcome::Done && object.fields == ["ingress"]
        };
        assert!(report.objects.iter().all(done), "{report:?}");
        let [one, two] = shares.map(rate);
        let expected = [("vh01.vm1".to_owned(), one), ("vh02.vm1".to_owned(), two)];
        assert_eq!(reserved(), (rate("900M"), expected.to_vec()));
    }
    give(&mut config, ["450M", "600M"]);
    let refused = director.apply(config).unwrap_err().to_string();
    assert!(refused.starts_with("vhba vh02.vm1: ingress: "), "{refused}");
    assert_eq!(reserved().0, rate("900M"));
    drop(grants);
}
