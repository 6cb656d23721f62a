//! Disks as the usual tools make them: which partition is the root, and what is said of those that have none.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nspawn_image::{
    Architecture, DiskError, DiskWarning, FileSystem, PartitionTable, RootPartition, Scheme,
};

const MIB: u64 = 1 << 20;
/// The types that sgdisk names 8304 and 8300: x86-64 root and Linux.
const ROOT: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
const LINUX: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";

fn run(program: &str, arguments: &[&str], input: &str) {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    // A program that reads nothing may have ended by now.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
}

/// A file in a folder of its own.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    /// A disk of some MiB, with nothing on it.
    fn new(mebibytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = Self { dir };
        let file = File::create_new(disk.path()).unwrap();
        file.set_len(mebibytes * MIB).unwrap();
        disk
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn sfdisk(self, options: &[&str], script: &str) -> Self {
        let path = self.path();
        let mut arguments = vec!["--quiet", "--no-reread", "--no-tell-kernel"];
        arguments.extend(options);
        arguments.push(path.to_str().unwrap());
        run("sfdisk", &arguments, script);
        self
    }

    fn sgdisk(self, arguments: &[&str]) -> Self {
        let path = self.path();
        run(
            "sgdisk",
            &[arguments, &[path.to_str().unwrap()]].concat(),
            "",
        );
        self
    }

    fn put(self, at: u64, bytes: &[u8]) -> Self {
        let file = File::options().write(true).open(self.path()).unwrap();
        file.write_all_at(bytes, at).unwrap();
        self
    }

    /// The magic bytes of an ext4 in a partition that starts at `mebibyte`.
    fn ext4(self, mebibyte: u64) -> Self {
        self.put(mebibyte * MIB + 1080, &[0x53, 0xef])
    }

    fn table(&self) -> Result<PartitionTable, DiskError> {
        PartitionTable::read(&File::open(self.path()).unwrap())
    }

    fn root(&self) -> Result<RootPartition, DiskError> {
        let file = File::open(self.path()).unwrap();
        self.table()?.root(&file, Architecture::X86_64)
    }

    /// The root's number and where it starts, in MiB.
    fn found(&self) -> (Option<u32>, u64) {
        let root = self.root().unwrap();
        (root.number, root.offset / MIB)
    }
}

#[test]
fn a_cloud_layout_by_both_tools() {
    let script = format!(
        "label: gpt\nstart=4MiB, size=8MiB, type={ROOT}, name=root\nstart=1MiB, size=2MiB, type=uefi\n"
    );
    let disk = Disk::new(16).sfdisk(&[], &script).ext4(4);
    let root = disk.root().unwrap();
    assert_eq!((root.offset, root.length), (4 * MIB, 8 * MIB));
    assert_eq!((root.number, root.label.as_str()), (Some(1), "root"));
    assert!(root.warnings.is_empty());
    let sgdisk = [
        "--new=1:1M:+2M",
        "--typecode=1:ef00",
        "--new=2:4M:+8M",
        "--typecode=2:8304",
    ];
    assert_eq!(Disk::new(16).sgdisk(&sgdisk).ext4(4).found(), (Some(2), 4));
}

#[test]
fn the_copy_at_the_end_is_used_and_said() {
    let script = format!("label: gpt\nstart=1MiB, size=8MiB, type={LINUX}\n");
    let disk = Disk::new(16).sfdisk(&[], &script).ext4(1);
    let whole = disk.table().unwrap();
    assert_eq!((whole.scheme, whole.warnings.len()), (Scheme::Gpt, 0));
    let disk = disk.put(512 + 56, &[0xff]);
    let table = disk.table().unwrap();
    assert_eq!(table.scheme, Scheme::GptBackup);
    assert_eq!(table.partitions, whole.partitions);
    let root = disk.root().unwrap();
    assert_eq!(root.warnings.len(), 1);
    assert!(root.warnings[0].to_string().contains("checksum is wrong"));
    // the entries of the first copy, not its header
    let disk = Disk::new(16)
        .sfdisk(&[], &script)
        .ext4(1)
        .put(1024 + 60, b"?");
    assert_eq!(disk.root().unwrap().warnings.len(), 1);
    // a disk that grew has its copy elsewhere, and the first one is enough
    let disk = Disk::new(16).sfdisk(&[], &script).ext4(1);
    let file = File::options().write(true).open(disk.path()).unwrap();
    file.set_len(20 * MIB).unwrap();
    assert_eq!(disk.table().unwrap().scheme, Scheme::Gpt);
    let disk = disk.put(512, &[0; 512]);
    assert!(matches!(disk.table(), Err(DiskError::Damaged(_))));
}

#[test]
fn a_hybrid_mbr_hides_no_gpt() {
    let sgdisk = [
        "--new=1:1M:+2M",
        "--typecode=1:ef00",
        "--new=2:4M:+4M",
        "--typecode=2:8300",
        "--new=3:9M:+2M",
        "--typecode=3:8200",
        "--hybrid=2:3",
    ];
    let disk = Disk::new(16).sgdisk(&sgdisk).ext4(4);
    let mbr = fs::read(disk.path()).unwrap();
    let kinds = [0, 1, 2].map(|slot| mbr[446 + 16 * slot + 4]);
    assert!(kinds.contains(&0x83), "{kinds:x?}");
    let table = disk.table().unwrap();
    assert_eq!((table.scheme, table.partitions.len()), (Scheme::Gpt, 3));
    assert_eq!(disk.found(), (Some(2), 4));
}

#[test]
fn what_a_table_has_left_of_the_one_before_it_does_not_count() {
    let gpt = format!("label: gpt\nstart=1MiB, size=8MiB, type={ROOT}\n");
    // another table, made by what does not clear away
    let first_sector = fs::read(
        Disk::new(16)
            .sfdisk(&[], "label: dos\nstart=4MiB, size=8MiB, type=83\n")
            .path(),
    );
    let first_sector = &first_sector.unwrap()[..512];
    let disk = Disk::new(16).sfdisk(&[], &gpt).put(0, first_sector).ext4(4);
    assert_eq!(disk.table().unwrap().scheme, Scheme::Mbr);
    assert_eq!(disk.found(), (Some(1), 4));
    // one file system over all of it: the copy at the end is still there
    let disk = Disk::new(16).sfdisk(&[], &gpt);
    let last = fs::read(disk.path()).unwrap()[(16 * MIB - 512) as usize..].to_vec();
    assert!(last.starts_with(b"EFI PART"));
    run(
        "mkfs.ext4",
        &["-q", "-F", disk.path().to_str().unwrap()],
        "",
    );
    let disk = disk.put(16 * MIB - 512, &last);
    assert_eq!(disk.table().unwrap().scheme, Scheme::Bare);
    assert_eq!(disk.found(), (None, 0));
    // nothing but the GPT
    let disk = Disk::new(16).sfdisk(&[], &gpt).put(0, &[0; 512]).ext4(1);
    assert_eq!(disk.found(), (Some(1), 1));
}

#[test]
fn logical_partitions_in_and_out_of_order() {
    let script = "label: dos\nstart=1MiB, size=1MiB, type=c\nstart=3MiB, size=12MiB, type=5\n\
        start=4MiB, size=2MiB, type=82\nstart=7MiB, size=2MiB, type=82\nstart=10MiB, size=2MiB, type=83\n";
    let disk = Disk::new(16).sfdisk(&[], script).ext4(10);
    let numbers: Vec<u32> = disk
        .table()
        .unwrap()
        .partitions
        .iter()
        .map(|p| p.number)
        .collect();
    assert_eq!(numbers, [1, 5, 6, 7]);
    assert_eq!(disk.found(), (Some(7), 10));
    // one that was taken away and made again: the chain runs backwards
    let script = "label: dos\nstart=3MiB, size=12MiB, type=5\nstart=10MiB, size=2MiB, type=82\n\
        start=4MiB, size=2MiB, type=83\nstart=7MiB, size=2MiB, type=82\n";
    let disk = Disk::new(16).sfdisk(&[], script).ext4(4);
    let table = disk.table().unwrap();
    let starts: Vec<u64> = table.partitions.iter().map(|p| p.offset / MIB).collect();
    assert_eq!(starts, [10, 4, 7]);
    assert_eq!(disk.found(), (Some(6), 4));
}

#[test]
fn sectors_of_4096_bytes() {
    // sfdisk takes the sector size of the device alone
    let (disk, words) = (
        Disk::new(16),
        "g\nn\n1\n1024\n3071\nn\n2\n256\n767\nt\n2\n1\nw\n",
    );
    run(
        "fdisk",
        &["--sector-size", "4096", disk.path().to_str().unwrap()],
        words,
    );
    let disk = disk.ext4(4);
    let lengths: Vec<u64> = disk
        .table()
        .unwrap()
        .partitions
        .iter()
        .map(|p| p.length / MIB)
        .collect();
    assert_eq!(lengths, [8, 2]);
    assert_eq!(disk.table().unwrap().sector_size, 4096);
    assert_eq!(disk.found(), (Some(1), 4));
    let disk = disk.put(4096, &[0; 4096]);
    assert_eq!(disk.root().unwrap().warnings.len(), 1);
    assert_eq!(disk.found(), (Some(1), 4));
}

#[test]
fn many_entries_and_long_ones() {
    let script =
        format!("label: gpt\ntable-length: 512\n300 : start=4MiB, size=8MiB, type={ROOT}\n");
    let disk = Disk::new(16).sfdisk(&[], &script).ext4(4);
    assert_eq!(disk.found(), (Some(300), 4));
    let sgdisk = [
        "--resize-table=256",
        "--new=200:4M:+8M",
        "--typecode=200:8304",
    ];
    let disk = Disk::new(16).sgdisk(&sgdisk).ext4(4);
    assert_eq!(disk.found(), (Some(200), 4));
    // entries of 256 bytes, which no tool makes: every second one of the array that was made
    let script = format!("label: gpt\n3 : start=4MiB, size=8MiB, type={ROOT}\n");
    let disk = Disk::new(16).sfdisk(&[], &script).ext4(4);
    let mut bytes = fs::read(disk.path()).unwrap();
    let last = bytes.len() - 512;
    for at in [512, last] {
        bytes[at + 80..at + 88].copy_from_slice(&[64, 0, 0, 0, 0, 1, 0, 0]);
        bytes[at + 16..at + 20].fill(0);
        let sum = crc32fast::hash(&bytes[at..at + 92]);
        bytes[at + 16..at + 20].copy_from_slice(&sum.to_le_bytes());
    }
    fs::write(disk.path(), &bytes).unwrap();
    assert_eq!(disk.found(), (Some(2), 4));
    assert_eq!(disk.table().unwrap().scheme, Scheme::Gpt);
}

#[test]
fn partitions_over_each_other_are_said() {
    // No tool makes them: the second entry is bent over the first, and the sums are made right by sgdisk's own means.
    let script = format!(
        "label: gpt\nstart=4MiB, size=4MiB, type={ROOT}\nstart=9MiB, size=2MiB, type=swap\n"
    );
    let disk = Disk::new(16).sfdisk(&[], &script).ext4(4);
    let mut bytes = fs::read(disk.path()).unwrap();
    let last = bytes.len() - 512;
    for at in [512, last] {
        let entries =
            u64::from_le_bytes(bytes[at + 72..at + 80].try_into().unwrap()) as usize * 512;
        bytes[entries + 128 + 32..entries + 128 + 40]
            .copy_from_slice(&(5 * 2048_u64).to_le_bytes());
        let sum = crc32fast::hash(&bytes[entries..entries + 128 * 128]);
        bytes[at + 88..at + 92].copy_from_slice(&sum.to_le_bytes());
        bytes[at + 16..at + 20].fill(0);
        let sum = crc32fast::hash(&bytes[at..at + 92]);
        bytes[at + 16..at + 20].copy_from_slice(&sum.to_le_bytes());
    }
    fs::write(disk.path(), &bytes).unwrap();
    let warnings = disk.root().unwrap().warnings;
    assert!(
        matches!(&warnings[..], [DiskWarning::Overlap { .. }]),
        "{warnings:?}"
    );
    assert!(warnings[0].to_string().contains("2 (swap"), "{warnings:?}");
}

#[test]
fn a_partition_that_ends_beyond_the_disk() {
    for script in [
        format!("label: gpt\nstart=4MiB, size=10MiB, type={ROOT}\n"),
        "label: dos\nstart=4MiB, size=10MiB, type=83, bootable\n".to_owned(),
    ] {
        let disk = Disk::new(16).sfdisk(&[], &script).ext4(4);
        let file = File::options().write(true).open(disk.path()).unwrap();
        file.set_len(9 * MIB).unwrap();
        let error = disk.root().unwrap_err();
        assert!(
            matches!(error, DiskError::Beyond { end, disk, .. } if (end, disk) == (14 * MIB, 9 * MIB)),
            "{error}"
        );
    }
}

#[test]
fn the_newest_of_equal_labels_is_the_first() {
    let script = format!(
        "label: gpt\nstart=1MiB, size=2MiB, type={ROOT}, name=os_1.9\nstart=4MiB, size=2MiB, type={ROOT}, name=os_1.10\n\
         start=7MiB, size=2MiB, type={ROOT}, name=os_1.10\nstart=10MiB, size=2MiB, type={ROOT}, name=_empty\n"
    );
    let disk = Disk::new(16).sfdisk(&[], &script).ext4(4).ext4(7);
    assert_eq!(disk.found(), (Some(2), 4));
    // attribute 63: not to be found
    let disk = disk.sgdisk(&["--attributes=2:set:63"]);
    assert_eq!(disk.found(), (Some(3), 7));
}

#[test]
fn encrypted_and_protected_roots_are_named() {
    for (magic, word) in [
        (&b"LUKS\xba\xbe\0\x02"[..], "LUKS"),
        (b"verity\0\0", "verity"),
    ] {
        let script = format!("label: gpt\nstart=4MiB, size=8MiB, type={ROOT}\n");
        let error = Disk::new(16)
            .sfdisk(&[], &script)
            .put(4 * MIB, magic)
            .root()
            .unwrap_err();
        assert!(matches!(error, DiskError::Unsupported(_)), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn bare_file_systems_of_the_usual_tools() {
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("file"), "text").unwrap();
    let tree = tree.path().to_str().unwrap();
    let table: [(FileSystem, u64, &str, &[&str]); 5] = [
        (FileSystem::Ext4, 16, "mkfs.ext4", &["-q", "-F", "DISK"]),
        (FileSystem::Xfs, 300, "mkfs.xfs", &["-q", "-f", "DISK"]),
        (FileSystem::Btrfs, 128, "mkfs.btrfs", &["-q", "-f", "DISK"]),
        (
            FileSystem::Squashfs,
            0,
            "mksquashfs",
            &[tree, "DISK", "-noappend", "-quiet", "-no-progress"],
        ),
        (
            FileSystem::Erofs,
            0,
            "mkfs.erofs",
            &["--quiet", "DISK", tree],
        ),
    ];
    for (filesystem, mebibytes, program, arguments) in table {
        let disk = Disk::new(mebibytes);
        let path = disk.path();
        let arguments: Vec<&str> = arguments
            .iter()
            .map(|word| {
                if *word == "DISK" {
                    path.to_str().unwrap()
                } else {
                    word
                }
            })
            .collect();
        run(program, &arguments, "");
        let root = disk.root().unwrap();
        let length = fs::metadata(&path).unwrap().len();
        assert_eq!((root.filesystem, root.number), (filesystem, None));
        assert_eq!((root.offset, root.length), (0, length), "{program}");
        assert_eq!(disk.table().unwrap().scheme, Scheme::Bare);
    }
}
