//! Stage 1: accepts connections, ends TLS, and hands each to its protocol. One loop a listener and worker.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use config::Protocol;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{self, Duration, Instant},
};
use tokio_rustls::{TlsAcceptor, TlsStream};

use crate::{
    connection::{Accepted, Worker},
    drain::Drain,
    http::Engine,
    live::Live,
    mqtt,
    plane::Plane,
    tcp,
    transport::Transport,
};

/// Connections that the system keeps for us until they are accepted.
pub(crate) const BACKLOG: i32 = 4096;

/// What one worker accepts with.
#[derive(Clone)]
pub(crate) struct Acceptor {
    pub(crate) worker: Worker,
    pub(crate) engine: Arc<Engine>,
    pub(crate) drain: Drain,
}

/// Accepts until the process drains, then what is already waiting in the backlog, if nobody else will, then no more.
pub(crate) async fn accept(socket: TcpListener, index: usize, protocol: Protocol, acceptor: Acceptor) {
    let mut trouble = Trouble::default();
    let mut drain = acceptor.drain.clone();
    let end = loop {
        let accepted = tokio::select! {
            biased;
            end = drain.begins() => break end,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((tcp, client)) => spawn(tcp, client, index, protocol, &acceptor),
            Err(error) => trouble.wait_out(&error, &acceptor.worker).await,
        }
    };
    if !end.takes_backlog(index) {
        return;
    }
    // Clients in the backlog are connected as far as they know: dropping them would reset them. The system itself is
    // asked for them, because the runtime knows only of those it has been told about so far.
    let Ok(socket) = socket.into_std() else { return };
    for _ in 0..BACKLOG {
        let Ok((tcp, client)) = socket.accept() else { break };
        if tcp.set_nonblocking(true).is_ok()
            && let Ok(tcp) = TcpStream::from_std(tcp)
        {
            spawn(tcp, client, index, protocol, &acceptor);
        }
    }
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

fn spawn(tcp: TcpStream, client: SocketAddr, index: usize, protocol: Protocol, acceptor: &Acceptor) {
    let worker = &acceptor.worker;
    let live = worker.plane.live();
    let open = OpenConnection::count(&worker.plane);
    if worker.plane.connections.load(Ordering::Relaxed) > live.limits.connections {
        return worker.plane.rejections.count("max_connections");
    }
    let admission = match live.limits.connections_per_client {
        None => None,
        Some(most) => match worker.plane.clients.admit(client.ip(), most) {
            None => return worker.plane.rejections.count("max_connections_per_client"),
            admission => admission,
        },
    };
    let serving = serve(tcp, client, live, index, protocol, acceptor.clone());
    worker.tasks.spawn(async move {
        serving.await;
        drop((open, admission));
    });
}

/// Counts a connection for as long as it lives.
struct OpenConnection(Arc<Plane>);

impl OpenConnection {
    fn count(plane: &Arc<Plane>) -> Self {
        plane.connections.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(plane))
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn serve(
    tcp: TcpStream,
    client: SocketAddr,
    live: Arc<Live>,
    index: usize,
    protocol: Protocol,
    acceptor: Acceptor,
) {
    let Acceptor { worker, engine, .. } = acceptor;
    // Small answers must not wait for the acknowledgement of earlier ones.
    if tcp.set_nodelay(true).is_err() {
        return;
    }
    let listener = &live.listeners[index];
    let transport = match &listener.tls {
        None => Transport::Plain(tcp),
        Some(config) => {
            let handshake = TlsAcceptor::from(Arc::clone(config)).accept(tcp);
            match time::timeout(listener.first.settings.timeouts.request_header, handshake).await {
                Ok(Ok(stream)) => Transport::Tls(Box::new(TlsStream::Server(stream))),
                Ok(Err(error)) => {
                    tracing::debug!(%client, %error, "TLS handshake failed");
                    return worker.plane.rejections.count("tls_handshake");
                }
                Err(_) => return worker.plane.rejections.count("tls_handshake_timeout"),
            }
        }
    };
    let accepted = Accepted { transport, client, listener: index, live };
    match protocol {
        Protocol::Http => engine.serve(accepted, worker).await,
        Protocol::Mqtt => mqtt::serve(accepted).await,
        Protocol::Tcp => tcp::serve(accepted).await,
    }
}
