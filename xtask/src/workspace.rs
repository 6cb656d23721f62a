//! Where the workspace and its target folder are.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::error::{Result, TaskError};
use crate::process;

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
    let metadata = metadata()?;
    let dir = metadata["target_directory"].as_str();
    dir.map(PathBuf::from)
        .ok_or_else(|| TaskError::failed("cargo metadata names no target folder"))
}

/// The programs of a package: `bin` or `example`, and the name; sorted by name.
pub(crate) fn programs_of(package: &str) -> Result<Vec<(String, String)>> {
    let metadata = metadata()?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut programs = Vec::new();
    for found in list(&metadata["packages"])
        .iter()
        .filter(|found| found["name"] == package)
    {
        for target in list(&found["targets"]) {
            let kind = target["kind"][0]
                .as_str()
                .filter(|kind| ["bin", "example"].contains(kind));
            if let (Some(kind), Some(name)) = (kind, target["name"].as_str()) {
                programs.push((kind.to_owned(), name.to_owned()));
            }
        }
    }
    programs.sort_by(|one, other| one.1.cmp(&other.1));
    Ok(programs)
}

fn metadata() -> Result<Value> {
    let mut command = cargo();
    command.args(["metadata", "--no-deps", "--format-version=1"]);
    let text = process::run_quietly(&mut command)?;
    serde_json::from_str(&text)
        .map_err(|error| TaskError::failed(format!("cargo metadata: {error}")))
}

/// Where fixtures are kept; the tests look here too.
pub(crate) fn fixture_dir() -> Result<PathBuf> {
    Ok(target_dir()?.join("fixture"))
}
