//! How a machine tells its owner what happens to it.

/// What happens to a machine while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// systemd-nspawn or the guest's systemd says what it is doing.
    Status(String),
    /// The guest's boot is done.
    Booted,
    /// Something was done otherwise than asked, and why.
    Notice(String),
}

/// Receives a machine's events, from a thread of the machine's own.
pub trait Reporter: Send + Sync {
    /// Takes one event; must not block.
    fn event(&self, event: Event);
}

/// A [`Reporter`] that keeps silent.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoReport;

impl Reporter for NoReport {
    fn event(&self, _: Event) {}
}
