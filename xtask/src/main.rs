//! Development tasks of nspawn-run: `cargo xtask demo|test|setup|fixture|bench|fuzz`.
//!
//! Every task does its own set-up: on a machine with a Rust toolchain and nothing else, `demo` and `test` install
//! what they need with the machine's package manager, say so first, and then do their work.
//!
//! What is ours goes to standard error, what a child prints goes where the child prints it.
//!
//! Exit codes: 0 done, 1 a step failed, 2 usage, 3 this host cannot (not root, no package manager known).

mod commands;
mod console;
mod error;
mod fixture;
mod packages;
mod process;
mod programs;
mod root;
mod tally;
mod workspace;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let cli = commands::Cli::parse();
    match commands::run(&cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
