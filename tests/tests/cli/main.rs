//! Tests that run as anybody.

use sha2::Digest as _;

mod connections;
mod documents;
mod http_server;
mod https;
mod images;
mod killed;
mod together;
mod usage;
mod verify;

/// A SHA-256 in hex.
fn sha256(bytes: &[u8]) -> String {
    let digest = sha2::Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
