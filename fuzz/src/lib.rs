//! What the fuzz targets share: mutators that know a format, so that what they change gets behind its checks.
//!
//! A mutator works on the bytes of a real image, so that every seed is a file that other tools read, and every finding
//! is one too.

pub mod disk;
pub mod qcow2;
mod random;
mod scratch;
mod time;

pub use random::Random;
pub use scratch::scratch_folder;
pub use time::processor_time;
