//! `cargo xtask fixture`: the images and roots that tests boot.

use super::setup;
use crate::console;
use crate::error::Result;
use crate::fixture::{Fixture, debian, filesystems, systemd_host};
use crate::process;
use crate::programs::Purpose;
use crate::root;
use crate::workspace;

/// Build the images that the tests boot, unless they are there
#[derive(clap::Args, Debug)]
pub(crate) struct FixtureArgs {
    /// Install without asking (also with CI=true in the environment)
    #[arg(long, short)]
    yes: bool,
    /// Build anew even if nothing changed
    #[arg(long)]
    force: bool,
    /// Build the root of the nested systemd host too
    #[arg(long)]
    systemd_host: bool,
}

pub(crate) fn run(args: &FixtureArgs) -> Result<()> {
    root::require("fixture")?;
    setup::prepare(Purpose::Test, args.yes, "fixture")?;
    build_peers()?;
    build(&debian::FIXTURE, args.force)?;
    build(&filesystems::FIXTURE, args.force)?;
    if args.systemd_host {
        build(&systemd_host::FIXTURE, args.force)?;
    }
    Ok(())
}

/// Builds every fixture that is not there yet.
pub(crate) fn ensure_all() -> Result<()> {
    build_peers()?;
    ensure_debian()?;
    build(&filesystems::FIXTURE, false)?;
    build(&systemd_host::FIXTURE, false)
}

/// Builds the Debian images if they are not there yet.
pub(crate) fn ensure_debian() -> Result<()> {
    build(&debian::FIXTURE, false)
}

/// Builds the program that reads qcow2 images with other crates.
fn build_peers() -> Result<()> {
    let target = workspace::target_dir()?.join("peers");
    let mut command = workspace::cargo();
    command
        .args(["build", "--quiet", "--release", "--locked"])
        .args(["--manifest-path", "benches/peers/Cargo.toml"])
        .arg("--target-dir")
        .arg(&target);
    process::run(&mut command)
}

fn build(fixture: &Fixture, force: bool) -> Result<()> {
    let dir = fixture.ensure(force)?;
    console::line(format_args!("fixture: {}", dir.display()));
    Ok(())
}
