//! Answers of our own, for requests that no arm answered.

use bytes::Bytes;
use http::{StatusCode, header};
use pingora::{Result, http::ResponseHeader, proxy::Session};

/// Answers with a status and a short text that says what is wrong; to gRPC callers with a gRPC status, since they know
/// no other.
pub(super) async fn respond(session: &mut Session, status: StatusCode, text: &'static str) -> Result<()> {
    if is_grpc(session) {
        let mut response = ResponseHeader::build(StatusCode::OK, Some(4))?;
        response.insert_header(header::CONTENT_TYPE, "application/grpc")?;
        response.insert_header("grpc-status", grpc_status(status))?;
        response.insert_header("grpc-message", text)?;
        session.write_response_header(Box::new(response), true).await?;
        // Over HTTP/2 the header alone does not end the stream, whatever it is told.
        return session.downstream_session.finish_body().await;
    }
    let mut response = ResponseHeader::build(status, Some(4))?;
    response.insert_header(header::CONTENT_TYPE, "text/plain; charset=utf-8")?;
    response.insert_header(header::CACHE_CONTROL, "no-store")?;
    response.insert_header(header::CONTENT_LENGTH, text.len() + 1)?;
    let head_only = session.req_header().method == http::Method::HEAD;
    session.write_response_header(Box::new(response), head_only).await?;
    if head_only {
        return session.downstream_session.finish_body().await;
    }
    session.write_response_body(Some(Bytes::from(format!("{text}\n"))), true).await
}

/// The whole answer to an HTTP/1 request.
pub(super) fn plain(status: StatusCode, text: &str, head_only: bool, keep: bool) -> Vec<u8> {
    let connection = if keep { "connection: keep-alive\r\n" } else { "connection: close\r\n" };
    let body = if head_only { String::new() } else { format!("{text}\n") };
    format!(
        "HTTP/1.1 {} {}\r\ncontent-type: text/plain; charset=utf-8\r\ncache-control: no-store\r\ncontent-length: \
         {}\r\n{connection}\r\n{body}",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default(),
        text.len() + 1
    )
    .into_bytes()
}

/// The answer to `OPTIONS` with `Max-Forwards: 0`, which ends here (RFC 9110, section 7.6.2).
pub(super) fn options(keep: bool) -> Vec<u8> {
    let connection = if keep { "keep-alive" } else { "close" };
    format!("HTTP/1.1 200 OK\r\nallow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE\r\ncontent-length: 0\r\nconnection: {connection}\r\n\r\n")
        .into_bytes()
}

/// The answer to a head that did not come in time, for a connection whose request is not known.
pub(super) fn request_timeout() -> Vec<u8> {
    last_word("408 Request Timeout", "the request's header was not complete in time; send it faster\n")
}

/// The answer to the preface of HTTP/2 where HTTP/1.1 is spoken.
pub(super) fn misplaced_preface() -> Vec<u8> {
    last_word("400 Bad Request", "http/2 begins with the connection, and over tls with alpn; open a new one\n")
}

fn last_word(status: &str, text: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{text}",
        text.len()
    )
    .into_bytes()
}

/// A gRPC call: POST over HTTP/2 with `application/grpc`, perhaps with a suffix. gRPC-Web is plain HTTP.
pub(super) fn is_grpc(session: &Session) -> bool {
    let request = session.req_header();
    let content_type = request.headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    let suffix = content_type.strip_prefix(b"application/grpc").and_then(|suffix| suffix.first().or(Some(&b';')));
    request.version == http::Version::HTTP_2
        && request.method == http::Method::POST
        && suffix.is_some_and(|suffix| matches!(suffix, b'+' | b';'))
}

/// As the gRPC documentation maps HTTP statuses ("HTTP to gRPC Status Code Mapping").
fn grpc_status(status: StatusCode) -> &'static str {
    match status {
        StatusCode::NOT_FOUND => "12",
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => "14",
        _ => "2",
    }
}
