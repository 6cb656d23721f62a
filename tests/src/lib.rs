//! What the tests share: fixtures, a private state for the program under test, a web server with faults, a look at the
//! host before and after, and a systemd host inside a machine.
//!
//! Two harnesses use it: `tests/cli/` runs as anybody, `tests/root/` boots machines. A test that needs root is named
//! `root_*` and marked `#[ignore = "needs root"]`; `cargo xtask test` runs these too. Nothing here passes silently where
//! it cannot run: every helper panics and says which command helps.

pub mod cli;
pub mod fixture;
pub mod host;
pub mod http;
pub mod random;
pub mod scene;
pub mod scratch;
mod sys;
pub mod systemd_host;
pub mod usage;
pub mod wait;
