//! What a running machine's threads and its handle share: the record, the lock on its name, its end.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

use crate::error::MachineError;
use crate::record::{Lock, Places, Record};

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

impl End {
    /// How it ended, with what systemd-nspawn said where that was a failure.
    pub(crate) fn reason(&self) -> String {
        if self.code == 0 || self.said.is_empty() {
            return self.text.clone();
        }
        format!("{}: {}", self.text, self.said)
    }
}

/// What the machine's threads and its handle share.
#[derive(Debug)]
pub(crate) struct Shared {
    places: Places,
    record: Mutex<Record>,
    lock: Mutex<Option<Lock>>,
    ended: Mutex<Option<End>>,
    end: Condvar,
}

impl Shared {
    pub(crate) fn new(places: Places, record: Record, lock: Lock) -> Self {
        Self {
            places,
            record: Mutex::new(record),
            lock: Mutex::new(Some(lock)),
            ended: Mutex::new(None),
            end: Condvar::new(),
        }
    }

    /// Changes the record in memory alone, and returns it.
    pub(crate) fn change_unwritten(&self, change: impl FnOnce(&mut Record)) -> Record {
        let mut record = held(&self.record);
        change(&mut record);
        record.clone()
    }

    /// Gives the machine's name free.
    pub(crate) fn unlock(&self) {
        held(&self.lock).take();
    }

    /// Tells everybody who waits that the machine has ended.
    pub(crate) fn set_ended(&self, end: End) {
        *held(&self.ended) = Some(end);
        self.end.notify_all();
    }

    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

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
