//! A connection to a broker, with what was read and not yet understood, and what is yet to be written.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{io::AsyncWrite, time};
use tokio_util::io::poll_read_buf;

use super::{
    MqttVersion,
    packet::{self, Packet, Welcome},
};
use crate::load::{Failure, stream::Stream};

/// Room to read into, in bytes.
const ROOM: usize = 16 * 1024;
/// Time a broker has to close a connection after our DISCONNECT.
const FAREWELL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Wire {
    stream: Stream,
    pub(super) read: BytesMut,
    pub(super) out: BytesMut,
    flushed: bool,
}

impl Wire {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, read: BytesMut::new(), out: BytesMut::new(), flushed: true }
    }

    /// Writes what there is to write, and returns when something was read. Can be dropped and called again at any time.
    /// Errors: the connection is over.
    pub(super) async fn moves(&mut self) -> Result<(), Failure> {
        poll_fn(|cx| self.poll(cx)).await.map_err(|error| Failure::moving(&error))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Whether it is written or not, what comes is read: a broker that waits for us to read must not wait for ever.
        if let Poll::Ready(Err(error)) = self.poll_write(cx) {
            return Poll::Ready(Err(error));
        }
        self.read.reserve(ROOM);
        match ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.read))? {
            0 => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out))?;
            self.out.advance(written);
            self.flushed = false;
        }
        if !self.flushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Waits for the answer to a CONNECT. Errors: the connection is over, or something else came.
    pub(super) async fn welcome(&mut self, version: MqttVersion) -> Result<Welcome, Failure> {
        loop {
            self.moves().await?;
            match packet::read(version, &self.read, ROOM)? {
                Some((Packet::ConnAck(welcome), length)) => {
                    self.read.advance(length);
                    return Ok(welcome);
                }
                Some(_) => return Err(Failure::Malformed),
                None => {}
            }
        }
    }

    /// Takes leave, and waits until the broker has closed (MQTT 3.1.1, section 3.14.4): rumqttd, when the same client
    /// comes back before it has seen the old connection off, can take the new one down in its place. `forget`: version 5,
    /// the session ends too.
    pub(super) async fn leave(mut self, version: MqttVersion, forget: bool) {
        packet::disconnect(version, forget, &mut self.out);
        let closed = async {
            while self.moves().await.is_ok() {
                self.read.clear();
            }
        };
        // Who does not close in time is left anyway.
        let _ = time::timeout(FAREWELL, closed).await;
    }
}

impl From<packet::Malformed> for Failure {
    fn from(_: packet::Malformed) -> Self {
        Self::Malformed
    }
}
