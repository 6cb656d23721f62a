//! `nspawn-run unit`: the main job.

mod describe;
mod follow;
mod rootfs;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use nspawn_core::{Machine, MachineError, MachineName, Phase, UnitName, UnitResult};
use nspawn_image::{Cancel, ImageRef};

use crate::commands::image::FetchOptions;
use crate::commands::monitor::journal_file;
use crate::error::{CommandError, Kind};
use crate::launch::{Launched, Order, launch};
use crate::options::Global;
use crate::output::{Output, last_lines, written};
use crate::progress::Progress;
use crate::signals;

pub(crate) use describe::MachineArgs;
use follow::Follower;

/// Lines shown of the console of a machine whose systemd does not answer.
const CONSOLE_LINES: usize = 10;

/// Journal lines shown of a unit that failed.
const TAIL_LINES: u32 = 20;

/// How long a machine whose systemd does not answer may take to shut down.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Run units in a machine of their own
///
/// Boots systemd in a machine made from IMAGE, with the unit files on its unit path, and waits until every unit is
/// active. Prints what the units write to the journal, and ends when they have ended, with their exit status: the
/// main process's own, or 128 and the signal that killed it.
#[derive(Args, Debug)]
pub(crate) struct UnitArgs {
    /// Unit files; `web@1.service` is made from `web@.service` beside it, and drop-ins in `NAME.d/` are read too
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    image: ImageOptions,
    #[command(flatten)]
    machine: MachineArgs,
    /// Leave the machine running and return when the units are active
    #[arg(long, short)]
    detach: bool,
    /// How long the units may take to become active, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 90)]
    timeout: u64,
    /// How long the machine may take to shut down before it is killed, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    stop_timeout: u64,
}

/// Where the image comes from.
#[derive(Args, Clone, Debug)]
pub(crate) struct ImageOptions {
    /// `host` (this host's own /usr), a file or folder, an http(s) URL, a container image as oci:NAME:TAG, or the name
    /// of an image in the store or in /var/lib/machines
    #[arg(long, short, value_name = "IMAGE", default_value = "host")]
    image: ImageRef,
    #[command(flatten)]
    fetch: FetchOptions,
}

/// Runs the command and returns the exit status.
pub(crate) fn run(args: &UnitArgs, global: &Global) -> Result<u8, CommandError> {
    let mut progress = Progress::new(global.quiet);
    let config = args.machine.describe(&args.files, args.image.reference())?;
    let host = global.host()?;
    refuse_taken(&host, config.name())?;
    let cancel = Cancel::default();
    let units: Vec<UnitName> = config.unit_names().cloned().collect();
    watch_signals(&host, config.name().clone(), units.clone(), &cancel)?;
    let started = Instant::now();
    // the image stays locked in the store for as long as the machine may need it
    let prepared = rootfs::prepare(&args.image, global, &cancel, &mut progress);
    let (rootfs, _image) = prepared.map_err(|error| signals::interrupted().unwrap_or(error))?;
    let config = args.machine.made_from(&config, rootfs)?;
    progress.say(&format!(
        "starting machine {} from {}",
        config.name(),
        config.spec().label
    ));
    let order = Order {
        machine: config.spec().clone(),
        detached: args.detach,
        grace_s: args.stop_timeout,
    };
    let within = Duration::from_secs(args.timeout);
    let grace = Duration::from_secs(args.stop_timeout);
    let mut notices = 0;
    let launched = launch(&host, &config, &order, within, |record| {
        for notice in record.notices.iter().skip(notices) {
            progress.say(&format!("note: {notice}"));
        }
        notices = record.notices.len();
        if record.phase == Phase::Starting {
            progress.waiting(if record.status.is_empty() {
                "starting"
            } else {
                &record.status
            });
        }
    });
    let launched = launched.map_err(|error| signals::interrupted().unwrap_or(error))?;
    if let Some(error) = signals::interrupted() {
        // it may have come before there was a machine to stop
        stop(launched, grace, &mut progress)?;
        return Err(error);
    }
    say_addresses(&launched.machine, &mut progress);
    if args.detach {
        detached(&launched, global, &units, within, started, &mut progress)
    } else {
        let (stopping, name) = (host.clone(), config.name().clone());
        let stopped_units = units.clone();
        let follower = Follower::new(name.clone(), units.clone(), move || {
            if let Ok(machine) = stopping.machine(&name) {
                stop_units(&machine, &stopped_units);
            }
        });
        let result = attended(&launched, follower, &units, within, started, &mut progress);
        let machine_status = stop(launched, grace, &mut progress)?;
        match result? {
            Some(0) if machine_status.is_some_and(asked_for) => {
                machine_ended(config.name(), machine_status, &mut progress)
            }
            Some(status) => Ok(status),
            None => machine_ended(config.name(), machine_status, &mut progress),
        }
    }
}

/// Whether a machine's exit status was asked for inside, by `systemctl exit`: not a shutdown, reboot or kill.
fn asked_for(status: u8) -> bool {
    !matches!(status, 0 | 133 | 137)
}

/// The exit status where the machine ended before its units: it was shut down from inside, or killed.
fn machine_ended(
    name: &MachineName,
    status: Option<u8>,
    progress: &mut Progress,
) -> Result<u8, CommandError> {
    match status {
        Some(0) => {
            progress.say(&format!("machine {name} was shut down"));
            Ok(0)
        }
        Some(137) => {
            let message = format!("machine {name} was killed");
            Err(CommandError::new(Kind::Payload(137), message))
        }
        Some(status) => {
            let message = format!("machine {name} ended with exit status {status}");
            Err(CommandError::new(Kind::Payload(status), message))
        }
        None => {
            let message = format!("machine {name} was killed with the process that owned it");
            Err(CommandError::new(Kind::Payload(137), message))
        }
    }
}

/// Refuses a name that a running machine has, before an image is downloaded for it.
fn refuse_taken(host: &nspawn_core::Host, name: &MachineName) -> Result<(), CommandError> {
    match host.machine(name) {
        Ok(_) => Err(MachineError::NameTaken { name: name.clone() }.into()),
        Err(_) => Ok(()),
    }
}

/// The first signal stops the units, and with them the machine; the second kills it.
fn watch_signals(
    host: &nspawn_core::Host,
    name: MachineName,
    units: Vec<UnitName>,
    cancel: &Cancel,
) -> Result<(), CommandError> {
    let host = host.clone();
    signals::watch(cancel.clone(), move |count| {
        let Ok(machine) = host.machine(&name) else {
            return;
        };
        if count > 1 {
            let _ = machine.kill();
            return;
        }
        // a thread of its own, so that the second signal is heard meanwhile
        let units = units.clone();
        std::thread::spawn(move || stop_units(&machine, &units));
    })
}

/// Stops the units: the command sees them end, prints their last words and stops the machine.
fn stop_units(machine: &Machine, units: &[UnitName]) {
    let stopped = units.iter().try_for_each(|unit| machine.stop_unit(unit));
    if stopped.is_err() {
        let _ = machine.stop(STOP_WITHIN);
    }
}

fn say_addresses(machine: &Machine, progress: &mut Progress) {
    if let Some(addresses) = machine.record().ok().and_then(|record| record.addresses) {
        progress.say(&format!(
            "machine {} has {} and {}",
            machine.name(),
            addresses.guest_v4,
            addresses.guest_v6
        ));
    }
}

/// Waits until the units are active and leaves the machine to its monitor.
fn detached(
    launched: &Launched,
    global: &Global,
    units: &[UnitName],
    within: Duration,
    started: Instant,
    progress: &mut Progress,
) -> Result<u8, CommandError> {
    let machine = &launched.machine;
    if let Err(error) = wait_active(machine, units, within, started, progress, &mut |_| {}) {
        let log = journal_file(global, machine.name())?;
        let error = failed_unit(machine, error, Some(&log));
        // the monitor ends a machine whose units have all ended; a start that takes too long is ended here
        let _ = machine.stop(Duration::from_secs(10));
        return Err(error);
    }
    Output::stdout().text(&format!("{}\n", machine.name()))?;
    progress.say(&format!(
        "see it with: nspawn-run logs {0} -f; end it with: nspawn-run stop {0}",
        machine.name()
    ));
    Ok(0)
}

/// Follows the units to their end and returns their exit status; `None` where the machine ended first.
fn attended(
    launched: &Launched,
    mut follower: Follower,
    units: &[UnitName],
    within: Duration,
    started: Instant,
    progress: &mut Progress,
) -> Result<Option<u8>, CommandError> {
    let machine = &launched.machine;
    let active = wait_active(machine, units, within, started, progress, &mut |begun| {
        if begun {
            follower.start(machine);
        }
    });
    let result = match active {
        Ok(()) => {
            let ended = machine.wait_all_ended(units);
            written(follower.drain(machine))?;
            if let Some(error) = signals::interrupted() {
                return Err(error);
            }
            exit_status(machine, ended?, progress)
        }
        Err(error) => {
            let drained = written(follower.drain(machine));
            if let Some(error) = signals::interrupted() {
                return Err(error);
            }
            drained?;
            if matches!(error, MachineError::Gone { .. }) {
                return Ok(None);
            }
            Err(failed_unit(machine, error, None))
        }
    };
    progress.waited();
    result
}

/// The exit status of units that were active: the first that is not 0.
fn exit_status(
    machine: &Machine,
    ended: Option<Vec<UnitResult>>,
    progress: &mut Progress,
) -> Result<Option<u8>, CommandError> {
    let Some(results) = ended else {
        return Ok(None);
    };
    for result in &results {
        progress.say(&format!("{} {}", result.unit, result.reason));
    }
    match results.iter().find(|result| result.status != 0) {
        None => Ok(Some(0)),
        Some(failed) => {
            let message = format!("{} {}", failed.unit, failed.reason);
            let error = CommandError::new(Kind::Payload(failed.status), message);
            Err(with_journal(error, machine, &failed.unit, None))
        }
    }
}

/// Waits until all units are active, showing on the way what is waited for.
///
/// `begun` is told at each change whether any unit has begun.
fn wait_active(
    machine: &Machine,
    units: &[UnitName],
    within: Duration,
    started: Instant,
    progress: &mut Progress,
    begun: &mut dyn FnMut(bool),
) -> Result<(), MachineError> {
    let left = within
        .saturating_sub(started.elapsed())
        .max(Duration::from_secs(1));
    let mut told = vec![String::new(); units.len()];
    let result = machine.wait_all_active(units, left, |states| {
        begun(
            states
                .iter()
                .any(|state| state.has_run || state.main_pid > 0),
        );
        let waiting: Vec<String> = states
            .iter()
            .filter(|state| !matches!(state.active_state.as_str(), "active" | "reloading"))
            .map(|state| {
                format!(
                    "{} is {} ({})",
                    state.name, state.active_state, state.sub_state
                )
            })
            .collect();
        progress.waiting(&waiting.join(", "));
        for (told, state) in told.iter_mut().zip(states) {
            let active = state.active_state == "active";
            if active && *told != state.active_state {
                let after = started.elapsed().as_secs_f64();
                progress.waited();
                progress.say(&format!("{} is active after {after:.1} s", state.name));
            }
            told.clone_from(&state.active_state);
        }
    });
    progress.waited();
    result.map_err(|error| match error {
        // what is left of the time is not what the user gave
        MachineError::Deadline { name, what, .. } => MachineError::Deadline {
            name,
            what,
            waited: within,
        },
        other => other,
    })
}

/// Says of a unit that failed what systemd says of it, and shows its last journal lines.
///
/// A monitor that ends the machine meanwhile has written the journal to `log` before.
fn failed_unit(machine: &Machine, error: MachineError, log: Option<&Path>) -> CommandError {
    if let Some(error) = signals::interrupted() {
        return error;
    }
    match &error {
        MachineError::UnitFailed { unit, status, .. } => {
            let command_error = CommandError::new(Kind::Payload(*status), error.to_string());
            with_journal(command_error, machine, unit, log)
        }
        MachineError::Deadline { .. } => {
            let mut command_error = CommandError::from(error);
            let units = machine
                .record()
                .map(|record| record.units)
                .unwrap_or_default();
            for unit in &units {
                let Ok(state) = machine.unit_state(unit) else {
                    // a systemd that does not answer says something on the console at best
                    let console = last_lines(&machine.console_tail().join("\n"), CONSOLE_LINES);
                    return command_error.details("last lines of its console:", &console);
                };
                let line = format!("{unit} is {} ({})", state.active_state, state.sub_state);
                command_error = command_error.details("state:", &line);
                command_error = with_journal(command_error, machine, unit, log);
            }
            command_error
        }
        _ => error.into(),
    }
}

fn with_journal(
    error: CommandError,
    machine: &Machine,
    unit: &UnitName,
    log: Option<&Path>,
) -> CommandError {
    let _ = machine.sync_journal();
    let mut tail = machine.journal_tail(unit, TAIL_LINES).unwrap_or_default();
    if tail.is_empty() {
        let kept = log.and_then(|log| std::fs::read_to_string(log).ok());
        let kept = kept.unwrap_or_default();
        tail = last_lines(&kept, TAIL_LINES as usize);
    }
    error.details(&format!("last journal lines of {unit}:"), &tail)
}

/// Stops the machine and its monitor; returns how the machine ended, `None` where its monitor was killed.
fn stop(
    launched: Launched,
    grace: Duration,
    progress: &mut Progress,
) -> Result<Option<u8>, CommandError> {
    progress.waiting("stopping the machine");
    let stopped = launched.machine.stop(grace);
    let status = launched.finish();
    progress.waited();
    stopped?;
    Ok(status)
}
