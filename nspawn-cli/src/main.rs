//! `nspawn-run`: a systemd unit in a system image with one command.
//!
//! The only place of the project that prints, reads the environment and sets exit codes: standard output is
//! the payload's, standard error is ours.

mod cli;
mod commands;
mod error;
mod launch;
mod options;
mod output;
mod progress;
mod signals;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    cli::Cli::parse().run()
}
