//! `nspawn-run manual`: the man pages, from the same source as `--help`.

use std::path::PathBuf;

use clap::{Args, Command};

use crate::error::{CommandError, Kind};

/// Write the man pages to a folder
#[derive(Args, Debug)]
pub(crate) struct ManualArgs {
    /// The folder, which must exist
    folder: PathBuf,
}

/// Runs the command.
pub(crate) fn run(args: &ManualArgs, command: Command) -> Result<(), CommandError> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    clap_mangen::generate_to(command, &args.folder).map_err(|error| {
        let message = format!("cannot write man pages to {}", args.folder.display());
        CommandError::new(Kind::Failure, message).because(error)
    })
}
