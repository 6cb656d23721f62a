//! What the command says of an image that is verified, and of one that cannot be.

use nspawn_tests::cli::{Cli, Finished};
use nspawn_tests::http::{HttpServer, Resource};

/// A bare ext4 as far as anybody looks.
fn disk() -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    bytes[1080] = 0x53;
    bytes[1081] = 0xef;
    bytes
}

/// The one image of the store.
fn listed(cli: &Cli) -> serde_json::Value {
    let list = cli.run(["image", "list", "--format", "json"]);
    let images: serde_json::Value = serde_json::from_str(&list.stdout).unwrap();
    assert_eq!(images.as_array().map(Vec::len), Some(1), "{images}");
    images[0].clone()
}

#[test]
fn a_publisher_s_checksum_file_is_asked_for() {
    let cli = Cli::new();
    let server = HttpServer::new();
    server.put("/d/disk.raw", Resource::bytes(disk()));
    let url = server.url("/d/disk.raw");
    let pull = |options: &[&str]| -> Finished {
        let mut arguments = vec!["image", "pull", url.as_str()];
        arguments.extend(options);
        // a proxy of the environment is not what is tested
        cli.command(arguments).env("no_proxy", "*").run()
    };

    let refused = pull(&["--verify", "checksum"]);
    refused
        .expect_code(1)
        .expect_stderr("error: cannot verify")
        .expect_stderr("asked for SHA512SUMS, SHA256SUMS")
        .expect_stderr("hint: give the digest with --checksum");
    pull(&[])
        .expect_code(0)
        .expect_stderr("note: ")
        .expect_stderr("cannot be verified")
        .expect_stderr("--checksum-file");
    let image = listed(&cli);
    assert_eq!(image["verified"], "none");

    let digest = image["digest"].as_str().unwrap();
    let hex = digest.strip_prefix("sha256:").unwrap();
    let sums = format!("{hex}  disk.raw\n");
    server.put("/d/SHA256SUMS", Resource::bytes(sums.clone()));
    pull(&["--verify", "checksum"]).expect_code(0);
    let by = format!("checksum by {}", server.url("/d/SHA256SUMS"));
    assert_eq!(listed(&cli)["verified"], by);
    pull(&["--verify", "signature"])
        .expect_code(1)
        .expect_stderr("no signature was found");

    server.remove("/d/SHA256SUMS");
    server.put("/e/sums.txt", Resource::bytes(sums));
    let named = server.url("/e/sums.txt");
    let elsewhere = pull(&["--checksum-file", &named]);
    elsewhere.expect_code(0);
    assert_eq!(listed(&cli)["verified"], format!("checksum by {named}"));
}

#[test]
fn a_signature_of_a_container_image_is_refused_by_name() {
    let cli = Cli::new();
    let arguments = ["image", "pull", "oci:debian:12", "--verify", "signature"];
    cli.run(arguments)
        .expect_code(1)
        .expect_stderr("cannot verify oci:debian:12")
        .expect_stderr("a signature of a container image is not looked for")
        .expect_stderr("hint: name the image by its digest, as oci:NAME@sha256:HEX");
}
