//! A disk image to a raw file anywhere: no store, no root, nothing kept.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{ImageError, PathContext, is_full};
use crate::fetch::sync_folder;
use crate::image::ImageKind;
use crate::limits::{Cancel, Limits};
use crate::options::PullOptions;
use crate::place::{self, WorkFolder};
use crate::report::{Reporter, Step, StepKind};
use crate::unpack::{self, Paths, WorkPaths};

/// How an image is converted. Made by `default()`, then changed field by field.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ConvertOptions {
    /// The number or name of the internal snapshot of a qcow2 image; `None` for its active state.
    pub snapshot: Option<String>,
    /// The folder in which the files below a qcow2 overlay may be opened; `None` refuses overlays.
    pub allow_backing: Option<PathBuf>,
    /// Replace a file that stands at the target.
    pub replace: bool,
    /// Caps on what the image may hold.
    pub limits: Limits,
    /// Ends the call early.
    pub cancel: Cancel,
}

/// Converts a disk image to a sparse raw file, and returns its length in bytes.
///
/// `source` is a raw or qcow2 image, or either inside gzip, xz, zstd, bzip2, tar or zip. The result is written to a file
/// without a name and synced before it takes its place, so that `target` is absent, or as it was, or complete; a call that
/// is killed leaves nothing. Where the file system has no such files, it leaves a folder beside `target`, which the next
/// call takes over. The result's mode is what the umask leaves.
///
/// ```no_run
/// use std::path::Path;
/// use nspawn_image::{ConvertOptions, NoReport, convert_file};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (from, to) = (Path::new("debian.qcow2"), Path::new("debian.raw"));
/// convert_file(from, to, &ConvertOptions::default(), &mut NoReport)?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`ImageError::Exists`], [`ImageError::Output`] for a target that is no file or is the image itself,
/// [`ImageError::NotADisk`] for an archive of an OS tree; else as [`Store::pull`](crate::Store::pull).
pub fn convert_file(
    source: &Path,
    target: &Path,
    options: &ConvertOptions,
    reporter: &mut dyn Reporter,
) -> Result<u64, ImageError> {
    convert_in(&Work::open, source, target, options, reporter)
}

/// As [`convert_file`]; `open` says where to write what becomes a target, whose folder comes first.
fn convert_in(
    open: &dyn Fn(&Path, &Path) -> Result<Work, ImageError>,
    source: &Path,
    target: &Path,
    options: &ConvertOptions,
    reporter: &mut dyn Reporter,
) -> Result<u64, ImageError> {
    // Before it is opened: a pipe would keep the call waiting.
    let read = match fs::metadata(source) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ImageError::Missing(source.to_owned()));
        }
        other => other.at("read", source)?,
    };
    if !read.is_file() && !read.file_type().is_block_device() {
        return Err(ImageError::NotADisk {
            what: source.display().to_string(),
        });
    }
    let file = File::open(source).at("open", source)?;
    let target = free_target(target, (read.dev(), read.ino()), options.replace)?;
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if let Err(error) = fs::read_dir(folder) {
        return Err(ImageError::io("write to", folder, error));
    }
    let absolute = fs::canonicalize(source).at("read", source)?;
    let pull = PullOptions {
        snapshot: options.snapshot.clone(),
        allow_backing: options.allow_backing.clone(),
        limits: options.limits.clone(),
        cancel: options.cancel.clone(),
        ..PullOptions::default()
    };
    let what = source.display().to_string();
    let mut work = open(folder, &target)?;
    let paths = Paths {
        work: &work.paths,
        own: None,
        image: Some(&absolute),
        only_disk: true,
        summed: false,
    };
    let imported = unpack::import(&file, &what, paths, &pull, reporter);
    let result = imported.and_then(|imported| {
        if imported.kind != ImageKind::Disk {
            return Err(ImageError::NotADisk { what });
        }
        let _step = Step::begin(
            reporter,
            StepKind::Publish,
            &target.display().to_string(),
            None,
        );
        let made = match &imported.file {
            Some(file) => file.try_clone().at("open", &target)?,
            None => File::open(&imported.path).at("open", &imported.path)?,
        };
        made.sync_all().at("sync", &target)?;
        options.cancel.check()?;
        match imported.file {
            Some(file) => place::put_nameless(&file, &target, options.replace)?,
            None => place::put(&imported.path, &target, options.replace)?,
        }
        sync_folder(folder)?;
        Ok(imported.virtual_size)
    });
    work.close();
    result.map_err(|error| work.shown(error, &target))
}

/// Where a conversion writes: to files without a name, where the file system of the target has them, so that nothing is
/// left by one that is killed; else in a folder beside the target, which the next one takes over.
struct Work {
    paths: WorkPaths,
    folder: Option<WorkFolder>,
}

impl Work {
    fn open(folder: &Path, target: &Path) -> Result<Self, ImageError> {
        match place::nameless(folder) {
            Ok(_) => Ok(Self {
                paths: Self::paths(target, Some(folder.to_owned())),
                folder: None,
            }),
            Err(error) if is_full(&error) => Err(ImageError::io("create a file in", folder, error)),
            Err(_) => Self::named(target),
        }
    }

    fn named(target: &Path) -> Result<Self, ImageError> {
        Ok(Self {
            folder: Some(WorkFolder::open(target)?),
            paths: Self::paths(target, None),
        })
    }

    fn paths(target: &Path, nameless: Option<PathBuf>) -> WorkPaths {
        let beside = WorkFolder::path(target);
        WorkPaths {
            raw: beside.join("raw"),
            tree: beside.join("tree"),
            spool: beside.join("spool"),
            nameless,
        }
    }

    /// Removes what is left.
    fn close(&mut self) {
        if let Some(folder) = self.folder.take() {
            folder.close();
        }
    }

    /// An error of a file without a name is one of the target.
    fn shown(&self, error: ImageError, target: &Path) -> ImageError {
        let ours = [&self.paths.raw, &self.paths.spool];
        match error {
            ImageError::NoSpace { verb, path } if ours.contains(&&path) => ImageError::NoSpace {
                verb,
                path: target.to_owned(),
            },
            ImageError::Path { verb, path, source } if ours.contains(&&path) => {
                ImageError::io(verb, target, source)
            }
            other => other,
        }
    }
}

/// The target as a file that is written to; `source` is the image's identity.
fn free_target(target: &Path, source: (u64, u64), replace: bool) -> Result<PathBuf, ImageError> {
    let refused = |found| ImageError::Output {
        path: target.to_owned(),
        found,
    };
    let ends_in_name = target.file_name().is_some();
    let found = match fs::metadata(target) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound && ends_in_name => {
            if fs::symlink_metadata(target).is_ok() {
                return Err(refused("a link that leads nowhere"));
            }
            return Ok(target.to_owned());
        }
        Err(error) => return Err(ImageError::io("read", target, error)),
    };
    let kind = found.file_type();
    if (found.dev(), found.ino()) == source {
        return Err(refused("the image itself"));
    }
    if kind.is_dir() {
        return Err(refused("a folder"));
    }
    if kind.is_block_device() || kind.is_char_device() {
        return Err(refused("a device"));
    }
    if !kind.is_file() {
        return Err(refused("no regular file"));
    }
    if !replace {
        return Err(ImageError::Exists(target.to_owned()));
    }
    // A link stays, and leads to the new file.
    fs::canonicalize(target).at("read", target)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FlockOperation, flock};

    use super::*;
    use crate::report::NoReport;

    #[test]
    fn without_nameless_files_the_next_call_takes_over_what_a_killed_one_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let mut disk = vec![0; 1 << 20];
        disk[1080..1082].copy_from_slice(&[0x53, 0xef]);
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(disk.len() as u64);
        tar.append_data(&mut header, "disk.raw", &disk[..]).unwrap();
        fs::write(path("disk.tar"), tar.into_inner().unwrap()).unwrap();
        fs::write(path("disk.raw"), &disk).unwrap();
        let convert = |source: &str, replace| {
            let options = ConvertOptions {
                replace,
                ..ConvertOptions::default()
            };
            let open = |_: &Path, target: &Path| Work::named(target);
            convert_in(&open, &path(source), &path("out"), &options, &mut NoReport)
        };
        let work = WorkFolder::path(&path("out"));
        for (source, replace) in [("disk.raw", false), ("disk.tar", true)] {
            fs::create_dir(&work).unwrap();
            fs::write(work.join("raw"), "half of it").unwrap();
            convert(source, replace).unwrap();
            assert!(fs::read(path("out")).unwrap() == disk);
            assert!(!work.exists());
        }
        let refused = convert("disk.raw", false).unwrap_err();
        assert!(matches!(refused, ImageError::Exists(_)), "{refused}");
        // One that is still at work is not disturbed.
        fs::create_dir(&work).unwrap();
        let lock = File::open(&work).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let refused = convert("disk.raw", true).unwrap_err().to_string();
        assert!(
            refused.contains("out: it is being written by another process"),
            "{refused}"
        );
    }
}
