//! From a file to what a machine starts from: a sparse raw disk or an OS tree, still unpublished.
//!
//! Flow: [`import`] -> format of the file -> codec -> format of what is inside -> [`qcow2`](crate::qcow2), sparse
//! copy or tree. A qcow2 inside a compressed file is spooled first, as it is read at random.

mod ahead;
mod archive;
mod error;
mod layer;
mod remove;
mod stream;
mod tree;
mod writer;
mod zip;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use archive::{Archive, Entry};
pub use error::UnpackError;
pub(crate) use layer::{Whiteouts, add_layer};
pub use remove::remove_tree;
pub(crate) use stream::Stream;
pub(crate) use tree::Tree;
pub use writer::TreeWriter;

use crate::content::Content;
use crate::convert::{self, DiskSums, RawUnits};
use crate::error::{ImageError, PathContext};
use crate::format::{self, Format};
use crate::image::ImageKind;
use crate::limits::Cancel;
use crate::options::PullOptions;
use crate::place;
use crate::qcow2::{OpenOptions, Qcow2, Qcow2Error};
use crate::report::{Reporter, Step, StepKind};
use crate::source::ReadAt;

/// Bytes moved at once.
const CHUNK: usize = 1 << 20;

/// Where an import may write: three names that its caller holds the lock for and removes.
#[derive(Clone, Debug)]
pub(crate) struct WorkPaths {
    pub(crate) raw: PathBuf,
    pub(crate) tree: PathBuf,
    pub(crate) spool: PathBuf,
    /// A folder that takes files without a name, which the kernel removes with their last user; nothing is made under
    /// `raw` and `spool` then.
    pub(crate) nameless: Option<PathBuf>,
}

impl WorkPaths {
    /// Removes what an import left, ended or killed.
    pub(crate) fn clear(&self) {
        for path in [&self.raw, &self.spool] {
            let _ = fs::remove_file(path);
        }
        let _ = remove_tree(&self.tree);
    }
}

/// Bytes that are imported; they may still be coming.
pub(crate) type Source = dyn ReadAt + Send;

/// Where an import reads and writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paths<'a> {
    pub(crate) work: &'a WorkPaths,
    /// The file that the bytes are in, where a raw disk may become that file.
    pub(crate) own: Option<&'a Path>,
    /// Where the image lies, where it is the user's own file: files below an overlay are looked for from there.
    pub(crate) image: Option<&'a Path>,
    /// Only a disk is wanted: an archive of anything else is refused before it is unpacked.
    pub(crate) only_disk: bool,
    /// Whether checksums of what is made are wanted.
    pub(crate) summed: bool,
}

/// What an import made, still under its working name.
#[derive(Debug)]
pub(crate) struct Imported {
    pub(crate) kind: ImageKind,
    pub(crate) path: PathBuf,
    /// The file of a disk that has no name.
    pub(crate) file: Option<File>,
    /// Bytes a machine sees of a disk; 0 for a tree.
    pub(crate) virtual_size: u64,
    /// What it holds, where checksums were wanted.
    pub(crate) content: Option<Content>,
}

/// Unpacks or converts `source`. `what` is how the user knows it: a redacted URL or a path.
pub(crate) fn import(
    source: &Source,
    what: &str,
    paths: Paths<'_>,
    options: &PullOptions,
    reporter: &mut dyn Reporter,
) -> Result<Imported, ImageError> {
    paths.work.clear();
    let import = Import {
        what,
        paths,
        work: paths.work,
        options,
    };
    let format = format::detect(source).map_err(|error| import.unreadable(error))?;
    match format {
        Format::Qcow2 => import.qcow2(source, reporter),
        Format::Raw => import.raw(source, reporter),
        Format::Tar => import.packed(source, None, reporter),
        Format::Compressed(codec) => import.packed(source, Some(codec), reporter),
        Format::Zip => import.zip(source, reporter),
        other => Err(import.refuse(other)),
    }
}

struct Import<'a> {
    what: &'a str,
    paths: Paths<'a>,
    work: &'a WorkPaths,
    options: &'a PullOptions,
}

impl Import<'_> {
    fn unreadable(&self, source: io::Error) -> ImageError {
        ImageError::io("read", Path::new(self.what), source)
    }

    fn refuse(&self, format: Format) -> ImageError {
        let what = self.what.to_owned();
        match format {
            Format::NoImage(found) => ImageError::NoImage {
                what,
                found: found.to_owned(),
            },
            Format::Unsupported(found) => ImageError::Unsupported {
                what,
                found: found.to_owned(),
            },
            other => ImageError::Unsupported {
                what,
                found: format!("{other:?} at this place"),
            },
        }
    }

    fn unpack_error(&self, source: UnpackError) -> ImageError {
        unpack_error(Path::new(self.what), &self.work.tree, source)
    }

    fn create(&self, path: &Path) -> Result<File, ImageError> {
        if let Some(folder) = &self.work.nameless {
            return place::nameless(folder).at("create a file in", folder);
        }
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .at("create", path)
    }

    /// The disk in `file`.
    fn disk(&self, file: File, virtual_size: u64, sums: Option<DiskSums>) -> Imported {
        Imported {
            kind: ImageKind::Disk,
            path: self.work.raw.clone(),
            file: self.work.nameless.is_some().then_some(file),
            virtual_size,
            content: sums.map(Content::Disk),
        }
    }

    /// The checksums of a disk that was not converted, where they are wanted.
    fn sums(&self, disk: impl ReadAt) -> Result<Option<DiskSums>, ImageError> {
        if !self.paths.summed {
            return Ok(None);
        }
        let sums = DiskSums::of(disk, &self.options.cancel, &mut |_| {});
        sums.map(Some)
            .map_err(|source| qcow2_error(source, Path::new(self.what), &self.work.raw))
    }

    fn qcow2(&self, source: &Source, reporter: &mut dyn Reporter) -> Result<Imported, ImageError> {
        let failed = |source| qcow2_error(source, Path::new(self.what), &self.work.raw);
        // A file that came from elsewhere has no say in which files of this host are opened.
        let path = self.paths.image;
        let open = OpenOptions {
            limit: self.options.limits.virtual_size,
            snapshot: self.options.snapshot.clone(),
            backing: path.and(self.options.allow_backing.clone()),
            path: path.map(Path::to_owned),
        };
        let image = Qcow2::open_with(source, &open).map_err(failed)?;
        if image.header().dirty {
            reporter.notice("the image was not closed in order; its data is read as it is");
        }
        let size = image.header().virtual_size;
        let output = self.create(&self.work.raw)?;
        let mut step = Step::begin(reporter, StepKind::Convert, self.what, Some(size));
        let summed = self.paths.summed;
        let cancel = &self.options.cancel;
        let sums = convert::run_with(&image, &output, summed, cancel, &mut |done| step.at(done))
            .map_err(failed)?;
        Ok(self.disk(output, size, sums))
    }

    /// Takes the file as it is where it may, else copies what is not zero.
    fn raw(&self, source: &Source, reporter: &mut dyn Reporter) -> Result<Imported, ImageError> {
        let failed = |source| qcow2_error(source, Path::new(self.what), &self.work.raw);
        self.refuse_snapshot()?;
        let units = RawUnits::new(source).map_err(|error| self.unreadable(error))?;
        let size = convert::Units::size(&units);
        if size > self.options.limits.virtual_size {
            let limit = self.options.limits.virtual_size;
            return Err(failed(Qcow2Error::TooLarge { size, limit }));
        }
        if let Some(own) = self.paths.own {
            return Ok(Imported {
                kind: ImageKind::Disk,
                path: own.to_owned(),
                file: None,
                virtual_size: size,
                content: self.sums(source)?.map(Content::Disk),
            });
        }
        let output = self.create(&self.work.raw)?;
        let mut step = Step::begin(reporter, StepKind::Convert, self.what, Some(size));
        let summed = self.paths.summed;
        let cancel = &self.options.cancel;
        let sums = convert::run_with(&units, &output, summed, cancel, &mut |done| step.at(done))
            .map_err(failed)?;
        Ok(self.disk(output, size, sums))
    }

    /// Only a qcow2 image holds snapshots.
    fn refuse_snapshot(&self) -> Result<(), ImageError> {
        let Some(wanted) = &self.options.snapshot else {
            return Ok(());
        };
        let error = Qcow2Error::NoSnapshot {
            wanted: wanted.clone(),
            found: "none".to_owned(),
        };
        Err(qcow2_error(error, Path::new(self.what), &self.work.raw))
    }

    fn packed(
        &self,
        source: &Source,
        codec: Option<format::Codec>,
        reporter: &mut dyn Reporter,
    ) -> Result<Imported, ImageError> {
        let read = Path::new(self.what);
        let length = source.size().map_err(|error| self.unreadable(error))?;
        let (limits, cancel) = (&self.options.limits, &self.options.cancel);
        thread::scope(|scope| {
            let stream = Stream::open(source, codec, length, limits, cancel, Some(scope))
                .at("read", read)?;
            self.unpack(stream, length, reporter)
        })
    }

    fn unpack(
        &self,
        mut stream: Stream<'_>,
        length: u64,
        reporter: &mut dyn Reporter,
    ) -> Result<Imported, ImageError> {
        let read = Path::new(self.what);
        let mut head = vec![0; format::HEAD];
        let count = stream
            .fill(&mut head)
            .map_err(|error| self.unpack_error(stream.explain(error)))?;
        head.truncate(count);
        match format::detect(&head).at("read", read)? {
            Format::Raw => {
                self.refuse_snapshot()?;
                let mut step = Step::begin(reporter, StepKind::Unpack, self.what, Some(length));
                self.write_raw(&head, stream, &mut step)
            }
            Format::Qcow2 => {
                let spool = self.spool(&head, stream, length, reporter)?;
                let imported = self.qcow2(&spool, reporter)?;
                let _ = fs::remove_file(&self.work.spool);
                Ok(imported)
            }
            Format::Tar => self.tar(head, stream, length, reporter),
            other => Err(self.refuse(other)),
        }
    }

    /// Writes a stream as a sparse file.
    fn write_raw(
        &self,
        head: &[u8],
        mut stream: Stream<'_>,
        step: &mut Step<'_>,
    ) -> Result<Imported, ImageError> {
        let output = self.create(&self.work.raw)?;
        let gauge = stream.gauge.clone();
        let failed = |(_, source)| ImageError::io("write", &self.work.raw, source);
        convert::write_sparse(&output, head, 0).map_err(failed)?;
        let mut size = head.len() as u64;
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = stream
                .fill(&mut buffer)
                .map_err(|error| self.unpack_error(stream.explain(error)))?;
            if count == 0 {
                break;
            }
            convert::write_sparse(&output, &buffer[..count], size).map_err(failed)?;
            size += count as u64;
            step.at(gauge.read());
        }
        output.set_len(size).at("write", &self.work.raw)?;
        let sums = self.sums(&output)?;
        Ok(self.disk(output, size, sums))
    }

    fn spool(
        &self,
        head: &[u8],
        mut stream: Stream<'_>,
        length: u64,
        reporter: &mut dyn Reporter,
    ) -> Result<File, ImageError> {
        let mut spool = self.create(&self.work.spool)?;
        let mut step = Step::begin(reporter, StepKind::Unpack, self.what, Some(length));
        let gauge = stream.gauge.clone();
        spool.write_all(head).at("write", &self.work.spool)?;
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = stream
                .fill(&mut buffer)
                .map_err(|error| self.unpack_error(stream.explain(error)))?;
            if count == 0 {
                return Ok(spool);
            }
            spool
                .write_all(&buffer[..count])
                .at("write", &self.work.spool)?;
            step.at(gauge.read());
        }
    }

    fn tar(
        &self,
        head: Vec<u8>,
        stream: Stream<'_>,
        length: u64,
        reporter: &mut dyn Reporter,
    ) -> Result<Imported, ImageError> {
        let gauge = stream.gauge.clone();
        let explain = stream.explainer();
        let failed = |error| self.unpack_error(error);
        let mut step = Step::begin(reporter, StepKind::Unpack, self.what, Some(length));
        let mut archive = Archive::new(io::Cursor::new(head).chain(stream), explain);
        let mut tree: Option<Tree> = None;
        // Notes and checksums may lie beside a disk; among folders it is a file like any other.
        let mut only_files = true;
        while let Some(entry) = archive.next().map_err(failed)? {
            if only_files && tree::is_disk(&entry) {
                let spooled =
                    self.spool_entry(&entry, &mut archive, &mut || gauge.read(), &mut step)?;
                drop(step);
                let _ = remove_tree(&self.work.tree);
                return self.disk_in_tar(spooled, reporter);
            }
            only_files &= tree::is_file(entry.kind) || tree::is_root(&entry);
            if self.paths.only_disk {
                if only_files {
                    continue;
                }
                break;
            }
            let tree = match &mut tree {
                Some(tree) => tree,
                None => {
                    let made =
                        Tree::create(&self.work.tree, &self.options.limits).map_err(failed)?;
                    tree.insert(made)
                }
            };
            tree.add(&entry, &mut archive).map_err(failed)?;
            step.at(gauge.read());
        }
        if self.paths.only_disk {
            let what = self.what.to_owned();
            return Err(ImageError::NotADisk { what });
        }
        let Some(tree) = tree else {
            return Err(failed(UnpackError::Empty));
        };
        if let Some(notice) = tree.notice() {
            step.notice(notice);
        }
        let what = Path::new(self.what);
        let cancel = &self.options.cancel;
        finish_tree(tree, &self.work.tree, what, self.paths.summed, cancel)
    }

    /// Writes the disk image in an archive to the spool, as its format is not known before.
    fn spool_entry<R: Read, E: Fn(io::Error) -> UnpackError>(
        &self,
        entry: &Entry,
        archive: &mut Archive<R, E>,
        done: &mut dyn FnMut() -> u64,
        step: &mut Step<'_>,
    ) -> Result<File, ImageError> {
        let limit = self.options.limits.virtual_size;
        let what = Path::new(self.what);
        let failed = |source| qcow2_error(source, what, &self.work.spool);
        if entry.size > limit {
            let size = entry.size;
            return Err(failed(Qcow2Error::TooLarge { size, limit }));
        }
        let spool = self.create(&self.work.spool)?;
        let mut buffer = vec![0; CHUNK];
        while let Some((at, count)) = archive
            .read(entry, &mut buffer)
            .map_err(|error| self.unpack_error(error))?
        {
            convert::write_sparse(&spool, &buffer[..count], at)
                .map_err(|(_, source)| ImageError::io("write", &self.work.spool, source))?;
            step.at(done());
        }
        spool.set_len(entry.size).at("write", &self.work.spool)?;
        Ok(spool)
    }

    fn disk_in_tar(
        &self,
        spool: File,
        reporter: &mut dyn Reporter,
    ) -> Result<Imported, ImageError> {
        match format::detect(&spool).at("read", &self.work.spool)? {
            Format::Raw => {
                if self.work.nameless.is_none() {
                    let named = fs::rename(&self.work.spool, &self.work.raw);
                    named.at("rename", &self.work.spool)?;
                }
                let length = spool.metadata().at("read", &self.work.raw)?.len();
                let sums = self.sums(&spool)?;
                Ok(self.disk(spool, length, sums))
            }
            Format::Qcow2 => {
                let imported = self.qcow2(&spool, reporter)?;
                let _ = fs::remove_file(&self.work.spool);
                Ok(imported)
            }
            other => Err(self.refuse(other)),
        }
    }
}

/// Ends the making of the tree at `path`, and looks whether it is that of an OS. While it is written to the disk, its
/// checksums are taken where they are wanted. `what` is how the user knows it.
pub(crate) fn finish_tree(
    tree: Tree,
    path: &Path,
    what: &Path,
    summed: bool,
    cancel: &Cancel,
) -> Result<Imported, ImageError> {
    let failed = |source| unpack_error(what, path, source);
    check_tree(path).map_err(|missing| ImageError::NoTree {
        path: what.to_owned(),
        missing,
    })?;
    let written = tree.complete().map_err(failed)?;
    let content = thread::scope(|scope| {
        if !summed {
            return written.sync().map(|()| None).map_err(failed);
        }
        let sync = thread::Builder::new().spawn_scoped(scope, || written.sync());
        let content = Content::of_tree(path, cancel, &mut |_| {});
        match sync {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(_) => written.sync(),
        }
        .map_err(failed)?;
        content.map(Some)
    })?;
    Ok(Imported {
        kind: ImageKind::Tree,
        path: path.to_owned(),
        file: None,
        virtual_size: 0,
        content,
    })
}

/// Makes the right error of one of an archive's, which is unpacked to `tree`.
pub(crate) fn unpack_error(archive: &Path, tree: &Path, source: UnpackError) -> ImageError {
    match source {
        UnpackError::Cancelled => ImageError::Cancelled,
        // Where on this host, and not only where in the tree.
        UnpackError::Write { verb, path, source } if crate::error::is_full(&source) => {
            let path = tree.join(path);
            ImageError::NoSpace { verb, path }
        }
        source => ImageError::Unpack {
            path: archive.to_owned(),
            source,
        },
    }
}

/// Makes the right error of one of the engine's.
pub(crate) fn qcow2_error(source: Qcow2Error, image: &Path, output: &Path) -> ImageError {
    match source {
        Qcow2Error::Cancelled => ImageError::Cancelled,
        Qcow2Error::Write { source, .. } => ImageError::io("write", output, source),
        source => ImageError::Qcow2 {
            path: image.to_owned(),
            source,
        },
    }
}

/// Whether a folder holds an OS tree; else what is missing. Source: os-release(5), systemd-nspawn(1).
pub(crate) fn check_tree(path: &Path) -> Result<(), &'static str> {
    let exists = |name: &str| fs::symlink_metadata(path.join(name)).is_ok();
    if !exists("usr") {
        return Err("usr");
    }
    if !exists("etc/os-release") && !exists("usr/lib/os-release") {
        return Err("usr/lib/os-release");
    }
    Ok(())
}
