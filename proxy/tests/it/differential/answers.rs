//! Answers: what is understood of an endpoint's bytes by a strict client behind the path, and by hyper's client.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Version};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Bytes, client::conn::http1, ext::on_informational};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time,
};

use super::{Verdict, pairs, script::Script};
use crate::site::{RawOrigin, read_head, soon};

/// Fields that frame a body, which is compared itself, and that which is said between the client and the path.
const APART: [&str; 3] = ["content-length", "transfer-encoding", "connection"];
/// What nobody could make sense of, or what broke off.
const BROKEN: u16 = 502;

/// A final answer with all of its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Understood {
    pub(super) version: Version,
    /// By name; those of one name in their order.
    pub(super) fields: Vec<(String, String)>,
    pub(super) body: String,
    pub(super) trailers: Vec<(String, String)>,
    /// Elements of `connection`, in small letters.
    pub(super) options: Vec<String>,
}

/// An endpoint that says to each request what was put down for its path.
pub(super) struct Endpoint {
    raw: RawOrigin,
    scripts: Arc<Mutex<HashMap<usize, Vec<Vec<u8>>>>>,
    next: AtomicUsize,
}

impl Endpoint {
    pub(super) async fn start() -> Self {
        /// Patience with a kept connection: until then what follows an answer may be another request.
        const KEPT: Duration = Duration::from_millis(100);
        /// Nothing tells when a part has been read: a guess, which only decides how much a split is worth.
        const PAUSE: Duration = Duration::from_millis(5);
        let scripts = Arc::<Mutex<HashMap<usize, Vec<Vec<u8>>>>>::default();
        let known = Arc::clone(&scripts);
        let raw = RawOrigin::start(move |mut stream, _| {
            let known = Arc::clone(&known);
            async move {
                stream.set_nodelay(true).unwrap();
                let mut head = read_head(&mut stream).await;
                while !head.is_empty() {
                    let path = head.split(|byte| *byte == b' ').nth(1).unwrap();
                    let number: usize = str::from_utf8(&path[1..]).unwrap().parse().unwrap();
                    let parts = known.lock().unwrap()[&number].clone();
                    for (at, part) in parts.iter().enumerate() {
                        if at > 0 {
                            time::sleep(PAUSE).await;
                        }
                        let _ = stream.write_all(part).await;
                    }
                    head = time::timeout(KEPT, read_head(&mut stream)).await.unwrap_or_default();
                }
            }
        })
        .await;
        Self { raw, scripts, next: AtomicUsize::new(1) }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.raw.address
    }

    /// What a strict client makes of `parts` behind the path at `listen`.
    pub(super) async fn behind(&self, listen: SocketAddr, method: &str, parts: &[&[u8]]) -> Verdict<Understood> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.scripts.lock().unwrap().insert(number, parts.iter().map(|part| part.to_vec()).collect());
        let mut stream = soon(TcpStream::connect(listen)).await.unwrap();
        let request = format!("{method} /{number} HTTP/1.1\r\nhost: a\r\n\r\n");
        soon(stream.write_all(request.as_bytes())).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut told = Vec::new();
        let _ = soon(stream.read_to_end(&mut told)).await;
        strict(&told, method == "HEAD").unwrap_or_else(|fault| panic!("{fault}: {}", told.escape_ascii()))
    }
}

/// What hyper's client makes of `parts`.
pub(super) async fn alone(method: &str, parts: &[&[u8]]) -> Verdict<Understood> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(Script::server(parts))).await.unwrap();
    let mut request =
        Request::builder().method(method).uri("/").header("host", "a").body(Empty::<Bytes>::new()).unwrap();
    let interim = Arc::<Mutex<Vec<u16>>>::default();
    let noted = Arc::clone(&interim);
    on_informational(&mut request, move |answer| noted.lock().unwrap().push(answer.status().as_u16()));
    // How the connection ended shows in the answer.
    let driving = tokio::spawn(connection);
    let answer = async {
        let (head, body) = sender.send_request(request).await.ok()?.into_parts();
        let body = body.collect().await.ok()?;
        let trailers = body.trailers().map(|fields| pairs(fields, &[])).unwrap_or_default();
        Some((head.status.as_u16(), understood(head.version, &head.headers, &body.to_bytes(), trailers)))
    };
    let answer = soon(answer).await;
    driving.abort();
    let interim = std::mem::take(&mut *interim.lock().unwrap());
    verdict(interim, answer)
}

fn understood(version: Version, fields: &HeaderMap, body: &[u8], trailers: Vec<(String, String)>) -> Understood {
    let options = fields.get_all("connection").iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let options = options.map(|option| String::from_utf8_lossy(option).trim().to_ascii_lowercase()).collect();
    Understood { version, fields: pairs(fields, &APART), body: body.escape_ascii().to_string(), trailers, options }
}

fn verdict(mut answers: Vec<u16>, last: Option<(u16, Understood)>) -> Verdict<Understood> {
    answers.push(last.as_ref().map_or(BROKEN, |(status, _)| *status));
    let messages = last.into_iter().map(|(_, understood)| understood).collect();
    Verdict { messages, answers, stays: false, whole: true, text: String::new() }
}

/// Reads what the path says as nobody could misread it. Errors: it says what can be read in two ways.
fn strict(mut told: &[u8], to_head: bool) -> Result<Verdict<Understood>, &'static str> {
    let mut interim = Vec::new();
    loop {
        let head = take_to(&mut told, b"\r\n\r\n").ok_or("no whole head")?;
        let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let line = lines.next().ok_or("no status line")?;
        let status = line.strip_prefix(b"HTTP/1.1 ").and_then(|rest| rest.split_at_checked(3)).ok_or("no status")?;
        let code: u16 = str::from_utf8(status.0).ok().and_then(|code| code.parse().ok()).ok_or("no status")?;
        if !status.1.starts_with(b" ") {
            return Err("no space behind the status");
        }
        if head.iter().zip(&head[1..]).any(|(byte, next)| (*byte == b'\r') != (*next == b'\n')) {
            return Err("a line that does not end with cr lf");
        }
        let mut fields = HeaderMap::new();
        for line in lines.filter(|line| !line.is_empty()) {
            field(line, &mut fields)?;
        }
        let lengths: Vec<_> = fields.get_all("content-length").iter().collect();
        let chunked = fields.get_all("transfer-encoding").iter().count();
        if lengths.len() + chunked > 1 {
            return Err("more than one framing");
        }
        if code < 200 && code != 101 {
            if lengths.len() + chunked > 0 {
                return Err("an interim answer with a body");
            }
            interim.push(code);
            continue;
        }
        let (mut body, mut trailers) = (Vec::new(), HeaderMap::new());
        let whole = if to_head || matches!(code, 204 | 304) {
            true
        } else if let Some(length) = lengths.first() {
            let length: usize = length.to_str().ok().and_then(|length| length.parse().ok()).ok_or("no length")?;
            let here = length.min(told.len());
            body.extend_from_slice(&told[..here]);
            told = &told[here..];
            here == length
        } else if chunked == 1 {
            chunks(&mut told, &mut body, &mut trailers)?
        } else {
            return Err("an answer to 1.1 that the end frames");
        };
        if whole && !told.is_empty() {
            return Err("more than one answer");
        }
        // 502 is the path's own: no endpoint of these tests says it.
        let is_own = code == BROKEN && body.starts_with(b"the endpoint's answer");
        let mut last = understood(Version::HTTP_11, &fields, &body, pairs(&trailers, &[]));
        // Between the client and the path.
        last.options.clear();
        let last = (whole && !is_own && !(code == BROKEN && to_head)).then_some((code, last));
        return Ok(verdict(interim, last));
    }
}

/// Splits off what is before and with `end`.
fn take_to<'a>(told: &mut &'a [u8], end: &[u8]) -> Option<&'a [u8]> {
    let at = told.windows(end.len()).position(|window| window == end)? + end.len();
    let (taken, rest) = told.split_at(at);
    *told = rest;
    Some(taken)
}

fn field(line: &[u8], fields: &mut HeaderMap) -> Result<(), &'static str> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or("a field without a colon")?;
    let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| "a field without a name")?;
    let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).map_err(|_| "a field without a value")?;
    fields.append(name, value);
    Ok(())
}

/// Reads chunks. False: they end before their end.
fn chunks(told: &mut &[u8], body: &mut Vec<u8>, trailers: &mut HeaderMap) -> Result<bool, &'static str> {
    loop {
        let Some(line) = take_to(told, b"\r\n") else { return Ok(false) };
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let size = str::from_utf8(&line[..digits]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
        let size = size.filter(|_| matches!(line[digits], b'\r' | b';')).ok_or("no size of a chunk")?;
        if size == 0 {
            break;
        }
        if told.len() < size + 2 {
            return Ok(false);
        }
        if &told[size..size + 2] != b"\r\n" {
            return Err("a chunk that does not end with cr lf");
        }
        body.extend_from_slice(&told[..size]);
        *told = &told[size + 2..];
    }
    loop {
        let Some(line) = take_to(told, b"\r\n") else { return Ok(false) };
        if line == b"\r\n" {
            return Ok(true);
        }
        field(&line[..line.len() - 2], trailers)?;
    }
}
