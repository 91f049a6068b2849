//! What all HTTP loads share: what to ask, where the key goes, how to know who answered.

use std::{io::Write, num::NonZeroU64, str::FromStr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tokio::{task::JoinHandle, time};

use super::{
    Share, http1, http2,
    record::{Arm, Recorder},
};

/// The header that carries a request's id, both ways.
pub(super) const ID: HeaderName = HeaderName::from_static("x-loadtest-id");
/// The headers that may say who answered, the first one present wins: a proxy's word, then an origin's.
const LABELS: [&str; 2] = ["x-crossfade-arm", "x-origin"];

/// HTTP requests, all alike but for their ids and keys.
#[derive(Clone, Debug)]
pub struct HttpLoad {
    /// How they are sent.
    pub version: HttpVersion,
    /// The method. gRPC is always POST.
    pub method: Method,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Host and port, as `Host` and `:authority` have it.
    pub authority: String,
    /// Path and query.
    pub path: String,
    /// Further headers, of which none is about framing.
    pub headers: HeaderMap,
    /// The body; for gRPC the message.
    pub body: Bytes,
    /// Where the key goes.
    pub key: KeyPlace,
    /// Requests after which a connection is closed; kept as long as the server likes when none.
    pub requests_per_connection: Option<NonZeroU64>,
    /// HTTP/2 and gRPC: requests at once on a connection.
    pub streams: usize,
    /// Bytes a second read of a body; as they come when none.
    pub read_rate: Option<NonZeroU64>,
    /// The header that says who answered; `x-crossfade-arm`, then `x-origin`, when none.
    pub label: Option<HeaderName>,
}

/// How HTTP requests are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    Http1,
    Http2,
    /// Unary calls over HTTP/2.
    Grpc,
}

/// Where the key of a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPlace {
    Header(HeaderName),
    Cookie(String),
    Query(String),
    /// The connection comes from an address of the key's own, in 127.0.0.0/8: only loopback targets can be reached so.
    ClientIp,
}

impl FromStr for KeyPlace {
    type Err = String;

    /// `header:NAME`, `cookie:NAME`, `query:NAME` or `client-ip`. Errors: the problem and the cure.
    fn from_str(text: &str) -> Result<Self, String> {
        const CURE: &str = "give header:x-session-id, cookie:session, query:run_id or client-ip";
        let token = |name: &str| {
            let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~".contains(&b));
            plain.then(|| name.to_owned()).ok_or_else(|| format!("{name:?} is no name; {CURE}"))
        };
        match text.split_once(':') {
            None if text == "client-ip" => Ok(Self::ClientIp),
            Some(("header", name)) => {
                token(name)?.parse().map(Self::Header).map_err(|error| format!("{error}; {CURE}"))
            }
            Some(("cookie", name)) => Ok(Self::Cookie(token(name)?)),
            Some(("query", name)) => Ok(Self::Query(token(name)?)),
            _ => Err(format!("{text:?} is no place for a key; {CURE}")),
        }
    }
}

impl HttpLoad {
    /// GET requests for `/` in clear, the key in `x-session-id`, on kept connections; eight at once on each over HTTP/2.
    pub fn new(version: HttpVersion, authority: &str) -> Self {
        Self {
            version,
            method: Method::GET,
            scheme: "http",
            authority: authority.to_owned(),
            path: "/".to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            key: KeyPlace::Header(HeaderName::from_static("x-session-id")),
            requests_per_connection: None,
            streams: if version == HttpVersion::Http1 { 1 } else { 8 },
            read_rate: None,
            label: None,
        }
    }

    /// Tasks for the slots of one worker's connections.
    pub(super) fn slots(&self, connections: impl Iterator<Item = usize>, share: &Share<'_>) -> Vec<JoinHandle<()>> {
        let load = share.load;
        match self.version {
            HttpVersion::Http1 => share.spawn(connections.map(|nth| http1::Connection::new(self, load, nth))),
            HttpVersion::Http2 | HttpVersion::Grpc => share.spawn(connections.flat_map(|nth| {
                let connection = http2::Connection::new(self, load, nth);
                (0..self.streams).map(move |_| http2::Stream::new(&connection))
            })),
        }
    }

    /// The path of a request, which has the key in its query if it goes there.
    pub(super) fn write_path(&self, out: &mut Vec<u8>, key: u64) {
        out.extend_from_slice(self.path.as_bytes());
        if let KeyPlace::Query(name) = &self.key {
            let mark = if self.path.contains('?') { '&' } else { '?' };
            let _ = write!(out, "{mark}{name}=user-{key}");
        }
    }

    /// The header that has the key, if it goes into one.
    pub(super) fn key_header(&self, key: u64) -> Option<(HeaderName, HeaderValue)> {
        let (name, value) = match &self.key {
            KeyPlace::Header(name) => (name.clone(), format!("user-{key}")),
            KeyPlace::Cookie(cookie) => (http::header::COOKIE, format!("{cookie}=user-{key}")),
            KeyPlace::Query(_) | KeyPlace::ClientIp => return None,
        };
        Some((name, HeaderValue::try_from(value).expect("a name and a number are a header")))
    }

    /// Who answered, by the headers of the answer.
    pub(super) fn arm<'a>(&self, header: impl Fn(&str) -> Option<&'a [u8]>, recorder: &mut Recorder) -> Arm {
        let label = match &self.label {
            Some(name) => header(name.as_str()),
            None => LABELS.into_iter().find_map(header),
        };
        label.map_or(Arm::UNKNOWN, |label| recorder.arm(label))
    }
}

/// Keeps a reader down to a rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    bytes_per_second: Option<NonZeroU64>,
}

impl Patience {
    pub(super) fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        Self { bytes_per_second }
    }

    /// The most to read at once: a tenth of a second's worth.
    pub(super) fn at_once(&self, room: usize) -> usize {
        self.bytes_per_second.map_or(room, |rate| room.min((rate.get() / 10).max(1) as usize))
    }

    /// Waits as long as so many bytes should have taken.
    pub(super) async fn rest(&self, bytes: usize) {
        if let Some(rate) = self.bytes_per_second {
            time::sleep(Duration::from_secs_f64(bytes as f64 / rate.get() as f64)).await;
        }
    }
}

/// A status that is a failure of the server: the client's faults are answers like others.
pub(super) fn is_failure(status: u16) -> bool {
    status >= 500
}

/// Where the id of an answer is and whether it is another request's. An answer without one is believed.
pub(super) fn is_anothers(id: crate::ledger::Id, answered: Option<&[u8]>) -> bool {
    answered.is_some_and(|answered| *answered != id.digits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_for_keys() {
        assert_eq!("header:X-User".parse(), Ok(KeyPlace::Header(HeaderName::from_static("x-user"))));
        assert_eq!("cookie:session".parse(), Ok(KeyPlace::Cookie("session".to_owned())));
        assert_eq!("query:run_id".parse(), Ok(KeyPlace::Query("run_id".to_owned())));
        assert_eq!("client-ip".parse(), Ok(KeyPlace::ClientIp));
        for faulty in ["", "header", "header:", "header:a b", "cookie:a=b", "query:a&b", "path:x", "client-ip:x"] {
            assert!(faulty.parse::<KeyPlace>().unwrap_err().contains("; give "), "{faulty}");
        }
    }
}
