//! Every file system a root can be in, and the subvolumes of a btrfs.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use nspawn_tests::cli::Invocation;
use nspawn_tests::fixture;
use nspawn_tests::scene::Scene;

const REPORT: &str = "echo $(. /etc/os-release; echo $ID) $(stat -c %u:%a /usr/bin) && touch /var/lib/mark /etc/mark";

#[test]
#[ignore = "needs root"]
fn root_every_file_system_boots() {
    let scene = Scene::new();
    let unit = scene.script("report.service", REPORT);
    for name in ["ext4", "xfs", "erofs", "squashfs"] {
        let image = fixture::in_filesystem(name);
        let finished = scene.unit(&unit, &["--image"]).arg(&image).run();
        finished.expect_code(0);
        assert_eq!(
            finished.stdout,
            "debian 0:755\n",
            "{name}: {}",
            finished.transcript()
        );
        scene.assert_clean();
    }
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_every_file_system_is_looked_into() {
    let scene = Scene::new();
    for name in ["ext4", "xfs", "btrfs", "erofs", "squashfs"] {
        let image = fixture::in_filesystem(name);
        let image = image.to_str().unwrap();
        let finished = scene.run(["image", "inspect", image, "--format", "json"]);
        finished.expect_code(0);
        let found: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
        assert_eq!(found["root"]["file_system"], name);
        assert_eq!(found["os"]["id"], "debian", "{}", finished.transcript());
        assert_eq!(found["os"]["systemd"], 252, "{}", finished.transcript());
        assert_eq!(found["unread"], serde_json::Value::Null);
        scene.assert_clean();
        let finished = scene.run(["image", "inspect", image, "--no-mount"]);
        finished.expect_code(0);
        if name != "ext4" {
            finished
                .expect_stdout("unread: the files in its ")
                .expect_stdout("not allowed");
        }
    }
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_a_disk_whose_first_partition_table_is_damaged_boots_with_a_note() {
    let scene = Scene::new();
    let unit = scene.script("report.service", REPORT);
    let image = scene.dir().join("damaged.raw");
    Invocation::new("cp")
        .args(["--sparse=always", "--reflink=auto"])
        .arg(fixture::Debian::Raw.path())
        .arg(&image)
        .run()
        .expect_code(0);
    let file = std::fs::File::options().write(true).open(&image).unwrap();
    file.write_all_at(&[0xff; 8], 512 + 56).unwrap();
    let note = "the partition table at the start of the disk is damaged (the GPT header's checksum is wrong)";
    scene
        .run(["image", "inspect", image.to_str().unwrap()])
        .expect_code(0)
        .expect_stdout("table: GPT, from the copy at the end\n")
        .expect_stdout(&format!("note: {note}"));
    let finished = scene.unit(&unit, &["--image"]).arg(&image).run();
    finished.expect_code(0).expect_stderr(note);
    assert_eq!(
        finished.stdout,
        "debian 0:755\n",
        "{}",
        finished.transcript()
    );
    scene.end();
}

/// What is mounted where, who owns it, and that it can be written to.
const SUBVOLUMES: &str = "set -e; stat -c '%u:%a %n' / /home /home/user /var /var/lib/dpkg/status; \
                          touch /home/user/mark /var/mark /mark; ls /home/user";

#[test]
#[ignore = "needs root"]
fn root_a_btrfs_with_subvolumes_boots_with_all_of_them() {
    let scene = Scene::new();
    let image = fixture::in_filesystem("btrfs");
    let unit = scene.script("fedora.service", SUBVOLUMES);
    for options in [&[][..], &["--private-users", "no"]] {
        let finished = scene.unit(&unit, options).arg("--image").arg(&image).run();
        finished.expect_code(0);
        let expected = "0:755 /\n0:755 /home\n1000:700 /home/user\n0:755 /var\n0:644 /var/lib/dpkg/status\nmark\n";
        assert_eq!(finished.stdout, expected, "{}", finished.transcript());
        scene.assert_clean();
    }
    // two at once, of one image
    let waits = scene.script("one.service", "exec sleep 600");
    for (name, unit) in [
        ("one", &waits),
        ("two", &scene.script("two.service", "exec sleep 600")),
    ] {
        let started = scene
            .unit(unit, &["--detach"])
            .arg("--image")
            .arg(&image)
            .run();
        started.expect_code(0);
        let written = scene.run(["exec", &scene.name(name), "--", "touch", "/var/mark"]);
        written.expect_code(0);
    }
    for name in ["one", "two"] {
        scene.run(["stop", &scene.name(name)]).expect_code(0);
        scene.run(["remove", &scene.name(name)]).expect_code(0);
    }
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_changes_to_a_subvolume_are_kept_and_thrown_away_like_the_others() {
    let scene = Scene::new();
    let image = fixture::in_filesystem("btrfs");
    let count = "for place in /etc /var/lib /home/user; do echo x >> $place/count; wc -l < $place/count; done";
    let unit = scene.script("kept.service", count);
    for expected in ["1\n1\n1\n", "2\n2\n2\n"] {
        let finished = scene
            .unit(&unit, &["--persist"])
            .arg("--image")
            .arg(&image)
            .run();
        finished.expect_code(0);
        assert_eq!(finished.stdout, expected, "{}", finished.transcript());
    }
    scene.run(["remove", &scene.name("kept")]).expect_code(0);
    for _ in 0..2 {
        let finished = scene.unit(&unit, &[]).arg("--image").arg(&image).run();
        assert_eq!(finished.stdout, "1\n1\n1\n", "{}", finished.transcript());
    }
    scene.end();
}

/// Changes a copy of the btrfs image by a shell script that has it mounted at `$at`.
fn changed(scene: &Scene, name: &str, script: &str) -> std::path::PathBuf {
    let copy = scene.dir().join(name);
    let image = fixture::in_filesystem("btrfs");
    let cp = Invocation::new("cp").args(["--sparse=always", "--reflink=auto"]);
    cp.arg(&image).arg(&copy).run().expect_code(0);
    let at = scene.dir().join("mounted");
    std::fs::create_dir_all(&at).unwrap();
    let whole = format!(
        "mount -o loop,offset=$((24 << 20)) \"$1\" \"$2\"; cd \"$2\"; {script}; cd /; umount \"$2\""
    );
    let unshare =
        Invocation::new("unshare").args(["--mount", "--propagation=private", "sh", "-ec"]);
    let run = |path: &Path| unshare.arg(&whole).arg("sh").arg(path).arg(&at).run();
    run(&copy).expect_code(0);
    copy
}

#[test]
#[ignore = "needs root"]
fn root_a_root_subvolume_is_found_by_its_name_or_by_being_the_default() {
    let scene = Scene::new();
    let unit = scene.script("found.service", "cat /which");
    let snapshot = "mkdir -p root/x; echo snapshot > root/which; mkdir s; btrfs -q subvolume snapshot root s/1; \
                    echo root > root/which; btrfs subvolume set-default s/1";
    let other =
        "mkdir o; btrfs -q subvolume create o/default; btrfs subvolume set-default o/default";
    for (expected, script) in [
        ("ubuntu", "echo ubuntu > root/which; mv root @".to_owned()),
        (
            "debian",
            "echo debian > root/which; mv root @rootfs; rm root/etc/fstab 2>/dev/null || :"
                .to_owned(),
        ),
        ("snapshot", snapshot.to_owned()),
        ("below", format!("echo below > root/which; {other}")),
    ] {
        let image = changed(&scene, &format!("{expected}.raw"), &script);
        let finished = scene.unit(&unit, &["--image"]).arg(&image).run();
        finished.expect_code(0);
        assert_eq!(
            finished.stdout,
            format!("{expected}\n"),
            "{}",
            finished.transcript()
        );
        std::fs::remove_file(image).unwrap();
    }
    // neither a link to the host's root nor a plain folder is taken for one
    let image = changed(
        &scene,
        "none.raw",
        "mv root elsewhere; ln -s / root; mkdir -p @; cp -a elsewhere/etc @",
    );
    let finished = scene.unit(&unit, &["--image"]).arg(&image).run();
    finished
        .expect_code(125)
        .expect_stderr("holds no operating system");
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_an_fstab_leads_nowhere_but_into_the_machine() {
    let scene = Scene::new();
    let unit = scene.script(
        "found.service",
        "test ! -e /var/lib/dpkg && stat -c %F /home/user",
    );
    let host = scene.dir().join("host");
    std::fs::create_dir_all(&host).unwrap();
    // the place of /var is a link to a folder of the host: it is looked for in the machine, and is not there
    let script = format!("rmdir root/var; ln -s {} root/var", host.display());
    let image = changed(&scene, "link.raw", &script);
    let finished = scene.unit(&unit, &["--image"]).arg(&image).run();
    finished.expect_code(125).expect_stderr("root/var");
    assert_eq!(std::fs::read_dir(&host).unwrap().count(), 0);
    let image = changed(
        &scene,
        "gone.raw",
        "sed -i s/subvol=var/subvol=none/ root/etc/fstab",
    );
    let finished = scene.unit(&unit, &["--image"]).arg(&image).run();
    finished.expect_code(125).expect_stderr("with subvol=none");
    let image = changed(
        &scene,
        "may.raw",
        "sed -i s/subvol=var/nofail,subvol=none/ root/etc/fstab",
    );
    let finished = scene.unit(&unit, &["--image"]).arg(&image).run();
    finished.expect_code(0);
    assert_eq!(finished.stdout, "directory\n", "{}", finished.transcript());
    scene.end();
}
