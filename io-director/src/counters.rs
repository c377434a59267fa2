//! Counters that any thread adds to and anybody may read.

use std::sync::atomic::{AtomicU64, Ordering};

use qos_monitor::counters::{CountingEnd, ObjectCounters};

use crate::ethernet::DropReason;

/// One count; wraps after 2^64.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        // A count orders nothing.
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn add_bytes(&self, bytes: usize) {
        self.add(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// The count now.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one object at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The object as the operator knows it: `vnic vn01.vm1`, `ethernet-port 10/1`.
    pub object: String,
    /// Name and count of each counter.
    pub counts: Vec<(&'static str, u64)>,
}

impl Snapshot {
    /// As users of `ethtool -S` expect them ([`qos_monitor::counters`]).
    #[must_use]
    pub fn for_operator(self) -> ObjectCounters {
        let name: fn(&str) -> String = match self.object.split(' ').collect::<Vec<_>>().as_slice() {
            ["vnic", _] => of_guest,
            ["ethernet-port", _] => of_interface,
            ["vnic", ..] => |name| name.replace("frames", "packets"),
            _ => str::to_owned,
        };
        let counts = self.counts.iter();
        ObjectCounters {
            counts: counts.map(|(known, count)| (name(known), *count)).collect(),
            object: self.object,
            end: CountingEnd::Director,
        }
    }

    /// The count called `name`.
    #[must_use]
    pub fn count(&self, name: &str) -> Option<u64> {
        self.counts
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, count)| *count)
    }
}

/// What a guest would call a counter of its vNIC, which looks from the fabric.
fn of_guest(name: &str) -> String {
    let name = name.replace("frames", "packets");
    let name = name.strip_prefix("port_").map_or(name.clone(), |of_port| {
        // Only what the guest sends waits for a port.
        format!("tx_port_{of_port}")
    });
    match name.as_str() {
        "link_up" => name,
        "dropped_blocked" | "dropped_down" | "dropped_copies" => format!("rx_{name}"),
        name if name.starts_with("dropped_") => format!("tx_{name}"),
        name => name.replace("ingress_", "tx_").replace("egress_", "rx_"),
    }
}

/// What a counter of a port is called where `ethtool -S` shows an interface.
fn of_interface(name: &str) -> String {
    let name = name.replace("frames", "packets");
    match name.as_str() {
        "dropped_full" | "dropped_refused" | "dropped_oversize" => format!("tx_{name}"),
        name if name.starts_with("dropped_") => format!("rx_{name}"),
        name => name.replace("received_", "rx_").replace("sent_", "tx_"),
    }
}

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name { $($(#[$field_doc])* pub $field: Counter,)* }

        impl $name {
            /// All counters of `object` now.
            #[must_use]
            pub fn snapshot(&self, object: String) -> Snapshot {
                let counts = vec![$((stringify!($field), self.$field.count()),)*];
                Snapshot { object, counts }
            }
        }
    };
}

counters! {
    /// Of a vNIC, seen from the fabric: ingress is what the guest sends.
    ///
    /// On a port with a rate there are also `port_queued_frames` and `port_queued_bytes`, which
    /// wait for the wire now, and `port_waited_us`, the sum of what frames waited for it.
    VnicCounters {
        /// Frames from the guest that were switched.
        ingress_frames,
        /// Their bytes, without header.
        ingress_bytes,
        /// Frames put on the lane to the guest.
        egress_frames,
        /// Their bytes, without header.
        egress_bytes,
        /// From the guest: header or length that cannot be.
        dropped_malformed,
        /// From the guest: longer than the MTU.
        dropped_oversize,
        /// From the guest: another's source address.
        dropped_foreign_source,
        /// From the guest: to itself.
        dropped_own_destination,
        /// From the guest: in a VLAN that is not its own, or not the destination's.
        dropped_vlan,
        /// From the guest: with a second VLAN tag where one must go.
        dropped_double_tag,
        /// From the guest: a check would have to read what it cannot.
        dropped_unreadable,
        /// From the guest: its access list denies it.
        dropped_access,
        /// From the guest: an IP, ARP or Neighbour Discovery address that is not its own.
        dropped_address,
        /// From the guest: what only DHCP servers and routers say.
        dropped_server,
        /// From the guest: to another vNIC, and one of both is isolated.
        dropped_isolated,
        /// From the guest: more to all stations than its limit allows.
        dropped_broadcast,
        /// From the guest: more to groups than its limit allows.
        dropped_multicast,
        /// From the guest: to a station that is not on its private port.
        dropped_not_here,
        /// To the guest: with a second VLAN tag where one must go.
        egress_dropped_double_tag,
        /// To the guest: its access list would have to read what it cannot.
        egress_dropped_unreadable,
        /// To the guest: its access list denies it.
        egress_dropped_access,
        /// To the guest: with its VLAN tag longer than a frame may be.
        egress_dropped_oversize,
        /// To the guest: header that cannot be.
        egress_dropped_malformed,
        /// To the guest: its lane is blocked. It has no credit, as its back end takes no frames, or
        /// its queue to the host is full, at 5 ms of its peak rate or less.
        dropped_blocked,
        /// To the guest: not attached. From or to it: the operator wants the vNIC down.
        dropped_down,
        /// To the guest: copies of what others send and receive, among its frames.
        egress_copies,
        /// To the guest: copies that had no room, or found it not attached.
        dropped_copies,
        /// Frames of a session that was replaced.
        dropped_stale,
        /// From the guest: waited for the port when the session ended.
        dropped_session_ended,
    }
}

counters! {
    /// Of what the director tells the guest of a vNIC with a static address.
    ResponderCounters {
        /// Offers of DHCPv4.
        offers,
        /// Acknowledgements of DHCPv4.
        acknowledgements,
        /// The guest wanted another's address, and was told so.
        refusals,
        /// The guest gave its address back.
        releases,
        /// The guest found somebody else with its address.
        declines,
        /// Answers of DHCPv6.
        dhcp6_answers,
        /// Answers to ARP, and to neighbour and router solicitations.
        neighbour_answers,
        /// Boot files that were opened.
        boot_files,
        /// Requests for blocks that were answered.
        boot_blocks,
        /// Transfers that the guest ended, or had whole.
        boot_ends,
        /// Requests for files that there are not, or for anything but files.
        boot_refusals,
        /// From the guest: not what it claims to be.
        dropped_malformed,
        /// From the guest: for another server, of another client, or late.
        dropped_foreign,
        /// From the guest: longer than any client's, or in fragments.
        dropped_too_long,
        /// From the guest: more than is answered in this time.
        dropped_too_many,
        /// From the guest: DHCP in a VLAN.
        dropped_tagged,
        /// From the guest: to the director's station, and nothing that it answers.
        dropped_not_served,
        /// To the guest: another's DHCP.
        dropped_foreign_answers,
    }
}

counters! {
    /// Of an Ethernet port, seen from the TAP interface.
    PortCounters {
        /// Frames read from the TAP.
        received_frames,
        /// Their bytes, without header.
        received_bytes,
        /// Frames written to the TAP.
        sent_frames,
        /// Their bytes, without header.
        sent_bytes,
        /// From the backup of a LAG: what it hears, the active port hears too.
        dropped_backup,
        /// To the TAP: its queue is full.
        dropped_full,
        /// To the TAP: the kernel refused the frame (interface down, bad header).
        dropped_refused,
        /// From the TAP: header or length that cannot be.
        dropped_malformed,
        /// From the TAP: source is one of our vNICs (reflected or stolen address).
        dropped_own_source,
        /// From the TAP: source is a group address.
        dropped_group_source,
        /// From the TAP: for a station that is not here.
        dropped_not_here,
        /// From the TAP: in no VLAN, or not in that of the station that it is for.
        dropped_vlan,
        /// From the TAP: with a second VLAN tag where one must go.
        dropped_double_tag,
        /// To the TAP: with a second VLAN tag where one must go.
        sent_dropped_double_tag,
        /// To the TAP: with its VLAN tag longer than a frame may be.
        dropped_oversize,
        /// From the TAP: more to all stations than the limit allows.
        dropped_broadcast,
        /// From the TAP: more to groups than the limit allows.
        dropped_multicast,
    }
}

impl VnicCounters {
    /// Counts a frame from the guest that the switch dropped.
    pub(crate) fn dropped(&self, reason: DropReason) {
        let counter = match reason {
            DropReason::ForeignSource => &self.dropped_foreign_source,
            DropReason::OwnDestination => &self.dropped_own_destination,
            DropReason::Vlan => &self.dropped_vlan,
            DropReason::DoubleTag => &self.dropped_double_tag,
            DropReason::Oversize => &self.dropped_oversize,
            DropReason::Unreadable => &self.dropped_unreadable,
            DropReason::Address => &self.dropped_address,
            DropReason::Server => &self.dropped_server,
            DropReason::Isolated => &self.dropped_isolated,
            DropReason::Access => &self.dropped_access,
            DropReason::Broadcast => &self.dropped_broadcast,
            DropReason::Multicast => &self.dropped_multicast,
            DropReason::NotHere => &self.dropped_not_here,
            DropReason::Down => &self.dropped_down,
            DropReason::Runt
            | DropReason::OwnSource
            | DropReason::GroupSource
            | DropReason::ChecksumInHeader => &self.dropped_malformed,
        };
        counter.add(1);
    }

    /// Counts a frame to the guest that its policy dropped.
    pub(crate) fn dropped_to_guest(&self, reason: DropReason) {
        let counter = match reason {
            DropReason::DoubleTag => &self.egress_dropped_double_tag,
            DropReason::Unreadable => &self.egress_dropped_unreadable,
            DropReason::Access => &self.egress_dropped_access,
            DropReason::Oversize => &self.egress_dropped_oversize,
            DropReason::Down => &self.dropped_down,
            _ => &self.egress_dropped_malformed,
        };
        counter.add(1);
    }
}

impl PortCounters {
    /// Counts a frame from the TAP that the switch dropped.
    pub(crate) fn dropped(&self, reason: DropReason) {
        let counter = match reason {
            DropReason::OwnSource => &self.dropped_own_source,
            DropReason::GroupSource => &self.dropped_group_source,
            DropReason::NotHere => &self.dropped_not_here,
            DropReason::Vlan => &self.dropped_vlan,
            DropReason::DoubleTag => &self.dropped_double_tag,
            DropReason::Oversize => &self.dropped_oversize,
            DropReason::Broadcast => &self.dropped_broadcast,
            DropReason::Multicast => &self.dropped_multicast,
            DropReason::Runt
            | DropReason::ForeignSource
            | DropReason::OwnDestination
            | DropReason::Unreadable
            | DropReason::Address
            | DropReason::Server
            | DropReason::Isolated
            | DropReason::Access
            | DropReason::Down
            | DropReason::ChecksumInHeader => &self.dropped_malformed,
        };
        counter.add(1);
    }

    /// Counts a frame to the TAP that cannot leave.
    pub(crate) fn dropped_to_interface(&self, reason: DropReason) {
        let counter = match reason {
            DropReason::DoubleTag => &self.sent_dropped_double_tag,
            _ => &self.dropped_oversize,
        };
        counter.add(1);
    }
}

counters! {
    /// Of a rule of an access list, or of what its rules left.
    AccessCounters {
        /// Frames that met it.
        frames,
        /// Their bytes, without header.
        bytes,
    }
}

impl AccessCounters {
    pub(crate) fn count(&self, frame_bytes: usize) {
        self.frames.add(1);
        self.bytes.add_bytes(frame_bytes);
    }
}

counters! {
    /// Of a logical unit, whoever uses it.
    ///
    /// There are also its state, `unreachable` and `write_protected`, 0 or 1, and `blocks`.
    LunCounters {
        /// Commands that were answered NOT READY because the medium did not answer in time.
        timeouts,
        /// Calls to the medium that failed, but for these:
        medium_errors,
        /// Writes that found no space.
        no_space,
        /// Flushes that failed; the unit is read-only after the first.
        flush_failures,
        /// Changes of its size.
        resizes,
    }
}

counters! {
    /// Of a vHBA.
    ///
    /// Where commands have to wait for the port there are also `port_held_commands`, which do now,
    /// and `port_held_us`, the sum of what commands did.
    VhbaCounters {
        /// Commands that were executed.
        commands,
        /// Bytes of write data that were executed.
        data_out_bytes,
        /// Bytes of read data that were sent.
        data_in_bytes,
        /// Commands ended by task management.
        aborted,
        /// Task management functions.
        task_management,
        /// Commands answered TASK SET FULL.
        task_set_full,
        /// Commands or results that a session's end took away.
        lost,
        /// Units that are malformed or not for a director.
        malformed,
        /// Units on a lane that is not theirs.
        wrong_lane,
        /// Commands whose tag is in use.
        duplicate_tag,
        /// Data for a command that is not there.
        unknown_tag,
        /// Data that is out of order or more than announced.
        excess_data,
        /// Units of a session that was replaced.
        stale,
    }
}

counters! {
    /// Of a vHBA's LUN that passes commands through.
    ///
    /// There are also `reachable`, 1 or 0, and `unreachable_ms`, how long the target is away by now.
    PassThroughCounters {
        /// Commands that the target answered.
        answered,
        /// Commands that are not passed on.
        refused,
        /// Commands that were lost with a connection and went again.
        repeated,
        /// Commands ended with ABORTED COMMAND, as they may have been executed.
        unknown,
        /// Commands that took too long at the target.
        timed_out,
        /// Commands ended with NOT READY, as the target was away for too long.
        unreachable,
        /// Commands that the target refused to carry.
        failed,
        /// Times that the target went away, or was tried in vain.
        outages,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(snapshot: Snapshot) -> Vec<String> {
        snapshot.for_operator().counts.into_keys().collect()
    }

    #[test]
    fn names_are_those_of_ethtool_and_none_is_another_s() {
        let vnic = VnicCounters::default().snapshot("vnic vn01.vm1".to_owned());
        let count = vnic.counts.len();
        let vnic = names(vnic);
        assert_eq!(vnic.len(), count);
        for name in [
            "tx_packets",
            "rx_bytes",
            "tx_dropped_access",
            "rx_dropped_access",
            "rx_dropped_blocked",
            "tx_dropped_session_ended",
        ] {
            assert!(vnic.iter().any(|known| known == name), "{name}: {vnic:?}");
        }
        assert!(vnic.iter().all(|name| name.starts_with(['r', 't'])));
        let port = PortCounters::default().snapshot("ethernet-port 10/1".to_owned());
        let count = port.counts.len();
        let port = names(port);
        assert_eq!(port.len(), count);
        for name in [
            "rx_packets",
            "tx_bytes",
            "tx_dropped_full",
            "rx_dropped_vlan",
        ] {
            assert!(port.iter().any(|known| known == name), "{name}: {port:?}");
        }
        let rule = "vnic vn01.vm1 access-in web rule 1".to_owned();
        let rule = AccessCounters::default().snapshot(rule);
        assert_eq!(names(rule), ["bytes", "packets"]);
    }
}
