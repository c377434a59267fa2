//! What is right for objects, and what is kept whatever is done.

use std::collections::BTreeSet;

use controller_api::{Action, Command, RefusalCode};
use fabric_config::LabConfig;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn fields(value: Value) -> Fields {
    value.as_object().cloned().unwrap()
}

fn add(kind: Kind, name: &str, value: Value) -> Command {
    Command::Add {
        kind,
        name: name.to_owned(),
        fields: fields(value),
    }
}

fn set(kind: Kind, name: &str, value: Value) -> Command {
    Command::Set {
        kind,
        name: name.to_owned(),
        fields: fields(value),
    }
}

fn remove(kind: Kind, name: &str) -> Command {
    Command::Remove {
        kind,
        name: name.to_owned(),
    }
}

fn act(kind: Kind, name: &str, action: Action) -> Command {
    Command::Act {
        kind,
        name: name.to_owned(),
        action,
    }
}

/// A director with two modules, a host with a link of 10G, and a profile on it.
fn site() -> Model {
    let commands = [
        add(
            Kind::Director,
            "d1",
            json!({"listen": ["tcp:127.0.0.1:7471"]}),
        ),
        add(Kind::Iocard, "10", json!({"kind": "ethernet"})),
        add(Kind::Iocard, "4", json!({"kind": "san"})),
        add(Kind::Host, "h1", json!({"rate": "10g", "reservable": "9g"})),
        add(Kind::ServerProfile, "s1", json!({"server": "vm1@h1"})),
    ];
    Model::default().transact(&commands).unwrap().model
}

fn done(model: &Model, commands: &[Command]) -> Model {
    model.transact(commands).unwrap().model
}

fn refused(model: &Model, command: Command) -> controller_api::Refusal {
    model.transact(&[command]).unwrap_err()
}

fn lab(model: &Model) -> LabConfig {
    model.render_all().unwrap()["d1"]["d1"]
        .text
        .parse()
        .unwrap()
}

#[test]
fn h2_slots_are_1_to_15_and_modules_come_and_go() {
    let model = site();
    for slot in ["1", "15"] {
        let model = done(&model, &[add(Kind::Iocard, slot, json!({}))]);
        done(&model, &[remove(Kind::Iocard, slot)]);
    }
    for slot in ["0", "16", "x", "", "-1"] {
        let refusal = refused(&model, add(Kind::Iocard, slot, json!({})));
        assert_eq!(refusal.next, "use a slot from 1 to 15");
    }
    // A device on a module that goes waits for it.
    let model = done(&model, &[add(Kind::Vnic, "a.s1", json!({"if": "10/1"}))]);
    assert_eq!(lab(&model).hosts[0].vnics().count(), 1);
    let model = done(&model, &[remove(Kind::Iocard, "10")]);
    assert_eq!(lab(&model).hosts[0].vnics().count(), 0);
    let model = done(
        &model,
        &[add(Kind::Iocard, "10", json!({"kind": "ethernet"}))],
    );
    assert_eq!(lab(&model).hosts[0].vnics().count(), 1);
}

#[test]
fn h3_all_five_kinds_have_their_ports_and_no_more() {
    for (kind, device, ports) in [
        ("4x1ge", Kind::Vnic, 4),
        ("10x1ge", Kind::Vnic, 10),
        ("1x10ge", Kind::Vnic, 1),
        ("2x4fc", Kind::Vhba, 2),
    ] {
        let model = done(&site(), &[add(Kind::Iocard, "7", json!({"kind": kind}))]);
        let at = |port: u16| add(device, "a.s1", json!({"if": format!("7/{port}")}));
        done(&model, &[at(ports)]);
        let refusal = refused(&model, at(ports + 1));
        assert_eq!(refusal.next, format!("use ports 7/1 to 7/{ports}"));
        let other = if device == Kind::Vnic {
            Kind::Vhba
        } else {
            Kind::Vnic
        };
        let refusal = refused(&model, add(other, "a.s1", json!({"if": "7/1"})));
        assert!(refusal.problem.contains(kind), "{refusal}");
    }
    done(
        &site(),
        &[add(Kind::Iocard, "7", json!({"kind": "1x10ib"}))],
    );
}

#[test]
fn h3_ports_have_the_speed_of_their_kind() {
    let commands = [
        add(Kind::Iocard, "7", json!({"kind": "4x1ge"})),
        add(Kind::Iocard, "8", json!({"kind": "2x4fc"})),
        add(Kind::Vnic, "a.s1", json!({"if": "7/4"})),
    ];
    let lab = lab(&done(&site(), &commands));
    let ethernet = lab
        .ethernet_ports
        .iter()
        .find(|port| port.port.slot() == 7)
        .unwrap();
    assert_eq!(
        ethernet.budget.as_ref().unwrap().nominal().to_string(),
        "1G"
    );
    let san = lab
        .san_ports
        .iter()
        .find(|port| port.port.slot() == 8)
        .unwrap();
    assert_eq!(san.budget.as_ref().unwrap().nominal().to_string(), "4G");
}

#[test]
fn h4_a_port_is_slot_and_port() {
    let model = done(&site(), &[add(Kind::Vnic, "a.s1", json!({"if": "10/1"}))]);
    let port = lab(&model).hosts[0].vnics().next().unwrap().port;
    assert_eq!((port.slot(), port.port()), (10, 1));
}

#[test]
fn c3_d3_a_reservation_that_does_not_fit_names_the_hop_and_what_is_free() {
    let policy = |name: &str, cir: &str| add(Kind::QosNetwork, name, json!({"cir": cir}));
    let commands = [
        policy("gold/big", "8500m"),
        policy("gold/more", "1g"),
        add(
            Kind::Vnic,
            "a.s1",
            json!({"if": "10/1", "ingress-qos": {"policer": "gold/big"}}),
        ),
    ];
    let model = done(&site(), &commands);
    let second = json!({"if": "10/1", "ingress-qos": {"policer": "gold/more"}});
    let refusal = refused(&model, add(Kind::Vnic, "b.s1", second));
    assert_eq!(refusal.code, RefusalCode::NotAdmitted);
    assert_eq!(refusal.object, "vnic b.s1");
    assert!(
        refusal.problem.contains("h1 uplink") && refusal.problem.contains("500 Mb/s missing"),
        "{refusal}"
    );
    // A policy that grows is refused as well.
    let refusal = refused(
        &model,
        set(Kind::QosNetwork, "gold/big", json!({"cir": "9500m"})),
    );
    assert_eq!(refusal.code, RefusalCode::NotAdmitted);
}

#[test]
fn d7_p5_a_move_keeps_addresses_and_fences_the_old_host() {
    let commands = [
        add(Kind::Host, "h2", json!({})),
        add(Kind::Lun, "data", json!({"port": "4/1", "ram": "64M"})),
        add(
            Kind::Vnic,
            "a.s1",
            json!({"if": "10/1", "mac": "00:55:44:33:00:02"}),
        ),
        add(Kind::Vhba, "b.s1", json!({"if": "4/1"})),
    ];
    let before = done(&site(), &commands);
    let after = done(
        &before,
        &[set(Kind::ServerProfile, "s1", json!({"server": "vm9@h2"}))],
    );
    let (old, new) = (lab(&before), lab(&after));
    let (from, to) = (old.host("h1").unwrap(), new.host("h2").unwrap());
    assert_eq!(new.host("h1").unwrap().vms.len(), 0);
    let (was, is) = (from.vnics().next().unwrap(), to.vnics().next().unwrap());
    assert_eq!((was.mac, was.id), (is.mac, is.id));
    assert_eq!(was.mac.to_string(), "00:55:44:33:00:02");
    assert!(is.generation > was.generation);
    assert_eq!(
        from.vhbas().next().unwrap().wwpn,
        to.vhbas().next().unwrap().wwpn
    );
}

#[test]
fn two_profiles_never_have_one_server() {
    let refusal = refused(
        &site(),
        add(Kind::ServerProfile, "s2", json!({"server": "vm1@h1"})),
    );
    assert!(refusal.problem.contains("server-profile s1"), "{refusal}");
}

#[test]
fn p7_a_template_makes_the_devices_of_many_and_they_follow_it() {
    let mut commands = vec![add(
        Kind::Template,
        "web",
        json!({
            "vnics": {"vn01": {"if": "10/1"}, "vn02": {"if": "10/2"}},
            "vhbas": {"hba1": {"if": "4/1"}},
        }),
    )];
    for number in 1..=12 {
        let name = format!("w{number}");
        commands.push(add(Kind::ServerProfile, &name, json!({})));
        let template = "web".to_owned();
        commands.push(act(
            Kind::ServerProfile,
            &name,
            Action::ApplyTemplate { template },
        ));
    }
    let model = done(&site(), &commands);
    assert_eq!((model.vnics.len(), model.vhbas.len()), (24, 12));
    let macs: BTreeSet<_> = model.vnics.values().map(|vnic| vnic.mac.clone()).collect();
    assert_eq!(macs.len(), 24);

    // What is changed at a device stays, until the template changes the same field.
    let model = done(
        &model,
        &[
            set(Kind::Vnic, "vn01.w3", json!({"mtu": 9000})),
            set(
                Kind::Template,
                "web",
                json!({"vnics": {"vn01": {"queues": 2}, "vn02": null}}),
            ),
        ],
    );
    assert_eq!(model.vnics.len(), 12);
    assert!(model.vnics.values().all(|vnic| vnic.queues == Some(2)));
    assert_eq!(model.vnics["vn01.w3"].mtu, Some(9000));
    let model = done(&model, &[set(Kind::Vnic, "vn01.w4", json!({"queues": 4}))]);
    assert_eq!(model.drift(Kind::Vnic, "vn01.w4"), ["queues"]);
    let refusal = refused(&model, remove(Kind::Template, "web"));
    assert!(refusal.problem.contains("server-profile w1"), "{refusal}");
}

#[test]
fn vlans_are_added_to_and_taken_from_a_trunk() {
    let model = done(
        &site(),
        &[add(
            Kind::Vnic,
            "a.s1",
            json!({"if": "10/1", "mode": "trunk"}),
        )],
    );
    let vlans = |vlans: &str| vlans.to_owned();
    let model = done(
        &model,
        &[
            act(
                Kind::Vnic,
                "a.s1",
                Action::AddAllowedVlans {
                    vlans: vlans("100-199"),
                },
            ),
            act(
                Kind::Vnic,
                "a.s1",
                Action::RemoveAllowedVlans {
                    vlans: vlans("150"),
                },
            ),
        ],
    );
    assert_eq!(model.vnics["a.s1"].allowed_vlans, "100-149,151-199");
    let wrong = Action::AddAllowedVlans {
        vlans: vlans("4095"),
    };
    assert_eq!(
        refused(&model, act(Kind::Vnic, "a.s1", wrong)).code,
        RefusalCode::Invalid
    );
}

#[test]
fn a_switchover_takes_the_other_port_and_comes_back() {
    let model = done(
        &site(),
        &[add(Kind::Vnic, "a.s1", json!({"if": "10/1", "ha": "10/2"}))],
    );
    let port = |model: &Model| lab(model).hosts[0].vnics().next().unwrap().port.to_string();
    let model = done(&model, &[act(Kind::Vnic, "a.s1", Action::Switchover)]);
    assert_eq!(port(&model), "10/2");
    let model = done(&model, &[act(Kind::Vnic, "a.s1", Action::Switchover)]);
    assert_eq!(port(&model), "10/1");
}

#[test]
fn vhbas_see_the_luns_of_their_mask_that_are_behind_their_port() {
    let commands = [
        add(Kind::Lun, "data", json!({"port": "4/1", "ram": "64M"})),
        add(Kind::Lun, "logs", json!({"port": "4/2", "ram": "64M"})),
        add(
            Kind::LunMask,
            "m",
            json!({"luns": {"0": "data", "1": "logs"}}),
        ),
        add(Kind::Vhba, "b.s1", json!({"if": "4/1", "lun-mask": "m"})),
    ];
    let model = done(&site(), &commands);
    let luns = lab(&model).hosts[0].vhbas().next().unwrap().luns.clone();
    assert_eq!(luns.len(), 1);
    assert_eq!((luns[0].lun, luns[0].name.as_str()), (0, "data"));
    for command in [remove(Kind::Lun, "data"), remove(Kind::LunMask, "m")] {
        assert!(refused(&model, command).problem.contains("it is used by"));
    }
}

#[test]
fn values_that_cannot_be_are_refused_with_a_next_step() {
    let model = done(
        &site(),
        &[add(Kind::Vnic, "a.s1", json!({"mac": "02:00:00:00:00:09"}))],
    );
    for command in [
        add(Kind::Vnic, "noprofile", json!({})),
        add(Kind::Vnic, "b.nobody", json!({})),
        add(Kind::Vnic, "sixteen-letters-.s1", json!({})),
        add(Kind::Vnic, "b.s1", json!({"if": "4/1"})),
        add(Kind::Vnic, "b.s1", json!({"if": "nonet"})),
        add(Kind::Vnic, "b.s1", json!({"mac": "02:00:00:00:00:09"})),
        add(Kind::Vnic, "b.s1", json!({"mac": "ff:ff:ff:ff:ff:ff"})),
        add(Kind::Vnic, "b.s1", json!({"addr-type": "static"})),
        add(Kind::Vnic, "b.s1", json!({"ip-addr": "10.0.0.1"})),
        add(
            Kind::Vnic,
            "b.s1",
            json!({"addr-type": "static", "ip-addr": "10.0.0.1/33"}),
        ),
        add(Kind::Vnic, "b.s1", json!({"mtu": 10})),
        add(Kind::Vnic, "b.s1", json!({"access-vlan": 4095})),
        add(
            Kind::Vnic,
            "b.s1",
            json!({"mode": "trunk", "access-vlan": 1}),
        ),
        add(Kind::Vnic, "b.s1", json!({"ha": "10/1", "if": "10/1"})),
        add(Kind::Vnic, "b.s1", json!({"auto-switchover": true})),
        add(
            Kind::Vnic,
            "b.s1",
            json!({"ingress-qos": {"policer": "gold/none"}}),
        ),
        add(Kind::Vnic, "b.s1", json!({"local-id": 33})),
        add(Kind::Vnic, "b.s1", json!({"color": "red"})),
        add(Kind::Vhba, "b.s1", json!({"luns": {"0": "nolun"}})),
        add(Kind::Lun, "l", json!({"port": "4/1"})),
        add(
            Kind::Lun,
            "l",
            json!({"port": "4/1", "ram": "1M", "null": "1M"}),
        ),
        add(Kind::Lag, "10.6", json!({"ports": "1-4"})),
        add(Kind::Lag, "10.1", json!({"ports": "4-1"})),
        add(Kind::QosNetwork, "default/x", json!({"cir": "1m"})),
        add(Kind::QosNetwork, "a/b", json!({"cir": "2m", "pir": "1m"})),
        add(Kind::PhysicalServer, "vm1", json!({})),
        add(Kind::Host, "h9", json!({"director": "d9"})),
        set(Kind::Vnic, "a.s1", json!({"id": 7})),
        set(Kind::Vnic, "none.s1", json!({})),
        remove(Kind::System, "system"),
        remove(Kind::Director, "d1"),
        act(Kind::Vnic, "a.s1", Action::Switchover),
    ] {
        let refusal = refused(&model, command.clone());
        assert!(
            !refusal.problem.is_empty() && !refusal.next.is_empty(),
            "{command:?}: {refusal}"
        );
    }
}

#[test]
fn a_pool_that_is_empty_says_so_and_gets_addresses_back() {
    let model = done(
        &site(),
        &[
            set(
                Kind::MacPool,
                "default",
                json!({"first": "02:00:00:00:00:10", "size": 2}),
            ),
            add(Kind::Vnic, "a.s1", json!({})),
            add(Kind::Vnic, "b.s1", json!({})),
        ],
    );
    let refusal = refused(&model, add(Kind::Vnic, "c.s1", json!({})));
    assert!(
        refusal.problem.contains("none of its 2 addresses left"),
        "{refusal}"
    );
    let model = done(
        &model,
        &[
            remove(Kind::Vnic, "a.s1"),
            add(Kind::Vnic, "c.s1", json!({})),
        ],
    );
    assert_eq!(model.vnics["c.s1"].mac, "02:00:00:00:00:10");
}

/// A name out of few, so that commands meet.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![Just("a.s1"), Just("b.s1"), Just("a.s2"), Just("c.s2")].prop_map(str::to_owned)
}

fn command() -> impl Strategy<Value = Command> {
    let profile = prop_oneof![Just("s1".to_owned()), Just("s2".to_owned())];
    let port = prop_oneof![Just("10/1"), Just("10/2"), Just("none"), Just("11/1")];
    let mac = prop_oneof![Just(json!(null)), Just(json!("02:13:97:00:00:01"))];
    let server = prop_oneof![Just(""), Just("vm1@h1"), Just("vm2@h1"), Just("vm1@else")];
    let template = prop_oneof![Just(""), Just("t")];
    let template_vnic = prop_oneof![
        Just(json!({"vnics": {"a": {"if": "10/1"}}})),
        Just(json!({"vnics": {"a": null, "t1": {"mtu": 9000}}})),
        Just(json!({"vhbas": {"h": {"if": "4/1"}}})),
    ];
    prop_oneof![
        4 => (name(), port, mac).prop_map(|(name, port, mac)| {
            add(Kind::Vnic, &name, json!({"if": port, "mac": mac}))
        }),
        3 => name().prop_map(|name| add(Kind::Vhba, &name, json!({"if": "4/1"}))),
        2 => name().prop_map(|name| remove(Kind::Vnic, &name)),
        1 => name().prop_map(|name| remove(Kind::Vhba, &name)),
        2 => (name(), 60_u16..9001).prop_map(|(name, mtu)| {
            set(Kind::Vnic, &name, json!({"mtu": mtu}))
        }),
        2 => (profile.clone(), server).prop_map(|(name, server)| Command::Put {
            kind: Kind::ServerProfile,
            name,
            fields: fields(json!({"server": server})),
        }),
        1 => (profile.clone(), template).prop_map(|(name, template)| {
            set(Kind::ServerProfile, &name, json!({"template": template}))
        }),
        1 => profile.prop_map(|name| remove(Kind::ServerProfile, &name)),
        2 => template_vnic.prop_map(|value| Command::Put {
            kind: Kind::Template,
            name: "t".to_owned(),
            fields: fields(value),
        }),
        1 => Just(add(Kind::Lun, "data", json!({"port": "4/1", "ram": "64M"}))),
        1 => Just(remove(Kind::Lun, "data")),
        1 => Just(remove(Kind::Iocard, "10")),
        1 => Just(add(Kind::Iocard, "10", json!({"kind": "ethernet"}))),
    ]
}

fn check_invariants(model: &Model) -> Result<(), TestCaseError> {
    let macs: BTreeSet<_> = model.vnics.values().map(|vnic| &vnic.mac).collect();
    prop_assert_eq!(macs.len(), model.vnics.len(), "a MAC address is out twice");
    let wwpns: BTreeSet<_> = model.vhbas.values().map(|vhba| &vhba.wwpn).collect();
    prop_assert_eq!(wwpns.len(), model.vhbas.len(), "a WWPN is out twice");
    let vnics = model.vnics.values().map(|vnic| vnic.id);
    let ids: BTreeSet<_> = vnics
        .chain(model.vhbas.values().map(|vhba| vhba.id))
        .collect();
    prop_assert_eq!(
        ids.len(),
        model.vnics.len() + model.vhbas.len(),
        "a number is out twice"
    );
    let devices = model.vnics.keys().chain(model.vhbas.keys());
    for device in devices {
        prop_assert!(model.server_profiles.contains_key(profile_of(device)));
    }
    let servers = model
        .server_profiles
        .values()
        .map(|profile| &profile.server);
    let servers: Vec<_> = servers.filter(|server| !server.is_empty()).collect();
    let different: BTreeSet<_> = servers.iter().collect();
    prop_assert_eq!(different.len(), servers.len(), "a server has two profiles");
    // It renders: what is kept can be handed out.
    model
        .render_all()
        .map(|_files| ())
        .map_err(|refusal| TestCaseError::fail(refusal.to_string()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn random_commands_keep_the_invariants(commands in prop::collection::vec(command(), 1..40)) {
        let mut model = site();
        let mut ids = BTreeSet::new();
        for command in &commands {
            let Ok(next) = model.transact(std::slice::from_ref(command)) else { continue };
            // A number of a device that is gone never comes back.
            for vnic in next.model.vnics.iter().filter(|(name, _)| !model.vnics.contains_key(*name)) {
                prop_assert!(ids.insert(vnic.1.id), "number {} came back", vnic.1.id);
            }
            check_invariants(&next.model)?;
            // Taken back, everything is as it was, but for counters.
            let back = next.model.revert(&next.changes);
            let back = back.map_err(|refusal| TestCaseError::fail(refusal.to_string()))?;
            check_invariants(&back.model)?;
            prop_assert_eq!(back.model.vnics.len(), model.vnics.len());
            model = next.model;
        }
    }

    #[test]
    fn a_document_read_back_is_the_same_model(
        commands in prop::collection::vec(command(), 1..40)
    ) {
        let mut model = site();
        for command in &commands {
            if let Ok(next) = model.transact(std::slice::from_ref(command)) {
                model = next.model;
            }
        }
        let document = model.export();
        let again = model.import(&document).unwrap();
        prop_assert!(again.changes.is_empty(), "{:?}", again.changes);
        let elsewhere = Model::default().import(&document).unwrap();
        prop_assert_eq!(&elsewhere.model, &model);
        prop_assert_eq!(Model::load(document.objects).unwrap(), model);
    }
}
