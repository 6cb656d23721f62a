//! What is kept on disk of a machine, so that other processes find it.
//!
//! ```text
//! RUN/machines/NAME/lock           held by the process that owns the machine, for as long as it runs
//! RUN/machines/NAME/state.json     the Record, replaced by rename
//! RUN/machines/NAME/notify.sock    where systemd-nspawn reports
//! RUN/machines/NAME/local/         bound into the machine at /local
//! RUN/machines/NAME/base, root,    mount points, seen by the machine's own mount namespace alone
//!                   mounts/PLACE
//! RUN/machines/NAME/supervisor.log what systemd-nspawn says
//! STATE/machines/NAME/upper, work, changes to the root file system, and to each subvolume mounted in it
//!                     mounts/PLACE
//! STATE/machines/NAME/console.log  the machine's console
//! STATE/machines/NAME/kept.json    what the changes of a kept machine belong to
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::error::{MachineError, PathContext as _, SystemContext as _};
use crate::host::{Cgroups, Dirs};
use crate::name::{MachineName, UnitName};
use crate::network::Addresses;
use crate::process::ProcessId;
use crate::user_range::UserRange;

/// How long an owner may take from the record of a machine's end to letting go of its name.
const LET_GO_WITHIN: Duration = Duration::from_secs(5);

/// Where a machine stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Phase {
    /// Being prepared.
    Starting,
    /// Its PID 1 runs; what its units do is for them to say.
    Running,
    /// It has ended; the record is kept for `wait` and `list`.
    Ended,
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Exit status: the units' own, or 125 where the machine failed.
    pub status: u8,
    /// The same in words.
    pub reason: String,
    /// When, in seconds since 1970.
    pub ended_at: u64,
}

/// A machine as other processes see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Machine name.
    pub name: MachineName,
    /// Where it stands.
    pub phase: Phase,
    /// The process that owns it: when that ends, so does the machine.
    pub owner: ProcessId,
    /// The systemd-nspawn process.
    pub supervisor: Option<ProcessId>,
    /// The machine's PID 1, as a host PID.
    pub leader: Option<ProcessId>,
    /// What the root file system is made from.
    pub base: String,
    /// What people call that.
    pub label: String,
    /// The units that were asked for.
    pub units: Vec<UnitName>,
    /// The machine's addresses.
    pub addresses: Option<Addresses>,
    /// The host users the machine's users are mapped to.
    pub user_range: Option<UserRange>,
    /// Whether changes to the root file system are kept.
    pub persist: bool,
    /// Whether this record is kept when the machine has ended.
    pub keep_record: bool,
    /// When it was started, in seconds since 1970.
    pub started_at: u64,
    /// What it said last of what it is doing.
    pub status: String,
    /// What was done otherwise than asked, and why.
    pub notices: Vec<String>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// The machine's cgroup, by its path in the cgroup2 hierarchy.
    pub cgroup: Option<PathBuf>,
}

impl Record {
    /// The cgroup, for killing and removing it.
    pub(crate) fn cgroup(&self) -> Option<Cgroup> {
        self.cgroup.as_deref().map(Cgroup::named)
    }
}

/// What the changes of a kept machine belong to.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) base: String,
    pub(crate) user_range: Option<UserRange>,
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

/// The folders of one machine.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) run: PathBuf,
    pub(crate) state: PathBuf,
}

impl Places {
    pub(crate) fn of(dirs: &Dirs, name: &MachineName) -> Self {
        Self {
            run: machines(&dirs.run).join(name.as_str()),
            state: machines(&dirs.state).join(name.as_str()),
        }
    }

    pub(crate) fn record_file(&self) -> PathBuf {
        self.run.join("state.json")
    }

    pub(crate) fn kept_file(&self) -> PathBuf {
        self.state.join("kept.json")
    }

    /// Reads the record; `None` where there is none.
    pub(crate) fn read_record(&self) -> Result<Option<Record>, MachineError> {
        read_json(&self.record_file())
    }

    pub(crate) fn write_record(&self, record: &Record) -> Result<(), MachineError> {
        write_json(&self.record_file(), record)
    }

    /// Takes the machine's name for this process; `None` where a live process has it.
    pub(crate) fn lock(&self) -> Result<Option<Lock>, MachineError> {
        let path = self.run.join("lock");
        // a lock whose folder was removed between opening and locking is nobody's: bounded tries
        for _ in 0..100 {
            make_private(&self.run)?;
            let file = match OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
            {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.at("open", &path)?,
            };
            let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, error)) => return Err(error).at("lock", &path),
            };
            let mine = lock.metadata().at("read", &path)?;
            match fs::metadata(&path) {
                Ok(there) if (there.dev(), there.ino()) == (mine.dev(), mine.ino()) => {
                    return Ok(Some(Lock { _file: lock }));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).at("read", &path),
            }
        }
        Err(io::Error::from(io::ErrorKind::ResourceBusy)).at("lock", &path)
    }

    /// Takes the machine's name, as [`lock`](Self::lock) does; waits for an owner that has put the machine's end on
    /// record to let go of it, which is the last thing it does.
    pub(crate) fn lock_ended(&self) -> Result<Option<Lock>, MachineError> {
        let deadline = Instant::now() + LET_GO_WITHIN;
        loop {
            let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
                .doing("watch files")?;
            // no folder: nobody to wait for
            let _ = watch.add_watch(&self.run, AddWatchFlags::IN_CLOSE_WRITE);
            if let Some(lock) = self.lock()? {
                return Ok(Some(lock));
            }
            let has_ended = self
                .read_record()?
                .is_some_and(|record| record.phase == Phase::Ended);
            if !has_ended || crate::wait::first_readable(&[watch.as_fd()], deadline)?.is_none() {
                return Ok(None);
            }
        }
    }

    /// Removes what a machine leaves in the run folder, the lock last.
    pub(crate) fn remove_run(&self) -> Result<(), MachineError> {
        remove_all_but(&self.run, &["lock"])?;
        remove_file(&self.run.join("lock"))?;
        // another process may have begun to use it again
        let _ = fs::remove_dir(&self.run);
        Ok(())
    }

    /// Removes all of the run folder but the record.
    pub(crate) fn keep_only_record(&self) -> Result<(), MachineError> {
        remove_all_but(&self.run, &["lock", "state.json"])
    }

    /// Removes the changes to the root file system and all else that outlives a boot.
    pub(crate) fn remove_state(&self) -> Result<(), MachineError> {
        remove_path(&self.state)
    }

    /// Waits until `done` says so of the record; `false` where the deadline, the end of the folder or that of
    /// the process behind `owner` came first.
    ///
    /// `done` is asked first and after each change. With `make`, the folder is made where it is not there yet.
    pub(crate) fn wait_record(
        &self,
        deadline: Instant,
        owner: Option<BorrowedFd<'_>>,
        make: bool,
        mut done: impl FnMut(Option<&Record>) -> bool,
    ) -> Result<bool, MachineError> {
        let what =
            AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_DELETE_SELF;
        loop {
            if make {
                make_private(&self.run)?;
            }
            let owner_ended = owner.is_some_and(crate::process::has_ended);
            // a new watch each time: the folder may be another one by now
            let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
                .doing("watch files")?;
            let is_watched = match watch.add_watch(&self.run, what) {
                Ok(_) => true,
                Err(nix::errno::Errno::ENOENT) => false,
                Err(error) => return Err(error).at("watch", &self.run),
            };
            let record = self.read_record()?;
            if done(record.as_ref()) {
                return Ok(true);
            }
            if owner_ended || !(is_watched || make) {
                return Ok(false);
            }
            if !is_watched {
                continue;
            }
            let fds: Vec<BorrowedFd<'_>> = std::iter::once(watch.as_fd()).chain(owner).collect();
            if crate::wait::first_readable(&fds, deadline)?.is_none() {
                return Ok(false);
            }
        }
    }
}

/// The name of a machine, held for this process.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: Flock<File>,
}

/// Waits for the lock under which machines choose what they must not share.
pub(crate) fn lock_all(dirs: &Dirs) -> Result<Lock, MachineError> {
    make_private(&dirs.run)?;
    let path = dirs.run.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .at("open", &path)?;
    let lock = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .at("lock", &path)?;
    Ok(Lock { _file: lock })
}

/// The folder of all machines below a root.
pub(crate) fn machines(root: &Path) -> PathBuf {
    root.join("machines")
}

/// All records there are, by name.
pub(crate) fn all(dirs: &Dirs) -> Result<Vec<Record>, MachineError> {
    let mut records = Vec::new();
    for name in names(&machines(&dirs.run))? {
        match Places::of(dirs, &name).read_record() {
            Ok(record) => records.extend(record),
            // a damaged record must not hide the others
            Err(MachineError::Record { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    records.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(records)
}

/// The machine names that have a folder below `dir`.
pub(crate) fn names(dir: &Path) -> Result<Vec<MachineName>, MachineError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).at("read", dir),
    };
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(names.collect())
}

/// Makes what is left of a machine whose owner died disappear: processes, cgroup, folders.
///
/// The caller holds the machine's lock.
pub(crate) fn clear(
    places: &Places,
    cgroups: &Cgroups,
    deadline: Instant,
) -> Result<(), MachineError> {
    let record = match places.read_record() {
        Ok(record) => record,
        Err(MachineError::Record { .. }) => None,
        Err(error) => return Err(error),
    };
    if let Some(record) = record {
        if let Some(cgroup) = record.cgroup() {
            cgroup.kill(cgroups, deadline)?;
            cgroup.remove(cgroups)?;
        }
        if !record.persist && !places.kept_file().exists() {
            places.remove_state()?;
        }
    } else if !places.kept_file().exists() {
        places.remove_state()?;
    }
    remove_all_but(&places.run, &["lock"])
}

/// Makes a folder and those above it, closed to other users.
pub(crate) fn make_private(dir: &Path) -> Result<(), MachineError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .at("make", dir)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, MachineError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).at("read", path),
    };
    let value = serde_json::from_slice(&bytes);
    value.map(Some).map_err(|source| MachineError::Record {
        path: path.to_owned(),
        source,
    })
}

/// Replaces a file by rename, so that readers see the old text or the new.
fn write_json(path: &Path, value: &impl Serialize) -> Result<(), MachineError> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|source| MachineError::Record {
        path: path.to_owned(),
        source,
    })?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .tempfile_in(dir)
        .at("write", path)?;
    file.write_all(&bytes).at("write", path)?;
    file.persist(path)
        .map_err(|error| error.error)
        .at("write", path)?;
    Ok(())
}

/// Reads what a kept machine's changes belong to.
pub(crate) fn read_kept(places: &Places) -> Result<Option<Kept>, MachineError> {
    read_json(&places.kept_file())
}

/// Notes what a kept machine's changes belong to.
pub(crate) fn write_kept(places: &Places, kept: &Kept) -> Result<(), MachineError> {
    write_json(&places.kept_file(), kept)
}

fn remove_all_but(dir: &Path, kept: &[&str]) -> Result<(), MachineError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).at("read", dir),
    };
    for entry in entries
        .flatten()
        .filter(|entry| !kept.iter().any(|name| entry.file_name() == *name))
    {
        remove_path(&entry.path())?;
    }
    Ok(())
}

/// Removes a file or a folder with all in it; follows no link and enters no other file system.
pub(crate) fn remove_path(path: &Path) -> Result<(), MachineError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).at("read", path),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).at("remove", path),
        Ok(_) => remove_file(path),
    }
}

fn remove_file(path: &Path) -> Result<(), MachineError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at("remove", path),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> (tempfile::TempDir, Places) {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs {
            state: dir.path().join("state"),
            run: dir.path().join("run"),
        };
        let places = Places::of(&dirs, &"web".parse().unwrap());
        (dir, places)
    }

    #[test]
    fn a_name_is_held_once() {
        let (_dir, places) = places();
        let lock = places.lock().unwrap().unwrap();
        assert!(places.lock().unwrap().is_none());
        drop(lock);
        assert!(places.lock().unwrap().is_some());
    }

    #[test]
    fn removing_a_machine_leaves_no_folder() {
        let (dir, places) = places();
        let _lock = places.lock().unwrap().unwrap();
        fs::create_dir_all(places.run.join("local/systemd")).unwrap();
        places.remove_run().unwrap();
        assert_eq!(names(&machines(&dir.path().join("run"))).unwrap(), []);
    }

    #[test]
    fn a_damaged_record_is_an_error_that_names_the_file() {
        let (_dir, places) = places();
        make_private(&places.run).unwrap();
        fs::write(places.record_file(), "{").unwrap();
        let error = places.read_record().unwrap_err();
        assert!(error.to_string().contains("state.json"), "{error}");
    }
}
