//! What can be said, from the one definition.

use crate::nouns::{self, Noun, Opt, Verb};

/// Commands that are about no object.
pub(crate) const OTHERS: &[(&str, &str)] = &[
    ("show audit", "who changed what"),
    ("show alarms", "what wants attention"),
    ("show system", "the controller, and who you are to it"),
    ("show config", "the whole model"),
    ("undo", "takes back the last change"),
    ("system export FILE", "writes the model to a file"),
    (
        "system import FILE [-noconfirm]",
        "makes the model what a file says",
    ),
    (
        "cli record-script FILE",
        "writes every line that is done to a file",
    ),
    ("cli stop-recording", "no longer"),
    (
        "var NAME = WORDS",
        "keeps words, or the output of `COMMAND`, for $NAME",
    ),
    ("exit", "ends the session"),
];

/// The help about some words.
#[must_use]
pub fn text(words: &[String]) -> String {
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let words = match words.as_slice() {
        ["add" | "set" | "remove" | "show", rest @ ..] => rest,
        all => all,
    };
    let asked = words.join(" ");
    let found = nouns::ALL.iter().find(|noun| {
        noun.names
            .iter()
            .any(|name| name.join(" ") == asked.trim_end_matches('s'))
    });
    match found {
        Some(noun) => of_noun(noun),
        None => overview(),
    }
}

fn overview() -> String {
    let mut text = String::from("add|set|remove|show OBJECT ...; help OBJECT says more\n\n");
    for noun in nouns::ALL {
        text += &entry(&noun.title(), noun.about);
    }
    text.push('\n');
    for (usage, about) in OTHERS {
        text += &entry(usage, about);
    }
    text + "\nshow OBJECT [NAME|PATTERN] [-detail] [-list] [where FIELD = VALUE and ...]\n\
            a line may end in: | grep PATTERN, and > FILE\n"
}

fn of_noun(noun: &Noun) -> String {
    let title = noun.title();
    let mut text = format!("{title}: {}\n\n", noun.about);
    text += &format!("  add {title} {}\n", noun.example);
    for verb in Verb::ALL {
        for one in noun.subcommands.iter().filter(|one| one.verb == verb) {
            text += &entry(&one.usage(noun), one.about);
        }
    }
    text += &format!("  remove {title} NAME [-noconfirm]\n");
    text += &format!(
        "  show {title} [NAME|PATTERN] [-detail] [where ...]\n\noptions of add and set:\n"
    );
    for option in noun.options {
        text += &entry(&usage(option), option.about);
    }
    text
}

/// How an option is written.
#[must_use]
pub fn usage(option: &Opt) -> String {
    format!("-{}={}", option.name, option.form.example())
}

fn entry(usage: &str, about: &str) -> String {
    format!("  {usage:<38} {about}\n")
}
