//! Sense data: what failed and where, and its two encodings (SPC-4 4.5).

use crate::block_device::{MediumError, MediumErrorKind};

/// Bytes of the longest encoding [`Sense::encode`] produces.
pub const SENSE_BYTES_MAX: usize = 28;

/// Sense keys in use here (SPC-4 table 28).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SenseKey {
    /// Nothing to report.
    NoSense,
    /// The logical unit cannot be accessed now.
    NotReady,
    /// The medium failed.
    MediumError,
    /// The target failed.
    HardwareError,
    /// The CDB or its parameters are wrong.
    IllegalRequest,
    /// Something happened since the last command.
    UnitAttention,
    /// The medium is protected.
    DataProtect,
    /// A copy ended before its time.
    CopyAborted,
    /// The target gave the command up.
    AbortedCommand,
    /// Compared data differ.
    Miscompare,
}

impl SenseKey {
    /// The four-bit code.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::NoSense => 0x0,
            Self::NotReady => 0x2,
            Self::MediumError => 0x3,
            Self::HardwareError => 0x4,
            Self::IllegalRequest => 0x5,
            Self::UnitAttention => 0x6,
            Self::DataProtect => 0x7,
            Self::CopyAborted => 0xA,
            Self::AbortedCommand => 0xB,
            Self::Miscompare => 0xE,
        }
    }
}

/// Additional sense code and qualifier (SPC-4 annex E).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdditionalSense {
    /// ADDITIONAL SENSE CODE.
    pub asc: u8,
    /// ADDITIONAL SENSE CODE QUALIFIER.
    pub ascq: u8,
}

macro_rules! additional_sense {
    ($($name:ident = $asc:literal, $ascq:literal, $doc:literal;)*) => {
        impl AdditionalSense {
            $(
                #[doc = $doc]
                pub const $name: Self = Self { asc: $asc, ascq: $ascq };
            )*
        }
    };
}

additional_sense! {
    NONE = 0x00, 0x00, "No additional sense information.";
    NOT_READY = 0x04, 0x00, "Logical unit not ready, cause not reportable.";
    INITIALIZING_COMMAND_REQUIRED = 0x04, 0x02, "The unit is stopped; START STOP UNIT starts it.";
    ACCESS_STATE_TRANSITION = 0x04, 0x0A, "The target port changes its access state.";
    TARGET_PORT_STANDBY = 0x04, 0x0B, "The target port is in standby state.";
    TARGET_PORT_UNAVAILABLE = 0x04, 0x0C, "The target port is in unavailable state.";
    FORMAT_IN_PROGRESS = 0x04, 0x04, "The unit is being formatted.";
    SANITIZE_IN_PROGRESS = 0x04, 0x1B, "The unit is being sanitized.";
    WRITE_ERROR = 0x0C, 0x00, "Write error.";
    THIRD_PARTY_DEVICE_FAILURE = 0x0D, 0x01, "The source or destination of a copy failed.";
    COPY_TARGET_NOT_REACHABLE = 0x0D, 0x02, "The source or destination of a copy is not reachable.";
    UNRECOVERED_READ_ERROR = 0x11, 0x00, "Unrecovered read error.";
    PARAMETER_LIST_LENGTH_ERROR = 0x1A, 0x00, "The parameter list is cut off.";
    MISCOMPARE_DURING_VERIFY = 0x1D, 0x00, "Miscompare during verify operation.";
    INVALID_OPERATION_CODE = 0x20, 0x00, "Invalid command operation code.";
    LBA_OUT_OF_RANGE = 0x21, 0x00, "Logical block address out of range.";
    INVALID_FIELD_IN_CDB = 0x24, 0x00, "Invalid field in CDB.";
    LOGICAL_UNIT_NOT_SUPPORTED = 0x25, 0x00, "There is no logical unit at this LUN.";
    INVALID_FIELD_IN_PARAMETER_LIST = 0x26, 0x00, "Invalid field in parameter list.";
    INVALID_RELEASE = 0x26, 0x04, "Invalid release of persistent reservation.";
    TOO_MANY_CSCD_DESCRIPTORS = 0x26, 0x06, "Too many target (CSCD) descriptors.";
    UNSUPPORTED_CSCD_DESCRIPTOR = 0x26, 0x07, "Unsupported target (CSCD) descriptor type code.";
    TOO_MANY_SEGMENT_DESCRIPTORS = 0x26, 0x08, "Too many segment descriptors.";
    UNSUPPORTED_SEGMENT_DESCRIPTOR = 0x26, 0x09, "Unsupported segment descriptor type code.";
    INEXACT_SEGMENT = 0x26, 0x0A, "A segment is no multiple of the destination's blocks.";
    WRITE_PROTECTED = 0x27, 0x00, "The medium or the unit is read only.";
    SOFTWARE_WRITE_PROTECTED = 0x27, 0x02, "SWP of the Control mode page is set.";
    SPACE_ALLOCATION_FAILED = 0x27, 0x07, "Space allocation failed write protect.";
    MEDIUM_FORMAT_CORRUPTED = 0x31, 0x00, "FORMAT UNIT failed.";
    SANITIZE_FAILED = 0x31, 0x03, "Sanitize command failed.";
    SAVING_NOT_SUPPORTED = 0x39, 0x00, "Saving parameters not supported.";
    FAILED_SELF_TEST = 0x3E, 0x03, "Logical unit failed self-test.";
    INTERNAL_TARGET_FAILURE = 0x44, 0x00, "Internal target failure.";
    INSUFFICIENT_REGISTRATION_RESOURCES = 0x55, 0x04, "No room for another registration.";
}

/// Where the wrong bits are (SPC-4 4.5.2.4.2, field pointer sense key specific data).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldPointer {
    /// `true` in the CDB, `false` in the parameter list.
    pub in_cdb: bool,
    /// Byte of the field.
    pub byte: u16,
    /// Most significant wrong bit, 7..0, if one can be named.
    pub bit: Option<u8>,
}

/// Which encoding an initiator asked for (D_SENSE, or DESC of REQUEST SENSE).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SenseFormat {
    /// 18 bytes, response code 70h. INFORMATION has 32 bits.
    #[default]
    Fixed,
    /// 8 bytes and descriptors, response code 72h.
    Descriptor,
}

/// Why a command ended with CHECK CONDITION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// SENSE KEY.
    pub key: SenseKey,
    /// ADDITIONAL SENSE CODE and its qualifier.
    pub additional: AdditionalSense,
    /// INFORMATION: the failed LBA, or the byte offset of a miscompare in COMPARE AND WRITE.
    pub information: Option<u64>,
    /// The wrong field of an ILLEGAL REQUEST.
    pub field: Option<FieldPointer>,
    /// PROGRESS INDICATION: 65536ths done, of a NOT READY that ends by itself. In place of
    /// `field`.
    pub progress: Option<u16>,
}

impl Sense {
    /// Sense without information or field pointer.
    #[must_use]
    pub const fn new(key: SenseKey, additional: AdditionalSense) -> Self {
        Self {
            key,
            additional,
            information: None,
            field: None,
            progress: None,
        }
    }

    /// The same with INFORMATION.
    #[must_use]
    pub const fn with_information(mut self, information: u64) -> Self {
        self.information = Some(information);
        self
    }

    pub(crate) const fn illegal(additional: AdditionalSense) -> Self {
        Self::new(SenseKey::IllegalRequest, additional)
    }

    /// 5/24/00 pointing at a byte of the CDB.
    pub(crate) const fn cdb_field(byte: u16, bit: Option<u8>) -> Self {
        let mut sense = Self::illegal(AdditionalSense::INVALID_FIELD_IN_CDB);
        sense.field = Some(FieldPointer {
            in_cdb: true,
            byte,
            bit,
        });
        sense
    }

    /// 5/26/00 pointing at a byte of the parameter list.
    pub(crate) fn parameter_field(byte: usize, bit: Option<u8>) -> Self {
        let mut sense = Self::illegal(AdditionalSense::INVALID_FIELD_IN_PARAMETER_LIST);
        sense.field = u16::try_from(byte).ok().map(|byte| FieldPointer {
            in_cdb: false,
            byte,
            bit,
        });
        sense
    }

    /// Encodes; at most [`SENSE_BYTES_MAX`] bytes. INFORMATION above 32 bits has no place in
    /// the fixed format and is left out there (VALID stays 0).
    #[must_use]
    pub fn encode(&self, format: SenseFormat) -> Vec<u8> {
        match format {
            SenseFormat::Fixed => self.encode_fixed(),
            SenseFormat::Descriptor => self.encode_descriptor(),
        }
    }

    /// | byte | field |
    /// | --- | --- |
    /// | 0 | VALID, 70h |
    /// | 2 | sense key |
    /// | 3..7 | INFORMATION |
    /// | 7 | additional length, 10 |
    /// | 12, 13 | ASC, ASCQ |
    /// | 15..18 | sense key specific |
    fn encode_fixed(&self) -> Vec<u8> {
        let information = self.information.and_then(|value| u32::try_from(value).ok());
        let valid = if information.is_some() { 0x80 } else { 0 };
        let mut bytes = Vec::with_capacity(18);
        bytes.extend([0x70 | valid, 0, self.key.code()]);
        bytes.extend(information.unwrap_or(0).to_be_bytes());
        bytes.extend([10, 0, 0, 0, 0, self.additional.asc, self.additional.ascq, 0]);
        bytes.extend(self.key_specific().unwrap_or_default());
        bytes
    }

    /// | byte | field |
    /// | --- | --- |
    /// | 0 | 72h |
    /// | 1 | sense key |
    /// | 2, 3 | ASC, ASCQ |
    /// | 7 | bytes of the descriptors: information (type 0), sense key specific (type 2) |
    fn encode_descriptor(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SENSE_BYTES_MAX);
        let information_bytes = if self.information.is_some() { 12 } else { 0 };
        let key_specific = self.key_specific();
        let key_specific_bytes = if key_specific.is_some() { 8 } else { 0 };
        bytes.extend([
            0x72,
            self.key.code(),
            self.additional.asc,
            self.additional.ascq,
        ]);
        bytes.extend([0, 0, 0, information_bytes + key_specific_bytes]);
        if let Some(information) = self.information {
            bytes.extend([0x00, 0x0A, 0x80, 0]);
            bytes.extend(information.to_be_bytes());
        }
        if let Some([flags, high, low]) = key_specific {
            bytes.extend([0x02, 0x06, 0, 0, flags, high, low, 0]);
        }
        bytes
    }

    fn key_specific(&self) -> Option<[u8; 3]> {
        if let Some(progress) = self.progress {
            let [high, low] = progress.to_be_bytes();
            return Some([0x80, high, low]);
        }
        let field = self.field?;
        let [high, low] = field.byte.to_be_bytes();
        let place = if field.in_cdb { 0xC0 } else { 0x80 };
        let bit = field.bit.map_or(0, |bit| 0x08 | (bit & 0x07));
        Some([place | bit, high, low])
    }
}

impl From<MediumError> for Sense {
    fn from(error: MediumError) -> Self {
        use AdditionalSense as A;
        let (key, additional) = match error.kind {
            MediumErrorKind::Read => (SenseKey::MediumError, A::UNRECOVERED_READ_ERROR),
            MediumErrorKind::Write => (SenseKey::MediumError, A::WRITE_ERROR),
            MediumErrorKind::NoSpace => (SenseKey::DataProtect, A::SPACE_ALLOCATION_FAILED),
            MediumErrorKind::WriteProtected => (SenseKey::DataProtect, A::WRITE_PROTECTED),
            MediumErrorKind::Unavailable => (SenseKey::NotReady, A::NOT_READY),
            MediumErrorKind::OutOfRange => (SenseKey::IllegalRequest, A::LBA_OUT_OF_RANGE),
            MediumErrorKind::Internal => (SenseKey::HardwareError, A::INTERNAL_TARGET_FAILURE),
        };
        Self {
            information: error.lba,
            ..Self::new(key, additional)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_format_matches_the_layout_of_spc_4() {
        let sense = Sense::cdb_field(1, Some(7));
        assert_eq!(
            sense.encode(SenseFormat::Fixed),
            [
                0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xCF, 0, 1
            ]
        );
        let sense = Sense::from(MediumError {
            kind: MediumErrorKind::Read,
            lba: Some(0x0102_0304),
        });
        assert_eq!(
            sense.encode(SenseFormat::Fixed),
            [0xF0, 0, 3, 1, 2, 3, 4, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn fixed_format_leaves_out_what_does_not_fit_32_bits() {
        let sense = Sense::new(SenseKey::MediumError, AdditionalSense::WRITE_ERROR)
            .with_information(1 << 32);
        assert_eq!(sense.encode(SenseFormat::Fixed)[0], 0x70);
        assert_eq!(sense.encode(SenseFormat::Fixed)[3..7], [0; 4]);
        assert_eq!(
            sense.encode(SenseFormat::Descriptor),
            [
                0x72, 3, 0x0C, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0
            ]
        );
    }

    #[test]
    fn descriptor_format_carries_the_field_pointer() {
        let sense = Sense::parameter_field(4, None);
        assert_eq!(
            sense.encode(SenseFormat::Descriptor),
            [0x72, 5, 0x26, 0, 0, 0, 0, 8, 2, 6, 0, 0, 0x80, 0, 4, 0]
        );
        let longest = sense.with_information(7);
        assert_eq!(
            longest.encode(SenseFormat::Descriptor).len(),
            SENSE_BYTES_MAX
        );
    }

    #[test]
    fn medium_errors_have_the_sense_of_sbc_3() {
        let triple = |kind| {
            let sense = Sense::from(MediumError { kind, lba: None });
            (
                sense.key.code(),
                sense.additional.asc,
                sense.additional.ascq,
            )
        };
        assert_eq!(triple(MediumErrorKind::Read), (0x3, 0x11, 0x00));
        assert_eq!(triple(MediumErrorKind::Write), (0x3, 0x0C, 0x00));
        assert_eq!(triple(MediumErrorKind::NoSpace), (0x7, 0x27, 0x07));
        assert_eq!(triple(MediumErrorKind::WriteProtected), (0x7, 0x27, 0x00));
        assert_eq!(triple(MediumErrorKind::Unavailable), (0x2, 0x04, 0x00));
        assert_eq!(triple(MediumErrorKind::OutOfRange), (0x5, 0x21, 0x00));
        assert_eq!(triple(MediumErrorKind::Internal), (0x4, 0x44, 0x00));
    }
}
