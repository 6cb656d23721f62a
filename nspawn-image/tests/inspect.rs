//! Looking into images: what is said of good ones, and that no bad one brings it down.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nspawn_image::{
    ImageError, ImageFormat, InspectOptions, Inspection, MachineId, Scheme, Severity,
};

/// Where the root partition of [`Fixture::disk`] starts, in bytes.
const ROOT: u64 = 4 << 20;

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
}

struct Fixture(tempfile::TempDir);

impl Fixture {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn put(&self, name: &str, content: &[u8]) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), content).unwrap();
    }

    /// A tree with the programs of another architecture.
    fn tree(&self) -> PathBuf {
        let mut elf = [0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = if cfg!(target_arch = "s390x") { 62 } else { 22 };
        self.put("tree/usr/lib/systemd/systemd", &elf);
        self.put("tree/usr/lib/systemd/libsystemd-shared-241.so", b"");
        self.put(
            "tree/usr/lib/os-release",
            b"ID=debian\nPRETTY_NAME=\"Debian 10\"\nVERSION_ID=10\n",
        );
        self.put("tree/etc/machine-id", b"");
        self.put("tree/etc/fstab", b"UUID=1 / ext4\nLABEL=boot /boot ext4\n");
        let _ =
            std::os::unix::fs::symlink("../usr/lib/os-release", self.path("tree/etc/os-release"));
        let _ = std::os::unix::fs::symlink("usr/bin", self.path("tree/bin"));
        self.path("tree")
    }

    /// A GPT disk with the tree in an ext4.
    fn disk(&self) -> PathBuf {
        let tree = self.tree();
        let file = File::create(self.path("disk.raw")).unwrap();
        file.set_len(40 << 20).unwrap();
        let script = "label: gpt\nstart=8192, size=65536, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name=root\n";
        fs::write(self.path("script"), script).unwrap();
        let table = format!(
            "sfdisk -q {} < {}",
            self.text("disk.raw"),
            self.text("script")
        );
        run("sh", &["-c", &table]);
        let offset = format!("offset={ROOT}");
        let disk = self.text("disk.raw");
        run(
            "mkfs.ext4",
            &[
                "-q",
                "-F",
                "-d",
                tree.to_str().unwrap(),
                "-E",
                &offset,
                &disk,
                "32M",
            ],
        );
        self.path("disk.raw")
    }
}

fn inspect(path: &Path) -> Inspection {
    Inspection::of(path, &InspectOptions::default()).unwrap()
}

/// What all forms of the tree say.
fn is_the_tree(found: &Inspection) {
    let os = found
        .os
        .as_ref()
        .unwrap_or_else(|| panic!("{:?}", found.unread));
    assert_eq!(os.name.as_deref(), Some("Debian 10"));
    assert_eq!(
        (os.id.as_deref(), os.version.as_deref()),
        (Some("debian"), Some("10"))
    );
    assert_eq!(os.systemd, Some(241));
    assert_eq!(os.machine_id, MachineId::Empty);
    assert!(os.merged_usr);
    assert_eq!(os.fstab.len(), 2);
    let said: Vec<_> = found
        .problems
        .iter()
        .map(|p| (p.severity, p.what.as_str()))
        .collect();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said[0].0 == Severity::Fatal && said[0].1.contains("built for"),
        "{said:?}"
    );
    assert!(
        said[1].0 == Severity::Note && said[1].1.contains("/boot"),
        "{said:?}"
    );
}

#[test]
fn a_tree_a_disk_and_a_qcow2_say_the_same() {
    let fixture = Fixture::new();
    let disk = fixture.disk();
    let tree = inspect(&fixture.path("tree"));
    assert_eq!(tree.format, ImageFormat::Tree);
    is_the_tree(&tree);

    let raw = inspect(&disk);
    is_the_tree(&raw);
    assert_eq!(raw.virtual_size, Some(40 << 20));
    assert_eq!(raw.table.as_ref().unwrap().scheme, Scheme::Gpt);
    assert_eq!(raw.partitions.len(), 1);
    assert_eq!(raw.partitions[0].content.as_deref(), Some("ext4"));
    assert_eq!(raw.partitions[0].partition.label, "root");
    assert_eq!(raw.root.as_ref().unwrap().offset, ROOT);

    let packed = fixture.text("disk.qcow2");
    run(
        "qemu-img",
        &[
            "convert",
            "-c",
            "-O",
            "qcow2",
            disk.to_str().unwrap(),
            &packed,
        ],
    );
    run("qemu-img", &["snapshot", "-c", "first", &packed]);
    let found = inspect(&fixture.path("disk.qcow2"));
    is_the_tree(&found);
    let ImageFormat::Qcow2(header, snapshots) = &found.format else {
        panic!("{:?}", found.format);
    };
    assert_eq!((header.version, header.cluster_size()), (3, 64 << 10));
    assert_eq!(snapshots[0].name, "first");

    let top = fixture.text("top.qcow2");
    run(
        "qemu-img",
        &[
            "create", "-q", "-f", "qcow2", "-b", &packed, "-F", "qcow2", &top,
        ],
    );
    let closed = inspect(&fixture.path("top.qcow2"));
    assert!(closed.os.is_none() && closed.unread.unwrap().contains("--allow-backing"));
    let mut options = InspectOptions::default();
    options.allow_backing = Some(fixture.0.path().to_owned());
    let open = Inspection::of(&fixture.path("top.qcow2"), &options).unwrap();
    is_the_tree(&open);
}

#[test]
fn what_is_not_read_is_said() {
    let fixture = Fixture::new();
    let mut bytes = vec![0; 1 << 20];
    bytes[..4].copy_from_slice(b"XFSB");
    fixture.put("xfs", &bytes);
    let found = inspect(&fixture.path("xfs"));
    assert!(found.os.is_none() && found.unread.unwrap().contains("xfs"));

    bytes[..6].copy_from_slice(b"LUKS\xba\xbe");
    fixture.put("luks", &bytes);
    let found = inspect(&fixture.path("luks"));
    assert!(
        found.problems[0].what.contains("LUKS"),
        "{:?}",
        found.problems
    );

    fixture.put("packed", b"\x1f\x8b\x08\x00");
    let found = inspect(&fixture.path("packed"));
    assert_eq!(found.format, ImageFormat::Packed("gzip"));
    assert!(found.unread.is_some());

    fixture.put("text", b"hello\n");
    let of = |name: &str| Inspection::of(&fixture.path(name), &InspectOptions::default());
    assert!(matches!(of("text"), Err(ImageError::NoImage { .. })));
    assert!(matches!(of("none"), Err(ImageError::Missing(_))));
    fs::create_dir(fixture.path("empty")).unwrap();
    let found = of("empty").unwrap();
    assert_eq!(found.problems.len(), 2, "{:?}", found.problems);
}

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

#[test]
fn no_damage_to_a_file_system_brings_it_down() {
    let fixture = Fixture::new();
    let disk = fixture.disk();
    let whole = fs::read(&disk).unwrap();
    // Without checksums the damage gets past the first look at each block.
    for features in ["none", "^metadata_csum,^metadata_csum_seed"] {
        if features != "none" {
            let offset = format!("offset={ROOT}");
            let tree = fixture.text("tree");
            let disk = disk.to_str().unwrap();
            run(
                "mkfs.ext4",
                &[
                    "-q", "-F", "-O", features, "-d", &tree, "-E", &offset, disk, "32M",
                ],
            );
            is_the_tree(&inspect(disk.as_ref()));
        }
        let whole = fs::read(&disk).unwrap();
        // Blocks that hold anything: the damage goes where it is read.
        let blocks: Vec<u64> = (ROOT / 1024..(36 << 10))
            .filter(|block| {
                let at = (block * 1024) as usize;
                whole[at..at + 1024].iter().any(|byte| *byte != 0)
            })
            .collect();
        let file = File::options().write(true).open(&disk).unwrap();
        let mut numbers = Numbers(7);
        let mut read = 0;
        for round in 0..1500 {
            let mut changed = Vec::new();
            for _ in 0..1 + round % 8 {
                let block = blocks[numbers.next(blocks.len() as u64) as usize];
                let at = block * 1024 + numbers.next(1024);
                let byte = [0, 1, 0x7f, 0xff, numbers.next(256) as u8][numbers.next(5) as usize];
                file.write_all_at(&[byte], at).unwrap();
                changed.push(at);
            }
            let found = inspect(&disk);
            read += u32::from(found.os.is_some());
            assert!(found.os.is_some() || found.unread.is_some() || !found.problems.is_empty());
            for at in changed {
                file.write_all_at(&[whole[at as usize]], at).unwrap();
            }
        }
        assert!(read > 100, "{read} were read at all");
    }
    // A superblock that promises the most it can.
    fs::write(&disk, &whole).unwrap();
    let file = File::options().write(true).open(&disk).unwrap();
    for (at, value) in [(4, u32::MAX), (0x150, 0x100), (32, 1), (24, 40), (40, 1)] {
        file.write_all_at(&value.to_le_bytes(), ROOT + 1024 + at)
            .unwrap();
        let found = inspect(&disk);
        assert!(found.os.is_none() && found.unread.is_some(), "{at}");
        fs::write(&disk, &whole).unwrap();
    }
}

#[test]
fn a_link_of_a_terabyte_takes_no_memory() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    let long = format!("{}../usr/lib/os-release", "./".repeat(40));
    fs::remove_file(tree.join("etc/os-release")).unwrap();
    std::os::unix::fs::symlink(long, tree.join("etc/os-release")).unwrap();
    let disk = fixture.text("bare");
    File::create(&disk).unwrap().set_len(8 << 20).unwrap();
    run(
        "mkfs.ext4",
        &["-q", "-F", "-d", tree.to_str().unwrap(), &disk],
    );
    is_the_tree(&inspect(disk.as_ref()));
    let claim = format!("set_inode_field /etc/os-release size {}", 1_u64 << 40);
    run("debugfs", &["-w", "-R", &claim, &disk]);
    let found = inspect(disk.as_ref());
    assert!(found.os.is_none() && found.unread.is_some());
}

/// A tree in a file system of every kind, in a partition, as the usual tools make it.
fn made_by(fixture: &Fixture, filesystem: &str) -> PathBuf {
    let tree = fixture.tree();
    let tree = tree.to_str().unwrap();
    let (part, disk) = (fixture.text("part"), fixture.text("disk"));
    let size = |mebibytes: u64| {
        let file = File::create(fixture.path("part")).unwrap();
        file.set_len(mebibytes << 20).unwrap();
    };
    match filesystem {
        "xfs" => {
            size(300);
            run("mkfs.xfs", &["-q", "-f", &part]);
            fill(&fixture.path("part"), "xfs", tree, "");
        }
        "btrfs" => {
            size(128);
            run("mkfs.btrfs", &["-q", "-f", "--rootdir", tree, &part]);
        }
        "btrfs subvolume" => {
            size(128);
            run("mkfs.btrfs", &["-q", "-f", &part]);
            fill(&fixture.path("part"), "btrfs", tree, "@rootfs");
        }
        "squashfs" => run(
            "mksquashfs",
            &[tree, &part, "-noappend", "-quiet", "-no-progress"],
        ),
        "erofs" => run("mkfs.erofs", &["--quiet", &part, tree]),
        other => panic!("{other}"),
    }
    // In a partition: the place in the disk counts.
    let content = fs::read(&part).unwrap();
    let sectors = content.len().div_ceil(512);
    let file = File::create(&disk).unwrap();
    file.set_len(ROOT + content.len() as u64 + (2 << 20))
        .unwrap();
    let script = format!(
        "label: gpt\nstart=8192, size={sectors}, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n"
    );
    fs::write(fixture.path("script"), script).unwrap();
    let table = format!("sfdisk -q {disk} < {}", fixture.text("script"));
    run("sh", &["-c", &table]);
    file.write_all_at(&content, ROOT).unwrap();
    fixture.path("disk")
}

/// Copies a tree into a new file system, in a subvolume where one is named; the mount is in a namespace of its own.
fn fill(part: &Path, filesystem: &str, tree: &str, subvolume: &str) {
    let script = r#"set -e
        mount -t "$2" -o loop "$1" /mnt
        if [ -n "$4" ]; then btrfs -q subvolume create "/mnt/$4" || btrfs subvolume create "/mnt/$4"; fi
        cp -a "$3/." "/mnt/$4"
        umount /mnt"#;
    let part = part.to_str().unwrap();
    let arguments = [
        "--mount", "sh", "-c", script, "sh", part, filesystem, tree, subvolume,
    ];
    run("unshare", &arguments);
}

#[test]
#[ignore = "needs root"]
fn root_other_file_systems_are_read_by_a_mount_that_nobody_sees() {
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let loops = || {
        let backing =
            |entry: fs::DirEntry| fs::read_to_string(entry.path().join("loop/backing_file"));
        let found = fs::read_dir("/sys/block")
            .unwrap()
            .flatten()
            .filter_map(|e| backing(e).ok());
        found.collect::<String>()
    };
    let before = mounts();
    for filesystem in ["xfs", "btrfs", "btrfs subvolume", "squashfs", "erofs"] {
        let fixture = Fixture::new();
        let disk = made_by(&fixture, filesystem);
        let mut options = InspectOptions::default();
        let found = Inspection::of(&disk, &options).unwrap();
        let why = found.unread.unwrap();
        assert!(
            found.os.is_none() && why.contains("not allowed"),
            "{filesystem}: {why}"
        );
        let whole = fs::read(&disk).unwrap();
        options.mount = true;
        let found = Inspection::of(&disk, &options).unwrap();
        is_the_tree(&found);
        let name = filesystem.split(' ').next().unwrap();
        assert_eq!(found.root.unwrap().filesystem.to_string(), name);
        assert!(
            fs::read(&disk).unwrap() == whole,
            "{filesystem} was written to"
        );
        assert_eq!(mounts(), before, "{filesystem}");
        // The kernel lets go of the device on its own time.
        let deadline = Instant::now() + Duration::from_secs(10);
        while loops().contains(disk.to_str().unwrap()) {
            assert!(
                Instant::now() < deadline,
                "{filesystem} holds a loop device"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        // In a qcow2, whose bytes are not the disk's.
        if filesystem == "erofs" {
            let qcow2 = fixture.text("qcow2");
            run(
                "qemu-img",
                &["convert", "-O", "qcow2", disk.to_str().unwrap(), &qcow2],
            );
            let found = Inspection::of(qcow2.as_ref(), &options).unwrap();
            assert!(found.unread.unwrap().contains("raw disk"));
        }
        // What the kernel refuses is said.
        let file = File::options().write(true).open(&disk).unwrap();
        let magic = if name == "btrfs" { 0x10040 } else { 0 };
        file.write_all_at(
            &vec![0xa5; 2048],
            ROOT + magic + 64 + if name == "erofs" { 1024 } else { 0 },
        )
        .unwrap();
        let found = Inspection::of(&disk, &options).unwrap();
        let why = found.unread.unwrap();
        assert!(
            found.os.is_none() && why.contains("cannot be read: "),
            "{filesystem}: {why}"
        );
    }
}
