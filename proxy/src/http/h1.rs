//! HTTP/1.1: one task a connection, one request after the other, each through the same stages as everything else.
//!
//! What is read stays in the buffer it was read into until it is written to the other side; heads are written anew, bodies
//! pass as they are. A connection that waits for its next request holds no buffer.

mod exchange;
mod request;
mod response;

use std::{
    borrow::Cow,
    future::poll_fn,
    mem,
    net::SocketAddr,
    sync::Arc,
    task::{Poll, ready},
};

use admin_api::Outcome;
use bytes::BytesMut;
use config::{Arm, Fallback, Timeouts};
use http::StatusCode;
use tokio::{
    io::AsyncWriteExt,
    time::{self, Duration, Instant},
};

use super::respond;
use crate::{
    alarm::Alarm,
    buffer::{self, Buffer, Scratch},
    drain::Drain,
    forward::{self, relay},
    key,
    live::Route,
    mirror::Tap,
    plane::Plane,
    telemetry::{self, Fault},
    transport::Transport,
    upstream::{Hindrance, Lease, NotConnected, establish, is_shortage},
    wire::http1::{self, BodyLength, Head, Rejection, Scan, rejection_response, scan},
    worker::Handle,
};
use exchange::{Broken, Exchange, Framing, Patience, Upload, Upstream};
use request::Request;
use response::{Asked, Body};

/// Time for an answer of our own to be taken.
const OWN_ANSWER: Duration = Duration::from_secs(5);
/// Interim answers (1xx) to one request. More are a flood.
const MAX_INTERIM: usize = 32;
/// How long a client may go on in a tunnel after the endpoint has closed it.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How often one idempotent request may be sent again when its pooled connection ended without a word.
const MAX_REPLAYS: u8 = 3;

/// A client's connection.
pub(super) struct Client {
    transport: Transport,
    input: Buffer,
    alarm: Alarm,
    address: SocketAddr,
    tls: bool,
    /// It has said all.
    done: bool,
    /// When it was last seen to do something, so that the clock is read seldom.
    seen: Instant,
    /// It has been waited for since, so that `seen` is too long ago.
    slow: bool,
}

/// What came of waiting for a request.
enum Next {
    /// At the front of what was read, checked.
    Head(Head),
    Http2,
    Rejected(Rejection),
    /// A head was begun and not finished in time.
    Overdue,
    /// The client has gone, or was silent for too long.
    Closed,
}

/// What becomes of a connection after a request.
enum After {
    Again,
    Close,
    /// At once: what was sent is not whole, the connection carries something else now, or the client expects no more.
    Abort,
    /// An arm of the request's route is spoken to in HTTP/2, which the other engine does. The request is still unread.
    Foreign,
}

enum Decision {
    Carry(Carried, Handle<Route>),
    Foreign,
    Answer(OwnAnswer),
}

/// An answer of our own to a request that is not passed on.
enum OwnAnswer {
    NoRoute {
        is_head: bool,
    },
    Unavailable {
        is_head: bool,
    },
    Shortage {
        is_head: bool,
    },
    NoBuffers,
    /// To what must not be passed on any further.
    Trace,
    Options,
}

impl OwnAnswer {
    fn write(self, keep: bool) -> Vec<u8> {
        let (status, text, is_head) = match self {
            Self::NoRoute { is_head } => (StatusCode::NOT_FOUND, "no route takes this host and path", is_head),
            Self::Unavailable { is_head } => (StatusCode::SERVICE_UNAVAILABLE, "no endpoint could be reached", is_head),
            Self::Shortage { is_head } => (StatusCode::SERVICE_UNAVAILABLE, "the proxy is out of connections", is_head),
            Self::NoBuffers => (StatusCode::SERVICE_UNAVAILABLE, "the proxy is out of buffers", true),
            Self::Trace => (StatusCode::METHOD_NOT_ALLOWED, "trace is not answered here", false),
            Self::Options => return respond::options(keep),
        };
        respond::plain(status, text, is_head, keep)
    }
}

/// What of a request is needed while and after it is carried.
struct Carried {
    exchange: telemetry::Exchange,
    asked: Asked,
    /// For the mirror, which samples by it.
    key: Option<Vec<u8>>,
    /// Method and path, for the access log.
    line: Option<Box<(String, String)>>,
}

/// How a request ended.
#[derive(Default)]
struct Ended {
    /// The arm's answer.
    status: Option<StatusCode>,
    grpc_status: Option<u16>,
    latency_us: Option<u64>,
    bytes_in: u64,
    bytes_out: u64,
    broken: Option<Broken>,
    endpoint: Option<SocketAddr>,
}

impl Client {
    pub(super) fn new(transport: Transport, address: SocketAddr) -> Self {
        let tls = transport.is_tls();
        let (input, alarm) = (Buffer::default(), Alarm::default());
        Self { transport, input, alarm, address, tls, done: false, seen: Instant::now(), slow: false }
    }

    /// `read`: what has been read of it and not been used.
    pub(super) fn resume(transport: Transport, read: &[u8], address: SocketAddr) -> Self {
        let mut client = Self::new(transport, address);
        client.input.put(read);
        client
    }

    /// Whether ALPN settled on HTTP/2.
    pub(super) fn speaks_h2(&self) -> bool {
        self.transport.alpn() == Some(b"h2")
    }

    /// With what has been read of it and not been used.
    pub(super) fn into_parts(self) -> (Transport, BytesMut) {
        let read = BytesMut::from(self.input.bytes());
        (self.transport, read)
    }

    /// Waits for the next request's head. `idle`: for its first byte; `whole`: from the first byte to the last.
    async fn next_head(&mut self, idle: Duration, whole: Duration, drain: &Drain) -> Next {
        let mut scanned = 0;
        // For the rest of a head that has begun.
        let mut overdue = None;
        if mem::take(&mut self.slow) {
            self.seen = Instant::now();
        }
        let mut idle_until = self.seen + idle;
        let mut lame = false;
        poll_fn(|cx| {
            let Self { transport, input, alarm, .. } = self;
            loop {
                if !input.is_empty() {
                    match scan(input.bytes(), scanned) {
                        Scan::Incomplete { scanned: so_far } => scanned = so_far,
                        Scan::Http2Preface => return Poll::Ready(Next::Http2),
                        Scan::Rejected(rejection) => return Poll::Ready(Next::Rejected(rejection)),
                        Scan::Head(head) => return Poll::Ready(Next::Head(head)),
                    }
                    overdue.get_or_insert_with(|| Instant::now() + whole);
                }
                if let Poll::Ready(read) = input.poll_fill(cx, transport, http1::MAX_HEAD + 1) {
                    match read {
                        Ok(0) | Err(_) => return Poll::Ready(Next::Closed),
                        Ok(_) => continue,
                    }
                }
                if let Some(end) = drain.end().filter(|_| !lame) {
                    lame = true;
                    idle_until = idle_until.min(end.idle_until(Instant::now()));
                }
                ready!(alarm.poll(cx, overdue.unwrap_or(idle_until)));
                return Poll::Ready(if overdue.is_some() { Next::Overdue } else { Next::Closed });
            }
        })
        .await
    }

    /// Writes an answer of our own.
    async fn answer(&mut self, answer: &[u8], keep: bool) -> After {
        let sent = time::timeout(OWN_ANSWER, async {
            self.transport.write_all(answer).await?;
            self.transport.flush().await
        });
        match sent.await {
            Ok(Ok(())) if keep => After::Again,
            Ok(Ok(())) => After::Close,
            _ => After::Abort,
        }
    }
}

/// What one worker's HTTP/1.1 connections share.
pub(super) struct Http1 {
    plane: Arc<Plane>,
    drain: Drain,
}

/// How serving a connection ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Served {
    /// Nothing more is to be done for it: it is to be dropped.
    Done,
    /// It is to be closed so that the client can read what it was sent.
    Close,
    /// HTTP/2's preface is at the front of what was read.
    Http2,
    /// A request whose arms are for the other engine is at the front of what was read.
    Foreign(Head),
}

impl Http1 {
    pub(super) fn new(plane: Arc<Plane>, drain: Drain) -> Self {
        Self { plane, drain }
    }

    /// Serves a connection until it ends or must be served otherwise. `first`: whether it may turn out to be HTTP/2
    /// (RFC 9113, section 3.3: the preface is the first thing a client says, and over TLS ALPN has decided already).
    pub(super) async fn serve(&self, client: &mut Client, listener: usize, first: bool, patience: &Timeouts) -> Served {
        let (mut first, mut idle) = (first, if first { patience.request_header } else { patience.keepalive });
        loop {
            let (reason, answer) = match client.next_head(idle, patience.request_header, &self.drain).await {
                Next::Head(head) => {
                    match self.request(client, listener, head).await {
                        After::Again => {}
                        After::Close => return Served::Close,
                        After::Abort => return Served::Done,
                        After::Foreign => return Served::Foreign(head),
                    }
                    client.input.release();
                    (first, idle) = (false, patience.keepalive);
                    continue;
                }
                Next::Closed => return Served::Close,
                Next::Http2 if first && !client.tls => return Served::Http2,
                Next::Http2 => ("misplaced_h2_preface", respond::misplaced_preface()),
                Next::Rejected(rejection) => (rejection.reason, rejection_response(&rejection)),
                Next::Overdue => ("request_header_timeout", respond::request_timeout()),
            };
            self.plane.rejections.count(reason);
            // What does not go out now is not wanted.
            client.answer(&answer, false).await;
            return Served::Close;
        }
    }

    /// One request, whose head is at the front of what was read.
    async fn request(&self, client: &mut Client, listener: usize, head: Head) -> After {
        client.seen = Instant::now();
        if buffer::is_short() {
            self.plane.rejections.count("no_buffers");
            return client.answer(&OwnAnswer::NoBuffers.write(false), false).await;
        }
        let mut request = Scratch::take();
        let (mut carried, route) = match self.decide(client, listener, &head, &mut request) {
            Decision::Carry(carried, route) => (carried, route),
            Decision::Foreign => return After::Foreign,
            Decision::Answer(answer) => {
                client.input.advance(head.length);
                let keep = head.keep_alive && head.body == BodyLength::None && self.drain.end().is_none();
                return client.answer(&answer.write(keep), keep).await;
            }
        };
        client.input.advance(head.length);
        let mut ended = Ended::default();
        let after = self.carry(client, &head, &route, &mut carried, request, &mut ended).await;
        self.record(&route, carried, &ended, client.address);
        after
    }

    /// Stages 1 to 3: which route, which key, which arm. Nothing is awaited, so the head is read where it is.
    fn decide(&self, client: &Client, listener: usize, head: &Head, out: &mut Vec<u8>) -> Decision {
        let bytes = &client.input.bytes()[..head.length];
        let request = Request::new(bytes.strip_prefix(b"\r\n").unwrap_or(bytes), head);
        let live = self.plane.glance();
        let mut room = String::new();
        let Some(route) = live.listeners[listener].find(request.host(&mut room), request.path) else {
            self.plane.rejections.count("no_route");
            return Decision::Answer(OwnAnswer::NoRoute { is_head: request.is_head() });
        };
        if !route.speaks_http1() {
            return Decision::Foreign;
        }
        if request.max_forwards() == Some(0) {
            return Decision::Answer(if request.is_trace() { OwnAnswer::Trace } else { OwnAnswer::Options });
        }
        let caller =
            key::HttpCaller { fields: &request, path: request.path, query: request.query, client: client.address.ip() };
        let key = key::of_http(&route.settings.key, &caller);
        let wanted = if route.settings.allow_override { request.wanted_arm() } else { None };
        let decided = route.decide(key.as_deref(), wanted);
        let exchange = telemetry::Exchange::dispatch(route.meter.handle(), &decided);
        request.write(out, client.address.ip(), client.tls);
        let line = live
            .access_log
            .then(|| Box::new((String::from_utf8_lossy(request.method).into_owned(), request.path.to_owned())));
        let carried = Carried {
            key: if route.mirror.is_some() { key.map(Cow::into_owned) } else { None },
            asked: Asked {
                head: request.is_head(),
                upgrade: head.body == BodyLength::Upgrade && head.says.upgrade,
                http11: request.http11,
                expose_arm: route.settings.expose_arm,
            },
            exchange,
            line,
        };
        Decision::Carry(carried, route.handle())
    }

    /// Stages 4 to 6: connects, moves the request and its answer, and says how it ended. `request`: its head.
    async fn carry(
        &self,
        client: &mut Client,
        head: &Head,
        route: &Route,
        carried: &mut Carried,
        mut request: Scratch,
        ended: &mut Ended,
    ) -> After {
        let timeouts = &route.settings.timeouts;
        let silent = carried.asked.upgrade || head.says.events;
        let patience = Patience {
            answer: timeouts.response_header,
            part: if silent { timeouts.idle } else { timeouts.response_header },
            write: timeouts.write,
        };
        let request_head = request.len();
        let mut tap: Option<Tap> = None;
        let mut replays = 0;
        let repeatable = head.idempotent && head.body == BodyLength::None;
        let (mut tried, mut hindrance) = (Vec::new(), Hindrance::default());
        loop {
            let (lease, transport) = match choose(route, &mut carried.exchange, &mut tried, &mut hindrance, !repeatable)
            {
                Ok(found) => found,
                Err(Unreachable) => {
                    let fault = hindrance.fault(tried.last().copied());
                    carried.exchange.judge(Outcome::Unreachable, None, Some(fault));
                    if let Some(tap) = tap {
                        tap.finish(Some(Outcome::Unreachable));
                    }
                    let answer = OwnAnswer::Unavailable { is_head: carried.asked.head };
                    return client.answer(&answer.write(false), false).await;
                }
            };
            let reused = transport.is_some();
            let transport = match transport {
                Some(transport) => transport,
                // Boxed, since connecting is rare and takes much room.
                None => match Box::pin(connect(route, carried.exchange.arm(), &lease)).await {
                    Ok(transport) => transport,
                    Err(NotConnected::Shortage) => {
                        carried.exchange.answered();
                        let answer = OwnAnswer::Shortage { is_head: carried.asked.head };
                        return client.answer(&answer.write(false), false).await;
                    }
                    Err(NotConnected::Unreachable(why)) => {
                        hindrance = why;
                        tried.push(lease.address());
                        continue;
                    }
                },
            };
            ended.endpoint = Some(lease.address());
            if let Some(mirror) = route.mirror.as_ref().filter(|_| replays == 0) {
                let to = route.upstream(carried.exchange.arm().other());
                let method = request.split(|byte| *byte == b' ').next().unwrap_or_default();
                let parts = || request::parts(&request);
                tap = mirror.offer(to, carried.key.as_deref(), method, head.body == BodyLength::None, parts);
            }
            let mut upstream = Upstream { transport, input: Buffer::default() };
            let mut exchange = Exchange {
                upload: Upload::new(head.body, client.seen),
                patience,
                since: client.seen,
                heard: false,
                answering: false,
                client,
                upstream: &mut upstream,
                account: &mut carried.exchange,
            };
            let asked = carried.asked;
            let moved = exchange.request_and_answer(&mut request, head, asked, ended, &mut tap, &self.drain).await;
            let (upload_done, answering) = (exchange.upload.is_done(), exchange.answering);
            ended.bytes_in = exchange.upload.bytes;
            match moved {
                Ok(Moved::Answered { pooled, keep }) => {
                    let keep = keep
                        && !exchange.upload.stopped
                        && (upload_done || exchange.finish_upload(timeouts.request_header).await);
                    if let Some(Pooled { doubtful }) = pooled
                        && upload_done
                        && upstream.input.is_empty()
                    {
                        lease.endpoint.keep_idle(upstream.transport, client.seen, doubtful);
                    }
                    if let Some(tap) = tap {
                        tap.finish(None);
                    }
                    // A client that asked for the end and has said all needs no ceremony.
                    let over =
                        !head.keep_alive && !client.tls && client.input.is_empty() && !client.transport.holds_unread();
                    return match keep {
                        true => After::Again,
                        false if upload_done && over => After::Abort,
                        false => After::Close,
                    };
                }
                Ok(Moved::Switched) => {
                    let _lease = lease;
                    // What comes of the tunnel says nothing about the arm, unless it is given up at once.
                    carried.exchange.judge(Outcome::Ok, ended.latency_us, None);
                    drop(request);
                    let since = Instant::now();
                    if Box::pin(self.tunnel(client, upstream, route, ended, since)).await {
                        let gone = "the endpoint switched protocols and closed the connection without a byte";
                        carried.exchange.cut_off(Fault::new(ended.endpoint, gone));
                    }
                    return After::Abort;
                }
                Err(Broken::Upstream { early: true }) if reused && repeatable && replays < MAX_REPLAYS => {
                    // A pooled connection that the endpoint closed in the meantime.
                    replays += 1;
                    request.truncate(request_head);
                }
                Err(broken) => {
                    ended.broken = Some(broken);
                    if !answering {
                        ended.status = None;
                    }
                    if broken == Broken::BadChunk {
                        self.plane.rejections.count("bad_chunk");
                    }
                    let (outcome, answer) = broken.verdict();
                    if let Some(tap) = tap {
                        tap.finish(Some(outcome));
                    }
                    if matches!(broken, Broken::ClientSilent | Broken::BadChunk) {
                        // It gets our answer, and none of the arm's.
                        carried.exchange.answered();
                    }
                    if outcome != Outcome::ClientGone || ended.status.is_none() {
                        let fault = answer.map(|(_, said)| Fault::new(ended.endpoint, said));
                        carried.exchange.judge(outcome, None, fault);
                    }
                    return match answer {
                        Some((status, text)) if ended.status.is_none() => {
                            let answer = respond::plain(status, text, carried.asked.head, false);
                            client.answer(&answer, false).await
                        }
                        _ => {
                            // What has been sent is not whole. A client of 1.1 sees that by its length or its chunks; for
                            // one of 1.0 the end of the connection would be the end of the answer.
                            if !carried.asked.http11 {
                                client.transport.reset_on_drop();
                            }
                            After::Abort
                        }
                    };
                }
            }
        }
    }

    /// Bytes both ways, after both sides have agreed to speak something else.
    /// Has the upstream gone again at once, without a byte? `since`: when they agreed.
    async fn tunnel(
        &self,
        client: &mut Client,
        mut upstream: Upstream,
        route: &Route,
        ended: &mut Ended,
        since: Instant,
    ) -> bool {
        let timeouts = &route.settings.timeouts;
        let early = client.input.bytes().to_vec();
        client.input = Buffer::default();
        match time::timeout(timeouts.write, upstream.transport.write_all(&early)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return ended.bytes_out == 0,
            Err(_) => return false,
        }
        let patience = forward::Patience { idle: timeouts.idle, write: timeouts.write, after_upstream: LAST_WORDS };
        let moved = relay(&mut client.transport, &mut upstream.transport, patience, &mut ()).await;
        ended.bytes_in += early.len() as u64 + moved.up;
        ended.bytes_out += moved.down;
        ended.bytes_out == 0 && moved.was_left_at_once(since)
    }

    /// Stage 7.
    fn record(&self, route: &Route, mut carried: Carried, ended: &Ended, client: SocketAddr) {
        carried.exchange.add_bytes(ended.bytes_in, ended.bytes_out);
        if let Some((method, path)) = carried.line.as_deref() {
            tracing::info!(
                target: "access",
                route = route.settings.name.as_str(),
                arm = carried.exchange.arm().as_str(),
                endpoint = ended.endpoint.map(tracing::field::display),
                client = %client.ip(),
                method,
                // Without its query, which may carry secrets.
                path,
                status = ended.status.map(|status| status.as_u16()),
                latency_us = ended.latency_us,
                bytes_in = ended.bytes_in,
                bytes_out = ended.bytes_out,
                error = ended.broken.map(|broken| broken.as_str()),
                "http"
            );
        }
        if let Some(status) = ended.status {
            let outcome = super::service::answered(status, ended.grpc_status);
            let fault = outcome.is_failure().then(|| Fault::answered(ended.endpoint, status, ended.grpc_status));
            carried.exchange.end(outcome, ended.latency_us, fault);
        }
    }
}

/// How an exchange went that did not break.
enum Moved {
    /// `pooled`: the endpoint takes another request on its connection. `keep`: so do we on the client's.
    Answered {
        pooled: Option<Pooled>,
        keep: bool,
    },
    Switched,
}

struct Pooled {
    doubtful: bool,
}

impl Exchange<'_> {
    /// Sends the request, and brings its answer to the client.
    async fn request_and_answer(
        &mut self,
        request: &mut Scratch,
        head: &Head,
        asked: Asked,
        ended: &mut Ended,
        tap: &mut Option<Tap>,
        drain: &Drain,
    ) -> Result<Moved, Broken> {
        self.upload.first(&mut self.client.input, request)?;
        self.send(request).await?;

        let mut out = Scratch::take();
        let mut interim = 0;
        let mut response = loop {
            let response = self.answer(asked, &mut out).await?;
            if !response.status.is_informational() || response.status == StatusCode::SWITCHING_PROTOCOLS {
                break response;
            }
            interim += 1;
            if interim > MAX_INTERIM {
                return Err(Broken::Upstream { early: false });
            }
            // RFC 9110, section 15.2: a 1.0 client knows no interim answers.
            if asked.http11 {
                out.extend_from_slice(b"\r\n");
                self.write(&out).await?;
            }
            out.clear();
        };
        let now = Instant::now();
        let latency_us = now.duration_since(self.since).as_micros() as u64;
        (self.since, self.client.seen) = (now, now);
        self.upload.answered = true;
        (ended.status, ended.latency_us) = (Some(response.status), Some(latency_us));
        ended.grpc_status = response.grpc_status;
        if let Some(tap) = tap {
            tap.answered(response.status, latency_us);
        }

        let switched = response.status == StatusCode::SWITCHING_PROTOCOLS;
        if asked.expose_arm {
            out.extend_from_slice(b"x-crossfade-arm: ");
            out.extend_from_slice(self.account.arm().as_str().as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        // RFC 9112, section 6.1: a 1.0 client knows no chunks; for it the end of the connection is the end of the body.
        let framing = match (&response.body, asked.http11) {
            (Body::UntilClose, true) => Framing::Chunk,
            (Body::Chunked(_), false) => Framing::Plain,
            _ => Framing::AsIs,
        };
        let unframed = !asked.http11 && matches!(response.body, Body::Chunked(_) | Body::UntilClose);
        if framing == Framing::Chunk {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        // RFC 9110, section 10.1.1: nobody knows whether the body that was announced with `Expect` is still to come.
        let abandoned = head.says.expect && !self.upload.is_done();
        let keep = head.keep_alive && !unframed && !abandoned && drain.end().is_none();
        if !switched {
            // Also where it is the default: old clients, and people who read, want it said.
            let connection: &[u8] = if keep { b"connection: keep-alive\r\n" } else { b"connection: close\r\n" };
            out.extend_from_slice(connection);
        }
        out.extend_from_slice(b"\r\n");
        if switched {
            self.write(&out).await?;
            let early = self.upstream.input.bytes().to_vec();
            self.upstream.input = Buffer::default();
            self.write(&early).await?;
            ended.bytes_out = early.len() as u64;
            return Ok(Moved::Switched);
        }
        let pooled = response.reusable.then_some(Pooled { doubtful: response.doubtful });
        self.deliver(&mut out, &mut response.body, framing, tap, &mut ended.bytes_out).await?;
        Ok(Moved::Answered { pooled, keep })
    }
}

/// None of the endpoints that may be tried is left.
struct Unreachable;

/// Stage 4: an endpoint of the exchange's arm, with a pooled connection to it if there is one, or, where the route says so
/// and green cannot be reached, of blue. `hindrance`: to the last one that was tried. `surely`: the request could not be
/// sent again.
fn choose(
    route: &Route,
    exchange: &mut telemetry::Exchange,
    tried: &mut Vec<SocketAddr>,
    hindrance: &mut Hindrance,
    surely: bool,
) -> Result<(Lease, Option<Transport>), Unreachable> {
    loop {
        if let Some(lease) = route.upstream(exchange.arm()).choose(tried) {
            let pooled = lease.endpoint.take_idle(surely);
            return Ok((lease, pooled));
        }
        if exchange.arm() == Arm::Blue || route.settings.fallback != Fallback::Blue {
            return Err(Unreachable);
        }
        exchange.fall_back(mem::take(hindrance).fault(tried.last().copied()));
        tried.clear();
    }
}

/// A new connection.
async fn connect(route: &Route, arm: Arm, lease: &Lease) -> Result<Transport, NotConnected> {
    let patience = route.settings.timeouts.connect;
    let (hindrance, failure) = match time::timeout(patience, establish(route.upstream(arm), lease.address())).await {
        Ok(Ok(transport)) => return Ok(transport),
        Ok(Err(error)) if is_shortage(&error) => {
            route.meter.reject("no_descriptors");
            return Err(NotConnected::Shortage);
        }
        Ok(Err(error)) => (Hindrance::of(&error), error.to_string()),
        Err(_) => (Hindrance::Silent, format!("no connection within {patience:?}")),
    };
    tracing::debug!(route = route.settings.name, %arm, address = %lease.address(), failure, "Connecting failed");
    lease.endpoint.connecting_failed(&failure);
    Err(NotConnected::Unreachable(hindrance))
}
