//! [`ImageError`]: what was being done, to what, and what was found; [`ImageError::hint`] says what to do.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::{Digest, DigestError};
use crate::disk::DiskError;
use crate::fetch::DownloadError;
use crate::oci::{OciError, OciReference};
use crate::qcow2::Qcow2Error;
use crate::reference::{ImageName, ReferenceError};
use crate::unpack::UnpackError;
use crate::verify::VerifyError;

/// Everything that can go wrong between a reference and an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The reference could not be read.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The checksum could not be read.
    #[error(transparent)]
    Checksum(#[from] DigestError),
    /// The operating system refused something.
    #[error("cannot {verb} {}", path.display())]
    Path {
        /// What was being done, such as `read`.
        verb: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The disk is full, or a quota is reached.
    #[error("no space left to {verb} {}", path.display())]
    NoSpace {
        /// What was being done.
        verb: &'static str,
        /// To what.
        path: PathBuf,
    },
    /// A path that is not there.
    #[error("image {} does not exist", .0.display())]
    Missing(PathBuf),
    /// A name that neither the store nor the machines folder knows.
    #[error("no image \"{name}\" in {} or {}", store.display(), machines.display())]
    UnknownName {
        /// The name.
        name: ImageName,
        /// The store's folder.
        store: PathBuf,
        /// The machines folder.
        machines: PathBuf,
    },
    /// A name that the store does not know, where no other place counts.
    #[error("no image \"{name}\" in {}", store.display())]
    NotStored {
        /// The name.
        name: ImageName,
        /// The store's folder.
        store: PathBuf,
    },
    /// Something that is known and not offered.
    #[error("{what} cannot be used as an image: {found} is not supported")]
    Unsupported {
        /// The reference or path.
        what: String,
        /// What it is.
        found: String,
    },
    /// Bytes that are no image at all.
    #[error("{what} is no image: it is {found}")]
    NoImage {
        /// The reference or path.
        what: String,
        /// What it is, such as `a text file`.
        found: String,
    },
    /// A folder without an operating system.
    #[error("{} holds no OS tree: {missing} is missing", path.display())]
    NoTree {
        /// The folder, or the archive it was unpacked from.
        path: PathBuf,
        /// What was looked for.
        missing: &'static str,
    },
    /// Something that holds an OS tree, where a disk is wanted.
    #[error("{what} holds no disk: it is a folder of files, or an archive of one")]
    NotADisk {
        /// The reference or path.
        what: String,
    },
    /// The download failed.
    #[error(transparent)]
    Download(Box<DownloadError>),
    /// The bytes are not those that the digest was made of.
    #[error("checksum mismatch for {what}: expected {expected}{}, found {actual}", in_brackets(.by))]
    Mismatch {
        /// The reference or path.
        what: String,
        /// The checksum file that says so; `None` where the caller gave the digest.
        by: Option<String>,
        /// The digest given.
        expected: Box<Digest>,
        /// The digest of the bytes.
        actual: Box<Digest>,
    },
    /// What must be known of the bytes is not known, or the publisher's signature is not good.
    #[error("cannot verify {what}")]
    Verify {
        /// The reference or path.
        what: String,
        /// What was found.
        #[source]
        source: Box<VerifyError>,
    },
    /// A qcow2 image could not be converted.
    #[error("cannot convert {}", path.display())]
    Qcow2 {
        /// The image.
        path: PathBuf,
        /// What was found in it.
        #[source]
        source: Qcow2Error,
    },
    /// An archive or compressed file could not be unpacked.
    #[error("cannot unpack {}", path.display())]
    Unpack {
        /// The archive.
        path: PathBuf,
        /// What was found in it.
        #[source]
        source: UnpackError,
    },
    /// The image is damaged, and its bytes are those that the digest was made of.
    #[error("{what} is damaged, and its checksum is right: it was published so")]
    PublishedDamaged {
        /// The reference or path.
        what: String,
        /// Where the damage is.
        #[source]
        source: Box<ImageError>,
    },
    /// A container image cannot be had from its registry.
    #[error("cannot pull {image}")]
    Oci {
        /// The image's reference.
        image: String,
        /// What was found.
        #[source]
        source: Box<OciError>,
    },
    /// A disk has no root partition that can be told from the others.
    #[error("cannot find the root file system of {}", path.display())]
    Disk {
        /// The disk image.
        path: PathBuf,
        /// What was found on it.
        #[source]
        source: DiskError,
    },
    /// The image is used by a machine, or being written.
    #[error("image \"{name}\" is in use")]
    InUse {
        /// The image's name.
        name: ImageName,
    },
    /// Something stands where a result is to be written.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// A place that no result is written to.
    #[error("cannot write an image to {}: it is {found}", path.display())]
    Output {
        /// The place.
        path: PathBuf,
        /// What stands there, such as `a device`.
        found: &'static str,
    },
    /// A file of the store that cannot be read as what it should be.
    #[error("the store's record {} is damaged: {reason}", path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The caller's [`Cancel`](crate::Cancel) was set.
    #[error("cancelled")]
    Cancelled,
}

impl From<DownloadError> for ImageError {
    fn from(error: DownloadError) -> Self {
        Self::Download(Box::new(error))
    }
}

/// Whose fault an error is: what a command's exit code is chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The reference, the checksum or the image is wrong: another input would work here.
    Input,
    /// The network or the server.
    Network,
    /// This host: no space, no permission, an I/O error.
    Host,
    /// The caller cancelled.
    Cancelled,
}

impl ImageError {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Path { .. }
            | Self::NoSpace { .. }
            | Self::InUse { .. }
            | Self::Exists(_)
            | Self::Record { .. } => ErrorKind::Host,
            Self::Download(error) if error.is_input() => ErrorKind::Input,
            Self::Download(_) => ErrorKind::Network,
            Self::Oci { source, .. } if source.is_input() => ErrorKind::Input,
            Self::Oci { .. } => ErrorKind::Network,
            Self::Unpack {
                source: UnpackError::Write { .. },
                ..
            } => ErrorKind::Host,
            Self::Cancelled => ErrorKind::Cancelled,
            _ => ErrorKind::Input,
        }
    }

    /// What to do about it, as one sentence in lower case, where something is known to help.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Reference(error) => return reference_hint(error),
            Self::Checksum(_) => {
                "take it from the checksum file beside the image, as sha256:HEX or sha512:HEX"
            }
            Self::Path { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run as root, or choose another store with --root DIR"
            }
            Self::NoSpace { .. } => {
                "free some space, in the store with `nspawn-run image prune`, or choose another store with --root DIR"
            }
            Self::Missing(_) => "check the path; a name without a slash is looked up in the store",
            Self::UnknownName { .. } => {
                "pull it by its URL first, or write ./NAME for a file in the current directory"
            }
            Self::NotStored { .. } => "`nspawn-run image list` shows what is there",
            Self::Unsupported { .. } => {
                "convert it to raw with `qemu-img convert -O raw`, or give a raw, qcow2 or tar image"
            }
            Self::NoImage { .. } => "give a raw or qcow2 disk image, or a tar of an OS tree",
            Self::NotADisk { .. } => {
                "give a disk image; an OS tree is started as it is, or pulled into the store"
            }
            Self::NoTree { .. } => "give a folder that holds /usr and an os-release file",
            Self::Download(error) => return error.hint(),
            Self::Mismatch { .. } => {
                "the file changed or is damaged: compare with the publisher's checksum file, then pull again"
            }
            Self::PublishedDamaged { .. } => "take another build, and tell its publisher",
            Self::Verify { source, .. } => return Some(source.hint()),
            Self::Qcow2 { source, .. } => return source.hint().map(str::to_owned),
            Self::Unpack { source, .. } => return source.hint().map(str::to_owned),
            Self::Oci { source, .. } => return source.hint(),
            Self::Disk { source, .. } => return Some(source.hint().to_owned()),
            Self::InUse { .. } => "stop the machines that use it first",
            Self::Exists(_) => "choose another name, or replace it with --force",
            Self::Output { .. } => "give the path of a new file",
            Self::Record { .. } => "remove the record and pull the image again",
            _ => return None,
        };
        Some(hint.to_owned())
    }

    /// Whether the image's bytes are not what its format promises.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Qcow2 { source, .. } => matches!(
                source,
                Qcow2Error::Truncated { .. }
                    | Qcow2Error::Compressed { .. }
                    | Qcow2Error::Entry { .. }
                    | Qcow2Error::Corrupt
            ),
            Self::Unpack { source, .. } => matches!(source, UnpackError::Damaged { .. }),
            _ => false,
        }
    }

    pub(crate) fn oci(image: &OciReference, source: OciError) -> Self {
        Self::Oci {
            image: format!("oci:{image}"),
            source: Box::new(source),
        }
    }

    /// Makes the right variant of a failed system call.
    pub(crate) fn io(verb: &'static str, path: &Path, source: io::Error) -> Self {
        if is_full(&source) {
            return Self::NoSpace {
                verb,
                path: path.to_owned(),
            };
        }
        Self::Path {
            verb,
            path: path.to_owned(),
            source,
        }
    }
}

fn in_brackets(file: &Option<String>) -> String {
    file.as_ref()
        .map_or_else(String::new, |file| format!(" ({file})"))
}

fn reference_hint(error: &ReferenceError) -> Option<String> {
    let hint = match error {
        ReferenceError::Scheme(_) => "use http, https, oci:, a path or a name",
        ReferenceError::NameCharacter(_) | ReferenceError::NameEdge => {
            "write ./NAME for a file in the current directory"
        }
        ReferenceError::Oci | ReferenceError::OciPart { .. } => {
            "write it as docker does: oci:NAME:TAG or oci:REGISTRY/NAME@sha256:HEX"
        }
        _ => "an image is `host`, a path, an http(s) URL, or a name in the store",
    };
    Some(hint.to_owned())
}

/// Whether the disk is full or a quota reached.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Adds verb and path to a failed system call: `fs::read(p).at("read", p)?`.
pub(crate) trait PathContext<T> {
    fn at(self, verb: &'static str, path: &Path) -> Result<T, ImageError>;
}

impl<T, E: Into<io::Error>> PathContext<T> for Result<T, E> {
    fn at(self, verb: &'static str, path: &Path) -> Result<T, ImageError> {
        self.map_err(|source| ImageError::io(verb, path, source.into()))
    }
}
