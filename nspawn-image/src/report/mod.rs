//! Progress and notices, told to whoever calls the library: the library itself never prints.

pub(crate) mod relay;

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StepKind {
    /// Bytes come over the network.
    Download,
    /// A local file is hashed.
    Verify,
    /// An archive or compressed file is unpacked.
    Unpack,
    /// A disk image is written as sparse raw.
    Convert,
    /// A result is synced to the disk and published.
    Publish,
    /// An image is copied to where others find it.
    Copy,
}

impl StepKind {
    /// The verb a progress line starts with, such as `downloading`.
    pub fn verb(self) -> &'static str {
        match self {
            Self::Download => "downloading",
            Self::Verify => "verifying",
            Self::Unpack => "unpacking",
            Self::Convert => "converting",
            Self::Publish => "publishing",
            Self::Copy => "copying",
        }
    }
}

/// The handle of one step, given by a [`Reporter`] and given back to it; steps may overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepId(pub u64);

/// Hears what a long call does.
///
/// All calls come from the thread that called the library, several times a second while something moves.
/// Every method has an empty default, so that a reporter implements what it shows.
pub trait Reporter {
    /// A step begins. `subject` names what is worked on (a redacted URL, a path); `total` is in bytes.
    fn begin(&mut self, kind: StepKind, subject: &str, total: Option<u64>) -> StepId {
        let _ = (kind, subject, total);
        StepId(0)
    }

    /// A step stands at `done` bytes, counted from its start; a resumed download starts above zero.
    fn progress(&mut self, step: StepId, done: u64) {
        let _ = (step, done);
    }

    /// A step is over, well or not: after an error, the error itself is what the call returns.
    fn end(&mut self, step: StepId) {
        let _ = step;
    }

    /// Something the user should know that is no error, as one line of text without a full stop.
    fn notice(&mut self, text: &str) {
        let _ = text;
    }
}

/// A reporter that hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoReport;

impl Reporter for NoReport {}

/// Ends its step when dropped, so that no early return leaves a bar standing.
pub(crate) struct Step<'a> {
    reporter: &'a mut dyn Reporter,
    id: StepId,
    done: u64,
}

impl<'a> Step<'a> {
    pub(crate) fn begin(
        reporter: &'a mut dyn Reporter,
        kind: StepKind,
        subject: &str,
        total: Option<u64>,
    ) -> Self {
        let id = reporter.begin(kind, subject, total);
        Self {
            reporter,
            id,
            done: 0,
        }
    }

    pub(crate) fn at(&mut self, done: u64) {
        if done != self.done {
            self.done = done;
            self.reporter.progress(self.id, done);
        }
    }

    pub(crate) fn advance(&mut self, bytes: u64) {
        self.at(self.done + bytes);
    }

    pub(crate) fn notice(&mut self, text: &str) {
        self.reporter.notice(text);
    }

    /// The reporter, for what goes on beside this step.
    pub(crate) fn reporter(&mut self) -> &mut dyn Reporter {
        self.reporter
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        self.reporter.end(self.id);
    }
}
