//! `explain`: one device, and why.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use qos::{BitRate, DelayHistogram, DeviceSnapshot, HopSnapshot, Report, Rights, WaitCause};
use qos_monitor::protocol::{HopState, LastDecisions};
use qos_monitor::{Client, Recording};
use serde::Serialize;

use crate::{print, text, window};

/// Others that are listed.
const OTHERS_MAX: usize = 10;
/// Characters of the longest bar of a histogram.
const BAR_MAX: u64 = 40;

#[derive(Debug, clap::Args)]
pub(crate) struct Explain {
    /// The device as the lab file names it, like vn01.vm1
    device: String,
    /// The hop, or a part of its name that no other has; default: every hop of the device
    #[arg(long)]
    hop: Option<String>,
    /// How long to record
    #[arg(long = "for", value_name = "TIME", value_parser = window, default_value = "2s")]
    window: Duration,
    /// Do not record: use the decisions that the hop made last
    #[arg(long, conflicts_with = "window")]
    last: bool,
}

/// What is known of a device at a hop.
#[derive(Debug, Serialize)]
pub(crate) struct Explained {
    hop: String,
    link_rate: BitRate,
    device: String,
    promised: BitRate,
    limit: Option<BitRate>,
    main_cause: Option<WaitCause>,
    report: Report,
    /// The others of the report by name.
    others: Vec<(String, Rights)>,
    /// Calls that the trace had no room for: the window is shorter than was asked for.
    missed: u64,
}

pub(crate) fn run(client: &mut Client, explain: &Explain, json: bool) -> Result<()> {
    let states = client.state()?;
    let hops = hops_of(&states, explain)?;
    let mut found = Vec::new();
    if explain.last {
        for hop in &hops {
            let LastDecisions { hop, decisions } = client.decisions(hop)?;
            let device = device(&hop, &explain.device)?;
            let statistics = &device.statistics;
            let queued = qos::Granted {
                bytes: statistics.queued_bytes,
                frames: statistics.queued_frames.into(),
            };
            let report = Report::of_decisions(device.handle, &decisions, queued);
            found.push(Explained::new(&hop, device, report, 0));
        }
    } else {
        for hop in &hops {
            client.start_trace(hop)?;
        }
        std::thread::sleep(explain.window);
        for hop in &hops {
            let recording = Recording::from_bytes(&client.take_trace(hop)?);
            let recording = recording.with_context(|| format!("recording of {hop}"))?;
            found.push(Explained::of_recording(&recording, &explain.device)?);
        }
    }
    print(json, &found, || {
        found
            .iter()
            .map(Explained::text)
            .collect::<Vec<_>>()
            .join("\n")
    })
}

fn hops_of(states: &[HopState], explain: &Explain) -> Result<Vec<String>> {
    let chosen = text::choose(states, explain.hop.as_deref())?;
    let has = |state: &&&HopState| {
        let hop = state.snapshot.as_ref();
        hop.is_some_and(|hop| hop.device(&explain.device).is_some())
    };
    let hops: Vec<_> = chosen
        .iter()
        .filter(has)
        .map(|state| state.name.clone())
        .collect();
    if hops.is_empty() {
        let snapshots = chosen.iter().filter_map(|state| state.snapshot.as_ref());
        let names = snapshots.flat_map(|hop| hop.devices.iter().map(|device| device.name.as_str()));
        let names: std::collections::BTreeSet<_> = names.collect();
        let names: Vec<_> = names.into_iter().collect();
        bail!(
            "no device {} is attached here: there are {}",
            explain.device,
            if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            }
        );
    }
    Ok(hops)
}

fn device<'a>(hop: &'a HopSnapshot, name: &str) -> Result<&'a DeviceSnapshot> {
    hop.device(name)
        .with_context(|| format!("device {name} left {} meanwhile; try again", hop.hop))
}

impl Explained {
    /// The device called `name` in a recording.
    ///
    /// # Errors
    /// It is not there, or the replay differs.
    pub(crate) fn of_recording(recording: &Recording, name: &str) -> Result<Self> {
        let hop = &recording.hop;
        let device = hop.device(name).with_context(|| {
            let devices = hop.devices.iter().map(|device| device.name.as_str());
            let devices: Vec<_> = devices.collect();
            format!(
                "{} had no device {name} when it was recorded; it had {}",
                hop.hop,
                devices.join(", ")
            )
        })?;
        let (report, summary) = Report::of_trace(device.handle, &recording.trace)
            .with_context(|| format!("replay of {} differs", hop.hop))?;
        Ok(Self::new(hop, device, report, summary.missed))
    }

    fn new(hop: &HopSnapshot, device: &DeviceSnapshot, report: Report, missed: u64) -> Self {
        let others = report.others.iter().map(|(handle, rights)| {
            let name = hop.name_of(*handle).unwrap_or("a device that left");
            (name.to_owned(), *rights)
        });
        Self {
            hop: hop.hop.clone(),
            link_rate: hop.rate,
            device: device.name.clone(),
            promised: device.rate.cir,
            limit: device.rate.pir,
            main_cause: report.main_cause(),
            others: others.collect(),
            report,
            missed,
        }
    }

    fn rate(&self, bytes: u64) -> String {
        text::rate(BitRate::of_bytes(bytes, self.report.nanos))
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let report = &self.report;
        let achieved = &report.achieved;
        let mut lines = vec![format!(
            "{} at {}, {} of a link of {}",
            self.device,
            self.hop,
            text::time(Duration::from_nanos(report.nanos)),
            text::rate(self.link_rate)
        )];
        if self.missed > 0 {
            lines.push(format!(
                "  cut short: the trace is full, {} later calls are not in it",
                self.missed
            ));
        }
        let limit = self.limit.map_or("no limit".to_owned(), |limit| {
            format!("at most {}", text::rate(limit))
        });
        lines.push(format!(
            "  promised  {}, {limit}",
            text::promise(self.promised)
        ));
        lines.push(format!("  offered   {}", self.rate(report.offered.bytes)));
        lines.push(format!(
            "  achieved  {} in {} frames: {} reserved, {} out of its VM's, {} of the rest",
            self.rate(achieved.bytes()),
            achieved.frames(),
            self.rate(achieved.reserved.bytes),
            self.rate(achieved.vm_reserved.bytes),
            self.rate(achieved.excess.bytes)
        ));
        lines.push(match self.main_cause {
            Some(cause) => format!("  held by   {}: {}", cause.name(), text::meaning(cause)),
            None => "  held by   nothing".to_owned(),
        });
        let mut text = lines.join("\n") + "\n";
        if achieved.frames() > 0 {
            text += &self.waits();
            text += &histogram(&report.delays);
        }
        text + &self.rest()
    }

    /// What frames waited for. Shares are of what held the head of the queue: the waits of those
    /// behind it follow from that.
    fn waits(&self) -> String {
        let head = ["  WAITED FOR", "SHARE", "MEAN", "P50 <=", "P99 <=", "MAX"];
        let line = |name: &str, share: String, delays: &DelayHistogram| {
            [
                format!("  {name}"),
                share,
                text::time(delays.mean()),
                text::time(delays.percentile(50)),
                text::time(delays.percentile(99)),
                text::time(delays.max()),
            ]
        };
        let causes = WaitCause::ALL.into_iter().zip(&self.report.causes);
        let causes = causes.filter(|(_, delays)| !delays.total().is_zero());
        let held = |cause| cause != WaitCause::OwnQueue;
        let of_head = causes.clone().filter(|(cause, _)| held(*cause));
        let all: Duration = of_head.map(|(_, delays)| delays.total()).sum();
        let rows = causes.map(|(cause, delays)| {
            let percent = delays.total().as_nanos() * 100 / all.as_nanos().max(1);
            let share = if held(cause) {
                format!("{percent} %")
            } else {
                "-".to_owned()
            };
            line(cause.name(), share, delays)
        });
        let all = line("all", "-".to_owned(), &self.report.delays);
        text::table(head, rows.chain([all]).collect())
    }

    fn rest(&self) -> String {
        if self.others.is_empty() {
            return "  nobody else sent anything\n".to_owned();
        }
        let head = [
            "  OTHERS",
            "ACHIEVED",
            "RESERVED",
            "OUT OF VM",
            "OF THE REST",
        ];
        let rows = self.others.iter().take(OTHERS_MAX).map(|(name, rights)| {
            [
                format!("  {name}"),
                self.rate(rights.bytes()),
                self.rate(rights.reserved.bytes),
                self.rate(rights.vm_reserved.bytes),
                self.rate(rights.excess.bytes),
            ]
        });
        let mut text = text::table(head, rows.collect());
        if let Some(more) = self
            .others
            .len()
            .checked_sub(OTHERS_MAX)
            .filter(|more| *more > 0)
        {
            // Writing into a String does not fail.
            let _written = writeln!(text, "  and {more} more");
        }
        text
    }
}

/// Delays of all frames, a line for each range from the first to the last that is used.
fn histogram(delays: &DelayHistogram) -> String {
    let counts = delays.counts();
    let used = |count: &u64| *count > 0;
    let first = counts.iter().position(used).unwrap_or(0);
    let last = counts.iter().rposition(used).unwrap_or(0);
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    let ranges = counts.iter().enumerate().take(last + 1).skip(first);
    let rows = ranges.map(|(range, count)| {
        let bar = usize::try_from((count * BAR_MAX).div_ceil(most)).unwrap_or(0);
        let end = text::time(delays.end_of(range));
        [format!("  {end}"), count.to_string(), "#".repeat(bar)]
    });
    text::table(["  DELAY <=", "FRAMES", ""], rows.collect())
}
