//! What the lab file says of a unit of others, opened and checked.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fabric_config::{ChapConfig, Digests, IscsiConfig, LunConfig, MediumConfig};
use iscsi_initiator::{
    ChapCredential, ConnectionError, Credentials, DigestPolicy, IscsiName, NameError, Offer,
    Options, Target as IscsiAddress, lun_field,
};
use scsi_target::{BlockDevice, MediumError, MediumErrorKind, Provisioning};

use super::iscsi::IscsiTarget;
use super::sg::{SgDevice, SgError};
use super::{PassThrough, Target};

/// Longest secret file: more than any secret.
const SECRET_FILE_BYTES_MAX: u64 = 4096;

/// Why a unit of others cannot be served; ends with the next step.
#[derive(Debug, thiserror::Error)]
pub enum PassThroughError {
    /// A name or credential.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The secret cannot be read.
    #[error("cannot read secret-file {}; make it, readable by the director", path.display())]
    Secret {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others may read the secret.
    #[error(
        "secret-file {} has mode {mode:04o}; it must be a file that only its owner reads (chmod 600)",
        path.display()
    )]
    SecretMode {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// No session can be started.
    #[error("cannot start an iSCSI session; raise the process's limits")]
    Session(#[source] ConnectionError),
    /// The SCSI device.
    #[error(transparent)]
    Sg(#[from] SgError),
    /// An id that has no room in an ISID.
    #[error("id {id} of the vHBA is too large for iSCSI; use one below 16777216")]
    DeviceId {
        /// The id.
        id: u32,
    },
}

#[derive(Debug)]
enum Route {
    Iscsi {
        address: Box<IscsiAddress>,
        options: Options,
        lun: [u8; 8],
    },
    Sg(Arc<SgDevice>),
}

/// A unit of others. Shows no secret.
#[derive(Debug)]
pub(in crate::san) struct PassThroughUnit {
    route: Route,
    timeout: Duration,
    read_only: bool,
}

impl PassThroughUnit {
    /// The unit of `config`; `None` if its medium is ours. An iSCSI target need not be there.
    ///
    /// # Errors
    /// [`PassThroughError`].
    pub(in crate::san) fn open(config: &LunConfig) -> Result<Option<Self>, PassThroughError> {
        let route = match &config.medium {
            MediumConfig::Iscsi(iscsi) => iscsi_route(iscsi)?,
            MediumConfig::Sg { path } => Route::Sg(Arc::new(SgDevice::open(path, config.timeout)?)),
            _ => return Ok(None),
        };
        Ok(Some(Self {
            route,
            timeout: config.timeout,
            read_only: config.read_only,
        }))
    }

    pub(super) const fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(in crate::san) const fn read_only(&self) -> bool {
        self.read_only
    }

    pub(super) fn connect(
        &self,
        pass_through: &Arc<PassThrough>,
        port: (u32, u16),
    ) -> Result<Box<dyn Target>, PassThroughError> {
        Ok(match &self.route {
            Route::Iscsi {
                address,
                options,
                lun,
            } => Box::new(IscsiTarget::start(
                (**address).clone(),
                *options,
                *lun,
                pass_through,
                port,
            )?),
            Route::Sg(device) => {
                pass_through.reachable();
                Box::new(device.clone())
            }
        })
    }
}

fn iscsi_route(config: &IscsiConfig) -> Result<Route, PassThroughError> {
    let name = |text: &String| text.parse::<IscsiName>();
    let credentials = match &config.chap {
        None => Credentials::None,
        Some(ChapConfig { user, secret_file }) => {
            Credentials::Chap(ChapCredential::new(user, &secret(secret_file)?)?)
        }
    };
    let digest = match config.digests {
        Digests::None => DigestPolicy::Never,
        Digests::Preferred => DigestPolicy::Preferred,
        Digests::Required => DigestPolicy::Required,
    };
    Ok(Route::Iscsi {
        address: Box::new(IscsiAddress {
            portal: config.portal,
            name: name(&config.target)?,
            initiator: name(&config.initiator)?,
            credentials,
        }),
        options: Options {
            offer: Offer {
                header_digest: digest,
                data_digest: digest,
                ..Offer::default()
            },
            ..Options::default()
        },
        // The lab file has none above.
        lun: lun_field(config.target_lun).unwrap_or_default(),
    })
}

/// The content of a file that only its owner may read, without a line end.
fn secret(path: &Path) -> Result<Vec<u8>, PassThroughError> {
    let failed = |source| PassThroughError::Secret {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    // Of what was opened: the path may lead elsewhere by now.
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.mode() & 0o7777;
    if !metadata.is_file() || mode & 0o077 != 0 {
        let path = path.to_owned();
        return Err(PassThroughError::SecretMode { path, mode });
    }
    let mut secret = Vec::new();
    file.take(SECRET_FILE_BYTES_MAX)
        .read_to_end(&mut secret)
        .map_err(failed)?;
    if secret.last() == Some(&b'\n') {
        secret.pop();
    }
    Ok(secret)
}

/// Stands in the LUN map for a unit of others, which answers in its place; has unit attentions of
/// its own and no blocks.
#[derive(Debug)]
pub(in crate::san) struct StandIn;

impl StandIn {
    const fn nothing<T>() -> Result<T, MediumError> {
        Err(MediumError {
            kind: MediumErrorKind::Unavailable,
            lba: None,
        })
    }
}

impl BlockDevice for StandIn {
    fn block_bytes(&self) -> u32 {
        512
    }

    fn block_count(&self) -> u64 {
        1
    }

    fn read_only(&self) -> bool {
        true
    }

    fn provisioning(&self) -> Provisioning {
        Provisioning::Full
    }

    fn read(&self, _lba: u64, _buffer: &mut [u8]) -> Result<(), MediumError> {
        Self::nothing()
    }

    fn write(&self, _lba: u64, _data: &[u8], _fua: bool) -> Result<(), MediumError> {
        Self::nothing()
    }

    fn flush(&self) -> Result<(), MediumError> {
        Self::nothing()
    }

    fn unmap(&self, _lba: u64, _blocks: u64) -> Result<(), MediumError> {
        Self::nothing()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_is_read_only_from_a_file_that_others_cannot_read() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"s3cr3t-s3cr3t\n").unwrap();
        let mode = |mode| {
            let permissions = std::fs::Permissions::from_mode(mode);
            file.as_file().set_permissions(permissions).unwrap();
        };
        for open in [0o640, 0o604, 0o666] {
            mode(open);
            let error = secret(file.path()).unwrap_err();
            assert!(matches!(error, PassThroughError::SecretMode { .. }));
            let error = error.to_string();
            assert!(error.contains(&format!("mode 0{open:o}")), "{error}");
            assert!(error.ends_with("(chmod 600)") && !error.contains("s3cr3t"));
        }
        mode(0o600);
        assert_eq!(secret(file.path()).unwrap(), b"s3cr3t-s3cr3t");
        let missing = secret(Path::new("/nonexistent/chap")).unwrap_err();
        assert!(missing.to_string().ends_with("readable by the director"));
    }
}
