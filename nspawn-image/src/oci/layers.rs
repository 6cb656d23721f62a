//! An image's layers: downloaded a few at a time, verified packed and unpacked, and applied in their order.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{Descriptor, ImageConfig, Manifest, OciError, Registry};
use crate::digest::{Digest, Hasher};
use crate::error::{ImageError, PathContext};
use crate::fetch::{self, DownloadReason, Outcome, PartialPaths};
use crate::format::Codec;
use crate::limits::Cancel;
use crate::options::PullOptions;
use crate::report::relay::{self, Remote};
use crate::report::{Reporter, Step, StepKind};
use crate::source::ReadAt;
use crate::unpack::{self, Imported, Stream, Tree, UnpackError, Whiteouts};
use crate::verify::Expectation;

/// Layers that are on their way at once: the network, the hash and the decoder each have something to do.
const AT_ONCE: usize = 3;
/// How often a cancel is seen while nothing is reported.
const TICK: Duration = Duration::from_millis(100);

/// Where layers are kept while they are not applied: two files each. The caller holds the lock of them.
pub(crate) type LayerPaths<'a> = dyn Fn(usize) -> PartialPaths + Sync + 'a;

/// The layers of one image.
pub(crate) struct Layers<'a> {
    pub(crate) registry: &'a Registry<'a>,
    pub(crate) manifest: &'a Manifest,
    pub(crate) options: &'a PullOptions,
    pub(crate) paths: &'a LayerPaths<'a>,
    /// How the user knows the image.
    pub(crate) what: &'a str,
}

/// A layer whose digests are right, packed and unpacked.
struct Ready {
    file: File,
    whiteouts: Whiteouts,
}

impl Layers<'_> {
    /// Makes the tree at `tree`.
    pub(crate) fn unpack(
        &self,
        tree: &Path,
        reporter: &mut dyn Reporter,
    ) -> Result<Imported, ImageError> {
        let config = self.registry.config(self.manifest)?;
        self.check_sizes()?;
        let result = self
            .fetch(&config, reporter)
            .and_then(|ready| self.apply(&ready, tree, reporter));
        // What arrived is of use to the next run, unless it is known to be wrong.
        let keep = matches!(
            result,
            Err(ImageError::Cancelled | ImageError::Download(_) | ImageError::Oci { .. })
        );
        if !keep {
            for index in 0..self.manifest.layers.len() {
                (self.paths)(index).clear();
            }
        }
        result
    }

    fn check_sizes(&self) -> Result<(), ImageError> {
        let limit = self.options.limits.download;
        let sizes = self.manifest.layers.iter().map(|(layer, _)| layer.size);
        let total = sizes.fold(0_u64, u64::saturating_add);
        if total > limit {
            let reason = format!("its layers have {total} bytes, of at most {limit}");
            return Err(self.registry.fail(OciError::Document {
                what: "manifest",
                reason,
            }));
        }
        Ok(())
    }

    fn name(&self, index: usize) -> String {
        let count = self.manifest.layers.len();
        format!("{}, layer {} of {count}", self.what, index + 1)
    }

    /// Downloads and verifies all layers, with threads whose reports this one passes on.
    fn fetch(
        &self,
        config: &ImageConfig,
        reporter: &mut dyn Reporter,
    ) -> Result<Vec<Ready>, ImageError> {
        let count = self.manifest.layers.len();
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<Option<Result<Ready, ImageError>>>> =
            Mutex::new((0..count).map(|_| None).collect());
        let cancel = Cancel::default();
        let (remote, mut relay) = relay::pair();
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(count) {
                let remote = remote.clone();
                let (next, results, cancel) = (&next, &results, &cancel);
                let work = move || {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= count || cancel.is_cancelled() {
                            break;
                        }
                        let remote = remote.named(self.name(index));
                        let result = self.layer(index, config, cancel, remote);
                        if result.is_err() {
                            cancel.cancel();
                        }
                        let known = results.lock();
                        known.unwrap_or_else(|error| error.into_inner())[index] = Some(result);
                    }
                };
                let started = std::thread::Builder::new()
                    .name("layer".to_owned())
                    .spawn_scoped(scope, work);
                started.at("start a thread for", Path::new(self.what))?;
            }
            drop(remote);
            while relay.wait(TICK, reporter) {
                if self.options.cancel.is_cancelled() {
                    cancel.cancel();
                }
            }
            Ok::<_, ImageError>(())
        })?;
        self.options.cancel.check()?;
        let results = results
            .into_inner()
            .unwrap_or_else(|error| error.into_inner());
        let mut ready = Vec::new();
        let mut failed = None;
        for result in results {
            match result {
                Some(Ok(layer)) => ready.push(layer),
                // The others were ended because of the one that says why.
                Some(Err(ImageError::Cancelled)) | None => {
                    failed.get_or_insert(ImageError::Cancelled);
                }
                Some(Err(error)) => match failed {
                    None | Some(ImageError::Cancelled) => failed = Some(error),
                    Some(_) => {}
                },
            }
        }
        failed.map_or(Ok(ready), Err)
    }

    /// Gets one layer, and reads it once: for the digest of its archive, and for its whiteouts.
    fn layer(
        &self,
        index: usize,
        config: &ImageConfig,
        cancel: &Cancel,
        mut remote: Remote,
    ) -> Result<Ready, ImageError> {
        let partial = (self.paths)(index);
        let (layer, _) = &self.manifest.layers[index];
        let mut options = self.options.clone();
        options.cancel = cancel.clone();
        options.checksum = Some(layer.digest);
        options.limits.download = layer.size;
        // Several layers are on their way already.
        options.connections = 1;
        let what = format!("layer {}", index + 1);
        let downloaded = self.download(layer, &what, &partial, &options, &mut remote);
        let result = downloaded.and_then(|file| {
            let diff_id = &config.diff_ids[index];
            let length = layer.size;
            let mut step = Step::begin(&mut remote, StepKind::Verify, "", Some(length));
            let whiteouts = self.scan(index, &file, diff_id, length, &options, &mut step)?;
            Ok(Ready { file, whiteouts })
        });
        // Wrong bytes are of no use to the next run.
        if let Err(ImageError::Oci { .. }) = &result {
            partial.clear();
        }
        result
    }

    fn download(
        &self,
        layer: &Descriptor,
        what: &str,
        partial: &PartialPaths,
        options: &PullOptions,
        remote: &mut Remote,
    ) -> Result<File, ImageError> {
        let url = self.registry.blob_url(layer)?;
        let mut renewed = false;
        let outcome = loop {
            let headers = self.registry.headers();
            match fetch::download(&url, &headers, None, partial, options, remote) {
                Err(ImageError::Download(error)) => match error.reason {
                    // Tokens live for minutes, downloads may be longer.
                    DownloadReason::Denied(401) if !renewed => {
                        renewed = true;
                        self.registry.renew()?;
                    }
                    DownloadReason::Denied(_) => return Err(self.registry.denied()),
                    DownloadReason::TooLarge { limit } => {
                        return Err(self.registry.fail(OciError::Size {
                            what: what.to_owned(),
                            expected: layer.size,
                            actual: limit.saturating_add(1),
                        }));
                    }
                    _ => return Err(ImageError::Download(error)),
                },
                other => break other?,
            }
        };
        let Outcome::Done { file, .. } = outcome else {
            let reason = "\"not modified\" for a file that is not here".to_owned();
            return Err(self.registry.fail(OciError::Document {
                what: "blob",
                reason,
            }));
        };
        let verified = match file.check(
            &Expectation::given(Some(layer.digest)),
            &what,
            &self.options.cancel,
        ) {
            Err(ImageError::Mismatch {
                what,
                expected,
                actual,
                ..
            }) => {
                return Err(self.registry.fail(OciError::Digest {
                    what,
                    expected,
                    actual,
                }));
            }
            other => other?,
        };
        let actual = verified.file.metadata().at("read", &partial.data)?.len();
        if actual != layer.size {
            return Err(self.registry.fail(OciError::Size {
                what: what.to_owned(),
                expected: layer.size,
                actual,
            }));
        }
        Ok(verified.file)
    }

    fn scan(
        &self,
        index: usize,
        file: &File,
        diff_id: &Digest,
        length: u64,
        options: &PullOptions,
        step: &mut Step<'_>,
    ) -> Result<Whiteouts, ImageError> {
        let stream = self.open(index, file, length, &options.cancel)?;
        let explain = stream.explainer();
        let gauge = stream.gauge.clone();
        let mut hashed = Hashed {
            input: stream,
            hasher: Hasher::new(Some(diff_id)),
            progress: || step.at(gauge.read()),
        };
        let whiteouts = Whiteouts::scan(&mut hashed, explain, &options.limits)
            .map_err(|source| self.unpack_error(index, Path::new(""), source))?;
        let what = format!("content of layer {}", index + 1);
        let digests = hashed.hasher.finish();
        self.registry.same(&what, &digests, Some(diff_id))?;
        Ok(whiteouts)
    }

    fn open(
        &self,
        index: usize,
        file: &File,
        length: u64,
        cancel: &Cancel,
    ) -> Result<Stream<'static>, ImageError> {
        let name = self.name(index);
        let read = Path::new(&name);
        let mut file = file.try_clone().at("read", read)?;
        file.rewind().at("read", read)?;
        let mut magic = [0; 4];
        let count = ReadAt::read_at(&file, &mut magic, 0).at("read", read)?;
        // Not every registry calls a layer by what it is.
        let codec = match &magic[..count] {
            [0x1f, 0x8b, ..] => Some(Codec::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd] => Some(Codec::Zstd),
            _ => None,
        };
        Stream::open(file, codec, length, &self.options.limits, cancel, None).at("read", read)
    }

    fn unpack_error(&self, index: usize, tree: &Path, source: UnpackError) -> ImageError {
        unpack::unpack_error(Path::new(&self.name(index)), tree, source)
    }

    fn apply(
        &self,
        ready: &[Ready],
        path: &Path,
        reporter: &mut dyn Reporter,
    ) -> Result<Imported, ImageError> {
        let failed = |source| unpack::unpack_error(Path::new(self.what), path, source);
        let sizes = self.manifest.layers.iter().map(|(layer, _)| layer.size);
        let mut step = Step::begin(
            reporter,
            StepKind::Unpack,
            self.what,
            Some(sizes.sum::<u64>()),
        );
        let mut tree = Tree::create(path, &self.options.limits).map_err(failed)?;
        let mut before = 0;
        for (index, layer) in ready.iter().enumerate() {
            let length = self.manifest.layers[index].0.size;
            let failed = |source| self.unpack_error(index, path, source);
            layer.whiteouts.apply(&mut tree).map_err(failed)?;
            let stream = self.open(index, &layer.file, length, &self.options.cancel)?;
            let (explain, gauge) = (stream.explainer(), stream.gauge.clone());
            unpack::add_layer(&mut tree, stream, explain, || {
                step.at(before + gauge.read());
            })
            .map_err(failed)?;
            before += length;
        }
        if let Some(notice) = tree.notice() {
            step.notice(notice);
        }
        let what = Path::new(self.what);
        let imported = unpack::finish_tree(tree, path, what, true, &self.options.cancel)?;
        if !has_init(path) {
            step.notice(&format!(
                "{} has no systemd: it cannot boot; build one FROM it that installs systemd",
                self.what
            ));
        }
        Ok(imported)
    }
}

/// Whether there is something that systemd-nspawn would boot. Source: systemd, src/nspawn/nspawn.c.
fn has_init(tree: &Path) -> bool {
    [
        "usr/lib/systemd/systemd",
        "lib/systemd/systemd",
        "sbin/init",
        "usr/sbin/init",
    ]
    .iter()
    .any(|name| fs::symlink_metadata(tree.join(name)).is_ok())
}

/// A stream that is hashed as it is read.
struct Hashed<R, P> {
    input: R,
    hasher: Hasher,
    progress: P,
}

impl<R: Read, P: FnMut()> Read for Hashed<R, P> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        (self.progress)();
        Ok(count)
    }
}
