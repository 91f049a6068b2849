//! Stage 1: accepts connections, ends TLS, and hands each to its protocol. One loop a listening socket, which is one
//! worker's alone.

mod balance;
mod sockets;

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream},
    pin::pin,
    sync::Arc,
};

use config::Protocol;
use rustix::net::SocketFlags;
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::TcpStream,
    sync::mpsc::Receiver,
    time::{self, Duration, Instant},
};
use tokio_rustls::{TlsAcceptor, TlsStream};

pub(crate) use balance::{Connections, Peers, peers};
pub(crate) use sockets::{bind, for_workers, shares};

use crate::{
    buffer,
    connection::{Accepted, Worker},
    drain::Drain,
    http::Engine,
    limits::Admission,
    live::{Listener, Live},
    mqtt, tcp,
    transport::{Socket, Transport},
};
use balance::{OpenConnection, Turnover};
use sockets::BACKLOG;

/// What one worker accepts with.
pub(crate) struct Acceptor {
    pub(crate) worker: Worker,
    pub(crate) engine: Engine,
    pub(crate) drain: Drain,
}

/// A listening socket of one worker.
pub(crate) struct Listening {
    pub(crate) socket: StdListener,
    /// Among all sockets of the process.
    pub(crate) number: usize,
    pub(crate) door: Door,
}

/// Where a connection came in.
#[derive(Clone, Copy)]
pub(crate) struct Door {
    /// Index into [`Live::listeners`].
    pub(crate) listener: usize,
    pub(crate) protocol: Protocol,
}

/// A connection that has been let in, on its way to the worker that is to serve it.
pub(crate) struct Newcomer {
    tcp: StdStream,
    visitor: Visitor,
}

struct Visitor {
    client: SocketAddr,
    door: Door,
    admission: Option<Admission>,
}

/// For so long after a stop it is accepted further, at most half of the time that is left: a little more than a second, which
/// is when the system lets in the last of those that it kept back.
const LATECOMERS: Duration = Duration::from_millis(1200);

/// Accepts until the process drains, then, if nobody else will, until those are in who are connected as far as they know.
pub(crate) async fn accept(listening: Listening, acceptor: Arc<Acceptor>, peers: Peers) {
    let Listening { socket, number, door } = listening;
    let socket = match start(socket, door.protocol) {
        Ok(socket) => socket,
        Err(error) => return tracing::error!(%error, "Cannot watch a listening socket"),
    };
    let mut trouble = Trouble::default();
    let mut drain = acceptor.drain.clone();
    let mut begins = pin!(drain.begins());
    let mut gate = Gate { door, acceptor, peers, turnover: Turnover::new(Instant::now()) };
    let end = tokio::select! {
        biased;
        end = &mut begins => end,
        () = gate.keep_open(&socket, &mut trouble) => return,
    };
    if !end.takes_backlog(number) {
        return;
    }
    if defers(door.protocol) && sockets::defer(&socket, false).is_ok() {
        let left = end.until.saturating_duration_since(Instant::now());
        let _ = time::timeout(LATECOMERS.min(left / 2), gate.keep_open(&socket, &mut trouble)).await;
    }
    // Dropping those in the backlog would reset them. The system itself is asked for them, because the runtime knows only
    // of those it has been told about so far.
    for _ in 0..BACKLOG {
        let Ok((tcp, client)) = accept_one(socket.get_ref()) else { break };
        gate.take(tcp, client);
    }
}

/// Where a connection is nothing to us before its client has spoken. It always is the first to speak HTTP.
fn defers(protocol: Protocol) -> bool {
    protocol == Protocol::Http
}

/// A connection that the runtime does not watch yet.
fn accept_one(socket: &StdListener) -> io::Result<(StdStream, SocketAddr)> {
    let (accepted, client) = rustix::net::acceptfrom_with(socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
    let client = client.and_then(|client| SocketAddr::try_from(client).ok());
    Ok((accepted.into(), client.ok_or(io::ErrorKind::ConnectionAborted)?))
}

/// From here on the socket gets connections, if it did not before.
#[expect(deprecated, reason = "unsound only for what may change its descriptor, as a listener of std's never does")]
fn start(socket: StdListener, protocol: Protocol) -> io::Result<AsyncFd<StdListener>> {
    rustix::net::listen(&socket, BACKLOG)?;
    // It may have been another process's, or of another protocol.
    if let Err(error) = sockets::defer(&socket, defers(protocol)) {
        tracing::debug!(%error, "Clients are accepted before they speak");
    }
    AsyncFd::with_interest(socket, Interest::READABLE)
}

/// Out of descriptors or memory: nothing can be accepted until something is closed. Waiting a little keeps the worker
/// for the connections it has.
#[derive(Default)]
struct Trouble {
    last_logged: Option<Instant>,
}

impl Trouble {
    async fn wait_out(&mut self, error: &io::Error, worker: &Worker) {
        // The client went away between its SYN and our accept: its affair alone.
        if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
            return;
        }
        worker.plane.rejections.count("accept_failed");
        let now = Instant::now();
        if self.last_logged.is_none_or(|last| now.duration_since(last) >= Duration::from_secs(1)) {
            self.last_logged = Some(now);
            tracing::error!(%error, "Cannot accept; raise the limit of open files (ulimit -n) or lower the load");
        }
        time::sleep(Duration::from_millis(50)).await;
    }
}

/// What one loop lets connections in by.
struct Gate {
    door: Door,
    acceptor: Arc<Acceptor>,
    peers: Peers,
    turnover: Turnover,
}

impl Gate {
    /// Lets in who comes, for as long as it is polled.
    async fn keep_open(&mut self, socket: &AsyncFd<StdListener>, trouble: &mut Trouble) {
        loop {
            match socket.async_io(Interest::READABLE, accept_one).await {
                Ok((tcp, client)) => self.take(tcp, client),
                Err(error) => trouble.wait_out(&error, &self.acceptor.worker).await,
            }
        }
    }

    /// Lets a connection in where the limits allow it, and has it served here or by a worker that has clearly less to do.
    fn take(&mut self, tcp: StdStream, client: SocketAddr) {
        let plane = &self.acceptor.worker.plane;
        let live = plane.live();
        let loads = self.peers.loads(&plane.connections);
        if buffer::is_short() {
            return plane.rejections.count("no_buffers");
        }
        if loads.total >= live.limits.connections {
            return plane.rejections.count("max_connections");
        }
        let admission = match live.limits.connections_per_client {
            None => None,
            Some(most) => match plane.clients.admit(client.ip(), most) {
                None => return plane.rejections.count("max_connections_per_client"),
                admission => admission,
            },
        };
        let visitor = Visitor { client, door: self.door, admission };
        match self.peers.relief(&loads, &mut self.turnover, plane) {
            None => spawn(tcp, visitor, live, &self.acceptor),
            Some(way) => way.send(Newcomer { tcp, visitor }),
        }
    }
}

/// Serves what other workers hand over, until none of them accepts any more.
pub(crate) async fn welcome(mut newcomers: Receiver<Newcomer>, acceptor: Arc<Acceptor>) {
    while let Some(Newcomer { tcp, visitor }) = newcomers.recv().await {
        spawn(tcp, visitor, acceptor.worker.plane.live(), &acceptor);
    }
}

fn spawn(tcp: StdStream, visitor: Visitor, live: Arc<Live>, acceptor: &Arc<Acceptor>) {
    let open = OpenConnection::count(&acceptor.worker.plane);
    acceptor.worker.tasks.spawn(serve(tcp, visitor, live, Arc::clone(acceptor), open));
}

/// A connection's task, which is as large as the largest of what it may do: so what is big and rare is boxed, here and
/// further on. And no `async fn`, which would keep room for what it was called with besides what it makes of it.
fn serve(
    tcp: StdStream,
    visitor: Visitor,
    live: Arc<Live>,
    acceptor: Arc<Acceptor>,
    open: OpenConnection,
) -> impl Future<Output = ()> {
    let Visitor { client, door: Door { listener, protocol }, admission } = visitor;
    async move {
        let _counted = (open, admission);
        let transport = if live.listeners[listener].tls.is_none() {
            Transport::Plain(Socket::Fresh(tcp))
        } else {
            match Box::pin(end_tls(tcp, client, &live.listeners[listener])).await {
                Ok(transport) => transport,
                Err(reason) => return acceptor.worker.plane.rejections.count(reason),
            }
        };
        let accepted = Accepted { transport, client, listener, live };
        match protocol {
            Protocol::Http => acceptor.engine.serve(accepted, &acceptor.worker).await,
            Protocol::Mqtt => mqtt::serve(accepted).await,
            Protocol::Tcp => tcp::serve(accepted).await,
        }
    }
}

/// Errors: why it is refused.
async fn end_tls(tcp: StdStream, client: SocketAddr, listener: &Listener) -> Result<Transport, &'static str> {
    let Some(config) = &listener.tls else { return Ok(Transport::Plain(Socket::Fresh(tcp))) };
    let tcp = TcpStream::from_std(tcp).map_err(|_| "accept_failed")?;
    let handshake = TlsAcceptor::from(Arc::clone(config)).accept(tcp);
    match time::timeout(listener.first.settings.timeouts.request_header, handshake).await {
        Ok(Ok(stream)) => Ok(Transport::Tls(Box::new(TlsStream::Server(stream)))),
        Ok(Err(error)) => {
            tracing::debug!(%client, %error, "TLS handshake failed");
            Err("tls_handshake")
        }
        Err(_) => Err("tls_handshake_timeout"),
    }
}
