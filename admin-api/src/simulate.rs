//! Plays a guard against synthetic arms, faster than time passes: how often it trips for nothing, and how soon it trips
//! for something. The guard is the one that runs live; all that is made up is the seconds it is told of. No I/O, no clock,
//! and chance comes from a seed.

mod arms;
mod draw;

use std::fmt;

use arms::Arms;
use config::Guard;
use serde::Serialize;

use crate::{Engine, MirrorSecond, Surroundings, Verdict};

/// What a guard said of arms that it watched for some time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Watch {
    pub seconds: u64,
    /// How often it was asked how green does, once a minute, and what it said.
    pub asked: u64,
    pub pass: u64,
    pub unknown: u64,
    /// Of the unknown ones: both arms were bad.
    pub shared_cause: u64,
    /// A plan would have had to wait.
    pub pause: u64,
    pub trips: u64,
    /// The first of them.
    pub first_trips: Vec<Trip>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trip {
    /// To see it again.
    pub seed: u64,
    /// Counted from the start, or from when green fell sick, from 1.
    pub second: u64,
    pub reason: String,
}

impl Watch {
    pub fn add(&mut self, other: Self) {
        self.seconds += other.seconds;
        self.asked += other.asked;
        self.pass += other.pass;
        self.unknown += other.unknown;
        self.shared_cause += other.shared_cause;
        self.pause += other.pause;
        self.trips += other.trips;
        self.first_trips.extend(other.first_trips);
        self.first_trips.truncate(TRIPS_KEPT);
    }

    fn trip(&mut self, trip: Trip) {
        self.trips += 1;
        if self.first_trips.len() < TRIPS_KEPT {
            self.first_trips.push(trip);
        }
    }

    pub fn days(&self) -> f64 {
        self.seconds as f64 / SECONDS_A_DAY as f64
    }
}

/// What came of a green that fell sick.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Onset {
    Tripped(Trip),
    /// Before it fell sick.
    TrippedEarly(Trip),
    /// Not in the time that it had.
    Missed,
}

pub const SECONDS_A_DAY: u64 = 86_400;

/// Lets a guard watch for some seconds, with a new one after each trip. `sickness`: of green, from the start on.
/// `passed`: is told now and then how many seconds more have passed.
pub fn watch(
    policy: &Guard,
    scenario: &Scenario,
    sickness: Option<Sickness>,
    seed: u64,
    seconds: u64,
    mut passed: impl FnMut(u64),
) -> Watch {
    let mut play = Play::new(policy, scenario, seed);
    if let Some(sickness) = sickness {
        play.arms.fall_sick(sickness);
    }
    let mut watch = Watch::default();
    for second in 1..=seconds {
        watch.seconds += 1;
        if let Some(reason) = play.second() {
            watch.trip(Trip { seed, second, reason });
            play.engine = Engine::new(policy);
        }
        if second % ASK_EVERY == 0 {
            let judgement = play.engine.judge(&Surroundings::default());
            watch.asked += 1;
            watch.pass += u64::from(judgement.verdict == Verdict::Pass);
            watch.unknown += u64::from(judgement.verdict == Verdict::Unknown);
            watch.shared_cause += u64::from(judgement.shared_cause);
            watch.pause += u64::from(judgement.pause.is_some());
        }
        if second % TELL_EVERY == 0 {
            passed(TELL_EVERY);
        }
    }
    watch
}

/// Lets green fall sick once its guard knows what is usual, and watches for `most` seconds from there.
pub fn time_to_trip(policy: &Guard, scenario: &Scenario, sickness: Sickness, seed: u64, most: u64) -> Onset {
    let mut play = Play::new(policy, scenario, seed);
    for second in 1..=policy.baseline.as_secs() {
        if let Some(reason) = play.second() {
            return Onset::TrippedEarly(Trip { seed, second, reason });
        }
    }
    play.arms.fall_sick(sickness);
    let trip = (1..=most).find_map(|second| play.second().map(|reason| Trip { seed, second, reason }));
    trip.map_or(Onset::Missed, Onset::Tripped)
}

/// One that is bad all the time trips every few seconds.
const TRIPS_KEPT: usize = 20;

/// Seconds from one look at a verdict that is no breach to the next.
const ASK_EVERY: u64 = 60;

/// Seconds between two words about progress.
const TELL_EVERY: u64 = 3_600;

/// A guard and what it watches.
struct Play {
    arms: Arms,
    engine: Engine,
}

impl Play {
    fn new(policy: &Guard, scenario: &Scenario, seed: u64) -> Self {
        let arms = Arms::new(*scenario, policy.answer_within.as_secs(), seed);
        Self { arms, engine: Engine::new(policy) }
    }

    /// Plays a second: why the guard trips, if it does.
    fn second(&mut self) -> Option<String> {
        let second = self.arms.second(self.engine.slower_than_us());
        self.engine.weigh(second, MirrorSecond::default());
        // To put a judgement into words takes longer than to come to it.
        if !self.engine.is_alarmed() {
            return None;
        }
        let judgement = self.engine.judge(&Surroundings::default());
        (judgement.verdict == Verdict::Breach).then_some(judgement.reason)
    }
}

/// Traffic of two arms. Rates are requests per second, shares 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Scenario {
    /// What green gets.
    pub green_rps: f64,
    /// What part of all that is; above 0. The rest is blue's.
    pub share: f64,
    /// Different keys of all requests; green has its share of them.
    pub clients: u64,
    /// What either arm fails while it is healthy.
    pub error_rate: f64,
    /// Median of either arm's latency, microseconds, which is lognormal.
    pub latency_us: f64,
    /// Standard deviation of its logarithm: 0.5 is a p95 of 2.3 times the median, 1 one of 5 times.
    pub sigma: f64,
    /// When the proxy gives an answer up that does not come, seconds.
    pub patience: u64,
    /// What part of green's requests one client sends that breaks every one of them.
    pub broken_client: f64,
    pub stall: Option<Stall>,
    pub burst: Option<Burst>,
    pub outage: Option<Outage>,
    pub slowdown: Option<Slowdown>,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            green_rps: 50.0,
            share: 0.5,
            clients: 10_000,
            error_rate: 0.001,
            latency_us: 20_000.0,
            sigma: 0.5,
            patience: 60,
            broken_client: 0.0,
            stall: None,
            burst: None,
            outage: None,
            slowdown: None,
        }
    }
}

/// Comes once in each period, at any moment of it. Seconds; `lasts` is less than `every`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct Spell {
    pub lasts: u64,
    pub every: u64,
}

/// An arm that answers nothing for a while, each arm at moments of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct Stall {
    #[serde(flatten)]
    pub spell: Spell,
    /// What comes meanwhile is failed at once; else it is answered when the stall is over.
    pub fails: bool,
}

/// More traffic, or with a factor below 1 less, for a while.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Burst {
    #[serde(flatten)]
    pub spell: Spell,
    pub factor: f64,
}

/// Both arms fail at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Outage {
    #[serde(flatten)]
    pub spell: Spell,
    pub error_rate: f64,
}

/// Both arms are slower at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Slowdown {
    #[serde(flatten)]
    pub spell: Spell,
    /// Times the usual latency.
    pub factor: f64,
}

/// What becomes of an arm's requests.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Behaviour {
    errors: f64,
    unreachable: f64,
    silent: f64,
    /// Times the usual latency.
    slower: f64,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { errors: 0.0, unreachable: 0.0, silent: 0.0, slower: 1.0 }
    }
}

/// What is wrong with green. Shares of its requests, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sickness {
    /// Answered, and failed.
    pub errors: f64,
    /// Not even connected.
    pub unreachable: f64,
    /// Never answered.
    pub silent: f64,
    /// Times the healthy latency.
    pub slower: f64,
    /// Seconds until it is as bad as that; 0: at once.
    pub over: u64,
}

impl Default for Sickness {
    fn default() -> Self {
        Self { errors: 0.0, unreachable: 0.0, silent: 0.0, slower: 1.0, over: 0 }
    }
}

impl fmt::Display for Sickness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| (share * 1e4).round() / 100.0;
        let shares = [(self.errors, "errors"), (self.unreachable, "unreachable"), (self.silent, "silent")];
        let mut parts: Vec<String> = shares
            .into_iter()
            .filter(|(share, _)| *share > 0.0)
            .map(|(share, what)| format!("{} % {what}", percent(share)))
            .collect();
        if self.slower != 1.0 {
            parts.push(format!("{} times slower", self.slower));
        }
        if parts.is_empty() {
            parts.push("nothing wrong".to_owned());
        }
        if self.over > 0 {
            parts.push(format!("after {} s", self.over));
        }
        f.write_str(&parts.join(", "))
    }
}

impl Sickness {
    /// How green behaves `since` seconds after it fell sick.
    fn at(&self, healthy: &Behaviour, since: u64) -> Behaviour {
        let grown = if since >= self.over { 1.0 } else { (since + 1) as f64 / (self.over + 1) as f64 };
        Behaviour {
            errors: healthy.errors.max(grown * self.errors),
            unreachable: grown * self.unreachable,
            silent: grown * self.silent,
            slower: healthy.slower * (1.0 + grown * (self.slower - 1.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Forecast;

    fn quiet(scenario: &Scenario, seed: u64, seconds: u64) {
        let watch = watch(&Guard::default(), scenario, None, seed, seconds, |_| {});
        assert_eq!(watch.trips, 0, "{scenario:?}: {:?}", watch.first_trips);
        assert_eq!(watch.seconds, seconds);
    }

    /// Seconds to the trip, sorted.
    fn delays(scenario: &Scenario, sickness: Sickness, runs: u64) -> Vec<u64> {
        let mut delays: Vec<u64> = (0..runs)
            .map(|seed| match time_to_trip(&Guard::default(), scenario, sickness, seed, 3_600) {
                Onset::Tripped(trip) => trip.second,
                other => panic!("{scenario:?}, {sickness}, seed {seed}: {other:?}"),
            })
            .collect();
        delays.sort_unstable();
        delays
    }

    #[test]
    fn a_healthy_green_is_left_alone_whatever_its_traffic_is_like() {
        let usual = Scenario { green_rps: 5.0, ..Scenario::default() };
        let (often, seldom) = (Spell { lasts: 1, every: 60 }, Spell { lasts: 20, every: 600 });
        for (seed, scenario) in [
            usual,
            Scenario { error_rate: 0.01, ..usual },
            Scenario { green_rps: 0.1, error_rate: 0.01, ..usual },
            Scenario { green_rps: 100.0, ..usual },
            Scenario { sigma: 1.2, ..usual },
            Scenario { error_rate: 0.005, stall: Some(Stall { spell: often, fails: false }), ..usual },
            Scenario { error_rate: 0.005, stall: Some(Stall { spell: often, fails: true }), ..usual },
            Scenario { burst: Some(Burst { spell: seldom, factor: 20.0 }), ..usual },
            Scenario { burst: Some(Burst { spell: seldom, factor: 0.0 }), ..usual },
            Scenario { outage: Some(Outage { spell: seldom, error_rate: 0.5 }), ..usual },
            Scenario { slowdown: Some(Slowdown { spell: seldom, factor: 4.0 }), ..usual },
            Scenario { broken_client: 0.3, ..usual },
            Scenario { share: 0.01, ..usual },
            Scenario { share: 0.99, ..usual },
            Scenario { share: 1.0, ..usual },
        ]
        .iter()
        .enumerate()
        {
            quiet(scenario, seed as u64, 2_400);
        }
    }

    #[test]
    fn a_sick_green_is_found_as_soon_as_the_documentation_says() {
        let healthy = Sickness::default();
        let thin = Scenario { green_rps: 5.0, share: 0.1, ..Scenario::default() };
        let usual = Scenario { green_rps: 50.0, ..Scenario::default() };
        for (scenario, sickness, soonest, latest) in [
            (usual, Sickness { errors: 1.0, ..healthy }, 5, 5),
            (usual, Sickness { errors: 0.2, ..healthy }, 5, 6),
            (usual, Sickness { unreachable: 1.0, ..healthy }, 5, 5),
            (usual, Sickness { silent: 1.0, ..healthy }, 10, 11),
            (usual, Sickness { slower: 3.0, ..healthy }, 5, 7),
            (thin, Sickness { errors: 0.5, ..healthy }, 6, 9),
            (thin, Sickness { errors: 1.0, ..healthy }, 5, 6),
        ] {
            let delays = delays(&scenario, sickness, 15);
            let median = delays[7];
            assert!((soonest..=latest).contains(&median), "{} requests/s, {sickness}: {delays:?}", scenario.green_rps);
            assert!(delays[0] >= 5, "no single second is a breach: {delays:?}");
        }
    }

    #[test]
    fn the_forecast_says_what_the_guard_then_does() {
        let scenario = Scenario { green_rps: 5.0, share: 0.1, ..Scenario::default() };
        for errors in [0.15, 0.2, 0.5, 1.0] {
            let delays = delays(&scenario, Sickness { errors, ..Sickness::default() }, 41);
            let expected = Forecast::new(0.05).time_to_trip(errors, 5.0).unwrap().as_secs_f64();
            let median = delays[20] as f64;
            // One of 41 runs is two ranks of chance or so, and a second is the least that there is.
            assert!((median - expected).abs() <= 1.5 + 0.35 * expected, "{errors}: {expected}, not {delays:?}");
        }
    }

    /// The lower the limit, the more it takes to say that green is within it; but some time it is said.
    #[test]
    fn a_green_at_a_fifth_of_its_limit_passes_whatever_the_limit_is() {
        for (limit, green_rps) in [(0.05, 0.5), (0.01, 1.0), (0.001, 5.0), (0.001, 20.0)] {
            let policy = Guard { max_error_rate: limit, ..Guard::default() };
            let scenario = Scenario { green_rps, error_rate: 0.2 * limit, ..Scenario::default() };
            let mut play = Play::new(&policy, &scenario, 1);
            (0..3_600).for_each(|_| assert_eq!(play.second(), None));
            let judgement = play.engine.judge(&Surroundings::default());
            assert_eq!(judgement.verdict, Verdict::Pass, "limit {limit}, {green_rps}/s: {}", judgement.reason);
        }
    }

    #[test]
    fn a_seed_brings_the_same_again() {
        let scenario = Scenario { green_rps: 3.0, error_rate: 0.1, ..Scenario::default() };
        let sickness = Some(Sickness { errors: 0.6, ..Sickness::default() });
        let watched = |seed| watch(&Guard::default(), &scenario, sickness, seed, 1_200, |_| {});
        assert_eq!(watched(4), watched(4));
        assert_ne!(watched(4).first_trips, watched(5).first_trips);
        assert!(watched(4).trips > 20 && watched(4).first_trips.len() == TRIPS_KEPT);
    }

    #[test]
    fn an_outage_of_both_is_seen_as_one_and_is_the_routes_to_decide() {
        let spell = Spell { lasts: 300, every: 900 };
        let scenario = Scenario { outage: Some(Outage { spell, error_rate: 0.6 }), ..Scenario::default() };
        let watched = |shared_cause| {
            let policy = Guard { shared_cause, ..Guard::default() };
            watch(&policy, &scenario, None, 1, 1_800, |_| {})
        };
        let held = watched(config::SharedCause::Hold);
        assert_eq!(held.trips, 0, "{:?}", held.first_trips);
        assert!(held.shared_cause >= 8, "{held:?}");
        assert!(watched(config::SharedCause::Rollback).trips > 0);
    }
}
