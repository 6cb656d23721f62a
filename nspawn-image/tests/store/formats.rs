//! Every format that an image comes in, and what is none.

use std::fs;
use std::io::Write;

use nspawn_image::{DownloadReason, ErrorKind, ImageError, ImageKind};

use super::fixture::{Fixture, Log, qcow2_of, reason, sha256};
use super::support::disk;

#[test]
fn local_files_in_every_format() {
    let fixture = Fixture::new();
    let raw = disk();
    let image = qcow2_of(&disk(), &["-c"]);
    let in_place = fixture.pull(&fixture.file("a.raw", &raw)).unwrap();
    assert!(in_place.path().ends_with("a.raw") && in_place.lock().is_none());
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let xz = |bytes: &[u8]| {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let bzip2 = |bytes: &[u8]| {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let tar = |name: &str, bytes: &[u8]| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes).unwrap();
        builder.into_inner().unwrap()
    };
    let forms = [
        ("b.qcow2", image.clone()),
        ("c.raw.gz", gzip(&raw)),
        ("d.raw.xz", xz(&raw)),
        ("e.raw.zst", zstd::encode_all(&raw[..], 1).unwrap()),
        ("f.raw.bz2", bzip2(&raw)),
        ("g.qcow2.xz", xz(&image)),
        ("h.tar.xz", xz(&tar("disk.raw", &raw))),
        ("i.tar", tar("./disk.qcow2", &image)),
    ];
    for (name, bytes) in forms {
        let path = fixture.file(name, &bytes);
        let image = fixture
            .pull(&path)
            .unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert!(fs::read(image.path()).unwrap() == raw, "{name}");
        assert_eq!(image.digest(), Some(sha256(&bytes)));
        let mut log = Log::default();
        fixture
            .store
            .pull(&path.parse().unwrap(), &fixture.options(), &mut log)
            .unwrap();
        assert!(
            log.steps.is_empty(),
            "{name} is known by its identity: {:?}",
            log.steps
        );
    }
    assert_eq!(fixture.left("partial"), Vec::<String>::new());
}

#[test]
fn trees_from_folders_and_archives() {
    let fixture = Fixture::new();
    let tree = fixture.dir.path().join("machines/tree");
    fs::create_dir_all(tree.join("usr/lib")).unwrap();
    let error = fixture.pull(tree.to_str().unwrap()).unwrap_err();
    assert!(matches!(
        error,
        ImageError::NoTree {
            missing: "usr/lib/os-release",
            ..
        }
    ));
    fs::write(tree.join("usr/lib/os-release"), "ID=test\n").unwrap();
    let by_name = fixture.pull("tree").unwrap();
    assert_eq!(
        (by_name.kind(), by_name.path()),
        (ImageKind::Tree, fs::canonicalize(&tree).unwrap().as_path())
    );
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all("./", &tree).unwrap();
    let path = fixture.file("os.tar", &builder.into_inner().unwrap());
    let image = fixture.pull(&path).unwrap();
    assert_eq!(image.kind(), ImageKind::Tree);
    assert_eq!(
        fs::read(image.path().join("usr/lib/os-release")).unwrap(),
        b"ID=test\n"
    );
    let listed = fixture.store.list().unwrap();
    assert_eq!(
        (listed.len(), listed[0].name.as_str(), listed[0].in_use),
        (1, "os", true)
    );
    let name = image.name().unwrap().clone();
    assert!(matches!(
        fixture.store.remove(&name),
        Err(ImageError::InUse { .. })
    ));
    let blob = image.path().to_owned();
    drop(image);
    fixture.store.remove(&name).unwrap();
    assert!(!blob.exists());
    assert!(matches!(
        fixture.pull("os"),
        Err(ImageError::UnknownName { .. })
    ));
    assert_eq!(fixture.left("partial"), Vec::<String>::new());
}

#[test]
fn what_is_no_image_is_named() {
    let fixture = Fixture::new();
    let table: [(&str, &[u8], &str); 6] = [
        ("empty", b"", "an empty file"),
        ("text", b"hello, world\n", "a text file"),
        ("page", b"<html>", "a web page"),
        ("random", &[0xa5; 5000], "neither a partition table"),
        ("disk.vhdx", b"vhdxfile", "Hyper-V"),
        ("disk.zip", b"PK\x03\x04", "zip"),
    ];
    for (name, bytes, text) in table {
        let error = fixture.pull(&fixture.file(name, bytes)).unwrap_err();
        assert!(
            error.to_string().contains(text) && error.to_string().contains(name),
            "{error}"
        );
        assert_eq!(error.kind(), ErrorKind::Input);
    }
    assert!(matches!(
        fixture.pull("./no/such/file"),
        Err(ImageError::Missing(_))
    ));
    let refused = reason(fixture.pull("oci:127.0.0.1:1/debian:12").unwrap_err());
    assert!(matches!(refused, DownloadReason::Refused(_)), "{refused}");
    let mut image = qcow2_of(&disk(), &["-c"]);
    image.truncate(image.len() / 2);
    let error = fixture
        .pull(&fixture.file("cut.qcow2", &image))
        .unwrap_err();
    assert!(
        matches!(&error, ImageError::Qcow2 { source, .. } if source.to_string().contains("cut short")),
        "{error:?}"
    );
    let mut bytes = zstd::encode_all(&disk()[..], 1).unwrap();
    bytes.truncate(bytes.len() - 9);
    let error = fixture.pull(&fixture.file("cut.zst", &bytes)).unwrap_err();
    assert!(matches!(error, ImageError::Unpack { .. }), "{error:?}");
    assert_eq!(
        (fixture.left("blobs"), fixture.left("partial")),
        (vec![], vec![])
    );
}
