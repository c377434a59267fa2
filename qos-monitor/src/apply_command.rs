//! `orimono-qos apply`.

use anyhow::{Result, bail};
use fabric_config::Outcome;
use qos_monitor::Client;

use crate::{print, text};

pub(crate) fn run(client: &mut Client, json: bool) -> Result<()> {
    let report = client.apply()?;
    if let Some(reason) = report.refused {
        bail!("nothing has changed: {reason}");
    }
    print(json, &report, || {
        let rows = report.objects.iter().map(|object| {
            let outcome = match &object.outcome {
                Outcome::Done => "done".to_owned(),
                Outcome::Failed(reason) => format!("failed: {reason}"),
            };
            let change = object.change.to_string();
            [
                object.object.clone(),
                change,
                object.fields.join(", "),
                outcome,
            ]
        });
        if report.objects.is_empty() {
            return "nothing differs\n".to_owned();
        }
        text::table(["OBJECT", "CHANGE", "WORDS", "OUTCOME"], rows.collect())
    })?;
    let failed = report
        .objects
        .iter()
        .filter(|it| it.outcome != Outcome::Done);
    match failed.count() {
        0 => Ok(()),
        count => bail!("{count} changes are not in force; correct what they say and apply again"),
    }
}
