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
    /// Whether `tcp:` and `rdma:` may leave the machine.
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

    /// Whether a link may be made to `address`, which a datagram of discovery named. Anybody on the
    /// network may have sent it, so it may choose less than the operator:
    ///
    /// - No file of this machine, `unix:` or `shm:`. Both would bring the greeting to whatever socket
    ///   the sender likes, behind which nothing proves who it is.
    /// - With a certificate nothing but `tls:`, neither on loopback nor with `insecure`: otherwise
    ///   whoever answers first takes the encryption away.
    ///
    /// # Errors
    /// [`LinkRefused`].
    pub fn check_discovered(&self, address: &LinkAddress) -> Result<(), LinkRefused> {
        let refusal = match address {
            LinkAddress::Unix(_) | LinkAddress::SharedMemory(_) => {
                |address| LinkRefused::DiscoveredFile { address }
            }
            LinkAddress::Tcp(_) | LinkAddress::Rdma(_) if self.tls.is_some() => {
                |address| LinkRefused::Downgrade { address }
            }
            LinkAddress::Tcp(_) | LinkAddress::Rdma(_) | LinkAddress::Tls(_) => {
                return self.check(address);
            }
        };
        Err(refusal(address.clone()))
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
    /// Discovery named it, and it would do without the certificate that this process has.
    #[error(
        "{address} is without encryption and this process has a certificate; have the director listen on tls:"
    )]
    Downgrade {
        /// The address.
        address: LinkAddress,
    },
    /// Discovery named it, and it is a file.
    #[error("{address} is a file, which discovery may not choose; write it into director")]
    DiscoveredFile {
        /// The address.
        address: LinkAddress,
    },
    /// This program was built without RDMA.
    #[error(
        "{address} needs RDMA, which this program was built without: build it with \
         `--features fabric-transport/rdma`"
    )]
    NoRdma {
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
    /// Whether a process with or without a certificate may have a link at `address`: plain TCP and
    /// RDMA must be on loopback, unless they are wanted to be `insecure`.
    ///
    /// # Errors
    /// It may not.
    pub fn check(address: &LinkAddress, has_certificate: bool, insecure: bool) -> Result<(), Self> {
        let refusal = match address {
            LinkAddress::Rdma(_) if !cfg!(feature = "rdma") => |address| Self::NoRdma { address },
            LinkAddress::Tcp(socket) | LinkAddress::Rdma(socket)
                if !insecure && !socket.ip().to_canonical().is_loopback() =>
            {
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
