//! Who was told what.

use axum::Json;
use http::Uri;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Problem, State, body::Fields};
use crate::{AlertView, WebhookView};

#[derive(Serialize, ToSchema)]
pub(super) struct AlertViews {
    webhooks: Vec<WebhookView>,
    /// Newest first.
    alerts: Vec<AlertView>,
}

const MOST: usize = 200;

/// Every webhook, and what became of the newest messages
#[utoipa::path(
    get,
    path = "/alerts",
    params(("limit" = Option<usize>, Query, description = "1 to 200, and 50 without it")),
    responses((status = 200, description = "Since the start of the process", body = AlertViews))
)]
pub(super) async fn alerts(state: State, uri: Uri) -> Result<Json<AlertViews>, Box<Problem>> {
    let mut query = Fields::query(&uri)?;
    let limit = query.count("limit", MOST).unwrap_or(50);
    query.finish(&["limit"])?;
    Ok(Json(AlertViews { webhooks: state.alerts.webhooks(), alerts: state.alerts.record(limit) }))
}
