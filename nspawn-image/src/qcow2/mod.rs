//! A reader of qcow2 images and a parallel converter to sparse raw.

mod error;
mod header;

pub use error::Qcow2Error;
pub use header::{Compression, Header};
