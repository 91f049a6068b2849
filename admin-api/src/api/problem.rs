//! What a caller is told when a request is refused: RFC 9457, with the field and the cure.

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::Refusal;

/// A refusal as `application/problem+json`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Problem {
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
    /// The end of its type.
    #[serde(skip)]
    word: &'static str,
    #[serde(skip)]
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// Goes with a response that refuses: the end of its problem's type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word(pub(super) &'static str);

/// One of several things that are wrong with a body or a query.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub(super) struct Fault {
    pub field: String,
    pub problem: String,
    pub cure: String,
}

impl Problem {
    /// `word`: the end of its type. `detail`: lower case, no full stop.
    pub(super) fn new(status: StatusCode, word: &'static str, detail: impl Into<String>) -> Box<Self> {
        Box::new(Self {
            kind: format!("urn:crossfade:{word}"),
            title: status.canonical_reason().unwrap_or("Refused").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            field: None,
            cure: None,
            faults: Vec::new(),
            word,
            headers: Vec::new(),
        })
    }

    /// 422 for everything that is wrong at once. `faults`: not empty.
    pub(super) fn unprocessable(faults: Vec<Fault>) -> Box<Self> {
        let all: Vec<String> = faults.iter().map(|fault| format!("{}: {}", fault.field, fault.problem)).collect();
        let mut problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", all.join("; "));
        if let Some(first) = faults.first() {
            problem = problem.field(&first.field).cure(&first.cure);
        }
        problem.faults = faults;
        problem
    }

    pub(super) fn cure(mut self: Box<Self>, cure: impl Into<String>) -> Box<Self> {
        self.cure = Some(cure.into());
        self
    }

    pub(super) fn field(mut self: Box<Self>, field: impl Into<String>) -> Box<Self> {
        self.field = Some(field.into());
        self
    }

    pub(super) fn header(mut self: Box<Self>, name: HeaderName, value: &'static str) -> Box<Self> {
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }
}

impl From<Refusal> for Box<Problem> {
    fn from(refusal: Refusal) -> Self {
        let problem = |status, word| Problem::new(status, word, refusal.problem()).cure(refusal.cure());
        let unavailable = |word| problem(StatusCode::SERVICE_UNAVAILABLE, word).header(header::RETRY_AFTER, "1");
        match &refusal {
            Refusal::Frozen => unavailable("frozen"),
            Refusal::UnknownRoute { .. } => problem(StatusCode::NOT_FOUND, "unknown-route").field("route"),
            Refusal::Stale { .. } => problem(StatusCode::PRECONDITION_FAILED, "stale-revision").field("if-match"),
            Refusal::Latched { .. } => problem(StatusCode::CONFLICT, "latched").field("green_percentage"),
            Refusal::Plan { .. } => problem(StatusCode::CONFLICT, "plan"),
            Refusal::Overtaken { .. } => problem(StatusCode::CONFLICT, "overtaken"),
            Refusal::NotRecorded(_) => unavailable("not-recorded"),
            Refusal::LiveNotRecorded(_) => unavailable("live-but-not-recorded"),
            Refusal::Abandoned => problem(StatusCode::INTERNAL_SERVER_ERROR, "abandoned"),
        }
    }
}

impl IntoResponse for Box<Problem> {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&*self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        response.extensions_mut().insert(Word(self.word));
        for (name, value) in self.headers {
            response.headers_mut().insert(name, value);
        }
        response
    }
}
