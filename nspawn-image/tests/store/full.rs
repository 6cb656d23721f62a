//! A disk that is full.

use std::fs;
use std::sync::Arc;

use nspawn_image::{ErrorKind, ImageError, Store};

use super::fixture::Fixture;
use super::support::{Behaviour, Server, disk};

/// A file system of 2 MiB that ends with the value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "needs root: run `cargo xtask test` as root"
        );
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "small"])
            .arg(dir.path())
            .status()
            .unwrap();
        assert!(mounted.success());
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg(self.0.path())
            .status();
    }
}

#[test]
#[ignore = "needs root"]
fn root_a_full_disk_is_said_and_nothing_is_left_on_it() {
    let mut noise = disk();
    let mut state = 1_u64;
    for byte in &mut noise[4096..] {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        *byte = (state >> 56) as u8;
    }
    let small = SmallDisk::mount();
    let mut fixture = Fixture::new();
    let local = fixture.file("noise.raw.zst", &zstd::encode_all(&noise[..], 1).unwrap());
    let server = Server::start(Behaviour {
        body: Arc::new(noise),
        etag: Some("\"v\"".into()),
        ..Behaviour::default()
    });
    fixture.store = Store::open(small.0.path().join("store")).unwrap();
    for reference in [server.url("disk.raw"), local] {
        let error = fixture.pull(&reference).unwrap_err();
        assert!(matches!(error, ImageError::NoSpace { .. }), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Host);
        for folder in ["blobs", "refs", "partial"] {
            let entries = fs::read_dir(small.0.path().join("store").join(folder))
                .unwrap()
                .flatten();
            let left: Vec<_> = entries
                .filter(|entry| entry.path().extension().is_none_or(|end| end != "lock"))
                .collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }
}
