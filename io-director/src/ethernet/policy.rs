//! What a port knows of a vNIC when it forwards: compiled from the configuration, never changed.

use fabric_config::{MacAddress, StormLimits, VlanId, VlanMembership, VnicConfig};
use fabric_payload::ethernet::VirtioNetHeader;

use super::access_list::AccessList;
use super::guard::Guard;
use super::rewrite::{Rewrite, TagEdit};
use super::switch::{DropReason, Forward, Source};
use super::vlan::Membership;
use crate::counters::Snapshot;

/// Whose frames are whose, and what may pass.
#[derive(Debug)]
pub struct Policy {
    /// The operator wants the vNIC up.
    pub(super) up: bool,
    pub(super) mac: MacAddress,
    pub(super) membership: Membership,
    /// It is not just in whatever VLAN the port has.
    pub(super) names_vlans: bool,
    pub(super) guard: Guard,
    pub(super) isolated: bool,
    pub(super) storm: StormLimits,
    pub(super) access_in: Option<AccessList>,
    pub(super) access_out: Option<AccessList>,
}

impl Policy {
    /// Of this vNIC, on a port whose frames without a tag are in `port_native`.
    #[must_use]
    pub fn new(config: &VnicConfig, port_native: Option<VlanId>) -> Self {
        Self {
            up: config.up,
            mac: config.mac,
            membership: Membership::of(&config.vlans, port_native),
            names_vlans: config.vlans != VlanMembership::Native,
            guard: Guard::new(config),
            isolated: config.isolated,
            storm: config.storm,
            access_in: config.access_in.as_deref().map(AccessList::new),
            access_out: config.access_out.as_deref().map(AccessList::new),
        }
    }

    /// How a frame, `payload` with its header, reaches the vNIC; `None`: it is not for it.
    ///
    /// # Errors
    /// It is for it, and dropped.
    pub(super) fn receives(
        &self,
        source: Source,
        forward: &Forward,
        payload: &[u8],
    ) -> Option<Result<Rewrite, DropReason>> {
        if !self.up {
            return Some(Err(DropReason::Down));
        }
        if self.isolated && source != Source::Uplink {
            return None;
        }
        let (vlan, mut dscp) = (forward.vlan, forward.dscp);
        // Who is not in the VLAN asks no list.
        let mut tag = match vlan {
            None => Ok(TagEdit::Keep),
            Some(vlan) => self.membership.egress(vlan)?,
        };
        if let Some(list) = &self.access_out {
            let judged = VirtioNetHeader::split(payload)
                .ok_or(DropReason::Runt)
                .and_then(|(header, frame)| list.judge(&header, frame, vlan));
            let mark = match judged {
                Ok(mark) => mark,
                Err(reason) => return Some(Err(reason)),
            };
            dscp = mark.dscp.or(dscp);
            if let (Some(vlan), Some(priority)) = (vlan, mark.priority) {
                tag = self.membership.egress(vlan.with_priority(priority))?;
            }
        }
        Some(tag.map(|tag| Rewrite { tag, dscp }))
    }

    /// The counters of its access lists, of the vNIC called `name`.
    pub(super) fn snapshots(&self, name: &str) -> Vec<Snapshot> {
        let lists = [
            ("access-in", &self.access_in),
            ("access-out", &self.access_out),
        ];
        let lists = lists.into_iter();
        let lists = lists.filter_map(|(way, list)| Some((way, list.as_ref()?)));
        let all = lists.map(|(way, list)| list.snapshots(&format!("vnic {name} {way}")));
        all.flatten().collect()
    }
}

#[cfg(test)]
impl Policy {
    /// Of a vNIC with nothing but an address, on a port without VLANs.
    pub(super) fn plain(mac: MacAddress) -> Self {
        Self {
            up: true,
            mac,
            membership: Membership::Access(0),
            names_vlans: false,
            guard: Guard::of(mac, false, Vec::new()),
            isolated: false,
            storm: StormLimits::default(),
            access_in: None,
            access_out: None,
        }
    }
}
