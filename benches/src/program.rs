//! The program that users run, as they get it.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use nspawn_tests::fixture::{target_dir, workspace_dir};

/// `nspawn-run`, optimised; built where it is not up to date.
///
/// # Panics
///
/// Where it does not build.
pub fn nspawn_run() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(build).clone()
}

fn build() -> PathBuf {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What cargo sets for a bench would make it build some dependencies anew.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    let status = cargo
        .current_dir(workspace_dir())
        .args(["build", "--quiet", "--release", "--package=nspawn-cli"])
        .status()
        .expect("cargo runs");
    assert!(status.success(), "nspawn-run does not build");
    target_dir().join("release/nspawn-run")
}

/// A worker of systemd's importd, which runs by itself: `systemd-pull`, `systemd-import`.
///
/// # Panics
///
/// Where it is absent.
pub fn importd(name: &str) -> PathBuf {
    let places = ["/usr/lib/systemd", "/lib/systemd"];
    let found = places.map(|place| PathBuf::from(place).join(name));
    found
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{name} is needed (package systemd-container)"))
}
