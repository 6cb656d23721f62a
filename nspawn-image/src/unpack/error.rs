//! What can be wrong with an archive or a compressed file.

use std::io;
use std::path::PathBuf;

/// Why an archive is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The compressed data or the archive's structure is damaged, or ends early.
    #[error("the {format} data is damaged or cut short")]
    Damaged {
        /// The format, such as `xz`.
        format: &'static str,
        /// What the decoder says.
        #[source]
        source: io::Error,
    },
    /// An entry that would be written outside the tree.
    #[error("the entry {name:?} {reason}")]
    Entry {
        /// The entry's name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More came out than allowed.
    #[error("it unpacks to more than the {limit} bytes allowed")]
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// So much came out of so little that it can only be meant to fill the disk.
    #[error("it unpacks to more than {ratio} times its size")]
    Ratio {
        /// The limit, bytes out for one byte in.
        ratio: u64,
    },
    /// More entries than allowed.
    #[error("it holds more than the {limit} entries allowed")]
    Entries {
        /// The limit.
        limit: u64,
    },
    /// Something in it that is known and not offered.
    #[error("it holds {0}, which is not supported")]
    Unsupported(String),
    /// Nothing in it.
    #[error("the archive is empty")]
    Empty,
    /// An entry could not be written.
    #[error("cannot {verb} {}", path.display())]
    Write {
        /// What was being done.
        verb: &'static str,
        /// To what: the path inside the tree.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl UnpackError {
    /// What to do about it, where something is known to help.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Damaged { .. } => Some("download or copy the file again"),
            Self::Entry { .. } => Some("the archive is hostile or badly made: do not use it"),
            Self::TooLarge { .. } | Self::Ratio { .. } | Self::Entries { .. } => {
                Some("raise the limit if the archive is really meant")
            }
            Self::Write { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run as root")
            }
            Self::Write { source, .. } if crate::error::is_full(source) => Some("free some space"),
            _ => None,
        }
    }
}
