//! VLANs of a port (IEEE 802.1Q): in which one a frame is, and what becomes of its tag.
//!
//! | station | takes | gives |
//! | --- | --- | --- |
//! | access vNIC | frames without a tag, or with a priority tag (VID 0) | no tag |
//! | trunk vNIC | tags of its list; no tag, if it has a native VLAN | tags; none in its native VLAN |
//! | uplink | all tags; no tag, which is the port's native VLAN | as a trunk |
//!
//! A frame's priority (PCP and DEI) goes with it from tag to tag. Only tags 0x8100 name VLANs here:
//! others (0x88a8, 0x9100...) are dropped where they would do so. A second tag is payload as long as
//! the first one stays; a frame whose first tag must go is dropped if a second would take its place:
//! it would be in a VLAN that its sender has chosen.

use fabric_config::{VlanId, VlanMembership, VlanSet};
use fabric_payload::ethernet::{ETHERNET_HEADER_BYTES, FLAG_NEEDS_CSUM, VirtioNetHeader};

use super::rewrite::TagEdit;
use super::switch::DropReason;

/// Bytes of a tag.
pub(super) const TAG_BYTES: usize = 4;

/// VLANs of a trunk in which its address is announced at most, the lowest.
const ANNOUNCED_MAX: usize = 64;

/// The TPID of a tag that names a VLAN.
const CUSTOMER: u16 = 0x8100;
/// VID of the tag control information.
const VID: u16 = 0x0fff;
/// PCP and DEI.
const PRIORITY: u16 = 0xf000;

/// Whether an EtherType stands for a tag, of whatever kind.
pub(super) fn is_tag(ether_type: u16) -> bool {
    // 802.1Q, 802.1ad, and what came before 802.1ad and some kernels still take.
    matches!(ether_type, CUSTOMER | 0x88a8 | 0x9100 | 0x9200 | 0x9300)
}

/// The VLAN that a frame's first tag names, where nobody gave it another; 0 for none.
pub(super) fn named(frame: &[u8]) -> u16 {
    match be16(frame, 12) {
        Some(CUSTOMER) => be16(frame, 14).unwrap_or(0) & VID,
        _ => 0,
    }
}

/// Two bytes of a frame as a number.
pub(super) fn be16(frame: &[u8], at: usize) -> Option<u16> {
    let bytes = frame.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*bytes))
}

/// In which VLAN a frame is, and how it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InVlan {
    /// 0: the native VLAN of a port that gave it no number.
    pub(super) vlan: u16,
    /// Of the tag that it has.
    tci: Option<u16>,
    /// PCP and DEI that it leaves with.
    priority: u16,
    /// There is another tag behind the first.
    nested: bool,
}

impl InVlan {
    /// The same frame with another PCP, 0 to 7.
    pub(super) fn with_priority(self, priority: u8) -> Self {
        const DEI: u16 = 0x1000;
        Self {
            priority: u16::from(priority) << 13 | self.priority & DEI,
            ..self
        }
    }

    /// The edit that makes the frame leave with or without a tag.
    fn leave(self, tagged: bool) -> Result<TagEdit, DropReason> {
        let wanted = self.priority | self.vlan;
        Ok(match (self.tci, tagged) {
            (None, false) => TagEdit::Keep,
            (None, true) => TagEdit::Push(wanted),
            (Some(_), false) if self.nested => return Err(DropReason::DoubleTag),
            (Some(_), false) => TagEdit::Pop,
            (Some(tci), true) if tci == wanted => TagEdit::Keep,
            (Some(_), true) => TagEdit::Replace(wanted),
        })
    }
}

/// The VLANs of a vNIC or of the uplink.
#[derive(Debug)]
pub(super) enum Membership {
    Access(u16),
    Trunk {
        allowed: VlanSet,
        native: Option<u16>,
    },
}

impl Membership {
    /// Of a vNIC on a port with this native VLAN.
    pub(super) fn of(vlans: &VlanMembership, port_native: Option<VlanId>) -> Self {
        match vlans {
            VlanMembership::Native => Self::Access(number(port_native)),
            VlanMembership::Access(vlan) => Self::Access(vlan.number()),
            VlanMembership::Trunk { allowed, native } => Self::Trunk {
                allowed: allowed.clone(),
                native: native.map(VlanId::number),
            },
        }
    }

    /// Of the uplink of such a port.
    pub(super) fn uplink(port_native: Option<VlanId>) -> Self {
        let mut allowed = VlanSet::empty();
        let all = (1..=VlanId::MAX).filter_map(VlanId::new);
        all.for_each(|vlan| allowed.insert(vlan));
        Self::Trunk {
            allowed,
            native: Some(number(port_native)),
        }
    }

    /// A frame without a tag in each VLAN, in at most [`ANNOUNCED_MAX`] of a trunk.
    pub(super) fn announced(&self) -> Vec<InVlan> {
        let frame = |vlan| InVlan {
            vlan,
            tci: None,
            priority: 0,
            nested: false,
        };
        match self {
            Self::Access(vlan) => vec![frame(*vlan)],
            Self::Trunk { allowed, .. } => {
                let all = (1..=VlanId::MAX).filter_map(VlanId::new);
                let allowed = all.filter(|vlan| allowed.contains(*vlan));
                let allowed = allowed.take(ANNOUNCED_MAX);
                allowed.map(|vlan| frame(vlan.number())).collect()
            }
        }
    }

    /// The VLAN of a frame that comes from here.
    ///
    /// # Errors
    /// It is in none that may come from here, its tag is cut, or the header would have the checksum
    /// written into it.
    pub(super) fn admit(
        &self,
        header: &VirtioNetHeader,
        frame: &[u8],
    ) -> Result<InVlan, DropReason> {
        let ether_type = be16(frame, 12).ok_or(DropReason::Runt)?;
        let mut header_bytes = ETHERNET_HEADER_BYTES;
        let mut outer = None;
        if ether_type == CUSTOMER {
            let tci = be16(frame, 14).ok_or(DropReason::Runt)?;
            let nested = is_tag(be16(frame, 16).ok_or(DropReason::Runt)?);
            header_bytes += TAG_BYTES;
            outer = Some((tci, nested));
        } else if is_tag(ether_type) {
            return Err(DropReason::Vlan);
        }
        // Whoever completes the checksum would write another VLAN than the one that is looked at.
        let needs_checksum = header.flags & FLAG_NEEDS_CSUM != 0;
        if needs_checksum && usize::from(header.csum_start.get()) < header_bytes {
            return Err(DropReason::ChecksumInHeader);
        }
        let (tci, nested) = outer.unzip();
        let nested = nested.unwrap_or(false);
        let vlan = match (tci.map_or(0, |tci| tci & VID), self) {
            (0, _) if nested => return Err(DropReason::DoubleTag),
            (0, Self::Access(vlan)) => *vlan,
            (0, Self::Trunk { native, .. }) => native.ok_or(DropReason::Vlan)?,
            (_, Self::Access(_)) if nested => return Err(DropReason::DoubleTag),
            (_, Self::Access(_)) => return Err(DropReason::Vlan),
            (vid, Self::Trunk { allowed, .. }) => {
                let vlan = VlanId::new(vid).filter(|vlan| allowed.contains(*vlan));
                vlan.ok_or(DropReason::Vlan)?.number()
            }
        };
        let priority = tci.unwrap_or(0) & PRIORITY;
        Ok(InVlan {
            vlan,
            tci,
            priority,
            nested,
        })
    }

    /// What becomes of the tag of a frame that goes here; `None`: the frame's VLAN does not.
    ///
    /// # Errors
    /// The frame does not go here though its VLAN does.
    pub(super) fn egress(&self, frame: InVlan) -> Option<Result<TagEdit, DropReason>> {
        let tagged = match self {
            Self::Access(vlan) if *vlan == frame.vlan => false,
            Self::Trunk { native, .. } if *native == Some(frame.vlan) => false,
            Self::Trunk { allowed, .. } if allowed.contains(VlanId::new(frame.vlan)?) => true,
            Self::Access(_) | Self::Trunk { .. } => return None,
        };
        Some(frame.leave(tagged))
    }
}

fn number(port_native: Option<VlanId>) -> u16 {
    port_native.map_or(0, VlanId::number)
}
