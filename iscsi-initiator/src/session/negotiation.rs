//! Operational keys and their result functions (RFC 7143 section 13).
//!
//! | key | result | offered | if the target says nothing |
//! | --- | --- | --- | --- |
//! | HeaderDigest, DataDigest | first common | [`DigestPolicy`] | None |
//! | MaxConnections | minimum | 1 | 1 |
//! | InitialR2T | or | option | Yes |
//! | ImmediateData | and | option | Yes |
//! | MaxRecvDataSegmentLength | declared | option | 8,192 |
//! | MaxBurstLength | minimum | option | 262,144 |
//! | FirstBurstLength | minimum | option | 65,536 |
//! | DefaultTime2Wait | maximum | 0 | 2 |
//! | DefaultTime2Retain | minimum | 0 | 20 |
//! | MaxOutstandingR2T | minimum | 1 | 1 |
//! | DataPDUInOrder, DataSequenceInOrder | or | Yes | Yes |
//! | ErrorRecoveryLevel | minimum | 0 | 0 |

use std::time::Duration;

use super::error::{SessionError, quoted};
use super::frame::Digests;
use super::text;

/// What MaxRecvDataSegmentLength is until it is declared, in both directions.
pub(crate) const SEGMENT_BYTES_DEFAULT: usize = 8192;
/// Bounds of lengths (sections 13.12 to 13.14).
const LENGTH_MIN: u32 = 512;
const LENGTH_MAX: u32 = (1 << 24) - 1;
/// Most bytes we put into one data segment, whatever the target would take: what a lower layer
/// has to hold of one PDU.
const SEND_BYTES_MAX: usize = 256 * 1024;

/// Whether CRC32C digests are wanted (RFC 7143 section 13.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DigestPolicy {
    /// None.
    Never,
    /// If the target can.
    #[default]
    Preferred,
    /// A target that cannot is not used.
    Required,
}

impl DigestPolicy {
    const fn offer(self) -> &'static str {
        match self {
            Self::Never => "None",
            Self::Preferred => "CRC32C,None",
            Self::Required => "CRC32C",
        }
    }

    /// Whether there will be digests; `None` if the answer is not one of the offer.
    fn result(self, answer: &str) -> Option<bool> {
        match (self, answer) {
            (Self::Preferred | Self::Required, "CRC32C") => Some(true),
            (Self::Preferred | Self::Never, "None") => Some(false),
            _ => None,
        }
    }
}

/// What an initiator offers at login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// HeaderDigest.
    pub header_digest: DigestPolicy,
    /// DataDigest.
    pub data_digest: DigestPolicy,
    /// InitialR2T: whether a write waits for the target to ask for data beyond the immediate.
    pub initial_r2t: bool,
    /// ImmediateData: whether a write may carry its first data.
    pub immediate_data: bool,
    /// MaxRecvDataSegmentLength in bytes; 512 to 16,777,215. Sets the receive buffer.
    pub receive_segment_bytes: u32,
    /// MaxBurstLength in bytes; 512 to 16,777,215.
    pub burst_bytes: u32,
    /// FirstBurstLength in bytes; 512 to 16,777,215.
    pub first_burst_bytes: u32,
}

impl Default for Offer {
    /// Digests if the target can, unsolicited and immediate data, 256 KiB everywhere.
    fn default() -> Self {
        Self {
            header_digest: DigestPolicy::Preferred,
            data_digest: DigestPolicy::Preferred,
            initial_r2t: false,
            immediate_data: true,
            receive_segment_bytes: 256 * 1024,
            burst_bytes: 256 * 1024,
            first_burst_bytes: 256 * 1024,
        }
    }
}

impl Offer {
    /// The same within the RFC's bounds.
    pub(crate) fn bounded(self) -> Self {
        let bounded = |bytes: u32| bytes.clamp(LENGTH_MIN, LENGTH_MAX);
        let burst_bytes = bounded(self.burst_bytes);
        Self {
            receive_segment_bytes: bounded(self.receive_segment_bytes),
            burst_bytes,
            // Section 13.14: not more than MaxBurstLength.
            first_burst_bytes: bounded(self.first_burst_bytes).min(burst_bytes),
            ..self
        }
    }

    /// The keys of a session. `full` is false for discovery, which moves no data.
    pub(crate) fn append(&self, out: &mut Vec<u8>, full: bool) {
        text::append(out, "HeaderDigest", self.header_digest.offer());
        text::append(out, "DataDigest", self.data_digest.offer());
        let number = |bytes: u32| bytes.to_string();
        text::append(
            out,
            "MaxRecvDataSegmentLength",
            &number(self.receive_segment_bytes),
        );
        text::append(out, "DefaultTime2Wait", "0");
        text::append(out, "DefaultTime2Retain", "0");
        text::append(out, "ErrorRecoveryLevel", "0");
        if full {
            text::append(out, "MaxConnections", "1");
            text::append(out, "InitialR2T", yes_or_no(self.initial_r2t));
            text::append(out, "ImmediateData", yes_or_no(self.immediate_data));
            text::append(out, "MaxBurstLength", &number(self.burst_bytes));
            text::append(out, "FirstBurstLength", &number(self.first_burst_bytes));
            text::append(out, "MaxOutstandingR2T", "1");
            text::append(out, "DataPDUInOrder", "Yes");
            text::append(out, "DataSequenceInOrder", "Yes");
        }
    }
}

const fn yes_or_no(yes: bool) -> &'static str {
    if yes { "Yes" } else { "No" }
}

/// What both sides agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    pub(crate) digests: Digests,
    pub(crate) initial_r2t: bool,
    pub(crate) immediate_data: bool,
    pub(crate) send_segment_bytes: usize,
    pub(crate) burst_bytes: u32,
    pub(crate) first_burst_bytes: u32,
    pub(crate) time_to_wait: Duration,
}

impl Parameters {
    /// Whether headers and data carry CRC32C digests.
    #[must_use]
    pub const fn digests(&self) -> (bool, bool) {
        (self.digests.header, self.digests.data)
    }

    /// Most bytes of a write that go without the target asking for them.
    #[must_use]
    pub const fn first_burst_bytes(&self) -> u32 {
        self.first_burst_bytes
    }

    /// Most bytes in one data segment that we send.
    #[must_use]
    pub const fn send_segment_bytes(&self) -> usize {
        self.send_segment_bytes
    }

    /// What holds if the target says nothing about any key.
    pub(crate) fn silent_target(offer: &Offer) -> Self {
        Self {
            digests: Digests::default(),
            initial_r2t: true,
            immediate_data: offer.immediate_data,
            send_segment_bytes: SEGMENT_BYTES_DEFAULT,
            burst_bytes: offer.burst_bytes.min(262_144),
            first_burst_bytes: offer.first_burst_bytes.min(65_536),
            time_to_wait: Duration::from_secs(2),
        }
    }

    /// Takes one key of the target. `Ok(false)`: not a key that we know; it gets NotUnderstood.
    pub(crate) fn take(
        &mut self,
        offer: &Offer,
        key: &str,
        value: &str,
    ) -> Result<bool, SessionError> {
        let is_key = match key {
            // Section 6.2: what became of an offer that the target cannot use; defaults stay.
            _ if matches!(value, "NotUnderstood" | "Irrelevant") => true,
            "TargetAlias"
            | "TargetPortalGroupTag"
            | "TargetAddress"
            | "TargetName"
            | "InitiatorAlias" => true,
            _ => {
                let taken = self.take_negotiated(offer, key, value);
                taken.ok_or_else(|| SessionError::Negotiation {
                    key: quoted(key),
                    value: quoted(value),
                })?
            }
        };
        Ok(is_key)
    }

    /// `None`: a value that cannot be.
    fn take_negotiated(&mut self, offer: &Offer, key: &str, value: &str) -> Option<bool> {
        let length = |maximum: u32| {
            text::number(value).filter(|number| (LENGTH_MIN..=maximum).contains(number))
        };
        match key {
            "HeaderDigest" => self.digests.header = offer.header_digest.result(value)?,
            "DataDigest" => self.digests.data = offer.data_digest.result(value)?,
            "InitialR2T" => self.initial_r2t = boolean(value)? | offer.initial_r2t,
            "ImmediateData" => self.immediate_data = boolean(value)? & offer.immediate_data,
            "MaxRecvDataSegmentLength" => {
                let bytes = usize::try_from(length(LENGTH_MAX)?).ok()?;
                self.send_segment_bytes = bytes.min(SEND_BYTES_MAX);
            }
            "MaxBurstLength" => self.burst_bytes = length(LENGTH_MAX)?.min(offer.burst_bytes),
            "FirstBurstLength" => {
                self.first_burst_bytes = length(LENGTH_MAX)?.min(offer.first_burst_bytes);
            }
            "DefaultTime2Wait" => {
                let seconds = text::number(value).filter(|seconds| *seconds <= 3600)?;
                self.time_to_wait = Duration::from_secs(seconds.into());
            }
            "DefaultTime2Retain" => drop(text::number(value)?),
            "MaxConnections" | "MaxOutstandingR2T" => {
                text::number(value).filter(|number| *number >= 1)?;
            }
            "ErrorRecoveryLevel" => {
                text::number(value).filter(|number| *number <= 2)?;
            }
            // The result is Yes, as we offered it, even if the target says No.
            "DataPDUInOrder" | "DataSequenceInOrder" => drop(boolean(value)?),
            _ => return Some(false),
        }
        Some(true)
    }

    /// After the last key: what one key says of another.
    pub(crate) fn settle(&mut self, offer: &Offer) -> Result<(), SessionError> {
        let refused = |key: &str| {
            Err(SessionError::Negotiation {
                key: key.to_owned(),
                value: "None".to_owned(),
            })
        };
        if offer.header_digest == DigestPolicy::Required && !self.digests.header {
            return refused("HeaderDigest");
        }
        if offer.data_digest == DigestPolicy::Required && !self.digests.data {
            return refused("DataDigest");
        }
        self.first_burst_bytes = self.first_burst_bytes.min(self.burst_bytes);
        Ok(())
    }
}

fn boolean(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agreed(offer: &Offer, answer: &[(&str, &str)]) -> Result<Parameters, SessionError> {
        let mut parameters = Parameters::silent_target(offer);
        for (key, value) in answer {
            parameters.take(offer, key, value)?;
        }
        parameters.settle(offer)?;
        Ok(parameters)
    }

    #[test]
    fn each_key_has_its_result_function() {
        let offer = Offer::default();
        let parameters = agreed(
            &offer,
            &[
                ("HeaderDigest", "CRC32C"),
                ("DataDigest", "None"),
                ("InitialR2T", "Yes"),
                ("ImmediateData", "No"),
                ("MaxRecvDataSegmentLength", "0x2000"),
                ("MaxBurstLength", "16776192"),
                ("FirstBurstLength", "1024"),
                ("DefaultTime2Wait", "3"),
                ("ErrorRecoveryLevel", "0"),
                ("MaxConnections", "1"),
                ("TargetPortalGroupTag", "1"),
            ],
        )
        .unwrap();
        assert_eq!(parameters.digests(), (true, false));
        assert!(parameters.initial_r2t);
        assert!(!parameters.immediate_data);
        assert_eq!(parameters.send_segment_bytes, 8192);
        assert_eq!(parameters.burst_bytes, 256 * 1024);
        assert_eq!(parameters.first_burst_bytes, 1024);
        assert_eq!(parameters.time_to_wait, Duration::from_secs(3));

        let strict = Offer {
            initial_r2t: true,
            immediate_data: false,
            ..offer
        };
        let answer = [("InitialR2T", "No"), ("ImmediateData", "Yes")];
        let parameters = agreed(&strict, &answer).unwrap();
        assert!(parameters.initial_r2t && !parameters.immediate_data);
    }

    #[test]
    fn silence_means_the_defaults_of_the_rfc() {
        let parameters = agreed(&Offer::default(), &[]).unwrap();
        assert_eq!(parameters.digests(), (false, false));
        assert!(parameters.initial_r2t && parameters.immediate_data);
        assert_eq!(parameters.first_burst_bytes, 65_536);
        let answer = [
            ("MaxBurstLength", "512"),
            ("FirstBurstLength", "Irrelevant"),
        ];
        let parameters = agreed(&Offer::default(), &answer).unwrap();
        assert_eq!(parameters.first_burst_bytes, 512);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (key, value) in [
            ("HeaderDigest", "CRC64"),
            ("DataDigest", "Reject"),
            ("InitialR2T", "yes"),
            ("MaxRecvDataSegmentLength", "0"),
            ("MaxBurstLength", "16777216"),
            ("FirstBurstLength", "-5"),
            ("ErrorRecoveryLevel", "3"),
            ("MaxConnections", "0"),
            ("DefaultTime2Wait", "99999"),
        ] {
            let error = agreed(&Offer::default(), &[(key, value)]).unwrap_err();
            let (key, value) = (key.to_owned(), value.to_owned());
            assert_eq!(error, SessionError::Negotiation { key, value });
        }
        let required = Offer {
            data_digest: DigestPolicy::Required,
            ..Offer::default()
        };
        assert!(agreed(&required, &[]).is_err());
        let unknown = Parameters::silent_target(&required).take(&required, "X-com.example", "1");
        assert_eq!(unknown, Ok(false));
    }
}
