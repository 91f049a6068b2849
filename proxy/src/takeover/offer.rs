//! The side of the process that runs.

use std::{
    fs, io,
    net::TcpListener,
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process,
    sync::{Arc, atomic::Ordering},
};

use admin_api::{Control, DataPlane};
use anyhow::{Result, bail};
use parking_lot::Mutex;
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::{self, Duration, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{
    Asked, PATIENCE, PROTOCOL, Told, address,
    channel::{Broken, Channel},
};
use crate::plane::Plane;

/// Connections that have not said anything sensible yet.
const STRANGERS: usize = 16;
/// How long the state file may take to be ours again.
const THAW_PATIENCE: Duration = Duration::from_secs(5);

/// Stands ready to be taken over.
pub(crate) struct Offer {
    rendezvous: Rendezvous,
    shared: Arc<Shared>,
}

struct Shared {
    sockets: Vec<TcpListener>,
    control: Arc<Control>,
    plane: Arc<Plane>,
    /// The process that is taking over.
    successor: Mutex<Option<u32>>,
}

/// A successor has everything and serves.
pub(crate) struct Taken {
    channel: Channel,
    pub(crate) pid: u32,
    /// How long nothing could be changed.
    pub(crate) frozen: Duration,
    /// Those of the sockets that it does not want.
    pub(crate) closing: Vec<usize>,
}

impl Offer {
    /// From here on a successor of this process, which holds the state file, is heard. `sockets`: by their numbers in
    /// [`Listening`](crate::listen::Listening), and then any others. Errors: nobody can take over.
    pub(crate) fn new(
        state: &Path,
        sockets: Vec<TcpListener>,
        control: Arc<Control>,
        plane: Arc<Plane>,
    ) -> io::Result<Self> {
        let rendezvous = Rendezvous::open(state)?;
        let shared = Shared { sockets, control, plane, successor: Mutex::new(None) };
        Ok(Self { rendezvous, shared: Arc::new(shared) })
    }

    /// Waits for a successor to take over, or for the stop; with a takeover under way, for its end. The handles of the
    /// sockets are gone then.
    pub(crate) async fn until_taken(self, stop: &CancellationToken) -> Option<Taken> {
        let mut conversations = JoinSet::new();
        let mut stopping = false;
        loop {
            tokio::select! {
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    if let Some(pid) = *self.shared.successor.lock() {
                        tracing::info!(pid, "Stopping when that instance has taken over, or failed to");
                    }
                }
                accepted = self.rendezvous.listener.accept() => match accepted {
                    Ok((stream, _)) if conversations.len() < STRANGERS && is_ours(&stream) => {
                        conversations.spawn(converse(Arc::clone(&self.shared), stream));
                    }
                    Ok(_) => tracing::warn!("Turned away at the takeover socket: another user, or too many"),
                    Err(error) => {
                        tracing::error!(%error, "Cannot accept at the takeover socket");
                        time::sleep(Duration::from_secs(1)).await;
                    }
                },
                Some(ended) = conversations.join_next() => match ended {
                    Ok(Some(taken)) => return Some(taken),
                    Ok(None) => {}
                    Err(error) => {
                        tracing::error!(%error, "A takeover panicked; going on");
                        self.shared.thaw().await;
                        *self.shared.successor.lock() = None;
                    }
                }
            }
            if stopping && self.shared.successor.lock().is_none() {
                return None;
            }
        }
    }
}

/// Where a successor finds us. Gone when dropped, unless a successor has put its own there.
struct Rendezvous {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Rendezvous {
    /// In place of whoever was there: a killed process, or one that was taken over.
    fn open(state: &Path) -> io::Result<Self> {
        let path = address(state)?;
        // Not longer than the path itself: a process id has at most 7 digits (proc(5), pid_max).
        let aside = path.with_extension(format!("t{}", process::id()));
        match fs::remove_file(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&aside)?;
        // Nobody connects before its mode is right.
        let settled = fs::set_permissions(&aside, fs::Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(&aside, &path))
            .and_then(|()| fs::metadata(&path));
        match settled {
            Ok(file) => Ok(Self { listener, inode: file.ino(), path }),
            Err(error) => {
                let _ = fs::remove_file(&aside);
                Err(error)
            }
        }
    }
}

impl Drop for Rendezvous {
    fn drop(&mut self) {
        if fs::metadata(&self.path).is_ok_and(|there| there.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Does the same user stand at the other end? The file's mode lets nobody else in, but root.
fn is_ours(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw())
}

/// From the first word to `go`, or to whatever comes in between.
async fn converse(shared: Arc<Shared>, stream: UnixStream) -> Option<Taken> {
    let mut channel = Channel::new(stream);
    let pid = match time::timeout(PATIENCE, channel.hear()).await {
        Ok(Ok(Asked::Takeover { protocol: PROTOCOL, pid })) => pid,
        Ok(Ok(Asked::Takeover { protocol, .. })) => {
            let problem = format!("it speaks takeover protocol {PROTOCOL}, not {protocol}; stop it and start anew");
            return refuse(channel, problem).await;
        }
        Ok(Ok(_)) => return refuse(channel, "it has not been asked to take over".to_owned()).await,
        Ok(Err(Broken::Gone)) => return None,
        Ok(Err(error)) => return refuse(channel, error.to_string()).await,
        Err(_) => return refuse(channel, format!("nothing was said within {PATIENCE:?}")).await,
    };
    let other = {
        let mut successor = shared.successor.lock();
        let other = *successor;
        successor.get_or_insert(pid);
        other
    };
    if let Some(other) = other {
        return refuse(channel, format!("process {other} is taking over; wait until it has, and try again")).await;
    }
    tracing::info!(pid, "Another instance takes over");
    let mut frozen_since = None;
    match shared.hand_over(&mut channel, &mut frozen_since).await {
        Ok(closing) => Some(Taken { channel, pid, frozen: elapsed(frozen_since), closing }),
        Err(error) => {
            let problem = format!("{error:#}");
            tracing::error!(pid, problem, "Not taken over; going on");
            shared.plane.takeovers.failed.fetch_add(1, Ordering::Relaxed);
            // It is told first, so that it lets go of the state file.
            tell(channel, problem).await;
            if frozen_since.is_some() {
                shared.thaw().await;
                tracing::info!(frozen = ?elapsed(frozen_since), "Changes are possible again");
            }
            // A stop that came meanwhile has its turn now.
            *shared.successor.lock() = None;
            None
        }
    }
}

fn elapsed(since: Option<Instant>) -> Duration {
    since.map(|since| since.elapsed()).unwrap_or_default()
}

async fn refuse(channel: Channel, problem: String) -> Option<Taken> {
    tracing::warn!(problem, "Refused at the takeover socket");
    tell(channel, problem).await;
    None
}

/// Gives up, in so many words: an end without a word would mean that this process died.
async fn tell(mut channel: Channel, problem: String) {
    // Whoever does not listen need not hear it.
    let _ = time::timeout(Duration::from_secs(1), channel.say(&Told::Refused { problem })).await;
}

impl Shared {
    /// Returns which sockets the successor has no use for. `frozen_since`: set as soon as nothing can be changed any more.
    /// Errors: why nothing came of it; whatever is frozen is to be thawed.
    async fn hand_over(&self, channel: &mut Channel, frozen_since: &mut Option<Instant>) -> Result<Vec<usize>> {
        let sockets = self.sockets.iter().map(AsFd::as_fd).collect::<Vec<_>>();
        channel
            .say_with(&Told::Sockets { protocol: PROTOCOL, pid: process::id(), count: sockets.len() }, &sockets)
            .await?;
        match hear(channel).await? {
            Asked::Release => {}
            other => bail!("it said {other:?} in place of release"),
        }
        let since = Instant::now();
        self.control.freeze().await?;
        *frozen_since = Some(since);
        released(channel).await
    }

    /// Green can be taken off at once. Neither a stop nor the next successor waits for a disk that hangs.
    async fn thaw(&self) {
        let control = Arc::clone(&self.control);
        let thaw = tokio::spawn(async move {
            if let Err(error) = control.thaw().await {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::error!(error, "The state file is not ours again; it is asked for with every change");
            }
        });
        if time::timeout(THAW_PATIENCE, thaw).await.is_err() {
            tracing::error!("The state file does not answer; green can be lowered, and not be raised until it does");
        }
    }
}

/// The part in which nothing can be changed. Returns which sockets the successor has no use for.
async fn released(channel: &mut Channel) -> Result<Vec<usize>> {
    channel.say(&Told::Released).await?;
    match hear(channel).await? {
        Asked::Ready { closing } => {
            channel.say(&Told::Go).await?;
            Ok(closing)
        }
        other => bail!("it said {other:?} in place of ready"),
    }
}

async fn hear(channel: &mut Channel) -> Result<Asked> {
    match time::timeout(PATIENCE, channel.hear()).await {
        Ok(heard) => Ok(heard?),
        Err(_) => bail!("it said nothing for {PATIENCE:?}"),
    }
}

impl Taken {
    /// Follows the successor's splits for as long as it tells them.
    pub(crate) async fn follow(mut self, plane: Arc<Plane>) {
        loop {
            match self.channel.hear().await {
                Ok(Asked::Splits { number, routes }) => {
                    for (route, share) in &routes {
                        if let Some(state) = share.state() {
                            plane.apply(route, state);
                        }
                    }
                    if self.channel.say(&Told::Followed { number }).await.is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(Broken::Gone) => return,
                Err(error) => return tracing::warn!(%error, "The splits of the successor are not followed any more"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_successor_that_says_nothing_is_given_up_after_half_a_minute() {
        let (one, other) = UnixStream::pair().unwrap();
        let (mut ours, mut theirs) = (Channel::new(one), Channel::new(other));
        let started = Instant::now();
        assert_eq!(released(&mut ours).await.unwrap_err().to_string(), "it said nothing for 30s");
        assert_eq!(started.elapsed(), PATIENCE);
        assert!(matches!(theirs.hear().await, Ok(Told::Released)));
        // What it says too late is for nobody: it hears that it was given up, and does not take us for dead.
        tell(ours, "too late".to_owned()).await;
        assert!(matches!(theirs.say(&Asked::Ready { closing: Vec::new() }).await, Err(Broken::Gone)));
        assert!(matches!(theirs.hear().await, Ok(Told::Refused { .. })));
        assert!(matches!(theirs.hear::<Told>().await, Err(Broken::Gone)));
    }
}
