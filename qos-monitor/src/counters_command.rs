//! `counters`: what a process counted, as `ethtool -S` prints it.

use std::fmt::Write;

use anyhow::{Result, ensure};
use qos_monitor::Client;

use crate::print;

/// Which objects.
///
/// Of a vNIC the host agent tells what it did at the guest's rings, the director what it did behind
/// the fabric; an agent that embeds the director tells both. rx and tx are as the guest sees them, of
/// an Ethernet port as its interface does. A dropped frame is counted once, by its reason.
#[derive(Debug, clap::Args)]
pub(crate) struct CountersOf {
    /// Only objects whose name contains this, like vn01.vm1 or ethernet-port; default: all
    pattern: Option<String>,
}

pub(crate) fn run(client: &mut Client, wanted: &CountersOf, json: bool) -> Result<()> {
    let mut objects = client.counters()?;
    if let Some(pattern) = &wanted.pattern {
        let known: Vec<_> = objects.iter().map(|it| it.object.clone()).collect();
        objects.retain(|it| it.object.contains(pattern));
        ensure!(
            !objects.is_empty(),
            "no object's name contains {pattern:?}: there are {known:?}"
        );
    }
    print(json, &objects, || {
        let mut text = String::new();
        for object in &objects {
            // Writing to a string cannot fail.
            let _infallible = writeln!(text, "{} ({}):", object.object, object.end);
            for (name, count) in &object.counts {
                let _infallible = writeln!(text, "     {name}: {count}");
            }
        }
        text
    })
}
