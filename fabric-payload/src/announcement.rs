//! The frame by which a vNIC says where it is: a broadcast RARP request of its own address (RFC 903),
//! as hypervisors send it for a guest that has just moved. Bridges learn the new way from it, and a
//! director by whose session it comes.

use crate::ethernet::HEADER_BYTES;

/// RARP (RFC 903).
const ETHER_TYPE: [u8; 2] = [0x80, 0x35];
/// The shortest Ethernet frame, without FCS.
const FRAME_BYTES: usize = 60;

/// The announcement of `mac` with its virtio-net header, which asks for nothing.
#[must_use]
pub fn announcement(mac: [u8; 6]) -> Vec<u8> {
    let mut payload = vec![0; HEADER_BYTES];
    payload.extend([0xff; 6]);
    payload.extend(mac);
    payload.extend(ETHER_TYPE);
    // Ethernet, IPv4, their lengths, "request reverse"; no IPv4 address is known or asked for.
    payload.extend([0, 1, 8, 0, 6, 4, 0, 3]);
    for _sender_then_target in 0..2 {
        payload.extend(mac);
        payload.extend([0; 4]);
    }
    payload.resize(HEADER_BYTES + FRAME_BYTES, 0);
    payload
}

/// Whether a frame, without its virtio-net header, is RARP from `mac`.
#[must_use]
pub fn is_announcement(frame: &[u8], mac: [u8; 6]) -> bool {
    frame.get(6..12) == Some(&mac) && frame.get(12..14) == Some(&ETHER_TYPE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    #[test]
    fn announcement_is_a_reverse_request_of_the_own_address() {
        let payload = announcement(MAC);
        let (header, frame) = payload.split_at(HEADER_BYTES);
        assert_eq!(header, [0; HEADER_BYTES]);
        let golden = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x80, 0x35, 0, 1, 8, 0, 6, 4, 0,
            3, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0,
        ];
        assert_eq!(frame.split_at(golden.len()), (&golden[..], &[0; 18][..]));
        assert!(is_announcement(frame, MAC));
        assert!(!is_announcement(frame, [2, 0, 0, 0, 0, 2]));
        assert!(!is_announcement(&frame[..13], MAC));
    }
}
