//! A certificate authority in a folder, for fabrics that have no other: one CA, and a certificate
//! for each host and director.
//!
//! ```text
//! DIR/ca.pem   certificate of the CA; every host and director gets a copy
//! DIR/ca.key   its private key, mode 0600; it stays here
//! DIR/NAME.pem certificate of the host or director NAME
//! DIR/NAME.key its private key, mode 0600
//! ```
//!
//! A certificate carries NAME as its DNS name (RFC 5280 section 4.2.1.6) and may be shown by both
//! ends of a link. Nothing can be revoked: what must end early gets few days. Files are written
//! under another name and renamed, so that a reader finds an old or a new one, and a private key
//! never had a wider mode.
#![forbid(unsafe_code)]

mod files;
mod show;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::DnsName;
use time::{Duration, OffsetDateTime};

use files::{publish, read};
pub use show::{Described, show};

/// Bytes of a name at most, as of every host and director.
pub const NAME_BYTES_MAX: usize = 63;
/// How long a CA is valid.
pub const CA_DAYS: i64 = 3650;
/// How long before its making a certificate is valid: clocks of hosts may be this late.
pub const CLOCK_SKEW_MAX: Duration = Duration::hours(1);

const PUBLIC: u32 = 0o644;
const PRIVATE: u32 = 0o600;

/// Why a CA, certificate or description is not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// There is a CA already.
    #[error("{} is there already; use another --dir, or remove it and ca.pem to begin anew: then \
             every certificate must be issued again", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file that is needed.
    #[error("cannot read {}; {next_step}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What to do.
        next_step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file that cannot be made.
    #[error("cannot write {}; choose a folder that is writable for this user", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A name that no certificate can carry.
    #[error(
        "name {name:?} is not usable; use 1 to {NAME_BYTES_MAX} letters, digits, '-' and '_', not \
         only digits, no '-' at the ends, and not ca"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// More days than the CA has.
    #[error("{days} days are more than the {days_left} that the CA is still valid; use fewer")]
    TooLong {
        /// What was asked for.
        days: i64,
        /// What is left.
        days_left: i64,
    },
    /// The CA's files are damaged or not of one CA.
    #[error("{} and ca.key are not of one CA; restore both from one backup", path.display())]
    NotOneCa {
        /// Its certificate.
        path: PathBuf,
    },
    /// A file without a certificate.
    #[error("{} has no certificate in PEM; name a .pem file", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A key or certificate cannot be made or read.
    #[error("{} cannot be used; restore it or make it again", path.display())]
    Certificate {
        /// The file it is or was to become.
        path: PathBuf,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
}

/// What a certificate is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Name of the host or director, as in the lab file.
    pub name: String,
    /// Days it is valid from now; none or fewer make one that has expired, for tests.
    pub days: i64,
    /// Addresses it may be reached at, for other programs: links compare names only.
    pub addresses: Vec<IpAddr>,
}

impl Order {
    /// A certificate for `name` that is valid for `days`.
    #[must_use]
    pub fn new(name: &str, days: i64) -> Self {
        Self {
            name: name.to_owned(),
            days,
            addresses: Vec::new(),
        }
    }
}

/// Where a certificate and its key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Makes a CA in `dir`, which is made as well.
///
/// # Errors
/// [`PkiError::Exists`] if there is one; then nothing has changed.
pub fn init(dir: &Path) -> Result<(), PkiError> {
    let (cert, key) = ca_files(dir);
    for path in [&key, &cert] {
        if path.exists() {
            return Err(PkiError::Exists { path: path.clone() });
        }
    }
    std::fs::create_dir_all(dir).map_err(|source| PkiError::Write {
        path: dir.to_owned(),
        source,
    })?;
    let refused = |source| PkiError::Certificate {
        path: cert.clone(),
        source,
    };
    let key_pair = KeyPair::generate().map_err(refused)?;
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - CLOCK_SKEW_MAX;
    params.not_after = now + Duration::days(CA_DAYS);
    // Each CA has a name of its own, so that a certificate of another is told from a forged one.
    let id: String = params
        .key_identifier(&key_pair)
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Orimono CA {id}"));
    let certificate = params.self_signed(&key_pair).map_err(refused)?;
    publish(&key, &key_pair.serialize_pem(), PRIVATE, false)?;
    publish(&cert, &certificate.pem(), PUBLIC, false)
}

/// Makes the certificate of a host or director with the CA in `dir`; an older one is replaced, key
/// and all.
///
/// # Errors
/// There is no CA, or it cannot make this certificate.
pub fn issue(dir: &Path, order: &Order) -> Result<Issued, PkiError> {
    check_name(&order.name)?;
    let issued = Issued {
        cert: dir.join(format!("{}.pem", order.name)),
        key: dir.join(format!("{}.key", order.name)),
    };
    let refused = |source| PkiError::Certificate {
        path: issued.cert.clone(),
        source,
    };
    let now = OffsetDateTime::now_utc();
    let (issuer, ca_not_after) = authority(dir)?;
    let not_after = now + Duration::days(order.days);
    if not_after > ca_not_after {
        return Err(PkiError::TooLong {
            days: order.days,
            days_left: (ca_not_after - now).whole_days(),
        });
    }
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, order.name.as_str());
    let name = order.name.as_str().try_into().map_err(refused)?;
    params.subject_alt_names.push(SanType::DnsName(name));
    params
        .subject_alt_names
        .extend(order.addresses.iter().copied().map(SanType::IpAddress));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    params.not_before = now.min(not_after) - CLOCK_SKEW_MAX;
    params.not_after = not_after;
    let key_pair = KeyPair::generate().map_err(refused)?;
    let certificate = params.signed_by(&key_pair, &issuer).map_err(refused)?;
    publish(&issued.key, &key_pair.serialize_pem(), PRIVATE, true)?;
    publish(&issued.cert, &certificate.pem(), PUBLIC, true)?;
    Ok(issued)
}

fn ca_files(dir: &Path) -> (PathBuf, PathBuf) {
    (dir.join("ca.pem"), dir.join("ca.key"))
}

/// The CA in `dir`, and how long it is valid.
fn authority(dir: &Path) -> Result<(Issuer<'static, KeyPair>, OffsetDateTime), PkiError> {
    const NEXT_STEP: &str = "make a CA there with `orimono-pki init`, or name its --dir";
    let (cert, key) = ca_files(dir);
    let cert_pem = read(&cert, NEXT_STEP)?;
    let key_pem = read(&key, NEXT_STEP)?;
    let key_pair = KeyPair::from_pem(&key_pem)
        .map_err(|source| PkiError::Certificate { path: key, source })?;
    let (not_after, public_key) = show::ca(&cert, &cert_pem)?;
    if public_key != key_pair.public_key_raw() {
        return Err(PkiError::NotOneCa { path: cert });
    }
    let issuer = Issuer::from_ca_cert_pem(&cert_pem, key_pair)
        .map_err(|source| PkiError::Certificate { path: cert, source })?;
    Ok((issuer, not_after))
}

fn check_name(name: &str) -> Result<(), PkiError> {
    let usable = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        && DnsName::try_from(name).is_ok()
        // Its files would be those of the CA.
        && !name.eq_ignore_ascii_case("ca");
    if usable {
        return Ok(());
    }
    Err(PkiError::Name {
        name: name.to_owned(),
    })
}

#[cfg(test)]
mod tests;
