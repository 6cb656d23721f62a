//! What a host whose PID 1 is systemd does for a machine: a delegated scope, and registration with machined.
//!
//! Source: systemd docs/CONTAINER_INTERFACE, org.freedesktop.systemd1(5), org.freedesktop.machine1(5).

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use futures_util::StreamExt as _;
use zbus::{Connection, MatchRule, MessageStream, ObjectPath, OwnedObjectPath, Variant};

use crate::cgroup::Cgroup;
use crate::error::{Cause, MachineError, SystemContext as _};
use crate::guest::{bus_error, runtime};
use crate::host::Cgroups;
use crate::name::MachineName;
use crate::process::placeholder;

/// How long the host's systemd may take for a job that waits for nothing.
const ANSWER: Duration = Duration::from_secs(30);

/// A delegated scope that a machine's processes join.
#[derive(Debug)]
pub(crate) struct Scope {
    /// The cgroup that is the machine's.
    pub(crate) machine: Cgroup,
    holder: Child,
    holder_cgroup: Cgroup,
}

/// The unit a machine runs in on a systemd host.
pub(crate) fn scope_name(name: &MachineName) -> String {
    format!("nspawn-run-{name}.scope")
}

impl Scope {
    /// Asks the host's systemd for a scope in `machine.slice`.
    ///
    /// A scope cannot be empty, so that a process which waits for its input to end holds it until the
    /// machine's first process is in; it has a cgroup of its own, so that the scope can hand on controllers.
    pub(crate) fn make(name: &MachineName, cgroups: &Cgroups) -> Result<Self, MachineError> {
        let mut command = placeholder();
        let mut holder = command.spawn().doing("hold a scope")?;
        let path = start_scope(name, holder.id()).inspect_err(|_| {
            drop(holder.stdin.take());
            let _ = holder.wait();
        })?;
        let scope = Cgroup::named(path);
        let (holder_cgroup, machine) = (scope.child("holder"), scope.child("machine"));
        holder_cgroup.make(cgroups)?;
        holder_cgroup.add(cgroups, holder.id())?;
        scope.hand_on_controllers(cgroups)?;
        machine.make(cgroups)?;
        Ok(Self {
            machine,
            holder,
            holder_cgroup,
        })
    }

    /// Lets go: from here on the scope lives as long as the machine.
    pub(crate) fn release(mut self, cgroups: &Cgroups) -> Result<(), MachineError> {
        drop(self.holder.stdin.take());
        self.holder.wait().doing("let go of a scope")?;
        self.holder_cgroup.remove(cgroups)
    }
}

/// Starts the scope with `pid` in it and returns its cgroup.
fn start_scope(name: &MachineName, pid: u32) -> Result<String, MachineError> {
    let unit = scope_name(name);
    let description = format!("Machine {name} of nspawn-run");
    let started = runtime()?.block_on(async {
        let connection = Connection::system().await?;
        let rule = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .interface("org.freedesktop.systemd1.Manager")
            .member("JobRemoved")
            .build()?;
        let mut removed = MessageStream::for_match_rule(rule, &connection, None).await?;
        call::<_, ()>(&connection, SYSTEMD, "Subscribe", &()).await?;
        let properties: Vec<(&str, Variant<'_>)> = vec![
            ("Description", Variant::from(description.as_str())),
            ("Slice", Variant::from("machine.slice")),
            ("PIDs", Variant::from(vec![pid])),
            ("Delegate", Variant::from(true)),
            ("CollectMode", Variant::from("inactive-or-failed")),
        ];
        let auxiliary: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
        let body = (unit.as_str(), "replace", properties, auxiliary);
        let job: OwnedObjectPath = call(&connection, SYSTEMD, "StartTransientUnit", &body).await?;
        let wait = async {
            while let Some(message) = removed.next().await {
                let message = message?;
                let body = message.body();
                let (_, path, _, result): (u32, ObjectPath<'_>, &str, &str) = body.deserialize()?;
                if path == *job {
                    return Ok::<_, Cause>(result.to_owned());
                }
            }
            Err("the connection ended".into())
        };
        match tokio::time::timeout(ANSWER, wait).await?? {
            result if result == "done" => Ok::<_, Cause>(()),
            result => Err(format!("the job ended with {result:?}").into()),
        }
    });
    started.map_err(bus_error(&format!("start {unit}")))?;
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).doing("read a cgroup")?;
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
    path.map(str::to_owned)
        .ok_or_else(|| bus_error(&format!("start {unit}"))("it has no cgroup".into()))
}

/// Tells machined of a machine, so that machinectl(1) and `systemctl -M` know it.
///
/// machined forgets it by itself when the scope is gone.
pub(crate) fn register(name: &MachineName, leader: u32, links: &[i32]) -> Result<(), MachineError> {
    let registered = runtime()?.block_on(async {
        let connection = Connection::system().await?;
        let no_id: Vec<u8> = Vec::new();
        // the root is in a mount namespace of the machine's own: no path of the host leads to it
        let body = (
            name.as_str(),
            no_id,
            "nspawn-run",
            "container",
            leader,
            "",
            links.to_vec(),
        );
        let answer =
            call::<_, OwnedObjectPath>(&connection, MACHINED, "RegisterMachineWithNetwork", &body);
        tokio::time::timeout(ANSWER, answer).await??;
        Ok::<_, Cause>(())
    });
    registered.map_err(bus_error(&format!("register machine {name} with machined")))
}

/// Whether a machine of that name is known to machined, which may be one of somebody else's.
pub(crate) fn is_registered(name: &MachineName) -> Result<bool, MachineError> {
    let known = runtime()?.block_on(async {
        let connection = Connection::system().await?;
        Ok::<_, Cause>(
            call::<_, OwnedObjectPath>(&connection, MACHINED, "GetMachine", &(name.as_str(),))
                .await
                .is_ok(),
        )
    });
    known.map_err(bus_error(&format!("ask machined for {name}")))
}

/// A service's bus name, object path and interface.
type Service = (&'static str, &'static str, &'static str);

const SYSTEMD: Service = (
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
);
const MACHINED: Service = (
    "org.freedesktop.machine1",
    "/org/freedesktop/machine1",
    "org.freedesktop.machine1.Manager",
);

async fn call<B, R>(
    connection: &Connection,
    service: Service,
    method: &str,
    body: &B,
) -> Result<R, Cause>
where
    B: serde::Serialize + zbus::DynamicType,
    R: serde::de::DeserializeOwned + zbus::Type,
{
    let (name, path, interface) = service;
    let message = connection
        .call_method(Some(name), path, Some(interface), method, body)
        .await?;
    Ok(message.body().deserialize::<R>()?)
}

/// The index of a network interface of the host.
pub(crate) fn link_index(name: &str) -> Option<i32> {
    let path = Path::new("/sys/class/net").join(name).join("ifindex");
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
