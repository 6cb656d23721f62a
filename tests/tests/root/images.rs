//! Every kind of image boots, from a path and over HTTP, and the store keeps it.

use nspawn_tests::fixture::Debian;
use nspawn_tests::http::{HttpServer, Resource};
use nspawn_tests::scene::Scene;

const REPORT: &str = "echo $(. /etc/os-release; echo $ID) $(stat -c %u /usr/bin)";

#[test]
#[ignore = "needs root"]
fn root_every_format_boots_from_a_path() {
    let scene = Scene::new();
    let unit = scene.script("report.service", REPORT);
    for image in [
        Debian::Raw,
        Debian::RawGeneric,
        Debian::Qcow2,
        Debian::Qcow2Zstd,
        Debian::Tar,
        Debian::DiskTarXz,
    ] {
        let path = image.path();
        let finished = scene.unit(&unit, &["--image"]).arg(&path).run();
        finished.expect_code(0);
        assert_eq!(finished.stdout, "debian 0\n", "{}", finished.transcript());
        scene.assert_clean();
    }
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_an_image_is_downloaded_once() {
    let scene = Scene::new();
    let server = HttpServer::new();
    let unit = scene.script("report.service", REPORT);
    let files = [
        ("/a/debian.qcow2", Debian::Qcow2),
        ("/b/debian.qcow2", Debian::Qcow2Zstd),
        ("/debian.tar", Debian::Tar),
        ("/debian.raw", Debian::Raw),
    ];
    for (path, image) in files {
        server.put(path, Resource::file(image.path()).etag("\"v1\""));
    }
    for (path, image) in files {
        let url = server.url(path);
        let checksum = format!("sha256:{}", image.sha256());
        let before = server.requests().len();
        let options = ["--image", &url, "--checksum", &checksum];
        let finished = scene.run_unit(&unit, &options);
        finished.expect_code(0).expect_stderr(&url);
        assert_eq!(finished.stdout, "debian 0\n", "{}", finished.transcript());
        let gets = server.requests().len() - before;
        assert!(gets >= 1, "{path}: {gets} requests");

        let before = server.requests().len();
        let again = scene.run_unit(&unit, &options);
        again.expect_code(0);
        assert_eq!(
            server.requests().len(),
            before,
            "{path}: a stored image was asked for"
        );

        let refreshed = scene.unit(&unit, &options).arg("--refresh").run();
        refreshed.expect_code(0);
        let asked = server.requests().split_off(before);
        assert!(
            !asked.is_empty()
                && asked
                    .iter()
                    .all(|r| r.header("if-none-match") == Some("\"v1\"")),
            "{asked:?}"
        );
    }
    let list = scene.run(["image", "list", "--format", "json"]);
    let images: serde_json::Value = serde_json::from_str(&list.stdout).unwrap();
    let images = images.as_array().unwrap();
    assert_eq!(images.len(), files.len(), "{}", list.stdout);
    assert!(
        images.iter().all(|image| image["in_use"] == false),
        "{}",
        list.stdout
    );
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_images_are_pulled_named_used_and_removed() {
    let scene = Scene::new();
    let qcow2 = Debian::Qcow2.path();
    let pulled = scene
        .command(["image", "pull"])
        .arg(&qcow2)
        .args(["--name", "deb"])
        .run();
    pulled.expect_code(0);
    let path = std::path::Path::new(pulled.stdout.trim_end());
    assert!(
        path.starts_with(scene.cli().root()) && path.exists(),
        "{}",
        pulled.transcript()
    );
    scene
        .run(["image", "list"])
        .expect_code(0)
        .expect_stdout("deb");

    let unit = scene.script("stays.service", "exec sleep 600");
    let name = scene.name("stays");
    let options = ["--image", "deb", "--detach"];
    let started = scene.run_unit(&unit, &options);
    started.expect_code(0);
    assert_eq!(started.stdout, format!("{name}\n"));
    scene
        .run(["image", "remove", "deb"])
        .expect_code(1)
        .expect_stderr("in use")
        .expect_stderr(&name)
        .expect_stderr("hint:");
    scene.run(["stop", &name]).expect_code(0);
    scene.run(["remove", &name]).expect_code(0);
    scene.run(["image", "remove", "deb"]).expect_code(0);
    assert!(!path.exists());
    scene
        .run_unit(&unit, &options)
        .expect_code(125)
        .expect_stderr("no image \"deb\"");
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_two_machines_share_a_base_and_change_none_of_it() {
    let scene = Scene::new();
    let before = Debian::Raw.path().metadata().unwrap().modified().unwrap();
    let pulled = scene
        .command(["image", "pull"])
        .arg(Debian::Qcow2.path())
        .args(["--name", "base"])
        .run();
    pulled.expect_code(0);
    let blob = std::path::PathBuf::from(pulled.stdout.trim_end());
    let written = blob.metadata().unwrap().modified().unwrap();
    for image in ["base", Debian::Raw.path().to_str().unwrap()] {
        let mut names = Vec::new();
        for (stem, text) in [("one", "from one"), ("two", "from two")] {
            let script = format!(
                "test ! -e /etc/mark && echo {text} > /etc/mark && rm /etc/debian_version && exec sleep 600"
            );
            let unit = scene.script(&format!("{stem}.service"), &script);
            scene
                .run_unit(&unit, &["--image", image, "--detach"])
                .expect_code(0);
            names.push((scene.name(stem), text));
        }
        for (name, text) in &names {
            let shown = scene.run(["exec", name, "--", "cat", "/etc/mark"]);
            assert_eq!(shown.stdout, format!("{text}\n"), "{}", shown.transcript());
        }
        for (name, _) in &names {
            scene.run(["stop", name]).expect_code(0);
            scene.run(["remove", name]).expect_code(0);
        }
        let again = scene.script(
            "one.service",
            "test ! -e /etc/mark -a -e /etc/debian_version",
        );
        scene.run_unit(&again, &["--image", image]).expect_code(0);
    }
    assert_eq!(blob.metadata().unwrap().modified().unwrap(), written);
    assert_eq!(
        Debian::Raw.path().metadata().unwrap().modified().unwrap(),
        before
    );
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_kept_changes_are_there_again() {
    let scene = Scene::new();
    let name = scene.name("kept");
    let raw = Debian::Raw.path();
    let raw = raw.to_str().unwrap();
    let script = "echo x >> /var/lib/count; wc -l < /var/lib/count; stat -c %U /var/lib/count";
    let count = scene.script("kept.service", script);
    for expected in ["1\nroot\n", "2\nroot\n", "3\nroot\n"] {
        let finished = scene.run_unit(&count, &["--image", raw, "--persist"]);
        finished.expect_code(0);
        assert_eq!(finished.stdout, expected, "{}", finished.transcript());
    }
    // a kill in between loses nothing that was written down
    let killed = scene.script("kept.service", "echo y >> /var/lib/count; sync; kill -9 $$");
    scene
        .run_unit(&killed, &["--image", raw, "--persist"])
        .expect_code(137);
    let count = scene.script("kept.service", script);
    let finished = scene.run_unit(&count, &["--image", raw, "--persist"]);
    assert_eq!(finished.stdout, "5\nroot\n", "{}", finished.transcript());

    // neither on another image, nor without being asked to, nor pruned
    let generic = Debian::RawGeneric.path();
    scene
        .run_unit(&count, &["--image", generic.to_str().unwrap(), "--persist"])
        .expect_code(125)
        .expect_stderr("keeps changes made on top of")
        .expect_stderr("nspawn-run remove");
    scene
        .run_unit(&count, &["--image", raw])
        .expect_code(125)
        .expect_stderr("keeps changes");
    let pruned = scene.run(["prune"]);
    pruned.expect_code(0);
    assert_eq!(pruned.stdout, "");
    let finished = scene.run_unit(&count, &["--image", raw, "--persist"]);
    assert_eq!(finished.stdout, "6\nroot\n", "{}", finished.transcript());

    scene.run(["remove", &name]).expect_code(0);
    let fresh = scene.run_unit(&count, &["--image", raw]);
    assert_eq!(fresh.stdout, "1\nroot\n", "{}", fresh.transcript());
    scene
        .run(["remove", &name])
        .expect_code(1)
        .expect_stderr("no machine is named");
    scene
        .run_unit(&count, &["--persist"])
        .expect_code(125)
        .expect_stderr("keeps nothing");
    scene.end();
}
