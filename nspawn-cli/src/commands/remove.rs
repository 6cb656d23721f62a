//! `nspawn-run remove`

use clap::Args;
use nspawn_core::MachineName;

use crate::error::CommandError;
use crate::options::Global;

/// Remove what is kept of machines that have ended: changes, logs, results
#[derive(Args, Debug)]
pub(crate) struct RemoveArgs {
    /// The machines
    #[arg(value_name = "NAME", required = true)]
    names: Vec<MachineName>,
}

/// Runs the command.
pub(crate) fn run(args: &RemoveArgs, global: &Global) -> Result<(), CommandError> {
    let host = global.host()?;
    for name in &args.names {
        host.remove(name)?;
    }
    Ok(())
}
