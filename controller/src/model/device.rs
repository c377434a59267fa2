//! What vNICs and vHBAs have in common.

use core::net::Ipv4Addr;
use std::collections::BTreeSet;

use fabric_config::PCI_SLOTS;

use super::{Model, Problem, names};

/// Reads an IPv4 address.
pub(super) fn address(text: &str) -> Result<Ipv4Addr, Problem> {
    text.parse().map_err(|_not_one| {
        Problem::invalid(
            format_args!("{text:?} is no address"),
            "write it like 192.168.10.201",
        )
    })
}

/// Refuses a device without a profile.
pub(super) fn check_profile(device: &str, model: &Model) -> Result<(), Problem> {
    let profile = names::profile_of(device);
    if model.server_profiles.contains_key(profile) {
        return Ok(());
    }
    Err(Problem::not_found(
        format_args!("there is no server-profile {profile}"),
        format_args!("add server-profile {profile} first"),
    ))
}

/// Refuses a place in the server that another device of the same kind has.
pub(super) fn check_local_id<'a>(
    device: &str,
    id: Option<u32>,
    others: impl Iterator<Item = (&'a String, Option<u32>)>,
) -> Result<(), Problem> {
    let Some(id) = id else { return Ok(()) };
    if !(1..=32).contains(&id) {
        return Err(Problem::invalid(
            format_args!("local-id {id} is no place"),
            "use 1 to 32",
        ));
    }
    let mut others = others.filter(|(other, _)| *other != device);
    match others.find(|(_, other)| *other == Some(id)) {
        Some((other, _)) => Err(Problem::conflict(
            format_args!("local-id {id} is that of {other}"),
            "choose another",
        )),
        None => Ok(()),
    }
}

/// A root port of the guest for a device that has none: the first that no other of the profile has.
/// Without one it still comes with its VM.
pub(super) fn settle_slot(slot: &mut Option<u8>, device: &str, model: &Model) {
    if slot.is_none() {
        let taken: BTreeSet<u8> = slots(device, model).map(|(_, slot)| slot).collect();
        *slot = (0..PCI_SLOTS).find(|slot| !taken.contains(slot));
    }
}

/// Refuses a root port that another device of the profile has.
pub(super) fn check_slot(slot: Option<u8>, device: &str, model: &Model) -> Result<(), Problem> {
    let Some(slot) = slot else { return Ok(()) };
    if slot >= PCI_SLOTS {
        return Err(Problem::invalid(
            format_args!("pci-slot {slot} is no root port"),
            format_args!("use 0 to {}", PCI_SLOTS - 1),
        ));
    }
    match slots(device, model).find(|(_, other)| *other == slot) {
        Some((other, _)) => Err(Problem::conflict(
            format_args!("pci-slot {slot} is that of {other}"),
            "leave it out",
        )),
        None => Ok(()),
    }
}

/// The root ports of the other devices of a profile.
fn slots<'a>(device: &'a str, model: &'a Model) -> impl Iterator<Item = (&'a String, u8)> {
    let profile = names::profile_of(device);
    let vnics = model
        .vnics_of(profile)
        .map(|(name, it)| (name, it.pci_slot));
    let vhbas = model
        .vhbas_of(profile)
        .map(|(name, it)| (name, it.pci_slot));
    let all = vnics.chain(vhbas).filter(move |(name, _)| *name != device);
    all.filter_map(|(name, slot)| Some((name, slot?)))
}

/// Refuses queues that there cannot be.
pub(super) fn check_queues(queues: Option<u16>, most: u16) -> Result<(), Problem> {
    match queues {
        Some(queues) if !(1..=most).contains(&queues) => Err(Problem::invalid(
            format_args!("{queues} queues are not possible"),
            format_args!("use 1 to {most}"),
        )),
        _ => Ok(()),
    }
}

/// Refuses an address that another device has.
pub(super) fn check_unique<'a>(
    device: &str,
    what: &str,
    value: &str,
    mut others: impl Iterator<Item = (&'a String, &'a str)>,
) -> Result<(), Problem> {
    match others.find(|(other, of)| *of == value && *other != device) {
        Some((other, _)) => Err(Problem::conflict(
            format_args!("{what} {value} is that of {other}"),
            "choose another, or leave it out for one of the pool",
        )),
        None => Ok(()),
    }
}
