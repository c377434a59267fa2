//! Rates, times and tables as people read them.

use std::time::Duration;

use anyhow::{Result, bail};
use comfy_table::{Table, presets};
use qos::{BitRate, WaitCause};
use qos_monitor::protocol::HopState;

/// Digits of a rate that matter.
const RATE_DIGITS: u32 = 4;

/// A rate with its unit, to four digits.
pub(crate) fn rate(rate: BitRate) -> String {
    let bits = rate.bits_per_second();
    let digits = bits.checked_ilog10().unwrap_or(0) + 1;
    let unit = 10_u64.pow(digits.saturating_sub(RATE_DIGITS));
    let rounded = bits.saturating_add(unit / 2) / unit * unit;
    BitRate::from_bits_per_second(rounded)
        .with_unit()
        .to_string()
}

/// The committed rate, or that there is none.
pub(crate) fn promise(cir: BitRate) -> String {
    if cir.is_zero() {
        "best effort".to_owned()
    } else {
        rate(cir)
    }
}

/// Bytes with a decimal unit.
pub(crate) fn bytes(bytes: u64) -> String {
    let units = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    let unit = units.into_iter().find(|(unit, _)| bytes >= *unit);
    match unit {
        Some((unit, name)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} B"),
    }
}

/// A short time in the largest unit that leaves three digits.
pub(crate) fn time(time: Duration) -> String {
    let nanos = time.as_nanos();
    let units = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")];
    let unit = units.into_iter().find(|(unit, _)| nanos >= *unit);
    match unit {
        Some((unit, name)) if nanos < 100 * unit => {
            format!("{}.{} {name}", nanos / unit, nanos % unit * 10 / unit)
        }
        Some((unit, name)) => format!("{} {name}", nanos / unit),
        None => format!("{nanos} ns"),
    }
}

/// What is meant by a cause.
pub(crate) const fn meaning(cause: WaitCause) -> &'static str {
    match cause {
        WaitCause::Credit => "the receiver had no buffers",
        WaitCause::OwnQueue => "earlier frames of its own",
        WaitCause::OwnLimit => "its own peak rate or limit of operations",
        WaitCause::VmLimit => "the peak rate of its VM",
        WaitCause::OthersReserved => "frames that others had reserved bandwidth for",
        WaitCause::OthersShare => "the share of others in what nobody reserved",
        WaitCause::Link => "the link itself",
    }
}

/// A table without lines.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(head);
    for row in rows {
        table.add_row(row);
    }
    let text = table.to_string();
    text.lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}

/// The hops that `wanted` means: the one with that name, or else the only one whose name contains
/// it; all without it.
pub(crate) fn choose<'a>(
    states: &'a [HopState],
    wanted: Option<&str>,
) -> Result<Vec<&'a HopState>> {
    let Some(wanted) = wanted else {
        return Ok(states.iter().collect());
    };
    let name = choose_one(states.iter().map(|state| state.name.as_str()), wanted)?;
    Ok(states.iter().filter(|state| state.name == name).collect())
}

/// The name among `names` that `wanted` means, as for [`choose`].
pub(crate) fn choose_one<'a>(
    names: impl Iterator<Item = &'a str>,
    wanted: &str,
) -> Result<&'a str> {
    let names: Vec<_> = names.collect();
    if let Some(exact) = names.iter().find(|name| **name == wanted) {
        return Ok(exact);
    }
    let containing = names.iter().filter(|name| name.contains(wanted));
    let containing: Vec<_> = containing.copied().collect();
    let list = |names: &[&str]| {
        let quoted: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
        quoted.join(", ")
    };
    match containing.as_slice() {
        [only] => Ok(only),
        [] => bail!("no hop is named {wanted:?}: there are {}", list(&names)),
        several => bail!(
            "{wanted:?} may be any of {}: write more of the name",
            list(several)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let short = |bits| rate(BitRate::from_bits_per_second(bits));
        assert_eq!(short(499_812_345), "499.8 Mb/s");
        assert_eq!(short(999_999), "1 Mb/s");
        assert_eq!(short(12), "12 bit/s");
        assert_eq!(bytes(1_234_567), "1.2 MB");
        assert_eq!(time(Duration::from_nanos(1_234_567)), "1.2 ms");
        assert_eq!(time(Duration::from_nanos(123_456)), "123 us");
        assert_eq!(time(Duration::from_nanos(999)), "999 ns");
    }

    #[test]
    fn hop_may_be_named_by_a_part_that_only_it_has() {
        let state = |name: &str| HopState {
            name: name.to_owned(),
            snapshot: None,
            main_waits: std::collections::BTreeMap::default(),
        };
        let states = ["port 1/1", "port 1/10", "host1 uplink"].map(state);
        let chosen = |wanted| choose(&states, wanted).map(|hops| hops.len());
        assert_eq!(chosen(None).unwrap(), 3);
        assert_eq!(
            choose(&states, Some("port 1/1")).unwrap()[0].name,
            "port 1/1"
        );
        assert_eq!(
            choose(&states, Some("uplink")).unwrap()[0].name,
            "host1 uplink"
        );
        let several = chosen(Some("port")).unwrap_err().to_string();
        assert!(several.contains("\"port 1/1\", \"port 1/10\""), "{several}");
        let none = chosen(Some("lan")).unwrap_err().to_string();
        assert!(none.contains("host1 uplink"), "{none}");
    }
}
