//! A peer whose every word is known beforehand, for a parser that runs in this process.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How often a reader finds nothing between two parts: enough for it to do all it can with what it has.
const PAUSES: u8 = 4;

/// Says its parts one after the other, and then that it has said all; keeps what it is told.
#[derive(Debug)]
pub(super) struct Script {
    /// Says nothing before it is told something.
    answers: bool,
    parts: VecDeque<Vec<u8>>,
    pauses: u8,
    told: Arc<Mutex<Vec<u8>>>,
}

impl Script {
    /// Of a client, and what it will have been told.
    pub(super) fn client(parts: &[&[u8]]) -> (Self, Arc<Mutex<Vec<u8>>>) {
        let told = Arc::default();
        (Self { answers: false, parts: owned(parts), pauses: 0, told: Arc::clone(&told) }, told)
    }

    /// Of a server, to whatever it is asked.
    pub(super) fn server(parts: &[&[u8]]) -> Self {
        Self { answers: true, parts: owned(parts), pauses: 0, told: Arc::default() }
    }
}

fn owned(parts: &[&[u8]]) -> VecDeque<Vec<u8>> {
    parts.iter().map(|part| part.to_vec()).collect()
}

impl AsyncRead for Script {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let early = self.answers && self.told.lock().unwrap().is_empty();
        if early || self.pauses > 0 {
            self.pauses = self.pauses.saturating_sub(1);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(part) = self.parts.front_mut() {
            let taken = part.len().min(buffer.remaining());
            buffer.put_slice(&part[..taken]);
            part.drain(..taken);
            if part.is_empty() {
                self.parts.pop_front();
                self.pauses = PAUSES;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.told.lock().unwrap().extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
