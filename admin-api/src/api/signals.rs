//! What a proxy cannot see: told here, and looked at.

use axum::{Json, extract::Request};
use http::{StatusCode, Uri};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::{Problem, State, body::Fields, traffic_split::Asked};
use crate::{Moment, SignalRefusal, SignalView};

#[derive(Serialize, ToSchema)]
pub(super) struct SignalViews {
    signals: Vec<SignalView>,
}

/// The body of a push.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described; its fields are read one by one")]
pub(super) struct SignalRequest {
    /// May be left out when there is only one.
    #[schema(nullable = false)]
    route: Option<String>,
    /// As configured in the route's signals.
    name: String,
    value: f64,
    /// When it was measured, RFC 3339. Now, if it is left out.
    #[schema(nullable = false, example = "2026-01-31T10:15:02Z")]
    at: Option<String>,
}

/// Every signal with its last value and what it says
#[utoipa::path(
    get,
    path = "/signals",
    params(("route" = Option<String>, Query, description = "Only those of this route")),
    responses(
        (status = 200, description = "In the order of routes and names", body = SignalViews),
        (status = 404, description = "No such route", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn read(state: State, uri: Uri) -> Result<Json<SignalViews>, Box<Problem>> {
    let mut query = Fields::query(&uri)?;
    let route = query.text("route");
    query.finish(&["route"])?;
    if let Some(route) = &route {
        state.control.state(route)?;
    }
    Ok(Json(SignalViews { signals: state.control.signals().views(route.as_deref(), Instant::now()) }))
}

/// Takes a value of a signal. It counts at once, and is on disk about a second later
#[utoipa::path(
    post,
    path = "/signals",
    request_body = SignalRequest,
    responses(
        (status = 200, description = "Taken; what the signal says now", body = SignalView),
        (status = 404, description = "No such route", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn push(state: State, request: Request) -> Result<Json<SignalView>, Box<Problem>> {
    let control = &state.control;
    let mut fields = Fields::read(request).await?;
    let config = control.config();
    let route = Asked::default().route(&config.routes, &mut fields)?;
    for (field, cure) in [("name", "give it the name of a signal"), ("value", "give it a number")] {
        if !fields.has(field) {
            fields.fault(field, "is missing", cure);
        }
    }
    let (name, value, at) = (fields.text("name"), fields.number("value"), fields.time("at"));
    fields.finish(&["route", "name", "value", "at"])?;
    let (Some(name), Some(value)) = (name, value) else {
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", "no value given"));
    };
    let taken = control.signals().push(&route.name, &name, value, at, Moment::now());
    taken.map(Json).map_err(refused)
}

fn refused(refusal: SignalRefusal) -> Box<Problem> {
    Problem::unprocessable(vec![super::Fault {
        field: refusal.field().to_owned(),
        problem: refusal.problem(),
        cure: refusal.cure(),
    }])
}
