//! [`PullOptions`]: how an image is to be had.

use std::path::PathBuf;
use std::time::Duration;

use crate::digest::Digest;
use crate::limits::{Cancel, Limits};
use crate::reference::ImageName;

/// How an image is to be had. Made by `default()`, then changed field by field.
///
/// ```
/// let mut options = nspawn_image::PullOptions::default();
/// options.refresh = true;
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PullOptions {
    /// What the bytes must hash to, before anything looks into them. Checked for local files too.
    pub checksum: Option<Digest>,
    /// Ask the server whether a stored image is still current, and download it again where it is not.
    pub refresh: bool,
    /// Use only what is in the store already.
    pub offline: bool,
    /// The name in the store; `None` makes one of the URL's or file's last part.
    pub name: Option<ImageName>,
    /// Caps on what comes from outside.
    pub limits: Limits,
    /// Ends the call early.
    pub cancel: Cancel,
    /// The longest wait for a connection. Default 30 s.
    pub connect_timeout: Duration,
    /// The longest time without a byte. Default 60 s.
    pub idle_timeout: Duration,
    /// How often a broken download is taken up again where it stopped. Default 2.
    pub retries: u32,
    /// A proxy's URL; `None` connects directly. The library reads no environment variable.
    pub proxy: Option<String>,
    /// Where images of machined are looked up by name. Default `/var/lib/machines`.
    pub machines_dir: PathBuf,
    /// Files with credentials for registries, as docker and podman write them; the first that knows one counts. One
    /// that is not there is passed over. Credential helpers are not run. Default none.
    pub registry_auth: Vec<PathBuf>,
    /// Registries asked without encryption, as `HOST` or `HOST:PORT`; those on this host always are. Default none.
    pub insecure_registries: Vec<String>,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            checksum: None,
            refresh: false,
            offline: false,
            name: None,
            limits: Limits::default(),
            cancel: Cancel::default(),
            connect_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            retries: 2,
            proxy: None,
            machines_dir: PathBuf::from("/var/lib/machines"),
            registry_auth: Vec::new(),
            insecure_registries: Vec::new(),
        }
    }
}
