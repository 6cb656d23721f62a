//! A registry's HTTP interface: manifests and small blobs into memory, and what a download of a large one needs.
//!
//! A token goes to the registry's own host only: the client drops `Authorization` where it is redirected to another
//! host, as registries do to where they keep their blobs.

use std::net::IpAddr;
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE,
};
use serde::Deserialize;
use url::Url;

use super::challenge::Challenge;
use super::manifest::ACCEPT as MANIFESTS;
use super::{
    AuthFile, Credentials, Descriptor, Document, ImageConfig, Manifest, OciError, OciReference,
    Platform,
};
use crate::digest::{Digest, Digests, Hasher};
use crate::error::ImageError;
use crate::fetch;
use crate::options::PullOptions;
use crate::reference::ImageUrl;
use crate::verify;

/// Longest manifest, as registries take them, and longest configuration and token, in bytes.
const MANIFEST: u64 = 4 << 20;
const CONFIG: u64 = 8 << 20;
const TOKEN: u64 = 1 << 20;

/// One repository of a registry.
pub(crate) struct Registry<'a> {
    image: &'a OciReference,
    options: &'a PullOptions,
    base: Url,
    credentials: Option<Credentials>,
    /// A credential helper that would know more.
    helper: Option<String>,
    authorization: Mutex<Option<HeaderValue>>,
}

/// The image for this machine.
pub(crate) struct Resolved {
    pub(crate) manifest: Manifest,
    /// Of the manifest's bytes: the image's identity.
    pub(crate) digests: Digests,
}

struct Answer {
    body: Vec<u8>,
    content_type: Option<String>,
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

impl<'a> Registry<'a> {
    /// Reads the files with credentials; connects to nothing.
    pub(crate) fn open(
        image: &'a OciReference,
        options: &'a PullOptions,
    ) -> Result<Self, ImageError> {
        let fail = |source| ImageError::oci(image, source);
        let scheme = if is_plain(image, options) {
            "http"
        } else {
            "https"
        };
        let text = format!("{scheme}://{}/v2/{}/", image.endpoint(), image.repository());
        let base = Url::parse(&text).map_err(|error| {
            fail(OciError::Document {
                what: "reference",
                reason: error.to_string(),
            })
        })?;
        let mut registry = Self {
            image,
            options,
            base,
            credentials: None,
            helper: None,
            authorization: Mutex::new(None),
        };
        for path in &options.registry_auth {
            let Some(file) = AuthFile::read(path).map_err(fail)? else {
                continue;
            };
            let found = file.find(image).map_err(|reason| {
                let path = path.clone();
                fail(OciError::AuthFile { path, reason })
            })?;
            if found.is_some() {
                registry.credentials = found;
                break;
            }
            registry.helper = registry
                .helper
                .or_else(|| file.helper(image).map(str::to_owned));
        }
        Ok(registry)
    }

    /// Where the manifest is.
    pub(crate) fn manifest_url(&self) -> Result<ImageUrl, ImageError> {
        self.url(&format!("manifests/{}", self.image.version()))
    }

    /// Where a blob is.
    pub(super) fn blob_url(&self, blob: &Descriptor) -> Result<ImageUrl, ImageError> {
        self.url(&format!("blobs/{}", blob.digest))
    }

    /// The headers that go with a download.
    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let known = self.authorization.lock();
        if let Some(value) = known.unwrap_or_else(|error| error.into_inner()).clone() {
            headers.insert(AUTHORIZATION, value);
        }
        headers
    }

    /// Gets a new token, where the last one is too old.
    pub(super) fn renew(&self) -> Result<(), ImageError> {
        self.set(None);
        let url = self.manifest_url()?;
        self.ask(&url, &MANIFESTS, MANIFEST, "manifest").map(drop)
    }

    /// Finds the image that is for this machine.
    pub(crate) fn resolve(&self) -> Result<Resolved, ImageError> {
        let expected = self.image.digest();
        let url = self.manifest_url()?;
        let answer = self.ask(&url, &MANIFESTS, MANIFEST, &self.image.version())?;
        let digests = self.check("manifest", &answer.body, expected.as_ref(), None)?;
        match self.parse(&answer)? {
            Document::Manifest(manifest) => Ok(Resolved { manifest, digests }),
            Document::Index(index) => {
                let chosen = index
                    .choose(&Platform::native())
                    .map_err(|source| self.fail(source))?;
                let url = self.url(&format!("manifests/{}", chosen.digest))?;
                let answer = self.ask(&url, &MANIFESTS, MANIFEST, &chosen.digest.to_string())?;
                let digests = self.check(
                    "manifest",
                    &answer.body,
                    Some(&chosen.digest),
                    Some(chosen.size),
                )?;
                match self.parse(&answer)? {
                    Document::Manifest(manifest) => Ok(Resolved { manifest, digests }),
                    Document::Index(_) => {
                        Err(self.fail(OciError::Unsupported("an index of indexes".to_owned())))
                    }
                }
            }
        }
    }

    /// Gets the configuration, and checks that it is of this machine and of these layers.
    pub(super) fn config(&self, manifest: &Manifest) -> Result<ImageConfig, ImageError> {
        let what = "configuration";
        let size = manifest.config.size;
        if size > CONFIG {
            let reason = format!("it has {size} bytes");
            return Err(self.fail(OciError::Document { what, reason }));
        }
        let url = self.blob_url(&manifest.config)?;
        let answer = self.ask(&url, &[], CONFIG, what)?;
        self.check(
            what,
            &answer.body,
            Some(&manifest.config.digest),
            Some(size),
        )?;
        let config = ImageConfig::parse(&answer.body).map_err(|source| self.fail(source))?;
        let native = Platform::native();
        if config.platform.fit(&native).is_none() {
            return Err(self.fail(OciError::Platform {
                wanted: native,
                found: vec![config.platform],
            }));
        }
        let (layers, named) = (manifest.layers.len(), config.diff_ids.len());
        if layers != named {
            let reason = format!("it names {named} layers, the manifest {layers}");
            return Err(self.fail(OciError::Document { what, reason }));
        }
        Ok(config)
    }

    /// The error of this image.
    pub(super) fn fail(&self, source: OciError) -> ImageError {
        ImageError::oci(self.image, source)
    }

    fn parse(&self, answer: &Answer) -> Result<Document, ImageError> {
        Document::parse(&answer.body, answer.content_type.as_deref())
            .map_err(|source| self.fail(source))
    }

    fn check(
        &self,
        what: &str,
        bytes: &[u8],
        expected: Option<&Digest>,
        size: Option<u64>,
    ) -> Result<Digests, ImageError> {
        if let Some(expected) = size
            && expected != bytes.len() as u64
        {
            return Err(self.fail(OciError::Size {
                what: what.to_owned(),
                expected,
                actual: bytes.len() as u64,
            }));
        }
        let wanted = [self.options.checksum.as_ref(), expected];
        let sha512 = wanted
            .into_iter()
            .flatten()
            .find(|d| d.algorithm() == "sha512");
        let mut hasher = Hasher::new(sha512);
        hasher.update(bytes);
        let digests = hasher.finish();
        self.same(what, &digests, expected)?;
        Ok(digests)
    }

    /// Compares digests with the one that the image names.
    pub(super) fn same(
        &self,
        what: &str,
        digests: &Digests,
        expected: Option<&Digest>,
    ) -> Result<(), ImageError> {
        match verify::check(digests, expected, &what) {
            Err(ImageError::Mismatch {
                what,
                expected,
                actual,
                ..
            }) => Err(self.fail(OciError::Digest {
                what,
                expected,
                actual,
            })),
            other => other,
        }
    }

    fn url(&self, path: &str) -> Result<ImageUrl, ImageError> {
        // A digest holds a colon, which a relative reference may only have behind a slash.
        let url = self.base.join(&format!("./{path}"));
        url.map(ImageUrl::from_url).map_err(|error| {
            self.fail(OciError::Document {
                what: "reference",
                reason: error.to_string(),
            })
        })
    }

    fn set(&self, value: Option<HeaderValue>) {
        let known = self.authorization.lock();
        *known.unwrap_or_else(|error| error.into_inner()) = value;
    }

    /// Asks for `url`, and authenticates where the registry wants that.
    fn ask(
        &self,
        url: &ImageUrl,
        accept: &[&'static str],
        limit: u64,
        what: &str,
    ) -> Result<Answer, ImageError> {
        let mut headers = self.headers();
        for kind in accept {
            headers.append(ACCEPT, HeaderValue::from_static(kind));
        }
        let mut answer = fetch::get(url, &headers, limit, self.options)?;
        if answer.status == 401 {
            let value = self.authenticate(&answer.headers)?;
            self.set(Some(value.clone()));
            headers.insert(AUTHORIZATION, value);
            answer = fetch::get(url, &headers, limit, self.options)?;
        }
        let registry = || self.image.registry().to_owned();
        match answer.status {
            404 | 410 => Err(self.fail(OciError::NotFound {
                registry: registry(),
                what: format!("{} ({what})", self.image.repository()),
            })),
            401 | 403 => Err(self.denied()),
            429 => Err(self.fail(OciError::Status {
                registry: registry(),
                status: answer.status,
            })),
            _ => Ok(Answer {
                content_type: answer
                    .headers
                    .get(CONTENT_TYPE)
                    .and_then(|value| value.to_str().ok())
                    .map(str::to_owned),
                body: answer.found(url)?,
            }),
        }
    }

    pub(super) fn denied(&self) -> ImageError {
        self.fail(OciError::Denied {
            registry: self.image.registry().to_owned(),
            known: self.credentials.is_some(),
            helper: self.helper.clone(),
        })
    }

    /// What a challenge is answered with.
    fn authenticate(&self, headers: &HeaderMap) -> Result<HeaderValue, ImageError> {
        let challenges: Vec<Challenge> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(Challenge::parse)
            .collect();
        let by = |scheme: &str| challenges.iter().find(|found| found.scheme == scheme);
        if let Some(challenge) = by("bearer") {
            return self.token(challenge);
        }
        if by("basic").is_some() {
            let Some(credentials) = &self.credentials else {
                return Err(self.denied());
            };
            return self.basic(credentials);
        }
        let schemes: Vec<String> = challenges.into_iter().map(|found| found.scheme).collect();
        Err(self.unknown(format!("{:?}", schemes.join(", "))))
    }

    fn unknown(&self, found: String) -> ImageError {
        self.fail(OciError::Challenge {
            registry: self.image.registry().to_owned(),
            found,
        })
    }

    fn basic(&self, credentials: &Credentials) -> Result<HeaderValue, ImageError> {
        let Credentials::Password { user, password } = credentials else {
            return Err(self.denied());
        };
        let text = STANDARD.encode(format!("{user}:{password}"));
        secret(&format!("Basic {text}")).ok_or_else(|| self.denied())
    }

    /// Gets a token from where the registry says.
    fn token(&self, challenge: &Challenge) -> Result<HeaderValue, ImageError> {
        let realm = challenge.get("realm").unwrap_or_default();
        let mut url = Url::parse(realm)
            .map_err(|_| self.unknown(format!("tokens from {realm:?}, which is no URL")))?;
        let host = url.host_str().unwrap_or_default();
        let plain = self.base.scheme() == "http" && is_plain_host(host, url.port(), self.options);
        // Passwords go there: in the open only where the registry itself is asked in the open.
        if url.scheme() != "https" && !(url.scheme() == "http" && plain) {
            return Err(self.unknown("tokens without encryption".to_owned()));
        }
        let scope = match challenge.get("scope") {
            Some(scope) => scope.to_owned(),
            None => format!("repository:{}:pull", self.image.repository()),
        };
        let service = challenge.get("service");
        let mut headers = HeaderMap::new();
        let answer = match &self.credentials {
            Some(Credentials::Identity(token)) => {
                let mut form = url::form_urlencoded::Serializer::new(String::new());
                form.append_pair("grant_type", "refresh_token")
                    .append_pair("client_id", "nspawn-image")
                    .append_pair("scope", &scope)
                    .append_pair("service", service.unwrap_or_default())
                    .append_pair("refresh_token", token);
                let url = ImageUrl::from_url(url);
                fetch::post(&url, &form.finish(), TOKEN, self.options)?
            }
            other => {
                let mut query = url.query_pairs_mut();
                query.append_pair("scope", &scope);
                if let Some(service) = service {
                    query.append_pair("service", service);
                }
                drop(query);
                if let Some(credentials) = other {
                    headers.insert(AUTHORIZATION, self.basic(credentials)?);
                }
                let url = ImageUrl::from_url(url);
                fetch::get(&url, &headers, TOKEN, self.options)?
            }
        };
        match answer.status {
            200 => {}
            400 | 401 | 403 => return Err(self.denied()),
            status => {
                let registry = self.image.registry().to_owned();
                return Err(self.fail(OciError::Status { registry, status }));
            }
        }
        let senseless = || {
            self.fail(OciError::Document {
                what: "token",
                // Never the text itself.
                reason: "it is no JSON with a token in it".to_owned(),
            })
        };
        let found: Token = serde_json::from_slice(&answer.body).map_err(|_| senseless())?;
        let token = if found.token.is_empty() {
            found.access_token
        } else {
            found.token
        };
        if token.is_empty() {
            return Err(senseless());
        }
        secret(&format!("Bearer {token}")).ok_or_else(senseless)
    }
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Whether a registry is asked without encryption: on this host, or as the caller said.
fn is_plain(image: &OciReference, options: &PullOptions) -> bool {
    let listed = |known: &String| known.eq_ignore_ascii_case(image.registry());
    image.is_loopback()
        || options.insecure_registries.iter().any(listed)
        || options
            .insecure_registries
            .iter()
            .any(|known| known.eq_ignore_ascii_case(image.host()))
}

fn is_plain_host(host: &str, port: Option<u16>, options: &PullOptions) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let with_port = port.map(|port| format!("{host}:{port}"));
    bare == "localhost"
        || bare
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
        || options.insecure_registries.iter().any(|known| {
            known.eq_ignore_ascii_case(host) || with_port.as_deref() == Some(known.as_str())
        })
}
