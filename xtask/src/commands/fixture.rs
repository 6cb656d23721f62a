//! `cargo xtask fixture`: the images and roots that tests boot.

use super::setup;
use crate::console;
use crate::error::Result;
use crate::fixture::{Fixture, debian, filesystems, systemd_host};
use crate::programs::Purpose;
use crate::root;

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
    build(&debian::FIXTURE, args.force)?;
    build(&filesystems::FIXTURE, args.force)?;
    if args.systemd_host {
        build(&systemd_host::FIXTURE, args.force)?;
    }
    Ok(())
}

/// Builds every fixture that is not there yet.
pub(crate) fn ensure_all() -> Result<()> {
    ensure_debian()?;
    build(&filesystems::FIXTURE, false)?;
    build(&systemd_host::FIXTURE, false)
}

/// Builds the Debian images if they are not there yet.
pub(crate) fn ensure_debian() -> Result<()> {
    build(&debian::FIXTURE, false)
}

fn build(fixture: &Fixture, force: bool) -> Result<()> {
    let dir = fixture.ensure(force)?;
    console::line(format_args!("fixture: {}", dir.display()));
    Ok(())
}
