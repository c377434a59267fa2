//! `fabricctl`: asks and changes a controller in the original's command language.
//!
//! Exit codes: 0 done; 1 failed or refused; 2 wrong usage.
#![forbid(unsafe_code)]

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use fabricctl::client::Client;
use fabricctl::language::Token;
use fabricctl::manual;
use fabricctl::plan::Site;
use fabricctl::session::{Flow, Options, Session};

mod shell;

/// Asks and changes the controller of a fabric
///
/// Without a command it reads lines until exit. fabricctl help lists what can be said.
#[derive(Debug, Parser)]
#[command(name = "fabricctl", version, disable_help_subcommand = true)]
struct Arguments {
    /// The controller's socket
    #[arg(
        long,
        value_name = "PATH",
        env = "ORIMONO_CONTROLLER",
        default_value = controller_api::SOCKET_DEFAULT
    )]
    socket: PathBuf,
    /// Run the lines of this file; the first that fails ends it
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    script: Option<PathBuf>,
    /// Take lines that end in a stray ")
    #[arg(long)]
    lenient: bool,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// JSON in place of tables
    #[arg(long)]
    json: bool,
    /// Act for another user; for administrators
    #[arg(long = "as", value_name = "USER")]
    acting_for: Option<String>,
    #[command(subcommand)]
    command: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Makes all that a file says, or nothing of it
    Apply {
        /// Objects as TOML if it ends in .toml, else lines
        #[arg(short = 'f', long = "file", value_name = "FILE")]
        file: String,
        /// Say what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Says what a site takes and costs, without a fabric and with one
    Plan {
        /// The site; fabricctl/samples has one
        #[arg(value_name = "FILE")]
        site: PathBuf,
    },
    /// Writes what completes words in a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Writes the man page
    Man,
    /// A line of the language
    #[command(external_subcommand)]
    Line(Vec<String>),
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With standard error closed there is nobody to tell.
            drop(writeln!(std::io::stderr(), "fabricctl: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let also_dry = matches!(arguments.command, Some(Task::Apply { dry_run: true, .. }));
    let options = Options {
        json: arguments.json,
        lenient: arguments.lenient,
        dry_run: arguments.dry_run || also_dry,
    };
    let connect = || Client::new(&arguments.socket, arguments.acting_for.clone());
    let client = connect();
    let mut session = Session::new(client, options, confirm);
    if let Some(file) = arguments.script {
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("script {} cannot be read", file.display()))?;
        return Ok(session.script(&text, print)?);
    }
    match arguments.command {
        Some(Task::Apply { file, .. }) => print(&session.apply(&file)?),
        Some(Task::Plan { site }) => {
            let text = std::fs::read_to_string(&site)
                .with_context(|| format!("site {} cannot be read", site.display()))?;
            let plan: Site = toml::from_str(&text)
                .with_context(|| format!("site {} is not complete", site.display()))?;
            print(&plan.text());
        }
        Some(Task::Completions { shell }) => {
            manual::completions(Arguments::command(), shell, &mut std::io::stdout());
        }
        Some(Task::Man) => manual::man(Arguments::command(), &mut std::io::stdout())?,
        Some(Task::Line(words)) => one(&mut session, &words)?,
        None if std::io::stdin().is_terminal() => shell::run(&mut session, connect())?,
        None => lines(&mut session)?,
    }
    Ok(())
}

/// A line that the calling shell took apart already, unless it is one word.
fn one(session: &mut Session, words: &[String]) -> Result<()> {
    let flow = match words {
        [line] => session.line(line)?,
        words => {
            let tokens = words.iter().cloned().map(Token::Word).collect();
            session.tokens(tokens, &words.join(" "))?
        }
    };
    if let Flow::Go(output) = flow {
        print(&output);
    }
    Ok(())
}

/// Lines of standard input.
fn lines(session: &mut Session) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        match session.line(&line?) {
            Ok(Flow::Go(output)) => print(&output),
            Ok(Flow::Exit) => break,
            Err(failure) => drop(writeln!(std::io::stderr(), "{failure}")),
        }
    }
    Ok(())
}

fn print(text: &str) {
    // Whoever closed the pipe wants no more.
    drop(std::io::stdout().write_all(text.as_bytes()));
}

/// Asks on the terminal; without one the answer is no.
fn confirm(question: &str) -> bool {
    let input = std::io::stdin();
    if !input.is_terminal() {
        return false;
    }
    let mut error = std::io::stderr();
    if write!(error, "{question} [y/N] ")
        .and_then(|()| error.flush())
        .is_err()
    {
        return false;
    }
    let mut answer = String::new();
    input.read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "yes")
}
