//! Images that are none, servers that fail, and a disk that is full: one message each, and nothing left.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use nspawn_tests::cli::{Finished, Invocation};
use nspawn_tests::fixture::{Debian, ROOT_OFFSET};
use nspawn_tests::http::{HttpServer, Resource};
use nspawn_tests::scene::Scene;

/// One error, with a hint where `hint` says so; nothing on standard output.
#[track_caller]
fn assert_one_error(finished: &Finished, code: i32, texts: &[&str]) {
    finished.expect_code(code);
    assert_eq!(finished.stdout, "", "{}", finished.transcript());
    let errors = finished
        .stderr
        .lines()
        .filter(|line| line.starts_with("error: "))
        .count();
    assert_eq!(errors, 1, "{}", finished.transcript());
    for text in texts {
        finished.expect_stderr(text);
    }
    assert!(
        !finished.stderr.contains("panicked"),
        "{}",
        finished.transcript()
    );
}

/// Files of the store, but for its folders and locks.
fn stored(root: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for part in ["blobs", "refs", "partial"] {
        for entry in std::fs::read_dir(root.join("images").join(part))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.ends_with(".lock") {
                files.push(format!("{part}/{name}"));
            }
        }
    }
    files
}

#[test]
#[ignore = "needs root"]
fn root_files_that_are_no_image_are_refused() {
    let scene = Scene::new();
    let unit = scene.script("never.service", "echo never");
    scene.write("empty.raw", "");
    scene.write("text.raw", "this is a letter, not a disk\n".repeat(100));
    // a fixed sequence that looks like nothing
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let noise: Vec<u8> = (0..1 << 20)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect();
    scene.write("noise.raw", noise);
    scene.write("zeros.raw", vec![0; 1 << 20]);
    let qcow2 = std::fs::read(Debian::Qcow2.path()).unwrap();
    scene.write("short.qcow2", &qcow2[..qcow2.len() / 2]);
    scene.write("header.qcow2", &qcow2[..40]);
    let tar = std::fs::read(Debian::Tar.path()).unwrap();
    scene.write("short.tar", &tar[..tar.len() / 2]);
    std::fs::create_dir(scene.dir().join("folder")).unwrap();
    // the table of a real disk, and nothing in its partitions
    let hollow = File::create(scene.dir().join("hollow.raw")).unwrap();
    let mut table = vec![0; 1 << 20];
    let disk = File::open(Debian::Raw.path()).unwrap();
    disk.read_exact_at(&mut table, 0).unwrap();
    hollow.write_all_at(&table, 0).unwrap();
    hollow.set_len(disk.metadata().unwrap().len()).unwrap();
    // a file system in it, and no operating system in that
    let bare = scene.dir().join("bare.raw");
    std::fs::copy(scene.dir().join("hollow.raw"), &bare).unwrap();
    Invocation::new("mkfs.ext4")
        .args(["-q", "-F", "-E", &format!("offset={ROOT_OFFSET}")])
        .arg(&bare)
        .arg("64M")
        .run()
        .expect_code(0);

    for (image, texts) in [
        ("missing.raw", ["does not exist", "missing.raw"]),
        ("empty.raw", ["empty.raw", "empty"]),
        ("text.raw", ["text.raw", "text"]),
        ("noise.raw", ["noise.raw", "hint:"]),
        ("zeros.raw", ["zeros.raw", "hint:"]),
        ("hollow.raw", ["hollow.raw", "hint:"]),
        ("bare.raw", ["bare.raw", "no operating system"]),
        ("short.qcow2", ["short.qcow2", "cut short"]),
        ("header.qcow2", ["header.qcow2", "caused by"]),
        ("short.tar", ["short.tar", "cut short"]),
        ("folder", ["folder", "holds no OS tree"]),
    ] {
        let path = scene.dir().join(image);
        let finished = scene
            .unit(&unit, &["--network", "none", "--image"])
            .arg(&path)
            .run();
        assert_one_error(&finished, 125, &texts);
        assert_eq!(stored(scene.cli().root()), Vec::<String>::new(), "{image}");
        scene.assert_clean();
    }
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_a_wrong_checksum_keeps_nothing() {
    let scene = Scene::new();
    let unit = scene.script("never.service", "echo never");
    let server = HttpServer::new();
    server.put("/debian.qcow2", Resource::file(Debian::Qcow2.path()));
    let wrong = format!("sha256:{}", "0".repeat(64));
    let actual = format!("sha256:{}", Debian::Qcow2.sha256());
    let local = Debian::Qcow2.path().display().to_string();
    for image in [server.url("/debian.qcow2"), local] {
        let finished = scene.run_unit(&unit, &["--image", &image, "--checksum", &wrong]);
        assert_one_error(
            &finished,
            125,
            &["checksum mismatch", &wrong, &actual, "hint:"],
        );
        assert_eq!(stored(scene.cli().root()), Vec::<String>::new(), "{image}");
    }
    let host = scene.run_unit(&unit, &["--checksum", &wrong]);
    assert_one_error(&host, 125, &["image `host`", "--checksum"]);
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_servers_that_fail_are_named() {
    let scene = Scene::new();
    let unit = scene.script("never.service", "echo never");
    let server = HttpServer::new();
    let body = std::fs::read(Debian::Qcow2Zstd.path()).unwrap();
    server.put("/403", Resource::error(403));
    server.put("/500", Resource::error(500));
    server.put("/cut", Resource::bytes(body).cut_after(100_000));
    server.put(
        "/page",
        Resource::bytes("<html><body>sign in</body></html>\n"),
    );
    server.put("/loop", Resource::redirect("/loop"));
    let refused = {
        let gone = HttpServer::new();
        gone.url("/x.raw")
    };
    for (url, texts) in [
        (server.url("/404.raw"), ["HTTP 404", "404.raw"]),
        (server.url("/403"), ["HTTP 403", "cannot download"]),
        (server.url("/500"), ["HTTP 500", "cannot download"]),
        (server.url("/cut"), ["cannot download", "caused by"]),
        (server.url("/page"), ["is no image", "hint:"]),
        (server.url("/loop"), ["redirects", "cannot download"]),
        (refused, ["refused", "cannot download"]),
        (
            "http://no-such-host.invalid/x.raw".to_owned(),
            ["no-such-host.invalid", "is not known"],
        ),
    ] {
        // a proxy of the environment is not what is tested
        let finished = scene
            .unit(&unit, &["--image", &url])
            .env("no_proxy", "*")
            .run();
        assert_one_error(&finished, 125, &texts);
        let kept: Vec<String> = stored(scene.cli().root())
            .into_iter()
            .filter(|file| !file.starts_with("partial/"))
            .collect();
        assert_eq!(kept, Vec::<String>::new(), "{url}");
        scene.assert_clean();
        let pulled = scene
            .command(["image", "pull", &url])
            .env("no_proxy", "*")
            .run();
        assert_one_error(&pulled, 1, &texts);
    }
    // a server that recovers is taken at its word
    server.put(
        "/later",
        Resource::file(Debian::Qcow2Zstd.path()).fail_first(1, 503),
    );
    let works = scene.script("works.service", "echo works");
    let first = scene.run_unit(&works, &["--image", &server.url("/later")]);
    if first.code() != 0 {
        assert_one_error(&first, 125, &["HTTP 503"]);
        scene
            .run_unit(&works, &["--image", &server.url("/later")])
            .expect_code(0)
            .expect_stdout("works");
    }
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_a_full_disk_is_said_and_leaves_nothing() {
    let scene = Scene::new();
    let unit = scene.script("never.service", "echo never");
    let small = scene.dir().join("small");
    std::fs::create_dir(&small).unwrap();
    let mount = Invocation::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"])
        .arg(&small);
    mount.run().expect_code(0);
    let finished = Invocation::new(nspawn_tests::cli::program())
        .arg("--root")
        .arg(small.join("root"))
        .arg("--run-root")
        .arg(scene.cli().run_root())
        .arg("unit")
        .arg(&unit)
        .args(["--name", &scene.name("never"), "--image"])
        .arg(Debian::Qcow2.path())
        .run();
    let files = stored(&small.join("root"));
    let unmount = Invocation::new("umount").arg(&small).run();
    unmount.expect_code(0);
    assert_one_error(&finished, 125, &["space", "hint:", "--root"]);
    assert_eq!(files, Vec::<String>::new());
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_one_of_two_starts_of_one_name_wins() {
    let scene = Scene::new();
    let unit = scene.script("twin.service", "echo up; exec sleep 600");
    let name = scene.name("twin");
    let options = ["--network", "none", "--detach"];
    for round in 0..4 {
        let starts: Vec<_> = (0..3)
            .map(|_| scene.unit(&unit, &options).spawn())
            .collect();
        let finished: Vec<Finished> = starts.into_iter().map(|start| start.finish()).collect();
        let (won, lost): (Vec<_>, Vec<_>) = finished.iter().partition(|one| one.code() == 0);
        assert_eq!(
            won.len(),
            1,
            "{round}: {:#?}",
            finished
                .iter()
                .map(Finished::transcript)
                .collect::<Vec<_>>()
        );
        for one in lost {
            assert_one_error(one, 125, &["running already", &name]);
        }
        scene
            .run([
                "exec",
                &name,
                "--",
                "systemctl",
                "is-active",
                "twin.service",
            ])
            .expect_code(0);
        scene.run(["kill", &name]).expect_code(0);
        scene.run(["remove", &name]).expect_code(0);
        scene.assert_clean();
    }
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_others_than_root_are_told_to_use_sudo() {
    let scene = Scene::new();
    let unit = scene.script("never.service", "echo never");
    // where nobody can read it
    let program = nspawn_tests::scratch::for_sockets();
    let copy = program.path().join("nspawn-run");
    std::fs::copy(nspawn_tests::cli::program(), &copy).unwrap();
    let file = program.path().join("never.service");
    std::fs::copy(&unit, &file).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(program.path(), open).unwrap();
    let as_nobody = |arguments: &[&str]| {
        Invocation::new("setpriv")
            .args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "--inh-caps=-all",
                "--",
            ])
            .arg(&copy)
            .args(arguments)
            .run()
    };
    let file = file.to_str().unwrap();
    for (arguments, code) in [
        (vec!["unit", file], 125),
        (vec!["exec", "web", "--", "true"], 125),
        (vec!["wait", "web"], 125),
        (vec!["shell", "web"], 125),
        (vec!["list"], 3),
        (vec!["status", "web"], 3),
        (vec!["logs", "web"], 3),
        (vec!["stop", "web"], 3),
        (vec!["kill", "web"], 3),
        (vec!["remove", "web"], 3),
        (vec!["prune"], 3),
    ] {
        let finished = as_nobody(&arguments);
        assert_one_error(&finished, code, &["sudo"]);
    }
    let doctor = as_nobody(&["doctor"]);
    doctor
        .expect_code(3)
        .expect_stdout("FAILED")
        .expect_stderr("error: this host cannot run machines");
    // what needs no root works
    as_nobody(&["explain", "unit", file])
        .expect_code(0)
        .expect_stdout("systemd-nspawn");
    as_nobody(&["completions", "bash"]).expect_code(0);
    // what is wrong with the command line comes first
    as_nobody(&["unit", "/does/not/exist.service"])
        .expect_code(125)
        .expect_stderr("/does/not/exist.service");
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_doctor_finds_this_host_fit() {
    let finished = nspawn_tests::cli::Cli::new().run(["doctor"]);
    finished.expect_code(0).expect_stdout("ok ");
    assert!(
        !finished.stdout.contains("FAILED"),
        "{}",
        finished.transcript()
    );
    let json = nspawn_tests::cli::Cli::new().run(["doctor", "--format", "json"]);
    json.expect_code(0);
    let checks: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert!(
        checks
            .as_array()
            .unwrap()
            .iter()
            .all(|check| check["fatal"] == false),
        "{}",
        json.stdout
    );
    // a host without systemd-nspawn
    let without = nspawn_tests::cli::Cli::new()
        .command(["doctor"])
        .env("PATH", "/does/not/exist")
        .run();
    assert!([0, 3].contains(&without.code()), "{}", without.transcript());
}
