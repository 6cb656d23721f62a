//! What each mode asks, of whom, and what it makes of the answer.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use nspawn_image::{DownloadReason, ErrorKind, ImageError, Verify, VerifyError};

use super::publisher::{NAME, Publisher, problem, sha256, sha512, spawn};
use super::support::disk;

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
    let images = publisher.store().list().unwrap();
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
    let images = publisher.store().list().unwrap();
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
    let mut command = Command::new("gzip");
    let output = fs::File::create(&packed).unwrap();
    let mut gzip = spawn(command.arg("-c").stdin(Stdio::piped()).stdout(output));
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
