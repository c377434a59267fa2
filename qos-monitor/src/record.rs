//! `record` and `replay`: a trace as a file.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use qos_monitor::{Client, Recording};
use serde::Serialize;

use crate::explain::Explained;
use crate::{print, text, window};

#[derive(Debug, clap::Args)]
pub(crate) struct Record {
    /// The hop, or a part of its name that no other has
    hop: String,
    /// How long
    #[arg(long = "for", value_name = "TIME", value_parser = window, default_value = "2s")]
    window: Duration,
    /// The file, which must not be there yet
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Replay {
    /// What record wrote
    file: PathBuf,
    /// Explain this device from it
    #[arg(long)]
    device: Option<String>,
}

#[derive(Debug, Serialize)]
struct Recorded {
    hop: String,
    calls: usize,
    bytes: usize,
}

pub(crate) fn record(client: &mut Client, record: &Record, json: bool) -> Result<()> {
    let states = client.state()?;
    let chosen = text::choose(&states, Some(&record.hop))?;
    let hop = chosen.first().context("no hop")?.name.clone();
    let file = record.output.display();
    let mut output = fs::File::create_new(&record.output)
        .with_context(|| format!("{file} cannot be made: choose another -o"))?;
    let taken = client.start_trace(&hop).and_then(|()| {
        std::thread::sleep(record.window);
        client.take_trace(&hop)
    });
    let written = taken.map_err(anyhow::Error::from).and_then(|bytes| {
        std::io::Write::write_all(&mut output, &bytes)
            .with_context(|| format!("{file} cannot be written"))?;
        let recording = Recording::from_bytes(&bytes)?;
        let (calls, bytes) = (recording.trace.len(), bytes.len());
        Ok(Recorded { hop, calls, bytes })
    });
    let recorded = written.inspect_err(|_| drop(fs::remove_file(&record.output)))?;
    print(json, &recorded, || {
        format!(
            "{}: {} calls in {}, {}\n",
            recorded.hop,
            recorded.calls,
            file,
            text::bytes(u64::try_from(recorded.bytes).unwrap_or(u64::MAX))
        )
    })
}

pub(crate) fn replay(replay: &Replay, json: bool) -> Result<()> {
    let file = replay.file.display();
    let bytes = fs::read(&replay.file).with_context(|| format!("{file} cannot be read"))?;
    let recording = match Recording::from_bytes(&bytes) {
        Ok(recording) => recording,
        Err(error) => bail!("{file} {:#}", anyhow::Error::from(error)),
    };
    if let Some(device) = &replay.device {
        let explained = Explained::of_recording(&recording, device)?;
        return print(json, &explained, || explained.text());
    }
    let summary = recording.trace.replay();
    let summary = summary.with_context(|| format!("{file}: the replay differs"))?;
    print(json, &summary, || {
        let window = Duration::from_nanos(summary.nanos);
        let missed = match summary.missed {
            0 => String::new(),
            missed => format!("; cut short, {missed} later calls are not in it"),
        };
        format!(
            "{}: same decisions in {} calls of {}: {} frames, {}{missed}\n",
            recording.hop.hop,
            summary.calls,
            text::time(window),
            summary.departures,
            text::bytes(summary.bytes)
        )
    })
}
