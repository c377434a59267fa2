//! What vNICs and vHBAs have in common.

use core::net::Ipv4Addr;

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
