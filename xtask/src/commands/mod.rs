//! One verb in each file: its arguments and what it does.

mod bench;
mod demo;
mod fixture;
mod fuzz;
mod setup;
mod test;

use clap::{Parser, Subcommand};

use crate::error::Result;

/// Development tasks of nspawn-run
#[derive(Parser, Debug)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    Demo(demo::DemoArgs),
    Test(test::TestArgs),
    Setup(setup::SetupArgs),
    Fixture(fixture::FixtureArgs),
    Bench(bench::BenchArgs),
    Fuzz(fuzz::FuzzArgs),
}

pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Demo(args) => demo::run(args),
        Command::Test(args) => test::run(args),
        Command::Setup(args) => setup::run(args),
        Command::Fixture(args) => fixture::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Fuzz(args) => fuzz::run(args),
    }
}
