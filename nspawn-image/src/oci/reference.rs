//! [`OciReference`]: a container image's name, as docker and podman take it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::digest::Digest;
use crate::reference::ReferenceError;

/// The registry of names that give none.
const HUB: &str = "docker.io";
/// Where the HTTP interface of that registry is.
const HUB_HOST: &str = "registry-1.docker.io";
/// Names that old files and users have for it.
const HUB_ALIASES: [&str; 3] = [HUB, "index.docker.io", HUB_HOST];
/// Longest registry and repository together, and longest tag, in bytes.
const NAME: usize = 255;
const TAG: usize = 128;

/// A container image: registry, repository, and a tag or digest.
///
/// | Text | Registry | Repository | Version |
/// | --- | --- | --- | --- |
/// | `debian:12` | Docker Hub | `library/debian` | tag `12` |
/// | `grafana/grafana` | Docker Hub | `grafana/grafana` | tag `latest` |
/// | `ghcr.io/o/n@sha256:…` | `ghcr.io` | `o/n` | a digest; a tag before it is not looked at |
/// | `localhost:5000/n:tag` | `localhost:5000` | `n` | tag `tag` |
///
/// Source: the reference grammar of github.com/distribution/reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OciReference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl OciReference {
    /// The registry's name: `docker.io`, or host and port as written.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository's full name, such as `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag: the one given, or `latest` where neither tag nor digest was.
    pub fn tag(&self) -> Option<&str> {
        match (&self.tag, self.digest) {
            (Some(tag), _) => Some(tag),
            (None, None) => Some("latest"),
            (None, Some(_)) => None,
        }
    }

    /// The digest given.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Host and port of the registry's HTTP interface.
    pub fn endpoint(&self) -> &str {
        if self.registry == HUB {
            HUB_HOST
        } else {
            &self.registry
        }
    }

    /// The registry's host, without a port and without the brackets of an IPv6 address.
    pub fn host(&self) -> &str {
        let endpoint = self.endpoint();
        match endpoint
            .strip_prefix('[')
            .and_then(|rest| rest.split_once(']'))
        {
            Some((address, _)) => address,
            None => endpoint.split_once(':').map_or(endpoint, |(host, _)| host),
        }
    }

    /// Whether the registry is on this host: `localhost`, 127.0.0.0/8 or `::1`.
    pub fn is_loopback(&self) -> bool {
        let host = self.host();
        host.eq_ignore_ascii_case("localhost")
            || host
                .parse()
                .is_ok_and(|address: IpAddr| address.is_loopback())
    }

    /// What a manifest is asked for by.
    pub(crate) fn version(&self) -> String {
        match self.digest {
            Some(digest) => digest.to_string(),
            None => self.tag().unwrap_or_default().to_owned(),
        }
    }

    /// The last part of the repository and the tag, as a name for people.
    pub(crate) fn short_name(&self) -> String {
        let name = self.repository.rsplit('/').next().unwrap_or_default();
        match &self.tag {
            Some(tag) => format!("{name}-{tag}"),
            None => name.to_owned(),
        }
    }
}

/// The one name of a registry that has several.
pub(super) fn registry_name(text: &str) -> String {
    if HUB_ALIASES
        .iter()
        .any(|alias| text.eq_ignore_ascii_case(alias))
    {
        return HUB.to_owned();
    }
    // As written: a capital letter may be all that tells it from a folder of repositories.
    text.to_owned()
}

fn bad(part: &'static str, found: &str) -> ReferenceError {
    ReferenceError::OciPart {
        part,
        found: found.to_owned(),
    }
}

impl FromStr for OciReference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(ReferenceError::Oci);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let parsed = digest.parse().map_err(|_| bad("digest", digest))?;
                (rest, Some(parsed))
            }
            None => (text, None),
        };
        // A colon after the last slash starts a tag; one before it, a port.
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[last..].split_once(':') {
            Some((name, tag)) => (&rest[..last + name.len()], Some(tag)),
            None => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(bad("tag", tag));
        }
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest)) if is_registry(first) => {
                check_registry(first)?;
                (registry_name(first), rest.to_owned())
            }
            _ => (HUB.to_owned(), name.to_owned()),
        };
        let repository = if registry == HUB && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository
        };
        if !repository.split('/').all(is_path_part) || registry.len() + repository.len() > NAME {
            return Err(bad("repository", &repository));
        }
        Ok(Self {
            registry,
            repository,
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

impl fmt::Display for OciReference {
    /// The shortest text that means the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.registry == HUB {
            let short = self.repository.strip_prefix("library/");
            let short = short.filter(|short| !short.contains('/'));
            let name = short.unwrap_or(&self.repository);
            // A first part that looks like a registry keeps the real one before it.
            if name
                .split_once('/')
                .is_some_and(|(first, _)| is_registry(first))
            {
                write!(f, "{HUB}/")?;
            }
            f.write_str(name)?;
        } else {
            write!(f, "{}/{}", self.registry, self.repository)?;
        }
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// Whether the part before the first slash is a registry, and no folder of repositories.
fn is_registry(first: &str) -> bool {
    first.contains(['.', ':'])
        || first.eq_ignore_ascii_case("localhost")
        || first.contains(|c: char| c.is_ascii_uppercase())
}

fn check_registry(text: &str) -> Result<(), ReferenceError> {
    let fail = || bad("registry", text);
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']').ok_or_else(fail)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| fail())?;
            match rest.strip_prefix(':') {
                Some(port) => ("ipv6", Some(port)),
                None if rest.is_empty() => ("ipv6", None),
                None => return Err(fail()),
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_port = |port: &str| {
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    if !host.split('.').all(label) || !port.is_none_or(is_port) {
        return Err(fail());
    }
    Ok(())
}

/// Letters and digits, between which stand `.`, `_`, `__` or any number of `-`.
fn is_path_part(part: &str) -> bool {
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(first), Some(last)) = (part.bytes().next(), part.bytes().last()) else {
        return false;
    };
    letter(first)
        && letter(last)
        && part
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|b| b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    (1..=TAG).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_as_docker_reads_them() {
        let long = format!("ghcr.io/o/n:1@{DIGEST}");
        let pinned = format!("ghcr.io/o/n@{DIGEST}");
        let table: [(&str, &str, &str, Option<&str>, &str); 16] = [
            (
                "debian",
                "docker.io",
                "library/debian",
                Some("latest"),
                "debian",
            ),
            (
                "debian:12",
                "docker.io",
                "library/debian",
                Some("12"),
                "debian:12",
            ),
            (
                "docker.io/debian",
                "docker.io",
                "library/debian",
                Some("latest"),
                "debian",
            ),
            (
                "index.docker.io/library/debian:12",
                "docker.io",
                "library/debian",
                Some("12"),
                "debian:12",
            ),
            (
                "grafana/grafana",
                "docker.io",
                "grafana/grafana",
                Some("latest"),
                "grafana/grafana",
            ),
            (
                "library/a/b",
                "docker.io",
                "library/a/b",
                Some("latest"),
                "library/a/b",
            ),
            (
                "docker.io/a.b/c",
                "docker.io",
                "a.b/c",
                Some("latest"),
                "docker.io/a.b/c",
            ),
            (&pinned, "ghcr.io", "o/n", None, &pinned),
            (&long, "ghcr.io", "o/n", Some("1"), &long),
            (
                "localhost:5000/n:tag",
                "localhost:5000",
                "n",
                Some("tag"),
                "localhost:5000/n:tag",
            ),
            (
                "localhost/n",
                "localhost",
                "n",
                Some("latest"),
                "localhost/n",
            ),
            (
                "127.0.0.1:5000/n",
                "127.0.0.1:5000",
                "n",
                Some("latest"),
                "127.0.0.1:5000/n",
            ),
            (
                "[::1]:5000/n",
                "[::1]:5000",
                "n",
                Some("latest"),
                "[::1]:5000/n",
            ),
            ("Registry/n", "Registry", "n", Some("latest"), "Registry/n"),
            (
                "quay.io/a/b/c/d__e--f.g:v1.2_3-4",
                "quay.io",
                "a/b/c/d__e--f.g",
                Some("v1.2_3-4"),
                "quay.io/a/b/c/d__e--f.g:v1.2_3-4",
            ),
            ("host:1/a:b", "host:1", "a", Some("b"), "host:1/a:b"),
        ];
        for (text, registry, repository, tag, shown) in table {
            let parsed: OciReference = text.parse().unwrap();
            assert_eq!(parsed.registry(), registry, "{text}");
            assert_eq!(parsed.repository(), repository, "{text}");
            assert_eq!(parsed.tag(), tag, "{text}");
            assert_eq!(parsed.to_string(), shown);
            assert_eq!(shown.parse(), Ok(parsed));
        }
        let hub: OciReference = "debian".parse().unwrap();
        assert_eq!(hub.endpoint(), "registry-1.docker.io");
    }

    #[test]
    fn what_is_no_reference() {
        let table = [
            ("", ReferenceError::Oci),
            ("a b", ReferenceError::Oci),
            ("Debian", bad("repository", "library/Debian")),
            ("a//b", bad("repository", "a//b")),
            ("a/../b", bad("registry", "..")),
            ("-a", bad("repository", "library/-a")),
            ("a___b", bad("repository", "library/a___b")),
            ("a:", bad("tag", "")),
            ("a:.x", bad("tag", ".x")),
            ("a@sha256:00", bad("digest", "sha256:00")),
            ("a@md5:00", bad("digest", "md5:00")),
            ("host:0/a", bad("registry", "host:0")),
            ("host:99999/a", bad("registry", "host:99999")),
            ("host:+1/a", bad("registry", "host:+1")),
            ("[::1/a", bad("registry", "[::1")),
            ("[::1]x:1/a", bad("registry", "[::1]x:1")),
            ("-h.io/a", bad("registry", "-h.io")),
            ("https://ghcr.io/o/n", bad("registry", "https:")),
        ];
        for (text, expected) in table {
            if text == "a/../b" {
                assert!(text.parse::<OciReference>().is_err());
                continue;
            }
            assert_eq!(text.parse::<OciReference>(), Err(expected), "{text}");
        }
        assert!("a:".to_owned().parse::<OciReference>().is_err());
        assert!(
            format!("{}/b", "a".repeat(260))
                .parse::<OciReference>()
                .is_err()
        );
    }

    #[test]
    fn loopback_is_told_from_names_that_look_like_it() {
        for (text, loopback) in [
            ("localhost/n", true),
            ("localhost:5000/n", true),
            ("127.0.0.1/n", true),
            ("127.9.9.9:80/n", true),
            ("[::1]/n", true),
            ("127.0.0.1.example.org/n", false),
            ("localhost.example.org/n", false),
            ("128.0.0.1/n", false),
            ("debian", false),
        ] {
            let parsed: OciReference = text.parse().unwrap();
            assert_eq!(parsed.is_loopback(), loopback, "{text}");
        }
    }
}
