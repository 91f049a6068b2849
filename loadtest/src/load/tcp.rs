//! Lines and their echoes.

use std::{io::Write, num::NonZeroU64, sync::Arc};

use memchr::{memchr, memmem};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    Endpoint, Failure, Load, Shared, Slot,
    record::{Answer, Arm},
    stream::{Meanwhile, Stream},
};
use crate::ledger::Id;

/// Room to read an echo into, beside its own length, in bytes: for the label and what may come behind.
const ROOM: usize = 4 * 1024;

/// Lines `<id> <key> <padding>`, each answered with itself, behind `<label>:` or not.
#[derive(Clone, Debug)]
pub struct TcpLoad {
    /// Length of a line with its end, in bytes; more when the id and the key need it.
    pub size: usize,
    /// Lines after which a connection is closed; kept as long as the server likes when none.
    pub requests_per_connection: Option<NonZeroU64>,
}

/// A connection that carries one line after the other.
pub(super) struct Line {
    tcp: TcpLoad,
    endpoint: Arc<Endpoint>,
    nth: usize,
    open: Option<Open>,
    out: Vec<u8>,
    read: Vec<u8>,
}

struct Open {
    stream: Stream,
    key: u64,
    lines: u64,
}

impl Line {
    pub(super) fn new(tcp: &TcpLoad, load: &Load, nth: usize) -> Self {
        Self {
            tcp: tcp.clone(),
            endpoint: Arc::new(load.endpoint.clone()),
            nth,
            open: None,
            out: Vec::new(),
            read: Vec::new(),
        }
    }
}

impl Slot for Line {
    fn key(&self) -> Option<u64> {
        self.open.as_ref().map(|open| open.key)
    }

    async fn exchange(&mut self, id: Id, key: u64, recorder: &Shared) -> Result<Answer, Failure> {
        let mut surplus = 0;
        let kept = self.open.take().filter(|open| open.key == key).and_then(|mut open| {
            let meanwhile = open.stream.meanwhile();
            surplus += u32::from(meanwhile == Meanwhile::Spoke);
            (meanwhile == Meanwhile::Quiet).then_some(open)
        });
        let mut open = match kept {
            Some(open) => open,
            None => Open { stream: self.endpoint.connect(self.nth, key).await?, key, lines: 0 },
        };
        open.lines += 1;

        self.out.clear();
        let _ = write!(self.out, "{id} user-{key} ");
        self.out.resize(self.out.len().max(self.tcp.size.saturating_sub(1)), b'x');
        self.out.push(b'\n');
        let moving = |error: std::io::Error| Failure::moving(&error);
        open.stream.write_all(&self.out).await.map_err(moving)?;
        open.stream.flush().await.map_err(moving)?;

        self.read.clear();
        let end = loop {
            let looked_at = self.read.len();
            self.read.reserve(self.out.len() + ROOM);
            if open.stream.read_buf(&mut self.read).await.map_err(moving)? == 0 {
                return Err(Failure::Closed);
            }
            if let Some(end) = memchr(b'\n', &self.read[looked_at..]) {
                break looked_at + end;
            }
            if self.read.len() > self.out.len() + ROOM {
                return Err(Failure::Malformed);
            }
        };
        surplus += u32::from(self.read.len() > end + 1);
        let arm = label(&self.read[..end], &self.out[..self.out.len() - 1])?;
        let arm = arm.map_or(Arm::UNKNOWN, |label| recorder.borrow_mut().arm(label));
        if surplus == 0 && self.tcp.requests_per_connection.is_none_or(|most| open.lines < most.get()) {
            self.open = Some(open);
        }
        Ok(Answer { arm, status: 0, failure: false, surplus })
    }
}

/// The label before an echo. Errors: it is not the echo of what was sent.
pub(super) fn label<'a>(echo: &'a [u8], sent: &[u8]) -> Result<Option<&'a [u8]>, Failure> {
    match echo.strip_suffix(sent) {
        Some([]) => Ok(None),
        Some([label @ .., b':']) => Ok(Some(label)),
        _ if memmem::find(echo, &sent[..Id::LEN]).is_some() => Err(Failure::Malformed),
        _ => Err(Failure::Crossed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_says_who_sent_it() {
        let sent = b"1a2b3c4d0000002a user-7 xxx";
        assert_eq!(label(sent, sent), Ok(None));
        assert_eq!(label(b"go:1a2b3c4d0000002a user-7 xxx", sent), Ok(Some(&b"go"[..])));
        assert_eq!(label(b"go:1a2b3c4d0000002a user-7 xx", sent), Err(Failure::Malformed));
        assert_eq!(label(b"go:1a2b3c4d0000002b user-7 xxx", sent), Err(Failure::Crossed));
        assert_eq!(label(b"", sent), Err(Failure::Crossed));
    }
}
