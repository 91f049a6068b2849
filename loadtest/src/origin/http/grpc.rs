//! gRPC without its code generation: one call answers the message it got, byte for byte.
//!
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md> has frames, trailers and the answer that is nothing
//! but trailers.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;

use super::{Body, BoxError, endpoints};

/// The call, unary: any message in, the same message out.
pub(super) const ECHO: &str = "/loadtest.Echo/Echo";

/// The largest message answered, its frame included, in bytes.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// Before a message: whether it is compressed, and its length in four bytes.
const PREFIX: usize = 5;

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// A code of <https://grpc.github.io/grpc/core/md_doc_statuscodes.html>.
#[derive(Clone, Copy)]
enum Code {
    Ok = 0,
    ResourceExhausted = 8,
    Internal = 13,
    Unavailable = 14,
}

/// Answers the one message of a call as it came, compressed or not.
pub(super) async fn echo(headers: &HeaderMap, body: Incoming) -> Response<Body> {
    let Ok(message) = Limited::new(body, MAX_MESSAGE).collect().await else {
        // What broke off has nobody to read this.
        return trailers_only(Code::ResourceExhausted, "the message is longer than 16 MiB; send a shorter one");
    };
    let message = message.to_bytes();
    if !is_one_message(&message) {
        return trailers_only(Code::Internal, "not one message in its frame; send a 5-byte prefix and what it says");
    }

    let mut trailers = HeaderMap::new();
    trailers.insert(STATUS, (Code::Ok as u16).into());
    let body = Full::new(message).with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(body.map_err(BoxError::from).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, headers.get(CONTENT_TYPE).cloned().unwrap_or(GRPC));
    if let Some(encoding) = headers.get(ENCODING) {
        response.headers_mut().insert(ENCODING, encoding.clone());
    }
    response
}

/// How a gRPC server says what an HTTP server says with `status`: with `UNAVAILABLE` where HTTP's status says that
/// somebody else or a later try may do better (429, 502, 503, 504), else with `INTERNAL`.
pub(super) async fn failure(status: StatusCode, body: Incoming) -> Response<Body> {
    endpoints::drain(body).await;
    let code = match status.as_u16() {
        429 | 502..=504 => Code::Unavailable,
        _ => Code::Internal,
    };
    trailers_only(code, "failed, as asked")
}

fn trailers_only(code: Code, message: &'static str) -> Response<Body> {
    let mut response = Response::new(Empty::new().map_err(BoxError::from).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, GRPC);
    headers.insert(STATUS, (code as u16).into());
    headers.insert(MESSAGE, HeaderValue::from_static(message));
    response
}

/// Whether these are a whole message and nothing else.
fn is_one_message(bytes: &Bytes) -> bool {
    match bytes.split_first_chunk::<PREFIX>() {
        Some(([0 | 1, length @ ..], message)) => u32::from_be_bytes(*length) as usize == message.len(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_as_long_as_its_frame_says() {
        for (bytes, expected) in [
            (&b""[..], false),
            (b"\0\0\0\0", false),
            (b"\0\0\0\0\0", true),
            (b"\x01\0\0\0\x02ab", true),
            (b"\x02\0\0\0\x02ab", false),
            (b"\0\0\0\0\x02a", false),
            (b"\0\0\0\0\x01ab", false),
            (b"\0\xff\xff\xff\xffab", false),
        ] {
            assert_eq!(is_one_message(&Bytes::from_static(bytes)), expected, "{bytes:?}");
        }
    }
}
