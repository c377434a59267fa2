//! The difference against what it means: whoever applies it to the one file has the other.

use std::fmt::Write;

use proptest::prelude::*;

use super::*;

/// What differs between two generated files, as far as validation lets it.
#[derive(Debug, Clone)]
struct Sketch {
    ports: Vec<bool>,
    luns: Vec<(bool, bool)>,
    hosts: Vec<SketchedHost>,
}

#[derive(Debug, Clone)]
struct SketchedHost {
    there: bool,
    run_dir: u8,
    vms: Vec<SketchedVm>,
}

#[derive(Debug, Clone)]
struct SketchedVm {
    there: bool,
    cir: u8,
    /// There, generation, cir, MTU, as a vNIC and as a vHBA with these LUNs.
    devices: Vec<(bool, u8, u8, bool, bool)>,
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let device = (
        any::<bool>(),
        0..3_u8,
        0..3_u8,
        any::<bool>(),
        any::<bool>(),
    );
    let vm = (any::<bool>(), 0..2_u8, prop::collection::vec(device, 2));
    let vm = vm.prop_map(|(there, cir, devices)| SketchedVm {
        there,
        cir,
        devices,
    });
    let host = (any::<bool>(), 0..2_u8, prop::collection::vec(vm, 2));
    let host = host.prop_map(|(there, run_dir, vms)| SketchedHost {
        there,
        run_dir,
        vms,
    });
    (
        prop::collection::vec(any::<bool>(), 2),
        prop::collection::vec(any::<(bool, bool)>(), 3),
        prop::collection::vec(host, 2),
    )
        .prop_map(|(ports, luns, hosts)| Sketch { ports, luns, hosts })
}

/// The lab file of a sketch.
fn lab(sketch: &Sketch) -> LabConfig {
    let mut text =
        "[director]\nname = \"director1\"\nlisten = [\"tcp:127.0.0.1:7471\"]\n".to_owned();
    let mut write = |words: std::fmt::Arguments<'_>| text.write_fmt(words).unwrap();
    write(format_args!(
        "[[ethernet-port]]\nport = \"10/1\"\ntap = \"tap1\"\n[[san-port]]\nport = \"12/1\"\n"
    ));
    for (number, there) in sketch.ports.iter().enumerate() {
        if *there {
            write(format_args!(
                "[[ethernet-port]]\nport = \"11/{n}\"\ntap = \"other{n}\"\n[[san-port]]\nport = \"13/{n}\"\nrate = \"8G\"\n",
                n = number + 1
            ));
        }
    }
    let luns = sketch.luns.iter().enumerate();
    let luns: Vec<_> = luns.filter(|(_, (there, _))| *there).collect();
    write(format_args!(
        "[[lun]]\nname = \"anchor\"\nport = \"12/1\"\nnull = \"1M\"\n"
    ));
    for (number, (_, read_only)) in &luns {
        write(format_args!(
            "[[lun]]\nname = \"lun{number}\"\nport = \"12/1\"\nnull = \"1M\"\nread-only = {read_only}\n"
        ));
    }
    for (h, host) in sketch.hosts.iter().enumerate().filter(|(_, it)| it.there) {
        write(format_args!(
            "[[host]]\nname = \"host{h}\"\ndirector = [\"tcp:127.0.0.1:7471\"]\nrun-dir = \"/run/{h}-{}\"\nrate = \"10G\"\n",
            host.run_dir
        ));
        for (v, vm) in host.vms.iter().enumerate().filter(|(_, it)| it.there) {
            write(format_args!("[[host.vm]]\nname = \"vm{h}{v}\"\n"));
            if vm.cir > 0 {
                write(format_args!("ingress = {{ cir = \"900M\" }}\n"));
            }
            for (d, (there, generation, cir, mtu, first)) in vm.devices.iter().enumerate() {
                if !there {
                    continue;
                }
                let id = 100 * h + 10 * v + d + 1;
                let mtu = if *mtu { 1400 } else { 1500 };
                write(format_args!(
                    "[[host.vm.vnic]]\nname = \"vn{d}\"\nid = {id}\ngeneration = {generation}\nport = \"10/1\"\nmac = \"02:00:00:00:00:{id:02x}\"\nmtu = {mtu}\negress = {{ cir = \"{cir}M\" }}\n"
                ));
                let mapped = luns.iter().skip(usize::from(*first));
                let mapped = mapped.map(|(n, _)| format!("{{ lun = {n}, name = \"lun{n}\" }}"));
                let mapped: Vec<_> = mapped.collect();
                write(format_args!(
                    "[[host.vm.vhba]]\nname = \"vh{d}\"\nid = {}\ngeneration = {generation}\nport = \"12/1\"\nluns = [{}]\n",
                    id + 1000,
                    mapped.join(", ")
                ));
            }
        }
    }
    text.parse()
        .unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The oracle: does what each change says.
fn applied(difference: &Difference, before: &LabConfig) -> BTreeMap<ObjectId, Object> {
    let mut objects = objects(before);
    for (id, change) in difference.changes() {
        let was = match change {
            Change::Added(object) => objects.insert(id.clone(), object.clone()),
            Change::Removed(object) => {
                assert_eq!(objects.remove(id).as_ref(), Some(object));
                continue;
            }
            Change::Changed { before, after } => {
                assert_ne!(before, after);
                let was = objects.insert(id.clone(), (**after).clone());
                assert_eq!(was.as_ref(), Some(&**before));
                continue;
            }
        };
        assert_eq!(was, None);
    }
    objects
}

/// A lab file of objects.
fn rebuilt(objects: &BTreeMap<ObjectId, Object>, of: &LabConfig) -> LabConfig {
    let mut lab = LabConfig {
        ethernet_ports: Vec::new(),
        san_ports: Vec::new(),
        luns: Vec::new(),
        hosts: Vec::new(),
        edge_switches: Vec::new(),
        ..of.clone()
    };
    // Hosts before VMs before devices, as ids are ordered.
    for object in objects.values() {
        match object {
            Object::Settings(settings) => {
                let Settings {
                    links,
                    director,
                    policies,
                } = (**settings).clone();
                (lab.links, lab.director, lab.policies) = (links, director, policies);
            }
            Object::EthernetPort(port) => lab.ethernet_ports.push(port.clone()),
            Object::SanPort(port) => lab.san_ports.push(port.clone()),
            Object::Lun(lun) => lab.luns.push(lun.clone()),
            Object::EdgeSwitch(switch) => lab.edge_switches.push(switch.clone()),
            Object::Host(host) => lab.hosts.push((**host).clone()),
            Object::Vm(host, vm) => {
                let host = lab.hosts.iter_mut().find(|it| it.name == *host).unwrap();
                host.vms.push(vm.clone());
            }
            Object::Vnic(place, vnic) => vm_at(&mut lab, place).vnics.push(vnic.clone()),
            Object::Vhba(place, vhba) => vm_at(&mut lab, place).vhbas.push(vhba.clone()),
        }
    }
    lab
}

fn vm_at<'a>(lab: &'a mut LabConfig, place: &Place) -> &'a mut VmConfig {
    let host = lab
        .hosts
        .iter_mut()
        .find(|it| it.name == place.host)
        .unwrap();
    host.vms.iter_mut().find(|it| it.name == place.vm).unwrap()
}

proptest! {
    #[test]
    fn a_difference_makes_one_file_of_the_other((a, b) in (sketch(), sketch())) {
        let (a, b) = (lab(&a), lab(&b));
        let difference = Difference::between(&a, &b);
        // Sketches are written in the order of ids.
        prop_assert_eq!(rebuilt(&applied(&difference, &a), &a), b.clone());
        prop_assert!(Difference::between(&b, &b).is_empty());
        prop_assert_eq!(difference.is_empty(), a == b);
        for (_, change) in difference.changes() {
            let fields = change.fields();
            prop_assert_eq!(
                fields.is_empty(),
                !matches!(change, Change::Changed { .. }),
                "{}: {:?}", change.object(), fields
            );
        }
        for device in a.hosts.iter().flat_map(HostConfig::vnics) {
            let stays = b.hosts.iter().flat_map(HostConfig::vnics).any(|it| {
                it.id == device.id && it.generation <= device.generation
            });
            prop_assert_eq!(difference.ends(device.id), !stays);
        }
    }
}

const LAB: &str = r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471"]
[[ethernet-port]]
port = "10/1"
tap = "orimono0"
[[san-port]]
port = "12/1"
rate = "8G"
[[lun]]
name = "lun0"
port = "12/1"
null = "1G"
[[host]]
name = "host1"
director = ["tcp:127.0.0.1:7471"]
run-dir = "/run/orimono/host1"
rate = "10G"
[[host.vm]]
name = "vm1"
ingress = { cir = "600M" }
[[host.vm.vnic]]
name = "vn01"
id = 1
generation = 4
port = "10/1"
mac = "02:00:00:00:00:01"
ingress = { cir = "300M" }
[[host.vm.vhba]]
name = "vh01"
id = 11
port = "12/1"
luns = [ { lun = 0, name = "lun0" } ]
"#;

/// What the director and the agent of host1 say to some other words.
fn refusals(words: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
    let mut text = LAB.to_owned();
    for (word, other) in words {
        assert!(text.contains(word), "{word}");
        text = text.replacen(word, other, 1);
    }
    let difference = Difference::between(&LAB.parse().unwrap(), &text.parse().unwrap());
    assert!(!difference.is_empty());
    let of = |side| {
        let refusals = difference.cannot_change(side);
        refusals.iter().map(CannotChange::to_string).collect()
    };
    (of(Side::Director), of(Side::Host("host1")))
}

#[test]
fn what_cannot_change_names_object_word_and_next_step() {
    let nothing = Vec::<String>::new();
    let mac = ("00:01\"", "00:09\"");
    let said = "vnic vn01.vm1: mac cannot change while it runs; raise its generation, which removes \
         it and adds it again";
    assert_eq!(refusals(&[mac]), (vec![said.into()], vec![said.into()]));
    let higher = ("generation = 4", "generation = 5");
    assert_eq!(refusals(&[mac, higher]), (nothing.clone(), nothing.clone()));
    let (director, agent) = refusals(&[mac, ("generation = 4", "generation = 3")]);
    assert_eq!((director.len(), agent.len()), (2, 2));
    assert!(
        director[0].contains("a generation only grows"),
        "{director:?}"
    );
    let (director, agent) = refusals(&[("null = \"1G\"", "null = \"2G\"")]);
    assert!(director[0].starts_with("lun lun0: medium cannot change"));
    assert_eq!(agent, nothing);
    let (director, agent) = refusals(&[("/run/orimono/host1", "/run/other")]);
    assert_eq!(director, nothing);
    assert!(agent[0].starts_with("host host1: run-dir cannot change"));
    let (director, agent) = refusals(&[("ingress = { cir = \"600M\" }\n", "")]);
    assert!(director[0].starts_with("vm vm1: ingress cannot change"));
    assert_eq!(director, agent);
    let (director, agent) = refusals(&[("rate = \"8G\"", "rate = \"4G\"")]);
    assert!(director[0].starts_with("san-port 12/1: rate cannot change"));
    assert_eq!((director.len(), agent), (1, nothing.clone()));
    let live = [
        ("cir = \"300M\"", "cir = \"200M\""),
        ("cir = \"600M\"", "cir = \"500M\""),
    ];
    assert_eq!(refusals(&live), (nothing.clone(), nothing));
}

#[test]
fn what_would_not_fit_is_refused_and_what_did_not_fit_is_not() {
    let lab = |cir: &str| LAB.replacen("600M", cir, 1).parse::<LabConfig>().unwrap();
    require_admitted_anew(&lab("600M"), &lab("9G")).unwrap();
    let refused = require_admitted_anew(&lab("600M"), &lab("9.9G")).unwrap_err();
    assert!(refused.to_string().contains("vm vm1"), "{refused}");
    require_admitted_anew(&lab("9.8G"), &lab("9.9G")).unwrap();
}

#[test]
fn a_vnic_moves_with_its_vm_only_where_it_is_served_already() {
    let staying = LAB.split("[[host.vm.vhba]]").next().unwrap();
    let moving = staying.replace("name = \"vm1\"", "name = \"vm1\"\nmoves-to = \"host2\"");
    let host2 = "[[host]]\nname = \"host2\"\ndirector = [\"tcp:127.0.0.1:7471\"]\n\
                 run-dir = \"/run/orimono/host2\"\nrate = \"10G\"\n";
    let (host1, vm) = staying.split_once("[[host.vm]]").unwrap();
    let moved = format!("{host1}{host2}[[host.vm]]{vm}");
    let parse = |text: String| text.parse::<LabConfig>().unwrap();
    let staying = parse(format!("{staying}{host2}"));
    let moving = parse(format!("{moving}{host2}"));
    let moved = parse(moved);
    let sides = [Side::Director, Side::Host("host1"), Side::Host("host2")];
    let refused = |before, after| {
        let difference = Difference::between(before, after);
        assert!(!difference.ends(DeviceId(1)) && !difference.begins(DeviceId(1)));
        sides.map(|side| !difference.cannot_change(side).is_empty())
    };
    assert_eq!(refused(&staying, &moving), [false; 3]);
    assert_eq!(refused(&moving, &moved), [false; 3]);
    assert_eq!(refused(&moving, &staying), [false; 3]);
    assert_eq!(refused(&staying, &moved), [true; 3]);
    // Both links carry it meanwhile.
    let reserved = |lab: &LabConfig| {
        let hops = lab.admit();
        let links = hops
            .iter()
            .filter(|hop| hop.budget.hop().ends_with("uplink"));
        links.map(|hop| hop.reserved.is_zero()).collect::<Vec<_>>()
    };
    assert_eq!(reserved(&staying), [false, true]);
    assert_eq!(reserved(&moving), [false, false]);
    assert_eq!(reserved(&moved), [true, false]);
    let served = |lab: &LabConfig, host| lab.serving_host(host).unwrap().vnics().count();
    assert_eq!((served(&moving, "host1"), served(&moving, "host2")), (1, 1));
    assert_eq!((served(&moved, "host1"), served(&moved, "host2")), (0, 1));
}

#[test]
fn a_vm_moves_to_another_host_and_without_vhbas() {
    let refused = |words: &str, to: &str| {
        let text = words.replace(
            "name = \"vm1\"",
            &format!("name = \"vm1\"\nmoves-to = \"{to}\""),
        );
        text.parse::<LabConfig>().unwrap_err().to_string()
    };
    let without = LAB.split("[[host.vm.vhba]]").next().unwrap();
    let error = refused(without, "host1");
    assert!(
        error.contains("vm vm1: moves-to is the VM's own host"),
        "{error}"
    );
    let error = refused(without, "host9");
    assert!(error.contains("there is no host \"host9\""), "{error}");
    let second = "[[host]]\nname = \"host2\"\ndirector = [\"tcp:127.0.0.1:7471\"]\n\
                  run-dir = \"/run/orimono/host2\"\nrate = \"10G\"\n";
    let error = refused(&format!("{LAB}{second}"), "host2");
    assert!(
        error.contains("a VM with a vHBA cannot move while it runs"),
        "{error}"
    );
}
