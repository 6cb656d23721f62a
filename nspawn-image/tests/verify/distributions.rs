//! What distributions put beside their images, and what may be wrong with it.

use std::time::Duration;

use nspawn_image::{ImageError, Verify, VerifyError};

use super::publisher::{NAME, Publisher, problem, sha256, sha512};
use super::support::disk;

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
        assert!(publisher.store().list().unwrap().is_empty());
    }
    let (verified, _) = publisher.pull(NAME, Verify::Checksum, &[&keyring]);
    assert!(verified.unwrap().starts_with("checksum by "));
    // with no key, the checksum is what is left
    let (verified, notices) = publisher.pull(NAME, Verify::Auto, &[&publisher.no_keys()]);
    assert!(verified.unwrap().starts_with("checksum by "));
    assert!(notices[0].contains(&fingerprint), "{notices:?}");
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
        assert!(publisher.store().list().unwrap().is_empty());
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
