//! A SCSI disk of this machine, by the SG_IO ioctl (version 3; `/dev/sgN`, also `/dev/sdX`).
//!
//! The kernel's ioctl waits for the command, so a few threads of the device wait in place of those
//! who ask. A command that runs cannot be called back; the kernel itself ends it after the timeout.

mod sys;

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use iscsi_initiator::{Answer, Command, Outcome, Residual, TaskTag, Transfer};
use scsi_target::{AdditionalSense, Sense, SenseFormat, SenseKey, Status};

use super::{Done, Resetting, Target};

/// Commands of a device at a time; the kernel takes 16 of an open file.
const THREADS: usize = 8;

// include/scsi/scsi_status.h, drivers/scsi.
const DID_OK: u16 = 0x00;
const DID_NO_CONNECT: u16 = 0x01;
const DID_BUS_BUSY: u16 = 0x02;
const DID_BAD_TARGET: u16 = 0x04;
const DID_TRANSPORT_FAILFAST: u16 = 0x0f;
const DID_TRANSPORT_DISRUPTED: u16 = 0x0e;

/// Why a SCSI device cannot be a unit; ends with the next step.
#[derive(Debug, thiserror::Error)]
pub enum SgError {
    /// It cannot be opened.
    #[error("cannot open SCSI device {}; see lsscsi -g, and correct the path or its permissions", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It does not know SG_IO.
    #[error("{} is no SCSI device; choose a /dev/sgN that lsscsi -g shows", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No threads.
    #[error("cannot start a thread; raise the process's limits")]
    Thread(#[source] io::Error),
}

enum Job {
    Command(Command, Done),
    Reset(Resetting),
}

/// An open device. Its threads end with it, once what they wait for is over.
#[derive(Debug)]
pub(super) struct SgDevice {
    jobs: mpsc::Sender<Job>,
}

impl SgDevice {
    /// Opens `path`; a command may take as long as `timeout`.
    ///
    /// # Errors
    /// [`SgError`].
    pub(super) fn open(path: &Path, timeout: Duration) -> Result<Self, SgError> {
        let opened = OpenOptions::new().read(true).write(true).open(path);
        let file = opened.map_err(|source| SgError::Open {
            path: path.to_owned(),
            source,
        })?;
        sys::version(&file).map_err(|source| SgError::Kind {
            path: path.to_owned(),
            source,
        })?;
        let file = Arc::new(file);
        let (jobs, waiting) = mpsc::channel();
        let waiting = Arc::new(Mutex::new(waiting));
        for number in 0..THREADS {
            let (file, waiting) = (file.clone(), waiting.clone());
            let thread = std::thread::Builder::new().name(format!("sg {number}"));
            let serve = move || serve(&file, &waiting, timeout);
            thread.spawn(serve).map_err(SgError::Thread)?;
        }
        Ok(Self { jobs })
    }
}

fn serve(file: &File, waiting: &Mutex<mpsc::Receiver<Job>>, timeout: Duration) {
    loop {
        let job = waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        match job {
            Ok(Job::Command(command, done)) => done(run(file, command, timeout)),
            Ok(Job::Reset(resetting)) => match sys::reset_device(file) {
                Ok(()) => resetting.complete(),
                Err(error) => tracing::warn!(%error, "SCSI device was not reset"),
            },
            Err(mpsc::RecvError) => return,
        }
    }
}

fn run(file: &File, command: Command, timeout: Duration) -> Outcome {
    let (transfer, mut data) = match command.transfer {
        Transfer::None => (sys::Transfer::None, Vec::new()),
        Transfer::In(bytes) => {
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            (sys::Transfer::In, vec![0; bytes])
        }
        Transfer::Out(data) => (sys::Transfer::Out, data),
    };
    let ended = sys::execute(file, &command.cdb, transfer, &mut data, timeout);
    if transfer != sys::Transfer::In {
        data.clear();
    }
    Outcome::Answered(match ended {
        Ok(ended) => answer(&ended, data),
        Err(error) => failed(&error),
    })
}

/// What the kernel says of a command that it took.
fn answer(ended: &sys::Ended, mut data_in: Vec<u8>) -> Answer {
    let moved = data_in.len().saturating_sub(ended.residual_bytes);
    data_in.truncate(moved);
    let residual = match u32::try_from(ended.residual_bytes) {
        Ok(0) | Err(_) => Residual::None,
        Ok(bytes) => Residual::Underflow(bytes),
    };
    if ended.host_status == DID_OK {
        return Answer {
            status: ended.status,
            sense: ended.sense.clone(),
            data_in,
            residual,
        };
    }
    match ended.host_status {
        DID_NO_CONNECT | DID_BAD_TARGET | DID_TRANSPORT_FAILFAST => not_ready(),
        DID_BUS_BUSY => busy(),
        // Timed out, reset, aborted, disrupted: it may have been executed.
        status => {
            let disrupted = status == DID_TRANSPORT_DISRUPTED;
            let ascq = if disrupted { 0x00 } else { 0x01 };
            check_condition(
                SenseKey::AbortedCommand,
                AdditionalSense { asc: 0x08, ascq },
            )
        }
    }
}

/// What it means that the kernel took no command.
fn failed(error: &io::Error) -> Answer {
    match error.raw_os_error() {
        Some(libc::ENODEV | libc::ENXIO) => not_ready(),
        // It runs on.
        Some(libc::EINTR) => check_condition(
            SenseKey::AbortedCommand,
            AdditionalSense { asc: 0x08, ascq: 0 },
        ),
        Some(libc::EAGAIN | libc::EBUSY | libc::EDOM | libc::ENOMEM) => busy(),
        // Its filter of commands.
        Some(libc::EPERM | libc::EACCES) => check_condition(
            SenseKey::IllegalRequest,
            AdditionalSense::INVALID_OPERATION_CODE,
        ),
        _ => check_condition(
            SenseKey::HardwareError,
            AdditionalSense::INTERNAL_TARGET_FAILURE,
        ),
    }
}

fn not_ready() -> Answer {
    let away = AdditionalSense::TARGET_PORT_UNAVAILABLE;
    check_condition(SenseKey::NotReady, away)
}

fn busy() -> Answer {
    Answer {
        status: Status::Busy.code(),
        ..Answer::default()
    }
}

fn check_condition(key: SenseKey, additional: AdditionalSense) -> Answer {
    Answer {
        status: Status::CheckCondition.code(),
        sense: Sense::new(key, additional).encode(SenseFormat::Fixed),
        ..Answer::default()
    }
}

impl Target for Arc<SgDevice> {
    fn submit(&self, command: Command, done: Done) -> Result<Option<TaskTag>, Command> {
        match self.jobs.send(Job::Command(command, done)) {
            Ok(()) => Ok(None),
            // No thread is left, which only a panic there brings about.
            Err(mpsc::SendError(Job::Command(command, _))) => Err(command),
            Err(mpsc::SendError(Job::Reset(_))) => Ok(None),
        }
    }

    fn abort(&self, _handles: &[TaskTag], _all: bool) {}

    fn reset(&self, resetting: Resetting) {
        // Without threads it is not carried out, which its drop says.
        drop(self.jobs.send(Job::Reset(resetting)));
    }

    fn has_own_nexus(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_scsi_device_is_named_with_the_next_step() {
        let open = |path: &str| {
            let timeout = Duration::from_secs(1);
            SgDevice::open(Path::new(path), timeout)
                .unwrap_err()
                .to_string()
        };
        assert!(open("/dev/null").starts_with("/dev/null is no SCSI device; choose"));
        assert!(
            open("/nonexistent/sg0").starts_with("cannot open SCSI device /nonexistent/sg0; see")
        );
    }

    #[test]
    fn what_the_kernel_says_becomes_status_and_sense() {
        let ended = |host_status, status, residual_bytes, sense: &[u8]| sys::Ended {
            status,
            host_status,
            residual_bytes,
            sense: sense.to_vec(),
        };
        let good = answer(&ended(DID_OK, 0, 60, &[]), vec![7; 96]);
        assert_eq!((good.status, good.data_in.len()), (0, 36));
        assert_eq!(good.residual, Residual::Underflow(60));
        let sense = [0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0];
        let told = answer(&ended(DID_OK, 2, 0, &sense), Vec::new());
        assert_eq!((told.status, told.sense.as_slice()), (2, &sense[..]));
        let code = |answer: Answer| {
            let byte = |at: usize| answer.sense.get(at).copied().unwrap_or_default();
            (answer.status, byte(2), byte(12), byte(13))
        };
        let host = |status| code(answer(&ended(status, 0, 0, &[]), vec![1; 8]));
        assert_eq!(host(DID_NO_CONNECT), (2, 2, 0x04, 0x0c));
        assert_eq!(host(DID_BUS_BUSY), (8, 0, 0, 0));
        assert_eq!(host(0x03), (2, 0xb, 0x08, 0x01), "timed out");
        assert_eq!(host(DID_TRANSPORT_DISRUPTED), (2, 0xb, 0x08, 0x00));
        let error = |number| code(failed(&io::Error::from_raw_os_error(number)));
        assert_eq!(error(libc::ENODEV), (2, 2, 0x04, 0x0c));
        assert_eq!(error(libc::EBUSY), (8, 0, 0, 0));
        assert_eq!(error(libc::EPERM), (2, 5, 0x20, 0));
        assert_eq!(error(libc::ENOTTY), (2, 4, 0x44, 0));
    }

    #[test]
    fn a_file_that_takes_no_scsi_commands_ends_them_with_sense() {
        let file = File::open("/dev/null").unwrap();
        let command = Command {
            lun: [0; 8],
            cdb: vec![0x12, 0, 0, 0, 96, 0],
            attribute: iscsi_initiator::TaskAttribute::Simple,
            transfer: Transfer::In(96),
        };
        let Outcome::Answered(answer) = run(&file, command, Duration::from_secs(1)) else {
            panic!("the kernel always answers");
        };
        assert_eq!(
            (answer.status, answer.sense[2], answer.sense[12]),
            (2, 4, 0x44)
        );
        assert_eq!(answer.data_in, [0; 0]);
    }
}
