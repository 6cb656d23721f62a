//! Images verified as distributions publish them: real checksum files, real keys and signatures, a real server.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nspawn_image::{
    DownloadReason, ErrorKind, Image, ImageError, PullOptions, Reporter, Store, Verify, VerifyError,
};
use sha2::Digest as _;
use support::{Behaviour, Server, disk};

const NAME: &str = "debian-12-generic-amd64.raw";
/// Within the life of every key made with `OLD` that expires.
const OLD: &str = "20200101T000000";

/// A GnuPG home with keys of its own.
struct Gpg {
    home: tempfile::TempDir,
}

impl Gpg {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(home.path(), private).unwrap();
        Self { home }
    }

    fn run(&self, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let mut child = Command::new("gpg")
            .args(["--batch", "--yes", "--quiet", "--pinentry-mode=loopback"])
            .args(["--passphrase=", "--trust-model=always", "--homedir"])
            .arg(self.home.path())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("gpg is needed (package gnupg)");
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
    fn key(&self, user: &str, more: &[&str]) -> String {
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
    fn fingerprints(&self, user: &str) -> Vec<String> {
        let listing = self.run(&["--with-colons", "--list-keys", user], b"");
        let listing = String::from_utf8(listing).unwrap();
        let lines = listing.lines().filter(|line| line.starts_with("fpr:"));
        lines
            .map(|line| line.split(':').nth(9).unwrap().to_owned())
            .collect()
    }

    /// Writes a keyring with one key.
    fn export(&self, user: &str, armour: bool) -> PathBuf {
        let arguments: &[&str] = if armour {
            &["--armor", "--export", user]
        } else {
            &["--export", user]
        };
        let path = self.home.path().join(format!("{user}-{armour}.pub"));
        fs::write(&path, self.run(arguments, b"")).unwrap();
        path
    }

    fn detached(&self, user: &str, more: &[&str], bytes: &[u8]) -> Vec<u8> {
        let mut arguments = vec!["--local-user", user];
        arguments.extend(more);
        arguments.push("--detach-sign");
        self.run(&arguments, bytes)
    }

    fn clear(&self, user: &str, text: &str) -> Vec<u8> {
        self.run(&["--local-user", user, "--clear-sign"], text.as_bytes())
    }
}

impl Drop for Gpg {
    fn drop(&mut self) {
        let _ = Command::new("gpgconf")
            .arg("--homedir")
            .arg(self.home.path())
            .args(["--kill", "all"])
            .status();
    }
}

/// A publisher: a folder on a server with one image and what is put beside it.
struct Publisher {
    dir: tempfile::TempDir,
    store: Store,
    server: Server,
    gpg: Gpg,
}

#[derive(Default)]
struct Notices(Vec<String>);

impl Reporter for Notices {
    fn notice(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

fn sha512(bytes: &[u8]) -> String {
    hex(&sha2::Sha512::digest(bytes))
}

impl Publisher {
    fn of(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let server = Server::start(Behaviour {
            files: Some(BTreeMap::new()),
            ..Behaviour::default()
        });
        let publisher = Self {
            dir,
            store,
            server,
            gpg: Gpg::new(),
        };
        publisher.put(name, &disk());
        publisher
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        self.set(
            name,
            Behaviour {
                body: Arc::new(bytes.to_vec()),
                ..Behaviour::default()
            },
        );
    }

    /// Answers with nothing but a status.
    fn fail(&self, name: &str, status: u16) {
        self.set(
            name,
            Behaviour {
                status: Some(status),
                ..Behaviour::default()
            },
        );
    }

    fn set(&self, name: &str, at_path: Behaviour) {
        self.server.change(|behaviour| {
            let files = behaviour.files.as_mut().unwrap();
            files.insert(format!("cloud/{name}"), at_path);
        });
    }

    fn url(&self, name: &str) -> String {
        self.server.url(&format!("cloud/{name}"))
    }

    fn options(&self, verify: Verify, keyrings: &[&Path]) -> PullOptions {
        let mut options = PullOptions::default();
        options.machines_dir = self.dir.path().join("machines");
        options.retries = 0;
        options.idle_timeout = Duration::from_secs(5);
        options.verify = verify;
        options.keyrings = keyrings.iter().map(|path| (*path).to_owned()).collect();
        options
    }

    fn pull_with(
        &self,
        reference: &str,
        options: &PullOptions,
    ) -> (Result<Image, ImageError>, Vec<String>) {
        let mut notices = Notices::default();
        let result = self
            .store
            .pull(&reference.parse().unwrap(), options, &mut notices);
        (result, notices.0)
    }

    /// Pulls into an empty store, so that nothing an earlier pull left is used.
    fn pull(
        &self,
        name: &str,
        verify: Verify,
        keyrings: &[&Path],
    ) -> (Result<String, ImageError>, Vec<String>) {
        for image in self.store.list().unwrap() {
            self.store.remove(&image.name).unwrap();
        }
        let (result, notices) = self.pull_with(&self.url(name), &self.options(verify, keyrings));
        (result.map(|_| self.verified()), notices)
    }

    /// What the store says of its one image.
    fn verified(&self) -> String {
        let images = self.store.list().unwrap();
        assert_eq!(images.len(), 1, "{images:?}");
        images[0].verified.clone()
    }

    /// Pulls of the image itself since the last look.
    fn downloads(&self, name: &str) -> usize {
        let wanted = format!("get /cloud/{} ", name.to_lowercase());
        let seen = self.server.seen();
        seen.iter().filter(|head| head.starts_with(&wanted)).count()
    }
}

#[track_caller]
fn problem<T: std::fmt::Debug>(result: Result<T, ImageError>) -> VerifyError {
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

#[test]
fn ubuntu_signs_its_checksum_file() {
    let publisher = Publisher::of(NAME);
    let fingerprint = publisher.gpg.key("ubuntu", &[]);
    let keyring = publisher.gpg.export("ubuntu", false);
    let sums = format!("{} *other.img\n{} *{NAME}\n", sha256(b"x"), sha256(&disk()));
    publisher.put("SHA256SUMS", sums.as_bytes());
    let signed = format!(
        "signature by {fingerprint} in {}",
        publisher.url("SHA256SUMS")
    );
    for options in [&[][..], &["--textmode"], &["--armor"]] {
        let signature = publisher.gpg.detached("ubuntu", options, sums.as_bytes());
        publisher.put("SHA256SUMS.gpg", &signature);
        for verify in [Verify::Auto, Verify::Signature] {
            let (verified, notices) = publisher.pull(NAME, verify, &[&keyring]);
            assert_eq!(verified.unwrap(), signed, "{verify} {options:?}");
            assert_eq!(notices, Vec::<String>::new());
        }
    }
    let (verified, _) = publisher.pull(NAME, Verify::Checksum, &[&keyring]);
    let by = format!("checksum by {}", publisher.url("SHA256SUMS"));
    assert_eq!(verified.unwrap(), by, "a signature was not asked for");
}

#[test]
fn fedora_clear_signs_a_file_of_another_name() {
    let name = "Fedora-Cloud-Base-Generic-41-1.4.x86_64.qcow2";
    let file = "Fedora-Cloud-41-1.4-x86_64-CHECKSUM";
    let publisher = Publisher::of(name);
    let fingerprint = publisher.gpg.key("fedora", &[]);
    let keyring = publisher.gpg.export("fedora", true);
    let text = format!(
        "# {name}: {} bytes\nSHA256 ({name}) = {}\n- a line with a dash\nand white space \t\n\n",
        disk().len(),
        sha256(&disk())
    );
    let signed = publisher.gpg.clear("fedora", &text);
    publisher.put(file, &signed);
    let (verified, notices) = publisher.pull(name, Verify::Signature, &[&keyring]);
    let expected = format!("signature by {fingerprint} in {}", publisher.url(file));
    assert_eq!(verified.unwrap(), expected);
    assert_eq!(notices, Vec::<String>::new());
    let (verified, _) = publisher.pull(name, Verify::Checksum, &[]);
    let expected = format!("checksum by {}", publisher.url(file));
    assert_eq!(verified.unwrap(), expected);

    // a line put before or after the signed text is not a signed one
    let other = sha256(b"other");
    let line = format!("SHA256 ({name}) = {other}\n").into_bytes();
    let around = [line.as_slice(), &signed, &line].concat();
    publisher.put(file, &around);
    let (verified, _) = publisher.pull(name, Verify::Signature, &[&keyring]);
    assert!(verified.unwrap().contains(&fingerprint));

    // and a signed line that was changed is none
    let tampered = String::from_utf8(signed).unwrap();
    let tampered = tampered.replace(&sha256(&disk()), &other);
    publisher.put(file, tampered.as_bytes());
    for verify in [Verify::Auto, Verify::Signature] {
        let (result, _) = publisher.pull(name, verify, &[&keyring]);
        let error = problem(result);
        assert!(
            matches!(&error, VerifyError::BadSignature { key, .. } if *key == fingerprint),
            "{error}"
        );
    }
}

#[test]
fn debian_signs_nothing() {
    let publisher = Publisher::of(NAME);
    let sums = format!("{}  {NAME}\n", sha512(&disk()));
    publisher.put("SHA512SUMS", sums.as_bytes());
    let by = format!("checksum by {}", publisher.url("SHA512SUMS"));
    for verify in [Verify::Auto, Verify::Checksum] {
        let (verified, notices) = publisher.pull(NAME, verify, &[]);
        assert_eq!(verified.unwrap(), by);
        assert_eq!(notices, Vec::<String>::new());
    }
    let (result, _) = publisher.pull(NAME, Verify::Signature, &[]);
    let error = problem(result);
    assert!(
        matches!(&error, VerifyError::NoSignature { tried }
            if tried.contains(&"SHA512SUMS.gpg".to_owned()) && tried.contains(&format!("{NAME}.sig"))),
        "{error}"
    );
}

#[test]
fn arch_signs_the_image_itself() {
    let publisher = Publisher::of(NAME);
    let fingerprint = publisher.gpg.key("arch", &[]);
    let keyring = publisher.gpg.export("arch", false);
    let sums = format!("{}  {NAME}\n", sha256(&disk()));
    publisher.put(&format!("{NAME}.SHA256"), sums.as_bytes());
    let signature = publisher.gpg.detached("arch", &[], &disk());
    let file = format!("{NAME}.sig");
    publisher.put(&file, &signature);
    let signed = format!("signature by {fingerprint} in {}", publisher.url(&file));
    for verify in [Verify::Auto, Verify::Signature] {
        let (verified, notices) = publisher.pull(NAME, verify, &[&keyring]);
        assert_eq!(verified.unwrap(), signed);
        assert_eq!(notices, Vec::<String>::new());
    }
    // whoever changes the image and its checksum cannot change its signature
    let mut other = disk();
    other[2 << 20] ^= 1;
    publisher.put(NAME, &other);
    let sums = format!("{}  {NAME}\n", sha256(&other));
    publisher.put(&format!("{NAME}.SHA256"), sums.as_bytes());
    for verify in [Verify::Auto, Verify::Signature] {
        let (result, _) = publisher.pull(NAME, verify, &[&keyring]);
        let error = problem(result);
        assert!(
            matches!(&error, VerifyError::BadSignature { key, .. } if *key == fingerprint),
            "{error}"
        );
        assert!(publisher.store.list().unwrap().is_empty());
    }
    let (verified, _) = publisher.pull(NAME, Verify::Checksum, &[&keyring]);
    assert!(verified.unwrap().starts_with("checksum by "));
    // with no key, the checksum is what is left
    let (verified, notices) = publisher.pull(NAME, Verify::Auto, &[&publisher.no_keys()]);
    assert!(verified.unwrap().starts_with("checksum by "));
    assert!(notices[0].contains(&fingerprint), "{notices:?}");
}

impl Publisher {
    fn no_keys(&self) -> PathBuf {
        let path = self.dir.path().join("empty.gpg");
        fs::write(&path, b"").unwrap();
        path
    }
}

#[test]
fn a_wrong_hash_names_its_file() {
    let publisher = Publisher::of(NAME);
    let sums = format!("{}  {NAME}\n", sha256(b"other"));
    publisher.put("SHA256SUMS", sums.as_bytes());
    for verify in [Verify::Auto, Verify::Checksum] {
        let (result, _) = publisher.pull(NAME, verify, &[]);
        let error = result.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, ImageError::Mismatch { .. }), "{text}");
        for part in [
            sha256(b"other"),
            sha256(&disk()),
            publisher.url("SHA256SUMS"),
        ] {
            assert!(text.contains(&part), "{text}");
        }
        assert!(publisher.store.list().unwrap().is_empty());
    }
    let (verified, notices) = publisher.pull(NAME, Verify::No, &[]);
    assert_eq!(verified.unwrap(), "none");
    assert_eq!(notices, Vec::<String>::new());
}

#[test]
fn a_file_without_a_line_for_the_image() {
    let publisher = Publisher::of(NAME);
    let near = "debian-12-generic-arm64.raw";
    let sums = format!("{}  {near}\n{0}  zebra\n", sha256(b"x"));
    publisher.put("SHA256SUMS", sums.as_bytes());
    let (result, _) = publisher.pull(NAME, Verify::Checksum, &[]);
    let error = problem(result);
    assert!(
        matches!(&error, VerifyError::NoLine { file, name, nearest }
            if *file == publisher.url("SHA256SUMS") && name == NAME && nearest[0] == near),
        "{error}"
    );
    let (verified, notices) = publisher.pull(NAME, Verify::Auto, &[]);
    assert_eq!(verified.unwrap(), "none");
    assert!(notices[0].contains("has no line for"), "{notices:?}");

    let sums = format!("{}  {NAME}\n{}  ./{NAME}\n", sha256(b"x"), sha256(&disk()));
    publisher.put("SHA256SUMS", sums.as_bytes());
    for verify in [Verify::Auto, Verify::Checksum] {
        let (result, _) = publisher.pull(NAME, verify, &[]);
        let error = problem(result);
        assert!(matches!(error, VerifyError::ChecksumFile { .. }), "{error}");
    }
}

#[test]
fn a_key_that_is_not_here() {
    let publisher = Publisher::of(NAME);
    let fingerprint = publisher.gpg.key("stranger", &[]);
    publisher.gpg.key("friend", &[]);
    let friend = publisher.gpg.export("friend", false);
    let sums = format!("{}  {NAME}\n", sha256(&disk()));
    publisher.put("SHA256SUMS", sums.as_bytes());
    let signature = publisher.gpg.detached("stranger", &[], sums.as_bytes());
    publisher.put("SHA256SUMS.gpg", &signature);
    let (verified, notices) = publisher.pull(NAME, Verify::Auto, &[&friend]);
    assert!(verified.unwrap().starts_with("checksum by "));
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(notices[0].contains(&fingerprint), "{notices:?}");
    let (result, _) = publisher.pull(NAME, Verify::Signature, &[&friend]);
    let error = problem(result);
    assert!(
        matches!(&error, VerifyError::NoKey { key, keyrings, .. }
            if *key == fingerprint && keyrings[0] == friend.display().to_string()),
        "{error}"
    );
    let (result, _) = publisher.pull(NAME, Verify::Signature, &[&publisher.no_keys()]);
    let error = problem(result);
    assert!(
        matches!(&error, VerifyError::NoKeyring { key, .. } if *key == fingerprint),
        "{error}"
    );
    // several keyrings, and several armoured keys in one
    let stranger = publisher.gpg.export("stranger", false);
    let (verified, _) = publisher.pull(NAME, Verify::Signature, &[&friend, &stranger]);
    assert!(verified.unwrap().starts_with("signature by "));
    let mut both = fs::read(publisher.gpg.export("friend", true)).unwrap();
    both.extend(fs::read(publisher.gpg.export("stranger", true)).unwrap());
    let path = publisher.dir.path().join("both.asc");
    fs::write(&path, both).unwrap();
    let (verified, _) = publisher.pull(NAME, Verify::Signature, &[&path]);
    assert!(verified.unwrap().starts_with("signature by "));
    // a keyring as systemd ships it was one of GnuPG's own, with its notes between the keys
    let ring = publisher.dir.path().join("ring.gpg");
    let option = format!("--keyring=gnupg-ring:{}", ring.display());
    for keys in [&friend, &stranger] {
        let keys = keys.to_str().unwrap();
        let import = ["--no-default-keyring", &option, "--import", keys];
        publisher.gpg.run(&import, b"");
    }
    assert!(
        packets(&fs::read(&ring).unwrap()).len() > 6,
        "it has trust packets"
    );
    let (verified, _) = publisher.pull(NAME, Verify::Signature, &[&ring]);
    assert!(verified.unwrap().starts_with("signature by "));
    // GnuPG's newer kind of keyring is not one to give, and neither is a text
    for (keyring, reason) in [
        (publisher.gpg.home.path().join("pubring.kbx"), "keybox"),
        (publisher.gpg.home.path().join("text"), "no public key"),
    ] {
        if reason != "keybox" {
            fs::write(&keyring, "no key").unwrap();
        }
        let (result, _) = publisher.pull(NAME, Verify::Signature, &[&keyring]);
        let error = problem(result);
        assert!(
            matches!(&error, VerifyError::Keyring { .. }) && error.to_string().contains(reason),
            "{error}"
        );
    }
    let missing = publisher.dir.path().join("missing.gpg");
    let (result, _) = publisher.pull(NAME, Verify::Signature, &[&missing]);
    assert!(matches!(result, Err(ImageError::Path { path, .. }) if path == missing));
}

#[test]
fn a_tampered_checksum_file_is_refused() {
    let publisher = Publisher::of(NAME);
    let fingerprint = publisher.gpg.key("ubuntu", &[]);
    let keyring = publisher.gpg.export("ubuntu", false);
    let sums = format!("{}  {NAME}\n", sha256(b"the published image"));
    let signature = publisher.gpg.detached("ubuntu", &[], sums.as_bytes());
    publisher.put("SHA256SUMS.gpg", &signature);
    let tampered = format!("{}  {NAME}\n", sha256(&disk()));
    publisher.put("SHA256SUMS", tampered.as_bytes());
    for verify in [Verify::Auto, Verify::Signature] {
        let (result, _) = publisher.pull(NAME, verify, &[&keyring]);
        let error = problem(result);
        assert!(
            matches!(&error, VerifyError::BadSignature { file, key }
                if *key == fingerprint && *file == publisher.url("SHA256SUMS.gpg")),
            "{error}"
        );
    }
    // a page in place of "not found" is no signature
    publisher.put("SHA256SUMS.gpg", b"<html>not found</html>");
    let (verified, notices) = publisher.pull(NAME, Verify::Auto, &[&keyring]);
    assert!(verified.unwrap().starts_with("checksum by "));
    assert_eq!(notices, Vec::<String>::new());
    // nothing that a server sends takes long to refuse
    let signed = publisher.gpg.clear("ubuntu", &sums);
    let signed = String::from_utf8(signed).unwrap();
    let padding = "\n".repeat((4 << 20) - 2 * signed.len());
    let endless = signed.replace(&sums, &format!("{tampered}{padding}"));
    publisher.put("SHA256SUMS", endless.as_bytes());
    let started = std::time::Instant::now();
    let (result, _) = publisher.pull(NAME, Verify::Signature, &[&keyring]);
    let error = problem(result);
    assert!(matches!(error, VerifyError::BadSignature { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(20));
    publisher.put("SHA256SUMS", tampered.as_bytes());
    // and one that is cut is no good one
    publisher.put("SHA256SUMS.gpg", &signature[..signature.len() / 2]);
    let (result, _) = publisher.pull(NAME, Verify::Signature, &[&keyring]);
    let error = problem(result);
    assert!(
        matches!(
            error,
            VerifyError::Malformed { .. } | VerifyError::BadSignature { .. }
        ),
        "{error}"
    );
}

#[test]
fn keys_and_signatures_that_hold_no_longer() {
    let publisher = Publisher::of(NAME);
    let gpg = &publisher.gpg;
    let sums = format!("{}  {NAME}\n", sha256(&disk()));
    publisher.put("SHA256SUMS", sums.as_bytes());
    let old = format!("--faked-system-time={OLD}");
    let later = "--faked-system-time=20200601T000000";

    let expired = gpg.key("expired", &[&old]);
    let signature = gpg.detached("expired", &[later], sums.as_bytes());
    publisher.put("SHA256SUMS.gpg", &signature);
    let keyring = gpg.export("expired", false);
    let (result, _) = publisher.pull(NAME, Verify::Signature, &[&keyring]);
    let error = problem(result);
    assert!(
        matches!(&error, VerifyError::KeyExpired { key, .. } if *key == expired),
        "{error}"
    );
    let (verified, notices) = publisher.pull(NAME, Verify::Auto, &[&keyring]);
    assert!(verified.unwrap().starts_with("checksum by "));
    assert!(notices[0].contains("has expired"), "{notices:?}");

    gpg.run(&["--quick-set-expire", &expired, "10y"], b"");
    let keyring = gpg.export("expired", false);
    let (verified, _) = publisher.pull(NAME, Verify::Signature, &[&keyring]);
    assert!(
        verified.unwrap().starts_with("signature by "),
        "the newest self-signature says when a key expires"
    );

    let made_then = [
        "--faked-system-time=20200601T000000",
        "--default-sig-expire=1d",
    ];
    // a key must be older than its signatures
    gpg.run(
        &[&old, "--quick-gen-key", "past", "ed25519", "sign", "never"],
        b"",
    );
    let signature = gpg.detached("past", &made_then, sums.as_bytes());
    publisher.put("SHA256SUMS.gpg", &signature);
    let keyring = gpg.export("past", false);
    for verify in [Verify::Auto, Verify::Signature] {
        let (result, _) = publisher.pull(NAME, verify, &[&keyring]);
        let error = problem(result);
        assert!(
            matches!(error, VerifyError::SignatureExpired { .. }),
            "{error}"
        );
    }

    gpg.run(
        &["--quick-gen-key", "weak", "rsa2048", "sign", "never"],
        b"",
    );
    let keyring = gpg.export("weak", false);
    let sha1 = ["--digest-algo=SHA1", "--allow-weak-digest-algos"];
    let signature = gpg.detached("weak", &sha1, sums.as_bytes());
    publisher.put("SHA256SUMS.gpg", &signature);
    for verify in [Verify::Auto, Verify::Signature] {
        let (result, _) = publisher.pull(NAME, verify, &[&keyring]);
        let error = problem(result);
        assert!(
            matches!(&error, VerifyError::WeakHash { hash, .. } if hash == "SHA1"),
            "{error}"
        );
    }
    let signature = gpg.detached("weak", &["--digest-algo=SHA512"], sums.as_bytes());
    publisher.put("SHA256SUMS.gpg", &signature);
    let (verified, _) = publisher.pull(NAME, Verify::Signature, &[&keyring]);
    assert!(verified.unwrap().starts_with("signature by "));

    let revoked = gpg.fingerprints("weak")[0].clone();
    let certificate = gpg
        .home
        .path()
        .join(format!("openpgp-revocs.d/{revoked}.rev"));
    let certificate = fs::read_to_string(certificate).unwrap();
    let certificate = certificate.replace(":-----BEGIN", "-----BEGIN");
    gpg.run(&["--import"], certificate.as_bytes());
    let keyring = gpg.export("weak", false);
    for verify in [Verify::Auto, Verify::Signature] {
        let (result, _) = publisher.pull(NAME, verify, &[&keyring]);
        let error = problem(result);
        assert!(
            matches!(&error, VerifyError::KeyRevoked { key, .. } if *key == revoked),
            "{error}"
        );
    }
}

#[test]
fn a_subkey_signs_where_it_may() {
    let publisher = Publisher::of(NAME);
    let gpg = &publisher.gpg;
    let primary = gpg.key("parts", &[]);
    gpg.run(
        &["--quick-add-key", &primary, "ed25519", "sign", "never"],
        b"",
    );
    let subkey = gpg.fingerprints("parts")[1].clone();
    let sums = format!("{}  {NAME}\n", sha256(&disk()));
    publisher.put("SHA256SUMS", sums.as_bytes());
    let signature = gpg.detached(&format!("{subkey}!"), &[], sums.as_bytes());
    publisher.put("SHA256SUMS.sign", &signature);
    let keyring = gpg.export("parts", false);
    let (verified, _) = publisher.pull(NAME, Verify::Signature, &[&keyring]);
    let verified = verified.unwrap();
    assert!(verified.contains(&format!("by {subkey} in")), "{verified}");

    // the same key, and the packets of its subkey's binding left out: nobody says that the subkey is its own
    let whole = fs::read(&keyring).unwrap();
    let packets = packets(&whole);
    let (last, _) = packets.last().unwrap();
    let unbound = publisher.dir.path().join("unbound.gpg");
    fs::write(&unbound, &whole[..*last]).unwrap();
    let (result, _) = publisher.pull(NAME, Verify::Signature, &[&unbound]);
    let error = problem(result);
    assert!(matches!(error, VerifyError::NoKey { .. }), "{error}");

    // another key that claims the subkey as its own
    gpg.key("thief", &[]);
    let mut thief = fs::read(gpg.export("thief", false)).unwrap();
    let (subkey_at, _) = packets[packets.len() - 2];
    thief.extend(&whole[subkey_at..]);
    let claimed = publisher.dir.path().join("claimed.gpg");
    fs::write(&claimed, thief).unwrap();
    let (result, _) = publisher.pull(NAME, Verify::Signature, &[&claimed]);
    let error = problem(result);
    assert!(
        matches!(&error, VerifyError::KeyUnfit { key, .. } if *key == subkey),
        "{error}"
    );

    let arguments = ["--command-fd=0", "--edit-key", &primary];
    gpg.run(&arguments, b"key 1\nrevkey\ny\n0\n\ny\nsave\n");
    let keyring = gpg.export("parts", false);
    let (result, _) = publisher.pull(NAME, Verify::Signature, &[&keyring]);
    let error = problem(result);
    assert!(
        matches!(&error, VerifyError::KeyRevoked { key, .. } if *key == subkey),
        "{error}"
    );
}

/// Where the packets of a small binary keyring begin and end; old and new headers of one and two bytes of length.
fn packets(bytes: &[u8]) -> Vec<(usize, usize)> {
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

#[test]
fn nothing_found_is_said_once_and_shows_no_secret() {
    let publisher = Publisher::of(NAME);
    let url = publisher.url(&format!("{NAME}?token=s3cret"));
    let (result, notices) = publisher.pull_with(&url, &publisher.options(Verify::Auto, &[]));
    result.unwrap();
    assert_eq!(publisher.verified(), "none");
    assert_eq!(notices.len(), 1, "{notices:?}");
    for part in [
        "cannot be verified",
        "SHA512SUMS",
        "SHA256SUMS",
        &format!("{NAME}.sha256"),
        "--checksum",
        "--checksum-file",
    ] {
        assert!(notices[0].contains(part), "{part}: {notices:?}");
    }
    assert!(!notices[0].contains("s3cret"), "{notices:?}");
    // the token went along: it may be good for the folder
    assert!(
        publisher
            .server
            .seen()
            .iter()
            .all(|head| head.contains("?token=s3cret "))
    );
    // what is in the store is used without a question
    let (result, notices) = publisher.pull_with(&url, &publisher.options(Verify::Auto, &[]));
    result.unwrap();
    assert_eq!(notices, Vec::<String>::new());
    assert_eq!(publisher.server.seen().len(), 0);
    for verify in [Verify::Checksum, Verify::Signature] {
        let (result, _) = publisher.pull(NAME, verify, &[]);
        let error = problem(result);
        assert!(
            matches!(&error, VerifyError::NoChecksumFile { tried } if tried.len() >= 9),
            "{error}"
        );
    }
    assert_eq!(publisher.downloads(NAME), 0, "nothing is fetched in vain");
}

#[test]
fn a_digest_that_is_given_is_enough() {
    let publisher = Publisher::of(NAME);
    for verify in [Verify::Auto, Verify::Checksum, Verify::No] {
        let mut options = publisher.options(verify, &[]);
        options.checksum = Some(format!("sha256:{}", sha256(&disk())).parse().unwrap());
        options.name = Some(format!("given-{verify}").parse().unwrap());
        options.refresh = true;
        let (result, notices) = publisher.pull_with(&publisher.url(NAME), &options);
        result.unwrap();
        assert_eq!(notices, Vec::<String>::new());
        assert_eq!(
            publisher.server.seen().len(),
            1,
            "no question but for the image"
        );
    }
    let images = publisher.store.list().unwrap();
    assert!(
        images
            .iter()
            .all(|image| image.verified == "checksum given")
    );
    // where a signature is wanted, both must be right
    let fingerprint = publisher.gpg.key("signer", &[]);
    let keyring = publisher.gpg.export("signer", false);
    let sums = format!("{}  {NAME}\n", sha512(&disk()));
    publisher.put("SHA512SUMS", sums.as_bytes());
    let signature = publisher.gpg.detached("signer", &[], sums.as_bytes());
    publisher.put("SHA512SUMS.asc", &signature);
    let mut options = publisher.options(Verify::Signature, &[&keyring]);
    options.name = Some("both".parse().unwrap());
    options.checksum = Some(format!("sha256:{}", sha256(b"x")).parse().unwrap());
    let (result, _) = publisher.pull_with(&publisher.url(NAME), &options);
    let result = result.unwrap_err();
    assert!(
        matches!(result, ImageError::Mismatch { by: None, .. }),
        "{result}"
    );
    options.checksum = Some(format!("sha256:{}", sha256(&disk())).parse().unwrap());
    publisher
        .pull_with(&publisher.url(NAME), &options)
        .0
        .unwrap();
    let images = publisher.store.list().unwrap();
    let both = images.iter().find(|image| image.name.as_str() == "both");
    assert!(both.unwrap().verified.contains(&fingerprint));
}

#[test]
fn a_server_that_fails_is_no_proof_of_absence() {
    let publisher = Publisher::of(NAME);
    publisher.fail("SHA256SUMS", 503);
    for verify in [Verify::Checksum, Verify::Signature] {
        let (result, _) = publisher.pull(NAME, verify, &[]);
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Network);
        assert!(
            matches!(&error, ImageError::Download(error) if matches!(error.reason, DownloadReason::Server(503))),
            "{error}"
        );
    }
    let (verified, notices) = publisher.pull(NAME, Verify::Auto, &[]);
    assert_eq!(verified.unwrap(), "none");
    assert!(notices[0].contains("HTTP 503"), "{notices:?}");
    // what is there is enough, whatever else fails
    let sums = format!("{}  {NAME}\n", sha512(&disk()));
    publisher.put("SHA512SUMS", sums.as_bytes());
    let (verified, notices) = publisher.pull(NAME, Verify::Checksum, &[]);
    assert!(verified.unwrap().starts_with("checksum by "));
    assert_eq!(notices, Vec::<String>::new());
    // a signature that cannot be had is a notice, and an error where one is wanted
    publisher.fail("SHA512SUMS.gpg", 500);
    let (verified, notices) = publisher.pull(NAME, Verify::Auto, &[]);
    assert!(verified.unwrap().starts_with("checksum by "));
    assert!(notices[0].contains("HTTP 500"), "{notices:?}");
    let (result, _) = publisher.pull(NAME, Verify::Signature, &[]);
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Network);
    // 403 is how a store of objects says that there is none
    let other = "other.raw";
    publisher.put(other, &disk());
    let forbidden = ["SHA512SUMS", "SHA256SUMS", "CHECKSUM"];
    for name in forbidden {
        publisher.fail(name, 403);
    }
    let (result, _) = publisher.pull(other, Verify::Checksum, &[]);
    let error = problem(result);
    assert!(
        matches!(error, VerifyError::NoChecksumFile { .. }),
        "{error}"
    );
}

#[test]
fn a_host_that_is_not_there_is_said_of_the_image() {
    let publisher = Publisher::of(NAME);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let url = format!("http://127.0.0.1:{port}/{NAME}");
    for verify in [Verify::Auto, Verify::Checksum, Verify::No] {
        let (result, notices) = publisher.pull_with(&url, &publisher.options(verify, &[]));
        let error = result.unwrap_err();
        assert_eq!(error.to_string(), format!("cannot download {url}"));
        assert_eq!(notices, Vec::<String>::new());
    }
}

#[test]
fn what_is_in_the_store_is_verified_again_where_more_is_wanted() {
    let publisher = Publisher::of(NAME);
    let (verified, _) = publisher.pull(NAME, Verify::No, &[]);
    assert_eq!(verified.unwrap(), "none");
    assert_eq!(publisher.downloads(NAME), 1);
    let url = publisher.url(NAME);
    let mut offline = publisher.options(Verify::Checksum, &[]);
    offline.offline = true;
    for reference in [url.as_str(), "debian-12-generic-amd64"] {
        let error = problem(publisher.pull_with(reference, &offline).0);
        assert!(
            matches!(&error, VerifyError::Stored { verified, .. } if verified == "none"),
            "{error}"
        );
    }

    let sums = format!("{}  {NAME}\n", sha256(&disk()));
    publisher.put("SHA256SUMS", sums.as_bytes());
    let checksum = publisher.options(Verify::Checksum, &[]);
    publisher.pull_with(&url, &checksum).0.unwrap();
    assert!(publisher.verified().starts_with("checksum by "));
    assert_eq!(publisher.downloads(NAME), 0, "the digest is known");
    publisher.pull_with(&url, &checksum).0.unwrap();
    assert_eq!(publisher.server.seen().len(), 0, "and so is the file");

    let fingerprint = publisher.gpg.key("signer", &[]);
    let keyring = publisher.gpg.export("signer", false);
    let signature = publisher.gpg.detached("signer", &[], sums.as_bytes());
    publisher.put("SHA256SUMS.gpg", &signature);
    let signed = publisher.options(Verify::Signature, &[&keyring]);
    publisher.pull_with(&url, &signed).0.unwrap();
    assert!(publisher.verified().contains(&fingerprint));
    assert_eq!(publisher.downloads(NAME), 0);
    publisher
        .pull_with("debian-12-generic-amd64", &signed)
        .0
        .unwrap();
    assert_eq!(publisher.server.seen().len(), 0);

    // the publisher has another build by now: it is fetched, and verified too
    let mut newer = disk();
    newer[2 << 20] ^= 1;
    publisher.put(NAME, &newer);
    let sums = format!("{}  {NAME}\n", sha512(&newer));
    publisher.put("SHA256SUMS", sums.as_bytes());
    let signature = publisher.gpg.detached("signer", &[], sums.as_bytes());
    publisher.put("SHA256SUMS.gpg", &signature);
    let mut refresh = signed.clone();
    refresh.refresh = true;
    let image = publisher.pull_with(&url, &refresh).0.unwrap();
    assert_eq!(fs::read(image.path()).unwrap(), newer);
    assert_eq!(publisher.downloads(NAME), 1);
}

#[test]
fn a_checksum_file_that_is_named_must_be_there() {
    let publisher = Publisher::of(NAME);
    let sums = format!("{}  {NAME}\n", sha256(&disk()));
    publisher.put("elsewhere.txt", sums.as_bytes());
    let local = publisher.dir.path().join("sums");
    fs::write(&local, &sums).unwrap();
    for (source, shown) in [
        (
            publisher.url("elsewhere.txt?t=s3cret"),
            publisher.url("elsewhere.txt?t=***"),
        ),
        (local.display().to_string(), local.display().to_string()),
    ] {
        for verify in [Verify::Auto, Verify::Checksum] {
            let mut options = publisher.options(verify, &[]);
            options.checksum_file = Some(source.parse().unwrap());
            let (result, _) = publisher.pull_with(&publisher.url(NAME), &options);
            result.unwrap();
            assert_eq!(publisher.verified(), format!("checksum by {shown}"));
        }
    }
    let missing = publisher.url("missing");
    for verify in [Verify::Auto, Verify::Checksum] {
        let mut options = publisher.options(verify, &[]);
        options.checksum_file = Some(missing.parse().unwrap());
        let error = problem(publisher.pull_with(&publisher.url(NAME), &options).0);
        assert!(
            matches!(&error, VerifyError::NoChecksumFile { tried } if tried[0] == missing),
            "{error}"
        );
        publisher.put("page", b"<html></html>");
        options.checksum_file = Some(publisher.url("page").parse().unwrap());
        let error = problem(publisher.pull_with(&publisher.url(NAME), &options).0);
        assert!(matches!(error, VerifyError::ChecksumFile { .. }), "{error}");
    }
}

#[test]
fn files_on_this_host_have_theirs_beside_them() {
    let publisher = Publisher::of(NAME);
    let dir = publisher.dir.path().join("images");
    fs::create_dir(&dir).unwrap();
    let raw = dir.join("disk.raw");
    fs::write(&raw, disk()).unwrap();
    let raw = raw.to_str().unwrap();
    let auto = publisher.options(Verify::Auto, &[]);
    let checksum = publisher.options(Verify::Checksum, &[]);
    // a file of one's own is used as it is, without a word
    let (image, notices) = publisher.pull_with(raw, &auto);
    assert_eq!(image.unwrap().digest(), None);
    assert_eq!(notices, Vec::<String>::new());
    let mut given = auto.clone();
    given.checksum = Some(format!("sha512:{}", sha512(&disk())).parse().unwrap());
    publisher.pull_with(raw, &given).0.unwrap();
    let error = problem(publisher.pull_with(raw, &checksum).0);
    assert!(
        matches!(error, VerifyError::NoChecksumFile { .. }),
        "{error}"
    );
    fs::write(format!("{raw}.sha512"), format!("{}\n", sha512(&disk()))).unwrap();
    for options in [&auto, &checksum] {
        let image = publisher.pull_with(raw, options).0.unwrap();
        let expected = format!("sha256:{}", sha256(&disk()));
        assert_eq!(image.digest().unwrap().to_string(), expected);
    }
    fs::write(format!("{raw}.sha512"), format!("{}\n", sha512(b"x"))).unwrap();
    for options in [&auto, &checksum] {
        let error = publisher.pull_with(raw, options).0.unwrap_err();
        let by = format!("{raw}.sha512");
        assert!(
            matches!(&error, ImageError::Mismatch { by: Some(file), .. } if *file == by),
            "{error}"
        );
    }

    // what is unpacked into the store is proved by what the store knows of it
    let packed = dir.join("disk.raw.gz");
    let mut gzip = Command::new("gzip")
        .arg("-c")
        .stdin(Stdio::piped())
        .stdout(fs::File::create(&packed).unwrap())
        .spawn()
        .unwrap();
    gzip.stdin.take().unwrap().write_all(&disk()).unwrap();
    assert!(gzip.wait().unwrap().success());
    let shown = packed.to_str().unwrap();
    publisher.pull_with(shown, &auto).0.unwrap();
    assert_eq!(publisher.verified(), "none");
    let fingerprint = publisher.gpg.key("local", &[]);
    let keyring = publisher.gpg.export("local", false);
    let bytes = fs::read(&packed).unwrap();
    let sums = format!("{}  disk.raw.gz\n", sha256(&bytes));
    fs::write(dir.join("SHA256SUMS"), &sums).unwrap();
    let signature = publisher
        .gpg
        .detached("local", &["--armor"], sums.as_bytes());
    fs::write(dir.join("SHA256SUMS.asc"), signature).unwrap();
    let signed = publisher.options(Verify::Signature, &[&keyring]);
    publisher.pull_with(shown, &signed).0.unwrap();
    assert!(publisher.verified().contains(&fingerprint));

    for reference in ["host", dir.to_str().unwrap()] {
        let error = publisher.pull_with(reference, &checksum).0.unwrap_err();
        assert!(matches!(error, ImageError::Unsupported { .. }), "{error}");
    }
}
