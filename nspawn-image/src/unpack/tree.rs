//! Archives into a folder, one entry at a time, and never outside it.
//!
//! The parent of every entry is opened by openat2(2) with `RESOLVE_IN_ROOT`: links are followed as they would be
//! inside the tree, `..` and absolute targets included. The entry itself is made with its parent's descriptor
//! and its last name, which follows nothing. An entry's own name that is absolute or leads upwards is refused.
//!
//! Kept as root: owners, set-id bits, devices, `security.capability`. Never kept: attributes that overlayfs, SELinux
//! or the kernel's integrity checks act on, and the character device 0:0, which overlayfs takes for a removed file.
//! What set-id files and devices are good for is decided where the tree is mounted; until then the store's folder is
//! open to its owner alone.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Bound;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawMode, ResolveFlags, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;
use tar::EntryType;

use super::UnpackError;
use super::archive::{Archive, Entry};
use super::remove;
use crate::limits::Limits;

const FOLDER: OFlags = OFlags::DIRECTORY
    .union(OFlags::CLOEXEC)
    .union(OFlags::RDONLY);
/// Bytes of a file that are moved at once.
const CHUNK: usize = 256 << 10;
/// The longest path and the longest part of one, in bytes. Source: Linux include/uapi/linux/limits.h.
const PATH: usize = 4095;
const NAME: usize = 255;
/// Most bytes of all folders' paths, which are held until the end.
const FOLDER_NAMES: usize = 512 << 20;

/// Whether an entry is the archive's own root, such as `./`.
pub(super) fn is_root(entry: &Entry) -> bool {
    entry.kind.is_dir()
        && Path::new(OsStr::from_bytes(&entry.name))
            .components()
            .all(|part| part == Component::CurDir)
}

/// Whether an entry is a disk image at the archive's top, as in Debian's `disk.raw`.
pub(super) fn is_disk(entry: &Entry) -> bool {
    let path = Path::new(OsStr::from_bytes(&entry.name));
    let top = path
        .components()
        .filter(|part| *part != Component::CurDir)
        .count()
        == 1;
    let named = path
        .extension()
        .is_some_and(|end| ["raw", "img", "qcow2"].iter().any(|name| end == *name));
    top && named && is_file(entry.kind)
}

pub(super) fn is_file(kind: EntryType) -> bool {
    matches!(
        kind,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse
    )
}

type Xattrs = Vec<(OsString, Vec<u8>)>;

/// Owner, mode, time and extended attributes, as an archive gives them.
#[derive(Clone, Default)]
struct Attributes {
    mode: u32,
    owner: (u64, u64),
    time: (i64, u32),
    xattrs: Xattrs,
}

impl Attributes {
    fn of(entry: &Entry) -> Self {
        Self {
            mode: entry.mode,
            owner: entry.owner,
            time: entry.time,
            xattrs: kept(&entry.xattrs),
        }
    }

    fn times(&self) -> Timestamps {
        let time = Timespec {
            tv_sec: self.time.0,
            tv_nsec: self.time.1.into(),
        };
        Timestamps {
            last_access: time,
            last_modification: time,
        }
    }

    fn owner(&self) -> (Option<Uid>, Option<Gid>) {
        // The highest number means "leave as it is" to the kernel: no archive may give it.
        let known = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
        (
            known(self.owner.0).map(Uid::from_raw),
            known(self.owner.1).map(Gid::from_raw),
        )
    }
}

/// Where an entry goes: a name in an open folder, and the path that errors tell.
struct Place<'a> {
    parent: &'a OwnedFd,
    name: &'a OsStr,
    path: &'a Path,
}

/// A folder that is being filled.
pub(crate) struct Tree {
    root: OwnedFd,
    is_root: bool,
    limits: Limits,
    /// Files, folders and links made, and bytes written to files.
    made: u64,
    written: u64,
    /// Folders get their mode and time last: filling them needs the right to and changes the time.
    folders: BTreeMap<PathBuf, Attributes>,
    folder_names: usize,
    /// The folder of the last entry: most entries have the same as the one before.
    last: Option<(PathBuf, OwnedFd)>,
    buffer: Vec<u8>,
}

fn write_error(verb: &'static str, path: &Path, source: impl Into<io::Error>) -> UnpackError {
    UnpackError::Write {
        verb,
        path: path.to_owned(),
        source: source.into(),
    }
}

impl Tree {
    /// Makes the folder, which must not exist.
    pub(crate) fn create(path: &Path, limits: &Limits) -> Result<Self, UnpackError> {
        fs::create_dir(path).map_err(|error| write_error("create", path, error))?;
        let root = rustix::fs::open(path, FOLDER, Mode::empty())
            .map_err(|error| write_error("open", path, error))?;
        // Whatever this process's umask is: services of the machine walk through it.
        rustix::fs::fchmod(&root, mode(0o755))
            .map_err(|error| write_error("change", path, error))?;
        Ok(Self {
            root,
            is_root: rustix::process::geteuid().is_root(),
            limits: limits.clone(),
            made: 0,
            written: 0,
            folders: BTreeMap::new(),
            folder_names: 0,
            last: None,
            buffer: vec![0; CHUNK],
        })
    }

    /// What the user should know of how the tree is unpacked.
    pub(crate) fn notice(&self) -> Option<&'static str> {
        (!self.is_root).then_some("not root: owners and devices of the tree are not kept")
    }

    /// Adds one entry, whose content is the next of `archive`.
    pub(super) fn add<R: Read, E: Fn(io::Error) -> UnpackError>(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<R, E>,
    ) -> Result<(), UnpackError> {
        let path = clean(&entry.name)?;
        let mut attributes = Attributes::of(entry);
        if !self.is_root && !entry.kind.is_dir() {
            attributes.mode &= 0o1777;
        }
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            if entry.kind.is_dir() {
                // A tree that its owner cannot write to could not be moved into the store.
                attributes.mode |= if self.is_root { 0 } else { 0o700 };
                self.keep(PathBuf::from("."), attributes)?;
            }
            return Ok(());
        };
        self.count()?;
        let above = path.parent().unwrap_or(Path::new(""));
        let parent = match self.last.take() {
            Some((known, folder)) if known == above => folder,
            _ => self.open_parent(above)?,
        };
        let place = Place {
            parent: &parent,
            name: &name,
            path: &path,
        };
        // Where something was replaced, the path may lead elsewhere from now on.
        if !self.make(entry, archive, place, attributes)? {
            self.last = Some((above.to_owned(), parent));
        }
        Ok(())
    }

    /// Makes one entry, and answers whether it took the place of another.
    fn make<R: Read, E: Fn(io::Error) -> UnpackError>(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<R, E>,
        place: Place<'_>,
        attributes: Attributes,
    ) -> Result<bool, UnpackError> {
        let Place { parent, name, path } = place;
        match entry.kind {
            EntryType::Directory => self.folder(place, attributes),
            kind if is_file(kind) => self.file(place, entry, archive, &attributes),
            EntryType::Symlink => {
                let target = OsStr::from_bytes(&entry.link);
                if target.is_empty() || target.len() > PATH || entry.link.contains(&0) {
                    return Err(refused(&entry.name, "links to a path that cannot be"));
                }
                let replaced = self.instead(place, "link", || {
                    rustix::fs::symlinkat(target, parent, name)
                })?;
                self.own(parent, name, path, &attributes)?;
                Ok(replaced)
            }
            EntryType::Link => {
                let target = clean(&entry.link)?;
                let Some(old) = target.file_name() else {
                    return Err(refused(&entry.name, "links to a folder"));
                };
                if target == *path {
                    return Ok(false);
                }
                let from = self.open_parent(target.parent().unwrap_or(Path::new("")))?;
                let same = |at: &OwnedFd, name: &OsStr| {
                    rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)
                        .map(|found| (found.st_dev, found.st_ino))
                };
                let found = same(&from, old).map_err(|error| write_error("link", path, error))?;
                // By another path to the same file: to replace it would be to lose it.
                if same(parent, name) == Ok(found) {
                    return Ok(false);
                }
                self.instead(place, "link", || {
                    rustix::fs::linkat(&from, old, parent, name, AtFlags::empty())
                })
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let kind = match entry.kind {
                    EntryType::Char => FileType::CharacterDevice,
                    EntryType::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let whiteout = kind == FileType::CharacterDevice && entry.device == (0, 0);
                if whiteout || (!self.is_root && kind != FileType::Fifo) {
                    return Ok(false);
                }
                let device = rustix::fs::makedev(entry.device.0, entry.device.1);
                let replaced = self.instead(place, "make", || {
                    rustix::fs::mknodat(parent, name, kind, mode(0o600), device)
                })?;
                self.own(parent, name, path, &attributes)?;
                rustix::fs::chmodat(parent, name, mode(attributes.mode), AtFlags::empty())
                    .map_err(|error| write_error("change", path, error))?;
                Ok(replaced)
            }
            // Labels and other notes of an archive's maker.
            _ => Ok(false),
        }
    }

    fn count(&mut self) -> Result<(), UnpackError> {
        self.made += 1;
        if self.made > self.limits.entries {
            return Err(UnpackError::Entries {
                limit: self.limits.entries,
            });
        }
        Ok(())
    }

    /// Notes what a folder is to be in the end; of two entries of one name the later counts.
    fn keep(&mut self, path: PathBuf, attributes: Attributes) -> Result<(), UnpackError> {
        let xattrs = attributes.xattrs.iter();
        self.folder_names += path.as_os_str().len();
        self.folder_names += xattrs
            .map(|(key, value)| key.len() + value.len())
            .sum::<usize>();
        if self.folder_names > FOLDER_NAMES {
            return Err(UnpackError::Unsupported(
                "more than 512 MiB of folders' names".to_owned(),
            ));
        }
        self.folders.insert(path, attributes);
        Ok(())
    }

    /// Opens the folder `path`, and makes what is missing of it: archives may leave out the folders of what they hold.
    fn open_parent(&mut self, path: &Path) -> Result<OwnedFd, UnpackError> {
        match self.open(path, FOLDER) {
            Err(Errno::NOENT) => {}
            found => return found.map_err(|error| write_error("open", path, error)),
        }
        let parts: Vec<&OsStr> = path.iter().collect();
        // As many parts as there are; below the last of them there is nothing.
        let (mut low, mut high) = (0, parts.len());
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            match self.open(&parts[..middle].iter().collect::<PathBuf>(), FOLDER) {
                Ok(_) => low = middle,
                Err(_) => high = middle,
            }
        }
        let mut at: PathBuf = parts[..low].iter().collect();
        let mut folder = self
            .open(&at, FOLDER)
            .map_err(|error| write_error("open", &at, error))?;
        for part in &parts[low..] {
            at.push(part);
            self.count()?;
            rustix::fs::mkdirat(&folder, *part, mode(0o755))
                .map_err(|error| write_error("create", &at, error))?;
            let flags = FOLDER | OFlags::NOFOLLOW;
            folder = rustix::fs::openat(&folder, *part, flags, Mode::empty())
                .map_err(|error| write_error("open", &at, error))?;
            rustix::fs::fchmod(&folder, mode(0o755))
                .map_err(|error| write_error("change", &at, error))?;
        }
        Ok(folder)
    }

    /// The one door into the tree.
    fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve)
    }

    /// Makes something; what stands in its place goes first, whatever it is.
    fn instead<T>(
        &mut self,
        Place { parent, name, path }: Place<'_>,
        verb: &'static str,
        mut make: impl FnMut() -> rustix::io::Result<T>,
    ) -> Result<bool, UnpackError> {
        match make() {
            Ok(_) => return Ok(false),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(write_error(verb, path, error)),
        }
        self.forget(path);
        remove::remove_at(parent, name).map_err(|error| write_error("replace", path, error))?;
        make().map_err(|error| write_error(verb, path, error))?;
        Ok(true)
    }

    /// Folders that are gone keep nothing for others that may come.
    fn forget(&mut self, path: &Path) {
        let below = (Bound::Included(path), Bound::Unbounded);
        let gone: Vec<PathBuf> = self
            .folders
            .range::<Path, _>(below)
            .map(|(folder, _)| folder)
            .take_while(|folder| folder.starts_with(path))
            .cloned()
            .collect();
        for folder in gone {
            self.folders.remove(&folder);
        }
    }

    fn folder(&mut self, place: Place<'_>, attributes: Attributes) -> Result<bool, UnpackError> {
        let Place { parent, name, path } = place;
        let mut replaced = false;
        match rustix::fs::mkdirat(parent, name, mode(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let found = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|error| write_error("read", path, error))?;
                // A link to a folder stays, as tar(1) leaves it when told to keep them: `lib -> usr/lib`.
                let found = FileType::from_raw_mode(found.st_mode as RawMode);
                if found == FileType::Symlink && self.open(path, FOLDER).is_ok() {
                    return Ok(false);
                }
                if found != FileType::Directory {
                    replaced = self.instead(place, "create", || {
                        rustix::fs::mkdirat(parent, name, mode(0o700))
                    })?;
                }
            }
            Err(error) => return Err(write_error("create", path, error)),
        }
        self.keep(path.to_owned(), attributes)?;
        Ok(replaced)
    }

    fn file<R: Read, E: Fn(io::Error) -> UnpackError>(
        &mut self,
        place: Place<'_>,
        entry: &Entry,
        archive: &mut Archive<R, E>,
        attributes: &Attributes,
    ) -> Result<bool, UnpackError> {
        let Place { parent, name, path } = place;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut made = None;
        let replaced = self.instead(place, "create", || {
            made = Some(rustix::fs::openat(parent, name, flags, mode(0o600))?);
            Ok(())
        })?;
        let Some(file) = made.map(File::from) else {
            return Err(write_error("create", path, io::ErrorKind::NotFound));
        };
        let mut end = 0;
        while let Some((at, count)) = archive.read(entry, &mut self.buffer)? {
            self.written += count as u64;
            if self.written > self.limits.unpacked {
                return Err(UnpackError::TooLarge {
                    limit: self.limits.unpacked,
                });
            }
            file.write_all_at(&self.buffer[..count], at)
                .map_err(|error| write_error("write", path, error))?;
            end = at + count as u64;
        }
        if end < entry.size {
            file.set_len(entry.size)
                .map_err(|error| write_error("write", path, error))?;
        }
        self.change(&file, path, attributes)?;
        Ok(replaced)
    }

    /// Gives an open file or folder its attributes.
    fn change(
        &self,
        file: impl std::os::fd::AsFd,
        path: &Path,
        attributes: &Attributes,
    ) -> Result<(), UnpackError> {
        let failed = |error: Errno| write_error("change", path, error);
        if self.is_root {
            let (uid, gid) = attributes.owner();
            rustix::fs::fchown(&file, uid, gid).map_err(failed)?;
        }
        // The owner first: a change of it takes set-id bits and capabilities away.
        rustix::fs::fchmod(&file, mode(attributes.mode)).map_err(failed)?;
        for (key, value) in &attributes.xattrs {
            match rustix::fs::fsetxattr(&file, &**key, value, XattrFlags::empty()) {
                Ok(()) => {}
                // Not root, or a file system without them: a tree that boots all the same.
                Err(Errno::PERM | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        rustix::fs::futimens(&file, &attributes.times()).map_err(failed)
    }

    fn own(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        attributes: &Attributes,
    ) -> Result<(), UnpackError> {
        if self.is_root {
            let (uid, gid) = attributes.owner();
            rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| write_error("change", path, error))?;
        }
        rustix::fs::utimensat(parent, name, &attributes.times(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| write_error("change", path, error))
    }

    /// Removes what stands at `path`, and all below it; nothing there is no error.
    pub(crate) fn remove(&mut self, path: &Path) -> Result<(), UnpackError> {
        let Some(name) = path.file_name() else {
            return self.clear(path);
        };
        let above = path.parent().unwrap_or(Path::new(""));
        let parent = match self.open(above, FOLDER) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            found => found.map_err(|error| write_error("open", above, error))?,
        };
        self.last = None;
        self.forget(path);
        remove::remove_at(&parent, name).map_err(|error| write_error("remove", path, error))
    }

    /// Removes what is in the folder `path`; nothing there is no error.
    pub(crate) fn clear(&mut self, path: &Path) -> Result<(), UnpackError> {
        let folder = match self.open(path, FOLDER) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            found => found.map_err(|error| write_error("open", path, error))?,
        };
        self.last = None;
        let is_top = path.as_os_str().is_empty();
        let key = if is_top { Path::new(".") } else { path };
        let own = self.folders.remove(key);
        self.forget(path);
        if let Some(own) = own {
            self.folders.insert(key.to_owned(), own);
        }
        remove::empty(&folder).map_err(|error| write_error("remove", path, error))
    }

    /// Gives the folders their attributes, the innermost first, and writes everything to the disk.
    pub(crate) fn finish(self) -> Result<(), UnpackError> {
        self.complete()?.sync()
    }

    /// Gives the folders their attributes, the innermost first. What is then there has yet to be written to the disk.
    pub(crate) fn complete(self) -> Result<Complete, UnpackError> {
        for (path, attributes) in self.folders.iter().rev() {
            // A later entry may have put something else in the folder's place.
            let Ok(folder) = self.open(path, FOLDER | OFlags::NOFOLLOW) else {
                continue;
            };
            self.change(&folder, path, attributes)?;
        }
        Ok(Complete { root: self.root })
    }
}

/// A tree that has all it is to have.
pub(crate) struct Complete {
    root: OwnedFd,
}

impl Complete {
    /// Writes everything to the disk.
    pub(crate) fn sync(&self) -> Result<(), UnpackError> {
        rustix::fs::syncfs(&self.root).map_err(|error| write_error("sync", Path::new("."), error))
    }
}

fn mode(bits: u32) -> Mode {
    Mode::from_raw_mode(bits as RawMode)
}

fn refused(name: &[u8], reason: &'static str) -> UnpackError {
    UnpackError::Entry {
        name: String::from_utf8_lossy(name).into_owned(),
        reason,
    }
}

/// A path inside the tree, without `.` parts.
pub(super) fn clean(bytes: &[u8]) -> Result<PathBuf, UnpackError> {
    let refused = |reason| refused(bytes, reason);
    if bytes.contains(&0) {
        return Err(refused("holds a NUL byte"));
    }
    if bytes.len() > PATH {
        return Err(UnpackError::Entry {
            name: format!("{}…", String::from_utf8_lossy(&bytes[..NAME])),
            reason: "has a path longer than 4095 bytes",
        });
    }
    let mut path = PathBuf::new();
    for part in Path::new(OsStr::from_bytes(bytes)).components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) if name.len() > NAME => {
                return Err(refused("has a name longer than 255 bytes"));
            }
            Component::Normal(name) => path.push(name),
            Component::ParentDir => return Err(refused("leads out of the tree with \"..\"")),
            Component::RootDir | Component::Prefix(_) => return Err(refused("is absolute")),
        }
    }
    Ok(path)
}

/// The extended attributes that a tree may bring: never those that overlayfs acts on, nor the host's labels.
fn kept(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Xattrs {
    let kept = |name: &[u8]| {
        name == b"security.capability"
            || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
            || matches!(
                name,
                b"system.posix_acl_access" | b"system.posix_acl_default"
            )
    };
    xattrs
        .iter()
        .filter(|(name, _)| kept(name) && name.len() <= NAME && !name.contains(&0))
        .map(|(name, value)| (OsString::from_vec(name.clone()), value.clone()))
        .collect()
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
