//! Completions and man page, from the definition of the language.

use std::io::{self, Write};

use clap::{Arg, Command};
use clap_complete::Shell;

use crate::help;
use crate::nouns::{self, Noun, Verb};

/// `program` with every command of the language as subcommands. Options have two dashes here, as
/// shells want them; both are taken.
#[must_use]
pub fn command(program: Command) -> Command {
    let verbs = Verb::ALL.into_iter().map(|verb| {
        let nouns = nouns::ALL.iter().map(|noun| noun_command(noun, Some(verb)));
        Command::new(verb.text())
            .about(format!("{} objects", verb.text()))
            .subcommands(nouns)
    });
    let show = nouns::ALL.iter().map(|noun| noun_command(noun, None));
    let show = Command::new("show").about("show objects").subcommands(show);
    program.subcommands(verbs).subcommand(show)
}

fn noun_command(noun: &Noun, verb: Option<Verb>) -> Command {
    // Every noun has a name of one word for shells.
    let word = noun
        .names
        .iter()
        .filter(|names| names.len() == 1)
        .find_map(|names| names.first());
    let command = Command::new(word.copied().unwrap_or_default()).about(noun.about);
    let command = command.arg(Arg::new("NAME"));
    match verb {
        Some(Verb::Remove) => command.arg(flag("noconfirm", "do not ask")),
        Some(Verb::Add | Verb::Set) => {
            let options = noun.options.iter().map(|option| {
                Arg::new(option.name)
                    .long(option.name)
                    .value_name(option.form.example())
                    .help(option.about)
            });
            command.args(options)
        }
        None => command
            .arg(flag("detail", "all fields"))
            .arg(flag("list", "names alone")),
    }
}

fn flag(name: &'static str, about: &'static str) -> Arg {
    Arg::new(name).long(name).num_args(0).help(about)
}

/// Writes what completes the program's words in a shell.
pub fn completions(program: Command, shell: Shell, into: &mut dyn Write) {
    clap_complete::generate(shell, &mut command(program), "fabricctl", into);
}

/// Writes the man page.
///
/// # Errors
/// Of `into`.
pub fn man(program: Command, into: &mut dyn Write) -> io::Result<()> {
    clap_mangen::Man::new(program).render(into)?;
    writeln!(into, ".SH LANGUAGE\n.nf")?;
    for noun in nouns::ALL {
        let text = help::text(&[noun.title()]);
        for line in text.lines() {
            // A line that begins with a dot would be a request (groff 5.6).
            writeln!(into, "{}", line.replace('\\', "\\e").replace('-', "\\-"))?;
        }
        writeln!(into)?;
    }
    writeln!(into, ".fi")
}
