//! The whole system, and pools of addresses.

use controller_api::Kind;

use super::{DESCR, Noun, Opt, PLAIN, flag, number, text};

const POOL: &[Opt] = &[
    text("first", &["first"], "the first address"),
    number("size", &["size"], "how many there are"),
    DESCR,
];

pub(super) const MAC_POOL: Noun = Noun {
    kind: Kind::MacPool,
    names: &[&["mac-pool"]],
    about: "where MAC addresses come from",
    example: "default -first=02:13:97:00:00:00",
    options: POOL,
    columns: &["name", "first", "size", "descr"],
    ..PLAIN
};

pub(super) const WWN_POOL: Noun = Noun {
    kind: Kind::WwnPool,
    names: &[&["wwn-pool"]],
    about: "where world wide names come from",
    example: "default -first=30:00:13:97:00:00:00:00",
    options: POOL,
    columns: &["name", "first", "size", "descr"],
    ..PLAIN
};

pub(super) const SYSTEM: Noun = Noun {
    kind: Kind::System,
    names: &[&["system"]],
    only: Some("system"),
    about: "settings of the whole system",
    example: "-insecure=true",
    options: &[
        text("tls-ca", &["tls-ca"], "certificate of the authority"),
        text(
            "tls-cert",
            &["tls-cert"],
            "certificates, {name} is the machine",
        ),
        text("tls-key", &["tls-key"], "keys, {name} is the machine"),
        flag(
            "insecure",
            &["insecure"],
            "links without TLS may leave a machine",
        ),
        DESCR,
    ],
    columns: &["name", "insecure", "descr"],
    ..PLAIN
};
