//! The disk that an image file holds, whichever way it holds it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::qcow2::Qcow2;
use crate::source::ReadAt;

/// Bytes read from the image at once.
const PIECE: u64 = 64 << 10;
/// Pieces held at once: 16 MiB.
const MAX_PIECES: usize = 256;

/// A disk that is read here and there. What was read last is held, as a cluster is decompressed for each of its bytes.
pub(super) struct Disk {
    source: Source,
    size: u64,
    pieces: Mutex<HashMap<u64, Arc<[u8]>>>,
}

pub(super) enum Source {
    Raw(File),
    Qcow2(Box<Qcow2<File>>),
}

impl Disk {
    pub(super) fn new(source: Source) -> io::Result<Self> {
        let size = match &source {
            Source::Raw(file) => ReadAt::size(file)?,
            Source::Qcow2(image) => image.header().virtual_size,
        };
        Ok(Self {
            source,
            size,
            pieces: Mutex::default(),
        })
    }

    /// The file whose bytes are the disk's own, where they are.
    pub(super) fn raw(&self) -> Option<&File> {
        match &self.source {
            Source::Raw(file) => Some(file),
            Source::Qcow2(_) => None,
        }
    }

    fn piece(&self, number: u64) -> io::Result<Arc<[u8]>> {
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(piece) = pieces.get(&number) {
            return Ok(Arc::clone(piece));
        }
        let start = number * PIECE;
        let mut bytes = vec![0; PIECE.min(self.size - start) as usize];
        match &self.source {
            Source::Raw(file) => ReadAt::read_exact_at(file, &mut bytes, start)?,
            Source::Qcow2(image) => image.reader().read_exact_at(&mut bytes, start)?,
        }
        if pieces.len() >= MAX_PIECES {
            pieces.clear();
        }
        let piece: Arc<[u8]> = bytes.into();
        pieces.insert(number, Arc::clone(&piece));
        Ok(piece)
    }
}

impl ReadAt for Disk {
    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset.saturating_add(done as u64);
            if at >= self.size {
                break;
            }
            let piece = self.piece(at / PIECE)?;
            let from = &piece[(at % PIECE) as usize..];
            let count = from.len().min(buffer.len() - done);
            buffer[done..done + count].copy_from_slice(&from[..count]);
            done += count;
        }
        Ok(done)
    }
}
