//! Requests: what an origin behind the path understands of a client's bytes, and what its parser alone does.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
    task::JoinHandle,
    time,
};

use super::{Verdict, pairs, script::Script};
use crate::site::{RawOrigin, soon};

/// What the test says last: whether it is answered tells whether the connection stayed, and where the stream's last
/// request was taken to end.
pub(super) const LAST: &[u8] = b"GET /last HTTP/1.1\r\nhost: last\r\nconnection: close\r\n\r\n";

/// Fields that the path adds or that frame a body, which is compared itself. The tables beside the code that writes
/// heads have them.
const APART: [&str; 6] =
    ["content-length", "transfer-encoding", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];

/// A request as an origin understood it, with all of its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Understood {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) version: Version,
    /// By name; those of one name in their order.
    pub(super) fields: Vec<(String, String)>,
    pub(super) body: String,
    pub(super) trailers: Vec<(String, String)>,
}

/// What the origin understood of each client.
#[derive(Debug, Default)]
struct Book {
    requests: Mutex<HashMap<IpAddr, Vec<Understood>>>,
    tunnels: Mutex<Vec<JoinHandle<()>>>,
}

impl Book {
    fn enter(&self, client: IpAddr, request: Understood) {
        self.requests.lock().unwrap().entry(client).or_default().push(request);
    }

    fn take(&self, client: IpAddr) -> Vec<Understood> {
        self.requests.lock().unwrap().remove(&client).unwrap_or_default()
    }
}

/// The origin: answers 200 to what it has read to the end, 101 to an upgrade on `/switch`.
async fn answer(book: Arc<Book>, request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
    let status = |status| Response::builder().status(status).body(Empty::new()).unwrap();
    let (mut head, mut body) = request.into_parts();
    // Behind the path everybody has another address; before it, the only client has none.
    let client = head.headers.get("x-forwarded-for").filter(|_| head.headers.contains_key("via"));
    let client = client.map_or(DIRECT, |address| address.to_str().unwrap().parse().unwrap());
    let (mut data, mut trailers) = (Vec::new(), Vec::new());
    while let Some(frame) = body.frame().await {
        match frame.map(|frame| frame.into_data().map_err(|frame| frame.into_trailers())) {
            Ok(Ok(more)) => data.extend_from_slice(&more),
            Ok(Err(fields)) => trailers = pairs(&fields.unwrap(), &[]),
            Err(_) => return Ok(status(StatusCode::BAD_REQUEST)),
        }
    }
    let understood = |method: &str, data: &[u8], trailers| Understood {
        method: method.to_owned(),
        target: head.uri.to_string(),
        version: head.version,
        fields: pairs(&head.headers, &APART),
        body: data.escape_ascii().to_string(),
        trailers,
    };
    book.enter(client, understood(head.method.as_str(), &data, trailers));
    let mut options =
        head.headers.get_all(header::CONNECTION).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let named = options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
    let asked = named && head.headers.contains_key(header::UPGRADE) && head.version == Version::HTTP_11;
    if !asked || head.uri.path() != "/switch" {
        return Ok(status(StatusCode::OK));
    }
    let mut tunnel = understood("(tunnel)", &[], Vec::new());
    let upgrade = head.extensions.remove::<OnUpgrade>().unwrap();
    let keeping = Arc::clone(&book);
    let reading = tokio::spawn(async move {
        let mut said = Vec::new();
        let mut io = TokioIo::new(upgrade.await.unwrap());
        let _ = io.read_to_end(&mut said).await;
        tunnel.body = said.escape_ascii().to_string();
        keeping.enter(client, tunnel);
    });
    book.tunnels.lock().unwrap().push(reading);
    let switched = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    Ok(switched.header("connection", "upgrade").header("upgrade", "echo").body(Empty::new()).unwrap())
}

/// Whom the origin takes a client for that comes by no proxy.
const DIRECT: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// An origin on a port, and its book by client.
pub(super) struct Origin {
    book: Arc<Book>,
    raw: RawOrigin,
}

impl Origin {
    pub(super) async fn start() -> Self {
        let book = Arc::<Book>::default();
        let kept = Arc::clone(&book);
        let raw = RawOrigin::start(move |stream, _| {
            let book = Arc::clone(&kept);
            async move {
                let service = service_fn(move |request| answer(Arc::clone(&book), request));
                // A broken request ends its connection, which is what the path is expected to see to.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
            }
        })
        .await;
        Self { book, raw }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.raw.address
    }

    /// Says `parts` to the path at `listen`, with a pause between them, and nothing more. `client`: its address, which
    /// nobody else may have.
    pub(super) async fn behind(&self, listen: SocketAddr, client: Ipv4Addr, parts: &[&[u8]]) -> Verdict<Understood> {
        /// Nothing tells when a part has been read: a guess, which only decides how much a split is worth.
        const PAUSE: Duration = Duration::from_millis(5);
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((client, 0).into()).unwrap();
        let mut stream = soon(socket.connect(listen)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for (at, part) in parts.iter().enumerate() {
            if at > 0 {
                time::sleep(PAUSE).await;
            }
            // What was refused already may be read no further.
            let _ = soon(stream.write_all(part)).await;
        }
        let _ = stream.shutdown().await;
        let mut told = Vec::new();
        let whole = soon(stream.read_to_end(&mut told)).await.is_ok();
        verdict(self.book.take(client.into()), &told, whole)
    }
}

/// Says `parts` to the origin's parser alone.
pub(super) async fn alone(parts: &[&[u8]]) -> Verdict<Understood> {
    let book = Arc::<Book>::default();
    let (script, told) = Script::client(parts);
    let kept = Arc::clone(&book);
    let service = service_fn(move |request| answer(Arc::clone(&kept), request));
    let serving = http1::Builder::new().half_close(true).serve_connection(TokioIo::new(script), service);
    // How it ended is in what it said.
    let _ = soon(serving.with_upgrades()).await;
    let tunnels = std::mem::take(&mut *book.tunnels.lock().unwrap());
    for tunnel in tunnels {
        soon(tunnel).await.unwrap();
    }
    verdict(book.take(DIRECT), &told.lock().unwrap(), true)
}

fn verdict(mut requests: Vec<Understood>, told: &[u8], whole: bool) -> Verdict<Understood> {
    let stays = requests.last().is_some_and(|request| request.target == "/last");
    if stays {
        requests.pop();
    }
    let (answers, text) = answers(told);
    Verdict { messages: requests, answers, stays, whole, text }
}

/// The status codes of answers, and the text of the last one.
fn answers(mut told: &[u8]) -> (Vec<u16>, String) {
    let (mut statuses, mut text) = (Vec::new(), String::new());
    while !told.is_empty() {
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut answer = httparse::Response::new(&mut fields);
        let head = answer.parse(told).unwrap_or_else(|error| panic!("{error}: {}", told.escape_ascii()));
        let httparse::Status::Complete(head) = head else { panic!("half an answer: {}", told.escape_ascii()) };
        let status = answer.code.unwrap();
        let length = answer.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
        let length = length.map_or(0, |length| str::from_utf8(length.value).unwrap().parse().unwrap());
        if status >= 400 && statuses.last() == Some(&100) {
            // Whether a request that comes to nothing was told to go on depends on what of it came first.
            statuses.pop();
        }
        statuses.push(status);
        if status == 101 {
            break;
        }
        // Nothing follows the head of an answer to HEAD, and then the connection ends.
        let body = &told[head..told.len().min(head + length)];
        text = String::from_utf8_lossy(body).into_owned();
        told = &told[head + body.len()..];
    }
    if statuses.last() == Some(&100) {
        statuses.pop();
    }
    (statuses, text)
}
