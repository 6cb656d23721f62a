//! Container images into the store. Their identity is the SHA-256 of their manifest, which names everything else.

use super::Store;
use super::lock::KeyLock;
use super::publish::{Known, Origin};
use crate::digest::Hasher;
use crate::error::ImageError;
use crate::fetch::{DownloadError, DownloadReason, PartialPaths, Validators};
use crate::image::Image;
use crate::oci::{Layers, OciReference, Registry};
use crate::options::{PullOptions, Verify};
use crate::reference::ImageName;
use crate::report::Reporter;
use crate::verify::{self, Expectation, VerifyError};

impl Store {
    pub(super) fn pull_oci(
        &self,
        reference: &OciReference,
        options: &PullOptions,
        reporter: &mut dyn Reporter,
    ) -> Result<Image, ImageError> {
        let source = format!("oci:{reference}");
        let given = options.checksum.or(reference.digest());
        refuse_other_proof(&source, given.is_some(), options)?;
        let key = key(&source);
        let _lock = KeyLock::wait(&self.lock_path(&key), &options.cancel, reporter)?;
        if (!options.refresh || options.offline)
            && let Some(image) = self.reuse(&key, options)?
        {
            return Ok(image);
        }
        let registry = Registry::open(reference, options)?;
        if options.offline {
            let error = DownloadError {
                url: registry.manifest_url()?,
                reason: DownloadReason::Offline,
            };
            return Err(error.into());
        }
        let resolved = registry.resolve()?;
        let digests = resolved.digests;
        verify::check(&digests, options.checksum.as_ref(), &source)?;
        let known = Known {
            digests,
            verification: Expectation::given(given).verification(),
        };
        let short_name = || ImageName::sanitize(&reference.short_name());
        let origin = Origin {
            source: source.clone(),
            key,
            validators: Validators::default(),
            name: options.name.clone().unwrap_or_else(short_name),
            variant: None,
        };
        // The lock of the manifest is held by whoever makes it, and with it that of all its layers.
        let hex = known.digests.sha256.hex();
        let paths = |index: usize| PartialPaths {
            data: self.partial(&format!("{hex}-{index}"), "data"),
            record: self.partial(&format!("{hex}-{index}"), "json"),
        };
        self.publish_made(known, origin, options, reporter, |work, reporter| {
            work.clear();
            let layers = Layers {
                registry: &registry,
                manifest: &resolved.manifest,
                options,
                paths: &paths,
                what: &source,
            };
            layers.unpack(&work.tree, reporter)
        })
    }
}

/// A container image is verified by the digest of its manifest, or not at all: what else is asked for is not passed over.
fn refuse_other_proof(
    source: &str,
    has_digest: bool,
    options: &PullOptions,
) -> Result<(), ImageError> {
    let error = if options.verify == Verify::Signature {
        VerifyError::Container {
            wanted: "a signature",
        }
    } else if options.checksum_file.is_some() && options.verify != Verify::No {
        VerifyError::Container {
            wanted: "a checksum file",
        }
    } else if options.verify == Verify::Checksum && !has_digest {
        VerifyError::Tag
    } else {
        return Ok(());
    };
    Err(ImageError::Verify {
        what: source.to_owned(),
        source: Box::new(error),
    })
}

/// What a reference's record is found by.
pub(super) fn key(source: &str) -> String {
    let mut hasher = Hasher::new(None);
    hasher.update(source.as_bytes());
    format!("oci-{}", &hasher.finish().sha256.hex()[..32])
}
