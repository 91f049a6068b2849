//! Connections that last end up evenly spread. The system spreads by a hash of addresses, which is even for many and not
//! for few: a worker that has clearly more open connections than the least loaded one hands a new one over to that.
//!
//! Clearly means: more than the least loaded one by 4, or by an eighth of what that has, and besides by as many as were
//! closed here lately. Where connections come and go, a difference is gone before handing over would have paid; so they
//! stay where they are. Where none end, no worker has more than `least + max(4, least / 8)`. Connections are not moved
//! once they are open, so what ends on one side alone leaves a difference until others come.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use tokio::{
    sync::mpsc::{self, Permit, Receiver, Sender},
    time::{Duration, Instant},
};

use super::Newcomer;
use crate::{
    plane::Plane,
    worker::{self, PerWorker},
};

/// Open client connections. A worker writes its own counts, and reads the others' when it accepts.
#[derive(Debug)]
pub(crate) struct Connections(PerWorker<Count>);

#[derive(Debug, Default)]
struct Count {
    open: AtomicUsize,
    closed: AtomicUsize,
    /// Accepted here and served elsewhere.
    handed_over: AtomicU64,
}

impl Connections {
    pub(crate) fn new(workers: usize) -> Self {
        Self(PerWorker::new(workers))
    }

    /// Open ones and those handed over so far, of each worker.
    pub(crate) fn by_worker(&self) -> impl Iterator<Item = (usize, u64)> {
        // The first one is of the threads that are no workers.
        let read = |count: &Count| (count.open.load(Ordering::Relaxed), count.handed_over.load(Ordering::Relaxed));
        self.0.iter().skip(1).map(read)
    }
}

/// Counts a connection for as long as it lives.
pub(super) struct OpenConnection {
    plane: Arc<Plane>,
    worker: usize,
}

impl OpenConnection {
    /// On this worker.
    pub(super) fn count(plane: &Arc<Plane>) -> Self {
        let worker = worker::id();
        plane.connections.0.of(worker).open.fetch_add(1, Ordering::Relaxed);
        Self { plane: Arc::clone(plane), worker }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let count = self.plane.connections.0.of(self.worker);
        count.open.fetch_sub(1, Ordering::Relaxed);
        count.closed.fetch_add(1, Ordering::Relaxed);
    }
}

/// The ways of connections to all workers. They end when the last holder is gone.
#[derive(Clone)]
pub(crate) struct Peers(Arc<[Sender<Newcomer>]>);

/// Connections on their way to one worker. When there are more, they stay where they were accepted.
const ON_THEIR_WAY: usize = 256;

/// Returns each worker's end of its way, too.
pub(crate) fn peers(workers: usize) -> (Peers, Vec<Receiver<Newcomer>>) {
    let (senders, receivers): (Vec<_>, _) = (0..workers).map(|_| mpsc::channel(ON_THEIR_WAY)).unzip();
    (Peers(senders.into()), receivers)
}

/// What the workers have at a moment: open connections and those on their way.
#[derive(Debug, PartialEq)]
pub(super) struct Loads {
    pub(super) total: usize,
    here: usize,
    least: usize,
    /// Index of the worker that has `least`.
    idlest: usize,
}

impl Loads {
    fn of(each: impl Iterator<Item = usize>, here: usize) -> Self {
        let mut loads = Self { total: 0, here: 0, least: usize::MAX, idlest: 0 };
        for (index, load) in each.enumerate() {
            loads.total += load;
            if index == here {
                loads.here = load;
            }
            if load < loads.least {
                (loads.least, loads.idlest) = (load, index);
            }
        }
        loads
    }

    /// Is this worker to keep a new connection? `lately`: how many it has closed lately.
    fn fits_here(&self, lately: usize) -> bool {
        self.here < self.least + (self.least / 8).max(4) + lately
    }
}

impl Peers {
    pub(super) fn loads(&self, connections: &Connections) -> Loads {
        let each = self.0.iter().zip(connections.0.iter().skip(1));
        let load = |(way, count): (&Sender<Newcomer>, &Count)| {
            count.open.load(Ordering::Relaxed) + way.max_capacity() - way.capacity()
        };
        Loads::of(each.map(load), worker::id() - 1)
    }

    /// The way to a worker that a new connection is to be handed over to, if there is one and it is not full.
    pub(super) fn relief(&self, loads: &Loads, turnover: &mut Turnover, plane: &Plane) -> Option<Permit<'_, Newcomer>> {
        if self.0.len() == 1 {
            return None;
        }
        let count = plane.connections.0.local();
        if loads.fits_here(turnover.lately(count.closed.load(Ordering::Relaxed), Instant::now())) {
            return None;
        }
        let permit = self.0[loads.idlest].try_reserve().ok()?;
        count.handed_over.fetch_add(1, Ordering::Relaxed);
        Some(permit)
    }
}

/// How many connections a worker has closed in the last tenth or two of a second.
pub(super) struct Turnover {
    since: Instant,
    /// How many were closed then, ever.
    closed: usize,
    /// In the tenth before.
    before: usize,
}

const TENTH: Duration = Duration::from_millis(100);

impl Turnover {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, closed: 0, before: 0 }
    }

    /// `closed`: how many were closed by now, ever.
    fn lately(&mut self, closed: usize, now: Instant) -> usize {
        let elapsed = now.duration_since(self.since);
        if elapsed >= TENTH {
            self.before = if elapsed < 2 * TENTH { closed - self.closed } else { 0 };
            (self.since, self.closed) = (now, closed);
        }
        self.before + (closed - self.closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_keeps_what_is_no_clear_surplus() {
        for (loads, here, lately, fits, idlest) in [
            (&[0, 0][..], 0, 0, true, 0),
            (&[3, 0], 0, 0, true, 1),
            (&[4, 0], 0, 0, false, 1),
            (&[4, 0], 1, 0, true, 1),
            (&[4, 0], 0, 1, true, 1),
            (&[20, 16, 17, 16], 0, 0, false, 1),
            (&[19, 16, 17, 16], 0, 0, true, 1),
            (&[899, 800], 0, 0, true, 1),
            (&[900, 800], 0, 0, false, 1),
            (&[900, 800], 0, 100, true, 1),
            (&[7], 0, 0, true, 0),
        ] {
            let seen = Loads::of(loads.iter().copied(), here);
            assert_eq!((seen.fits_here(lately), seen.idlest), (fits, idlest), "{here} of {loads:?}, {lately} closed");
            assert_eq!(seen.total, loads.iter().sum::<usize>());
        }
    }

    /// Whatever order workers accept in, nobody has more than the bound says as long as nothing ends.
    #[test]
    fn the_bound_holds_after_every_connection() {
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        for workers in 1..=16 {
            let mut open = vec![0; workers];
            for nth in 0..5_000 {
                // A hash that is as unfair as can be for a while, and then is so otherwise.
                let accepting = if nth % 1_000 < 500 { nth / 1_000 % workers } else { random.usize(..workers) };
                let loads = Loads::of(open.iter().copied(), accepting);
                open[if loads.fits_here(0) { accepting } else { loads.idlest }] += 1;
                let (least, most) = (open.iter().min().unwrap(), open.iter().max().unwrap());
                assert!(*most <= least + (least / 8).max(4), "seed {seed}: {open:?}");
            }
        }
    }

    #[test]
    fn what_was_closed_is_forgotten_after_two_tenths_of_a_second() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut turnover = Turnover::new(start);
        for (millis, closed, expected) in
            [(10, 5, 5), (90, 20, 20), (150, 30, 30), (160, 31, 31), (260, 40, 10), (261, 40, 10), (900, 70, 0)]
        {
            assert_eq!(turnover.lately(closed, at(millis)), expected, "after {millis} ms");
        }
    }
}
