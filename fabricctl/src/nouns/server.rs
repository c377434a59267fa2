//! Hosts and the servers on them.

use controller_api::Kind;

use super::{DESCR, Effect, Form, Noun, PLAIN, Subcommand, Verb, first, flag, opt, text};
use crate::language::Operation;

pub(super) const HOST: Noun = Noun {
    kind: Kind::Host,
    names: &[&["host"]],
    about: "a hypervisor machine",
    example: "host1 -embedded=true",
    options: &[
        text("director", &["director"], "the director that serves it"),
        flag("embedded", &["embedded"], "runs the director itself"),
        opt(
            "address",
            &["director-addresses"],
            Form::Texts,
            "where it finds the director",
        ),
        text("run-dir", &["run-dir"], "folder of its device sockets"),
        text("rate", &["rate"], "what its link is sold as"),
        text("payload", &["payload"], "what its link carries"),
        text("reservable", &["reservable"], "what of it may be reserved"),
        text(
            "protected",
            &["protected"],
            "most of protected reservations",
        ),
        flag(
            "oversubscribe",
            &["oversubscribe"],
            "takes more reservations than fit",
        ),
        DESCR,
    ],
    columns: &[
        "name",
        "state",
        "director",
        "rate",
        "reservable",
        "descr",
        "reason",
    ],
    ..PLAIN
};

pub(super) const PHYSICAL_SERVER: Noun = Noun {
    kind: Kind::PhysicalServer,
    names: &[&["physical-server"]],
    about: "what a profile can be connected to",
    example: "vm1@host1",
    options: &[
        text(
            "qmp",
            &["qmp"],
            "its QEMU's monitor; default PROFILE.qmp in the host's run-dir",
        ),
        text(
            "host",
            &["host"],
            "its host; default what stands behind the @",
        ),
        text("os", &["os"], "for people"),
        DESCR,
    ],
    subcommands: &[Subcommand {
        verb: Verb::Set,
        words: &["apply-io-template"],
        arguments: &["TEMPLATE"],
        least: 1,
        options: &[],
        effect: Effect::Do(|words| Ok(Operation::ApplyTemplate(first(words)?))),
        about: "gives its profile the devices of a template",
    }],
    columns: &["name", "state", "host", "os", "descr", "reason"],
    ..PLAIN
};
