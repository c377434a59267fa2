//! What is wrong with an object, before it is known which command asked for it.

use std::fmt::Display;

use controller_api::{Kind, Refusal, RefusalCode};

/// A [`Refusal`] without its object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) code: RefusalCode,
    pub(crate) problem: String,
    pub(crate) next: String,
}

impl Problem {
    fn new(code: RefusalCode, problem: impl Display, next: impl Display) -> Self {
        Self {
            code,
            problem: problem.to_string(),
            next: next.to_string(),
        }
    }

    /// Wrong in itself.
    pub(crate) fn invalid(problem: impl Display, next: impl Display) -> Self {
        Self::new(RefusalCode::Invalid, problem, next)
    }

    /// Does not fit to what is there.
    pub(crate) fn conflict(problem: impl Display, next: impl Display) -> Self {
        Self::new(RefusalCode::Conflict, problem, next)
    }

    /// Refers to, or is, something that is not there.
    pub(crate) fn not_found(problem: impl Display, next: impl Display) -> Self {
        Self::new(RefusalCode::NotFound, problem, next)
    }

    /// From an error whose text has problem and next step, with a semicolon between.
    pub(crate) fn from_text(error: &impl Display) -> Self {
        let text = error.to_string();
        match text.rsplit_once("; ") {
            Some((problem, next)) => Self::invalid(problem, next),
            None => Self::invalid(text, "correct it"),
        }
    }

    /// Of this object.
    pub(crate) fn of(self, kind: Kind, name: &str) -> Refusal {
        Refusal {
            code: self.code,
            object: format!("{kind} {name}"),
            problem: self.problem,
            next: self.next,
            command: None,
        }
    }
}
