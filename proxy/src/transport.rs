//! A TCP connection, with TLS or without.

use std::{
    future::{Future, poll_fn},
    io,
    mem::{self, MaybeUninit},
    net::{Shutdown, TcpStream as StdStream},
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
};

use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags},
};
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
    Plain(Socket),
    Tls(Box<TlsStream<TcpStream>>),
}

/// One that we made.
impl From<TcpStream> for Transport {
    fn from(tcp: TcpStream) -> Self {
        Self::Plain(Socket::Watched(tcp))
    }
}

/// A plain socket. The runtime watches one that was accepted only when somebody has to wait for it: a connection that
/// brings its request with it, gets its answer at once and ends costs the two system calls less that watching takes.
#[derive(Debug)]
pub(crate) enum Socket {
    /// Accepted, and not read from yet.
    Fresh(StdStream),
    /// Read from once. Not more often: reading from what is watched counts as work, of which a task has only so much before
    /// others have their turn.
    Heard(StdStream),
    Watched(TcpStream),
    /// The system has no memory left to watch it with.
    Lost,
}

impl Socket {
    /// Has the runtime watch it from now on. Errors: it cannot, and the connection is lost.
    fn watched(&mut self) -> io::Result<&mut TcpStream> {
        if !matches!(self, Self::Watched(_)) {
            *self = match mem::replace(self, Self::Lost) {
                Self::Fresh(tcp) | Self::Heard(tcp) => Self::Watched(TcpStream::from_std(tcp)?),
                other => other,
            };
        }
        match self {
            Self::Watched(tcp) => Ok(tcp),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// The system's. `None`: see [`Self::Lost`].
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Fresh(tcp) | Self::Heard(tcp) => Some(tcp.as_fd()),
            Self::Watched(tcp) => Some(tcp.as_fd()),
            Self::Lost => None,
        }
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        if let Self::Fresh(tcp) = self {
            match rustix::net::recv(&*tcp, &mut *room, RecvFlags::empty()) {
                Err(Errno::AGAIN) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
                Ok((_, read)) => {
                    if let Self::Fresh(tcp) = mem::replace(self, Self::Lost) {
                        *self = Self::Heard(tcp);
                    }
                    return Poll::Ready(Ok(read));
                }
            }
        }
        poll_receive(self.watched()?, cx, room)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Self::Fresh(tcp) | Self::Heard(tcp) = self {
            match rustix::net::send(&*tcp, bytes, SendFlags::NOSIGNAL) {
                Err(Errno::AGAIN) => {}
                sent => return Poll::Ready(sent.map_err(io::Error::from)),
            }
        }
        poll_send(self.watched()?, cx, bytes)
    }
}

/// Nothing of the peer's, not even its end.
fn holds_nothing(socket: BorrowedFd<'_>) -> bool {
    peek(socket).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// 1: there is something to read; 0: the peer's end.
fn peek(socket: BorrowedFd<'_>) -> io::Result<usize> {
    SockRef::from(&socket).peek(&mut [MaybeUninit::uninit()])
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
        self.socket().is_some_and(holds_nothing)
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Plain(socket) => socket.fd(),
            Self::Tls(stream) => Some(stream.get_ref().0.as_fd()),
        }
    }

    /// Closing it will tell the peer that what it got is not whole.
    pub(crate) fn reset_on_drop(&self) {
        if let Some(socket) = self.socket() {
            // Failing means that it is closed already.
            let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
        }
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.socket().map_or(-1, |socket| socket.as_raw_fd())
    }

    /// The socket, if nothing stands between it and us.
    pub(crate) fn plain(&mut self) -> Option<&TcpStream> {
        match self {
            Self::Plain(socket) => socket.watched().ok().map(|tcp| &*tcp),
            Self::Tls(_) => None,
        }
    }

    /// From another worker's runtime to this one's. `None`: it cannot be, as with TLS, which holds on to its socket.
    pub(crate) fn moved_here(self) -> Option<Self> {
        match self {
            Self::Plain(Socket::Watched(tcp)) => {
                let tcp = TcpStream::from_std(tcp.into_std().ok()?).ok()?;
                Some(Self::Plain(Socket::Watched(tcp)))
            }
            Self::Plain(_) | Self::Tls(_) => None,
        }
    }

    /// Whether the runtime has heard of nothing from the peer since the last read. Costs no system call while it has not.
    pub(crate) fn is_quiet(&mut self) -> bool {
        match self {
            Self::Plain(Socket::Watched(tcp)) => {
                let peeked = tcp.try_io(Interest::READABLE, || peek(tcp.as_fd()));
                peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            }
            Self::Plain(socket) => socket.fd().is_some_and(holds_nothing),
            Self::Tls(stream) => {
                let mut byte = [0];
                let mut byte = ReadBuf::new(&mut byte);
                // Unconstrained, or a task that has used its time up would find every connection quiet.
                let read = poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, &mut byte));
                pin!(unconstrained(read)).poll(&mut Context::from_waker(Waker::noop())).is_pending()
            }
        }
    }

    /// Whether there are bytes of the peer's that nobody has read. Where the runtime watches, as far as it has heard.
    pub(crate) fn holds_unread(&mut self) -> bool {
        match self {
            Self::Plain(Socket::Watched(tcp)) => {
                tcp.try_io(Interest::READABLE, || peek(tcp.as_fd())).is_ok_and(|bytes| bytes > 0)
            }
            Self::Plain(socket) => socket.fd().is_some_and(|socket| peek(socket).is_ok_and(|bytes| bytes > 0)),
            Self::Tls(_) => !self.is_quiet(),
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
            Self::Plain(socket) => {
                let read = ready!(socket.poll_receive(cx, buf.initialize_unfilled()))?;
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
            Self::Plain(socket) => socket.poll_send(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket.watched()?).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(_) => true,
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(Socket::Fresh(tcp) | Socket::Heard(tcp)) => match tcp.shutdown(Shutdown::Write) {
                // The peer has closed already, or reset.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
                shut => Poll::Ready(shut),
            },
            Self::Plain(Socket::Watched(tcp)) => Pin::new(tcp).poll_shutdown(cx),
            Self::Plain(Socket::Lost) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
