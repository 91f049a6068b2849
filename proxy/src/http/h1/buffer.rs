//! Buffers that belong to a worker and are lent to a connection while it has bytes to hold: one that is idle has none.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

/// Room of a buffer, in bytes: what one read takes at most.
const ROOM: usize = 16 * 1024;
/// Buffers a worker keeps for the next taker; more are given back to the system: 4 MiB.
const KEPT: usize = 256;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes that were read and not used up.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    /// Empty: none is held.
    room: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.room[self.start..self.end]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Adds bytes that were read elsewhere.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            let mut room = vec![0; ROOM.max(self.len() + bytes.len())].into_boxed_slice();
            room[..self.len()].copy_from_slice(self.bytes());
            room[self.len()..self.len() + bytes.len()].copy_from_slice(bytes);
            (self.start, self.end) = (0, self.len() + bytes.len());
            self.room = room;
        }
    }

    /// The first `count` bytes are done with.
    pub(super) fn advance(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Gives the room back if nothing is in it.
    pub(super) fn release(&mut self) {
        if self.is_empty() {
            give(std::mem::take(&mut self.room));
        }
    }

    /// Adds what `reader` has; takes room when there is something to read, and gives it back when there is not. 0: the
    /// end. Room grows up to `limit` bytes for what cannot be used before it is whole.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut (impl AsyncRead + Unpin),
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        if self.room.is_empty() {
            self.room = FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; ROOM].into_boxed_slice());
        }
        if self.end == self.room.len() {
            if self.start == 0 && self.room.len() >= limit.max(ROOM) {
                return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
            }
            self.make_room(limit);
        }
        let mut free = ReadBuf::new(&mut self.room[self.end..]);
        match Pin::new(reader).poll_read(cx, &mut free) {
            Poll::Ready(Ok(())) => {
                let read = free.filled().len();
                self.end += read;
                Poll::Ready(Ok(read))
            }
            waiting => {
                self.release();
                ready!(waiting)?;
                unreachable!("only Pending and errors come here")
            }
        }
    }

    fn make_room(&mut self, limit: usize) {
        if self.start > 0 {
            self.room.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        } else {
            let mut larger = vec![0; (self.room.len() * 2).min(limit.max(self.room.len() + 1))].into_boxed_slice();
            larger[..self.end].copy_from_slice(&self.room[..self.end]);
            self.room = larger;
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        give(std::mem::take(&mut self.room));
    }
}

fn give(room: Box<[u8]>) {
    if room.len() == ROOM {
        // A thread that ends has no pool any more.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(room);
            }
        });
    }
}
