//! The end of the process, as those that carry traffic hear of it: soon no new connections, and how long for those there are.

use std::{
    future,
    sync::{Arc, OnceLock},
};

use tokio::{
    sync::watch,
    time::{Duration, Instant},
};

/// How long an idle connection is kept for a request that is already on its way, so that the end does not reset it.
pub(crate) const LAME_DUCK: Duration = Duration::from_secs(1);

/// Tells, once, that the end has begun.
pub(crate) struct Drainer {
    end: Arc<OnceLock<Arc<End>>>,
    begun: watch::Sender<bool>,
}

/// Hears of it.
#[derive(Clone)]
pub(crate) struct Drain {
    /// Written once in a process's life, so that asking costs nothing.
    end: Arc<OnceLock<Arc<End>>>,
    begun: watch::Receiver<bool>,
}

/// Why the process ends, and when.
#[derive(Debug)]
pub(crate) struct End {
    /// What is open then is cut.
    pub(crate) until: Instant,
    pub(crate) why: Why,
}

#[derive(Debug)]
pub(crate) enum Why {
    /// Nobody accepts on our sockets any more.
    Stopped,
    /// Another process accepts on our sockets, but for these.
    TakenOver { closing: Vec<usize> },
}

impl Drainer {
    pub(crate) fn new() -> (Self, Drain) {
        let (begun, hears_begun) = watch::channel(false);
        let end = Arc::default();
        (Self { end: Arc::clone(&end), begun }, Drain { end, begun: hears_begun })
    }

    pub(crate) fn begin(&self, end: End) {
        let _ = self.end.set(Arc::new(end));
        self.begun.send_replace(true);
    }
}

impl Drain {
    /// Resolves when the end has begun; never, when the one who would tell is gone.
    pub(crate) async fn begins(&mut self) -> Arc<End> {
        let _ = self.begun.wait_for(|begun| *begun).await;
        match self.end.get() {
            Some(end) => Arc::clone(end),
            None => future::pending().await,
        }
    }

    /// The end, if it has begun. Those who wait with an alarm are woken when it does, and may ask again.
    pub(crate) fn end(&self) -> Option<&End> {
        self.end.get().map(|end| &**end)
    }

    pub(crate) fn as_engine_takes_it(&self) -> &watch::Receiver<bool> {
        &self.begun
    }
}

impl End {
    /// Must those be served that wait in a socket's backlog? Nobody else would, and they would be reset.
    pub(crate) fn takes_backlog(&self, socket: usize) -> bool {
        match &self.why {
            Why::Stopped => true,
            Why::TakenOver { closing } => closing.contains(&socket),
        }
    }

    /// Until when an idle connection may wait for its next request, which is then told to be the last.
    pub(crate) fn idle_until(&self, now: Instant) -> Instant {
        match self.why {
            Why::Stopped => now + LAME_DUCK,
            // There is no hurry: others are served by now. A last request must still find its time.
            Why::TakenOver { .. } => {
                let left = self.until.saturating_duration_since(now);
                self.until - LAME_DUCK.min(left / 2)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_in_a_backlog_is_left_to_the_successor_where_there_is_one() {
        let until = Instant::now() + Duration::from_secs(25);
        let stopped = End { until, why: Why::Stopped };
        let taken = End { until, why: Why::TakenOver { closing: vec![1] } };
        assert!(stopped.takes_backlog(0) && stopped.takes_backlog(1));
        assert!(!taken.takes_backlog(0) && taken.takes_backlog(1));
    }

    #[test]
    fn the_idle_have_a_second_after_a_stop_and_all_but_the_last_one_after_a_takeover() {
        let now = Instant::now();
        let seconds = |seconds: f64| now + Duration::from_secs_f64(seconds);
        for (drain, stopped, taken) in [(25.0, 1.0, 24.0), (1.0, 1.0, 0.5), (0.0, 1.0, 0.0)] {
            let end = |why| End { until: seconds(drain), why };
            assert_eq!(end(Why::Stopped).idle_until(now), seconds(stopped));
            assert_eq!(end(Why::TakenOver { closing: Vec::new() }).idle_until(now), seconds(taken));
        }
    }
}
