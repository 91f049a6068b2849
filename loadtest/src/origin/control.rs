//! An HTTP endpoint that reads and changes the behaviour of an origin from outside its process. The binary offers it;
//! tests hold a [`BehaviourHandle`] and need none.
//!
//! - `GET /behaviour`: the behaviour now;
//! - `PUT /behaviour`: replaces it; what is left out takes its default, so `{}` is a cure;
//! - `GET /seen`: an HTTP origin's requests, messages, connections, open connections; a TCP origin's lines in place of
//!   requests and messages.
//!
//! ```json
//! {"status": 500, "latency": "lognormal:20ms,p99=200ms", "stall": "500ms/10s", "hang": false,
//!  "reset_after_header": false, "error_share": 0.1, "error_growth": 0.02, "reset_share": 0.3,
//!  "mismatch_share": 0.01, "spelling": "pascal"}
//! ```

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Behaviour, BehaviourHandle, HttpOrigin, ListenError, Listener, Seen, Spelling, TcpOrigin, TcpSeen, final_status,
    serving::Serving,
};

/// The largest body read, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// A running control endpoint. Dropping it stops it; the origin runs on.
#[derive(Debug)]
pub struct Control {
    serving: Serving,
}

/// An origin that a [`Control`] can be started for: an [`HttpOrigin`] or a [`TcpOrigin`].
#[derive(Clone, Debug)]
pub struct Controlled {
    behaviour: BehaviourHandle,
    seen: SeenBy,
}

#[derive(Clone, Debug)]
enum SeenBy {
    Http(Arc<Seen>),
    Tcp(Arc<TcpSeen>),
}

impl From<&HttpOrigin> for Controlled {
    fn from(origin: &HttpOrigin) -> Self {
        Self { behaviour: origin.behaviour().clone(), seen: SeenBy::Http(Arc::clone(origin.seen())) }
    }
}

impl From<&TcpOrigin> for Controlled {
    fn from(origin: &TcpOrigin) -> Self {
        Self { behaviour: origin.behaviour().clone(), seen: SeenBy::Tcp(Arc::clone(origin.seen())) }
    }
}

impl Control {
    /// Starts the endpoint for `origin` on `address` (port 0 picks a free one). It asks for no password: anyone who
    /// can connect can change the origin. Errors: the address cannot be listened on.
    pub async fn start(origin: impl Into<Controlled>, address: SocketAddr) -> Result<Self, ListenError> {
        Ok(Self::serve(origin, Listener::bind(address).await?))
    }

    /// Serves the endpoint for `origin` on what is listened on.
    pub fn serve(origin: impl Into<Controlled>, listener: Listener) -> Self {
        let controlled = origin.into();
        let serving = Serving::start(
            listener,
            |_| {},
            move |stream, _| {
                let controlled = controlled.clone();
                async move {
                    let service = service_fn(move |request| {
                        let controlled = controlled.clone();
                        async move { Ok::<_, Infallible>(controlled.answer(request).await) }
                    });
                    let mut server = http1::Builder::new();
                    server.timer(TokioTimer::new());
                    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
                        tracing::debug!(%error, "Control connection ended early");
                    }
                }
            },
        );
        Self { serving }
    }

    /// Where it listens, the port filled in.
    pub fn address(&self) -> SocketAddr {
        self.serving.address()
    }
}

impl Controlled {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let answer = match (request.method(), request.uri().path()) {
            (&Method::GET, "/behaviour") => Ok(json!(Wire::from(self.behaviour.get()))),
            (&Method::PUT, "/behaviour") => {
                self.replace(request.into_body()).await.map_err(|problem| (StatusCode::BAD_REQUEST, problem))
            }
            (&Method::GET, "/seen") => Ok(self.seen.counts()),
            (_, path) => {
                let problem = format!("{path}: no such call; there are GET and PUT /behaviour, and GET /seen");
                Err((StatusCode::NOT_FOUND, problem))
            }
        };
        let (status, json) = match answer {
            Ok(json) => (StatusCode::OK, json),
            Err((status, problem)) => (status, json!({"error": problem})),
        };
        let mut response = Response::new(Full::from(format!("{json}\n")));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        response
    }

    async fn replace(&self, body: Incoming) -> Result<Value, String> {
        let body = Limited::new(body, MAX_BODY).collect().await.map_err(|error| format!("body: {error}"))?;
        let wire: Wire = serde_json::from_slice(&body.to_bytes()).map_err(|error| format!("body: {error}"))?;
        let behaviour = self.read(wire).map_err(|faults| faults.join("\n"))?;
        self.behaviour.set(behaviour.clone());
        Ok(json!(Wire::from(behaviour)))
    }

    /// Errors: every faulty field.
    fn read(&self, wire: Wire) -> Result<Behaviour, Vec<String>> {
        let mut faults = Vec::new();
        let mut fault = |field: &str, problem: String| faults.push(format!("{field}: {problem}"));
        if matches!(self.seen, SeenBy::Tcp(_)) {
            for (field, given) in [
                ("status", wire.status.is_some()),
                ("reset_share", wire.reset_share != 0.0),
                ("mismatch_share", wire.mismatch_share != 0.0),
                ("spelling", wire.spelling != Spelling::default()),
            ] {
                if given {
                    fault(field, "a TCP origin has none; leave it out".to_owned());
                }
            }
        }
        for (field, share) in [
            ("error_share", wire.error_share),
            ("error_growth", wire.error_growth),
            ("reset_share", wire.reset_share),
            ("mismatch_share", wire.mismatch_share),
        ] {
            if !(0.0..=1.0).contains(&share) {
                fault(field, format!("{share} is not a share; give 0 to 1"));
            }
        }
        let status = wire.status.map(final_status).transpose().map_err(|problem| fault("status", problem));
        let latency = wire.latency.parse().map_err(|problem| fault("latency", problem));
        let stall = wire.stall.map(|stall| stall.parse()).transpose().map_err(|problem| fault("stall", problem));
        match (status, latency, stall) {
            (Ok(status), Ok(latency), Ok(stall)) if faults.is_empty() => Ok(Behaviour {
                status,
                latency,
                stall,
                hang: wire.hang,
                reset_after_header: wire.reset_after_header,
                error_share: wire.error_share,
                error_growth: wire.error_growth,
                reset_share: wire.reset_share,
                mismatch_share: wire.mismatch_share,
                spelling: wire.spelling,
            }),
            _ => Err(faults),
        }
    }
}

impl SeenBy {
    fn counts(&self) -> Value {
        match self {
            Self::Http(seen) => json!({
                "requests": seen.requests(),
                "messages": seen.messages(),
                "connections": seen.connections(),
                "open_connections": seen.open_connections(),
            }),
            Self::Tcp(seen) => json!({
                "lines": seen.lines(),
                "connections": seen.connections(),
                "open_connections": seen.open_connections(),
            }),
        }
    }
}

/// [`Behaviour`] as JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Wire {
    status: Option<u16>,
    latency: String,
    stall: Option<String>,
    hang: bool,
    reset_after_header: bool,
    error_share: f64,
    error_growth: f64,
    reset_share: f64,
    mismatch_share: f64,
    spelling: Spelling,
}

impl Default for Wire {
    fn default() -> Self {
        Behaviour::default().into()
    }
}

impl From<Behaviour> for Wire {
    fn from(behaviour: Behaviour) -> Self {
        Self {
            status: behaviour.status.map(|status| status.as_u16()),
            latency: behaviour.latency.to_string(),
            stall: behaviour.stall.map(|stall| stall.to_string()),
            hang: behaviour.hang,
            reset_after_header: behaviour.reset_after_header,
            error_share: behaviour.error_share,
            error_growth: behaviour.error_growth,
            reset_share: behaviour.reset_share,
            mismatch_share: behaviour.mismatch_share,
            spelling: behaviour.spelling,
        }
    }
}
