//! The one definition of the language: objects, their options and subcommands.
//!
//! Parser, help, completion, man page and tables read it.

mod access;
mod chassis;
mod network;
mod qos;
mod server;
mod server_profile;
mod storage;
mod system;
mod template;
mod vhba;
mod vnic;

use controller_api::{Fields, Kind};
use serde_json::Value;

use crate::language::Operation;

/// All of them, in the order of the help.
pub const ALL: &[&Noun] = &[
    &server_profile::SERVER_PROFILE,
    &vnic::VNIC,
    &vhba::VHBA,
    &server::PHYSICAL_SERVER,
    &server::HOST,
    &template::TEMPLATE,
    &chassis::DIRECTOR,
    &chassis::IOCARD,
    &chassis::ETHERNET_PORT,
    &chassis::FC_PORT,
    &chassis::LAG,
    &network::PUBLIC_NETWORK,
    &network::PVI,
    &storage::LUN,
    &storage::LUN_MASK,
    &storage::SAN_MAP,
    &qos::QOS_NETWORK,
    &qos::QOS_SAN,
    &system::MAC_POOL,
    &system::WWN_POOL,
    &access::USER,
    &access::ROLE_MAPPING,
    &system::SYSTEM,
];

/// An object that commands are about.
#[derive(Debug)]
pub struct Noun {
    /// What it is to the controller.
    pub kind: Kind,
    /// What it is called: the first is the usual one.
    pub names: &'static [&'static [&'static str]],
    /// Words that may stand before a name, for nothing.
    pub filler: &'static [&'static str],
    /// The name, if there is only one of it.
    pub only: Option<&'static str>,
    /// What it is, in a few words.
    pub about: &'static str,
    /// What follows its name in an example.
    pub example: &'static str,
    /// A word behind the name of `add`, and its field.
    pub positional: Option<(&'static str, &'static str)>,
    /// Options of `add` and `set`.
    pub options: &'static [Opt],
    /// More that can be done to it.
    pub subcommands: &'static [Subcommand],
    /// Fields in tables.
    pub columns: &'static [&'static str],
    /// Fields with rows of their own: what `show` calls them, and the field.
    pub parts: &'static [(&'static str, &'static str)],
}

impl Noun {
    /// What it is called.
    #[must_use]
    pub fn title(&self) -> String {
        self.names
            .first()
            .map(|words| words.join(" "))
            .unwrap_or_default()
    }
}

/// An option `-name=value`.
#[derive(Debug)]
pub struct Opt {
    /// Its name.
    pub name: &'static str,
    /// The field, in objects of fields.
    pub field: &'static [&'static str],
    /// What can be written.
    pub form: Form,
    /// What it is, in a few words.
    pub about: &'static str,
}

/// What can be written as a value. `none` and `default` take back what was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Any text.
    Text,
    /// One of some words, of which `default` and `none` may be some.
    Word,
    /// `true` or `false`; without a value true.
    Flag,
    /// A number.
    Number,
    /// Texts with commas between.
    Texts,
    /// The last 12 hexadecimal digits of a world wide name.
    WwnSuffix,
    /// LUNs by number.
    Luns,
}

impl Form {
    /// One that is right.
    #[must_use]
    pub const fn example(self) -> &'static str {
        match self {
            Self::Text => "TEXT",
            Self::Word => "WORD",
            Self::Flag => "true",
            Self::Number => "NUMBER",
            Self::Texts => "TEXT,TEXT",
            Self::WwnSuffix => "100000000001",
            Self::Luns => "0:data,1:logs",
        }
    }
}

/// What a command begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `add`
    Add,
    /// `set`
    Set,
    /// `remove`
    Remove,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Add, Self::Set, Self::Remove];

    /// As it is written.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Set => "set",
            Self::Remove => "remove",
        }
    }
}

/// Words behind a name.
#[derive(Debug)]
pub struct Subcommand {
    /// Of which verb.
    pub verb: Verb,
    /// The words.
    pub words: &'static [&'static str],
    /// What follows them.
    pub arguments: &'static [&'static str],
    /// How many of these have to be there.
    pub least: usize,
    /// Options beside those of the object.
    pub options: &'static [Opt],
    /// What it does.
    pub effect: Effect,
    /// What it does, in a few words.
    pub about: &'static str,
}

/// What a subcommand does.
#[derive(Debug, Clone, Copy)]
pub enum Effect {
    /// This, with its arguments.
    Do(fn(&[&str]) -> Result<Operation, String>),
    /// Says fields of a device in `field` of the object.
    Nested {
        /// Whose fields.
        noun: &'static Noun,
        /// Where they go.
        field: &'static str,
    },
}

impl Subcommand {
    /// How it is written.
    #[must_use]
    pub fn usage(&self, noun: &Noun) -> String {
        let mut usage = format!(
            "{} {} NAME {}",
            self.verb.text(),
            noun.title(),
            self.words.join(" ")
        );
        for (at, argument) in self.arguments.iter().enumerate() {
            match at < self.least {
                true => usage += &format!(" {argument}"),
                false => usage += &format!(" [{argument}]"),
            }
        }
        for option in self.options {
            usage += &format!(" -{}={}", option.name, option.form.example());
        }
        usage
    }
}

/// An object without anything of its own; the others say what they have.
const PLAIN: Noun = Noun {
    kind: Kind::System,
    names: &[],
    filler: &[],
    only: None,
    about: "",
    example: "NAME",
    positional: None,
    options: &[],
    subcommands: &[],
    columns: &[],
    parts: &[],
};

const DESCR: Opt = text("descr", &["descr"], "for people");

const fn opt(
    name: &'static str,
    field: &'static [&'static str],
    form: Form,
    about: &'static str,
) -> Opt {
    Opt {
        name,
        field,
        form,
        about,
    }
}

const fn text(name: &'static str, field: &'static [&'static str], about: &'static str) -> Opt {
    opt(name, field, Form::Text, about)
}

const fn number(name: &'static str, field: &'static [&'static str], about: &'static str) -> Opt {
    opt(name, field, Form::Number, about)
}

const fn flag(name: &'static str, field: &'static [&'static str], about: &'static str) -> Opt {
    opt(name, field, Form::Flag, about)
}

/// A subcommand of `set` without arguments.
const fn simple(
    words: &'static [&'static str],
    effect: fn(&[&str]) -> Result<Operation, String>,
    about: &'static str,
) -> Subcommand {
    Subcommand {
        verb: Verb::Set,
        words,
        arguments: &[],
        least: 0,
        options: &[],
        effect: Effect::Do(effect),
        about,
    }
}

/// Sets one field.
fn set(field: &str, value: impl Into<Value>) -> Result<Operation, String> {
    Ok(Operation::Set(Fields::from_iter([(
        field.to_owned(),
        value.into(),
    )])))
}

/// Sets one field in an object that is a field.
fn set_inner(field: &str, inner: &str, value: impl Into<Value>) -> Fields {
    let inner = Fields::from_iter([(inner.to_owned(), value.into())]);
    Fields::from_iter([(field.to_owned(), Value::Object(inner))])
}

fn first(words: &[&str]) -> Result<String, String> {
    words
        .first()
        .map(|word| (*word).to_owned())
        .ok_or_else(|| "a word is missing".to_owned())
}

const UP: Subcommand = simple(&["up"], |_| set("admin", "up"), "is used");
const DOWN: Subcommand = simple(&["down"], |_| set("admin", "down"), "is not used");

/// `ingress-qos` and `egress-qos`: attaches, enables, disables.
fn attachment(field: &str, words: &[&str]) -> Result<Operation, String> {
    match words.first() {
        None => Ok(Operation::Set(Fields::new())),
        Some(&"enable") => Ok(Operation::Set(set_inner(field, "disabled", false))),
        Some(&"disable") => Ok(Operation::Set(set_inner(field, "disabled", true))),
        Some(other) => Err(format!("{other:?} is neither enable nor disable")),
    }
}
