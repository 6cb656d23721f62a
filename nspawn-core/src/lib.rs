//! Run plain systemd units in systemd-nspawn machines.
//!
//! ```no_run
//! use std::time::Duration;
//! use nspawn_core::{Host, MachineConfig, Network, Rootfs, UnitFile};
//!
//! let host = Host::detect()?;
//! let unit = UnitFile::load("web.service")?;
//! let config = MachineConfig::builder("web-1".parse()?, Rootfs::Host).unit(unit).network(Network::Veth).build()?;
//! let machine = host.spawn(&config)?;
//! machine.wait_active(&"web.service".parse()?, Duration::from_secs(60))?;
//! let out = machine.exec(["systemctl", "status", "web"])?;
//! machine.stop(Duration::from_secs(10))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Flow: [`MachineSpec`] -> [`MachineConfig`] (checked) -> [`Host::spawn`]: cgroup, mount namespace, root file
//! system, [`command::argv`], systemd-nspawn in a PID namespace, notify socket, network -> [`Machine`]: unit
//! state over the guest's own D-Bus, exec, journal, stop.
//!
//! Everything here blocks. From an async program, call it on a thread for blocking work, such as
//! `tokio::task::spawn_blocking(move || host.spawn(&config))`.
//!
//! This crate never prints, reads no environment variable, ends no process but the machine's and knows no
//! image format: the root file system is a folder or a file system inside a raw image.

mod cgroup;
pub mod command;
mod config;
mod error;
mod exec;
mod guest;
mod host;
mod journal;
mod log_tail;
mod machine;
mod name;
mod network;
mod notify;
mod process;
mod record;
mod registry;
mod report;
mod rootfs;
mod shared;
mod spawn;
mod supervisor;
mod sys;
mod systemd_host;
mod unit;
mod unit_path;
mod user_range;
mod wait;

pub use config::{
    Bind, ConfigError, MachineBuilder, MachineConfig, MachineSpec, Network, Rootfs, UserNamespace,
};
pub use error::{Cause, MachineError};
pub use exec::{MachineCommand, TerminalChild, copy_terminal_size};
pub use guest::{Progress, UnitState};
pub use host::{Cgroups, Dirs, Host, HostCheck, HostProblem, shell_line};
pub use journal::{Journal, JournalCloser, JournalEntry};
pub use machine::{Machine, UnitResult};
pub use name::{MachineName, MachineNameError, UnitName, UnitNameError};
pub use network::Addresses;
pub use process::ProcessId;
pub use record::{Outcome, Phase, Record};
pub use registry::bases_in_use;
pub use report::{Event, NoReport, Reporter};
pub use spawn::SpawnOptions;
pub use unit::{DropIn, UnitFile};
pub use unit_path::{Entry, GUEST_DIR, UNIT_PATH, UnitDir};
pub use user_range::UserRange;
