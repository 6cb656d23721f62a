//! The machines of this host, whoever started them: found by name, listed, waited for, cleared up after.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use crate::error::MachineError;
use crate::host::{Dirs, Host};
use crate::machine::{KILL_WITHIN, Machine};
use crate::name::MachineName;
use crate::process::{self, ProcessId};
use crate::record::{self, Outcome, Phase, Places, Record};

/// What machines are made from, by their names: of those that run, and of those that have ended and whose changes are
/// kept, as these are of no use without it. A base is a path, as [`Rootfs::describe`](crate::Rootfs::describe) has it.
///
/// # Errors
///
/// [`MachineError::Path`] where a folder cannot be read, [`MachineError::Record`] where it is not known what the changes
/// of a kept machine belong to.
pub fn bases_in_use(dirs: &Dirs) -> Result<Vec<(MachineName, String)>, MachineError> {
    let mut found: Vec<(MachineName, String)> = record::all(dirs)?
        .into_iter()
        .filter(|record| record.phase != Phase::Ended)
        .map(|record| (record.name, record.base))
        .collect();
    for name in record::names(&record::machines(&dirs.state))? {
        if let Some(kept) = record::read_kept(&Places::of(dirs, &name))? {
            found.push((name, kept.base));
        }
    }
    Ok(found)
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
