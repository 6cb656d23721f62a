//! What is made of unverified bytes is not published: that takes a [`Verified`]. An import may run before, while the
//! bytes come, and is thrown away where they are not the right ones.
//!
//! Flow: `lookup` finds out what the bytes must be before they come -> [`Expectation`] -> [`Unverified::check`]
//! -> [`Verified`].

mod checksum_file;
mod error;
pub(crate) mod lookup;
mod openpgp;

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};

pub use checksum_file::{ChecksumEntry, ChecksumFile, ChecksumFileError};
pub use error::VerifyError;
pub use openpgp::Keyring;
use openpgp::Signatures;
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Digests};
use crate::error::ImageError;
use crate::limits::Cancel;
use crate::options::Verify;
use crate::source::ReadAt;

/// A file from outside and the digests of its bytes. The only thing to do with it is [`check`](Self::check).
#[derive(Debug)]
pub(crate) struct Unverified {
    file: File,
    digests: Digests,
}

/// A file whose bytes are those wanted, or of which nothing was known. Only what was made of one is published.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) file: File,
    pub(crate) digests: Digests,
    pub(crate) verification: Verification,
}

/// What is known of bytes before they come.
#[derive(Debug, Default)]
pub(crate) struct Expectation {
    /// The digest that the caller gave.
    given: Option<Digest>,
    /// The digest in the publisher's checksum file.
    published: Option<Published>,
    /// Signatures over the bytes themselves, one of them by a key that is here.
    image: Option<(Signatures, Keyring)>,
}

#[derive(Clone, Debug)]
struct Published {
    digest: Digest,
    /// The checksum file, redacted.
    file: String,
    /// The fingerprint of the key that signed the file.
    key: Option<String>,
}

/// How an image was verified: what a record keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "lowercase")]
pub(crate) enum Verification {
    #[default]
    None,
    /// By the digest that the caller gave.
    Given,
    Checksum {
        file: String,
    },
    Signature {
        key: String,
        file: String,
    },
}

impl Verification {
    /// Whether it is as much as `wanted`.
    pub(crate) fn meets(&self, wanted: Verify) -> bool {
        match wanted {
            Verify::Auto | Verify::No => true,
            Verify::Checksum => *self != Self::None,
            Verify::Signature => matches!(self, Self::Signature { .. }),
        }
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Given => f.write_str("checksum given"),
            Self::Checksum { file } => write!(f, "checksum by {file}"),
            Self::Signature { key, file } => write!(f, "signature by {key} in {file}"),
        }
    }
}

impl Unverified {
    /// `digests` are those of all bytes of `file`, computed while they arrived or by reading them.
    pub(crate) fn new(file: File, digests: Digests) -> Self {
        Self { file, digests }
    }

    /// Consumes the bytes, so that a mismatch leaves nothing behind to misuse.
    pub(crate) fn check(
        self,
        expected: &Expectation,
        what: &dyn ToString,
        cancel: &Cancel,
    ) -> Result<Verified, ImageError> {
        expected
            .digests()
            .try_for_each(|(digest, by)| compare(&self.digests, &digest, by, what))?;
        let verification = match &expected.image {
            Some((signatures, keyring)) => Verification::Signature {
                key: check_image(&self.file, signatures, keyring, what, cancel)?,
                file: signatures.file.clone(),
            },
            None => expected.verification(),
        };
        Ok(Verified {
            file: self.file,
            digests: self.digests,
            verification,
        })
    }
}

impl Expectation {
    /// Nothing but what the caller gave.
    pub(crate) fn given(digest: Option<Digest>) -> Self {
        Self {
            given: digest,
            ..Self::default()
        }
    }

    /// Whether nothing at all is known.
    pub(crate) fn is_nothing(&self) -> bool {
        self.given.is_none() && self.published.is_none() && self.image.is_none()
    }

    /// The digest that decides what the bytes are hashed with: SHA-256 is computed in any case.
    pub(crate) fn hashed_as(&self) -> Option<Digest> {
        let all: Vec<Digest> = self.digests().map(|(digest, _)| digest).collect();
        let is_longer = |digest: &&Digest| matches!(digest, Digest::Sha512(_));
        all.iter().find(is_longer).or(all.first()).copied()
    }

    /// How bytes are verified whose digests [fit](Self::fits).
    pub(crate) fn verification(&self) -> Verification {
        match (&self.published, self.given) {
            (Some(published), _) => {
                let file = published.file.clone();
                match &published.key {
                    Some(key) => Verification::Signature {
                        key: key.clone(),
                        file,
                    },
                    None => Verification::Checksum { file },
                }
            }
            (None, Some(_)) => Verification::Given,
            (None, None) => Verification::None,
        }
    }

    /// Whether bytes with these digests are the ones wanted, where the digests alone can tell.
    pub(crate) fn fits(&self, digests: &Digests) -> bool {
        self.image.is_none()
            && self
                .digests()
                .all(|(digest, _)| digests.like(&digest) == Some(digest))
    }

    fn digests(&self) -> impl Iterator<Item = (Digest, Option<&str>)> {
        let published = self.published.as_ref();
        let published = published.map(|found| (found.digest, Some(found.file.as_str())));
        self.given
            .map(|digest| (digest, None))
            .into_iter()
            .chain(published)
    }
}

/// Compares digests with the one given, if there is one.
pub(crate) fn check(
    digests: &Digests,
    expected: Option<&Digest>,
    what: &dyn ToString,
) -> Result<(), ImageError> {
    expected.map_or(Ok(()), |expected| compare(digests, expected, None, what))
}

fn compare(
    digests: &Digests,
    expected: &Digest,
    by: Option<&str>,
    what: &dyn ToString,
) -> Result<(), ImageError> {
    let actual = digests.like(expected).unwrap_or(digests.sha256);
    if actual == *expected {
        return Ok(());
    }
    Err(ImageError::Mismatch {
        what: what.to_string(),
        by: by.map(str::to_owned),
        expected: Box::new(*expected),
        actual: Box::new(actual),
    })
}

/// Checks a signature over the bytes themselves and answers with its key. The bytes are read again: a signature's hash
/// covers more than they do.
fn check_image(
    file: &File,
    signatures: &Signatures,
    keyring: &Keyring,
    what: &dyn ToString,
    cancel: &Cancel,
) -> Result<String, ImageError> {
    let failed = Cell::new(None);
    let open = || {
        BufReader::with_capacity(
            256 * 1024,
            FromStart {
                file,
                offset: 0,
                cancel,
                failed: &failed,
            },
        )
    };
    let result = keyring.verify(signatures, &open);
    cancel.check()?;
    if let Some(source) = failed.take() {
        return Err(ImageError::Path {
            verb: "read",
            path: what.to_string().into(),
            source,
        });
    }
    result.map_err(|error| refused(error, what))
}

fn refused(error: VerifyError, what: &dyn ToString) -> ImageError {
    ImageError::Verify {
        what: what.to_string(),
        source: Box::new(error),
    }
}

/// Reads a file from its first byte without moving its position, and keeps why it could not.
struct FromStart<'a> {
    file: &'a File,
    offset: u64,
    cancel: &'a Cancel,
    failed: &'a Cell<Option<io::Error>>,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        let read = ReadAt::read_at(self.file, buffer, self.offset);
        let count = read.inspect_err(|error| self.failed.set(Some(error.kind().into())))?;
        self.offset += count as u64;
        Ok(count)
    }
}
