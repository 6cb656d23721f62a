//! What the systemd inside a machine is asked, over its own D-Bus.
//!
//! systemd listens on a private socket, `/run/systemd/private`, from its first moment and with no bus daemon
//! running; it answers its own root user only. Where users are mapped that is another user of the host, so that
//! the connecting thread becomes that user.

mod bus;
mod unit_state;

pub use unit_state::{Progress, UnitState};

pub(crate) use bus::Manager;
