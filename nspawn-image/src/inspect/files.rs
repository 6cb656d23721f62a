//! Small files of a root file system that nobody has mounted, or of one that stands in a folder.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

/// Names of one folder that are looked at, at most.
pub(super) const MAX_NAMES: usize = 20_000;

/// A root file system, read without being entered: links lead where they would inside it and never out.
pub(super) trait OsFiles {
    /// The first `limit` bytes of a file.
    ///
    /// # Errors
    ///
    /// `NotFound`, `InvalidInput` for what is no regular file, and what the system or the file system answers.
    fn read(&self, path: &str, limit: usize) -> io::Result<Vec<u8>>;

    /// Where a link leads.
    ///
    /// # Errors
    ///
    /// `NotFound`, `InvalidInput` for what is no link, and what the system or the file system answers.
    fn read_link(&self, path: &str) -> io::Result<PathBuf>;

    /// The names in a folder, sorted, [`MAX_NAMES`] at most.
    ///
    /// # Errors
    ///
    /// `NotFound`, and what the system or the file system answers.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;

    /// Whether there is something of this name, a link that leads nowhere included.
    ///
    /// # Errors
    ///
    /// What the system or the file system answers.
    fn exists(&self, path: &str) -> io::Result<bool>;
}

/// A folder.
pub(super) struct Folder(OwnedFd);

impl Folder {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// A folder that is open, if only as a path.
    pub(super) fn new(folder: OwnedFd) -> Self {
        Self(folder)
    }

    fn at(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(
            &self.0,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )
    }
}

impl OsFiles for Folder {
    fn read(&self, path: &str, limit: usize) -> io::Result<Vec<u8>> {
        // Looked at before it is opened: opening a device or a pipe does something.
        let found = self.at(path, OFlags::PATH)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
        if kind != FileType::RegularFile {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
        let mut bytes = Vec::new();
        file.take(limit as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn read_link(&self, path: &str) -> io::Result<PathBuf> {
        let found = self.at(path, OFlags::PATH | OFlags::NOFOLLOW)?;
        let target =
            rustix::fs::readlinkat(&found, "", Vec::new()).map_err(|error| match error {
                // What an open file that is no link answers.
                Errno::NOENT => io::ErrorKind::InvalidInput.into(),
                other => io::Error::from(other),
            })?;
        Ok(PathBuf::from(OsStr::from_bytes(target.as_bytes())))
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let folder = self.at(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&folder)?.take(MAX_NAMES) {
            let entry = entry?;
            if let Ok(name) = entry.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        match self.at(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn no_link_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(dir.path().join("secret"), "outside").unwrap();
        fs::write(root.join("secret"), "inside").unwrap();
        symlink("../../../secret", root.join("etc/up")).unwrap();
        symlink("/secret", root.join("etc/absolute")).unwrap();
        symlink("nowhere", root.join("etc/dead")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            root.join("etc/pipe"),
            FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        let files = Folder::open(&root).unwrap();
        assert_eq!(files.read("etc/up", 100).unwrap(), b"inside");
        assert_eq!(files.read("/etc/absolute", 2).unwrap(), b"in");
        assert_eq!(files.read_link("etc/dead").unwrap(), Path::new("nowhere"));
        let kind = |result: io::Result<Vec<u8>>| result.unwrap_err().kind();
        assert_eq!(kind(files.read("etc/dead", 9)), io::ErrorKind::NotFound);
        assert_eq!(kind(files.read("etc/pipe", 9)), io::ErrorKind::InvalidInput);
        let link = files.read_link("secret").unwrap_err().kind();
        assert_eq!(link, io::ErrorKind::InvalidInput);
        assert!(files.exists("etc/dead").unwrap());
        assert!(!files.exists("etc/none").unwrap());
        assert_eq!(
            files.list("etc").unwrap(),
            ["absolute", "dead", "pipe", "up"]
        );
    }
}
