//! Downloads over HTTP.

mod error;

pub use error::{DownloadError, DownloadReason};
