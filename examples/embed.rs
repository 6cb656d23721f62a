//! A unit in a machine of its own, from a program of yours:
//!
//! ```sh
//! cargo run -p nspawn-examples --bin embed [UNIT_FILE [IMAGE]]     # as root
//! ```
//!
//! `IMAGE` is a path, an http(s) URL or the name of a stored image; without one the machine is made of this host's
//! own /usr and nothing is downloaded.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::Duration;

use nspawn_core::{Host, MachineConfig, Network, Rootfs, UnitFile};
use nspawn_image::{Image, ImageKind, NoReport, PullOptions, Store};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let file = args.next().unwrap_or("examples/hello.service".into());
    let image = args.next().map(|reference| pull(&reference)).transpose()?;
    let rootfs = image.as_ref().map_or(Ok(Rootfs::Host), rootfs)?;

    let host = Host::detect()?;
    let unit = UnitFile::load(file)?;
    let name = unit.name().clone();
    let config = MachineConfig::builder("embed".parse()?, rootfs)
        .unit(unit)
        .network(Network::Veth)
        .build()?;
    let machine = host.spawn(&config)?;
    machine.wait_active(&name, Duration::from_secs(60))?;
    let out = machine.exec(["systemctl", "status", "--no-pager", name.as_str()])?;
    print!("{}", String::from_utf8_lossy(&out.stdout));
    machine.stop(Duration::from_secs(10))?;
    Ok(())
}

/// Gets an image from the store, which downloads or imports what it does not have.
fn pull(reference: &str) -> Result<Image, Box<dyn Error>> {
    let store = Store::open("/var/lib/nspawn-run/images")?;
    Ok(store.pull(&reference.parse()?, &PullOptions::default(), &mut NoReport)?)
}

/// The machine's root: the folder, or the root file system inside the disk. Keep the image as long as the machine:
/// it holds the lock that keeps the store from removing it.
fn rootfs(image: &Image) -> Result<Rootfs, Box<dyn Error>> {
    let path = image.path().to_owned();
    if image.kind() == ImageKind::Tree {
        return Ok(Rootfs::Directory { path });
    }
    let root = image.root_partition()?;
    Ok(Rootfs::Disk {
        image: path,
        offset: root.offset,
        length: root.length,
        filesystem: root.filesystem.mount_type().to_owned(),
    })
}
