//! What is said on the control socket: a request is one line of JSON, and so is its answer.
//!
//! ```text
//! > {"command":"state"}
//! < {"ok":[{"name":"host1 uplink","snapshot":{...},"main_waits":{"vn01.vm1":"own-limit"}}]}
//! > {"command":"start-trace","hop":"host1 uplink"}
//! < {"ok":null}
//! > {"command":"take-trace","hop":"host1 uplink"}
//! < {"ok":{"bytes":123456}}          followed by that many bytes, a recording
//! > {"command":"state","of":1}
//! < {"error":"..."}
//! > {"command":"switchover","hop":"host1 uplink","link":2}
//! < {"ok":null}
//! > {"command":"apply"}
//! < {"ok":{"objects":[{"object":"vnic vn01.vm1","change":"added","fields":[],"outcome":"done"}]}}
//! > {"command":"devices"}
//! < {"ok":[{"name":"vn01.vm1","generation":1,"attached":true,"refused":null,"guest":"plugged"}]}
//! > {"command":"counters"}
//! < {"ok":[{"object":"vnic vn01.vm1","end":"host","counts":{"tx_packets":17,...}}]}
//! > {"command":"luns"}
//! < {"ok":[{"name":"data","state":"ready",...}]}
//! > {"command":"start-capture","vhba":"vh01.vm1","lun":null,"snap_bytes":512}
//! < {"ok":{"name":"vh01.vm1",...}}
//! > {"command":"start-frames","of":{"vnic":"vn01.vm1"},"filters":["protocol=tcp"],"snap_bytes":128,
//!    "frames_per_second":1000}
//! < {"ok":{"name":"vn01.vm1",...}}
//! > {"command":"take-capture"}
//! < {"ok":{"bytes":1234}}            followed by that many bytes, a postcard of `Captured`
//! ```
//!
//! Rates are bits per second, times nanoseconds. A trace or capture belongs to the
//! connection that began it and ends with it.

use std::collections::BTreeMap;

use qos::{BitRate, Decision, HopSnapshot, SlaReport, WaitCause};
use serde::{Deserialize, Serialize};

use crate::network::FramesOf;

/// Bytes of a request at most, with the end of its line. A longer one ends the connection.
pub const REQUEST_BYTES_MAX: usize = 1024;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// All hops: a list of [`HopState`].
    State {},
    /// What the SLA meters found: a list of [`DeviceSla`].
    Sla {},
    /// The decisions a hop made last: [`LastDecisions`].
    Decisions {
        /// The hop's name.
        hop: String,
    },
    /// Begins a trace of a hop.
    StartTrace {
        /// The hop's name.
        hop: String,
    },
    /// Ends the trace of a hop: [`TraceFollows`], then the bytes of a recording.
    TakeTrace {
        /// The hop's name.
        hop: String,
    },
    /// The sessions of each hop that is a fabric link, with the links they have: a list of
    /// [`SessionPaths`].
    Paths {},
    /// When frames went another way: a list of [`PathChanged`], by hop, oldest first; of each hop the
    /// last 64, also those of sessions that are over.
    PathChanges {},
    /// The devices of a host agent: a list of [`DeviceState`](crate::DeviceState); of others none.
    Devices {},
    /// What was counted: a list of [`ObjectCounters`](crate::counters::ObjectCounters).
    Counters {},
    /// The logical units: a list of [`LunState`](crate::storage::LunState).
    Luns {},
    /// The vHBAs: a list of [`VhbaState`](crate::storage::VhbaState).
    Vhbas {},
    /// Begins to capture the commands of a vHBA, in the place of what this connection captures:
    /// [`CaptureInterface`](crate::frames::CaptureInterface).
    StartCapture {
        /// The vHBA's name.
        vhba: String,
        /// One of its LUNs; all without.
        lun: Option<u16>,
        /// Bytes of each frame to keep.
        snap_bytes: u32,
    },
    /// Begins to capture Ethernet frames, in the place of what this connection captures:
    /// [`CaptureInterface`](crate::frames::CaptureInterface).
    StartFrames {
        /// Where.
        of: FramesOf,
        /// Only frames that meet one of these
        /// ([`of_filter`](fabric_config::AccessRule::of_filter)); all if there are none.
        filters: Vec<String>,
        /// Bytes of each frame to keep.
        snap_bytes: u32,
        /// At most.
        frames_per_second: u32,
    },
    /// What was captured since it was last taken: [`CaptureFollows`], then its bytes.
    TakeCapture {},
    /// Has the process read its lab file again and apply it: a [`Report`](fabric_config::Report),
    /// when it is done; also if it refuses the file. Until then the connection answers nothing else.
    Apply {},
    /// Has the frames of a session go by one of its links, both directions: the answer is `null`, and
    /// comes before the change is through.
    Switchover {
        /// The hop's name.
        hop: String,
        /// The link's number.
        link: u16,
    },
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer<T> {
    /// What was asked for.
    Ok(T),
    /// Why not, and what to do.
    Error(String),
}

/// A hop now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HopState {
    /// Its name.
    pub name: String,
    /// Its state; `None` while it is not there: a link without a session.
    pub snapshot: Option<HopSnapshot>,
    /// What mostly held each device among the last decisions, by name. Those that waited for
    /// nothing are absent.
    pub main_waits: BTreeMap<String, WaitCause>,
}

/// The SLA of one device at one hop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSla {
    /// The hop.
    pub hop: String,
    /// The device.
    pub device: String,
    /// Its committed rate.
    pub promised: BitRate,
    /// What the meter found since the process began.
    pub report: SlaReport,
}

/// The decisions that a hop made last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastDecisions {
    /// The hop.
    pub hop: HopSnapshot,
    /// Oldest first.
    pub decisions: Vec<Decision>,
}

/// A hop that is a fabric link, and a session on it. A host with a standby director has two: the one
/// with the devices comes first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionPaths {
    /// The hop.
    pub hop: String,
    /// The session; `None` while none is up.
    pub session: Option<SessionState>,
}

/// A session now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionState {
    /// The host or director at the other end.
    pub peer: String,
    /// Its epoch, the same at both ends.
    pub epoch: u16,
    /// The version of the protocol.
    pub version: u8,
    /// The links that are up; none while it waits for one.
    pub links: Vec<LinkState>,
}

/// One link of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkState {
    /// Its number, the same at both ends.
    pub link: u16,
    /// Lower ones are used first.
    pub priority: u8,
    /// Whether it carries this end's frames.
    pub carries: bool,
    /// How long the last PING took; `None` until one is answered.
    pub round_trip_nanos: Option<u64>,
    /// Bytes of frames that this end sent by it.
    pub sent_bytes: u64,
    /// Bytes of frames that the peer has not acknowledged.
    pub underway_bytes: u64,
}

/// Frames went another way than before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathChanged {
    /// The hop.
    pub hop: String,
    /// The host or director at the other end.
    pub peer: String,
    /// How long ago.
    pub age_nanos: u64,
    /// The link that they went by.
    pub from: u16,
    /// The link that they go by.
    pub to: u16,
    /// Why, in words.
    pub cause: String,
    /// From the last sign of progress on the old link, if anything was underway, to the first on the
    /// new one.
    pub gap_nanos: u64,
}

/// The length of a recording that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceFollows {
    /// Its bytes.
    pub bytes: u64,
}

/// The length of a postcard of [`Captured`](crate::frames::Captured) that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureFollows {
    /// Its bytes.
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::counters::ObjectCounters;
    use crate::frames::CaptureInterface;
    use crate::hop::Hop;
    use crate::monitor::tests::Port;
    use crate::monitor::tests::storage::Disks;
    use crate::storage::{LunState, Storage, VhbaState};

    fn corpus(target: &str) -> String {
        format!("{}/tests/corpus/{target}", env!("CARGO_MANIFEST_DIR"))
    }

    #[test]
    fn p01_any_request_is_answered() {
        let hop = || "host1 uplink".to_owned();
        let good = [
            Request::State {},
            Request::Decisions { hop: hop() },
            Request::TakeTrace { hop: hop() },
            Request::Apply {},
            Request::Devices {},
            Request::Switchover {
                hop: hop(),
                link: 2,
            },
            Request::StartCapture {
                vhba: "vh01.vm1".to_owned(),
                lun: Some(1),
                snap_bytes: 512,
            },
            Request::Counters {},
            Request::StartFrames {
                of: FramesOf::Vnic("vn01.vm1".to_owned()),
                filters: vec!["protocol=tcp".to_owned()],
                snap_bytes: 512,
                frames_per_second: 1000,
            },
        ];
        let good = good.map(|request| serde_json::to_vec(&request).unwrap());
        let inputs = orimono_fuzz::inputs(50_000, 1_000_000);
        orimono_fuzz::fuzz(&corpus("request"), &good, inputs, |line| {
            if let Ok(request) = serde_json::from_slice::<Request>(line) {
                let written = serde_json::to_vec(&request).unwrap();
                assert_eq!(
                    serde_json::from_slice::<Request>(&written).unwrap(),
                    request
                );
            }
        });
    }

    /// As `orimono-qos` reads them.
    fn answers<T: DeserializeOwned + Serialize>(line: &[u8]) {
        if let Ok(answer) = serde_json::from_slice::<Answer<T>>(line) {
            assert!(serde_json::to_vec(&answer).is_ok());
        }
    }

    #[test]
    fn p01_any_answer_is_understood_or_refused() {
        let port = Port::new("port");
        port.work(5);
        let state = HopState {
            name: "port".to_owned(),
            snapshot: port.snapshot(),
            main_waits: [("vn01.vm1".to_owned(), WaitCause::OwnLimit)].into(),
        };
        let decisions = LastDecisions {
            hop: port.snapshot().unwrap(),
            decisions: port.decisions(),
        };
        let paths = SessionPaths {
            hop: "port".to_owned(),
            session: None,
        };
        let good = [
            serde_json::to_vec(&Answer::Ok([state])).unwrap(),
            serde_json::to_vec(&Answer::Ok(decisions)).unwrap(),
            serde_json::to_vec(&Answer::Ok([paths])).unwrap(),
            serde_json::to_vec(&Answer::Ok(TraceFollows { bytes: 5 })).unwrap(),
            serde_json::to_vec(&Answer::Ok(Disks::default().luns())).unwrap(),
            serde_json::to_vec(&Answer::Ok(Disks::default().vhbas())).unwrap(),
            serde_json::to_vec(&Answer::<()>::Error("no".to_owned())).unwrap(),
        ];
        let inputs = orimono_fuzz::inputs(5000, 200_000);
        orimono_fuzz::fuzz(&corpus("answer"), &good, inputs, |line| {
            answers::<Vec<HopState>>(line);
            answers::<Vec<DeviceSla>>(line);
            answers::<LastDecisions>(line);
            answers::<Vec<SessionPaths>>(line);
            answers::<Vec<PathChanged>>(line);
            answers::<TraceFollows>(line);
            answers::<Vec<crate::DeviceState>>(line);
            answers::<Vec<LunState>>(line);
            answers::<Vec<VhbaState>>(line);
            answers::<CaptureInterface>(line);
            answers::<Vec<ObjectCounters>>(line);
        });
    }
}
