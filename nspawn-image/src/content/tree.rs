//! The checksums of an OS tree: for each path, that of its kind, mode, owners, target, attributes and bytes. Times are
//! not among them.

use std::fs::{self, File};
use std::hash::Hasher as _;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;
use twox_hash::XxHash3_64;

use super::Content;
use crate::error::{ImageError, PathContext};
use crate::limits::Cancel;
use crate::walk;

/// Threads that read, at most.
const MAX_THREADS: usize = 4;
/// Entries that a thread takes at once.
const BATCH: usize = 64;
/// How often a cancel is seen.
const TICK: Duration = Duration::from_millis(100);
/// Bytes of a file that are read at once.
const BUFFER: usize = 256 << 10;

impl Content {
    /// Reads an OS tree for its checksums; `progress` hears the bytes of files done.
    pub(crate) fn of_tree(
        root: &Path,
        cancel: &Cancel,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, ImageError> {
        let mut paths = vec![PathBuf::new()];
        paths.extend(walk::entries(root)?);
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.min(MAX_THREADS);
        let next = AtomicUsize::new(0);
        let sums = thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            for _ in 0..threads {
                let (sender, next, paths) = (sender.clone(), &next, &paths);
                scope.spawn(move || {
                    let mut buffer = vec![0; BUFFER];
                    loop {
                        let first = next.fetch_add(BATCH, Ordering::Relaxed);
                        let last = (first + BATCH).min(paths.len());
                        let Some(batch) = paths.get(first..last).filter(|batch| !batch.is_empty())
                        else {
                            break;
                        };
                        if sender
                            .send(entries(root, batch, first, &mut buffer))
                            .is_err()
                        {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            let (mut sums, mut done) = (vec![0; paths.len()], 0);
            // Returning early drops the receiver, which ends the threads.
            loop {
                cancel.check()?;
                match receiver.recv_timeout(TICK) {
                    Ok(batch) => {
                        let batch = batch?;
                        sums[batch.first..][..batch.sums.len()].copy_from_slice(&batch.sums);
                        done += batch.bytes;
                        progress(done);
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Ok::<_, ImageError>(sums),
                }
            }
        })?;
        Ok(Self::Tree(paths.into_iter().zip(sums).collect()))
    }
}

/// What one thread did at once.
struct Batch {
    first: usize,
    sums: Vec<u64>,
    bytes: u64,
}

fn entries(
    root: &Path,
    paths: &[PathBuf],
    first: usize,
    buffer: &mut [u8],
) -> Result<Batch, ImageError> {
    let (mut sums, mut bytes) = (Vec::with_capacity(paths.len()), 0);
    for relative in paths {
        // Joining an empty path would add a slash, and follow a link.
        let path = match relative.as_os_str().is_empty() {
            true => root.to_owned(),
            false => root.join(relative),
        };
        let (sum, count) = entry(&path, buffer)?;
        sums.push(sum);
        bytes += count;
    }
    Ok(Batch { first, sums, bytes })
}

/// The checksum of one entry of a tree, and the bytes that were read for it.
fn entry(path: &Path, buffer: &mut [u8]) -> Result<(u64, u64), ImageError> {
    let found = fs::symlink_metadata(path).at("read", path)?;
    let kind = found.file_type();
    let mut hasher = XxHash3_64::new();
    // A folder's or device's length says nothing of what it holds.
    let length = if kind.is_file() { found.len() } else { 0 };
    let facts = [
        u64::from(found.mode()),
        u64::from(found.uid()),
        u64::from(found.gid()),
        found.rdev(),
        length,
    ];
    for fact in facts {
        hasher.write(&fact.to_le_bytes());
    }
    for (name, value) in walk::xattrs(path)? {
        for part in [name, value] {
            hasher.write(&(part.len() as u64).to_le_bytes());
            hasher.write(&part);
        }
    }
    hasher.write(&u64::MAX.to_le_bytes());
    let mut bytes = 0;
    if kind.is_symlink() {
        hasher.write(fs::read_link(path).at("read", path)?.as_os_str().as_bytes());
    } else if kind.is_file() && length > 0 {
        let mut file = open(path).at("open", path)?;
        while bytes < length {
            match file.read(buffer) {
                Ok(0) => break,
                Ok(count) => {
                    hasher.write(&buffer[..count]);
                    bytes += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ImageError::io("read", path, error)),
            }
        }
    }
    Ok((hasher.finish(), bytes))
}

/// Opens a file; its time of access stays as it is where that can be asked for, so that reading writes nothing.
fn open(path: &Path) -> io::Result<File> {
    let flags = |flags: OFlags| flags.bits().cast_signed();
    let mut options = File::options();
    options.read(true);
    let quietly = options
        .custom_flags(flags(OFlags::NOATIME | OFlags::NOFOLLOW))
        .open(path);
    match quietly {
        // It belongs to somebody else.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            options.custom_flags(flags(OFlags::NOFOLLOW)).open(path)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_s_first_change_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("tree");
        fs::create_dir_all(root.join("a b/c")).unwrap();
        fs::write(root.join("a b/file"), "one").unwrap();
        std::os::unix::fs::symlink("file", root.join("a b/link")).unwrap();
        // More than one thread takes at once, and a file of several reads.
        fs::create_dir(root.join("many")).unwrap();
        for number in 0..3 * BATCH {
            fs::write(root.join(format!("many/{number}")), number.to_string()).unwrap();
        }
        fs::write(root.join("many/large"), vec![1; 3 * BUFFER + 5]).unwrap();
        let tree = || Content::of_tree(&root, &Cancel::default(), &mut |_| {}).unwrap();
        let content = tree();
        assert_eq!(content.compare(&tree()), None);
        let said = || content.compare(&tree()).unwrap().to_string();
        fs::write(root.join("a b/file"), "two").unwrap();
        assert_eq!(said(), "/a b/file differs");
        fs::remove_file(root.join("a b/link")).unwrap();
        assert_eq!(said(), "/a b/file differs, and 1 more");
        fs::write(root.join("a b/file"), "one").unwrap();
        assert_eq!(said(), "/a b/link is missing");
        fs::write(root.join("a b/added"), "").unwrap();
        assert_eq!(said(), "/a b/added was added, and 1 more");
    }
}
