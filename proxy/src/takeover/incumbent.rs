//! The side of the process that starts.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpListener},
    path::Path,
    process,
};

use anyhow::{Context, Result, bail};
use tokio::{
    net::UnixStream,
    time::{self, Instant},
};

use super::{
    Asked, PATIENCE, PROTOCOL, Predecessor, Told, address,
    channel::{Broken, Channel},
};

/// The process that runs, from the first word to `go`.
pub(crate) struct Incumbent {
    /// `None`: it went away after it had given us its sockets.
    channel: Option<Channel>,
    pid: u32,
    /// Its sockets, but for those that are taken.
    sockets: Vec<Option<TcpListener>>,
    frozen_since: Option<Instant>,
}

impl Incumbent {
    /// Asks the process that runs on `state` for its sockets. `None`: there is none.
    ///
    /// Errors: there is one, and it refuses, is another user's, or does not answer.
    pub(crate) async fn ask(state: &Path) -> Result<Option<Self>> {
        let path = address(state).context("cannot take over")?;
        let stream = match UnixStream::connect(&path).await {
            Ok(stream) => stream,
            // Nothing there, or what a killed process left behind.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => {
                let cure = "run as the user that the running instance runs as";
                return Err(error).with_context(|| format!("cannot take over through {}; {cure}", path.display()));
            }
        };
        let theirs = stream.peer_cred().context("cannot tell whose instance is running")?.uid();
        if theirs != rustix::process::geteuid().as_raw() {
            bail!("{} is the socket of user {theirs}; run as that user", path.display());
        }
        let mut incumbent =
            Self { channel: Some(Channel::new(stream)), pid: 0, sockets: Vec::new(), frozen_since: None };
        incumbent.say(&Asked::Takeover { protocol: PROTOCOL, pid: process::id() }).await?;
        let count = match incumbent.hear().await? {
            Some(Told::Sockets { protocol: PROTOCOL, pid, count }) => {
                incumbent.pid = pid;
                count
            }
            Some(Told::Sockets { protocol, .. }) => {
                bail!("the running instance speaks takeover protocol {protocol}, this one {PROTOCOL}; {RESTART}")
            }
            Some(other) => return unexpected(&other),
            None => bail!("the running instance went away before it answered; start again"),
        };
        let arrived = incumbent.channel.as_mut().map(Channel::take_sockets).unwrap_or_default();
        incumbent.sockets = arrived.into_iter().map(|socket| Some(TcpListener::from(socket))).collect();
        if incumbent.sockets.len() != count {
            return Err(Broken::SocketsLost.into());
        }
        Ok(Some(incumbent))
    }

    /// The sockets that listen on an address, once, ready for a runtime. All of them, however many workers there are to be:
    /// each may have clients in its backlog, and gets its share of those that come.
    pub(crate) fn take(&mut self, address: SocketAddr) -> Vec<TcpListener> {
        let here = |socket: &mut TcpListener| socket.local_addr().is_ok_and(|bound| bound == address);
        let taken = self.sockets.iter_mut().filter_map(|socket| socket.take_if(here));
        taken.filter(|socket| socket.set_nonblocking(true).is_ok()).collect()
    }

    /// Has the state file released. From here on nothing can be changed until `go`.
    pub(crate) async fn release(&mut self) -> Result<()> {
        self.frozen_since = Some(Instant::now());
        self.say(&Asked::Release).await?;
        match self.hear().await? {
            Some(Told::Released) | None => Ok(()),
            Some(other) => unexpected(&other),
        }
    }

    /// Says that everything is ready, and waits for `go`. Returns who goes on finishing what it has.
    pub(crate) async fn ready(mut self) -> Result<Option<Predecessor>> {
        let closing = (0..).zip(&self.sockets).filter_map(|(nth, left)| left.is_some().then_some(nth)).collect();
        self.say(&Asked::Ready { closing }).await?;
        match self.hear().await? {
            Some(Told::Go) => {}
            // It died. Nobody but us has its sockets.
            None => {}
            Some(other) => return unexpected(&other),
        }
        let frozen = self.frozen_since.map(|since| since.elapsed()).unwrap_or_default();
        tracing::info!(pid = self.pid, ?frozen, "Took over from the instance that was running");
        Ok(self.channel.map(Predecessor::new))
    }

    async fn say(&mut self, word: &Asked) -> Result<()> {
        let Some(channel) = &mut self.channel else { return Ok(()) };
        match channel.say(word).await {
            // Whether it went away without a word, what is heard next tells: it may have refused.
            Ok(()) | Err(Broken::Gone) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// `None`: it went away without a word, so it died. Whoever only gives up says so.
    async fn hear(&mut self) -> Result<Option<Told>> {
        let Some(channel) = &mut self.channel else { return Ok(None) };
        match time::timeout(PATIENCE, channel.hear()).await {
            Ok(Ok(Told::Refused { problem })) => bail!("the running instance refuses to be taken over: {problem}"),
            Ok(Ok(word)) => Ok(Some(word)),
            Ok(Err(Broken::Gone)) => {
                self.channel = None;
                if !self.sockets.is_empty() {
                    tracing::warn!(pid = self.pid, "The running instance went away; going on with its sockets");
                }
                Ok(None)
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_) => bail!("the running instance did not answer within {PATIENCE:?}; {RESTART}"),
        }
    }
}

const RESTART: &str = "stop it and start this one anew";

fn unexpected<T>(word: &Told) -> Result<T> {
    bail!("the running instance said what makes no sense now ({word:?}); {RESTART}")
}
