//! `sla`: promises kept and broken.

use anyhow::Result;
use qos_monitor::Client;

use crate::{print, text};

pub(crate) fn run(client: &mut Client, json: bool) -> Result<()> {
    let devices = client.sla()?;
    print(json, &devices, || {
        let head = [
            "DEVICE",
            "HOP",
            "PROMISED",
            "INTERVALS",
            "BACKLOGGED",
            "MIN",
            "MEAN",
            "VIOLATIONS",
            "ALARM",
        ];
        let rows = devices.iter().map(|device| {
            let report = &device.report;
            let rate = |rate: Option<_>| rate.map_or("-".to_owned(), text::rate);
            let alarm = match (report.alarmed, report.alarms) {
                (true, alarms) => format!("raised, {alarms} in all"),
                (false, 0) => "never".to_owned(),
                (false, alarms) => format!("cleared, {alarms} in all"),
            };
            [
                device.device.clone(),
                device.hop.clone(),
                text::promise(device.promised),
                report.intervals.to_string(),
                report.backlogged.to_string(),
                rate(report.achieved_min),
                rate(report.achieved_mean),
                report.violations.to_string(),
                alarm,
            ]
        });
        text::table(head, rows.collect())
    })
}
