//! Lines as words.

use super::LanguageError;

/// A part of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// A word; quotation marks are gone.
    Word(String),
    /// `` `command` ``, whose output stands in its place.
    Command(String),
    /// `|`
    Pipe,
    /// `>`
    Into,
}

/// Splits a line. `lenient` drops a stray `")` at its end, as the original's slides have it.
///
/// # Errors
/// A quotation mark or back quote has no second one.
pub fn tokens(line: &str, lenient: bool) -> Result<Vec<Token>, LanguageError> {
    let line = line.trim();
    let line = match lenient {
        true => line.strip_suffix("\")").unwrap_or(line),
        false => line,
    };
    let mut tokens = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' | '\'' => {
                let quoted = until(&mut characters, character)?;
                word.get_or_insert_default().push_str(&quoted);
            }
            '`' => {
                tokens.extend(word.take().map(Token::Word));
                tokens.push(Token::Command(until(&mut characters, '`')?));
            }
            '>' if word.is_none() && characters.as_str().starts_with('=') => {
                word = Some(">".to_owned());
            }
            '|' | '>' if word.is_none() => {
                tokens.push(if character == '|' {
                    Token::Pipe
                } else {
                    Token::Into
                });
            }
            '#' if word.is_none() => break,
            space if space.is_whitespace() => tokens.extend(word.take().map(Token::Word)),
            // Manuals are printed with dashes that nobody can type.
            '\u{2013}' | '\u{2014}' | '\u{2212}' if word.is_none() => word = Some("-".to_owned()),
            other => word.get_or_insert_default().push(other),
        }
    }
    tokens.extend(word.take().map(Token::Word));
    Ok(tokens)
}

fn until(characters: &mut std::str::Chars<'_>, end: char) -> Result<String, LanguageError> {
    let mut text = String::new();
    for character in characters {
        if character == end {
            return Ok(text);
        }
        text.push(character);
    }
    Err(LanguageError::new(
        format!("{end} has no second one"),
        "close it, or run the script with --lenient if it ends in \")",
    ))
}
