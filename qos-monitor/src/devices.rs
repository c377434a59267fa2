//! `hops` and `devices`: what there is, and how much of it is used.

use std::time::Duration;

use anyhow::Result;
use qos::{BitRate, DeviceRate, DeviceSnapshot, HopSnapshot, WaitCause};
use qos_monitor::Client;
use qos_monitor::protocol::HopState;
use serde::Serialize;

use crate::{print, text};

/// A device at a hop over a time.
#[derive(Debug, Serialize)]
pub(crate) struct DeviceRow {
    pub(crate) device: String,
    pub(crate) vm: Option<String>,
    pub(crate) hop: String,
    pub(crate) rate: DeviceRate,
    pub(crate) offered_bytes: u64,
    pub(crate) achieved_bytes: u64,
    pub(crate) queued_bytes: u64,
    /// Of the time; `None`: since the device was attached.
    pub(crate) nanos: Option<u64>,
    pub(crate) main_wait: Option<WaitCause>,
    #[serde(skip)]
    pub(crate) link_rate: BitRate,
}

impl DeviceRow {
    pub(crate) fn offered(&self) -> BitRate {
        BitRate::of_bytes(self.offered_bytes, self.nanos.unwrap_or(0))
    }

    pub(crate) fn achieved(&self) -> BitRate {
        BitRate::of_bytes(self.achieved_bytes, self.nanos.unwrap_or(0))
    }
}

/// All devices in `after`, with what they did since `before`.
pub(crate) fn rows(before: Option<&[HopState]>, after: &[HopState]) -> Vec<DeviceRow> {
    let mut rows = Vec::new();
    for state in after {
        let Some(hop) = &state.snapshot else { continue };
        let earlier = before.and_then(|before| {
            let state = before.iter().find(|known| known.name == state.name)?;
            state.snapshot.as_ref()
        });
        let nanos = before.map(|_| earlier.map_or(0, |earlier| elapsed_nanos(earlier, hop)));
        for device in &hop.devices {
            let known = earlier.and_then(|earlier| earlier.device(&device.name));
            let (offered_bytes, achieved_bytes) = difference(known, device);
            rows.push(DeviceRow {
                device: device.name.clone(),
                vm: device.vm.clone(),
                hop: state.name.clone(),
                rate: device.rate,
                offered_bytes,
                achieved_bytes,
                queued_bytes: device.statistics.queued_bytes,
                nanos,
                main_wait: state.main_waits.get(&device.name).copied(),
                link_rate: hop.rate,
            });
        }
    }
    rows
}

fn elapsed_nanos(before: &HopSnapshot, after: &HopSnapshot) -> u64 {
    let elapsed = after.at.saturating_duration_since(before.at);
    u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
}

/// Offered and achieved bytes. A device that came back has counters of its own.
fn difference(before: Option<&DeviceSnapshot>, after: &DeviceSnapshot) -> (u64, u64) {
    let counted = |device: &DeviceSnapshot| {
        let statistics = &device.statistics;
        (statistics.offered.bytes, statistics.granted_bytes())
    };
    let (offered, achieved) = counted(after);
    let Some((offered_before, achieved_before)) = before.map(counted) else {
        return (offered, achieved);
    };
    match (
        offered.checked_sub(offered_before),
        achieved.checked_sub(achieved_before),
    ) {
        (Some(offered), Some(achieved)) => (offered, achieved),
        _ => (offered, achieved),
    }
}

pub(crate) fn devices(client: &mut Client, window: Option<Duration>, json: bool) -> Result<()> {
    let rows = match window {
        None => rows(None, &client.state()?),
        Some(window) => {
            let before = client.state()?;
            std::thread::sleep(window);
            rows(Some(&before), &client.state()?)
        }
    };
    print(json, &rows, || {
        let head = [
            "DEVICE",
            "HOP",
            "PROMISED",
            "LIMIT",
            "OFFERED",
            "ACHIEVED",
            "QUEUED",
            "MAIN WAIT",
        ];
        let lines = rows.iter().map(|row| {
            let (offered, achieved) = match row.nanos {
                None => (
                    text::bytes(row.offered_bytes),
                    text::bytes(row.achieved_bytes),
                ),
                Some(_) => (text::rate(row.offered()), text::rate(row.achieved())),
            };
            [
                row.device.clone(),
                row.hop.clone(),
                text::promise(row.rate.cir),
                row.rate.pir.map_or("-".to_owned(), text::rate),
                offered,
                achieved,
                text::bytes(row.queued_bytes),
                row.main_wait.map_or("-", WaitCause::name).to_owned(),
            ]
        });
        text::table(head, lines.collect())
    })
}

pub(crate) fn hops(client: &mut Client, json: bool) -> Result<()> {
    let states = client.state()?;
    print(json, &states, || {
        let head = [
            "HOP",
            "NOMINAL",
            "RATE",
            "RESERVABLE",
            "PROMISED",
            "DEVICES",
            "STATE",
        ];
        text::table(head, states.iter().map(hop_line).collect())
    })
}

fn hop_line(state: &HopState) -> [String; 7] {
    let Some(hop) = &state.snapshot else {
        let [rate, nominal, reservable, promised, devices] = ["-"; 5].map(str::to_owned);
        let (name, absent) = (state.name.clone(), "no session".to_owned());
        return [name, nominal, rate, reservable, promised, devices, absent];
    };
    let condition = match (hop.degraded, hop.oversubscribed) {
        (true, true) => "oversubscribed: promises are scaled down",
        (true, false) => "degraded: promises are scaled down",
        (false, true) => "oversubscribed",
        (false, false) => "kept",
    };
    [
        state.name.clone(),
        text::rate(hop.nominal),
        text::rate(hop.rate),
        text::rate(hop.reservable),
        text::rate(hop.reserved),
        hop.devices.len().to_string(),
        condition.to_owned(),
    ]
}
