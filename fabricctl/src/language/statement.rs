//! What a line says.

use controller_api::{Action, Fields, Kind};

use super::Filter;
use crate::nouns::Noun;

/// A line: what to do, and where its output goes.
#[derive(Debug, Clone)]
pub struct Line {
    /// What to do.
    pub statement: Statement,
    /// Which lines of the output stay.
    pub greps: Vec<Grep>,
    /// The file that gets them.
    pub into: Option<String>,
}

/// A statement.
#[derive(Debug, Clone)]
pub enum Statement {
    /// An empty line, or a remark.
    Nothing,
    /// Changes an object, or all whose names are as the pattern says.
    Change {
        /// What they are.
        noun: &'static Noun,
        /// A name, or a pattern with `*`.
        name: String,
        /// What to do to each.
        operation: Operation,
        /// Do not ask.
        no_confirm: bool,
    },
    /// Shows something.
    Show(Show),
    /// Something about the whole controller.
    System(System),
    /// Something about this session.
    Cli(Cli),
    /// What can be said, about these words.
    Help(Vec<String>),
    /// Keeps words under a name.
    Variable {
        /// The name.
        name: String,
        /// The words.
        value: String,
    },
    /// Ends the session.
    Exit,
}

/// What is done to an object.
#[derive(Debug, Clone, PartialEq)]
pub enum Operation {
    /// Makes it.
    Add(Fields),
    /// Changes it.
    Set(Fields),
    /// Makes or changes it.
    Put(Fields),
    /// Removes it.
    Remove,
    /// Something else.
    Act(Action),
    /// Has the profile that is connected to it follow a template.
    ApplyTemplate(String),
    /// Nothing has to be done, and why.
    Needless(&'static str),
}

/// What is shown, and how.
#[derive(Debug, Clone)]
pub struct Show {
    /// What.
    pub what: ShowWhat,
    /// All fields, in blocks.
    pub detail: bool,
    /// Names alone.
    pub list: bool,
}

/// What is shown.
#[derive(Debug, Clone)]
pub enum ShowWhat {
    /// Objects.
    Objects {
        /// What they are.
        noun: &'static Noun,
        /// Their names.
        pattern: String,
        /// Only those.
        filter: Option<Filter>,
    },
    /// What an object has, one row each: a field of several values.
    Part {
        /// What it is.
        noun: &'static Noun,
        /// Its name.
        pattern: String,
        /// The field.
        field: &'static str,
    },
    /// The devices of profiles.
    Devices {
        /// vNICs or vHBAs.
        kind: Kind,
        /// The names of the profiles.
        pattern: String,
    },
    /// The log of changes.
    Audit,
    /// What wants attention.
    Alarms,
    /// The controller.
    System,
    /// The whole model.
    Config,
}

/// Something about the whole controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum System {
    /// Writes the model to a file.
    Export(String),
    /// Makes the model what a file says.
    Import {
        /// The file.
        file: String,
        /// Do not ask.
        no_confirm: bool,
    },
    /// Takes back the last change.
    Undo,
}

/// Something about this session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cli {
    /// Writes every line that is done to a file, from now on.
    Record(String),
    /// No longer.
    StopRecording,
}

/// Which lines of an output stay.
#[derive(Debug, Clone)]
pub struct Grep {
    /// What they have, or do not have.
    pub pattern: regex::Regex,
    /// Whether those stay that do not have it.
    pub inverted: bool,
}
