//! `nspawn-run wait`

use std::time::Duration;

use clap::Args;

use crate::error::{CommandError, Kind};
use crate::options::{Global, NameArg};
use crate::progress::Progress;

/// Wait until a machine has ended
///
/// The exit status is that of its units.
#[derive(Args, Debug)]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    name: NameArg,
    /// Give up after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = u64::from(u32::MAX), hide_default_value = true)]
    timeout: u64,
}

/// Runs the command and returns the exit status.
pub(crate) fn run(args: &WaitArgs, global: &Global) -> Result<u8, CommandError> {
    let name = &args.name.name;
    let outcome = global
        .host()?
        .wait_machine(name, Duration::from_secs(args.timeout))?;
    match outcome {
        Some(outcome) => {
            Progress::new(global.quiet).say(&format!("machine {name}: {}", outcome.reason));
            Ok(outcome.status)
        }
        None => {
            let message = format!("machine {name} still runs after {} s", args.timeout);
            Err(CommandError::new(Kind::Failure, message))
        }
    }
}
