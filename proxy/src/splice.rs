//! Bytes that go from one socket to another without coming to us: the system moves them through a pipe (`splice(2)`).
//!
//! Worth its calls where much is to come at once; for a small message a copy is cheaper.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::OwnedFd,
    task::{Context, Poll, ready},
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice},
};
use tokio::{io::Interest, net::TcpStream};

/// What a pipe holds, in bytes, where the system lets us have so much; else what it gives by itself, 64 KiB.
const ROOM: usize = 256 * 1024;
/// Less is not worth it: unprivileged users get that little beyond a number of pipes.
const LEAST: usize = 64 * 1024;
/// Pipes of a worker. Whoever comes when all are taken copies.
const MOST: usize = 32;
/// Descriptors that a worker's pipes take at most.
pub(crate) const DESCRIPTORS: usize = 2 * MOST;

thread_local! {
    static FREE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
    static OPEN: Cell<usize> = const { Cell::new(0) };
    /// The system does not do it here: a sandbox, perhaps.
    static REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// A pipe of this worker's.
#[derive(Debug)]
struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    room: usize,
}

/// Bytes under way from one socket to another; holds a pipe only while there are some.
#[derive(Debug, Default)]
pub(crate) struct Splice {
    pipe: Option<Pipe>,
    held: usize,
}

/// Which side failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Broke {
    Reader,
    Writer,
}

impl Splice {
    /// Whether there are bytes that the writer did not take yet.
    pub(crate) fn is_blocked(&self) -> bool {
        self.held > 0
    }

    /// Moves up to `limit` bytes, in one go. `moved`: grows by what the writer takes, also when it does not take all. Ready
    /// when all that was read is written: how much that was, 0 at the reader's end. `None`: all pipes are taken, there are
    /// no descriptors left, or the system does not do it.
    pub(crate) fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        reader: &TcpStream,
        writer: &TcpStream,
        limit: u64,
        moved: &mut u64,
    ) -> Poll<Result<Option<usize>, Broke>> {
        const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);
        if self.held == 0 {
            loop {
                ready!(reader.poll_read_ready(cx)).map_err(|_| Broke::Reader)?;
                let Some(pipe) = take() else { return Poll::Ready(Ok(None)) };
                let most = usize::try_from(limit).unwrap_or(usize::MAX).min(pipe.room);
                let read = || Ok(splice(reader, None, &pipe.into, None, most, FLAGS)?);
                match reader.try_io(Interest::READABLE, read) {
                    Ok(0) => {
                        give(pipe);
                        return Poll::Ready(Ok(Some(0)));
                    }
                    Ok(read) => {
                        (self.pipe, self.held) = (Some(pipe), read);
                        break;
                    }
                    Err(error) => {
                        give(pipe);
                        match error.raw_os_error().map(Errno::from_raw_os_error) {
                            _ if error.kind() == io::ErrorKind::WouldBlock => {}
                            Some(Errno::INVAL | Errno::NOSYS | Errno::PERM | Errno::NOMEM) => {
                                REFUSED.set(true);
                                return Poll::Ready(Ok(None));
                            }
                            _ => return Poll::Ready(Err(Broke::Reader)),
                        }
                    }
                }
            }
        }
        let before = *moved;
        while let Some(pipe) = &self.pipe {
            ready!(writer.poll_write_ready(cx)).map_err(|_| Broke::Writer)?;
            let write = || Ok(splice(&pipe.out, None, writer, None, self.held, FLAGS)?);
            match writer.try_io(Interest::WRITABLE, write) {
                Ok(0) => return Poll::Ready(Err(Broke::Writer)),
                Ok(written) => {
                    self.held -= written;
                    *moved += written as u64;
                    if self.held == 0 {
                        self.pipe.take().into_iter().for_each(give);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(Err(Broke::Writer)),
            }
        }
        Poll::Ready(Ok(Some((*moved - before) as usize)))
    }
}

impl Drop for Splice {
    fn drop(&mut self) {
        // What is still in it is for nobody else.
        if self.pipe.take().is_some() {
            let _ = OPEN.try_with(|open| open.set(open.get() - 1));
        }
    }
}

fn take() -> Option<Pipe> {
    FREE.with_borrow_mut(Vec::pop).or_else(|| {
        if OPEN.get() == MOST || REFUSED.get() {
            return None;
        }
        let (out, into) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).ok()?;
        let room = fcntl_setpipe_size(&into, ROOM).or_else(|_| fcntl_getpipe_size(&into)).ok()?;
        if room < LEAST {
            return None;
        }
        OPEN.set(OPEN.get() + 1);
        Some(Pipe { out, into, room })
    })
}

fn give(pipe: Pipe) {
    // A thread that ends keeps nothing.
    let _ = FREE.try_with(|free| free.borrow_mut().push(pipe));
}
