//! What can go wrong with a container image, the transfer itself aside.

use std::path::PathBuf;

use super::Platform;
use crate::digest::Digest;

/// Why a container image cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OciError {
    /// 404: no such repository or tag.
    #[error("the registry {registry} has no {what}")]
    NotFound {
        /// The registry.
        registry: String,
        /// The repository and version, or a blob.
        what: String,
    },
    /// 401 or 403, with whatever credentials there were.
    #[error(
        "the registry {registry} refuses access{}",
        if *.known { " with the user and password known for it" } else { "" }
    )]
    Denied {
        /// The registry.
        registry: String,
        /// Whether a user and password were sent.
        known: bool,
        /// A credential helper that would know more.
        helper: Option<String>,
    },
    /// Any other answer.
    #[error("the registry {registry} answered with HTTP {status}")]
    Status {
        /// The registry.
        registry: String,
        /// The HTTP status.
        status: u16,
    },
    /// The way to authenticate that the registry asks for is not offered.
    #[error("the registry {registry} asks for an authentication that is not supported: {found}")]
    Challenge {
        /// The registry.
        registry: String,
        /// What it asks for.
        found: String,
    },
    /// A document that is not what it should be.
    #[error("the {what} makes no sense: {reason}")]
    Document {
        /// `manifest`, `index`, `configuration`, `token`.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Known and not offered.
    #[error("it is {0}, which is not supported")]
    Unsupported(String),
    /// No image for this machine.
    #[error(
        "there is no image for {wanted}, only for {}",
        .found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    Platform {
        /// This machine.
        wanted: Platform,
        /// What there is.
        found: Vec<Platform>,
    },
    /// A part is not the one that was named.
    #[error("the {what} is not what the image names: expected {expected}, found {actual}")]
    Digest {
        /// `manifest`, `configuration`, `layer 3`, `content of layer 3`.
        what: String,
        /// The digest given.
        expected: Box<Digest>,
        /// The digest of the bytes.
        actual: Box<Digest>,
    },
    /// A part has another length than named.
    #[error("the {what} is not what the image names: expected {expected} bytes, found {actual}")]
    Size {
        /// `manifest`, `configuration`, `layer 3`.
        what: String,
        /// The length given, in bytes.
        expected: u64,
        /// The length found, in bytes; at least, where no more was read.
        actual: u64,
    },
    /// A file with credentials that cannot be read.
    #[error("cannot read the credentials in {}: {reason}", path.display())]
    AuthFile {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl OciError {
    /// What to do about it, where something is known to help.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NotFound { .. } => "check the name and the tag",
            Self::Denied {
                helper: Some(helper),
                ..
            } => {
                return Some(format!(
                    "credential helpers ({helper}) are not run: log in with `podman login`, which writes a file"
                ));
            }
            Self::Denied { .. } => {
                "check the name; for a private image log in first with `docker login` or `podman login`"
            }
            Self::Platform { .. } => "use an image that was built for this machine too",
            Self::Digest { .. } | Self::Size { .. } => {
                "the registry or something on the way to it is broken: pull again, or from another registry"
            }
            Self::Status { status, .. } if *status == 429 => {
                "the registry allows no more pulls for now: log in, or wait"
            }
            Self::Status { .. } => "try again later",
            Self::AuthFile { .. } => "repair or remove the file, then log in again",
            _ => return None,
        };
        Some(hint.to_owned())
    }

    /// Whether another image or other credentials would help, and not another network.
    pub(crate) fn is_input(&self) -> bool {
        !matches!(
            self,
            Self::Status { .. } | Self::Digest { .. } | Self::Size { .. } | Self::Denied { .. }
        )
    }
}
