//! The file system inside a disk image: a loop device, the mount of the root, and which subvolumes belong to it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::fstab::{self, Identity, Subvolume};
use super::{inside, is_os_tree};
use crate::error::{MachineError, PathContext as _};
use crate::sys;

/// Tries to get a loop device before giving up: each means that another process took the one we saw free.
const LOOP_TRIES: usize = 64;

/// Where distributions keep their root that do not make it the default subvolume: Fedora; Ubuntu and Arch; Debian.
const ROOT_SUBVOLUMES: [&str; 3] = ["root", "@", "@rootfs"];

/// The inode number of every subvolume's root. Source: linux/btrfs_tree.h, `BTRFS_FIRST_FREE_OBJECTID`.
const SUBVOLUME_INODE: u64 = 256;

/// Where the superblock of a btrfs is, in bytes, and what stands in it. Source: btrfs(5), "On-disk format".
const BTRFS_SUPERBLOCK: u64 = 0x1_0000;
const BTRFS_UUID: usize = 0x20;
const BTRFS_LABEL: usize = 0x12b;
const BTRFS_LABEL_LENGTH: usize = 256;

/// A file system in part of an image file, attached read-only to a loop device.
pub(super) struct Disk {
    image: PathBuf,
    offset: u64,
    length: u64,
    filesystem: String,
    /// The device's node.
    node: PathBuf,
    /// Keeps the device attached until something is mounted from it.
    _device: File,
}

impl Disk {
    /// Attaches it; `scratch` takes a device node where `/dev` has none.
    pub(super) fn attach(
        image: &Path,
        offset: u64,
        length: u64,
        filesystem: &str,
        scratch: &Path,
    ) -> Result<Self, MachineError> {
        let file = File::open(image).at("open", image)?;
        let (device, node) = attach_loop(&file, image, offset, length, scratch)?;
        Ok(Self {
            image: image.to_owned(),
            offset,
            length,
            filesystem: filesystem.to_owned(),
            node,
            _device: device,
        })
    }

    fn is_btrfs(&self) -> bool {
        self.filesystem == "btrfs"
    }

    /// Mounts the root of the operating system at `to`; of a btrfs, the subvolume that holds it.
    pub(super) fn mount_root(&self, to: &Path) -> Result<(), MachineError> {
        self.mount(to, None)?;
        if !self.is_btrfs() || is_os_tree(to) {
            return Ok(());
        }
        // what was mounted is the default subvolume, which need not be the one that holds the others
        unmount(to)?;
        self.mount(to, Some("subvolid=5"))?;
        let Some(name) = root_subvolume(to) else {
            return Ok(());
        };
        unmount(to)?;
        self.mount(to, Some(&format!("subvol=/{name}")))
    }

    /// Mounts it at `to`, read-only and without replaying its journal, with one more option.
    pub(super) fn mount(&self, to: &Path, option: Option<&str>) -> Result<(), MachineError> {
        // a read-only device cannot be recovered on; each file system has its own word for "do not try"
        let base = match self.filesystem.as_str() {
            "ext2" | "ext3" | "ext4" => Some("noload"),
            "xfs" => Some("norecovery,nouuid"),
            "btrfs" => Some("rescue=nologreplay"),
            _ => None,
        };
        let options: Vec<&str> = base.into_iter().chain(option).collect();
        let options = Some(options.join(",")).filter(|options| !options.is_empty());
        let flags = MsFlags::MS_RDONLY;
        let kind = Some(self.filesystem.as_str());
        mount(Some(&self.node), to, kind, flags, options.as_deref()).map_err(|error| {
            let part = option.map_or(String::new(), |option| format!(" with {option}"));
            MachineError::Rootfs {
                what: format!(
                    "mount the {} file system at byte {} of {} ({} bytes){part}",
                    self.filesystem,
                    self.offset,
                    self.image.display(),
                    self.length
                ),
                source: error.into(),
            }
        })
    }

    /// The subvolumes that the root mounted at `root` wants at places in it, parents before what is below them.
    ///
    /// A machine's own systemd does not mount them: in a container it passes over what is on a device.
    pub(super) fn subvolumes(&self, root: &Path) -> Result<Vec<Subvolume>, MachineError> {
        if !self.is_btrfs() {
            return Ok(Vec::new());
        }
        let Some(text) = inside::read(root, Path::new("etc/fstab"))? else {
            return Ok(Vec::new());
        };
        Ok(fstab::subvolumes(&text, &self.identity()?))
    }

    fn identity(&self) -> Result<Identity, MachineError> {
        let mut block = [0; 4096];
        File::open(&self.image)
            .and_then(|file| file.read_exact_at(&mut block, self.offset + BTRFS_SUPERBLOCK))
            .at("read", &self.image)?;
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&block[BTRFS_UUID..BTRFS_UUID + 16]);
        let label = &block[BTRFS_LABEL..BTRFS_LABEL + BTRFS_LABEL_LENGTH];
        let label = label.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(Identity {
            uuid,
            label: String::from_utf8_lossy(label).into_owned(),
        })
    }
}

/// The subvolume below `top` that holds an operating system, among those that distributions use.
fn root_subvolume(top: &Path) -> Option<&'static str> {
    ROOT_SUBVOLUMES.into_iter().find(|name| {
        let dir = top.join(name);
        // not a link, which would lead out of the image
        std::fs::symlink_metadata(&dir)
            .is_ok_and(|meta| meta.is_dir() && meta.ino() == SUBVOLUME_INODE)
            && is_os_tree(&dir)
    })
}

fn unmount(dir: &Path) -> Result<(), MachineError> {
    umount2(dir, MntFlags::UMOUNT_NOFOLLOW).at("unmount", dir)
}

/// Attaches part of a file to a free loop device; the device goes when nothing has it open.
fn attach_loop(
    file: &File,
    image: &Path,
    offset: u64,
    length: u64,
    scratch: &Path,
) -> Result<(File, PathBuf), MachineError> {
    let control_path = Path::new("/dev/loop-control");
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(control_path)
        .at("open", control_path)?;
    let doing = |source: io::Error| MachineError::Rootfs {
        what: format!("attach {} to a loop device", image.display()),
        source,
    };
    for _ in 0..LOOP_TRIES {
        let number = sys::loop_get_free(control.as_fd()).map_err(doing)?;
        let mut path = PathBuf::from(format!("/dev/loop{number}"));
        if !path.exists() {
            // containers have a /dev of their own, in which no node appears
            path = scratch.join(format!("loop{number}"));
            make_loop_node(&path, number)?;
        }
        let device = OpenOptions::new()
            .read(true)
            .open(&path)
            .at("open", &path)?;
        match sys::loop_attach(device.as_fd(), file.as_fd(), offset, length) {
            Ok(()) => return Ok((device, path)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(doing(error)),
        }
    }
    Err(doing(io::ErrorKind::ResourceBusy.into()))
}

fn make_loop_node(path: &Path, number: u32) -> Result<(), MachineError> {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    /// Source: linux/major.h, `LOOP_MAJOR`.
    const LOOP_MAJOR: u64 = 7;
    match mknod(
        path,
        SFlag::S_IFBLK,
        Mode::S_IRUSR,
        makedev(LOOP_MAJOR, u64::from(number)),
    ) {
        Err(nix::errno::Errno::EEXIST) => Ok(()),
        other => other.at("make", path),
    }
}
