//! Any bytes as signature, clear-signed text or keyring: never a panic; nothing but what a key signed is ever taken as
//! signed, and what is read of a signed text is what the signature covers.
//!
//! The first byte tells which. The keys are in `keys/`; their secret halves are gone.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use nspawn_image::{ChecksumFile, Keyring};

/// What the detached signatures among the seeds sign.
const DATA: &[u8] = include_bytes!("../keys/data");
/// A good signature of it, by the second key.
const SIGNATURE: &[u8] = include_bytes!("../keys/data.sig");
const KEYS: &[u8] = include_bytes!("../keys/keys.pgp");
/// What the clear-signed seeds sign.
const TEXTS: [&str; 2] = [
    include_str!("../keys/text_1"),
    include_str!("../keys/text_2"),
];
/// The keys that may sign: a primary Ed25519 key, and an RSA subkey.
const FINGERPRINTS: &str = include_str!("../keys/fingerprints");

fn keyring() -> &'static Keyring {
    static KEYRING: OnceLock<Keyring> = OnceLock::new();
    KEYRING.get_or_init(|| {
        let keyring = Keyring::parse(KEYS).expect("the keys of the seeds");
        let key = keyring
            .check_detached(SIGNATURE, DATA)
            .expect("a good signature");
        is_known(&key);
        keyring
    })
}

fn is_known(key: &str) {
    assert!(
        FINGERPRINTS.lines().any(|known| known == key),
        "signed by {key}"
    );
}

fuzz_target!(|bytes: &[u8]| {
    let Some((first, bytes)) = bytes.split_first() else {
        return;
    };
    match first % 3 {
        0 => {
            match keyring().check_detached(bytes, DATA) {
                Ok(key) => is_known(&key),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
            let other = [DATA, b"."].concat();
            assert!(
                keyring().check_detached(bytes, &other).is_err(),
                "more is signed than was"
            );
            assert!(
                keyring().check_detached(bytes, &DATA[1..]).is_err(),
                "less is signed than was"
            );
        }
        1 => match keyring().check_clear_signed(bytes) {
            Ok((text, key)) => {
                is_known(&key);
                let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
                assert!(
                    TEXTS.iter().any(|signed| lines(signed) == lines(&text)),
                    "{text:?}"
                );
                assert_eq!(
                    ChecksumFile::parse(bytes),
                    ChecksumFile::parse(text.as_bytes())
                );
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        },
        _ => match Keyring::parse(bytes) {
            Ok(keyring) => match keyring.check_detached(SIGNATURE, DATA) {
                Ok(key) => is_known(&key),
                Err(error) => assert!(!error.to_string().is_empty()),
            },
            Err(error) => assert!(!error.to_string().is_empty()),
        },
    }
});
