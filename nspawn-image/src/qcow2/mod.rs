//! A reader of qcow2 images and a parallel converter to sparse raw.
//!
//! Flow: [`Qcow2::open`] checks the [`Header`] -> [`Qcow2::convert`] hands out guest ranges -> `tables` maps each
//! cluster -> `cluster` reads and decompresses it -> [`Output`].
//!
//! No file that an image names is opened unless the caller allowed a folder for it, and nothing is allocated by a
//! field that was not checked.
//!
//! Source: QEMU docs/interop/qcow2.txt.

mod backing;
mod cluster;
mod error;
mod header;
mod reader;
mod snapshot;
mod tables;

use std::path::PathBuf;

pub use backing::FileIdentity;
use backing::{Below, Chain};
pub use error::{BackingReason, Qcow2Error};
pub use header::{Backing, Compression, Header};
pub use reader::Qcow2Reader;
pub use snapshot::Snapshot;

pub use crate::convert::Output;
use crate::convert::{self, Units, Worker};
use crate::limits::Cancel;
use crate::source::ReadAt;

/// How an image is opened. Made by `default()`, then changed field by field.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OpenOptions {
    /// The largest virtual size accepted, in bytes. Default 8 TiB.
    pub limit: u64,
    /// The number or name of the internal snapshot wanted; `None` for the active state.
    pub snapshot: Option<String>,
    /// The folder in which the files below an overlay may be opened; `None` refuses overlays.
    pub backing: Option<PathBuf>,
    /// Where the image itself lies: names of files below are relative to its folder.
    pub path: Option<PathBuf>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            limit: crate::limits::Limits::default().virtual_size,
            snapshot: None,
            backing: None,
            path: None,
        }
    }
}

/// A qcow2 image whose header was checked.
#[derive(Debug)]
pub struct Qcow2<S> {
    source: S,
    header: Header,
    /// The image file's length, in bytes.
    length: u64,
    below: Option<Below>,
    /// Layers above this one.
    depth: usize,
    chain: Vec<FileIdentity>,
}

impl<S: ReadAt> Qcow2<S> {
    /// Reads and checks the header; `limit` is the largest virtual size accepted, in bytes. Overlays are refused.
    ///
    /// # Errors
    ///
    /// See [`Qcow2Error`].
    pub fn open(source: S, limit: u64) -> Result<Self, Qcow2Error> {
        let options = OpenOptions {
            limit,
            ..OpenOptions::default()
        };
        Self::open_with(source, &options)
    }

    /// Reads and checks the header, the snapshot wanted, and the files below where they are allowed.
    ///
    /// # Errors
    ///
    /// See [`Qcow2Error`].
    pub fn open_with(source: S, options: &OpenOptions) -> Result<Self, Qcow2Error> {
        let mut chain = Chain::new(options);
        let snapshot = options.snapshot.as_deref();
        let mut image = Self::open_in(source, options.limit, snapshot, &mut chain, 0)?;
        let own = usize::from(options.path.is_some());
        image.chain = chain.seen.split_off(own.min(chain.seen.len()));
        Ok(image)
    }

    fn open_in(
        source: S,
        limit: u64,
        snapshot: Option<&str>,
        chain: &mut Chain<'_>,
        depth: usize,
    ) -> Result<Self, Qcow2Error> {
        let mut header = Header::read(&source, limit)?;
        let length = source
            .size()
            .map_err(|source| Qcow2Error::Read { offset: 0, source })?;
        if let Some(wanted) = snapshot {
            let snapshots = snapshot::list(&source, &header, length)?;
            header = header.at_snapshot(&snapshot::find(snapshots, wanted)?, length, limit)?;
        }
        let below = match &header.backing {
            Some(backing) => Some(chain.open(backing)?),
            None => None,
        };
        Ok(Self {
            source,
            header,
            length,
            below,
            depth,
            chain: Vec::new(),
        })
    }

    /// The header; with a snapshot, its size and tables.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The files below the image, the nearest first; empty where it is no overlay.
    pub fn chain(&self) -> &[FileIdentity] {
        &self.chain
    }

    /// Lists the internal snapshots.
    ///
    /// # Errors
    ///
    /// [`Qcow2Error::Truncated`], [`Qcow2Error::Read`].
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, Qcow2Error> {
        snapshot::list(&self.source, &self.header, self.length)
    }

    /// Writes the active state, or that of the snapshot, to `output`, which must be empty; `progress` hears the
    /// guest bytes done.
    ///
    /// # Errors
    ///
    /// See [`Qcow2Error`]; the output is then incomplete.
    pub fn convert(
        &self,
        output: &dyn Output,
        cancel: &Cancel,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Qcow2Error> {
        convert::run(self, output, cancel, progress)
    }

    /// The guest's disk, to be read anywhere.
    pub fn reader(&self) -> Qcow2Reader<'_> {
        Qcow2Reader::new(self)
    }
}

impl<S: ReadAt> Units for Qcow2<S> {
    fn size(&self) -> u64 {
        self.header.virtual_size
    }

    fn worker(&self) -> Box<dyn Worker + Send + '_> {
        let below = self.below.as_ref().map(|below| below.units().worker());
        Box::new(cluster::ClusterReader::new(
            &self.source,
            &self.header,
            self.length,
            below,
            self.depth,
        ))
    }

    fn end_waiting(&self) {
        self.source.end_waiting();
    }
}

#[cfg(test)]
mod tests;
