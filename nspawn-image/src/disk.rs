//! The root file system of a disk image: partition table in, one [`RootPartition`] out.
//!
//! Flow: [`PartitionTable::read`] -> [`PartitionTable::root`] -> [`RootPartition`]. The MBR says whether it is one or
//! stands before a GPT (the backup is read where the primary is broken, in sectors of 512 or 4096 bytes); without
//! either, one file system fills the disk.
//!
//! The rules are those systemd-nspawn applies itself: the root type of the machine's architecture, the newest
//! label among several; else exactly one generic Linux partition; in an MBR one Linux partition that is marked
//! bootable, or the only one. Source: UAPI Group, Discoverable Partitions Specification; systemd-dissect(1).

use std::fmt;

use crate::gpt::{self, Guid};
use crate::mbr;
use crate::source::ReadAt;
use crate::version::compare_versions;

pub use crate::probe::FileSystem;
use crate::probe::{self, Content};

/// What the partition types of a disk are looked up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    /// 64-bit x86.
    X86_64,
    /// 64-bit ARM.
    Aarch64,
    /// 64-bit RISC-V.
    Riscv64,
    /// An architecture whose root type is not known here: only generic Linux partitions are found.
    Other,
}

impl Architecture {
    /// The architecture this library was built for.
    pub fn native() -> Self {
        match std::env::consts::ARCH {
            "x86_64" => Self::X86_64,
            "aarch64" => Self::Aarch64,
            "riscv64" => Self::Riscv64,
            _ => Self::Other,
        }
    }

    /// The root partition type. Source: Discoverable Partitions Specification.
    fn root_type(self) -> Option<Guid> {
        match self {
            Self::X86_64 => Some(gpt::ROOT_X86_64),
            Self::Aarch64 => Some(gpt::ROOT_AARCH64),
            Self::Riscv64 => Some(gpt::ROOT_RISCV64),
            Self::Other => None,
        }
    }
}

/// How a disk is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scheme {
    /// A GUID partition table, read from its first copy.
    Gpt,
    /// A GUID partition table whose first copy is damaged, read from the one at the end.
    GptBackup,
    /// A master boot record.
    Mbr,
    /// No table: one file system fills the disk.
    Bare,
}

/// The type of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PartitionType {
    /// A GPT type, as bytes in the order they are printed in.
    Guid(Guid),
    /// An MBR type byte.
    Mbr(u8),
}

impl fmt::Display for PartitionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guid(guid) => match guid.known_name() {
                Some(name) => write!(f, "{name}"),
                None => guid.fmt(f),
            },
            Self::Mbr(0x83) => f.write_str("Linux"),
            Self::Mbr(byte) => write!(f, "0x{byte:02x}"),
        }
    }
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Partition {
    /// Its number, the first being 1, as in `/dev/sda1`.
    pub number: u32,
    /// Where it starts, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// Its type.
    pub kind: PartitionType,
    /// Its label; empty where there is none.
    pub label: String,
    /// Marked bootable (MBR only).
    pub bootable: bool,
    /// Marked as not to be found automatically (GPT attribute 63).
    pub hidden: bool,
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.number, self.kind)?;
        if !self.label.is_empty() {
            write!(f, ", {:?}", self.label)?;
        }
        write!(f, ", {} MiB)", self.length >> 20)
    }
}

/// All partitions of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionTable {
    /// How the disk is divided.
    pub scheme: Scheme,
    /// Bytes in a sector of the table.
    pub sector_size: u64,
    /// The partitions in the table's order; for [`Scheme::Bare`] none.
    pub partitions: Vec<Partition>,
    /// Length of the disk, in bytes.
    pub disk_size: u64,
    /// What is wrong with it.
    pub warnings: Vec<DiskWarning>,
}

/// The file system to boot from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RootPartition {
    /// Where it starts, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// What it is formatted with.
    pub filesystem: FileSystem,
    /// The partition's number, the first being 1; `None` for a bare file system.
    pub number: Option<u32>,
    /// The partition's type; `None` for a bare file system.
    pub kind: Option<PartitionType>,
    /// The partition's label; empty where there is none.
    pub label: String,
    /// What is wrong with the disk it was found on.
    pub warnings: Vec<DiskWarning>,
}

/// Something that is wrong with a disk and does not keep it from being used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskWarning {
    /// The first copy of the partition table is damaged, and the one at the end was read: what is damaged there.
    BackupTable(&'static str),
    /// Another partition takes a part of the root's bytes.
    Overlap {
        /// The root.
        root: Partition,
        /// The first of the others.
        other: Partition,
    },
}

impl fmt::Display for DiskWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BackupTable(reason) => write!(
                f,
                "the partition table at the start of the disk is damaged ({reason}), the copy at its end is used"
            ),
            Self::Overlap { root, other } => {
                write!(
                    f,
                    "the root, partition {root}, and partition {other} lie over each other"
                )
            }
        }
    }
}

impl DiskWarning {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::BackupTable(_) => {
                "download or copy the image again; `sgdisk --verify` tells more"
            }
            Self::Overlap { .. } => {
                "what was written to the one has damaged the other: make the image anew"
            }
        }
    }
}

/// Why a disk has no root file system.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The disk could not be read.
    #[error("cannot read the disk")]
    Read(#[from] std::io::Error),
    /// Too short for anything, in bytes.
    #[error("the disk has {0} bytes, too few for a partition table or a file system")]
    TooShort(u64),
    /// Neither a table nor a file system.
    #[error("no partition table and no file system found")]
    NoTable,
    /// A table with nothing in it.
    #[error("the partition table is empty")]
    Empty,
    /// Both copies of the GPT are damaged.
    #[error("the partition table is damaged: {0}")]
    Damaged(&'static str),
    /// Partitions, but none for an OS.
    #[error("no root partition among {}", list(.0))]
    NoRoot(Vec<Partition>),
    /// Several that could be meant.
    #[error("several partitions could be the root: {}", list(.0))]
    Several(Vec<Partition>),
    /// A partition that reaches beyond the disk.
    #[error("partition {partition} ends at byte {end}, beyond the disk's {disk} bytes")]
    Beyond {
        /// The partition.
        partition: Partition,
        /// Its end, in bytes.
        end: u64,
        /// The disk's length, in bytes.
        disk: u64,
    },
    /// The root is encrypted or of a kind that is not mounted here.
    #[error("the root file system is {0}, which is not supported")]
    Unsupported(&'static str),
    /// The root holds nothing that is known.
    #[error("partition {0} holds no known file system")]
    NoFileSystem(Partition),
}

fn list(partitions: &[Partition]) -> String {
    partitions
        .iter()
        .map(Partition::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

impl DiskError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Several(_) => {
                "give a disk with one root partition, or one whose root has the type of this architecture"
            }
            Self::NoRoot(_) | Self::Empty | Self::NoTable => {
                "is this a cloud image for this architecture? `fdisk -l` shows its partitions"
            }
            Self::Beyond { .. } | Self::TooShort(_) => {
                "the image is cut short: download or copy it again"
            }
            Self::Unsupported(_) => {
                "use an image whose root is plain ext4, xfs, btrfs, squashfs or erofs"
            }
            _ => "the image is damaged: download or copy it again",
        }
    }
}

impl PartitionTable {
    /// Reads the partition table of a disk. Never panics, whatever the disk holds.
    ///
    /// # Errors
    ///
    /// See [`DiskError`].
    pub fn read(disk: &(impl ReadAt + ?Sized)) -> Result<Self, DiskError> {
        let disk_size = disk.size()?;
        if disk_size < 512 {
            return Err(DiskError::TooShort(disk_size));
        }
        let table = |scheme, sector_size, partitions| Self {
            scheme,
            sector_size,
            partitions,
            disk_size,
            warnings: Vec::new(),
        };
        // As the kernel does it: a GPT counts where the MBR says that there is one. Without that, it is what another
        // table or file system has left of the one before it, unless there is nothing else.
        let mbr = mbr::read(disk, disk_size)?;
        let is_protective = matches!(mbr, mbr::Found::Protective);
        let is_empty = matches!(mbr, mbr::Found::Table(_));
        match mbr {
            // A boot sector may precede a bare file system, and a file system's own first sector may end like an
            // MBR's: entries that make sense decide.
            mbr::Found::Table(partitions) if !partitions.is_empty() => {
                return Ok(table(Scheme::Mbr, 512, partitions));
            }
            _ if !is_protective && probe::probe(disk, 0, disk_size)?.is_some() => {
                return Ok(table(Scheme::Bare, 512, Vec::new()));
            }
            _ => {}
        }
        match gpt::read(disk, disk_size)? {
            gpt::Found::Table {
                sector_size,
                first_is,
                partitions,
            } => {
                let scheme = match first_is {
                    Some(_) => Scheme::GptBackup,
                    None => Scheme::Gpt,
                };
                let mut found = table(scheme, sector_size, partitions);
                let warning = first_is.map(DiskWarning::BackupTable);
                found.warnings.extend(warning);
                return Ok(found);
            }
            gpt::Found::Damaged(reason) => return Err(DiskError::Damaged(reason)),
            gpt::Found::Nothing => {}
        }
        if probe::probe(disk, 0, disk_size)?.is_some() {
            return Ok(table(Scheme::Bare, 512, Vec::new()));
        }
        if is_protective {
            return Err(DiskError::Damaged("an MBR that promises a GPT, and no GPT"));
        }
        if is_empty {
            return Err(DiskError::Empty);
        }
        Err(DiskError::NoTable)
    }

    /// Picks the root partition of `architecture` and looks at its file system.
    ///
    /// # Errors
    ///
    /// See [`DiskError`].
    pub fn root(
        &self,
        disk: &(impl ReadAt + ?Sized),
        architecture: Architecture,
    ) -> Result<RootPartition, DiskError> {
        let Some(partition) = self.pick(architecture)? else {
            let filesystem = file_system(disk, 0, self.disk_size)?.ok_or(DiskError::NoTable)?;
            return Ok(RootPartition {
                offset: 0,
                length: self.disk_size,
                filesystem,
                number: None,
                kind: None,
                label: String::new(),
                warnings: self.warnings.clone(),
            });
        };
        let end = partition.offset.saturating_add(partition.length);
        if end > self.disk_size {
            return Err(DiskError::Beyond {
                partition: partition.clone(),
                end,
                disk: self.disk_size,
            });
        }
        let Some(filesystem) = file_system(disk, partition.offset, partition.length)? else {
            return Err(DiskError::NoFileSystem(partition.clone()));
        };
        let is_over = |other: &&Partition| {
            let (start, length) = (other.offset, other.length);
            other.number != partition.number
                && start < end
                && partition.offset < start.saturating_add(length)
        };
        let mut warnings = self.warnings.clone();
        warnings.extend(
            self.partitions
                .iter()
                .find(is_over)
                .map(|other| DiskWarning::Overlap {
                    root: partition.clone(),
                    other: other.clone(),
                }),
        );
        Ok(RootPartition {
            offset: partition.offset,
            length: partition.length,
            filesystem,
            number: Some(partition.number),
            kind: Some(partition.kind),
            label: partition.label.clone(),
            warnings,
        })
    }

    /// The root partition, or `None` where the whole disk is one file system.
    fn pick(&self, architecture: Architecture) -> Result<Option<&Partition>, DiskError> {
        if self.scheme == Scheme::Bare {
            return Ok(None);
        }
        if self.partitions.is_empty() {
            return Err(DiskError::Empty);
        }
        let visible = || self.partitions.iter().filter(|partition| !partition.hidden);
        let of_type =
            |kind: PartitionType| visible().filter(move |partition| partition.kind == kind);
        if self.scheme == Scheme::Mbr {
            let linux: Vec<&Partition> = of_type(PartitionType::Mbr(0x83)).collect();
            let bootable: Vec<&Partition> = linux.iter().copied().filter(|p| p.bootable).collect();
            return self.only(if bootable.is_empty() { linux } else { bootable });
        }
        if let Some(root) = architecture.root_type() {
            let mut newest: Option<&Partition> = None;
            // "_empty" marks a slot that an updater has not filled. Source: systemd-dissect(1).
            for partition in of_type(PartitionType::Guid(root)).filter(|p| p.label != "_empty") {
                if newest.is_none_or(|best| compare_versions(&best.label, &partition.label).is_lt())
                {
                    newest = Some(partition);
                }
            }
            if newest.is_some() {
                return Ok(newest);
            }
        }
        self.only(of_type(PartitionType::Guid(gpt::LINUX_GENERIC)).collect())
    }

    fn only<'a>(
        &'a self,
        candidates: Vec<&'a Partition>,
    ) -> Result<Option<&'a Partition>, DiskError> {
        match candidates[..] {
            [] => Err(DiskError::NoRoot(self.partitions.clone())),
            [partition] => Ok(Some(partition)),
            _ => Err(DiskError::Several(
                candidates.into_iter().cloned().collect(),
            )),
        }
    }
}

fn file_system(
    disk: &(impl ReadAt + ?Sized),
    offset: u64,
    length: u64,
) -> Result<Option<FileSystem>, DiskError> {
    match probe::probe(disk, offset, length)? {
        None => Ok(None),
        Some(Content::FileSystem(filesystem)) => Ok(Some(filesystem)),
        Some(Content::Refused(what)) => Err(DiskError::Unsupported(what)),
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
