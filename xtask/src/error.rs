//! What can go wrong in a task: one sentence, perhaps a hint, and the exit code.

use std::fmt;

/// Why a task ended early.
#[derive(Debug)]
pub(crate) struct TaskError {
    kind: Kind,
    message: String,
    hint: Option<String>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Failed,
    Host,
}

pub(crate) type Result<T> = std::result::Result<T, TaskError>;

impl TaskError {
    /// A step of the task failed: exit code 1.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Failed,
            message: message.into(),
            hint: None,
        }
    }

    /// This host cannot run the task as it is: exit code 3.
    pub(crate) fn host(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Host,
            message: message.into(),
            hint: None,
        }
    }

    /// Adds what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says what was being done when this happened.
    pub(crate) fn within(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Failed => 1,
            Kind::Host => 3,
        }
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// `std::fs::read(p).at("read", p)?`: the verb and the path that an `io::Error` lacks.
pub(crate) trait PathContext<T> {
    fn at(self, verb: &str, path: impl AsRef<std::path::Path>) -> Result<T>;
}

impl<T> PathContext<T> for std::io::Result<T> {
    fn at(self, verb: &str, path: impl AsRef<std::path::Path>) -> Result<T> {
        self.map_err(|error| {
            TaskError::failed(format!(
                "cannot {verb} {}: {error}",
                path.as_ref().display()
            ))
        })
    }
}
