//! Images where machined looks for them: copies that machines may write to, never the bases of the store.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{
    DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown,
    symlink,
};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Mode, Timespec, Timestamps, UTIME_OMIT, XattrFlags,
    fcntl_lock, ioctl_ficlone, lsetxattr, mknodat, utimensat,
};

use crate::convert::{self, RawUnits, Units};
use crate::error::{ImageError, PathContext};
use crate::fetch::sync_folder;
use crate::image::{Image, ImageKind};
use crate::limits::Cancel;
use crate::place::{self, WorkFolder};
use crate::reference::ImageName;
use crate::report::{Reporter, Step, StepKind};
use crate::source::ReadAt;
use crate::unpack::{self, remove_tree};
use crate::walk;

/// Bytes copied at once.
const CHUNK: usize = 1 << 20;

impl Image {
    /// Copies the image to a folder in which machined(8) finds it, as `NAME.raw` or the folder `NAME`, and returns the
    /// path of the copy. It shares blocks with the image where the file system can, and has its owners, modes, attributes,
    /// links and devices; machines may write to it.
    ///
    /// The copy is there complete or not at all. With `replace`, an image of that name gives way to it in one step.
    ///
    /// # Errors
    ///
    /// [`ImageError::Exists`] where the name is taken, [`ImageError::InUse`] where what is to be replaced runs,
    /// [`ImageError::Path`], [`ImageError::NoSpace`] and [`ImageError::Cancelled`].
    pub fn publish(
        &self,
        folder: &Path,
        name: &ImageName,
        replace: bool,
        cancel: &Cancel,
        reporter: &mut dyn Reporter,
    ) -> Result<PathBuf, ImageError> {
        if !folder.is_dir() {
            // As systemd makes it. Source: tmpfiles.d/systemd-nspawn.conf.
            let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.at("create", folder)?;
        }
        let (disk, tree) = (
            folder.join(format!("{name}.raw")),
            folder.join(name.as_str()),
        );
        let (target, other) = match self.kind() {
            ImageKind::Disk => (disk, tree),
            ImageKind::Tree => (tree, disk),
        };
        let taken = |path: &Path| fs::symlink_metadata(path).is_ok();
        // Looked for before the copy, which takes its time, and again when it takes its place.
        for path in [&target, &other] {
            if !replace && taken(path) {
                return Err(ImageError::Exists(path.clone()));
            }
        }
        let _locks = [Taken::lock(&target, name)?, Taken::lock(&other, name)?];
        self.copy_to(folder, &target, replace, cancel, reporter)?;
        if taken(&other) {
            // machined would see two images of one name.
            if !replace {
                return Err(ImageError::Exists(other));
            }
            remove_tree(&other).at("remove", &other)?;
        }
        sync_folder(folder)?;
        Ok(target)
    }

    /// Makes the copy where nobody sees it, and gives it its place; what a killed call leaves is taken over by the next.
    fn copy_to(
        &self,
        folder: &Path,
        target: &Path,
        replace: bool,
        cancel: &Cancel,
        reporter: &mut dyn Reporter,
    ) -> Result<(), ImageError> {
        let private = fs::Permissions::from_mode(0o600);
        if self.kind() == ImageKind::Disk
            && let Ok(file) = place::nameless(folder)
        {
            file.set_permissions(private).at("change", target)?;
            self.copy_disk(&file, target, cancel, reporter)?;
            return place::put_nameless(&file, target, replace);
        }
        let work = WorkFolder::open(target)?;
        let new = WorkFolder::path(target).join("new");
        let copied = match self.kind() {
            ImageKind::Disk => File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&new)
                .at("create", &new)
                .and_then(|file| self.copy_disk(&file, target, cancel, reporter)),
            ImageKind::Tree => self.copy_tree(&new, target, cancel, reporter),
        };
        let result = copied.and_then(|()| place::put(&new, target, replace));
        work.close();
        result
    }

    fn copy_disk(
        &self,
        output: &File,
        target: &Path,
        cancel: &Cancel,
        reporter: &mut dyn Reporter,
    ) -> Result<(), ImageError> {
        let file = File::open(self.path()).at("open", self.path())?;
        let units = RawUnits::new(&file).at("read", self.path())?;
        let shown = target.display().to_string();
        let mut step = Step::begin(reporter, StepKind::Copy, &shown, Some(units.size()));
        convert::run(&units, output, cancel, &mut |done| step.at(done))
            .map_err(|source| unpack::qcow2_error(source, self.path(), target))?;
        output.sync_all().at("sync", target)
    }

    fn copy_tree(
        &self,
        new: &Path,
        target: &Path,
        cancel: &Cancel,
        reporter: &mut dyn Reporter,
    ) -> Result<(), ImageError> {
        let shown = target.display().to_string();
        let total = super::disk_usage(self.path());
        let mut step = Step::begin(reporter, StepKind::Copy, &shown, Some(total));
        let mut progress = |bytes| step.advance(bytes);
        Copy {
            from: self.path(),
            to: new,
            links: HashMap::new(),
            cancel,
            progress: &mut progress,
        }
        .run()
    }
}

/// The lock that systemd-nspawn and machined take of an image that runs. Source: systemd, `image_path_lock`.
struct Taken {
    path: PathBuf,
    _file: File,
}

impl Taken {
    /// Takes the lock of the image at `path`, where there is one.
    fn lock(path: &Path, name: &ImageName) -> Result<Option<Self>, ImageError> {
        if fs::symlink_metadata(path).is_err() {
            return Ok(None);
        }
        let file_name = path.file_name().unwrap_or_default().display();
        let lock = path.with_file_name(format!(".#{file_name}.lck"));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock)
            .at("open", &lock)?;
        match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self {
                path: lock,
                _file: file,
            })),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {
                Err(ImageError::InUse { name: name.clone() })
            }
            Err(error) => Err(ImageError::io("lock", &lock, error.into())),
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // While it is still held, as systemd does.
        let _ = fs::remove_file(&self.path);
    }
}

/// The copy of one OS tree. Both are within reach of their owner alone.
struct Copy<'a> {
    from: &'a Path,
    to: &'a Path,
    /// Files with several names: where the first copy of each is, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    cancel: &'a Cancel,
    progress: &'a mut dyn FnMut(u64),
}

impl Copy<'_> {
    fn run(mut self) -> Result<(), ImageError> {
        DirBuilder::new()
            .mode(0o700)
            .create(self.to)
            .at("create", self.to)?;
        let mut folders = vec![PathBuf::new()];
        for path in walk::entries(self.from)? {
            self.cancel.check()?;
            if self.entry(&path)? {
                folders.push(path);
            }
        }
        // What is in a folder changes its time, and may not be writable any more.
        for folder in folders.iter().rev() {
            let (from, to) = match folder.as_os_str().is_empty() {
                true => (self.from.to_owned(), self.to.to_owned()),
                false => (self.from.join(folder), self.to.join(folder)),
            };
            attributes(&from, &to)?;
        }
        let root = File::open(self.to).at("open", self.to)?;
        rustix::fs::syncfs(&root).at("sync", self.to)
    }

    /// Copies one entry; says whether it is a folder, whose attributes come last.
    fn entry(&mut self, path: &Path) -> Result<bool, ImageError> {
        let (from, to) = (self.from.join(path), self.to.join(path));
        let found = fs::symlink_metadata(&from).at("read", &from)?;
        let kind = found.file_type();
        if kind.is_dir() {
            DirBuilder::new()
                .mode(0o700)
                .create(&to)
                .at("create", &to)?;
            return Ok(true);
        }
        if found.nlink() > 1 {
            let identity = (found.dev(), found.ino());
            if let Some(first) = self.links.get(&identity) {
                fs::hard_link(first, &to).at("link", &to)?;
                return Ok(false);
            }
            self.links.insert(identity, to.clone());
        }
        if kind.is_symlink() {
            symlink(fs::read_link(&from).at("read", &from)?, &to).at("create", &to)?;
        } else if kind.is_file() {
            self.file(&from, &to, found.len())?;
        } else {
            let node = if kind.is_char_device() {
                FileType::CharacterDevice
            } else if kind.is_block_device() {
                FileType::BlockDevice
            } else if kind.is_fifo() {
                FileType::Fifo
            } else {
                FileType::Socket
            };
            mknodat(CWD, &to, node, Mode::RUSR | Mode::WUSR, found.rdev()).at("create", &to)?;
        }
        attributes(&from, &to)?;
        Ok(false)
    }

    /// Shares the blocks where that can be, else copies what is no hole.
    fn file(&mut self, from: &Path, to: &Path, length: u64) -> Result<(), ImageError> {
        let input = File::open(from).at("open", from)?;
        let mut output = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(to)
            .at("create", to)?;
        if length == 0 {
            return Ok(());
        }
        if ioctl_ficlone(&output, &input).is_ok() {
            (self.progress)(length);
            return Ok(());
        }
        let mut at = 0;
        if length <= CHUNK as u64 {
            let bytes = fs::read(from).at("read", from)?;
            output.write_all(&bytes).at("write", to)?;
            (self.progress)(length);
            return Ok(());
        }
        let mut buffer = vec![0; CHUNK];
        while let Some((start, end)) = input.next_data(at).at("read", from)? {
            at = start;
            while at < end {
                self.cancel.check()?;
                let count = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
                let bytes = &mut buffer[..count];
                ReadAt::read_exact_at(&input, bytes, at).at("read", from)?;
                output.write_all_at(bytes, at).at("write", to)?;
                at += count as u64;
                (self.progress)(count as u64);
            }
        }
        output.set_len(length).at("write", to)
    }
}

/// Gives a copy the owners, mode, attributes and times of what it is a copy of.
fn attributes(from: &Path, to: &Path) -> Result<(), ImageError> {
    let found = fs::symlink_metadata(from).at("read", from)?;
    match lchown(to, Some(found.uid()), Some(found.gid())) {
        // Only root gives files away; without it, a tree has one owner to begin with.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        other => other.at("change the owner of", to)?,
    }
    // After the owner, which takes capabilities away, and before the mode, which may forbid it.
    for (name, value) in walk::xattrs(from)? {
        match lsetxattr(to, &*name, &value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(error) => return Err(ImageError::io("set an attribute of", to, error.into())),
        }
    }
    if !found.file_type().is_symlink() {
        let mode = fs::Permissions::from_mode(found.mode() & 0o7777);
        fs::set_permissions(to, mode).at("change", to)?;
    }
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: found.mtime(),
            tv_nsec: found.mtime_nsec(),
        },
    };
    utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW).at("change", to)
}
