//! From a thread that works beside the caller's to the caller's reporter: all calls of a reporter come from the thread
//! that called the library.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::{Reporter, StepId, StepKind};

enum Report {
    Begin(u64, StepKind, String, Option<u64>),
    Progress(u64, u64),
    End(u64),
    Notice(String),
}

/// The working thread's end.
pub(crate) struct Remote {
    sender: Sender<Report>,
    next: u64,
}

/// The calling thread's end.
pub(crate) struct Relay {
    receiver: Receiver<Report>,
    steps: HashMap<u64, StepId>,
}

/// Both ends.
pub(crate) fn pair() -> (Remote, Relay) {
    let (sender, receiver) = channel();
    let relay = Relay {
        receiver,
        steps: HashMap::new(),
    };
    (Remote { sender, next: 0 }, relay)
}

impl Reporter for Remote {
    fn begin(&mut self, kind: StepKind, subject: &str, total: Option<u64>) -> StepId {
        self.next += 1;
        let subject = subject.to_owned();
        // Nobody listens any more where the caller gave up; the work itself ends by other means.
        let _ = self
            .sender
            .send(Report::Begin(self.next, kind, subject, total));
        StepId(self.next)
    }

    fn progress(&mut self, step: StepId, done: u64) {
        let _ = self.sender.send(Report::Progress(step.0, done));
    }

    fn end(&mut self, step: StepId) {
        let _ = self.sender.send(Report::End(step.0));
    }

    fn notice(&mut self, text: &str) {
        let _ = self.sender.send(Report::Notice(text.to_owned()));
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
            Report::Begin(id, kind, subject, total) => {
                self.steps.insert(id, reporter.begin(kind, &subject, total));
            }
            Report::Progress(id, done) => {
                if let Some(step) = self.steps.get(&id) {
                    reporter.progress(*step, done);
                }
            }
            Report::End(id) => {
                if let Some(step) = self.steps.remove(&id) {
                    reporter.end(step);
                }
            }
            Report::Notice(text) => reporter.notice(&text),
        }
    }
}
