//! What a blob holds, as digests that tell later what of it changed.
//!
//! ```text
//! nspawn-run content 1
//! disk 2147483648                    length in bytes
//! 0 2c26b4…                          a chunk of 4 MiB by its number, and the SHA-256 of its bytes
//! sha256:9f86d0…                     of all lines above
//! ```
//!
//! A chunk of zeros is not listed, so that a hole and zeros are the same. Of a tree there is one line for each path: the
//! SHA-256 of its kind, mode, owners, target, attributes and bytes. Times are not among them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};
use sha2::{Digest as _, Sha256};

use super::walk;
use crate::error::{ImageError, PathContext};
use crate::limits::Cancel;
use crate::source::ReadAt;

/// Bytes of a disk that have one digest.
pub(super) const CHUNK: u64 = 4 << 20;
const HEADING: &str = "nspawn-run content 1";
/// Threads that hash, at most.
const MAX_THREADS: usize = 4;
/// How often a cancel is seen.
const TICK: Duration = Duration::from_millis(100);
/// What a path's line may not hold as it is.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

type Hash = [u8; 32];

/// The digests of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Length in bytes, and the digests of the chunks that are not zero.
    Disk(u64, BTreeMap<u64, Hash>),
    /// The digest of each path below the root; the root's own is that of the empty path.
    Tree(BTreeMap<PathBuf, Hash>),
}

/// What of a blob is not as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damage {
    /// A disk's length, in bytes.
    Length {
        /// What it was.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// Some bytes of a disk.
    Bytes {
        /// The first byte of the chunk that differs.
        start: u64,
        /// The byte after its last.
        end: u64,
        /// How many chunks differ in all.
        chunks: usize,
    },
    /// A path of a tree.
    Path {
        /// The first path, relative to the tree.
        path: PathBuf,
        /// `differs`, `is missing` or `was added`.
        found: &'static str,
        /// How many paths do in all.
        paths: usize,
    },
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let more = |count: usize| match count {
            0 | 1 => String::new(),
            _ => format!(", and {} more", count - 1),
        };
        match self {
            Self::Length { expected, found } => {
                write!(f, "it is {found} bytes long, not {expected}")
            }
            Self::Bytes { start, end, chunks } => {
                write!(f, "bytes {start} to {end} differ{}", more(*chunks))
            }
            Self::Path { path, found, paths } => {
                let path = Path::new("/").join(path);
                write!(f, "{} {found}{}", path.display(), more(*paths))
            }
        }
    }
}

impl Content {
    /// Hashes a disk. `progress` hears the bytes of data done.
    pub(super) fn of_disk(
        path: &Path,
        cancel: &Cancel,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, ImageError> {
        let file = File::open(path).at("open", path)?;
        let size = ReadAt::size(&file).at("read", path)?;
        let mut numbers: Vec<u64> = Vec::new();
        let mut at = 0;
        while let Some((start, end)) = file.next_data(at).at("read", path)? {
            let first = (start / CHUNK).max(numbers.last().map_or(0, |last| last + 1));
            numbers.extend(first..end.div_ceil(CHUNK));
            at = end.max(at + 1);
        }
        let hash = |index: usize, buffer: &mut Vec<u8>| {
            let start = numbers[index] * CHUNK;
            buffer.resize(CHUNK.min(size - start) as usize, 0);
            file.read_exact_at(buffer, start).at("read", path)?;
            let hash = buffer.iter().any(|byte| *byte != 0);
            let hash = hash.then(|| (numbers[index], Sha256::digest(&buffer[..]).into()));
            Ok((hash, buffer.len() as u64))
        };
        let hashes = in_parallel(numbers.len(), cancel, &hash, progress)?;
        Ok(Self::Disk(size, hashes.into_iter().flatten().collect()))
    }

    /// Hashes an OS tree. `progress` hears the bytes of files done.
    pub(super) fn of_tree(
        root: &Path,
        cancel: &Cancel,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, ImageError> {
        let mut paths = walk::entries(root)?;
        paths.push(PathBuf::new());
        let hash = |index: usize, buffer: &mut Vec<u8>| {
            // Joining an empty path would add a slash, and follow a link.
            let path = match &paths[index] {
                relative if relative.as_os_str().is_empty() => root.to_owned(),
                relative => root.join(relative),
            };
            let (hash, bytes) = entry(&path, buffer)?;
            Ok(((paths[index].clone(), hash), bytes))
        };
        let hashes = in_parallel(paths.len(), cancel, &hash, progress)?;
        Ok(Self::Tree(hashes.into_iter().collect()))
    }

    /// The first place where `now` is not what this was.
    pub(super) fn compare(&self, now: &Self) -> Option<Damage> {
        match (self, now) {
            (Self::Disk(expected, _), Self::Disk(found, _)) if expected != found => {
                Some(Damage::Length {
                    expected: *expected,
                    found: *found,
                })
            }
            (Self::Disk(size, was), Self::Disk(_, is)) => {
                let mut differ: Vec<u64> = was
                    .keys()
                    .chain(is.keys())
                    .copied()
                    .filter(|number| was.get(number) != is.get(number))
                    .collect();
                differ.sort_unstable();
                differ.dedup();
                differ.first().map(|number| Damage::Bytes {
                    start: number * CHUNK,
                    end: ((number + 1) * CHUNK).min(*size),
                    chunks: differ.len(),
                })
            }
            (Self::Tree(was), Self::Tree(is)) => {
                let mut differ: Vec<&PathBuf> = was
                    .keys()
                    .chain(is.keys())
                    .filter(|path| was.get(*path) != is.get(*path))
                    .collect();
                differ.sort_unstable();
                differ.dedup();
                differ.first().map(|path| Damage::Path {
                    path: (*path).clone(),
                    found: match (was.contains_key(*path), is.contains_key(*path)) {
                        (true, true) => "differs",
                        (true, false) => "is missing",
                        _ => "was added",
                    },
                    paths: differ.len(),
                })
            }
            _ => Some(Damage::Path {
                path: PathBuf::new(),
                found: "differs",
                paths: 1,
            }),
        }
    }

    /// Reads what was written down; `None` where nothing was.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, ImageError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ImageError::io("read", path, error)),
        };
        Self::parse(&text)
            .map(Some)
            .ok_or_else(|| ImageError::Record {
                path: path.to_owned(),
                reason: "it is not as it was written".to_owned(),
            })
    }

    fn parse(text: &str) -> Option<Self> {
        let (body, seal) = text.strip_suffix('\n')?.rsplit_once('\n')?;
        let body = format!("{body}\n");
        if seal != sealed(&body) {
            return None;
        }
        let mut lines = body.lines();
        if lines.next()? != HEADING {
            return None;
        }
        let kind = lines.next()?;
        if kind == "tree" {
            let entries = lines.map(|line| {
                let (hash, path) = line.split_once(' ')?;
                let path: Vec<u8> = percent_decode_str(path).collect();
                Some((
                    PathBuf::from(std::ffi::OsString::from_vec(path)),
                    unhex(hash)?,
                ))
            });
            return entries.collect::<Option<_>>().map(Self::Tree);
        }
        let size = kind.strip_prefix("disk ")?.parse().ok()?;
        let chunks = lines.map(|line| {
            let (number, hash) = line.split_once(' ')?;
            Some((number.parse().ok()?, unhex(hash)?))
        });
        Some(Self::Disk(size, chunks.collect::<Option<_>>()?))
    }

    fn text(&self) -> String {
        let mut text = format!("{HEADING}\n");
        match self {
            Self::Disk(size, chunks) => {
                text += &format!("disk {size}\n");
                for (number, hash) in chunks {
                    text += &format!("{number} {}\n", hex(hash));
                }
            }
            Self::Tree(entries) => {
                text += "tree\n";
                for (path, hash) in entries {
                    let path = percent_encode(path.as_os_str().as_bytes(), ESCAPED);
                    text += &format!("{} {path}\n", hex(hash));
                }
            }
        }
        text += &sealed(&text);
        text.push('\n');
        text
    }

    /// Writes it down in one step.
    pub(super) fn write(&self, path: &Path) -> Result<(), ImageError> {
        let new = path.with_file_name(format!(
            ".{}.new",
            path.file_name().unwrap_or_default().display()
        ));
        let written = File::create(&new).and_then(|mut file| {
            file.write_all(self.text().as_bytes())?;
            file.sync_all()
        });
        written
            .and_then(|()| fs::rename(&new, path))
            .inspect_err(|_| {
                let _ = fs::remove_file(&new);
            })
            .at("write", path)
    }
}

/// The digest of one entry of a tree, and the bytes that were read for it.
fn entry(path: &Path, buffer: &mut Vec<u8>) -> Result<(Hash, u64), ImageError> {
    let found = fs::symlink_metadata(path).at("read", path)?;
    let kind = found.file_type();
    let mut hasher = Sha256::new();
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
        hasher.update(fact.to_le_bytes());
    }
    for (name, value) in walk::xattrs(path)? {
        for part in [name, value] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    hasher.update(u64::MAX.to_le_bytes());
    let mut bytes = 0;
    if kind.is_symlink() {
        hasher.update(fs::read_link(path).at("read", path)?.as_os_str().as_bytes());
    } else if kind.is_file() {
        let mut file = File::open(path).at("open", path)?;
        buffer.resize(1 << 20, 0);
        loop {
            match file.read(buffer).at("read", path)? {
                0 => break,
                count => {
                    hasher.update(&buffer[..count]);
                    bytes += count as u64;
                }
            }
        }
    }
    Ok((hasher.finalize().into(), bytes))
}

/// One of many jobs, by its number, with a buffer of its thread: the result, and the bytes it read.
type Job<'a, T> = dyn Fn(usize, &mut Vec<u8>) -> Result<(T, u64), ImageError> + Sync + 'a;

/// Does `jobs` by their numbers in several threads.
fn in_parallel<T: Send>(
    jobs: usize,
    cancel: &Cancel,
    job: &Job<'_, T>,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<T>, ImageError> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(MAX_THREADS).min(jobs);
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..threads {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                let mut buffer = Vec::new();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= jobs || sender.send(job(index, &mut buffer)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let (mut results, mut done) = (Vec::new(), 0);
        // Returning early drops the receiver, which ends the threads.
        loop {
            cancel.check()?;
            match receiver.recv_timeout(TICK) {
                Ok(result) => {
                    let (result, bytes) = result?;
                    results.push(result);
                    done += bytes;
                    progress(done);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(results),
            }
        }
    })
}

fn sealed(body: &str) -> String {
    format!("sha256:{}", hex(&Sha256::digest(body).into()))
}

fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Hash> {
    match format!("sha256:{text}").parse() {
        Ok(crate::digest::Digest::Sha256(bytes)) => Some(bytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(path: &Path) -> Content {
        Content::of_disk(path, &Cancel::default(), &mut |_| {}).unwrap()
    }

    #[test]
    fn holes_and_zeros_are_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (holes, zeros) = (dir.path().join("holes"), dir.path().join("zeros"));
        let mut bytes = vec![0; (3 * CHUNK + 100) as usize];
        bytes[CHUNK as usize + 7] = 1;
        fs::write(&zeros, &bytes).unwrap();
        let file = File::create(&holes).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1], CHUNK + 7).unwrap();
        let content = disk(&holes);
        assert_eq!(content, disk(&zeros));
        let Content::Disk(size, chunks) = &content else {
            panic!("no disk")
        };
        assert_eq!((*size, chunks.len()), (bytes.len() as u64, 1));
        assert_eq!(Content::parse(&content.text()).as_ref(), Some(&content));

        let at = 3 * CHUNK + 50;
        std::os::unix::fs::FileExt::write_all_at(&file, &[1], at).unwrap();
        let damage = content.compare(&disk(&holes)).unwrap();
        assert_eq!(
            damage,
            Damage::Bytes {
                start: 3 * CHUNK,
                end: 3 * CHUNK + 100,
                chunks: 1
            }
        );
        file.set_len(5).unwrap();
        let damage = content.compare(&disk(&holes)).unwrap().to_string();
        assert_eq!(damage, format!("it is 5 bytes long, not {size}"));
    }

    #[test]
    fn a_tree_s_first_change_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("tree");
        fs::create_dir_all(root.join("a b/c")).unwrap();
        fs::write(root.join("a b/file"), "one").unwrap();
        std::os::unix::fs::symlink("file", root.join("a b/link")).unwrap();
        let tree = || Content::of_tree(&root, &Cancel::default(), &mut |_| {}).unwrap();
        let content = tree();
        assert_eq!(Content::parse(&content.text()), Some(content.clone()));
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

    #[test]
    fn what_was_written_down_is_sealed() {
        let content = Content::Disk(CHUNK, BTreeMap::from([(0, [7; 32])]));
        let text = content.text();
        for (from, to) in [
            ("0 07", "0 08"),
            ("disk 4", "disk 5"),
            ("content 1", "content 2"),
        ] {
            assert_eq!(Content::parse(&text.replacen(from, to, 1)), None);
        }
        assert_eq!(Content::parse(""), None);
        assert_eq!(Content::parse(&text[..text.len() - 1]), None);
    }
}
