//! The fixture is what other tests take it for.

use nspawn_tests::cli::Invocation;
use nspawn_tests::fixture::{DISK_SIZE, Debian, ROOT_OFFSET};
use nspawn_tests::host;

#[cfg(target_arch = "x86_64")]
const ROOT_TYPE: &str = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709";
#[cfg(target_arch = "aarch64")]
const ROOT_TYPE: &str = "B921B045-1DF0-41C3-AF44-4C6F280D3FAE";

#[test]
#[ignore = "needs root"]
fn root_fixture_has_the_layout_of_a_cloud_image() {
    host::require_root();
    for (file, root_type) in [
        (Debian::Raw, ROOT_TYPE),
        (Debian::RawGeneric, "0FC63DAF-8483-4772-8E79-3D69D8477DE4"),
    ] {
        let finished = Invocation::new("sfdisk")
            .arg("--json")
            .arg(file.path())
            .run();
        finished.expect_code(0);
        let json: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
        let table = &json["partitiontable"];
        assert_eq!(table["label"], "gpt");
        let partitions = table["partitions"].as_array().unwrap();
        let found: Vec<_> = partitions
            .iter()
            .map(|partition| {
                let node = partition["node"].as_str().unwrap();
                let number = node.strip_prefix(file.path().to_str().unwrap()).unwrap();
                (
                    number,
                    partition["type"].as_str().unwrap(),
                    partition["start"].as_u64().unwrap(),
                )
            })
            .collect();
        let expected = [
            ("1", root_type, ROOT_OFFSET / 512),
            ("14", "21686148-6449-6E6F-744E-656564454649", 2048),
            ("15", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", 8192),
        ];
        assert_eq!(found, expected, "{}", file.file_name());
        assert_eq!(file.path().metadata().unwrap().len(), DISK_SIZE);
        // Both copies of the table and their checksums: a damaged one is named here.
        let finished = Invocation::new("sfdisk")
            .arg("--verify")
            .arg(file.path())
            .run();
        finished.expect_code(0).expect_stdout("No errors detected");
    }
}

#[test]
#[ignore = "needs root"]
fn root_fixture_holds_a_sound_file_system() {
    host::require_root();
    let disk = format!("{}?offset={ROOT_OFFSET}", Debian::Raw.path().display());
    Invocation::new("e2fsck")
        .args(["-f", "-n", &disk])
        .run()
        .expect_code(0);
    let release = Invocation::new("debugfs")
        .args(["-R", "cat /usr/lib/os-release", &disk])
        .run();
    release.expect_code(0).expect_stdout("ID=debian");
}

#[test]
#[ignore = "needs root"]
fn root_fixture_is_the_same_disk_in_every_format() {
    host::require_root();
    for file in [Debian::Qcow2, Debian::Qcow2Zstd] {
        let compare = Invocation::new("qemu-img").args(["compare", "-f", "raw", "-F", "qcow2"]);
        compare
            .arg(Debian::Raw.path())
            .arg(file.path())
            .run()
            .expect_code(0);
    }
    let list = Debian::Sha256Sums.path();
    let check = Invocation::new("sha256sum")
        .args(["--check", "--quiet"])
        .arg(&list);
    check
        .current_dir(list.parent().unwrap())
        .run()
        .expect_code(0);
    assert_eq!(Debian::Tar.sha256().len(), 64);
}
