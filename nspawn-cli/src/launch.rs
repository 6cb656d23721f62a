//! Starting a machine in a process of its own: the monitor.
//!
//! The monitor owns the machine. In the foreground it is a child of the command, and ends the machine when the
//! command is gone, however that ended: its standard input is a pipe that only the command holds. Detached, it
//! lives on: under systemd as a transient service, elsewhere as a process of its own session.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use nspawn_core::{Host, Machine, MachineConfig, MachineSpec, Record};
use serde::{Deserialize, Serialize};

use crate::error::{CommandError, Kind};

/// What the monitor is to do; handed over in a file that it removes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The machine.
    pub(crate) machine: MachineSpec,
    /// Whether it outlives the command.
    pub(crate) detached: bool,
    /// Seconds for an orderly shutdown.
    pub(crate) grace_s: u64,
}

/// A machine and the process that owns it.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) machine: Machine,
    monitor: Option<Monitor>,
}

#[derive(Debug)]
struct Monitor {
    child: Child,
    /// Held open: its end tells the monitor that the command is gone.
    lifeline: Option<ChildStdin>,
}

impl Launched {
    /// Waits for the end of a machine that others end, and returns its exit status.
    pub(crate) fn wait_end(&mut self) -> u8 {
        let ended = self.monitor.as_mut().map(|monitor| monitor.child.wait());
        match ended {
            Some(Ok(status)) => status.code().and_then(|code| u8::try_from(code).ok()),
            _ => None,
        }
        // the monitor itself was killed, and the machine with it
        .unwrap_or(137)
    }

    /// Lets the monitor end and waits for it: then nothing is left of a machine that was stopped.
    pub(crate) fn finish(mut self) {
        if let Some(mut monitor) = self.monitor.take() {
            drop(monitor.lifeline.take());
            let _ = monitor.child.wait();
        }
    }
}

/// Starts the monitor and waits until the machine's PID 1 runs.
pub(crate) fn launch(
    host: &Host,
    config: &MachineConfig,
    order: &Order,
    within: Duration,
    seen: impl FnMut(&Record),
) -> Result<Launched, CommandError> {
    let on_systemd = order.detached && host.init_is_systemd();
    if on_systemd {
        // the owner's process is not known there, and the record of an earlier one must not be taken for its own
        host.clear_ended(config.name())?;
    }
    let order_file = write_order(host, order)?;
    let report_file = report_file(&order_file);
    let mut command = monitor_command(host, config, &order_file, on_systemd)?;
    let started = command.spawn().map_err(|error| {
        CommandError::new(
            Kind::Failure,
            format!("cannot start {}", command.get_program().display()),
        )
        .because(error)
    });
    let mut child = started.inspect_err(|_| {
        let _ = std::fs::remove_file(&order_file);
    })?;
    let mut monitor = None;
    let mut owner = None;
    if on_systemd {
        let status = child.wait();
        if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
            let _ = std::fs::remove_file(&order_file);
            let message = "the host's systemd did not start the machine's service";
            return Err(
                CommandError::new(Kind::Failure, message).hint("`systemctl --failed` shows why")
            );
        }
    } else {
        owner = nspawn_core::ProcessId::of(child.id());
        let lifeline = child.stdin.take();
        monitor = Some(Monitor { child, lifeline });
    }
    let machine = host.wait_started(config.name(), owner, within, seen);
    match machine {
        Ok(machine) => {
            if order.detached {
                // from here on it is on its own
                monitor = None;
            }
            Ok(Launched { machine, monitor })
        }
        Err(error) => {
            if let Some(mut monitor) = monitor {
                drop(monitor.lifeline.take());
                if order.detached {
                    // a detached one does not watch its lifeline
                    let pid = nix::unistd::Pid::from_raw(monitor.child.id().cast_signed());
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
                }
                let _ = monitor.child.wait();
            }
            let reported = std::fs::read(&report_file)
                .ok()
                .and_then(|bytes| serde_json::from_slice(&bytes).ok());
            let _ = std::fs::remove_file(&report_file);
            let _ = std::fs::remove_file(&order_file);
            Err(reported.unwrap_or_else(|| error.into()))
        }
    }
}

/// Where the monitor says why it could not start the machine.
pub(crate) fn report_file(order_file: &Path) -> PathBuf {
    order_file.with_extension("report")
}

/// Writes an error for the command that waits.
pub(crate) fn report(order_file: &Path, error: &CommandError) {
    let path = report_file(order_file);
    let text = serde_json::to_vec(error).unwrap_or_default();
    let dir = path.parent().unwrap_or(Path::new("/"));
    let written = tempfile::NamedTempFile::new_in(dir).and_then(|mut file| {
        file.write_all(&text)?;
        file.persist(&path).map_err(|error| error.error)
    });
    drop(written);
}

fn write_order(host: &Host, order: &Order) -> Result<PathBuf, CommandError> {
    let dir = host.dirs().run.join("orders");
    let failed = |error: std::io::Error| {
        CommandError::new(Kind::Failure, format!("cannot write to {}", dir.display()))
            .because(error)
    };
    std::fs::create_dir_all(&dir).map_err(failed)?;
    // readable for root alone: it may hold secrets
    let mut file = tempfile::Builder::new()
        .prefix(&order.machine.name)
        .suffix(".json")
        .tempfile_in(&dir)
        .map_err(failed)?;
    serde_json::to_writer(&mut file, order).map_err(|error| failed(error.into()))?;
    file.flush().map_err(failed)?;
    let (_, path) = file.keep().map_err(|error| failed(error.error))?;
    Ok(path)
}

fn monitor_command(
    host: &Host,
    config: &MachineConfig,
    order_file: &Path,
    on_systemd: bool,
) -> Result<Command, CommandError> {
    let program = std::env::current_exe().map_err(|error| {
        CommandError::new(Kind::Failure, "cannot find this program's own file").because(error)
    })?;
    let mut command = if on_systemd {
        let mut command = Command::new("systemd-run");
        command
            .args(["--quiet", "--collect", "--service-type=exec"])
            .arg(format!("--unit=nspawn-run-{}.service", config.name()))
            .arg(format!(
                "--description=Machine {} of nspawn-run",
                config.name()
            ))
            // the monitor stops the machine, and is itself ended last
            .args(["--property=KillMode=mixed", "--property=TimeoutStopSec=90"])
            .arg("--")
            .arg(program);
        command
    } else {
        Command::new(program)
    };
    let dirs = host.dirs();
    command
        .arg("monitor")
        .arg("--root")
        .arg(&dirs.state)
        .arg("--run-root")
        .arg(&dirs.run)
        .arg(order_file);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(command)
}
