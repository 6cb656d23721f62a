//! One archive entry at a time into a folder, and never outside it.
//!
//! The parent of every entry is opened by openat2(2) with `RESOLVE_IN_ROOT`: links are followed as they would be
//! inside the tree, `..` and absolute targets included. The entry itself is made with its parent's descriptor
//! and its last name, which follows nothing.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawMode, ResolveFlags, Timespec, Timestamps, Uid,
    XattrFlags,
};
use tar::{Entry, EntryType};

use super::UnpackError;

const FOLDER: OFlags = OFlags::DIRECTORY
    .union(OFlags::CLOEXEC)
    .union(OFlags::RDONLY);

/// Whether an entry is the archive's own root, such as `./`.
pub(super) fn is_root(entry: &Entry<'_, impl Read>) -> bool {
    entry.header().entry_type().is_dir()
        && entry
            .path()
            .is_ok_and(|path| path.components().all(|part| part == Component::CurDir))
}

/// Whether an entry is a disk image at the archive's top, as in Debian's `disk.raw`.
pub(super) fn is_disk(entry: &Entry<'_, impl Read>) -> bool {
    let kind = entry.header().entry_type();
    let Ok(path) = entry.path() else { return false };
    let top = path
        .components()
        .filter(|part| *part != Component::CurDir)
        .count()
        == 1;
    let named = path
        .extension()
        .is_some_and(|end| ["raw", "img", "qcow2"].iter().any(|name| end == *name));
    top && named && (kind.is_file() || kind.is_gnu_sparse())
}

/// Owner, mode and time, as an archive gives them.
#[derive(Clone, Copy)]
struct Attributes {
    mode: u32,
    owner: (u32, u32),
    seconds: i64,
}

impl Attributes {
    fn times(self) -> Timestamps {
        let time = Timespec {
            tv_sec: self.seconds,
            tv_nsec: 0,
        };
        Timestamps {
            last_access: time,
            last_modification: time,
        }
    }

    fn owner(self) -> (Option<Uid>, Option<Gid>) {
        // The highest number means "leave as it is" to the kernel: no archive may give it.
        let known = |id: u32| (id != u32::MAX).then_some(id);
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
pub(super) struct Tree {
    root: OwnedFd,
    is_root: bool,
    /// Folders get their mode and time last: filling them needs the right to and changes the time.
    folders: Vec<(PathBuf, Attributes)>,
}

fn write_error(verb: &'static str, path: &Path, source: impl Into<io::Error>) -> UnpackError {
    UnpackError::Write {
        verb,
        path: path.to_owned(),
        source: source.into(),
    }
}

impl Tree {
    pub(super) fn create(path: &Path) -> Result<Self, UnpackError> {
        fs::create_dir(path).map_err(|error| write_error("create", path, error))?;
        let root = rustix::fs::open(path, FOLDER, Mode::empty())
            .map_err(|error| write_error("open", path, error))?;
        Ok(Self {
            root,
            is_root: rustix::process::geteuid().is_root(),
            folders: Vec::new(),
        })
    }

    /// What the user should know of how the tree is unpacked.
    pub(super) fn notice(&self) -> Option<&'static str> {
        (!self.is_root).then_some("not root: owners and devices of the tree are not kept")
    }

    /// Adds one entry.
    pub(super) fn add(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        explain: &impl Fn(io::Error) -> UnpackError,
    ) -> Result<(), UnpackError> {
        let path = clean(&entry.path_bytes())?;
        let (xattrs, sparse) = extended(entry).map_err(explain)?;
        if sparse {
            return Err(UnpackError::Unsupported(
                "a sparse file in the pax format".to_owned(),
            ));
        }
        let header = entry.header();
        let kind = header.entry_type();
        let number = |value: io::Result<u64>| {
            value
                .map(|id| u32::try_from(id).unwrap_or(u32::MAX))
                .map_err(explain)
        };
        let attributes = Attributes {
            mode: header.mode().map_err(explain)? & 0o7777,
            owner: (number(header.uid())?, number(header.gid())?),
            seconds: i64::try_from(header.mtime().map_err(explain)?).unwrap_or(0),
        };
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            if kind.is_dir() {
                self.folders.push((PathBuf::from("."), attributes));
            }
            return Ok(());
        };
        let parent = self.open_parent(&path)?;
        match kind {
            EntryType::Directory => self.folder(&parent, &name, &path, attributes),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => self.file(
                Place {
                    parent: &parent,
                    name: &name,
                    path: &path,
                },
                entry,
                attributes,
                &xattrs,
                explain,
            ),
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                replace(&parent, &name, &path)?;
                rustix::fs::symlinkat(OsStr::from_bytes(&target), &parent, &*name)
                    .map_err(|error| write_error("link", &path, error))?;
                self.own(&parent, &name, &path, attributes)
            }
            EntryType::Link => {
                let target = clean(&entry.link_name_bytes().unwrap_or_default())?;
                let Some(old) = target.file_name() else {
                    return Err(UnpackError::Entry {
                        name: path.display().to_string(),
                        reason: "links to a folder",
                    });
                };
                if target == path {
                    return Ok(());
                }
                let from = self.open_parent(&target)?;
                replace(&parent, &name, &path)?;
                rustix::fs::linkat(&from, old, &parent, &*name, AtFlags::empty())
                    .map_err(|error| write_error("link", &path, error))
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                if !self.is_root && kind != EntryType::Fifo {
                    return Ok(());
                }
                let device = header_device(entry).map_err(explain)?;
                replace(&parent, &name, &path)?;
                let file_type = match kind {
                    EntryType::Char => FileType::CharacterDevice,
                    EntryType::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                rustix::fs::mknodat(&parent, &*name, file_type, mode(attributes.mode), device)
                    .map_err(|error| write_error("make", &path, error))?;
                self.own(&parent, &name, &path, attributes)?;
                rustix::fs::chmodat(&parent, &*name, mode(attributes.mode), AtFlags::empty())
                    .map_err(|error| write_error("change", &path, error))
            }
            // Labels and other notes of an archive's maker.
            _ => Ok(()),
        }
    }

    fn open_parent(&self, path: &Path) -> Result<OwnedFd, UnpackError> {
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        match self.open(parent, FOLDER) {
            Err(rustix::io::Errno::NOENT) => {}
            found => return found.map_err(|error| write_error("open", parent, error)),
        }
        // Archives may leave out the folders of what they hold.
        let mut at = PathBuf::new();
        for part in parent.components() {
            at.push(part);
            if let Err(rustix::io::Errno::NOENT) = self.open(&at, FOLDER) {
                let above = at
                    .parent()
                    .filter(|above| !above.as_os_str().is_empty())
                    .unwrap_or(Path::new("."));
                let above = self
                    .open(above, FOLDER)
                    .map_err(|error| write_error("open", &at, error))?;
                rustix::fs::mkdirat(above, part.as_os_str(), mode(0o755))
                    .map_err(|error| write_error("create", &at, error))?;
            }
        }
        self.open(parent, FOLDER)
            .map_err(|error| write_error("open", parent, error))
    }

    /// The one door into the tree.
    fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve)
    }

    fn folder(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        attributes: Attributes,
    ) -> Result<(), UnpackError> {
        match rustix::fs::mkdirat(parent, name, mode(0o700)) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => {
                let found = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|error| write_error("read", path, error))?;
                // A link to a folder stays, as tar(1) leaves it when told to keep them: `lib -> usr/lib`.
                let found = FileType::from_raw_mode(found.st_mode as RawMode);
                if found != FileType::Directory {
                    if found == FileType::Symlink && self.open(path, FOLDER).is_ok() {
                        return Ok(());
                    }
                    replace(parent, name, path)?;
                    rustix::fs::mkdirat(parent, name, mode(0o700))
                        .map_err(|error| write_error("create", path, error))?;
                }
            }
            Err(error) => return Err(write_error("create", path, error)),
        }
        self.folders.push((path.to_owned(), attributes));
        Ok(())
    }

    fn file(
        &self,
        Place { parent, name, path }: Place<'_>,
        content: &mut impl Read,
        attributes: Attributes,
        xattrs: &[(OsString, Vec<u8>)],
        explain: &impl Fn(io::Error) -> UnpackError,
    ) -> Result<(), UnpackError> {
        replace(parent, name, path)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let failed = |verb| move |error: rustix::io::Errno| write_error(verb, path, error);
        let file =
            rustix::fs::openat(parent, name, flags, mode(0o600)).map_err(failed("create"))?;
        let mut file = File::from(file);
        let mut buffer = [0; 32 << 10];
        loop {
            let count = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(explain(error)),
            };
            file.write_all(&buffer[..count])
                .map_err(|error| write_error("write", path, error))?;
        }
        if self.is_root {
            let (uid, gid) = attributes.owner();
            rustix::fs::fchown(&file, uid, gid).map_err(failed("change"))?;
        }
        // The owner first: a change of it takes set-id bits and capabilities away.
        rustix::fs::fchmod(&file, mode(attributes.mode)).map_err(failed("change"))?;
        for (key, value) in xattrs {
            match rustix::fs::fsetxattr(&file, &**key, value, XattrFlags::empty()) {
                Ok(()) => {}
                // Not root, or a file system without them: a tree that boots all the same.
                Err(rustix::io::Errno::PERM | rustix::io::Errno::OPNOTSUPP) => {}
                Err(error) => return Err(write_error("change", path, error)),
            }
        }
        rustix::fs::futimens(&file, &attributes.times()).map_err(failed("change"))
    }

    fn own(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        attributes: Attributes,
    ) -> Result<(), UnpackError> {
        if self.is_root {
            let (uid, gid) = attributes.owner();
            rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| write_error("change", path, error))?;
        }
        rustix::fs::utimensat(parent, name, &attributes.times(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| write_error("change", path, error))
    }

    /// Gives the folders their attributes, the innermost first, and writes everything to the disk.
    pub(super) fn finish(self) -> Result<(), UnpackError> {
        for (path, attributes) in self.folders.iter().rev() {
            let failed = |error: rustix::io::Errno| write_error("change", path, error);
            // A later entry may have put something else in the folder's place.
            let Ok(folder) = self.open(path, FOLDER | OFlags::NOFOLLOW) else {
                continue;
            };
            if self.is_root {
                let (uid, gid) = attributes.owner();
                rustix::fs::fchown(&folder, uid, gid).map_err(failed)?;
            }
            rustix::fs::fchmod(&folder, mode(attributes.mode)).map_err(failed)?;
            rustix::fs::futimens(&folder, &attributes.times()).map_err(failed)?;
        }
        rustix::fs::syncfs(&self.root).map_err(|error| write_error("sync", Path::new("."), error))
    }
}

fn mode(bits: u32) -> Mode {
    Mode::from_raw_mode(bits as RawMode)
}

fn header_device(entry: &Entry<'_, impl Read>) -> io::Result<rustix::fs::Dev> {
    let header = entry.header();
    let (major, minor) = (
        header.device_major()?.unwrap_or(0),
        header.device_minor()?.unwrap_or(0),
    );
    Ok(rustix::fs::makedev(major, minor))
}

/// Removes what stands in an entry's place; of two entries of one name the later counts.
fn replace(parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), UnpackError> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(rustix::io::Errno::ISDIR) => rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
            .map_err(|error| write_error("replace", path, error)),
        Err(error) => Err(write_error("replace", path, error)),
    }
}

/// A path inside the tree, without `.` parts.
fn clean(bytes: &[u8]) -> Result<PathBuf, UnpackError> {
    let refused = |reason| UnpackError::Entry {
        name: String::from_utf8_lossy(bytes).into_owned(),
        reason,
    };
    if bytes.contains(&0) {
        return Err(refused("holds a NUL byte"));
    }
    let mut path = PathBuf::new();
    for part in Path::new(OsStr::from_bytes(bytes)).components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) => path.push(name),
            Component::ParentDir => return Err(refused("leads out of the tree with \"..\"")),
            Component::RootDir | Component::Prefix(_) => return Err(refused("is absolute")),
        }
    }
    Ok(path)
}

type Xattrs = Vec<(OsString, Vec<u8>)>;

/// The extended attributes that a tree may bring, and whether the content is in the pax sparse format.
fn extended(entry: &mut Entry<'_, impl Read>) -> io::Result<(Xattrs, bool)> {
    let mut xattrs = Vec::new();
    let mut sparse = false;
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            let Ok(key) = extension.key() else { continue };
            sparse |= key.starts_with("GNU.sparse.");
            // Never trusted.* (overlayfs acts on it) nor the host's labels.
            if let Some(name) = key.strip_prefix("SCHILY.xattr.")
                && (name == "security.capability"
                    || name.starts_with("user.")
                    || name.starts_with("system.posix_acl_"))
            {
                let name = OsString::from_vec(name.as_bytes().to_vec());
                xattrs.push((name, extension.value_bytes().to_vec()));
            }
        }
    }
    Ok((xattrs, sparse))
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
