//! A client connection as the HTTP/1 engine sees it: one request at a time.
//!
//! The head is read and checked here before the engine sees a byte, so that there is one deadline for all of it. The
//! engine then gets exactly the request: what follows it (a pipelined request) stays here for the next round.

use std::{
    cmp, fmt, io,
    mem::MaybeUninit,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    UniqueIDType, raw_connect::ProxyDigest,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    select,
    time::{self, Duration, Instant, Sleep},
};
use tokio_util::io::poll_read_buf;

use super::Connection;
use crate::{
    drain::{Drain, LAME_DUCK},
    transport::Transport,
    wire::http1::{BodyLength, Head, Rejection, Scan, scan},
};

/// How many bytes of following requests are taken while one is being served. More stay in the socket.
const READ_AHEAD: usize = 16 * 1024;

/// Room for one read of a head; most heads need no second.
const HEAD_ROOM: usize = 2 * 1024;

pub(super) struct RequestStream {
    transport: Transport,
    /// Read and not handed to the engine yet.
    buffer: BytesMut,
    window: Window,
    /// What of it the engine is to know, made once: a digest is asked for with every request.
    digest: Arc<ProxyDigest>,
    connection: Arc<Connection>,
    farewell: Option<Farewell>,
}

/// How much longer, and how often, what a client still sends is read and dropped after our last word.
struct Farewell {
    over: Pin<Box<Sleep>>,
    reads: u8,
}

/// How much of what comes belongs to the current request.
#[derive(Clone, Copy, Debug)]
enum Window {
    Bytes(u64),
    /// Nothing until the engine has seen the arm agree (101): what comes before is not for the arm's HTTP parser.
    Upgrade(u64),
    /// Its end is only known to the engine: a chunked body, an open tunnel, HTTP/2.
    Open,
}

/// What came of waiting for a request.
pub(super) enum Next {
    /// At the front of the stream, checked.
    Head(Head),
    /// The preface of HTTP/2 is at the front of the stream.
    Http2,
    Rejected(Rejection),
    /// A head was begun and not finished in time.
    Overdue,
    /// The client has gone, or was silent for too long.
    Closed,
}

impl RequestStream {
    pub(super) fn new(transport: Transport, connection: Arc<Connection>) -> Box<Self> {
        let digest = connection.digest();
        Box::new(Self {
            transport,
            buffer: BytesMut::new(),
            window: Window::Bytes(0),
            digest,
            connection,
            farewell: None,
        })
    }

    /// Waits for the next request's head. `idle`: for its first byte; `whole`: from the first byte to the last.
    pub(super) async fn next_head(&mut self, idle: Duration, whole: Duration, drain: &mut Drain) -> Next {
        let mut scanned = 0;
        let mut deadline = Instant::now() + if self.buffer.is_empty() { idle } else { whole };
        let mut lame = false;
        loop {
            if !self.buffer.is_empty() {
                match scan(&self.buffer, scanned) {
                    Scan::Incomplete { scanned: so_far } => scanned = so_far,
                    Scan::Http2Preface => return Next::Http2,
                    Scan::Rejected(rejection) => return Next::Rejected(rejection),
                    Scan::Head(head) => {
                        self.window = match head.body {
                            BodyLength::None => Window::Bytes(head.length as u64),
                            BodyLength::Length(length) => Window::Bytes((head.length as u64).saturating_add(length)),
                            BodyLength::Upgrade => Window::Upgrade(head.length as u64),
                            BodyLength::Chunked => Window::Open,
                        };
                        return Next::Head(head);
                    }
                }
            }
            let begun = !self.buffer.is_empty();
            self.buffer.reserve(HEAD_ROOM);
            select! {
                read = self.transport.read_buf(&mut self.buffer) => match read {
                    Ok(0) | Err(_) => return Next::Closed,
                    Ok(_) if !begun => deadline = Instant::now() + whole,
                    Ok(_) => {}
                },
                () = time::sleep_until(deadline) => return if begun { Next::Overdue } else { Next::Closed },
                end = drain.begins(), if !begun && !lame => {
                    lame = true;
                    deadline = cmp::min(deadline, end.idle_until(Instant::now()));
                }
            }
        }
    }

    /// From here on everything belongs to the engine.
    pub(super) fn open(&mut self) {
        self.window = Window::Open;
    }

    pub(super) async fn close_with(self: Box<Self>, last_word: &[u8]) {
        self.transport.close_with(last_word).await;
    }

    fn take(&mut self, taken: u64) {
        if let Window::Bytes(left) | Window::Upgrade(left) = &mut self.window {
            *left -= taken;
        }
    }

    /// The engine has all of its request and listens for the client's end. What comes meanwhile is the next request.
    fn poll_beyond(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.buffer.len() < READ_AHEAD {
            self.buffer.reserve(HEAD_ROOM);
            if ready!(poll_read_buf(Pin::new(&mut self.transport), cx, &mut self.buffer))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        Poll::Pending
    }
}

impl AsyncRead for RequestStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let room = match this.window {
            Window::Upgrade(0) if this.connection.tunnel.load(Ordering::Relaxed) => {
                this.window = Window::Open;
                out.remaining()
            }
            Window::Bytes(0) | Window::Upgrade(0) => return this.poll_beyond(cx),
            Window::Bytes(left) | Window::Upgrade(left) => cmp::min(left, out.remaining() as u64) as usize,
            Window::Open => out.remaining(),
        };
        if this.buffer.is_empty() {
            if room == out.remaining() {
                // The common case of a long body: straight into the engine's buffer.
                let before = out.filled().len();
                ready!(Pin::new(&mut this.transport).poll_read(cx, out))?;
                this.take((out.filled().len() - before) as u64);
                return Poll::Ready(Ok(()));
            }
            this.buffer.reserve(cmp::min(room, READ_AHEAD));
            ready!(poll_read_buf(Pin::new(&mut this.transport), cx, &mut this.buffer))?;
        }
        let taken = cmp::min(room, this.buffer.len());
        out.put_slice(&this.buffer[..taken]);
        this.buffer.advance(taken);
        this.take(taken as u64);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for RequestStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().transport).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().transport).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_flush(cx)
    }

    /// Also reads on for a while where a client may speak up after our last word: in HTTP/2 it makes room or answers a ping,
    /// in HTTP/1 it has pipelined a request or still sends a body. Closing on that would reset the connection and could
    /// cost it the end of an answer, as [`Transport::close_with`] says.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let farewell = match &mut this.farewell {
            Some(farewell) => farewell,
            none => {
                ready!(Pin::new(&mut this.transport).poll_shutdown(cx))?;
                if this.buffer.is_empty() && matches!(this.window, Window::Bytes(0)) {
                    return Poll::Ready(Ok(()));
                }
                none.insert(Farewell { over: Box::pin(time::sleep(LAME_DUCK)), reads: 64 })
            }
        };
        while farewell.reads > 0 && farewell.over.as_mut().poll(cx).is_pending() {
            let mut dropped = [MaybeUninit::uninit(); 4096];
            let mut dropped = ReadBuf::uninit(&mut dropped);
            let read = ready!(Pin::new(&mut this.transport).poll_read(cx, &mut dropped));
            if read.is_err() || dropped.filled().is_empty() {
                break;
            }
            farewell.reads -= 1;
        }
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for RequestStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestStream").field("window", &self.window).finish_non_exhaustive()
    }
}

#[async_trait]
impl Shutdown for RequestStream {
    async fn shutdown(&mut self) {
        // The connection ends either way.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for RequestStream {
    fn id(&self) -> UniqueIDType {
        self.transport.fd()
    }
}

// ALPN has been looked at before the engine gets the stream, and the rest of TLS is no business of the engine's.
impl Ssl for RequestStream {}

impl Peek for RequestStream {}

impl GetTimingDigest for RequestStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for RequestStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(Arc::clone(&self.digest))
    }
}

impl GetSocketDigest for RequestStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }
}
