//! A real registry on the loopback: the `docker-registry` program with a folder and a port of its own, and the few
//! requests that push an image to it.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nspawn_image::Digest;
use serde_json::{Value, json};

/// User and password of a registry that wants them, and what it knows of them.
pub(crate) const USER: &str = "nina";
pub(crate) const PASSWORD: &str = "s3cret";
const HTPASSWD: &str = "nina:$2y$05$mBFebOXP0uvNtOd6d6iVy.N4d7g3/UmitFUe4VphWbqLIBI81h2WW\n";

/// How long a registry may take to answer.
const DEADLINE: Duration = Duration::from_secs(20);

/// The program under the names that distributions give it.
const PROGRAMS: [&str; 3] = ["docker-registry", "registry", "distribution"];

pub(crate) struct Registry {
    child: Child,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) port: u16,
    closed: bool,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    use sha2::Digest as _;
    Digest::Sha256(sha2::Sha256::digest(bytes).into())
}

/// A layer as it is pushed: packed bytes, their media type, and the digest of the archive.
pub(crate) struct Layer {
    pub(crate) packed: Vec<u8>,
    pub(crate) media_type: &'static str,
    pub(crate) diff_id: Digest,
}

impl Registry {
    /// Starts a registry that everybody may use.
    pub(crate) fn open() -> Self {
        Self::start(false)
    }

    /// Starts a registry that wants a user and password.
    pub(crate) fn closed() -> Self {
        Self::start(true)
    }

    fn start(closed: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        fs::write(path("htpasswd"), HTPASSWD).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let auth = if closed {
            json!({"htpasswd": {"realm": "tests", "path": path("htpasswd")}})
        } else {
            json!({})
        };
        // JSON is YAML.
        let config = json!({
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": path("storage")}},
            "http": {"addr": format!("127.0.0.1:{port}")},
            "auth": auth,
        });
        fs::write(path("config.yml"), config.to_string()).unwrap();
        let mut started = None;
        for program in PROGRAMS {
            let command = Command::new(program)
                .args(["serve", &path("config.yml")])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(fs::File::create(path("log")).unwrap())
                .spawn();
            if let Ok(child) = command {
                started = Some(child);
                break;
            }
        }
        let child = started.expect("a registry is needed (package docker-registry)");
        let registry = Self {
            child,
            dir,
            port,
            closed,
        };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let log = fs::read_to_string(registry.dir.path().join("log")).unwrap_or_default();
            assert!(begun.elapsed() < DEADLINE, "no registry: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    /// The reference of an image here.
    pub(crate) fn reference(&self, image: &str) -> String {
        format!("oci:127.0.0.1:{}/{image}", self.port)
    }

    /// Where a blob is kept.
    pub(crate) fn blob_file(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let name = format!(
            "storage/docker/registry/v2/blobs/sha256/{}/{hex}/data",
            &hex[..2]
        );
        self.dir.path().join(name)
    }

    /// Sends one request and answers status, `Location` and body.
    fn request(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n",
            self.port,
            body.len()
        );
        if self.closed {
            use base64::Engine as _;
            let secret =
                base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
            head += &format!("authorization: Basic {secret}\r\n");
        }
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(b"\r\n").unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let location = head
            .lines()
            .find_map(|line| {
                line.split_once(": ")
                    .filter(|(key, _)| key.eq_ignore_ascii_case("location"))
            })
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default();
        (status, location, answer[end + 4..].to_vec())
    }

    pub(crate) fn push_blob(&self, name: &str, bytes: &[u8]) -> Digest {
        let digest = sha256(bytes);
        let (status, location, body) =
            self.request("POST", &format!("/v2/{name}/blobs/uploads/"), "", b"");
        assert_eq!(status, 202, "{}", String::from_utf8_lossy(&body));
        let path = location
            .split_once("127.0.0.1")
            .map_or(location.as_str(), |(_, rest)| {
                &rest[rest.find('/').unwrap()..]
            });
        let path = format!("{path}&digest={digest}");
        let (status, _, body) = self.request("PUT", &path, "application/octet-stream", bytes);
        assert_eq!(status, 201, "{}", String::from_utf8_lossy(&body));
        digest
    }

    pub(crate) fn push_manifest(&self, name: &str, tag: &str, manifest: &Value) -> Digest {
        let bytes = manifest.to_string().into_bytes();
        let kind = manifest["mediaType"].as_str().unwrap();
        let path = format!("/v2/{name}/manifests/{tag}");
        let (status, _, body) = self.request("PUT", &path, kind, &bytes);
        assert_eq!(status, 201, "{}", String::from_utf8_lossy(&body));
        sha256(&bytes)
    }

    /// Pushes layers and a configuration, and answers the manifest.
    pub(crate) fn push_parts(&self, name: &str, architecture: &str, layers: &[Layer]) -> Value {
        for layer in layers {
            self.push_blob(name, &layer.packed);
        }
        let (config, manifest) = image(architecture, layers);
        self.push_blob(name, &config);
        manifest
    }

    /// Pushes an image for this machine under a tag.
    pub(crate) fn push(&self, name: &str, tag: &str, layers: &[Layer]) -> Digest {
        let manifest = self.push_parts(name, native(), layers);
        self.push_manifest(name, tag, &manifest)
    }
}

/// This machine, as images name it.
pub(crate) fn native() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The configuration and the manifest of an image.
pub(crate) fn image(architecture: &str, layers: &[Layer]) -> (Vec<u8>, Value) {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| layer.diff_id.to_string())
        .collect();
    let config = json!({
        "os": "linux",
        "architecture": architecture,
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = config.to_string().into_bytes();
    let described: Vec<Value> = layers
        .iter()
        .map(|layer| {
            json!({
                "mediaType": layer.media_type,
                "digest": sha256(&layer.packed).to_string(),
                "size": layer.packed.len(),
            })
        })
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": sha256(&config).to_string(),
            "size": config.len(),
        },
        "layers": described,
    });
    (config, manifest)
}
