//! Archives as programs make them: zip, and sparse files in each format that tar(1) writes.

#[path = "support/fixture.rs"]
mod fixture;

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use fixture::{Fixture, qcow2_of};
use nspawn_image::{ErrorKind, Image, ImageError, ImageKind, PullOptions};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// A bare ext4 as far as anybody looks: 3 MiB, data at its start and at its end.
fn disk() -> Vec<u8> {
    let mut bytes = vec![0; 3 << 20];
    bytes[1080] = 0x53;
    bytes[1081] = 0xef;
    for (index, byte) in bytes[(2 << 20) + 4096..].iter_mut().enumerate() {
        *byte = ((index * 31) >> 7) as u8;
    }
    bytes
}

fn pull(fixture: &Fixture, name: &str) -> Result<Image, ImageError> {
    let path = fixture.path(name);
    fixture.pull_with(path.to_str().unwrap(), &PullOptions::default())
}

fn zip_of(fixture: &Fixture, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let path = fixture.path(name);
    let mut zip = ZipWriter::new(File::create(&path).unwrap());
    for (name, bytes) in files {
        zip.start_file(*name, deflated()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
    path
}

/// A folder with `disk.raw`, holes and all, and a note beside it.
fn sparse_disk(fixture: &Fixture) -> PathBuf {
    let folder = fixture.path("made");
    fs::create_dir(&folder).unwrap();
    let mut file = File::create(folder.join("disk.raw")).unwrap();
    file.set_len(3 << 20).unwrap();
    let bytes = disk();
    for range in [0..4096, (2 << 20) + 4096..3 << 20] {
        file.seek(SeekFrom::Start(range.start as u64)).unwrap();
        file.write_all(&bytes[range]).unwrap();
    }
    fs::write(folder.join("README"), "a disk").unwrap();
    folder
}

fn deflated() -> SimpleFileOptions {
    SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated)
}

fn tar(folder: &Path, archive: &Path, options: &[&str], names: &[&str]) {
    let status = Command::new("tar")
        .arg("--create")
        .arg("--file")
        .arg(archive)
        .arg("--directory")
        .arg(folder)
        .args(options)
        .args(names)
        .status()
        .expect("tar is needed (package tar)");
    assert!(status.success());
}

#[test]
fn a_sparse_disk_in_every_format_of_tar() {
    let fixture = Fixture::new();
    let folder = sparse_disk(&fixture);
    let formats: [(&str, &[&str]); 5] = [
        ("old.tar", &["--format=gnu"]),
        ("pax-0.0.tar", &["--format=posix", "--sparse-version=0.0"]),
        ("pax-0.1.tar", &["--format=posix", "--sparse-version=0.1"]),
        ("pax-1.0.tar", &["--format=posix", "--sparse-version=1.0"]),
        ("pax.tar.xz", &["--format=posix", "--xz"]),
    ];
    for (name, options) in formats {
        let options: Vec<&str> = ["--sparse"].iter().chain(options).copied().collect();
        // A note before the disk and after it is no tree.
        for names in [
            &["disk.raw"][..],
            &["README", "disk.raw"],
            &["disk.raw", "README"],
        ] {
            let path = fixture.path(name);
            tar(&folder, &path, &options, names);
            if !name.ends_with("xz") {
                assert!(
                    fs::metadata(&path).unwrap().len() < 2 << 20,
                    "{name} is not sparse"
                );
            }
            let image =
                pull(&fixture, name).unwrap_or_else(|error| panic!("{name} {names:?}: {error:?}"));
            assert_eq!(image.kind(), ImageKind::Disk, "{name}");
            assert!(
                fs::read(image.path()).unwrap() == disk(),
                "{name} {names:?}"
            );
            let blocks = fs::metadata(image.path()).unwrap().blocks();
            assert!(blocks * 512 < 2 << 20, "{name}: {blocks} blocks");
            fixture.store.list().unwrap();
        }
    }
    assert_eq!(fixture.left("partial"), Vec::<String>::new());
}

#[test]
fn a_sparse_file_in_a_tree_stays_sparse() {
    let fixture = Fixture::new();
    let folder = sparse_disk(&fixture);
    fs::create_dir_all(folder.join("usr/lib")).unwrap();
    fs::write(folder.join("usr/lib/os-release"), "ID=test\n").unwrap();
    fs::rename(folder.join("disk.raw"), folder.join("usr/disk.raw")).unwrap();
    for version in ["0.0", "0.1", "1.0"] {
        let name = format!("tree-{version}.tar");
        let sparse = format!("--sparse-version={version}");
        let options = ["--sparse", "--format=posix", &sparse];
        tar(&folder, &fixture.path(&name), &options, &["."]);
        let image = pull(&fixture, &name).unwrap();
        assert_eq!(image.kind(), ImageKind::Tree);
        let file = image.path().join("usr/disk.raw");
        assert!(fs::read(&file).unwrap() == disk(), "{version}");
        assert!(
            fs::metadata(&file).unwrap().blocks() * 512 < 2 << 20,
            "{version}"
        );
    }
}

#[test]
fn the_one_disk_of_a_zip_archive() {
    let fixture = Fixture::new();
    let raw = disk();
    let readme: (&str, &[u8]) = ("image/README.txt", b"a disk\n");
    zip_of(
        &fixture,
        "one.zip",
        &[
            readme,
            ("image/disk", &raw),
            ("image/disk.sha256", b"00  disk\n"),
        ],
    );
    let image = pull(&fixture, "one.zip").unwrap();
    assert_eq!(image.kind(), ImageKind::Disk);
    assert!(fs::read(image.path()).unwrap() == raw);
    assert_eq!(image.name().unwrap().as_str(), "one");
    // zip(1) does not know a size beforehand where it reads from a pipe.
    let packed = qcow2_of(&raw, &[]);
    let path = fixture.path("wide.zip");
    let mut zip = ZipWriter::new(File::create(&path).unwrap());
    zip.start_file("disk.qcow2", deflated().large_file(true))
        .unwrap();
    zip.write_all(&packed).unwrap();
    zip.finish().unwrap();
    let image = pull(&fixture, "wide.zip").unwrap();
    assert!(fs::read(image.path()).unwrap() == raw);

    let refused = |name: &str| {
        let error = pull(&fixture, name).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input, "{error}");
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", cause.unwrap_or_default())
    };
    zip_of(
        &fixture,
        "two.zip",
        &[("a.raw", &raw), readme, ("b.raw", &raw)],
    );
    let text = refused("two.zip");
    assert!(
        text.contains("more than one disk image (\"a.raw\", \"b.raw\")"),
        "{text}"
    );
    zip_of(&fixture, "none.zip", &[readme]);
    assert!(refused("none.zip").contains("without a disk image"));
    zip_of(&fixture, "vmdk.zip", &[("a.vmdk", b"KDMV"), readme]);
    assert!(refused("vmdk.zip").contains("VMware"));
    assert_eq!(fixture.left("partial"), Vec::<String>::new());
}

#[test]
fn a_zip_archive_that_tells_two_stories_is_refused() {
    let fixture = Fixture::new();
    let path = zip_of(&fixture, "story.zip", &[("disk.raw", &disk())]);
    let whole = fs::read(&path).unwrap();
    let list = whole
        .windows(4)
        .rposition(|bytes| bytes == b"PK\x01\x02")
        .unwrap();
    // Offsets in the header before the file: version, flags, method, time, checksum, sizes, name.
    let table: [(usize, u8, &str); 6] = [
        (30, b'D', "another name"),
        (14, 0xff, "another checksum"),
        (22, 0xff, "another length"),
        (18, 0xff, "another length"),
        (list + 8, 1, "the encrypted file \"disk.raw\""),
        (100, 0xff, "damaged"),
    ];
    for (at, bits, text) in table {
        let mut bytes = whole.clone();
        bytes[at] ^= bits;
        fs::write(&path, &bytes).unwrap();
        let error = pull(&fixture, "story.zip").unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        let shown = format!("{error}: {}", cause.unwrap_or_default());
        assert!(shown.contains(text), "{at}: {shown}");
    }
    // Both stories the same, and both wrong.
    let mut bytes = whole.clone();
    for at in [22, list + 24] {
        bytes[at] ^= 1;
    }
    fs::write(&path, &bytes).unwrap();
    assert!(pull(&fixture, "story.zip").is_err());
    for cut in [10, whole.len() / 2, whole.len() - 5] {
        fs::write(&path, &whole[..cut]).unwrap();
        assert!(pull(&fixture, "story.zip").is_err(), "{cut}");
    }
    assert_eq!(fixture.left("partial"), Vec::<String>::new());
}
