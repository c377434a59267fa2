//! `luns` and `vhbas`: what logical units do, and for whom.

use std::time::Duration;

use anyhow::Result;
use qos_monitor::Client;
use qos_monitor::storage::{CommandCounts, Latency};

use crate::{print, text};

const COUNTS: [&str; 11] = [
    "READS",
    "WRITES",
    "OTHERS",
    "READ",
    "WRITTEN",
    "READ P50",
    "P99",
    "WRITE P50",
    "P99",
    "IN FLIGHT",
    "FAILED",
];

pub(crate) fn luns(client: &mut Client, json: bool) -> Result<()> {
    let luns = client.luns()?;
    print(json, &luns, || {
        let rows = luns.iter().map(|lun| {
            let seen_by = lun.seen_by.iter();
            let seen_by = seen_by.map(|(vhba, number)| format!("{vhba}:{number}"));
            let known = [
                lun.name.clone(),
                lun.state.name().to_owned(),
                text::bytes(lun.bytes),
                or_dash(seen_by.collect::<Vec<_>>().join(" ")),
            ];
            row(known, &lun.commands)
        });
        let head = head(["LUN", "STATE", "SIZE", "SEEN BY"]);
        text::table(head, rows.collect())
            + &notes(luns.iter().map(|lun| (&*lun.name, &lun.commands)))
    })
}

pub(crate) fn vhbas(client: &mut Client, json: bool) -> Result<()> {
    let vhbas = client.vhbas()?;
    print(json, &vhbas, || {
        let rows = vhbas.iter().map(|vhba| {
            let luns = vhba.luns.iter();
            let luns = luns.map(|(number, name)| format!("{number}:{name}"));
            let known = [
                vhba.name.clone(),
                vhba.state.name().to_owned(),
                vhba.wwpn.clone(),
                or_dash(luns.collect::<Vec<_>>().join(" ")),
            ];
            row(known, &vhba.commands)
        });
        let head = head(["VHBA", "STATE", "WWPN", "LUNS"]);
        text::table(head, rows.collect())
            + &notes(vhbas.iter().map(|vhba| (&*vhba.name, &vhba.commands)))
    })
}

fn head(known: [&'static str; 4]) -> [&'static str; 15] {
    join(known, COUNTS)
}

fn row(known: [String; 4], commands: &CommandCounts) -> [String; 15] {
    let p50 = |latency: &Latency| time(latency, latency.p50_nanos);
    let p99 = |latency: &Latency| time(latency, latency.p99_nanos);
    let counts = [
        commands.reads.count.to_string(),
        commands.writes.count.to_string(),
        commands.others.count.to_string(),
        text::bytes(commands.data_in_bytes),
        text::bytes(commands.data_out_bytes),
        p50(&commands.reads),
        p99(&commands.reads),
        p50(&commands.writes),
        p99(&commands.writes),
        format!("{} (max {})", commands.in_flight, commands.in_flight_max),
        commands.failed().to_string(),
    ];
    join(known, counts)
}

fn join<T: Default>(known: [T; 4], counts: [T; 11]) -> [T; 15] {
    let mut cells = known.into_iter().chain(counts);
    std::array::from_fn(|_| cells.next().unwrap_or_default())
}

fn time(latency: &Latency, nanos: u64) -> String {
    if latency.count == 0 {
        return "-".to_owned();
    }
    text::time(Duration::from_nanos(nanos))
}

fn or_dash(text: String) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

/// A line for each object with anything but success, which has no column of its own.
fn notes<'a>(objects: impl Iterator<Item = (&'a str, &'a CommandCounts)>) -> String {
    let lines = objects.filter_map(|(name, commands)| {
        let counts = [
            ("refused", commands.refused),
            ("aborted", commands.aborted),
            ("lost", commands.lost),
        ];
        let counts = counts.map(|(what, count)| (what.to_owned(), count));
        let errors = commands.errors.iter().chain(&commands.task_management);
        let errors = errors.map(|(what, count)| (what.clone(), *count));
        let counts = errors.chain(counts).filter(|(_, count)| *count > 0);
        let counts: Vec<_> = counts
            .map(|(what, count)| format!("{what} {count}"))
            .collect();
        (!counts.is_empty()).then(|| format!("{name}: {}\n", counts.join(", ")))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_shows_counts_and_times_and_the_rest_is_noted() {
        let commands = CommandCounts {
            reads: Latency {
                count: 7,
                p50_nanos: 120_000,
                p99_nanos: 2_500_000,
                ..Latency::default()
            },
            data_in_bytes: 28_672,
            errors: [("illegal-request", 2), ("unit-attention", 1)]
                .map(|(key, count)| (key.to_owned(), count))
                .into(),
            task_management: [("abort-task".to_owned(), 1)].into(),
            aborted: 1,
            in_flight: 1,
            in_flight_max: 9,
            ..CommandCounts::default()
        };
        let row = row(["a", "ready", "1 GB", "-"].map(str::to_owned), &commands);
        assert_eq!(
            row[4..],
            [
                "7",
                "0",
                "0",
                "28.6 kB",
                "0 B",
                "120 us",
                "2.5 ms",
                "-",
                "-",
                "1 (max 9)",
                "2"
            ]
        );
        let none = CommandCounts::default();
        assert_eq!(
            notes([("a", &commands), ("b", &none)].into_iter()),
            "a: illegal-request 2, unit-attention 1, abort-task 1, aborted 1\n"
        );
    }
}
