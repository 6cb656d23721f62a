//! How an image is to be had: the options that every command with an image shares.

use std::path::PathBuf;

use clap::Args;
use nspawn_image::{Cancel, ImageRef, PullOptions};

use super::RegistryOptions;
use crate::options::VerifyArgs;

/// How an image is to be had.
#[derive(Args, Clone, Debug)]
pub(crate) struct FetchOptions {
    #[command(flatten)]
    pub(crate) verify: VerifyArgs,
    /// Ask the server whether a stored image is still current
    #[arg(long)]
    refresh: bool,
    /// Use only what is in the store already
    #[arg(long, conflicts_with = "refresh")]
    offline: bool,
    /// Connections that a long download may use at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    connections: u8,
    #[command(flatten)]
    registry: RegistryOptions,
    #[command(flatten)]
    qcow2: Qcow2Options,
}

/// What is wanted of a qcow2 image.
#[derive(Args, Clone, Debug)]
pub(crate) struct Qcow2Options {
    /// Take this internal snapshot of a qcow2 image, by its name or number, in place of the active state
    #[arg(long, value_name = "NAME")]
    pub(crate) snapshot: Option<String>,
    /// Open the files below a local qcow2 overlay, where they are in this folder; overlays are refused otherwise
    #[arg(long, value_name = "DIR")]
    pub(crate) allow_backing: Option<PathBuf>,
}

impl FetchOptions {
    /// The library's options for `image`.
    pub(crate) fn pull_options(&self, image: &ImageRef, cancel: &Cancel) -> PullOptions {
        let mut options = PullOptions::default();
        self.verify.apply(&mut options);
        options.refresh = self.refresh;
        options.offline = self.offline;
        options.connections = self.connections.into();
        options.snapshot.clone_from(&self.qcow2.snapshot);
        options.allow_backing.clone_from(&self.qcow2.allow_backing);
        options.cancel = cancel.clone();
        options.proxy = super::proxy(image);
        self.registry.apply(image, &mut options);
        options
    }
}
