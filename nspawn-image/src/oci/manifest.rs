//! Manifests, indexes and configurations of container images, read from bytes of any origin.
//!
//! Source: OCI image-spec 1.1, manifest.md, image-index.md, config.md, descriptor.md; Docker "Image Manifest V 2,
//! Schema 2".

use serde::Deserialize;

use super::{OciError, Platform};
use crate::digest::Digest;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What a registry is asked to answer with.
pub(super) const ACCEPT: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];

/// Most images in an index and most layers in an image; what is published has some tens.
const MANIFESTS: usize = 1000;
const LAYERS: usize = 500;

/// What a manifest may be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Document {
    /// Images for several machines.
    Index(Index),
    /// One image.
    Manifest(Manifest),
}

/// One part of an image: its digest is its name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// The digest of its bytes.
    pub digest: Digest,
    /// Its length, in bytes.
    pub size: u64,
}

/// The images of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Index {
    /// In the order given, which is the order of preference.
    pub manifests: Vec<IndexEntry>,
}

/// One image of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IndexEntry {
    /// Its manifest.
    pub manifest: Descriptor,
    /// The machine it is for, where that is told.
    pub platform: Option<Platform>,
}

/// One image: its configuration and its layers, the lowest first.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Manifest {
    /// The configuration.
    pub config: Descriptor,
    /// The layers and how they are packed.
    pub layers: Vec<(Descriptor, LayerKind)>,
}

/// How a layer is packed. Its first bytes decide; this is what it was said to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerKind {
    /// A tar archive.
    Tar,
    /// A tar archive in gzip.
    Gzip,
    /// A tar archive in zstd.
    Zstd,
}

/// What an image's configuration says that matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageConfig {
    /// The machine the image is for.
    pub platform: Platform,
    /// The digests of the layers' archives, unpacked.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: u64,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    manifests: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(flatten)]
    platform: Platform,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    diff_ids: Vec<String>,
}

fn senseless(what: &'static str, reason: impl ToString) -> OciError {
    OciError::Document {
        what,
        reason: reason.to_string(),
    }
}

impl RawDescriptor {
    fn check(self, what: &'static str) -> Result<Descriptor, OciError> {
        Ok(Descriptor {
            digest: self
                .digest
                .parse()
                .map_err(|error| senseless(what, error))?,
            media_type: self.media_type,
            size: self.size,
        })
    }
}

impl Document {
    /// Reads a manifest or an index. `content_type` is what the registry called it, if anything.
    ///
    /// # Errors
    ///
    /// [`OciError::Document`], and [`OciError::Unsupported`] for schema 1 and what is no image. Never panics.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, OciError> {
        let what = "manifest";
        // The oldest form has other fields, and is told before they are missed.
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            schema_version: Option<u64>,
        }
        let version: Version =
            serde_json::from_slice(bytes).map_err(|error| senseless(what, error))?;
        if version.schema_version == Some(1) {
            return Err(OciError::Unsupported(
                "an image of the old docker schema 1".to_owned(),
            ));
        }
        let raw: RawDocument =
            serde_json::from_slice(bytes).map_err(|error| senseless(what, error))?;
        if raw.schema_version != 2 {
            let text = format!("its schema version is {}", raw.schema_version);
            return Err(senseless(what, text));
        }
        let is_index = match (&raw.manifests, &raw.layers, &raw.config) {
            (Some(_), None, None) => true,
            (None, Some(_), Some(_)) => false,
            // Readers would disagree on what it is. Source: CVE-2021-41190.
            (Some(_), ..) => return Err(senseless(what, "it is an index and a manifest at once")),
            (None, ..) => return Err(senseless(what, "it has neither layers nor manifests")),
        };
        let header = content_type.map(|text| text.split(';').next().unwrap_or_default().trim());
        for told in [raw.media_type.as_deref(), header].into_iter().flatten() {
            let fits = match told {
                OCI_INDEX | DOCKER_LIST => is_index,
                OCI_MANIFEST | DOCKER_MANIFEST => !is_index,
                // A server that knows no better.
                _ => raw.media_type.as_deref() != Some(told),
            };
            if !fits {
                return Err(senseless(what, format!("it is called {told:?}")));
            }
        }
        if is_index {
            return raw.index().map(Self::Index);
        }
        raw.manifest().map(Self::Manifest)
    }
}

impl RawDocument {
    fn index(self) -> Result<Index, OciError> {
        let manifests = self.manifests.unwrap_or_default();
        if manifests.len() > MANIFESTS {
            let text = format!("it has more than {MANIFESTS} images");
            return Err(senseless("index", text));
        }
        let entry = |mut raw: RawDescriptor| {
            let platform = raw.platform.take();
            raw.check("index")
                .map(|manifest| IndexEntry { manifest, platform })
        };
        let manifests = manifests.into_iter().map(entry).collect::<Result<_, _>>()?;
        Ok(Index { manifests })
    }

    fn manifest(self) -> Result<Manifest, OciError> {
        let what = "manifest";
        let (Some(config), Some(layers)) = (self.config, self.layers) else {
            return Err(senseless(what, "it has no layers"));
        };
        if layers.len() > LAYERS {
            let text = format!("it has more than {LAYERS} layers");
            return Err(senseless(what, text));
        }
        let config = config.check(what)?;
        if ![OCI_CONFIG, DOCKER_CONFIG].contains(&config.media_type.as_str()) {
            let kind = self.artifact_type.unwrap_or(config.media_type);
            return Err(OciError::Unsupported(format!("no image but a {kind:?}")));
        }
        let layer = |raw: RawDescriptor| {
            let layer = raw.check(what)?;
            let kind = LayerKind::of(&layer.media_type)?;
            Ok((layer, kind))
        };
        let layers = layers.into_iter().map(layer).collect::<Result<_, _>>()?;
        Ok(Manifest { config, layers })
    }
}

impl LayerKind {
    fn of(media_type: &str) -> Result<Self, OciError> {
        Ok(match media_type {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar" => Self::Tar,
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Self::Gzip,
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Self::Zstd,
            // These are at a place of their own and must not be passed on: Windows' base layers.
            other if other.contains("nondistributable") || other.contains(".foreign.") => {
                let what = format!("made of a layer that is not distributed ({other})");
                return Err(OciError::Unsupported(what));
            }
            other => {
                let what = format!("made of a layer of the kind {other:?}");
                return Err(OciError::Unsupported(what));
            }
        })
    }
}

impl Index {
    /// The manifest of the image that runs best on `machine`.
    ///
    /// # Errors
    ///
    /// [`OciError::Platform`], which lists what there is.
    pub fn choose(&self, machine: &Platform) -> Result<&Descriptor, OciError> {
        let mut best: Option<(u32, &IndexEntry)> = None;
        for entry in &self.manifests {
            // What tells no machine may be for any; its configuration will tell.
            let fit = match &entry.platform {
                Some(platform) => platform.fit(machine),
                None => Some(0),
            };
            if let Some(fit) = fit
                && best.is_none_or(|(known, _)| fit > known)
            {
                best = Some((fit, entry));
            }
        }
        let Some((_, entry)) = best else {
            let known = |platform: &&Platform| platform.os != "unknown";
            let platforms = self.manifests.iter().filter_map(|e| e.platform.as_ref());
            return Err(OciError::Platform {
                wanted: machine.clone(),
                found: platforms.filter(known).cloned().collect(),
            });
        };
        match entry.manifest.media_type.as_str() {
            OCI_MANIFEST | DOCKER_MANIFEST | "" => Ok(&entry.manifest),
            OCI_INDEX | DOCKER_LIST => Err(OciError::Unsupported("an index of indexes".to_owned())),
            other => Err(OciError::Unsupported(format!("a {other:?}"))),
        }
    }
}

impl ImageConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    ///
    /// [`OciError::Document`]. Never panics.
    pub fn parse(bytes: &[u8]) -> Result<Self, OciError> {
        let what = "configuration";
        let raw: RawConfig =
            serde_json::from_slice(bytes).map_err(|error| senseless(what, error))?;
        if raw.rootfs.diff_ids.len() > LAYERS {
            let text = format!("it has more than {LAYERS} layers");
            return Err(senseless(what, text));
        }
        let digests = raw.rootfs.diff_ids.iter().map(|text| text.parse());
        Ok(Self {
            platform: raw.platform,
            diff_ids: digests
                .collect::<Result<_, _>>()
                .map_err(|error| senseless(what, error))?,
        })
    }
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
