//! The same from an async program, here on tokio's current-thread runtime:
//!
//! ```sh
//! cargo run -p nspawn-examples --bin embed-async     # as root
//! ```
//!
//! The library's calls block, so each goes to a thread for blocking work, and the runtime is free meanwhile: the clock
//! below ticks while the machine boots. A machine is shared between such calls by an `Arc`.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nspawn_core::{Host, Machine, MachineConfig, Rootfs, UnitFile, UnitName};
use tokio::task::spawn_blocking;

type AnyError = Box<dyn Error + Send + Sync>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), AnyError> {
    let started = Instant::now();
    let mut booting = spawn_blocking(start);
    let mut clock = tokio::time::interval(Duration::from_millis(250));
    let (machine, unit) = loop {
        tokio::select! {
            _ = clock.tick() => println!("{:.2} s: booting", started.elapsed().as_secs_f64()),
            done = &mut booting => break done??,
        }
    };
    println!("{:.2} s: {unit} is active", started.elapsed().as_secs_f64());

    let inside = Arc::clone(&machine);
    let out = spawn_blocking(move || inside.exec(["systemctl", "is-system-running"])).await??;
    println!(
        "the machine says: {}",
        String::from_utf8_lossy(&out.stdout).trim()
    );

    spawn_blocking(move || machine.stop(Duration::from_secs(10))).await??;
    println!("{:.2} s: stopped", started.elapsed().as_secs_f64());
    Ok(())
}

/// Starts a machine with one unit and waits until it is active.
fn start() -> Result<(Arc<Machine>, UnitName), AnyError> {
    let host = Host::detect()?;
    let name: UnitName = "sleep.service".parse()?;
    let unit = UnitFile::new(name.clone(), "[Service]\nExecStart=/bin/sleep infinity\n")?;
    let config = MachineConfig::builder("embed-async".parse()?, Rootfs::Host)
        .unit(unit)
        .build()?;
    let machine = host.spawn(&config)?;
    machine.wait_active(&name, Duration::from_secs(60))?;
    Ok((Arc::new(machine), name))
}
