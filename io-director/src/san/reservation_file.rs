//! Where the persistent reservations of a logical unit outlive the director: a file beside its
//! medium, `FILE.reservations`, in the format of `scsi-target` (docs/adr/0016).
//!
//! It is written beside its name, synced and renamed, so that it is whole at every moment, and it
//! is there only while there are reservations to keep. A director that shares its units writes it
//! only while it has claimed them: the other one has the file at all other times.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use scsi_target::{ReservationStore, ReservationStoreError};

/// Most that a unit stores.
const BYTES_MAX: u64 = 3 * 1024;

/// The file of one logical unit.
#[derive(Debug)]
pub(super) struct ReservationFile {
    path: PathBuf,
    /// Whether another director may go on with the unit.
    shared: bool,
    /// Whether this director has the file; held while it is written.
    claimed: Mutex<bool>,
}

impl ReservationFile {
    /// The file beside `medium`; not this director's before [`Self::claim`].
    pub(super) fn beside(medium: &Path, shared: bool) -> Self {
        Self {
            path: with_suffix(medium, ".reservations"),
            shared,
            claimed: Mutex::new(false),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What was stored last, empty if nothing; from now on the file is this director's. One that
    /// is too long is returned longer than any that was stored.
    ///
    /// # Errors
    /// It cannot be read; it is not this director's.
    pub(super) fn claim(&self) -> io::Result<Vec<u8>> {
        let mut claimed = self.lock();
        let mut bytes = Vec::new();
        match File::open(&self.path) {
            Ok(file) => {
                file.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        *claimed = true;
        Ok(bytes)
    }

    /// Waits for what is being stored; from now on the file is another director's.
    pub(super) fn give_up(&self) {
        *self.lock() = false;
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            match fs::remove_file(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            }
        } else {
            let new = with_suffix(&self.path, ".new");
            let mut file = File::create(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
        }
        let folder = self.path.parent().filter(|path| path != &Path::new(""));
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

impl ReservationStore for ReservationFile {
    fn store(&self, reservations: &[u8]) -> Result<(), ReservationStoreError> {
        let claimed = self.lock();
        if !*claimed {
            return Err(ReservationStoreError);
        }
        self.replace(reservations).map_err(|error| {
            let path = self.path.display();
            tracing::error!(%error, %path, "reservations not stored, make room or correct permissions");
            ReservationStoreError
        })
    }

    fn keeps_all(&self) -> bool {
        self.shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_is_there_and_an_empty_store_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = ReservationFile::beside(&folder.path().join("lun.img"), false);
        assert_eq!(file.claim().unwrap(), [0; 0]);
        file.store(&[]).unwrap();
        file.store(b"one").unwrap();
        file.store(b"two").unwrap();
        assert_eq!(
            fs::read(folder.path().join("lun.img.reservations")).unwrap(),
            b"two"
        );
        assert_eq!(file.claim().unwrap(), b"two");
        file.store(&[]).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_who_claimed_the_file_writes_it() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = [true, true]
            .map(|shared| ReservationFile::beside(&folder.path().join("lun.img"), shared));
        assert_eq!(first.store(b"one"), Err(ReservationStoreError));
        first.claim().unwrap();
        first.store(b"one").unwrap();
        first.give_up();
        assert_eq!(second.claim().unwrap(), b"one");
        assert_eq!(first.store(b"late"), Err(ReservationStoreError));
        assert_eq!(fs::read(second.path()).unwrap(), b"one");
    }

    #[test]
    fn store_that_fails_says_so_and_keeps_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = ReservationFile::beside(&folder.path().join("lun.img"), false);
        file.claim().unwrap();
        file.store(b"one").unwrap();
        // The name of the new file is taken by a folder.
        fs::create_dir(folder.path().join("lun.img.reservations.new")).unwrap();
        assert_eq!(file.store(b"two"), Err(ReservationStoreError));
        assert_eq!(file.claim().unwrap(), b"one");
        fs::write(file.path(), [1; 5000]).unwrap();
        assert!(file.claim().unwrap().len() > 3 * 1024);
    }
}
