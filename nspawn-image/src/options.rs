//! [`PullOptions`]: how an image is to be had.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::digest::Digest;
use crate::limits::{Cancel, Limits};
use crate::reference::{ImageName, ImageUrl, ReferenceError};

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
    /// What must be known of the bytes besides `checksum`. Default [`Verify::Auto`].
    pub verify: Verify,
    /// The publisher's checksum file, where it does not stand beside the image under a usual name. It must be there,
    /// and list the image, unless `verify` is [`Verify::No`].
    pub checksum_file: Option<ChecksumSource>,
    /// Files of OpenPGP public keys that are trusted to sign images, binary or armoured. Where there is none,
    /// `import-pubring.gpg` and `.pgp` in /etc/systemd and /usr/lib/systemd.
    pub keyrings: Vec<PathBuf>,
    /// Ask the server whether a stored image is still current, and download it again where it is not.
    pub refresh: bool,
    /// Use only what is in the store already.
    pub offline: bool,
    /// The name in the store; `None` makes one of the URL's or file's last part.
    pub name: Option<ImageName>,
    /// The number or name of the internal snapshot of a qcow2 image; `None` for its active state.
    pub snapshot: Option<String>,
    /// The folder in which the files below a qcow2 overlay may be opened; `None` refuses overlays. Only for local
    /// files.
    pub allow_backing: Option<PathBuf>,
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
    /// Connections that a long download may use at once, where the server has ranges and says what it sends. One alone
    /// at first: only what takes longer than a second is divided. Default 4.
    pub connections: usize,
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
            verify: Verify::default(),
            checksum_file: None,
            keyrings: Vec::new(),
            refresh: false,
            offline: false,
            name: None,
            snapshot: None,
            allow_backing: None,
            limits: Limits::default(),
            cancel: Cancel::default(),
            connect_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            retries: 2,
            connections: 4,
            proxy: None,
            machines_dir: PathBuf::from("/var/lib/machines"),
            registry_auth: Vec::new(),
            insecure_registries: Vec::new(),
        }
    }
}

/// What must be known of an image's bytes before anything looks into them.
///
/// | | looks for a checksum file | looks for a signature | nothing found | wrong |
/// | --- | --- | --- | --- | --- |
/// | `Auto` | unless a checksum is given | of a checksum file, or of the image | a notice | an error |
/// | `Checksum` | unless a checksum is given | no | an error | an error |
/// | `Signature` | yes | yes | an error | an error |
/// | `No` | no | no | - | - |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verify {
    /// Whatever the publisher offers is checked. A signature by a key that is not in a keyring, or has expired, is a
    /// notice.
    #[default]
    Auto,
    /// A checksum is required: one that is given, or the publisher's checksum file.
    Checksum,
    /// A good signature by a key of the keyrings is required: of the checksum file, or of the image itself.
    Signature,
    /// Nothing but [`PullOptions::checksum`] is checked.
    No,
}

impl Verify {
    /// Its name: `auto`, `checksum`, `signature` or `no`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Checksum => "checksum",
            Self::Signature => "signature",
            Self::No => "no",
        }
    }
}

impl fmt::Display for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a text is no [`Verify`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("verification is auto, checksum, signature or no, not \"{0}\"")]
pub struct VerifyNameError(String);

impl FromStr for Verify {
    type Err = VerifyNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Auto, Self::Checksum, Self::Signature, Self::No]
            .into_iter()
            .find(|verify| verify.as_str() == text)
            .ok_or_else(|| VerifyNameError(text.to_owned()))
    }
}

/// Where a checksum file is: a URL, or a path on this host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ChecksumSource {
    /// Behind HTTP or HTTPS.
    Url(ImageUrl),
    /// A file on this host.
    Path(PathBuf),
}

impl FromStr for ChecksumSource {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.contains("://") {
            return text.parse().map(Self::Url);
        }
        Ok(Self::Path(PathBuf::from(text)))
    }
}

impl fmt::Display for ChecksumSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => url.fmt(f),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verification_by_its_name() {
        for (text, verify) in [
            ("auto", Verify::Auto),
            ("checksum", Verify::Checksum),
            ("signature", Verify::Signature),
            ("no", Verify::No),
        ] {
            assert_eq!(text.parse(), Ok(verify));
            assert_eq!(verify.to_string(), text);
        }
        let refused = "yes".parse::<Verify>().unwrap_err().to_string();
        assert!(refused.contains("\"yes\""), "{refused}");
    }

    #[test]
    fn a_checksum_file_is_a_url_or_a_path() {
        for text in ["https://h/SHA256SUMS", "SHA256SUMS", "/srv/SHA256SUMS"] {
            let source: ChecksumSource = text.parse().unwrap();
            assert_eq!(matches!(source, ChecksumSource::Url(_)), text.contains(':'));
            assert_eq!(source.to_string(), text);
        }
        assert_eq!("".parse::<ChecksumSource>(), Err(ReferenceError::Empty));
        let refused = "ftp://h/x".parse::<ChecksumSource>();
        assert_eq!(refused, Err(ReferenceError::Scheme("ftp".into())));
    }
}
