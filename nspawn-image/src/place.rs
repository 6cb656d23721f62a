//! Results that take their place in one step: nobody ever sees half of one.

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io::{self, BufWriter};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, linkat, renameat_with,
};
use rustix::io::Errno;

use crate::error::{ImageError, PathContext};
use crate::unpack::remove_tree;

/// How often, and after which pause, a name that another process uses for a moment is tried again.
const TRIES: u32 = 1000;
const PAUSE: Duration = Duration::from_millis(5);

/// Writes a file under the name `new`, and gives it its place at `to` when it is on the disk. The caller holds a lock of
/// both, and syncs the folder.
pub(crate) fn write_aside(
    new: &Path,
    to: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), ImageError> {
    let written = File::create(new).and_then(|file| {
        let mut file = BufWriter::new(file);
        write(&mut file)?;
        file.into_inner()?.sync_all()
    });
    written
        .and_then(|()| std::fs::rename(new, to))
        .inspect_err(|_| {
            let _ = std::fs::remove_file(new);
        })
        .at("write", to)
}

/// A name beside `target` that no listing shows and no other process takes.
pub(crate) fn beside(target: &Path, end: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".{}.{end}", std::process::id()));
    target.with_file_name(name)
}

/// The name beside `target` of what every process that writes to it shares, one at a time.
pub(crate) fn shared_beside(target: &Path, end: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".nspawn-run.{end}"));
    target.with_file_name(name)
}

/// A folder beside a target, for what is still being made of it. Only one process has it; the next one takes over what a
/// killed one left.
#[derive(Debug)]
pub(crate) struct WorkFolder {
    path: PathBuf,
    _lock: File,
}

impl WorkFolder {
    /// Where it is.
    pub(crate) fn path(target: &Path) -> PathBuf {
        shared_beside(target, "work")
    }

    /// Makes it, or takes it over; it is empty then.
    ///
    /// # Errors
    ///
    /// [`ImageError::Output`] where another process has it.
    pub(crate) fn open(target: &Path) -> Result<Self, ImageError> {
        let path = Self::path(target);
        loop {
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    // In a folder that many write to, it may be a trap of somebody else's.
                    let found = std::fs::symlink_metadata(&path).map(|found| found.uid());
                    if found.is_ok_and(|owner| owner != rustix::process::geteuid().as_raw()) {
                        return Err(ImageError::Exists(path));
                    }
                }
                other => other.at("create", &path)?,
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let lock = match rustix::fs::open(&path, flags, Mode::empty()) {
                Err(Errno::NOENT) => continue,
                other => File::from(other.at("open", &path)?),
            };
            // Not every network's file system locks folders: there it goes without.
            if flock(&lock, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
                return Err(ImageError::Output {
                    path: target.to_owned(),
                    found: "being written by another process",
                });
            }
            if is_at(&lock, &path).at("read", &path)? {
                for left in std::fs::read_dir(&path).at("read", &path)? {
                    let left = left.at("read", &path)?.path();
                    remove_tree(&left).at("remove", &left)?;
                }
                return Ok(Self { path, _lock: lock });
            }
        }
    }

    /// Removes it, with what is in it, while its lock is held.
    pub(crate) fn close(self) {
        let _ = remove_tree(&self.path);
    }
}

/// Whether a name leads to an open file.
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let identity = |found: std::fs::Metadata| (found.dev(), found.ino());
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => Ok(identity(other?) == identity(file.metadata()?)),
    }
}

/// A file without a name in `folder`: the kernel removes it with the last process that has it open, however that ends.
///
/// # Errors
///
/// What the system answers where the file system knows none, or where none could be given a name later.
pub(crate) fn nameless(folder: &Path) -> io::Result<File> {
    let mode = Mode::from_raw_mode(0o666);
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(folder, flags, mode)?);
    std::fs::metadata(magic_link(&file))?;
    Ok(file)
}

/// Gives a file without a name its place, as [`put`] does with one that has a name.
pub(crate) fn put_nameless(file: &File, to: &Path, replace: bool) -> Result<(), ImageError> {
    match link(file, to) {
        Ok(()) => return Ok(()),
        Err(Errno::EXIST) if replace => {}
        Err(Errno::EXIST) => return Err(ImageError::Exists(to.to_owned())),
        Err(error) => return Err(ImageError::io("publish", to, error.into())),
    }
    // A link takes nothing's place, a rename does. Whoever holds the lock of what stands under the name between the two
    // is between them; without the lock it was killed there.
    let between = shared_beside(to, "new");
    flock(file, FlockOperation::LockExclusive).at("lock", &between)?;
    for _ in 0..TRIES {
        match link(file, &between) {
            Ok(()) => return std::fs::rename(&between, to).at("publish", to),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(ImageError::io("publish", to, error.into())),
        }
        if !remove_abandoned(&between).at("remove", &between)? {
            std::thread::sleep(PAUSE);
        }
    }
    Err(ImageError::Exists(between))
}

/// Removes a file that nobody holds the lock of; `false` where somebody does.
fn remove_abandoned(path: &Path) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(true),
        Err(error) => return Err(error.into()),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    if is_at(&file, path)? {
        std::fs::remove_file(path)?;
    }
    Ok(true)
}

fn magic_link(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Source: open(2), `O_TMPFILE`.
fn link(file: &File, to: &Path) -> Result<(), Errno> {
    linkat(CWD, magic_link(file), CWD, to, AtFlags::SYMLINK_FOLLOW)
}

/// Moves `from` to `to`. Without `replace`, what stands there stays and is [`ImageError::Exists`]; with it, what stood
/// there is gone afterwards, a folder with all that was in it.
pub(crate) fn put(from: &Path, to: &Path, replace: bool) -> Result<(), ImageError> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => return Ok(()),
        Err(Errno::EXIST) if !replace => return Err(ImageError::Exists(to.to_owned())),
        // Some file systems know plain renames alone.
        Err(Errno::INVAL | Errno::NOSYS) if !replace => {
            if std::fs::symlink_metadata(to).is_ok() {
                return Err(ImageError::Exists(to.to_owned()));
            }
        }
        Err(Errno::EXIST | Errno::INVAL | Errno::NOSYS) => {}
        Err(error) => return Err(ImageError::io("publish", to, error.into())),
    }
    let folder = |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    if !folder(from) && !folder(to) {
        return std::fs::rename(from, to).at("publish", to);
    }
    match renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE) {
        Ok(()) => remove_tree(from).at("remove", from),
        Err(Errno::INVAL | Errno::NOSYS) => {
            // Not in one step, but never half of it.
            let old = beside(to, "old");
            match std::fs::rename(to, &old) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(ImageError::io("replace", to, error));
                }
                _ => {}
            }
            std::fs::rename(from, to).at("publish", to)?;
            remove_tree(&old).at("remove", &old)
        }
        Err(error) => Err(ImageError::io("replace", to, error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write as _;

    #[test]
    fn a_nameless_file_takes_its_place_in_one_step() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        let made = |text: &str| {
            let mut file = nameless(dir.path()).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file
        };
        let abandoned = made("abandoned");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        put_nameless(&made("one"), &to, false).unwrap();
        let refused = put_nameless(&made("two"), &to, false).unwrap_err();
        assert!(matches!(refused, ImageError::Exists(_)), "{refused}");
        // One that was killed before its rename.
        link(&abandoned, &shared_beside(&to, "new")).unwrap();
        drop(abandoned);
        put_nameless(&made("three"), &to, true).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "three");
        // One that is still there, between its link and its rename.
        let slow = made("slow");
        flock(&slow, FlockOperation::LockExclusive).unwrap();
        link(&slow, &shared_beside(&to, "new")).unwrap();
        std::thread::scope(|scope| {
            let fast = scope.spawn(|| put_nameless(&made("fast"), &to, true));
            while !fast.is_finished() && fs::read_to_string(&to).unwrap() == "three" {
                let between = shared_beside(&to, "new");
                assert_eq!(fs::read_to_string(&between).unwrap(), "slow");
                fs::rename(between, &to).unwrap();
            }
            fast.join().unwrap().unwrap();
        });
        assert_eq!(fs::read_to_string(&to).unwrap(), "fast");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_result_replaces_only_where_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        for (index, is_folder) in [(0, false), (1, true), (2, false), (3, true), (4, true)] {
            let from = beside(&to, "new");
            let content = if is_folder {
                from.join("x")
            } else {
                from.clone()
            };
            if is_folder {
                fs::create_dir(&from).unwrap();
            }
            fs::write(content, format!("{index}")).unwrap();
            if index > 0 {
                let refused = put(&from, &to, false).unwrap_err();
                assert!(matches!(refused, ImageError::Exists(_)), "{refused}");
            }
            put(&from, &to, index > 0).unwrap();
            let content = if is_folder { to.join("x") } else { to.clone() };
            assert_eq!(fs::read_to_string(content).unwrap(), format!("{index}"));
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }
}
