//! Files of a file system that only the kernel reads here: xfs, btrfs, squashfs and erofs in a raw disk.
//!
//! The mount is attached nowhere: no namespace has it, no path leads to it but the descriptor held here. When that is
//! closed, however this process ends, the kernel takes the mount down, and the loop device with it. Nothing is written:
//! device and mount are read-only, and no journal is replayed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use super::files::{Folder, OsFiles};
use crate::disk::{FileSystem, RootPartition};
use crate::sys;

/// Tries to get a loop device before giving up: each means that another process took the one we saw free.
const LOOP_TRIES: usize = 64;
/// Source: linux/major.h, `LOOP_MAJOR`.
const LOOP_MAJOR: u32 = 7;
/// Where distributions keep their root that do not make it the default subvolume: Fedora; Ubuntu and Arch; Debian.
const ROOT_SUBVOLUMES: [&str; 3] = ["root", "@", "@rootfs"];
/// The inode number of every subvolume's root. Source: linux/btrfs_tree.h, `BTRFS_FIRST_FREE_OBJECTID`.
const SUBVOLUME_INODE: u64 = 256;

/// Whether this process may mount at all, as far as can be told without trying.
pub(super) fn is_allowed() -> bool {
    rustix::process::geteuid().is_root()
}

/// Mounts the root file system of a disk and opens it; of a btrfs, the subvolume that holds an operating system.
///
/// # Errors
///
/// What the system answers; `Unsupported` where this kernel does not know the file system.
pub(super) fn open(disk: &File, root: &RootPartition) -> io::Result<Folder> {
    let device = LoopDevice::attach(disk, root)?;
    let top = mount(root.filesystem, &device, None)?;
    if root.filesystem != FileSystem::Btrfs || is_os_tree(&Folder::new(top.try_clone()?))? {
        return Ok(Folder::new(top));
    }
    // What was mounted is the default subvolume, which need not be the one that holds the others.
    let above = mount(root.filesystem, &device, Some(("subvolid", "5")))?;
    for name in ROOT_SUBVOLUMES {
        if let Some(found) = subvolume(&above, name)?
            && is_os_tree(&Folder::new(found.try_clone()?))?
        {
            return Ok(Folder::new(found));
        }
    }
    Ok(Folder::new(top))
}

fn is_os_tree(files: &Folder) -> io::Result<bool> {
    Ok(files.exists("etc/os-release")? || files.exists("usr/lib/os-release")?)
}

/// The subvolume of this name; a link or a plain folder is none.
fn subvolume(top: &OwnedFd, name: &str) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let found = match openat2(top, name, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        other => other?,
    };
    let is_one = rustix::fs::fstat(&found)?.st_ino == SUBVOLUME_INODE;
    Ok(is_one.then_some(found))
}

/// A part of a file as a block device, and the node that leads to it.
struct LoopDevice {
    node: PathBuf,
    /// A file system in memory, attached nowhere, that holds the node: in a container, `/dev` has none.
    _nodes: OwnedFd,
    /// Keeps the device attached until something is mounted from it.
    _device: File,
}

impl LoopDevice {
    fn attach(disk: &File, root: &RootPartition) -> io::Result<Self> {
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/loop-control")?;
        let nodes = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&nodes)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let nodes = fsmount(&nodes, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        for _ in 0..LOOP_TRIES {
            let number = sys::loop_get_free(control.as_fd())?;
            let name = format!("loop{number}");
            let id = rustix::fs::makedev(LOOP_MAJOR, number);
            match rustix::fs::mknodat(&nodes, &name, FileType::BlockDevice, Mode::RUSR, id) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let node = PathBuf::from(format!("/proc/self/fd/{}/{name}", nodes.as_raw_fd()));
            let device = File::open(&node)?;
            match sys::loop_attach(device.as_fd(), disk.as_fd(), root.offset, root.length) {
                Ok(()) => {
                    return Ok(Self {
                        node,
                        _nodes: nodes,
                        _device: device,
                    });
                }
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }
}

/// Mounts a device read-only and attaches the mount nowhere.
fn mount(
    filesystem: FileSystem,
    device: &LoopDevice,
    option: Option<(&str, &str)>,
) -> io::Result<OwnedFd> {
    let name = filesystem.mount_type();
    let context = fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|error| match error {
        Errno::NODEV => io::Error::new(
            io::ErrorKind::Unsupported,
            format!("this host's kernel knows no {name}"),
        ),
        error => error.into(),
    })?;
    fsconfig_set_string(&context, "source", &device.node)?;
    fsconfig_set_flag(&context, "ro")?;
    // A read-only device cannot be recovered on; each file system has its own word for "do not try".
    match filesystem {
        FileSystem::Xfs => {
            fsconfig_set_flag(&context, "norecovery")?;
            fsconfig_set_flag(&context, "nouuid")?;
        }
        FileSystem::Btrfs => fsconfig_set_string(&context, "rescue", "nologreplay")?,
        FileSystem::Ext4 => fsconfig_set_flag(&context, "noload")?,
        FileSystem::Squashfs | FileSystem::Erofs => {}
    }
    if let Some((key, value)) = option {
        fsconfig_set_string(&context, key, value)?;
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}
