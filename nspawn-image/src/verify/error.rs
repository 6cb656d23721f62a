//! Why an image could not be verified.

use std::path::PathBuf;

use super::checksum_file::ChecksumFileError;

/// Why an image could not be verified. A hash that is not the one wanted is
/// [`ImageError::Mismatch`](crate::ImageError::Mismatch).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// Nothing beside the image holds a checksum.
    #[error("no checksum file was found; asked for {}", list(.tried))]
    NoChecksumFile {
        /// What was asked for, redacted.
        tried: Vec<String>,
    },
    /// Checksum files were found, and none has a line for the image.
    #[error("{file} has no line for {name}{}", nearest_names(.nearest))]
    NoLine {
        /// The checksum file.
        file: String,
        /// The name looked for.
        name: String,
        /// The names in the file that are most like it.
        nearest: Vec<String>,
    },
    /// A checksum file that cannot be used.
    #[error("cannot use {file}")]
    ChecksumFile {
        /// The checksum file.
        file: String,
        /// What was found in it.
        #[source]
        source: ChecksumFileError,
    },
    /// Nothing is signed.
    #[error("no signature was found; asked for {}", list(.tried))]
    NoSignature {
        /// What was asked for, redacted.
        tried: Vec<String>,
    },
    /// A signature was found, and no keys to check it with.
    #[error("there is no keyring to check {file} with, which was made by the key {key}")]
    NoKeyring {
        /// The signature.
        file: String,
        /// Fingerprint or ID of the key that made it.
        key: String,
    },
    /// No keyring holds the key.
    #[error("{file} was made by the key {key}, which is not in {}", list(.keyrings))]
    NoKey {
        /// The signature.
        file: String,
        /// Fingerprint or ID of the key that made it.
        key: String,
        /// The keyrings looked into.
        keyrings: Vec<String>,
    },
    /// What was signed is not what was found, or the signature is forged.
    #[error("{file} is not a good signature of the key {key}")]
    BadSignature {
        /// The signature.
        file: String,
        /// The key's fingerprint.
        key: String,
    },
    /// The key that made the signature has expired.
    #[error("{file} was made by the key {key}, which has expired")]
    KeyExpired {
        /// The signature.
        file: String,
        /// The key's fingerprint.
        key: String,
    },
    /// The key that made the signature was revoked by its owner.
    #[error("{file} was made by the key {key}, which was revoked")]
    KeyRevoked {
        /// The signature.
        file: String,
        /// The key's fingerprint.
        key: String,
    },
    /// The key must not sign, or does not belong to the key it stands with.
    #[error("{file} was made by the key {key}, which {reason}")]
    KeyUnfit {
        /// The signature.
        file: String,
        /// The key's fingerprint.
        key: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The signature itself has expired.
    #[error("the signature {file} by the key {key} has expired")]
    SignatureExpired {
        /// The signature.
        file: String,
        /// The key's fingerprint.
        key: String,
    },
    /// The signature rests on a hash that can be forged.
    #[error("the signature {file} rests on {hash}, which can be forged")]
    WeakHash {
        /// The signature.
        file: String,
        /// The hash's name.
        hash: String,
    },
    /// A signature that cannot be read.
    #[error("{file} is no signature: {reason}")]
    Malformed {
        /// The signature.
        file: String,
        /// What was found.
        reason: String,
    },
    /// A keyring that cannot be read.
    #[error("{} is no keyring: {reason}", path.display())]
    Keyring {
        /// The keyring.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A kind of proof that is not looked for with container images.
    #[error("{wanted} of a container image is not looked for")]
    Container {
        /// What is wanted, such as `a signature`.
        wanted: &'static str,
    },
    /// A tag of a container image, which the registry may give to any image.
    #[error("its tag says nothing of its bytes")]
    Tag,
    /// What is in the store was verified less than wanted, and cannot be verified now.
    #[error("it is in the store with verification \"{verified}\", and {wanted} is wanted")]
    Stored {
        /// How it was verified.
        verified: String,
        /// What is wanted: `a checksum` or `a signature`.
        wanted: &'static str,
    },
}

fn list(names: &[String]) -> String {
    names.join(", ")
}

fn nearest_names(names: &[String]) -> String {
    if names.is_empty() {
        return String::new();
    }
    format!("; it has {}", list(names))
}

impl VerifyError {
    /// What to do about it, as one sentence in lower case.
    pub fn hint(&self) -> String {
        match self {
            Self::NoChecksumFile { .. } => {
                "give the digest with --checksum, or name the publisher's checksum file with --checksum-file"
            }
            Self::NoLine { .. } => {
                "check the image's name: publishers remove old builds from their checksum files; or give the digest with --checksum"
            }
            Self::ChecksumFile { .. } => "name another checksum file with --checksum-file",
            Self::NoSignature { .. } => {
                "this publisher may sign nothing: --verify checksum is what is left then"
            }
            Self::NoKeyring { .. } | Self::NoKey { .. } => {
                "get the publisher's key from a source you trust, and give it with --keyring FILE"
            }
            Self::BadSignature { .. } => {
                "do not use it: the file was changed after it was signed, or is damaged; try another mirror"
            }
            Self::KeyExpired { .. } => {
                "get the publisher's renewed key, and give it with --keyring FILE"
            }
            Self::KeyRevoked { .. } | Self::KeyUnfit { .. } => {
                "do not use it: look for the publisher's new key and a newer build"
            }
            Self::SignatureExpired { .. } => "take a newer build",
            Self::WeakHash { .. } => {
                "take a newer build; --verify checksum does not look at signatures"
            }
            Self::Malformed { .. } => {
                "try another mirror; --verify checksum does not look at signatures"
            }
            Self::Keyring { .. } => {
                "give a file of OpenPGP public keys, as `gpg --export` writes it"
            }
            Self::Container { .. } | Self::Tag => {
                "name the image by its digest, as oci:NAME@sha256:HEX, or give the digest of its manifest with --checksum; then --verify checksum holds"
            }
            Self::Stored { .. } => "pull it again by its URL with the same --verify",
        }
        .to_owned()
    }

    /// Whether it only says that nothing can be known of a signature here: a note where no signature is required.
    pub(crate) fn is_unknown(&self) -> bool {
        matches!(
            self,
            Self::NoKeyring { .. }
                | Self::NoKey { .. }
                | Self::KeyExpired { .. }
                | Self::Malformed { .. }
        )
    }
}
