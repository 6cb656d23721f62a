//! `nspawn-run monitor`: the process that owns a machine. Started by `unit`, not by people.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use nspawn_core::{Machine, MachineConfig, MachineName, NoReport, SpawnOptions, UnitName};
use nspawn_image::Cancel;

use crate::error::{CommandError, Kind};
use crate::launch::{Order, report, tell_started};
use crate::options::Global;
use crate::signals;

/// Long enough to mean "until it ends".
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Own a machine until it ends
#[derive(Args, Debug)]
pub(crate) struct MonitorArgs {
    /// What to do, as JSON; the file is removed
    order: PathBuf,
}

/// Runs the command and returns the exit status.
pub(crate) fn run(args: &MonitorArgs, global: &Global) -> Result<u8, CommandError> {
    // out of the terminal's reach: its signals are for the command that started this
    let _ = nix::unistd::setsid();
    let order = read_order(&args.order)?;
    let result = start(&order, global);
    let machine = match result {
        Ok(machine) => Arc::new(machine),
        Err(error) => {
            report(&args.order, &error);
            return Err(error);
        }
    };
    tell_started();
    let grace = Duration::from_secs(order.grace_s);
    let stopper = Arc::clone(&machine);
    signals::watch(Cancel::default(), move |count| {
        let _ = if count > 1 {
            stopper.kill()
        } else {
            stopper.stop(grace)
        };
    })?;
    let watched = Arc::clone(&machine);
    if order.detached {
        let units: Vec<UnitName> = order
            .machine
            .units
            .iter()
            .map(|unit| unit.name().clone())
            .collect();
        let log = journal_file(global, machine.name())?;
        std::thread::spawn(move || end_with_units(&watched, &units, grace, &log));
    } else {
        std::thread::spawn(move || end_with_command(&watched, grace));
    }
    machine.wait(FOREVER)?;
    let Some(outcome) = machine.outcome() else {
        return Ok(0);
    };
    if !order.detached && outcome.status != 0 {
        // read by a command that did not get to see the machine run
        let message = format!(
            "machine {} ended while it started: {}",
            machine.name(),
            outcome.reason
        );
        report(&args.order, &CommandError::new(Kind::Failure, message));
    }
    // read by a command whose machine ended before its units
    Ok(outcome.status)
}

/// Where the journal of a detached machine's units is kept after its end.
pub(crate) fn journal_file(global: &Global, name: &MachineName) -> Result<PathBuf, CommandError> {
    Ok(global
        .dirs()?
        .state
        .join("machines")
        .join(name.as_str())
        .join("journal.txt"))
}

fn read_order(path: &Path) -> Result<Order, CommandError> {
    let failed = |error: std::io::Error| {
        CommandError::new(Kind::Failure, format!("cannot read {}", path.display())).because(error)
    };
    let bytes = std::fs::read(path).map_err(failed)?;
    std::fs::remove_file(path).map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
}

fn start(order: &Order, global: &Global) -> Result<Machine, CommandError> {
    let config = MachineConfig::try_from(order.machine.clone())?;
    let host = global.host()?;
    let options = SpawnOptions {
        keep_record: order.detached,
    };
    Ok(host.spawn_with(&config, options, Arc::new(NoReport))?)
}

/// Ends the machine when the command that started it is gone: its end of the pipe is closed then.
fn end_with_command(machine: &Machine, grace: Duration) {
    let mut stdin = std::io::stdin();
    let mut byte = [0];
    while matches!(stdin.read(&mut byte), Ok(1..)) {}
    let _ = machine.stop(grace);
}

/// Ends the machine when all its units have ended, and notes how they did.
fn end_with_units(machine: &Machine, units: &[UnitName], grace: Duration, log: &Path) {
    // a bus that does not answer is no reason to end a machine that runs
    let Ok(Some(results)) = machine.wait_all_ended(units) else {
        return;
    };
    let failed = results
        .iter()
        .find(|result| result.status != 0)
        .or(results.first());
    if let Some(result) = failed {
        let _ = machine.set_outcome(result.status, format!("{} {}", result.unit, result.reason));
    }
    let _ = machine.sync_journal();
    let mut text = String::new();
    for unit in units {
        text += &machine.journal_tail(unit, 10_000).unwrap_or_default();
    }
    let _ = std::fs::write(log, text);
    let _ = machine.stop(grace);
}
