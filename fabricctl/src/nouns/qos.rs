//! Rates by name.

use controller_api::Kind;

use super::{Noun, Opt, PLAIN, number, text};

const RATES: &[Opt] = &[
    text("cir", &["cir"], "what is guaranteed; a bare number is kb/s"),
    text("pir", &["pir"], "what is never exceeded"),
    text("cbs", &["cbs"], "bytes of a burst at cir"),
    text("pbs", &["pbs"], "bytes of a burst at pir"),
    number("weight", &["weight"], "the share of what is left"),
];

pub(super) const QOS_NETWORK: Noun = Noun {
    kind: Kind::QosNetwork,
    names: &[&["qos", "network"], &["qos-network"]],
    filler: &["policer"],
    about: "a rate of vNICs",
    example: "policer gold/web -cir=200m -pir=500m",
    options: RATES,
    columns: &["name", "cir", "pir", "cbs", "pbs", "weight"],
    ..PLAIN
};

pub(super) const QOS_SAN: Noun = Noun {
    kind: Kind::QosSan,
    names: &[&["qos", "san"], &["qos-san"]],
    filler: &["shaper"],
    about: "a rate of vHBAs",
    example: "tape/slow -cir=50m -pir=125m",
    options: RATES,
    columns: &["name", "cir", "pir", "cbs", "pbs", "weight"],
    ..PLAIN
};
