//! The entries of an OS tree of the store, and what of them is more than bytes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{lgetxattr, llistxattr};
use rustix::io::Errno;

use crate::error::{ImageError, PathContext};

/// All below `root`, as paths relative to it, sorted by their bytes: folders come before what is in them. Links are not
/// followed.
pub(crate) fn entries(root: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let path = root.join(&folder);
        for entry in fs::read_dir(&path).at("read", &path)? {
            let entry = entry.at("read", &path)?;
            let relative = folder.join(entry.file_name());
            if entry.file_type().at("read", &entry.path())?.is_dir() {
                folders.push(relative.clone());
            }
            found.push(relative);
        }
    }
    found.sort_unstable_by(order);
    Ok(found)
}

/// How [`entries`] are sorted: by their bytes. A comparison as paths takes both apart, and is many times as slow.
#[expect(clippy::ptr_arg, reason = "sorts what `entries` answers")]
pub(crate) fn order(one: &PathBuf, other: &PathBuf) -> std::cmp::Ordering {
    one.as_os_str().cmp(other.as_os_str())
}

/// Attributes that this host gives to files by its own rules, and changes.
const OF_THE_HOST: [&[u8]; 3] = [b"security.selinux", b"security.ima", b"security.evm"];

/// An extended attribute: name and value.
pub(crate) type Xattr = (Vec<u8>, Vec<u8>);

/// The extended attributes of what stands at `path`, sorted; none where the file system has no such thing.
pub(crate) fn xattrs(path: &Path) -> Result<Vec<Xattr>, ImageError> {
    let failed = |error: Errno| ImageError::io("read the attributes of", path, error.into());
    let mut names = Vec::with_capacity(1 << 10);
    loop {
        match llistxattr(path, rustix::buffer::spare_capacity(&mut names)) {
            Ok(_) => break,
            Err(Errno::RANGE) => grow(&mut names, path)?,
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        }
    }
    let mut found = Vec::new();
    for name in names.split(|byte| *byte == 0) {
        if name.is_empty() || OF_THE_HOST.contains(&name) {
            continue;
        }
        let mut value = Vec::with_capacity(256);
        loop {
            match lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value)) {
                Ok(_) => break,
                Err(Errno::RANGE) => grow(&mut value, path)?,
                Err(error) => return Err(failed(error)),
            }
        }
        found.push((name.to_vec(), value));
    }
    found.sort();
    Ok(found)
}

/// Makes room for what did not fit; the kernel's own limit is 64 KiB. Source: xattr(7).
fn grow(buffer: &mut Vec<u8>, path: &Path) -> Result<(), ImageError> {
    let size = buffer.capacity() * 4;
    if size > 1 << 20 {
        let source = io::ErrorKind::InvalidData.into();
        return Err(ImageError::io("read the attributes of", path, source));
    }
    buffer.clear();
    buffer.reserve_exact(size);
    Ok(())
}
