//! Which links may be made.

use std::io;
use std::sync::Arc;

use super::{LinkAddress, TlsConfig};

/// What a process may and must do on its links.
#[derive(Debug, Clone, Default)]
pub struct LinkOptions {
    /// The certificate of this process and its CA, for `tls:` addresses.
    pub tls: Option<Arc<TlsConfig>>,
    /// The director that is connected to. Its certificate must carry this name; without one, any
    /// certificate of the CA will do.
    pub director: Option<String>,
    /// Whether `tcp:` may leave the machine.
    pub insecure: bool,
}

impl LinkOptions {
    /// Whether a link may be made to or at `address`.
    ///
    /// # Errors
    /// [`LinkRefused`].
    pub fn check(&self, address: &LinkAddress) -> Result<(), LinkRefused> {
        LinkRefused::check(address, self.tls.is_some(), self.insecure)
    }
}

/// Why no link is made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkRefused {
    /// Anybody on the way could read and change it.
    #[error("{address} leaves this machine without encryption; use tls:, or set insecure = true")]
    Insecure {
        /// The address.
        address: LinkAddress,
    },
    /// No certificate for TLS.
    #[error("{address} needs a certificate; set ca, cert and key of tls")]
    NoCertificate {
        /// The address.
        address: LinkAddress,
    },
}

impl LinkRefused {
    /// Whether a process with or without a certificate may have a link at `address`: plain TCP
    /// must be on loopback, unless it is wanted to be `insecure`.
    ///
    /// # Errors
    /// It may not.
    pub fn check(address: &LinkAddress, has_certificate: bool, insecure: bool) -> Result<(), Self> {
        let refusal = match address {
            LinkAddress::Tcp(socket) if !insecure && !socket.ip().to_canonical().is_loopback() => {
                |address| Self::Insecure { address }
            }
            LinkAddress::Tls(_) if !has_certificate => |address| Self::NoCertificate { address },
            _ => return Ok(()),
        };
        Err(refusal(address.clone()))
    }
}

impl From<LinkRefused> for io::Error {
    fn from(refused: LinkRefused) -> Self {
        Self::new(io::ErrorKind::PermissionDenied, refused)
    }
}
