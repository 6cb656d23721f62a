//! Starting a machine in a process of its own: the monitor.
//!
//! The monitor owns the machine. In the foreground it is a child of the command, and ends the machine when the
//! command is gone, however that ended: its standard input is a pipe that only the command holds. Detached, it
//! lives on: under systemd as a transient service, elsewhere as a process of its own session.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use nspawn_core::{Host, Machine, MachineConfig, MachineSpec, Phase, Record};
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
    order_file: PathBuf,
    monitor: Option<Monitor>,
}

#[derive(Debug)]
struct Monitor {
    child: Child,
    /// Held open: its end tells the monitor that the command is gone.
    lifeline: Option<ChildStdin>,
}

impl Launched {
    /// Lets the monitor end and waits for it: then nothing is left of a machine that was stopped.
    ///
    /// Returns how the machine ended, as the monitor tells it; `None` where it was killed.
    pub(crate) fn finish(mut self) -> Option<u8> {
        let mut monitor = self.monitor.take()?;
        drop(monitor.lifeline.take());
        let status = monitor.child.wait().ok()?;
        let _ = take_report(&self.order_file);
        status.code().and_then(|code| u8::try_from(code).ok())
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
            let message = "the host's systemd did not start the machine's service";
            let error = CommandError::new(Kind::Failure, message).hint("`journalctl -e` shows why");
            return Err(take_report(&order_file).unwrap_or(error));
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
            Ok(Launched {
                machine,
                order_file,
                monitor,
            })
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
            // one that was killed has left what it had made so far
            let lost = host
                .record(config.name())
                .is_ok_and(|record| owner == Some(record.owner) && record.phase != Phase::Ended);
            if lost {
                let _ = host.clear_ended(config.name()); // the next start or `prune` does it else
            }
            Err(take_report(&order_file).unwrap_or_else(|| error.into()))
        }
    }
}

/// Reads what the monitor reported, and removes what it was handed.
fn take_report(order_file: &Path) -> Option<CommandError> {
    let report_file = report_file(order_file);
    let report = std::fs::read(&report_file)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let _ = std::fs::remove_file(&report_file);
    let _ = std::fs::remove_file(order_file);
    report
}

/// Where the monitor says why it could not start the machine.
fn report_file(order_file: &Path) -> PathBuf {
    order_file.with_extension("report")
}

/// Tells the host's systemd that the machine was started, where it asked to be told. Source: sd_notify(3).
pub(crate) fn tell_started() {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Some(path) = std::env::var("NOTIFY_SOCKET")
        .ok()
        .filter(|path| !path.is_empty())
    else {
        return;
    };
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    // a systemd that does not hear it ends the service, which the command reports
    let _ = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address));
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
            .args(["--quiet", "--collect", "--service-type=notify"])
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
