//! The machine's thread: it makes the machine's namespaces, starts systemd-nspawn, and stays until its end.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use crate::cgroup;
use crate::command::{Prepared, argv};
use crate::config::{MachineConfig, UserNamespace};
use crate::error::{MachineError, PathContext as _, SystemContext as _};
use crate::host::{Cgroups, Host};
use crate::log_tail;
use crate::process::ProcessId;
use crate::record::{self, Kept, Outcome, Phase, Places, Record};
use crate::rootfs::{self, IdMap};
use crate::shared::{End, Shared};
use crate::sys::{self, SupervisorSetup};
use crate::user_range::UserRange;

/// How long the kernel may take to end killed processes.
pub(crate) const KILL_WITHIN: Duration = Duration::from_secs(20);

/// How many lines of a machine's console are part of an error.
const SAID_LINES: usize = 3;

/// What is known when systemd-nspawn runs.
pub(crate) struct Running {
    pub(crate) process: ProcessId,
    pub(crate) range: Option<UserRange>,
    pub(crate) notice: Option<String>,
}

/// What the machine's thread needs to start systemd-nspawn.
pub(crate) struct Supervisor {
    pub(crate) host: Host,
    pub(crate) config: MachineConfig,
    pub(crate) places: Places,
    /// Opened before the machine's mount namespace covers the host's cgroups.
    pub(crate) cgroup_procs: OwnedFd,
    pub(crate) range: Option<UserRange>,
    pub(crate) link: Option<String>,
}

/// The machine's thread: starts systemd-nspawn, waits for its end and tidies up.
///
/// It must live as long as systemd-nspawn, which is killed by the end of the thread that started it.
pub(crate) fn keep(
    supervisor: Supervisor,
    shared: &Shared,
    started: &mpsc::Sender<Result<Running, MachineError>>,
) {
    let (mut child, running) = match supervisor.start() {
        Ok(both) => both,
        Err(error) => {
            supervisor.unmount();
            shared.unlock();
            let _ = started.send(Err(error));
            return;
        }
    };
    let process = running.process;
    let _ = started.send(Ok(running));
    let status = child.wait();
    supervisor.unmount();
    let mut said = log_tail::read(&supervisor.places.run.join("supervisor.log"));
    if said.is_empty() {
        // systemd-nspawn had nothing to say: what the machine's own systemd said last
        said = log_tail::read(&supervisor.places.state.join("console.log"));
        said.drain(..said.len().saturating_sub(SAID_LINES));
    }
    let end = describe_end(process, status, said.join("; "));
    let record = shared.change_unwritten(|record| {
        record.phase = Phase::Ended;
        record.outcome.get_or_insert_with(|| Outcome {
            status: end.code,
            reason: end.reason(),
            ended_at: record::now(),
        });
    });
    // in this thread's mount namespace the hierarchy is unified, whatever the host's is
    let host = Host {
        cgroups: Cgroups::Unified,
        ..supervisor.host.clone()
    };
    // the lock goes last, and with it the name
    let _ = tidy(&host, shared.places(), &record, true);
    shared.unlock();
    shared.set_ended(end);
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
        let mapped = self
            .id_map()
            .and_then(|id_map| rootfs::assemble(&self.config, &self.places, id_map.as_ref()));
        let auto = self.config.spec().user_namespace == UserNamespace::Auto;
        let (root, range, notice) = match mapped {
            Err(MachineError::NoIdMap { what, source }) if auto => {
                self.unmount();
                let root = rootfs::assemble(&self.config, &self.places, None)?;
                let notice = format!(
                    "no user namespace: {what} ({source}); root in the machine is root on the host"
                );
                (root, None, Some(notice))
            }
            other => (other?, self.range, None),
        };
        self.note_kept(range)?;
        Ok((root, range, notice))
    }

    fn id_map(&self) -> Result<Option<IdMap>, MachineError> {
        let Some(range) = self.range else {
            return Ok(None);
        };
        let namespace = range.namespace()?;
        Ok(Some(IdMap { range, namespace }))
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
        let mut dirs = vec![self.places.run.join("root"), self.places.run.join("base")];
        let mounts = fs::read_dir(self.places.run.join("mounts"));
        dirs.extend(
            mounts
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path()),
        );
        let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
        for dir in dirs {
            // a second time, where users are mapped
            while umount2(&dir, flags).is_ok() {}
        }
    }
}

/// Removes what a machine that has ended leaves: cgroups, folders, and the record unless it is kept.
pub(crate) fn tidy(
    host: &Host,
    places: &Places,
    record: &Record,
    may_keep: bool,
) -> Result<(), MachineError> {
    if let Some(cgroup) = record.cgroup() {
        cgroup.kill(&host.cgroups, Instant::now() + KILL_WITHIN)?;
        cgroup.remove(&host.cgroups)?;
    }
    if may_keep && record.keep_record {
        if !record.persist {
            for dir in ["upper", "work", "mounts"] {
                record::remove_path(&places.state.join(dir))?;
            }
        }
        places.keep_only_record()?;
        return places.write_record(record);
    }
    if !record.persist && !places.kept_file().exists() {
        places.remove_state()?;
    }
    places.remove_run()
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
