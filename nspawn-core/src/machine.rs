//! A running machine: asked about its units, stopped, killed, waited for.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::error::MachineError;
use crate::exec::EXEC_CGROUP;
use crate::guest::{Manager, Progress, UnitState};
use crate::host::Host;
use crate::name::{MachineName, UnitName};
use crate::process::{self, ProcessId};
use crate::record::{self, Outcome, Phase, Places, Record};
use crate::spawn::Shared;

/// How long killed processes may take to be gone and tidied up after.
const KILL_WITHIN: Duration = Duration::from_secs(30);

/// How long the machine's systemd may take to listen, once its process runs.
const BUS_WITHIN: Duration = Duration::from_secs(90);

/// Long enough to mean "no deadline".
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// How one unit ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitResult {
    /// The unit.
    pub unit: UnitName,
    /// 0, the main process's exit status, or 128 and its signal.
    pub status: u8,
    /// What systemd says of it.
    pub reason: String,
}

/// A running machine.
///
/// The handle that [`Host::spawn`] returns owns the machine, which ends with it; one from
/// [`Host::machine`] does not.
#[derive(Debug)]
pub struct Machine {
    host: Host,
    name: MachineName,
    places: Places,
    owner: Option<Arc<Shared>>,
    supervisor: OwnedFd,
    leader: ProcessId,
    leader_fd: OwnedFd,
}

impl Host {
    /// Finds a running machine that this or another process started.
    ///
    /// # Errors
    ///
    /// [`MachineError::NoMachine`] where none has the name, [`MachineError::Gone`] where it has ended.
    pub fn machine(&self, name: &MachineName) -> Result<Machine, MachineError> {
        let places = Places::of(&self.dirs, name);
        let record = places
            .read_record()?
            .ok_or_else(|| MachineError::NoMachine { name: name.clone() })?;
        Machine::attached(self, &record)
    }

    /// Waits until the machine that the process `owner` starts runs, and attaches to it.
    ///
    /// `seen` is shown each state of the record on the way. Without `owner`, any process may be the one.
    ///
    /// # Errors
    ///
    /// [`MachineError::EndedEarly`] where it ended, with what its owner recorded; [`MachineError::Gone`] where the
    /// owner ended without a machine; [`MachineError::Deadline`].
    pub fn wait_started(
        &self,
        name: &MachineName,
        owner: Option<ProcessId>,
        within: Duration,
        mut seen: impl FnMut(&Record),
    ) -> Result<Machine, MachineError> {
        let places = Places::of(&self.dirs, name);
        let gone = || MachineError::Gone { name: name.clone() };
        let owner_fd = owner
            .map(|owner| owner.open().map_err(|_| gone()))
            .transpose()?;
        let mut last = None;
        let ready = places.wait_record(
            Instant::now() + within,
            owner_fd.as_ref().map(|fd| fd.as_fd()),
            true,
            |record| {
                // another process may have, or have had, a machine of this name
                last = record
                    .filter(|record| owner.is_none_or(|owner| record.owner == owner))
                    .cloned();
                last.as_ref().is_some_and(|record| {
                    seen(record);
                    record.leader.is_some() || record.phase == Phase::Ended
                })
            },
        )?;
        let failed = match last {
            Some(record) if ready && record.phase != Phase::Ended => {
                return Machine::attached(self, &record);
            }
            Some(Record {
                outcome: Some(outcome),
                ..
            }) => MachineError::EndedEarly {
                name: name.clone(),
                status: format!("status {}", outcome.status),
                said: outcome.reason,
            },
            _ if owner_fd.as_ref().is_some_and(process::has_ended) => gone(),
            _ => MachineError::Deadline {
                name: name.clone(),
                what: "starting".into(),
                waited: within,
            },
        };
        // where the waiting made it and nothing came
        let _ = std::fs::remove_dir(&places.run);
        Err(failed)
    }

    /// The records of all machines, running and ended.
    ///
    /// # Errors
    ///
    /// [`MachineError::Path`] where the folder cannot be read.
    pub fn machines(&self) -> Result<Vec<Record>, MachineError> {
        record::all(&self.dirs)
    }

    /// The record of one machine.
    ///
    /// # Errors
    ///
    /// [`MachineError::NoMachine`] where there is none.
    pub fn record(&self, name: &MachineName) -> Result<Record, MachineError> {
        let record = Places::of(&self.dirs, name).read_record()?;
        record.ok_or_else(|| MachineError::NoMachine { name: name.clone() })
    }

    /// Waits until a machine has ended and tells how; `None` where `within` came first.
    ///
    /// # Errors
    ///
    /// [`MachineError::NoMachine`] where there is none.
    pub fn wait_machine(
        &self,
        name: &MachineName,
        within: Duration,
    ) -> Result<Option<Outcome>, MachineError> {
        let record = self.record(name)?;
        let owner = record.owner.open().ok();
        let places = Places::of(&self.dirs, name);
        // without an owner nothing changes any more
        let within = if owner.is_some() {
            within
        } else {
            Duration::ZERO
        };
        let mut last = Some(record);
        let owner_fd = owner.as_ref().map(|fd| fd.as_fd());
        let ended = places.wait_record(Instant::now() + within, owner_fd, false, |record| {
            let ended = record.is_none_or(|record| record.phase == Phase::Ended);
            if record.is_some() {
                last = record.cloned();
            }
            ended
        })?;
        if owner.is_none()
            && let Some(record) = places.read_record()?
        {
            last = Some(record);
        }
        if !ended && owner.as_ref().is_some_and(|fd| !process::has_ended(fd)) {
            return Ok(None);
        }
        let lost = || Outcome {
            status: 125,
            reason: "its owner was killed".into(),
            ended_at: record::now(),
        };
        let outcome = last.and_then(|record| record.outcome);
        Ok(Some(outcome.unwrap_or_else(lost)))
    }

    /// Removes what is kept of a machine that does not run: its record, its changes, its logs.
    ///
    /// # Errors
    ///
    /// [`MachineError::NameTaken`] where it runs, [`MachineError::NoMachine`] where there is nothing of it.
    pub fn remove(&self, name: &MachineName) -> Result<(), MachineError> {
        let places = Places::of(&self.dirs, name);
        if !places.run.exists() && !places.state.exists() {
            return Err(MachineError::NoMachine { name: name.clone() });
        }
        let _lock = places
            .lock_ended()?
            .ok_or_else(|| MachineError::NameTaken { name: name.clone() })?;
        record::clear(&places, &self.cgroups, Instant::now() + KILL_WITHIN)?;
        places.remove_state()?;
        places.remove_run()
    }

    /// Removes the record of a machine that has ended, so that its name can be waited for anew.
    ///
    /// Does nothing where there is none or it runs; changes that are kept stay.
    ///
    /// # Errors
    ///
    /// [`MachineError::Path`] naming what could not be removed.
    pub fn clear_ended(&self, name: &MachineName) -> Result<(), MachineError> {
        let places = Places::of(&self.dirs, name);
        if !places.run.exists() {
            return Ok(());
        }
        let Some(_lock) = places.lock_ended()? else {
            return Ok(());
        };
        record::clear(&places, &self.cgroups, Instant::now() + KILL_WITHIN)?;
        places.remove_run()
    }

    /// Clears up after machines whose owner was killed, and returns their names.
    ///
    /// Records of machines that ended in order stay, as do the changes of kept machines.
    ///
    /// # Errors
    ///
    /// [`MachineError::Path`] naming what could not be removed.
    pub fn prune(&self) -> Result<Vec<MachineName>, MachineError> {
        let mut pruned = Vec::new();
        let mut names = record::names(&record::machines(&self.dirs.run))?;
        names.extend(record::names(&record::machines(&self.dirs.state))?);
        names.sort();
        names.dedup();
        for name in names {
            let places = Places::of(&self.dirs, &name);
            let ended = |record: &Record| record.phase == Phase::Ended;
            if places
                .read_record()
                .ok()
                .flatten()
                .as_ref()
                .is_some_and(ended)
                || places.kept_file().exists() && !places.run.exists()
            {
                continue;
            }
            // a name that is held is a machine that runs
            let Some(_lock) = places.lock_ended()? else {
                continue;
            };
            record::clear(&places, &self.cgroups, Instant::now() + KILL_WITHIN)?;
            places.remove_run()?;
            pruned.push(name);
        }
        Ok(pruned)
    }
}

impl Machine {
    pub(crate) fn owned(host: &Host, shared: Arc<Shared>) -> Result<Self, MachineError> {
        let mut machine = Self::attached(host, &shared.record())?;
        machine.owner = Some(shared);
        Ok(machine)
    }

    fn attached(host: &Host, record: &Record) -> Result<Self, MachineError> {
        let gone = || MachineError::Gone {
            name: record.name.clone(),
        };
        let supervisor = record
            .supervisor
            .ok_or_else(gone)?
            .open()
            .map_err(|_| gone())?;
        let leader = record.leader.ok_or_else(gone)?;
        let leader_fd = leader.open().map_err(|_| gone())?;
        Ok(Self {
            host: host.clone(),
            name: record.name.clone(),
            places: Places::of(&host.dirs, &record.name),
            owner: None,
            supervisor,
            leader,
            leader_fd,
        })
    }

    /// Machine name.
    #[must_use]
    pub fn name(&self) -> &MachineName {
        &self.name
    }

    /// The machine's PID 1, as a host PID.
    #[must_use]
    pub fn leader(&self) -> ProcessId {
        self.leader
    }

    pub(crate) fn leader_fd(&self) -> BorrowedFd<'_> {
        self.leader_fd.as_fd()
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// What is on record of it now.
    ///
    /// # Errors
    ///
    /// [`MachineError::Gone`] where nothing is kept of it any more.
    pub fn record(&self) -> Result<Record, MachineError> {
        self.places
            .read_record()?
            .ok_or_else(|| MachineError::Gone {
                name: self.name.clone(),
            })
    }

    /// How it ended, where it has and this is the handle that owns it.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        self.owner.as_ref()?.record().outcome
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        process::has_ended(&self.supervisor)
    }

    pub(crate) fn leader_ended(&self) -> bool {
        process::has_ended(&self.leader_fd)
    }

    fn gone(&self) -> MachineError {
        MachineError::Gone {
            name: self.name.clone(),
        }
    }

    fn manager(&self, deadline: Instant) -> Result<Manager, MachineError> {
        let manager = Manager::of_machine(self, deadline)?;
        manager.ok_or_else(|| {
            if self.leader_ended() {
                return self.gone();
            }
            let what = "waiting for its systemd to answer".to_owned();
            MachineError::Deadline {
                name: self.name.clone(),
                what,
                waited: BUS_WITHIN,
            }
        })
    }

    fn answering(&self) -> Result<Manager, MachineError> {
        self.manager(Instant::now() + BUS_WITHIN)
    }

    /// The state of a unit now.
    ///
    /// # Errors
    ///
    /// [`MachineError::Bus`] where the machine's systemd does not answer.
    pub fn unit_state(&self, unit: &UnitName) -> Result<UnitState, MachineError> {
        self.answering()?.unit(unit)
    }

    /// Waits until a unit is active, or has done its work.
    ///
    /// # Errors
    ///
    /// [`MachineError::UnitFailed`] where it failed, [`MachineError::Deadline`], [`MachineError::Gone`].
    pub fn wait_active(&self, unit: &UnitName, within: Duration) -> Result<(), MachineError> {
        self.wait_all_active(std::slice::from_ref(unit), within, |_| {})
    }

    /// Waits until all units are active or have done their work; `seen` is shown each change.
    ///
    /// # Errors
    ///
    /// As [`wait_active`](Self::wait_active), for the first unit that failed.
    pub fn wait_all_active(
        &self,
        units: &[UnitName],
        within: Duration,
        mut seen: impl FnMut(&[UnitState]),
    ) -> Result<(), MachineError> {
        let deadline = Instant::now()
            .checked_add(within)
            .unwrap_or_else(|| Instant::now() + FOREVER);
        let manager = self.manager(deadline)?;
        let verdict = manager.watch(units, deadline, |states, booted| {
            seen(states);
            let mut all_there = true;
            for (state, unit) in states.iter().zip(units) {
                match state.progress(booted) {
                    Progress::Failed { status, reason } => {
                        return Some(Err(MachineError::UnitFailed {
                            unit: unit.clone(),
                            status,
                            reason,
                        }));
                    }
                    Progress::Ended { status, reason } if status != 0 => {
                        return Some(Err(MachineError::UnitFailed {
                            unit: unit.clone(),
                            status,
                            reason,
                        }));
                    }
                    Progress::Waiting => all_there = false,
                    Progress::Active | Progress::Ended { .. } => {}
                }
            }
            all_there.then_some(Ok(()))
        })?;
        verdict.unwrap_or_else(|| {
            if self.has_ended() || self.leader_ended() {
                return Err(self.gone());
            }
            let names: Vec<&str> = units.iter().map(UnitName::as_str).collect();
            let what = format!("starting {}", names.join(", "));
            Err(MachineError::Deadline {
                name: self.name.clone(),
                what,
                waited: within,
            })
        })
    }

    /// Waits until all units have ended, for whatever reason, and tells how each did.
    ///
    /// `None` where the machine ended first.
    ///
    /// # Errors
    ///
    /// [`MachineError::Bus`] where the machine's systemd does not answer.
    pub fn wait_all_ended(
        &self,
        units: &[UnitName],
    ) -> Result<Option<Vec<UnitResult>>, MachineError> {
        let manager = match self.answering() {
            Ok(manager) => manager,
            Err(MachineError::Gone { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        manager.watch(units, Instant::now() + FOREVER, |states, booted| {
            let one = |(state, unit): (&UnitState, &UnitName)| match state.progress(booted) {
                Progress::Ended { status, reason } | Progress::Failed { status, reason } => {
                    Some(UnitResult {
                        unit: unit.clone(),
                        status,
                        reason,
                    })
                }
                Progress::Active | Progress::Waiting => None,
            };
            states.iter().zip(units).map(one).collect()
        })
    }

    /// Starts a unit of the machine.
    ///
    /// # Errors
    ///
    /// [`MachineError::Bus`] with what systemd says.
    pub fn start_unit(&self, unit: &UnitName) -> Result<(), MachineError> {
        self.answering()?.unit_job("StartUnit", unit)
    }

    /// Stops a unit of the machine.
    ///
    /// # Errors
    ///
    /// [`MachineError::Bus`] with what systemd says.
    pub fn stop_unit(&self, unit: &UnitName) -> Result<(), MachineError> {
        self.answering()?.unit_job("StopUnit", unit)
    }

    /// Sends a signal, by its number, to all processes of a unit.
    ///
    /// # Errors
    ///
    /// [`MachineError::Bus`] with what systemd says.
    pub fn kill_unit(&self, unit: &UnitName, signal: i32) -> Result<(), MachineError> {
        self.answering()?.kill_unit(unit, signal)
    }

    /// Notes how the machine's work ended, before it is stopped; the first note stays.
    ///
    /// Only the machine's owner can; for others it does nothing.
    ///
    /// # Errors
    ///
    /// [`MachineError::Path`] where the record cannot be written.
    pub fn set_outcome(&self, status: u8, reason: impl Into<String>) -> Result<(), MachineError> {
        let Some(shared) = &self.owner else {
            return Ok(());
        };
        let outcome = Outcome {
            status,
            reason: reason.into(),
            ended_at: record::now(),
        };
        shared.change(|record| {
            record.outcome.get_or_insert(outcome);
        })
    }

    /// Shuts the machine down, and kills it where it has not ended within `grace`.
    ///
    /// Programs that were run inside with [`command`](Self::command) are killed first.
    ///
    /// Returns when it has ended and nothing is left of it.
    ///
    /// # Errors
    ///
    /// [`MachineError::Deadline`] where not even killing ended it.
    pub fn stop(&self, grace: Duration) -> Result<(), MachineError> {
        // the machine's systemd would wait for processes whose end it is not told
        if let Some(cgroup) = self
            .places
            .read_record()?
            .and_then(|record| record.cgroup())
        {
            cgroup
                .child(EXEC_CGROUP)
                .kill(&self.host.cgroups, Instant::now() + KILL_WITHIN)?;
        }
        let deadline = Instant::now() + grace;
        if self
            .record()
            .is_ok_and(|record| record.phase == Phase::Starting)
        {
            // a PID 1 that does not handle signals yet would never see it
            let _ = Manager::of_machine(self, deadline);
        }
        // systemd-nspawn answers it with SIGRTMIN+3 to the machine's PID 1: halt
        process::send_signal(&self.supervisor, Signal::TERM)?;
        if !process::wait_end(&self.supervisor, deadline) {
            return self.kill();
        }
        self.wait_tidy()
    }

    /// Kills every process of the machine at once.
    ///
    /// Returns when nothing is left of it.
    ///
    /// # Errors
    ///
    /// [`MachineError::Deadline`] where the kernel does not end them.
    pub fn kill(&self) -> Result<(), MachineError> {
        // it is the init of the machine's PID namespace: the kernel ends the others with it
        process::send_signal(&self.supervisor, Signal::KILL)?;
        self.wait_tidy()
    }

    /// Waits until the machine has ended; `false` where `within` came first.
    ///
    /// # Errors
    ///
    /// What [`stop`](Self::stop) says of tidying up.
    pub fn wait(&self, within: Duration) -> Result<bool, MachineError> {
        let deadline = Instant::now()
            .checked_add(within)
            .unwrap_or_else(|| Instant::now() + FOREVER);
        if !process::wait_end(&self.supervisor, deadline) {
            return Ok(false);
        }
        self.wait_tidy().map(|()| true)
    }

    /// Waits until the owner has tidied up; does so itself where the owner is gone.
    fn wait_tidy(&self) -> Result<(), MachineError> {
        let deadline = Instant::now() + KILL_WITHIN;
        let late = || MachineError::Deadline {
            name: self.name.clone(),
            what: "ending its processes".into(),
            waited: KILL_WITHIN,
        };
        if let Some(shared) = &self.owner {
            return shared.wait_end(deadline).map(drop).ok_or_else(late);
        }
        self.host
            .wait_machine(&self.name, KILL_WITHIN)
            .map_or_else(
                |error| {
                    if matches!(error, MachineError::NoMachine { .. }) {
                        Ok(())
                    } else {
                        Err(error)
                    }
                },
                |outcome| outcome.map(drop).ok_or_else(late),
            )?;
        if !self.places.run.exists() {
            return Ok(());
        }
        if let Some(_lock) = self.places.lock_ended()? {
            let ended = self
                .places
                .read_record()?
                .is_some_and(|record| record.phase == Phase::Ended);
            if !ended {
                record::clear(&self.places, &self.host.cgroups, deadline)?;
                self.places.remove_run()?;
            }
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.owner.is_some() && !self.has_ended() {
            let _ = self.kill();
        }
    }
}
