//! How the processes of a lab secure their links.

use std::sync::Arc;

use fabric_transport::link::{LinkAddress, LinkOptions, TlsConfig, TlsError, TlsFiles};

/// What stands for the name of the host or director in the path of its certificate or key.
const NAME: &str = "{name}";

/// `insecure` and `[tls]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkSecurity {
    /// Where certificates are, if there are any.
    pub tls: Option<TlsPaths>,
    /// Whether `tcp:` may leave the machine.
    pub insecure: bool,
}

/// Absolute paths, in which `{name}` stands for the host or director whose process it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsPaths {
    /// Certificates of the CA.
    pub ca: String,
    /// Certificate of the process.
    pub cert: String,
    /// Its private key.
    pub key: String,
}

impl TlsPaths {
    /// The files of the host or director called `name`.
    #[must_use]
    pub fn of(&self, name: &str) -> TlsFiles {
        TlsFiles {
            ca: self.ca.replace(NAME, name).into(),
            cert: self.cert.replace(NAME, name).into(),
            key: self.key.replace(NAME, name).into(),
        }
    }
}

impl LinkSecurity {
    /// How the host or director called `name` makes links at `addresses`. The certificates are
    /// read if one of them is `tls:`.
    ///
    /// # Errors
    /// They cannot be used.
    pub fn options(&self, name: &str, addresses: &[LinkAddress]) -> Result<LinkOptions, TlsError> {
        let secure = |address| matches!(address, &LinkAddress::Tls(_));
        if addresses.iter().any(secure) {
            self.options_for_any(name)
        } else {
            Ok(LinkOptions {
                insecure: self.insecure,
                ..LinkOptions::default()
            })
        }
    }

    /// The same for addresses that are not known yet: the certificates are read if there are any.
    ///
    /// # Errors
    /// They cannot be used.
    pub fn options_for_any(&self, name: &str) -> Result<LinkOptions, TlsError> {
        let files = self.tls.as_ref().map(|paths| paths.of(name));
        let tls = files.map(TlsConfig::load).transpose()?.map(Arc::new);
        Ok(LinkOptions {
            tls,
            director: None,
            insecure: self.insecure,
        })
    }
}
