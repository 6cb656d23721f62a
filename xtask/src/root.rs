//! Root is checked first, so that nobody waits for a build to learn it.

use std::os::unix::fs::MetadataExt as _;

use crate::error::{Result, TaskError};

/// Tells whether the effective user is root: the owner of `/proc/self` is that user.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Refuses to go on without root, and names the command to type.
pub(crate) fn require(task: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    Err(TaskError::host(format!(
        "`cargo xtask {task}` needs root: it installs packages and boots machines"
    ))
    .hint(format!(
        "type: sudo -E env \"PATH=$PATH\" cargo xtask {task}"
    )))
}
