//! One request and its answer: bytes from the buffer they were read into to the other side, one write each way when they
//! are few, both ways at once when they are many.

use std::{
    future::poll_fn,
    io::Write,
    pin::Pin,
    task::{Context, Poll},
};

use admin_api::Outcome;
use http::StatusCode;
use tokio::{
    io::AsyncWrite,
    time::{Duration, Instant},
};

use super::{
    Client,
    response::{Asked, Body, MAX_HEAD, Response},
};
use crate::{
    buffer::Buffer,
    mirror::Tap,
    splice::{self, Splice},
    telemetry,
    transport::Transport,
    wire::{chunked::Chunks, http1::BodyLength},
};

/// So many bytes of a body still to come, and the system moves them.
const SPLICED: u64 = 64 * 1024;

/// Whether a client that waits for its answer has left is asked only after so long: most are answered before.
const UNWATCHED: Duration = Duration::from_millis(100);

/// A connection to an endpoint, while one exchange has it.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) transport: Transport,
    pub(super) input: Buffer,
}

/// How long an exchange waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For the answer's head, and for each part of the request's body.
    pub(super) answer: Duration,
    /// For each part of the answer's body.
    pub(super) part: Duration,
    /// For a peer that takes no bytes.
    pub(super) write: Duration,
}

/// Why an exchange broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The endpoint closed, reset, or sent what makes no sense. `early`: not one byte of an answer had come.
    Upstream { early: bool },
    /// The endpoint took or sent nothing for too long.
    UpstreamSilent,
    /// The client closed, reset, or took nothing for too long.
    Client,
    /// The client's body did not come in time.
    ClientSilent,
    /// The client's body is not well divided into chunks.
    BadChunk,
}

impl Broken {
    /// For the access log.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Upstream { .. } => "upstream_broke",
            Self::UpstreamSilent => "upstream_timeout",
            Self::Client => "client_broke",
            Self::ClientSilent => "client_timeout",
            Self::BadChunk => "bad_chunk",
        }
    }

    /// What it says about the arm, and what the client is told if nothing else was.
    pub(super) fn verdict(self) -> (Outcome, Option<(StatusCode, &'static str)>) {
        match self {
            Self::Upstream { .. } => (
                Outcome::Broken,
                Some((StatusCode::BAD_GATEWAY, "the endpoint's answer was not whole or made no sense")),
            ),
            Self::UpstreamSilent => {
                (Outcome::Timeout, Some((StatusCode::GATEWAY_TIMEOUT, "the endpoint did not answer in time")))
            }
            Self::Client => (Outcome::ClientGone, None),
            Self::ClientSilent => {
                (Outcome::ClientGone, Some((StatusCode::REQUEST_TIMEOUT, "the request's body did not come in time")))
            }
            Self::BadChunk => (
                Outcome::ClientGone,
                Some((StatusCode::BAD_REQUEST, "the request's body is not well divided into chunks")),
            ),
        }
    }
}

/// What is left of the request's body.
#[derive(Debug)]
pub(super) struct Upload {
    rest: Rest,
    /// Bytes at the front of the client's input that are to be written as they are.
    pending: usize,
    /// Bytes behind those that have been looked at and must not go on before more has come.
    held: usize,
    /// Bytes of the body that came, without the chunks' frames.
    pub(super) bytes: u64,
    /// The endpoint takes no more: it has answered already.
    refused: bool,
    /// TLS holds bytes that the socket has not taken yet.
    unflushed: bool,
    /// The answer has begun: a client that stops its body now still gets it.
    pub(super) answered: bool,
    /// The client has stopped its body short.
    pub(super) stopped: bool,
    last_read: Instant,
}

#[derive(Debug)]
enum Rest {
    Nothing,
    Length(u64),
    Chunks(Box<Chunks>),
}

impl Upload {
    pub(super) fn new(body: BodyLength, now: Instant) -> Self {
        let rest = match body {
            BodyLength::None | BodyLength::Upgrade => Rest::Nothing,
            BodyLength::Length(length) => Rest::Length(length),
            BodyLength::Chunked => Rest::Chunks(Box::default()),
        };
        Self {
            rest,
            pending: 0,
            held: 0,
            bytes: 0,
            refused: false,
            unflushed: false,
            answered: false,
            stopped: false,
            last_read: now,
        }
    }

    /// Everything has come in and was written.
    pub(super) fn is_done(&self) -> bool {
        self.is_written() && !self.unflushed
    }

    fn is_written(&self) -> bool {
        self.pending == 0 && matches!(self.rest, Rest::Nothing)
    }

    /// Looks at what the client has sent, and says how much of it is body that can go on.
    fn claim(&mut self, input: &Buffer) -> Result<(), Broken> {
        match &mut self.rest {
            Rest::Nothing => {}
            Rest::Length(left) => {
                let here = (*left).min(input.len() as u64);
                self.pending = here as usize;
                self.bytes += here;
                *left -= here;
                if *left == 0 {
                    self.rest = Rest::Nothing;
                }
            }
            Rest::Chunks(chunks) => {
                let bytes = &mut self.bytes;
                let new = &input.bytes()[self.held..];
                let fed = chunks.feed(new, |data| *bytes += data.len() as u64).map_err(|_| Broken::BadChunk)?;
                let seen = self.held + fed.used;
                self.held = chunks.open();
                self.pending = seen - self.held;
                if fed.done {
                    self.rest = Rest::Nothing;
                }
            }
        }
        Ok(())
    }

    /// What can go out together with the head: body that is here already, if it is little.
    pub(super) fn first(&mut self, input: &mut Buffer, out: &mut Vec<u8>) -> Result<(), Broken> {
        /// Above this a copy costs more than a second write.
        const LITTLE: usize = 8 * 1024;
        if !input.is_empty() && !self.is_done() {
            self.claim(input)?;
            if self.pending <= LITTLE {
                out.extend_from_slice(&input.bytes()[..self.pending]);
                input.advance(self.pending);
                self.pending = 0;
            }
        }
        Ok(())
    }

    /// Moves the body on. Ready when there is no more to move.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut Client,
        upstream: &mut Transport,
    ) -> Poll<Result<(), Broken>> {
        loop {
            while self.pending > 0 {
                if self.refused {
                    client.input.advance(self.pending);
                    self.pending = 0;
                    break;
                }
                match Pin::new(&mut *upstream).poll_write(cx, &client.input.bytes()[..self.pending]) {
                    Poll::Ready(Ok(written)) if written > 0 => {
                        client.input.advance(written);
                        self.pending -= written;
                        self.unflushed = true;
                    }
                    // It may have answered before it closed: the answer decides.
                    Poll::Ready(_) => self.refused = true,
                    Poll::Pending => return Poll::Pending,
                }
            }
            if self.is_written() {
                if self.unflushed && !self.refused && Pin::new(&mut *upstream).poll_flush(cx).is_pending() {
                    return Poll::Pending;
                }
                // A failure shows when the answer is read.
                self.unflushed = false;
                return Poll::Ready(Ok(()));
            }
            if self.stopped {
                return Poll::Pending;
            }
            if client.input.len() == self.held {
                match client.input.poll_fill(cx, &mut client.transport, MAX_HEAD) {
                    Poll::Ready(Ok(0)) if self.answered => {
                        self.stopped = true;
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Broken::Client)),
                    Poll::Ready(Ok(_)) => self.last_read = Instant::now(),
                    Poll::Pending => {
                        if !self.refused {
                            let _ = Pin::new(&mut *upstream).poll_flush(cx);
                        }
                        return Poll::Pending;
                    }
                }
            }
            self.claim(&client.input)?;
        }
    }

    /// Whether it is the client that everybody waits for.
    fn awaits_client(&self) -> bool {
        self.pending == 0 && !self.is_done()
    }
}

impl Client {
    /// Notices a reset, which only reading does. The next request may come, and waits; a client that has said all still
    /// gets its answer (RFC 9112, section 9.6).
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        if !self.input.is_empty() || self.done {
            return Ok(());
        }
        match self.input.poll_fill(cx, &mut self.transport, MAX_HEAD) {
            Poll::Ready(Ok(0)) => self.done = true,
            Poll::Ready(Err(_)) => return Err(Broken::Client),
            Poll::Ready(Ok(_)) | Poll::Pending => {}
        }
        Ok(())
    }
}

/// An answer on its way.
pub(super) struct Exchange<'a> {
    pub(super) client: &'a mut Client,
    pub(super) upstream: &'a mut Upstream,
    pub(super) account: &'a mut telemetry::Exchange,
    pub(super) upload: Upload,
    pub(super) patience: Patience,
    /// When the wait for the endpoint began.
    pub(super) since: Instant,
    /// Something of an answer has come.
    pub(super) heard: bool,
    /// Something of the final answer has gone to the client, or may have.
    pub(super) answering: bool,
}

impl Exchange<'_> {
    /// Writes the request's head, and what of its body goes with it.
    pub(super) async fn send(&mut self, head: &[u8]) -> Result<(), Broken> {
        let Self { client, upstream, upload, patience, since, .. } = self;
        let deadline = *since + patience.write;
        let mut sent = 0;
        let Client { alarm, .. } = &mut **client;
        poll_fn(|cx| {
            while sent < head.len() {
                match Pin::new(&mut upstream.transport).poll_write(cx, &head[sent..]) {
                    Poll::Ready(Ok(written)) if written > 0 => sent += written,
                    Poll::Ready(_) => return Poll::Ready(Err(Broken::Upstream { early: true })),
                    Poll::Pending => return alarm.poll(cx, deadline).map(|()| Err(Broken::UpstreamSilent)),
                }
            }
            // TLS may hold some of it, which then goes on with the upload; a failure shows when the answer is read.
            upload.unflushed = Pin::new(&mut upstream.transport).poll_flush(cx).is_pending();
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Waits for more from the endpoint, while the request's body goes on. 0: its end.
    async fn hear(&mut self, limit: usize, patience: Duration) -> Result<usize, Broken> {
        let Self { client, upstream, upload, since: began, .. } = self;
        let began = *began;
        let mut watched = false;
        poll_fn(|cx| {
            if !upload.is_done()
                && let Poll::Ready(Err(broken)) = upload.poll(cx, client, &mut upstream.transport)
            {
                return Poll::Ready(Err(broken));
            }
            if let Poll::Ready(heard) = upstream.input.poll_fill(cx, &mut upstream.transport, limit) {
                return Poll::Ready(heard.map_err(|_| Broken::Upstream { early: false }));
            }
            // What TLS holds for the client, who waits for it.
            let _ = Pin::new(&mut client.transport).poll_flush(cx);
            let deadline = began.max(upload.last_read) + patience;
            if upload.is_done() {
                watched = watched || client.alarm.poll(cx, deadline.min(began + UNWATCHED)).is_ready();
                if !watched {
                    // Nobody reads into it meanwhile.
                    client.input.release();
                    return Poll::Pending;
                }
                client.poll_gone(cx)?;
            }
            client
                .alarm
                .poll(cx, deadline)
                .map(|()| Err(if upload.awaits_client() { Broken::ClientSilent } else { Broken::UpstreamSilent }))
        })
        .await
    }

    /// Reads the head of an answer, final or not, and writes it to `out` for the client, without the empty line.
    pub(super) async fn answer(&mut self, asked: Asked, out: &mut Vec<u8>) -> Result<Response, Broken> {
        loop {
            if !self.upstream.input.is_empty() {
                let read = Response::read(self.upstream.input.bytes(), asked, out);
                if let Some(response) = read.map_err(|_| Broken::Upstream { early: false })? {
                    self.upstream.input.advance(response.length);
                    return Ok(response);
                }
            }
            let nothing = !self.heard;
            match self.hear(MAX_HEAD, self.patience.answer).await {
                Ok(0) => return Err(Broken::Upstream { early: nothing }),
                Err(Broken::Upstream { .. }) => return Err(Broken::Upstream { early: nothing }),
                Ok(_) => self.heard = true,
                Err(broken) => return Err(broken),
            }
        }
    }

    /// Writes `head` and then the body as it comes. `delivered`: counts the bytes of the body. Errors: it is not whole.
    pub(super) async fn deliver(
        &mut self,
        head: &mut Vec<u8>,
        body: &mut Body,
        framing: Framing,
        tap: &mut Option<Tap>,
        delivered: &mut u64,
    ) -> Result<(), Broken> {
        /// Above this a copy costs more than a second write.
        const LITTLE: usize = 8 * 1024;
        let mut out = Some(head);
        loop {
            let mut reframed = Vec::new();
            let (raw, done) = take(body, self.upstream.input.bytes(), |data| {
                *delivered += data.len() as u64;
                if let Some(tap) = tap {
                    tap.body(data);
                }
                framing.write(data, &mut reframed);
            })?;
            if framing != Framing::AsIs {
                self.upstream.input.advance(raw);
                if done {
                    framing.end(&mut reframed);
                }
                if let Some(head) = out.take() {
                    self.answering = true;
                    head.append(&mut reframed);
                    self.write(head).await?;
                } else {
                    self.write(&reframed).await?;
                }
            } else if let Some(head) = out.take() {
                self.answering = true;
                if raw <= LITTLE {
                    head.extend_from_slice(&self.upstream.input.bytes()[..raw]);
                    self.upstream.input.advance(raw);
                    self.write(head).await?;
                } else {
                    self.write(head).await?;
                    self.pass(raw).await?;
                }
            } else {
                self.pass(raw).await?;
            }
            if done {
                self.flush().await?;
                return Ok(());
            }
            // Where the answer is whole at once, this is counted at the end, together with the rest.
            self.account.answered();
            if let Body::Length(left) = body
                && *left >= SPLICED
                && framing == Framing::AsIs
                && tap.is_none()
                && self.upload.is_done()
            {
                self.splice(left, delivered).await?;
                if *left == 0 {
                    return Ok(());
                }
            }
            let heard = self.hear(MAX_HEAD, self.patience.part).await?;
            self.since = Instant::now();
            self.client.seen = self.since;
            match heard {
                0 if matches!(body, Body::UntilClose) => *body = Body::None,
                0 => return Err(Broken::Upstream { early: false }),
                _ => {}
            }
        }
    }

    /// Has the system move the rest of a body. Some may be left, where it cannot.
    async fn splice(&mut self, left: &mut u64, delivered: &mut u64) -> Result<(), Broken> {
        let Self { client, upstream, patience, since, .. } = self;
        let mut splice = Splice::default();
        let mut still = false;
        upstream.input.release();
        client.slow = true;
        poll_fn(|cx| {
            while *left > 0 {
                let (Some(from), Some(to)) = (upstream.transport.plain(), client.transport.plain()) else { break };
                let mut moved = 0;
                let moving = splice.poll_move(cx, from, to, *left, &mut moved);
                *left -= moved;
                *delivered += moved;
                still &= moved == 0;
                match moving {
                    Poll::Ready(Ok(Some(0))) | Poll::Ready(Err(splice::Broke::Reader)) => {
                        return Poll::Ready(Err(Broken::Upstream { early: false }));
                    }
                    Poll::Ready(Ok(Some(_))) => {}
                    Poll::Ready(Ok(None)) => break,
                    Poll::Ready(Err(splice::Broke::Writer)) => return Poll::Ready(Err(Broken::Client)),
                    Poll::Pending => {
                        if !std::mem::replace(&mut still, true) {
                            *since = Instant::now();
                            client.seen = *since;
                        }
                        client.poll_gone(cx)?;
                        let (patience, late) = match splice.is_blocked() {
                            true => (patience.write, Broken::Client),
                            false => (patience.part, Broken::UpstreamSilent),
                        };
                        return client.alarm.poll(cx, *since + patience).map(|()| Err(late));
                    }
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Writes to the client.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let mut written = 0;
        let mut blocked = Blocked::default();
        poll_fn(|cx| {
            while written < bytes.len() {
                match Pin::new(&mut self.client.transport).poll_write(cx, &bytes[written..]) {
                    Poll::Ready(Ok(more)) if more > 0 => {
                        written += more;
                        blocked = Blocked::default();
                    }
                    Poll::Ready(_) => return Poll::Ready(Err(Broken::Client)),
                    Poll::Pending => return self.wait_for_client(cx, &mut blocked),
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Passes on so many bytes of what the endpoint sent, from where they were read to.
    async fn pass(&mut self, count: usize) -> Result<(), Broken> {
        let mut left = count;
        let mut blocked = Blocked::default();
        poll_fn(|cx| {
            while left > 0 {
                let bytes = &self.upstream.input.bytes()[..left];
                match Pin::new(&mut self.client.transport).poll_write(cx, bytes) {
                    Poll::Ready(Ok(more)) if more > 0 => {
                        self.upstream.input.advance(more);
                        left -= more;
                        blocked = Blocked::default();
                    }
                    Poll::Ready(_) => return Poll::Ready(Err(Broken::Client)),
                    Poll::Pending => return self.wait_for_client(cx, &mut blocked),
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    async fn flush(&mut self) -> Result<(), Broken> {
        let mut blocked = Blocked::default();
        poll_fn(|cx| match Pin::new(&mut self.client.transport).poll_flush(cx) {
            Poll::Ready(flushed) => Poll::Ready(flushed.map_err(|_| Broken::Client)),
            Poll::Pending => self.wait_for_client(cx, &mut blocked),
        })
        .await
    }

    /// The client takes nothing right now. It may be waiting for its own body to be taken.
    fn wait_for_client(&mut self, cx: &mut Context<'_>, blocked: &mut Blocked) -> Poll<Result<(), Broken>> {
        if !self.upload.is_done()
            && let Poll::Ready(Err(broken)) = self.upload.poll(cx, self.client, &mut self.upstream.transport)
        {
            return Poll::Ready(Err(broken));
        }
        if self.answering {
            self.account.answered();
        }
        self.client.slow = true;
        let since = *blocked.since.get_or_insert_with(Instant::now);
        self.client.alarm.poll(cx, since + self.patience.write).map(|()| Err(Broken::Client))
    }

    /// The answer is out; reads what is left of the request's body and forgets it, so that another request may follow.
    /// False: there is too much of it, or it does not come in time.
    pub(super) async fn finish_upload(&mut self, patience: Duration) -> bool {
        /// Rather a new connection than more of what nobody wants.
        const MOST: u64 = 1 << 20;
        self.account.answered();
        self.upload.refused = true;
        self.client.slow = true;
        let (before, deadline) = (self.upload.bytes, Instant::now() + patience);
        poll_fn(|cx| match self.upload.poll(cx, self.client, &mut self.upstream.transport) {
            Poll::Ready(done) => Poll::Ready(done.is_ok()),
            Poll::Pending if self.upload.bytes - before > MOST => Poll::Ready(false),
            Poll::Pending => self.client.alarm.poll(cx, deadline).map(|()| false),
        })
        .await
    }
}

/// How an answer's body is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// As the endpoint framed it.
    AsIs,
    /// Without the frames of its chunks, to a client of 1.0.
    Plain,
    /// In chunks, where the endpoint ends it by closing: so the client knows whether it was whole.
    Chunk,
}

impl Framing {
    fn write(self, data: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::AsIs => {}
            Self::Plain => out.extend_from_slice(data),
            Self::Chunk if data.is_empty() => {}
            Self::Chunk => {
                // Writing into memory cannot fail.
                let _ = write!(out, "{:x}\r\n", data.len());
                out.extend_from_slice(data);
                out.extend_from_slice(b"\r\n");
            }
        }
    }

    fn end(self, out: &mut Vec<u8>) {
        if self == Self::Chunk {
            out.extend_from_slice(b"0\r\n\r\n");
        }
    }
}

/// Since when a peer takes nothing.
#[derive(Default)]
struct Blocked {
    since: Option<Instant>,
}

/// How much of what has come belongs to the body, and whether that is its end. `data`: sees the body itself.
fn take(body: &mut Body, input: &[u8], mut data: impl FnMut(&[u8])) -> Result<(usize, bool), Broken> {
    match body {
        Body::None => Ok((0, true)),
        Body::Length(left) => {
            let here = (*left).min(input.len() as u64);
            data(&input[..here as usize]);
            *left -= here;
            Ok((here as usize, *left == 0))
        }
        Body::Chunked(chunks) => {
            let fed = chunks.feed(input, data).map_err(|_| Broken::Upstream { early: false })?;
            Ok((fed.used, fed.done))
        }
        Body::UntilClose => {
            data(input);
            Ok((input.len(), false))
        }
    }
}
