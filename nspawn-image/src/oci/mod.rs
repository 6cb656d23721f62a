//! Container images: from a reference as users of docker and podman write it to the layers that make a tree.
//!
//! Flow: [`OciReference`] -> `Registry` (HTTP, tokens) -> [`Manifest`] -> `layers` (download, verify, apply). Each step
//! takes bytes whose digest the step before named and that were compared with it: from the digest of the manifest on,
//! which is the image's identity in the store, nothing is the registry's word alone.
//!
//! Sources: OCI distribution-spec 1.1, OCI image-spec 1.1, Docker Registry "Token Authentication Specification".

mod auth;
mod challenge;
mod error;
mod layers;
mod manifest;
mod platform;
mod reference;
mod registry;

pub use auth::{AuthFile, Credentials};
pub use error::OciError;
pub(crate) use layers::Layers;
pub use manifest::{Descriptor, Document, ImageConfig, Index, IndexEntry, LayerKind, Manifest};
pub use platform::Platform;
pub use reference::OciReference;
pub(crate) use registry::Registry;
