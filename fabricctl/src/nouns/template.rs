//! Templates.

use controller_api::Kind;
use serde_json::Value;

use super::{DESCR, Effect, Noun, PLAIN, Subcommand, Verb, set_inner, vhba, vnic};
use crate::language::Operation;

pub(super) const TEMPLATE: Noun = Noun {
    kind: Kind::Template,
    names: &[&["template"], &["io-template"]],
    about: "devices of profiles that are alike",
    options: &[DESCR],
    subcommands: &[
        Subcommand {
            verb: Verb::Set,
            words: &["vnic"],
            arguments: &["DEVICE", "IF"],
            least: 1,
            options: &[],
            effect: Effect::Nested {
                noun: &vnic::VNIC,
                field: "vnics",
            },
            about: "has a vNIC with these options",
        },
        Subcommand {
            verb: Verb::Set,
            words: &["vhba"],
            arguments: &["DEVICE", "IF"],
            least: 1,
            options: &[],
            effect: Effect::Nested {
                noun: &vhba::VHBA,
                field: "vhbas",
            },
            about: "has a vHBA with these options",
        },
        Subcommand {
            verb: Verb::Set,
            words: &["remove", "vnic"],
            arguments: &["DEVICE"],
            least: 1,
            options: &[],
            effect: Effect::Do(|words| remove("vnics", words)),
            about: "has that vNIC no longer",
        },
        Subcommand {
            verb: Verb::Set,
            words: &["remove", "vhba"],
            arguments: &["DEVICE"],
            least: 1,
            options: &[],
            effect: Effect::Do(|words| remove("vhbas", words)),
            about: "has that vHBA no longer",
        },
    ],
    columns: &["name", "vnics", "vhbas", "descr"],
    ..PLAIN
};

fn remove(field: &str, words: &[&str]) -> Result<Operation, String> {
    let device = super::first(words)?;
    Ok(Operation::Set(set_inner(field, &device, Value::Null)))
}
