//! Directors, modules and ports.

use controller_api::Kind;

use super::{
    DESCR, DOWN, Effect, Form, Noun, PLAIN, Subcommand, UP, Verb, flag, number, opt, text,
};
use crate::language::Operation;

pub(super) const DIRECTOR: Noun = Noun {
    kind: Kind::Director,
    names: &[&["director"]],
    about: "an I/O director",
    example: "director1 -listen=tls:192.0.2.1:7471",
    options: &[
        opt("listen", &["listen"], Form::Texts, "where hosts reach it"),
        flag(
            "shared-luns",
            &["shared-luns"],
            "locks LUNs only while they are used",
        ),
        opt(
            "backing-files",
            &["backing-files"],
            Form::Texts,
            "what qcow2 images may stand on",
        ),
        text(
            "discoverable",
            &["discoverable"],
            "where hosts find it by asking",
        ),
        DESCR,
    ],
    columns: &["name", "state", "listen", "descr", "reason"],
    ..PLAIN
};

pub(super) const IOCARD: Noun = Noun {
    kind: Kind::Iocard,
    names: &[&["iocard"], &["ethernet-card"], &["fc-card"]],
    about: "an I/O module in a slot",
    example: "10 10x1ge",
    positional: Some(("KIND", "kind")),
    options: &[
        opt(
            "kind",
            &["kind"],
            Form::Word,
            "4x1ge, 10x1ge, 1x10ge, 2x4fc, 1x10ib, ethernet or san",
        ),
        DESCR,
    ],
    subcommands: &[
        UP,
        DOWN,
        Subcommand {
            verb: Verb::Set,
            words: &["qos"],
            arguments: &[],
            least: 0,
            options: &[text("set", &["qos-set"], "the policy set of its vNICs")],
            effect: Effect::Do(|_| Ok(Operation::Set(Default::default()))),
            about: "chooses a policy set",
        },
    ],
    columns: &["name", "state", "kind", "qos-set", "descr"],
    ..PLAIN
};

pub(super) const ETHERNET_PORT: Noun = Noun {
    kind: Kind::EthernetPort,
    names: &[&["ethernet-port"], &["ioport"]],
    about: "settings of an Ethernet port",
    example: "10/1 -tap=lan0",
    options: &[
        text("tap", &["tap"], "the TAP interface that it is"),
        number("mtu", &["mtu"], "its MTU"),
        text("rate", &["rate"], "what it carries"),
        text("reservable", &["reservable"], "what of it may be reserved"),
        flag("offloads", &["offloads"], "frames cross the TAP unfinished"),
        DESCR,
    ],
    columns: &["name", "tap", "mtu", "rate", "reservable", "descr"],
    ..PLAIN
};

pub(super) const FC_PORT: Noun = Noun {
    kind: Kind::FcPort,
    names: &[&["fc-port"], &["san-port"]],
    about: "settings of a SAN port",
    example: "4/1 -rate=8g",
    options: &[
        text("rate", &["rate"], "what it carries"),
        text("reservable", &["reservable"], "what of it may be reserved"),
        DESCR,
    ],
    columns: &["name", "rate", "reservable", "descr"],
    ..PLAIN
};

pub(super) const LAG: Noun = Noun {
    kind: Kind::Lag,
    names: &[&["lag"]],
    about: "ports of a module that stand for one",
    example: "10.1 -ports=1-4",
    options: &[text("ports", &["ports"], "the ports, like 1-4"), DESCR],
    columns: &["name", "ports", "descr"],
    ..PLAIN
};
