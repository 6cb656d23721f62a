//! Where the workspace and its target folder are.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Result, TaskError};

/// The folder that holds the workspace's `Cargo.toml`.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask/ stands in the workspace")
}

/// The cargo that runs this task, so that a toolchain chosen with `+name` stays chosen.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Asks cargo for its target folder: `CARGO_TARGET_DIR` and `build.target-dir` both count.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let output = cargo()
        .args(["metadata", "--no-deps", "--format-version=1"])
        .output()
        .map_err(|error| TaskError::failed(format!("cannot run cargo metadata: {error}")))?;
    serde_json::from_slice::<serde_json::Value>(&output.stdout)
        .ok()
        .and_then(|metadata| metadata["target_directory"].as_str().map(PathBuf::from))
        .ok_or_else(|| {
            TaskError::failed(format!(
                "cargo metadata names no target folder: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ))
        })
}

/// Where fixtures are kept; the tests look here too.
pub(crate) fn fixture_dir() -> Result<PathBuf> {
    Ok(target_dir()?.join("fixture"))
}
