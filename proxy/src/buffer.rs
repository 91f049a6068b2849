//! Buffers that belong to a worker and are lent to a connection while it has bytes to hold: one that is idle has none.

use std::{
    cell::RefCell,
    io,
    ops::{Deref, DerefMut},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

/// Room of a buffer, in bytes: what one read takes at most.
pub(crate) const ROOM: usize = 16 * 1024;
/// Buffers a worker keeps for the next taker; more are given back to the system: 4 MiB.
const KEPT: usize = 256;
/// Bytes lent by a worker beyond which it takes no new connections and requests. Those under way go on: were they to wait
/// for each other's buffers, they would wait for ever.
const MANY_LENT: usize = 256 << 20;
/// Room for a head that is being written, and how many such a worker keeps.
const SCRATCH: usize = 2 * 1024;
const SCRATCHES_KEPT: usize = 256;

thread_local! {
    static LENDER: RefCell<Lender> = const { RefCell::new(Lender::new()) };
}

/// What a worker has to lend.
struct Lender {
    free: Vec<Box<[u8]>>,
    scratches: Vec<Vec<u8>>,
    lent: usize,
}

impl Lender {
    const fn new() -> Self {
        Self { free: Vec::new(), scratches: Vec::new(), lent: 0 }
    }

    fn lend(&mut self) -> Box<[u8]> {
        self.lent += ROOM;
        self.free.pop().unwrap_or_else(|| vec![0; ROOM].into_boxed_slice())
    }

    fn take_back(&mut self, room: Box<[u8]>) {
        self.lent -= room.len();
        if room.len() == ROOM && self.free.len() < KEPT {
            self.free.push(room);
        }
    }
}

/// Whether so much is lent that nothing new should begin.
pub(crate) fn is_short() -> bool {
    LENDER.with_borrow(|lender| lender.lent > MANY_LENT)
}

/// Bytes that were read and not used up.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    /// Empty: none is held.
    room: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.room[self.start..self.end]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Adds bytes that were read elsewhere.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            let mut larger = vec![0; ROOM.max(self.len() + bytes.len())].into_boxed_slice();
            larger[..self.len()].copy_from_slice(self.bytes());
            larger[self.len()..self.len() + bytes.len()].copy_from_slice(bytes);
            let end = self.len() + bytes.len();
            self.replace(larger, end);
        }
    }

    /// The first `count` bytes are done with.
    pub(crate) fn advance(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Gives the room back if nothing is in it.
    pub(crate) fn release(&mut self) {
        if self.is_empty() {
            give(std::mem::take(&mut self.room));
        }
    }

    /// Adds what `reader` has; takes room when there is something to read, and gives it back when there is not. 0: the
    /// end. Room grows up to `limit` bytes for what cannot be used before it is whole.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut (impl AsyncRead + Unpin),
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        if self.room.is_empty() {
            self.room = LENDER.with_borrow_mut(Lender::lend);
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
                if read == 0 {
                    self.release();
                }
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
            self.replace(larger, self.end);
        }
    }

    /// Room that was not lent, but counts as if it were.
    fn replace(&mut self, larger: Box<[u8]>, end: usize) {
        LENDER.with_borrow_mut(|lender| lender.lent += larger.len());
        give(std::mem::replace(&mut self.room, larger));
        (self.start, self.end) = (0, end);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        give(std::mem::take(&mut self.room));
    }
}

fn give(room: Box<[u8]>) {
    if !room.is_empty() {
        // A thread that ends has no lender any more.
        let _ = LENDER.try_with(|lender| lender.borrow_mut().take_back(room));
    }
}

/// A lent place to put a head together in.
#[derive(Debug)]
pub(crate) struct Scratch(Vec<u8>);

impl Scratch {
    pub(crate) fn take() -> Self {
        let scratch = LENDER.with_borrow_mut(|lender| lender.scratches.pop());
        Self(scratch.unwrap_or_else(|| Vec::with_capacity(SCRATCH)))
    }
}

impl Deref for Scratch {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut scratch = std::mem::take(&mut self.0);
        // What a large head made of it is not kept.
        if scratch.capacity() <= 2 * SCRATCH {
            scratch.clear();
            let _ = LENDER.try_with(|lender| {
                let scratches = &mut lender.borrow_mut().scratches;
                if scratches.len() < SCRATCHES_KEPT {
                    scratches.push(scratch);
                }
            });
        }
    }
}

/// By this thread, in bytes.
#[cfg(test)]
pub(crate) fn lent() -> usize {
    LENDER.with_borrow(|lender| lender.lent)
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn room_is_held_only_while_there_are_bytes_in_it_and_grows_to_its_limit() {
        let mut cx = Context::from_waker(Waker::noop());
        let mut buffer = Buffer::default();
        let mut endless = tokio::io::repeat(7);
        let mut filled = 0;
        while let Poll::Ready(Ok(read)) = buffer.poll_fill(&mut cx, &mut endless, 4 * ROOM) {
            filled += read;
        }
        assert_eq!((filled, buffer.len(), lent()), (4 * ROOM, 4 * ROOM, 4 * ROOM));
        buffer.advance(4 * ROOM - 1);
        buffer.release();
        assert_eq!((buffer.bytes(), lent()), (&[7][..], 4 * ROOM));
        buffer.advance(1);
        buffer.release();
        assert_eq!(lent(), 0);
        buffer.put(b"abc");
        buffer.put(b"de");
        assert_eq!((buffer.bytes(), lent()), (&b"abcde"[..], ROOM));
        drop(buffer);
        assert_eq!(lent(), 0);
    }

    #[test]
    fn nothing_new_begins_while_very_much_is_lent_and_what_is_under_way_goes_on() {
        let mut cx = Context::from_waker(Waker::noop());
        LENDER.with_borrow_mut(|lender| lender.lent = MANY_LENT);
        assert!(!is_short());
        let mut buffer = Buffer::default();
        assert!(buffer.poll_fill(&mut cx, &mut &b"x"[..], ROOM).is_ready() && is_short());
        drop(buffer);
        assert!(!is_short());
    }
}
