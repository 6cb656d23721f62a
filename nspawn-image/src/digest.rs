//! SHA-256 and SHA-512 digests: their text form, and the hashing of a stream into both.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};

/// A digest as users write it: `sha256:HEX` or `sha512:HEX`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Digest {
    /// SHA-256, the identity of every image in the store.
    Sha256([u8; 32]),
    /// SHA-512, which is what Debian publishes.
    Sha512([u8; 64]),
}

/// Why a text is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DigestError {
    /// No `sha256:` or `sha512:` in front.
    #[error("a checksum is written sha256:HEX or sha512:HEX")]
    Form,
    /// An algorithm that is not offered.
    #[error("the checksum algorithm \"{0}\" is not supported, only sha256 and sha512")]
    Algorithm(String),
    /// A wrong number of digits.
    #[error("a {algorithm} checksum has {expected} hexadecimal digits, this one has {found}")]
    Length {
        /// `sha256` or `sha512`.
        algorithm: &'static str,
        /// Digits wanted.
        expected: usize,
        /// Digits found.
        found: usize,
    },
    /// A character that is no hexadecimal digit.
    #[error("{character:?} at digit {position} of the checksum is not a hexadecimal digit")]
    Character {
        /// The character.
        character: char,
        /// Its place among the digits, the first being 1.
        position: usize,
    },
}

impl Digest {
    /// `sha256` or `sha512`.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::Sha512(_) => "sha512",
        }
    }

    /// The digest's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        }
    }

    /// The digest in lower-case hexadecimal, without the algorithm.
    pub fn hex(&self) -> String {
        self.as_bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

fn decode<const N: usize>(algorithm: &'static str, text: &str) -> Result<[u8; N], DigestError> {
    let mut bytes = [0; N];
    if let Some((index, character)) = text
        .chars()
        .enumerate()
        .find(|(_, c)| !c.is_ascii_hexdigit())
    {
        return Err(DigestError::Character {
            character,
            position: index + 1,
        });
    }
    if text.len() != 2 * N {
        return Err(DigestError::Length {
            algorithm,
            expected: 2 * N,
            found: text.len(),
        });
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |b: u8| char::from(b).to_digit(16).unwrap_or_default() as u8;
        *byte = digit(pair[0]) << 4 | digit(pair[1]);
    }
    Ok(bytes)
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (algorithm, hex) = text.split_once(':').ok_or(DigestError::Form)?;
        match algorithm.to_ascii_lowercase().as_str() {
            "sha256" => decode("sha256", hex).map(Self::Sha256),
            "sha512" => decode("sha512", hex).map(Self::Sha512),
            "" => Err(DigestError::Form),
            other => Err(DigestError::Algorithm(other.to_owned())),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// Hashes a stream: SHA-256 always, SHA-512 where it was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Hasher {
    sha256: Sha256,
    sha512: Option<Sha512>,
}

/// The digests of one whole stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digests {
    pub(crate) sha256: Digest,
    pub(crate) sha512: Option<Digest>,
}

impl Hasher {
    /// Hashes with SHA-512 too where `expected` is one.
    pub(crate) fn new(expected: Option<&Digest>) -> Self {
        let sha512 = matches!(expected, Some(Digest::Sha512(_))).then(Sha512::new);
        Self {
            sha256: Sha256::new(),
            sha512,
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(sha512) = &mut self.sha512 {
            sha512.update(bytes);
        }
    }

    pub(crate) fn finish(self) -> Digests {
        Digests {
            sha256: Digest::Sha256(self.sha256.finalize().into()),
            sha512: self
                .sha512
                .map(|hash| Digest::Sha512(hash.finalize().into())),
        }
    }

    /// Hashes `input` to its end, telling `progress` the bytes of each step; `false` from it stops.
    pub(crate) fn consume(
        &mut self,
        mut input: impl Read,
        mut progress: impl FnMut(u64) -> bool,
    ) -> io::Result<u64> {
        let mut buffer = vec![0; 256 * 1024];
        let mut total = 0;
        loop {
            match input.read(&mut buffer) {
                Ok(0) => return Ok(total),
                Ok(count) => {
                    self.update(&buffer[..count]);
                    total += count as u64;
                    if !progress(count as u64) {
                        return Ok(total);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Digests {
    /// The digest of the algorithm `expected` uses, where it was computed.
    pub(crate) fn like(&self, expected: &Digest) -> Option<Digest> {
        match expected {
            Digest::Sha256(_) => Some(self.sha256),
            Digest::Sha512(_) => self.sha512,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_in_every_form() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let empty = Hasher::new(None).finish().sha256;
        assert_eq!(format!("sha256:{hex}").parse(), Ok(empty));
        assert_eq!(format!("SHA256:{}", hex.to_uppercase()).parse(), Ok(empty));
        assert_eq!(empty.to_string(), format!("sha256:{hex}"));
        let table = [
            ("", DigestError::Form),
            (":00", DigestError::Form),
            (hex, DigestError::Form),
            ("md5:00", DigestError::Algorithm("md5".into())),
            (
                "sha256:00",
                DigestError::Length {
                    algorithm: "sha256",
                    expected: 64,
                    found: 2,
                },
            ),
            (
                "sha512:",
                DigestError::Length {
                    algorithm: "sha512",
                    expected: 128,
                    found: 0,
                },
            ),
            (
                "sha256:0g",
                DigestError::Character {
                    character: 'g',
                    position: 2,
                },
            ),
            (
                "sha256:ä0",
                DigestError::Character {
                    character: 'ä',
                    position: 1,
                },
            ),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<Digest>(), Err(expected), "{text:?}");
        }
    }

    #[test]
    fn sha512_only_when_asked() {
        let asked = Digest::Sha512([0; 64]);
        let mut hasher = Hasher::new(Some(&asked));
        hasher.consume(&b"abc"[..], |_| true).unwrap();
        let digests = hasher.finish();
        assert!(
            digests
                .like(&asked)
                .unwrap()
                .hex()
                .starts_with("ddaf35a193617aba")
        );
        assert!(Hasher::new(None).finish().like(&asked).is_none());
    }
}
