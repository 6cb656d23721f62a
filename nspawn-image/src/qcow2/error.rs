//! What can be wrong with a qcow2 image.

use std::io;
use std::path::PathBuf;

/// Why a qcow2 image is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Qcow2Error {
    /// The image could not be read.
    #[error("cannot read the image at byte {offset}")]
    Read {
        /// Where, in bytes.
        offset: u64,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The output could not be written.
    #[error("cannot write the converted image at byte {offset}")]
    Write {
        /// Where, in bytes.
        offset: u64,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The first four bytes are others.
    #[error("not a qcow2 image")]
    Magic,
    /// The file ends inside something it promises.
    #[error("the image is cut short: {what} ends at byte {end}, the file at byte {length}")]
    Truncated {
        /// What was to be read.
        what: &'static str,
        /// Its end, in bytes.
        end: u64,
        /// The file's length, in bytes.
        length: u64,
    },
    /// A version other than 2 and 3.
    #[error("qcow2 version {0} is not supported, only 2 and 3")]
    Version(u32),
    /// A header field outside what the format allows.
    #[error("the header's {field} is {value}, which the format does not allow")]
    Field {
        /// The field's name in the format's specification.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// Larger than the caller allows.
    #[error("the virtual size is {size} bytes, more than the {limit} allowed")]
    TooLarge {
        /// The virtual size, in bytes.
        size: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The image needs another file, and nobody allowed to open it.
    #[error("the image is an overlay on the backing file {0:?}, which is not opened")]
    BackingFile(String),
    /// A file below the image could not be used.
    #[error("cannot use the backing file {name:?} in {}", folder.display())]
    Backing {
        /// The name, as the image gives it.
        name: String,
        /// The folder that was allowed.
        folder: PathBuf,
        /// What is wrong with it.
        #[source]
        reason: Box<BackingReason>,
    },
    /// No internal snapshot has this name or number.
    #[error("the image has no snapshot {wanted:?}, only {found}")]
    NoSnapshot {
        /// What was asked for.
        wanted: String,
        /// The snapshots there are, or `none`.
        found: String,
    },
    /// The image's data is in another file.
    #[error("the image keeps its data in the external file {0:?}, which is not opened")]
    DataFile(String),
    /// Encrypted with the method named.
    #[error("the image is encrypted ({0})")]
    Encrypted(&'static str),
    /// QEMU found the image corrupt before and marked it so.
    #[error("the image is marked as corrupt")]
    Corrupt,
    /// Features that this reader does not know, by their names where the image gives them.
    #[error("the image needs features that are not supported: {0}")]
    Features(String),
    /// A compression method other than zlib and zstd.
    #[error("the image's compression method {0} is not known, only zlib (0) and zstd (1)")]
    Compression(u8),
    /// A table entry that points nowhere sensible.
    #[error("the entry for guest byte {guest} is damaged: {reason}")]
    Entry {
        /// The guest offset it maps, in bytes.
        guest: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A compressed cluster that does not decompress to one cluster.
    #[error(
        "the compressed cluster for guest byte {guest} (at byte {host} of the image) is damaged"
    )]
    Compressed {
        /// The guest offset, in bytes.
        guest: u64,
        /// Where it stands in the image, in bytes.
        host: u64,
    },
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// Why a file below an overlay is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackingReason {
    /// The name leads out of the folder that was allowed.
    #[error("it lies outside the folder that is allowed")]
    Outside,
    /// A name with a protocol, such as `nbd:` or `json:`.
    #[error("only plain file names are followed")]
    Protocol,
    /// A folder, a device, a pipe, or no name at all.
    #[error("it is no regular file")]
    NotAFile,
    /// A file that is in the chain already.
    #[error("the chain of backing files comes back to it")]
    Loop,
    /// More files than are followed.
    #[error("the chain has more than {0} files")]
    Depth(usize),
    /// A format other than raw and qcow2.
    #[error("its format {0:?} is not supported, only raw and qcow2")]
    Format(String),
    /// It could not be opened or read.
    #[error("it cannot be opened")]
    Open(#[source] io::Error),
    /// It is a qcow2 image that is refused.
    #[error(transparent)]
    Image(Qcow2Error),
}

impl Qcow2Error {
    /// What to do about it, where something is known to help.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::BackingFile(_) => Some(
                "allow it with --allow-backing DIR, the folder that holds the files below, or flatten it: `qemu-img convert -O qcow2 OVERLAY FLAT`",
            ),
            Self::Backing { reason, .. } => match &**reason {
                BackingReason::Outside | BackingReason::Open(_) => Some(
                    "name the folder that holds all files of the chain with --allow-backing DIR",
                ),
                BackingReason::Image(error) => error.hint().or(Some(
                    "`qemu-img info --backing-chain` tells what each file of the chain is",
                )),
                _ => Some(
                    "flatten it where its other files are: `qemu-img convert -O qcow2 OVERLAY FLAT`",
                ),
            },
            Self::NoSnapshot { .. } => Some("`nspawn-run image inspect` lists the snapshots"),
            Self::DataFile(_) => {
                Some("flatten it where its other files are: `qemu-img convert -O qcow2 IMAGE FLAT`")
            }
            Self::Encrypted(_) => Some("decrypt it first with `qemu-img convert`"),
            Self::Truncated { .. }
            | Self::Compressed { .. }
            | Self::Entry { .. }
            | Self::Corrupt => {
                Some("download or copy the image again; `qemu-img check` tells more")
            }
            Self::Features(_) | Self::Compression(_) => {
                Some("convert it with a newer `qemu-img convert -O raw`")
            }
            _ => None,
        }
    }
}
