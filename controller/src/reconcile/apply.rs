//! Has a program take its new lab file, and what became of each object.
//!
//! By its control socket (`apply`); a program that does not know that gets SIGHUP, if it left its
//! number in `pid`. One that would end by SIGHUP leaves none.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

/// How long a program may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of an answer at most: a line for each of thousands of objects.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Fields that are not in force, and why, by object.
pub(super) type Pending = BTreeMap<String, BTreeMap<String, String>>;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Ok(Report),
    Error(String),
}

#[derive(Deserialize)]
struct Report {
    objects: Vec<Applied>,
}

#[derive(Deserialize)]
struct Applied {
    object: String,
    #[serde(default)]
    fields: Vec<String>,
    outcome: Outcome,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    Done,
    Failed(String),
}

/// Tells the program whose files are in `folder`. An error is one that the operator must see.
pub(super) fn tell(folder: &Path) -> Result<Pending, String> {
    let answer = match UnixStream::connect(folder.join("control.sock")) {
        Ok(stream) => ask(stream).map_err(|error| format!("it does not answer: {error}"))?,
        // It is not there, and reads the file when it starts.
        Err(_nobody) => return Ok(hang_up(folder)),
    };
    match answer {
        Answer::Error(reason) if reason.contains("unknown variant") => Ok(hang_up(folder)),
        Answer::Error(reason) => Err(format!("it does not take its lab file: {reason}")),
        Answer::Ok(report) => Ok(pending(report)),
    }
}

fn ask(mut stream: UnixStream) -> io::Result<Answer> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"{\"command\":\"apply\"}\n")?;
    let mut line = String::new();
    BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

fn pending(report: Report) -> Pending {
    let mut pending = Pending::new();
    for applied in report.objects {
        let Outcome::Failed(reason) = applied.outcome else {
            continue;
        };
        let fields = match applied.fields.is_empty() {
            true => vec!["all".to_owned()],
            false => applied.fields,
        };
        let fields = fields.into_iter().map(|field| (field, reason.clone()));
        pending.entry(applied.object).or_default().extend(fields);
    }
    pending
}

fn hang_up(folder: &Path) -> Pending {
    let Ok(text) = fs::read_to_string(folder.join("pid")) else {
        return Pending::new();
    };
    let Some(pid) = text.trim().parse().ok().filter(|pid| *pid > 1) else {
        tracing::warn!(folder = %folder.display(), "pid is no process number: nobody is told");
        return Pending::new();
    };
    if let Err(error) = kill(Pid::from_raw(pid), Signal::SIGHUP) {
        tracing::warn!(pid, %error, "cannot be told of its new lab file");
    }
    Pending::new()
}
