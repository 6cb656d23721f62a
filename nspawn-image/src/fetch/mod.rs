//! Downloads over HTTP: into a partial file that a later call can go on with, hashed on the way.
//!
//! Flow: [`download`] -> a thread with the network (`transfer`) -> a bounded channel -> this thread hashes and
//! writes -> a [`Follower`] reads what has come. The private runtime lives in the network's thread, so that a caller
//! inside an async runtime is no problem, and receiving overlaps hashing.

mod arriving;
mod error;
mod segments;
mod small;
mod tls;
mod transfer;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

pub(crate) use arriving::Arriving;
pub use error::{DownloadError, DownloadReason};
use reqwest::header::HeaderMap;
use serde::{Deserialize, Serialize};
pub(crate) use small::{get, post};
use transfer::{Event, Request};

use crate::convert::write_sparse;
use crate::digest::Hasher;
use crate::error::{ImageError, PathContext};
use crate::options::PullOptions;
use crate::reference::ImageUrl;
use crate::report::{Reporter, Step, StepKind};
use crate::source::ReadAt as _;
use crate::verify::Unverified;

/// How often a cancel is seen while nothing arrives.
const TICK: Duration = Duration::from_millis(100);
/// The pause before a broken download is taken up again; each further one is twice as long, up to the longest.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What a server tells a version of a file by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Validators {
    pub(crate) etag: Option<String>,
    pub(crate) last_modified: Option<String>,
}

impl Validators {
    /// The one that proves that bytes are of the same version: never a weak ETag. Source: RFC 9110, 13.1.5.
    fn strong(&self) -> Option<&str> {
        self.etag
            .as_deref()
            .filter(|etag| !etag.starts_with("W/"))
            .or(self.last_modified.as_deref())
    }

    /// Whether `others` are of another version, as far as both tell. A date counts where one of them has no ETag.
    fn contradict(&self, others: &Self) -> bool {
        match (&self.etag, &others.etag) {
            (Some(own), Some(other)) => own != other,
            _ => matches!(
                (&self.last_modified, &others.last_modified),
                (Some(own), Some(other)) if own != other
            ),
        }
    }
}

/// Where a download is kept while it is not complete. The caller holds the lock of it.
#[derive(Clone, Debug)]
pub(crate) struct PartialPaths {
    pub(crate) data: PathBuf,
    pub(crate) record: PathBuf,
}

impl PartialPaths {
    pub(crate) fn clear(&self) {
        let _ = fs::remove_file(&self.data);
        let _ = fs::remove_file(&self.record);
    }

    fn validators(&self) -> Option<Validators> {
        serde_json::from_slice(&fs::read(&self.record).ok()?).ok()
    }
}

/// Reads a file while it comes.
pub(crate) trait Follower {
    /// The file's first bytes come. Its length is known.
    fn begin(&mut self, file: &Arc<Arriving>);
    /// The server has other bytes than those that came: what was made of them is of no use.
    fn restart(&mut self);
    /// Some more has come. `false` where the rest is of no use.
    fn tick(&mut self, reporter: &mut dyn Reporter) -> bool;
}

/// A follower that reads nothing.
struct Nobody;

impl Follower for Nobody {
    fn begin(&mut self, _: &Arc<Arriving>) {}
    fn restart(&mut self) {}
    fn tick(&mut self, _: &mut dyn Reporter) -> bool {
        true
    }
}

/// How a download ended well.
pub(crate) enum Outcome {
    Done {
        file: Unverified,
        validators: Validators,
    },
    /// The server still has what `known` describes.
    NotModified,
    /// The follower wanted no more.
    Abandoned,
}

/// Downloads `url` into `partial`; with `known`, only if the server has another version. `headers` go with every
/// request.
pub(crate) fn download(
    url: &ImageUrl,
    headers: &HeaderMap,
    known: Option<&Validators>,
    partial: &PartialPaths,
    options: &PullOptions,
    reporter: &mut dyn Reporter,
) -> Result<Outcome, ImageError> {
    let request = (url, headers, known);
    let result = download_followed(request, partial, options, &mut Nobody, reporter);
    if matches!(result, Err(ImageError::NoSpace { .. })) {
        partial.clear();
    }
    result
}

/// The same, with somebody who reads the file while it comes. A request is a URL, headers, and the version known. Where
/// the disk is full, what has come stays.
pub(crate) fn download_followed(
    (url, headers, known): (&ImageUrl, &HeaderMap, Option<&Validators>),
    partial: &PartialPaths,
    options: &PullOptions,
    follower: &mut dyn Follower,
    reporter: &mut dyn Reporter,
) -> Result<Outcome, ImageError> {
    Download::open(url, headers, partial, options, follower, reporter)?.run(known)
}

struct Download<'a> {
    url: &'a ImageUrl,
    headers: &'a HeaderMap,
    partial: &'a PartialPaths,
    options: &'a PullOptions,
    follower: &'a mut dyn Follower,
    reporter: &'a mut dyn Reporter,
    file: File,
    arriving: Option<Arc<Arriving>>,
    hasher: Hasher,
    /// Bytes in `file`, all of them hashed.
    done: u64,
    validators: Validators,
    /// Connections that the next attempt may use.
    connections: usize,
}

/// Why one attempt ended.
enum Ended {
    Complete,
    NotModified,
    /// The follower wants no more.
    Abandoned,
    /// Nothing of use is there any more: start again from the first byte.
    Restart,
    /// Worth another attempt from where it stands.
    Broken(DownloadError),
}

impl<'a> Download<'a> {
    /// Takes up what an earlier call left, where the server can be asked to go on with it.
    fn open(
        url: &'a ImageUrl,
        headers: &'a HeaderMap,
        partial: &'a PartialPaths,
        options: &'a PullOptions,
        follower: &'a mut dyn Follower,
        reporter: &'a mut dyn Reporter,
    ) -> Result<Self, ImageError> {
        let data = &partial.data;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(data)
            .at("open", data)?;
        let mut hasher = Hasher::new(options.checksum.as_ref());
        let validators = partial
            .validators()
            .filter(|known| known.strong().is_some())
            .unwrap_or_default();
        let mut done = 0;
        if validators.strong().is_some() {
            done = hasher
                .consume(&mut file, |_| !options.cancel.is_cancelled())
                .at("read", data)?;
            options.cancel.check()?;
        }
        // Cut to nothing, a new file would be written to the disk when it is closed (ext4's auto_da_alloc), for nothing.
        if file.metadata().at("read", data)?.len() != done {
            file.set_len(done).at("write", data)?;
        }
        Ok(Self {
            url,
            headers,
            partial,
            options,
            follower,
            reporter,
            file,
            arriving: None,
            hasher,
            done,
            validators,
            connections: options.connections,
        })
    }

    fn restart(&mut self) -> Result<(), ImageError> {
        self.hasher = Hasher::new(self.options.checksum.as_ref());
        self.done = 0;
        self.validators = Validators::default();
        if let Some(arriving) = self.arriving.take() {
            arriving.end_waiting();
            self.follower.restart();
        }
        self.file.set_len(0).at("write", &self.partial.data)
    }

    fn run(&mut self, known: Option<&Validators>) -> Result<Outcome, ImageError> {
        let mut restarted = false;
        let mut retries = 0;
        loop {
            match self.attempt(known)? {
                Ended::Complete => break,
                Ended::Abandoned => return Ok(Outcome::Abandoned),
                Ended::NotModified => {
                    self.partial.clear();
                    return Ok(Outcome::NotModified);
                }
                Ended::Restart if !restarted => {
                    restarted = true;
                    self.restart()?;
                }
                Ended::Restart => {
                    return Err(self
                        .fail(DownloadReason::Protocol("it refuses every range".into()))
                        .into());
                }
                Ended::Broken(error) => {
                    retries += 1;
                    // What failed may have been the server's patience with several.
                    self.connections = 1;
                    if retries > self.options.retries || self.validators.strong().is_none() {
                        return Err(error.into());
                    }
                    self.reporter.notice(&format!(
                        "{}: trying again from byte {}",
                        error.reason, self.done
                    ));
                    let pause = PAUSE * 2_u32.saturating_pow(retries - 1);
                    self.pause(pause.min(LONGEST_PAUSE))?;
                }
            }
        }
        // Zeros at the end were left out.
        self.file
            .set_len(self.done)
            .at("write", &self.partial.data)?;
        self.arriving = None;
        let file = self.file.try_clone().at("open", &self.partial.data)?;
        let hasher = std::mem::replace(&mut self.hasher, Hasher::new(None));
        let file = Unverified::new(file, hasher.finish());
        Ok(Outcome::Done {
            file,
            validators: self.validators.clone(),
        })
    }

    /// Waits, as a server that starts anew takes its time.
    fn pause(&self, time: Duration) -> Result<(), ImageError> {
        let start = Instant::now();
        while let Some(left) = time.checked_sub(start.elapsed()) {
            self.options.cancel.check()?;
            std::thread::sleep(left.min(TICK));
        }
        Ok(())
    }

    fn fail(&self, reason: DownloadReason) -> DownloadError {
        DownloadError {
            url: self.url.clone(),
            reason,
        }
    }

    /// Whether a part is of another file than the bytes that are here: servers err about `If-Range`.
    fn is_another(&self, head: &transfer::Head) -> bool {
        if self.done == 0 {
            return false;
        }
        let length = self
            .arriving
            .as_ref()
            .and_then(|arriving| arriving.size().ok());
        self.validators.contradict(&head.validators)
            || matches!((length, head.total), (Some(old), Some(new)) if old != new)
    }

    fn attempt(&mut self, known: Option<&Validators>) -> Result<Ended, ImageError> {
        let request = Request {
            from: self.done,
            if_range: self
                .validators
                .strong()
                .filter(|_| self.done > 0)
                .map(str::to_owned),
            unless: known.filter(|_| self.done == 0).cloned(),
            connections: self.connections,
            ..Request::plain(self.url, self.headers, self.options)
        };
        let events =
            transfer::start(request).map_err(|error| self.fail(DownloadReason::Thread(error)))?;
        // `None` where nothing came for a moment.
        let next = || {
            self.options.cancel.check()?;
            match events.recv_timeout(TICK) {
                Ok(event) => Ok::<_, ImageError>(Some(event)),
                Err(RecvTimeoutError::Timeout) => Ok(None),
                Err(RecvTimeoutError::Disconnected) => {
                    // The other thread may have seen a cancel first.
                    self.options.cancel.check()?;
                    let reason = DownloadReason::Protocol("the network thread ended".to_owned());
                    Ok(Some(Event::Failed(DownloadError {
                        url: self.url.clone(),
                        reason,
                    })))
                }
            }
        };
        let first = loop {
            if let Some(event) = next()? {
                break event;
            }
        };
        let head = match first {
            Event::Head(head) => head,
            Event::NotModified => return Ok(Ended::NotModified),
            // An earlier call had it all and was ended before it was used.
            Event::RangeRefused(Some(total)) if total == self.done => return Ok(Ended::Complete),
            Event::RangeRefused(_) => return Ok(Ended::Restart),
            // The version asked for is not there any more.
            Event::Failed(error)
                if self.done > 0 && matches!(error.reason, DownloadReason::Status(412)) =>
            {
                return Ok(Ended::Restart);
            }
            Event::Failed(error) if self.done > 0 && error.may_pass() => {
                return Ok(Ended::Broken(error));
            }
            Event::Failed(error) => return Err(error.into()),
            _ => {
                return Err(self
                    .fail(DownloadReason::Protocol("a body without a head".into()))
                    .into());
            }
        };
        if head.start == 0 && self.done > 0 {
            // The file changed, or the server knows no ranges: this body is the whole file.
            self.restart()?;
        } else if head.start != self.done || self.is_another(&head) {
            return Ok(Ended::Restart);
        }
        let limit = self.options.limits.download;
        if head.total.is_some_and(|total| total > limit) {
            return Err(self.fail(DownloadReason::TooLarge { limit }).into());
        }
        // An answer to a range need not repeat what the file is told by.
        if self.done == 0 || head.validators.strong().is_some() {
            self.validators = head.validators;
        }
        let record = serde_json::to_vec(&self.validators).unwrap_or_default();
        fs::write(&self.partial.record, record).at("write", &self.partial.record)?;
        if let (Some(total), None) = (head.total, &self.arriving) {
            let file = self.file.try_clone().at("open", &self.partial.data)?;
            let arriving = Arc::new(Arriving::new(file, total, self.done));
            self.follower.begin(&arriving);
            self.arriving = Some(arriving);
        }
        let subject = self.url.to_string();
        let mut step = Step::begin(self.reporter, StepKind::Download, &subject, head.total);
        step.at(self.done);
        loop {
            match next()? {
                // Whoever follows may have failed on what it has.
                None if !self.follower.tick(step.reporter()) => return Ok(Ended::Abandoned),
                Some(Event::Chunk(bytes)) => {
                    write_sparse(&self.file, &bytes, self.done)
                        .map_err(|(_, error)| error)
                        .at("write", &self.partial.data)?;
                    self.done += bytes.len() as u64;
                    // Others can read it while it is hashed.
                    if let Some(arriving) = &self.arriving {
                        arriving.advance(self.done);
                    }
                    self.hasher.update(&bytes);
                    step.at(self.done);
                    if !self.follower.tick(step.reporter()) {
                        return Ok(Ended::Abandoned);
                    }
                    if self.done > limit {
                        return Err(DownloadError {
                            url: self.url.clone(),
                            reason: DownloadReason::TooLarge { limit },
                        }
                        .into());
                    }
                }
                Some(Event::End) => match head.total {
                    Some(expected) if expected != self.done => {
                        let reason = DownloadReason::CutShort {
                            expected,
                            received: self.done,
                        };
                        return Ok(Ended::Broken(DownloadError {
                            url: self.url.clone(),
                            reason,
                        }));
                    }
                    _ => return Ok(Ended::Complete),
                },
                Some(Event::Failed(mut error)) => {
                    if let (DownloadReason::Broken(_), Some(expected)) = (&error.reason, head.total)
                    {
                        error.reason = DownloadReason::CutShort {
                            expected,
                            received: self.done,
                        };
                    }
                    return Ok(Ended::Broken(error));
                }
                _ => {}
            }
        }
    }
}

impl Drop for Download<'_> {
    fn drop(&mut self) {
        // Whoever still waits for bytes must not wait for ever.
        if let Some(arriving) = &self.arriving {
            arriving.end_waiting();
        }
        // Zeros at the end of what has come were left out; the next call goes on behind them.
        let _ = self.file.set_len(self.done);
    }
}

/// A key for a URL: what its partial file and its record are found by. The URL itself may hold a secret.
pub(crate) fn url_key(url: &ImageUrl) -> String {
    let mut hasher = Hasher::new(None);
    hasher.update(url.secret().as_str().as_bytes());
    hasher.finish().sha256.hex()[..32].to_owned()
}

/// Syncs a folder, so that what was renamed into it is there after a power cut.
pub(crate) fn sync_folder(path: &Path) -> Result<(), ImageError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .at("sync", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_differ_where_both_tell() {
        let version = |etag: &str, date: &str| {
            let told = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            Validators {
                etag: told(etag),
                last_modified: told(date),
            }
        };
        for (one, other, differ) in [
            (("a", ""), ("a", ""), false),
            (("a", ""), ("b", ""), true),
            (("W/a", ""), ("W/b", ""), true),
            // The servers behind one name may differ in what they know of the date.
            (("a", "1"), ("a", "2"), false),
            (("a", "1"), ("", "2"), true),
            (("", "1"), ("", "2"), true),
            (("", "1"), ("a", "1"), false),
            (("a", ""), ("", "2"), false),
            (("", ""), ("a", "1"), false),
        ] {
            let (one, other) = (version(one.0, one.1), version(other.0, other.1));
            assert_eq!(one.contradict(&other), differ, "{one:?} {other:?}");
            assert_eq!(other.contradict(&one), differ, "{one:?} {other:?}");
        }
    }
}
