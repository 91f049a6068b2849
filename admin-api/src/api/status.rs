//! What is going on: status, health, incidents, audit trail.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, rejection::PathRejection},
    response::{IntoResponse, Response},
};
use config::{Arm, Protocol, Split};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    Problem, State,
    body::Fields,
    json_text,
    traffic_split::{Achieved, RECENT_SECONDS, achieved},
};
use crate::{
    ArmEvidence, AuditRow, EndpointObservation, Judgement, Latch, MirrorObservation, Observation, RouteView,
    StoreError, Tally, control::with_sources, incident::page, percent,
};

const SERVICE: &str = "crossfade";
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Serialize, ToSchema)]
pub(super) struct Status {
    #[schema(value_type = String)]
    service: &'static str,
    #[schema(value_type = String)]
    version: &'static str,
    /// All listeners serve, and are not draining.
    ready: bool,
    uptime_seconds: u64,
    /// Rows of the audit trail and incidents that were lost because the disk failed for long.
    audit_rows_lost: u64,
    /// Refused attempts that have no row in the audit trail, because there were more than 60 in their minute.
    audit_refusals_skipped: u64,
    /// Why the tokens file as it is now was not taken over; null when it was.
    tokens_problem: Option<String>,
    /// Why the last minute of the history could not be written; null when it was.
    history_problem: Option<String>,
    routes: Vec<RouteStatus>,
}

#[derive(Serialize, ToSchema)]
struct RouteStatus {
    route: String,
    #[schema(value_type = String, example = "http")]
    protocol: Protocol,
    listen: String,
    revision: u64,
    latched: bool,
    latch: Option<Latch>,
    /// False: live, but not on disk; it is being tried again.
    persisted: bool,
    blue: ArmStatus,
    green: ArmStatus,
    achieved: Option<Achieved>,
    guard: GuardStatus,
    /// Requests or connections without a key, since the start.
    keyless: u64,
    /// Refused before an arm was chosen, by reason, since the start.
    #[schema(value_type = BTreeMap<String, u64>)]
    rejected: BTreeMap<&'static str, u64>,
    mirror: Option<MirrorStatus>,
}

#[derive(Serialize, ToSchema)]
struct ArmStatus {
    label: String,
    #[serde(serialize_with = "percent::serialize")]
    #[schema(value_type = f64)]
    percentage: Split,
    /// Connections (TCP, MQTT) or requests (HTTP) under way.
    open: u64,
    #[schema(value_type = Vec<Object>)]
    endpoints: Vec<EndpointObservation>,
    /// Since the start.
    total: ArmEvidence,
    bytes_in: u64,
    bytes_out: u64,
    last_minute: ArmEvidence,
}

#[derive(Serialize, ToSchema)]
struct GuardStatus {
    /// False: `mode = "off"`.
    armed: bool,
    /// Null where there is nothing to judge: disarmed, or green at 0.
    judgement: Option<Judgement>,
}

#[derive(Serialize, ToSchema)]
struct MirrorStatus {
    offered: u64,
    unsampled: u64,
    #[schema(value_type = BTreeMap<String, u64>)]
    dropped: BTreeMap<&'static str, u64>,
    #[schema(value_type = BTreeMap<String, u64>)]
    failed: BTreeMap<&'static str, u64>,
    paired: u64,
    status_class_equal: u64,
    status_class_differs: u64,
    body_equal: u64,
    body_differs: u64,
    body_not_compared: u64,
    blue_p95_ms: Option<f64>,
    green_p95_ms: Option<f64>,
}

impl MirrorStatus {
    fn of(seen: &MirrorObservation) -> Self {
        let p95 = |tally: &Tally| tally.quantile_us(0.95).map(|us| us as f64 / 1000.0);
        Self {
            offered: seen.offered,
            unsampled: seen.unsampled,
            dropped: seen.dropped.clone(),
            failed: seen.failed.clone(),
            paired: seen.paired,
            status_class_equal: seen.status_class_equal,
            status_class_differs: seen.status_class_differs,
            body_equal: seen.body_equal,
            body_differs: seen.body_differs,
            body_not_compared: seen.body_not_compared,
            blue_p95_ms: p95(&seen.blue),
            green_p95_ms: p95(&seen.green),
        }
    }
}

/// Everything about every route
#[utoipa::path(get, path = "/status", responses((status = 200, description = "As it is now", body = Status)))]
pub(super) async fn status(state: State, uri: Uri) -> Result<Json<Status>, Box<Problem>> {
    Fields::query(&uri)?.finish(&[])?;
    let control = &state.control;
    let config = control.config();
    let describe = |view: RouteView| {
        let route = config.routes.iter().find(|route| route.name == view.route)?;
        let seen = control.plane().observe(&view.route).unwrap_or_default();
        let arm = |arm: Arm, percentage: Split| arm_status(&seen, arm, &route.arm(arm).label, percentage);
        let split = view.recorded.split;
        Some(RouteStatus {
            protocol: route.protocol,
            listen: route.listen.to_string(),
            revision: view.recorded.revision,
            latched: view.recorded.latch.is_some(),
            persisted: view.persisted,
            blue: arm(Arm::Blue, split.complement()),
            green: arm(Arm::Green, split),
            achieved: achieved(&seen),
            guard: GuardStatus { armed: route.guard.is_some(), judgement: view.judgement.as_deref().cloned() },
            keyless: seen.keyless,
            rejected: seen.rejected,
            mirror: seen.mirror.as_ref().map(MirrorStatus::of),
            latch: view.recorded.latch,
            route: view.route,
        })
    };
    Ok(Json(Status {
        service: SERVICE,
        version: VERSION,
        ready: control.plane().ready(),
        uptime_seconds: state.started.elapsed().as_secs(),
        audit_rows_lost: control.rows_dropped(),
        audit_refusals_skipped: control.refusals_skipped(),
        tokens_problem: state.access.tokens_problem(),
        history_problem: state.history.problem(),
        routes: control.states().into_iter().filter_map(describe).collect(),
    }))
}

fn arm_status(seen: &Observation, arm: Arm, label: &str, percentage: Split) -> ArmStatus {
    let observed = seen.arm(arm);
    let mut recent = Tally::default();
    for second in &seen.seconds[seen.seconds.len().saturating_sub(RECENT_SECONDS)..] {
        recent.add(second.arm(arm));
    }
    ArmStatus {
        label: label.to_owned(),
        percentage,
        open: observed.open,
        endpoints: observed.endpoints.clone(),
        total: ArmEvidence::of(&observed.total),
        bytes_in: observed.total.bytes_in,
        bytes_out: observed.total.bytes_out,
        last_minute: ArmEvidence::of(&recent),
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    #[schema(value_type = String, example = "ok")]
    status: &'static str,
    #[schema(value_type = String)]
    service: &'static str,
    #[schema(value_type = String)]
    version: &'static str,
}

/// The process lives. Needs no token
#[utoipa::path(get, path = "/health", responses((status = 200, description = "It does", body = Health)))]
pub(super) async fn health() -> Json<Health> {
    Json(Health { status: "ok", service: SERVICE, version: VERSION })
}

/// Traffic may be sent here. Needs no token
#[utoipa::path(
    get,
    path = "/ready",
    responses(
        (status = 200, description = "It may", body = Health),
        (status = 503, description = "Not all listeners serve yet, or they are draining", body = Problem,
         content_type = "application/problem+json"),
    )
)]
pub(super) async fn ready(state: State) -> Result<Json<Health>, Box<Problem>> {
    if state.control.plane().ready() {
        return Ok(Json(Health { status: "ready", service: SERVICE, version: VERSION }));
    }
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", "not all listeners serve, or they are draining")
        .cure("ask again in a moment")
        .header(header::RETRY_AFTER, "1"))
}

#[derive(Serialize)]
struct Incidents {
    incidents: Vec<Box<RawValue>>,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "documents what is sent as it was recorded")]
pub(super) struct IncidentList {
    incidents: Vec<crate::Incident>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct AuditTrail {
    audit: Vec<AuditRow>,
}

const LIMIT: usize = 100;

/// Trips, newest first
#[utoipa::path(
    get,
    path = "/incidents",
    params(
        ("route" = Option<String>, Query, description = "Only those of this route"),
        ("limit" = Option<u32>, Query, description = "At most this many, up to 1000; 100 when left out"),
    ),
    responses(
        (status = 200, description = "All that were asked for and are kept", body = IncidentList),
        (status = 404, description = "No such route, now or then", body = Problem,
         content_type = "application/problem+json"),
    )
)]
pub(super) async fn incidents(state: State, uri: Uri) -> Result<Response, Box<Problem>> {
    let (route, limit) = window(&uri, crate::INCIDENTS_KEPT)?;
    let incidents = state.control.incidents(route.as_deref(), limit).await.map_err(unreadable)?;
    // One that is not configured any more may have some.
    if let Some(route) = route.filter(|_| incidents.is_empty()) {
        state.control.state(&route)?;
    }
    let incidents = incidents.into_iter().filter_map(|json| RawValue::from_string(json).ok()).collect();
    Ok(Json(Incidents { incidents }).into_response())
}

/// One trip, as JSON or, where `Accept` asks for text/markdown, as a page to read
#[utoipa::path(
    get,
    path = "/incidents/{id}",
    params(("id" = String, Path)),
    responses(
        (status = 200, description = "With all it rested on", body = crate::Incident),
        (status = 404, description = "No such incident", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn incident(
    state: State,
    id: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Box<Problem>> {
    let unknown = || {
        Problem::new(StatusCode::NOT_FOUND, "unknown-incident", "there is no such incident")
            .field("id")
            .cure("see /incidents for those there are")
    };
    let Path(id) = id.map_err(|_| unknown())?;
    let json = state.control.incident(&id).await.map_err(unreadable)?.ok_or_else(unknown)?;
    let mut response = match serde_json::from_str(&json) {
        Ok(incident) if wants_markdown(&headers) => {
            ([(header::CONTENT_TYPE, "text/markdown; charset=utf-8")], page(&incident)).into_response()
        }
        _ => json_text(json),
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

fn wants_markdown(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let essence =
        |part: &str| part.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/markdown"));
    accepted.flat_map(|value| value.split(',')).any(essence)
}

/// Every change and every refused attempt, newest first
#[utoipa::path(
    get,
    path = "/audit",
    params(
        ("route" = Option<String>, Query, description = "Only those of this route"),
        ("limit" = Option<u32>, Query, description = "At most this many, up to 10000; 100 when left out"),
    ),
    responses((status = 200, description = "All that were asked for and are kept", body = AuditTrail))
)]
pub(super) async fn audit(state: State, uri: Uri) -> Result<Json<AuditTrail>, Box<Problem>> {
    let (route, limit) = window(&uri, crate::AUDIT_ROWS_KEPT)?;
    let audit = state.control.audit(route.as_deref(), limit).await.map_err(unreadable)?;
    Ok(Json(AuditTrail { audit }))
}

fn window(uri: &Uri, most: usize) -> Result<(Option<String>, usize), Box<Problem>> {
    let mut query = Fields::query(uri)?;
    let (route, limit) = (query.text("route"), query.count("limit", most));
    query.finish(&["route", "limit"])?;
    Ok((route, limit.unwrap_or(LIMIT)))
}

fn unreadable(error: StoreError) -> Box<Problem> {
    let cure = match error {
        StoreError::LetGo { .. } => "try again in a second",
        _ => "see the state file's disk and try again",
    };
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store", with_sources(&error))
        .cure(cure)
        .header(header::RETRY_AFTER, "1")
}
