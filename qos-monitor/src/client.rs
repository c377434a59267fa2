//! The other end of the control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fabric_config::Report;
use serde::de::DeserializeOwned;

use crate::counters::ObjectCounters;
use crate::devices_of_host::DeviceState;
use crate::frames::{CaptureInterface, Captured};
use crate::network::FramesOf;
use crate::protocol::{
    Answer, CaptureFollows, DeviceSla, HopState, LastDecisions, PathChanged, Request, SessionPaths,
    TraceFollows,
};
use crate::storage::{CaptureWanted, LunState, VhbaState};

/// How long an answer may take: a large trace of a busy process.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long it may take to apply a lab file.
const APPLY_PATIENCE: Duration = Duration::from_secs(600);

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody is there.
    #[error("nobody answers on {}: start io-director or host-agent with --control", path.display())]
    Connect {
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The other end said no.
    #[error("{0}")]
    Refused(String),
    /// The other end went away, or is something else.
    #[error("control socket gave no answer")]
    Broken(#[source] io::Error),
}

/// A connection to a monitor.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let connected = UnixStream::connect(path).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        });
        let stream = connected.map_err(|source| ClientError::Connect {
            path: path.to_owned(),
            source,
        })?;
        let stream = BufReader::new(stream);
        Ok(Self { stream })
    }

    /// All hops.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn state(&mut self) -> Result<Vec<HopState>, ClientError> {
        self.ask(&Request::State {})
    }

    /// What the SLA meters found.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn sla(&mut self) -> Result<Vec<DeviceSla>, ClientError> {
        self.ask(&Request::Sla {})
    }

    /// The decisions that the hop called `hop` made last.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn decisions(&mut self, hop: &str) -> Result<LastDecisions, ClientError> {
        let hop = hop.to_owned();
        self.ask(&Request::Decisions { hop })
    }

    /// Begins a trace of the hop called `hop`; it ends with [`Client::take_trace`], or with the
    /// connection.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn start_trace(&mut self, hop: &str) -> Result<(), ClientError> {
        let hop = hop.to_owned();
        self.ask(&Request::StartTrace { hop })
    }

    /// Ends it; returns the bytes of a [`Recording`](crate::recording::Recording).
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn take_trace(&mut self, hop: &str) -> Result<Vec<u8>, ClientError> {
        let hop = hop.to_owned();
        let TraceFollows { bytes } = self.ask(&Request::TakeTrace { hop })?;
        self.take_bytes(bytes)
    }

    /// Has the process apply its lab file again; returns when it is done, or refused
    /// ([`Report::refused`]).
    ///
    /// # Errors
    /// [`ClientError`]; if it is [`ClientError::Refused`] nothing has changed.
    pub fn apply(&mut self) -> Result<Report, ClientError> {
        let patience = |stream: &UnixStream, patience| {
            let set = stream.set_read_timeout(Some(patience));
            set.map_err(ClientError::Broken)
        };
        patience(self.stream.get_ref(), APPLY_PATIENCE)?;
        let report = self.ask(&Request::Apply {});
        patience(self.stream.get_ref(), PATIENCE)?;
        report
    }

    /// The devices of a host agent; of other processes none.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn devices(&mut self) -> Result<Vec<DeviceState>, ClientError> {
        self.ask(&Request::Devices {})
    }

    /// The sessions of all fabric links.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn paths(&mut self) -> Result<Vec<SessionPaths>, ClientError> {
        self.ask(&Request::Paths {})
    }

    /// When their frames went another way.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn path_changes(&mut self) -> Result<Vec<PathChanged>, ClientError> {
        self.ask(&Request::PathChanges {})
    }

    /// Has the frames of the session at the hop called `hop` go by link number `link`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn switchover(&mut self, hop: &str, link: u16) -> Result<(), ClientError> {
        let hop = hop.to_owned();
        self.ask(&Request::Switchover { hop, link })
    }

    /// What was counted.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn counters(&mut self) -> Result<Vec<ObjectCounters>, ClientError> {
        self.ask(&Request::Counters {})
    }

    /// The logical units.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn luns(&mut self) -> Result<Vec<LunState>, ClientError> {
        self.ask(&Request::Luns {})
    }

    /// The vHBAs.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn vhbas(&mut self) -> Result<Vec<VhbaState>, ClientError> {
        self.ask(&Request::Vhbas {})
    }

    /// Begins a capture; it ends with the connection, or with the next capture.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn start_capture(
        &mut self,
        wanted: &CaptureWanted,
    ) -> Result<CaptureInterface, ClientError> {
        self.ask(&Request::StartCapture {
            vhba: wanted.vhba.clone(),
            lun: wanted.lun,
            snap_bytes: wanted.snap_bytes,
        })
    }

    /// Begins a capture of Ethernet frames; it ends with the connection, or with the next capture.
    /// `filters` are as of [`of_filter`](fabric_config::AccessRule::of_filter).
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn start_frames(
        &mut self,
        of: &FramesOf,
        filters: &[String],
        snap_bytes: u32,
        frames_per_second: u32,
    ) -> Result<CaptureInterface, ClientError> {
        self.ask(&Request::StartFrames {
            of: of.clone(),
            filters: filters.to_vec(),
            snap_bytes,
            frames_per_second,
        })
    }

    /// What was captured since it was last taken. Who waits for longer than 100 ms loses frames of
    /// a busy device.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn take_capture(&mut self) -> Result<Captured, ClientError> {
        let CaptureFollows { bytes } = self.ask(&Request::TakeCapture {})?;
        let captured = self.take_bytes(bytes)?;
        let captured = postcard::from_bytes(&captured);
        captured.map_err(|error| ClientError::Broken(io::Error::other(error)))
    }

    /// The bytes behind an answer.
    fn take_bytes(&mut self, bytes: u64) -> Result<Vec<u8>, ClientError> {
        let mut taken = Vec::new();
        let read = (&mut self.stream).take(bytes).read_to_end(&mut taken);
        let read = read.map_err(ClientError::Broken)?;
        if u64::try_from(read) != Ok(bytes) {
            return Err(ClientError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(taken)
    }

    fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ClientError> {
        let answer = self.exchange(request).map_err(ClientError::Broken)?;
        match answer {
            Answer::Ok(answer) => Ok(answer),
            Answer::Error(reason) => Err(ClientError::Refused(reason)),
        }
    }

    fn exchange<T: DeserializeOwned>(&mut self, request: &Request) -> io::Result<Answer<T>> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        // Whoever is refused for being one too many may find the socket closed: the answer counts.
        let written = self.stream.get_mut().write_all(&line);
        let mut answer = Vec::new();
        self.stream.read_until(b'\n', &mut answer)?;
        if answer.is_empty() {
            written?;
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(&answer)?)
    }
}
