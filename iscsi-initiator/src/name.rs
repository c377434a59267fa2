//! iSCSI names and CHAP credentials: values that cannot break the text of a login.

use std::fmt;
use std::str::FromStr;

/// Longest iSCSI name (RFC 7143 section 4.2.7.1).
const NAME_BYTES_MAX: usize = 223;
/// Longest CHAP name and secret; what all targets take.
const CHAP_BYTES_MAX: usize = 255;

/// Why a name or credential is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not an iSCSI name.
    #[error(
        "{name:?} is no iSCSI name; write it like iqn.2001-04.com.example:storage.disk1, in lower case, or as eui. or naa."
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// Not a CHAP name.
    #[error("a CHAP name has 1 to {CHAP_BYTES_MAX} printable characters; correct it")]
    ChapName,
    /// Not a CHAP secret.
    #[error("a CHAP secret has 1 to {CHAP_BYTES_MAX} bytes; correct it")]
    ChapSecret,
    /// RFC 7143 section 9.2.1 forbids it: each side could answer with what the other said.
    #[error("both sides have the same CHAP secret; choose another for one of them")]
    SameSecret,
}

/// The name of an initiator or a target: `iqn.`, `eui.` or `naa.`, at most 223 bytes of lower-case
/// letters, digits, `-`, `.` and `:` (RFC 7143 section 4.2.7, ASCII only).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IscsiName(String);

impl IscsiName {
    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IscsiName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let kind = ["iqn.", "eui.", "naa."]
            .iter()
            .find_map(|kind| name.strip_prefix(kind));
        let allowed =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.:".contains(&byte);
        // Those of EUI-64 and NAA are hexadecimal, which many write in capitals.
        let hexadecimal = !name.starts_with("iqn.");
        let good = kind.is_some_and(|rest| {
            !rest.is_empty()
                && rest
                    .bytes()
                    .all(|byte| allowed(byte) || hexadecimal && byte.is_ascii_hexdigit())
        });
        if !good || name.len() > NAME_BYTES_MAX {
            // A wrong name may be of any length.
            let name = name.chars().take(NAME_BYTES_MAX).collect();
            return Err(NameError::Name { name });
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for IscsiName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A CHAP name and its secret (RFC 1994). Never shows the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct ChapCredential {
    name: String,
    secret: Vec<u8>,
}

impl ChapCredential {
    /// A name and its secret.
    ///
    /// # Errors
    /// [`NameError::ChapName`], [`NameError::ChapSecret`]. Secrets shorter than 12 bytes are
    /// taken, although RFC 7143 section 9.2.1 advises against them: the target decides.
    pub fn new(name: &str, secret: &[u8]) -> Result<Self, NameError> {
        let printable = |text: &str| text.chars().all(|character| !character.is_control());
        if name.is_empty() || name.len() > CHAP_BYTES_MAX || !printable(name) {
            return Err(NameError::ChapName);
        }
        if secret.is_empty() || secret.len() > CHAP_BYTES_MAX {
            return Err(NameError::ChapSecret);
        }
        Ok(Self {
            name: name.to_owned(),
            secret: secret.to_owned(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn secret(&self) -> &[u8] {
        &self.secret
    }
}

impl fmt::Debug for ChapCredential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ChapCredential")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Who proves what at login.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Nobody anything; a target that demands CHAP refuses the login.
    #[default]
    None,
    /// The initiator, if the target asks for it.
    Chap(ChapCredential),
    /// Both sides; a target that does not prove itself is left.
    MutualChap(MutualChap),
}

/// Credentials of both sides; their secrets differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MutualChap {
    initiator: ChapCredential,
    target: ChapCredential,
}

impl MutualChap {
    /// Credentials of the initiator and of the target.
    ///
    /// # Errors
    /// [`NameError::SameSecret`].
    pub fn new(initiator: ChapCredential, target: ChapCredential) -> Result<Self, NameError> {
        if initiator.secret == target.secret {
            return Err(NameError::SameSecret);
        }
        Ok(Self { initiator, target })
    }
}

impl Credentials {
    pub(crate) const fn own(&self) -> Option<&ChapCredential> {
        match self {
            Self::None => None,
            Self::Chap(own) => Some(own),
            Self::MutualChap(both) => Some(&both.initiator),
        }
    }

    pub(crate) const fn of_target(&self) -> Option<&ChapCredential> {
        match self {
            Self::MutualChap(both) => Some(&both.target),
            Self::None | Self::Chap(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in [
            "iqn.2001-04.com.example:storage.disk2.sys1.xyz",
            "eui.02004567A425678D",
            "naa.52004567BA64678D",
        ] {
            assert_eq!(good.parse::<IscsiName>().unwrap().as_str(), good);
        }
        let long = format!("iqn.{}", "a".repeat(220));
        for bad in [
            "",
            "iqn.",
            "disk1",
            "iqn.2001-04.com.Example:x",
            "iqn.x\0SessionType=Discovery",
            "iqn.a=b",
            &long,
        ] {
            assert!(bad.parse::<IscsiName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        let own = ChapCredential::new("user", b"s3cr3t-s3cr3t").unwrap();
        let other = ChapCredential::new("target", b"0th3r-0th3r").unwrap();
        let shown = format!(
            "{:?} {:?}",
            Credentials::Chap(own.clone()),
            Credentials::MutualChap(MutualChap::new(own.clone(), other).unwrap())
        );
        assert!(shown.contains("user"));
        assert!(
            !shown.contains("s3cr3t") && !shown.contains("0th3r"),
            "{shown}"
        );
        let bytes = format!("{:?}", b"s3cr3t");
        assert!(!shown.contains(bytes.trim_matches(['[', ']'])), "{shown}");
        assert_eq!(
            MutualChap::new(own.clone(), own),
            Err(NameError::SameSecret)
        );
        assert_eq!(ChapCredential::new("a\0b", b"x"), Err(NameError::ChapName));
    }
}
