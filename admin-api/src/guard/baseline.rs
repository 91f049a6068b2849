//! What is usual: blue over the last minutes.

use std::collections::VecDeque;

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    bound::{self, TAIL_NATS},
    cusum::Events,
};
use crate::Tally;

/// How well it is known what is usual.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, ToSchema)]
pub struct BaselineReport {
    /// Outcomes of blue that it rests on.
    pub outcomes: u64,
    /// Of those: with a latency.
    pub latencies: u64,
    /// Seconds since blue was last heard of; null before it was. High where green has all the traffic: what is known of
    /// blue is as old as that.
    pub age_seconds: Option<u64>,
}

/// Sums over a time that is as long as configured, or longer while there are fewer than [`ENOUGH`] outcomes in it, up to
/// [`OUT_OF_DATE`] before blue was last heard of.
#[derive(Clone, Debug)]
pub(super) struct Baseline {
    seconds: u64,
    slabs: VecDeque<Slab>,
    sum: Tally,
    /// The newest second, and the newest in which blue was heard of.
    now: u64,
    heard: Option<u64>,
}

/// Some seconds' counts, which come and go together.
#[derive(Clone, Debug)]
struct Slab {
    since: u64,
    tally: Tally,
}

/// Seconds.
const SLAB: u64 = 10;

/// Outcomes below which old ones are kept.
const ENOUGH: u64 = 1_000;

/// Seconds, where no longer time is configured.
const OUT_OF_DATE: u64 = 3_600;

impl Baseline {
    pub(super) fn new(seconds: u64) -> Self {
        Self { seconds, slabs: VecDeque::new(), sum: Tally::default(), now: 0, heard: None }
    }

    pub(super) fn of_the_last(&mut self, seconds: u64) {
        self.seconds = seconds;
    }

    pub(super) fn add(&mut self, at: u64, blue: &Tally) {
        self.now = at;
        if blue.judged() > 0 || blue.due > 0 {
            self.heard = Some(at);
            match self.slabs.back_mut().filter(|slab| at < slab.since + SLAB) {
                Some(slab) => slab.tally.add_counts(blue),
                None => {
                    let mut tally = Tally::default();
                    tally.add_counts(blue);
                    self.slabs.push_back(Slab { since: at, tally });
                }
            }
            self.sum.add_counts(blue);
        }
        while let Some(oldest) = self.slabs.front() {
            let ended = oldest.since + SLAB;
            let enough = self.sum.judged().saturating_sub(oldest.tally.judged()) >= ENOUGH;
            let spare = ended + self.seconds <= at && enough;
            // One answer now does not make a measure of what blue was like hours ago.
            let stale = self.heard.is_some_and(|heard| ended + self.out_of_date() <= heard);
            if !spare && !stale {
                break;
            }
            self.sum.take_away(&oldest.tally);
            self.slabs.pop_front();
        }
        // Thin traffic leaves many slabs with little in each.
        if self.slabs.len() > MOST_SLABS
            && let Some(oldest) = self.slabs.pop_front()
        {
            self.sum.take_away(&oldest.tally);
        }
    }

    /// Seconds after which what blue was like is no measure any more.
    fn out_of_date(&self) -> u64 {
        OUT_OF_DATE.max(self.seconds)
    }

    /// Was blue heard of so long ago that it may have been another time of day?
    pub(super) fn is_out_of_date(&self) -> bool {
        self.heard.is_some_and(|heard| self.now - heard > self.out_of_date())
    }

    /// Was blue heard of in the last so many seconds?
    pub(super) fn was_heard_within(&self, seconds: u64) -> bool {
        self.heard.is_some_and(|heard| self.now - heard <= seconds)
    }

    pub(super) fn report(&self) -> BaselineReport {
        BaselineReport {
            outcomes: self.sum.judged(),
            latencies: self.sum.latency_us.len(),
            age_seconds: self.heard.map(|heard| self.now - heard),
        }
    }

    /// The second since which the newest counts are put together.
    pub(super) fn newest(&self) -> Option<u64> {
        self.slabs.back().map(|slab| slab.since)
    }

    pub(super) fn tally(&self) -> &Tally {
        &self.sum
    }

    /// What the true quantile is at most, but for one chance in a thousand, in microseconds: the sample of the rank that is
    /// above it with that certainty. `tail`: the share of samples above the quantile. `None`: there are too few.
    pub(super) fn quantile_at_most_us(&self, tail: f64) -> Option<u64> {
        let rank = bound::upper_rank(self.sum.latency_us.len(), tail, TAIL_NATS)?;
        Some(bound::value_at_rank(&self.sum.latency_us, rank))
    }

    /// What the true share of these events is at most, but for one chance in a thousand. `None` without events.
    pub(super) fn share_at_most(&self, events: impl Fn(&Tally) -> Events) -> Option<f64> {
        let events = events(&self.sum);
        events.share().map(|share| bound::at_most(share, events.of as f64, TAIL_NATS))
    }
}

/// An hour of a slab every ten seconds.
const MOST_SLABS: usize = 360;
