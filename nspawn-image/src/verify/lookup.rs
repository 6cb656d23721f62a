//! Looks beside an image for what its publisher says of it, before the image itself is fetched.
//!
//! All names are asked for at once, and the signatures of what was found in a second round, so that the whole takes
//! two round trips. The names are those that distributions use: Debian `SHA512SUMS`, Ubuntu `SHA256SUMS` and
//! `SHA256SUMS.gpg`, Fedora a clear-signed `Fedora-Cloud-41-1.4-x86_64-CHECKSUM`, CentOS `CHECKSUM` and
//! `NAME.SHA256SUM`, Arch `NAME.SHA256` and `NAME.sig`, openSUSE `NAME.sha256` and `NAME.sha256.asc`.

use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use reqwest::header::HeaderMap;

use super::checksum_file::ChecksumFile;
use super::error::VerifyError;
use super::openpgp::{ClearSigned, Keyring, SIGNATURE_LIMIT, Signatures};
use super::{Expectation, Published, refused};
use crate::digest::Digest;
use crate::error::{ImageError, PathContext};
use crate::fetch::{self, DownloadError, DownloadReason};
use crate::options::{ChecksumSource, PullOptions, Verify};
use crate::reference::ImageUrl;
use crate::report::Reporter;

/// Names of checksum files for many images.
const SHARED: [&str; 3] = ["SHA512SUMS", "SHA256SUMS", "CHECKSUM"];
/// Ends of the names of checksum files for one image.
const OWN: [&str; 6] = [
    "sha512",
    "sha256",
    "SHA512",
    "SHA256",
    "SHA256SUM",
    "CHECKSUM",
];
/// Ends of the names of signatures.
const SIGNATURE: [&str; 4] = ["gpg", "asc", "sig", "sign"];
const ARCHITECTURES: [&str; 5] = ["x86_64", "aarch64", "ppc64le", "riscv64", "s390x"];
/// The longest wait for what may as well not be there.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where an image, a checksum file or a signature is.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Url(ImageUrl),
    File(PathBuf),
}

/// What stands at a place.
enum Answer {
    Found(Vec<u8>),
    Missing,
    Failed(ImageError),
}

/// A checksum file that lists the image.
struct Listed {
    place: Place,
    bytes: Vec<u8>,
    digest: Digest,
}

/// Why nothing was found, as far as it went.
#[derive(Default)]
struct Misses {
    tried: Vec<String>,
    failed: Vec<ImageError>,
    /// Why a signature could not be asked for.
    unasked: Option<String>,
    unusable: Option<VerifyError>,
    without_line: Option<VerifyError>,
}

/// What must be known of the bytes of `image`: what the caller gave, and what stands beside it.
///
/// # Errors
///
/// [`ImageError::Verify`] where what `options` requires is not there, or a signature is not good;
/// [`ImageError::Download`] where it could not be asked for.
pub(crate) fn expected(
    image: &Place,
    options: &PullOptions,
    reporter: &mut dyn Reporter,
) -> Result<Expectation, ImageError> {
    let is_enough = options.checksum.is_some()
        && options.verify != Verify::Signature
        && options.checksum_file.is_none();
    if options.verify == Verify::No || is_enough {
        return Ok(Expectation::given(options.checksum));
    }
    let mut patient = options.clone();
    if options.verify == Verify::Auto && options.checksum_file.is_none() {
        patient.connect_timeout = patient.connect_timeout.min(PATIENCE);
        patient.idle_timeout = patient.idle_timeout.min(PATIENCE);
    }
    let mut lookup = Lookup {
        image,
        options: &patient,
        reporter,
        misses: Misses::default(),
        keyring: None,
    };
    let (published, signatures) = lookup.run()?;
    let keyring = lookup.keyring;
    Ok(Expectation {
        given: options.checksum,
        published,
        image: signatures.zip(keyring),
    })
}

struct Lookup<'a> {
    image: &'a Place,
    options: &'a PullOptions,
    reporter: &'a mut dyn Reporter,
    misses: Misses,
    keyring: Option<Keyring>,
}

impl Lookup<'_> {
    /// A checksum file that lists the image, and signatures over the image where the file is not signed.
    fn run(&mut self) -> Result<(Option<Published>, Option<Signatures>), ImageError> {
        let wants_signature = self.options.verify != Verify::Checksum;
        let files = self.checksum_files();
        let mut places = files.clone();
        if wants_signature {
            places.extend(self.image.with_ends(&SIGNATURE));
        }
        let mut answers = self.fetch(places, ChecksumFile::LIMIT)?;
        let beside_image = answers.split_off(files.len());
        let listed = self.listed(answers)?;
        if listed.is_empty() {
            self.refuse_dead_host()?;
        }
        let mut signatures = None;
        let mut published = None;
        if wants_signature {
            published = self.signed(&listed)?;
            if published.is_none() {
                signatures = self.over_image(beside_image)?;
            }
        }
        if self.options.verify == Verify::Signature && published.is_none() && signatures.is_none() {
            return Err(self.misses(!listed.is_empty()));
        }
        let published = published.or_else(|| {
            let first = listed.first()?;
            Some(Published {
                digest: first.digest,
                file: first.place.to_string(),
                key: None,
            })
        });
        let is_required =
            self.options.verify == Verify::Checksum || self.options.checksum_file.is_some();
        if published.is_none() && is_required {
            return Err(self.misses(false));
        }
        match &published {
            Some(Published { key: None, .. }) if signatures.is_none() => self.say_unasked(),
            None if signatures.is_none() && self.options.checksum.is_none() => {
                self.say_unverified();
            }
            _ => {}
        }
        Ok((published, signatures))
    }

    /// Where checksum files may be.
    fn checksum_files(&self) -> Vec<Place> {
        match &self.options.checksum_file {
            Some(ChecksumSource::Url(url)) => return vec![Place::Url(url.clone())],
            Some(ChecksumSource::Path(path)) => return vec![Place::File(path.clone())],
            None => {}
        }
        let mut places: Vec<Place> = SHARED.iter().map(|name| self.image.beside(name)).collect();
        places.extend(self.image.with_ends(&OWN));
        places.extend(fedora(&self.image.name()).map(|name| self.image.beside(&name)));
        places
    }

    /// Asks for all places at once.
    fn fetch(
        &mut self,
        places: Vec<Place>,
        limit: u64,
    ) -> Result<Vec<(Place, Answer)>, ImageError> {
        let options = self.options;
        let ask = |place: &Place| place.read(limit, options);
        let answers: Vec<Answer> = std::thread::scope(|scope| {
            let threads: Vec<_> = places
                .iter()
                .map(|place| match place {
                    Place::Url(_) => Some(scope.spawn(move || ask(place))),
                    Place::File(_) => None,
                })
                .collect();
            let places = places.iter();
            threads
                .into_iter()
                .zip(places)
                .map(|(thread, place)| match thread {
                    Some(thread) => thread.join().unwrap_or(Answer::Missing),
                    None => ask(place),
                })
                .collect()
        });
        options.cancel.check()?;
        Ok(places.into_iter().zip(answers).collect())
    }

    /// The checksum files that list the image.
    fn listed(&mut self, answers: Vec<(Place, Answer)>) -> Result<Vec<Listed>, ImageError> {
        let names = self.image.names();
        let mut listed = Vec::new();
        for (place, answer) in answers {
            let bytes = match answer {
                Answer::Found(bytes) => bytes,
                Answer::Missing => {
                    self.miss(&place);
                    continue;
                }
                Answer::Failed(error) => {
                    self.misses.failed.push(error);
                    continue;
                }
            };
            match ChecksumFile::parse(&bytes) {
                // Some servers send a page in place of "not found".
                Err(source) => {
                    let file = place.to_string();
                    self.misses.unusable = Some(VerifyError::ChecksumFile { file, source });
                }
                Ok(file) => match find(&file, &names, &place) {
                    Ok(digest) => listed.push(Listed {
                        place,
                        bytes,
                        digest,
                    }),
                    Err(error @ VerifyError::NoLine { .. }) => {
                        self.misses.without_line = Some(error);
                    }
                    Err(error) => return Err(refused(error, self.image)),
                },
            }
        }
        Ok(listed)
    }

    /// The first of the checksum files with a good signature.
    fn signed(&mut self, listed: &[Listed]) -> Result<Option<Published>, ImageError> {
        let mut places = Vec::new();
        let mut owners = Vec::new();
        for (index, file) in listed.iter().enumerate() {
            let shown = file.place.to_string();
            match ClearSigned::parse(&file.bytes, &shown) {
                Some(Ok(message)) => {
                    if let Some(key) = self.check(&message.signatures, message.text.as_bytes())? {
                        let signed = ChecksumFile::parse(message.text.as_bytes());
                        let digest = signed
                            .map_err(|source| VerifyError::ChecksumFile {
                                file: shown.clone(),
                                source,
                            })
                            .and_then(|signed| find(&signed, &self.image.names(), &file.place))
                            .map_err(|error| refused(error, self.image))?;
                        let key = Some(key);
                        return Ok(Some(Published {
                            digest,
                            file: shown,
                            key,
                        }));
                    }
                }
                Some(Err(error)) => self.problem(error)?,
                None => {
                    let beside = file.place.with_ends(&SIGNATURE);
                    owners.extend(beside.iter().map(|_| index));
                    places.extend(beside);
                }
            }
        }
        let answers = self.fetch(places, SIGNATURE_LIMIT)?;
        for ((place, answer), index) in answers.into_iter().zip(owners) {
            let file = &listed[index];
            let Some(signatures) = self.signatures(&place, answer)? else {
                continue;
            };
            if let Some(key) = self.check(&signatures, &file.bytes)? {
                return Ok(Some(Published {
                    digest: file.digest,
                    file: file.place.to_string(),
                    key: Some(key),
                }));
            }
        }
        Ok(None)
    }

    /// Signatures over the image by a key that is here.
    fn over_image(
        &mut self,
        answers: Vec<(Place, Answer)>,
    ) -> Result<Option<Signatures>, ImageError> {
        for (place, answer) in answers {
            let Some(signatures) = self.signatures(&place, answer)? else {
                continue;
            };
            match self.keyring()?.can_check(&signatures) {
                Ok(()) => return Ok(Some(signatures)),
                Err(error) => self.problem(error)?,
            }
        }
        Ok(None)
    }

    /// Reads what may be a signature.
    fn signatures(
        &mut self,
        place: &Place,
        answer: Answer,
    ) -> Result<Option<Signatures>, ImageError> {
        match answer {
            Answer::Found(bytes) => match Signatures::parse(&bytes, &place.to_string()) {
                Some(Ok(signatures)) => return Ok(Some(signatures)),
                Some(Err(error)) => self.problem(error)?,
                None => self.miss(place),
            },
            Answer::Missing => self.miss(place),
            Answer::Failed(error) => {
                self.misses.unasked.get_or_insert_with(|| explained(&error));
                self.misses.failed.push(error);
            }
        }
        Ok(None)
    }

    /// The key of a good signature over `bytes`; `None` where it cannot be told, and need not.
    fn check(
        &mut self,
        signatures: &Signatures,
        bytes: &[u8],
    ) -> Result<Option<String>, ImageError> {
        match self.keyring()?.verify(signatures, &|| bytes) {
            Ok(key) => Ok(Some(key)),
            Err(error) => self.problem(error).map(|()| None),
        }
    }

    /// A signature that is not good is an error; one that cannot be told is so where a good one is required.
    fn problem(&mut self, error: VerifyError) -> Result<(), ImageError> {
        if self.options.verify == Verify::Signature || !error.is_unknown() {
            return Err(refused(error, self.image));
        }
        self.reporter
            .notice(&format!("the signature was not checked: {error}"));
        Ok(())
    }

    /// The keys, read when a signature was found.
    fn keyring(&mut self) -> Result<&Keyring, ImageError> {
        match &mut self.keyring {
            Some(keyring) => Ok(keyring),
            empty => {
                let keyring = Keyring::load(&self.options.keyrings, self.image)?;
                Ok(empty.insert(keyring))
            }
        }
    }

    fn miss(&mut self, place: &Place) {
        // The folder is the image's, which the error names; another is named in full.
        let shown = if self.options.checksum_file.is_some() {
            place.to_string()
        } else {
            place.name()
        };
        self.misses.tried.push(shown);
    }

    /// Why what is required was not found. What could not be asked for may well be there.
    fn misses(&mut self, has_checksum: bool) -> ImageError {
        let misses = std::mem::take(&mut self.misses);
        let tried = misses.tried;
        if let Some(error) = misses.failed.into_iter().next() {
            return error;
        }
        let error = if has_checksum {
            VerifyError::NoSignature { tried }
        } else {
            let other = misses.without_line.or(misses.unusable);
            other.unwrap_or(VerifyError::NoChecksumFile { tried })
        };
        refused(error, self.image)
    }

    /// Where nothing of all that was asked for could be reached, the image cannot either, and would be waited for as
    /// long again: that is the error then, whatever is required.
    fn refuse_dead_host(&mut self) -> Result<(), ImageError> {
        let Place::Url(url) = self.image else {
            return Ok(());
        };
        let misses = &mut self.misses;
        let has_answered =
            !misses.tried.is_empty() || misses.without_line.is_some() || misses.unusable.is_some();
        if has_answered || self.options.checksum_file.is_some() {
            return Ok(());
        }
        if !misses.failed.iter().all(is_unreachable) {
            return Ok(());
        }
        match misses.failed.pop() {
            Some(ImageError::Download(error)) => {
                let (url, reason) = (url.clone(), error.reason);
                Err(DownloadError { url, reason }.into())
            }
            _ => Ok(()),
        }
    }

    /// Says that nothing is known of the image. Of a file on this host that is no news.
    fn say_unverified(&mut self) {
        let Place::Url(url) = self.image else {
            return;
        };
        let misses = std::mem::take(&mut self.misses);
        let found = match (misses.failed.first(), misses.without_line) {
            (Some(error), _) => explained(error),
            (None, Some(error)) => error.to_string(),
            (None, None) => format!("beside it is none of {}", misses.tried.join(", ")),
        };
        self.reporter.notice(&format!(
            "{url} cannot be verified: {found}; give its digest with --checksum, or name its checksum file with \
             --checksum-file"
        ));
    }

    /// Says that a signature may be there and was not seen.
    fn say_unasked(&mut self) {
        if let Some(reason) = self.misses.unasked.take()
            && self.options.verify == Verify::Auto
        {
            self.reporter
                .notice(&format!("no signature was checked: {reason}"));
        }
    }
}

/// An error and its cause in one line.
fn explained(error: &ImageError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Whether no connection came about.
fn is_unreachable(error: &ImageError) -> bool {
    let ImageError::Download(error) = error else {
        return false;
    };
    matches!(
        error.reason,
        DownloadReason::UnknownHost(_)
            | DownloadReason::Refused(_)
            | DownloadReason::Connect { .. }
            | DownloadReason::ConnectTimeout(_)
            | DownloadReason::Tls { .. }
    )
}

impl Place {
    /// The last part of the URL's path as it is written, or of the file's name.
    fn name(&self) -> String {
        match self {
            Self::Url(url) => url.file_name().to_owned(),
            Self::File(path) => {
                let name = path.file_name().unwrap_or_default();
                name.to_string_lossy().into_owned()
            }
        }
    }

    /// The names by which a checksum file may list it.
    fn names(&self) -> Vec<String> {
        let name = self.name();
        let mut names = vec![name];
        if matches!(self, Self::Url(_)) {
            let decoded = percent_decode_str(&names[0]).decode_utf8_lossy();
            if decoded != names[0] {
                let decoded = decoded.into_owned();
                names.push(decoded);
            }
        }
        names
    }

    /// A file in the same folder. The query stays: where it is a token, it may be good for the folder.
    fn beside(&self, name: &str) -> Self {
        match self {
            Self::Url(url) => {
                let mut url = url.secret().clone();
                let path = url.path();
                let folder = path.rfind('/').map_or("/", |end| &path[..=end]);
                let path = format!("{folder}{name}");
                url.set_path(&path);
                url.set_fragment(None);
                Self::Url(ImageUrl::from_url(url))
            }
            Self::File(path) => Self::File(path.with_file_name(name)),
        }
    }

    /// Files with more behind the same name; none where there is no name.
    fn with_ends(&self, ends: &[&str]) -> Vec<Self> {
        let name = self.name();
        if name.is_empty() {
            return Vec::new();
        }
        ends.iter()
            .map(|end| self.beside(&format!("{name}.{end}")))
            .collect()
    }

    fn read(&self, limit: u64, options: &PullOptions) -> Answer {
        let result = match self {
            Self::Url(url) => read_url(url, limit, options),
            Self::File(path) => read_file(path, limit),
        };
        match result {
            Ok(Some(bytes)) => Answer::Found(bytes),
            Ok(None) => Answer::Missing,
            Err(error) => Answer::Failed(error),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Url(url) => url.fmt(f),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// The bytes behind a URL; `None` where there are none. A store of objects that nobody may list answers 403 for what
/// is not there.
fn read_url(
    url: &ImageUrl,
    limit: u64,
    options: &PullOptions,
) -> Result<Option<Vec<u8>>, ImageError> {
    if options.offline {
        let reason = DownloadReason::Offline;
        let url = url.clone();
        return Err(DownloadError { url, reason }.into());
    }
    let answer = fetch::get(url, &HeaderMap::new(), limit, options)?;
    match answer.status {
        401 | 403 | 404 | 410 => Ok(None),
        _ => Ok(Some(answer.found(url)?)),
    }
}

fn read_file(path: &std::path::Path, limit: u64) -> Result<Option<Vec<u8>>, ImageError> {
    let file = match std::fs::File::open(path) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        other => other.at("open", path)?,
    };
    // A folder or a device of that name is no checksum file.
    if !file.metadata().at("read", path)?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    // One byte more, so that what is too large is seen to be.
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .at("read", path)?;
    Ok(Some(bytes))
}

/// The digest that a checksum file has for one of the names.
fn find(file: &ChecksumFile, names: &[String], place: &Place) -> Result<Digest, VerifyError> {
    for name in names {
        let found = file
            .find(name)
            .map_err(|source| VerifyError::ChecksumFile {
                file: place.to_string(),
                source,
            })?;
        if let Some(digest) = found {
            return Ok(digest);
        }
    }
    let name = names.last().cloned().unwrap_or_default();
    Err(VerifyError::NoLine {
        file: place.to_string(),
        nearest: file.nearest(&name),
        name,
    })
}

/// The name of the checksum file that Fedora puts beside an image. Its parts stand in the image's name, where the
/// architecture has moved over the years: `Fedora-Cloud-Base-38-1.6.x86_64.qcow2`,
/// `Fedora-Cloud-Base-Generic.x86_64-40-1.14.qcow2`, `Fedora-Cloud-Base-Generic-41-1.4.x86_64.qcow2`.
fn fedora(name: &str) -> Option<String> {
    let rest = name.strip_prefix("Fedora-")?;
    let (architecture, rest) = ARCHITECTURES.iter().find_map(|architecture| {
        let (before, after) = rest.split_once(&format!(".{architecture}"))?;
        Some((architecture, format!("{before}{after}")))
    })?;
    let mut stem = rest.as_str();
    let ends = [".qcow2", ".raw", ".tar", ".img", ".xz", ".gz", ".zst"];
    while let Some(shorter) = ends.iter().find_map(|end| stem.strip_suffix(end)) {
        stem = shorter;
    }
    let (stem, compose) = stem.rsplit_once('-')?;
    let (stem, version) = stem.rsplit_once('-')?;
    let edition = stem.split('-').next()?;
    Some(format!(
        "Fedora-{edition}-{version}-{compose}-{architecture}-CHECKSUM"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fedoras_checksum_files() {
        let table = [
            (
                "Fedora-Cloud-Base-38-1.6.x86_64.qcow2",
                Some("Fedora-Cloud-38-1.6-x86_64-CHECKSUM"),
            ),
            (
                "Fedora-Cloud-Base-38-1.6.x86_64.raw.xz",
                Some("Fedora-Cloud-38-1.6-x86_64-CHECKSUM"),
            ),
            (
                "Fedora-Cloud-Base-Generic.x86_64-40-1.14.qcow2",
                Some("Fedora-Cloud-40-1.14-x86_64-CHECKSUM"),
            ),
            (
                "Fedora-Cloud-Base-Generic-41-1.4.x86_64.qcow2",
                Some("Fedora-Cloud-41-1.4-x86_64-CHECKSUM"),
            ),
            (
                "Fedora-Server-KVM-42-1.1.aarch64.qcow2",
                Some("Fedora-Server-42-1.1-aarch64-CHECKSUM"),
            ),
            ("Fedora-Cloud.x86_64.qcow2", None),
            ("Fedora-Cloud-Base-38-1.6.qcow2", None),
            ("debian-12-generic-amd64.qcow2", None),
            ("Fedora-", None),
            ("", None),
        ];
        for (name, expected) in table {
            assert_eq!(fedora(name).as_deref(), expected, "{name:?}");
        }
    }

    #[test]
    fn what_stands_beside_a_url_or_a_path() {
        let table = [
            (
                "http://h/x.img",
                "http://h/SHA256SUMS",
                "http://h/x.img.sig",
            ),
            (
                "http://h/a/x.img?t=s3cret#f",
                "http://h/a/SHA256SUMS?t=***",
                "http://h/a/x.img.sig?t=***",
            ),
            (
                "http://h/a/x%20y.img",
                "http://h/a/SHA256SUMS",
                "http://h/a/x%20y.img.sig",
            ),
        ];
        for (image, shared, own) in table {
            let place = Place::Url(image.parse().unwrap());
            assert_eq!(place.beside("SHA256SUMS").to_string(), shared);
            assert_eq!(place.with_ends(&["sig"])[0].to_string(), own);
        }
        let place = Place::Url("http://h/a/".parse().unwrap());
        assert!(place.with_ends(&OWN).is_empty());
        let place = Place::Url("http://h/a/x%20y.img".parse().unwrap());
        assert_eq!(place.names(), ["x%20y.img", "x y.img"]);
        let place = Place::File("/srv/x.img".into());
        assert_eq!(place.beside("SHA256SUMS").to_string(), "/srv/SHA256SUMS");
        assert_eq!(place.names(), ["x.img"]);
    }
}
