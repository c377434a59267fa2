//! Feature bits of virtio-net (virtio 1.2 section 5.1.3), and what they mean for frames.

use fabric_payload::ethernet::{HEADER_BYTES, Offloads};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};

/// Bytes of the header of a legacy driver without mergeable buffers: no `num_buffers`.
pub(crate) const LEGACY_HEADER_BYTES: usize = 10;

/// The features a device offers.
///
/// MTU is safe to offer: QEMU passes it on to the guest only with `host_mtu=`, whose value it
/// announces to the back end first. USO is not offered: QEMU 7.2 does not know it.
pub(crate) const fn offered(queue_pairs: usize, offloads: Offloads) -> u64 {
    let mut features =
        1 << VIRTIO_NET_F_MRG_RXBUF | 1 << VIRTIO_NET_F_GUEST_ANNOUNCE | 1 << VIRTIO_NET_F_MTU;
    if queue_pairs > 1 {
        features |= 1 << VIRTIO_NET_F_MQ;
    }
    // Segmentation needs the checksum bit of its direction (virtio 1.2 section 5.1.3.1).
    if offloads.checksum {
        features |= 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_GUEST_CSUM;
        if offloads.tso4 {
            features |= 1 << VIRTIO_NET_F_HOST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO4;
        }
        if offloads.tso6 {
            features |= 1 << VIRTIO_NET_F_HOST_TSO6 | 1 << VIRTIO_NET_F_GUEST_TSO6;
        }
        if offloads.ecn && (offloads.tso4 || offloads.tso6) {
            features |= 1 << VIRTIO_NET_F_HOST_ECN | 1 << VIRTIO_NET_F_GUEST_ECN;
        }
    }
    features
}

/// What the driver chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Negotiated(pub(crate) u64);

impl Negotiated {
    const fn has(self, bit: u32) -> bool {
        self.0 >> bit & 1 == 1
    }

    /// What frames from the guest may ask for.
    pub(crate) const fn transmit_offloads(self) -> Offloads {
        let checksum = self.has(VIRTIO_NET_F_CSUM);
        Offloads {
            checksum,
            tso4: checksum && self.has(VIRTIO_NET_F_HOST_TSO4),
            tso6: checksum && self.has(VIRTIO_NET_F_HOST_TSO6),
            ecn: checksum && self.has(VIRTIO_NET_F_HOST_ECN),
            uso: false,
        }
    }

    /// What frames to the guest may ask for. Segmentation without the checksum bit, which a driver must
    /// not choose (virtio 1.2 section 5.1.3.1), is none: each segment would need a checksum.
    pub(crate) const fn receive_offloads(self) -> Offloads {
        let checksum = self.has(VIRTIO_NET_F_GUEST_CSUM);
        Offloads {
            checksum,
            tso4: checksum && self.has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: checksum && self.has(VIRTIO_NET_F_GUEST_TSO6),
            ecn: checksum && self.has(VIRTIO_NET_F_GUEST_ECN),
            uso: false,
        }
    }

    /// Whether one frame may take several buffers.
    pub(crate) const fn mergeable_buffers(self) -> bool {
        self.has(VIRTIO_NET_F_MRG_RXBUF)
    }

    /// Bytes in front of a frame in guest memory (virtio 1.2 section 5.1.6.1).
    pub(crate) const fn header_bytes(self) -> usize {
        if self.has(VIRTIO_F_VERSION_1) || self.mergeable_buffers() {
            HEADER_BYTES
        } else {
            LEGACY_HEADER_BYTES
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_those_of_the_standard() {
        // Typed from virtio 1.2 section 5.1.3: MTU 3, MRG_RXBUF 15, GUEST_ANNOUNCE 21, MQ 22.
        let plain = offered(1, Offloads::default());
        assert_eq!(plain, 1 << 3 | 1 << 15 | 1 << 21);
        assert_eq!(offered(2, Offloads::default()), plain | 1 << 22);
        // CSUM 0, GUEST_CSUM 1, GUEST_TSO4 7, GUEST_TSO6 8, GUEST_ECN 9, HOST_TSO4 11,
        // HOST_TSO6 12, HOST_ECN 13.
        assert_eq!(
            offered(1, Offloads::ALL),
            plain | 0b11 | 0b111 << 7 | 0b111 << 11
        );
    }

    #[test]
    fn segmentation_is_never_offered_without_checksum() {
        let offloads = Offloads {
            checksum: false,
            ..Offloads::ALL
        };
        assert_eq!(offered(1, offloads), offered(1, Offloads::default()));
    }

    #[test]
    fn segmentation_without_checksum_counts_for_nothing() {
        let features = Negotiated(0b111 << 7 | 0b111 << 11);
        assert_eq!(features.receive_offloads(), Offloads::default());
        assert_eq!(features.transmit_offloads(), Offloads::default());
    }

    #[test]
    fn n01_header_length_follows_the_two_bits() {
        for (features, bytes) in [
            (0, 10),
            (1 << 15, 12),
            (1 << 32, 12),
            (1 << 32 | 1 << 15, 12),
        ] {
            assert_eq!(Negotiated(features).header_bytes(), bytes, "{features:#x}");
        }
    }

    #[test]
    fn directions_do_not_mix() {
        let guest_only = Negotiated(1 << 1 | 1 << 7);
        assert_eq!(guest_only.transmit_offloads(), Offloads::default());
        let expected = Offloads {
            checksum: true,
            tso4: true,
            ..Offloads::default()
        };
        assert_eq!(guest_only.receive_offloads(), expected);
    }
}
