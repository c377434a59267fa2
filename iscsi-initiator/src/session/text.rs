//! Text of login and text PDUs: `key=value`, each ended by a zero byte (RFC 7143 section 6.1).

use base64::prelude::{BASE64_STANDARD, Engine};

use super::error::{SessionError, violation};

/// Most text that is collected over several PDUs.
pub(crate) const TEXT_BYTES_MAX: usize = 64 * 1024;

/// Appends one pair.
pub(crate) fn append(text: &mut Vec<u8>, key: &str, value: &str) {
    for part in [key, "=", value, "\0"] {
        text.extend_from_slice(part.as_bytes());
    }
}

/// All pairs of a whole text.
pub(crate) fn pairs(text: &[u8]) -> Result<Vec<(&str, &str)>, SessionError> {
    let text = str::from_utf8(text).map_err(|_not_text| violation("text", "is not UTF-8"))?;
    text.split('\0')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            pair.split_once('=')
                .ok_or_else(|| violation("text", "has a key without a value"))
        })
        .collect()
}

/// Adds a part of a text that goes on in other PDUs.
pub(crate) fn collect(
    text: &mut Vec<u8>,
    part: &[u8],
    bytes_max: usize,
) -> Result<(), SessionError> {
    if text.len() + part.len() > bytes_max {
        return Err(violation("text", "is too long"));
    }
    text.extend_from_slice(part);
    Ok(())
}

/// A number, decimal or hexadecimal (section 6.1).
pub(crate) fn number(value: &str) -> Option<u32> {
    match value
        .strip_prefix("0x")
        .or_else(|| value.strip_prefix("0X"))
    {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    }
}

/// Bytes in hexadecimal or base64 (section 6.1), at most `bytes_max`.
pub(crate) fn binary(value: &str, bytes_max: usize) -> Option<Vec<u8>> {
    let (kind, digits) = value.split_at_checked(2)?;
    let bytes = match kind {
        "0x" | "0X" => {
            let digits = digits.as_bytes();
            // An odd number of digits lacks its first zero.
            let (odd, even) = digits.split_at_checked(digits.len() % 2)?;
            let first = odd.iter().map(|digit| hex_digit(*digit));
            let rest = even.chunks_exact(2).map(|pair| match pair {
                [high, low] => Some(hex_digit(*high)? << 4 | hex_digit(*low)?),
                _ => None,
            });
            first.chain(rest).collect::<Option<Vec<u8>>>()?
        }
        "0b" | "0B" => BASE64_STANDARD.decode(digits).ok()?,
        _ => return None,
    };
    (!bytes.is_empty() && bytes.len() <= bytes_max).then_some(bytes)
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

/// Bytes as we write them.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::from("0x");
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(u32::from(digit), 16));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pairs_are_read_as_they_are_written() {
        let mut text = Vec::new();
        append(&mut text, "HeaderDigest", "CRC32C,None");
        append(&mut text, "X-odd", "a=b");
        assert_eq!(text, b"HeaderDigest=CRC32C,None\0X-odd=a=b\0");
        assert_eq!(
            pairs(&text).unwrap(),
            [("HeaderDigest", "CRC32C,None"), ("X-odd", "a=b")]
        );
        assert!(pairs(b"no value\0").is_err());
        assert!(pairs(b"k=\xff\0").is_err());
    }

    #[test]
    fn numbers_and_bytes_have_their_notations() {
        assert_eq!(number("262144"), Some(262_144));
        assert_eq!(number("0x40000"), Some(262_144));
        assert_eq!(number("4294967296"), None);
        assert_eq!(number("-1"), None);
        assert_eq!(binary("0xA1b", 8), Some(vec![0x0a, 0x1b]));
        assert_eq!(binary("0bAQIDBA==", 8), Some(vec![1, 2, 3, 4]));
        for bad in ["", "0x", "0xgg", "0b!", "12", "é", "0x000000000000000000"] {
            assert_eq!(binary(bad, 8), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn bytes_survive(bytes in proptest::collection::vec(any::<u8>(), 1..40)) {
            prop_assert_eq!(binary(&hexadecimal(&bytes), 64), Some(bytes));
        }

        #[test]
        fn no_text_does_harm(text in any::<Vec<u8>>(), value in any::<String>()) {
            drop((pairs(&text), number(&value), binary(&value, 1024)));
        }
    }
}
