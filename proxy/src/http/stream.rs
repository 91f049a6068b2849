//! A client connection as Pingora sees it: all of it for HTTP/2, one request of it for HTTP/1.
//!
//! An HTTP/1 request's head has been read and checked before Pingora sees a byte. It gets exactly that request: what
//! follows (a pipelined one) stays here.

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
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::{self, Sleep},
};
use tokio_util::io::poll_read_buf;

use super::Connection;
use crate::{
    drain::LAME_DUCK,
    transport::Transport,
    wire::http1::{BodyLength, Head},
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

    /// A connection of which something was read already: a request, whose head is checked, or the preface of HTTP/2.
    pub(super) fn resume(
        transport: Transport,
        read: BytesMut,
        head: Option<&Head>,
        connection: Arc<Connection>,
    ) -> Box<Self> {
        let mut stream = Self::new(transport, connection);
        stream.buffer = read;
        if let Some(head) = head {
            stream.window = match head.body {
                BodyLength::None => Window::Bytes(head.length as u64),
                BodyLength::Length(length) => Window::Bytes((head.length as u64).saturating_add(length)),
                BodyLength::Upgrade => Window::Upgrade(head.length as u64),
                BodyLength::Chunked => Window::Open,
            };
        }
        stream
    }

    /// The connection, and what was read of it and not used.
    pub(super) fn into_parts(self) -> (Transport, BytesMut) {
        (self.transport, self.buffer)
    }

    /// From here on everything belongs to the engine.
    pub(super) fn open(&mut self) {
        self.window = Window::Open;
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
