//! An HTTP origin: HTTP/1.1 and HTTP/2 on one port, gRPC and WebSocket included.
//!
//! | path | answer |
//! |---|---|
//! | any other | 200 and JSON: `{"origin","method","path","key"}`; `path` holds the query, `key` is `x-session-id` or null |
//! | `/echo` | the request's body as it comes in, its trailers after it |
//! | `/headers` | the request's headers as a JSON list of pairs, in the order they came; a repeated name stays together |
//! | `/bytes/N` | N bytes |
//! | `/stream?chunks=N&interval_ms=M` | N lines, M milliseconds apart (10 and 100 when left out) |
//! | `/endless` | bytes, for ever |
//! | `/status/NNN` | that status (200 to 999) |
//! | `/sse` | three server-sent events, then the end |
//! | `/record/N` | JSON for comparing: the record of that number with fields that are noise, see [`record`] |
//! | `/noisy` | record 0 |
//! | `/ws` | WebSocket echo: text is answered `<label>:<text>`, binary as it came |
//! | any, with `content-type: application/grpc…` | gRPC: `/loadtest.Echo/Echo`, and `grpc.health.v1.Health` |
//!
//! Every answer carries `x-origin: <label>`, and the request's `x-loadtest-id` if it had one. Request bodies are read to
//! their end before the answer, but for `/echo`, `/ws` and gRPC.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Version, header::CONTENT_TYPE};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::ServerConfig;
use tokio::{
    net::TcpStream,
    time::{self, Instant},
};
use tokio_rustls::TlsAcceptor;
use tonic::codegen::Service;
use tonic_health::{
    pb::health_server::{Health, HealthServer},
    server::health_reporter,
};

use self::wire::{Cut, Wire};
use super::{
    Behaviour, BehaviourHandle, ListenError, Listener, RESET_DELAY, Seen,
    account::{Account, ID},
    serving::{Serving, Tasks},
};
use crate::{ledger::Ledger, load::KeyPlace};

mod endpoints;
mod grpc;
mod record;
mod websocket;
mod wire;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, BoxError>;

/// The header that says who answered.
const ORIGIN: HeaderName = HeaderName::from_static("x-origin");

/// Time a client has for its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A running HTTP origin. Dropping it stops it, without waiting.
#[derive(Debug)]
pub struct HttpOrigin {
    serving: Serving,
    behaviour: BehaviourHandle,
    seen: Arc<Seen>,
    account: Arc<Account>,
}

/// What an HTTP origin can be started with. The default: in clear, well-behaved, without a ledger.
#[derive(Clone, Debug)]
pub struct HttpSetup<'a> {
    /// TLS with this certificate; when it names no ALPN protocols, `h2` and `http/1.1` are offered.
    pub tls: Option<Arc<ServerConfig>>,
    /// How it behaves until it is changed.
    pub behaviour: Behaviour,
    /// Where every request with an `x-loadtest-id` is written, see [`HttpOrigin::record`].
    pub ledger: Option<&'a Ledger>,
    /// Where requests have the key that is written there; header `x-session-id` by default.
    pub key: KeyPlace,
}

impl Default for HttpSetup<'_> {
    fn default() -> Self {
        let key = KeyPlace::Header(HeaderName::from_static("x-session-id"));
        Self { tls: None, behaviour: Behaviour::default(), ledger: None, key }
    }
}

impl HttpOrigin {
    /// Starts an origin in clear: HTTP/1.1, and HTTP/2 with prior knowledge.
    ///
    /// `label`: how it names itself in every answer; control characters are left out. `address`: port 0 picks a free
    /// one, see [`address`](Self::address). Errors: the address cannot be listened on. Needs a running tokio runtime.
    pub async fn start(label: impl Into<String>, address: SocketAddr) -> Result<Self, ListenError> {
        Ok(Self::serve(label, Listener::bind(address).await?, HttpSetup::default()))
    }

    /// Starts an origin behind TLS. `tls` says which certificate, see [`HttpSetup::tls`]. Otherwise as
    /// [`start`](Self::start).
    pub async fn start_tls(
        label: impl Into<String>,
        address: SocketAddr,
        tls: Arc<ServerConfig>,
    ) -> Result<Self, ListenError> {
        let setup = HttpSetup { tls: Some(tls), ..HttpSetup::default() };
        Ok(Self::serve(label, Listener::bind(address).await?, setup))
    }

    /// Serves what is listened on. `label` as for [`start`](Self::start).
    pub fn serve(label: impl Into<String>, listener: Listener, setup: HttpSetup<'_>) -> Self {
        let behaviour = BehaviourHandle::new(setup.behaviour);
        let seen = Arc::new(Seen::default());
        let account = Account::new(setup.key);
        let (_, health) = health_reporter();
        let origin = Arc::new(Origin {
            label: Label::new(&label.into()),
            behaviour: behaviour.clone(),
            seen: Arc::clone(&seen),
            account: Arc::clone(&account),
            health,
        });
        let tls = setup.tls.map(|mut tls| {
            if tls.alpn_protocols.is_empty() {
                Arc::make_mut(&mut tls).alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            }
            TlsAcceptor::from(tls)
        });

        // Before the first connection is accepted, so that the account has every request.
        let record = |tasks: &Tasks| setup.ledger.into_iter().for_each(|ledger| account.open(ledger, tasks));
        let serving = Serving::start(listener, record, move |stream, tasks| {
            let (origin, tls) = (Arc::clone(&origin), tls.clone());
            async move { origin.connection(stream, tls, tasks).await }
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

    /// What it saw so far. The counts stay readable when the origin is gone.
    pub fn seen(&self) -> &Arc<Seen> {
        &self.seen
    }

    /// Writes every request with an `x-loadtest-id` to `ledger` from now on, when its header has come in, whatever it is
    /// answered; and every WebSocket message that begins with an id. The ledger can be closed once the origin is
    /// stopped or dropped. Needs a running tokio runtime.
    pub fn record(&self, ledger: &Ledger) {
        self.account.open(ledger, self.serving.tasks());
    }

    /// Closes the listener, and returns once connecting is refused. Open connections are served on.
    pub async fn stop_listening(&self) {
        self.serving.stop_listening().await;
    }

    /// Closes the listener and every connection, upgraded ones too, and returns once they are closed. The port can be
    /// listened on again at once.
    pub async fn stop(&self) {
        self.serving.stop().await;
        self.account.close();
    }
}

impl Drop for HttpOrigin {
    fn drop(&mut self) {
        self.account.close();
    }
}

/// The label as text and as a header.
#[derive(Clone, Debug)]
struct Label {
    text: Arc<str>,
    header: HeaderValue,
}

impl Label {
    fn new(label: &str) -> Self {
        let text: String = label.chars().filter(|c| !c.is_control()).collect();
        let header = HeaderValue::from_bytes(text.as_bytes()).expect("a header value holds all but control characters");
        Self { text: text.into(), header }
    }
}

/// What the connections of one origin share. `H` is tonic's health service, whose type cannot be named.
struct Origin<H> {
    label: Label,
    behaviour: BehaviourHandle,
    seen: Arc<Seen>,
    account: Arc<Account>,
    health: HealthServer<H>,
}

impl<H: Health> Origin<H> {
    async fn connection(self: Arc<Self>, stream: TcpStream, tls: Option<TlsAcceptor>, tasks: Tasks) {
        let seen = Arc::clone(&self.seen);
        let _open = seen.connection();
        let cut = Cut::default();
        let wire = Wire::new(stream, cut.clone());

        let service = {
            let (origin, tasks) = (self, tasks.clone());
            service_fn(move |request| Arc::clone(&origin).answer(request, cut.clone(), tasks.clone()))
        };
        let mut server = auto::Builder::new(tasks);
        // An idle connection stays open, as it does at a patient origin: closing it is the client's business.
        server.http1().timer(TokioTimer::new()).header_read_timeout(None);
        server.http2().timer(TokioTimer::new());

        let ended = match tls {
            None => server.serve_connection_with_upgrades(TokioIo::new(wire), service).await,
            Some(tls) => match time::timeout(HANDSHAKE_TIMEOUT, tls.accept(wire)).await {
                Ok(Ok(stream)) => server.serve_connection_with_upgrades(TokioIo::new(stream), service).await,
                Ok(Err(error)) => Err(error.into()),
                Err(elapsed) => Err(elapsed.into()),
            },
        };
        if let Err(error) = ended {
            tracing::debug!(error = &*error, "Connection ended early");
        }
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        cut: Cut,
        tasks: Tasks,
    ) -> Result<Response<Body>, BoxError> {
        let (head, body) = request.into_parts();
        self.seen.request(&head);
        self.account.request(&head);
        let turn = self.behaviour.turn(Instant::now());
        turn.wait().await;
        if turn.resets {
            if head.version < Version::HTTP_2 {
                cut.on_close();
            }
            return Err(BoxError::from("reset in place of an answer, as asked"));
        }

        let (version, id) = (head.version, head.headers.get(ID).cloned());
        let label = self.label.header.clone();
        let status = turn.status.or_else(|| turn.fails.then_some(StatusCode::INTERNAL_SERVER_ERROR));
        let mut response = match status {
            Some(status) if is_grpc(&head) && version == Version::HTTP_2 => grpc::failure(status, body).await,
            Some(status) => endpoints::status(status, body).await,
            None if is_grpc(&head) && head.uri.path() == grpc::ECHO => grpc::echo(&head.headers, body).await,
            None if is_grpc(&head) => {
                let Ok(response) = self.health.clone().call(Request::from_parts(head, body)).await;
                response.map(|body| body.map_err(BoxError::from).boxed_unsync())
            }
            None if head.uri.path() == "/ws" => {
                let request = Request::from_parts(head, body);
                // A connection that was upgraded is reset by its own task: no body follows the header.
                websocket::accept(self, request, turn.reset_after_header.then(|| cut.clone()), &tasks)
            }
            None => endpoints::answer(&head, body, &self.label.text, &turn).await,
        };

        response.headers_mut().insert(ORIGIN, label);
        if let Some(id) = id {
            response.headers_mut().insert(ID, id);
        }
        if turn.reset_after_header && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response = reset(response, (version < Version::HTTP_2).then_some(cut));
        }
        Ok(response)
    }
}

fn is_grpc(head: &http::request::Parts) -> bool {
    head.headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Lets the header and the first bytes go, then breaks the response off; `cut` resets the whole connection.
fn reset(response: Response<Body>, cut: Option<Cut>) -> Response<Body> {
    let first = futures::stream::iter([Ok(Frame::data(Bytes::from_static(b"x")))]);
    let then = futures::stream::once(async move {
        time::sleep(RESET_DELAY).await;
        if let Some(cut) = cut {
            cut.on_close();
        }
        Err(BoxError::from("reset after the header, as asked"))
    });
    let (mut head, _) = response.into_parts();
    // The length was that of the body that does not come.
    head.headers.remove(http::header::CONTENT_LENGTH);
    Response::from_parts(head, StreamBody::new(first.chain(then)).boxed_unsync())
}
