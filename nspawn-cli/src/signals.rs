//! Signals that end the command: the first asks, the second insists.

use std::sync::atomic::{AtomicU8, Ordering};

use nspawn_image::Cancel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::{CommandError, Kind};

/// The first signal that came; 0 before one.
static RECEIVED: AtomicU8 = AtomicU8::new(0);

/// The signal that asked the command to end, if one came.
pub(crate) fn received() -> Option<u8> {
    match RECEIVED.load(Ordering::Relaxed) {
        0 => None,
        signal => Some(signal),
    }
}

/// An error that says which signal ended the command.
pub(crate) fn interrupted() -> Option<CommandError> {
    received().map(|signal| CommandError::new(Kind::Interrupted(signal), "interrupted"))
}

/// Watches for SIGINT, SIGTERM and SIGHUP from a thread of its own.
///
/// `act` is called with 1 at the first, 2 at the second and so on; at the first, `cancel` is set before.
pub(crate) fn watch(
    cancel: Cancel,
    act: impl Fn(u32) + Send + 'static,
) -> Result<(), CommandError> {
    let failed =
        |error| CommandError::new(Kind::Failure, "cannot watch for signals").because(error);
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(failed)?;
    let watcher = move || {
        for (count, signal) in (1..).zip(signals.forever()) {
            let number = u8::try_from(signal).unwrap_or(15);
            let _ = RECEIVED.compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed);
            cancel.cancel();
            act(count);
        }
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(watcher)
        .map_err(failed)?;
    Ok(())
}
