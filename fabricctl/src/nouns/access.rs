//! Users and groups.

use controller_api::Kind;

use super::{DESCR, Form, Noun, PLAIN, opt, text};

const ROLE: super::Opt = opt(
    "role",
    &["role"],
    Form::Word,
    "administrators, network, storage, server, operators or noaccess",
);

pub(super) const USER: Noun = Noun {
    kind: Kind::User,
    names: &[&["user"]],
    about: "a user of the operating system, and what it may",
    example: "alice -role=network",
    options: &[ROLE, DESCR],
    columns: &["name", "role", "descr"],
    ..PLAIN
};

pub(super) const ROLE_MAPPING: Noun = Noun {
    kind: Kind::RoleMapping,
    names: &[&["ims", "role-group-mapping"], &["role-mapping"]],
    about: "what the members of a group may",
    example: "publications -group=pubs -role=storage",
    options: &[text("group", &["group"], "the group"), ROLE, DESCR],
    columns: &["name", "group", "role", "descr"],
    ..PLAIN
};
