//! What is sent: a virtio-net header and a frame.

use orimono_tests::devices::net;

pub(super) type Mac = [u8; 6];
pub(super) const HEADER_BYTES: usize = 12;
/// TCP payload of a segment of a super-frame.
const SEGMENT_BYTES: u16 = 1_448;
/// A super-frame of the most segments that Linux sends as one; from 65,536 bytes on the kernel would
/// cut it itself (`gso_max_size`).
pub(super) const LARGE: usize = IPV4_END + TCP_BYTES + 45 * SEGMENT_BYTES as usize;
const ETHERNET_BYTES: usize = 14;
const IPV4_BYTES: usize = 20;
const IPV4_END: usize = ETHERNET_BYTES + IPV4_BYTES;
const TCP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
const GSO_TCPV4: u8 = 1;
const GSO_UDP_L4: u8 = 5;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// One frame of `bytes`, a TCP super-frame if it is [`LARGE`].
pub(super) fn frame(to: Mac, from: Mac, bytes: usize) -> Vec<u8> {
    if bytes == LARGE {
        return tcp(to, from, [10, 9, 0, 2], [10, 9, 0, 3]);
    }
    [vec![0; HEADER_BYTES], net::frame(to, from, 0, bytes)].concat()
}

/// What a router that is given it, at `to`, sends on to the station `destination` as the returned
/// number of frames of `bytes`.
pub(super) fn burst(to: Mac, destination: [u8; 4], bytes: usize) -> (Vec<u8>, u64) {
    const BURST: usize = 64;
    let (from, source) = ([2, 0, 0, 0, 9, 9], [10, 9, 0, 2]);
    if bytes == LARGE {
        return (tcp(to, from, source, destination), 1);
    }
    let payload = bytes - IPV4_END - UDP_BYTES;
    let frames = BURST.min((LARGE - IPV4_END - UDP_BYTES) / payload);
    let total = UDP_BYTES + frames * payload;
    let [high, low] = small(total).to_be_bytes();
    // Port 9 discards; the checksum is not looked at, but 0 would say that there is none.
    let header = [0, 9, 0, 9, high, low, 1, 1];
    let mut datagram = header.to_vec();
    datagram.resize(total, 0x5a);
    let packet = ipv4(to, from, source, destination, UDP, &datagram);
    let offload = offload(GSO_UDP_L4, UDP_BYTES, small(payload), 6);
    (
        [offload, packet].concat(),
        u64::try_from(frames).unwrap_or(0),
    )
}

fn tcp(to: Mac, from: Mac, source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    const HEADER_WORDS: u8 = 5 << 4;
    const ACK: u8 = 0x10;
    let mut segment = vec![0, 9, 0, 9, 0, 0, 0, 1, 0, 0, 0, 1, HEADER_WORDS, ACK];
    // Window, checksum, urgent pointer.
    segment.extend([0xff, 0xff, 1, 1, 0, 0]);
    segment.resize(LARGE - IPV4_END, 0x5a);
    let packet = ipv4(to, from, source, destination, TCP, &segment);
    let offload = offload(GSO_TCPV4, TCP_BYTES, SEGMENT_BYTES, 16);
    [offload, packet].concat()
}

/// A virtio-net header with a partial checksum, `checksum` bytes behind the IPv4 header.
fn offload(kind: u8, transport_bytes: usize, segment: u16, checksum: u16) -> Vec<u8> {
    const NEEDS_CSUM: u8 = 1;
    let mut header = vec![NEEDS_CSUM, kind];
    let fields = [
        small(IPV4_END + transport_bytes),
        segment,
        small(IPV4_END),
        checksum,
        0,
    ];
    header.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
    header
}

fn ipv4(
    to: Mac,
    from: Mac,
    source: [u8; 4],
    destination: [u8; 4],
    protocol: u8,
    data: &[u8],
) -> Vec<u8> {
    const LIFE: u8 = 64;
    let [high, low] = small(IPV4_BYTES + data.len()).to_be_bytes();
    let fields = [0x45, 0, high, low, 0, 0, 0x40, 0, LIFE, protocol];
    let addresses = [source, destination].concat();
    let [first, second] = checksum(&[&fields[..], &addresses].concat()).to_be_bytes();
    let head = [&to[..], &from, &[8, 0], &fields, &[first, second]].concat();
    [&head[..], &addresses, data].concat()
}

/// Of an IPv4 header without it (RFC 1071); its length is even.
fn checksum(header: &[u8]) -> u16 {
    let words = header.as_chunks().0.iter();
    let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    !small(usize::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or(0))
}

/// All lengths here are below 64 KiB.
fn small(value: usize) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATION: Mac = [2, 0, 0, 0, 0, 1];

    #[test]
    fn frames_have_their_length() {
        for bytes in [64, 1500, LARGE] {
            let made = frame(STATION, STATION, bytes);
            assert_eq!(made.len(), HEADER_BYTES + bytes);
        }
    }

    #[test]
    fn a_burst_is_as_many_frames_as_fit() {
        for (bytes, expected) in [(64, 64), (1500, 44), (LARGE, 1)] {
            let (burst, frames) = burst(STATION, [10, 0, 0, 1], bytes);
            assert_eq!(frames, expected, "{bytes}");
            assert!(burst.len() <= HEADER_BYTES + LARGE, "{bytes}");
            let payload = burst.len() - HEADER_BYTES - IPV4_END - UDP_BYTES;
            if bytes < LARGE {
                let each = bytes - IPV4_END - UDP_BYTES;
                assert_eq!(payload, each * usize::try_from(frames).unwrap_or(0));
            }
        }
    }

    /// The example of RFC 1071's errata and every textbook: its checksum is 0xb861.
    #[test]
    fn checksum_is_that_of_ipv4() {
        let header = [
            0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7,
        ];
        assert_eq!(checksum(&header), 0xb861);
    }
}
