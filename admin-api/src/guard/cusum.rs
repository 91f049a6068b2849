//! The one test behind every rule: is the share of bad events above what is allowed?
//!
//! A cumulative sum of log-likelihood ratios (Page 1954), against three alternatives at once, whose growth in a second is
//! capped. A capped ratio still has a mean of at most 1 when the share is as high as allowed, so the mean time between two
//! false alarms is at least e^[`TRIP`]/3 seconds (Lorden 1971): 12.6 days exactly on the limit, and far longer below it.
//! The cap is why no single second, however bad, can be a breach: it takes [`TRIP`]/[`CAP`] of them.
//!
//! One good second undoes many bad ones where there is much traffic. So a green that comes and goes (four seconds of
//! failures, one without) is seen by the same test of longer stretches, each of which is one step ([`STRETCHES`]). A little
//! more evidence is asked of those, so that all together keep to one false alarm in 12 days.

/// Evidence at which a sum is a breach, in nats.
pub(crate) const TRIP: f64 = 15.0;

/// The most that one second can add, in nats.
pub(super) const CAP: f64 = 3.0;

/// The alternatives, by how much higher their odds are than those of the allowed share: of 5 %, they are 10, 20 and 50 %.
const ODDS: [f64; 3] = [2.1, 4.75, 19.0];

/// Bad events, and the events they are part of.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Events {
    pub(super) bad: u64,
    pub(super) of: u64,
}

impl Events {
    pub(super) fn new(bad: u64, of: u64) -> Self {
        Self { bad: bad.min(of), of }
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self { bad: self.bad.saturating_add(other.bad), of: self.of.saturating_add(other.of) }
    }

    pub(super) fn less(self, other: Self) -> Self {
        Self { bad: self.bad.saturating_sub(other.bad), of: self.of.saturating_sub(other.of) }
    }

    pub(super) fn good(self) -> u64 {
        self.of - self.bad
    }

    pub(super) fn share(self) -> Option<f64> {
        (self.of > 0).then(|| self.bad as f64 / self.of as f64)
    }
}

/// How strongly the seconds so far speak for a share above the allowed one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Cusum {
    seconds: Sums,
    stretches: [Stretch; STRETCHES.len()],
}

/// Some seconds that are counted as one.
#[derive(Clone, Debug, PartialEq)]
struct Stretch {
    passed: u64,
    events: Events,
    sums: Sums,
}

impl Default for Stretch {
    fn default() -> Self {
        Self { passed: 0, events: Events::default(), sums: Sums { stricter: true, ..Sums::default() } }
    }
}

/// Seconds of a stretch.
const STRETCHES: [u64; 2] = [10, 60];

/// How much more evidence it takes of stretches, and how much more one can add.
const STRICTER: f64 = 16.0 / 15.0;

impl Cusum {
    /// Counts a second. `allowed`: the share of bad events that is, above 0 and below 1.
    pub(super) fn add(&mut self, events: Events, allowed: f64) {
        self.seconds.add(events, allowed);
        for (stretch, length) in self.stretches.iter_mut().zip(STRETCHES) {
            stretch.events = stretch.events.and(events);
            stretch.passed += 1;
            if stretch.passed == length {
                stretch.sums.add(stretch.events, allowed);
                (stretch.passed, stretch.events) = (0, Events::default());
            }
        }
    }

    /// As a share of what is a breach; never more than [`MOST_EVIDENCE`].
    pub(super) fn evidence(&self) -> f64 {
        self.stretches.iter().map(|stretch| stretch.sums.evidence()).fold(self.seconds.evidence(), f64::max)
    }

    pub(super) fn is_zero(&self) -> bool {
        self.seconds.is_zero() && self.stretches.iter().all(|stretch| stretch.sums.is_zero())
    }
}

/// One for each alternative, as shares of what is a breach.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sums {
    shares: [f64; ODDS.len()],
    /// Of a stretch, which takes more.
    stricter: bool,
}

/// What it takes at most to be a breach, whatever blue does. Beyond it a sum does not grow, or it would take hours after
/// an outage of both arms until it is small again.
pub(super) const MOST_EVIDENCE: f64 = 2.0;

impl Sums {
    fn add(&mut self, events: Events, allowed: f64) {
        let allowed = allowed.clamp(SMALLEST, 1.0 - SMALLEST);
        let (trip, cap) = if self.stricter { (TRIP * STRICTER, CAP * STRICTER) } else { (TRIP, CAP) };
        for (share, odds) in self.shares.iter_mut().zip(ODDS) {
            let (by_bad, by_good) = weights(allowed, odds);
            let ratio = events.bad as f64 * by_bad + events.good() as f64 * by_good;
            *share = (*share + ratio.min(cap) / trip).clamp(0.0, MOST_EVIDENCE);
        }
    }

    fn evidence(&self) -> f64 {
        self.shares.iter().copied().fold(0.0, f64::max)
    }

    fn is_zero(&self) -> bool {
        self.shares.iter().all(|share| *share == 0.0)
    }
}

/// The fewest seconds in which there can be evidence enough.
pub(crate) const FEWEST_SECONDS: u64 = (TRIP / CAP) as u64;

/// What a bad event adds and what a good one takes away, in nats, for each of the alternatives. `allowed`: as for
/// [`Cusum::add`].
pub(crate) fn alternatives(allowed: f64) -> [(f64, f64); ODDS.len()] {
    ODDS.map(|odds| weights(allowed, odds))
}

fn weights(allowed: f64, odds: f64) -> (f64, f64) {
    let share = raised(allowed, odds);
    ((share / allowed).ln(), ((1.0 - share) / (1.0 - allowed)).ln())
}

/// Is green worse than blue, at the same time? Both failing alike is not green's fault.
///
/// Of the bad events of a stretch of time each is green's with the chance that is green's share of all events, were both
/// arms alike; so the counts are held against that share with higher odds. And of the good events, with lower ones, which
/// tells more where nearly all is bad. Whatever share of both fails, and however that changes with time, the ratio of a
/// stretch has a mean of at most 1 (Hoeffding 1963, theorem 4), so that the mean time in an outage of both until green is
/// taken for worse is at least e^[`WORSE`]/6 seconds, 7.5 hours.
#[derive(Clone, Debug, Default)]
pub(super) struct Worse {
    bad: [f64; WORSE_ODDS.len()],
    good: [f64; WORSE_ODDS.len()],
    /// Until both arms have had outcomes.
    green: Events,
    blue: Events,
}

/// Evidence at which green is worse, in nats.
const WORSE: f64 = 12.0;

const WORSE_ODDS: [f64; 3] = [2.0, 4.0, 16.0];

impl Worse {
    pub(super) fn add(&mut self, green: Events, blue: Events) {
        (self.green, self.blue) = (self.green.and(green), self.blue.and(blue));
        if self.green.of == 0 || self.blue.of == 0 {
            return;
        }
        let (green, blue) = (std::mem::take(&mut self.green), std::mem::take(&mut self.blue));
        let share = green.of as f64 / (green.of as f64 + blue.of as f64);
        let test = |sums: &mut [f64], mine: u64, theirs: u64, odds: fn(f64) -> f64| {
            for (sum, more) in sums.iter_mut().zip(WORSE_ODDS) {
                let other = raised(share, odds(more));
                let ratio = mine as f64 * (other / share).ln() + theirs as f64 * ((1.0 - other) / (1.0 - share)).ln();
                *sum = (*sum + ratio.min(CAP)).clamp(0.0, MOST_EVIDENCE * WORSE);
            }
        };
        test(&mut self.bad, green.bad, blue.bad, |more| more);
        test(&mut self.good, green.good(), blue.good(), |more| 1.0 / more);
    }

    pub(super) fn is_certain(&self) -> bool {
        self.bad.iter().chain(&self.good).any(|sum| *sum >= WORSE)
    }
}

/// Nothing is expected never, or always: one event would be proof.
const SMALLEST: f64 = 1e-6;

/// A share whose odds are `odds` times as high.
fn raised(share: f64, odds: f64) -> f64 {
    odds * share / (odds * share + 1.0 - share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_seconds_are_the_least_and_enough_where_everything_is_bad() {
        for of in [100, 1_000_000] {
            let mut cusum = Cusum::default();
            for second in 1..=5 {
                assert!(cusum.evidence() < 1.0, "{second}");
                cusum.add(Events::new(of, of), 0.05);
            }
            assert!(cusum.evidence() >= 1.0);
        }
    }

    #[test]
    fn a_green_that_comes_and_goes_is_seen_by_longer_stretches() {
        for (bad, good, most) in [(4, 1, 60), (3, 1, 60), (2, 1, 70), (1, 1, 70), (4, 26, 320)] {
            let mut cusum = Cusum::default();
            let seconds = (0..1_000).find(|second| {
                let is_bad = second % (bad + good) < bad;
                cusum.add(Events::new(if is_bad { 500 } else { 0 }, 500), 0.05);
                cusum.evidence() >= 1.0
            });
            assert!(seconds.is_some_and(|seconds| seconds <= most), "{bad} bad, {good} good: {seconds:?}");
        }
        // A second in each minute, and three in each five minutes, come to nothing.
        for (bad, of) in [(1, 60), (3, 300)] {
            let mut cusum = Cusum::default();
            for second in 0..10_000 {
                cusum.add(Events::new(if second % of < bad { 500 } else { 2 }, 500), 0.05);
                assert!(cusum.evidence() < 1.0, "{bad} of {of}, second {second}");
            }
        }
    }

    #[test]
    fn what_spoke_against_green_for_long_is_undone_soon_once_it_is_well() {
        let mut cusum = Cusum::default();
        (0..36_000).for_each(|_| cusum.add(Events::new(50, 50), 0.05));
        let seconds = (1..).find(|_| {
            cusum.add(Events::new(0, 5), 0.05);
            cusum.evidence() < 1.0
        });
        assert!(seconds.is_some_and(|seconds| seconds <= 120), "{seconds:?}");
    }

    #[test]
    fn evidence_grows_with_bad_events_and_goodness_never_adds_any() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..10_000 {
            let allowed = random.f64().clamp(0.001, 0.999);
            let (of, start) = (random.u64(0..1_000), random.u64(0..200));
            let bad = random.u64(0..=of);
            let after = |bad: u64| {
                let mut cusum = Cusum::default();
                cusum.add(Events::new(start, start), allowed);
                cusum.add(Events::new(bad, of), allowed);
                cusum.evidence()
            };
            assert!(after(bad) <= after(bad + u64::from(bad < of)), "{bad} of {of} at {allowed}");
            let mut good = Cusum::default();
            good.add(Events::new(0, of), allowed);
            assert!(good.is_zero(), "{of} good at {allowed}");
        }
    }

    #[test]
    fn extreme_counts_and_shares_stay_finite() {
        for allowed in [0.0, 1e-300, 0.05, 1.0, 2.0] {
            for events in [Events::new(u64::MAX, u64::MAX), Events::new(0, u64::MAX), Events::new(7, 3)] {
                let (mut cusum, mut worse) = (Cusum::default(), Worse::default());
                for _ in 0..10 {
                    cusum.add(events, allowed);
                    worse.add(events, Events::new(1, u64::MAX));
                    worse.add(Events::new(0, 1), events);
                }
                assert!(cusum.evidence().is_finite() && cusum.evidence() >= 0.0, "{allowed} {events:?}");
            }
        }
    }

    /// Chance of a false alarm in an outage of both, whatever the split and the share that fails.
    #[test]
    fn arms_that_fail_alike_are_hardly_ever_told_apart() {
        let seed = 20_261_121;
        let mut random = fastrand::Rng::with_seed(seed);
        let mut certain = 0;
        for _ in 0..200 {
            let (green, blue) = (random.u64(1..50), random.u64(1..50));
            let mut worse = Worse::default();
            for _ in 0..600 {
                // Each second has a share of its own, the same for both.
                let share = random.f64();
                let mut bad = |of: u64| (0..of).filter(|_| random.f64() < share).count() as u64;
                let (green, blue) = (Events::new(bad(green), green), Events::new(bad(blue), blue));
                worse.add(green, blue);
            }
            certain += u32::from(worse.is_certain());
        }
        // 33 hours of outage, at one in 7.5 hours at most.
        assert!(certain <= 6, "{certain} of 200 outages of ten minutes, seed {seed}");
    }

    #[test]
    fn a_green_that_alone_fails_is_worse_in_a_few_seconds_however_the_traffic_is_split() {
        for (green, blue) in [(50, 50), (1, 99), (99, 1), (500, 5), (5, 500), (10_000, 1)] {
            let mut worse = Worse::default();
            let seconds = (1..).find(|_| {
                worse.add(Events::new(green, green), Events::new(0, blue));
                worse.is_certain()
            });
            assert!(seconds.is_some_and(|seconds| seconds <= 6), "{green} beside {blue}: {seconds:?}");
        }
    }
}
