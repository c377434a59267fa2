//! What may come next in a line.

use controller_api::Kind;

use crate::nouns::{self, Noun, Verb};

/// The words that a line may go on with at its end; `names` knows what objects there are.
#[must_use]
pub fn candidates(line: &str, names: impl Fn(Kind) -> Vec<String>) -> Vec<String> {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    let begun = match line.ends_with(char::is_whitespace) || words.is_empty() {
        true => "",
        false => words.pop().unwrap_or_default(),
    };
    let mut all = following(&words, begun, names);
    all.retain(|word| word.starts_with(begun) && word != begun);
    all.sort();
    all.dedup();
    all
}

fn following(words: &[&str], begun: &str, names: impl Fn(Kind) -> Vec<String>) -> Vec<String> {
    let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let Some((verb, rest)) = words.split_first() else {
        return own(&[
            "add", "set", "remove", "show", "system", "cli", "help", "undo", "var", "exit",
        ]);
    };
    match *verb {
        "system" if rest.is_empty() => return own(&["export", "import", "undo"]),
        "cli" if rest.is_empty() => return own(&["record-script", "stop-recording"]),
        "add" | "set" | "remove" | "show" | "help" => {}
        _ => return Vec::new(),
    }
    let named = |noun: &&&Noun| noun.names.iter().any(|names| rest.starts_with(names));
    let Some(noun) = nouns::ALL.iter().find(named) else {
        let begins = |names: &&&[&str]| names.starts_with(rest);
        let all = nouns::ALL.iter().flat_map(|noun| noun.names.iter());
        let mut next: Vec<_> = all
            .filter(begins)
            .filter_map(|names| names.get(rest.len()).map(|word| (*word).to_owned()))
            .collect();
        if *verb == "show" && rest.is_empty() {
            next.extend(["audit", "alarms", "config"].map(str::to_owned));
        }
        return next;
    };
    let length = noun
        .names
        .iter()
        .filter(|names| rest.starts_with(names))
        .map(|names| names.len());
    let rest = rest
        .get(length.max().unwrap_or_default()..)
        .unwrap_or_default();
    let rest = rest.strip_prefix(noun.filler).unwrap_or(rest);
    if rest.is_empty() && noun.only.is_none() {
        return match *verb {
            "add" | "help" => Vec::new(),
            _ => names(noun.kind),
        };
    }
    if *verb == "show" {
        let parts = noun.parts.iter().map(|(word, _)| (*word).to_owned());
        let others = ["-detail", "-list", "where"].map(str::to_owned);
        return parts.chain(others).collect();
    }
    let Some(verb) = Verb::ALL.into_iter().find(|one| one.text() == *verb) else {
        return Vec::new();
    };
    let words = rest.get(1..).unwrap_or_default();
    let mut next = Vec::new();
    if begun.starts_with('-') || !words.is_empty() || begun.is_empty() {
        let options = if verb == Verb::Remove {
            &[]
        } else {
            noun.options
        };
        next.extend(options.iter().map(|option| format!("-{}=", option.name)));
        if verb == Verb::Remove {
            next.push("-noconfirm".to_owned());
        }
    }
    for one in noun.subcommands.iter().filter(|one| one.verb == verb) {
        if one.words.starts_with(words) {
            next.extend(one.words.get(words.len()).map(|word| (*word).to_owned()));
        }
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_on_with_what_the_language_has_there() {
        let names = |kind| match kind {
            Kind::Vnic => vec!["vn01.s1".to_owned(), "vn02.s1".to_owned()],
            _ => Vec::new(),
        };
        let after = |line| candidates(line, names);
        assert_eq!(after("sh"), ["show"]);
        assert_eq!(after("add vn"), ["vnic"]);
        assert_eq!(after("show qos "), ["network", "san"]);
        assert_eq!(after("set vnic "), ["vn01.s1", "vn02.s1"]);
        assert_eq!(after("set vnic vn01.s1 -ip"), ["-ip-addr="]);
        assert!(after("set vnic vn01.s1 add ").contains(&"allowed-vlans".to_owned()));
        assert_eq!(after("set vnic vn01.s1 sw"), ["switchover"]);
        assert_eq!(after("remove vnic vn01.s1 "), ["-noconfirm"]);
        assert!(after("nonsense ").is_empty());
    }
}
