//! One timer for all that a connection waits for.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use tokio::time::{self, Duration, Instant, Sleep};

/// How long a connection's first wait is at least taken to be, so that the timer is set once and seldom again.
const COARSE: Duration = Duration::from_secs(5);

/// A deadline that moves with every wait, on a timer that does not: it is set again only when it goes off too early, or
/// when the deadline comes before it. Most requests so cost no timer at all.
#[derive(Debug)]
pub(super) struct Alarm {
    timer: Pin<Box<Sleep>>,
    set_for: Instant,
}

impl Alarm {
    pub(super) fn new() -> Self {
        let set_for = Instant::now() + COARSE;
        Self { timer: Box::pin(time::sleep_until(set_for)), set_for }
    }

    /// Ready when `deadline` is past.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        if deadline < self.set_for {
            self.set(deadline);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            self.set(deadline);
        }
        Poll::Pending
    }

    fn set(&mut self, deadline: Instant) {
        self.timer.as_mut().reset(deadline);
        self.set_for = deadline;
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn deadlines_may_move_either_way() {
        let mut alarm = Alarm::new();
        for seconds in [10, 1, 60, 0, 3] {
            let start = Instant::now();
            let deadline = start + Duration::from_secs(seconds);
            poll_fn(|cx| alarm.poll(cx, deadline)).await;
            assert!(start.elapsed().as_secs() == seconds, "{seconds}: {:?}", start.elapsed());
        }
    }
}
