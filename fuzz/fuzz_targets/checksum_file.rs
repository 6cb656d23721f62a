//! Any bytes as a checksum file: never a panic, every digest stands in the input, every name listed is found, and
//! clear-signing a file changes nothing of it.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use nspawn_image::{ChecksumFile, ChecksumFileError};

/// Names looked up of one input: each is compared with every line.
const NAMES: usize = 64;

fuzz_target!(|bytes: &[u8]| {
    let parsed = ChecksumFile::parse(bytes);
    if let Ok(file) = &parsed {
        assert!(!file.entries().is_empty());
        check(file, bytes);
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if text.contains("-----BEGIN PGP SIGNED MESSAGE-----") || text.starts_with('\u{feff}') {
        return;
    }
    let escaped: String = text
        .split_inclusive('\n')
        .map(|line| {
            if line.starts_with('-') {
                format!("- {line}")
            } else {
                line.to_owned()
            }
        })
        .collect();
    let signed = format!(
        "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{escaped}\n-----BEGIN PGP SIGNATURE-----\n"
    );
    if signed.len() as u64 <= ChecksumFile::LIMIT {
        assert_eq!(ChecksumFile::parse(signed.as_bytes()), parsed);
    }
});

fn check(file: &ChecksumFile, bytes: &[u8]) {
    // The longest run of hexadecimal digits that a digest can stand in is delimited by anything else.
    let input = bytes.to_ascii_lowercase();
    let runs: HashSet<&[u8]> = input
        .split(|byte| !byte.is_ascii_hexdigit())
        .filter(|run| matches!(run.len(), 64 | 128))
        .collect();
    for entry in file.entries() {
        assert!(runs.contains(entry.digest.hex().as_bytes()), "{entry:?}");
    }
    for name in file
        .entries()
        .iter()
        .filter_map(|entry| entry.name.as_deref())
        .take(NAMES)
    {
        let base = name.rsplit('/').next().unwrap_or(name);
        match file.find(base) {
            Ok(Some(digest)) => {
                assert!(file.entries().iter().any(|entry| entry.digest == digest));
            }
            Ok(None) => panic!("{name:?} is listed and not found"),
            Err(ChecksumFileError::Conflict { first, second, .. }) => assert_ne!(first, second),
            Err(other) => panic!("{other}"),
        }
        assert!(file.nearest(base).len() <= 3);
    }
}
