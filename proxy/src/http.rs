//! HTTP routes. Pingora parses, pools and forwards; this module owns the connections, so that a request's whole header
//! has one deadline, its framing is checked before anybody acts on it, and HTTP/2 comes with its limits.

mod h1;
mod respond;
mod service;
mod stream;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::StatusCode;
use pingora::{
    apps::HttpServerApp,
    http::ResponseHeader,
    protocols::{
        Digest,
        http::{ServerSession, v2::server as h2},
        raw_connect::ProxyDigest,
    },
    proxy::HttpProxy,
    server::configuration::ServerConf,
};
use tokio::{
    pin, select,
    time::{self, Duration, Instant},
};

use crate::{
    connection::{Accepted, Worker},
    drain::{Drain, LAME_DUCK},
    plane::Plane,
    wire::http1::{BodyLength, Head},
};
use h1::{Client, Http1, Served};
use service::Service;
pub(crate) use service::answered;
use stream::RequestStream;

/// A connection over which this many malformed HTTP/2 requests came is closed.
const MAX_MALFORMED_STREAMS: usize = 32;
/// How long an HTTP/2 client that comes during a drain has for its first request before it is told to go.
const FIRST_STREAM: Duration = Duration::from_millis(250);
/// One worker's HTTP engine with its own pool of upstream connections.
pub(crate) struct Engine {
    proxy: Arc<HttpProxy<Service>>,
    http1: Http1,
    drain: Drain,
}

impl Engine {
    pub(crate) fn new(plane: Arc<Plane>, drain: Drain) -> Self {
        let conf = ServerConf {
            threads: 1,
            // Every endpoint of both arms may be tried; the service says when to stop.
            max_retries: 1024,
            upstream_keepalive_pool_size: 1024,
            ..ServerConf::default()
        };
        let http1 = Http1::new(Arc::clone(&plane), drain.clone());
        let service = Service::new(plane, drain.clone());
        let mut proxy = HttpProxy::new(service, Arc::new(conf));
        proxy.handle_init_modules();
        Self { proxy: Arc::new(proxy), http1, drain }
    }

    /// Serves a connection to its end, in whichever HTTP the client speaks.
    pub(crate) fn serve<'a>(&'a self, accepted: Accepted, worker: &'a Worker) -> impl Future<Output = ()> + 'a {
        // Not an `async fn`, which would keep room for what it was called with besides what it makes of it.
        let Accepted { transport, client: address, listener, live } = accepted;
        // Each request takes a `Live` of its own; the connection must not keep the one it was accepted with.
        let timeouts = live.listeners[listener].first.settings.timeouts;
        let mut client = Client::new(transport, address);
        let connection = move |tls| Connection::new(address, tls, listener);
        async move {
            if client.speaks_h2() {
                let connection = connection(true);
                let stream = RequestStream::new(client.into_parts().0, Arc::clone(&connection));
                return Box::pin(self.serve_h2(stream, connection, worker, timeouts.keepalive)).await;
            }
            let mut first = true;
            loop {
                match self.http1.serve(&mut client, listener, first, &timeouts).await {
                    Served::Done => return,
                    Served::Close => return client.into_parts().0.close_with(&[]).await,
                    Served::Http2 => {
                        let (transport, read) = client.into_parts();
                        let connection = connection(false);
                        let stream = RequestStream::resume(transport, read, None, Arc::clone(&connection));
                        return Box::pin(self.serve_h2(stream, connection, worker, timeouts.keepalive)).await;
                    }
                    Served::Foreign(head) => {
                        let (transport, read) = client.into_parts();
                        let connection = connection(transport.is_tls());
                        let stream = RequestStream::resume(transport, read, Some(&head), Arc::clone(&connection));
                        match Box::pin(self.serve_request(stream, head, connection, timeouts.response_header)).await {
                            // Also while draining: a client that was not told so in its answer may have sent the next
                            // one.
                            Some(again) if head.keep_alive => {
                                let (transport, read) = again.into_parts();
                                client = Client::resume(transport, &read, address);
                            }
                            _ => return,
                        }
                    }
                }
                first = false;
            }
        }
    }

    /// One HTTP/1 request, whose head is at the front of the stream. Returns the stream when it can carry another.
    async fn serve_request(
        &self,
        stream: Box<RequestStream>,
        head: Head,
        connection: Arc<Connection>,
        response_header: Duration,
    ) -> Option<Box<RequestStream>> {
        let mut session = ServerSession::new_http1(stream);
        // How long to wait for the next request is decided by `next_head`; this only says that there may be one.
        session.set_keepalive(Some(60));
        // A client that has said all it wants to say still gets its answer (RFC 9112 section 9.6).
        session.set_abort_on_close(false);
        let exchange = self.proxy.process_new_http(session, self.drain.as_engine_takes_it());
        let reusable = if head.body == BodyLength::Upgrade {
            pin!(exchange);
            select! {
                reusable = &mut exchange => reusable,
                // A tunnel may be silent for long, so the engine waits long for each read; the answer that opens the
                // tunnel may not.
                () = time::sleep(response_header) => {
                    if !connection.answered.load(Ordering::Relaxed) {
                        connection.overdue.store(true, Ordering::Relaxed);
                        return None;
                    }
                    exchange.await
                }
            }
        } else {
            exchange.await
        };
        let (stream, _) = reusable?.consume();
        stream.into_any().downcast::<RequestStream>().ok()
    }

    async fn serve_h2(
        &self,
        mut stream: Box<RequestStream>,
        connection: Arc<Connection>,
        worker: &Worker,
        keepalive: Duration,
    ) {
        stream.open();
        // Pingora's own defaults drop out when options are given: these are they, and the bounds on resets beside them.
        let mut options = h2::default_h2_options();
        options.max_concurrent_reset_streams(20).max_pending_accept_reset_streams(20);
        let handshake = time::timeout(Duration::from_secs(10), h2::handshake(stream, Some(options)));
        let Ok(Ok(mut h2)) = handshake.await else {
            return worker.plane.rejections.count("h2_handshake");
        };
        let digest = Arc::new(Digest { proxy_digest: Some(connection.digest()), ..Digest::default() });
        let mut drain = self.drain.clone();
        let late = drain.end().is_some();
        let ends = async {
            drain.begins().await;
            if late {
                // It would come back at once, were it sent away before it has asked for anything.
                time::sleep(FIRST_STREAM).await;
            }
        };
        pin!(ends);
        let mut malformed = 0;
        let mut goodbye = Goodbye::Unsaid;
        // Each stream holds a clone: the count says whether the connection is idle.
        let busy = Arc::new(());
        let mut idle_since = Instant::now();
        loop {
            let accepted = select! {
                biased;
                () = &mut ends, if goodbye == Goodbye::Unsaid => {
                    // GOAWAY: streams that are open, or on their way, are still served, as long as the drain lasts.
                    h2.graceful_shutdown();
                    goodbye = Goodbye::Said;
                    continue;
                }
                accepted = h2::HttpSession::from_h2_conn(&mut h2, Arc::clone(&digest)) => accepted,
                () = time::sleep_until(idle_since + keepalive), if goodbye == Goodbye::Unsaid => {
                    if Arc::strong_count(&busy) == 1 {
                        // With GOAWAY, so that a request that is on its way is not lost without a word.
                        h2.graceful_shutdown();
                        goodbye = Goodbye::Until(Instant::now() + LAME_DUCK);
                    }
                    idle_since = Instant::now();
                    continue;
                }
                () = goodbye.over() => {
                    if Arc::strong_count(&busy) == 1 {
                        return;
                    }
                    goodbye = Goodbye::Until(Instant::now() + LAME_DUCK);
                    continue;
                }
            };
            match accepted {
                Ok(Some(h2::H2Accept::Session(session))) => {
                    idle_since = Instant::now();
                    let proxy = Arc::clone(&self.proxy);
                    let drain = self.drain.clone();
                    let busy = Arc::clone(&busy);
                    worker.tasks.spawn(async move {
                        proxy.process_new_http(ServerSession::new_http2(session), drain.as_engine_takes_it()).await;
                        drop(busy);
                    });
                }
                Ok(Some(h2::H2Accept::Rejected)) => {
                    worker.plane.rejections.count("h2_malformed");
                    malformed += 1;
                    if malformed == MAX_MALFORMED_STREAMS {
                        h2.abrupt_shutdown(::h2::Reason::ENHANCE_YOUR_CALM);
                        goodbye = Goodbye::Until(Instant::now() + LAME_DUCK);
                    }
                }
                Ok(None) | Err(_) => return,
            }
        }
    }
}

/// Has an HTTP/2 client been told that its connection ends?
#[derive(Clone, Copy, PartialEq)]
enum Goodbye {
    Unsaid,
    Said,
    /// And if nothing is open then, it is closed.
    Until(Instant),
}

impl Goodbye {
    async fn over(self) {
        match self {
            Self::Unsaid | Self::Said => std::future::pending().await,
            Self::Until(end) => time::sleep_until(end).await,
        }
    }
}

/// What a request needs to know of the connection it came over. Travels through the engine in the connection's digest.
#[derive(Debug)]
struct Connection {
    client: SocketAddr,
    tls: bool,
    listener: usize,
    /// HTTP/1: the response's header has come.
    answered: AtomicBool,
    /// HTTP/1: the arm has agreed to an upgrade.
    tunnel: AtomicBool,
    /// HTTP/1: given up because no response's header came.
    overdue: AtomicBool,
}

impl Connection {
    fn new(client: SocketAddr, tls: bool, listener: usize) -> Arc<Self> {
        let no = || AtomicBool::new(false);
        Arc::new(Self { client, tls, listener, answered: no(), tunnel: no(), overdue: no() })
    }

    fn digest(self: &Arc<Self>) -> Arc<ProxyDigest> {
        let no_response = ResponseHeader::build(StatusCode::OK, Some(0)).expect("a bare status is valid");
        Arc::new(ProxyDigest::new(Box::new(no_response), Some(Box::new(Arc::clone(self)))))
    }

    fn of(digest: Option<&Digest>) -> Option<Arc<Self>> {
        digest?.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref::<Arc<Self>>().cloned()
    }
}
