//! The stages of a request, called by Pingora in its order: route and key → split → upstream → mirror → telemetry.

use std::{
    mem,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use admin_api::Outcome;
use async_trait::async_trait;
use bytes::Bytes;
use config::{Arm, Fallback, HttpVersion};
use http::{HeaderMap, HeaderName, StatusCode, Version, header};
use pingora::{
    Error, ErrorSource, ErrorType, Result, RetryType,
    http::{RequestHeader, ResponseHeader},
    protocols::{ALPN, http::authority::raw_target_authority},
    proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session},
    upstreams::peer::HttpPeer,
};
use tokio::time::{Duration, Instant};

use super::{
    Connection,
    respond::{is_grpc, respond},
};
use crate::{
    drain::Drain,
    key::{self, HttpCaller},
    live::Route,
    mirror::Tap,
    plane::Plane,
    telemetry::{Exchange, Fault},
    upstream::{self, ArmUpstream, Hindrance, Lease},
    worker::{Handle, Shared},
};

/// Tells which arm answered, and in requests, where a route allows it, which one shall.
const ARM: HeaderName = HeaderName::from_static("x-crossfade-arm");
/// Marks copies. Clients must not be able to set it: services may treat copies as a dry run.
const SHADOW: HeaderName = HeaderName::from_static("x-shadow");
/// How often one request may be sent again when it is certain that it was not processed.
const MAX_REPLAYS: u8 = 3;
/// Connecting failed for want of descriptors, ports or memory of our own.
const NO_RESOURCES: ErrorType = ErrorType::Custom("NoResources");
/// Streams on one HTTP/2 connection to an endpoint.
const MAX_UPSTREAM_STREAMS: usize = 100;

pub(super) struct Service {
    plane: Arc<Plane>,
    drain: Drain,
}

impl Service {
    pub(super) fn new(plane: Arc<Plane>, drain: Drain) -> Self {
        Self { plane, drain }
    }
}

/// One request from its head to its end.
#[derive(Default)]
pub(super) struct Ctx {
    connection: Option<Arc<Connection>>,
    /// As of when the request came; a split that changes later is not this request's.
    route: Option<Handle<Route>>,
    exchange: Option<Exchange>,
    started: Option<Instant>,
    /// When the last part of the request's body came.
    fed: Option<Instant>,
    lease: Option<Lease>,
    tried: Vec<SocketAddr>,
    /// To the last one that was tried.
    hindrance: Hindrance,
    /// How often the request was sent again.
    replays: u8,
    /// The endpoint is spoken to in HTTP/2 for no other reason than that the client's request is gRPC.
    guessed_h2: bool,
    key: Option<Vec<u8>>,
    copied: bool,
    tap: Option<Tap>,
    status: Option<StatusCode>,
    latency_us: Option<u64>,
    grpc_status: Option<u16>,
    access_log: bool,
}

impl Ctx {
    fn upstream(&self) -> Option<(&Route, &Arc<ArmUpstream>)> {
        let route = self.route.as_ref()?;
        Some((route, route.upstream(self.exchange.as_ref()?.arm())))
    }

    fn arm(&self) -> Option<Arm> {
        self.exchange.as_ref().map(Exchange::arm)
    }

    /// For the answer, and for each part of the request's body.
    fn patience(&self) -> Option<Duration> {
        self.route.as_ref().map(|route| route.settings.timeouts.response_header)
    }
}

impl Drop for Ctx {
    fn drop(&mut self) {
        let overdue = self.connection.as_ref().is_some_and(|c| c.overdue.load(Ordering::Relaxed));
        if let (true, Some(exchange)) = (overdue, &mut self.exchange) {
            let fault = Fault::new(self.lease.as_ref().map(Lease::address), "the endpoint did not answer in time");
            exchange.judge(Outcome::Timeout, None, Some(fault));
        }
    }
}

#[async_trait]
impl ProxyHttp for Service {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        Ctx::default()
    }

    /// Stages 1 to 3: which route, which key, which arm. Answers what no route takes.
    async fn request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
        let Some(connection) = Connection::of(session.digest()) else {
            return Err(Error::explain(ErrorType::InternalError, "a session without its connection"));
        };
        let live = self.plane.live();
        ctx.access_log = live.access_log;
        let request = session.req_header();
        let route = live.listeners[connection.listener].find(&host(request), request.uri.path());
        let Some(route) = route.map(Shared::handle) else {
            self.plane.rejections.count("no_route");
            ctx.connection = Some(connection);
            respond(session, StatusCode::NOT_FOUND, "no route takes this host and path").await?;
            return Ok(true);
        };
        let caller = HttpCaller {
            fields: &request.headers,
            path: request.uri.path(),
            query: request.uri.query(),
            client: connection.client.ip(),
        };
        let key = key::of_http(&route.settings.key, &caller);
        let wanted = route.settings.allow_override.then(|| wanted_arm(&request.headers)).flatten();
        let decided = route.decide(key.as_deref(), wanted);
        // The mirror samples by key, later, when it is known what exactly the arm is sent.
        ctx.key = route.mirror.is_some().then(|| key.map(|key| key.into_owned())).flatten();
        ctx.exchange = Some(Exchange::dispatch(route.meter.handle(), &decided));
        ctx.started = Some(Instant::now());
        let timeouts = &route.settings.timeouts;
        session.set_read_timeout(Some(timeouts.response_header));
        session.set_write_timeout(Some(timeouts.write));
        session.set_total_drain_timeout(Some(timeouts.request_header));
        // An answer may come before the request's end (an echo, 100 Continue): the connection outlives both.
        session.set_close_on_response_before_downstream_finish(false);
        // RFC 9110 section 15.2: a 1.0 client knows no interim answers.
        let is_http10 = session.req_header().version == Version::HTTP_10;
        session.set_ignore_info_resp(is_http10);
        ctx.connection = Some(connection);
        ctx.route = Some(route);
        Ok(false)
    }

    /// Stage 4. Called again after a failed connection: then it is the next endpoint's turn, or that of the fallback.
    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
        ctx.lease = None;
        loop {
            let Some((route, upstream)) = ctx.upstream() else {
                return Err(Error::explain(ErrorType::InternalError, "a request without its route"));
            };
            if let Some(lease) = upstream.choose(&ctx.tried) {
                let peer = peer(route, upstream, lease.address(), session);
                ctx.guessed_h2 = upstream.http_version == HttpVersion::Auto && peer.options.alpn == ALPN::H2;
                ctx.lease = Some(lease);
                return Ok(Box::new(peer));
            }
            let falls_back = upstream.arm == Arm::Green && route.settings.fallback == Fallback::Blue;
            let Some(exchange) = &mut ctx.exchange else { continue };
            let fault = mem::take(&mut ctx.hindrance).fault(ctx.tried.last().copied());
            if !falls_back {
                exchange.judge(Outcome::Unreachable, None, Some(fault));
                return Err(Error::explain(ErrorType::HTTPStatus(503), "no endpoint could be reached"));
            }
            exchange.fall_back(fault);
            ctx.tried.clear();
        }
    }

    fn fail_to_connect(&self, _: &mut Session, peer: &HttpPeer, ctx: &mut Ctx, mut error: Box<Error>) -> Box<Error> {
        tracing::debug!(%peer, %error, "Connecting failed");
        if is_shortage(&error) {
            self.plane.rejections.count("no_descriptors");
            return Error::explain(NO_RESOURCES, "connecting needs more than this process has");
        }
        if let Some(lease) = &ctx.lease {
            lease.endpoint.connecting_failed(&error.to_string());
            ctx.tried.push(lease.address());
            ctx.hindrance = hindrance(&error);
        }
        // Nothing was sent, so `upstream_peer` may try the next one; it says when there is none.
        error.set_retry(true);
        error
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut Ctx,
        reused: bool,
    ) -> Box<Error> {
        let repeatable = session.req_header().method.is_idempotent() && session.is_body_empty() && ctx.status.is_none();
        let unprocessed = match error.retry {
            // A pooled connection that the endpoint closed in the meantime.
            RetryType::ReusedOnly => reused,
            // HTTP/2: the endpoint says that it did not process the request (REFUSED_STREAM, GOAWAY).
            RetryType::Decided(unprocessed) => unprocessed,
        };
        let again = repeatable && unprocessed && ctx.replays < MAX_REPLAYS;
        ctx.replays += u8::from(again);
        error.set_retry(again);
        error
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        let (Some(connection), Some(route)) = (&ctx.connection, &ctx.route) else { return Ok(()) };
        for name in [ARM, SHADOW, header::FORWARDED] {
            request.remove_header(&name);
        }
        // RFC 9112 section 3.2.2: absolute form is for proxies; an origin gets origin form, and `Host` says the rest. The
        // engine's URI is the path alone in either form, but what came is kept beside it, and would be sent.
        if let Some(authority) = absolute_authority(request).map(str::to_owned) {
            if !request.headers.contains_key(header::HOST) {
                request.insert_header(header::HOST, authority)?;
            }
            request.set_uri(request.uri.clone());
        }
        request.insert_header("x-forwarded-for", connection.client.ip().to_canonical().to_string())?;
        request.insert_header("x-forwarded-proto", if connection.tls { "https" } else { "http" })?;
        match authority(session.req_header()) {
            Some(authority) => request.insert_header("x-forwarded-host", authority)?,
            None => {
                request.remove_header("x-forwarded-host");
            }
        }
        if let (Some(mirror), Some(arm), false) = (&route.mirror, ctx.exchange.as_ref().map(Exchange::arm), ctx.copied)
        {
            ctx.copied = true;
            let (to, method) = (route.upstream(arm.other()), request.method.clone());
            let parts = || Some(http::request::Parts::clone(request));
            ctx.tap = mirror.offer(to, ctx.key.as_deref(), method.as_str().as_bytes(), session.is_body_empty(), parts);
        }
        Ok(())
    }

    async fn request_body_filter(&self, _: &mut Session, _: &mut Option<Bytes>, _: bool, ctx: &mut Ctx) -> Result<()> {
        ctx.fed = Some(Instant::now());
        Ok(())
    }

    async fn response_filter(&self, session: &mut Session, response: &mut ResponseHeader, ctx: &mut Ctx) -> Result<()> {
        if response.status.is_informational() && response.status != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(());
        }
        ctx.status = Some(response.status);
        ctx.latency_us = ctx.started.map(|started| started.elapsed().as_micros() as u64);
        ctx.grpc_status = grpc_status(&response.headers);
        if let Some(connection) = &ctx.connection {
            connection.answered.store(true, Ordering::Relaxed);
        }
        if let (true, Some(lease)) = (ctx.guessed_h2, &ctx.lease) {
            lease.endpoint.speaks_h2();
        }
        if response.status == StatusCode::SWITCHING_PROTOCOLS {
            if let Some(connection) = &ctx.connection {
                connection.tunnel.store(true, Ordering::Relaxed);
            }
            // How long the tunnel lives, and who ends it, says nothing about the arm.
            if let Some(exchange) = &mut ctx.exchange {
                exchange.judge(Outcome::Ok, ctx.latency_us, None);
            }
        } else {
            if let Some(exchange) = &mut ctx.exchange {
                exchange.answered();
            }
            strip_hop_by_hop(response);
        }
        if let (Some(route), Some(arm)) = (&ctx.route, ctx.exchange.as_ref().map(Exchange::arm))
            && route.settings.expose_arm
        {
            response.insert_header(ARM, arm.as_str())?;
        }
        if let Some(tap) = &mut ctx.tap {
            tap.answered(response.status, ctx.latency_us.unwrap_or_default());
        }
        let request = session.req_header();
        let (version, expecting) = (request.version, request.headers.contains_key(header::EXPECT));
        // RFC 9112 section 6.1: a 1.0 client knows no chunks; for it the end of the connection is the end of the body.
        let unframed = version == Version::HTTP_10 && response.headers.contains_key(header::TRANSFER_ENCODING);
        if unframed {
            response.remove_header(&header::TRANSFER_ENCODING);
        }
        // RFC 9110 section 10.1.1: nobody knows whether the body that was announced with `Expect` is still to come.
        let abandoned = expecting && !session.is_body_done();
        if unframed || abandoned || self.drain.end().is_some() {
            session.set_keepalive(None);
        }
        Ok(())
    }

    fn response_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        _: bool,
        ctx: &mut Ctx,
    ) -> Result<Option<Duration>> {
        if let (Some(tap), Some(body)) = (&mut ctx.tap, body) {
            tap.body(body);
        }
        Ok(None)
    }

    fn upstream_response_trailer_filter(&self, _: &mut Session, trailers: &mut HeaderMap, ctx: &mut Ctx) -> Result<()> {
        ctx.grpc_status = grpc_status(trailers).or(ctx.grpc_status);
        Ok(())
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Ctx) -> FailToProxy {
        // A client that stalls or is slow with its body can show as an endpoint that does not answer: the engine has no
        // patience of its own for the body of an HTTP/2 client, and it waits for an endpoint of HTTP/2 from the request's
        // start, not its end. An HTTP/1 client that stalls is given up before that; one of which a part came lately is
        // slow; and when none came and it was not given up, nobody read, since the endpoint takes no more.
        let fed = ctx.fed.is_some_and(|fed| ctx.patience().is_some_and(|patience| fed.elapsed() < patience));
        let starved = *error.etype() == ErrorType::ReadTimedout
            && !session.is_body_done()
            && (session.req_header().version == Version::HTTP_2 || fed);
        let (mut outcome, status, text) = if starved { BODY_OVERDUE } else { verdict(error) };
        let knows_h2 = ctx.lease.as_ref().is_some_and(|lease| lease.endpoint.is_known_to_speak_h2());
        if outcome == Outcome::Broken && ctx.guessed_h2 && !knows_h2 {
            // It may well be that no gRPC is spoken here, and then it was the client who made it break.
            outcome = Outcome::ClientGone;
        }
        if let Some(exchange) = &mut ctx.exchange
            && (outcome != Outcome::ClientGone || ctx.status.is_none())
        {
            if outcome == Outcome::ClientGone && status.is_some() {
                // It gets our answer, and none of the arm's.
                exchange.answered();
            }
            let fault = Fault::new(ctx.lease.as_ref().map(Lease::address), text);
            exchange.judge(outcome, None, Some(fault));
        }
        if let (ErrorSource::Downstream, ErrorType::Custom(BAD_CHUNK | BAD_TRAILER)) = (error.esource(), error.etype())
        {
            self.plane.rejections.count("bad_chunk");
        }
        // The connection ends here, and the answer says so.
        session.set_keepalive(None);
        let status =
            status.filter(|_| session.response_written().is_none_or(|written| written.status.is_informational()));
        if let Some(status) = status
            && let Err(error) = respond(session, status, text).await
        {
            tracing::debug!(%error, "The client did not take our answer");
        }
        FailToProxy { error_code: status.map_or(0, |status| status.as_u16()), can_reuse_downstream: false }
    }

    /// Stage 7.
    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Ctx) {
        let (bytes_in, bytes_out) = (session.body_bytes_read() as u64, session.body_bytes_sent() as u64);
        if let Some(exchange) = &mut ctx.exchange {
            if let Some(status) = ctx.status {
                let outcome = answered(status, ctx.grpc_status);
                let endpoint = ctx.lease.as_ref().map(Lease::address);
                let fault = outcome.is_failure().then(|| Fault::answered(endpoint, status, ctx.grpc_status));
                exchange.judge(outcome, ctx.latency_us, fault);
            }
            exchange.add_bytes(bytes_in, bytes_out);
        }
        if let Some(tap) = ctx.tap.take() {
            tap.finish(error.map(|error| verdict(error).0));
        }
        if ctx.access_log {
            let request = session.req_header();
            tracing::info!(
                target: "access",
                route = ctx.route.as_ref().map(|route| route.settings.name.as_str()),
                arm = ctx.arm().map(Arm::as_str),
                endpoint = ctx.lease.as_ref().map(|lease| tracing::field::display(lease.address())),
                client = ctx.connection.as_ref().map(|connection| tracing::field::display(connection.client.ip())),
                method = %request.method,
                // Without its query, which may carry secrets.
                path = request.uri.path(),
                status = session.response_written().map(|response| response.status.as_u16()),
                latency_us = ctx.latency_us,
                bytes_in,
                bytes_out,
                error = error.map(|error| error.etype().as_str()),
                "http"
            );
        }
    }

    // Every failure is counted, and logged with its route where that is wanted; a line each would flood the log just
    // when somebody reads it.
    fn suppress_error_log(&self, _: &Session, _: &Ctx, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Ctx, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }
}

/// The name a request is for, lower case, without port.
fn host(request: &RequestHeader) -> String {
    let authority = authority(request).unwrap_or_default();
    let host = match authority.rfind(':') {
        Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
        _ => authority,
    };
    // A name with its root's dot is the same name.
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

fn authority(request: &RequestHeader) -> Option<&str> {
    let from_target = request.uri.authority().map(|authority| authority.as_str());
    from_target.or_else(|| absolute_authority(request)).or_else(|| request.headers.get(header::HOST)?.to_str().ok())
}

/// The authority of an HTTP/1 target in absolute form, which the engine leaves out of the URI.
fn absolute_authority(request: &RequestHeader) -> Option<&str> {
    let target = request.raw_path();
    if target.starts_with(b"/") {
        return None;
    }
    raw_target_authority(target).authority().and_then(|authority| str::from_utf8(authority).ok())
}

fn wanted_arm(headers: &HeaderMap) -> Option<Arm> {
    let wanted = headers.get(ARM)?.as_bytes();
    Arm::BOTH.into_iter().find(|arm| arm.as_str().as_bytes().eq_ignore_ascii_case(wanted))
}

fn peer(route: &Route, upstream: &ArmUpstream, address: SocketAddr, session: &Session) -> HttpPeer {
    let timeouts = &route.settings.timeouts;
    let grpc = is_grpc(session);
    let alpn = match (upstream.http_version, &upstream.tls) {
        (HttpVersion::Http1, _) => ALPN::H1,
        (HttpVersion::Http2, _) => ALPN::H2,
        (HttpVersion::Auto, Some(_)) if session.is_upgrade_req() => ALPN::H1,
        (HttpVersion::Auto, Some(_)) => ALPN::H2H1,
        // In clear there is nothing to negotiate with; gRPC is always HTTP/2.
        (HttpVersion::Auto, None) if grpc => ALPN::H2,
        (HttpVersion::Auto, None) => ALPN::H1,
    };
    let server_name = upstream.tls.as_ref().map(|tls| tls.server_name.clone());
    let mut peer = HttpPeer::new(address, server_name.is_some(), server_name.unwrap_or_default());
    if let Some(tls) = &upstream.tls {
        peer.options.ca = tls.engine_roots();
        // Connections that were verified against other roots are none of ours, and one that had to be HTTP/1.1 for an
        // upgrade must not be found by a request that could have had HTTP/2.
        peer.group_key = tls.roots_id().wrapping_add(u64::from(session.is_upgrade_req()));
    }
    peer.options.alpn = alpn;
    peer.options.max_h2_streams = MAX_UPSTREAM_STREAMS;
    peer.options.connection_timeout = Some(timeouts.connect);
    peer.options.total_connection_timeout = Some(timeouts.connect);
    peer.options.write_timeout = Some(timeouts.write);
    peer.options.idle_timeout = Some(POOL_IDLE);
    // The engine has one patience for the header and for each read after it. Where silence is normal it is the long one.
    let silent = grpc || session.is_upgrade_req() || wants_events(session.req_header());
    // Where endpoint and client are both waited for, the client's patience must end first, or a client that stalls would
    // count against the arm.
    peer.options.read_timeout = Some(if silent { timeouts.idle } else { timeouts.response_header } + CLIENT_FIRST);
    peer
}

/// How much longer than the client the endpoint is waited for.
const CLIENT_FIRST: Duration = Duration::from_millis(200);

/// How long an unused connection to an endpoint is kept. Below what servers commonly allow (nginx: 75 s), so that it is
/// rarely the endpoint that closes first.
const POOL_IDLE: Duration = Duration::from_secs(55);

fn wants_events(request: &RequestHeader) -> bool {
    let accept = request.headers.get(header::ACCEPT);
    accept.is_some_and(|accept| accept.as_bytes().starts_with(b"text/event-stream"))
}

/// RFC 9110 section 7.6.1: what `Connection` names, and what is always for one hop.
fn strip_hop_by_hop(response: &mut ResponseHeader) {
    let nominated: Vec<HeaderName> = response
        .headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        // `close` is a token, and framing is the engine's business.
        .filter(|name| {
            *name != header::CONNECTION && *name != header::TRANSFER_ENCODING && *name != header::CONTENT_LENGTH
        })
        .collect();
    for name in &nominated {
        response.remove_header(name);
    }
    for name in ["keep-alive", "proxy-connection", "proxy-authenticate", "upgrade"] {
        response.remove_header(name);
    }
}

fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// How an answer counts for its arm. gRPC: unknown, deadline exceeded, unimplemented, internal, unavailable and data
/// loss are the server's, the others the caller's.
pub(crate) fn answered(status: StatusCode, grpc_status: Option<u16>) -> Outcome {
    match grpc_status {
        None | Some(0) if status.is_server_error() => Outcome::Refused,
        None | Some(0) if status.is_client_error() => Outcome::Declined,
        None | Some(0) => Outcome::Ok,
        Some(2 | 4 | 12 | 13 | 14 | 15) => Outcome::Refused,
        Some(_) => Outcome::Declined,
    }
}

/// How the engine names what is wrong with a chunked body.
const BAD_CHUNK: &str = "InvalidChunk";
const BAD_TRAILER: &str = "InvalidTrailerEnd";

type Verdict = (Outcome, Option<StatusCode>, &'static str);

const BODY_OVERDUE: Verdict =
    (Outcome::ClientGone, Some(StatusCode::REQUEST_TIMEOUT), "the request's body did not come in time");

/// Did connecting fail for a reason that lies with this process or machine?
fn is_shortage(error: &Error) -> bool {
    match error.root_cause().downcast_ref::<std::io::Error>() {
        Some(cause) => upstream::is_shortage(cause),
        None => matches!(error.etype(), ErrorType::BindError | ErrorType::SocketError),
    }
}

/// Why connecting failed, in our words.
fn hindrance(error: &Error) -> Hindrance {
    match error.etype() {
        ErrorType::ConnectRefused => Hindrance::Refused,
        ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => Hindrance::Silent,
        ErrorType::ConnectNoRoute => Hindrance::NoWay,
        ErrorType::HandshakeError | ErrorType::InvalidCert | ErrorType::TLSHandshakeFailure => Hindrance::Tls,
        _ => Hindrance::Other,
    }
}

/// What an error says about the arm, and what the client is told, if it can be.
fn verdict(error: &Error) -> Verdict {
    use ErrorType::{
        BindError, ConnectError, ConnectNoRoute, ConnectRefused, ConnectTimedout, Custom, HTTPStatus, HandshakeError,
        InvalidCert, InvalidHTTPHeader, ReadTimedout, SocketError, TLSHandshakeFailure, TLSHandshakeTimedout,
        WriteTimedout,
    };
    match (error.esource(), error.etype()) {
        (_, etype) if *etype == NO_RESOURCES => {
            (Outcome::ClientGone, Some(StatusCode::SERVICE_UNAVAILABLE), "the proxy is out of connections")
        }
        (_, HTTPStatus(503)) => {
            (Outcome::Unreachable, Some(StatusCode::SERVICE_UNAVAILABLE), "no endpoint could be reached")
        }
        (
            ErrorSource::Upstream,
            BindError | ConnectError | ConnectNoRoute | ConnectRefused | ConnectTimedout | HandshakeError | InvalidCert
            | SocketError | TLSHandshakeFailure | TLSHandshakeTimedout,
        ) => (Outcome::Unreachable, Some(StatusCode::SERVICE_UNAVAILABLE), "no endpoint could be reached"),
        (ErrorSource::Upstream, ReadTimedout | WriteTimedout) => {
            (Outcome::Timeout, Some(StatusCode::GATEWAY_TIMEOUT), "the endpoint did not answer in time")
        }
        (ErrorSource::Upstream, _) => {
            (Outcome::Broken, Some(StatusCode::BAD_GATEWAY), "the endpoint's answer was not whole or made no sense")
        }
        (ErrorSource::Downstream, ReadTimedout) => BODY_OVERDUE,
        (ErrorSource::Downstream, Custom(BAD_CHUNK | BAD_TRAILER)) => {
            (Outcome::ClientGone, Some(StatusCode::BAD_REQUEST), "the request's body is not well divided into chunks")
        }
        (ErrorSource::Downstream, InvalidHTTPHeader) => {
            (Outcome::ClientGone, Some(StatusCode::BAD_REQUEST), "the request makes no sense")
        }
        (ErrorSource::Downstream, _) => (Outcome::ClientGone, None, ""),
        (ErrorSource::Internal | ErrorSource::Unset, _) => {
            (Outcome::ClientGone, Some(StatusCode::INTERNAL_SERVER_ERROR), "the proxy failed to carry this request")
        }
    }
}
