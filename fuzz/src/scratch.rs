//! A folder of one process, in memory where there is such a file system.

use std::fs;
use std::path::{Path, PathBuf};

/// Makes a folder for a target, and removes what earlier runs left, which never end in order.
pub fn scratch_folder(target: &str) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let above = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    let prefix = format!("nspawn-fuzz-{target}-");
    for entry in fs::read_dir(&above).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(&prefix));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = nspawn_image::remove_tree(&entry.path());
        }
    }
    let folder = above.join(format!("{prefix}{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder of our own");
    folder
}
