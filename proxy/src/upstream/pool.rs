//! Idle connections to one endpoint, of one worker.

use std::collections::VecDeque;

use tokio::time::{Duration, Instant};

use crate::transport::Transport;

/// How long an unused connection is kept. Below what servers commonly allow (nginx: 75 s), so that it is rarely the
/// endpoint that closes first.
const IDLE: Duration = Duration::from_secs(55);
/// Connections kept at most. The one that was idle for longest makes room.
const MOST: usize = 2048;
/// So many of its own a worker keeps from the others.
const OWN: usize = 8;

/// The one used last is taken first, so that those too many grow old.
#[derive(Debug, Default)]
pub(super) struct Pool {
    idle: VecDeque<Idle>,
}

#[derive(Debug)]
struct Idle {
    transport: Transport,
    since: Instant,
    /// Something that belongs to no answer may still come on it.
    doubtful: bool,
}

impl Pool {
    /// A connection on which the endpoint has said nothing since, not even that it closes. `surely`: asks the system, for a
    /// request that could not be sent again; else what the runtime has heard of is enough, which costs no system call.
    pub(super) fn take(&mut self, surely: bool) -> Option<Transport> {
        while let Some(mut idle) = self.idle.pop_back() {
            let ask = surely || idle.doubtful;
            if idle.transport.is_quiet() && (!ask || idle.transport.is_silent()) {
                return Some(idle.transport);
            }
        }
        None
    }

    /// For another worker that would have to connect: the one that was idle for longest, where there are more than this
    /// worker is likely to need at once. It still belongs to this worker's runtime.
    pub(super) fn spare(&mut self) -> Option<Transport> {
        if self.idle.len() <= OWN {
            return None;
        }
        self.idle.pop_front().map(|idle| idle.transport)
    }

    pub(super) fn keep(&mut self, transport: Transport, since: Instant, doubtful: bool) {
        if self.idle.len() == MOST {
            self.idle.pop_front();
        }
        self.idle.push_back(Idle { transport, since, doubtful });
    }

    pub(super) fn sweep(&mut self, now: Instant) {
        while self.idle.front().is_some_and(|idle| now.duration_since(idle.since) >= IDLE) {
            self.idle.pop_front();
        }
    }
}
