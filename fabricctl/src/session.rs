//! Lines, done one after the other.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};

use controller_api::{Action, Command, Document, Import, Kind, Transaction, Undo};
use serde::Serialize;

use crate::client::{Client, ClientError};
use crate::help;
use crate::language::{
    Cli, LanguageError, Line, Operation, Show, ShowWhat, Statement, System, Token, parse, tokens,
};
use crate::nouns::Noun;
use crate::show;

/// Objects that one pattern changes at most.
const MATCHES_MAX: usize = 100_000;

/// How lines are done.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// JSON in place of tables.
    pub json: bool,
    /// A stray `")` at the end of a line is dropped.
    pub lenient: bool,
    /// Nothing is changed.
    pub dry_run: bool,
}

/// Does lines.
pub struct Session {
    client: Client,
    options: Options,
    variables: BTreeMap<String, String>,
    recording: Option<std::fs::File>,
    confirm: Box<dyn FnMut(&str) -> bool>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// What follows a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flow {
    /// The next one; this was printed.
    Go(String),
    /// Nothing.
    Exit,
}

/// Why a line was not done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It is not understood.
    #[error(transparent)]
    Language(#[from] LanguageError),
    /// The controller does not do it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A file.
    #[error("file {file}: {source}; see that it can be read or written")]
    File {
        /// Its name.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A document that is none.
    #[error("file {file}: {reason}; correct it")]
    Document {
        /// Its name.
        file: String,
        /// Why.
        reason: String,
    },
    /// It stands in a script.
    #[error("line {line}: {failure}")]
    InLine {
        /// Which, from 1.
        line: usize,
        /// Why.
        failure: Box<Self>,
    },
}

impl Session {
    /// Asks `client`. Before something is removed `confirm` is asked.
    pub fn new(
        client: Client,
        options: Options,
        confirm: impl FnMut(&str) -> bool + 'static,
    ) -> Self {
        Self {
            client,
            options,
            variables: BTreeMap::new(),
            recording: None,
            confirm: Box::new(confirm),
        }
    }

    /// The controller.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Does a line.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn line(&mut self, line: &str) -> Result<Flow, Failure> {
        let tokens = tokens(line, self.options.lenient)?;
        self.tokens(tokens, line)
    }

    /// Does a line that is words already. `words` is what the log has of it.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn tokens(&mut self, tokens: Vec<Token>, words: &str) -> Result<Flow, Failure> {
        let tokens = self.expanded(tokens)?;
        let line = parse(&tokens)?;
        let note = words.trim();
        if matches!(line.statement, Statement::Exit) {
            return Ok(Flow::Exit);
        }
        let recorded = !matches!(line.statement, Statement::Cli(_) | Statement::Nothing);
        let output = self.statement(&line, note)?;
        let output = printed(&line, output)?;
        if let Some(file) = self.recording.as_mut().filter(|_| recorded) {
            writeln!(file, "{note}").map_err(|source| Failure::File {
                file: "of the recording".to_owned(),
                source,
            })?;
        }
        Ok(Flow::Go(output))
    }

    /// Does lines until one fails, and hands what each prints to `print`.
    ///
    /// # Errors
    /// [`Failure::InLine`].
    pub fn script(&mut self, text: &str, mut print: impl FnMut(&str)) -> Result<(), Failure> {
        for (at, line) in text.lines().enumerate() {
            match self.line(line) {
                Ok(Flow::Go(output)) => print(&output),
                Ok(Flow::Exit) => break,
                Err(failure) => return Err(in_line(at + 1, failure)),
            }
        }
        Ok(())
    }

    /// Makes all that a file says, or nothing of it. A file that ends in `.toml` has fields of objects
    /// by kind and name; any other has lines that change something.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn apply(&mut self, file: &str) -> Result<String, Failure> {
        let text = read(file)?;
        let (mut commands, mut lines) = (Vec::new(), Vec::new());
        if file.ends_with(".toml") {
            let objects = toml::from_str(&text).map_err(|error| Failure::Document {
                file: file.to_owned(),
                reason: error.to_string().replace('\n', " "),
            })?;
            let document = Document { schema: 0, objects };
            for (kind, table) in document.objects {
                for (name, fields) in table {
                    commands.push(Command::Put { kind, name, fields });
                }
            }
        } else {
            for (at, line) in text.lines().enumerate() {
                let number = at + 1;
                let more = self
                    .line_commands(line)
                    .map_err(|failure| in_line(number, failure))?;
                lines.extend(std::iter::repeat_n(number, more.len()));
                commands.extend(more);
            }
        }
        let done = self.transact(commands, &format!("apply -f {file}"));
        done.map_err(|failure| match &failure {
            Failure::Client(ClientError::Refused(refusal)) => {
                match refusal.command.and_then(|command| lines.get(command)) {
                    Some(line) => in_line(*line, failure),
                    None => failure,
                }
            }
            _ => failure,
        })
    }

    /// The commands of a line that only changes something.
    fn line_commands(&mut self, line: &str) -> Result<Vec<Command>, Failure> {
        let tokens = tokens(line, self.options.lenient)?;
        let tokens = self.expanded(tokens)?;
        let parsed = parse(&tokens)?;
        match parsed.statement {
            Statement::Nothing => Ok(Vec::new()),
            Statement::Change {
                noun,
                name,
                operation,
                ..
            } => self.commands(noun, &name, &operation),
            _ => Err(LanguageError::new(
                "only changes can be applied",
                "use add, set and remove, or run it with -f",
            )
            .into()),
        }
    }

    /// Variables and commands in back quotes as words.
    fn expanded(&mut self, tokens: Vec<Token>) -> Result<Vec<Token>, Failure> {
        let mut expanded = Vec::new();
        for token in tokens {
            let text = match token {
                Token::Command(line) => match self.line(&line)? {
                    Flow::Go(output) => output,
                    Flow::Exit => String::new(),
                },
                Token::Word(word) => match word.strip_prefix('$') {
                    Some(name) => match self.variables.get(name) {
                        Some(value) => value.clone(),
                        None => {
                            return Err(LanguageError::new(
                                format!("there is no variable {name}"),
                                format!("set it first: var {name} = words"),
                            )
                            .into());
                        }
                    },
                    None => {
                        expanded.push(Token::Word(word));
                        continue;
                    }
                },
                other => {
                    expanded.push(other);
                    continue;
                }
            };
            expanded.extend(
                text.split_whitespace()
                    .map(|word| Token::Word(word.to_owned())),
            );
        }
        Ok(expanded)
    }

    fn statement(&mut self, line: &Line, note: &str) -> Result<String, Failure> {
        match &line.statement {
            Statement::Nothing | Statement::Exit => Ok(String::new()),
            Statement::Change {
                noun,
                name,
                operation,
                no_confirm,
            } => {
                let asks = matches!(operation, Operation::Remove) && !no_confirm;
                let asks = asks && !self.options.dry_run;
                if asks && !(self.confirm)(&format!("remove {} {name}?", noun.title())) {
                    return Err(LanguageError::new(
                        "nothing was removed: nobody said yes",
                        "answer y, or add -noconfirm",
                    )
                    .into());
                }
                if let Operation::Needless(why) = operation {
                    return Ok(format!("not needed: {why}\n"));
                }
                let commands = self.commands(noun, name, operation)?;
                self.transact(commands, note)
            }
            Statement::Show(show) => self.show(show),
            Statement::System(system) => self.system(system),
            Statement::Cli(cli) => self.cli(cli),
            Statement::Help(words) => Ok(help::text(words)),
            Statement::Variable { name, value } => {
                self.variables.insert(name.clone(), value.clone());
                Ok(String::new())
            }
        }
    }

    /// The commands for all objects that are meant.
    fn commands(
        &self,
        noun: &Noun,
        name: &str,
        operation: &Operation,
    ) -> Result<Vec<Command>, Failure> {
        if let Operation::ApplyTemplate(template) = operation {
            return self.apply_template(name, template);
        }
        let pattern = name.contains('*') && !matches!(operation, Operation::Add(_));
        let names = match pattern {
            false => vec![name.to_owned()],
            true => {
                let views = self.client.list(noun.kind, name)?;
                views
                    .into_iter()
                    .map(|view| view.name)
                    .take(MATCHES_MAX)
                    .collect()
            }
        };
        if names.is_empty() {
            return Err(LanguageError::new(
                format!("no {} is called {name}", noun.title()),
                format!("see show {}", noun.title()),
            )
            .into());
        }
        let kind = noun.kind;
        let command = |name: String| match operation.clone() {
            Operation::Add(fields) => Command::Add { kind, name, fields },
            Operation::Set(fields) => Command::Set { kind, name, fields },
            Operation::Put(fields) => Command::Put { kind, name, fields },
            Operation::Remove => Command::Remove { kind, name },
            Operation::Act(action) => Command::Act { kind, name, action },
            // Both are done by now.
            Operation::ApplyTemplate(_) | Operation::Needless(_) => Command::Set {
                kind,
                name,
                fields: Default::default(),
            },
        };
        Ok(names.into_iter().map(command).collect())
    }

    /// For the profiles that are connected to some servers; a host's name stands for its servers.
    fn apply_template(&self, server: &str, template: &str) -> Result<Vec<Command>, Failure> {
        let profiles = self.client.list(Kind::ServerProfile, "*")?;
        let behind = format!("{server}@");
        let meant = profiles.into_iter().filter(|profile| {
            let of = show::value_of(profile, "server");
            of == server || of.starts_with(&behind)
        });
        let commands: Vec<_> = meant
            .map(|profile| Command::Act {
                kind: Kind::ServerProfile,
                name: profile.name,
                action: Action::ApplyTemplate {
                    template: template.to_owned(),
                },
            })
            .collect();
        if commands.is_empty() {
            return Err(LanguageError::new(
                format!("no server-profile is connected to {server}"),
                format!("add server-profile NAME {server} first"),
            )
            .into());
        }
        Ok(commands)
    }

    fn transact(&self, commands: Vec<Command>, note: &str) -> Result<String, Failure> {
        let request = Transaction {
            commands,
            dry_run: self.options.dry_run,
            if_revision: None,
            note: note.to_owned(),
        };
        let done = self.client.transact(&request)?;
        self.done(&done)
    }

    fn done(&self, done: &controller_api::Done) -> Result<String, Failure> {
        if self.options.json {
            return Ok(json(done));
        }
        Ok(match done.dry_run || done.outcomes.is_empty() {
            true => show::changes(&done.changes),
            false => show::outcomes(done),
        })
    }

    fn show(&self, show: &Show) -> Result<String, Failure> {
        let (noun, views) = match &show.what {
            ShowWhat::Audit => {
                let entries = self.client.audit()?;
                return Ok(self.either(&entries, |entries| show::audit(entries)));
            }
            ShowWhat::Alarms => {
                let alarms = self.client.alarms()?;
                return Ok(self.either(&alarms, |alarms| show::alarms(alarms)));
            }
            ShowWhat::System => return Ok(json(&self.client.system()?)),
            ShowWhat::Config => return Ok(json(&self.client.export()?)),
            ShowWhat::Part {
                noun,
                pattern,
                field,
            } => {
                let views = self.client.list(noun.kind, pattern)?;
                return Ok(self.either(&views, |views| show::part(field, views)));
            }
            ShowWhat::Devices { kind, pattern } => {
                let noun = crate::nouns::ALL.iter().find(|noun| noun.kind == *kind);
                (
                    noun.copied(),
                    self.client.list(*kind, &format!("*.{pattern}"))?,
                )
            }
            ShowWhat::Objects {
                noun,
                pattern,
                filter,
            } => {
                let mut views = self.client.list(noun.kind, pattern)?;
                if views.is_empty() && !pattern.contains('*') {
                    return Err(LanguageError::new(
                        format!("{} {pattern} does not exist", noun.title()),
                        format!("see show {}", noun.title()),
                    )
                    .into());
                }
                views.retain(|view| filter.as_ref().is_none_or(|filter| filter.holds(view)));
                (Some(*noun), views)
            }
        };
        Ok(match (noun, show.list, show.detail) {
            (_, true, _) => show::names(&views),
            _ if self.options.json => json(&views),
            (Some(noun), _, false) => show::objects(noun, &views),
            _ => show::blocks(&views),
        })
    }

    fn either<T: Serialize>(&self, value: &T, text: impl Fn(&T) -> String) -> String {
        match self.options.json {
            true => json(value),
            false => text(value),
        }
    }

    fn system(&mut self, system: &System) -> Result<String, Failure> {
        let dry_run = self.options.dry_run;
        match system {
            System::Export(file) => {
                let text = json(&self.client.export()?);
                write(file, &text)?;
                Ok(String::new())
            }
            System::Import { file, no_confirm } => {
                let document = serde_json::from_str(&read(file)?);
                let document = document.map_err(|error| Failure::Document {
                    file: file.clone(),
                    reason: error.to_string(),
                })?;
                let question = format!("replace everything by {file}?");
                if !no_confirm && !dry_run && !(self.confirm)(&question) {
                    return Err(LanguageError::new(
                        "nothing was imported: nobody said yes",
                        "answer y, or add -noconfirm",
                    )
                    .into());
                }
                let done = self.client.import(&Import { document, dry_run })?;
                self.done(&done)
            }
            System::Undo => {
                let done = self.client.undo(&Undo { dry_run })?;
                self.done(&done)
            }
        }
    }

    fn cli(&mut self, cli: &Cli) -> Result<String, Failure> {
        self.recording = match cli {
            Cli::StopRecording => None,
            Cli::Record(file) => {
                let new = OpenOptions::new().create(true).append(true).open(file);
                Some(new.map_err(|source| Failure::File {
                    file: file.clone(),
                    source,
                })?)
            }
        };
        Ok(String::new())
    }
}

fn in_line(line: usize, failure: Failure) -> Failure {
    Failure::InLine {
        line,
        failure: Box::new(failure),
    }
}

/// What of an output is to be printed; the rest went where the line says.
fn printed(line: &Line, output: String) -> Result<String, Failure> {
    let kept = |text: &&str| {
        line.greps
            .iter()
            .all(|grep| grep.pattern.is_match(text) != grep.inverted)
    };
    let output = match line.greps.is_empty() {
        true => output,
        false => output
            .lines()
            .filter(kept)
            .map(|line| format!("{line}\n"))
            .collect(),
    };
    match &line.into {
        None => Ok(output),
        Some(file) => {
            write(file, &output)?;
            Ok(String::new())
        }
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

fn read(file: &str) -> Result<String, Failure> {
    std::fs::read_to_string(file).map_err(|source| Failure::File {
        file: file.to_owned(),
        source,
    })
}

fn write(file: &str, text: &str) -> Result<(), Failure> {
    std::fs::write(file, text).map_err(|source| Failure::File {
        file: file.to_owned(),
        source,
    })
}
