//! PDUs as bytes of a connection (RFC 7143 section 11.2).
//!
//! ```text
//! BHS (48) | AHS (0..1020) | [header digest (4)] | data | padding (0..3) | [data digest (4)]
//! ```
//!
//! A digest is CRC32C, lowest byte first (section 13.1); it covers the padding. Data without bytes
//! have no digest.

use super::pdu::BHS_BYTES;

/// Bytes of additional header segments that the length field can state.
pub(crate) const AHS_BYTES_MAX: usize = 255 * 4;
const DIGEST_BYTES: usize = 4;

/// Which digests a connection carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digests {
    pub(crate) header: bool,
    pub(crate) data: bool,
}

/// Why bytes are no PDU. The connection cannot be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Section 11.2.3.
    #[error("header digest is wrong; if it happens again, look for a bad cable, switch or memory")]
    HeaderDigest,
    /// Section 11.2.3.
    #[error("data digest is wrong; if it happens again, look for a bad cable, switch or memory")]
    DataDigest,
    /// Longer than MaxRecvDataSegmentLength.
    #[error("data segment has {bytes} bytes, {bytes_max} were agreed")]
    DataSegment {
        /// What the header says.
        bytes: usize,
        /// What was declared.
        bytes_max: usize,
    },
}

/// One whole PDU; digests are checked and padding is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) header: [u8; BHS_BYTES],
    pub(crate) data: &'a [u8],
}

/// The bytes that the longest PDU takes.
pub(crate) const fn pdu_bytes_max(data_bytes_max: usize) -> usize {
    BHS_BYTES + AHS_BYTES_MAX + DIGEST_BYTES + padded(data_bytes_max) + DIGEST_BYTES
}

const fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(4)
}

/// Takes the first PDU of `input` and says how many bytes it takes; `None` if there is no whole
/// one yet. What can be refused is refused as soon as the header is there.
pub(crate) fn decode(
    input: &[u8],
    digests: Digests,
    data_bytes_max: usize,
) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let Some((header, rest)) = input.split_first_chunk::<BHS_BYTES>() else {
        return Ok(None);
    };
    let [_, _, _, _, ahs_words, high, middle, low, ..] = *header;
    let data_bytes = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
    if data_bytes > data_bytes_max {
        return Err(FrameError::DataSegment {
            bytes: data_bytes,
            bytes_max: data_bytes_max,
        });
    }
    let Some((ahs, rest)) = rest.split_at_checked(usize::from(ahs_words) * 4) else {
        return Ok(None);
    };
    let Some(rest) = checked(
        digests.header,
        &[header, ahs],
        rest,
        FrameError::HeaderDigest,
    )?
    else {
        return Ok(None);
    };
    let Some((padded_data, rest)) = rest.split_at_checked(padded(data_bytes)) else {
        return Ok(None);
    };
    let has_digest = digests.data && data_bytes > 0;
    let Some(rest) = checked(has_digest, &[padded_data], rest, FrameError::DataDigest)? else {
        return Ok(None);
    };
    let frame = Frame {
        header: *header,
        data: padded_data.get(..data_bytes).unwrap_or_default(),
    };
    Ok(Some((frame, input.len() - rest.len())))
}

/// What follows the digest of `parts`, which is checked; `None` if it is not there yet.
fn checked<'a>(
    wanted: bool,
    parts: &[&[u8]],
    rest: &'a [u8],
    error: FrameError,
) -> Result<Option<&'a [u8]>, FrameError> {
    if !wanted {
        return Ok(Some(rest));
    }
    match rest.split_first_chunk() {
        None => Ok(None),
        Some((digest, rest)) if *digest == crc32c(parts) => Ok(Some(rest)),
        Some(_) => Err(error),
    }
}

/// Appends a PDU to `out`, lengths, padding and digests included.
///
/// # Panics
/// If `ahs` is longer than [`AHS_BYTES_MAX`] or no whole number of words, or `data` is longer than
/// 24 bits can say: the session checks both before.
pub(crate) fn encode(
    out: &mut Vec<u8>,
    mut header: [u8; BHS_BYTES],
    ahs: &[u8],
    data: &[u8],
    digests: Digests,
) {
    assert!(ahs.len() <= AHS_BYTES_MAX && ahs.len().is_multiple_of(4));
    assert!(data.len() < 1 << 24);
    let [.., ahs_words] = (ahs.len() / 4).to_be_bytes();
    let [.., high, middle, low] = data.len().to_be_bytes();
    header[4] = ahs_words;
    header[5] = high;
    header[6] = middle;
    header[7] = low;
    out.extend_from_slice(&header);
    out.extend_from_slice(ahs);
    if digests.header {
        out.extend_from_slice(&crc32c(&[&header, ahs]));
    }
    let padding = [0; 3];
    let padding = padding
        .get(..padded(data.len()) - data.len())
        .unwrap_or_default();
    out.extend_from_slice(data);
    out.extend_from_slice(padding);
    if digests.data && !data.is_empty() {
        out.extend_from_slice(&crc32c(&[data, padding]));
    }
}

/// CRC32C of `parts`, one after the other, in the order of the wire.
fn crc32c(parts: &[&[u8]]) -> [u8; DIGEST_BYTES] {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    // The library's sums have up to 64 bits; these are the lower 32.
    let [a, b, c, d, ..] = digest.finalize().to_le_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn digests_are_those_of_rfc_7143_appendix_a_4() {
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        assert_eq!(crc32c(&[&[0; 32]]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(crc32c(&[&[0xff; 32]]), [0x43, 0xab, 0xa8, 0x62]);
        assert_eq!(crc32c(&[&ascending]), [0x4e, 0x79, 0xdd, 0x46]);
        assert_eq!(crc32c(&[&descending]), [0x5c, 0xdb, 0x3f, 0x11]);
        // "An iSCSI - SCSI Read (10) Command PDU".
        let mut command = [0; 48];
        command[..2].copy_from_slice(&[0x01, 0xc0]);
        command[16] = 0x14;
        command[22..25].copy_from_slice(&[0x04, 0x00, 0x00]);
        command[27] = 0x14;
        command[31] = 0x18;
        command[32] = 0x28;
        command[40] = 0x02;
        assert_eq!(crc32c(&[&command]), [0x56, 0x3a, 0x96, 0xd9]);
    }

    #[test]
    fn a_segment_over_the_limit_is_refused_before_it_is_there() {
        let mut header = [0; BHS_BYTES];
        header[5..8].copy_from_slice(&[0x00, 0x20, 0x01]);
        let error = decode(&header, Digests::default(), 8192).unwrap_err();
        assert_eq!(
            error,
            FrameError::DataSegment {
                bytes: 8193,
                bytes_max: 8192
            }
        );
        assert_eq!(decode(&header[..47], Digests::default(), 8192), Ok(None));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_and_every_flipped_bit_is_seen(
            mut header in any::<[u8; BHS_BYTES]>(),
            ahs_words in 0usize..=255,
            data in proptest::collection::vec(any::<u8>(), 0..600),
            digests in (any::<bool>(), any::<bool>()),
            flip in any::<proptest::sample::Index>(),
        ) {
            let digests = Digests { header: digests.0, data: digests.1 };
            let mut bytes = Vec::new();
            encode(&mut bytes, header, &vec![7; ahs_words * 4], &data, digests);
            prop_assert!(bytes.len() <= pdu_bytes_max(data.len()));
            header[4..8].copy_from_slice(&bytes[4..8]);
            let limit = data.len();
            let (frame, used) = decode(&bytes, digests, limit).unwrap().unwrap();
            prop_assert_eq!(used, bytes.len());
            prop_assert_eq!(frame, Frame { header, data: &data });
            let cut = flip.index(bytes.len());
            prop_assert_eq!(decode(&bytes[..cut], digests, limit), Ok(None));
            if digests.header && (digests.data || data.is_empty()) {
                let bit = flip.index(bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
                // A changed length may make it wait for more.
                prop_assert!(!matches!(decode(&bytes, digests, limit), Ok(Some(_))));
            }
        }
    }
}
