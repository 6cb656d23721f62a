//! A connection to a systemd manager: the machine's own, or the host's.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use zbus::connection::Builder;
use zbus::message::Type as MessageType;
use zbus::{Connection, MessageStream, OwnedObjectPath, OwnedVariant};

use super::private_socket::{PrivateSocket, authenticate};
use super::unit_state::UnitState;
use crate::error::{Cause, MachineError, PathContext as _, SystemContext as _};
use crate::exec;
use crate::machine::Machine;
use crate::name::UnitName;

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// systemd's private socket, as the machine sees it; `systemctl` uses it as root.
const PRIVATE_SOCKET: &str = "/run/systemd/private";

/// How long a single answer may take; systemd answers from memory.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a machine may take to be gone after its sockets are.
const ENDING: Duration = Duration::from_secs(1);

/// How watching units came to an end.
pub(crate) enum Watched<R> {
    /// There was an answer.
    Answer(R),
    /// The deadline came first.
    Deadline,
    /// The other end is gone: the machine has ended, or its systemd executes itself anew.
    Lost,
}

/// A connection to a systemd manager.
pub(crate) struct Manager {
    connection: Connection,
    changed: Arc<Notify>,
    // after the connection: tasks of the connection live on it
    runtime: tokio::runtime::Runtime,
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").finish_non_exhaustive()
    }
}

impl Manager {
    /// Connects to the machine's systemd as soon as it listens.
    ///
    /// `None` where `deadline` came first or the machine ended.
    pub(crate) fn of_machine(
        machine: &Machine,
        deadline: Instant,
    ) -> Result<Option<Self>, MachineError> {
        let Some(mut stream) = connect_private(machine, deadline)? else {
            return Ok(None);
        };
        let failed = bus_error("connect to the machine's systemd");
        let runtime = runtime()?;
        let left = deadline
            .saturating_duration_since(Instant::now())
            .min(ANSWER);
        let connected = runtime.block_on(async {
            let guid = authenticate(&mut stream, left)?;
            let socket = PrivateSocket::new(stream)?;
            let builder = Builder::authenticated_socket(socket, guid.as_str()).p2p();
            let connection = tokio::time::timeout(left, builder.build()).await??;
            let changed = Arc::new(Notify::new());
            tokio::spawn(note_changes(
                MessageStream::from(&connection),
                Arc::clone(&changed),
            ));
            Ok::<_, Cause>((connection, changed))
        });
        let (connection, changed) = match connected {
            Ok(both) => both,
            Err(_) if is_ending(machine)? => return Ok(None),
            Err(cause) => return Err(failed(cause)),
        };
        Ok(Some(Self {
            connection,
            changed,
            runtime,
        }))
    }

    /// The state of a unit, which is loaded where it is not.
    pub(crate) fn unit(&self, name: &UnitName) -> Result<UnitState, MachineError> {
        let path: OwnedObjectPath = self.call(
            MANAGER_PATH,
            MANAGER,
            "LoadUnit",
            &(name.as_str(),),
            &format!("load {name}"),
        )?;
        let verb = format!("ask for {name}");
        let mut all: HashMap<String, OwnedVariant> =
            self.call(&path, PROPERTIES, "GetAll", &(UNIT,), &verb)?;
        if let Some(interface) = interface_of(name.kind()) {
            let own: HashMap<String, OwnedVariant> =
                self.call(&path, PROPERTIES, "GetAll", &(interface,), &verb)?;
            all.extend(own);
        }
        Ok(UnitState::from_properties(name, &all))
    }

    /// Whether the boot's jobs are done. Source: org.freedesktop.systemd1(5), `FinishTimestampMonotonic`.
    pub(crate) fn is_booted(&self) -> Result<bool, MachineError> {
        let verb = "ask whether the boot is done";
        let when: OwnedVariant = self.call(
            MANAGER_PATH,
            PROPERTIES,
            "Get",
            &(MANAGER, "FinishTimestampMonotonic"),
            verb,
        )?;
        Ok(u64::try_from(&*when).unwrap_or_default() > 0)
    }

    /// Starts, stops or restarts a unit: `method` is `StartUnit`, `StopUnit`, ...
    pub(crate) fn unit_job(&self, method: &str, name: &UnitName) -> Result<(), MachineError> {
        let verb = format!("call {method} for {name}");
        let _: OwnedObjectPath = self.call(
            MANAGER_PATH,
            MANAGER,
            method,
            &(name.as_str(), "replace"),
            &verb,
        )?;
        Ok(())
    }

    /// Sends a signal to all processes of a unit.
    pub(crate) fn kill_unit(&self, name: &UnitName, signal: i32) -> Result<(), MachineError> {
        let verb = format!("send signal {signal} to {name}");
        self.call(
            MANAGER_PATH,
            MANAGER,
            "KillUnit",
            &(name.as_str(), "all", signal),
            &verb,
        )
    }

    /// Asks `decide` about the units' states now and after each change, until it answers.
    pub(crate) fn watch<R>(
        &self,
        names: &[UnitName],
        deadline: Instant,
        mut decide: impl FnMut(&[UnitState], bool) -> Option<R>,
    ) -> Result<Watched<R>, MachineError> {
        loop {
            let asked = names
                .iter()
                .map(|name| self.unit(name))
                .collect::<Result<Vec<_>, _>>();
            let asked = asked.and_then(|states| Ok((states, self.is_booted()?)));
            let (states, booted) = match asked {
                Ok(both) => both,
                Err(error) if self.is_lost(&error) => return Ok(Watched::Lost),
                Err(error) => return Err(error),
            };
            if let Some(answer) = decide(&states, booted) {
                return Ok(Watched::Answer(answer));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let changed = async { tokio::time::timeout(left, self.changed.notified()).await };
            if self.runtime.block_on(changed).is_err() {
                return Ok(Watched::Deadline);
            }
            if self.connection.is_closed() {
                return Ok(Watched::Lost);
            }
        }
    }

    /// Whether an error means that the other end is gone.
    fn is_lost(&self, error: &MachineError) -> bool {
        let cut = |source: &Cause| {
            let source = source.downcast_ref::<zbus::Error>();
            matches!(source, Some(zbus::Error::InputOutput(_)))
        };
        self.connection.is_closed()
            || matches!(error, MachineError::Bus { source, .. } if cut(source))
    }

    fn call<B, R>(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        body: &B,
        verb: &str,
    ) -> Result<R, MachineError>
    where
        B: serde::Serialize + zbus::DynamicType,
        R: DeserializeOwned + zbus::Type,
    {
        let result = self.runtime.block_on(async {
            let call =
                self.connection
                    .call_method(Some(SYSTEMD), path, Some(interface), method, body);
            let message = tokio::time::timeout(ANSWER, call).await??;
            Ok::<R, Cause>(message.body().deserialize::<R>()?)
        });
        result.map_err(bus_error(verb))
    }
}

/// Takes every message off the connection, which would stand still otherwise, and notes changes of units.
async fn note_changes(mut stream: MessageStream, changed: Arc<Notify>) {
    let wanted = ["PropertiesChanged", "JobRemoved", "StartupFinished"];
    while let Some(Ok(message)) = stream.next().await {
        let header = message.header();
        let member = header.member().map(|m| m.as_str());
        if header.message_type() == MessageType::Signal
            && member.is_some_and(|m| wanted.contains(&m))
        {
            changed.notify_one();
        }
    }
    changed.notify_one();
}

/// The D-Bus interface of a type of unit that has a `Result`.
fn interface_of(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "service" => "org.freedesktop.systemd1.Service",
        "socket" => "org.freedesktop.systemd1.Socket",
        "timer" => "org.freedesktop.systemd1.Timer",
        "path" => "org.freedesktop.systemd1.Path",
        "mount" => "org.freedesktop.systemd1.Mount",
        "automount" => "org.freedesktop.systemd1.Automount",
        "swap" => "org.freedesktop.systemd1.Swap",
        "scope" => "org.freedesktop.systemd1.Scope",
        _ => return None,
    })
}

/// A runtime for one connection: the caller blocks, and may itself be a thread of another runtime.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, MachineError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .doing("start a runtime")
}

/// Wraps a cause with what was being done.
pub(crate) fn bus_error(verb: &str) -> impl FnOnce(Cause) -> MachineError + use<> {
    let verb = verb.to_owned();
    |source| MachineError::Bus { verb, source }
}

/// Connects to the private socket, waiting by inotify until systemd has made it.
fn connect_private(
    machine: &Machine,
    deadline: Instant,
) -> Result<Option<UnixStream>, MachineError> {
    let root = PathBuf::from(format!("/proc/{}/root", machine.leader().pid));
    let folders = [root.join("run/systemd"), root.join("run")];
    loop {
        let watch =
            Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).doing("watch files")?;
        // the deepest folder there is: a new entry in it is the next step on the way to the socket
        let watched = folders
            .iter()
            .any(|folder| watch.add_watch(folder, AddWatchFlags::IN_CREATE).is_ok());
        // after the watch is set: what comes now is seen by one or the other
        match exec::connect(machine, PRIVATE_SOCKET) {
            Ok(Ok(stream)) => return Ok(Some(stream)),
            Ok(Err(error)) if waits(&error) => {}
            _ if is_ending(machine)? => return Ok(None),
            Ok(Err(error)) => {
                return Err(error).at("connect to the machine's", Path::new(PRIVATE_SOCKET));
            }
            Err(error) => return Err(error),
        }
        let fds = [watch.as_fd(), machine.leader_fd()];
        if !watched || crate::wait::first_readable(&fds, deadline)? != Some(0) {
            return Ok(None);
        }
    }
}

/// Whether a failed connection means that the machine ends: its sockets are closed a moment before it is gone.
fn is_ending(machine: &Machine) -> Result<bool, MachineError> {
    crate::wait::readable(machine.leader_fd(), Instant::now() + ENDING)
}

/// Whether systemd is only not there yet.
fn waits(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}
