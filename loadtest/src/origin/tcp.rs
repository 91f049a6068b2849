//! A TCP origin that waits for the client to speak and answers line by line: `<label>:<line>`.
//!
//! When the client closes its sending half, the origin says `<label>:bye` and closes: whoever reads that line knows
//! that the half-close came through and that nothing before it was cut off.
//!
//! A line that begins with an id, `<id> <key> `, is written to the ledger when there is one.

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
    time::{self, Instant},
};

use super::{
    Behaviour, BehaviourHandle, ListenError, Listener, RESET_DELAY,
    account::Account,
    serving::{Serving, Tasks},
};
use crate::{ledger::Ledger, load::KeyPlace};

/// The longest line, its newline included, in bytes. A longer one is answered in pieces of this length.
const LINE: u64 = 64 * 1024;

/// A running TCP origin. Dropping it stops it, without waiting.
#[derive(Debug)]
pub struct TcpOrigin {
    serving: Serving,
    behaviour: BehaviourHandle,
    seen: Arc<TcpSeen>,
    account: Arc<Account>,
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
        Ok(Self::serve(label, Listener::bind(address).await?, Behaviour::default(), None))
    }

    /// Serves what is listened on. `label` as for [`start`](Self::start). `behaviour`: until it is changed. `ledger`: as
    /// for [`record`](Self::record).
    pub fn serve(label: impl Into<String>, listener: Listener, behaviour: Behaviour, ledger: Option<&Ledger>) -> Self {
        let behaviour = BehaviourHandle::new(behaviour);
        let seen = Arc::new(TcpSeen::default());
        // Lines have their key in them.
        let account = Account::new(KeyPlace::ClientIp);
        let origin = Arc::new(Origin {
            label: label.into(),
            behaviour: behaviour.clone(),
            seen: Arc::clone(&seen),
            account: Arc::clone(&account),
        });
        // Before the first connection is accepted, so that the account has every line.
        let record = |tasks: &Tasks| ledger.into_iter().for_each(|ledger| account.open(ledger, tasks));
        let serving = Serving::start(listener, record, move |stream, _| {
            let origin = Arc::clone(&origin);
            async move {
                let _open = origin.seen.connection();
                if let Err(error) = origin.converse(stream).await {
                    tracing::debug!(%error, "Connection ended early");
                }
            }
        });
        Self { serving, behaviour, seen, account }
    }

    /// Where it listens, the port filled in.
    pub fn address(&self) -> SocketAddr {
        self.serving.address()
    }

    /// Changes how it answers, from now on.
    pub fn behaviour(&self) -> &BehaviourHandle {
        &self.behaviour
    }

    /// What it saw so far.
    pub fn seen(&self) -> &Arc<TcpSeen> {
        &self.seen
    }

    /// Writes every line that begins with an id to `ledger` from now on, when it has come in, whatever it is answered.
    /// The ledger can be closed once the origin is stopped or dropped. Needs a running tokio runtime.
    pub fn record(&self, ledger: &Ledger) {
        self.account.open(ledger, self.serving.tasks());
    }

    /// Closes the listener, and returns once connecting is refused. Open connections are served on.
    pub async fn stop_listening(&self) {
        self.serving.stop_listening().await;
    }

    /// Closes the listener and every connection, and returns once they are closed. The port can be listened on again
    /// at once.
    pub async fn stop(&self) {
        self.serving.stop().await;
        self.account.close();
    }
}

impl Drop for TcpOrigin {
    fn drop(&mut self) {
        self.account.close();
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

/// What the connections of one origin share.
struct Origin {
    label: String,
    behaviour: BehaviourHandle,
    seen: Arc<TcpSeen>,
    account: Arc<Account>,
}

impl Origin {
    async fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        let (read, mut write) = stream.split();
        let mut read = BufReader::new(read);
        let prefix = format!("{}:", self.label).into_bytes();
        let mut answer = Vec::new();
        loop {
            answer.clear();
            answer.extend_from_slice(&prefix);
            if (&mut read).take(LINE).read_until(b'\n', &mut answer).await? == 0 {
                break;
            }
            self.seen.lines.fetch_add(1, Ordering::Relaxed);
            self.account.text(&answer[prefix.len()..]);
            let turn = self.behaviour.turn(Instant::now());
            turn.wait().await;
            if turn.reset_after_header {
                write.write_all(&prefix).await?;
                time::sleep(RESET_DELAY).await;
            }
            if turn.fails || turn.reset_after_header {
                return stream.set_zero_linger();
            }
            if answer.last() != Some(&b'\n') {
                answer.push(b'\n');
            }
            write.write_all(&answer).await?;
        }
        write.write_all(format!("{}:bye\n", self.label).as_bytes()).await?;
        self.seen.byes.fetch_add(1, Ordering::Relaxed);
        write.shutdown().await
    }
}
