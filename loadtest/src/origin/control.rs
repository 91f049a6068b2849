//! An HTTP endpoint that reads and changes the behaviour of an [`HttpOrigin`] from outside its process. The binary
//! offers it; tests hold a [`BehaviourHandle`] and need none.
//!
//! - `GET /behaviour`: the behaviour now;
//! - `PUT /behaviour`: replaces it; what is left out takes its default, so `{}` is a cure;
//! - `GET /seen`: requests, connections, open connections.
//!
//! ```json
//! {"status": 500, "latency_ms": 20, "hang": false, "reset_after_header": false, "error_share": 0.1}
//! ```

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Behaviour, BehaviourHandle, HttpOrigin, ListenError, Seen, final_status, serving::Serving};

/// The largest body read, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// A running control endpoint. Dropping it stops it; the origin runs on.
#[derive(Debug)]
pub struct Control {
    serving: Serving,
}

impl Control {
    /// Starts the endpoint for `origin` on `address` (port 0 picks a free one). It asks for no password: anyone who
    /// can connect can change the origin. Errors: the address cannot be listened on.
    pub async fn start(origin: &HttpOrigin, address: SocketAddr) -> Result<Self, ListenError> {
        let (behaviour, seen) = (origin.behaviour().clone(), Arc::clone(origin.seen()));
        let serving = Serving::start(address, move |stream, _| {
            let (behaviour, seen) = (behaviour.clone(), Arc::clone(&seen));
            async move {
                let service = service_fn(move |request| {
                    let (behaviour, seen) = (behaviour.clone(), Arc::clone(&seen));
                    async move { Ok::<_, Infallible>(answer(request, &behaviour, &seen).await) }
                });
                let mut server = http1::Builder::new();
                server.timer(TokioTimer::new());
                if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
                    tracing::debug!(%error, "Control connection ended early");
                }
            }
        })
        .await?;
        Ok(Self { serving })
    }

    /// Where it listens, the port filled in.
    pub fn address(&self) -> SocketAddr {
        self.serving.address()
    }
}

/// [`Behaviour`] as JSON.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Wire {
    status: Option<u16>,
    latency_ms: u64,
    hang: bool,
    reset_after_header: bool,
    error_share: f64,
}

impl From<Behaviour> for Wire {
    fn from(behaviour: Behaviour) -> Self {
        Self {
            status: behaviour.status.map(|status| status.as_u16()),
            latency_ms: u64::try_from(behaviour.latency.as_millis()).unwrap_or(u64::MAX),
            hang: behaviour.hang,
            reset_after_header: behaviour.reset_after_header,
            error_share: behaviour.error_share,
        }
    }
}

impl TryFrom<Wire> for Behaviour {
    type Error = String;

    fn try_from(wire: Wire) -> Result<Self, String> {
        if !(0.0..=1.0).contains(&wire.error_share) {
            return Err("error_share: not a share; give 0 to 1".to_owned());
        }
        Ok(Self {
            status: wire.status.map(final_status).transpose().map_err(|problem| format!("status: {problem}"))?,
            latency: Duration::from_millis(wire.latency_ms),
            hang: wire.hang,
            reset_after_header: wire.reset_after_header,
            error_share: wire.error_share,
        })
    }
}

async fn answer(request: Request<Incoming>, behaviour: &BehaviourHandle, seen: &Seen) -> Response<Full<Bytes>> {
    let answer = match (request.method(), request.uri().path()) {
        (&Method::GET, "/behaviour") => Ok(json!(Wire::from(behaviour.get()))),
        (&Method::PUT, "/behaviour") => {
            replace(request.into_body(), behaviour).await.map_err(|problem| (StatusCode::BAD_REQUEST, problem))
        }
        (&Method::GET, "/seen") => Ok(json!({
            "requests": seen.requests(),
            "connections": seen.connections(),
            "open_connections": seen.open_connections(),
        })),
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

async fn replace(body: Incoming, handle: &BehaviourHandle) -> Result<serde_json::Value, String> {
    let body = Limited::new(body, MAX_BODY).collect().await.map_err(|error| format!("body: {error}"))?;
    let wire: Wire = serde_json::from_slice(&body.to_bytes()).map_err(|error| format!("body: {error}"))?;
    let behaviour = Behaviour::try_from(wire)?;
    handle.set(behaviour.clone());
    Ok(json!(Wire::from(behaviour)))
}
