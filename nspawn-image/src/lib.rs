//! System images for systemd-nspawn: from a reference to something a machine can be started from.
//!
//! ```no_run
//! use nspawn_image::{NoReport, PullOptions, Store};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = Store::open("/var/lib/nspawn-run/images")?;
//! let reference = "https://example.org/debian-12-generic-amd64.qcow2".parse()?;
//! let mut options = PullOptions::default();
//! options.checksum = Some("sha512:…".parse()?);
//! let image = store.pull(&reference, &options, &mut NoReport)?;
//! let root = image.root_partition()?;
//! println!("{} from byte {} of {}", root.filesystem, root.offset, image.path().display());
//! # Ok(())
//! # }
//! ```
//!
//! Flow: [`ImageRef`] -> [`Store::pull`] -> `fetch` -> `verify` -> `unpack` or [`qcow2`] -> publish -> [`Image`]
//! -> [`RootPartition`]; container images come by [`oci`]. An image is imported while its bytes come. It is either absent
//! from the store or complete, and it is not there before its digest and signature were found to be right.
//!
//! The library never prints, reads the environment, exits, or panics on input, and needs no root: only the
//! unpacking of an OS tree keeps owners and devices where it is root. Progress goes to a [`Reporter`].
//!
//! Every call blocks. From an async program:
//! `tokio::task::spawn_blocking(move || store.pull(&reference, &options, &mut NoReport)).await?`.

mod content;
mod convert;
mod digest;
mod disk;
mod error;
mod export;
mod fetch;
mod format;
mod gpt;
mod image;
mod inspect;
mod limits;
mod mbr;
pub mod oci;
mod options;
mod place;
mod probe;
pub mod qcow2;
mod reference;
mod report;
mod source;
mod store;
mod sys;
mod unpack;
mod verify;
mod version;
mod walk;

pub use content::Damage;
pub use digest::{Digest, DigestError};
pub use disk::{
    Architecture, DiskError, DiskWarning, FileSystem, Partition, PartitionTable, PartitionType,
    RootPartition, Scheme,
};
pub use error::{ErrorKind, ImageError};
pub use export::{ConvertOptions, convert_file};
pub use fetch::{DownloadError, DownloadReason};
pub use gpt::Guid;
pub use image::{Image, ImageKind, ImageLock};
pub use inspect::{
    FstabEntry, ImageFormat, InspectOptions, InspectedPartition, Inspection, MachineId, Os,
    Problem, Severity,
};
pub use limits::{Cancel, Limits};
pub use options::{ChecksumSource, PullOptions, Verify, VerifyNameError};
pub use reference::{ImageName, ImageRef, ImageUrl, ReferenceError};
pub use report::{NoReport, Reporter, StepId, StepKind};
pub use source::ReadAt;
pub use store::{PruneOptions, PruneReport, Pruned, PrunedKind, Soundness, Store, StoredImage};
pub use unpack::{TreeWriter, UnpackError, remove_tree};
pub use verify::{ChecksumEntry, ChecksumFile, ChecksumFileError, Keyring, VerifyError};
