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

fn message(result: Result<(), UnpackError>) -> String {
    let error = result.unwrap_err();
    let source = std::error::Error::source(&error).map(ToString::to_string);
    format!("{error}: {}", source.unwrap_or_default())
}

/// An entry with pax records in front.
fn with_pax(
    builder: &mut Builder<Vec<u8>>,
    records: &[(&str, &[u8])],
    mut header: Header,
    path: &str,
) {
    builder
        .append_pax_extensions(records.iter().copied())
        .unwrap();
    builder.append_data(&mut header, path, &b""[..]).unwrap();
}

#[test]
fn names_that_cannot_be_are_refused() {
    let long = "x/".repeat(2100);
    let part = "y".repeat(256);
    for (value, reason) in [
        (&b"a\0b"[..], "NUL byte"),
        (long.as_bytes(), "longer than 4095 bytes"),
        (part.as_bytes(), "longer than 255 bytes"),
        (b"a/../b", "leads out"),
        (b"//etc/x", "is absolute"),
    ] {
        let mut builder = Builder::new(Vec::new());
        with_pax(
            &mut builder,
            &[("path", value)],
            header(EntryType::Regular, 0, 0o644),
            "short",
        );
        let (dir, result) = unpack(builder.into_inner().unwrap());
        let error = message(result);
        assert!(error.contains(reason), "{error}");
        assert!(error.len() < 5000);
        assert_eq!(fs::read_dir(dir.path().join("tree")).unwrap().count(), 0);
    }
    for kind in [EntryType::Symlink, EntryType::Link] {
        for target in [&b""[..], b"a\0b"] {
            let mut builder = Builder::new(Vec::new());
            with_pax(
                &mut builder,
                &[("linkpath", target)],
                header(kind, 0, 0o644),
                "link",
            );
            let (_dir, result) = unpack(builder.into_inner().unwrap());
            assert!(
                matches!(result, Err(UnpackError::Entry { .. })),
                "{result:?}"
            );
        }
    }
}

#[test]
fn a_tree_as_deep_as_a_path_can_name_is_made_and_removed() {
    let deep = "d/".repeat(2000);
    let mut builder = Builder::new(Vec::new());
    for turn in 0..3 {
        // Through a link, three times as deep as any path.
        let path = if turn == 0 {
            deep.clone()
        } else {
            format!("link{}/{deep}", turn - 1)
        };
        with_pax(
            &mut builder,
            &[("path", path.as_bytes())],
            header(EntryType::Directory, 0, 0o755),
            "x",
        );
        let name = format!("link{turn}");
        let target = format!("/{}", path.trim_end_matches('/'));
        let link = header(EntryType::Symlink, 0, 0o777);
        with_pax(
            &mut builder,
            &[("linkpath", target.as_bytes())],
            link,
            &name,
        );
    }
    let (dir, result) = unpack(builder.into_inner().unwrap());
    result.unwrap();
    remove::remove_tree(&dir.path().join("tree")).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_stands_in_the_way_is_replaced() {
    let mut builder = Builder::new(Vec::new());
    let mut add = |kind: EntryType, path: &str, data: &[u8]| {
        let mut header = header(kind, data.len() as u64, 0o755);
        builder.append_data(&mut header, path, data).unwrap();
    };
    add(EntryType::Directory, "a/", b"");
    add(EntryType::Regular, "a/in", b"old");
    add(EntryType::Regular, "a", b"a file now");
    add(EntryType::Regular, "b", b"old");
    add(EntryType::Directory, "b/", b"");
    add(EntryType::Regular, "b/in", b"a folder now");
    add(EntryType::Directory, "c/", b"");
    add(EntryType::Regular, "c/in", b"old");
    let mut link = header(EntryType::Symlink, 0, 0o777);
    builder.append_link(&mut link, "c", "b").unwrap();
    // Lands in b: the folder that was opened for c before is not used again.
    let mut file = header(EntryType::Regular, 3, 0o644);
    builder
        .append_data(&mut file, "c/new", &b"new"[..])
        .unwrap();
    let mut own = header(EntryType::Link, 0, 0o644);
    builder.append_link(&mut own, "c/in", "b/in").unwrap();
    let (dir, result) = unpack(builder.into_inner().unwrap());
    result.unwrap();
    let tree = dir.path().join("tree");
    let read = |name: &str| fs::read_to_string(tree.join(name)).unwrap();
    assert_eq!(
        (read("a"), read("b/in")),
        ("a file now".into(), "a folder now".into())
    );
    assert_eq!(fs::read_link(tree.join("c")).unwrap(), Path::new("b"));
    assert_eq!(read("b/new"), "new");
}

#[test]
fn limits_hold_for_all_that_is_made() {
    let archive = |paths: &[&str], size: usize| {
        let mut builder = Builder::new(Vec::new());
        for path in paths {
            let mut header = header(EntryType::Regular, size as u64, 0o644);
            builder
                .append_data(&mut header, path, &vec![1; size][..])
                .unwrap();
        }
        builder.into_inner().unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits {
        entries: 4,
        unpacked: 1000,
        ..Limits::default()
    };
    let run = |name: &str, archive: Vec<u8>| {
        let mut tree = crate::TreeWriter::create(dir.path().join(name), &limits).unwrap();
        tree.add_archive(&archive[..])
    };
    run("fits", archive(&["a", "b", "c", "d"], 250)).unwrap();
    let error = run("many", archive(&["a", "b", "c", "d", "e"], 0)).unwrap_err();
    assert!(
        matches!(error, UnpackError::Entries { limit: 4 }),
        "{error}"
    );
    let error = run("implied", archive(&["a/b/c/d/e"], 0)).unwrap_err();
    assert!(
        matches!(error, UnpackError::Entries { limit: 4 }),
        "{error}"
    );
    let error = run("large", archive(&["a", "b"], 501)).unwrap_err();
    assert!(
        matches!(error, UnpackError::TooLarge { limit: 1000 }),
        "{error}"
    );
}

#[test]
#[ignore = "needs root"]
fn root_no_attribute_that_the_host_acts_on_is_kept() {
    assert!(
        rustix::process::geteuid().is_root(),
        "needs root: run `cargo xtask test` as root"
    );
    let records: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.user.kept", b"yes"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.trusted.other", b"x"),
        ("SCHILY.xattr.security.selinux", b"x"),
        ("SCHILY.xattr.security.ima", b"x"),
    ];
    let mut builder = Builder::new(Vec::new());
    with_pax(
        &mut builder,
        records,
        header(EntryType::Regular, 0, 0o644),
        "file",
    );
    with_pax(
        &mut builder,
        records,
        header(EntryType::Directory, 0, 0o755),
        "folder/",
    );
    with_pax(
        &mut builder,
        records,
        header(EntryType::Fifo, 0, 0o600),
        "fifo",
    );
    let mut whiteout = header(EntryType::Char, 0, 0o600);
    whiteout.set_device_major(0).unwrap();
    whiteout.set_device_minor(0).unwrap();
    builder
        .append_data(&mut whiteout, "whiteout", &b""[..])
        .unwrap();
    let (dir, result) = unpack(builder.into_inner().unwrap());
    result.unwrap();
    let tree = dir.path().join("tree");
    assert!(!tree.join("whiteout").exists());
    for name in ["file", "folder"] {
        let mut names = [0; 1024];
        let count = rustix::fs::listxattr(tree.join(name), &mut names[..]).unwrap();
        let text = String::from_utf8_lossy(&names[..count]).into_owned();
        assert!(text.contains("user.kept"), "{name}: {text}");
        assert!(
            !text.contains("overlay") && !text.contains("trusted"),
            "{name}: {text}"
        );
        assert!(!text.contains("ima"), "{name}: {text}");
    }
}
