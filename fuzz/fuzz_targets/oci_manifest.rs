//! Any bytes as manifest, index, configuration, credentials or reference of a container image: never a panic, what is
//! accepted is within the limits, and a printed reference parses again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nspawn_image::oci::{AuthFile, Document, ImageConfig, OciReference, Platform};

fuzz_target!(|bytes: &[u8]| {
    for kind in [None, Some("application/vnd.oci.image.index.v1+json")] {
        match Document::parse(bytes, kind) {
            Ok(Document::Index(index)) => {
                assert!(index.manifests.len() <= 1000);
                if let Ok(chosen) = index.choose(&Platform::native()) {
                    assert!(
                        index
                            .manifests
                            .iter()
                            .any(|entry| entry.manifest == *chosen)
                    );
                }
            }
            Ok(Document::Manifest(manifest)) => assert!(manifest.layers.len() <= 500),
            Ok(_) => {}
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    if let Ok(config) = ImageConfig::parse(bytes) {
        assert!(config.diff_ids.len() <= 500);
        let _ = config.platform.to_string();
    }
    if let Ok(file) = AuthFile::parse(bytes) {
        for image in ["debian", "ghcr.io/o/n", "localhost:5000/n"] {
            let image = image.parse().expect("a reference");
            let _ = (file.find(&image), file.helper(&image));
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match text.parse::<OciReference>() {
        Ok(reference) => {
            let shown = reference.to_string();
            assert_eq!(shown.parse(), Ok(reference), "{shown}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
