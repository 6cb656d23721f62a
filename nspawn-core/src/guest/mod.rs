//! What the systemd inside a machine is asked, over its own D-Bus.
//!
//! systemd listens on a private socket, `/run/systemd/private`, from its first moment and with no bus daemon
//! running; it answers its own root user only, and only processes it can number itself. So a process of the
//! machine connects, and hands the connection out.

mod bus;
mod private_socket;
mod unit_state;

pub use unit_state::{Progress, UnitState};

pub(crate) use bus::{Manager, Watched, bus_error, runtime};
