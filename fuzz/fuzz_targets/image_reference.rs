//! Any text as a reference or digest: never a panic, what is printed parses again, and no password is printed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nspawn_image::{Digest, ImageName, ImageRef, ImageUrl};

fuzz_target!(|text: &str| {
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }
    assert!(
        ImageName::sanitize(text)
            .as_str()
            .parse::<ImageName>()
            .is_ok()
    );
    match text.parse::<ImageRef>() {
        Ok(ImageRef::Url(url)) => {
            let shown = url.to_string();
            let again: ImageUrl = shown.parse().expect("a printed URL is one");
            assert_eq!(again.to_string(), shown, "redacting twice changes nothing");
        }
        Ok(reference) => {
            // The empty path has no text that leads back to it.
            assert_eq!(reference.to_string().parse(), Ok(reference));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
