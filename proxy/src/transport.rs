//! A TCP connection, with TLS or without.

use std::{
    future::{Future, poll_fn},
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, RawFd},
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
};

use rustix::net::{RecvFlags, SendFlags};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf},
    net::TcpStream,
    task::unconstrained,
    time::{self, Duration},
};
use tokio_rustls::TlsStream;

#[derive(Debug)]
pub(crate) enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// What ALPN settled on.
    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol(),
        }
    }

    /// Whether the system holds nothing of the peer's for us, not even its end.
    pub(crate) fn is_silent(&self) -> bool {
        let tcp = match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(stream) => stream.get_ref().0,
        };
        let peeked = SockRef::from(tcp).peek(&mut [MaybeUninit::uninit()]);
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Closing it will tell the peer that what it got is not whole.
    pub(crate) fn reset_on_drop(&self) {
        let tcp = match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(stream) => stream.get_ref().0,
        };
        // Failing means that it is closed already.
        let _ = tcp.set_zero_linger();
    }

    pub(crate) fn fd(&self) -> RawFd {
        match self {
            Self::Plain(tcp) => tcp.as_raw_fd(),
            Self::Tls(stream) => stream.get_ref().0.as_raw_fd(),
        }
    }

    /// The socket, if nothing stands between it and us.
    pub(crate) fn plain(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(tcp) => Some(tcp),
            Self::Tls(_) => None,
        }
    }

    /// From another worker's runtime to this one's. `None`: it cannot be, as with TLS, which holds on to its socket.
    pub(crate) fn moved_here(self) -> Option<Self> {
        match self {
            Self::Plain(tcp) => TcpStream::from_std(tcp.into_std().ok()?).ok().map(Self::Plain),
            Self::Tls(_) => None,
        }
    }

    /// Whether the runtime has heard of nothing from the peer since the last read. Costs no system call while it has not.
    pub(crate) fn is_quiet(&mut self) -> bool {
        match self {
            Self::Plain(tcp) => {
                let peek = || SockRef::from(&*tcp).peek(&mut [MaybeUninit::uninit()]);
                matches!(tcp.try_io(Interest::READABLE, peek), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
            }
            Self::Tls(stream) => {
                let mut byte = [0];
                let mut byte = ReadBuf::new(&mut byte);
                // Unconstrained, or a task that has used its time up would find every connection quiet.
                let read = poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, &mut byte));
                pin!(unconstrained(read)).poll(&mut Context::from_waker(Waker::noop())).is_pending()
            }
        }
    }

    /// Sends a last word and closes so that the peer can read it: closing with unread bytes in the receive buffer would
    /// answer them with a reset, which overtakes what was sent. Bounded in bytes and time.
    pub(crate) async fn close_with(mut self, last_word: &[u8]) {
        // Boxed, or every connection would have room for it from its start.
        let farewell = Box::pin(async {
            self.write_all(last_word).await?;
            self.shutdown().await?;
            let mut heard = 0;
            poll_fn(|cx| {
                let mut room = [0; 4096];
                while heard < MOST_HEARD {
                    let mut rest = ReadBuf::new(&mut room);
                    ready!(Pin::new(&mut self).poll_read(cx, &mut rest))?;
                    if rest.filled().is_empty() {
                        break;
                    }
                    heard += rest.filled().len();
                }
                Poll::Ready(io::Result::Ok(()))
            })
            .await
        });
        // Whatever goes wrong now is the peer's loss: the connection ends either way.
        let _ = time::timeout(Duration::from_secs(1), farewell).await;
    }
}

/// Bytes that are read of a peer that was told goodbye.
const MOST_HEARD: usize = 256 * 1024;

/// As tokio's own, but for the system call, which it makes through the C library: that checks each time whether the thread
/// is being cancelled.
fn poll_receive(tcp: &TcpStream, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(tcp.poll_read_ready(cx))?;
        let mut part = None;
        let read = tcp.try_io(Interest::READABLE, || {
            let (_, read) = rustix::net::recv(tcp, &mut *room, RecvFlags::empty())?;
            drained(read, room.len(), &mut part)
        });
        if let Some(done) = settled(read, part) {
            return Poll::Ready(done);
        }
    }
}

fn poll_send(tcp: &TcpStream, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        let mut part = None;
        let sent = tcp.try_io(Interest::WRITABLE, || {
            let sent = rustix::net::send(tcp, bytes, SendFlags::NOSIGNAL)?;
            drained(sent, bytes.len(), &mut part)
        });
        if let Some(done) = settled(sent, part) {
            return Poll::Ready(done);
        }
    }
}

/// Fewer bytes than there was room for: the next call would find nothing, and the system will say when there is more. Told
/// as "would block", which is how the runtime learns that it must wait for that.
fn drained(moved: usize, room: usize, part: &mut Option<usize>) -> io::Result<usize> {
    if 0 < moved && moved < room {
        *part = Some(moved);
        return Err(io::ErrorKind::WouldBlock.into());
    }
    Ok(moved)
}

fn settled(moved: io::Result<usize>, part: Option<usize>) -> Option<io::Result<usize>> {
    match moved {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => part.map(Ok),
        moved => Some(moved),
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => {
                let read = ready!(poll_receive(tcp, cx, buf.initialize_unfilled()))?;
                buf.advance(read);
                Poll::Ready(Ok(()))
            }
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => poll_send(tcp, cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(tcp) => tcp.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
