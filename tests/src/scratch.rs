//! Temporary folders for tests.

use std::path::Path;

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

/// What stands in a folder, hidden or not, sorted.
///
/// # Panics
///
/// Where it cannot be read, or a name is not UTF-8.
pub fn names(folder: &Path) -> Vec<String> {
    let entries =
        std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        let name = entry.expect("an entry").file_name();
        name.into_string().expect("a name in UTF-8")
    };
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}
