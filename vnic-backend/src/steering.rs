//! Which queue pair a received frame goes to: the same one for all frames of a flow.

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// IEEE 802.1Q and 802.1ad tags.
const ETHERTYPE_TAGS: [u16; 2] = [0x8100, 0x88a8];
/// Tags looked through; more count as an unknown protocol.
const TAGS_MAX: usize = 2;

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

/// A number that is the same for all frames of one flow.
///
/// IP flows are told apart by their addresses and, for unfragmented TCP and UDP, their ports; all
/// else by its MAC addresses. Nothing is trusted: a short or odd frame only hashes less of itself.
pub(crate) fn flow_hash(frame: &[u8]) -> u32 {
    let by_addresses = || hash(&[frame.get(..12).unwrap_or(frame)]);
    let mut offset = 12;
    let mut ethertype = be16(frame, offset);
    for _ in 0..TAGS_MAX {
        if ethertype.is_none_or(|ethertype| !ETHERTYPE_TAGS.contains(&ethertype)) {
            break;
        }
        offset += 4;
        ethertype = be16(frame, offset);
    }
    let packet = frame.get(offset + 2..).unwrap_or_default();
    match ethertype {
        Some(ETHERTYPE_IPV4) => ipv4(packet),
        Some(ETHERTYPE_IPV6) => ipv6(packet),
        _ => None,
    }
    .unwrap_or_else(by_addresses)
}

/// RFC 791 section 3.1.
fn ipv4(packet: &[u8]) -> Option<u32> {
    let header_bytes = usize::from(packet.first()? & 0xf) * 4;
    let addresses = packet.get(12..20)?;
    // A fragment other than the first has no ports, so none of its flow may be hashed by them.
    let whole = be16(packet, 6)? & 0x3fff == 0;
    Some(match packet.get(9) {
        Some(&(PROTOCOL_TCP | PROTOCOL_UDP)) if whole && header_bytes >= 20 => hash(&[
            addresses,
            packet
                .get(header_bytes..header_bytes + 4)
                .unwrap_or_default(),
        ]),
        _ => hash(&[addresses]),
    })
}

/// RFC 8200 section 3; behind extension headers only the addresses count.
fn ipv6(packet: &[u8]) -> Option<u32> {
    let addresses = packet.get(8..40)?;
    Some(match packet.get(6) {
        Some(&(PROTOCOL_TCP | PROTOCOL_UDP)) => {
            hash(&[addresses, packet.get(40..44).unwrap_or_default()])
        }
        _ => hash(&[addresses]),
    })
}

fn be16(bytes: &[u8], offset: usize) -> Option<u16> {
    match bytes.get(offset..offset + 2) {
        Some([high, low]) => Some(u16::from_be_bytes([*high, *low])),
        _ => None,
    }
}

/// FNV-1a, with its well mixed upper half folded in: the caller takes a remainder.
fn hash(parts: &[&[u8]]) -> u32 {
    let mut hash = 0x811c_9dc5_u32;
    for byte in parts.iter().copied().flatten() {
        hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    }
    hash ^ hash >> 16
}

/// The queue pair for `frame` among those whose bit is set in `usable`; `None` if none is.
pub(crate) fn pair_of(frame: &[u8], usable: u32) -> Option<usize> {
    // Most guests have one pair: it is nobody's choice.
    let flow = match usable.count_ones() {
        0 | 1 => 0,
        _ => flow_hash(frame),
    };
    select(flow, usable)
}

/// The queue pair for `flow` among those whose bit is set in `usable`; `None` if none is.
fn select(flow: u32, usable: u32) -> Option<usize> {
    let place = flow.checked_rem(usable.count_ones())?;
    let pair = (0..u32::BITS)
        .filter(|pair| usable >> pair & 1 == 1)
        .nth(usize::try_from(place).ok()?);
    usize::try_from(pair?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn udp(source_port: u16, fragment: u16) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend(ETHERTYPE_IPV4.to_be_bytes());
        frame.extend([0x45, 0, 0, 32, 0, 7]);
        frame.extend(fragment.to_be_bytes());
        frame.extend([64, PROTOCOL_UDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(source_port.to_be_bytes());
        frame.extend([0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
        frame
    }

    fn tagged(frame: &[u8]) -> Vec<u8> {
        let mut tagged = frame.to_vec();
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        tagged
    }

    #[test]
    fn flows_are_told_apart_by_their_ports_and_nothing_behind() {
        let mut other_data = udp(1000, 0);
        *other_data.last_mut().unwrap() ^= 0xff;
        assert_eq!(flow_hash(&other_data), flow_hash(&udp(1000, 0)));
        assert_ne!(flow_hash(&udp(1001, 0)), flow_hash(&udp(1000, 0)));
        assert_eq!(flow_hash(&tagged(&udp(1000, 0))), flow_hash(&udp(1000, 0)));
    }

    #[test]
    fn all_fragments_of_a_datagram_stay_together() {
        const MORE_FRAGMENTS: u16 = 0x2000;
        // The second fragment has data where the first one has ports.
        assert_eq!(
            flow_hash(&udp(1000, MORE_FRAGMENTS)),
            flow_hash(&udp(0xabcd, 185))
        );
    }

    #[test]
    fn many_flows_use_every_pair() {
        let mut frames = [0_u32; 4];
        for port in 0..4000 {
            frames[select(flow_hash(&udp(port, 0)), 0b1111).unwrap()] += 1;
        }
        for count in frames {
            assert!((700..1300).contains(&count), "{frames:?}");
        }
    }

    #[test]
    fn only_usable_pairs_are_selected() {
        assert_eq!(select(7, 0), None);
        for flow in 0..100 {
            assert!(matches!(select(flow, 0b1010), Some(1 | 3)));
        }
    }

    proptest! {
        #[test]
        fn n12_any_frame_is_answered(frame in proptest::collection::vec(any::<u8>(), 0..80)) {
            // Twice the same: a flow must not wander.
            prop_assert_eq!(flow_hash(&frame), flow_hash(&frame.clone()));
        }
    }
}
