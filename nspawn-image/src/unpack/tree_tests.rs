use std::os::unix::fs::{MetadataExt, PermissionsExt};

use tar::{Builder, Header};

use super::*;

fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(12);
    header.set_gid(34);
    header.set_mtime(1_000_000_000);
    header
}

/// Writes a name that the tar crate would refuse to write.
fn name(header: &mut Header, name: &[u8]) {
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_cksum();
}

fn unpack(archive: Vec<u8>) -> (tempfile::TempDir, Result<(), UnpackError>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tree");
    let mut tree = crate::TreeWriter::create(&path, &Limits::default()).unwrap();
    let result = tree.add_archive(&archive[..]).and_then(|()| tree.finish());
    (dir, result)
}

#[test]
fn a_tree_keeps_modes_links_and_times() {
    let mut builder = Builder::new(Vec::new());
    let mut add = |mut header: Header, path: &str, data: &[u8]| {
        builder.append_data(&mut header, path, data).unwrap()
    };
    add(header(EntryType::Directory, 0, 0o555), "usr/", b"");
    add(header(EntryType::Regular, 2, 0o4755), "usr/bin/su", b"su");
    add(header(EntryType::Regular, 3, 0o644), "usr/bin/su2", b"old");
    add(header(EntryType::Regular, 3, 0o644), "usr/bin/su2", b"new");
    let mut link = header(EntryType::Symlink, 0, 0o777);
    builder.append_link(&mut link, "bin", "usr/bin").unwrap();
    let mut link = header(EntryType::Symlink, 0, 0o777);
    builder.append_link(&mut link, "out", "/").unwrap();
    let mut hard = header(EntryType::Link, 0, 0o755);
    builder
        .append_link(&mut hard, "bin/hard", "usr/bin/su")
        .unwrap();
    builder
        .append_data(
            &mut header(EntryType::Regular, 2, 0o600),
            "out/inside",
            &b"in"[..],
        )
        .unwrap();
    let (dir, result) = unpack(builder.into_inner().unwrap());
    result.unwrap();
    let tree = dir.path().join("tree");
    assert_eq!(fs::read(tree.join("usr/bin/su2")).unwrap(), b"new");
    assert_eq!(
        fs::read(tree.join("inside")).unwrap(),
        b"in",
        "an absolute link leads to the tree's root"
    );
    let su = fs::metadata(tree.join("usr/bin/su")).unwrap();
    assert_eq!(
        (su.permissions().mode() & 0o7777, su.mtime(), su.nlink()),
        (
            if rustix::process::geteuid().is_root() {
                0o4755
            } else {
                0o755
            },
            1_000_000_000,
            2
        )
    );
    assert_eq!(
        fs::metadata(tree.join("usr")).unwrap().permissions().mode() & 0o7777,
        0o555
    );
    if rustix::process::geteuid().is_root() {
        assert_eq!((su.uid(), su.gid()), (12, 34));
    }
}

#[test]
fn no_entry_leaves_the_tree() {
    for (path, reason) in [
        (&b"../evil"[..], "leads out of the tree"),
        (b"usr/../../evil", "leads out of the tree"),
        (b"/etc/evil", "is absolute"),
    ] {
        let mut header = header(EntryType::Regular, 0, 0o644);
        name(&mut header, path);
        let mut builder = Builder::new(Vec::new());
        builder.append(&header, &b""[..]).unwrap();
        let (dir, result) = unpack(builder.into_inner().unwrap());
        let error = result.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        assert_eq!(fs::read_dir(dir.path().join("tree")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

#[test]
fn a_link_out_of_the_tree_is_not_followed_out() {
    let outside = tempfile::tempdir().unwrap();
    for target in [
        outside.path().to_str().unwrap(),
        "../../../../../../../../../tmp",
    ] {
        let mut builder = Builder::new(Vec::new());
        builder
            .append_link(&mut header(EntryType::Symlink, 0, 0o777), "link", target)
            .unwrap();
        builder
            .append_data(
                &mut header(EntryType::Regular, 1, 0o644),
                "link/evil-entry",
                &b"x"[..],
            )
            .unwrap();
        let (_dir, result) = unpack(builder.into_inner().unwrap());
        let _ = result;
        assert!(!outside.path().join("evil-entry").exists());
        assert!(!Path::new("/tmp/evil-entry").exists());
    }
    let secret = outside.path().join("secret");
    fs::write(&secret, "x").unwrap();
    let mut builder = Builder::new(Vec::new());
    let mut hard = header(EntryType::Link, 0, 0o644);
    hard.as_old_mut().linkname[..secret.as_os_str().len()]
        .copy_from_slice(secret.as_os_str().as_bytes());
    name(&mut hard, b"hard");
    builder.append(&hard, &b""[..]).unwrap();
    let (_dir, result) = unpack(builder.into_inner().unwrap());
    assert!(result.unwrap_err().to_string().contains("is absolute"));
    assert_eq!(fs::metadata(&secret).unwrap().nlink(), 1);
}

#[test]
#[ignore = "needs root"]
fn root_devices_and_capabilities_are_kept() {
    assert!(
        rustix::process::geteuid().is_root(),
        "needs root: run `cargo xtask test` as root"
    );
    // cap_net_raw=ep, version 2. Source: Linux include/uapi/linux/capability.h.
    let mut capability = [0_u8; 20];
    capability[0] = 1;
    capability[3] = 2;
    capability[5] = 0x20;
    let mut builder = Builder::new(Vec::new());
    let pax = [
        ("SCHILY.xattr.security.capability", &capability[..]),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
    ];
    builder.append_pax_extensions(pax).unwrap();
    let mut ping = header(EntryType::Regular, 1, 0o755);
    builder.append_data(&mut ping, "ping", &b"x"[..]).unwrap();
    let mut null = header(EntryType::Char, 0, 0o666);
    null.set_device_major(1).unwrap();
    null.set_device_minor(3).unwrap();
    builder.append_data(&mut null, "null", &b""[..]).unwrap();
    let (dir, result) = unpack(builder.into_inner().unwrap());
    result.unwrap();
    let tree = dir.path().join("tree");
    let mut value = [0; 64];
    let count = rustix::fs::getxattr(tree.join("ping"), "security.capability", &mut value).unwrap();
    assert_eq!(value[..count], capability);
    assert!(rustix::fs::getxattr(tree.join("ping"), "trusted.overlay.opaque", &mut value).is_err());
    let null = fs::symlink_metadata(tree.join("null")).unwrap();
    assert_eq!(
        (null.rdev(), null.mode()),
        (rustix::fs::makedev(1, 3), 0o020_666)
    );
    assert_eq!((null.uid(), null.gid()), (12, 34));
}
