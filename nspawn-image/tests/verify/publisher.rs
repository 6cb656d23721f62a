//! A publisher on the loopback, with real keys.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use nspawn_image::{
    ErrorKind, Image, ImageError, PullOptions, Reporter, Store, Verify, VerifyError,
};
use sha2::Digest as _;

use super::support::{Behaviour, Server, disk};

pub(super) const NAME: &str = "debian-12-generic-amd64.raw";
/// When keys are made that live a year, for gpg's `--faked-system-time`.
pub(super) const OLD: &str = "20200101T000000";

/// Held by whoever starts a process: between fork and exec a child has copies of the store's locks.
static FORKING: RwLock<()> = RwLock::new(());

/// Starts a program.
pub(super) fn spawn(command: &mut Command) -> Child {
    let _alone = FORKING.write().unwrap();
    let needed = "gpg (package gnupg) and gzip are needed";
    command.spawn().expect(needed)
}

/// A GnuPG home with keys of its own.
pub(super) struct Gpg {
    pub(super) home: tempfile::TempDir,
}

impl Gpg {
    pub(super) fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(home.path(), private).unwrap();
        Self { home }
    }

    pub(super) fn run(&self, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let mut command = Command::new("gpg");
        command
            .args(["--batch", "--yes", "--quiet", "--pinentry-mode=loopback"])
            .args(["--passphrase=", "--trust-model=always", "--homedir"])
            .arg(self.home.path())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn(&mut command);
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "gpg {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        writer.join().unwrap().unwrap();
        output.stdout
    }

    /// Makes a key that signs, and returns its fingerprint.
    pub(super) fn key(&self, user: &str, more: &[&str]) -> String {
        let mut arguments = more.to_vec();
        arguments.extend(["--quick-gen-key", user, "ed25519", "sign"]);
        if !more.iter().any(|option| option.starts_with("--faked")) {
            arguments.push("never");
        } else {
            arguments.push("1y");
        }
        self.run(&arguments, b"");
        self.fingerprints(user)[0].clone()
    }

    /// Fingerprints of a key and its subkeys.
    pub(super) fn fingerprints(&self, user: &str) -> Vec<String> {
        let listing = self.run(&["--with-colons", "--list-keys", user], b"");
        let listing = String::from_utf8(listing).unwrap();
        let lines = listing.lines().filter(|line| line.starts_with("fpr:"));
        lines
            .map(|line| line.split(':').nth(9).unwrap().to_owned())
            .collect()
    }

    /// Writes a keyring with one key.
    pub(super) fn export(&self, user: &str, armour: bool) -> PathBuf {
        let arguments: &[&str] = if armour {
            &["--armor", "--export", user]
        } else {
            &["--export", user]
        };
        let path = self.home.path().join(format!("{user}-{armour}.pub"));
        fs::write(&path, self.run(arguments, b"")).unwrap();
        path
    }

    pub(super) fn detached(&self, user: &str, more: &[&str], bytes: &[u8]) -> Vec<u8> {
        let mut arguments = vec!["--local-user", user];
        arguments.extend(more);
        arguments.push("--detach-sign");
        self.run(&arguments, bytes)
    }

    pub(super) fn clear(&self, user: &str, text: &str) -> Vec<u8> {
        self.run(&["--local-user", user, "--clear-sign"], text.as_bytes())
    }
}

impl Drop for Gpg {
    fn drop(&mut self) {
        let mut command = Command::new("gpgconf");
        command.arg("--homedir").arg(self.home.path());
        let _ = spawn(command.args(["--kill", "all"])).wait();
    }
}

/// A publisher: a folder on a server with one image and what is put beside it.
pub(super) struct Publisher {
    pub(super) dir: tempfile::TempDir,
    store: RefCell<Store>,
    pub(super) server: Server,
    pub(super) gpg: Gpg,
}

#[derive(Default)]
pub(super) struct Notices(Vec<String>);

impl Reporter for Notices {
    fn notice(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
}

pub(super) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

pub(super) fn sha512(bytes: &[u8]) -> String {
    hex(&sha2::Sha512::digest(bytes))
}

impl Publisher {
    pub(super) fn of(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let server = Server::start(Behaviour {
            files: Some(BTreeMap::new()),
            ..Behaviour::default()
        });
        let publisher = Self {
            dir,
            store: RefCell::new(store),
            server,
            gpg: Gpg::new(),
        };
        publisher.put(name, &disk());
        publisher
    }

    pub(super) fn store(&self) -> Store {
        self.store.borrow().clone()
    }

    pub(super) fn put(&self, name: &str, bytes: &[u8]) {
        self.set(
            name,
            Behaviour {
                body: Arc::new(bytes.to_vec()),
                ..Behaviour::default()
            },
        );
    }

    /// Answers with nothing but a status.
    pub(super) fn fail(&self, name: &str, status: u16) {
        self.set(
            name,
            Behaviour {
                status: Some(status),
                ..Behaviour::default()
            },
        );
    }

    pub(super) fn set(&self, name: &str, at_path: Behaviour) {
        self.server.change(|behaviour| {
            let files = behaviour.files.as_mut().unwrap();
            files.insert(format!("cloud/{name}"), at_path);
        });
    }

    pub(super) fn url(&self, name: &str) -> String {
        self.server.url(&format!("cloud/{name}"))
    }

    pub(super) fn options(&self, verify: Verify, keyrings: &[&Path]) -> PullOptions {
        let mut options = PullOptions::default();
        options.machines_dir = self.dir.path().join("machines");
        options.retries = 0;
        options.idle_timeout = Duration::from_secs(5);
        options.verify = verify;
        options.keyrings = keyrings.iter().map(|path| (*path).to_owned()).collect();
        options
    }

    pub(super) fn pull_with(
        &self,
        reference: &str,
        options: &PullOptions,
    ) -> (Result<Image, ImageError>, Vec<String>) {
        let _no_copies = FORKING.read().unwrap();
        let mut notices = Notices::default();
        let result = self
            .store()
            .pull(&reference.parse().unwrap(), options, &mut notices);
        (result, notices.0)
    }

    /// Pulls into an empty store, so that nothing an earlier pull left is used.
    pub(super) fn pull(
        &self,
        name: &str,
        verify: Verify,
        keyrings: &[&Path],
    ) -> (Result<String, ImageError>, Vec<String>) {
        let fresh = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
        self.store.replace(Store::open(fresh).unwrap());
        let (result, notices) = self.pull_with(&self.url(name), &self.options(verify, keyrings));
        (result.map(|_| self.verified()), notices)
    }

    /// What the store says of its one image.
    pub(super) fn verified(&self) -> String {
        let images = self.store().list().unwrap();
        assert_eq!(images.len(), 1, "{images:?}");
        images[0].verified.clone()
    }

    /// Pulls of the image itself since the last look.
    pub(super) fn downloads(&self, name: &str) -> usize {
        let wanted = format!("get /cloud/{} ", name.to_lowercase());
        let seen = self.server.seen();
        seen.iter().filter(|head| head.starts_with(&wanted)).count()
    }
}

#[track_caller]
pub(super) fn problem<T: std::fmt::Debug>(result: Result<T, ImageError>) -> VerifyError {
    match result {
        Err(error @ ImageError::Verify { .. }) => {
            assert_eq!(error.kind(), ErrorKind::Input);
            assert!(error.hint().is_some_and(|hint| !hint.is_empty()));
            let ImageError::Verify { source, .. } = error else {
                unreachable!()
            };
            *source
        }
        other => panic!("not refused for its verification: {other:?}"),
    }
}

impl Publisher {
    pub(super) fn no_keys(&self) -> PathBuf {
        let path = self.dir.path().join("empty.gpg");
        fs::write(&path, b"").unwrap();
        path
    }
}

/// Where the packets of a small binary keyring begin and end; old and new headers of one and two bytes of length.
pub(super) fn packets(bytes: &[u8]) -> Vec<(usize, usize)> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let head = bytes[at];
        let byte = |offset: usize| usize::from(bytes[at + offset]);
        let (header, length) = match (head & 0x40 == 0, head & 3) {
            (true, 0) => (2, byte(1)),
            (true, 1) => (3, byte(1) << 8 | byte(2)),
            (false, _) if byte(1) < 192 => (2, byte(1)),
            (false, _) if byte(1) < 224 => (3, ((byte(1) - 192) << 8) + byte(2) + 192),
            other => panic!("a packet of another form: {other:?}"),
        };
        found.push((at, at + header + length));
        at += header + length;
    }
    found
}
