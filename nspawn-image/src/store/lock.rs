//! Locks between processes: flock(2) on files, which the kernel drops with the process that held them.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::error::{ImageError, PathContext};
use crate::image::ImageLock;
use crate::limits::Cancel;
use crate::place;
use crate::report::Reporter;

/// How often a cancel is seen while another process holds a lock.
const TICK: Duration = Duration::from_millis(100);

/// How often, and after which pause, a blob that is to go is tried again.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// The right to work on one key; other processes wait for it.
#[derive(Debug)]
pub(super) struct KeyLock {
    _file: File,
}

fn open(path: &Path) -> Result<File, ImageError> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .at("open", path)
}

impl KeyLock {
    /// Takes the lock, and says so where it has to wait.
    ///
    /// A lock whose file was removed between opening and locking is nobody's: it is taken anew.
    pub(super) fn wait(
        path: &Path,
        cancel: &Cancel,
        reporter: &mut dyn Reporter,
    ) -> Result<Self, ImageError> {
        let mut told = false;
        loop {
            let file = open(path)?;
            let file = match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => file,
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    if !told {
                        reporter.notice("another process works on this image: waiting for it");
                        told = true;
                    }
                    wait_for(file, path, cancel)?
                }
                Err(error) => return Err(ImageError::io("lock", path, error.into())),
            };
            if same(&file, path) {
                return Ok(Self { _file: file });
            }
            cancel.check()?;
        }
    }

    /// Takes the lock if nobody has it.
    pub(super) fn try_take(path: &Path) -> Option<Self> {
        let file = open(path).ok()?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        same(&file, path).then_some(Self { _file: file })
    }

    /// Removes the lock's file, which whoever waits for it then makes anew.
    pub(super) fn remove(self, path: &Path) -> Result<(), ImageError> {
        fs::remove_file(path).at("remove", path)
    }
}

/// Waits in a thread of its own: it costs nothing, and a cancelled call leaves it to end by itself.
fn wait_for(file: File, path: &Path, cancel: &Cancel) -> Result<File, ImageError> {
    let (sender, receiver) = sync_channel(1);
    let waiter = std::thread::Builder::new()
        .name("lock".to_owned())
        .spawn(move || {
            let result = loop {
                match flock(&file, FlockOperation::LockExclusive) {
                    Err(rustix::io::Errno::INTR) => {}
                    other => break other,
                }
            };
            let _ = sender.send(result.map(|()| file));
        });
    waiter.at("lock", path)?;
    loop {
        cancel.check()?;
        match receiver.recv_timeout(TICK) {
            Ok(result) => return result.at("lock", path),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(ImageError::io(
                    "lock",
                    path,
                    io::ErrorKind::Interrupted.into(),
                ));
            }
        }
    }
}

/// A shared lock on a blob; `None` where it is gone, or goes just now.
pub(super) fn share(path: &Path) -> Result<Option<ImageLock>, ImageError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ImageError::io("open", path, error)),
    };
    // Only a removal and a look at whether it is used hold it alone, both for a moment.
    while let Err(error) = flock(&file, FlockOperation::LockShared) {
        if error != rustix::io::Errno::INTR {
            return Err(ImageError::io("lock", path, error.into()));
        }
    }
    Ok(same(&file, path).then(|| ImageLock(Arc::new(file))))
}

/// The only lock on a blob; `None` where somebody uses it.
pub(super) fn exclude(path: &Path) -> Option<File> {
    let _turn = turn(path)?;
    try_exclude(path)
}

/// Whether somebody uses a blob, or removes it just now.
pub(super) fn is_used(path: &Path) -> bool {
    let Some(_turn) = turn(path) else {
        return false;
    };
    // Let go of before the turn is over.
    try_exclude(path).is_none()
}

/// The right to look whether a blob is used, so that of two who look at once neither takes the other for a user.
fn turn(path: &Path) -> Option<File> {
    let folder = File::open(path.parent()?).ok()?;
    while flock(&folder, FlockOperation::LockExclusive) == Err(rustix::io::Errno::INTR) {}
    Some(folder)
}

fn try_exclude(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    same(&file, path).then_some(file)
}

/// As [`exclude`], with some patience: a process that is just started has copies of its parent's locks for a moment.
pub(super) fn exclude_patiently(path: &Path) -> Option<File> {
    (0..TRIES).find_map(|round| {
        if round > 0 {
            std::thread::sleep(PAUSE);
        }
        exclude(path)
    })
}

/// Whether the name still leads to what was opened.
fn same(file: &File, path: &Path) -> bool {
    place::is_at(file, path).unwrap_or(false)
}
