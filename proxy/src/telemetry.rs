//! Stage 7: counts what became of every request and connection, each worker for itself, and gathers it once a second.
//!
//! A worker takes only its own lock, which nobody else wants but the gathering once a second.

mod fault;
mod waiting;

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use admin_api::{ArmObservation, Observation, Outcome, SECONDS_KEPT, Second, Tally};
use config::Arm;
use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio::time::{Duration, Instant};

pub(crate) use fault::Fault;

use crate::{
    split::Decided,
    worker::{self, Handle, PerWorker, Shared},
};
use waiting::Waiting;

/// The counts of one route. Survives reloads of the configuration as long as the route keeps its name.
#[derive(Debug)]
pub(crate) struct Meter {
    shards: PerWorker<Mutex<Shard>>,
    history: Mutex<History>,
    /// Grows when evidence is dropped. Written once in a blue moon, so reading it costs nothing.
    epoch: AtomicU64,
    /// What takes longer is slow, microseconds. Seldom written, too.
    slow_us: AtomicU64,
}

/// Whose an exchange is. Each is counted in one part of its arm alone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Slice {
    /// Without the placebo's and the unsplit.
    Blue,
    /// Without the forced.
    Green,
    Placebo,
    /// Blue's, and not because of the split.
    Unsplit,
    /// Green's, and not because of the split.
    Forced,
}

impl Slice {
    fn of(decided: &Decided) -> Self {
        match decided.arm {
            Arm::Green if !decided.by_split => Self::Forced,
            Arm::Green => Self::Green,
            Arm::Blue if !decided.by_split => Self::Unsplit,
            Arm::Blue if decided.placebo => Self::Placebo,
            Arm::Blue => Self::Blue,
        }
    }

    fn arm(self) -> Arm {
        match self {
            Self::Blue | Self::Placebo | Self::Unsplit => Arm::Blue,
            Self::Green | Self::Forced => Arm::Green,
        }
    }
}

/// One `T` for each [`Slice`].
type Slices<T> = [T; 5];

#[derive(Debug, Default)]
struct Shard {
    slices: Slices<Tally>,
    /// The last failure of each.
    faults: Slices<Option<(Outcome, Fault)>>,
    waiting: Waiting,
    /// Endings of what began in an earlier epoch: for the totals alone.
    forgotten: [Tally; 2],
    open: [u64; 2],
    keyless: u64,
    rejected: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Default)]
struct History {
    total: [Tally; 2],
    keyless: u64,
    rejected: BTreeMap<&'static str, u64>,
    seconds: VecDeque<Arc<Second>>,
    undue: Undue,
    /// What the shards' tallies are exchanged for, so that their histograms keep their memory.
    spare: Slices<Tally>,
}

/// The seconds whose answers are not due yet.
#[derive(Debug, Default)]
struct Undue {
    /// The number of the oldest, counted from the meter's first.
    first: u32,
    /// When each ended, and what was dispatched in it.
    seconds: VecDeque<(Instant, Slices<u64>)>,
    /// As of the last second.
    epoch: u64,
}

/// Seconds whose answers are due, and whether they say something.
struct Due {
    seconds: Range<u32>,
    is_evidence: bool,
}

/// The end of a second.
pub(crate) struct Tick {
    /// Seconds since the start, growing.
    pub(crate) at: u64,
    pub(crate) now: Instant,
    pub(crate) utc: OffsetDateTime,
}

/// How much younger than it should be a second may be whose answers are due: seconds do not end on time to the millisecond.
const EARLY: Duration = Duration::from_millis(500);

impl Meter {
    pub(crate) fn new(workers: usize) -> Shared<Self> {
        let meter = Self {
            shards: PerWorker::new(workers),
            history: Mutex::default(),
            epoch: AtomicU64::new(0),
            slow_us: AtomicU64::new(u64::MAX),
        };
        Shared::new(meter, workers)
    }

    /// What is under way is evidence no more, however it ends.
    pub(crate) fn forget(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }

    /// From now on counts the keys that are answered later than this; `None`: none are. Microseconds.
    pub(crate) fn watch_slower_than(&self, us: Option<u64>) {
        self.slow_us.store(us.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn keyless(&self) {
        self.shards.local().lock().keyless += 1;
    }

    /// Refused before an arm was chosen.
    pub(crate) fn reject(&self, reason: &'static str) {
        *self.shards.local().lock().rejected.entry(reason).or_default() += 1;
    }

    /// Closes a second: moves what the workers counted into history. `answer_within`: when an answer is due.
    pub(crate) fn gather(&self, tick: &Tick, answer_within: Duration) {
        let mut history = self.history.lock();
        let history = &mut *history;
        let due = history.undue.due(self.epoch.load(Ordering::Relaxed), tick.now, answer_within);
        let mut slices = Slices::<Tally>::default();
        let mut faults = Slices::default();
        for shard in self.shards.iter() {
            let mut shard = shard.lock();
            mem::swap(&mut shard.slices, &mut history.spare);
            shard.waiting.next_second(due.seconds.clone(), |slice, key| {
                if due.is_evidence {
                    let tally = &mut slices[slice as usize];
                    tally.overdue += 1;
                    tally.overdue_keys.count(key);
                }
            });
            for (last, fault) in faults.iter_mut().zip(&mut shard.faults) {
                *last = fault.take().or(*last);
            }
            for (total, forgotten) in history.total.iter_mut().zip(&mut shard.forgotten) {
                total.add_counts(forgotten);
                forgotten.clear();
            }
            history.keyless += mem::take(&mut shard.keyless);
            for (reason, count) in mem::take(&mut shard.rejected) {
                *history.rejected.entry(reason).or_default() += count;
            }
            drop(shard);
            for (gathered, counted) in slices.iter_mut().zip(&mut history.spare) {
                gathered.add(counted);
                counted.clear();
            }
        }
        for (tally, last) in slices.iter_mut().zip(faults) {
            tally.sample = last.map(|(outcome, fault): (_, Fault)| fault.sample(outcome, tick.utc));
        }

        let dispatched = slices.each_ref().map(|tally| tally.dispatched);
        for (tally, due) in slices.iter_mut().zip(history.undue.turn(due, tick.now, dispatched)) {
            tally.due = due;
        }
        let [mut blue, mut green, placebo, unsplit, forced] = slices;
        blue.add(&placebo);
        blue.add(&unsplit);
        // Green's keys and its sample are for the guard, which leaves these out.
        green.add_counts(&forced);
        let forced = (!forced.is_idle()).then(|| Box::new(forced));
        for (total, gathered) in history.total.iter_mut().zip([&blue, &green]) {
            total.add_counts(gathered);
        }
        if history.seconds.len() == SECONDS_KEPT {
            history.seconds.pop_front();
        }
        history.seconds.push_back(Arc::new(Second { at: tick.at, blue, green, placebo, unsplit, forced }));
    }

    /// Everything but endpoints and the mirror, up to the last gathered second; what is open is as of now.
    pub(crate) fn observe(&self) -> Observation {
        let open = |arm: Arm| self.shards.iter().map(|shard| shard.lock().open[arm as usize]).sum();
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

    /// Of the seconds that are kept those above `after`, oldest first.
    pub(crate) fn seconds(&self, after: Option<u64>) -> Vec<Arc<Second>> {
        let history = self.history.lock();
        let first = history.seconds.partition_point(|second| after.is_some_and(|after| second.at <= after));
        history.seconds.range(first..).cloned().collect()
    }
}

impl Undue {
    /// What is due at the end of a second. `epoch`: the meter's. `now`: when the second ends.
    fn due(&mut self, epoch: u64, now: Instant, answer_within: Duration) -> Due {
        let is_evidence = mem::replace(&mut self.epoch, epoch) == epoch;
        let ripe = |(ended, _): &&(Instant, _)| now.duration_since(*ended) + EARLY >= answer_within;
        let seconds = match is_evidence {
            true => self.seconds.iter().take_while(ripe).count(),
            // What was dispatched before a reset, or in its second, is no evidence: all of it is done with.
            false => self.seconds.len() + 1,
        };
        Due { seconds: self.first..self.first + seconds as u32, is_evidence }
    }

    /// Takes the second that has ended in place of those that are due. Returns what was dispatched in those.
    fn turn(&mut self, due: Due, ended: Instant, dispatched: Slices<u64>) -> Slices<u64> {
        self.first = due.seconds.end;
        self.seconds.push_back((ended, dispatched));
        let mut sums = Slices::default();
        for (_, dispatched) in self.seconds.drain(..due.seconds.len()).filter(|_| due.is_evidence) {
            sums.iter_mut().zip(dispatched).for_each(|(sum, count)| *sum += count);
        }
        sums
    }
}

/// A request or connection under way on an arm. Dropped without a judgement it says nothing about the arm: its client
/// has gone.
#[derive(Debug)]
pub(crate) struct Exchange {
    meter: Handle<Meter>,
    case: Case,
    bytes_in: u64,
    bytes_out: u64,
}

/// What an exchange is counted as.
#[derive(Debug)]
struct Case {
    key: u64,
    /// The meter's when it began.
    epoch: u64,
    /// Whose shard counts it.
    worker: u16,
    /// Its place among those who wait for an answer, as long as it does.
    waiting: Option<u32>,
    slice: Slice,
    judged: bool,
    ended: bool,
}

struct Ending {
    outcome: Outcome,
    latency_us: Option<u64>,
    fault: Option<Fault>,
}

impl Exchange {
    /// An arm was decided: from here on the exchange must end one way or another.
    pub(crate) fn dispatch(meter: Handle<Meter>, decided: &Decided) -> Self {
        Self::begin(meter, Slice::of(decided), decided.key.0)
    }

    fn begin(meter: Handle<Meter>, slice: Slice, key: u64) -> Self {
        let worker = worker::id();
        let mut shard = meter.shards.of(worker).lock();
        shard.slices[slice as usize].dispatched += 1;
        shard.open[slice.arm() as usize] += 1;
        let waiting = Some(shard.waiting.begin(key, slice));
        drop(shard);
        let epoch = meter.epoch.load(Ordering::Relaxed);
        let case = Case { key, epoch, worker: worker as u16, waiting, slice, judged: false, ended: false };
        Self { meter, case, bytes_in: 0, bytes_out: 0 }
    }

    pub(crate) fn arm(&self) -> Arm {
        self.case.slice.arm()
    }

    /// The arm's answer has begun, or none will come for a reason that is not the arm's. What is judged need not say so.
    pub(crate) fn answered(&mut self) {
        if let Some(place) = self.case.waiting.take() {
            self.case.shard(&self.meter).lock().waiting.answered(place);
        }
    }

    /// Says how it ended, or, for a tunnel, how it began. Only the first word counts. `latency_us`: microseconds until
    /// the arm answered, if it did. `fault`: of failures, what they were.
    pub(crate) fn judge(&mut self, outcome: Outcome, latency_us: Option<u64>, fault: Option<Fault>) {
        if !self.case.judged {
            let mut shard = self.case.shard(&self.meter).lock();
            self.case.record(&self.meter, &mut shard, Ending { outcome, latency_us, fault });
        }
    }

    /// As [`Self::judge`], of what ends now.
    pub(crate) fn end(mut self, outcome: Outcome, latency_us: Option<u64>, fault: Option<Fault>) {
        self.close(Ending { outcome, latency_us, fault });
    }

    /// Green could not be reached and blue serves instead: green's failure, and from now on blue's exchange. Never the
    /// placebo's, which has none of green's keys.
    pub(crate) fn fall_back(&mut self, fault: Fault) {
        let Self { meter, case, .. } = self;
        case.tally(meter, &mut case.shard(meter).lock()).fallbacks += 1;
        let key = case.key;
        let slice = if case.slice == Slice::Forced { Slice::Unsplit } else { Slice::Blue };
        self.judge(Outcome::Unreachable, None, Some(fault));
        *self = Self::begin(self.meter.clone(), slice, key);
    }

    /// The arm gave up at once what it had taken on. What was judged cannot be taken back, and to put that off until the arm
    /// has proved itself would show failures before the successes they are to be held against.
    pub(crate) fn cut_off(&self, fault: Fault) {
        let Self { meter, case, .. } = self;
        let mut shard = case.shard(meter).lock();
        let tally = case.tally(meter, &mut shard);
        tally.cut_off += 1;
        tally.cut_off_keys.count(case.key);
        if case.is_evidence(meter) {
            shard.faults[case.slice as usize] = Some((Outcome::Broken, fault));
        }
    }

    /// Counted at the end.
    pub(crate) fn add_bytes(&mut self, bytes_in: u64, bytes_out: u64) {
        self.bytes_in += bytes_in;
        self.bytes_out += bytes_out;
    }

    fn close(&mut self, ending: Ending) {
        let Self { meter, case, bytes_in, bytes_out } = self;
        let mut shard = case.shard(meter).lock();
        let shard = &mut *shard;
        shard.open[case.slice.arm() as usize] -= 1;
        if !case.judged {
            case.record(meter, shard, ending);
        }
        let tally = case.tally(meter, shard);
        tally.bytes_in += *bytes_in;
        tally.bytes_out += *bytes_out;
        case.ended = true;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.case.ended {
            self.close(Ending { outcome: Outcome::ClientGone, latency_us: None, fault: None });
        }
    }
}

impl Case {
    fn shard<'a>(&self, meter: &'a Meter) -> &'a Mutex<Shard> {
        meter.shards.of(self.worker.into())
    }

    fn record(&mut self, meter: &Meter, shard: &mut Shard, ending: Ending) {
        let Ending { outcome, latency_us, fault } = ending;
        self.judged = true;
        match self.waiting.take() {
            Some(place) if outcome == Outcome::ClientGone => shard.waiting.left(place),
            Some(place) => shard.waiting.answered(place),
            None => {}
        }
        let tally = self.tally(meter, shard);
        tally.record(outcome, latency_us);
        if outcome == Outcome::Ok && latency_us.is_some_and(|us| us > meter.slow_us.load(Ordering::Relaxed)) {
            tally.slow_keys.count(self.key);
        }
        if outcome.is_failure() {
            // One client cannot make an arm unreachable.
            if outcome != Outcome::Unreachable {
                tally.failed_keys.count(self.key);
            }
            if let Some(fault) = fault.filter(|_| self.is_evidence(meter)) {
                shard.faults[self.slice as usize] = Some((outcome, fault));
            }
        }
    }

    fn is_evidence(&self, meter: &Meter) -> bool {
        self.epoch == meter.epoch.load(Ordering::Relaxed)
    }

    fn tally<'a>(&self, meter: &Meter, shard: &'a mut Shard) -> &'a mut Tally {
        if self.is_evidence(meter) {
            &mut shard.slices[self.slice as usize]
        } else {
            &mut shard.forgotten[self.slice.arm() as usize]
        }
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
mod over_sockets;
#[cfg(test)]
mod tests;
