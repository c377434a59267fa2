//! `paths`, `path-changes` and `switchover`: the links of sessions.

use std::time::Duration;

use anyhow::Result;
use qos_monitor::Client;
use qos_monitor::protocol::{LinkState, SessionPaths};

use crate::{print, text};

/// What goes where.
#[derive(Debug, clap::Args)]
pub(crate) struct Switchover {
    /// The hop whose session is meant, or a part of its name
    hop: String,
    /// The number of the link, as paths shows it
    link: u16,
}

pub(crate) fn paths(client: &mut Client, json: bool) -> Result<()> {
    let sessions = client.paths()?;
    print(json, &sessions, || {
        let head = [
            "HOP",
            "PEER",
            "EPOCH",
            "VERSION",
            "LINK",
            "PRIORITY",
            "STATE",
            "ROUND TRIP",
            "SENT",
            "UNDERWAY",
        ];
        text::table(head, sessions.iter().flat_map(lines).collect())
    })
}

fn lines(paths: &SessionPaths) -> Vec<[String; 10]> {
    let line = |known: [String; 3], link: Option<&LinkState>, absent: &str| {
        let [peer, epoch, version] = known;
        let or = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let state = link.map_or(absent, |it| if it.carries { "carries" } else { "standby" });
        let round_trip = link.and_then(|it| it.round_trip_nanos);
        [
            paths.hop.clone(),
            peer,
            epoch,
            version,
            or(link.map(|it| it.link.to_string())),
            or(link.map(|it| it.priority.to_string())),
            state.to_owned(),
            or(round_trip.map(|it| text::time(Duration::from_nanos(it)))),
            or(link.map(|it| text::bytes(it.sent_bytes))),
            or(link.map(|it| text::bytes(it.underway_bytes))),
        ]
    };
    let Some(session) = &paths.session else {
        return vec![line(["-"; 3].map(str::to_owned), None, "no session")];
    };
    let known = || {
        let (epoch, version) = (session.epoch.to_string(), session.version.to_string());
        [session.peer.clone(), epoch, version]
    };
    if session.links.is_empty() {
        return vec![line(known(), None, "waits for a link")];
    }
    let links = session.links.iter();
    links.map(|link| line(known(), Some(link), "")).collect()
}

pub(crate) fn changes(client: &mut Client, json: bool) -> Result<()> {
    let changes = client.path_changes()?;
    print(json, &changes, || {
        let rows = changes.iter().map(|change| {
            [
                change.hop.clone(),
                change.peer.clone(),
                format!("{} ago", text::time(Duration::from_nanos(change.age_nanos))),
                change.from.to_string(),
                change.to.to_string(),
                format!("{} us", change.gap_nanos / 1000),
                change.cause.clone(),
            ]
        });
        let head = ["HOP", "PEER", "WHEN", "FROM", "TO", "GAP", "CAUSE"];
        text::table(head, rows.collect())
    })
}

pub(crate) fn switchover(client: &mut Client, wanted: &Switchover, json: bool) -> Result<()> {
    let sessions = client.paths()?;
    let mut names: Vec<_> = sessions.iter().map(|paths| paths.hop.as_str()).collect();
    // A hop with a standby is there twice; what is chosen is the session with the devices.
    names.dedup();
    let hop = text::choose_one(names.into_iter(), &wanted.hop)?;
    let link = wanted.link;
    client.switchover(hop, link)?;
    print(json, &(), || format!("{hop}: frames go by link {link}\n"))
}
