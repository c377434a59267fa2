//! Objects as tables, blocks and names.

use comfy_table::{ContentArrangement, ContentLineStyle, LineStyle, Table, TableStyle};
use controller_api::{Alarm, AuditEntry, Change, Done, View};
use serde_json::Value;

use crate::nouns::Noun;

/// Header, dashes, rows, with two spaces between columns.
const STYLE: TableStyle = TableStyle::new()
    .header_lines(ContentLineStyle::none())
    .header_separator(LineStyle::none().fill('-').junction('-'))
    .content_lines(ContentLineStyle::none());

/// A field of an object as it is shown and compared. Nothing is `none`, but for words to people.
#[must_use]
pub fn value_of(view: &View, field: &str) -> String {
    let status = &view.status;
    let of = |name: &str| view.fields.get(name).map(text).unwrap_or_default();
    let value = match field {
        "name" => view.name.clone(),
        "state" => status.state.clone().unwrap_or_default(),
        "reason" => return status.reason.clone().unwrap_or_default(),
        "descr" => return of("descr"),
        "if-state" => status.if_state.clone().unwrap_or_default(),
        "mac-addr" => of("mac"),
        "ipaddr" => of("ip-addr"),
        "type" => of("addr-type"),
        "vlans" => match (of("mode").as_str(), of("allowed-vlans")) {
            ("trunk", vlans) if vlans.is_empty() => "1-4094".to_owned(),
            ("trunk", vlans) => vlans,
            _ => of("access-vlan"),
        },
        "qos" => policies(view),
        // The node of a port has the next number but in another field of it (NAA 3).
        "wwnn" => of("wwpn").replacen("30:00", "30:01", 1),
        "medium" => [
            "file",
            "block-device",
            "qcow2",
            "ram",
            "null",
            "iscsi",
            "sg",
        ]
        .into_iter()
        .find(|name| !of(name).is_empty())
        .map(|name| format!("{name}={}", of(name)))
        .unwrap_or_default(),
        "pending" => joined(status.pending.keys().cloned()),
        "drift" => joined(status.drift.iter().cloned()),
        field => of(field),
    };
    match value.is_empty() {
        true => "none".to_owned(),
        false => value,
    }
}

fn policies(view: &View) -> String {
    let of = |direction: &str| {
        let attachment = view.fields.get(direction)?.as_object()?;
        let policer = attachment
            .get("policer")
            .map(text)
            .filter(|name| !name.is_empty())?;
        let off = attachment.get("disabled") == Some(&Value::Bool(true));
        Some(match off {
            true => format!("{policer} (off)"),
            false => policer,
        })
    };
    match (of("ingress-qos"), of("egress-qos")) {
        (None, None) => String::new(),
        (ingress, egress) => {
            let none = || "none".to_owned();
            format!(
                "{},{}",
                ingress.unwrap_or_else(none),
                egress.unwrap_or_else(none)
            )
        }
    }
}

fn joined(words: impl Iterator<Item = String>) -> String {
    words.collect::<Vec<_>>().join(",")
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(values) => joined(values.iter().map(text)),
        Value::Object(fields) => joined(fields.iter().filter_map(|(name, value)| {
            match value {
                // A device in a template: its fields are too many for a table.
                Value::Object(_) => Some(name.clone()),
                Value::Bool(false) => None,
                value => Some(text(value))
                    .filter(|text| !text.is_empty())
                    .map(|text| format!("{name}:{text}")),
            }
        })),
        other => other.to_string(),
    }
}

/// Rows below a header, then how many there are.
#[must_use]
pub fn table(columns: &[&str], rows: Vec<Vec<String>>) -> String {
    let count = rows.len();
    let mut table = Table::new();
    table.load_style(STYLE);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for line in table.lines() {
        text += line.trim_end();
        text.push('\n');
    }
    let records = if count == 1 { "record" } else { "records" };
    text + &format!("{count} {records} displayed\n")
}

/// Objects as a table.
#[must_use]
pub fn objects(noun: &Noun, views: &[View]) -> String {
    let row = |view| {
        noun.columns
            .iter()
            .map(|field| value_of(view, field))
            .collect()
    };
    table(noun.columns, views.iter().map(row).collect())
}

/// The names of objects, a line each.
#[must_use]
pub fn names(views: &[View]) -> String {
    views
        .iter()
        .fold(String::new(), |all, view| all + &view.name + "\n")
}

/// All fields of objects, in blocks between dashes.
#[must_use]
pub fn blocks(views: &[View]) -> String {
    let dashes = "-".repeat(60);
    let mut out = String::new();
    for view in views {
        out += &format!("{dashes}\n");
        let known = ["name", "state", "if-state", "reason"];
        let known = known
            .into_iter()
            .map(|name| (name.to_owned(), value_of(view, name)));
        let fields = view
            .fields
            .iter()
            .map(|(name, value)| (name.clone(), text(value)));
        let pending = view.status.pending.iter();
        let pending = pending.map(|(name, why)| (format!("pending {name}"), why.clone()));
        let drift = (!view.status.drift.is_empty())
            .then(|| ("drift".to_owned(), view.status.drift.join(",")));
        for (name, value) in known.chain(fields).chain(pending).chain(drift) {
            if !value.is_empty() && (value != "none" || name == "if") {
                out += &format!("{name:<18} {value}\n");
            }
        }
    }
    if !views.is_empty() {
        out += &format!("{dashes}\n");
    }
    let records = if views.len() == 1 {
        "record"
    } else {
        "records"
    };
    out + &format!("{} {records} displayed\n", views.len())
}

/// A field of several values, a row for each.
#[must_use]
pub fn part(field: &str, views: &[View]) -> String {
    let mut rows = Vec::new();
    for view in views {
        let mut add = |place: &str, value: String| {
            rows.push(vec![view.name.clone(), place.to_owned(), value]);
        };
        match view.fields.get(field) {
            Some(Value::Object(fields)) => {
                fields
                    .iter()
                    .for_each(|(place, value)| add(place, text(value)));
            }
            Some(Value::Null) | None => {}
            Some(value) => add("", text(value)),
        }
    }
    table(&["name", "place", "value"], rows)
}

/// What would change, or did: a line for each object, and one for each field of it that was there.
#[must_use]
pub fn changes(changes: &[Change]) -> String {
    let mut out = String::new();
    for change in changes {
        let (sign, was) = match (&change.before, &change.after) {
            (None, _) => ("+", false),
            (_, None) => ("-", false),
            _ => ("~", true),
        };
        out += &format!("{sign} {} {}\n", change.kind, change.name);
        for field in change.fields().iter().filter(|_| sign != "-") {
            out += &match was {
                true => {
                    format!(
                        "    {}: {} -> {}\n",
                        field.field,
                        shown(field.before),
                        shown(field.after)
                    )
                }
                false => format!("    {}: {}\n", field.field, shown(field.after)),
            };
        }
    }
    out
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "default".to_owned(),
        value => text(value),
    }
}

/// What came of commands, a line each.
#[must_use]
pub fn outcomes(done: &Done) -> String {
    done.outcomes.iter().fold(String::new(), |all, outcome| {
        all + &format!("{} {} {}\n", outcome.kind, outcome.name, outcome.verdict)
    })
}

/// The log.
#[must_use]
pub fn audit(entries: &[AuditEntry]) -> String {
    let rows = entries.iter().map(|entry| {
        let changed = entry
            .changes
            .iter()
            .map(|change| format!("{} {}", change.kind, change.name));
        let changed: Vec<_> = changed.take(3).collect();
        let more = entry.changes.len().saturating_sub(changed.len());
        let more = if more == 0 {
            String::new()
        } else {
            format!(" and {more} more")
        };
        vec![
            entry.revision.to_string(),
            entry.time.clone(),
            entry.user.clone(),
            entry.note.clone(),
            format!("{}{more}", changed.join(", ")),
        ]
    });
    table(
        &["revision", "time", "user", "command", "changed"],
        rows.collect(),
    )
}

/// Alarms.
#[must_use]
pub fn alarms(alarms: &[Alarm]) -> String {
    let rows = alarms.iter().map(|alarm| {
        vec![
            alarm.object.clone(),
            alarm.since.clone(),
            alarm.problem.clone(),
        ]
    });
    table(&["object", "since", "problem"], rows.collect())
}
