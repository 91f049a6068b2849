//! What each path answers. Behaviour, counting and `x-origin` are not decided here.

use std::{borrow::Cow, fmt::Display, str::FromStr, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE},
    request,
};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::Serialize;
use serde_json::json;
use tokio::time;

use super::{
    super::{behaviour::Turn, final_status},
    Body, BoxError, record,
};

const BLOCK: Bytes = Bytes::from_static(&[b'x'; 16 * 1024]);

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");

pub(super) async fn answer(head: &request::Parts, body: Incoming, label: &str, turn: &Turn) -> Response<Body> {
    let path = head.uri.path();
    if path == "/echo" {
        return echo(&head.headers, body);
    }
    drain(body).await;

    let path = path.strip_prefix('/').unwrap_or(path);
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    let answer = match (first, rest) {
        ("headers", "") => Ok(headers(&head.headers)),
        ("bytes", count) => parse("/bytes/N", count).map(bytes),
        ("stream", "") => slow_stream(head.uri.query().unwrap_or_default()),
        ("endless", "") => Ok(streamed(BYTES, stream::repeat(BLOCK))),
        ("sse", "") => Ok(events(label)),
        ("noisy", "") => Ok(record(0, turn.mismatches(None), turn)),
        ("record", n) => parse("/record/N", n).map(|n| record(n, turn.mismatches(Some(n)), turn)),
        ("status", code) => parse("/status/NNN", code)
            .and_then(|code| final_status(code).map_err(|problem| format!("/status/NNN: {problem}")))
            .map(|status| text(status, String::new())),
        _ => Ok(identity(head, label)),
    };
    answer.unwrap_or_else(|problem| text(StatusCode::BAD_REQUEST, format!("{problem}\n")))
}

/// The status and nothing else, once the request's body has come in.
pub(super) async fn status(status: StatusCode, body: Incoming) -> Response<Body> {
    drain(body).await;
    text(status, String::new())
}

pub(super) fn text(status: StatusCode, text: String) -> Response<Body> {
    whole(status, TEXT, text.into())
}

fn identity(head: &request::Parts, label: &str) -> Response<Body> {
    #[derive(Serialize)]
    struct Identity<'a> {
        key: Option<Cow<'a, str>>,
        method: &'a str,
        origin: &'a str,
        path: &'a str,
    }
    let identity = Identity {
        key: head.headers.get("x-session-id").map(|key| String::from_utf8_lossy(key.as_bytes())),
        method: head.method.as_str(),
        origin: label,
        path: head.uri.path_and_query().map_or_else(|| head.uri.path(), |path| path.as_str()),
    };
    let json = serde_json::to_vec(&identity).expect("text is JSON");
    whole(StatusCode::OK, JSON, json.into())
}

fn record(n: u64, mismatch: bool, turn: &Turn) -> Response<Body> {
    whole(StatusCode::OK, JSON, record::json(n, mismatch, turn.spelling).into())
}

fn echo(headers: &HeaderMap, body: Incoming) -> Response<Body> {
    let mut response = Response::new(body.map_err(BoxError::from).boxed_unsync());
    let kind = headers.get(CONTENT_TYPE).cloned().unwrap_or(BYTES);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn headers(headers: &HeaderMap) -> Response<Body> {
    let pairs: Vec<_> =
        headers.iter().map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes()))).collect();
    whole(StatusCode::OK, JSON, json!(pairs).to_string().into())
}

fn bytes(count: u64) -> Response<Body> {
    let blocks = stream::unfold(count, |left| async move {
        let block = BLOCK.slice(..left.min(BLOCK.len() as u64) as usize);
        (left > 0).then(|| (block.clone(), left - block.len() as u64))
    });
    let mut response = streamed(BYTES, blocks);
    response.headers_mut().insert(CONTENT_LENGTH, count.into());
    response
}

fn slow_stream(query: &str) -> Result<Response<Body>, String> {
    let (mut chunks, mut interval_ms) = (10_u64, 100_u64);
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        match name {
            "chunks" => chunks = parse("/stream: chunks", value)?,
            "interval_ms" => interval_ms = parse("/stream: interval_ms", value)?,
            _ => {}
        }
    }
    let interval = Duration::from_millis(interval_ms);
    let lines = stream::iter(0..chunks).then(move |n| async move {
        if n > 0 {
            time::sleep(interval).await;
        }
        Bytes::from(format!("chunk {n}\n"))
    });
    Ok(streamed(TEXT, lines))
}

fn events(label: &str) -> Response<Body> {
    let event = |n| Bytes::from(format!("id: {n}\nevent: tick\ndata: {}\n\n", json!({"origin": label, "n": n})));
    let events: Vec<_> = (1..=3).map(event).collect();
    let mut response = streamed(EVENTS, stream::iter(events));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn whole(status: StatusCode, kind: HeaderValue, content: Bytes) -> Response<Body> {
    let body = if content.is_empty() {
        Empty::new().map_err(BoxError::from).boxed_unsync()
    } else {
        Full::new(content).map_err(BoxError::from).boxed_unsync()
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn streamed(kind: HeaderValue, chunks: impl stream::Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let frames = chunks.map(|chunk| Ok::<_, BoxError>(Frame::data(chunk)));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Reads a body to its end and forgets it, so that a connection can carry the next request. A body that breaks off
/// takes its connection with it, so its error needs no answer.
pub(super) async fn drain(mut body: Incoming) {
    while let Some(Ok(_)) = body.frame().await {}
}

fn parse<T: FromStr<Err: Display>>(place: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|error| format!("{place}: {error}; give a whole number"))
}
