//! CHAP with MD5 (RFC 1994, RFC 7143 section 12.1.3).

use md5::{Digest, Md5};

/// Longest challenge that is taken (section 12.1.3).
pub(crate) const CHALLENGE_BYTES_MAX: usize = 1024;
/// What we challenge a target with: an identifier, then the challenge.
pub(crate) const ENTROPY_BYTES: usize = 17;

/// The answer to a challenge: MD5 of identifier, secret and challenge.
pub(crate) fn response(identifier: u8, secret: &[u8], challenge: &[u8]) -> [u8; 16] {
    Md5::new()
        .chain_update([identifier])
        .chain_update(secret)
        .chain_update(challenge)
        .finalize()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf '\x27secret-of-twelve\x01\x02\x03\x04' | md5sum` of coreutils.
    #[test]
    fn the_response_is_that_of_another_implementation() {
        let answer = response(0x27, b"secret-of-twelve", &[1, 2, 3, 4]);
        assert_eq!(
            super::super::text::hexadecimal(&answer),
            "0xf1672081f7d385ba6a0fdd1c657d3abe"
        );
    }
}
