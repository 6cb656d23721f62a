//! Reports of several threads, told to a [`Reporter`] by the one thread that called the library.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::report::{Reporter, StepId, StepKind};

/// What a thread reports.
pub(super) enum Report {
    Begin(StepId, StepKind, String, Option<u64>),
    Progress(StepId, u64),
    End(StepId),
    Notice(String),
}

/// A thread's end: a reporter that names the step after what the thread works on.
pub(super) struct Relay {
    sender: Sender<Report>,
    steps: Arc<AtomicU64>,
    subject: String,
}

/// The calling thread's end.
pub(super) struct Hearer {
    pub(super) reports: Receiver<Report>,
    begun: HashMap<u64, StepId>,
}

/// The two ends; further threads' are made by [`Relay::of`].
pub(super) fn relay() -> (Relay, Hearer) {
    let (sender, reports) = channel();
    let relay = Relay {
        sender,
        steps: Arc::default(),
        subject: String::new(),
    };
    let hearer = Hearer {
        reports,
        begun: HashMap::new(),
    };
    (relay, hearer)
}

impl Relay {
    /// A reporter for work on `subject`.
    pub(super) fn of(&self, subject: String) -> Self {
        Self {
            sender: self.sender.clone(),
            steps: Arc::clone(&self.steps),
            subject,
        }
    }

    fn send(&self, report: Report) {
        // Nobody hears it any more where the call has ended.
        let _ = self.sender.send(report);
    }
}

impl Reporter for Relay {
    fn begin(&mut self, kind: StepKind, _: &str, total: Option<u64>) -> StepId {
        let step = StepId(self.steps.fetch_add(1, Ordering::Relaxed));
        self.send(Report::Begin(step, kind, self.subject.clone(), total));
        step
    }

    fn progress(&mut self, step: StepId, done: u64) {
        self.send(Report::Progress(step, done));
    }

    fn end(&mut self, step: StepId) {
        self.send(Report::End(step));
    }

    fn notice(&mut self, text: &str) {
        self.send(Report::Notice(format!("{}: {text}", self.subject)));
    }
}

impl Hearer {
    /// Passes one report on.
    pub(super) fn tell(&mut self, report: Report, reporter: &mut dyn Reporter) {
        match report {
            Report::Begin(step, kind, subject, total) => {
                let begun = reporter.begin(kind, &subject, total);
                self.begun.insert(step.0, begun);
            }
            Report::Progress(step, done) => {
                if let Some(step) = self.begun.get(&step.0) {
                    reporter.progress(*step, done);
                }
            }
            Report::End(step) => {
                if let Some(step) = self.begun.remove(&step.0) {
                    reporter.end(step);
                }
            }
            Report::Notice(text) => reporter.notice(&text),
        }
    }
}
