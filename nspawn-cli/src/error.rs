//! What a command reports when it fails: the error, its causes, what to do, and the exit status.

use std::error::Error as StdError;
use std::fmt::Display;
use std::io::Write as _;

use nspawn_core::MachineError;
use nspawn_image::{ErrorKind, ImageError};
use serde::{Deserialize, Serialize};

/// Exit status of `unit`, `exec`, `shell` and `wait` for a failure of their own.
const OWN_FAILURE: u8 = 125;

/// Whose fault a failure is; it chooses the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// It was tried and failed: 1.
    Failure,
    /// The command line or a file it names is wrong: 2.
    Usage,
    /// This host cannot: 3.
    Host,
    /// The user ended it by a signal: 128 and the signal.
    Interrupted(u8),
    /// The payload failed, and this is its own status.
    Payload(u8),
}

/// A failed command.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CommandError {
    kind: Kind,
    message: String,
    causes: Vec<String>,
    hints: Vec<String>,
    /// Lines shown below, such as a unit's journal.
    details: Vec<String>,
}

impl CommandError {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            causes: Vec::new(),
            hints: Vec::new(),
            details: Vec::new(),
        }
    }

    /// Adds a cause and its causes.
    pub(crate) fn because(mut self, error: impl StdError) -> Self {
        let mut next: Option<&dyn StdError> = Some(&error);
        while let Some(error) = next {
            let text = error.to_string();
            // some libraries repeat their cause in their own text
            if !self.causes.last().is_some_and(|last| last.contains(&text))
                && !self.message.contains(&text)
            {
                self.causes.push(text);
            }
            next = error.source();
        }
        self
    }

    /// Adds what to do.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Adds lines to show below the error.
    pub(crate) fn details(mut self, heading: &str, text: &str) -> Self {
        if !text.trim().is_empty() {
            self.details.push(heading.to_owned());
            self.details
                .extend(text.lines().map(|line| format!("  {line}")));
        }
        self
    }

    /// The exit status; `passes_on` says that the command's status is otherwise the payload's.
    pub(crate) fn exit_status(&self, passes_on: bool) -> u8 {
        match self.kind {
            Kind::Interrupted(signal) => 128 + signal,
            Kind::Payload(status) => status,
            _ if passes_on => OWN_FAILURE,
            Kind::Failure => 1,
            Kind::Usage => 2,
            Kind::Host => 3,
        }
    }

    /// Writes it to standard error.
    pub(crate) fn print(&self) {
        let mut text = format!("error: {}\n", self.message);
        let mut line = |label: &str, value: &dyn Display| text += &format!("  {label}{value}\n");
        for cause in &self.causes {
            line("caused by: ", cause);
        }
        for hint in &self.hints {
            line("hint: ", hint);
        }
        for detail in &self.details {
            line("", detail);
        }
        // standard error may be closed; there is nobody left to tell
        let _ = std::io::stderr().write_all(text.as_bytes());
    }

    fn from_library(kind: Kind, error: &dyn StdError, hint: Option<String>) -> Self {
        let mut command_error = Self::new(kind, error.to_string());
        if let Some(source) = error.source() {
            command_error = command_error.because(source);
        }
        command_error.hints.extend(hint);
        command_error
    }
}

impl From<MachineError> for CommandError {
    fn from(error: MachineError) -> Self {
        let kind = match &error {
            MachineError::Host(_) => Kind::Host,
            MachineError::UnitName { .. }
            | MachineError::UnitFile { .. }
            | MachineError::Template { .. }
            | MachineError::Config(_) => Kind::Usage,
            _ => Kind::Failure,
        };
        let mut result = Self::from_library(kind, &error, error.hint());
        if let MachineError::Host(problems) = &error {
            for problem in problems.iter().skip(1) {
                result
                    .details
                    .push(format!("also: {} ({})", problem.what, problem.hint));
            }
        }
        result
    }
}

impl From<ImageError> for CommandError {
    fn from(error: ImageError) -> Self {
        let kind = match error.kind() {
            // whoever cancels knows the signal; this is Ctrl-C's
            ErrorKind::Cancelled => Kind::Interrupted(2),
            _ => Kind::Failure,
        };
        Self::from_library(kind, &error, error.hint())
    }
}

impl From<nspawn_core::ConfigError> for CommandError {
    fn from(error: nspawn_core::ConfigError) -> Self {
        MachineError::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_of_our_own_are_never_a_payloads() {
        let table = [
            (Kind::Failure, 1, 125),
            (Kind::Usage, 2, 125),
            (Kind::Host, 3, 125),
            (Kind::Interrupted(15), 143, 143),
            (Kind::Payload(7), 7, 7),
        ];
        for (kind, alone, passing) in table {
            let error = CommandError::new(kind, "x");
            assert_eq!(
                (error.exit_status(false), error.exit_status(true)),
                (alone, passing),
                "{kind:?}"
            );
        }
    }

    #[test]
    fn a_cause_that_repeats_itself_is_said_once() {
        let inner = std::io::Error::other("no space");
        let error = CommandError::new(Kind::Failure, "cannot write: no space").because(inner);
        assert_eq!(error.causes, Vec::<String>::new());
    }
}
