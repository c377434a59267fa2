//! Server profiles.

use controller_api::{Action, Kind};
use serde_json::Value;

use super::{DESCR, DOWN, Effect, Noun, PLAIN, Subcommand, UP, Verb, first, set, simple, text};
use crate::language::Operation;

pub(super) const SERVER_PROFILE: Noun = Noun {
    kind: Kind::ServerProfile,
    names: &[&["server-profile"]],
    about: "the devices of one server",
    example: "server1 vm1@host1",
    positional: Some(("SERVER", "server")),
    options: &[
        text("server", &["server"], "the server it is connected to"),
        text(
            "default-gateway",
            &["default-gateway"],
            "the guest's gateway",
        ),
        text("template", &["template"], "the template it follows"),
        text(
            "ingress-pir",
            &["ingress-pir"],
            "most that its devices send together",
        ),
        text(
            "egress-pir",
            &["egress-pir"],
            "most that its devices receive together",
        ),
        DESCR,
    ],
    subcommands: &[
        UP,
        DOWN,
        Subcommand {
            verb: Verb::Set,
            words: &["connect"],
            arguments: &["SERVER"],
            least: 1,
            options: &[],
            effect: Effect::Do(|words| set("server", first(words)?)),
            about: "moves it to a server; devices keep their addresses",
        },
        simple(
            &["disconnect"],
            |_| set("server", Value::Null),
            "takes it from its server",
        ),
        Subcommand {
            verb: Verb::Set,
            words: &["apply-template"],
            ..APPLY
        },
        Subcommand {
            verb: Verb::Set,
            words: &["apply-io-template"],
            ..APPLY
        },
    ],
    columns: &["name", "state", "server", "template", "reason"],
    ..PLAIN
};

const APPLY: Subcommand = Subcommand {
    verb: Verb::Set,
    words: &[],
    arguments: &["TEMPLATE"],
    least: 1,
    options: &[],
    effect: Effect::Do(|words| {
        let template = first(words)?;
        Ok(Operation::Act(Action::ApplyTemplate { template }))
    }),
    about: "has the devices of a template, and follows it",
};
