//! What an image holds, without booting or converting it.
//!
//! Flow: format of the file -> the disk in it -> partition table -> root file system -> [`Os`] -> [`Problem`]s. What
//! cannot be read is said in [`Inspection::unread`] and ends nothing: the rest stands.

mod disk;
mod ext4;
mod files;
mod mounted;
mod os;
mod problems;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::{Disk, Source};
use ext4::Ext4Files;
use files::Folder;
pub use os::{FstabEntry, MachineId, Os};
use problems::HostFacts;
pub use problems::{Problem, Severity};

use crate::disk::{Architecture, DiskError, FileSystem, Partition, PartitionTable, RootPartition};
use crate::error::{ImageError, PathContext};
use crate::format::{self, Format};
use crate::limits::Limits;
use crate::probe::{self, Content};
use crate::qcow2::{Header, OpenOptions, Qcow2, Snapshot};
use crate::source::ReadAt;

/// How an image is looked at. Made by `default()`, then changed field by field.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct InspectOptions {
    /// The folder in which the files below a qcow2 overlay may be opened; without it, an overlay's disk is not read.
    pub allow_backing: Option<PathBuf>,
    /// Caps on what the image may hold.
    pub limits: Limits,
    /// Whether a file system that cannot be read otherwise may be given to the kernel, read-only and where nobody sees
    /// it. Takes root, and a raw disk. Default: no.
    pub mount: bool,
}

/// What an image is stored as.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageFormat {
    /// A raw disk.
    Raw,
    /// A qcow2 disk: its header, and its internal snapshots where they could be read.
    Qcow2(Box<Header>, Vec<Snapshot>),
    /// A folder with an OS tree.
    Tree,
    /// A file that has to be unpacked to be looked into: `gzip`, `xz`, `zstd`, `bzip2`, `tar` or `zip`.
    Packed(&'static str),
}

impl ImageFormat {
    /// Its name: `raw`, `qcow2`, `tree`, or what it is packed with.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2(..) => "qcow2",
            Self::Tree => "tree",
            Self::Packed(name) => name,
        }
    }
}

/// A partition and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InspectedPartition {
    /// The entry of the table.
    pub partition: Partition,
    /// What it is formatted with, where that is known.
    pub content: Option<String>,
}

/// What an image holds.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Inspection {
    /// The file or folder.
    pub path: PathBuf,
    /// What it is stored as.
    pub format: ImageFormat,
    /// Bytes of the file; `None` for a tree.
    pub file_size: Option<u64>,
    /// Bytes that a machine sees of a disk.
    pub virtual_size: Option<u64>,
    /// How the disk is divided.
    pub table: Option<PartitionTable>,
    /// The partitions of the table.
    pub partitions: Vec<InspectedPartition>,
    /// The root file system of a disk.
    pub root: Option<RootPartition>,
    /// What the root file system says of its operating system.
    pub os: Option<Os>,
    /// What was not read, and why, in one sentence.
    pub unread: Option<String>,
    /// What will not work here, the gravest first.
    pub problems: Vec<Problem>,
}

impl Inspection {
    /// Looks at an image file, a block device or an OS tree.
    ///
    /// # Errors
    ///
    /// [`ImageError::Missing`], [`ImageError::Path`], [`ImageError::NoImage`], [`ImageError::Unsupported`], and
    /// [`ImageError::Qcow2`] for a header that is not accepted.
    pub fn of(path: &Path, options: &InspectOptions) -> Result<Self, ImageError> {
        let found = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ImageError::Missing(path.to_owned()));
            }
            other => other.at("read", path)?,
        };
        let mut inspection = Self {
            path: path.to_owned(),
            format: ImageFormat::Tree,
            file_size: None,
            virtual_size: None,
            table: None,
            partitions: Vec::new(),
            root: None,
            os: None,
            unread: None,
            problems: Vec::new(),
        };
        if found.is_dir() {
            let folder = Folder::open(path).at("open", path)?;
            inspection.os(Os::read(&folder));
            return Ok(inspection);
        }
        let what = path.display().to_string();
        if !found.is_file() && !found.file_type().is_block_device() {
            let found = "neither a file nor a folder".to_owned();
            return Err(ImageError::NoImage { what, found });
        }
        let file = File::open(path).at("open", path)?;
        inspection.file_size = Some(ReadAt::size(&file).at("read", path)?);
        let format = format::detect(&file).at("read", path)?;
        match format {
            Format::Raw => {
                inspection.format = ImageFormat::Raw;
                inspection.virtual_size = inspection.file_size;
                inspection.disk(Disk::new(Source::Raw(file)).at("read", path)?, options);
            }
            Format::Qcow2 => inspection.qcow2(file, options)?,
            Format::Tar => inspection.packed("tar"),
            Format::Zip => inspection.packed("zip"),
            Format::Compressed(codec) => inspection.packed(codec.name()),
            Format::Unsupported(found) => {
                let found = found.to_owned();
                return Err(ImageError::Unsupported { what, found });
            }
            Format::NoImage(found) => {
                let found = found.to_owned();
                return Err(ImageError::NoImage { what, found });
            }
        }
        inspection.problems.sort_by_key(|problem| problem.severity);
        Ok(inspection)
    }

    fn packed(&mut self, name: &'static str) {
        self.format = ImageFormat::Packed(name);
        self.unread = Some(
            "what is packed in it is read once it is unpacked: pull it, and inspect it by its name"
                .to_owned(),
        );
    }

    fn qcow2(&mut self, file: File, options: &InspectOptions) -> Result<(), ImageError> {
        let failed = |source| ImageError::Qcow2 {
            path: self.path.clone(),
            source,
        };
        let header = Header::read(&file, options.limits.virtual_size).map_err(failed)?;
        let open = OpenOptions {
            limit: options.limits.virtual_size,
            backing: options.allow_backing.clone(),
            path: fs::canonicalize(&self.path).ok(),
            ..OpenOptions::default()
        };
        self.virtual_size = Some(header.virtual_size);
        if let (Some(backing), None) = (&header.backing, &options.allow_backing) {
            self.unread = Some(format!(
                "it lies on {:?}, which is opened only in a folder given with --allow-backing",
                backing.name
            ));
            self.format = ImageFormat::Qcow2(Box::new(header), Vec::new());
            return Ok(());
        }
        let image = Qcow2::open_with(file, &open).map_err(failed)?;
        let snapshots = match image.snapshots() {
            Ok(snapshots) => snapshots,
            Err(error) => {
                self.unread = Some(format!("its snapshots cannot be read: {error}"));
                Vec::new()
            }
        };
        self.format = ImageFormat::Qcow2(Box::new(header), snapshots);
        let disk = Disk::new(Source::Qcow2(Box::new(image))).at("read", &self.path)?;
        self.disk(disk, options);
        Ok(())
    }

    fn disk(&mut self, disk: Disk, options: &InspectOptions) {
        let table = match PartitionTable::read(&disk) {
            Ok(table) => table,
            Err(error) => return self.no_root(&error),
        };
        for partition in &table.partitions {
            let content = match probe::probe(&disk, partition.offset, partition.length) {
                Ok(Some(Content::FileSystem(found))) => Some(found.to_string()),
                Ok(Some(Content::Refused(what))) => Some(what.to_owned()),
                Ok(None) | Err(_) => None,
            };
            self.partitions.push(InspectedPartition {
                partition: partition.clone(),
                content,
            });
        }
        let root = table.root(&disk, Architecture::native());
        let warnings = match &root {
            Ok(root) => &root.warnings,
            Err(_) => &table.warnings,
        };
        for warning in warnings {
            self.problems
                .push(Problem::note(warning.to_string(), warning.hint()));
        }
        self.table = Some(table);
        let root = match root {
            Ok(root) => root,
            Err(error) => return self.no_root(&error),
        };
        if root.filesystem == FileSystem::Ext4 {
            let files = Ext4Files::open(Arc::new(disk), &root);
            self.os(files.and_then(|files| Os::read(&files)));
        } else {
            let without = |why: &str| {
                Some(format!(
                    "the files in its {} are not read: {why}",
                    root.filesystem
                ))
            };
            match disk.raw() {
                Some(file) if options.mount && mounted::is_allowed() => {
                    self.os(mounted::open(file, &root).and_then(|files| Os::read(&files)));
                }
                Some(_) if options.mount => {
                    self.unread =
                        without("that takes a mount, and so root; only ext4 is read without");
                }
                Some(_) => self.unread = without("that takes a mount, which was not allowed"),
                None => {
                    self.unread = without(
                        "they are in a raw disk alone: pull the image and inspect it by its name, or convert it",
                    );
                }
            }
        }
        self.root = Some(root);
    }

    fn os(&mut self, os: io::Result<Os>) {
        match os {
            Ok(os) => {
                self.problems.extend(problems::of(&os, HostFacts::detect()));
                self.os = Some(os);
            }
            Err(error) => {
                self.unread = Some(format!("its root file system cannot be read: {error}"));
            }
        }
    }

    fn no_root(&mut self, error: &DiskError) {
        self.problems
            .push(Problem::fatal(error.to_string(), error.hint()));
    }
}
