//! A container image boots: pushed to a real registry, pulled, and kept.

#[allow(dead_code, reason = "the tests of the library use all of it")]
#[path = "../../../nspawn-image/tests/support/registry.rs"]
mod registry;

use nspawn_tests::fixture::Debian;
use nspawn_tests::scene::Scene;
use registry::{Layer, PASSWORD, Registry, USER, sha256};

#[test]
#[ignore = "needs root"]
fn root_a_unit_runs_in_a_container_image() {
    let scene = Scene::new();
    let registry = Registry::closed();
    let os = std::fs::read(Debian::Tar.path()).unwrap();
    // A second layer takes a file of the first away.
    let whiteout = scene.dir().join("layer");
    std::fs::create_dir_all(whiteout.join("etc")).unwrap();
    std::fs::write(whiteout.join("etc/.wh.debian_version"), "").unwrap();
    std::fs::write(whiteout.join("etc/layer"), "second\n").unwrap();
    let archive = std::process::Command::new("tar")
        .args([
            "--create",
            "--file=-",
            "--owner=0",
            "--group=0",
            "--directory",
        ])
        .arg(&whiteout)
        .arg("etc")
        .output()
        .expect("tar is needed (package tar)")
        .stdout;
    let layer = |bytes: Vec<u8>| Layer {
        diff_id: sha256(&bytes),
        packed: bytes,
        media_type: "application/vnd.oci.image.layer.v1.tar",
    };
    let digest = registry.push("debian", "12", &[layer(os), layer(archive)]);
    let auth = scene.dir().join("auth.json");
    let entry = serde_json::json!({"username": USER, "password": PASSWORD});
    let file = serde_json::json!({"auths": {format!("127.0.0.1:{}", registry.port): entry}});
    std::fs::write(&auth, file.to_string()).unwrap();
    let reference = registry.reference("debian:12");
    let unit = scene.script(
        "report.service",
        "test ! -e /etc/debian_version && cat /etc/layer && stat -c %u /usr/bin",
    );
    let checksum = digest.to_string();
    let options = ["--image", &reference, "--checksum", &checksum];
    let finished = scene
        .unit(&unit, &options)
        .env("REGISTRY_AUTH_FILE", &auth)
        .run();
    finished.expect_code(0).expect_stderr(&reference);
    assert_eq!(finished.stdout, "second\n0\n", "{}", finished.transcript());
    drop(registry);
    // What is kept needs neither the registry nor the password.
    let again = scene.run_unit(&unit, &["--image", &reference]);
    again.expect_code(0);
    assert_eq!(again.stdout, "second\n0\n", "{}", again.transcript());
    scene
        .run_unit(&unit, &["--image", &format!("{reference}-other")])
        .expect_code(125)
        .expect_stderr("cannot download");
    scene.end();
}
