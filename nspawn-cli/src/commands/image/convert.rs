//! `nspawn-run image convert`

use std::path::PathBuf;

use clap::Args;
use nspawn_image::{Cancel, ConvertOptions, ErrorKind, convert_file};

use super::fetch::Qcow2Options;
use crate::error::CommandError;
use crate::options::Global;
use crate::progress::Progress;
use crate::signals;

/// Convert a disk image file to a sparse raw file
///
/// The image is a raw or qcow2 disk, alone, inside gzip, xz, zstd or bzip2, or as the one disk in a tar or zip. Neither
/// root nor the store is needed. The result is there complete or not at all.
///
/// Example: nspawn-run image convert debian-12.qcow2 debian-12.raw
#[derive(Args, Debug)]
pub(crate) struct ConvertArgs {
    /// The image file
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The raw file to write
    #[arg(value_name = "DST")]
    target: PathBuf,
    #[command(flatten)]
    qcow2: Qcow2Options,
    /// Replace DST where it is there
    #[arg(long, short)]
    force: bool,
}

/// Runs the command.
pub(crate) fn run(args: &ConvertArgs, global: &Global) -> Result<(), CommandError> {
    let mut options = ConvertOptions::default();
    options.snapshot.clone_from(&args.qcow2.snapshot);
    options.allow_backing.clone_from(&args.qcow2.allow_backing);
    options.replace = args.force;
    options.cancel = Cancel::default();
    signals::watch(options.cancel.clone(), |_| {})?;
    let mut progress = Progress::new(global.quiet);
    match convert_file(&args.source, &args.target, &options, &mut progress) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::Cancelled => {
            Err(signals::interrupted().unwrap_or_else(|| error.into()))
        }
        Err(error) => Err(error.into()),
    }
}
