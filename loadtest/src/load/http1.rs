//! HTTP/1.1, by hand: the head is written into one buffer, the answer's head is read in place, and bodies are counted and
//! forgotten, so that a core of load weighs little beside a core of proxy.

use std::{io::Write, sync::Arc};

use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    Endpoint, Failure, Load, Shared, Slot,
    http::{HttpLoad, KeyPlace, Patience, is_anothers, is_failure},
    record::Answer,
    stream::{Meanwhile, Stream},
};
use crate::ledger::Id;

/// Room for an answer's head. A longer one is malformed.
const MAX_HEAD: usize = 64 * 1024;
const MAX_HEADERS: usize = 100;
/// A body up to this size travels with its head in one write, in bytes.
const SMALL_BODY: usize = 16 * 1024;
/// Room to read into at first, and for the rest of a body that did not fit, in bytes.
const ROOM: (usize, usize) = (4 * 1024, 64 * 1024);

/// A connection that carries one request after the other.
pub(super) struct Connection {
    http: Arc<HttpLoad>,
    endpoint: Arc<Endpoint>,
    nth: usize,
    open: Option<Open>,
    out: Vec<u8>,
    read: Vec<u8>,
    /// What every head holds, from the end of its first line on.
    fixed: Arc<[u8]>,
}

struct Open {
    stream: Stream,
    requests: u64,
}

impl Connection {
    pub(super) fn new(http: &HttpLoad, load: &Load, nth: usize) -> Self {
        Self {
            fixed: fixed(http).into(),
            http: Arc::new(http.clone()),
            endpoint: Arc::new(load.endpoint.clone()),
            nth,
            open: None,
            out: Vec::new(),
            read: Vec::new(),
        }
    }

    /// Takes the open connection, if it can carry another request, or makes one. What the server said of its own accord
    /// on the old one (an answer to nothing) is counted.
    async fn connection(&mut self, key: u64, surplus: &mut u32) -> Result<Open, Failure> {
        if let Some(mut open) = self.open.take() {
            match open.stream.meanwhile() {
                Meanwhile::Quiet => return Ok(open),
                Meanwhile::Ended => {}
                Meanwhile::Spoke => *surplus += 1,
            }
        }
        let stream = self.endpoint.connect(self.nth, key).await?;
        Ok(Open { stream, requests: 0 })
    }

    fn write_head(&mut self, id: Id, key: u64, last: bool) {
        let Self { http, out, fixed, .. } = self;
        out.clear();
        out.extend_from_slice(http.method.as_str().as_bytes());
        out.push(b' ');
        http.write_path(out, key);
        out.extend_from_slice(fixed);
        // Writing into memory cannot fail.
        let _ = match &http.key {
            KeyPlace::Header(name) => write!(out, "{name}: user-{key}\r\n"),
            KeyPlace::Cookie(name) => write!(out, "cookie: {name}=user-{key}\r\n"),
            KeyPlace::Query(_) | KeyPlace::ClientIp => Ok(()),
        };
        out.extend_from_slice(b"x-loadtest-id: ");
        out.extend_from_slice(&id.digits());
        out.extend_from_slice(if last { b"\r\nconnection: close\r\n\r\n" } else { b"\r\n\r\n" });
    }
}

fn fixed(http: &HttpLoad) -> Vec<u8> {
    let mut fixed = format!(" HTTP/1.1\r\nhost: {}\r\n", http.authority).into_bytes();
    for (name, value) in &http.headers {
        let _ = write!(fixed, "{name}: ");
        fixed.extend_from_slice(value.as_bytes());
        fixed.extend_from_slice(b"\r\n");
    }
    let has_body = !http.body.is_empty() || matches!(http.method, Method::POST | Method::PUT | Method::PATCH);
    if has_body {
        let _ = write!(fixed, "content-length: {}\r\n", http.body.len());
    }
    fixed
}

impl Slot for Connection {
    fn key(&self) -> Option<u64> {
        None
    }

    async fn exchange(&mut self, id: Id, key: u64, recorder: &Shared) -> Result<Answer, Failure> {
        let mut surplus = 0;
        let mut open = self.connection(key, &mut surplus).await?;
        open.requests += 1;
        let last = self.http.requests_per_connection.is_some_and(|most| open.requests >= most.get());
        self.write_head(id, key, last);

        let moving = |error: std::io::Error| Failure::moving(&error);
        let body = &self.http.body;
        if body.len() <= SMALL_BODY {
            self.out.extend_from_slice(body);
            open.stream.write_all(&self.out).await.map_err(moving)?;
        } else {
            open.stream.write_all(&self.out).await.map_err(moving)?;
            open.stream.write_all(body).await.map_err(moving)?;
        }
        open.stream.flush().await.map_err(moving)?;

        let mut reader =
            Reader { stream: &mut open.stream, buffer: &mut self.read, patience: Patience::new(self.http.read_rate) };
        reader.buffer.clear();
        let head = reader.head(&self.http, id, recorder).await?;
        let leftover = reader.body(head.body).await?;
        surplus += u32::from(leftover);
        if head.reusable && !last && !leftover && head.body != Body::UntilClose {
            self.open = Some(open);
        }
        if head.crossed {
            return Err(Failure::Crossed);
        }
        Ok(Answer { arm: head.arm, status: head.status, failure: is_failure(head.status), surplus })
    }
}

/// How long a body is (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Length(u64),
    Chunked,
    UntilClose,
}

struct Head {
    status: u16,
    arm: super::record::Arm,
    body: Body,
    reusable: bool,
    crossed: bool,
}

struct Reader<'a> {
    stream: &'a mut Stream,
    /// What was read and not yet looked at.
    buffer: &'a mut Vec<u8>,
    patience: Patience,
}

impl Reader<'_> {
    /// Reads until the head of the final answer is in, and takes it out of the buffer.
    async fn head(&mut self, http: &HttpLoad, id: Id, recorder: &Shared) -> Result<Head, Failure> {
        loop {
            if self.more(ROOM.0).await? == 0 {
                return Err(Failure::Closed);
            }
            while let Some((length, head)) = parse(self.buffer, http, id, recorder)? {
                self.buffer.drain(..length);
                // 100 Continue and 103 Early Hints go before the answer.
                if head.status >= 200 {
                    return Ok(head);
                }
            }
            if self.buffer.len() > MAX_HEAD {
                return Err(Failure::Malformed);
            }
        }
    }

    /// Reads a body to its end and forgets it. True: there was something behind it.
    async fn body(&mut self, body: Body) -> Result<bool, Failure> {
        match body {
            Body::Length(length) => {
                let mut left = length;
                loop {
                    let here = (self.buffer.len() as u64).min(left);
                    left -= here;
                    if left == 0 {
                        return Ok(self.buffer.len() as u64 > here);
                    }
                    self.again().await?;
                }
            }
            Body::Chunked => {
                let mut chunks = Chunks::default();
                loop {
                    if let Some(end) = chunks.feed(self.buffer)? {
                        return Ok(end < self.buffer.len());
                    }
                    self.again().await?;
                }
            }
            Body::UntilClose => loop {
                self.buffer.clear();
                if self.more(ROOM.1).await? == 0 {
                    return Ok(false);
                }
            },
        }
    }

    /// Reads on in a body that should go on.
    async fn again(&mut self) -> Result<(), Failure> {
        self.buffer.clear();
        if self.more(ROOM.1).await? == 0 { Err(Failure::Closed) } else { Ok(()) }
    }

    async fn more(&mut self, room: usize) -> Result<usize, Failure> {
        self.buffer.reserve(room);
        let limit = self.patience.at_once(self.buffer.capacity() - self.buffer.len());
        let read = (&mut *self.stream).take(limit as u64).read_buf(self.buffer).await;
        let read = read.map_err(|error| Failure::moving(&error))?;
        self.patience.rest(read).await;
        Ok(read)
    }
}

/// A whole head and its length, `None` when more must come.
fn parse(bytes: &[u8], http: &HttpLoad, id: Id, recorder: &Shared) -> Result<Option<(usize, Head)>, Failure> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = response.parse(bytes).map_err(|_| Failure::Malformed)? else {
        return Ok(None);
    };
    let status = response.code.ok_or(Failure::Malformed)?;
    let find = |name: &str| {
        response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    };

    let body = if http.method == Method::HEAD || status < 200 || matches!(status, 204 | 304) {
        Body::Length(0)
    } else if let Some(coding) = find("transfer-encoding") {
        if coding.to_ascii_lowercase().ends_with(b"chunked") { Body::Chunked } else { Body::UntilClose }
    } else if let Some(length) = find("content-length") {
        let length = str::from_utf8(length).ok().and_then(|length| length.trim().parse().ok());
        Body::Length(length.ok_or(Failure::Malformed)?)
    } else {
        Body::UntilClose
    };
    if status == 101 {
        // Nobody asked to upgrade.
        return Err(Failure::Malformed);
    }
    let closing = find("connection").map(|value| value.eq_ignore_ascii_case(b"close"));
    let head = Head {
        status,
        arm: http.arm(find, &mut recorder.borrow_mut()),
        body,
        reusable: response.version == Some(1) && closing != Some(true),
        crossed: is_anothers(id, find("x-loadtest-id")),
    };
    Ok(Some((length, head)))
}

/// Finds the end of a chunked body (RFC 9112, section 7.1), fed in any pieces.
#[derive(Debug, Default)]
struct Chunks {
    state: ChunkState,
}

#[derive(Clone, Copy, Debug, Default)]
enum ChunkState {
    /// The size so far, and whether there was a digit.
    #[default]
    Start,
    Size(u64),
    /// Behind the digits of a chunk of so many bytes: an extension, CR, LF.
    SizeEnd(u64),
    Data(u64),
    /// CR LF behind the data.
    DataEnd,
    /// In the trailers, so many bytes into a line.
    Trailer(u32),
}

impl Chunks {
    /// Where the body ends in `bytes`, if it does.
    fn feed(&mut self, bytes: &[u8]) -> Result<Option<usize>, Failure> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            let digit = || char::from(byte).to_digit(16).map(u64::from);
            self.state = match self.state {
                ChunkState::Start => ChunkState::Size(digit().ok_or(Failure::Malformed)?),
                ChunkState::Size(size) => match digit() {
                    Some(digit) if size < 1 << 56 => ChunkState::Size(size << 4 | digit),
                    Some(_) => return Err(Failure::Malformed),
                    None if matches!(byte, b'\r' | b';' | b' ' | b'\t') => ChunkState::SizeEnd(size),
                    None => return Err(Failure::Malformed),
                },
                ChunkState::SizeEnd(size) if byte == b'\n' => {
                    if size == 0 {
                        ChunkState::Trailer(0)
                    } else {
                        ChunkState::Data(size)
                    }
                }
                ChunkState::SizeEnd(size) => ChunkState::SizeEnd(size),
                ChunkState::Data(left) => {
                    let here = left.min((bytes.len() - at) as u64);
                    at += here as usize;
                    self.state = if here == left { ChunkState::DataEnd } else { ChunkState::Data(left - here) };
                    continue;
                }
                ChunkState::DataEnd if byte == b'\n' => ChunkState::Start,
                ChunkState::DataEnd if byte == b'\r' => ChunkState::DataEnd,
                ChunkState::DataEnd => return Err(Failure::Malformed),
                ChunkState::Trailer(0) if byte == b'\n' => return Ok(Some(at + 1)),
                ChunkState::Trailer(_) if byte == b'\n' => ChunkState::Trailer(0),
                ChunkState::Trailer(length) if byte == b'\r' => ChunkState::Trailer(length),
                ChunkState::Trailer(length) => ChunkState::Trailer(length.saturating_add(1)),
            };
            at += 1;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_chunked_body_is_found_in_whatever_pieces_it_comes() {
        for (body, behind) in [
            ("0\r\n\r\n", ""),
            ("5\r\nhello\r\n0\r\n\r\n", "HTTP/1.1 200 OK"),
            ("5;a=b\r\nhello\r\nA \r\n0123456789\r\n000\r\nx: y\r\nz: 1\r\n\r\n", "0"),
        ] {
            let whole = format!("{body}{behind}");
            assert_eq!(Chunks::default().feed(whole.as_bytes()), Ok(Some(body.len())));
            let mut chunks = Chunks::default();
            let end = whole.bytes().position(|byte| chunks.feed(&[byte]).unwrap().is_some()).unwrap();
            assert_eq!(end + 1, body.len());
            let mut chunks = Chunks::default();
            assert_eq!(chunks.feed(&body.as_bytes()[..body.len() - 1]), Ok(None));
        }
    }

    #[test]
    fn what_is_no_chunk_is_malformed() {
        for faulty in ["\r\n", "x\r\n", "5\r\nhelloX", "5x\r\n", "fffffffffffffffff\r\n", "-1\r\n"] {
            assert_eq!(Chunks::default().feed(faulty.as_bytes()), Err(Failure::Malformed), "{faulty:?}");
        }
    }
}
