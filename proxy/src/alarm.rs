//! Deadlines of connections. A worker has one timer for all of them, which is set seldom: most deadlines are put off long
//! before they come, and putting one off costs two writes to memory.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::pin,
    task::{Context, Poll, Waker},
};

use tokio::time::{self, Duration, Instant};

/// How long the worker's timer is set for at most.
const LOOK: Duration = Duration::from_secs(5);
/// Between two looks at all deadlines: that much later than its time one may be noticed. A look costs a few nanoseconds a
/// connection, so the more there are, the longer.
const APART: Duration = Duration::from_millis(5);
const APART_PER_SLOT: Duration = Duration::from_micros(1);

thread_local! {
    static CLOCK: RefCell<Clock> = const { RefCell::new(Clock::new()) };
}

/// A worker's deadlines.
struct Clock {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// When it will look at the slots again.
    next: Option<Instant>,
    last: Option<Instant>,
    ticker: Option<Waker>,
}

#[derive(Default)]
struct Slot {
    waker: Option<Waker>,
    deadline: Option<Instant>,
    rung: bool,
}

impl Clock {
    const fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), next: None, last: None, ticker: None }
    }

    fn take_slot(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        })
    }

    fn set(&mut self, slot: u32, cx: &Context<'_>, deadline: Instant) {
        let slot = &mut self.slots[slot as usize];
        slot.deadline = Some(deadline);
        if !slot.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            slot.waker = Some(cx.waker().clone());
        }
        if self.next.is_none_or(|next| deadline < next) {
            let apart = APART + APART_PER_SLOT * self.slots.len() as u32;
            let next = self.last.map_or(deadline, |last| deadline.max(last + apart));
            if self.next.is_none_or(|known| next < known) {
                self.next = Some(next);
                if let Some(ticker) = &self.ticker {
                    ticker.wake_by_ref();
                }
            }
        }
    }

    /// Rings what is due and says when the next look is.
    fn look(&mut self, now: Instant) -> Instant {
        let mut next = now + LOOK;
        for slot in &mut self.slots {
            match slot.deadline {
                Some(deadline) if deadline <= now => slot.ring(),
                Some(deadline) => next = next.min(deadline),
                None => {}
            }
        }
        let apart = APART + APART_PER_SLOT * self.slots.len() as u32;
        let next = next.max(now + apart);
        (self.next, self.last) = (Some(next), Some(now));
        next
    }
}

impl Slot {
    fn ring(&mut self) {
        self.deadline = None;
        self.rung = true;
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }
}

/// Rings this thread's alarms when they are due. One a thread, on a runtime of that thread alone.
pub(crate) async fn tick() {
    let mut timer = pin!(time::sleep(LOOK));
    poll_fn(|cx| {
        CLOCK.with_borrow_mut(|clock| {
            clock.ticker = Some(cx.waker().clone());
            let mut next = clock.next.unwrap_or_else(|| clock.look(Instant::now()));
            loop {
                if timer.deadline() != next {
                    timer.as_mut().reset(next);
                }
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                next = clock.look(Instant::now());
            }
        })
    })
    .await
}

/// Wakes all that wait with an alarm on this thread, so that they look at what else has changed.
pub(crate) fn wake_all() {
    CLOCK.with_borrow(|clock| clock.slots.iter().filter_map(|slot| slot.waker.as_ref()).for_each(Waker::wake_by_ref));
}

/// What a connection waits with. Nothing until the first wait.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    slot: Option<u32>,
}

impl Alarm {
    /// Ready when `deadline` is past, or a few milliseconds later. Deadlines may move either way from call to call.
    pub(crate) fn poll(&mut self, cx: &Context<'_>, deadline: Instant) -> Poll<()> {
        CLOCK.with_borrow_mut(|clock| {
            let slot = *self.slot.get_or_insert_with(|| clock.take_slot());
            if std::mem::take(&mut clock.slots[slot as usize].rung) && Instant::now() >= deadline {
                return Poll::Ready(());
            }
            clock.set(slot, cx, deadline);
            Poll::Pending
        })
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            // A thread that ends has no clock any more.
            let _ = CLOCK.try_with(|clock| {
                let mut clock = clock.borrow_mut();
                clock.slots[slot as usize] = Slot::default();
                clock.free.push(slot);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn deadlines_may_move_either_way() {
        tokio::spawn(tick());
        let mut alarm = Alarm::default();
        for seconds in [10, 1, 60, 0, 3] {
            let start = Instant::now();
            let deadline = start + Duration::from_secs(seconds);
            poll_fn(|cx| alarm.poll(cx, deadline)).await;
            let late = start.elapsed().checked_sub(Duration::from_secs(seconds)).expect("not before its time");
            assert!(late < Duration::from_millis(20), "{seconds}: {late:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_of_many_rings_in_its_time_and_their_places_are_used_again() {
        tokio::spawn(tick());
        let start = Instant::now();
        let waits = (0..500_u64).map(|n| {
            tokio::spawn(async move {
                let due = Duration::from_millis(n * 37 % 9000);
                let mut alarm = Alarm::default();
                poll_fn(|cx| alarm.poll(cx, start + due)).await;
                start.elapsed().checked_sub(due).expect("not before its time")
            })
        });
        for late in futures::future::join_all(waits).await {
            assert!(late.unwrap() < Duration::from_millis(20));
        }
        CLOCK.with_borrow(|clock| assert_eq!(clock.free.len(), clock.slots.len()));
    }
}
