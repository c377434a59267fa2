//! Pools of addresses.
//!
//! Which addresses are out is what devices have: nothing is counted, so nothing can leak. The cursor
//! only keeps an address that was given back from going out again at once.

use std::sync::Arc;

use controller_api::objects::Pool;
use fabric_config::{MacAddress, Wwpn};
use serde::{Deserialize, Serialize};

use super::item::Item;
use super::{DEFAULT_POOL, Model, Problem};

/// MAC addresses.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct MacPool(pub(crate) Pool);

/// World wide names.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct WwnPool(pub(crate) Pool);

/// A unicast MAC address in its one form.
pub(crate) fn mac(text: &str) -> Result<MacAddress, Problem> {
    let mac: MacAddress = text
        .parse()
        .map_err(|error: fabric_config::AddressError| Problem::from_text(&error))?;
    if mac.is_unicast() {
        return Ok(mac);
    }
    Err(Problem::invalid(
        format_args!("MAC address {mac} is no station's"),
        "use one with an even first byte, like 02:00:00:00:00:01",
    ))
}

/// A world wide port name in its one form.
pub(crate) fn wwpn(text: &str) -> Result<Wwpn, Problem> {
    text.parse()
        .map_err(|error: fabric_config::AddressError| Problem::from_text(&error))
}

fn mac_number(mac: MacAddress) -> u64 {
    mac.0
        .iter()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn mac_of(number: u64) -> MacAddress {
    let [_, _, rest @ ..] = number.to_be_bytes();
    MacAddress(rest)
}

/// A MAC address that no vNIC has.
pub(crate) fn take_mac(model: &mut Model) -> Result<MacAddress, Problem> {
    let mut pool = default_pool(&model.mac_pools, "mac-pool")?;
    let first = mac_number(mac(&pool.0.first)?);
    let free = |number: u64| {
        let text = mac_of(number).to_string();
        model.vnics.values().all(|vnic| vnic.mac != text)
    };
    let number = next(&mut pool.0, first, free, "mac-pool")?;
    model
        .mac_pools
        .insert(DEFAULT_POOL.to_owned(), Arc::new(pool));
    Ok(mac_of(number))
}

/// A world wide port name that no vHBA has.
pub(crate) fn take_wwpn(model: &mut Model) -> Result<Wwpn, Problem> {
    let mut pool = default_pool(&model.wwn_pools, "wwn-pool")?;
    let first = wwpn(&pool.0.first)?.0;
    let free = |number: u64| {
        let text = Wwpn(number).to_string();
        model.vhbas.values().all(|vhba| vhba.wwpn != text)
    };
    let number = next(&mut pool.0, first, free, "wwn-pool")?;
    model
        .wwn_pools
        .insert(DEFAULT_POOL.to_owned(), Arc::new(pool));
    Ok(Wwpn(number))
}

fn default_pool<T: Clone>(pools: &super::Table<T>, kind: &str) -> Result<T, Problem> {
    pools
        .get(DEFAULT_POOL)
        .map(|pool| T::clone(pool))
        .ok_or_else(|| {
            Problem::conflict(
                format_args!("there is no {kind} {DEFAULT_POOL}"),
                "add it, or write the address",
            )
        })
}

/// The next free number of a pool. Looks at each once.
fn next(
    pool: &mut Pool,
    first: u64,
    free: impl Fn(u64) -> bool,
    kind: &str,
) -> Result<u64, Problem> {
    for tried in 0..pool.size {
        let offset = (pool.cursor % pool.size).wrapping_add(tried) % pool.size;
        let number = first.saturating_add(offset);
        if free(number) {
            pool.cursor = (offset + 1) % pool.size;
            return Ok(number);
        }
    }
    Err(Problem::conflict(
        format_args!(
            "{kind} {DEFAULT_POOL} has none of its {} addresses left",
            pool.size
        ),
        "make it larger, or write the address",
    ))
}

impl Item for MacPool {
    const KEPT: &'static [&'static str] = &["cursor"];

    fn settle(&mut self, _: &str, _: Option<&Self>, _: &mut Model) -> Result<(), Problem> {
        self.0.first = mac(&self.0.first)?.to_string();
        Ok(())
    }

    fn check(&self, _: &str, _: &Model) -> Result<(), Problem> {
        let last = mac_number(mac(&self.0.first)?).checked_add(self.0.size);
        check_size(&self.0, last.filter(|last| *last <= 1 << 48))
    }

    fn user(name: &str, _: &Model) -> Option<String> {
        (name == DEFAULT_POOL).then(|| "every vnic without a mac of its own".to_owned())
    }
}

impl Item for WwnPool {
    const KEPT: &'static [&'static str] = &["cursor"];

    fn settle(&mut self, _: &str, _: Option<&Self>, _: &mut Model) -> Result<(), Problem> {
        self.0.first = wwpn(&self.0.first)?.to_string();
        Ok(())
    }

    fn check(&self, _: &str, _: &Model) -> Result<(), Problem> {
        check_size(&self.0, wwpn(&self.0.first)?.0.checked_add(self.0.size))
    }

    fn user(name: &str, _: &Model) -> Option<String> {
        (name == DEFAULT_POOL).then(|| "every vhba without a wwpn of its own".to_owned())
    }
}

fn check_size(pool: &Pool, last: Option<u64>) -> Result<(), Problem> {
    if pool.size > 0 && last.is_some() {
        return Ok(());
    }
    Err(Problem::invalid(
        format_args!("{} addresses from {} are no pool", pool.size, pool.first),
        "use a size from 1 to what is left of the addresses",
    ))
}
