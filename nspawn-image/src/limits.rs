//! Caps on what comes from outside, and the flag that ends a long call early.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::ImageError;

const GIB: u64 = 1 << 30;

/// Caps on untrusted input. The defaults fit every published cloud image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Largest download, in bytes. Default 64 GiB.
    pub download: u64,
    /// Largest virtual size of a disk image, in bytes. Default 8 TiB; holes cost nothing.
    pub virtual_size: u64,
    /// Most bytes an archive or compressed file may unpack to. Default 256 GiB.
    pub unpacked: u64,
    /// Most bytes out for one byte in, once 1 GiB has come out. Default 5000.
    pub ratio: u64,
    /// Most entries in an archive. Default 10 million.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            download: 64 * GIB,
            virtual_size: 8192 * GIB,
            unpacked: 256 * GIB,
            ratio: 5000,
            entries: 10_000_000,
        }
    }
}

/// A flag that ends a long call with [`ImageError::Cancelled`]; clones share it, any thread may set it.
///
/// Setting it is one atomic store, so that a signal handler may do it.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks every call that holds a clone to end.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Makes a cancel flag of one that exists, such as a signal handler's.
    pub fn from_flag(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }

    pub(crate) fn check(&self) -> Result<(), ImageError> {
        if self.is_cancelled() {
            Err(ImageError::Cancelled)
        } else {
            Ok(())
        }
    }
}
