//! From threads that work beside the caller's to the caller's reporter: all calls of a reporter come from the thread
//! that called the library.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::{Reporter, StepId, StepKind};

enum Report {
    Begin(StepId, StepKind, String, Option<u64>),
    Progress(StepId, u64),
    End(StepId),
    Notice(String),
}

/// A working thread's end; each thread has a clone.
#[derive(Clone)]
pub(crate) struct Remote {
    sender: Sender<Report>,
    /// Steps begun by all of them.
    steps: Arc<AtomicU64>,
    /// What the thread works on, where steps and notices are to be called after it.
    subject: Option<String>,
}

/// The calling thread's end.
pub(crate) struct Relay {
    receiver: Receiver<Report>,
    steps: HashMap<StepId, StepId>,
}

/// Both ends.
pub(crate) fn pair() -> (Remote, Relay) {
    let (sender, receiver) = channel();
    let remote = Remote {
        sender,
        steps: Arc::default(),
        subject: None,
    };
    let relay = Relay {
        receiver,
        steps: HashMap::new(),
    };
    (remote, relay)
}

impl Remote {
    /// A reporter for work on `subject`, whatever the work itself calls it.
    pub(crate) fn named(&self, subject: String) -> Self {
        Self {
            subject: Some(subject),
            ..self.clone()
        }
    }

    fn send(&self, report: Report) {
        // Nobody listens any more where the caller gave up; the work itself ends by other means.
        let _ = self.sender.send(report);
    }
}

impl Reporter for Remote {
    fn begin(&mut self, kind: StepKind, subject: &str, total: Option<u64>) -> StepId {
        let step = StepId(self.steps.fetch_add(1, Ordering::Relaxed));
        let subject = self.subject.as_deref().unwrap_or(subject).to_owned();
        self.send(Report::Begin(step, kind, subject, total));
        step
    }

    fn progress(&mut self, step: StepId, done: u64) {
        self.send(Report::Progress(step, done));
    }

    fn end(&mut self, step: StepId) {
        self.send(Report::End(step));
    }

    fn notice(&mut self, text: &str) {
        self.send(Report::Notice(match &self.subject {
            Some(subject) => format!("{subject}: {text}"),
            None => text.to_owned(),
        }));
    }
}

impl Relay {
    /// Passes on what was said so far.
    pub(crate) fn pass_on(&mut self, reporter: &mut dyn Reporter) {
        while let Ok(report) = self.receiver.try_recv() {
            self.tell(report, reporter);
        }
    }

    /// Passes on what is said next, if that is within `limit`; `false` where nobody is left to say more.
    pub(crate) fn wait(&mut self, limit: Duration, reporter: &mut dyn Reporter) -> bool {
        match self.receiver.recv_timeout(limit) {
            Ok(report) => {
                self.tell(report, reporter);
                true
            }
            Err(error) => error == RecvTimeoutError::Timeout,
        }
    }

    fn tell(&mut self, report: Report, reporter: &mut dyn Reporter) {
        match report {
            Report::Begin(step, kind, subject, total) => {
                let begun = reporter.begin(kind, &subject, total);
                self.steps.insert(step, begun);
            }
            Report::Progress(step, done) => {
                if let Some(step) = self.steps.get(&step) {
                    reporter.progress(*step, done);
                }
            }
            Report::End(step) => {
                if let Some(step) = self.steps.remove(&step) {
                    reporter.end(step);
                }
            }
            Report::Notice(text) => reporter.notice(&text),
        }
    }
}
