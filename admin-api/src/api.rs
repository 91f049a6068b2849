//! What people and scripts see: the HTTP API.
//!
//! A request passes `serve` (connections, deadlines), `access` (which host, from where, who), the router below, `body`
//! (a JSON object with known fields), and one of the handlers. Whatever is refused on the way is a `problem`.

mod access;
mod alerts;
mod body;
mod events;
mod history;
mod metrics;
mod openapi;
mod plan;
mod problem;
mod serve;
mod signals;
mod status;
mod traffic_split;

use std::{collections::BTreeMap, sync::Arc};

pub use access::{Access, AccessError};
use access::{Arrival, Caller, Role};
use axum::{
    Router,
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, Method, StatusCode, Uri, header};
use parking_lot::Mutex;
use problem::{Fault, Problem, Word};
pub use serve::serve;
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;
use tower_service::Service;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Alerts, Control, Recorder, Refusal};

/// The admin API over a control plane. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    shared: Arc<Shared>,
    router: Router,
}

struct Shared {
    control: Arc<Control>,
    access: Access,
    alerts: Arc<Alerts>,
    history: Arc<Recorder>,
    started: Instant,
    /// Listeners of `/events`, so that they leave room for people who want to roll back.
    streams: Arc<Semaphore>,
    /// How often each kind of problem was the answer.
    refused: Mutex<BTreeMap<&'static str, u64>>,
    shutdown: CancellationToken,
}

type State = axum::extract::State<Arc<Shared>>;

const EVENT_STREAMS: usize = 64;

impl Api {
    pub fn new(control: Arc<Control>, access: Access, alerts: Arc<Alerts>, history: Arc<Recorder>) -> Self {
        let shared = Arc::new(Shared {
            control,
            access,
            alerts,
            history,
            started: Instant::now(),
            streams: Arc::new(Semaphore::new(EVENT_STREAMS)),
            refused: Mutex::new(BTreeMap::new()),
            shutdown: CancellationToken::new(),
        });
        let (router, openapi) = documented().split_for_parts();
        let openapi = openapi.to_json().unwrap_or_else(|_| "{}".to_owned());
        let router = router
            .route("/openapi.json", axum::routing::get(move || async move { json_text(openapi) }))
            .fallback(not_found)
            .method_not_allowed_fallback(method_not_allowed)
            .with_state(shared.clone());
        Self { shared, router }
    }

    /// The OpenAPI document of every call.
    pub fn openapi() -> utoipa::openapi::OpenApi {
        documented().into_openapi()
    }

    /// Answers one request, whatever it is.
    async fn answer(&self, mut request: Request, arrival: &Arrival) -> Response {
        without_alias(request.uri_mut());
        let mut response = match self.route(request, arrival).await {
            Ok(response) => response,
            Err(problem) => problem.into_response(),
        };
        if let Some(Word(word)) = response.extensions().get() {
            *self.shared.refused.lock().entry(word).or_default() += 1;
        }
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }

    async fn route(&self, mut request: Request, arrival: &Arrival) -> Result<Response, Box<Problem>> {
        let access = &self.shared.access;
        access.check_host(&request, arrival)?;
        let path = request.uri().path();
        let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
        let caller = if OPEN_PATHS.contains(&path) {
            if changes {
                // Before the audit trail: nobody without a token writes there.
                return Err(wrong_method(request.method(), path).header(header::ALLOW, "GET,HEAD"));
            }
            Caller::nobody(arrival)
        } else {
            access.identify(request.headers(), arrival).await?
        };
        if changes && self.shared.control.is_frozen() {
            return Err(Refusal::Frozen.into());
        }
        if changes && caller.role != Role::Operate {
            let problem = Problem::new(StatusCode::FORBIDDEN, "role", "this token may read, but not change anything")
                .cure("use a token with the role operate");
            self.shared.control.refused(action(path), None, None, &caller.actor, &problem.detail);
            return Err(problem);
        }
        request.extensions_mut().insert(caller);
        // The router is always ready.
        match self.router.clone().call(request).await {
            Ok(response) => Ok(response),
            Err(never) => match never {},
        }
    }
}

/// Asked by machines that have no token, and telling nothing.
const OPEN_PATHS: [&str; 2] = ["/health", "/ready"];

/// The word of the audit trail for what a request would have done.
fn action(path: &str) -> &'static str {
    match path {
        "/traffic-split" => "split",
        "/rollback" => "rollback",
        "/reset" => "reset",
        "/plan/start" => "plan-start",
        "/plan/pause" => "plan-pause",
        "/plan/resume" => "plan-resume",
        "/plan/approve" => "plan-approve",
        "/plan/skip" => "plan-skip",
        "/plan/abort" => "plan-abort",
        "/signals" => "signal",
        _ => "unknown",
    }
}

/// Every call with its documentation; the router and the OpenAPI document come from the same place.
fn documented() -> OpenApiRouter<Arc<Shared>> {
    let mut documented = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(traffic_split::read, traffic_split::change))
        .routes(routes!(traffic_split::rollback))
        .routes(routes!(traffic_split::reset))
        .routes(routes!(plan::read))
        .routes(routes!(plan::start))
        .routes(routes!(plan::pause))
        .routes(routes!(plan::resume))
        .routes(routes!(plan::approve))
        .routes(routes!(plan::skip))
        .routes(routes!(plan::abort))
        .routes(routes!(status::status))
        .routes(routes!(status::health))
        .routes(routes!(status::ready))
        .routes(routes!(status::incidents))
        .routes(routes!(status::incident))
        .routes(routes!(status::audit))
        .routes(routes!(signals::read, signals::push))
        .routes(routes!(alerts::alerts))
        .routes(routes!(history::history))
        .routes(routes!(events::events))
        .routes(routes!(metrics::metrics));
    openapi::complete(documented.get_openapi_mut());
    documented
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Crossfade admin API",
        description = "Steers how live traffic is split between blue and green. Every path is also served below /api. \
                       Errors are application/problem+json. Tokens are needed where admin.tokens is set."
    ),
    components(schemas(crate::Event, crate::Incident, Problem))
)]
struct Document;

/// `/api/…` is an alias of every path.
fn without_alias(uri: &mut Uri) {
    let Some(path_and_query) = uri.path_and_query() else { return };
    let Some(rest) = path_and_query.as_str().strip_prefix("/api") else { return };
    if !rest.starts_with('/') {
        return;
    }
    let Ok(rest) = rest.parse() else { return };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(rest);
    if let Ok(plain) = Uri::from_parts(parts) {
        *uri = plain;
    }
}

async fn not_found(uri: Uri) -> Box<Problem> {
    Problem::new(StatusCode::NOT_FOUND, "path", format!("there is no {}", uri.path()))
        .cure("see /openapi.json for what there is")
}

async fn method_not_allowed(method: Method, uri: Uri) -> Box<Problem> {
    wrong_method(&method, uri.path())
}

fn wrong_method(method: &Method, path: &str) -> Box<Problem> {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method", format!("{path} does not take {method}"))
        .cure("use a method that the header Allow lists")
}

fn json_text(json: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], Body::from(json)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alias_is_taken_off_whole() {
        for (given, expected) in [
            ("/api/status", "/status"),
            ("/api/traffic-split?route=a", "/traffic-split?route=a"),
            ("/status", "/status"),
            ("/api", "/api"),
            ("/apis/status", "/apis/status"),
            ("/api/api/status", "/api/status"),
            ("http://localhost/api/health", "http://localhost/health"),
        ] {
            let mut uri: Uri = given.parse().unwrap();
            without_alias(&mut uri);
            assert_eq!(uri.to_string(), expected);
        }
    }
}
