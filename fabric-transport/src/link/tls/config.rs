//! The certificate of this process, and whom it trusts; read again when the files change.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::verify::DirectorVerifier;

/// Where the certificates are, all in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the CAs that peers may be of.
    pub ca: PathBuf,
    /// Certificate of this process and, behind it, those between it and the CA.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file that cannot be read.
    #[error("cannot read {}; make it readable for this user, or correct its path", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file without what it is for.
    #[error("{} has no {what} in PEM; make it again", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What it should have.
        what: &'static str,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// A CA that cannot be one.
    #[error("{} has a certificate that is no CA's; name the one of the CA", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<rustls::Error>,
    },
    /// A CA that cannot verify anybody.
    #[error("{} cannot be used to verify peers; make it again", path.display())]
    Verifier {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<VerifierBuilderError>,
    },
    /// Certificate and key are not of each other, or of a kind that is not known.
    #[error("{} and {} do not fit together; issue both again", cert.display(), key.display())]
    Pair {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        #[source]
        source: Box<rustls::Error>,
    },
}

/// The certificate of this process and the CA of its peers.
///
/// Each new link looks whether the files have changed, and reads them again if so. Running links
/// keep what they began with. While new files cannot be used (certificate and key are replaced one
/// after the other), the old ones stay in force; the log says so once for each change.
#[derive(Debug)]
pub struct TlsConfig {
    files: TlsFiles,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    loaded: Loaded,
    /// Of the files that were looked at last, usable or not.
    stamps: [Option<Stamp>; 3],
}

/// What both kinds of ends are made of.
#[derive(Debug, Clone)]
pub(super) struct Loaded {
    pub(super) client: Arc<ClientConfig>,
    pub(super) server: Arc<ServerConfig>,
}

/// Tells a file from its successor: a renamed one has another inode, whatever its times are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    modified: (i64, i64),
    bytes: u64,
}

impl From<Metadata> for Stamp {
    fn from(metadata: Metadata) -> Self {
        Self {
            inode: (metadata.dev(), metadata.ino()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            bytes: metadata.len(),
        }
    }
}

impl TlsConfig {
    /// Reads `files`.
    ///
    /// # Errors
    /// [`TlsError`], which names the file.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        // Before reading: a change in between is found by the next link.
        let stamps = files.stamps();
        let loaded = files.load()?;
        Ok(Self {
            files,
            state: Mutex::new(State { loaded, stamps }),
        })
    }

    /// What a new link is made of.
    pub(super) fn current(&self) -> Loaded {
        let stamps = self.files.stamps();
        let mut state = self.lock();
        if state.stamps != stamps {
            state.stamps = stamps;
            let ca = self.files.ca.display();
            let cert = self.files.cert.display();
            match self.files.load() {
                Ok(loaded) => {
                    state.loaded = loaded;
                    tracing::info!(%ca, %cert, "certificates of links loaded again");
                }
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, cause, "certificates of links changed, old ones stay");
                }
            }
        }
        state.loaded.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent between any two statements: a panic elsewhere changes nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TlsFiles {
    fn stamps(&self) -> [Option<Stamp>; 3] {
        [&self.ca, &self.cert, &self.key].map(|path| path.metadata().ok().map(Stamp::from))
    }

    fn load(&self) -> Result<Loaded, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots
                .add(certificate)
                .map_err(|source| TlsError::Authority {
                    path: self.ca.clone(),
                    source: Box::new(source),
                })?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(&self.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?)
            .map_err(|source| missing(&self.key, "private key", source))?;
        let pair = |source| TlsError::Pair {
            cert: self.cert.clone(),
            key: self.key.clone(),
            source: Box::new(source),
        };

        let provider = Arc::new(provider());
        let verifier = DirectorVerifier {
            roots: roots.clone(),
            algorithms: provider.signature_verification_algorithms,
        };
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(pair)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(pair)?;
        // Every session proves anew who the peers are.
        client.resumption = Resumption::disabled();
        client.enable_sni = false;

        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|source| TlsError::Verifier {
                path: self.ca.clone(),
                source: Box::new(source),
            })?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(pair)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(pair)?;
        server.send_tls13_tickets = 0;
        Ok(Loaded {
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }
}

/// The cipher that costs least first; where a processor has no AES, the peers are two of a kind
/// all the same.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
            ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
            ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..ring::default_provider()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

fn missing(path: &Path, what: &'static str, source: pem::Error) -> TlsError {
    TlsError::Missing {
        path: path.to_owned(),
        what,
        source,
    }
}

/// The certificates in `path`, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(missing(path, "certificate", pem::Error::NoItemsFound)),
        Err(source) => Err(missing(path, "certificate", source)),
    }
}
