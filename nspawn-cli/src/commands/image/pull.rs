//! `nspawn-run image pull`

use std::path::PathBuf;

use clap::Args;
use nspawn_core::MachineName;
use nspawn_image::{Cancel, ImageError, ImageName, ImageRef};

use super::FetchOptions;
use crate::error::{CommandError, Kind};
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
///
/// With --publish, machinectl sees the image too: a copy that machines may write to, and whose path is printed instead. It
/// shares its blocks with the store where the file system can.
///
/// Example: nspawn-run image pull ./debian-12.qcow2 --name debian-12
#[derive(Args, Debug)]
pub(crate) struct PullArgs {
    /// An http(s) URL, a file on this host, or a container image as oci:NAME:TAG
    image: ImageRef,
    /// The image's name in the store
    #[arg(long, value_name = "NAME")]
    name: Option<ImageName>,
    /// Copy the image to where machinectl finds it, under this name
    #[arg(long, value_name = "NAME")]
    publish: Option<MachineName>,
    /// Where --publish puts it
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/machines",
        requires = "publish"
    )]
    machines_dir: PathBuf,
    /// With --publish, replace an image of that name
    #[arg(long, short, requires = "publish")]
    force: bool,
    #[command(flatten)]
    fetch: FetchOptions,
}

/// Runs the command.
pub(crate) fn run(args: &PullArgs, global: &Global, out: &mut Output) -> Result<(), CommandError> {
    let cancel = Cancel::default();
    let mut options = args.fetch.pull_options(&args.image, &cancel);
    options.name.clone_from(&args.name);
    let publish = published_name(args)?;
    signals::watch(cancel.clone(), |_| {})?;
    let mut progress = Progress::new(global.quiet);
    let image = global.store()?.pull(&args.image, &options, &mut progress);
    let failed = |error: ImageError| signals::interrupted().unwrap_or_else(|| error.into());
    let image = image.map_err(failed)?;
    let path = match publish {
        Some(name) => image
            .publish(
                &args.machines_dir,
                &name,
                args.force,
                &cancel,
                &mut progress,
            )
            .map_err(failed)?,
        None => image.path().to_owned(),
    };
    out.text(&format!("{}\n", path.display()))
}

/// The name to publish under. A machine name is an image's too; the other way round it may not be.
fn published_name(args: &PullArgs) -> Result<Option<ImageName>, CommandError> {
    let Some(name) = &args.publish else {
        return Ok(None);
    };
    if args.image == ImageRef::Host {
        let message = "image `host` is this host, and is not published";
        return Err(CommandError::new(Kind::Usage, message).hint("name an image"));
    }
    let name = name.as_str().parse();
    name.map(Some)
        .map_err(|error| CommandError::new(Kind::Usage, "cannot publish the image").because(error))
}
