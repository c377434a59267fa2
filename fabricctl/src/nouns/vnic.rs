//! Virtual NICs.

use controller_api::{Action, Kind};

use super::{
    DESCR, DOWN, Effect, Form, Noun, PLAIN, Subcommand, UP, Verb, attachment, first, flag, number,
    opt, simple, text,
};
use crate::language::Operation;

pub(super) const VNIC: Noun = Noun {
    kind: Kind::Vnic,
    names: &[&["vnic"]],
    about: "a virtual NIC",
    example: "vn01.server1 10/1",
    positional: Some(("IF", "if")),
    options: &[
        text("if", &["if"], "the port, lag or network it ends at"),
        opt(
            "addr-type",
            &["addr-type"],
            Form::Word,
            "default, static or dhcp",
        ),
        text(
            "ip-addr",
            &["ip-addr"],
            "the guest's address, ADDRESS or ADDRESS/BITS",
        ),
        text("netmask", &["netmask"], "the guest's mask"),
        text("mac", &["mac"], "its MAC address; default from the pool"),
        text("mac-address", &["mac"], "as -mac"),
        opt("mode", &["mode"], Form::Word, "access or trunk"),
        number(
            "access-vlan",
            &["access-vlan"],
            "the VLAN of untagged frames",
        ),
        number("vlan", &["access-vlan"], "as -access-vlan"),
        text("allowed-vlans", &["allowed-vlans"], "the VLANs of a trunk"),
        number("mtu", &["mtu"], "its MTU"),
        number("queues", &["queues"], "queue pairs"),
        flag("private", &["private"], "does not see other private vNICs"),
        text("ha", &["ha"], "the other port of an HA vNIC"),
        text("ha-port", &["ha"], "as -ha"),
        flag(
            "auto-switchover",
            &["auto-switchover"],
            "returns to the first port",
        ),
        number("local-id", &["local-id"], "its place in the server"),
        text(
            "qos",
            &["ingress-qos", "policer"],
            "the policer of what the guest sends",
        ),
        DESCR,
    ],
    subcommands: &[
        UP,
        DOWN,
        Subcommand {
            verb: Verb::Set,
            words: &["add", "allowed-vlans"],
            arguments: &["VLANS"],
            least: 1,
            options: &[],
            effect: Effect::Do(|words| {
                let vlans = first(words)?;
                Ok(Operation::Act(Action::AddAllowedVlans { vlans }))
            }),
            about: "takes these VLANs too",
        },
        Subcommand {
            verb: Verb::Set,
            words: &["remove", "allowed-vlans"],
            arguments: &["VLANS"],
            least: 1,
            options: &[],
            effect: Effect::Do(|words| {
                let vlans = first(words)?;
                Ok(Operation::Act(Action::RemoveAllowedVlans { vlans }))
            }),
            about: "no longer takes these VLANs",
        },
        simple(
            &["switchover"],
            |_| Ok(Operation::Act(Action::Switchover)),
            "changes to its other port",
        ),
        Subcommand {
            verb: Verb::Set,
            words: &["ingress-qos"],
            arguments: &["enable|disable"],
            least: 0,
            options: &[text(
                "policer",
                &["ingress-qos", "policer"],
                "SET/POLICER or none",
            )],
            effect: Effect::Do(|words| attachment("ingress-qos", words)),
            about: "the rate of what the guest sends",
        },
        Subcommand {
            verb: Verb::Set,
            words: &["egress-qos"],
            arguments: &["enable|disable"],
            least: 0,
            options: &[text(
                "policer",
                &["egress-qos", "policer"],
                "SET/POLICER or none",
            )],
            effect: Effect::Do(|words| attachment("egress-qos", words)),
            about: "the rate of what the guest receives",
        },
    ],
    columns: &[
        "name", "state", "mac-addr", "ipaddr", "if", "if-state", "type", "vlans", "qos", "reason",
    ],
    parts: &[("vlans", "allowed-vlans")],
    ..PLAIN
};
