//! What a user may write for an image, parsed once: [`ImageRef`], [`ImageUrl`], [`ImageName`] and [`Digest`].
//!
//! Nothing here opens a network connection; the one question asked of the file system is whether a bare word
//! is a file in the current directory.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use url::Url;

use crate::oci::OciReference;

/// Where an image comes from.
///
/// | Text | Meaning |
/// | --- | --- |
/// | `host` | the host's own file system |
/// | `http://…`, `https://…` | an image to download |
/// | `oci:…` | a container image of a registry |
/// | `./disk.raw`, `/srv/tree`, or a file that exists | a disk image or an OS tree on this host |
/// | anything else | a name in the store or in `/var/lib/machines` |
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum ImageRef {
    /// The host's own file system; the default, as it needs no download.
    #[default]
    Host,
    /// A file or folder on this host.
    Path(PathBuf),
    /// A file behind HTTP or HTTPS.
    Url(ImageUrl),
    /// A container image of a registry.
    Oci(OciReference),
    /// A name in the store or in the machines folder.
    Name(ImageName),
}

/// Why a text is no image reference, URL or name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// Nothing was given.
    #[error("the image reference is empty")]
    Empty,
    /// A NUL byte, which no path can hold.
    #[error("an image reference cannot hold a NUL byte")]
    Nul,
    /// A scheme other than http, https and oci.
    #[error("the scheme \"{0}:\" is not supported")]
    Scheme(String),
    /// The URL could not be read; the text says why and never holds the URL itself.
    #[error("not a URL: {0}")]
    Url(String),
    /// A URL without a host.
    #[error("the URL names no host")]
    NoHost,
    /// `oci:` with nothing behind it, or with white space.
    #[error("\"oci:\" must be followed by an image such as oci:debian:12")]
    Oci,
    /// A part of a container image's name that cannot be one.
    #[error("{found:?} is no {part} of a container image")]
    OciPart {
        /// `registry`, `repository`, `tag`, `digest`.
        part: &'static str,
        /// The text found.
        found: String,
    },
    /// An image name of a wrong length, in bytes.
    #[error("an image name has 1 to {max} bytes, this one has {found}", max = ImageName::MAX)]
    NameLength {
        /// The length found, in bytes.
        found: usize,
    },
    /// An image name with a character that is not allowed.
    #[error("an image name holds only a-z A-Z 0-9 . _ + -, not {0:?}")]
    NameCharacter(char),
    /// An image name that starts or ends in a way that would hide it or be taken for an option.
    #[error("an image name starts with a letter or digit and does not end with a dot")]
    NameEdge,
}

impl ImageRef {
    /// Takes a path as it is, without asking whether it looks like one.
    pub fn path(path: impl Into<PathBuf>) -> Self {
        Self::Path(path.into())
    }
}

impl FromStr for ImageRef {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.contains('\0') {
            return Err(ReferenceError::Nul);
        }
        if text == "host" {
            return Ok(Self::Host);
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            return rest.parse().map(Self::Oci);
        }
        if let Some((scheme, _)) = text.split_once("://")
            && !scheme.is_empty()
            && scheme
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        {
            return text.parse().map(Self::Url);
        }
        if text.contains('/') || text.starts_with('.') || Path::new(text).exists() {
            return Ok(Self::Path(PathBuf::from(text)));
        }
        text.parse().map(Self::Name)
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Path(path) => path.display().fmt(f),
            Self::Url(url) => url.fmt(f),
            Self::Oci(image) => write!(f, "oci:{image}"),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// An `http` or `https` URL whose printed form never shows a password or a query value.
///
/// The full text has no public getter: what is printed, logged or stored is the redacted form.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ImageUrl(Url);

impl ImageUrl {
    /// The URL to connect to, secrets included.
    pub(crate) fn secret(&self) -> &Url {
        &self.0
    }

    pub(crate) fn from_url(url: Url) -> Self {
        Self(url)
    }

    /// The last part of the path, percent-decoding left alone; empty where the path ends with `/`.
    pub fn file_name(&self) -> &str {
        self.0.path().rsplit('/').next().unwrap_or_default()
    }

    /// The host's name or address.
    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }
}

impl FromStr for ImageUrl {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = Url::parse(text).map_err(|error| ReferenceError::Url(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(ReferenceError::Scheme(url.scheme().to_owned()));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(ReferenceError::NoHost);
        }
        Ok(Self(url))
    }
}

impl fmt::Display for ImageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = &self.0;
        write!(f, "{}://", url.scheme())?;
        if !url.username().is_empty() || url.password().is_some() {
            f.write_str("***@")?;
        }
        f.write_str(url.host_str().unwrap_or_default())?;
        if let Some(port) = url.port() {
            write!(f, ":{port}")?;
        }
        f.write_str(url.path())?;
        let mut separator = '?';
        for pair in url.query().into_iter().flat_map(|query| query.split('&')) {
            match pair.split_once('=') {
                Some((key, _)) => write!(f, "{separator}{key}=***")?,
                None => write!(f, "{separator}***")?,
            }
            separator = '&';
        }
        Ok(())
    }
}

impl fmt::Debug for ImageUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageUrl({self})")
    }
}

/// A name in the store: 1 to 128 bytes of `a-z A-Z 0-9 . _ + -`, starting with a letter or digit.
///
/// Wider than a machine name, as images such as `Fedora-Cloud-Base_38-1.6.x86_64` have no other.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName(String);

impl ImageName {
    /// The longest name, in bytes.
    pub const MAX: usize = 128;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Makes a name of any text, replacing what a name cannot hold; `image` where nothing is left.
    pub fn sanitize(text: &str) -> Self {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
        let kept: String = text
            .chars()
            .map(|c| if allowed(c) { c } else { '-' })
            .take(Self::MAX)
            .collect();
        let kept = kept
            .trim_start_matches(|c: char| !c.is_ascii_alphanumeric())
            .trim_end_matches('.');
        kept.parse().unwrap_or_else(|_| Self("image".to_owned()))
    }
}

impl FromStr for ImageName {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !(1..=Self::MAX).contains(&text.len()) {
            return Err(ReferenceError::NameLength { found: text.len() });
        }
        if let Some(bad) = text
            .chars()
            .find(|c| !c.is_ascii_alphanumeric() && !"._+-".contains(*c))
        {
            return Err(ReferenceError::NameCharacter(bad));
        }
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) || text.ends_with('.') {
            return Err(ReferenceError::NameEdge);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_by_their_form() {
        let name = |text: &str| ImageRef::Name(text.parse().unwrap());
        let table: [(&str, Result<ImageRef, ReferenceError>); 17] = [
            ("host", Ok(ImageRef::Host)),
            ("./disk.raw", Ok(ImageRef::path("./disk.raw"))),
            (".", Ok(ImageRef::path("."))),
            ("/srv/tree", Ok(ImageRef::path("/srv/tree"))),
            ("images/disk.raw", Ok(ImageRef::path("images/disk.raw"))),
            ("Cargo.toml", Ok(ImageRef::path("Cargo.toml"))),
            ("debian-12", Ok(name("debian-12"))),
            (
                "oci:debian:12",
                Ok(ImageRef::Oci("debian:12".parse().unwrap())),
            ),
            ("oci:", Err(ReferenceError::Oci)),
            ("oci:a b", Err(ReferenceError::Oci)),
            ("", Err(ReferenceError::Empty)),
            ("a\0b", Err(ReferenceError::Nul)),
            ("ftp://host/x", Err(ReferenceError::Scheme("ftp".into()))),
            ("http://", Err(ReferenceError::Url("empty host".into()))),
            ("deb ian", Err(ReferenceError::NameCharacter(' '))),
            ("-x", Err(ReferenceError::NameEdge)),
            ("x.", Err(ReferenceError::NameEdge)),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<ImageRef>(), expected, "{text:?}");
        }
        assert_eq!(
            "x".repeat(129).parse::<ImageName>(),
            Err(ReferenceError::NameLength { found: 129 })
        );
        assert!(matches!("https://h/x.qcow2".parse(), Ok(ImageRef::Url(_))));
    }

    #[test]
    fn a_printed_url_shows_no_secret() {
        let table = [
            ("http://h/a.raw", "http://h/a.raw"),
            ("http://user:pass@h:81/a.raw", "http://***@h:81/a.raw"),
            (
                "https://token@h/a?sig=s3cret&x=1",
                "https://***@h/a?sig=***&x=***",
            ),
            ("https://h/a?s3cret#s3cret", "https://h/a?***"),
            ("http://[::1]:8080/a", "http://[::1]:8080/a"),
        ];
        for (text, shown) in table {
            let url: ImageUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), format!("ImageUrl({shown})"));
        }
    }

    #[test]
    fn any_text_makes_a_name() {
        for (text, name) in [
            ("a b", "a-b"),
            ("..x.", "x"),
            ("", "image"),
            ("/", "image"),
            ("ü", "image"),
            ("a%20b", "a-20b"),
        ] {
            assert_eq!(ImageName::sanitize(text).as_str(), name);
        }
    }
}
