//! HTTP/2 and unary gRPC calls over it: several slots, each a stream, share a connection.

use std::{cell::RefCell, rc::Rc};

use bytes::{BufMut, Bytes, BytesMut};
use h2::{RecvStream, client::SendRequest};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version, header};
use tokio::{sync::Mutex, task};

use super::{
    Endpoint, Failure, Load, Shared, Slot,
    http::{HttpLoad, HttpVersion, ID, Patience, is_anothers, is_failure},
    record::Answer,
};
use crate::ledger::Id;

/// Window for each stream and for the connection, in bytes: large enough that a megabyte needs no round trip of credit.
const WINDOW: u32 = 4 << 20;
/// gRPC's `OK` (<https://grpc.github.io/grpc/core/md_doc_statuscodes.html>).
const GRPC_OK: &[u8] = b"0";

/// A connection that streams share.
pub(super) struct Connection {
    http: HttpLoad,
    endpoint: Endpoint,
    nth: usize,
    body: Bytes,
    /// One stream at a time connects; the others wait for it.
    open: Mutex<Option<Rc<Open>>>,
}

struct Open {
    sender: SendRequest<Bytes>,
    requests: RefCell<u64>,
}

impl Connection {
    pub(super) fn new(http: &HttpLoad, load: &Load, nth: usize) -> Rc<Self> {
        let body = match http.version {
            HttpVersion::Grpc => message(&http.body),
            _ => http.body.clone(),
        };
        let (http, endpoint) = (http.clone(), load.endpoint.clone());
        Rc::new(Self { http, endpoint, nth, body, open: Mutex::default() })
    }

    /// A connection with room for another stream, once there is one.
    async fn sender(&self, key: u64) -> Result<SendRequest<Bytes>, Failure> {
        let mut open = self.open.lock().await;
        if let Some(open) = &*open
            && self.http.requests_per_connection.is_none_or(|most| *open.requests.borrow() < most.get())
            && let Ok(sender) = open.sender.clone().ready().await
        {
            *open.requests.borrow_mut() += 1;
            return Ok(sender);
        }
        *open = None;
        let stream = self.endpoint.connect(self.nth, key).await?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW).enable_push(false);
        let (sender, connection) = builder.handshake(stream).await.map_err(|error| Failure::http2(&error))?;
        // It ends with its last sender and stream; what it died of reaches those.
        task::spawn_local(connection);
        let sender = sender.ready().await.map_err(|error| Failure::http2(&error))?;
        *open = Some(Rc::new(Open { sender: sender.clone(), requests: RefCell::new(1) }));
        Ok(sender)
    }

    fn request(&self, id: Id, key: u64) -> Request<()> {
        let http = &self.http;
        let mut path = Vec::new();
        http.write_path(&mut path, key);
        let uri = Uri::builder().scheme(http.scheme).authority(http.authority.as_str()).path_and_query(path).build();
        let mut request = Request::new(());
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = uri.expect("the target was a URI, and a key has letters and digits");
        *request.method_mut() = http.method.clone();
        let headers = request.headers_mut();
        headers.clone_from(&http.headers);
        if let Some((name, value)) = http.key_header(key) {
            headers.insert(name, value);
        }
        headers.insert(ID, HeaderValue::from_bytes(&id.digits()).expect("digits are a header"));
        if http.version == HttpVersion::Grpc {
            *request.method_mut() = Method::POST;
            let headers = request.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
        request
    }
}

/// A gRPC message in its frame: not compressed, its length, itself (PROTOCOL-HTTP2.md, Length-Prefixed-Message).
fn message(body: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(5 + body.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(body.len()).expect("a body is smaller than 4 GiB"));
    framed.put_slice(body);
    framed.freeze()
}

/// A slot of a connection.
pub(super) struct Stream {
    connection: Rc<Connection>,
}

impl Stream {
    pub(super) fn new(connection: &Rc<Connection>) -> Self {
        Self { connection: Rc::clone(connection) }
    }
}

impl Slot for Stream {
    async fn exchange(&mut self, id: Id, key: u64, recorder: &Shared) -> Result<Answer, Failure> {
        let failed = |error: h2::Error| Failure::http2(&error);
        let Connection { http, body, .. } = &*self.connection;
        let mut sender = self.connection.sender(key).await?;
        let (response, mut sending) =
            sender.send_request(self.connection.request(id, key), body.is_empty()).map_err(failed)?;
        if !body.is_empty() {
            sending.send_data(body.clone(), true).map_err(failed)?;
        }

        let (head, body) = response.await.map_err(failed)?.into_parts();
        let find = |name: &str| head.headers.get(name).map(|value| value.as_bytes());
        let arm = http.arm(find, &mut recorder.borrow_mut());
        let crossed = is_anothers(id, find(ID.as_str()));
        let trailers = read(body, Patience::new(http.read_rate)).await?;
        if crossed {
            return Err(Failure::Crossed);
        }
        let status = head.status.as_u16();
        let failure = is_failure(status) || (http.version == HttpVersion::Grpc && !is_ok(&head.headers, &trailers));
        Ok(Answer { arm, status, failure, surplus: 0 })
    }
}

/// Reads a body to its end, forgets it, and returns the trailers.
async fn read(mut body: RecvStream, patience: Patience) -> Result<HeaderMap, Failure> {
    let failed = |error: h2::Error| Failure::http2(&error);
    while let Some(data) = body.data().await {
        let mut left = data.map_err(failed)?.len();
        while left > 0 {
            // Credit is given back at the reader's pace, so that a slow one holds the sender up.
            let here = patience.at_once(left);
            patience.rest(here).await;
            body.flow_control().release_capacity(here).map_err(failed)?;
            left -= here;
        }
    }
    Ok(body.trailers().await.map_err(failed)?.unwrap_or_default())
}

/// Whether a call succeeded: its status is in the trailers, or in the header when there is nothing else.
fn is_ok(headers: &HeaderMap, trailers: &HeaderMap) -> bool {
    let status = trailers.get("grpc-status").or_else(|| headers.get("grpc-status"));
    status.is_some_and(|status| status.as_bytes() == GRPC_OK)
}

impl Failure {
    fn http2(error: &h2::Error) -> Self {
        match error.get_io() {
            Some(error) => Self::moving(error),
            None if error.is_reset() => Self::Reset,
            None if error.is_go_away() => Self::Closed,
            None => Self::Malformed,
        }
    }
}
