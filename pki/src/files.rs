//! Reading and writing the files of a CA.

use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::PkiError;

pub(crate) fn read(path: &Path, next_step: &'static str) -> Result<String, PkiError> {
    std::fs::read_to_string(path).map_err(|source| PkiError::Read {
        path: path.to_owned(),
        next_step,
        source,
    })
}

/// Writes a file that is never seen half written or with a wider mode than `mode`.
pub(crate) fn publish(
    path: &Path,
    text: &str,
    mode: u32,
    may_replace: bool,
) -> Result<(), PkiError> {
    let write = || -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new()
            .prefix(".orimono-pki-")
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        if may_replace {
            file.persist(path)?;
        } else {
            file.persist_noclobber(path)?;
        }
        Ok(())
    };
    write().map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => PkiError::Exists {
            path: path.to_owned(),
        },
        _ => PkiError::Write {
            path: path.to_owned(),
            source,
        },
    })
}
