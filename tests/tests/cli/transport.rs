//! Encrypted servers, with certificates of an authority of the test's own.

use std::fs;
use std::path::Path;

use nspawn_tests::cli::{Cli, Invocation, Running};
use nspawn_tests::http::{HttpServer, Resource};
use nspawn_tests::random::noise;
use nspawn_tests::{args, scratch};

/// A server that sends its files as they are: each holds a whole HTTP answer.
struct TlsServer {
    address: String,
    _running: Running,
}

impl TlsServer {
    fn start(folder: &Path) -> Self {
        let key = [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ];
        let openssl = || Invocation::new("openssl").current_dir(folder);
        let request = || openssl().args(["req", "-x509"]).args(key);
        let authority = ["-subj", "/CN=test", "-keyout", "ca.key", "-out", "ca.pem"];
        request().args(authority).run().expect_code(0);
        let server = [
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-subj",
            "/CN=server",
            "-keyout",
            "key.pem",
            "-out",
            "cert.pem",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ];
        request().args(server).run().expect_code(0);
        let running = openssl()
            .args([
                "s_server",
                "-accept",
                "127.0.0.1:0",
                "-cert",
                "cert.pem",
                "-key",
                "key.pem",
                "-HTTP",
            ])
            .spawn();
        let line = running.wait_for_stdout("ACCEPT 127.0.0.1:");
        Self {
            address: line.trim_start_matches("ACCEPT ").to_owned(),
            _running: running,
        }
    }
}

#[test]
fn nothing_leads_from_an_encrypted_server_to_one_that_is_not() {
    let folder = scratch::on_disk();
    let server = TlsServer::start(folder.path());
    let plain = HttpServer::new();
    plain.put("/disk.raw", Resource::bytes(noise(1 << 20, 1)));
    let redirect = |to: &str| {
        format!(
            "HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
    };
    let mut whole = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec();
    whole.extend(noise(1 << 20, 1));
    let url = |path: &str| format!("https://{}/{path}", server.address);
    for (name, content) in [
        ("whole", whole),
        ("down", redirect(&plain.url("/disk.raw")).into()),
        ("further", redirect(&url("whole")).into()),
    ] {
        fs::write(folder.path().join(name), content).unwrap();
    }
    let cli = Cli::new();
    let pull = |path: &str| {
        let arguments = args!["image", "pull", "--verify", "no", url(path)];
        cli.command(arguments).env("no_proxy", "*")
    };
    let trusting = |path| {
        pull(path)
            .env("SSL_CERT_FILE", folder.path().join("ca.pem"))
            .run()
    };
    for path in ["whole", "further"] {
        let finished = trusting(path);
        finished.expect_code(0);
        assert!(fs::read(finished.stdout.trim_end()).unwrap() == noise(1 << 20, 1));
    }
    trusting("down")
        .expect_code(1)
        .expect_stderr("cannot download")
        .expect_stderr("redirects from https to http")
        .expect_stderr("hint: ");
    assert_eq!(plain.requests(), []);
    let stranger = pull("down").env_remove("SSL_CERT_FILE").run();
    stranger
        .expect_code(1)
        .expect_stderr("no secure connection to \"127.0.0.1\"");
}
