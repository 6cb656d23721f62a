//! An import that runs beside the download or the hashing of its bytes.
//!
//! What it makes stays under its working name until the bytes were found to be the right ones; where they were not, or
//! the download fails, it is thrown away.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::{ErrorKind, ImageError};
use crate::fetch::{Arriving, Follower};
use crate::limits::Cancel;
use crate::options::PullOptions;
use crate::report::Reporter;
use crate::report::relay::{self, Relay};
use crate::source::ReadAt as _;
use crate::unpack::{self, Imported, Paths, WorkPaths};

/// How often the end of the thread is looked for.
const TICK: Duration = Duration::from_millis(100);

/// What an import needs to know before the bytes come.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// How the user knows the image: a redacted URL or a path.
    pub(super) what: String,
    pub(super) work: WorkPaths,
    /// The file that holds the bytes, where it is ours and may become the image.
    pub(super) own: Option<PathBuf>,
    /// Where the image lies, where it is the user's own file.
    pub(super) path: Option<PathBuf>,
    pub(super) options: PullOptions,
    /// Whether a damaged image is told at once: with a digest to compare, a wrong digest tells more.
    pub(super) impatient: bool,
}

/// An import that has yet to start, runs, or is over.
pub(super) struct Beside {
    plan: Plan,
    /// The caller's; the plan has one of its own, so that an import can be ended alone.
    cancel: Cancel,
    state: State,
}

enum State {
    Waiting,
    Running {
        source: Arc<Arriving>,
        thread: JoinHandle<Result<Imported, ImageError>>,
        relay: Relay,
    },
    Over(Result<Imported, ImageError>),
    Taken,
}

impl Beside {
    pub(super) fn new(mut plan: Plan) -> Self {
        let cancel = std::mem::take(&mut plan.options.cancel);
        Self {
            plan,
            cancel,
            state: State::Waiting,
        }
    }

    /// Starts to import `source`; where no thread is to be had, that waits for [`finish`](Self::finish).
    pub(super) fn start(&mut self, source: &Arc<Arriving>) {
        let (mut remote, relay) = relay::pair();
        let (plan, bytes) = (self.plan.clone(), Arc::clone(source));
        let thread = std::thread::Builder::new()
            .name("import".to_owned())
            .spawn(move || plan.import(&bytes, &mut remote));
        if let Ok(thread) = thread {
            self.state = State::Running {
                source: Arc::clone(source),
                thread,
                relay,
            };
        }
    }

    /// Waits for the import to end; one that did not start is done now, from `source`, which is complete.
    pub(super) fn finish(
        mut self,
        source: &Arriving,
        reporter: &mut dyn Reporter,
    ) -> Result<Imported, ImageError> {
        match std::mem::replace(&mut self.state, State::Taken) {
            State::Waiting | State::Taken => {
                self.plan.options.cancel = self.cancel.clone();
                self.plan.import(source, reporter)
            }
            State::Over(result) => result,
            State::Running {
                thread, mut relay, ..
            } => {
                while relay.wait(TICK, reporter) {
                    if self.cancel.is_cancelled() {
                        self.plan.options.cancel.cancel();
                    }
                }
                joined(thread)
            }
        }
    }

    /// Why the import failed before its bytes were there. What it made is thrown away.
    pub(super) fn failure(mut self) -> Option<ImageError> {
        match std::mem::replace(&mut self.state, State::Taken) {
            State::Over(Err(error)) => {
                self.plan.work.clear();
                Some(error)
            }
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Throws away what was made.
    fn abandon(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Waiting);
        match state {
            State::Running { source, thread, .. } => {
                self.plan.options.cancel.cancel();
                source.end_waiting();
                let _ = thread.join();
                // Another may follow.
                self.plan.options.cancel = Cancel::default();
            }
            State::Over(_) => {}
            State::Waiting | State::Taken => return,
        }
        self.plan.work.clear();
    }
}

impl Plan {
    fn import(
        &self,
        source: &Arriving,
        reporter: &mut dyn Reporter,
    ) -> Result<Imported, ImageError> {
        let paths = Paths {
            work: &self.work,
            own: self.own.as_deref(),
            image: self.path.as_deref(),
            only_disk: false,
            summed: true,
        };
        unpack::import(source, &self.what, paths, &self.options, reporter)
    }
}

fn joined(thread: JoinHandle<Result<Imported, ImageError>>) -> Result<Imported, ImageError> {
    thread.join().unwrap_or_else(|_| {
        let source = io::Error::other("the thread that works on it ended");
        Err(ImageError::io("import", Path::new("the image"), source))
    })
}

impl Follower for Beside {
    fn begin(&mut self, file: &Arc<Arriving>) {
        self.start(file);
    }

    fn restart(&mut self) {
        self.abandon();
    }

    fn tick(&mut self, reporter: &mut dyn Reporter) -> bool {
        match &mut self.state {
            State::Running { thread, relay, .. } => {
                relay.pass_on(reporter);
                if !thread.is_finished() {
                    return true;
                }
            }
            State::Over(Err(error)) => {
                // A full disk does not get better with more bytes.
                return !self.plan.impatient && error.kind() != ErrorKind::Host;
            }
            _ => return true,
        }
        if let State::Running { thread, .. } = std::mem::replace(&mut self.state, State::Taken) {
            self.state = State::Over(joined(thread));
        }
        self.tick(reporter)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.abandon();
    }
}
