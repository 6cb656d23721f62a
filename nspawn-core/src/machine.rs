//! A running machine: asked about its units, stopped, killed, waited for.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::error::{MachineError, SystemContext as _};
use crate::exec::EXEC_CGROUP;
use crate::guest::{Manager, Progress, UnitState, Watched};
use crate::host::Host;
use crate::log_tail;
use crate::name::{MachineName, UnitName};
use crate::process::{self, ProcessId};
use crate::record::{self, Outcome, Phase, Places, Record};
use crate::shared::Shared;
use crate::sys;

/// How long killed processes may take to be gone and tidied up after.
pub(crate) const KILL_WITHIN: Duration = Duration::from_secs(30);

/// How long the machine's systemd may take to listen, once its process runs.
const BUS_WITHIN: Duration = Duration::from_secs(10);

/// How long a PID 1 that closed its connections may take to end; after that it is taken to go on.
const LOST_WITHIN: Duration = Duration::from_millis(500);

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

impl Machine {
    pub(crate) fn owned(host: &Host, shared: Arc<Shared>) -> Result<Self, MachineError> {
        let mut machine = Self::attached(host, &shared.record())?;
        machine.owner = Some(shared);
        Ok(machine)
    }

    pub(crate) fn attached(host: &Host, record: &Record) -> Result<Self, MachineError> {
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
        let verdict = self.watch(units, deadline, |states, booted| {
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
        let ended = self.watch(units, Instant::now() + FOREVER, |states, booted| {
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
        });
        match ended {
            Err(MachineError::Gone { .. }) => Ok(None),
            other => other,
        }
    }

    /// Asks `decide` about the units' states now and after each change; `None` where the deadline came first.
    ///
    /// A connection that is lost is made anew where the machine goes on: its systemd was executed anew.
    fn watch<R>(
        &self,
        units: &[UnitName],
        deadline: Instant,
        mut decide: impl FnMut(&[UnitState], bool) -> Option<R>,
    ) -> Result<Option<R>, MachineError> {
        loop {
            match self
                .manager(deadline)?
                .watch(units, deadline, &mut decide)?
            {
                Watched::Answer(answer) => return Ok(Some(answer)),
                Watched::Deadline => return Ok(None),
                Watched::Lost => {
                    // the end of PID 1 follows that of its connections
                    let soon = deadline.min(Instant::now() + LOST_WITHIN);
                    if process::wait_end(&self.leader_fd, soon) {
                        return Err(self.gone());
                    }
                }
            }
        }
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

    /// The last lines of the machine's console.
    #[must_use]
    pub fn console_tail(&self) -> Vec<String> {
        log_tail::read(&self.places.state.join("console.log"))
    }

    /// How the machine ended, as far as its owner has noted it.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        match &self.owner {
            Some(shared) => shared.record().outcome,
            None => self.places.read_record().ok().flatten()?.outcome,
        }
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
        // a PID 1 that does not handle signals yet would never see it; one that listens does
        let _ = Manager::of_machine(self, deadline);
        match sys::ask_to_halt(self.leader_fd()) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                return Err(error).doing("ask the machine's PID 1 to halt");
            }
            _ => {}
        }
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
