//! What the control plane needs of a data plane, and the words they exchange. No sockets on this side.

use std::{collections::BTreeMap, future, sync::Arc};

use config::{Arm, Config, Split};
use futures::future::BoxFuture;
use hdrhistogram::Histogram;
use serde::Serialize;
use utoipa::ToSchema;

/// Split state of one route, as recorded and as live.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RouteState {
    pub split: Split,
    /// Counts the changes of this route's split, latch or plan, from 1. 0: never recorded.
    pub revision: u64,
    /// Tripped or rolled back by hand: green may not rise until a reset.
    pub latched: bool,
}

/// Carries the traffic. Implemented by the `proxy` crate, and by a fake in this crate's tests.
pub trait DataPlane: Send + Sync + 'static {
    /// Makes a route's state live. When it returns, every request and connection that starts from now on follows it;
    /// those under way keep what they started with. A route the plane does not have is ignored.
    fn apply(&self, route: &str, state: RouteState);

    /// Resolves when every state that was applied so far is followed everywhere: also by a process that finishes what it
    /// has after this one took over from it. It takes milliseconds, and is bounded where such a process does not answer.
    fn followed(&self) -> BoxFuture<'static, ()> {
        Box::pin(future::ready(()))
    }

    /// Forgets what is under way on a route, as evidence: what began before this call is counted in totals when it ends,
    /// and in no [`Second`]. A route the plane does not have is ignored.
    fn forget(&self, route: &str);

    /// From now on counts the keys that are answered later than this; `None`: none are. Microseconds. A route the plane does
    /// not have is ignored.
    fn watch_slower_than(&self, route: &str, us: Option<u64>);

    /// Replaces the routes by those of `config`. `states` has an entry for every one of them. Evidence, health and
    /// counts of routes that keep their name are kept. Errors: nothing has changed.
    fn install(&self, config: &Arc<Config>, states: &BTreeMap<String, RouteState>) -> Result<(), InstallError>;

    /// What a route has seen so far. `None`: no such route.
    fn observe(&self, route: &str) -> Option<Observation>;

    /// Of the seconds that are remembered those above `after`, oldest first; all, if it is `None`.
    fn seconds(&self, route: &str, after: Option<u64>) -> Vec<Arc<Second>>;

    /// Are all listeners serving, and not draining?
    fn ready(&self) -> bool;

    /// What is counted and belongs to no route.
    fn process_metrics(&self) -> Vec<ProcessMetric>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessMetric {
    pub kind: MetricKind,
    /// The whole of it; a counter's ends in `_total`.
    pub name: &'static str,
    pub help: &'static str,
    /// For example `("reason", "bare_lf")`.
    pub label: Option<(&'static str, String)>,
    pub value: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
}

/// Why a configuration could not be made live: place, problem, cure.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InstallError(pub String);

/// A route's counts and latencies.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    pub blue: ArmObservation,
    pub green: ArmObservation,
    /// Requests or connections whose key was missing, since the start.
    pub keyless: u64,
    /// Refused before an arm was chosen, by reason, since the start.
    pub rejected: BTreeMap<&'static str, u64>,
    pub mirror: Option<MirrorObservation>,
    /// One entry for each of the last whole seconds, oldest first; at most [`SECONDS_KEPT`]. Seconds in which nothing
    /// happened are there too, with empty tallies.
    pub seconds: Vec<Arc<Second>>,
}

impl Observation {
    pub fn arm(&self, arm: Arm) -> &ArmObservation {
        match arm {
            Arm::Blue => &self.blue,
            Arm::Green => &self.green,
        }
    }
}

/// How many [`Second`]s a plane remembers. Three tallies of each are 1.8 MB of a route that is idle.
pub const SECONDS_KEPT: usize = 300;

#[derive(Clone, Debug, Default)]
pub struct ArmObservation {
    /// Since the start of the process.
    pub total: Tally,
    /// Client connections (TCP, MQTT) or requests (HTTP) under way.
    pub open: u64,
    pub endpoints: Vec<EndpointObservation>,
}

#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct EndpointObservation {
    pub address: String,
    pub healthy: bool,
    /// Checks that have failed in a row; 0 without checks.
    pub failed_checks: u32,
    pub in_flight: u64,
}

/// One second of one route.
#[derive(Clone, Debug, Default)]
pub struct Second {
    /// Seconds since the plane started; grows by one from entry to entry.
    pub at: u64,
    /// With the placebo slice and the unsplit.
    pub blue: Tally,
    pub green: Tally,
    /// Of blue: a slice of its keys, by a salt of its own, as large as green as far as blue reaches.
    pub placebo: Tally,
    /// Of blue, and not of the placebo: callers that were sent there whatever the split, since they have no key or asked for
    /// it. They are another sort than those whom the split divides, so that green is not compared with them.
    pub unsplit: Tally,
    /// Of green: callers that asked for it, who say as little of those whom the split sends there. `None`: there were none.
    pub forced: Option<Box<Tally>>,
}

impl Second {
    pub fn arm(&self, arm: Arm) -> &Tally {
        match arm {
            Arm::Blue => &self.blue,
            Arm::Green => &self.green,
        }
    }

    /// Without the callers whom the split did not send where they went.
    pub fn divided(self: Arc<Self>) -> Arc<Self> {
        if self.unsplit.is_idle() && self.forced.is_none() {
            return self;
        }
        let (mut blue, mut green) = (self.blue.clone(), self.green.clone());
        blue.take_away(&self.unsplit);
        if let Some(forced) = &self.forced {
            green.take_away(forced);
        }
        Arc::new(Self { at: self.at, blue, green, placebo: self.placebo.clone(), ..Self::default() })
    }
}

/// How something that was sent to an arm ended, seen from the arm: did it keep its promise?
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Answered below 400; CONNACK accepted; connected (TCP).
    Ok,
    /// Answered, and refused for a reason that lies with the client: HTTP status 400 to 499, a CONNACK such as bad
    /// credentials. No failure of the arm, but counted apart: a rewrite that turns everybody away shows here.
    Declined,
    /// No healthy endpoint, or connecting failed; nothing was sent. With `fallback = "blue"` the client was still served.
    Unreachable,
    /// HTTP status 500 to 599 by the arm, a gRPC status that is the server's fault, a CONNACK such as "server
    /// unavailable".
    Refused,
    /// The connection broke, or made no sense, before the answer was whole.
    Broken,
    /// No answer in time.
    Timeout,
    /// The client left first, or was at fault: says nothing about the arm.
    ClientGone,
}

impl Outcome {
    pub const ALL: [Self; 7] =
        [Self::Ok, Self::Declined, Self::Unreachable, Self::Refused, Self::Broken, Self::Timeout, Self::ClientGone];

    /// `ok`, `unreachable`, …: the value of metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Declined => "declined",
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Broken => "broken",
            Self::Timeout => "timeout",
            Self::ClientGone => "client_gone",
        }
    }

    /// Counts against the arm.
    pub fn is_failure(self) -> bool {
        !matches!(self, Self::Ok | Self::Declined | Self::ClientGone)
    }
}

/// Counts and latencies of one arm over some time.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Requests or connections whose arm was decided.
    pub dispatched: u64,
    counts: [u64; Outcome::ALL.len()],
    /// Of green's failures: those that blue then served.
    pub fallbacks: u64,
    /// Of connections that were established, tunnels and MQTT sessions that were accepted, all of them `Ok`: those that the arm
    /// itself ended at once. Counted when they end.
    pub cut_off: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Microseconds from the request to the end of the response's header (HTTP), CONNECT to CONNACK (MQTT), to an
    /// established upstream connection (TCP); of `Ok` alone. To fail or to turn away may take no time at all, or very long: an
    /// arm that does nothing else would soon be the measure of what is quick.
    pub latency_us: Histogram<u64>,
    /// Whose failures these were, of those that a single client may be to blame for: all but `Unreachable`.
    pub failed_keys: Keys,
    /// Who was answered later than [`DataPlane::watch_slower_than`] says.
    pub slow_keys: Keys,
    /// Whom the arm cut off.
    pub cut_off_keys: Keys,
    /// Of what was dispatched the guard's `answer_within` before this second: how many, and how many of them had
    /// no answer when this second ended.
    pub due: u64,
    pub overdue: u64,
    /// Whose those were.
    pub overdue_keys: Keys,
    /// The last failure, in words.
    pub sample: Option<Sample>,
}

/// Latencies above this are recorded as this: one hour.
pub const LATENCY_MAX_US: u64 = 3_600_000_000;

impl Default for Tally {
    fn default() -> Self {
        Self {
            dispatched: 0,
            counts: [0; Outcome::ALL.len()],
            fallbacks: 0,
            cut_off: 0,
            bytes_in: 0,
            bytes_out: 0,
            // Two significant digits are within 1 %; auto-resizing keeps an idle second at 256 counts, 2 KiB.
            latency_us: Histogram::new(2).expect("two digits are valid"),
            failed_keys: Keys::default(),
            slow_keys: Keys::default(),
            cut_off_keys: Keys::default(),
            due: 0,
            overdue: 0,
            overdue_keys: Keys::default(),
            sample: None,
        }
    }
}

impl Tally {
    /// Counts one ending. `latency_us`: microseconds, where the arm answered.
    pub fn record(&mut self, outcome: Outcome, latency_us: Option<u64>) {
        self.counts[outcome as usize] += 1;
        if let (Outcome::Ok, Some(us)) = (outcome, latency_us) {
            // Auto-resizing histograms only fail where memory does not reach; the cap rules that out.
            let _ = self.latency_us.record(us.min(LATENCY_MAX_US));
        }
    }

    /// Counts many endings without latencies.
    pub fn record_times(&mut self, outcome: Outcome, times: u64) {
        self.counts[outcome as usize] += times;
    }

    pub fn count(&self, outcome: Outcome) -> u64 {
        self.counts[outcome as usize]
    }

    /// Endings that say something about the arm.
    pub fn judged(&self) -> u64 {
        self.count(Outcome::Ok) + self.count(Outcome::Declined) + self.failures()
    }

    pub fn failures(&self) -> u64 {
        Outcome::ALL.into_iter().filter(|o| o.is_failure()).map(|o| self.count(o)).sum()
    }

    /// Failed share of the judged ones, 0 to 1; `None` when nothing was judged.
    pub fn error_rate(&self) -> Option<f64> {
        let judged = self.judged();
        (judged > 0).then(|| self.failures() as f64 / judged as f64)
    }

    /// All of another one.
    pub fn add(&mut self, other: &Self) {
        self.add_counts(other);
        self.failed_keys.add(&other.failed_keys);
        self.slow_keys.add(&other.slow_keys);
        self.cut_off_keys.add(&other.cut_off_keys);
        self.overdue_keys.add(&other.overdue_keys);
        if other.sample.is_some() {
            self.sample.clone_from(&other.sample);
        }
    }

    /// Counts and latencies of another one, without its keys and its sample.
    pub fn add_counts(&mut self, other: &Self) {
        self.dispatched += other.dispatched;
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts) {
            *mine += theirs;
        }
        self.fallbacks += other.fallbacks;
        self.cut_off += other.cut_off;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.latency_us.add(&other.latency_us).expect("both resize");
        self.due += other.due;
        self.overdue += other.overdue;
    }

    /// Undoes [`Self::add_counts`] of what is part of this one.
    pub fn take_away(&mut self, part: &Self) {
        self.dispatched = self.dispatched.saturating_sub(part.dispatched);
        for (mine, theirs) in self.counts.iter_mut().zip(part.counts) {
            *mine = mine.saturating_sub(theirs);
        }
        self.fallbacks = self.fallbacks.saturating_sub(part.fallbacks);
        self.cut_off = self.cut_off.saturating_sub(part.cut_off);
        self.bytes_in = self.bytes_in.saturating_sub(part.bytes_in);
        self.bytes_out = self.bytes_out.saturating_sub(part.bytes_out);
        // Fails only where it is no part: then nothing is taken away.
        let _ = self.latency_us.subtract(&part.latency_us);
        self.due = self.due.saturating_sub(part.due);
        self.overdue = self.overdue.saturating_sub(part.overdue);
    }

    /// Nothing began, ended or was due.
    pub fn is_idle(&self) -> bool {
        self.dispatched + self.due + self.cut_off == 0 && self.counts.iter().all(|count| *count == 0)
    }

    /// Back to zero, keeping the histogram's memory.
    pub fn clear(&mut self) {
        self.dispatched = 0;
        self.counts = [0; Outcome::ALL.len()];
        self.fallbacks = 0;
        self.cut_off = 0;
        self.bytes_in = 0;
        self.bytes_out = 0;
        self.latency_us.reset();
        self.failed_keys.clear();
        self.slow_keys.clear();
        self.cut_off_keys.clear();
        (self.due, self.overdue) = (0, 0);
        self.overdue_keys.clear();
        self.sample = None;
    }

    /// Latency at a quantile (0 to 1) in microseconds; `None` without samples.
    pub fn quantile_us(&self, quantile: f64) -> Option<u64> {
        (!self.latency_us.is_empty()).then(|| self.latency_us.value_at_quantile(quantile))
    }
}

/// How often each of some keys was seen. Keys are told apart by a hash of 64 bits; nothing leads back to them. Of more
/// than [`Keys::MOST`] the rarest are taken for others: a common one is counted in full, and perhaps for more (the algorithm
/// Space-Saving, Metwally et al. 2005).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Keys(Vec<(u64, u64)>);

impl Keys {
    /// Told apart.
    pub const MOST: usize = 64;

    pub fn count(&mut self, key: u64) {
        self.count_times(key, 1);
    }

    fn count_times(&mut self, key: u64, times: u64) {
        match self.0.iter().position(|(known, _)| *known == key) {
            Some(known) => self.0[known].1 += times,
            None if self.0.len() < Self::MOST => self.0.push((key, times)),
            None => {
                if let Some(rarest) = self.0.iter_mut().min_by_key(|(_, count)| *count) {
                    *rarest = (key, rarest.1 + times);
                }
            }
        }
    }

    pub fn add(&mut self, other: &Self) {
        other.0.iter().for_each(|(key, times)| self.count_times(*key, *times));
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// How many were counted, of all keys together.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// How many different ones there are at least.
    pub fn distinct(&self) -> usize {
        self.0.len()
    }

    /// How often the `most` commonest ones were seen, together.
    pub fn of_the_commonest(&self, most: usize) -> u64 {
        let mut counts: Vec<u64> = self.0.iter().map(|(_, count)| *count).collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts.iter().take(most).sum()
    }
}

/// One failure, in words.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub struct Sample {
    /// RFC 3339.
    pub at: String,
    /// A name of [`Outcome`].
    #[schema(value_type = String, example = "refused")]
    pub outcome: &'static str,
    /// HTTP status, or CONNACK code.
    pub status: Option<u16>,
    /// `host:port` that it came from, if there was one.
    pub endpoint: Option<String>,
    /// What went wrong; never what a client or an arm wrote.
    pub message: String,
}

/// What became of the copies of a route.
#[derive(Clone, Debug, Default)]
pub struct MirrorObservation {
    /// Requests whose method may be copied.
    pub offered: u64,
    /// Of those: outside the sample.
    pub unsampled: u64,
    /// Not sent, by reason (`in_flight`, `queue`, …).
    pub dropped: BTreeMap<&'static str, u64>,
    /// Copies that are no pair, by reason: what became of the copy (`timeout`, `unreachable`, `broken`), or, where it
    /// was answered, `primary_failed`. `client_gone`: the client left before it was answered.
    pub failed: BTreeMap<&'static str, u64>,
    /// Both sides answered.
    pub paired: u64,
    pub status_class_equal: u64,
    pub status_class_differs: u64,
    pub body_equal: u64,
    pub body_differs: u64,
    /// A body was longer than is compared, or not whole.
    pub body_not_compared: u64,
    /// Status class or body differ.
    pub mismatched: u64,
    /// How copies and what they are copies of ended, by the arm that they were sent to, whichever was the primary;
    /// without those whose client left. The latencies are those of pairs.
    pub blue: Tally,
    pub green: Tally,
}

impl MirrorObservation {
    pub fn add(&mut self, other: &Self) {
        self.offered += other.offered;
        self.unsampled += other.unsampled;
        for (mine, theirs) in [(&mut self.dropped, &other.dropped), (&mut self.failed, &other.failed)] {
            for (reason, count) in theirs {
                *mine.entry(reason).or_default() += count;
            }
        }
        self.paired += other.paired;
        self.status_class_equal += other.status_class_equal;
        self.status_class_differs += other.status_class_differs;
        self.body_equal += other.body_equal;
        self.body_differs += other.body_differs;
        self.body_not_compared += other.body_not_compared;
        self.mismatched += other.mismatched;
        self.blue.add_counts(&other.blue);
        self.green.add_counts(&other.green);
    }

    /// What came after `before`, of the same route: pairs, mismatches and both arms.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let mut new = Self {
            paired: self.paired.saturating_sub(before.paired),
            mismatched: self.mismatched.saturating_sub(before.mismatched),
            blue: self.blue.clone(),
            green: self.green.clone(),
            ..Self::default()
        };
        new.blue.take_away(&before.blue);
        new.green.take_away(&before.green);
        new
    }
}
