//! When the next request leaves.
//!
//! A slot (a connection, or a stream of one) takes the next number of its worker as soon as it is free, and waits until
//! that number is due. Numbers are taken in order, so when all slots are busy those that are due wait for the first free
//! one, and their latency has counted since they were due: a server that stalls is not spared the requests it held up.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{Notify, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::schedule::Schedule;

/// How fast requests leave.
#[derive(Clone, Debug)]
pub enum Pace {
    /// Open loop: each when it is due, whatever became of those before it.
    Open(Arc<Schedule>),
    /// Closed loop: each slot's next request as soon as the last was answered, for so long.
    Max(Duration),
}

impl Pace {
    /// How long requests are sent.
    pub fn duration(&self) -> Duration {
        match self {
            Self::Open(schedule) => schedule.duration(),
            Self::Max(duration) => *duration,
        }
    }
}

/// A request whose time has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Due {
    /// Its number in the run.
    pub(crate) number: u32,
    /// When it should leave.
    pub(crate) at: Instant,
    /// Whether a slot was waiting for it: if it leaves late then, the generator is to blame.
    pub(crate) awaited: bool,
}

/// Hands out one worker's share of a run's requests: every `workers`-th number.
#[derive(Debug)]
pub(crate) struct Pacer {
    pace: Pace,
    start: Instant,
    first: u64,
    step: u64,
    /// Numbers taken by slots, those not yet due included.
    taken: Cell<u64>,
    due: Cell<u64>,
    /// Slots that wait for their number, in the order of numbers and so of time.
    waiting: RefCell<VecDeque<(Instant, oneshot::Sender<()>)>>,
    someone_waits: Notify,
    timer: AsyncFd<OwnedFd>,
    stopped: CancellationToken,
}

impl Pacer {
    /// The share of worker `nth` of `workers`. Requests stop when `stopped` is cancelled. Errors: no timer.
    pub(crate) fn new(
        pace: Pace,
        start: Instant,
        nth: usize,
        workers: usize,
        stopped: CancellationToken,
    ) -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        #[expect(deprecated, reason = "its successor asks, by `unsafe`, for a promise that an OwnedFd keeps by itself")]
        let timer = AsyncFd::with_interest(timer, Interest::READABLE)?;
        Ok(Self {
            pace,
            start,
            first: nth as u64,
            step: workers as u64,
            taken: Cell::new(0),
            due: Cell::new(0),
            waiting: RefCell::default(),
            someone_waits: Notify::new(),
            timer,
            stopped,
        })
    }

    /// The next request, when it is due; `None` when there are no more.
    pub(crate) async fn next(&self) -> Option<Due> {
        if self.stopped.is_cancelled() {
            return None;
        }
        let number = u32::try_from(self.first + self.taken.get() * self.step).ok()?;
        let now = Instant::now();
        let at = match &self.pace {
            Pace::Open(schedule) => self.start + schedule.due(number)?,
            Pace::Max(duration) if now < self.start + *duration => now,
            Pace::Max(_) => return None,
        };
        self.taken.set(self.taken.get() + 1);
        let awaited = at > now;
        if awaited {
            let (sender, due) = oneshot::channel();
            self.waiting.borrow_mut().push_back((at, sender));
            self.someone_waits.notify_one();
            due.await.ok()?;
        }
        self.due.set(self.due.get() + 1);
        Some(Due { number, at, awaited })
    }

    /// So many requests that were handed out were not sent after all.
    pub(crate) fn give_back(&self, count: u64) {
        self.due.set(self.due.get() - count);
    }

    /// Requests of the schedule that were not handed out.
    pub(crate) fn left(&self) -> u64 {
        match &self.pace {
            Pace::Open(schedule) => {
                let share = u64::from(schedule.requests()).saturating_sub(self.first).div_ceil(self.step);
                share.saturating_sub(self.due.get())
            }
            Pace::Max(_) => 0,
        }
    }

    /// Lets requests go when they are due, until the pace is stopped; then tells all who wait. Errors: the timer fails.
    pub(crate) async fn run(&self) -> io::Result<()> {
        let running = async {
            loop {
                let next = self.waiting.borrow().front().map(|(at, _)| *at);
                match next {
                    None => self.someone_waits.notified().await,
                    Some(at) => self.wait_until(at).await?,
                }
                let now = Instant::now();
                let mut waiting = self.waiting.borrow_mut();
                while waiting.front().is_some_and(|(at, _)| *at <= now) {
                    let (_, slot) = waiting.pop_front().expect("there is a first one");
                    let _ = slot.send(());
                }
            }
        };
        let ended = self.stopped.run_until_cancelled(running).await;
        self.waiting.borrow_mut().clear();
        ended.unwrap_or(Ok(()))
    }

    /// tokio's own timers go by whole milliseconds, which is more than most answers take.
    async fn wait_until(&self, at: Instant) -> io::Result<()> {
        let wait = at.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return Ok(());
        }
        let wait = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: wait.as_secs() as _, tv_nsec: wait.subsec_nanos().into() },
        };
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &wait)?;
        // Setting it again makes it unreadable, so there is nothing to read: a stale readiness only wakes us early.
        self.timer.readable().await?.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[tokio::test]
    async fn workers_share_the_schedule_and_nothing_leaves_early() {
        let schedule = Arc::new("200ms:500".parse::<Schedule>().unwrap());
        let start = Instant::now();
        let mut numbers = Vec::new();
        for nth in 0..3 {
            let pacer = Pacer::new(Pace::Open(Arc::clone(&schedule)), start, nth, 3, CancellationToken::new()).unwrap();
            let slots = async {
                while let Some(due) = pacer.next().await {
                    assert!(due.at <= Instant::now());
                    numbers.push(due.number);
                }
            };
            tokio::select! { () = slots => {} ended = pacer.run() => ended.unwrap() }
            assert_eq!(pacer.left(), 0);
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (0..100).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn what_is_overdue_leaves_at_once_and_keeps_its_time() {
        let schedule = Arc::new("1s:100".parse::<Schedule>().unwrap());
        let start = Instant::now() - Duration::from_secs(1);
        let pacer = Pacer::new(Pace::Open(schedule), start, 0, 1, CancellationToken::new()).unwrap();
        for number in 0..100 {
            let due = pacer.next().await.unwrap();
            assert_eq!((due.number, due.awaited), (number, false));
            assert_eq!(due.at, start + Duration::from_millis(10) * number);
        }
        assert!(pacer.next().await.is_none());
    }

    #[tokio::test]
    async fn a_stop_reaches_those_who_wait() {
        let schedule = Arc::new("1h:1".parse::<Schedule>().unwrap());
        let stopped = CancellationToken::new();
        let pacer = Rc::new(Pacer::new(Pace::Open(schedule), Instant::now(), 1, 2, stopped.clone()).unwrap());
        let (next, ended) = tokio::join!(pacer.next(), async {
            let running = pacer.run();
            stopped.cancel();
            running.await
        });
        ended.unwrap();
        assert!(next.is_none() && pacer.next().await.is_none());
        assert_eq!(pacer.left(), 1800);
    }
}
