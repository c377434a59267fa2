//! Networks.

use controller_api::Kind;

use super::{DESCR, Noun, PLAIN, number, text};

pub(super) const PUBLIC_NETWORK: Noun = Noun {
    kind: Kind::PublicNetwork,
    names: &[&["public-network"]],
    about: "a network behind a port",
    example: "lan 10/1 -vlan=100",
    positional: Some(("PORT", "port")),
    options: &[
        text("port", &["port"], "the port"),
        number("vlan", &["vlan"], "its VLAN there"),
        DESCR,
    ],
    columns: &["name", "port", "vlan", "descr"],
    ..PLAIN
};

pub(super) const PVI: Noun = Noun {
    kind: Kind::Pvi,
    names: &[&["pvi"]],
    about: "a private network between vNICs",
    options: &[DESCR],
    columns: &["name", "descr"],
    ..PLAIN
};
