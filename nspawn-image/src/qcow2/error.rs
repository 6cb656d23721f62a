//! What can be wrong with a qcow2 image.

use std::io;

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
    /// The image needs another file.
    #[error("the image is an overlay on the backing file {0:?}, which is not opened")]
    BackingFile(String),
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

impl Qcow2Error {
    /// What to do about it, where something is known to help.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::BackingFile(_) | Self::DataFile(_) => Some(
                "flatten it where its other files are: `qemu-img convert -O qcow2 OVERLAY FLAT`",
            ),
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
