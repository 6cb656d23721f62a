//! Unverified bytes cannot reach a parser, because no parser takes them.

use std::fs::File;

use crate::digest::{Digest, Digests};
use crate::error::ImageError;

/// A file from outside and the digests of its bytes. The only thing to do with it is [`check`](Self::check).
#[derive(Debug)]
pub(crate) struct Unverified {
    file: File,
    digests: Digests,
}

/// A file whose digest is the one wanted, or for which none was given. Parsers take this and nothing else.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) file: File,
    pub(crate) digests: Digests,
}

impl Unverified {
    /// `digests` are those of all bytes of `file`, computed while they arrived or by reading them.
    pub(crate) fn new(file: File, digests: Digests) -> Self {
        Self { file, digests }
    }

    /// Consumes the bytes, so that a mismatch leaves nothing behind to misuse.
    pub(crate) fn check(
        self,
        expected: Option<&Digest>,
        what: &dyn ToString,
    ) -> Result<Verified, ImageError> {
        check(&self.digests, expected, what)?;
        Ok(Verified {
            file: self.file,
            digests: self.digests,
        })
    }
}

/// Compares digests with the one wanted.
pub(crate) fn check(
    digests: &Digests,
    expected: Option<&Digest>,
    what: &dyn ToString,
) -> Result<(), ImageError> {
    let Some(expected) = expected else {
        return Ok(());
    };
    let actual = digests.like(expected).unwrap_or(digests.sha256);
    if actual == *expected {
        return Ok(());
    }
    Err(ImageError::Mismatch {
        what: what.to_string(),
        expected: Box::new(*expected),
        actual: Box::new(actual),
    })
}
