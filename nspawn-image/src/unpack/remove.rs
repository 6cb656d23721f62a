//! Removing a folder and all in it, however deep, with two open folders and no recursion.
//!
//! An archive may nest folders deeper than a process may open files or a path may be long. So a folder inside is not
//! walked down: what is in it is moved up, again and again, until there is nothing left.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::{Errno, Result};

const FOLDER: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::RDONLY);

/// Removes what stands at `path`, a folder with all that is in it, however deep; links are never followed. Nothing there
/// is no error.
///
/// # Errors
///
/// What the system answers; what was removed by then stays so.
pub fn remove_tree(path: &Path) -> std::io::Result<()> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let above = if above.as_os_str().is_empty() {
        Path::new(".")
    } else {
        above
    };
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
    let above = match rustix::fs::open(above, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    Ok(remove_at(&above, name)?)
}

/// As [`remove_tree`], of `name` in an open folder.
pub(super) fn remove_at(above: &OwnedFd, name: impl rustix::path::Arg + Copy) -> Result<()> {
    match rustix::fs::unlinkat(above, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    if rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR).is_ok() {
        return Ok(());
    }
    let top = open(above, name)?;
    empty(&top)?;
    rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR)
}

/// Removes all that is in an open folder.
pub(super) fn empty(top: &OwnedFd) -> Result<()> {
    let mut counter = 0_u64;
    loop {
        let names = names(top)?;
        if names.is_empty() {
            return Ok(());
        }
        for (name, kind) in &names {
            if *kind != FileType::Directory {
                remove_file(top, name)?;
                continue;
            }
            match rustix::fs::unlinkat(top, name, AtFlags::REMOVEDIR) {
                Ok(()) => continue,
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ACCESS) => {}
                Err(error) => return Err(error),
            }
            let inner = open(top, name)?;
            loop {
                let children = self::names(&inner)?;
                if children.is_empty() {
                    break;
                }
                for (child, kind) in &children {
                    if *kind == FileType::Directory {
                        move_up(&inner, child, top, &mut counter)?;
                    } else {
                        remove_file(&inner, child)?;
                    }
                }
            }
            rustix::fs::unlinkat(top, name, AtFlags::REMOVEDIR)?;
        }
    }
}

/// Moves a folder to `top`, where it does not keep the one it was in from being removed.
fn move_up(from: &OwnedFd, name: &CString, top: &OwnedFd, counter: &mut u64) -> Result<()> {
    if rustix::fs::unlinkat(from, name, AtFlags::REMOVEDIR).is_ok() {
        return Ok(());
    }
    // A folder changes hands only where it may be written to.
    let _ = open(from, name)?;
    loop {
        *counter += 1;
        let free = format!(".removed-{counter}");
        match rustix::fs::renameat(from, name, top, &*free) {
            // The archive has that name itself; where it is an empty folder, it may go.
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            other => return other,
        }
    }
}

fn remove_file(folder: impl AsFd, name: &CString) -> Result<()> {
    rustix::fs::unlinkat(folder, name, AtFlags::empty())
}

/// Opens a folder, and gives its owner the right to change it.
fn open(above: impl AsFd, name: impl rustix::path::Arg + Copy) -> Result<OwnedFd> {
    let above = above.as_fd();
    let folder = match rustix::fs::openat(above, name, FOLDER, Mode::empty()) {
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(above, name, Mode::RWXU, AtFlags::empty())?;
            rustix::fs::openat(above, name, FOLDER, Mode::empty())?
        }
        other => other?,
    };
    rustix::fs::fchmod(&folder, Mode::RWXU)?;
    Ok(folder)
}

/// Names held in memory at once.
const BATCH: usize = 4096;

/// What is in a folder, a batch of it: names and kinds.
fn names(folder: &OwnedFd) -> Result<Vec<(CString, FileType)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            // Some file systems do not tell.
            FileType::Unknown => {
                let found = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(found.st_mode)
            }
            known => known,
        };
        found.push((name.to_owned(), kind));
        if found.len() == BATCH {
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_folder_deeper_than_any_path_goes() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let top = dir.path().join("top");
        fs::create_dir(&top).unwrap();
        std::os::unix::fs::symlink(&outside, top.join("link")).unwrap();
        let mut at = rustix::fs::open(&top, FOLDER, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "deep", Mode::RWXU).unwrap();
            rustix::fs::symlinkat(outside.as_path(), &at, "out").unwrap();
            at = rustix::fs::openat(&at, "deep", FOLDER, Mode::empty()).unwrap();
        }
        fs::create_dir(top.join("closed")).unwrap();
        fs::write(top.join("closed/file"), "x").unwrap();
        fs::set_permissions(top.join("closed"), fs::Permissions::from_mode(0o000)).unwrap();
        remove_tree(&top).unwrap();
        assert!(!top.exists());
        assert!(outside.join("kept").exists());
        remove_tree(&top).unwrap();
        remove_tree(&dir.path().join("no/such")).unwrap();
    }
}
