//! The files below an overlay: opened only in a folder that the user named, and never outside it.
//!
//! A name is taken as relative to the folder of the image that gives it, or as absolute where it lies inside the
//! consented folder; openat2(2) with `RESOLVE_BENEATH` opens it, so that neither `..` nor a link leads out. Names
//! with a protocol (`nbd:`, `json:`, …) are refused, and so are links that begin at the root, wherever they lead.
//! Source: qcow2.txt, "Header", bytes 8-19; qemu-img(1), "create".

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::error::{BackingReason, Qcow2Error};
use super::header::Backing;
use super::{OpenOptions, Qcow2};
use crate::convert::{RawUnits, Units};
use crate::source::ReadAt;

/// Most files in a chain. Each costs every thread two slices of its tables.
pub(super) const MAX_DEPTH: usize = 16;
const MAGIC: &[u8; 4] = b"QFI\xfb";

/// A file below an overlay.
#[derive(Debug)]
pub(super) enum Below {
    Raw(RawUnits<File>),
    Qcow2(Box<Qcow2<File>>),
}

impl Below {
    pub(super) fn units(&self) -> &dyn Units {
        match self {
            Self::Raw(units) => units,
            Self::Qcow2(image) => &**image,
        }
    }
}

/// A file of a chain, by what it is and not by a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// The device that holds it.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// Its length, in bytes.
    pub length: u64,
    /// When it was last changed, in nanoseconds since 1970.
    pub changed: i128,
}

/// What is known while a chain is followed downwards.
pub(super) struct Chain<'a> {
    options: &'a OpenOptions,
    /// The folder of the image above, relative to the consented one.
    folder: PathBuf,
    pub(super) seen: Vec<FileIdentity>,
}

impl<'a> Chain<'a> {
    /// `image` is where the uppermost image lies, if it is a file.
    pub(super) fn new(options: &'a OpenOptions) -> Self {
        let folder = options
            .backing
            .as_deref()
            .zip(options.path.as_deref())
            .and_then(|(consented, image)| {
                let image = std::fs::canonicalize(image).ok()?;
                let consented = std::fs::canonicalize(consented).ok()?;
                Some(image.parent()?.strip_prefix(consented).ok()?.to_owned())
            });
        let seen = options
            .path
            .as_deref()
            .and_then(|path| identity(&File::open(path).ok()?));
        Self {
            options,
            folder: folder.unwrap_or_default(),
            seen: seen.into_iter().collect(),
        }
    }

    /// Opens the file that `backing` names, and what lies below it.
    pub(super) fn open(&mut self, backing: &Backing) -> Result<Below, Qcow2Error> {
        let name = &backing.name;
        let Some(consented) = &self.options.backing else {
            return Err(Qcow2Error::BackingFile(name.clone()));
        };
        let failed = |reason| Qcow2Error::Backing {
            name: name.clone(),
            folder: consented.clone(),
            reason: Box::new(reason),
        };
        if self.seen.len() > MAX_DEPTH {
            return Err(failed(BackingReason::Depth(MAX_DEPTH)));
        }
        let relative = self.resolve(consented, name).map_err(failed)?;
        let file = open_beneath(consented, &relative).map_err(failed)?;
        let identity = identity(&file).ok_or_else(|| failed(BackingReason::NotAFile))?;
        let same =
            |other: &FileIdentity| (other.device, other.inode) == (identity.device, identity.inode);
        if self.seen.iter().any(same) {
            return Err(failed(BackingReason::Loop));
        }
        self.seen.push(identity);
        let mut head = [0; 4];
        let read = |source| failed(BackingReason::Open(source));
        let count = file.read_at(&mut head, 0).map_err(read)?;
        let qcow2 = match backing.format.as_deref() {
            Some("qcow2") => true,
            Some("raw") => false,
            Some(other) => return Err(failed(BackingReason::Format(other.to_owned()))),
            // Written before the format was: what its first bytes say.
            None => head[..count] == *MAGIC,
        };
        if !qcow2 {
            let units = RawUnits::new(file).map_err(read)?;
            return Ok(Below::Raw(units));
        }
        self.folder = relative.parent().unwrap_or(Path::new("")).to_owned();
        let depth = self.seen.len();
        let image = Qcow2::open_in(file, self.options.limit, None, self, depth);
        let image = image.map_err(|error| match error {
            // The innermost name says enough.
            error @ (Qcow2Error::Backing { .. } | Qcow2Error::BackingFile(_)) => error,
            error => failed(BackingReason::Image(error)),
        })?;
        Ok(Below::Qcow2(Box::new(image)))
    }

    /// Where a name leads, relative to the consented folder.
    fn resolve(&self, consented: &Path, name: &str) -> Result<PathBuf, BackingReason> {
        if name.is_empty() || name.contains('\0') {
            return Err(BackingReason::NotAFile);
        }
        let (start, _) = name.split_once('/').unwrap_or((name, ""));
        if start.contains(':') {
            return Err(BackingReason::Protocol);
        }
        let path = Path::new(name);
        if path.is_relative() {
            let mut clean = PathBuf::new();
            for part in self.folder.join(path).components() {
                match part {
                    Component::ParentDir if !clean.pop() => return Err(BackingReason::Outside),
                    Component::ParentDir | Component::CurDir => {}
                    part => clean.push(part),
                }
            }
            return Ok(clean);
        }
        let root = std::fs::canonicalize(consented).map_err(BackingReason::Open)?;
        let inside = [consented, &root]
            .into_iter()
            .find_map(|root| path.strip_prefix(root).ok());
        inside.map(Path::to_owned).ok_or(BackingReason::Outside)
    }
}

fn open_beneath(consented: &Path, relative: &Path) -> Result<File, BackingReason> {
    let failed = |error: rustix::io::Errno| match error {
        rustix::io::Errno::XDEV => BackingReason::Outside,
        error => BackingReason::Open(error.into()),
    };
    let folder = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
    let root = rustix::fs::open(consented, folder, Mode::empty()).map_err(failed)?;
    // Without waiting: what is named may be a pipe.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file =
        rustix::fs::openat2(root, relative, flags, Mode::empty(), resolve).map_err(failed)?;
    Ok(File::from(file))
}

/// `None` for what is no regular file.
fn identity(file: &File) -> Option<FileIdentity> {
    let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    Some(FileIdentity {
        device: metadata.dev(),
        inode: metadata.ino(),
        length: metadata.len(),
        changed: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
    })
}
