//! Idle connections to one endpoint, of one worker.

use std::collections::VecDeque;

use tokio::time::{Duration, Instant};

use crate::transport::Transport;

/// How long an unused connection is kept. Below what servers commonly allow (nginx: 75 s), so that it is rarely the
/// endpoint that closes first.
const IDLE: Duration = Duration::from_secs(55);
/// Connections kept at most. The one that was idle for longest makes room.
const MOST: usize = 1024;

/// The one used last is taken first, so that those too many grow old.
#[derive(Debug, Default)]
pub(super) struct Pool {
    idle: VecDeque<(Transport, Instant)>,
}

impl Pool {
    /// A connection on which the endpoint has said nothing since, not even that it closes. `surely`: asks the system, for a
    /// request that could not be sent again; else what the runtime has heard of is enough, which costs no system call.
    pub(super) fn take(&mut self, surely: bool) -> Option<Transport> {
        while let Some((mut transport, _)) = self.idle.pop_back() {
            if transport.is_quiet() && (!surely || transport.is_silent()) {
                return Some(transport);
            }
        }
        None
    }

    pub(super) fn keep(&mut self, transport: Transport, now: Instant) {
        if self.idle.len() == MOST {
            self.idle.pop_front();
        }
        self.idle.push_back((transport, now));
    }

    pub(super) fn sweep(&mut self, now: Instant) {
        while self.idle.front().is_some_and(|(_, since)| now.duration_since(*since) >= IDLE) {
            self.idle.pop_front();
        }
    }
}
