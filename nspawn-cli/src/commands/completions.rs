//! `nspawn-run completions`

use clap::{Args, Command};
use clap_complete::Shell;

use crate::error::CommandError;
use crate::output::Output;

/// Print a shell's completion script
#[derive(Args, Debug)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Runs the command.
pub(crate) fn run(
    args: &CompletionsArgs,
    mut command: Command,
    out: &mut Output,
) -> Result<(), CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "nspawn-run", &mut script);
    out.text(&String::from_utf8_lossy(&script))
}
