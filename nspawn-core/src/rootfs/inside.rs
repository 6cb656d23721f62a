//! Files and folders of a root file system that nobody here made: no link in it leads out of it.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, chownat, mkdirat, openat2};
use rustix::io::Errno;

use crate::error::{MachineError, PathContext as _};

/// Largest file read, in bytes.
const LIMIT: u64 = 1 << 20;

/// A folder in a root file system, held open.
#[derive(Debug)]
pub(super) struct Folder(OwnedFd);

impl Folder {
    /// A path that leads to it, and through no link of the root file system.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

fn open(root: &Path, relative: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let root = openat2(
        CWD,
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::empty(),
    )?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(
        &root,
        relative,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )
}

/// The folder `relative` below `root`; the last part of it is made where it is not there.
pub(super) fn folder(root: &Path, relative: &Path, owner: u32) -> Result<Folder, MachineError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let whole = root.join(relative);
    match open(root, relative, flags) {
        Err(Errno::NOENT) => {}
        other => return other.map(Folder).at("open", &whole),
    }
    let (parent, name) = (relative.parent(), relative.file_name());
    let (Some(parent), Some(name)) = (parent, name) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput)).at("make", &whole);
    };
    let parent = if parent == Path::new("") {
        Path::new(".")
    } else {
        parent
    };
    let parent = open(root, parent, flags).at("make", &whole)?;
    mkdirat(&parent, name, Mode::from_raw_mode(0o755)).at("make", &whole)?;
    let owner = (
        Some(rustix::fs::Uid::from_raw(owner)),
        Some(rustix::fs::Gid::from_raw(owner)),
    );
    let no_follow = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    chownat(&parent, name, owner.0, owner.1, no_follow).at("change the owner of", &whole)?;
    open(root, relative, flags).map(Folder).at("open", &whole)
}

/// The text of a small file, or nothing where there is no such file.
pub(super) fn read(root: &Path, relative: &Path) -> Result<Option<String>, MachineError> {
    let whole = root.join(relative);
    // a pipe in its place must not hold us up
    let file = match open(root, relative, OFlags::RDONLY | OFlags::NONBLOCK) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        other => File::from(other.at("open", &whole)?),
    };
    if !file.metadata().at("read", &whole)?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(LIMIT)
        .read_to_end(&mut bytes)
        .at("read", &whole)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::create_dir_all(dir.path().join("out")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        assert_eq!(read(&root, Path::new("etc/fstab")).unwrap(), None);
        symlink("../../secret", root.join("etc/fstab")).unwrap();
        assert_eq!(read(&root, Path::new("etc/fstab")).unwrap(), None);
        fs::write(root.join("secret"), "inside").unwrap();
        let text = read(&root, Path::new("etc/fstab")).unwrap();
        assert_eq!(text.as_deref(), Some("inside"));
        assert_eq!(read(&root, Path::new("etc")).unwrap(), None);
        symlink(dir.path().join("out"), root.join("var")).unwrap();
        folder(&root, Path::new("var"), 0).unwrap_err();
        assert_eq!(fs::read_dir(dir.path().join("out")).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_is_found_or_made() {
        let dir = tempfile::tempdir().unwrap();
        let owner = rustix::process::geteuid().as_raw();
        for relative in ["home", "home", "home/a"] {
            let found = folder(dir.path(), Path::new(relative), owner).unwrap();
            let target = fs::read_link(found.path()).unwrap();
            assert_eq!(target, dir.path().join(relative).canonicalize().unwrap());
        }
        folder(dir.path(), Path::new("a/b/c"), owner).unwrap_err();
    }
}
