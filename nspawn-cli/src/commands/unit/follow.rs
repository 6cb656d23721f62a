//! Printing what units write to their journal, while they run and to the last line.

use std::io::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use nspawn_core::{Journal, JournalCloser, Machine, MachineName, UnitName};

/// Follows the journal of some units on standard output.
pub(super) struct Follower {
    name: MachineName,
    units: Vec<UnitName>,
    /// Called when nobody reads what is printed any more.
    unread: Arc<dyn Fn() + Send + Sync>,
    cursor: Arc<Mutex<Option<String>>>,
    running: Option<(JournalCloser, JoinHandle<io::Result<()>>)>,
}

impl Follower {
    pub(super) fn new(
        name: MachineName,
        units: Vec<UnitName>,
        unread: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            units,
            unread: Arc::new(unread),
            cursor: Arc::default(),
            running: None,
        }
    }

    /// Starts following, where it has not begun yet.
    ///
    /// A machine without journalctl is not followed: what it prints, it prints to its console.
    pub(super) fn start(&mut self, machine: &Machine) {
        if self.running.is_some() {
            return;
        }
        let Ok(journal) = machine.journal(&self.units, None, true) else {
            return;
        };
        let closer = journal.closer();
        let cursor = Arc::clone(&self.cursor);
        let builder = std::thread::Builder::new().name(format!("journal-{}", self.name));
        let unread = Arc::clone(&self.unread);
        let thread = builder.spawn(move || {
            let printed = print(journal, &cursor);
            if printed.is_err() {
                unread();
            }
            printed
        });
        self.running = thread.ok().map(|thread| (closer, thread));
    }

    /// Prints what is left and ends.
    ///
    /// What a unit wrote last may be on its way: journald is asked to write it down, then all after the last
    /// printed entry is read.
    pub(super) fn drain(&mut self, machine: &Machine) -> io::Result<()> {
        let alive = machine.sync_journal().is_ok();
        let mut result = Ok(());
        if let Some((closer, thread)) = self.running.take() {
            closer.close();
            result = thread.join().unwrap_or(Ok(()));
        }
        if alive && result.is_ok() {
            let after = self
                .cursor
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            if let Ok(journal) = machine.journal(&self.units, after.as_deref(), false) {
                result = print(journal, &self.cursor);
            }
        }
        result
    }
}

/// Prints entries until the reader ends, noting the last one's place.
fn print(mut journal: Journal, cursor: &Mutex<Option<String>>) -> io::Result<()> {
    while let Ok(Some(entry)) = journal.next_entry() {
        let mut out = io::stdout().lock();
        out.write_all(&entry.message)?;
        out.write_all(b"\n")?;
        out.flush()?;
        *cursor.lock().unwrap_or_else(PoisonError::into_inner) = Some(entry.cursor);
    }
    Ok(())
}
