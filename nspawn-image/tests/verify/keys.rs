//! Keys that are not here, hold no longer, or may not sign.

use std::fs;

use nspawn_image::{ImageError, Keyring, Verify, VerifyError};

use super::publisher::{Gpg, NAME, OLD, Publisher, packets, problem, sha256};
use super::support::disk;

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

    let stale = publisher.dir.path().join("stale.gpg");
    fs::copy(&keyring, &stale).unwrap();
    gpg.run(&["--quick-set-expire", &expired, "10y"], b"");
    let keyring = gpg.export("expired", false);
    let (verified, _) = publisher.pull(NAME, Verify::Signature, &[&stale, &keyring]);
    assert!(verified.unwrap().starts_with("signature by "));
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

#[test]
fn a_keyring_in_memory_checks_what_it_is_given() {
    let gpg = Gpg::new();
    let fingerprint = gpg.key("owner", &[]);
    let keys = fs::read(gpg.export("owner", false)).unwrap();
    let keyring = Keyring::parse(&keys).unwrap();
    let signature = gpg.detached("owner", &[], b"data");
    assert_eq!(
        keyring.check_detached(&signature, b"data").unwrap(),
        fingerprint
    );
    let other = keyring.check_detached(&signature, b"date").unwrap_err();
    assert!(
        matches!(&other, VerifyError::BadSignature { key, .. } if *key == fingerprint),
        "{other}"
    );
    let text = gpg.clear("owner", "- one\ntwo \n");
    let (signed, key) = keyring.check_clear_signed(&text).unwrap();
    assert_eq!((signed.as_str(), key), ("- one\r\ntwo", fingerprint));
    for nothing in [&b""[..], b"text", b"KBXf", &signature] {
        let error = Keyring::parse(nothing).unwrap_err();
        assert!(matches!(error, VerifyError::Keyring { .. }), "{error}");
        if nothing != signature {
            let error = keyring.check_detached(nothing, b"data").unwrap_err();
            assert!(matches!(error, VerifyError::Malformed { .. }), "{error}");
        }
        let error = keyring.check_clear_signed(nothing).unwrap_err();
        assert!(matches!(error, VerifyError::Malformed { .. }), "{error}");
    }
}
