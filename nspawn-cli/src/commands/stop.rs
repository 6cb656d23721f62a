//! `nspawn-run stop`

use std::time::Duration;

use clap::Args;
use nspawn_core::{Host, MachineError, MachineName};

use crate::error::CommandError;
use crate::options::Global;
use crate::progress::Progress;

/// Shut machines down in order
#[derive(Args, Debug)]
pub(crate) struct StopArgs {
    /// The machines
    #[arg(value_name = "NAME", required = true)]
    names: Vec<MachineName>,
    /// How long each may take before it is killed, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
}

/// Runs the command.
pub(crate) fn run(args: &StopArgs, global: &Global) -> Result<(), CommandError> {
    let host = global.host()?;
    let mut progress = Progress::new(global.quiet);
    for name in &args.names {
        stop(&host, name, Duration::from_secs(args.timeout))?;
        progress.say(&format!("stopped {name}"));
    }
    Ok(())
}

/// Stops a machine; one that has ended already is no error.
fn stop(host: &Host, name: &MachineName, grace: Duration) -> Result<(), CommandError> {
    match host.machine(name) {
        Ok(machine) => Ok(machine.stop(grace)?),
        Err(MachineError::Gone { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
