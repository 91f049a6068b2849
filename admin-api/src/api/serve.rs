//! Connections of the admin API: a cap on their number, a deadline for every wait, and an orderly end.

use std::{
    convert::Infallible,
    io::{self, Write},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep, sleep_until, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{Api, access::Arrival};

const CONNECTIONS: usize = 256;
/// For a TLS handshake, for the head of a request, and for an idle connection.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// For requests under way when the API ends.
const DRAIN: Duration = Duration::from_secs(5);
const HEAD_LENGTH: usize = 64 * 1024;

/// Serves the admin API until `shutdown`, then ends event streams at once and everything else within 5 s. It speaks
/// HTTP/1.1, with TLS if given, whatever ALPN `tls` was made for.
///
/// Errors: the listener's address cannot be read.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    api: Api,
    shutdown: CancellationToken,
) -> io::Result<()> {
    listener.local_addr()?;
    let tls = tls.map(|tls| {
        let mut tls = (*tls).clone();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(tls))
    });
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let connections = TaskTracker::new();
    let mut warned = None;
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // No descriptors left, most of the time: accepting again at once would spin.
                warn!(%error, "Admin connection not accepted");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match places.clone().try_acquire_owned() {
            Ok(place) => {
                let (api, tls, shutdown) = (api.clone(), tls.clone(), shutdown.clone());
                connections.spawn(connection(stream, peer, tls, api, shutdown, place));
            }
            Err(_) => {
                let now = Instant::now();
                if warned.is_none_or(|before| now >= before + Duration::from_secs(1)) {
                    warned = Some(now);
                    warn!(connections = CONNECTIONS, "Admin connection refused: too many are open");
                }
                refuse(stream, tls.is_some());
            }
        }
    }
    drop(listener);
    api.shared.shutdown.cancel();
    connections.close();
    if timeout(DRAIN, connections.wait()).await.is_err() {
        debug!(open = connections.len(), "Admin connections are cut off");
    }
    Ok(())
}

/// Tells a client that speaks plain HTTP what is wrong, if its socket takes that much at once.
fn refuse(stream: TcpStream, tls: bool) {
    const ANSWER: &[u8] =
        b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    if let (false, Ok(mut stream)) = (tls, stream.into_std()) {
        let _ = stream.write(ANSWER);
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    api: Api,
    shutdown: CancellationToken,
    _place: OwnedSemaphorePermit,
) {
    let Ok(local) = stream.local_addr() else { return };
    let _ = stream.set_nodelay(true);
    let arrival = Arrival { peer, local, tls: tls.is_some() };
    match tls {
        None => converse(stream, arrival, &api, &shutdown).await,
        Some(tls) => match timeout(HEAD_DEADLINE, tls.accept(stream)).await {
            Ok(Ok(stream)) => converse(stream, arrival, &api, &shutdown).await,
            Ok(Err(error)) => debug!(%peer, %error, "Admin TLS handshake failed"),
            Err(_) => debug!(%peer, "Admin TLS handshake took too long"),
        },
    }
}

async fn converse<S>(stream: S, arrival: Arrival, api: &Api, shutdown: &CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answer = service_fn(move |request: hyper::Request<Incoming>| {
        let api = api.clone();
        async move { Ok::<_, Infallible>(api.answer(request.map(Body::new), &arrival).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_LENGTH)
        .serve_connection(TokioIo::new(Impatient::new(stream)), answer);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match timeout(DRAIN, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        debug!(peer = %arrival.peer, %error, "Admin connection broke off");
    }
}

/// A stream that fails when its peer takes nothing for [`WRITE_DEADLINE`], so that readers who stopped reading cannot
/// hold all the places.
struct Impatient<S> {
    stream: S,
    stuck: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    fn new(stream: S) -> Self {
        Self { stream, stuck: None }
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, progress: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.stuck = None;
            return progress;
        }
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + WRITE_DEADLINE)));
        ready!(stuck.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, progress)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, progress)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch(cx, progress)
    }
}
