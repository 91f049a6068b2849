//! One JSON object a line over a unix socket, with descriptors beside some of them.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::{self, MaybeUninit},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::UnixStream,
};

/// Descriptors with one send; Linux takes 253 (unix(7)).
const MOST_AT_ONCE: usize = 64;
/// Splits of a thousand routes are shorter.
const LONGEST_LINE: usize = 1024 * 1024;

pub(super) struct Channel {
    stream: UnixStream,
    read: Vec<u8>,
    sockets: Vec<OwnedFd>,
}

/// Why no word came.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the other process went away")]
    Gone,
    #[error("the other process talks nonsense ({0})")]
    Nonsense(String),
    #[error("the other process's sockets did not all arrive; raise the limit of open files (ulimit -n, LimitNOFILE)")]
    SocketsLost,
    #[error("the connection to the other process failed")]
    Io(#[source] io::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Gone,
            _ => Self::Io(error),
        }
    }
}

impl Channel {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, read: Vec::new(), sockets: Vec::new() }
    }

    pub(super) async fn say(&mut self, word: &impl Serialize) -> Result<(), Broken> {
        self.say_with(word, &[]).await
    }

    /// Says a word, with sockets that arrive before it or along with it.
    pub(super) async fn say_with(&mut self, word: &impl Serialize, sockets: &[BorrowedFd<'_>]) -> Result<(), Broken> {
        for some in sockets.chunks(MOST_AT_ONCE) {
            // Descriptors need a byte to go with; before an object a space means nothing.
            let send = || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_AT_ONCE))];
                let mut beside = SendAncillaryBuffer::new(&mut space);
                assert!(beside.push(SendAncillaryMessage::ScmRights(some)), "there is room for them");
                Ok(sendmsg(&self.stream, &[IoSlice::new(b" ")], &mut beside, SendFlags::NOSIGNAL)?)
            };
            self.stream.async_io(Interest::WRITABLE, send).await?;
        }
        let mut line = serde_json::to_vec(word).map_err(io::Error::from)?;
        line.push(b'\n');
        Ok(self.stream.write_all(&line).await?)
    }

    /// The other's next word. Cancel safe.
    pub(super) async fn hear<W: DeserializeOwned>(&mut self) -> Result<W, Broken> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line = self.read.drain(..=end).collect::<Vec<_>>();
                return serde_json::from_slice(&line).map_err(|error| Broken::Nonsense(error.to_string()));
            }
            if self.read.len() > LONGEST_LINE {
                return Err(Broken::Nonsense("a line without end".to_owned()));
            }
            self.read_more().await?;
        }
    }

    /// The sockets that have arrived so far.
    pub(super) fn take_sockets(&mut self) -> Vec<OwnedFd> {
        mem::take(&mut self.sockets)
    }

    async fn read_more(&mut self) -> Result<(), Broken> {
        let (read, sockets) = (&mut self.read, &mut self.sockets);
        let mut bytes = [0; 4096];
        let receive = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_AT_ONCE))];
            let mut beside = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = recvmsg(&self.stream, &mut [IoSliceMut::new(&mut bytes)], &mut beside, flags)?;
            for message in beside.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    sockets.extend(descriptors);
                }
            }
            Ok((received.bytes, received.flags.contains(ReturnFlags::CTRUNC)))
        };
        match self.stream.async_io(Interest::READABLE, receive).await? {
            (_, true) => Err(Broken::SocketsLost),
            (0, _) => Err(Broken::Gone),
            (length, _) => {
                read.extend_from_slice(&bytes[..length]);
                Ok(())
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use serde_json::{Value, json};

    use super::*;

    fn pair() -> (Channel, Channel) {
        let (one, other) = UnixStream::pair().unwrap();
        (Channel::new(one), Channel::new(other))
    }

    #[tokio::test]
    async fn two_hundred_sockets_arrive_in_their_order_and_work() {
        let (mut one, mut other) = pair();
        let sockets = (0..200).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect::<Vec<_>>();
        let descriptors = sockets.iter().map(AsFd::as_fd).collect::<Vec<_>>();
        one.say(&json!("before")).await.unwrap();
        one.say_with(&json!({ "count": 200 }), &descriptors).await.unwrap();
        one.say(&json!("after")).await.unwrap();
        assert_eq!(other.hear::<Value>().await.unwrap(), json!("before"));
        assert_eq!(other.hear::<Value>().await.unwrap(), json!({ "count": 200 }));
        let arrived = other.take_sockets().into_iter().map(TcpListener::from).collect::<Vec<_>>();
        let addresses = |sockets: &[TcpListener]| sockets.iter().map(|s| s.local_addr().unwrap()).collect::<Vec<_>>();
        assert_eq!(addresses(&arrived), addresses(&sockets));
        assert_eq!(other.hear::<Value>().await.unwrap(), json!("after"));
        assert!(other.take_sockets().is_empty());
        // A connection that was made before is accepted by whoever is left.
        let _client = TcpStream::connect(arrived[7].local_addr().unwrap()).unwrap();
        drop(sockets);
        arrived[7].accept().unwrap();
    }

    #[tokio::test]
    async fn nonsense_a_line_without_end_and_an_end_are_told_apart() {
        let (mut one, mut other) = pair();
        one.stream.write_all(b"rubbish\n{\"half\":").await.unwrap();
        assert!(matches!(other.hear::<Value>().await, Err(Broken::Nonsense(_))));
        drop(one);
        assert!(matches!(other.hear::<Value>().await, Err(Broken::Gone)));
        assert!(matches!(other.say(&json!(1)).await, Err(Broken::Gone)));

        let (mut one, mut other) = pair();
        let endless = tokio::spawn(async move { one.stream.write_all(&vec![b'x'; 2 * LONGEST_LINE]).await });
        assert!(matches!(other.hear::<Value>().await, Err(Broken::Nonsense(_))));
        drop(other);
        endless.await.unwrap().unwrap_err();
    }
}
