//! From a description to a running machine.
//!
//! A thread of the caller's process makes the machine and stays with it: it enters a mount namespace of its own,
//! puts the root file system together there, makes a PID namespace and starts systemd-nspawn as its PID 1.
//! So the kernel takes everything down, whoever is killed: systemd-nspawn dies with the thread
//! (`PR_SET_PDEATHSIG`), every process of the machine with systemd-nspawn (it is the init of their PID
//! namespace), mounts, loop device and link with the last of them. What stays are empty cgroups and plain
//! folders, which this thread removes, or the next start where it was killed.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crate::cgroup::Cgroup;
use crate::config::{MachineConfig, Network, Rootfs, UserNamespace};
use crate::error::{MachineError, PathContext as _, SystemContext as _};
use crate::host::Host;
use crate::machine::Machine;
use crate::network;
use crate::notify::NotifySocket;
use crate::process::{ProcessId, child_by_inner_pid};
use crate::record::{self, Lock, Phase, Places, Record};
use crate::report::{Event, NoReport, Reporter};
use crate::shared::{End, Shared};
use crate::supervisor::{KILL_WITHIN, Running, Supervisor, keep, tidy};
use crate::systemd_host::{self, Scope};
use crate::unit_path::UnitDir;
use crate::user_range::UserRange;

/// How long systemd-nspawn may take until the machine's PID 1 runs; it waits for nothing outside.
const LEADER_WITHIN: Duration = Duration::from_secs(60);

/// How long systemd-nspawn may take to end after a machine's PID 1 did.
const ENDS_WITHIN: Duration = Duration::from_millis(500);

/// How a machine is spawned; see [`Host::spawn_with`].
#[derive(Clone, Copy, Debug, Default)]
pub struct SpawnOptions {
    /// Keep the machine's record when it has ended, until it is removed or its name used again.
    pub keep_record: bool,
}

impl Host {
    /// Starts a machine and returns when its PID 1 runs and its network is set up.
    ///
    /// The machine ends with the returned handle, and with the calling process.
    ///
    /// # Errors
    ///
    /// See [`MachineError`]; nothing is left behind.
    pub fn spawn(&self, config: &MachineConfig) -> Result<Machine, MachineError> {
        self.spawn_with(config, SpawnOptions::default(), Arc::new(NoReport))
    }

    /// Starts a machine; its events go to `reporter` for as long as it runs.
    ///
    /// # Errors
    ///
    /// See [`MachineError`]; nothing is left behind.
    pub fn spawn_with(
        &self,
        config: &MachineConfig,
        options: SpawnOptions,
        reporter: Arc<dyn Reporter>,
    ) -> Result<Machine, MachineError> {
        self.check_folders()?;
        let name = config.name();
        let places = Places::of(&self.dirs, name);
        let taken = || MachineError::NameTaken { name: name.clone() };
        let lock = places.lock_ended()?.ok_or_else(taken)?;
        if self.init_is_systemd && systemd_host::is_registered(name)? {
            return Err(taken());
        }
        record::clear(&places, &self.cgroups, Instant::now() + KILL_WITHIN)?;
        let record = self.new_record(config, &places, options).inspect_err(|_| {
            // a failure of the clean-up must not hide what went wrong
            let _ = places.remove_run();
        })?;
        let mut job = Job {
            host: self.clone(),
            config: config.clone(),
            places: places.clone(),
            reporter,
            record,
        };
        let prepared = job.prepare();
        match prepared.and_then(|prepared| job.start(prepared, lock)) {
            Ok(machine) => Ok(machine),
            Err(error) => {
                // a failure of the clean-up must not hide what went wrong
                let _ = tidy(self, &places, &job.record, false);
                Err(error)
            }
        }
    }

    /// overlay's mount options have no escape for these that all kernels know.
    fn check_folders(&self) -> Result<(), MachineError> {
        for dir in [&self.dirs.state, &self.dirs.run] {
            if !dir.is_absolute() || dir.to_string_lossy().contains([',', ':', '\\']) {
                let what = std::io::Error::new(
                    std::io::ErrorKind::InvalidInput,
                    "the path must be absolute and have no comma, colon or backslash",
                );
                return Err(what).at("use the folder", dir);
            }
        }
        Ok(())
    }

    /// Chooses what must not collide with another machine, and writes it down before it is made.
    fn new_record(
        &self,
        config: &MachineConfig,
        places: &Places,
        options: SpawnOptions,
    ) -> Result<Record, MachineError> {
        let name = config.name();
        let spec = config.spec();
        let kept = record::read_kept(places)?;
        let base = spec.rootfs.describe();
        if let Some(kept) = &kept {
            let asked = if spec.persist {
                base.clone()
            } else {
                "nothing (--persist was not given)".into()
            };
            if kept.base != asked {
                return Err(MachineError::OtherBase {
                    name: name.clone(),
                    kept: kept.base.clone(),
                    asked,
                });
            }
        }
        // one process at a time chooses, until its choice is on record
        let _choosing = record::lock_all(&self.dirs)?;
        let others = record::all(&self.dirs)?;
        let others = others
            .iter()
            .filter(|other| other.name != *name && other.phase != Phase::Ended);
        let user_range = match (spec.user_namespace, &kept) {
            (_, Some(kept)) => kept.user_range,
            (UserNamespace::No, None) => None,
            (UserNamespace::Auto | UserNamespace::Yes, None) => {
                let taken: Vec<UserRange> = others
                    .clone()
                    .filter_map(|other| other.user_range)
                    .collect();
                Some(UserRange::pick(name, &taken))
            }
        };
        let addresses = match spec.network {
            Network::Veth => {
                let failed = |source| MachineError::Network {
                    name: name.clone(),
                    what: "choosing its addresses".into(),
                    source,
                };
                let in_use = network::networks_in_use().map_err(failed)?;
                let taken: Vec<_> = others.filter_map(|other| other.addresses.clone()).collect();
                let chosen = network::choose(name, &in_use, &taken);
                Some(chosen.ok_or_else(|| failed("all of 10.213.0.0/16 is in use".into()))?)
            }
            Network::Host | Network::None => None,
        };
        let me = ProcessId::of(std::process::id())
            .ok_or(std::io::ErrorKind::NotFound)
            .map_err(std::io::Error::from)
            .at("read", Path::new("/proc/self/stat"))?;
        let record = Record {
            name: name.clone(),
            phase: Phase::Starting,
            owner: me,
            supervisor: None,
            leader: None,
            base,
            label: spec.label.clone(),
            units: config.unit_names().cloned().collect(),
            addresses,
            user_range,
            persist: spec.persist,
            keep_record: options.keep_record,
            started_at: record::now(),
            status: String::new(),
            notices: Vec::new(),
            outcome: None,
            // on a systemd host the scope's cgroup, known when the scope is made
            cgroup: (!self.init_is_systemd)
                .then(|| format!("/nspawn-run-{name}-{}", me.pid).into()),
        };
        places.write_record(&record)?;
        Ok(record)
    }
}

/// One machine on its way up.
struct Job {
    host: Host,
    config: MachineConfig,
    places: Places,
    reporter: Arc<dyn Reporter>,
    record: Record,
}

/// What was made before the machine's first process.
struct Made {
    scope: Option<Scope>,
    cgroup: Cgroup,
    socket: NotifySocket,
}

impl Job {
    /// Makes folders, cgroup and socket.
    fn prepare(&mut self) -> Result<Made, MachineError> {
        let local = self.places.run.join("local");
        UnitDir::plan(&self.config).write(&local.join("systemd"))?;
        fs::set_permissions(&local, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .at("make", &local)?;
        if !matches!(self.config.spec().rootfs, Rootfs::Host) {
            // its parent stays closed; the machine's root must be able to pass here
            record::make_private(&self.places.state)?;
        }
        let (scope, cgroup) = if self.host.init_is_systemd {
            let scope = Scope::make(self.config.name(), &self.host.cgroups)?;
            let cgroup = scope.machine.clone();
            self.record.cgroup = Some(cgroup.path().to_owned());
            self.places.write_record(&self.record)?;
            (Some(scope), cgroup)
        } else {
            let cgroup = self
                .record
                .cgroup()
                .unwrap_or_else(|| Cgroup::named("/nspawn-run"));
            cgroup.make(&self.host.cgroups)?;
            (None, cgroup)
        };
        let socket = NotifySocket::bind(&self.places.run.join("notify.sock"))?;
        Ok(Made {
            scope,
            cgroup,
            socket,
        })
    }

    /// Starts the machine's thread and waits for the machine's PID 1.
    fn start(&mut self, made: Made, lock: Lock) -> Result<Machine, MachineError> {
        let Made {
            scope,
            cgroup,
            socket,
        } = made;
        let (started_sender, started) = mpsc::channel();
        let shared = Arc::new(Shared::new(self.places.clone(), self.record.clone(), lock));
        let supervisor = Supervisor {
            host: self.host.clone(),
            config: self.config.clone(),
            places: self.places.clone(),
            cgroup_procs: cgroup.open_procs(&self.host.cgroups)?,
            range: self.record.user_range,
            link: self
                .record
                .addresses
                .as_ref()
                .map(|addresses| addresses.link.clone()),
        };
        let thread_shared = Arc::clone(&shared);
        let builder = std::thread::Builder::new().name(format!("machine-{}", self.config.name()));
        builder
            .spawn(move || keep(supervisor, &thread_shared, &started_sender))
            .doing("start a thread")?;
        let gone = || MachineError::Gone {
            name: self.config.name().clone(),
        };
        let mut running = started.recv().map_err(|_| gone())??;
        // looked up here: the machine's thread sees another /proc
        running.process = ProcessId::of(running.process.pid).unwrap_or(running.process);
        self.record.user_range = running.range;
        if let Some(scope) = scope {
            scope.release(&self.host.cgroups)?;
        }
        let machine = self.follow_start(&running, &shared, &socket);
        match machine {
            Ok(machine) => {
                let reporter = Arc::clone(&self.reporter);
                let pidfd = running.process.open().doing("watch systemd-nspawn")?;
                std::thread::Builder::new()
                    .name("machine-notify".into())
                    .spawn(move || listen(&socket, &pidfd, &shared, &*reporter))
                    .doing("start a thread")?;
                Ok(machine)
            }
            Err(error @ MachineError::EndedEarly { .. }) => Err(error),
            Err(error) => {
                // a machine that ends while it is set up makes every step fail in a way of its own
                let ended = shared.wait_end(Instant::now() + ENDS_WITHIN);
                if let Some(end) = ended {
                    return Err(self.ended_early(end));
                }
                let _ = running.process.open().map(|pidfd| {
                    crate::process::send_signal(&pidfd, rustix::process::Signal::KILL)
                });
                shared.wait_end(Instant::now() + KILL_WITHIN);
                Err(error)
            }
        }
    }

    fn ended_early(&self, end: End) -> MachineError {
        MachineError::EndedEarly {
            name: self.config.name().clone(),
            status: end.text,
            said: end.said,
        }
    }

    /// Waits for the leader, sets its network up and puts it on record.
    fn follow_start(
        &self,
        running: &Running,
        shared: &Arc<Shared>,
        socket: &NotifySocket,
    ) -> Result<Machine, MachineError> {
        let name = self.config.name();
        if let Some(notice) = &running.notice {
            self.reporter.event(Event::Notice(notice.clone()));
        }
        shared.change(|record| {
            record.supervisor = Some(running.process);
            record.user_range = running.range;
            record.notices.extend(running.notice.clone());
        })?;
        let leader = self.wait_leader(running, shared, socket)?;
        if let Some(addresses) = &self.record.addresses {
            network::configure(name, leader.pid, addresses)?;
        }
        if self.host.init_is_systemd {
            let link = self
                .record
                .addresses
                .as_ref()
                .and_then(|addresses| systemd_host::link_index(&addresses.link));
            systemd_host::register(name, leader.pid, link.as_slice())?;
        }
        shared.change(|record| {
            record.leader = Some(leader);
            record.phase = Phase::Running;
        })?;
        Machine::owned(&self.host, Arc::clone(shared))
    }

    fn wait_leader(
        &self,
        running: &Running,
        shared: &Shared,
        socket: &NotifySocket,
    ) -> Result<ProcessId, MachineError> {
        let deadline = Instant::now() + LEADER_WITHIN;
        let name = self.config.name();
        loop {
            let pidfd = running.process.open();
            let fds = [
                Some(socket.as_fd()),
                pidfd.as_ref().ok().map(|fd| fd.as_fd()),
            ];
            let fds: Vec<_> = fds.into_iter().flatten().collect();
            let ready = if fds.len() == 2 {
                crate::wait::first_readable(&fds, deadline)?
            } else {
                Some(1)
            };
            match ready {
                None => {
                    return Err(MachineError::Deadline {
                        name: name.clone(),
                        what: "starting its PID 1".into(),
                        waited: LEADER_WITHIN,
                    });
                }
                Some(0) => {
                    let Some(message) = socket.receive()? else {
                        continue;
                    };
                    if let Some(status) = message.status {
                        self.reporter.event(Event::Status(status));
                    }
                    let leader = message
                        .leader_pid
                        .and_then(|pid| child_by_inner_pid(running.process.pid, pid));
                    if let Some(leader) = leader.and_then(ProcessId::of) {
                        return Ok(leader);
                    }
                }
                Some(_) => {
                    return Err(self.ended_early(shared.wait_end(deadline).unwrap_or_default()));
                }
            }
        }
    }
}

/// Passes systemd-nspawn's reports on until it ends.
fn listen(socket: &NotifySocket, supervisor: &OwnedFd, shared: &Shared, reporter: &dyn Reporter) {
    let forever = Duration::from_secs(u64::from(u32::MAX));
    while let Ok(Some(0)) = crate::wait::first_readable(
        &[socket.as_fd(), supervisor.as_fd()],
        Instant::now() + forever,
    ) {
        while let Ok(Some(message)) = socket.receive() {
            if let Some(status) = message.status {
                let _ = shared.change(|record| record.status.clone_from(&status));
                reporter.event(Event::Status(status));
            }
            if message.ready {
                reporter.event(Event::Booted);
            }
        }
    }
}
