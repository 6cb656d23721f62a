//! `nspawn-run explain`

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use nspawn_core::command::{Prepared, argv};
use nspawn_core::{Entry, GUEST_DIR, Network, UnitDir, shell_line};
use nspawn_image::ImageRef;

use super::unit::MachineArgs;
use crate::error::CommandError;
use crate::options::Global;
use crate::output::Output;

/// Show what a command would do, and do nothing
#[derive(Args, Debug)]
pub(crate) struct ExplainArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// The systemd-nspawn command and the unit path of `nspawn-run unit`
    Unit(ExplainUnitArgs),
}

#[derive(Args, Debug)]
struct ExplainUnitArgs {
    /// Unit files
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// The image, as `unit` takes it; it is not looked at
    #[arg(long, short, value_name = "IMAGE", default_value = "host")]
    image: ImageRef,
    #[command(flatten)]
    machine: MachineArgs,
}

/// The version of systemd-nspawn whose options are shown where the host has none.
const ASSUMED_VERSION: u32 = 257;

/// Runs the command.
pub(crate) fn run(
    args: &ExplainArgs,
    global: &Global,
    out: &mut Output,
) -> Result<(), CommandError> {
    let What::Unit(args) = &args.what;
    let config = args.machine.describe(&args.files, &args.image)?;
    let dirs = global.dirs()?;
    let run = dirs.run.join("machines").join(config.name().as_str());
    let version =
        nspawn_core::Host::detect_with(dirs).map_or(ASSUMED_VERSION, |host| host.nspawn_version());
    let prepared = Prepared {
        root: run.join("root"),
        local: run.join("local"),
        user_range: None,
        link: (config.spec().network == Network::Veth).then(|| format!("nr-{}", config.name())),
    };
    let mut text = format!(
        "# image {}: read-only, with an overlay on top, at {}\n",
        args.image,
        prepared.root.display()
    );
    text += &shell_line(
        Path::new("systemd-nspawn"),
        &argv(&config, &prepared, version),
    );
    text += &format!(
        "\n\n# {GUEST_DIR}/systemd in the machine, from {}\n",
        prepared.local.join("systemd").display()
    );
    for (path, entry) in UnitDir::plan(&config).entries() {
        match entry {
            Entry::Mask => text += &format!("{path} -> /dev/null\n"),
            Entry::File(content) => {
                text += &format!("{path}\n");
                text.extend(content.lines().map(|line| format!("    {line}\n")));
            }
        }
    }
    out.text(&text)
}
