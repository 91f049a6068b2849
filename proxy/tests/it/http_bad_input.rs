//! What must never reach an origin: raw bytes in, expected answer out. What the engine lets pass beyond our own gate
//! stands here as a known gap, by name, with what happens today.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use http::StatusCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    clients::{Client, H2Client, get_request},
    harness::{Crossfade, eventually, seeded},
    routes::Route,
    site::{RawOrigin, Site, peak_kib, rejected, soon},
};

// HTTP/1.1: heads

/// A bad head, and how it is refused: the status, and the reason it is counted under.
pub(crate) struct Case(pub(crate) &'static str, pub(crate) Vec<u8>, pub(crate) u16, pub(crate) &'static str);

/// A request line, then these fields.
pub(crate) fn head(line: &str, fields: &[&str]) -> Vec<u8> {
    let mut head = format!("{line}\r\n");
    for field in fields {
        head += field;
        head += "\r\n";
    }
    head += "\r\n";
    head.into_bytes()
}

/// A POST with these fields beside `Host`, and a body that would be right for one of them.
fn framed(fields: &[&str], body: &str) -> Vec<u8> {
    let mut request = head("POST / HTTP/1.1", &[&["host: a"], fields].concat());
    request.extend(body.bytes());
    request
}

fn get(fields: &[&str]) -> Vec<u8> {
    head("GET / HTTP/1.1", fields)
}

pub(crate) fn bad_heads() -> Vec<Case> {
    let chunked = "transfer-encoding: chunked";
    let body = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let fields = |count: usize| -> Vec<String> {
        let filler = (1..count).map(|n| format!("x-{n}: 1"));
        ["host: a".to_owned()].into_iter().chain(filler).collect()
    };
    let many = fields(101);
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let large = format!("x-large: {}", "a".repeat(64 * 1024));
    let options = format!("connection: {}", ["close"; 10].join(", "));
    vec![
        // Framing: RFC 9112, 6.1 to 6.3.
        Case("length and chunked", framed(&["content-length: 5", chunked], body), 400, "both_framings"),
        Case("chunked and length", framed(&[chunked, "content-length: 0"], body), 400, "both_framings"),
        Case("chunked is not final", framed(&["transfer-encoding: chunked, gzip"], body), 400, "bad_transfer_encoding"),
        Case("chunked twice", framed(&["transfer-encoding: chunked, chunked"], body), 400, "bad_transfer_encoding"),
        Case("two transfer-encodings", framed(&[chunked, chunked], body), 400, "bad_transfer_encoding"),
        Case("identity", framed(&["transfer-encoding: identity"], body), 400, "bad_transfer_encoding"),
        Case("misspelt", framed(&["transfer-encoding: xchunked"], body), 400, "bad_transfer_encoding"),
        Case("quoted", framed(&["transfer-encoding: \"chunked\""], body), 400, "bad_transfer_encoding"),
        Case("with a parameter", framed(&["transfer-encoding: chunked;a=b"], body), 400, "bad_transfer_encoding"),
        Case("empty", framed(&["transfer-encoding:"], body), 400, "bad_transfer_encoding"),
        Case(
            "another coding first",
            framed(&["transfer-encoding: gzip, chunked"], body),
            501,
            "transfer_coding_unsupported",
        ),
        Case("chunked in 1.0", head("POST / HTTP/1.0", &["host: a", chunked]), 400, "bad_transfer_encoding"),
        Case(
            "two lengths that differ",
            framed(&["content-length: 5", "content-length: 6"], body),
            400,
            "bad_content_length",
        ),
        Case(
            "two lengths that agree",
            framed(&["content-length: 5", "content-length: 5"], body),
            400,
            "bad_content_length",
        ),
        Case("a list of lengths", framed(&["content-length: 5, 5"], body), 400, "bad_content_length"),
        Case("a signed length", framed(&["content-length: +5"], body), 400, "bad_content_length"),
        Case("a negative length", framed(&["content-length: -5"], body), 400, "bad_content_length"),
        Case("a hexadecimal length", framed(&["content-length: 0x5"], body), 400, "bad_content_length"),
        Case("a fraction", framed(&["content-length: 5.0"], body), 400, "bad_content_length"),
        Case("no length", framed(&["content-length:"], body), 400, "bad_content_length"),
        Case("an immense length", framed(&["content-length: 99999999999999999999"], body), 400, "bad_content_length"),
        Case(
            "an upgrade with a body",
            framed(&["connection: upgrade", "upgrade: websocket", "content-length: 5"], body),
            400,
            "upgrade_with_body",
        ),
        Case(
            "an upgrade with chunks",
            framed(&["connection: upgrade", "upgrade: websocket", chunked], body),
            400,
            "upgrade_with_body",
        ),
        // Host: RFC 9112, 3.2.
        Case("no host", get(&["accept: */*"]), 400, "missing_host"),
        Case("two hosts", get(&["host: a", "host: b"]), 400, "repeated_host"),
        Case("the same host twice", get(&["host: a", "Host: a"]), 400, "repeated_host"),
        Case("a list of hosts", get(&["host: a, b"]), 400, "bad_host"),
        Case("userinfo in host", get(&["host: user@a"]), 400, "bad_host"),
        Case("a path in host", get(&["host: a/b"]), 400, "bad_host"),
        Case("a port that is none", get(&["host: a:x"]), 400, "bad_host"),
        Case("a port too high", get(&["host: a:65536"]), 400, "bad_host"),
        Case("half an address", get(&["host: [::1"]), 400, "bad_host"),
        Case("host and target differ", head("GET http://a/ HTTP/1.1", &["host: b"]), 400, "host_mismatch"),
        Case("userinfo in the target", head("GET http://user@a/ HTTP/1.1", &["host: a"]), 400, "bad_target"),
        // Lines: RFC 9112, 2.2 and 5.
        Case("lf for a line's end", b"GET / HTTP/1.1\nhost: a\r\n\r\n".to_vec(), 400, "bare_lf"),
        Case("lf in the fields", b"GET / HTTP/1.1\r\nhost: a\nx: y\r\n\r\n".to_vec(), 400, "bare_lf"),
        Case("lf for the empty line", b"GET / HTTP/1.1\r\nhost: a\r\n\n".to_vec(), 400, "bare_lf"),
        Case("cr for a line's end", b"GET / HTTP/1.1\rhost: a\r\n\r\n".to_vec(), 400, "bare_cr"),
        Case("cr within a value", get(&["host: a", "x: 1\r2"]), 400, "bare_cr"),
        Case("two empty lines first", b"\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), 400, "bad_request_line"),
        Case("obs-fold", get(&["host: a", "x: 1", " 2"]), 400, "obs_fold"),
        Case("obs-fold with a tab", get(&["host: a", "x: 1", "\t2"]), 400, "obs_fold"),
        Case("white space before the first field", get(&[" host: a"]), 400, "obs_fold"),
        Case("a space before the colon", get(&["host: a", "content-length : 5"]), 400, "bad_field_name"),
        Case("a tab before the colon", get(&["host: a", "transfer-encoding\t: chunked"]), 400, "bad_field_name"),
        Case("no name", get(&["host: a", ": x"]), 400, "bad_field_name"),
        Case("no colon", get(&["host: a", "x"]), 400, "bad_field_name"),
        Case("a name beyond ascii", get(&["host: a", "x\u{e9}: y"]), 400, "bad_field_name"),
        Case("a name in brackets", get(&["host: a", "(x): y"]), 400, "bad_field_name"),
        Case("nul in a value", get(&["host: a", "x: \0"]), 400, "control_character"),
        Case("nul in a name", get(&["host: a", "x\0: y"]), 400, "control_character"),
        Case("nul in the target", head("GET /\0 HTTP/1.1", &["host: a"]), 400, "control_character"),
        Case("delete in a value", get(&["host: a", "x: \x7f"]), 400, "control_character"),
        // Request line: RFC 9112, 3.
        Case("a space in the target", head("GET /a b HTTP/1.1", &["host: a"]), 400, "bad_target"),
        Case("two spaces", head("GET  / HTTP/1.1", &["host: a"]), 400, "bad_target"),
        Case("a tab in the target", head("GET /a\tb HTTP/1.1", &["host: a"]), 400, "bad_target"),
        Case("a fragment", head("GET /a#b HTTP/1.1", &["host: a"]), 400, "bad_target"),
        Case("no slash", head("GET a HTTP/1.1", &["host: a"]), 400, "bad_target"),
        Case("another scheme", head("GET ftp://a/ HTTP/1.1", &["host: a"]), 400, "bad_target"),
        Case("an asterisk with GET", head("GET * HTTP/1.1", &["host: a"]), 400, "bad_target"),
        Case("bytes that are no utf-8", b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), 400, "bad_target"),
        Case("no target", head("GET HTTP/1.1", &["host: a"]), 400, "bad_request_line"),
        Case("http/0.9", b"GET /\r\n\r\n".to_vec(), 400, "bad_request_line"),
        Case("no method", head(" / HTTP/1.1", &["host: a"]), 400, "bad_method"),
        Case("a method that is no token", head("GE(T / HTTP/1.1", &["host: a"]), 400, "bad_method"),
        Case("a lower case version", head("GET / http/1.1", &["host: a"]), 400, "bad_version"),
        Case("a version with two digits", head("GET / HTTP/1.10", &["host: a"]), 400, "bad_version"),
        Case("http/1.2", head("GET / HTTP/1.2", &["host: a"]), 505, "bad_version"),
        Case("http/2 without its preface", head("GET / HTTP/2.0", &["host: a"]), 505, "bad_version"),
        Case("connect", head("CONNECT a:443 HTTP/1.1", &["host: a:443"]), 405, "connect_method"),
        Case("another protocol", b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec(), 400, "bad_request_line"),
        Case(
            "tls where none is spoken",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(),
            400,
            "control_character",
        ),
        // Size.
        Case("101 fields", get(&many), 431, "too_many_fields"),
        Case("more than 64 KiB", get(&["host: a", &large]), 431, "head_too_large"),
        Case(
            "a request line without end",
            format!("GET /{}", "a".repeat(64 * 1024)).into_bytes(),
            431,
            "head_too_large",
        ),
        // Connection: RFC 9110, 7.6.1.
        Case("connection names host", get(&["host: a", "connection: close, Host"]), 400, "connection_header"),
        Case(
            "connection names x-forwarded-for",
            get(&["host: a", "connection: x-forwarded-for"]),
            400,
            "connection_header",
        ),
        Case("connection names forwarded", get(&["host: a", "connection: forwarded"]), 400, "connection_header"),
        Case(
            "connection names the framing",
            framed(&["connection: content-length", "content-length: 5"], body),
            400,
            "connection_header",
        ),
        Case("ten options", get(&["host: a", &options]), 400, "connection_header"),
    ]
}

#[tokio::test]
async fn a_bad_head_is_refused_counted_and_reaches_nobody() {
    let site = Site::start().await;
    // Without checks: not even a connection may reach an origin.
    let route = site.route().green_percentage(50.0).unchecked();
    let crossfade = Crossfade::start(&route.to_string()).await;
    let cases = bad_heads();
    assert!(cases.len() > 70);
    for Case(name, bytes, status, reason) in &cases {
        let before = rejected(&crossfade.admin, reason).await;
        let mut client = Client::connect(route.listen).await;
        client.send(bytes).await;
        let answer = client.try_answer().await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(answer.status.as_u16(), *status, "{name}: {}", answer.text());
        assert_eq!(answer.header("connection"), Some("close"), "{name}");
        assert!(answer.text().len() > 10, "{name}: the answer does not say what is wrong");
        assert!(client.rest().await.is_empty(), "{name}: more than one answer");
        assert_eq!(rejected(&crossfade.admin, reason).await, before + 1, "{name}: not counted as {reason}");
        assert_eq!(site.connections(), (0, 0), "{name}: reached an origin");
    }

    // The same byte by byte, as far as that is quick.
    for Case(name, bytes, status, _) in cases.iter().filter(|case| case.1.len() < 200) {
        let mut client = Client::connect(route.listen).await;
        for byte in bytes {
            // Refused as soon as it is wrong: the rest may find the connection closed.
            if client.stream.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
        let answer = client.try_answer().await.unwrap_or_else(|error| panic!("{name}, byte by byte: {error}"));
        assert_eq!(answer.status.as_u16(), *status, "{name}, byte by byte");
    }
    assert_eq!(site.connections(), (0, 0), "byte by byte, something reached an origin");

    // As the second request of a connection, behind a good one that is answered.
    for Case(name, bytes, status, _) in &cases {
        let mut client = Client::connect(route.listen).await;
        client.send([&get_request("/good", &[]), &bytes[..]].concat()).await;
        assert_eq!(client.answer().await.status, StatusCode::OK, "{name}, pipelined");
        // An empty line before a request line is allowed once, so two of them are no other case here.
        assert_eq!(client.answer().await.status.as_u16(), *status, "{name}, pipelined");
    }
    let seen = site.blue.seen();
    assert_eq!((seen.requests(), site.green.seen().requests()), (cases.len() as u64, 0));
    assert!(seen.recent().iter().all(|request| request.path == "/good"), "{:?}", seen.by_path());
}

#[tokio::test]
async fn noise_is_refused_or_waited_for_and_the_next_connection_is_served() {
    let site = Site::start().await;
    let route = site.route().unchecked().table("[route.timeouts]\nrequest_header = \"1s\"");
    let crossfade = Crossfade::start(&route.to_string()).await;
    let mut random = seeded();
    for _ in 0..300 {
        let mut noise: Vec<u8> = (0..random.usize(1..400)).map(|_| random.u8(..)).collect();
        noise.extend(b"\r\n\r\n");
        let mut client = Client::connect(route.listen).await;
        client.send(&noise).await;
        let answer = client.try_answer().await;
        assert!(answer.as_ref().is_ok_and(|answer| answer.status.is_client_error()), "{noise:?}: {answer:?}");
    }
    assert_eq!(site.connections(), (0, 0));
    assert_eq!(Client::connect(route.listen).await.get("/", &[]).await.status, StatusCode::OK);
    assert!(peak_kib(&crossfade) < 200 * 1024);
}

#[tokio::test]
async fn what_no_route_takes_is_404_and_the_connection_stays() {
    let site = Site::start().await;
    let route = site.route().unchecked();
    let crossfade = Crossfade::start(&route.to_string()).await;
    let mut client = Client::connect(route.listen).await;
    for _ in 0..3 {
        let answer = client.exchange(b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        assert_eq!((answer.status, answer.header("connection")), (StatusCode::NOT_FOUND, Some("keep-alive")));
    }
    assert_eq!(client.get("/", &[]).await.status, StatusCode::OK);
    assert_eq!(rejected(&crossfade.admin, "no_route").await, 3);
}

// HTTP/1.1: bodies

/// An origin that keeps every byte it is sent and never answers.
async fn recorder() -> (RawOrigin, Arc<Mutex<Vec<u8>>>) {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keeping = Arc::clone(&kept);
    let origin = RawOrigin::start(move |mut stream, _| {
        let keeping = Arc::clone(&keeping);
        async move {
            let mut part = vec![0; 16 * 1024];
            while let Ok(read @ 1..) = stream.read(&mut part).await {
                keeping.lock().unwrap().extend(&part[..read]);
            }
        }
    })
    .await;
    (origin, kept)
}

#[tokio::test]
async fn a_body_with_bad_chunks_is_refused_counted_and_never_completed() {
    let (origin, kept) = recorder().await;
    let route = Route::http(origin.address, origin.address).unchecked().unguarded();
    let crossfade = Crossfade::start(&route.to_string()).await;
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(64 * 1024));
    for (name, body) in [
        ("a plus sign", "+5\r\nhello\r\n0\r\n\r\n"),
        ("a minus sign", "-5\r\nhello\r\n0\r\n\r\n"),
        ("an underscore", "0_5\r\nhello\r\n0\r\n\r\n"),
        ("a prefix", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("another letter", "g\r\nhello\r\n0\r\n\r\n"),
        ("an overflow", "FFFFFFFFFFFFFFFF1\r\nhello\r\n0\r\n\r\n"),
        ("one that wraps to 5", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        ("lf alone", "5\nhello\r\n0\r\n\r\n"),
        ("cr alone", "5\rhello\r\n0\r\n\r\n"),
        ("cr in an extension", "5;a=\rb\r\nhello\r\n0\r\n\r\n"),
        ("lf in an extension", "5;a=\nb\r\nhello\r\n0\r\n\r\n"),
        ("nul in an extension", "5;a=\0\r\nhello\r\n0\r\n\r\n"),
        ("no size", "\r\n\r\n"),
        ("no size before an extension", ";a=b\r\n\r\n"),
        ("a trailer that frames", "0\r\ncontent-length: 5\r\n\r\n"),
        ("an extension without end", &long),
        ("data that is longer than it says", "5\r\nhelloX\r\n0\r\n\r\n"),
        ("data that is followed by lf", "5\r\nhello\n0\r\n\r\n"),
    ] {
        kept.lock().unwrap().clear();
        let before = rejected(&crossfade.admin, "bad_chunk").await;
        let mut client = Client::connect(route.listen).await;
        client.send(framed(&["transfer-encoding: chunked"], body)).await;
        let answer = client.try_answer().await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{name}");
        assert_eq!(answer.header("connection"), Some("close"), "{name}");
        assert!(client.rest().await.is_empty(), "{name}");
        assert_eq!(rejected(&crossfade.admin, "bad_chunk").await, before + 1, "{name}");
        // The head may have gone ahead; what follows it is never whole, and never what was sent.
        let kept = String::from_utf8_lossy(&kept.lock().unwrap()).into_owned();
        let sent = kept.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        assert!(sent.is_empty() || sent == "5\r\nhello\r\n", "{name}: the origin was sent {sent:?}");
    }
}

// HTTP/1.1: what a proxy owes to those before and behind it.

#[tokio::test]
async fn a_proxy_says_that_it_was_on_the_way_and_counts_forwards_down() {
    let site = Site::start().await;
    let route = site.route().unchecked();
    let _crossfade = Crossfade::start(&route.to_string()).await;
    let mut client = Client::connect(route.listen).await;

    // RFC 9110, 7.6.3.
    let answer = client.get("/headers", &[("via", "1.1 first")]).await;
    assert_eq!(answer.told("via"), ["1.1 first", "1.1 crossfade"]);

    // RFC 9110, 7.6.2: with 0 the request ends here, and else the count goes down, for TRACE and OPTIONS alone.
    for (method, status) in [("TRACE", StatusCode::METHOD_NOT_ALLOWED), ("OPTIONS", StatusCode::OK)] {
        let request = format!("{method} /headers HTTP/1.1\r\nhost: a\r\nmax-forwards: 0\r\n\r\n");
        let answer = client.exchange(request.as_bytes()).await.unwrap();
        assert_eq!((answer.status, answer.header("x-origin")), (status, None), "{method}");
        let request = format!("{method} /headers HTTP/1.1\r\nhost: a\r\nmax-forwards: 7\r\n\r\n");
        assert_eq!(client.exchange(request.as_bytes()).await.unwrap().told("max-forwards"), ["6"], "{method}");
    }
    assert_eq!(client.get("/headers", &[("max-forwards", "7")]).await.told("max-forwards"), ["7"]);

    // RFC 9112, 7.1.2: trailers are carried through.
    let chunks = "2\r\nhi\r\n0\r\nx-trailer: 1\r\n\r\n";
    client
        .send(format!("POST /echo HTTP/1.1\r\nhost: a\r\nte: trailers\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"))
        .await;
    client.head().await;
    assert_eq!(client.chunk().await.unwrap(), b"hi");
    while !client.buffer.ends_with(b"\r\n\r\n") {
        client.more().await.unwrap();
    }
}

// HTTP/2

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// HPACK, each field as a literal that enters no table and is not squeezed.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            block.push(text.len() as u8);
            block.extend(text.bytes());
        }
    }
    block
}

/// A whole GET on a stream, with further fields behind it.
fn h2_get(stream: u32, more: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &block(&[&pseudo, more].concat()))
}

/// A connection that sends whatever frames it likes.
struct RawH2(Client);

#[derive(Debug)]
struct Frame {
    kind: u8,
    payload: Vec<u8>,
}

impl Frame {
    /// The error code of RST_STREAM and GOAWAY.
    fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

impl RawH2 {
    async fn connect(address: SocketAddr) -> Self {
        let mut client = Client::connect(address).await;
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        client.send(frame(SETTINGS, 0, 0, &[])).await;
        Self(client)
    }

    /// Sends as far as the other side still listens.
    async fn send(&mut self, frames: &[u8]) -> bool {
        soon(self.0.stream.write_all(frames)).await.is_ok()
    }

    /// The next frame; `None` when the connection has ended.
    async fn frame(&mut self) -> Option<Frame> {
        while self.0.buffer.len() < 9 {
            self.0.more().await.ok()?;
        }
        let length = u32::from_be_bytes([0, self.0.buffer[0], self.0.buffer[1], self.0.buffer[2]]) as usize;
        while self.0.buffer.len() < 9 + length {
            self.0.more().await.ok()?;
        }
        let kind = self.0.buffer[3];
        let payload = self.0.buffer.drain(..9 + length).skip(9).collect();
        Some(Frame { kind, payload })
    }

    /// Reads until an answer, a reset, GOAWAY or the end.
    async fn verdict(&mut self) -> Verdict {
        loop {
            match self.frame().await {
                None => return Verdict::Closed,
                Some(frame) if frame.kind == GOAWAY => return Verdict::GoAway(frame.code()),
                Some(frame) if frame.kind == RST_STREAM => return Verdict::Reset(frame.code()),
                // 0x8d: `:status: 404`, 0x8c: 400, 0x88: 200, in the static table.
                Some(frame) if frame.kind == HEADERS => return Verdict::Answer(frame.payload[0]),
                Some(_) => {}
            }
        }
    }
}

#[derive(Debug, PartialEq)]
enum Verdict {
    /// The first byte of the header block.
    Answer(u8),
    Reset(u32),
    GoAway(u32),
    Closed,
}

#[tokio::test]
async fn a_malformed_http2_request_ends_its_stream_or_its_connection_and_reaches_nobody() {
    let site = Site::start().await;
    let route = site.route().unchecked();
    let crossfade = Crossfade::start(&route.to_string()).await;
    let mut served = 0;
    let request = |fields: &[(&str, &str)]| frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(fields));
    let (method, scheme, path, authority) =
        ((":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a"));
    for (name, frames) in [
        ("an upper case name", h2_get(1, &[("X-Upper", "1")])),
        ("no method", request(&[scheme, path, authority])),
        ("no scheme", request(&[method, path, authority])),
        ("no path", request(&[method, scheme, authority])),
        ("an empty path", request(&[method, scheme, (":path", ""), authority])),
        ("two paths", request(&[method, scheme, path, path, authority])),
        ("an unknown pseudo field", request(&[method, scheme, path, authority, (":unknown", "1")])),
        ("a status in a request", request(&[method, scheme, path, authority, (":status", "200")])),
        ("a pseudo field behind others", request(&[method, scheme, ("x", "1"), path, authority])),
        ("connection", h2_get(1, &[("connection", "close")])),
        ("keep-alive", h2_get(1, &[("keep-alive", "1")])),
        ("transfer-encoding", h2_get(1, &[("transfer-encoding", "chunked")])),
        ("upgrade", h2_get(1, &[("upgrade", "websocket")])),
        ("te", h2_get(1, &[("te", "gzip")])),
        ("cr lf in a value", h2_get(1, &[("x", "1\r\ny: 2")])),
        ("nul in a value", h2_get(1, &[("x", "\0")])),
        ("cr lf in the path", request(&[method, scheme, (":path", "/ HTTP/1.1\r\nx: y"), authority])),
        ("a space in the path", request(&[method, scheme, (":path", "/ HTTP/1.1"), authority])),
        ("no slash in the path", request(&[method, scheme, (":path", "a"), authority])),
        ("cr lf in the authority", request(&[method, scheme, path, (":authority", "a\r\nx: y")])),
        ("a space in the authority", request(&[method, scheme, path, (":authority", "a b")])),
        ("userinfo in the authority", request(&[method, scheme, path, (":authority", "user@a")])),
        ("host and authority differ", h2_get(1, &[("host", "b")])),
        ("a length and no body", h2_get(1, &[("content-length", "5")])),
        ("a length that is none", h2_get(1, &[("content-length", "x")])),
        ("two lengths", h2_get(1, &[("content-length", "0"), ("content-length", "1")])),
        ("cr lf in the method", request(&[(":method", "GET / HTTP/1.1\r\n"), scheme, path, authority])),
        ("a space in the method", request(&[(":method", "G T"), scheme, path, authority])),
        ("connect", request(&[(":method", "CONNECT"), authority])),
        ("extended connect", request(&[(":method", "CONNECT"), (":protocol", "websocket"), scheme, path, authority])),
        ("an even stream", frame(HEADERS, END_STREAM | END_HEADERS, 2, &block(&[method, scheme, path, authority]))),
        ("data for a stream that is not open", frame(DATA, END_STREAM, 1, b"x")),
        ("a header block that is no hpack", frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0xff; 20])),
        ("continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, &[])),
        ("an increment of 0", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("a window that overflows", frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        ("a frame that is too large", frame(DATA, 0, 1, &vec![0; 20_000])),
        ("half a setting", frame(SETTINGS, 0, 0, &[0; 5])),
        ("a setting that is no value", frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff])),
        ("a ping on a stream", frame(PING, 0, 1, &[0; 8])),
    ] {
        let mut connection = RawH2::connect(route.listen).await;
        connection.send(&frames).await;
        let verdict = connection.verdict().await;
        let refused = match &verdict {
            Verdict::Reset(code) | Verdict::GoAway(code) => *code != 0,
            // `:status: 400` or another one, spelt out; never 200.
            Verdict::Answer(first) => *first != 0x88,
            Verdict::Closed => true,
        };
        assert!(refused, "{name}: {verdict:?}");
        let before = site.requests().0;
        if let Verdict::Reset(_) | Verdict::Answer(_) = verdict {
            // The connection lives: other streams are served.
            connection.send(&h2_get(101, &[])).await;
            assert_eq!(connection.verdict().await, Verdict::Answer(0x88), "{name}: its siblings suffer");
        } else {
            let next = H2Client::connect(route.listen).await.get("/", &[]).await;
            assert_eq!(next.status, StatusCode::OK, "{name}: the next connection suffers");
        }
        served += 1;
        assert_eq!((before, site.requests().0), (served - 1, served), "{name}: reached an origin");
    }
    assert!(rejected(&crossfade.admin, "h2_malformed").await > 0);
}

#[tokio::test]
async fn an_http2_request_without_authority_goes_by_its_host_and_is_refused_without_one() {
    let site = Site::start().await;
    let any = site.route().unchecked();
    let named =
        site.route().named("named").beside(&any).with("match = { host = \"a\" }").green_percentage(100.0).unchecked();
    let _crossfade = Crossfade::start(&format!("{any}{named}")).await;
    let (method, scheme, path) = ((":method", "GET"), (":scheme", "http"), (":path", "/headers"));
    for (what, fields, origin) in [
        ("host in its place", &[method, scheme, path, ("host", "a"), ("x-session-id", "1")][..], "go"),
        ("neither", &[method, scheme, path], "python"),
    ] {
        let mut connection = RawH2::connect(any.listen).await;
        connection.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(fields))).await;
        let verdict = connection.verdict().await;
        match origin {
            "go" => assert_eq!((&verdict, site.requests()), (&Verdict::Answer(0x88), (0, 1)), "{what}"),
            // 0x8c: `:status: 400`.
            _ => assert_eq!((&verdict, site.requests()), (&Verdict::Answer(0x8c), (1, 1)), "{what}"),
        }
        assert_eq!(H2Client::connect(any.listen).await.get("/", &[]).await.status, StatusCode::OK, "{what}");
    }
}

#[tokio::test]
async fn no_connection_gets_more_than_a_hundred_streams() {
    let site = Site::start().await;
    site.blue.behaviour().change(|b| b.hang = true);
    let route = site.route().unchecked();
    let _crossfade = Crossfade::start(&route.to_string()).await;
    let mut connection = RawH2::connect(route.listen).await;
    let all: Vec<u8> = (0..150).flat_map(|n| h2_get(2 * n + 1, &[])).collect();
    connection.send(&all).await;
    let mut refused = 0;
    while refused < 50 {
        match connection.verdict().await {
            Verdict::Reset(REFUSED_STREAM) => refused += 1,
            other => panic!("{other:?} after {refused} were refused"),
        }
    }
    eventually("a hundred are under way", async || (site.requests() == (100, 0)).then_some(())).await;
    site.blue.behaviour().change(|b| b.hang = false);
    assert_eq!(Client::connect(route.listen).await.get("/", &[]).await.status, StatusCode::OK);
}

/// Floods one connection until it is closed or `rounds` are sent; the most memory that cost, in KiB.
async fn flood(
    route: &Route,
    crossfade: &Crossfade,
    rounds: usize,
    frames: impl Fn(usize) -> Vec<u8>,
) -> (Verdict, u64) {
    let before = peak_kib(crossfade);
    let mut connection = RawH2::connect(route.listen).await;
    let mut verdict = None;
    for round in 0..rounds {
        // Whoever is being flooded must not be waited for: nothing of what it sends is read.
        if !connection.send(&frames(round)).await {
            verdict = Some(Verdict::Closed);
            break;
        }
    }
    let verdict = match (verdict, connection.verdict().await) {
        (_, Verdict::GoAway(code)) => Verdict::GoAway(code),
        (Some(verdict), _) | (None, verdict) => verdict,
    };
    (verdict, peak_kib(crossfade) - before)
}

async fn lives(route: &Route, what: &str) {
    assert_eq!(H2Client::connect(route.listen).await.get("/", &[]).await.status, StatusCode::OK, "{what}");
    assert_eq!(Client::connect(route.listen).await.get("/", &[]).await.status, StatusCode::OK, "{what}");
}

#[tokio::test]
async fn floods_of_http2_frames_end_the_connection_in_bounded_memory() {
    let site = Site::start().await;
    let route = site.route().unchecked();
    let crossfade = Crossfade::start(&route.to_string()).await;
    lives(&route, "before").await;

    let reset = |n: usize| {
        let stream = 2 * n as u32 + 1;
        [h2_get(stream, &[]), frame(RST_STREAM, 0, stream, &REFUSED_STREAM.to_be_bytes())].concat()
    };
    let (verdict, grown) = flood(&route, &crossfade, 5_000, reset).await;
    assert!(matches!(verdict, Verdict::GoAway(ENHANCE_YOUR_CALM) | Verdict::Closed), "rapid reset: {verdict:?}");
    assert!(grown < 16 * 1024, "rapid reset: {grown} KiB");
    lives(&route, "after rapid reset").await;

    let continuation = |n: usize| {
        let part = block(&[("x", &"y".repeat(120))]);
        if n == 0 { frame(HEADERS, END_STREAM, 1, &part) } else { frame(CONTINUATION, 0, 1, &part) }
    };
    let (verdict, grown) = flood(&route, &crossfade, 50_000, continuation).await;
    assert!(
        matches!(verdict, Verdict::GoAway(ENHANCE_YOUR_CALM | PROTOCOL_ERROR) | Verdict::Closed),
        "continuation: {verdict:?}"
    );
    assert!(grown < 16 * 1024, "continuation: {grown} KiB");
    lives(&route, "after continuation").await;

    // Empty ones cost no header bytes, so that no limit of size finds them.
    let empty = |n: usize| {
        let kind = if n == 0 { HEADERS } else { CONTINUATION };
        frame(kind, if n == 0 { END_STREAM } else { 0 }, 1, &[])
    };
    let (verdict, grown) = flood(&route, &crossfade, 50_000, empty).await;
    assert!(matches!(verdict, Verdict::GoAway(_) | Verdict::Closed), "empty continuation: {verdict:?}");
    assert!(grown < 16 * 1024, "empty continuation: {grown} KiB");
    lives(&route, "after empty continuation").await;

    // A field of 4 KB enters the table once (0x40: a literal that is remembered) and is then named thousands of times
    // in one byte each (0xbe: the newest entry).
    let bomb = |n: usize| {
        let mut fields = block(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")]);
        fields.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
        fields.extend([b'y'; 127 + 0x21 + (0x1e << 7)]);
        fields.extend([0xbe; 10_000]);
        frame(HEADERS, END_STREAM | END_HEADERS, 2 * n as u32 + 1, &fields)
    };
    let requests = site.requests();
    let (verdict, grown) = flood(&route, &crossfade, 200, bomb).await;
    assert_ne!(verdict, Verdict::Answer(0x88), "hpack bomb");
    assert_eq!(site.requests(), requests, "hpack bomb: reached an origin");
    assert!(grown < 32 * 1024, "hpack bomb: {grown} KiB");
    lives(&route, "after hpack bomb").await;

    for (what, frames) in [("ping", frame(PING, 0, 0, &[0; 8])), ("settings", frame(SETTINGS, 0, 0, &[]))] {
        let frames = frames.repeat(100);
        let before = peak_kib(&crossfade);
        let mut connection = RawH2::connect(route.listen).await;
        // The answers are not read, so at some time nothing more can be sent.
        for _ in 0..2_000 {
            let sending = connection.0.stream.write_all(&frames);
            if tokio::time::timeout(std::time::Duration::from_millis(200), sending).await.is_err() {
                break;
            }
        }
        let grown = peak_kib(&crossfade) - before;
        assert!(grown < 16 * 1024, "{what}: {grown} KiB");
        lives(&route, what).await;
    }
}

#[tokio::test]
async fn many_slow_connections_cost_little_and_nobody_else() {
    let site = Site::start().await;
    let route = site.route().unchecked();
    let crossfade = Crossfade::start(&route.to_string()).await;
    lives(&route, "before").await;
    let before = peak_kib(&crossfade);
    let mut slow = Vec::new();
    for n in 0..500 {
        let mut stream = TcpStream::connect(route.listen).await.unwrap();
        let part: &[u8] = if n % 2 == 0 { b"GET / HTTP/1.1\r\nhost: a\r\nx-slow: " } else { b"" };
        stream.write_all(part).await.unwrap();
        slow.push(stream);
    }
    lives(&route, "beside slow ones").await;
    let grown = peak_kib(&crossfade) - before;
    println!("{} bytes a connection", grown * 1024 / 500);
    // Half of them have begun a head; a dev build, with its accept and its tasks.
    assert!(grown * 1024 / 500 < 40 * 1024, "{grown} KiB for 500 connections");
    for mut stream in slow.into_iter().step_by(2) {
        stream.write_all(b"1\r\n\r\n").await.unwrap();
        assert_eq!(Client::over(stream).answer().await.status, StatusCode::OK);
    }
}
