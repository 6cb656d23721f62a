//! Why a machine could not be made, asked or stopped.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::ConfigError;
use crate::host::HostProblem;
use crate::name::{MachineName, UnitName, UnitNameError};

/// A cause from a library whose types are not part of this crate's interface.
pub type Cause = Box<dyn StdError + Send + Sync + 'static>;

/// Why a machine could not be made, asked or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// A file or folder could not be read, written or made.
    #[error("cannot {verb} {}", path.display())]
    Path {
        /// What was being done.
        verb: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A system call on no path in particular.
    #[error("cannot {verb}")]
    System {
        /// What was being done.
        verb: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A file whose name is no unit name.
    #[error("{} is not named as a unit ({text:?})", path.display())]
    UnitName {
        /// The name found.
        text: String,
        /// The file.
        path: PathBuf,
        /// What the name lacks.
        #[source]
        source: UnitNameError,
    },
    /// A file that is no unit file.
    #[error("{} is no unit file: it holds {found}", path.display())]
    UnitFile {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: String,
    },
    /// A template was given an instance that makes no unit name, or is no template.
    #[error("{unit} cannot be given an instance")]
    Template {
        /// The unit.
        unit: UnitName,
    },
    /// The machine's description contradicts itself.
    #[error("the machine cannot be configured so")]
    Config(#[from] ConfigError),
    /// This host cannot run machines, and why.
    #[error("this host cannot run machines: {}", first_problem(.0))]
    Host(Vec<HostProblem>),
    /// A live machine has the name.
    #[error("a machine named {name} is running already")]
    NameTaken {
        /// The name.
        name: MachineName,
    },
    /// No machine has the name.
    #[error("no machine is named {name}")]
    NoMachine {
        /// The name.
        name: MachineName,
    },
    /// The machine ended before or while it was asked.
    #[error("machine {name} is not running")]
    Gone {
        /// The name.
        name: MachineName,
    },
    /// systemd-nspawn or the guest's systemd ended before the machine was up.
    #[error("machine {name} ended while it started ({status}){}", said_text(.said))]
    EndedEarly {
        /// The machine.
        name: MachineName,
        /// How nspawn ended.
        status: String,
        /// Its last lines.
        said: String,
    },
    /// A deadline passed.
    #[error("machine {name}: {what} took longer than {} s", waited.as_secs())]
    Deadline {
        /// The machine.
        name: MachineName,
        /// What was waited for.
        what: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A unit could not become active.
    #[error("{unit} {reason}")]
    UnitFailed {
        /// The unit.
        unit: UnitName,
        /// Its exit status, or 128 and its signal; never 0.
        status: u8,
        /// What systemd says about it.
        reason: String,
    },
    /// A kept machine stands on another image or another user range.
    #[error("machine {name} keeps changes made on top of {kept}, not of {asked}")]
    OtherBase {
        /// The machine.
        name: MachineName,
        /// What the kept changes belong to.
        kept: String,
        /// What was asked for now.
        asked: String,
    },
    /// The root file system could not be put together.
    #[error("cannot prepare the root file system: {what}")]
    Rootfs {
        /// What was being done, and to what.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel makes no user namespace, or the base's file system cannot be mounted with mapped users.
    #[error("the machine's users cannot be mapped: {what}")]
    NoIdMap {
        /// What was refused.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A question to systemd (in the guest or on the host) failed.
    #[error("cannot {verb} over D-Bus")]
    Bus {
        /// What was being done.
        verb: String,
        /// What the bus said.
        #[source]
        source: Cause,
    },
    /// An address or route could not be set.
    #[error("cannot set up the network of machine {name}: {what}")]
    Network {
        /// The machine.
        name: MachineName,
        /// What was being done.
        what: String,
        /// What the kernel said.
        #[source]
        source: Cause,
    },
    /// A program could not be run inside the machine.
    #[error("cannot run {program:?} in machine {name}")]
    Exec {
        /// The machine.
        name: MachineName,
        /// The program.
        program: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The record of a machine cannot be understood.
    #[error("the record {} is damaged", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

impl MachineError {
    /// What the user can do about it, where there is something.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Path { source, .. }
            | Self::System { source, .. }
            | Self::Rootfs { source, .. }
                if source.raw_os_error() == Some(libc::ENOSPC) =>
            {
                "the disk is full: free some space, or name another folder with --root".into()
            }
            Self::Path {
                verb: "read",
                source,
                ..
            } if source.kind() == io::ErrorKind::NotFound => "check the path".into(),
            Self::UnitName { .. } => "name the file as systemd would, such as web.service".into(),
            Self::UnitFile { .. } => {
                "a unit file has sections and settings: see systemd.unit(5)".into()
            }
            Self::Template { .. } => "an instance is written as web@NAME.service".into(),
            Self::NameTaken { name } => {
                format!(
                    "stop it with `nspawn-run stop {name}`, or give this one another name with --name"
                )
            }
            Self::NoMachine { .. } => "`nspawn-run list` shows the machines there are".into(),
            Self::OtherBase { name, .. } => {
                format!(
                    "take the same image, another --name, or give the changes up with `nspawn-run remove {name}`"
                )
            }
            Self::NoIdMap { .. } => "run without them: --private-users=no".into(),
            Self::Deadline { .. } => "allow more time with --timeout".into(),
            Self::Host(problems) => problems.first()?.hint.clone(),
            _ => return None,
        })
    }
}

/// The first problem in words; the others are told by `doctor`.
fn first_problem(problems: &[HostProblem]) -> String {
    let first = problems.first().map(|p| p.what.clone()).unwrap_or_default();
    match problems.len() {
        0 | 1 => first,
        n => format!("{first} (and {} more)", n - 1),
    }
}

fn said_text(said: &str) -> String {
    if said.is_empty() {
        String::new()
    } else {
        format!(": {said}")
    }
}

/// Adds the verb and the path to an I/O error: `fs::read(p).at("read", p)?`.
pub(crate) trait PathContext<T> {
    fn at(self, verb: &'static str, path: &Path) -> Result<T, MachineError>;
}

impl<T, E: Into<io::Error>> PathContext<T> for Result<T, E> {
    fn at(self, verb: &'static str, path: &Path) -> Result<T, MachineError> {
        self.map_err(|source| MachineError::Path {
            verb,
            path: path.to_owned(),
            source: source.into(),
        })
    }
}

/// Adds what was being done to an I/O error that concerns no path.
pub(crate) trait SystemContext<T> {
    fn doing(self, verb: &'static str) -> Result<T, MachineError>;
}

impl<T, E: Into<io::Error>> SystemContext<T> for Result<T, E> {
    fn doing(self, verb: &'static str) -> Result<T, MachineError> {
        self.map_err(|source| MachineError::System {
            verb,
            source: source.into(),
        })
    }
}
