//! Runs programs of the host and turns their failure into one line.

use std::{
    io,
    process::{Command, Stdio},
};

use thiserror::Error;

/// A program of the host did not do its work.
#[derive(Debug, Error)]
pub enum ToolError {
    /// It could not be started.
    #[error("cannot start `{program}`")]
    NotStarted {
        /// Name as given to the system.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It ended with an error.
    #[error("`{command}` failed ({status}): {message}")]
    Failed {
        /// The command line.
        command: String,
        /// Exit status.
        status: String,
        /// The line of its standard error that says most.
        message: String,
    },
}

/// Runs the command to its end and returns its standard output.
pub(crate) fn run(command: &mut Command) -> Result<Vec<u8>, ToolError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ToolError::NotStarted { program, source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(ToolError::Failed {
        command: command_line(command),
        status: output.status.to_string(),
        message: telling_line(&String::from_utf8_lossy(&output.stderr)),
    })
}

pub(crate) fn command_line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The first line that calls itself an error, else the last one that is not empty.
pub(crate) fn telling_line(text: &str) -> String {
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines()
        .find(|line| line.starts_with("E: ") || line.to_ascii_lowercase().starts_with("error"))
        .or_else(|| lines().next_back())
        .unwrap_or("no message")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_failure_of_a_program_names_it_and_its_message() {
        let error =
            run(Command::new("sh").args(["-c", "echo first >&2; echo E: second >&2; exit 3"]))
                .unwrap_err()
                .to_string();
        assert!(
            error.contains("exit status: 3") && error.ends_with("E: second"),
            "{error}"
        );
    }

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        let error = run(&mut Command::new("orimono-no-such-program")).unwrap_err();
        assert_eq!(error.to_string(), "cannot start `orimono-no-such-program`");
    }
}
