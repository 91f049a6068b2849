//! Stage 7: counts what became of every request and connection, each worker for itself, and gathers it once a second.
//!
//! A worker takes only its own lock, which nobody else wants but the gathering once a second.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use admin_api::{ArmObservation, Observation, Outcome, SECONDS_KEPT, Second, Tally};
use config::Arm;
use parking_lot::Mutex;

use crate::worker::{Handle, PerWorker, Shared};

/// The counts of one route. Survives reloads of the configuration as long as the route keeps its name.
#[derive(Debug)]
pub(crate) struct Meter {
    shards: PerWorker<Mutex<Shard>>,
    history: Mutex<History>,
    /// Grows when evidence is dropped. Written once in a blue moon, so reading it costs nothing.
    epoch: AtomicU64,
}

#[derive(Debug, Default)]
struct Shard {
    arms: [Tally; 2],
    /// Endings of what began in an earlier epoch: for the totals alone.
    forgotten: [Tally; 2],
    /// May be negative on one worker when another one ended what it had opened.
    open: [i64; 2],
    keyless: u64,
    rejected: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Default)]
struct History {
    total: [Tally; 2],
    keyless: u64,
    rejected: BTreeMap<&'static str, u64>,
    seconds: VecDeque<Arc<Second>>,
    /// What the shards' tallies are exchanged for, so that their histograms keep their memory.
    spare: Tally,
}

impl Meter {
    pub(crate) fn new(workers: usize) -> Shared<Self> {
        let meter = Self { shards: PerWorker::new(workers), history: Mutex::default(), epoch: AtomicU64::new(0) };
        Shared::new(meter, workers)
    }

    /// What is under way is evidence no more, however it ends.
    pub(crate) fn forget(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn keyless(&self) {
        self.shards.local().lock().keyless += 1;
    }

    /// Refused before an arm was chosen.
    pub(crate) fn reject(&self, reason: &'static str) {
        *self.shards.local().lock().rejected.entry(reason).or_default() += 1;
    }

    /// Closes a second: moves what the workers counted into history. `at`: seconds since the start, growing.
    pub(crate) fn gather(&self, at: u64) {
        let mut history = self.history.lock();
        let history = &mut *history;
        let mut arms = [Tally::default(), Tally::default()];
        for shard in self.shards.iter() {
            for (arm, gathered) in arms.iter_mut().enumerate() {
                let mut shard = shard.lock();
                mem::swap(&mut shard.arms[arm], &mut history.spare);
                drop(shard);
                gathered.add(&history.spare);
                history.spare.clear();
            }
            let mut shard = shard.lock();
            for (total, forgotten) in history.total.iter_mut().zip(&mut shard.forgotten) {
                total.add_counts(forgotten);
                forgotten.clear();
            }
            history.keyless += mem::take(&mut shard.keyless);
            for (reason, count) in mem::take(&mut shard.rejected) {
                *history.rejected.entry(reason).or_default() += count;
            }
        }
        for (total, gathered) in history.total.iter_mut().zip(&arms) {
            total.add_counts(gathered);
        }
        let [blue, green] = arms;
        if history.seconds.len() == SECONDS_KEPT {
            history.seconds.pop_front();
        }
        history.seconds.push_back(Arc::new(Second { at, blue, green, placebo: Tally::default() }));
    }

    /// Everything but endpoints and the mirror, up to the last gathered second; what is open is as of now.
    pub(crate) fn observe(&self) -> Observation {
        let open =
            |arm: Arm| self.shards.iter().map(|shard| shard.lock().open[arm as usize]).sum::<i64>().max(0) as u64;
        let (open_blue, open_green) = (open(Arm::Blue), open(Arm::Green));
        let history = self.history.lock();
        let arm =
            |arm: Arm, open| ArmObservation { total: history.total[arm as usize].clone(), open, endpoints: Vec::new() };
        Observation {
            blue: arm(Arm::Blue, open_blue),
            green: arm(Arm::Green, open_green),
            keyless: history.keyless,
            rejected: history.rejected.clone(),
            mirror: None,
            seconds: history.seconds.iter().cloned().collect(),
        }
    }
}

impl Meter {
    /// Of the seconds that are kept those above `after`, oldest first.
    pub(crate) fn seconds(&self, after: Option<u64>) -> Vec<Arc<Second>> {
        let history = self.history.lock();
        let first = history.seconds.partition_point(|second| after.is_some_and(|after| second.at <= after));
        history.seconds.range(first..).cloned().collect()
    }
}

/// A request or connection under way on an arm. Dropped without a judgement it says nothing about the arm: its client
/// has gone.
#[derive(Debug)]
pub(crate) struct Exchange {
    meter: Handle<Meter>,
    arm: Arm,
    /// The meter's when it began.
    epoch: u64,
    judgement: Judgement,
    bytes_in: u64,
    bytes_out: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Judgement {
    None,
    /// To be counted with all the rest, at the end.
    AtEnd(Outcome, Option<u64>),
    Counted,
}

impl Exchange {
    /// An arm was decided: from here on the exchange must end one way or another.
    pub(crate) fn dispatch(meter: Handle<Meter>, arm: Arm) -> Self {
        let mut shard = meter.shards.local().lock();
        shard.arms[arm as usize].dispatched += 1;
        shard.open[arm as usize] += 1;
        drop(shard);
        let epoch = meter.epoch.load(Ordering::Relaxed);
        Self { meter, arm, epoch, judgement: Judgement::None, bytes_in: 0, bytes_out: 0 }
    }

    pub(crate) fn arm(&self) -> Arm {
        self.arm
    }

    /// Says how it ended, or, for a tunnel, how it began. Only the first word counts. `latency_us`: microseconds until
    /// the arm answered, if it did.
    pub(crate) fn judge(&mut self, outcome: Outcome, latency_us: Option<u64>) {
        if self.judgement == Judgement::None {
            self.judgement = Judgement::Counted;
            let mut shard = self.meter.shards.local().lock();
            self.tally(&mut shard).record(outcome, latency_us);
        }
    }

    /// As [`Self::judge`], of what ends now: counted together with the end.
    pub(crate) fn judge_at_end(&mut self, outcome: Outcome, latency_us: Option<u64>) {
        if self.judgement == Judgement::None {
            self.judgement = Judgement::AtEnd(outcome, latency_us);
        }
    }

    /// Green could not be reached and blue serves instead: green's failure, and from now on blue's exchange.
    pub(crate) fn fall_back(&mut self) {
        self.tally(&mut self.meter.shards.local().lock()).fallbacks += 1;
        self.judge(Outcome::Unreachable, None);
        *self = Self::dispatch(self.meter.clone(), Arm::Blue);
    }

    fn tally<'a>(&self, shard: &'a mut Shard) -> &'a mut Tally {
        let is_evidence = self.epoch == self.meter.epoch.load(Ordering::Relaxed);
        let arms = if is_evidence { &mut shard.arms } else { &mut shard.forgotten };
        &mut arms[self.arm as usize]
    }

    /// Counted at the end.
    pub(crate) fn add_bytes(&mut self, bytes_in: u64, bytes_out: u64) {
        self.bytes_in += bytes_in;
        self.bytes_out += bytes_out;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let mut shard = self.meter.shards.local().lock();
        let shard = &mut *shard;
        shard.open[self.arm as usize] -= 1;
        let tally = self.tally(shard);
        match self.judgement {
            Judgement::None => tally.record(Outcome::ClientGone, None),
            Judgement::AtEnd(outcome, latency_us) => tally.record(outcome, latency_us),
            Judgement::Counted => {}
        }
        tally.bytes_in += self.bytes_in;
        tally.bytes_out += self.bytes_out;
    }
}

/// What was turned away before it could be told which route it was for, by reason.
#[derive(Debug)]
pub(crate) struct Rejections(PerWorker<Mutex<BTreeMap<&'static str, u64>>>);

impl Rejections {
    pub(crate) fn new(workers: usize) -> Self {
        Self(PerWorker::new(workers))
    }

    pub(crate) fn count(&self, reason: &'static str) {
        *self.0.local().lock().entry(reason).or_default() += 1;
    }

    pub(crate) fn totals(&self) -> BTreeMap<&'static str, u64> {
        let mut totals = BTreeMap::new();
        for shard in self.0.iter() {
            for (reason, count) in shard.lock().iter() {
                *totals.entry(*reason).or_default() += count;
            }
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dispatch(meter: &Shared<Meter>, arm: Arm) -> Exchange {
        Exchange::dispatch(meter.handle(), arm)
    }

    #[test]
    fn every_exchange_is_counted_once_however_it_ends() {
        let meter = Meter::new(2);
        let mut answered = dispatch(&meter, Arm::Green);
        answered.judge(Outcome::Ok, Some(1_500));
        answered.judge(Outcome::Broken, None);
        let abandoned = dispatch(&meter, Arm::Green);
        assert_eq!(meter.observe().green.open, 2);
        drop((answered, abandoned));
        meter.gather(1);
        let seen = meter.observe();
        assert_eq!(seen.green.open, 0);
        assert_eq!(seen.green.total.dispatched, 2);
        assert_eq!(seen.green.total.count(Outcome::Ok), 1);
        assert_eq!(seen.green.total.count(Outcome::Broken), 0);
        assert_eq!(seen.green.total.count(Outcome::ClientGone), 1);
        assert_eq!(seen.green.total.error_rate(), Some(0.0));
    }

    #[test]
    fn a_fallback_is_greens_failure_and_blues_exchange() {
        let meter = Meter::new(1);
        let mut exchange = dispatch(&meter, Arm::Green);
        exchange.fall_back();
        assert_eq!(exchange.arm(), Arm::Blue);
        exchange.judge(Outcome::Ok, Some(10));
        drop(exchange);
        meter.gather(1);
        let seen = meter.observe();
        assert_eq!((seen.green.total.failures(), seen.green.total.fallbacks), (1, 1));
        assert_eq!((seen.blue.total.dispatched, seen.blue.total.failures()), (1, 0));
        assert_eq!((seen.green.open, seen.blue.open), (0, 0));
    }

    #[test]
    fn what_began_before_a_reset_is_no_evidence_after_it() {
        let meter = Meter::new(1);
        let mut old = dispatch(&meter, Arm::Green);
        meter.gather(0);
        meter.forget();
        old.judge(Outcome::Timeout, None);
        dispatch(&meter, Arm::Green).judge(Outcome::Ok, Some(1));
        drop(old);
        meter.gather(1);
        let seen = meter.observe();
        let second = &seen.seconds[1].green;
        assert_eq!((second.failures(), second.count(Outcome::Ok)), (0, 1));
        assert_eq!((seen.green.total.failures(), seen.green.total.dispatched), (1, 2));
        assert_eq!(seen.green.open, 0);
    }

    #[test]
    fn seconds_are_kept_apart_and_the_oldest_leave() {
        let meter = Meter::new(1);
        for at in 0..(SECONDS_KEPT as u64 + 5) {
            dispatch(&meter, Arm::Blue).judge(Outcome::Ok, Some(at + 1));
            meter.gather(at);
        }
        let seen = meter.observe();
        assert_eq!(seen.seconds.len(), SECONDS_KEPT);
        assert_eq!(seen.seconds[0].at, 5);
        assert!(seen.seconds.iter().all(|second| second.blue.dispatched == 1 && second.green.dispatched == 0));
        assert_eq!(seen.blue.total.dispatched, SECONDS_KEPT as u64 + 5);
    }
}
