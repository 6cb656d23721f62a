//! `nspawn-run image pull`

use clap::Args;
use nspawn_image::{Cancel, ImageName, ImageRef, PullOptions};

use crate::error::CommandError;
use crate::options::{Global, VerifyArgs};
use crate::output::Output;
use crate::progress::Progress;
use crate::signals;

/// Bring an image into the store, and print its path
#[derive(Args, Debug)]
pub(crate) struct PullArgs {
    /// An http(s) URL, or a file on this host
    image: ImageRef,
    /// The image's name in the store
    #[arg(long, value_name = "NAME")]
    name: Option<ImageName>,
    #[command(flatten)]
    verify: VerifyArgs,
    /// Ask the server whether a stored image is still current
    #[arg(long)]
    refresh: bool,
}

/// Runs the command.
pub(crate) fn run(args: &PullArgs, global: &Global, out: &mut Output) -> Result<(), CommandError> {
    let mut options = PullOptions::default();
    options.name.clone_from(&args.name);
    args.verify.apply(&mut options);
    options.refresh = args.refresh;
    options.proxy = super::proxy(&args.image);
    options.cancel = Cancel::default();
    signals::watch(options.cancel.clone(), |_| {})?;
    let mut progress = Progress::new(global.quiet);
    let image = global.store()?.pull(&args.image, &options, &mut progress);
    let image = image.map_err(|error| signals::interrupted().unwrap_or_else(|| error.into()))?;
    out.text(&format!("{}\n", image.path().display()))
}
