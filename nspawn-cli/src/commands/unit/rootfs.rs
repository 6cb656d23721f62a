//! From an image reference to what a machine's root file system is made from.

use nspawn_core::Rootfs;
use nspawn_image::{Cancel, Image, ImageKind, ImageRef, Reporter as _};

use super::ImageOptions;
use crate::error::{CommandError, Kind};
use crate::options::Global;
use crate::progress::Progress;

impl ImageOptions {
    /// The reference.
    pub(crate) fn reference(&self) -> &ImageRef {
        &self.image
    }
}

/// Gets the image and finds its root file system; the image is locked in the store as long as it is held.
pub(super) fn prepare(
    options: &ImageOptions,
    global: &Global,
    cancel: &Cancel,
    progress: &mut Progress,
) -> Result<(Rootfs, Option<Image>), CommandError> {
    if *options.reference() == ImageRef::Host {
        if let Some(option) = options.fetch.verify.wants_bytes() {
            let message = format!("image `host` has no bytes to compare with {option}");
            return Err(CommandError::new(Kind::Usage, message).hint("name an image with --image"));
        }
        return Ok((Rootfs::Host, None));
    }
    let store = global.store()?;
    let reference = options.reference();
    let pull_options = options.fetch.pull_options(reference, cancel);
    let image = store.pull(reference, &pull_options, progress)?;
    let rootfs = match image.kind() {
        ImageKind::Tree => Rootfs::Directory {
            path: image.path().to_owned(),
        },
        ImageKind::Disk => {
            let root = image.root_partition()?;
            for warning in &root.warnings {
                progress.notice(&warning.to_string());
            }
            Rootfs::Disk {
                image: image.path().to_owned(),
                offset: root.offset,
                length: root.length,
                filesystem: root.filesystem.mount_type().to_owned(),
            }
        }
        other => {
            let message = format!("an image of kind {other:?} cannot be started");
            return Err(CommandError::new(Kind::Failure, message));
        }
    };
    Ok((rootfs, Some(image)))
}
