//! A program that embeds the library and owns a machine until the machine ends: something for tests to kill.
//!
//! `own-machine ROOT RUN_ROOT NAME` prints `leader=PID` when the machine's unit is active.

use std::error::Error;
use std::io::Write as _;
use std::time::Duration;

use nspawn_core::{Dirs, Host, MachineConfig, Network, Rootfs, UnitFile};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [state, run, name] = words.as_slice() else {
        return Err("usage: own-machine ROOT RUN_ROOT NAME".into());
    };
    let dirs = Dirs {
        state: state.into(),
        run: run.into(),
    };
    let unit = UnitFile::new(
        "web.service".parse()?,
        "[Service]\nExecStart=/bin/sleep 600\n",
    )?;
    let config = MachineConfig::builder(name.parse()?, Rootfs::Host)
        .unit(unit)
        .network(Network::None)
        .build()?;
    let machine = Host::detect_with(dirs)?.spawn(&config)?;
    machine.wait_active(&"web.service".parse()?, Duration::from_secs(60))?;
    writeln!(std::io::stdout(), "leader={}", machine.leader().pid)?;
    machine.wait(Duration::from_secs(600))?;
    Ok(())
}
