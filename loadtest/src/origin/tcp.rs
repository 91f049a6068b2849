//! A TCP origin that waits for the client to speak and answers line by line: `<label>:<line>`.
//!
//! When the client closes its sending half, the origin says `<label>:bye` and closes: whoever reads that line knows
//! that the half-close came through and that nothing before it was cut off.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use super::{ListenError, serving::Serving};

/// The longest line, its newline included, in bytes. A longer one is answered in pieces of this length.
const LINE: u64 = 64 * 1024;

/// A running TCP origin. Dropping it stops it, without waiting.
#[derive(Debug)]
pub struct TcpOrigin {
    serving: Serving,
    seen: Arc<TcpSeen>,
}

/// What a TCP origin saw since it was started.
#[derive(Debug, Default)]
pub struct TcpSeen {
    connections: AtomicU64,
    open: AtomicU64,
    lines: AtomicU64,
    byes: AtomicU64,
}

impl TcpOrigin {
    /// Starts an origin. `label`: the start of every line it sends. `address`: port 0 picks a free one, see
    /// [`address`](Self::address). Errors: the address cannot be listened on. Needs a running tokio runtime.
    pub async fn start(label: impl Into<String>, address: SocketAddr) -> Result<Self, ListenError> {
        let label: Arc<str> = label.into().into();
        let seen = Arc::new(TcpSeen::default());
        let counted = Arc::clone(&seen);
        let serving = Serving::start(address, move |stream, _| {
            let (label, seen) = (Arc::clone(&label), Arc::clone(&counted));
            async move {
                let _open = seen.connection();
                if let Err(error) = converse(stream, &label, &seen).await {
                    tracing::debug!(%error, "Connection ended early");
                }
            }
        })
        .await?;
        Ok(Self { serving, seen })
    }

    /// Where it listens, the port filled in.
    pub fn address(&self) -> SocketAddr {
        self.serving.address()
    }

    /// What it saw so far.
    pub fn seen(&self) -> &Arc<TcpSeen> {
        &self.seen
    }

    /// Closes the listener, and returns once connecting is refused. Open connections are served on.
    pub async fn stop_listening(&self) {
        self.serving.stop_listening().await;
    }

    /// Closes the listener and every connection, and returns once they are closed. The port can be listened on again
    /// at once.
    pub async fn stop(&self) {
        self.serving.stop().await;
    }
}

impl TcpSeen {
    /// Connections accepted.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Connections open now.
    pub fn open_connections(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Lines received.
    pub fn lines(&self) -> u64 {
        self.lines.load(Ordering::Relaxed)
    }

    /// Connections that ended as they should: the client closed its sending half, and `bye` was sent.
    pub fn byes(&self) -> u64 {
        self.byes.load(Ordering::Relaxed)
    }

    fn connection(&self) -> OpenConnection<'_> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        OpenConnection(self)
    }
}

/// Counts a connection as open while it lives.
struct OpenConnection<'a>(&'a TcpSeen);

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn converse(mut stream: TcpStream, label: &str, seen: &TcpSeen) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    let mut answer = Vec::new();
    loop {
        answer.clear();
        answer.extend_from_slice(label.as_bytes());
        answer.push(b':');
        if (&mut read).take(LINE).read_until(b'\n', &mut answer).await? == 0 {
            break;
        }
        seen.lines.fetch_add(1, Ordering::Relaxed);
        if answer.last() != Some(&b'\n') {
            answer.push(b'\n');
        }
        write.write_all(&answer).await?;
    }
    write.write_all(format!("{label}:bye\n").as_bytes()).await?;
    seen.byes.fetch_add(1, Ordering::Relaxed);
    write.shutdown().await
}
