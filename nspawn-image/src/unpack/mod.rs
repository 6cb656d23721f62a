//! Archives and compressed files.

mod error;

pub use error::UnpackError;
