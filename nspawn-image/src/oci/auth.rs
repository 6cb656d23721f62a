//! Files with credentials: `~/.docker/config.json` of docker, `containers/auth.json` of podman.
//!
//! Source: containers-auth.json(5); docker CLI "config.json". Which files to read is the caller's to say.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::{OciError, OciReference, reference};

/// Longest file, in bytes.
const LIMIT: u64 = 1 << 20;

/// What a registry is shown. Its printed form holds no secret.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Credentials {
    /// A user and a password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that tokens are got with.
    Identity(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password(***)",
            Self::Identity(_) => "Identity(***)",
        })
    }
}

/// One file with credentials.
#[derive(Clone, Default, Deserialize)]
pub struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credsStore")]
    store: String,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
}

#[derive(Clone, Default, Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
}

impl fmt::Debug for AuthFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthFile")
            .field("registries", &self.auths.keys())
            .finish_non_exhaustive()
    }
}

impl AuthFile {
    /// Reads a file's bytes.
    ///
    /// # Errors
    ///
    /// What is wrong with it, without any of its values. Never panics.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        // The parser's own text may quote a value.
        serde_json::from_slice(bytes).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            format!("it is no JSON of credentials from line {line}, column {column}")
        })
    }

    /// Reads a file; `None` where there is none.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, OciError> {
        let fail = |reason: String| OciError::AuthFile {
            path: path.to_owned(),
            reason,
        };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error.to_string())),
        };
        let mut bytes = Vec::new();
        file.take(LIMIT + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| fail(error.to_string()))?;
        if bytes.len() as u64 > LIMIT {
            return Err(fail(format!("it is longer than {LIMIT} bytes")));
        }
        Self::parse(&bytes).map(Some).map_err(fail)
    }

    /// The credentials for an image: those of the entry that names most of it.
    ///
    /// # Errors
    ///
    /// That an entry cannot be decoded, without its value.
    pub fn find(&self, image: &OciReference) -> Result<Option<Credentials>, String> {
        let mut best: Option<(usize, &str, &Entry)> = None;
        for (key, entry) in &self.auths {
            let length = covers(key, image);
            if let Some(length) = length
                && !entry.is_empty()
                && best.is_none_or(|(known, ..)| length > known)
            {
                best = Some((length, key, entry));
            }
        }
        let Some((_, key, entry)) = best else {
            return Ok(None);
        };
        let found = entry.credentials();
        found
            .map(Some)
            .ok_or_else(|| format!("its entry for {key:?} is not base64 of user:password"))
    }

    /// The program that would know the credentials, where the file names one.
    pub fn helper(&self, image: &OciReference) -> Option<&str> {
        let own = self
            .helpers
            .iter()
            .find(|(key, _)| covers(key, image).is_some())
            .map(|(_, helper)| helper.as_str());
        own.or(Some(self.store.as_str()))
            .filter(|helper| !helper.is_empty())
    }
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.auth.is_empty() && self.username.is_empty() && self.identity_token.is_empty()
    }

    fn credentials(&self) -> Option<Credentials> {
        if !self.identity_token.is_empty() {
            return Some(Credentials::Identity(self.identity_token.clone()));
        }
        if self.auth.is_empty() {
            return Some(Credentials::Password {
                user: self.username.clone(),
                password: self.password.clone(),
            });
        }
        let bytes = STANDARD.decode(self.auth.trim()).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (user, password) = text.split_once(':')?;
        Some(Credentials::Password {
            user: user.to_owned(),
            // Old versions of docker left a NUL at the end.
            password: password.trim_end_matches('\0').to_owned(),
        })
    }
}

/// How much of an image's name a key covers, in bytes; `None` where it is another's.
fn covers(key: &str, image: &OciReference) -> Option<usize> {
    let bare = ["https://", "http://"]
        .iter()
        .find_map(|scheme| key.strip_prefix(scheme));
    // Behind a scheme stands a host and the interface's version; without one, a part of the repository may follow.
    let (host, path) = match bare {
        Some(rest) => (rest.split('/').next().unwrap_or_default(), ""),
        None => {
            let (host, path) = key.split_once('/').unwrap_or((key, ""));
            (host, path.trim_end_matches('/'))
        }
    };
    let path = if matches!(path, "v1" | "v2") {
        ""
    } else {
        path
    };
    if !reference::registry_name(host).eq_ignore_ascii_case(image.registry()) {
        return None;
    }
    let below = match image.repository().strip_prefix(path) {
        Some(rest) => path.is_empty() || rest.is_empty() || rest.starts_with('/'),
        None => false,
    };
    below.then_some(host.len() + path.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }

    #[test]
    fn the_entry_that_names_most_is_used() {
        // "YTpi" is a:b, "YzpkOmU=" c:d:e, "ZjpnAA==" f:g and a NUL.
        let file = AuthFile::parse(
            br#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "YTpi"},
                "ghcr.io": {"auth": "YzpkOmU="},
                "ghcr.io/o/n": {"auth": "ZjpnAA=="},
                "http://localhost:5000": {"username": "u", "password": "p"},
                "quay.io": {"identitytoken": "t", "auth": "PHRva2VuPjo="},
                "empty.io": {},
                "bad.io": {"auth": "!"},
                "nocolon.io": {"auth": "YQ=="}
            }, "credsStore": "desktop", "credHelpers": {"gcr.io": "gcloud"}, "HttpHeaders": {"a": "b"}}"#,
        )
        .unwrap();
        let table = [
            ("debian", Ok(password("a", "b"))),
            ("docker.io/o/n", Ok(password("a", "b"))),
            ("ghcr.io/x/y", Ok(password("c", "d:e"))),
            ("ghcr.io/o/n", Ok(password("f", "g"))),
            ("ghcr.io/o/n/m:1", Ok(password("f", "g"))),
            ("ghcr.io/o/nn", Ok(password("c", "d:e"))),
            ("localhost:5000/n", Ok(password("u", "p"))),
            ("localhost:5001/n", Ok(None)),
            ("quay.io/a", Ok(Some(Credentials::Identity("t".to_owned())))),
            ("empty.io/a", Ok(None)),
            ("bad.io/a", Err(())),
            ("nocolon.io/a", Err(())),
        ];
        for (image, expected) in table {
            let image: OciReference = image.parse().unwrap();
            let found = file.find(&image).map_err(|reason| {
                assert!(!reason.contains("YQ"), "{reason}");
            });
            assert_eq!(found, expected, "{image}");
        }
        let helper = |image: &str| file.helper(&image.parse().unwrap()).map(str::to_owned);
        assert_eq!(helper("gcr.io/a").as_deref(), Some("gcloud"));
        assert_eq!(helper("debian").as_deref(), Some("desktop"));
        assert_eq!(AuthFile::default().helper(&"debian".parse().unwrap()), None);
    }

    #[test]
    fn nothing_printed_holds_a_secret() {
        let file = AuthFile::parse(br#"{"auths": {"a.io": {"auth": "YTpi"}}}"#).unwrap();
        let found = file.find(&"a.io/b".parse().unwrap()).unwrap();
        let shown = format!("{file:?} {found:?}");
        assert!(
            !shown.contains("YTpi") && !shown.contains("\"b\""),
            "{shown}"
        );
        let error = AuthFile::parse(br#"{"auths": {"a.io": {"auth": 7}}, "s3cret"#).unwrap_err();
        assert!(!error.contains("s3cret"), "{error}");
    }
}
