//! From an image reference to what a machine's root file system is made from.

use nspawn_core::Rootfs;
use nspawn_image::{Cancel, Image, ImageKind, ImageRef, PullOptions};

use super::ImageOptions;
use crate::error::{CommandError, Kind};
use crate::options::Global;
use crate::progress::Progress;

impl ImageOptions {
    /// The library's options.
    pub(crate) fn pull_options(&self, cancel: &Cancel) -> PullOptions {
        let mut options = PullOptions::default();
        self.verify.apply(&mut options);
        options.refresh = self.refresh;
        options.cancel = cancel.clone();
        options.proxy = crate::commands::image::proxy(&self.image);
        options
    }

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
        if let Some(option) = options.verify.wants_bytes() {
            let message = format!("image `host` has no bytes to compare with {option}");
            return Err(CommandError::new(Kind::Usage, message).hint("name an image with --image"));
        }
        return Ok((Rootfs::Host, None));
    }
    let store = global.store()?;
    let image = store.pull(options.reference(), &options.pull_options(cancel), progress)?;
    let rootfs = match image.kind() {
        ImageKind::Tree => Rootfs::Directory {
            path: image.path().to_owned(),
        },
        ImageKind::Disk => {
            let root = image.root_partition()?;
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
