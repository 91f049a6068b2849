//! Stage 5: moves bytes both ways between a client and an upstream until both are done or one breaks.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Duration, Instant},
};

use crate::{
    alarm::Alarm,
    buffer::{Buffer, ROOM},
    splice::{Broke, Splice},
    transport::Transport,
};

/// So many reads one after the other that fill a buffer, and a direction goes through a pipe.
const BULK: u32 = 4;
/// So many moves through a pipe that would not have filled a buffer, and it is copied again.
const TRICKLE: u32 = 8;

/// Who serves a client for so long has taken it on: that it ends then may be for any reason.
const SETTLED: Duration = Duration::from_secs(2);

/// How long a relay may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Silence in both directions.
    pub(crate) idle: Duration,
    /// A peer that takes no bytes.
    pub(crate) write: Duration,
    /// What the client has still to say once the upstream has said all.
    pub(crate) after_upstream: Duration,
}

/// What bytes can be moved from and to.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin {
    /// The socket, if nothing stands between it and us.
    fn plain(&mut self) -> Option<&TcpStream>;
}

impl Stream for Transport {
    fn plain(&mut self) -> Option<&TcpStream> {
        Self::plain(self)
    }
}

/// Looks on while a relay copies. What goes through pipes, because much comes at a time, is not shown.
pub(crate) trait Observer {
    /// What the client sent, before the upstream gets it.
    fn see_client(&mut self, _: &[u8]) {}

    /// What the upstream sent, in order, before the client gets it, and an empty slice at its end, until enough was seen;
    /// it may be shown more.
    fn see_upstream(&mut self, _: &[u8]) -> Seen {
        Seen::Enough
    }
}

/// Nobody looks.
impl Observer for () {}

/// What is thought of bytes that were shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Seen {
    More,
    Enough,
    /// The client is to see none of them, nor the end: the relay ends as if the upstream broke.
    Stop,
}

/// How a relay ended, and how much it moved.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Moved {
    /// Bytes from the client to the upstream.
    pub(crate) up: u64,
    /// Bytes from the upstream to the client.
    pub(crate) down: u64,
    pub(crate) ended: Ended,
    /// Who first had said all, or broke, and when. `None`: nobody.
    pub(crate) first_gone: Option<(Side, Instant)>,
}

impl Moved {
    /// The upstream, which took the client on at `since`, went again at once, and before the client did.
    pub(crate) fn was_left_at_once(&self, since: Instant) -> bool {
        matches!(self.first_gone, Some((Side::Upstream, at)) if at.duration_since(since) < SETTLED)
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Side {
    Client,
    Upstream,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ended {
    /// Both sides have said all.
    Done,
    Idle,
    WriteTimeout,
    ClientBroke,
    UpstreamBroke,
}

impl Ended {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Idle => "idle_timeout",
            Self::WriteTimeout => "write_timeout",
            Self::ClientBroke => "client_broke",
            Self::UpstreamBroke => "upstream_broke",
        }
    }
}

/// Moves bytes both ways with half-close: the end of one direction is passed on and the other goes on.
pub(crate) async fn relay<C, U>(
    client: &mut C,
    upstream: &mut U,
    patience: Patience,
    observer: &mut impl Observer,
) -> Moved
where
    C: Stream,
    U: Stream,
{
    let (mut up, mut down) = (Direction::default(), Direction::default());
    let mut last_progress = Instant::now();
    let (mut upstream_done, mut first_gone) = (None, None);
    let mut alarm = Alarm::default();
    let mut ring = last_progress + patience.idle.min(patience.write);
    let ended = poll_fn(|cx| {
        let moved_before = up.moved + down.moved;
        let mut see_client = |bytes: &[u8]| {
            observer.see_client(bytes);
            Seen::Enough
        };
        let up_done = match up.poll(cx, client, upstream, &mut see_client) {
            Poll::Ready(Err(Broke::Reader)) => return Poll::Ready(Ended::ClientBroke),
            Poll::Ready(Err(Broke::Writer)) => return Poll::Ready(Ended::UpstreamBroke),
            Poll::Ready(Ok(())) => true,
            Poll::Pending => false,
        };
        let down_done = match down.poll(cx, upstream, client, &mut |bytes: &[u8]| observer.see_upstream(bytes)) {
            Poll::Ready(Err(Broke::Reader)) => return Poll::Ready(Ended::UpstreamBroke),
            Poll::Ready(Err(Broke::Writer)) => return Poll::Ready(Ended::ClientBroke),
            Poll::Ready(Ok(())) => true,
            Poll::Pending => false,
        };
        first_gone = first_gone.or_else(|| gone(&up, Side::Client)).or_else(|| gone(&down, Side::Upstream));
        if up_done && down_done {
            return Poll::Ready(Ended::Done);
        }
        if down_done && upstream_done.is_none() && patience.after_upstream < patience.idle {
            let over = Instant::now() + patience.after_upstream;
            upstream_done = Some(over);
            ring = ring.min(over);
        }
        if up.moved + down.moved != moved_before {
            last_progress = Instant::now();
        }
        // The alarm is coarse: it rings at most once in the shorter patience, and only then is the clock compared. A
        // peer that blocks is so found within twice its patience, without a timer for each read and write.
        while alarm.poll(cx, ring).is_ready() {
            if upstream_done.is_some_and(|over| Instant::now() >= over) {
                return Poll::Ready(Ended::Done);
            }
            let silent = last_progress.elapsed();
            let blocked = up.is_blocked() || down.is_blocked();
            if blocked && silent >= patience.write {
                return Poll::Ready(Ended::WriteTimeout);
            }
            if silent >= patience.idle {
                return Poll::Ready(Ended::Idle);
            }
            let next = last_progress + if blocked { patience.write } else { patience.idle };
            let next = next.min(Instant::now() + patience.write);
            ring = upstream_done.map_or(next, |over| next.min(over));
        }
        Poll::Pending
    })
    .await;
    // The client goes before an upstream that breaks in the same moment, perhaps because of it.
    let broke = || match ended {
        Ended::ClientBroke => Some((Side::Client, Instant::now())),
        Ended::UpstreamBroke => Some((Side::Upstream, Instant::now())),
        Ended::Done | Ended::Idle | Ended::WriteTimeout => None,
    };
    let first_gone = first_gone.or_else(|| gone(&up, Side::Client)).or_else(broke);
    Moved { up: up.moved, down: down.moved, ended, first_gone }
}

/// The one that a direction comes from, if it has said all.
fn gone(from: &Direction, side: Side) -> Option<(Side, Instant)> {
    from.read_all.then(|| (side, Instant::now()))
}

/// One way of a relay. Holds a buffer, or a pipe, only while there is something in it: never both.
#[derive(Default)]
struct Direction {
    buffer: Buffer,
    splice: Splice,
    /// Much comes at a time, so it is spliced.
    bulk: bool,
    /// Reads that filled the buffer, or when spliced, moves that would not have, one after the other.
    streak: u32,
    read_all: bool,
    done: bool,
    needs_flush: bool,
    /// Bytes written so far.
    moved: u64,
}

impl Direction {
    /// Holds bytes that the writer did not take.
    fn is_blocked(&self) -> bool {
        !self.buffer.is_empty() || self.splice.is_blocked()
    }

    fn poll<R: Stream, W: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        observe: &mut impl FnMut(&[u8]) -> Seen,
    ) -> Poll<Result<(), Broke>> {
        let to_writer = |_: io::Error| Broke::Writer;
        while !self.done {
            while !self.buffer.is_empty() {
                let written = ready!(Pin::new(&mut *writer).poll_write(cx, self.buffer.bytes())).map_err(to_writer)?;
                if written == 0 {
                    return Poll::Ready(Err(Broke::Writer));
                }
                self.buffer.advance(written);
                self.moved += written as u64;
                self.needs_flush = true;
            }
            if self.bulk && !self.read_all {
                self.buffer.release();
                self.read_all = ready!(self.poll_splice(cx, reader, writer))?;
            }
            if self.read_all {
                // Shutting down flushes as well.
                ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(to_writer)?;
                self.done = true;
                break;
            }
            match self.buffer.poll_fill(cx, reader, ROOM) {
                Poll::Ready(Ok(read)) => {
                    let seen = observe(self.buffer.bytes());
                    if seen == Seen::Stop {
                        return Poll::Ready(Err(Broke::Reader));
                    }
                    self.read_all = read == 0;
                    self.streak = if read == ROOM && seen == Seen::Enough { self.streak + 1 } else { 0 };
                    if self.streak == BULK {
                        self.streak = 0;
                        self.bulk = reader.plain().is_some() && writer.plain().is_some();
                    }
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Broke::Reader)),
                Poll::Pending => {
                    // Nothing more to come for now: a writer that buffers (TLS) must pass on what it has.
                    if self.needs_flush {
                        ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(to_writer)?;
                        self.needs_flush = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when the reader has said all (true), or when it is better copied: so little comes at a time, or all pipes are
    /// taken.
    fn poll_splice<R: Stream, W: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<Result<bool, Broke>> {
        while let (true, Some(from), Some(to)) = (self.bulk, reader.plain(), writer.plain()) {
            match ready!(self.splice.poll_move(cx, from, to, u64::MAX, &mut self.moved))? {
                Some(0) => return Poll::Ready(Ok(true)),
                Some(read) => {
                    self.streak = if read < ROOM { self.streak + 1 } else { 0 };
                    self.bulk = self.streak < TRICKLE;
                }
                None => self.bulk = false,
            }
        }
        self.streak = 0;
        Poll::Ready(Ok(false))
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        time,
    };

    use super::*;
    use crate::alarm;

    impl Stream for DuplexStream {
        fn plain(&mut self) -> Option<&TcpStream> {
            None
        }
    }

    #[derive(Default)]
    struct Recorder {
        up: Vec<u8>,
        down: Vec<u8>,
        /// At the upstream's end.
        stops: bool,
    }

    impl Observer for Recorder {
        fn see_client(&mut self, bytes: &[u8]) {
            self.up.extend_from_slice(bytes);
        }

        fn see_upstream(&mut self, bytes: &[u8]) -> Seen {
            self.down.extend_from_slice(bytes);
            if self.stops && bytes.is_empty() { Seen::Stop } else { Seen::Enough }
        }
    }

    const PATIENCE: Patience = Patience {
        idle: Duration::from_secs(60),
        write: Duration::from_secs(10),
        after_upstream: Duration::from_secs(60),
    };

    #[tokio::test(start_paused = true)]
    async fn bytes_go_both_ways_and_each_end_is_passed_on_alone() {
        let (mut client, mut client_side) = duplex(1024);
        let (mut upstream_side, mut upstream) = duplex(1024);
        let relaying = tokio::spawn(async move {
            let mut seen = Recorder::default();
            let moved = relay(&mut client_side, &mut upstream_side, PATIENCE, &mut seen).await;
            (moved, seen)
        });
        client.write_all(b"request").await.unwrap();
        client.shutdown().await.unwrap();
        let mut received = Vec::new();
        upstream.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"request");
        // The client has said all; the answer still arrives.
        upstream.write_all(b"answer").await.unwrap();
        upstream.shutdown().await.unwrap();
        received.clear();
        client.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"answer");
        let (moved, seen) = relaying.await.unwrap();
        assert_eq!((moved.up, moved.down, moved.ended), (7, 6, Ended::Done));
        assert!(matches!(moved.first_gone, Some((Side::Client, _))));
        assert_eq!((seen.up.as_slice(), seen.down.as_slice()), (b"request".as_slice(), b"answer".as_slice()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_observer_that_breaks_keeps_the_end_from_the_client() {
        let (mut client, mut client_side) = duplex(1024);
        let (mut upstream_side, upstream) = duplex(1024);
        drop(upstream);
        let mut stops = Recorder { stops: true, ..Recorder::default() };
        let moved = relay(&mut client_side, &mut upstream_side, PATIENCE, &mut stops).await;
        assert_eq!((moved.up, moved.down, moved.ended), (0, 0, Ended::UpstreamBroke));
        assert!(matches!(moved.first_gone, Some((Side::Upstream, _))));
        client_side.write_all(b"last word").await.unwrap();
        drop(client_side);
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"last word");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_relay_and_any_byte_puts_it_off() {
        let (mut client, mut client_side) = duplex(1024);
        let (mut upstream_side, _upstream) = duplex(1024);
        tokio::spawn(alarm::tick());
        let started = Instant::now();
        let relaying =
            tokio::spawn(async move { relay(&mut client_side, &mut upstream_side, PATIENCE, &mut ()).await });
        time::sleep(Duration::from_secs(50)).await;
        client.write_all(b"x").await.unwrap();
        let moved = relaying.await.unwrap();
        assert_eq!(moved.ended, Ended::Idle);
        assert_eq!(started.elapsed().as_secs(), 110);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_left() {
        let (mut client, mut client_side) = duplex(1024);
        let (mut upstream_side, _upstream) = duplex(16);
        tokio::spawn(alarm::tick());
        let started = Instant::now();
        let relaying =
            tokio::spawn(async move { relay(&mut client_side, &mut upstream_side, PATIENCE, &mut ()).await });
        client.write_all(&[0; 100]).await.unwrap();
        let moved = relaying.await.unwrap();
        assert_eq!(moved, Moved { up: 16, down: 0, ended: Ended::WriteTimeout, first_gone: None });
        assert!(started.elapsed() <= PATIENCE.write * 2, "{:?}", started.elapsed());
    }

    async fn sockets() -> (TcpStream, Transport) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (far, near) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (far.unwrap(), near.unwrap().0.into())
    }

    #[tokio::test]
    async fn bulk_goes_through_whole_and_leaves_no_buffer_behind() {
        tokio::spawn(alarm::tick());
        let ((mut client, mut client_side), (mut upstream, mut upstream_side)) = (sockets().await, sockets().await);
        let relaying =
            tokio::spawn(async move { relay(&mut client_side, &mut upstream_side, PATIENCE, &mut ()).await });
        // Small, bulk, small again: each way of moving follows the other.
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
        let (small, bulk) = sent.split_at(100);
        let mut received = vec![0; sent.len() + 20];
        let receive = async {
            client.read_exact(&mut received[..100]).await.unwrap();
            client.read_exact(&mut received[100..sent.len()]).await.unwrap();
            // Nothing is under way now.
            assert_eq!(crate::buffer::lent(), 0);
            for at in sent.len()..sent.len() + 20 {
                client.write_all(b"?").await.unwrap();
                client.read_exact(&mut received[at..=at]).await.unwrap();
            }
            client.shutdown().await.unwrap();
        };
        let send = async {
            upstream.write_all(small).await.unwrap();
            upstream.write_all(bulk).await.unwrap();
            for _ in 0..20 {
                upstream.read_exact(&mut [0]).await.unwrap();
                upstream.write_all(b"!").await.unwrap();
            }
            upstream.shutdown().await.unwrap();
        };
        tokio::join!(receive, send);
        let moved = relaying.await.unwrap();
        assert_eq!((moved.up, moved.down, moved.ended), (20, sent.len() as u64 + 20, Ended::Done));
        assert!(received[..sent.len()] == sent[..] && received[sent.len()..] == [b'!'; 20]);
    }
}
