//! What became of each request, counted where it was sent and gathered in one place.
//!
//! Each worker fills a [`Shard`] of its own, without any lock, and hands it over once a second; the gatherer adds them up
//! to the report and to what the progress shows.

use std::{
    collections::BTreeMap,
    mem,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use hdrhistogram::Histogram;
use parking_lot::RwLock;
use tokio::{sync::mpsc::UnboundedSender, time::Instant};

use super::Failure;
use crate::{
    ledger::{Id, Page, unix_micros},
    report::Account,
};

/// Labels told apart. When full, further ones are counted as the last one, `other`.
const LABELS: usize = 64;

/// Longest latency told apart, in microseconds: an hour.
const LONGEST: u64 = 3_600_000_000;

/// A histogram of microseconds to three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, 3).expect("the bounds are in order")
}

/// Adds a latency; what is longer than an hour counts as an hour.
pub(crate) fn record(histogram: &mut Histogram<u64>, latency: Duration) {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
    histogram.saturating_record(micros);
}

/// Who answered, as an index into [`Labels`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Arm(u8);

impl Arm {
    /// Nobody said.
    pub(crate) const UNKNOWN: Self = Self(0);
}

/// The labels seen in a run, shared by its workers; read once for each label and worker.
#[derive(Debug)]
pub(crate) struct Labels {
    names: RwLock<Vec<Arc<str>>>,
}

impl Default for Labels {
    fn default() -> Self {
        Self { names: RwLock::new(vec![Arc::from("-")]) }
    }
}

impl Labels {
    pub(crate) fn name(&self, arm: Arm) -> Arc<str> {
        Arc::clone(&self.names.read()[usize::from(arm.0)])
    }

    fn intern(&self, label: &str) -> Arm {
        let mut names = self.names.write();
        let find = |names: &[Arc<str>], label: &str| names.iter().position(|name| **name == *label);
        let nth = find(&names, label).unwrap_or_else(|| {
            let label = if names.len() < LABELS - 1 { label } else { "other" };
            find(&names, label).unwrap_or_else(|| {
                names.push(Arc::from(label));
                names.len() - 1
            })
        });
        Arm(nth as u8)
    }
}

/// The arm that answered each key last: a byte a key, shared by the workers.
#[derive(Debug)]
pub(crate) struct Placements(Vec<AtomicU8>);

impl Placements {
    pub(crate) fn new(keys: u64) -> Self {
        Self((0..keys).map(|_| AtomicU8::new(Arm::UNKNOWN.0)).collect())
    }

    /// Notes who answered `key`; true when it was someone else before.
    fn answered(&self, key: u64, arm: Arm) -> bool {
        let before = usize::try_from(key).ok().and_then(|key| self.0.get(key));
        let before = before.map_or(arm.0, |before| before.swap(arm.0, Ordering::Relaxed));
        before != arm.0 && before != Arm::UNKNOWN.0
    }

    /// Keys by the arm that answered them last.
    pub(crate) fn counts(&self) -> BTreeMap<Arm, u64> {
        let mut counts = BTreeMap::new();
        for arm in self.0.iter().map(|arm| Arm(arm.load(Ordering::Relaxed))).filter(|arm| *arm != Arm::UNKNOWN) {
            *counts.entry(arm).or_default() += 1;
        }
        counts
    }
}

/// What one worker saw in one second.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) worker: usize,
    /// Seconds since the start.
    pub(crate) at: u64,
    /// When the last answer came, since the start.
    pub(crate) last_answer: Duration,
    pub(crate) account: Account,
    /// Latencies by series and arm.
    pub(crate) series: BTreeMap<(&'static str, Arm), Histogram<u64>>,
    /// Answers and failures among them, and answers by status, for each arm.
    pub(crate) arms: BTreeMap<Arm, Answers>,
    pub(crate) lateness: Histogram<u64>,
}

/// What one arm answered.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    pub(crate) answered: u64,
    pub(crate) error_status: u64,
    pub(crate) statuses: Vec<(u16, u64)>,
}

impl Answers {
    pub(crate) fn add(&mut self, status: u16, count: u64) {
        match self.statuses.iter_mut().find(|(known, _)| *known == status) {
            Some((_, sum)) => *sum += count,
            None => self.statuses.push((status, count)),
        }
    }
}

impl Shard {
    fn new(worker: usize, at: u64) -> Self {
        Self {
            worker,
            at,
            last_answer: Duration::ZERO,
            account: Account::default(),
            series: BTreeMap::new(),
            arms: BTreeMap::new(),
            lateness: histogram(),
        }
    }
}

/// A request that was answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) arm: Arm,
    /// HTTP status; 0 where there is none.
    pub(crate) status: u16,
    /// Whether the answer says that the request failed.
    pub(crate) failure: bool,
    /// Further answers that nobody asked for.
    pub(crate) surplus: u32,
}

/// Counts for one worker.
#[derive(Debug)]
pub(crate) struct Recorder {
    /// None while connections are made that must be there before: what happens then belongs to the first second.
    start: Option<Instant>,
    /// The time it was last told, since the start.
    now: Duration,
    shard: Shard,
    shards: UnboundedSender<Shard>,
    labels: Arc<Labels>,
    /// The labels this worker has seen.
    known: Vec<(Box<[u8]>, Arm)>,
    placements: Arc<Placements>,
    page: Option<Page>,
    run: u32,
}

impl Recorder {
    pub(crate) fn new(
        worker: usize,
        run: u32,
        shards: UnboundedSender<Shard>,
        labels: Arc<Labels>,
        placements: Arc<Placements>,
        page: Option<Page>,
    ) -> Self {
        Self {
            start: None,
            now: Duration::ZERO,
            shard: Shard::new(worker, 0),
            shards,
            labels,
            known: Vec::new(),
            placements,
            page,
            run,
        }
    }

    /// The first second begins.
    pub(crate) fn start(&mut self, at: Instant) {
        self.start = Some(at);
    }

    /// The id of request `number`.
    pub(crate) fn id(&self, number: u32) -> Id {
        Id::new(self.run, number)
    }

    /// The arm of a label as it came in; control characters and what is no UTF-8 are replaced.
    pub(crate) fn arm(&mut self, label: &[u8]) -> Arm {
        if let Some((_, arm)) = self.known.iter().find(|(known, _)| **known == *label) {
            return *arm;
        }
        let name: String =
            String::from_utf8_lossy(label).chars().take(64).map(|c| if c.is_control() { '?' } else { c }).collect();
        let arm = if name.is_empty() { Arm::UNKNOWN } else { self.labels.intern(&name) };
        if self.known.len() < LABELS {
            self.known.push((label.into(), arm));
        }
        arm
    }

    /// A request leaves at `now`, so long after it was due that the generator is to blame for (`None`: no slot was free).
    pub(crate) fn sent(&mut self, now: Instant, late: Option<Duration>) {
        self.roll(now);
        self.shard.account.sent += 1;
        if let Some(late) = late {
            record(&mut self.shard.lateness, late);
        }
    }

    /// A latency that belongs to `series`.
    pub(crate) fn latency(&mut self, series: &'static str, arm: Arm, latency: Duration) {
        record(self.shard.series.entry((series, arm)).or_insert_with(histogram), latency);
    }

    /// A request was answered.
    pub(crate) fn answered(&mut self, key: u64, answer: Answer) {
        let account = &mut self.shard.account;
        account.answered += 1;
        self.shard.last_answer = self.now;
        account.answered_twice += u64::from(answer.surplus);
        account.error_status += u64::from(answer.failure);
        account.moved += u64::from(self.placements.answered(key, answer.arm));
        let arm = self.shard.arms.entry(answer.arm).or_default();
        arm.answered += 1;
        arm.error_status += u64::from(answer.failure);
        if answer.status > 0 {
            arm.add(answer.status, 1);
        }
    }

    /// A request will not be answered.
    pub(crate) fn failed(&mut self, failure: Failure) {
        *self.shard.account.failed.entry(failure.kind().to_owned()).or_default() += 1;
    }

    /// Counts that only MQTT has.
    pub(crate) fn account(&mut self) -> &mut Account {
        &mut self.shard.account
    }

    /// Writes an entry into the ledger, if one is kept: what left `since` ago has met its fate.
    pub(crate) fn entry(&mut self, number: u32, key: u64, outcome: &str, arm: Arm, since: Duration) {
        let id = self.id(number);
        if let Some(page) = &mut self.page {
            let done = unix_micros();
            let sent = done.saturating_sub(u64::try_from(since.as_micros()).unwrap_or(u64::MAX));
            page.load(id, &KeyName(key).to_string(), outcome, &self.labels.name(arm), sent, done);
        }
    }

    /// Hands over what belongs to seconds before that of `now`.
    pub(crate) fn roll(&mut self, now: Instant) {
        let Some(start) = self.start else { return };
        self.now = now.saturating_duration_since(start);
        let at = self.now.as_secs();
        if at > self.shard.at {
            self.hand_over(at);
        }
    }

    /// Hands over everything.
    pub(crate) fn finish(mut self) {
        let at = self.shard.at;
        self.hand_over(at);
    }

    fn hand_over(&mut self, next: u64) {
        let empty = Shard::new(self.shard.worker, next);
        let shard = mem::replace(&mut self.shard, empty);
        // Nobody gathers any more only when the run is given up.
        let _ = self.shards.send(shard);
    }
}

/// A key as it is sent: `user-7`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyName(pub(crate) u64);

impl std::fmt::Display for KeyName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "user-{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_bounded_and_keep_their_names() {
        let labels = Labels::default();
        let arms: Vec<_> = (0..200).map(|nth| labels.intern(&format!("l{nth}"))).collect();
        assert_eq!(&*labels.name(arms[0]), "l0");
        assert_eq!(labels.intern("l0"), arms[0]);
        assert_eq!(&*labels.name(arms[199]), "other");
        assert!(arms.iter().all(|arm| usize::from(arm.0) < LABELS));
    }

    #[test]
    fn a_key_that_changes_sides_is_noticed_once() {
        let placements = Placements::new(2);
        let moves = [1, 1, 2, 2, 1].map(|arm| placements.answered(1, Arm(arm)));
        assert_eq!(moves, [false, false, true, false, true]);
        assert!(!placements.answered(99, Arm(1)));
        assert_eq!(placements.counts(), BTreeMap::from([(Arm(1), 1)]));
    }
}
