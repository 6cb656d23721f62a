//! The root file system of a machine, put together in the mount namespace that the machine alone has.
//!
//! ```text
//! disk image -> loop device (read-only, AUTOCLEAR) -> base/ ─┐
//! folder ------------------------------------------> base/ ─┤ id-mapped where users are mapped
//! files of ours ----------------------------------> layer/ ─┤
//! changes -------------------------------> upper/ + work/ ─┴-> overlay at root/
//!
//! subvolumes of the image's fstab ----> mounts/NAME/, each with changes of its own -> overlay at root/PLACE
//!
//! the host's /usr ---------------------------------> root/usr, in a tmpfs at root/
//! ```
//!
//! The kernel takes it all down with the namespace, whatever kills the machine: the mounts are gone with the
//! last process in it, and the loop device with the mount. Only plain folders stay.

mod disk;
mod fstab;
mod inside;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown, lchown, symlink,
};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use self::disk::Disk;
use self::fstab::Subvolume;
use crate::config::{MachineConfig, Network, Rootfs};
use crate::error::{MachineError, PathContext as _};
use crate::network;
use crate::record::Places;
use crate::sys;
use crate::user_range::UserRange;

/// What of the host's `/etc` programs in its `/usr` cannot do without: links they are started through, the
/// linker's cache, certificates.
const HOST_ETC: [&str; 7] = [
    "alternatives",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "ssl/certs",
    "ca-certificates",
    "pki",
];

/// Links that merged-/usr systems have at their root. Source: file-hierarchy(7).
const USR_LINKS: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// Users of a machine on the host: the range and the namespace that maps it.
pub(crate) struct IdMap {
    pub(crate) range: UserRange,
    pub(crate) namespace: OwnedFd,
}

/// Puts the root file system together; the calling thread is in the machine's mount namespace.
///
/// Returns the folder that is the machine's root.
pub(crate) fn assemble(
    config: &MachineConfig,
    places: &Places,
    id_map: Option<&IdMap>,
) -> Result<PathBuf, MachineError> {
    let root = places.run.join("root");
    let base = places.run.join("base");
    for dir in [&root, &base] {
        fs::create_dir_all(dir).at("make", dir)?;
    }
    let owner = id_map.map_or(0, |map| map.range.base());
    let mut disk = None;
    let base_name = match &config.spec().rootfs {
        Rootfs::Host => {
            volatile_root(&root, id_map)?;
            write_own_files(config, &root, owner)?;
            return Ok(root);
        }
        Rootfs::Directory { path } => {
            bind_base(path, &base, id_map)?;
            path
        }
        Rootfs::Disk {
            image,
            offset,
            length,
            filesystem,
        } => {
            let attached = Disk::attach(image, *offset, *length, filesystem, &places.run)?;
            attached.mount_root(&base)?;
            if id_map.is_some() {
                bind_base(&base, &base, id_map)?;
            }
            disk = Some(attached);
            image
        }
    };
    if !is_os_tree(&base) {
        let what = format!(
            "{} holds no operating system (no os-release)",
            base_name.display()
        );
        return Err(MachineError::Rootfs {
            what,
            source: io::ErrorKind::InvalidData.into(),
        });
    }
    let layer = places.run.join("layer");
    make_dir(&layer, owner)?;
    write_own_files(config, &layer, owner)?;
    let persist = config.spec().persist;
    overlay(&[&layer, &base], &places.state, &root, persist, owner)?;
    // the disk may be let go then: the mounts hold the loop device, and AUTOCLEAR detaches it with the last of them
    if let Some(disk) = disk {
        for subvolume in disk.subvolumes(&base)? {
            add_subvolume(&disk, &subvolume, config, places, id_map)?;
        }
    }
    Ok(root)
}

/// Shows a subvolume of the image at its place in the machine's root; changes to it are kept beside the root's.
///
/// An overlay does not look into what is mounted in the folders below it, so that each is one of its own.
fn add_subvolume(
    disk: &Disk,
    subvolume: &Subvolume,
    config: &MachineConfig,
    places: &Places,
    id_map: Option<&IdMap>,
) -> Result<(), MachineError> {
    let base = places.run.join("mounts").join(subvolume.file_name());
    fs::create_dir_all(&base).at("make", &base)?;
    match disk.mount(&base, Some(&subvolume.option)) {
        Err(_) if subvolume.may_fail => return Ok(()),
        other => other?,
    }
    if id_map.is_some() {
        bind_base(&base, &base, id_map)?;
    }
    let owner = id_map.map_or(0, |map| map.range.base());
    let place = inside::folder(&places.run.join("root"), &subvolume.place, owner)?;
    let changes = places.state.join("mounts").join(subvolume.file_name());
    let upper = changes.join("upper");
    if !upper.exists() {
        fs::create_dir_all(&changes).at("make", &changes)?;
        make_dir(&upper, owner)?;
        // the root of an overlay has the owner and mode of its upper folder
        let meta = fs::metadata(&base).at("read", &base)?;
        chown(&upper, Some(meta.uid()), Some(meta.gid())).at("change the owner of", &upper)?;
        let mode = fs::Permissions::from_mode(meta.mode() & 0o7777);
        fs::set_permissions(&upper, mode).at("change", &upper)?;
    }
    let layer = places.run.join("layer").join(&subvolume.place);
    let mut lower = vec![base.as_path()];
    if layer.is_dir() {
        lower.insert(0, &layer);
    }
    overlay(
        &lower,
        &changes,
        &place.path(),
        config.spec().persist,
        owner,
    )
}

/// Writes the files that a machine gets beside those of its image.
fn write_own_files(config: &MachineConfig, root: &Path, owner: u32) -> Result<(), MachineError> {
    // the image's own name would be that of all machines made from it
    write_file(root, "etc/hostname", &format!("{}\n", config.name()), owner)?;
    if config.spec().network == Network::Veth {
        write_file(
            root,
            network::GUEST_NETWORK_FILE,
            network::GUEST_NETWORK,
            owner,
        )?;
    }
    Ok(())
}

/// Writes a file below `root` with the folders on the way to it.
fn write_file(root: &Path, relative: &str, text: &str, owner: u32) -> Result<(), MachineError> {
    let path = root.join(relative);
    let mut dir = root.to_owned();
    for part in Path::new(relative)
        .parent()
        .into_iter()
        .flat_map(Path::components)
    {
        dir.push(part);
        make_dir(&dir, owner)?;
    }
    fs::write(&path, text).at("write", &path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).at("write", &path)?;
    chown(&path, Some(owner), Some(owner)).at("change the owner of", &path)
}

/// Makes a folder that belongs to the machine's root; one that is there is left as it is.
fn make_dir(dir: &Path, owner: u32) -> Result<(), MachineError> {
    match fs::DirBuilder::new().mode(0o755).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => {
            other.at("make", dir)?;
            chown(dir, Some(owner), Some(owner)).at("change the owner of", dir)
        }
    }
}

/// Whether a folder is the root of an operating system. Source: os-release(5).
///
/// Either file may be a link that only makes sense inside the tree, so that links are not followed.
pub(crate) fn is_os_tree(dir: &Path) -> bool {
    ["etc/os-release", "usr/lib/os-release"]
        .iter()
        .any(|file| fs::symlink_metadata(dir.join(file)).is_ok())
}

/// A root in memory with the host's `/usr` in it, and what programs there need of the host's `/etc`.
fn volatile_root(root: &Path, id_map: Option<&IdMap>) -> Result<(), MachineError> {
    let owner = id_map.map_or(0, |map| map.range.base());
    let options = format!("mode=0755,uid={owner},gid={owner}");
    mount(
        Some("tmpfs"),
        root,
        Some("tmpfs"),
        MsFlags::MS_NODEV,
        Some(options.as_str()),
    )
    .at("mount a tmpfs at", root)?;
    let make = |dir: &Path| make_dir(dir, owner);
    let usr = root.join("usr");
    make(&usr)?;
    bind_base(Path::new("/usr"), &usr, id_map)?;
    for name in USR_LINKS {
        let link = root.join(name);
        if let Ok(target) = fs::read_link(Path::new("/").join(name)) {
            symlink(&target, &link).at("make", &link)?;
            lchown(&link, Some(owner), Some(owner)).at("change the owner of", &link)?;
        }
    }
    if !root.join("bin").exists() {
        let what = "the host's /bin is not in /usr: image `host` needs a merged /usr".to_owned();
        return Err(MachineError::Rootfs {
            what,
            source: io::ErrorKind::Unsupported.into(),
        });
    }
    let etc = root.join("etc");
    make(&etc)?;
    // with a machine ID this is no first boot: systemd neither asks for settings nor enables what is in /usr
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid")
        .at("read", Path::new("/proc"))?
        .replace('-', "");
    let id_file = etc.join("machine-id");
    fs::write(&id_file, id).at("write", &id_file)?;
    fs::set_permissions(&id_file, fs::Permissions::from_mode(0o444)).at("write", &id_file)?;
    for name in HOST_ETC {
        let from = Path::new("/etc").join(name);
        let to = etc.join(name);
        let Ok(meta) = fs::metadata(&from) else {
            continue;
        };
        if let Some(parent) = to.parent().filter(|parent| !parent.exists()) {
            make(parent)?;
        }
        if meta.is_dir() {
            make(&to)?;
        } else {
            File::create(&to).at("make", &to)?;
        }
        bind_read_only(&from, &to)?;
    }
    Ok(())
}

fn bind_read_only(from: &Path, to: &Path) -> Result<(), MachineError> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).at("bind to", to)?;
    let flags = MsFlags::MS_BIND
        | MsFlags::MS_REMOUNT
        | MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV;
    mount(None::<&str>, to, None::<&str>, flags, None::<&str>).at("make read-only", to)
}

/// Shows `from` at `to`, read-only, with the machine's owners where users are mapped.
fn bind_base(from: &Path, to: &Path, id_map: Option<&IdMap>) -> Result<(), MachineError> {
    let Some(map) = id_map else {
        mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).at("bind to", to)?;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        return mount(None::<&str>, to, None::<&str>, flags, None::<&str>).at("make read-only", to);
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(rustix::fs::CWD, from, flags).at("open the mount", from)?;
    sys::mount_id_map(tree.as_fd(), map.namespace.as_fd()).map_err(|source| {
        MachineError::NoIdMap {
            what: format!("the file system of {} takes no mapping", from.display()),
            source,
        }
    })?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(tree.as_fd(), "", rustix::fs::CWD, to, flags).at("mount at", to)
}

/// Lays a writable folder over the others, the first of which is on top; `changes` gets what is written.
fn overlay(
    lower: &[&Path],
    changes: &Path,
    root: &Path,
    persist: bool,
    owner: u32,
) -> Result<(), MachineError> {
    let upper = changes.join("upper");
    let work = changes.join("work");
    for dir in [&upper, &work] {
        make_dir(dir, owner)?;
    }
    let mut options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower
            .iter()
            .map(|dir| dir.to_string_lossy())
            .collect::<Vec<_>>()
            .join(":"),
        upper.display(),
        work.display()
    );
    if !persist {
        // what is thrown away need not be forced to disk
        options += ",volatile";
        // left by a run that was killed; it would refuse the mount
        crate::record::remove_path(&work.join("work"))?;
    }
    mount(
        Some("overlay"),
        root,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .map_err(|error| {
        let what = format!("mount the overlay at {}", root.display());
        MachineError::Rootfs {
            what,
            source: error.into(),
        }
    })
}
