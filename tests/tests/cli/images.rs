//! Images as a person handles them: inspected, checked, cleared away, converted, shown to machinectl.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use nspawn_tests::cli::{Cli, Invocation};
use nspawn_tests::scratch::names;
use nspawn_tests::{args, scratch};

/// A bare ext4 as far as anybody looks: 8 MiB with data in some of it.
fn disk() -> Vec<u8> {
    let mut bytes = vec![0; 8 << 20];
    bytes[1080..1082].copy_from_slice(&[0x53, 0xef]);
    bytes[5 << 20..6 << 20].fill(7);
    bytes
}

fn qcow2(folder: &Path) -> PathBuf {
    let (raw, packed) = (folder.join("web.raw"), folder.join("web.qcow2"));
    fs::write(&raw, disk()).unwrap();
    let convert =
        Invocation::new("qemu-img").args(args!["convert", "-c", "-O", "qcow2", &raw, &packed]);
    convert.run().expect_code(0);
    fs::remove_file(raw).unwrap();
    packed
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_damaged_image_is_told_and_replaced() {
    let cli = Cli::new();
    let folder = scratch::on_disk();
    let image = qcow2(folder.path());
    let pull = cli.run(args!["image", "pull", &image]);
    pull.expect_code(0);
    let blob = pull.stdout.trim();
    let sound = cli.run(["image", "verify", "web"]);
    sound.expect_code(0);
    assert_eq!(sound.stdout, "web: ok\n");

    // the owner of a read-only file may open it for writing as root alone
    let mut permissions = fs::metadata(blob).unwrap().permissions();
    #[expect(
        clippy::permissions_set_readonly_false,
        reason = "of a test's own file"
    )]
    permissions.set_readonly(false);
    fs::set_permissions(blob, permissions).unwrap();
    let file = fs::File::options().write(true).open(blob).unwrap();
    file.write_all_at(&[6], 5 << 20).unwrap();
    let damaged = cli.run(["image", "verify", "web", "none"]);
    damaged
        .expect_code(1)
        .expect_stdout("web: damaged: bytes 4194304 to 6291456 differ\n")
        .expect_stdout("none: error: no image \"none\"")
        .expect_stderr("2 of 2 images")
        .expect_stderr("hint: remove it, and pull it again: nspawn-run image remove web");
    let rows = json(&cli.run(["image", "verify", "--format", "json"]).stdout);
    assert_eq!(rows[0]["state"], "damaged");

    cli.run(["image", "remove", "web"]).expect_code(0);
    cli.run(args!["image", "pull", &image]).expect_code(0);
    cli.run(["image", "verify"]).expect_code(0);
    cli.run(["image", "verify"])
        .expect_code(0)
        .expect_stdout("web: ok");
}

#[test]
fn pruning_says_what_goes_and_what_could() {
    let cli = Cli::new();
    let folder = scratch::on_disk();
    let image = qcow2(folder.path());
    let pull = cli.run(args!["image", "pull", &image]);
    pull.expect_code(0);
    let idle = cli.run(["image", "prune"]);
    idle.expect_code(0)
        .expect_stdout("nothing to remove\n")
        .expect_stdout("could go with --keep, --older-than or --max-size:\n  web (");
    // what was pulled just now is about to be started
    cli.run(["image", "prune", "--keep", "0"])
        .expect_code(0)
        .expect_stdout("nothing to remove");

    // the changes of a kept machine are of no use without its base
    let machine = cli.root().join("machines/shop");
    fs::create_dir_all(&machine).unwrap();
    let kept = serde_json::json!({ "base": pull.stdout.trim(), "user_range": null });
    fs::write(machine.join("kept.json"), kept.to_string()).unwrap();
    cli.run(["image", "prune", "--keep", "0", "--recent"])
        .expect_code(0)
        .expect_stdout("nothing to remove");
    cli.run(["image", "remove", "web"])
        .expect_code(1)
        .expect_stderr("image web is in use by machine shop")
        .expect_stderr("hint: stop it");
    fs::remove_dir_all(&machine).unwrap();

    let asked = ["image", "prune", "--max-size", "0", "--recent"];
    cli.run(asked.iter().chain(&["--dry-run"]))
        .expect_code(0)
        .expect_stdout("would remove image web (")
        .expect_stdout("would free ");
    let report = json(&cli.run(asked.iter().chain(&["--format", "json"])).stdout);
    assert_eq!(report["removed"][0]["name"], "web");
    assert_eq!(report["removed"][0]["kind"], "image");
    assert!(report["freed"].as_u64().unwrap() >= 1 << 20, "{report}");
    assert!(!Path::new(pull.stdout.trim()).exists());
    for (option, value) in [
        ("--older-than", "30"),
        ("--max-size", "3x"),
        ("--keep", "many"),
    ] {
        cli.run(["image", "prune", option, value])
            .expect_code(2)
            .expect_stderr(option);
    }
}

#[test]
fn a_file_is_converted_without_a_store() {
    let cli = Cli::new();
    let folder = scratch::on_disk();
    let image = qcow2(folder.path());
    let raw = folder.path().join("out.raw");
    let convert = |options: &[&str]| {
        let mut arguments = args!["image", "convert", &image, &raw].to_vec();
        arguments.extend(options.iter().map(Into::into));
        cli.run(arguments)
    };
    convert(&[]).expect_code(0).expect_stderr("converting ");
    assert!(fs::read(&raw).unwrap() == disk());
    assert!(!cli.root().join("images").exists());
    convert(&[])
        .expect_code(1)
        .expect_stderr("out.raw exists already")
        .expect_stderr("hint: ")
        .expect_stderr("--force");
    convert(&["--force", "-q"]).expect_code(0);
    cli.run(args!["image", "convert", &raw, &raw, "--force"])
        .expect_code(1)
        .expect_stderr("it is the image itself");
    cli.run(args!["image", "convert", &image, "/dev/null", "--force"])
        .expect_code(1)
        .expect_stderr("it is a device");
    convert(&["--force", "--snapshot", "none"])
        .expect_code(1)
        .expect_stderr("none");
    assert_eq!(names(folder.path()), ["out.raw", "web.qcow2"]);
}

#[test]
fn an_interrupted_conversion_leaves_nothing() {
    let cli = Cli::new();
    let folder = scratch::on_disk();
    // much to unpack, and little to read: zeros inside gzip behind a file system's magic bytes
    let source = folder.path().join("long.gz");
    let script = "{ head -c 1080 /dev/zero; printf '\\123\\357'; head -c 3000000000 /dev/zero; } | gzip -1 > \"$0\"";
    Invocation::new("sh")
        .args(args!["-c", script, &source])
        .run()
        .expect_code(0);
    let target = folder.path().join("long.raw");
    let running = cli
        .command(args!["image", "convert", &source, &target])
        .spawn();
    running.wait_for_stderr("unpacking ");
    running.signal(libc::SIGINT);
    running
        .finish()
        .expect_code(130)
        .expect_stderr("interrupted");
    assert_eq!(names(folder.path()), ["long.gz"]);
}

#[test]
fn an_image_is_looked_into() {
    let cli = Cli::new();
    let folder = scratch::on_disk();
    let image = qcow2(folder.path());
    let tree = folder.path().join("tree");
    for (path, content) in [
        (
            "usr/lib/os-release",
            "ID=debian\nPRETTY_NAME=\"Debian 12\"\n",
        ),
        ("usr/lib/systemd/libsystemd-shared-252.so", ""),
        ("usr/lib/systemd/systemd", "no program"),
        ("etc/fstab", "LABEL=boot /boot ext4\n"),
    ] {
        fs::create_dir_all(tree.join(path).parent().unwrap()).unwrap();
        fs::write(tree.join(path), content).unwrap();
    }
    cli.run(args!["image", "inspect", &tree])
        .expect_code(0)
        .expect_stdout("format: tree\n")
        .expect_stdout("system: Debian 12\n")
        .expect_stdout("init: systemd 252\n")
        .expect_stdout("note: fstab's /boot will not be mounted");
    let found = json(
        &cli.run(args!["image", "inspect", &tree, "--format", "json"])
            .stdout,
    );
    assert_eq!(found["os"]["systemd"], 252);
    assert_eq!(found["os"]["machine_id"], "absent");
    assert_eq!(found["problems"][0]["fatal"], false);
    // the disk is no file system but for its magic bytes: that is said, and all else stands
    for reference in [image.to_str().unwrap(), "web"] {
        if reference == "web" {
            cli.run(args!["image", "inspect", "web"])
                .expect_code(1)
                .expect_stderr("no image \"web\"");
            cli.run(args!["image", "pull", &image]).expect_code(0);
        }
        cli.run(["image", "inspect", reference])
            .expect_code(0)
            .expect_stdout("8.3 MB as a disk")
            .expect_stdout("root: the whole disk, ext4\n")
            .expect_stdout("unread: its root file system cannot be read: ");
    }
    cli.run(["image", "inspect", "http://127.0.0.1:1/x.raw"])
        .expect_code(1)
        .expect_stderr("is not in the store")
        .expect_stderr("hint: pull it first");
}

#[test]
fn an_image_is_published_for_machinectl() {
    let cli = Cli::new();
    let folder = scratch::on_disk();
    let image = qcow2(folder.path());
    let machines = folder.path().join("machines");
    let publish = |options: &[&str]| {
        let mut arguments = args!["image", "pull", &image, "--machines-dir", &machines].to_vec();
        arguments.extend(options.iter().map(Into::into));
        cli.run(arguments)
    };
    let published = publish(&["--publish", "shop"]);
    published.expect_code(0);
    let path = machines.join("shop.raw");
    assert_eq!(published.stdout, format!("{}\n", path.display()));
    assert!(fs::read(&path).unwrap() == disk());
    assert_eq!(names(&machines), ["shop.raw"]);
    publish(&["--publish", "shop"])
        .expect_code(1)
        .expect_stderr("shop.raw exists already")
        .expect_stderr("--force");
    publish(&["--publish", "shop", "--force"]).expect_code(0);
    assert_eq!(names(&machines), ["shop.raw"]);
    publish(&["--publish", "under_score"])
        .expect_code(2)
        .expect_stderr("'_'");
    publish(&["--force"])
        .expect_code(2)
        .expect_stderr("--publish");
    cli.run(["image", "pull", "host", "--publish", "x"])
        .expect_code(2)
        .expect_stderr("is not published");
}
