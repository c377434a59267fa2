//! The language, by the examples of the original's guides.

use controller_api::{Action, Fields};
use orimono_fuzz::{fuzz, inputs};
use serde_json::{Value, json};

use super::*;

fn line(text: &str) -> Result<Line, LanguageError> {
    parse(&tokens(text, false)?)
}

fn change(text: &str) -> (String, Operation) {
    match line(text).map(|line| line.statement) {
        Ok(Statement::Change {
            noun,
            name,
            operation,
            ..
        }) => (format!("{} {name}", noun.kind), operation),
        other => panic!("{text}: {other:?}"),
    }
}

fn fields(value: Value) -> Fields {
    value.as_object().cloned().unwrap()
}

#[test]
fn examples_of_the_guides_are_understood() {
    let set = |value| Operation::Set(fields(value));
    let add = |value| Operation::Add(fields(value));
    for (text, object, operation) in [
        (
            "add server-profile web1",
            "server-profile web1",
            add(json!({})),
        ),
        (
            "add server-profile server1 HP_DL360@ExtSw-b8cffff004401-Port16",
            "server-profile server1",
            add(json!({"server": "HP_DL360@ExtSw-b8cffff004401-Port16"})),
        ),
        (
            "set server-profile web1 connect vm1@host1",
            "server-profile web1",
            set(json!({"server": "vm1@host1"})),
        ),
        (
            "set server-profile web1 disconnect -noconfirm",
            "server-profile web1",
            set(json!({"server": null})),
        ),
        (
            "set server-profile web1 up",
            "server-profile web1",
            set(json!({"admin": "up"})),
        ),
        (
            "set server-profile web1 -default-gateway=192.168.10.1",
            "server-profile web1",
            set(json!({"default-gateway": "192.168.10.1"})),
        ),
        (
            "add vnic vn02.server1 none",
            "vnic vn02.server1",
            add(json!({"if": null})),
        ),
        (
            "add vnic vn03.server1 5.4",
            "vnic vn03.server1",
            add(json!({"if": "5.4"})),
        ),
        (
            "add vnic vn04.server1 10/1 -mode=trunk",
            "vnic vn04.server1",
            add(json!({"if": "10/1", "mode": "trunk"})),
        ),
        (
            "add vnic vn05.server1 10/1 \u{2013}access-vlan=100",
            "vnic vn05.server1",
            add(json!({"if": "10/1", "access-vlan": 100})),
        ),
        (
            "set vnic vn04.server1 add allowed-vlans 100-199",
            "vnic vn04.server1",
            Operation::Act(Action::AddAllowedVlans {
                vlans: "100-199".to_owned(),
            }),
        ),
        (
            "add vnic db.server1 10/1 -ha=11/1 -auto-switchover=true",
            "vnic db.server1",
            add(json!({"if": "10/1", "ha": "11/1", "auto-switchover": true})),
        ),
        (
            "set vnic db.server1 switchover",
            "vnic db.server1",
            Operation::Act(Action::Switchover),
        ),
        (
            "set vnic vn01.server1 ingress-qos -policer=default/100m_250m enable",
            "vnic vn01.server1",
            set(json!({"ingress-qos": {"policer": "default/100m_250m", "disabled": false}})),
        ),
        (
            "set vnic vn01.server1 egress-qos -policer=none disable",
            "vnic vn01.server1",
            set(json!({"egress-qos": {"policer": null, "disabled": true}})),
        ),
        (
            "set vnic vn01.server1 down",
            "vnic vn01.server1",
            set(json!({"admin": "down"})),
        ),
        (
            "set vnic vn01.server1 -if=11/2",
            "vnic vn01.server1",
            set(json!({"if": "11/2"})),
        ),
        (
            "set vnic vn01.server1 -addr-type=default",
            "vnic vn01.server1",
            set(json!({"addr-type": "default"})),
        ),
        (
            "remove vnic vn01.server1 -noconfirm",
            "vnic vn01.server1",
            Operation::Remove,
        ),
        (
            "add vhba hba1.server1 4/1 -wwn-id=10000000000A -local-id=1",
            "vhba hba1.server1",
            add(json!({"if": "4/1", "wwpn": "30:00:10:00:00:00:00:0a", "local-id": 1})),
        ),
        (
            "add vhba hba3.server1 4/1 -no-lun-masking",
            "vhba hba3.server1",
            add(json!({"if": "4/1", "no-lun-masking": true})),
        ),
        (
            "add san map arrayA entry 0 50:06:01:60:41:e0:12:34",
            "san-map arrayA",
            Operation::Put(fields(json!({"entries": {"0": "50:06:01:60:41:e0:12:34"}}))),
        ),
        (
            "add san lun-mask maskA -lun=0,2-3",
            "lun-mask maskA",
            add(json!({"luns": {"0": "lun0", "2": "lun2", "3": "lun3"}})),
        ),
        (
            "add qos network policer gold/web -cir=200m -pir=500m -cbs=64k -pbs=128k",
            "qos-network gold/web",
            add(json!({"cir": "200m", "pir": "500m", "cbs": "64k", "pbs": "128k"})),
        ),
        (
            "set ethernet-card 10 qos -set=gold",
            "iocard 10",
            set(json!({"qos-set": "gold"})),
        ),
        (
            "add qos san tape/slow -cir=50m -pir=125m",
            "qos-san tape/slow",
            add(json!({"cir": "50m", "pir": "125m"})),
        ),
        (
            "set vhba hba1.server1 -qos=tape/slow",
            "vhba hba1.server1",
            set(json!({"ingress-qos": {"policer": "tape/slow"}})),
        ),
        (
            "add lag 10.1 -ports=1-4",
            "lag 10.1",
            add(json!({"ports": "1-4"})),
        ),
        (
            "set physical-server HP_DL360 apply-io-template webtier",
            "physical-server HP_DL360",
            Operation::ApplyTemplate("webtier".to_owned()),
        ),
        (
            "add ims role-group-mapping publications -group=pubs -role=storage",
            "role-mapping publications",
            add(json!({"group": "pubs", "role": "storage"})),
        ),
        (
            "add user alice --role=network",
            "user alice",
            add(json!({"role": "network"})),
        ),
        (
            "set template web vnic vn01 10/1 -mtu=9000",
            "template web",
            set(json!({"vnics": {"vn01": {"if": "10/1", "mtu": 9000}}})),
        ),
        (
            "set template web remove vnic vn01",
            "template web",
            set(json!({"vnics": {"vn01": null}})),
        ),
        (
            "set system -insecure",
            "system system",
            set(json!({"insecure": true})),
        ),
    ] {
        assert_eq!(change(text), (object.to_owned(), operation), "{text}");
    }
}

#[test]
fn lines_that_show_are_understood() {
    for text in [
        "show server-profile",
        "show server-profiles",
        "show server-profile web1 vnics",
        "show server-profile * where state = up/up",
        "show vnic *.server1",
        "show vnic vn01.server1 -detail",
        "show vnic * where if = 10/1 and state <> up/up",
        "show vnic * where ( if = 10/1 or mtu > 1500 ) xor name like vn.*",
        "show vnic * where mtu >= 9000 > file",
        "show vnic * | grep down",
        "show vnic * | grep -v -i up | grep 10/1",
        "show vhba hba1.server1 targets -detail",
        "show san map arrayA entries",
        "show qos network",
        "show -list vnics",
        "show vnics > allvnics",
        "show alarms",
        "show system info",
        "show config",
        "show audit",
        "system export /config/backup.xml",
        "system import /config/backup.xml",
        "cli record-script new.txt",
        "cli stop-recording",
        "help vnic",
        "exit",
        "# a remark",
        "",
    ] {
        assert!(line(text).is_ok(), "{text}: {:?}", line(text));
    }
    let shown = line("show vnic * where mtu > 1500 > big").unwrap();
    assert_eq!(shown.into.as_deref(), Some("big"));
}

#[test]
fn lines_that_are_wrong_say_what_to_write() {
    for text in [
        "ad vnic a.b",
        "add",
        "add nothing x",
        "add vnic",
        "add vnic a.b 10/1 10/2",
        "add vnic a.b -colour=red",
        "add vnic a.b -mtu",
        "add vnic a.b -mtu=big",
        "set vnic a.b",
        "set vnic a.b sideways",
        "set vnic a.b add allowed-vlans",
        "set vnic a.b ingress-qos maybe",
        "set vnic a.b switchover -mtu=1",
        "remove vnic a.b now",
        "show vnic a b c",
        "show vnic where",
        "show vnic where if",
        "show vnic where if ~ x",
        "show vnic where ( if = x",
        "show vnic where name like (",
        "show vnic -brief",
        "show vnic | sort",
        "show vnic | grep",
        "show vnic >",
        "show vnic > a b",
        "var x",
        "system dance",
        "cli",
        "add vnic \"a.b",
    ] {
        let error = line(text).expect_err(text);
        assert!(
            !error.problem.is_empty() && !error.next.is_empty(),
            "{text}"
        );
    }
}

#[test]
fn any_line_is_answered() {
    let good: Vec<Vec<u8>> = include_str!("../../tests/language.txt")
        .lines()
        .map(|line| line.as_bytes().to_vec())
        .collect();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/language");
    fuzz(folder, &good, inputs(20_000, 1_000_000), |bytes| {
        let text = String::from_utf8_lossy(bytes);
        for lenient in [false, true] {
            if let Ok(tokens) = tokens(&text, lenient) {
                // Either answer is right.
                drop(parse(&tokens));
            }
        }
    });
}
