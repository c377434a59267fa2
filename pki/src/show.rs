//! What a certificate says.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use ring::digest::{SHA256, digest};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;

use crate::PkiError;
use crate::files::read;

/// What an operator wants to know of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its DNS names; of a CA, which has none, the common name.
    pub names: Vec<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Who signed it.
    pub issuer: String,
    /// The first second it is valid.
    pub not_before: OffsetDateTime,
    /// The last second it is valid.
    pub not_after: OffsetDateTime,
    /// SHA-256 of its DER.
    pub fingerprint: [u8; 32],
}

impl Described {
    fn new(certificate: &X509Certificate<'_>, der: &[u8]) -> Self {
        let mut names = Vec::new();
        let mut addresses = Vec::new();
        let alternative = certificate.subject_alternative_name().ok().flatten();
        for name in alternative
            .iter()
            .flat_map(|names| &names.value.general_names)
        {
            match name {
                GeneralName::DNSName(name) => names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
                _ => {}
            }
        }
        if names.is_empty() {
            names.push(certificate.subject().to_string());
        }
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest(&SHA256, der).as_ref());
        Self {
            names,
            addresses,
            issuer: certificate.issuer().to_string(),
            not_before: certificate.validity().not_before.to_datetime(),
            not_after: certificate.validity().not_after.to_datetime(),
            fingerprint,
        }
    }

    /// Whether it is valid at `time`.
    #[must_use]
    pub fn is_valid_at(&self, time: OffsetDateTime) -> bool {
        (self.not_before..=self.not_after).contains(&time)
    }
}

impl fmt::Display for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |time: OffsetDateTime| time.format(&Rfc3339).map_err(|_year| fmt::Error);
        writeln!(f, "name         {}", self.names.join(", "))?;
        for address in &self.addresses {
            writeln!(f, "address      {address}")?;
        }
        writeln!(f, "issuer       {}", self.issuer)?;
        writeln!(f, "valid from   {}", time(self.not_before)?)?;
        let now = OffsetDateTime::now_utc();
        let state = match (now < self.not_before, self.is_valid_at(now)) {
            (true, _) => "not valid yet".to_owned(),
            (false, true) => format!("{} days left", (self.not_after - now).whole_days()),
            (false, false) => "expired".to_owned(),
        };
        writeln!(f, "valid until  {} ({state})", time(self.not_after)?)?;
        let bytes: Vec<_> = self
            .fingerprint
            .iter()
            .map(|byte| format!("{byte:02X}"))
            .collect();
        write!(f, "fingerprint  SHA-256 {}", bytes.join(":"))
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// Describes the certificates in `file`, in their order.
///
/// # Errors
/// It cannot be read, or has none.
pub fn show(file: &Path) -> Result<Vec<Described>, PkiError> {
    let text = read(file, "name a .pem file that is readable for this user")?;
    let described: Option<Vec<_>> = Pem::iter_from_buffer(text.as_bytes())
        .map(|pem| {
            let pem = pem.ok().filter(|pem| pem.label == "CERTIFICATE")?;
            let certificate = pem.parse_x509().ok()?;
            Some(Described::new(&certificate, &pem.contents))
        })
        .collect();
    described
        .filter(|all| !all.is_empty())
        .ok_or_else(|| PkiError::NoCertificate {
            path: file.to_owned(),
        })
}

/// How long the CA in `pem`, which was read from `path`, is valid, and its public key.
pub(crate) fn ca(path: &Path, pem: &str) -> Result<(OffsetDateTime, Vec<u8>), PkiError> {
    let missing = || PkiError::NoCertificate {
        path: path.to_owned(),
    };
    let first = Pem::iter_from_buffer(pem.as_bytes()).next();
    let first = first.and_then(Result::ok).ok_or_else(missing)?;
    let certificate = first.parse_x509().map_err(|_parse| missing())?;
    let not_after = certificate.validity().not_after.to_datetime();
    let key = &certificate.public_key().subject_public_key.data;
    Ok((not_after, key.to_vec()))
}
