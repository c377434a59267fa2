//! Virtual HBAs.

use controller_api::Kind;
use serde_json::Value;

use super::{
    DESCR, DOWN, Effect, Form, Noun, PLAIN, Subcommand, UP, Verb, attachment, flag, number, opt,
    set_inner, simple, text,
};
use crate::language::Operation;

/// Why nobody has to look for LUNs.
const RESCAN: &str = "LUNs that come, go or change size reach the guest by themselves";

pub(super) const VHBA: Noun = Noun {
    kind: Kind::Vhba,
    names: &[&["vhba"]],
    about: "a virtual HBA",
    example: "hba1.server1 4/1",
    positional: Some(("IF", "if")),
    options: &[
        text("if", &["if"], "the port it ends at"),
        text("wwpn", &["wwpn"], "its port name; default from the pool"),
        opt(
            "wwn-id",
            &["wwpn"],
            Form::WwnSuffix,
            "the last 12 digits of its port name",
        ),
        text("map", &["map"], "the order of targets"),
        text(
            "lun-mask",
            &["lun-mask"],
            "the mask that says what the guest sees",
        ),
        flag(
            "no-lun-masking",
            &["no-lun-masking"],
            "the guest sees all LUNs of the port",
        ),
        opt(
            "luns",
            &["luns"],
            Form::Luns,
            "what the guest sees, by number",
        ),
        number("local-id", &["local-id"], "its place in the server"),
        number("queues", &["queues"], "request queues"),
        text(
            "qos",
            &["ingress-qos", "policer"],
            "the shaper of what the guest sends",
        ),
        DESCR,
    ],
    subcommands: &[
        UP,
        DOWN,
        Subcommand {
            verb: Verb::Set,
            words: &["add", "lun"],
            arguments: &["NUMBER", "LUN"],
            least: 2,
            options: &[],
            effect: Effect::Do(|words| match words {
                [number, lun] => Ok(Operation::Set(set_inner("luns", number, *lun))),
                _ => Err("a number or a name is missing".to_owned()),
            }),
            about: "lets the guest see a LUN",
        },
        Subcommand {
            verb: Verb::Set,
            words: &["remove", "lun"],
            arguments: &["NUMBER"],
            least: 1,
            options: &[],
            effect: Effect::Do(|words| match words {
                [number] => Ok(Operation::Set(set_inner("luns", number, Value::Null))),
                _ => Err("a number is missing".to_owned()),
            }),
            about: "hides a LUN from the guest",
        },
        simple(
            &["prescan"],
            |_| Ok(Operation::Needless(RESCAN)),
            "not needed",
        ),
        simple(
            &["remove-prescan"],
            |_| Ok(Operation::Needless(RESCAN)),
            "not needed",
        ),
        simple(
            &["rescan"],
            |_| Ok(Operation::Needless(RESCAN)),
            "not needed",
        ),
        simple(
            &["full-scan"],
            |_| Ok(Operation::Needless(RESCAN)),
            "not needed",
        ),
        Subcommand {
            verb: Verb::Set,
            words: &["ingress-qos"],
            arguments: &["enable|disable"],
            least: 0,
            options: &[text(
                "policer",
                &["ingress-qos", "policer"],
                "SET/SHAPER or none",
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
                "SET/SHAPER or none",
            )],
            effect: Effect::Do(|words| attachment("egress-qos", words)),
            about: "the rate of what the guest receives",
        },
    ],
    columns: &[
        "name", "state", "if", "if-state", "wwnn", "wwpn", "map", "local-id", "reason",
    ],
    parts: &[("luns", "luns"), ("targets", "luns")],
    ..PLAIN
};
