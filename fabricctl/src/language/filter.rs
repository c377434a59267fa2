//! `where` of a `show`: which objects.
//!
//! `where if = 10/1 and ( state <> up/up or mtu >= 9000 )`. `xor` binds as `or` does, `and` before both.

use controller_api::View;
use regex::Regex;

use super::LanguageError;
use crate::show::value_of;

/// A condition.
#[derive(Debug, Clone)]
pub enum Filter {
    /// A field compared.
    Compare {
        /// Its name.
        field: String,
        /// How.
        comparison: Comparison,
        /// With what.
        value: String,
    },
    /// A field that is like a regular expression.
    Like {
        /// Its name.
        field: String,
        /// The expression.
        pattern: Regex,
    },
    /// Both.
    And(Box<Self>, Box<Self>),
    /// One, or both.
    Or(Box<Self>, Box<Self>),
    /// One of the two.
    Xor(Box<Self>, Box<Self>),
}

/// How two values compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `=`
    Equal,
    /// `<>`
    Different,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
}

/// Brackets in brackets at most.
const DEPTH_MAX: usize = 32;

impl Filter {
    /// Reads a condition.
    ///
    /// # Errors
    /// [`LanguageError`].
    pub fn parse(words: &[String]) -> Result<Self, LanguageError> {
        // Brackets may touch words.
        let mut parts = Vec::new();
        for word in words {
            let inner = word.trim_start_matches('(');
            parts.extend(std::iter::repeat_n("(", word.len() - inner.len()));
            let core = inner.trim_end_matches(')');
            if !core.is_empty() {
                parts.push(core);
            }
            parts.extend(std::iter::repeat_n(")", inner.len() - core.len()));
        }
        let mut rest = parts.as_slice();
        let filter = either(&mut rest, 0)?;
        match rest.first() {
            None => Ok(filter),
            Some(word) => Err(LanguageError::new(
                format!("{word:?} follows a condition"),
                "write and, or, xor between conditions",
            )),
        }
    }

    /// Whether an object is one of those.
    #[must_use]
    pub fn holds(&self, view: &View) -> bool {
        match self {
            Self::Compare {
                field,
                comparison,
                value,
            } => comparison.holds(&value_of(view, field), value),
            Self::Like { field, pattern } => pattern.is_match(&value_of(view, field)),
            Self::And(left, right) => left.holds(view) && right.holds(view),
            Self::Or(left, right) => left.holds(view) || right.holds(view),
            Self::Xor(left, right) => left.holds(view) != right.holds(view),
        }
    }
}

impl Comparison {
    fn holds(self, left: &str, right: &str) -> bool {
        let numbers = left.parse::<f64>().ok().zip(right.parse::<f64>().ok());
        let order = match numbers {
            Some((left, right)) => left.partial_cmp(&right),
            None => Some(left.cmp(right)),
        };
        let Some(order) = order else { return false };
        match self {
            Self::Equal => order.is_eq(),
            Self::Different => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        }
    }
}

fn either(rest: &mut &[&str], depth: usize) -> Result<Filter, LanguageError> {
    let mut left = both(rest, depth)?;
    while let Some((word, after)) = rest.split_first() {
        let join = match *word {
            "or" => Filter::Or,
            "xor" => Filter::Xor,
            _ => break,
        };
        *rest = after;
        left = join(Box::new(left), Box::new(both(rest, depth)?));
    }
    Ok(left)
}

fn both(rest: &mut &[&str], depth: usize) -> Result<Filter, LanguageError> {
    let mut left = condition(rest, depth)?;
    while let Some((&"and", after)) = rest.split_first() {
        *rest = after;
        left = Filter::And(Box::new(left), Box::new(condition(rest, depth)?));
    }
    Ok(left)
}

fn condition(rest: &mut &[&str], depth: usize) -> Result<Filter, LanguageError> {
    if let Some((&"(", after)) = rest.split_first() {
        if depth == DEPTH_MAX {
            return Err(LanguageError::new("too many brackets", "use fewer"));
        }
        *rest = after;
        let inner = either(rest, depth + 1)?;
        let Some((&")", after)) = rest.split_first() else {
            return Err(LanguageError::new("( has no )", "close it"));
        };
        *rest = after;
        return Ok(inner);
    }
    let [field, operator, value, after @ ..] = rest else {
        return Err(LanguageError::new(
            "a condition is not complete",
            "write it like: where if = 10/1",
        ));
    };
    *rest = after;
    let field = (*field).to_owned();
    let comparison = match *operator {
        "=" => Comparison::Equal,
        "<>" => Comparison::Different,
        "<" => Comparison::Less,
        "<=" => Comparison::LessOrEqual,
        ">" => Comparison::Greater,
        ">=" => Comparison::GreaterOrEqual,
        "like" => {
            let pattern = Regex::new(value).map_err(|error| {
                LanguageError::new(
                    format!("{value:?} is no regular expression: {}", first_line(&error)),
                    "write one like vn.*",
                )
            })?;
            return Ok(Filter::Like { field, pattern });
        }
        other => {
            return Err(LanguageError::new(
                format!("{other:?} is no comparison"),
                "use =, <>, <, <=, >, >= or like",
            ));
        }
    };
    Ok(Filter::Compare {
        field,
        comparison,
        value: (*value).to_owned(),
    })
}

fn first_line(error: &regex::Error) -> String {
    error
        .to_string()
        .lines()
        .last()
        .unwrap_or_default()
        .trim()
        .to_owned()
}
