//! The command language: a line becomes tokens, tokens become a [`Statement`].
//!
//! ```text
//! line      := statement { "|" grep ARGUMENTS } [ ">" file ]
//! statement := verb object [name] [subcommand] { "-" option [ "=" value ] }
//! ```

mod filter;
mod parse;
mod statement;
mod token;

pub use filter::Filter;
pub use parse::parse;
pub use statement::{Cli, Grep, Line, Operation, Show, ShowWhat, Statement, System};
pub use token::{Token, tokens};

/// Why a line is not understood: what is wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; {next}")]
pub struct LanguageError {
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub next: String,
}

impl LanguageError {
    pub(crate) fn new(problem: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
            next: next.into(),
        }
    }
}

#[cfg(test)]
mod tests;
