//! Who a logical unit is: designator, serial number, product.

use thiserror::Error;

/// T10 vendor identification, padded to its eight bytes.
pub const VENDOR: [u8; 8] = *b"ORIMONO ";

/// Longest serial number, in bytes. Keeps the T10 designator (8 + 16 + serial) in one byte of
/// length with room to spare.
pub const SERIAL_BYTES_MAX: usize = 64;

/// A world-wide name of a logical unit (SPC-4 7.8.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Designator(DesignatorForm);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum DesignatorForm {
    Naa8([u8; 8]),
    Naa16([u8; 16]),
    Eui64([u8; 8]),
}

impl Designator {
    /// An 8-byte NAA name: format 2 (IEEE extended), 3 (locally assigned) or 5 (registered).
    ///
    /// # Errors
    /// [`IdentityError::NaaFormat`] for other formats.
    pub const fn naa(name: u64) -> Result<Self, IdentityError> {
        let bytes = name.to_be_bytes();
        match bytes[0] >> 4 {
            2 | 3 | 5 => Ok(Self(DesignatorForm::Naa8(bytes))),
            format => Err(IdentityError::NaaFormat {
                format,
                name_bytes: 8,
            }),
        }
    }

    /// A 16-byte NAA name of format 6 (IEEE registered extended).
    ///
    /// # Errors
    /// [`IdentityError::NaaFormat`] for other formats.
    pub const fn naa_extended(name: [u8; 16]) -> Result<Self, IdentityError> {
        match name[0] >> 4 {
            6 => Ok(Self(DesignatorForm::Naa16(name))),
            format => Err(IdentityError::NaaFormat {
                format,
                name_bytes: 16,
            }),
        }
    }

    /// An EUI-64 name.
    #[must_use]
    pub const fn eui64(name: u64) -> Self {
        Self(DesignatorForm::Eui64(name.to_be_bytes()))
    }

    /// A locally assigned NAA name (format 3) with the low 60 bits of `number`. Unique only
    /// within an administrative domain.
    #[must_use]
    pub const fn locally_assigned(number: u64) -> Self {
        Self(DesignatorForm::Naa8(
            ((number & (u64::MAX >> 4)) | (3 << 60)).to_be_bytes(),
        ))
    }

    /// DESIGNATOR TYPE: 2 for EUI-64, 3 for NAA.
    pub(crate) const fn kind(&self) -> u8 {
        match self.0 {
            DesignatorForm::Eui64(_) => 2,
            DesignatorForm::Naa8(_) | DesignatorForm::Naa16(_) => 3,
        }
    }

    /// The name, most significant byte first.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            DesignatorForm::Naa8(bytes) | DesignatorForm::Eui64(bytes) => bytes,
            DesignatorForm::Naa16(bytes) => bytes,
        }
    }
}

/// Why an [`Identity`] cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// The four bits that name the NAA format do not fit the length.
    #[error("NAA name of {name_bytes} bytes cannot have format {format}")]
    NaaFormat {
        /// Bits 7..4 of the first byte.
        format: u8,
        /// Length of the name.
        name_bytes: u8,
    },
    /// Empty, too long, or not printable ASCII.
    #[error("{field} must have 1 to {bytes_max} printable ASCII characters")]
    Text {
        /// Which text.
        field: &'static str,
        /// Its longest length.
        bytes_max: usize,
    },
}

/// What INQUIRY tells about a logical unit. Stays the same for its life, on every nexus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    serial: String,
    designator: Designator,
    product: [u8; 16],
    revision: [u8; 4],
    read_only: bool,
}

impl Identity {
    /// Product "FABRIC LUN", revision "0001", writable.
    ///
    /// # Errors
    /// [`IdentityError::Text`] when `serial` is empty, longer than [`SERIAL_BYTES_MAX`] or not
    /// printable ASCII.
    pub fn new(serial: &str, designator: Designator) -> Result<Self, IdentityError> {
        check_text("serial", serial, SERIAL_BYTES_MAX)?;
        Ok(Self {
            serial: serial.to_owned(),
            designator,
            product: *b"FABRIC LUN      ",
            revision: *b"0001",
            read_only: false,
        })
    }

    /// As [`Self::new`], with a locally assigned designator derived from the serial number
    /// (64-bit FNV-1a, low 60 bits): the same serial has the same name on every machine.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn from_serial(serial: &str) -> Result<Self, IdentityError> {
        let hash = serial
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        Self::new(serial, Designator::locally_assigned(hash))
    }

    /// With another product identification, 1 to 16 characters.
    ///
    /// # Errors
    /// [`IdentityError::Text`].
    pub fn with_product(mut self, product: &str) -> Result<Self, IdentityError> {
        self.product = padded("product", product)?;
        Ok(self)
    }

    /// With another product revision level, 1 to 4 characters.
    ///
    /// # Errors
    /// [`IdentityError::Text`].
    pub fn with_revision(mut self, revision: &str) -> Result<Self, IdentityError> {
        self.revision = padded("revision", revision)?;
        Ok(self)
    }

    /// With every write refused, whatever the medium allows.
    #[must_use]
    pub const fn with_read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Unit serial number.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// World-wide name.
    #[must_use]
    pub const fn designator(&self) -> &Designator {
        &self.designator
    }

    /// Product identification, padded with spaces.
    #[must_use]
    pub const fn product(&self) -> &[u8; 16] {
        &self.product
    }

    /// Product revision level, padded with spaces.
    #[must_use]
    pub const fn revision(&self) -> &[u8; 4] {
        &self.revision
    }

    /// Whether writes are refused.
    #[must_use]
    pub const fn read_only(&self) -> bool {
        self.read_only
    }
}

fn check_text(field: &'static str, text: &str, bytes_max: usize) -> Result<(), IdentityError> {
    let printable = text.bytes().all(|byte| (0x20..=0x7E).contains(&byte));
    if text.is_empty() || text.len() > bytes_max || !printable {
        return Err(IdentityError::Text { field, bytes_max });
    }
    Ok(())
}

fn padded<const N: usize>(field: &'static str, text: &str) -> Result<[u8; N], IdentityError> {
    check_text(field, text, N)?;
    let mut bytes = [b' '; N];
    for (to, from) in bytes.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_outside_printable_ascii_or_too_long_are_refused() {
        assert!(Identity::from_serial("").is_err());
        assert!(Identity::from_serial(&"x".repeat(65)).is_err());
        assert!(Identity::from_serial("a\nb").is_err());
        assert!(Identity::from_serial("ü").is_err());
        let identity = Identity::from_serial("lun-1").unwrap();
        assert!(identity.clone().with_product("seventeen letters").is_err());
        assert_eq!(
            identity.with_product("disk").unwrap().product(),
            b"disk            "
        );
    }

    #[test]
    fn naa_names_must_have_a_format_of_their_length() {
        assert!(Designator::naa(0x5000_0000_0000_0001).is_ok());
        assert_eq!(
            Designator::naa(0x6000_0000_0000_0001),
            Err(IdentityError::NaaFormat {
                format: 6,
                name_bytes: 8
            })
        );
        assert!(Designator::naa_extended([0x60; 16]).is_ok());
        assert!(Designator::naa_extended([0x50; 16]).is_err());
        assert_eq!(
            Designator::locally_assigned(u64::MAX).as_bytes(),
            [0x3F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]
        );
    }

    #[test]
    fn serial_derived_name_is_fnv_1a() {
        // FNV-1a 64 of "a" is af63dc4c8601ec8c; its first digit becomes the NAA format 3.
        let identity = Identity::from_serial("a").unwrap();
        assert_eq!(
            identity.designator().as_bytes(),
            0x3f63_dc4c_8601_ec8c_u64.to_be_bytes()
        );
    }
}
