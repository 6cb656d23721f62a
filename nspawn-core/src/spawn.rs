//! From a description to a running machine.
//!
//! A thread of the caller's process makes the machine and stays with it: it enters a mount namespace of its own,
//! puts the root file system together there, makes a PID namespace and starts systemd-nspawn as its PID 1.
//! So the kernel takes everything down, whoever is killed: systemd-nspawn dies with the thread
//! (`PR_SET_PDEATHSIG`), every process of the machine with systemd-nspawn (it is the init of their PID
//! namespace), mounts, loop device and link with the last of them. What stays are empty cgroups and plain
//! folders, which this thread removes, or the next start where it was killed.

use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use crate::cgroup::{self, Cgroup};
use crate::command::{Prepared, argv};
use crate::config::{MachineConfig, Network, Rootfs, UserNamespace};
use crate::error::{MachineError, PathContext as _, SystemContext as _};
use crate::host::{Cgroups, Host};
use crate::machine::Machine;
use crate::network;
use crate::notify::NotifySocket;
use crate::process::{ProcessId, child_by_inner_pid};
use crate::record::{self, Kept, Lock, Outcome, Phase, Places, Record};
use crate::report::{Event, NoReport, Reporter};
use crate::rootfs::{self, IdMap};
use crate::sys::{self, SupervisorSetup};
use crate::systemd_host::{self, Scope};
use crate::unit_path::UnitDir;
use crate::user_range::UserRange;

/// How long systemd-nspawn may take until the machine's PID 1 runs; it waits for nothing outside.
const LEADER_WITHIN: Duration = Duration::from_secs(60);

/// How long the kernel may take to end killed processes.
const KILL_WITHIN: Duration = Duration::from_secs(20);

/// How much of what systemd-nspawn said is shown when it fails, in bytes.
const SAID_MAX: usize = 2000;

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
        let shared = Arc::new(Shared {
            host: self.host.clone(),
            places: self.places.clone(),
            record: Mutex::new(self.record.clone()),
            lock: Mutex::new(Some(lock)),
            ended: Mutex::new(None),
            end: Condvar::new(),
        });
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
            Err(error) => {
                let _ = running.process.open().map(|pidfd| {
                    crate::process::send_signal(&pidfd, rustix::process::Signal::KILL)
                });
                shared.wait_end(Instant::now() + KILL_WITHIN);
                Err(error)
            }
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
        shared.change(|record| record.leader = Some(leader))?;
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
                    let status = shared.wait_end(deadline).unwrap_or_default();
                    return Err(MachineError::EndedEarly {
                        name: name.clone(),
                        status: status.text,
                        said: status.said,
                    });
                }
            }
        }
    }
}

/// What is known when systemd-nspawn runs.
struct Running {
    process: ProcessId,
    range: Option<UserRange>,
    notice: Option<String>,
}

/// How systemd-nspawn ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct End {
    /// Its exit status, or 128 and its signal.
    pub(crate) code: u8,
    /// The same in words.
    pub(crate) text: String,
    /// Its last lines.
    pub(crate) said: String,
}

/// What the machine's threads and its handle share.
#[derive(Debug)]
pub(crate) struct Shared {
    host: Host,
    places: Places,
    record: Mutex<Record>,
    lock: Mutex<Option<Lock>>,
    ended: Mutex<Option<End>>,
    end: Condvar,
}

impl Shared {
    /// Changes the record, in memory and on disk.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Record)) -> Result<(), MachineError> {
        let mut record = held(&self.record);
        change(&mut record);
        self.places.write_record(&record)
    }

    pub(crate) fn record(&self) -> Record {
        held(&self.record).clone()
    }

    /// Waits until the machine has ended and was tidied up; `None` where the deadline came first.
    pub(crate) fn wait_end(&self, deadline: Instant) -> Option<End> {
        let mut ended = held(&self.ended);
        loop {
            if let Some(end) = &*ended {
                return Some(end.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            ended = self
                .end
                .wait_timeout(ended, left)
                .map_or_else(|broken| broken.into_inner().0, |(guard, _)| guard);
        }
    }
}

/// A lock whose holder panicked still guards whole values: each change is one assignment.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What the machine's thread needs to start systemd-nspawn.
struct Supervisor {
    host: Host,
    config: MachineConfig,
    places: Places,
    /// Opened before the machine's mount namespace covers the host's cgroups.
    cgroup_procs: OwnedFd,
    range: Option<UserRange>,
    link: Option<String>,
}

/// The machine's thread: starts systemd-nspawn, waits for its end and tidies up.
///
/// It must live as long as systemd-nspawn, which is killed by the end of the thread that started it.
fn keep(
    supervisor: Supervisor,
    shared: &Shared,
    started: &mpsc::Sender<Result<Running, MachineError>>,
) {
    let (mut child, running) = match supervisor.start() {
        Ok(both) => both,
        Err(error) => {
            supervisor.unmount();
            held(&shared.lock).take();
            let _ = started.send(Err(error));
            return;
        }
    };
    let process = running.process;
    let _ = started.send(Ok(running));
    let status = child.wait();
    supervisor.unmount();
    let said = read_tail(&supervisor.places.run.join("supervisor.log"));
    let end = describe_end(process, status, said);
    let record = {
        let mut record = held(&shared.record);
        record.phase = Phase::Ended;
        record.outcome.get_or_insert_with(|| Outcome {
            status: end.code,
            reason: end.text.clone(),
            ended_at: record::now(),
        });
        record.clone()
    };
    // in this thread's mount namespace the hierarchy is unified, whatever the host's is
    let host = Host {
        cgroups: Cgroups::Unified,
        ..shared.host.clone()
    };
    // the lock goes last, and with it the name
    let _ = tidy(&host, &shared.places, &record, true);
    held(&shared.lock).take();
    *held(&shared.ended) = Some(end);
    shared.end.notify_all();
}

impl Supervisor {
    fn start(&self) -> Result<(Child, Running), MachineError> {
        let (root, range, notice) = self.enter_namespaces()?;
        let prepared = Prepared {
            root,
            local: self.places.run.join("local"),
            user_range: range,
            link: self.link.clone(),
        };
        let log_path = self.places.run.join("supervisor.log");
        let log = File::create(&log_path).at("make", &log_path)?;
        record::make_private(&self.places.state)?;
        let console_path = self.places.state.join("console.log");
        let console = File::create(&console_path).at("make", &console_path)?;
        let mut command = Command::new(&self.host.nspawn);
        command
            .args(argv(&self.config, &prepared, self.host.nspawn_version))
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("LANG", "C.UTF-8")
            .env("NOTIFY_SOCKET", self.places.run.join("notify.sock"))
            // as PID 1 of its namespace it would log to the kernel's log
            .env("SYSTEMD_LOG_TARGET", "console")
            .env("SYSTEMD_LOG_COLOR", "0")
            // the machine's cgroups are cgroup2, whatever the host's are
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(console)
            .stderr(log);
        let setup = SupervisorSetup {
            cgroup_procs: self.cgroup_procs.try_clone().doing("name a cgroup")?,
            parent: pidfd_open(getpid(), PidfdFlags::empty()).doing("watch this process")?,
        };
        sys::before_supervisor(&mut command, setup);
        unshare(CloneFlags::CLONE_NEWPID).doing("make a PID namespace")?;
        let child = command.spawn().doing("start systemd-nspawn")?;
        let process = ProcessId {
            pid: child.id(),
            start_ticks: 0,
        };
        Ok((
            child,
            Running {
                process,
                range,
                notice,
            },
        ))
    }

    /// Enters the machine's mount namespace and puts its root file system together.
    fn enter_namespaces(
        &self,
    ) -> Result<(std::path::PathBuf, Option<UserRange>, Option<String>), MachineError> {
        cgroup::private_mounts()?;
        if matches!(self.host.cgroups, Cgroups::Mixed { .. }) {
            cgroup::mount_private_cgroup2()?;
        }
        if !self.host.init_is_systemd {
            // systemd-nspawn leaves folders there, and complains where it is no tmpfs
            let dir = Path::new("/run/systemd/nspawn");
            fs::create_dir_all(dir).at("make", dir)?;
            mount(
                Some("tmpfs"),
                dir,
                Some("tmpfs"),
                MsFlags::empty(),
                Some("mode=0755"),
            )
            .at("mount a tmpfs at", dir)?;
        }
        let id_map = match self.range {
            Some(range) => Some(IdMap {
                range,
                namespace: range.namespace()?,
            }),
            None => None,
        };
        let spec = self.config.spec();
        match rootfs::assemble(&self.config, &self.places, id_map.as_ref()) {
            Err(MachineError::NoIdMap { what, source })
                if spec.user_namespace == UserNamespace::Auto =>
            {
                self.unmount();
                let root = rootfs::assemble(&self.config, &self.places, None)?;
                let notice = format!(
                    "no user namespace: the file system of {what} cannot be mounted with mapped users ({source}); \
                     root in the machine is root on the host"
                );
                self.note_kept(None)?;
                Ok((root, None, Some(notice)))
            }
            other => {
                let root = other?;
                self.note_kept(self.range)?;
                Ok((root, self.range, None))
            }
        }
    }

    fn note_kept(&self, user_range: Option<UserRange>) -> Result<(), MachineError> {
        let spec = self.config.spec();
        if !spec.persist || self.places.kept_file().exists() {
            return Ok(());
        }
        record::write_kept(
            &self.places,
            &Kept {
                base: spec.rootfs.describe(),
                user_range,
            },
        )
    }

    /// Takes the thread's view of the root file system down; the machine's own goes with the machine.
    fn unmount(&self) {
        for dir in ["root", "base", "base"] {
            let _ = umount2(
                &self.places.run.join(dir),
                MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW,
            );
        }
    }
}

/// Removes what a machine that has ended leaves: cgroups, folders, and the record unless it is kept.
fn tidy(host: &Host, places: &Places, record: &Record, may_keep: bool) -> Result<(), MachineError> {
    if let Some(cgroup) = record.cgroup() {
        cgroup.kill(&host.cgroups, Instant::now() + KILL_WITHIN)?;
        cgroup.remove(&host.cgroups)?;
    }
    if may_keep && record.keep_record {
        if !record.persist {
            record::remove_path(&places.state.join("upper"))?;
            record::remove_path(&places.state.join("work"))?;
        }
        places.keep_only_record()?;
        return places.write_record(record);
    }
    if !record.persist && !places.kept_file().exists() {
        places.remove_state()?;
    }
    places.remove_run()
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
                let _ = shared.change(|record| {
                    if record.phase == Phase::Starting {
                        record.phase = Phase::Running;
                    }
                });
                reporter.event(Event::Booted);
            }
        }
    }
}

fn describe_end(process: ProcessId, status: std::io::Result<ExitStatus>, said: String) -> End {
    use std::os::unix::process::ExitStatusExt as _;
    let (code, text) = match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(0), _) => (0, "the machine was shut down".into()),
            (Some(133), _) => (133, "the machine asked for a reboot".into()),
            (Some(code), _) => (
                u8::try_from(code).unwrap_or(125),
                format!("exit status {code}"),
            ),
            (None, Some(9)) => (137, "killed".into()),
            (None, Some(signal)) => (
                u8::try_from(128 + signal).unwrap_or(125),
                format!("killed by signal {signal}"),
            ),
            (None, None) => (125, "ended".into()),
        },
        Err(error) => (125, format!("process {} was lost: {error}", process.pid)),
    };
    End { code, text, said }
}

/// The last lines of a log, without those that say nothing to the user.
fn read_tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(SAID_MAX)..]).into_owned();
    let noise = [
        "Attempted to remove disk file system",
        "Press ^] three times",
        "Press Ctrl-]",
    ];
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !noise.iter().any(|n| line.contains(n)))
        .collect();
    lines.join("; ")
}
