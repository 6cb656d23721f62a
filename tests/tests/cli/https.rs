//! Encrypted downloads, from a real TLS server: whom they trust, and what they say where they do not.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nspawn_tests::cli::{Cli, Finished};
use nspawn_tests::http::{HttpServer, Resource};
use nspawn_tests::random::noise;
use nspawn_tests::scratch;
use tempfile::TempDir;

/// `openssl s_server` over a folder of files.
struct TlsServer {
    dir: TempDir,
    child: Child,
    port: u16,
}

impl TlsServer {
    /// `mode`: `-WWW` serves files, `-HTTP` whole answers that files hold.
    fn start(mode: &str) -> Self {
        let dir = scratch::on_disk();
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::write(at("san"), "subjectAltName=IP:127.0.0.1\n").unwrap();
        let new_key = [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ];
        let mut authority = vec!["req", "-x509", "-days", "2", "-subj", "/CN=Test authority"];
        authority.extend(new_key);
        let (ca, ca_key, request, key, cert, san) = (
            at("ca.pem"),
            at("ca.key"),
            at("request"),
            at("key"),
            at("cert.pem"),
            at("san"),
        );
        authority.extend(["-out", &ca, "-keyout", &ca_key]);
        openssl(&authority);
        let mut asked = vec![
            "req",
            "-subj",
            "/CN=Test server",
            "-out",
            &request,
            "-keyout",
            &key,
        ];
        asked.extend(new_key);
        openssl(&asked);
        openssl(&[
            "x509",
            "-req",
            "-days",
            "2",
            "-in",
            &request,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
            "-extfile",
            &san,
            "-out",
            &cert,
        ]);
        let mut child = Command::new("openssl")
            .args([
                "s_server",
                "-accept",
                "127.0.0.1:0",
                "-cert",
                &cert,
                "-key",
                &key,
                mode,
            ])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is needed (package openssl)");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("ACCEPT 127.0.0.1:")?.trim().parse().ok());
        let port = port.expect("the server says where it listens");
        Self { dir, child, port }
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.dir.path().join(name), bytes).unwrap();
    }

    fn pull(&self, cli: &Cli, host: &str, trusted: bool) -> Finished {
        let url = format!("https://{host}:{}/disk.raw", self.port);
        let trust = if trusted { "ca.pem" } else { "san" };
        cli.command(["image", "pull", "--verify=no", &url])
            .env("SSL_CERT_FILE", self.dir.path().join(trust))
            .env_remove("SSL_CERT_DIR")
            .run()
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended by itself
        let _ = self.child.wait();
    }
}

fn openssl(args: &[&str]) {
    let output = Command::new("openssl").args(args).output();
    let output = output.expect("openssl is needed (package openssl)");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {text}");
}

fn disk() -> Vec<u8> {
    noise(1 << 20, 1)
}

#[test]
fn a_server_with_a_trusted_certificate_is_asked() {
    let (cli, server) = (Cli::new(), TlsServer::start("-WWW"));
    server.put("disk.raw", &disk());
    let finished = server.pull(&cli, "127.0.0.1", true);
    finished.expect_code(0);
    let base = fs::read(Path::new(finished.stdout.trim())).unwrap();
    assert!(base == disk(), "other bytes");
}

#[test]
fn others_are_not() {
    let (cli, server) = (Cli::new(), TlsServer::start("-WWW"));
    server.put("disk.raw", &disk());
    // The host's own certificates where the file named holds none: this authority is not among them.
    let stranger = server.pull(&cli, "127.0.0.1", false);
    let misnamed = server.pull(&cli, "localhost", true);
    for (finished, found) in [
        (stranger, "UnknownIssuer"),
        (misnamed, "not valid for name"),
    ] {
        finished.expect_code(1);
        let stderr = &finished.stderr;
        assert!(
            stderr.contains("certificate") && stderr.contains(found),
            "{stderr}"
        );
        assert_eq!(finished.stdout, "");
    }
    assert_eq!(
        cli.run(["image", "list", "--format=json"]).stdout.trim(),
        "[]"
    );
}

#[test]
fn encryption_is_not_given_up_for_a_redirect() {
    let (cli, server) = (Cli::new(), TlsServer::start("-HTTP"));
    let plain = HttpServer::new();
    plain.put("/disk.raw", Resource::bytes(disk()));
    let location = plain.url("/disk.raw");
    let answer = format!("HTTP/1.0 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
    server.put("disk.raw", answer.as_bytes());
    let finished = server.pull(&cli, "127.0.0.1", true);
    finished.expect_code(1);
    assert!(finished.stderr.contains("redirect"), "{}", finished.stderr);
    assert!(finished.stderr.contains("http"), "{}", finished.stderr);
    finished.expect_stderr("hint: ");
    assert_eq!(plain.requests(), [], "nothing was asked for in the open");
}
