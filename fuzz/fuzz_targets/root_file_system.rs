//! Any bytes as a disk that is looked into: never a panic, nothing takes long, something is said of it, and nothing that
//! is said can steer a terminal.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use nspawn_fuzz::{processor_time, scratch_folder};
use nspawn_image::{ImageError, InspectOptions, Inspection};

/// Processor time for one input.
const TIME: Duration = Duration::from_secs(5);
/// The longest text taken from an image, in characters.
const TEXT: usize = 256;

fn file() -> &'static PathBuf {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| scratch_folder("inspect").join("disk"))
}

fuzz_target!(|bytes: &[u8]| {
    fs::write(file(), bytes).expect("the input's file");
    let start = processor_time();
    let mut options = InspectOptions::default();
    options.limits.virtual_size = 64 << 20;
    match Inspection::of(file(), &options) {
        Ok(found) => check(&found),
        Err(
            ImageError::NoImage { .. } | ImageError::Unsupported { .. } | ImageError::Qcow2 { .. },
        ) => {}
        Err(error) => panic!("{error}"),
    }
    let took = processor_time().saturating_sub(start);
    assert!(took < TIME, "it took {took:?}");
});

fn check(found: &Inspection) {
    assert!(found.os.is_some() || found.unread.is_some() || !found.problems.is_empty());
    let mut said: Vec<&str> = found.unread.as_deref().into_iter().collect();
    for problem in &found.problems {
        said.push(&problem.what);
        said.extend(problem.hint.as_deref());
    }
    let partitions: Vec<String> = found
        .partitions
        .iter()
        .map(|found| found.partition.to_string())
        .collect();
    said.extend(partitions.iter().map(String::as_str));
    if let Some(os) = &found.os {
        let names = [&os.name, &os.id, &os.version];
        let mut short: Vec<&str> = names.into_iter().flatten().map(String::as_str).collect();
        assert!(os.fstab.len() <= TEXT);
        for entry in &os.fstab {
            short.extend([entry.source.as_str(), &entry.target, &entry.kind]);
        }
        short.extend(os.services.iter().map(String::as_str));
        assert!(short.iter().all(|text| text.chars().count() <= TEXT));
        said.extend(short);
    }
    for text in said {
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
}
