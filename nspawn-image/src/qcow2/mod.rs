//! A reader of qcow2 images and a parallel converter to sparse raw.
//!
//! Flow: [`Qcow2::open`] checks the [`Header`] -> [`Qcow2::convert`] hands out guest ranges -> `tables` maps each
//! cluster -> `cluster` reads and decompresses it -> [`Output`].
//!
//! No file that an image names is ever opened, and nothing is allocated by a field that was not checked.
//!
//! Source: QEMU docs/interop/qcow2.txt.

mod cluster;
mod error;
mod header;
mod snapshot;
mod tables;

pub use crate::convert::Output;
pub use error::Qcow2Error;
pub use header::{Compression, Header};
pub use snapshot::Snapshot;

use crate::convert::{self, Units, Worker};
use crate::limits::Cancel;
use crate::source::ReadAt;

/// A qcow2 image whose header was checked.
#[derive(Debug)]
pub struct Qcow2<S> {
    source: S,
    header: Header,
    /// The image file's length, in bytes.
    length: u64,
}

impl<S: ReadAt> Qcow2<S> {
    /// Reads and checks the header; `limit` is the largest virtual size accepted, in bytes.
    ///
    /// # Errors
    ///
    /// See [`Qcow2Error`].
    pub fn open(source: S, limit: u64) -> Result<Self, Qcow2Error> {
        let header = Header::read(&source, limit)?;
        let length = source
            .size()
            .map_err(|source| Qcow2Error::Read { offset: 0, source })?;
        Ok(Self {
            source,
            header,
            length,
        })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Lists the internal snapshots.
    ///
    /// # Errors
    ///
    /// [`Qcow2Error::Truncated`], [`Qcow2Error::Read`].
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, Qcow2Error> {
        snapshot::list(&self.source, &self.header, self.length)
    }

    /// Writes the active state to `output`, which must be empty; `progress` hears the guest bytes done.
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
}

impl<S: ReadAt> Units for Qcow2<S> {
    fn size(&self) -> u64 {
        self.header.virtual_size
    }

    fn worker(&self) -> Box<dyn Worker + Send + '_> {
        Box::new(cluster::ClusterReader::new(
            &self.source,
            &self.header,
            self.length,
            None,
            0,
        ))
    }
}

#[cfg(test)]
mod tests;
