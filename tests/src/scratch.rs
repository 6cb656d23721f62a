//! Temporary folders for tests.

use tempfile::TempDir;

use crate::fixture;

/// A folder on the disk that holds the target folder: for images, and for the upper layer of an overlay.
///
/// # Panics
///
/// Where it cannot be made.
pub fn on_disk() -> TempDir {
    let parent = fixture::target_dir().join("test-state");
    std::fs::create_dir_all(&parent)
        .unwrap_or_else(|error| panic!("{}: {error}", parent.display()));
    tempfile::Builder::new()
        .prefix("t-")
        .tempdir_in(&parent)
        .expect("a temporary folder")
}

/// A folder with a short path: the address of a socket has 108 bytes at most.
///
/// # Panics
///
/// Where it cannot be made.
pub fn for_sockets() -> TempDir {
    tempfile::Builder::new()
        .prefix("nt-")
        .tempdir_in(std::env::temp_dir())
        .expect("a temporary folder")
}
