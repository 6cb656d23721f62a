//! `nspawn-run image pull`

use clap::Args;
use nspawn_image::{Cancel, ImageName, ImageRef};

use super::FetchOptions;
use crate::error::CommandError;
use crate::options::Global;
use crate::output::Output;
use crate::progress::Progress;
use crate::signals;

/// Bring an image into the store, and print its path
///
/// An image is a raw or qcow2 disk, or an OS tree in a tar: alone, inside gzip, xz, zstd or bzip2, or as the one disk in
/// a tar or zip archive. `oci:` before a name such as oci:debian:12 or oci:ghcr.io/OWNER/NAME@sha256:HEX means a
/// container image, whose layers become an OS tree; credentials are read where docker and podman write them, from
/// $REGISTRY_AUTH_FILE, $DOCKER_CONFIG/config.json, $XDG_RUNTIME_DIR/containers/auth.json and the home folder.
#[derive(Args, Debug)]
pub(crate) struct PullArgs {
    /// An http(s) URL, a file on this host, or a container image as oci:NAME[:TAG]
    image: ImageRef,
    /// The image's name in the store
    #[arg(long, value_name = "NAME")]
    name: Option<ImageName>,
    #[command(flatten)]
    fetch: FetchOptions,
}

/// Runs the command.
pub(crate) fn run(args: &PullArgs, global: &Global, out: &mut Output) -> Result<(), CommandError> {
    let cancel = Cancel::default();
    let mut options = args.fetch.pull_options(&args.image, &cancel);
    options.name.clone_from(&args.name);
    signals::watch(cancel, |_| {})?;
    let mut progress = Progress::new(global.quiet);
    let image = global.store()?.pull(&args.image, &options, &mut progress);
    let image = image.map_err(|error| signals::interrupted().unwrap_or_else(|| error.into()))?;
    out.text(&format!("{}\n", image.path().display()))
}
