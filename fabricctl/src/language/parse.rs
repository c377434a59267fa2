//! Tokens as a [`Line`].

use controller_api::{Fields, Kind};
use regex::Regex;
use serde_json::Value;

use super::statement::{Cli, Grep, Line, Operation, Show, ShowWhat, Statement, System};
use super::{Filter, LanguageError, Token};
use crate::nouns::{self, Effect, Form, Noun, Subcommand, Verb};

/// Reads a line. Commands in back quotes are done by now.
///
/// # Errors
/// [`LanguageError`].
pub fn parse(tokens: &[Token]) -> Result<Line, LanguageError> {
    let (command, greps, into) = pipeline(tokens)?;
    Ok(Line {
        statement: statement(&command)?,
        greps,
        into,
    })
}

type Pipeline = (Vec<String>, Vec<Grep>, Option<String>);

fn pipeline(tokens: &[Token]) -> Result<Pipeline, LanguageError> {
    let mut parts: Vec<Vec<String>> = vec![Vec::new()];
    let mut into = None;
    let mut tokens = tokens.iter();
    while let Some(token) = tokens.next() {
        let words = match parts.last_mut() {
            Some(words) => words,
            None => break,
        };
        match token {
            Token::Word(word) => words.push(word.clone()),
            Token::Command(_) => {
                return Err(LanguageError::new(
                    "` stands where no command can",
                    "leave it out",
                ));
            }
            Token::Into if wants_comparison(words) => words.push(">".to_owned()),
            Token::Into => {
                let (Some(Token::Word(file)), None) = (tokens.next(), tokens.next()) else {
                    return Err(LanguageError::new(
                        "> wants one file, at the end of the line",
                        "write it like: show vnics > allvnics",
                    ));
                };
                into = Some(file.clone());
            }
            Token::Pipe => parts.push(Vec::new()),
        }
    }
    let command = parts.remove(0);
    let greps = parts
        .iter()
        .map(|words| grep(words))
        .collect::<Result<_, _>>()?;
    Ok((command, greps, into))
}

/// Whether `>` compares here: behind the name of a field in a `where`.
fn wants_comparison(words: &[String]) -> bool {
    let Some(at) = words.iter().rposition(|word| {
        matches!(word.as_str(), "where" | "and" | "or" | "xor") || word.ends_with('(')
    }) else {
        return false;
    };
    words.iter().any(|word| word == "where") && at + 2 == words.len()
}

fn grep(words: &[String]) -> Result<Grep, LanguageError> {
    let wrong = || LanguageError::new("only grep [-v] [-i] PATTERN can follow |", "use that");
    let [grep, flags @ .., pattern] = words else {
        return Err(wrong());
    };
    let (mut inverted, mut prefix) = (false, "");
    if grep != "grep" {
        return Err(wrong());
    }
    for flag in flags {
        match flag.as_str() {
            "-v" => inverted = true,
            "-i" => prefix = "(?i)",
            "-E" => {}
            _ => return Err(wrong()),
        }
    }
    let pattern = Regex::new(&format!("{prefix}{pattern}")).map_err(|_error| {
        LanguageError::new(
            format!("{pattern:?} is no regular expression"),
            "write one like down",
        )
    })?;
    Ok(Grep { pattern, inverted })
}

fn statement(words: &[String]) -> Result<Statement, LanguageError> {
    let Some((verb, rest)) = words.split_first() else {
        return Ok(Statement::Nothing);
    };
    match verb.as_str() {
        "add" => change(Verb::Add, rest),
        "set" => change(Verb::Set, rest),
        "remove" => change(Verb::Remove, rest),
        "show" => show(rest),
        "system" => system(rest),
        "cli" => cli(rest),
        "undo" => Ok(Statement::System(System::Undo)),
        "help" | "?" => Ok(Statement::Help(rest.to_vec())),
        "var" => variable(rest),
        "exit" | "quit" => Ok(Statement::Exit),
        other => Err(LanguageError::new(
            format!("{other:?} is no command"),
            "use add, set, remove, show, system, cli, var, undo, help or exit",
        )),
    }
}

fn variable(words: &[String]) -> Result<Statement, LanguageError> {
    let [name, equals, value @ ..] = words else {
        return Err(LanguageError::new(
            "var is not complete",
            "write it like: var x = words",
        ));
    };
    if equals != "=" {
        return Err(LanguageError::new(
            "var wants a =",
            "write it like: var x = words",
        ));
    }
    Ok(Statement::Variable {
        name: name.clone(),
        value: value.join(" "),
    })
}

fn cli(words: &[String]) -> Result<Statement, LanguageError> {
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["record-script", file] => Ok(Statement::Cli(Cli::Record((*file).to_owned()))),
        ["stop-recording"] => Ok(Statement::Cli(Cli::StopRecording)),
        _ => Err(LanguageError::new(
            "cli cannot do that",
            "use cli record-script FILE or cli stop-recording",
        )),
    }
}

fn system(words: &[String]) -> Result<Statement, LanguageError> {
    let (options, words): (Vec<_>, Vec<_>) = words.iter().partition(|word| word.starts_with('-'));
    let no_confirm = options.iter().any(|option| is_option(option, "noconfirm"));
    let words: Vec<_> = words.into_iter().map(String::as_str).collect();
    match words.as_slice() {
        ["export", file] => Ok(Statement::System(System::Export((*file).to_owned()))),
        ["import", file] => Ok(Statement::System(System::Import {
            file: (*file).to_owned(),
            no_confirm,
        })),
        ["undo"] => Ok(Statement::System(System::Undo)),
        _ => Err(LanguageError::new(
            "system cannot do that",
            "use system export FILE, system import FILE or system undo",
        )),
    }
}

/// Whether a word is an option of this name; two dashes are as good as one.
fn is_option(word: &str, name: &str) -> bool {
    word.trim_start_matches('-') == name && word.starts_with('-')
}

/// The noun at the beginning of some words, and what follows it.
fn noun(words: &[String], plural: bool) -> Result<(&'static Noun, &[String]), LanguageError> {
    let found = nouns::ALL.iter().copied().flat_map(|noun| {
        let names = noun.names.iter().map(move |names| (noun, *names));
        names.filter_map(|(noun, names)| {
            let at = words.get(..names.len())?;
            let (last, first) = names.split_last()?;
            let (is, begin) = at.split_last()?;
            let begins = begin.iter().map(String::as_str).eq(first.iter().copied());
            let ends = is == last || (plural && is.strip_suffix('s') == Some(last));
            (begins && ends).then_some((noun, names.len()))
        })
    });
    let longest = found.max_by_key(|(_, length)| *length);
    let (noun, length) = longest.ok_or_else(|| {
        let all: Vec<_> = nouns::ALL.iter().map(|noun| noun.title()).collect();
        match words.first() {
            Some(word) => LanguageError::new(
                format!("{word:?} is no object"),
                format!("use one of {}", all.join(", ")),
            ),
            None => LanguageError::new(
                "no object is named",
                format!("name one of {}", all.join(", ")),
            ),
        }
    })?;
    Ok((noun, words.get(length..).unwrap_or_default()))
}

fn change(verb: Verb, words: &[String]) -> Result<Statement, LanguageError> {
    let (noun, rest) = noun(words, false)?;
    let (options, words): (Vec<&String>, Vec<&String>) = rest
        .iter()
        .partition(|word| word.starts_with('-') && word.len() > 1);
    let mut no_confirm = false;
    let options: Vec<&str> = options
        .into_iter()
        .filter(|option| {
            let asks = is_option(option, "noconfirm");
            no_confirm |= asks;
            !asks
        })
        .map(String::as_str)
        .collect();
    let words: Vec<&str> = words.into_iter().map(String::as_str).collect();
    let words = words.strip_prefix(noun.filler).unwrap_or(&words);
    let (name, words) = match (noun.only, words.split_first()) {
        (Some(only), _) => (only, words),
        (None, Some((name, words))) => (*name, words),
        (None, None) => {
            return Err(LanguageError::new(
                format!("{} {} names nothing", verb.text(), noun.title()),
                format!(
                    "write it like: {} {} {}",
                    verb.text(),
                    noun.title(),
                    noun.example
                ),
            ));
        }
    };
    let operation = operation(verb, noun, words, &options)?;
    Ok(Statement::Change {
        noun,
        name: name.to_owned(),
        operation,
        no_confirm,
    })
}

fn operation(
    verb: Verb,
    noun: &'static Noun,
    words: &[&str],
    options: &[&str],
) -> Result<Operation, LanguageError> {
    let mut fields = Fields::new();
    if let Some((subcommand, arguments)) = subcommand(verb, noun, words)? {
        return run_subcommand(noun, subcommand, arguments, options);
    }
    for option in options {
        put_option(&mut fields, noun, noun.options, option)?;
    }
    match (verb, words) {
        (Verb::Add, []) => Ok(Operation::Add(fields)),
        (Verb::Add, [value]) if noun.positional.is_some() => {
            put_positional(&mut fields, noun, value)?;
            Ok(Operation::Add(fields))
        }
        (Verb::Set, []) if fields.is_empty() => Err(LanguageError::new(
            "nothing is to be set",
            format!("say what; help set {} lists it", noun.title()),
        )),
        (Verb::Set, []) => Ok(Operation::Set(fields)),
        (Verb::Remove, []) if fields.is_empty() => Ok(Operation::Remove),
        (verb, words) => Err(LanguageError::new(
            format!(
                "{} {} does not take {:?}",
                verb.text(),
                noun.title(),
                words.first().or(options.first()).unwrap_or(&"")
            ),
            format!("see help {} {}", verb.text(), noun.title()),
        )),
    }
}

fn put_positional(fields: &mut Fields, noun: &Noun, value: &str) -> Result<(), LanguageError> {
    let Some((_, field)) = noun.positional else {
        return Ok(());
    };
    put(fields, &[field], text_or_null(value));
    Ok(())
}

type Found<'w> = Option<(&'static Subcommand, &'w [&'w str])>;

/// The subcommand that words begin with.
fn subcommand<'w>(
    verb: Verb,
    noun: &'static Noun,
    words: &'w [&'w str],
) -> Result<Found<'w>, LanguageError> {
    let of_verb = noun.subcommands.iter().filter(|one| one.verb == verb);
    let fitting = of_verb.filter(|one| words.starts_with(one.words));
    let Some(found) = fitting.max_by_key(|one| one.words.len()) else {
        return Ok(None);
    };
    let arguments = words.get(found.words.len()..).unwrap_or_default();
    if !(found.least..=found.arguments.len()).contains(&arguments.len()) {
        return Err(LanguageError::new(
            format!("{} takes other words", found.words.join(" ")),
            format!("write it like: {}", found.usage(noun)),
        ));
    }
    Ok(Some((found, arguments)))
}

fn run_subcommand(
    noun: &'static Noun,
    subcommand: &'static Subcommand,
    arguments: &[&str],
    options: &[&str],
) -> Result<Operation, LanguageError> {
    if let Effect::Nested { noun: inner, field } = subcommand.effect {
        let mut fields = Fields::new();
        for option in options {
            put_option(&mut fields, inner, inner.options, option)?;
        }
        let [device, rest @ ..] = arguments else {
            return Err(LanguageError::new(
                "no device is named",
                subcommand.usage(noun),
            ));
        };
        if let [value] = rest {
            put_positional(&mut fields, inner, value)?;
        }
        let mut all = Fields::new();
        put(&mut all, &[field, device], Value::Object(fields));
        return Ok(Operation::Set(all));
    }
    let mut given = Fields::new();
    for option in options {
        let own = subcommand
            .options
            .iter()
            .any(|one| option_name(option) == one.name);
        let options = if own {
            subcommand.options
        } else {
            noun.options
        };
        put_option(&mut given, noun, options, option)?;
    }
    let operation = match subcommand.effect {
        Effect::Do(effect) => effect(arguments).map_err(|problem| {
            LanguageError::new(
                problem,
                format!("write it like: {}", subcommand.usage(noun)),
            )
        })?,
        Effect::Nested { .. } => Operation::Set(Fields::new()),
    };
    Ok(match operation {
        Operation::Set(mut fields) => {
            merge(&mut fields, given);
            Operation::Set(fields)
        }
        other if given.is_empty() => other,
        _ => {
            return Err(LanguageError::new(
                format!("{} takes no options", subcommand.words.join(" ")),
                "leave them out",
            ));
        }
    })
}

fn merge(into: &mut Fields, other: Fields) {
    for (name, value) in other {
        match (into.get_mut(&name), value) {
            (Some(Value::Object(inner)), Value::Object(other)) => merge(inner, other),
            (_, value) => drop(into.insert(name, value)),
        }
    }
}

fn option_name(option: &str) -> &str {
    let name = option.split('=').next().unwrap_or(option);
    name.trim_start_matches('-')
}

fn put_option(
    fields: &mut Fields,
    noun: &Noun,
    options: &'static [nouns::Opt],
    option: &str,
) -> Result<(), LanguageError> {
    let name = option_name(option);
    let Some(known) = options.iter().find(|one| one.name == name) else {
        let all: Vec<_> = options.iter().map(|one| format!("-{}", one.name)).collect();
        return Err(LanguageError::new(
            format!("{} has no option -{name}", noun.title()),
            match all.is_empty() {
                true => "leave it out".to_owned(),
                false => format!("use one of {}", all.join(", ")),
            },
        ));
    };
    let value = option.split_once('=').map(|(_, value)| value);
    let value = read(known.form, name, value)?;
    put(fields, known.field, value);
    Ok(())
}

fn text_or_null(text: &str) -> Value {
    match text {
        "none" | "default" | "" => Value::Null,
        text => Value::String(text.to_owned()),
    }
}

fn read(form: Form, name: &str, value: Option<&str>) -> Result<Value, LanguageError> {
    let Some(value) = value else {
        return match form {
            Form::Flag => Ok(Value::Bool(true)),
            _ => Err(LanguageError::new(
                format!("-{name} has no value"),
                format!("write it like -{name}={}", form.example()),
            )),
        };
    };
    let wrong = || {
        LanguageError::new(
            format!("-{name}={value} is not possible"),
            format!("write it like -{name}={}", form.example()),
        )
    };
    if matches!(value, "none" | "default") && form != Form::Word {
        return Ok(Value::Null);
    }
    match form {
        Form::Text => Ok(text_or_null(value)),
        Form::Word => Ok(Value::String(value.to_owned())),
        Form::Flag => value.parse().map(Value::Bool).map_err(|_not_one| wrong()),
        Form::Number => value
            .parse::<u64>()
            .map(Value::from)
            .map_err(|_not_one| wrong()),
        Form::Texts => Ok(value.split(',').map(Value::from).collect()),
        Form::WwnSuffix => {
            let hex = value.len() == 12 && value.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !hex {
                return Err(wrong());
            }
            let pairs: Vec<_> = value
                .as_bytes()
                .chunks(2)
                .map(String::from_utf8_lossy)
                .collect();
            Ok(Value::String(
                format!("30:00:{}", pairs.join(":")).to_lowercase(),
            ))
        }
        Form::Luns => luns(value).ok_or_else(wrong),
    }
}

/// `0:data,1:logs`, or numbers alone like `0,2-5` for LUNs called `lun0`, `lun2`...
fn luns(text: &str) -> Option<Value> {
    let mut luns = Fields::new();
    for part in text.split(',') {
        if let Some((number, name)) = part.split_once(':') {
            let number: u16 = number.parse().ok()?;
            luns.insert(number.to_string(), Value::String(name.to_owned()));
            continue;
        }
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        for number in first..=last {
            luns.insert(number.to_string(), Value::String(format!("lun{number}")));
        }
    }
    (!luns.is_empty()).then_some(Value::Object(luns))
}

/// Puts a value into objects in objects.
fn put(fields: &mut Fields, path: &[&str], value: Value) {
    match path {
        [] => {}
        [name] => drop(fields.insert((*name).to_owned(), value)),
        [name, rest @ ..] => {
            let inner = fields
                .entry((*name).to_owned())
                .or_insert_with(|| Fields::new().into());
            if let Value::Object(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

fn show(words: &[String]) -> Result<Statement, LanguageError> {
    let (words, condition) = match words.iter().position(|word| word == "where") {
        Some(at) => (words.get(..at), words.get(at + 1..)),
        None => (Some(words), None),
    };
    let words = words.unwrap_or_default();
    let filter = condition.map(Filter::parse).transpose()?;
    let (options, words): (Vec<_>, Vec<_>) = words
        .iter()
        .cloned()
        .partition(|word| word.starts_with('-') && word.len() > 1);
    let (mut detail, mut list) = (false, false);
    for option in &options {
        match option_name(option) {
            "detail" => detail = true,
            "list" => list = true,
            other => {
                return Err(LanguageError::new(
                    format!("show has no option -{other}"),
                    "use -detail or -list",
                ));
            }
        }
    }
    let texts: Vec<_> = words.iter().map(String::as_str).collect();
    let what = match texts.as_slice() {
        ["audit" | "log"] => ShowWhat::Audit,
        ["alarm" | "alarms"] => ShowWhat::Alarms,
        ["system"] | ["system", "info"] => ShowWhat::System,
        ["config"] => ShowWhat::Config,
        _ => show_objects(&words, filter)?,
    };
    Ok(Statement::Show(Show { what, detail, list }))
}

fn show_objects(words: &[String], filter: Option<Filter>) -> Result<ShowWhat, LanguageError> {
    let (noun, rest) = noun(words, true)?;
    let rest: Vec<_> = rest.iter().map(String::as_str).collect();
    let rest = rest.strip_prefix(noun.filler).unwrap_or(&rest);
    let (pattern, part) = match rest {
        [] => ("*", None),
        [pattern] => (*pattern, None),
        [pattern, part] => (*pattern, Some(*part)),
        [_, _, other, ..] => {
            return Err(LanguageError::new(
                format!("show {} does not take {other:?}", noun.title()),
                "leave it out, or write where before a condition",
            ));
        }
    };
    let pattern = pattern.to_owned();
    let Some(part) = part else {
        return Ok(ShowWhat::Objects {
            noun,
            pattern,
            filter,
        });
    };
    if noun.kind == Kind::ServerProfile {
        let kind = match part {
            "vnics" | "vnic" => Some(Kind::Vnic),
            "vhbas" | "vhba" => Some(Kind::Vhba),
            _ => None,
        };
        if let Some(kind) = kind {
            return Ok(ShowWhat::Devices { kind, pattern });
        }
    }
    match noun.parts.iter().find(|(word, _)| *word == part) {
        Some((_, field)) => Ok(ShowWhat::Part {
            noun,
            pattern,
            field,
        }),
        None => Err(LanguageError::new(
            format!("{} has no {part:?} to show", noun.title()),
            "leave it out: show ... -detail has all fields",
        )),
    }
}
