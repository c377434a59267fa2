//! What is said with a program at its control socket.
//!
//! One that does not know what it is asked gets SIGHUP, if it left its number in `pid`. One that would
//! end by SIGHUP leaves none.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use fabric_config::{Outcome, Report};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;
use qos_monitor::DeviceState;
use qos_monitor::protocol::{Answer, Request};
use serde::de::DeserializeOwned;

/// How long a program may take to apply a file.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of an answer at most: a line for each of thousands of objects.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Fields that are not in force, and why, by object.
pub(super) type Pending = BTreeMap<String, BTreeMap<String, String>>;

/// What became of a file.
pub(super) enum Told {
    /// What became of each object.
    Report(Report),
    /// Nobody can say.
    Unknown,
    /// The program says no and not of what.
    Refused(String),
}

/// A connection to a program.
pub(super) struct Connection {
    stream: UnixStream,
    /// Its process number.
    pub(super) process: i32,
}

impl Connection {
    /// To the program whose files are in `folder`.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(folder.join("control.sock"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let process = getsockopt(&stream, PeerCredentials)?.pid();
        Ok(Self { stream, process })
    }

    /// Has it take its lab file anew.
    pub(super) fn apply(&mut self, folder: &Path) -> Told {
        match self.ask::<Report>(&Request::Apply {}) {
            Ok(Answer::Ok(report)) => Told::Report(report),
            Ok(Answer::Error(reason)) if reason.contains("unknown variant") => {
                hang_up(folder);
                Told::Unknown
            }
            Ok(Answer::Error(reason)) => Told::Refused(reason),
            Err(error) => Told::Refused(format!("it does not answer: {error}")),
        }
    }

    /// The devices that it has.
    pub(super) fn devices(&mut self) -> Result<Vec<DeviceState>, String> {
        match self.ask(&Request::Devices {}) {
            Ok(Answer::Ok(devices)) => Ok(devices),
            Ok(Answer::Error(reason)) => Err(reason),
            Err(error) => Err(format!("it does not answer: {error}")),
        }
    }

    fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> io::Result<Answer<T>> {
        let mut request = serde_json::to_vec(request)?;
        request.push(b'\n');
        self.stream.write_all(&request)?;
        let mut line = String::new();
        // It says nothing more until it is asked, so nothing is lost with the buffer.
        BufReader::new((&self.stream).take(ANSWER_BYTES_MAX)).read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}

/// What of a report is not in force.
pub(super) fn pending(report: &Report) -> Pending {
    let mut pending = Pending::new();
    for applied in &report.objects {
        let Outcome::Failed(reason) = &applied.outcome else {
            continue;
        };
        let fields = match applied.fields.is_empty() {
            true => vec!["all".to_owned()],
            false => applied.fields.clone(),
        };
        let fields = fields.into_iter().map(|field| (field, reason.clone()));
        let object = applied.object.clone();
        pending.entry(object).or_default().extend(fields);
    }
    pending
}

/// Tells a program without a socket.
pub(super) fn hang_up(folder: &Path) {
    let Ok(text) = fs::read_to_string(folder.join("pid")) else {
        return;
    };
    let Some(pid) = text.trim().parse().ok().filter(|pid| *pid > 1) else {
        tracing::warn!(folder = %folder.display(), "pid is no process number: nobody is told");
        return;
    };
    if let Err(error) = kill(Pid::from_raw(pid), Signal::SIGHUP) {
        tracing::warn!(pid, %error, "cannot be told of its new lab file");
    }
}
