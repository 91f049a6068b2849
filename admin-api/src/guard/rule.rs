//! What one rule remembers, and what it makes of it.

use std::collections::VecDeque;

use super::{
    bound::{self, PASS_NATS},
    cusum::{Cusum, Events, MOST_EVIDENCE, Worse},
};
use crate::Keys;

/// One rule's evidence.
#[derive(Clone, Debug, Default)]
pub(super) struct Rule {
    cusum: Cusum,
    /// Since the evidence was last zero.
    excursion: Excursion,
    recent: Recent,
}

#[derive(Clone, Debug, Default)]
struct Excursion {
    worse: Worse,
    /// The same, of requests that got no good answer, whatever the rule asks.
    serves_worse: Worse,
    /// What share of blue's requests got none before all this.
    usually_unserved: f64,
    /// Seconds since blue was last heard of.
    blue_silence: u64,
    /// The last minutes of it, counted apart: what was hours ago, as with a client that fails all day, must not outweigh
    /// what is going on.
    older: Counts,
    newer: Counts,
}

#[derive(Clone, Debug, Default)]
struct Counts {
    seconds: u64,
    green: Events,
    blue: Events,
    blue_served: Served,
    /// The split has changed in between, so that the sums of both arms are not of the same time.
    mixed: bool,
    keys: Keys,
}

/// Seconds after which counts are set aside for new ones, and the outcomes of an arm that must be among them: with a request
/// a minute there is nothing to be seen in a minute.
const NEWER: u64 = 60;
const TELLING: u64 = 20;

/// Seconds after which it is not waited for blue any more: where green has all the traffic, there comes no more of it.
pub(super) const BLUE_IS_IDLE: u64 = 180;

impl Excursion {
    fn add(&mut self, seen: &Seen<'_>) {
        if self.is_time_for_new_counts() {
            self.older = std::mem::take(&mut self.newer);
        }
        let newer = &mut self.newer;
        if newer.seconds + self.older.seconds == 0 {
            self.usually_unserved = seen.usually_unserved;
        }
        newer.seconds += 1;
        newer.green = newer.green.and(seen.green);
        if let Some(blue) = seen.blue {
            newer.blue = newer.blue.and(blue);
            self.blue_silence = if blue.of == 0 { self.blue_silence + 1 } else { 0 };
            newer.blue_served.add(&seen.blue_served);
            self.worse.add(seen.green, blue);
            self.serves_worse.add(seen.green_served.not_in_time(), seen.blue_served.not_in_time());
        }
        if let Some(keys) = seen.keys {
            newer.keys.add(keys);
        }
    }

    fn is_time_for_new_counts(&self) -> bool {
        let Counts { seconds, green, blue, .. } = &self.newer;
        let of_blue = blue.of >= TELLING || self.blue().of == 0 || *seconds >= BLUE_IS_IDLE;
        *seconds >= NEWER && green.of >= TELLING && of_blue
    }

    fn green(&self) -> Events {
        self.older.green.and(self.newer.green)
    }

    fn blue(&self) -> Events {
        self.older.blue.and(self.newer.blue)
    }

    fn blue_served(&self) -> Served {
        let mut served = self.older.blue_served;
        served.add(&self.newer.blue_served);
        served
    }

    fn keys(&self) -> Keys {
        let mut keys = self.older.keys.clone();
        keys.add(&self.newer.keys);
        keys
    }
}

/// How an arm serves, whatever a rule asks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Served {
    pub(super) dispatched: u64,
    /// In whatever way.
    pub(super) ended: u64,
    pub(super) judged: u64,
    pub(super) failed: u64,
    pub(super) overdue: u64,
}

impl Served {
    fn add(&mut self, other: &Self) {
        self.dispatched += other.dispatched;
        self.ended += other.ended;
        self.judged += other.judged;
        self.failed += other.failed;
        self.overdue += other.overdue;
    }

    /// What failed, was not answered in time, or will hardly be, for more began than ended. Of two arms with the same traffic,
    /// whether or not that is usual for it.
    fn not_in_time(&self) -> Events {
        let bad = self.overdue.max(self.failed + self.dispatched.saturating_sub(self.ended));
        Events::new(bad, self.judged + bad.saturating_sub(self.failed))
    }

    /// What failed, or waits for what will not come: where answers only take long, as many end as begin, and as many are good as
    /// are overdue.
    pub(super) fn not_at_all(&self) -> Events {
        let good = self.judged.saturating_sub(self.failed);
        let waiting = self.dispatched.saturating_sub(self.ended).max(self.overdue.saturating_sub(good));
        Events::new(self.failed + waiting, self.judged + waiting)
    }
}

/// What the evidence is held against.
pub(super) struct Asked {
    /// See [`Seen`].
    pub(super) allowed: f64,
    pub(super) min_keys: u32,
    /// Blue was heard of in the last minutes: that a rule knows nothing of it is not for want of traffic.
    pub(super) blue_has_traffic: bool,
    /// The share of blue's requests without a good answer from which on blue is out of order.
    pub(super) out_of_order: f64,
}

/// What a second holds for a rule.
pub(super) struct Seen<'a> {
    pub(super) green: Events,
    /// `None`: blue is not asked.
    pub(super) blue: Option<Events>,
    pub(super) green_served: Served,
    pub(super) blue_served: Served,
    /// The share of blue's requests that usually get no good answer.
    pub(super) usually_unserved: f64,
    /// Whose green's bad events were, of those of which it is known. The others are nobody's in particular. There may be
    /// more than there are bad events, where it is not quite the same that is counted.
    pub(super) keys: Option<&'a Keys>,
    /// The share of bad events that is, 0 to 1. `None`: not known, so that this second says nothing.
    pub(super) allowed: Option<f64>,
}

/// What the evidence amounts to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Finding {
    /// Nothing speaks for a breach.
    Quiet,
    /// Something does, and not enough.
    Doubt,
    /// Enough does, but it may be the work of fewer clients than it takes.
    FewKeys,
    /// Enough does, but blue has too few outcomes to say that it does better.
    ThinBlue,
    /// Enough does, and blue is as bad.
    Shared,
    Breach,
}

impl Rule {
    pub(super) fn tick(&mut self, seen: &Seen<'_>) {
        self.recent.push(seen.green, seen.allowed);
        let Some(allowed) = seen.allowed else {
            // What spoke against green did so by a measure that is none any more.
            (self.cusum, self.excursion) = (Cusum::default(), Excursion::default());
            return;
        };
        self.cusum.add(seen.green, allowed);
        if self.cusum.is_zero() {
            self.excursion = Excursion::default();
            return;
        }
        self.excursion.add(seen);
    }

    pub(super) fn split_changed(&mut self) {
        self.excursion.newer.mixed = true;
    }

    /// The split has risen: whom green serves now has not been seen yet.
    pub(super) fn risen(&mut self) {
        self.recent = Recent::default();
    }

    pub(super) fn finding(&self, asked: &Asked) -> Finding {
        let &Asked { allowed, min_keys, blue_has_traffic, .. } = asked;
        let (blue, worse) = (self.excursion.blue(), &self.excursion.worse);
        let evidence = self.cusum.evidence();
        if evidence < DOUBT {
            return Finding::Quiet;
        }
        if evidence < 1.0 {
            return Finding::Doubt;
        }
        if !self.of_many_keys(allowed, min_keys) {
            return Finding::FewKeys;
        }
        if self.is_blue_out_of_order(asked) && !self.excursion.serves_worse.is_certain() {
            return Finding::Shared;
        }
        let blue_is_bad = blue.bad as f64 > allowed * blue.of as f64;
        let is_full = evidence >= MOST_EVIDENCE;
        let is_worse = if blue.of == 0 {
            // In the first seconds of an outage of both, the arm with less traffic may not have been heard of.
            is_full || !blue_has_traffic
        } else {
            worse.is_certain() || self.is_plainly_worse() || (is_full && !blue_is_bad && self.is_as_likely_as_can_be())
        };
        if is_worse {
            Finding::Breach
        } else if blue_is_bad {
            Finding::Shared
        } else {
            Finding::ThinBlue
        }
    }

    /// Does blue fail, or leave waiting, so much that green is better off whatever the rule says? The same cause need not
    /// look the same on both: where one arm answers with errors the other one may hang, or be slow.
    pub(super) fn is_blue_out_of_order(&self, asked: &Asked) -> bool {
        let unserved = self.blue_unserved();
        let most = asked.out_of_order.max(UNUSUAL * self.excursion.usually_unserved);
        unserved.of >= TELLING && unserved.bad as f64 > most * unserved.of as f64
    }

    /// A blue of which there is little in minutes, or nothing any more, will never make it likelier.
    fn is_as_likely_as_can_be(&self) -> bool {
        let Excursion { older, newer, blue_silence, .. } = &self.excursion;
        let is_thin = older.seconds + newer.seconds >= BLUE_IS_IDLE && self.excursion.blue().of < TELLING;
        is_thin || *blue_silence >= NEWER || self.likelihood() >= LIKELY
    }

    /// Blue's requests without a good answer, of those since the evidence was last zero.
    pub(super) fn blue_unserved(&self) -> Events {
        self.excursion.blue_served().not_at_all()
    }

    /// [`Worse`] compares second by second, which takes long where a second holds next to nothing. While there is little,
    /// the sums tell more.
    fn is_plainly_worse(&self) -> bool {
        let mixed = self.excursion.older.mixed || self.excursion.newer.mixed;
        let few = self.excursion.green().of + self.excursion.blue().of <= FEW;
        !mixed && few && self.likelihood() >= PLAIN
    }

    /// How much more likely the sums are if green is worse than if both are alike: the log of the ratio of two shares to
    /// one, in nats.
    fn likelihood(&self) -> f64 {
        let (green, blue) = (self.excursion.green(), self.excursion.blue());
        match (green.share(), blue.share(), green.and(blue).share()) {
            (Some(mine), Some(theirs), Some(share)) if mine > theirs => {
                green.of as f64 * bound::divergence(mine, share) + blue.of as f64 * bound::divergence(theirs, share)
            }
            _ => 0.0,
        }
    }

    /// Is it too much also without the clients that had most of it? One that is broken, and another that happened to fail
    /// as well, must not trip everybody.
    fn of_many_keys(&self, allowed: f64, min_keys: u32) -> bool {
        let (green, keys) = (self.excursion.green(), self.excursion.keys());
        let anonymous = green.bad.saturating_sub(keys.total());
        let others = u64::from(min_keys).saturating_sub(1);
        let share = green.bad.min(keys.total()) as f64 / keys.total().max(1) as f64;
        let commonest = (keys.of_the_commonest(others as usize) as f64 * share) as u64;
        let elsewhere = green.less(Events::new(commonest, commonest));
        let distinct = (keys.distinct() as u64).saturating_add(anonymous);
        distinct > others && elsewhere.bad as f64 > allowed * elsewhere.of as f64
    }

    pub(super) fn evidence(&self) -> f64 {
        self.cusum.evidence()
    }

    /// Green's events and blue's since the evidence was last zero, in the last minutes at most, how many seconds that is, and
    /// of how many keys at least green's bad ones were.
    pub(super) fn since_zero(&self) -> (Events, Events, u64, u64) {
        let Excursion { older, newer, .. } = &self.excursion;
        let keys = self.excursion.keys().distinct() as u64;
        (self.excursion.green(), self.excursion.blue(), older.seconds + newer.seconds, keys)
    }

    /// Green's events of the last minutes since the split rose, and how many seconds that is.
    pub(super) fn recent(&self) -> (Events, u64) {
        (self.recent.sum, self.recent.seconds.len() as u64)
    }

    /// Is the share of bad events within the limit, with 95 % certainty?
    pub(super) fn is_surely_within(&self, allowed: f64) -> bool {
        let sum = self.recent.sum;
        sum.share().is_some_and(|share| bound::at_most(share, sum.of as f64, PASS_NATS) <= allowed)
    }

    /// Is what was seen within the limit?
    pub(super) fn is_seemingly_within(&self, allowed: f64) -> bool {
        self.recent.sum.bad as f64 <= allowed * self.recent.sum.of as f64
    }
}

/// Outcomes of both arms up to which their sums are compared, and the evidence that it takes, in nats.
const FEW: u64 = 200;
const PLAIN: f64 = 10.0;
/// What it takes beside evidence that grows no more, and a blue that is within the limit: a thin blue may be so by chance.
const LIKELY: f64 = 5.0;

/// How many times what is usual for it a blue must leave without a good answer to be out of order.
const UNUSUAL: f64 = 2.0;

/// Evidence from which on a rule is not sure of green.
const DOUBT: f64 = 0.5;

/// The last minutes, second by second: as many as [`RECENT_SECONDS`], and more while there is little in them.
#[derive(Clone, Debug, Default)]
struct Recent {
    seconds: VecDeque<Events>,
    sum: Events,
}

const RECENT_SECONDS: usize = 300;
/// Bad events that were expected at the limit: a green at a fifth of it has so few that it is surely within.
const RECENT_BAD_EVENTS: f64 = 15.0;
const RECENT_EVENTS: f64 = 300.0;
const MOST_SECONDS: usize = 3_600;

impl Recent {
    /// `allowed`: see [`Seen`].
    fn push(&mut self, events: Events, allowed: Option<f64>) {
        let enough = allowed.map_or(RECENT_EVENTS, |allowed| RECENT_EVENTS.max(RECENT_BAD_EVENTS / allowed)) as u64;
        self.seconds.push_back(events);
        self.sum = self.sum.and(events);
        while let Some(oldest) = self.seconds.front() {
            let is_enough = self.sum.of.saturating_sub(oldest.of) >= enough;
            if self.seconds.len() <= RECENT_SECONDS || !(is_enough || self.seconds.len() > MOST_SECONDS) {
                break;
            }
            self.sum = self.sum.less(*oldest);
            self.seconds.pop_front();
        }
    }
}
