//! Any bytes as a tar archive or as layers of a container image: never a panic, nothing outside the folder appears or
//! changes, and the limits hold.
//!
//! The first byte tells which; layers are separated by the eight bytes `\0LAYER\0\n`.
#![no_main]

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use nspawn_image::{Limits, TreeWriter};

const SEPARATOR: &[u8] = b"\0LAYER\0\n";
/// Small enough that no input takes long.
const ENTRIES: u64 = 500;
const BYTES: u64 = 1 << 20;

/// A folder of this process, in memory where there is such a file system, with files that must stay as they are.
fn stage() -> &'static Path {
    static STAGE: OnceLock<PathBuf> = OnceLock::new();
    STAGE.get_or_init(|| {
        let stage = nspawn_fuzz::scratch_folder("archive");
        fs::create_dir_all(stage.join("beside/folder")).expect("a folder for the stage");
        for name in ["sentinel", "beside/sentinel", "beside/folder/sentinel"] {
            fs::write(stage.join(name), name).expect("a file on the stage");
        }
        stage
    })
}

/// What is on the stage, the tree left out: path to everything that a change would show in.
fn seen(folder: &Path, found: &mut BTreeMap<PathBuf, (u64, u32, u64, i64, i64)>) {
    for entry in fs::read_dir(folder)
        .expect("the stage can be read")
        .flatten()
    {
        let path = entry.path();
        if path.ends_with("tree") {
            continue;
        }
        let meta = fs::symlink_metadata(&path).expect("the stage can be read");
        // Not the access time, which reading changes.
        let state = (
            meta.ino(),
            meta.mode(),
            meta.nlink(),
            meta.mtime(),
            meta.mtime_nsec(),
        );
        found.insert(path.clone(), state);
        if meta.is_dir() {
            seen(&path, found);
        }
    }
}

/// Entries and bytes of a tree, of which no more is looked at than could be wrong.
fn weigh(folder: &Path, entries: &mut u64, bytes: &mut u64) {
    let Ok(list) = fs::read_dir(folder) else {
        return;
    };
    for entry in list.flatten() {
        *entries += 1;
        if let Ok(meta) = entry.metadata() {
            *bytes += meta.blocks() * 512;
            if meta.is_dir() {
                weigh(&entry.path(), entries, bytes);
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((first, rest)) = input.split_first() else {
        return;
    };
    let stage = stage();
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    seen(stage, &mut before);
    let tree = stage.join("tree");
    let mut limits = Limits::default();
    limits.entries = ENTRIES;
    limits.unpacked = BYTES;
    let mut writer = TreeWriter::create(&tree, &limits).expect("the tree can be made");
    let done = if first % 2 == 0 {
        writer.add_archive(rest)
    } else {
        let mut layers = Vec::new();
        let mut rest = rest;
        while let Some(at) = rest
            .windows(SEPARATOR.len())
            .position(|part| part == SEPARATOR)
        {
            layers.push(&rest[..at]);
            rest = &rest[at + SEPARATOR.len()..];
        }
        layers.push(rest);
        layers
            .into_iter()
            .try_for_each(|layer| writer.add_layer(Cursor::new(layer)))
    };
    match done {
        Ok(()) => writer.finish().unwrap_or(()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    seen(stage, &mut after);
    assert_eq!(before, after, "something outside the tree changed");
    let (mut entries, mut bytes) = (0, 0);
    weigh(&tree, &mut entries, &mut bytes);
    assert!(entries <= ENTRIES, "{entries} entries");
    // Each file takes whole pages.
    assert!(bytes <= BYTES + ENTRIES * 8192, "{bytes} bytes");
    nspawn_image::remove_tree(&tree).expect("the tree can be removed");
});
