//! What a caller is told when a request is refused: RFC 9457, with the field and the cure.

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{Refusal, control::with_sources};

/// A refusal as `application/problem+json`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Problem {
    /// `urn:crossfade:` and a word that stays the same.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    pub detail: String,
    /// The member of the body, the parameter or the header at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
    /// Every fault, when there may be several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Fault>,
    #[serde(skip)]
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// One of several things that are wrong with a body or a query.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub struct Fault {
    pub field: String,
    pub problem: String,
    pub cure: String,
}

impl Problem {
    /// `word`: the end of its type. `detail`: lower case, no full stop.
    pub(super) fn new(status: StatusCode, word: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:crossfade:{word}"),
            title: status.canonical_reason().unwrap_or("Refused").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            field: None,
            cure: None,
            faults: Vec::new(),
            headers: Vec::new(),
        }
    }

    /// 422 for everything that is wrong at once. `faults`: not empty.
    pub(super) fn unprocessable(faults: Vec<Fault>) -> Self {
        let all: Vec<String> = faults.iter().map(|fault| format!("{}: {}", fault.field, fault.problem)).collect();
        let first = faults.first().cloned();
        Self {
            field: first.as_ref().map(|fault| fault.field.clone()),
            cure: first.map(|fault| fault.cure),
            faults,
            ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", all.join("; "))
        }
    }

    pub(super) fn cure(self, cure: impl Into<String>) -> Self {
        Self { cure: Some(cure.into()), ..self }
    }

    pub(super) fn field(self, field: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..self }
    }

    pub(super) fn header(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let text = with_sources(&refusal);
        // Control's errors read "problem; cure".
        let (detail, cure) = match text.split_once("; ") {
            Some((detail, cure)) => (detail.to_owned(), Some(cure.to_owned())),
            None => (text, None),
        };
        let unavailable =
            || Self::new(StatusCode::SERVICE_UNAVAILABLE, "not-recorded", &detail).header(header::RETRY_AFTER, "1");
        let problem = match refusal {
            Refusal::UnknownRoute { .. } => Self::new(StatusCode::NOT_FOUND, "unknown-route", &detail).field("route"),
            Refusal::Stale { .. } => {
                Self::new(StatusCode::PRECONDITION_FAILED, "stale-revision", &detail).field("if-match")
            }
            Refusal::Latched { .. } => Self::new(StatusCode::CONFLICT, "latched", &detail).field("green_percentage"),
            Refusal::Overtaken { .. } => Self::new(StatusCode::CONFLICT, "overtaken", &detail),
            Refusal::NotRecorded(_) => unavailable(),
            Refusal::LiveNotRecorded(_) => {
                Self { kind: "urn:crossfade:live-but-not-recorded".to_owned(), ..unavailable() }
            }
            Refusal::Abandoned => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "abandoned", &detail),
        };
        Self { cure, ..problem }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        for (name, value) in self.headers {
            response.headers_mut().insert(name, value);
        }
        response
    }
}
