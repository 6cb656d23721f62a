//! Decompressing in a thread of its own, so that it overlaps with writing what comes out.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Scope};

/// Bytes handed over at once: few enough that the allocator keeps their memory.
const PIECE: usize = 64 << 10;
/// Pieces that wait to be read.
const QUEUE: usize = 16;

/// What a decoder in another thread has brought out so far.
struct Ahead {
    pieces: Receiver<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
    read: usize,
}

/// Reads `inner` ahead in a thread of `scope`, which ends when all was read or the answer is dropped; where no thread is
/// to be had, `inner` itself is the answer.
pub(super) fn ahead<'scope, 'env: 'scope>(
    inner: Box<dyn Read + Send + 'env>,
    scope: &'scope Scope<'scope, 'env>,
) -> Box<dyn Read + Send + 'scope> {
    let (sender, pieces) = sync_channel(QUEUE);
    // A thread that cannot be started takes what it was given with it, but for this.
    let kept = Arc::new(Mutex::new(Some(inner)));
    let taken = Arc::clone(&kept);
    let take = |slot: &Mutex<Option<_>>| slot.lock().unwrap_or_else(PoisonError::into_inner).take();
    let started = thread::Builder::new()
        .name("unpack".to_owned())
        .spawn_scoped(scope, move || {
            if let Some(inner) = take(&taken) {
                bring(inner, &sender);
            }
        });
    if started.is_err()
        && let Some(inner) = take(&kept)
    {
        return inner;
    }
    Box::new(Ahead {
        pieces,
        piece: Vec::new(),
        read: 0,
    })
}

fn bring(mut inner: Box<dyn Read + Send + '_>, sender: &SyncSender<io::Result<Vec<u8>>>) {
    loop {
        let mut piece = vec![0; PIECE];
        match inner.read(&mut piece) {
            Ok(0) => return,
            Ok(count) => {
                piece.truncate(count);
                if sender.send(Ok(piece)).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let _ = sender.send(Err(error)); // nobody may want to know any more
                return;
            }
        }
    }
}

impl Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.piece.len() {
            // Without a sender, all has come.
            let Ok(piece) = self.pieces.recv() else {
                return Ok(0);
            };
            self.piece = piece?;
            self.read = 0;
        }
        let count = buffer.len().min(self.piece.len() - self.read);
        buffer[..count].copy_from_slice(&self.piece[self.read..self.read + count]);
        self.read += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes in reads of odd lengths, and an error or an end behind them.
    struct Odd(usize, Option<io::ErrorKind>);

    impl Read for Odd {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = buffer.len().min(self.0).min(7919);
            if count == 0 {
                return self.1.map_or(Ok(0), |kind| Err(kind.into()));
            }
            for (index, byte) in buffer[..count].iter_mut().enumerate() {
                *byte = ((self.0 - index) % 251) as u8;
            }
            self.0 -= count;
            Ok(count)
        }
    }

    #[test]
    fn all_bytes_come_in_their_order_and_so_does_the_error() {
        let mut expected = Vec::new();
        Odd(3 << 20, None).read_to_end(&mut expected).unwrap();
        for error in [None, Some(io::ErrorKind::InvalidData)] {
            thread::scope(|scope| {
                let mut ahead = ahead(Box::new(Odd(3 << 20, error)), scope);
                let mut found = Vec::new();
                let result = ahead.read_to_end(&mut found);
                assert_eq!(result.err().map(|error| error.kind()), error);
                assert!(found == expected);
            });
        }
    }

    #[test]
    fn a_reader_that_wants_no_more_ends_the_thread() {
        thread::scope(|scope| {
            let mut ahead = ahead(Box::new(io::repeat(1)), scope);
            ahead.read_exact(&mut [0; 100]).unwrap();
        });
    }
}
