//! Completing a partial checksum for a receiver that does not do it itself.

use crate::ethernet::{FLAG_DATA_VALID, FLAG_NEEDS_CSUM, VirtioNetHeader};

/// Stores the Internet checksum that `header` asks for into `frame`, and takes the request back.
///
/// The field holds the sum of the pseudo-header so far, which the sum over the rest includes
/// (virtio 1.2 section 5.1.6.2). `false`, with nothing changed, if the offsets lie outside of the
/// frame; a header that passed [`VirtioNetHeader::check`] has none such.
#[must_use]
pub fn complete(header: &mut VirtioNetHeader, frame: &mut [u8]) -> bool {
    let start = usize::from(header.csum_start.get());
    let field = start + usize::from(header.csum_offset.get());
    let Some(sum) = frame.get(start..).map(internet_checksum) else {
        return false;
    };
    let Some(room) = frame.get_mut(field..field + 2) else {
        return false;
    };
    // Zero means "no checksum" to UDP; its other representation is as good for everybody.
    let sum = if sum == 0 { u16::MAX } else { sum };
    room.copy_from_slice(&sum.to_be_bytes());
    header.flags &= !(FLAG_NEEDS_CSUM | FLAG_DATA_VALID);
    header.csum_start = 0.into();
    header.csum_offset = 0.into();
    true
}

/// RFC 1071: the complement of the ones' complement sum of big-endian words.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut words = bytes.chunks_exact(2);
    let mut sum = 0_u64;
    for word in words.by_ref() {
        if let [high, low] = word {
            sum += u64::from(u16::from_be_bytes([*high, *low]));
        }
    }
    if let [last] = words.remainder() {
        sum += u64::from(u16::from_be_bytes([*last, 0]));
    }
    while sum > u64::from(u16::MAX) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // The loop leaves 16 bits.
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn example_of_rfc_1071_comes_out() {
        // Section 3: the sum of these words is ddf2.
        assert_eq!(
            internet_checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            !0xddf2
        );
    }

    #[test]
    fn udp_checksum_includes_the_pseudo_header_that_the_field_holds() {
        // UDP 10.0.0.1:1 -> 10.0.0.2:2 with "hi": by hand, pseudo-header words 0a00 0001 0a00
        // 0002 0011 000a sum to 141e; UDP words 0001 0002 000a 6869 sum to 6876; together 7c94.
        let mut frame = vec![0_u8; 14 + 20];
        frame.extend([0, 1, 0, 2, 0, 10, 0x14, 0x1e, b'h', b'i']);
        let mut header = VirtioNetHeader {
            flags: FLAG_NEEDS_CSUM,
            csum_start: 34.into(),
            csum_offset: 6.into(),
            ..VirtioNetHeader::default()
        };
        assert!(complete(&mut header, &mut frame));
        assert_eq!(frame[40..42], (!0x7c94_u16).to_be_bytes());
        assert_eq!(header, VirtioNetHeader::default());
    }

    proptest! {
        /// The property that receivers check: the sum over data and checksum is all ones.
        #[test]
        fn completed_checksum_verifies(
            mut frame in proptest::collection::vec(any::<u8>(), 64..200),
            start in 14_u16..30,
            offset in 0_u16..16,
        ) {
            // The field must be at an even distance for the receiver's sum to include it whole.
            let offset = offset & !1;
            let mut header = VirtioNetHeader {
                flags: FLAG_NEEDS_CSUM,
                csum_start: start.into(),
                csum_offset: offset.into(),
                ..VirtioNetHeader::default()
            };
            let at = usize::from(start + offset);
            // An honest sender's field holds the sum of a pseudo-header, here of none.
            frame[at..at + 2].fill(0);
            prop_assert!(complete(&mut header, &mut frame));
            prop_assert_eq!(internet_checksum(&frame[usize::from(start)..]), 0);
        }

        #[test]
        fn any_offsets_are_answered(start: u16, offset: u16, length in 0usize..200) {
            let mut frame = vec![0; length];
            let mut header = VirtioNetHeader {
                csum_start: start.into(), csum_offset: offset.into(), ..VirtioNetHeader::default()
            };
            let fits = usize::from(start) + usize::from(offset) + 2 <= length;
            prop_assert_eq!(complete(&mut header, &mut frame), fits);
        }
    }
}
