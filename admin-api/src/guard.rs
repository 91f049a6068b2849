//! Judges green: `pass`, `unknown` or `breach`, with the evidence in the answer. No I/O, no clock: a second is an argument.
//!
//! Every rule is the same question, "is green's share of bad events above what is allowed?", asked by the same test
//! ([`cusum`]), second by second. Some ask of a limit (`error_rate`), others of blue ([`baseline`]): that green's p95 is
//! above a time is the same as more than 5 % of green being slower than that time, which only takes counting.
//!
//! A breach takes two things more. The bad events must not be the work of one or two clients. And green must be worse than
//! blue at the same time: moving everybody to a blue that is as sick helps nobody.

mod baseline;
mod bound;
mod cusum;
mod judgement;
mod rule;

use std::{collections::VecDeque, sync::Arc};

use baseline::Baseline;
pub use baseline::BaselineReport;
pub(crate) use bound::{TAIL_NATS, around};
use config::SharedCause;
use cusum::Events;
pub(crate) use cusum::{FEWEST_SECONDS, TRIP, alternatives};
use judgement::quantile_ms;
pub use judgement::{ArmEvidence, Evidence, Judgement, PlaceboReport, Verdict};
use rule::{Asked, BLUE_IS_IDLE, Finding, Rule, Seen, Served};

use crate::{EndpointObservation, Keys, Outcome, Second, Tally};

/// What else is known of a route in a second.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    pub mirror: Option<MirrorSecond>,
    pub blue_endpoints: Vec<EndpointObservation>,
    pub green_endpoints: Vec<EndpointObservation>,
    pub signals: Vec<SignalReading>,
}

/// Pairs of answers that were compared in a second.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct MirrorSecond {
    pub pairs: u64,
    pub mismatches: u64,
}

/// What a signal from outside says.
#[derive(Clone, Debug, PartialEq)]
pub struct SignalReading {
    pub name: String,
    pub verdict: Verdict,
    /// A sentence.
    pub reason: String,
    /// As of [`Evidence`]: of a limit that has to last, how much of that time it has.
    pub evidence: f64,
    pub value: Option<f64>,
    pub limit: f64,
}

/// One route's guard.
#[derive(Clone, Debug)]
pub struct Engine {
    policy: config::Guard,
    rulings: Vec<Ruling>,
    baseline: Baseline,
    recent: Recent,
    /// Since the split last rose.
    since_raise: Sums,
    /// What the baseline was when it was last looked up what is slow.
    looked_up: LookedUp,
    /// Seconds since green last had an outcome.
    silence: u64,
    /// Seconds in which answers of green were due since it last answered well.
    unanswered: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct LookedUp {
    latencies: u64,
    /// See [`Baseline::newest`].
    newest: Option<u64>,
}

/// A rule as it is configured.
#[derive(Clone, Debug)]
struct Ruling {
    what: What,
    limit: f64,
    consequence: Consequence,
    /// Microseconds above which an answer is slow, for the rules that ask. `None` while it is not known.
    slow_us: Option<u64>,
    rule: Rule,
}

/// What counts as bad.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum What {
    Failed,
    /// More than blue usually does.
    FailedMore,
    Unreachable,
    Slow(Quantile),
    /// Not answered in time.
    Overdue,
    Mismatched,
    /// Turned away, more than blue usually does.
    Declined,
    /// Taken and dropped at once, more than blue usually does.
    CutOff,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Quantile {
    P50,
    P95,
    P99,
}

impl Quantile {
    /// The share of requests above it.
    fn tail(self) -> f64 {
        match self {
            Self::P50 => 0.5,
            Self::P95 => 0.05,
            Self::P99 => 0.01,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P95 => "p95",
            Self::P99 => "p99",
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Consequence {
    Trip,
    /// A plan waits.
    Pause,
    /// There is no `pass`, a plan waits, and somebody is told. Clients differ and may be wrong.
    Doubt,
}

/// What was seen of both arms, and of the mirror.
#[derive(Clone, Debug, Default)]
struct Sums {
    blue: Tally,
    green: Tally,
    mirror: MirrorSecond,
}

/// The last minute.
#[derive(Clone, Debug, Default)]
struct Recent {
    seconds: VecDeque<(Arc<Second>, MirrorSecond)>,
    sums: Sums,
}

impl Sums {
    fn add(&mut self, second: &Second, mirror: MirrorSecond) {
        self.blue.add_counts(&second.blue);
        self.green.add_counts(&second.green);
        self.mirror.pairs += mirror.pairs;
        self.mirror.mismatches += mirror.mismatches;
    }

    fn take_away(&mut self, second: &Second, mirror: MirrorSecond) {
        self.blue.take_away(&second.blue);
        self.green.take_away(&second.green);
        self.mirror.pairs -= mirror.pairs;
        self.mirror.mismatches -= mirror.mismatches;
    }
}

impl Recent {
    fn add(&mut self, second: &Arc<Second>, mirror: MirrorSecond) {
        self.sums.add(second, mirror);
        self.seconds.push_back((Arc::clone(second), mirror));
        if self.seconds.len() > RECENT_SECONDS
            && let Some((oldest, mirror)) = self.seconds.pop_front()
        {
            self.sums.take_away(&oldest, mirror);
        }
    }
}

const RECENT_SECONDS: usize = 60;

/// Microseconds that a quantile of green may be above blue's whatever the ratio: three times 0.1 ms is noise to every
/// client.
const TOO_QUICK_TO_TELL_US: u64 = 1_000;

/// Seconds with answers due and no good one after which it is no longer the way of a route to let its clients wait.
const LONG_POLL: u64 = 60;
/// The share of unanswered requests that is allowed at most, and where it is not known what is usual and no good answer comes.
const NEARLY_ALL: f64 = 0.95;

/// How many times the failed share that green is allowed a blue must be at, in requests without a good answer, to be out of
/// order; and the share at which it is so whatever the limit.
const OUT_OF_ORDER: f64 = 4.0;
const SURELY_OUT_OF_ORDER: f64 = 0.5;

/// How much higher than blue's green's declined share must be to be worth a look, and its share of what it drops at once to be
/// too high, as a share of all.
const DECLINED_MARGIN: f64 = 0.1;
const CUT_OFF_MARGIN: f64 = 0.1;

/// Seconds without an outcome after which what was seen before is no `pass` any more.
const SILENT: u64 = 30;

impl Engine {
    pub fn new(policy: &config::Guard) -> Self {
        Self {
            policy: *policy,
            rulings: rulings(policy),
            baseline: Baseline::new(policy.baseline.as_secs()),
            recent: Recent::default(),
            since_raise: Sums::default(),
            looked_up: LookedUp::default(),
            silence: 0,
            unanswered: 0,
        }
    }

    /// Goes on by other settings. Rules whose own are the same keep their evidence.
    pub fn follow(&mut self, policy: &config::Guard) {
        let mut rulings = rulings(policy);
        for ruling in &mut rulings {
            let same = |old: &&Ruling| {
                (old.what, old.limit, old.consequence) == (ruling.what, ruling.limit, ruling.consequence)
            };
            if let Some(old) = self.rulings.iter().find(same) {
                (ruling.rule, ruling.slow_us) = (old.rule.clone(), old.slow_us);
            }
        }
        self.baseline.of_the_last(policy.baseline.as_secs());
        self.looked_up = LookedUp::default();
        (self.rulings, self.policy) = (rulings, *policy);
    }

    /// The split is another one. Before [`Self::risen`], if it is higher.
    pub fn split_changed(&mut self) {
        self.rulings.iter_mut().for_each(|ruling| ruling.rule.split_changed());
    }

    /// The split has risen: whom green serves now has not been seen yet. What speaks against green goes on.
    pub fn risen(&mut self) {
        self.rulings.iter_mut().for_each(|ruling| ruling.rule.risen());
        self.since_raise = Sums::default();
    }

    /// Learns from a second in which green was not judged what is usual for blue.
    pub fn learn(&mut self, second: &Second) {
        self.baseline.add(second.at, &second.blue);
    }

    /// Microseconds above which an answer of green counts as slow, to the rule that asks for least. `None` while it is not
    /// known.
    pub fn slower_than_us(&self) -> Option<u64> {
        let trips = self.rulings.iter().filter(|ruling| ruling.consequence == Consequence::Trip);
        trips.filter_map(|ruling| ruling.slow_us).min()
    }

    /// Judges green by one more second.
    pub fn tick(&mut self, second: &Arc<Second>, surroundings: &Surroundings) -> Judgement {
        self.note(second, surroundings.mirror.unwrap_or_default());
        self.judge(surroundings)
    }

    /// Takes in one more second, without saying what comes of it.
    pub fn note(&mut self, second: &Arc<Second>, mirror: MirrorSecond) {
        self.weigh(second, mirror);
        self.recent.add(second, mirror);
        self.since_raise.add(second, mirror);
    }

    /// What of [`Self::note`] the verdict depends on: without the counts that are only there to be read.
    pub(crate) fn weigh(&mut self, second: &Second, mirror: MirrorSecond) {
        self.learn(second);
        self.look_up_what_is_slow();
        self.silence = if second.green.judged() + mirror.pairs > 0 { 0 } else { self.silence + 1 };
        self.unanswered = match second.green.count(Outcome::Ok) {
            0 => self.unanswered.saturating_add(u64::from(second.green.due > 0)),
            _ => 0,
        };
        let usually_unserved = served(self.baseline.tally()).not_at_all().share().unwrap_or_default();
        let mut rulings = std::mem::take(&mut self.rulings);
        for ruling in &mut rulings {
            let allowed = self.allowed(ruling);
            let events = |tally: &Tally| self.events(ruling, tally);
            let seen = match ruling.what {
                What::Mismatched => Seen {
                    green: Events::new(mirror.mismatches, mirror.pairs),
                    blue: None,
                    green_served: Served::default(),
                    blue_served: Served::default(),
                    usually_unserved,
                    keys: None,
                    allowed,
                },
                _ => Seen {
                    green: events(&second.green),
                    blue: Some(events(&second.blue)),
                    green_served: served(&second.green),
                    blue_served: served(&second.blue),
                    usually_unserved,
                    keys: keys(ruling.what, &second.green),
                    allowed,
                },
            };
            ruling.rule.tick(&seen);
        }
        self.rulings = rulings;
    }

    /// Whether enough speaks against green that [`Self::judge`] may find a breach; health and signals left aside.
    pub fn is_alarmed(&self) -> bool {
        self.rulings.iter().any(|ruling| ruling.consequence == Consequence::Trip && ruling.rule.evidence() >= 1.0)
    }

    /// What is usual for blue hardly changes from one second to the next, and takes a while to look up. With every ten
    /// seconds old latencies may have made room for as many new ones.
    fn look_up_what_is_slow(&mut self) {
        let (latencies, newest) = (self.baseline.tally().latency_us.len(), self.baseline.newest());
        let LookedUp { latencies: before, newest: last } = self.looked_up;
        if newest == last && latencies.abs_diff(before) <= before / 100 {
            return;
        }
        self.looked_up = LookedUp { latencies, newest };
        for ruling in &mut self.rulings {
            if let What::Slow(quantile) = ruling.what {
                let usual = self.baseline.quantile_at_most_us(quantile.tail());
                let slow = |usual: u64| ((usual as f64 * ruling.limit) as u64).max(usual + TOO_QUICK_TO_TELL_US);
                ruling.slow_us = usual.map(slow);
            }
        }
    }

    /// The share of bad events that a rule allows now.
    fn allowed(&self, ruling: &Ruling) -> Option<f64> {
        let usual = |events: fn(&Tally) -> Events| self.baseline.share_at_most(events);
        match ruling.what {
            What::Failed | What::Unreachable => Some(ruling.limit),
            What::FailedMore => usual(failed).map(|usual| usual * (1.0 + ruling.limit)).filter(|share| *share < 1.0),
            What::Slow(quantile) => ruling.slow_us.map(|_| quantile.tail()),
            What::Overdue => {
                let usual = overdue(self.baseline.tally());
                match usual.share().filter(|_| usual.of >= self.policy.min_requests) {
                    // Where blue itself leaves nearly all waiting, as where clients wait for news, time says nothing.
                    Some(overdue) => Some(1.0 - ruling.limit * (1.0 - overdue)).filter(|share| *share <= NEARLY_ALL),
                    // Nobody knows how long answers take. Where none has come for long, they do not come at all.
                    None => (self.unanswered >= LONG_POLL).then_some(NEARLY_ALL),
                }
            }
            What::Mismatched => Some(1.0 - ruling.limit),
            What::Declined => usual(declined).map(|usual| usual + ruling.limit).filter(|share| *share < 1.0),
            What::CutOff => usual(cut_off).map(|usual| usual + ruling.limit).filter(|share| *share < 1.0),
        }
    }

    fn events(&self, ruling: &Ruling, tally: &Tally) -> Events {
        match ruling.what {
            What::Failed | What::FailedMore => failed(tally),
            What::Unreachable => Events::new(tally.count(Outcome::Unreachable), tally.judged()),
            What::Slow(_) => {
                let slow = |us| Events::new(bound::count_above(&tally.latency_us, us), tally.latency_us.len());
                ruling.slow_us.map_or_else(Events::default, slow)
            }
            What::Overdue => overdue(tally),
            What::Mismatched => Events::default(),
            What::Declined => declined(tally),
            What::CutOff => cut_off(tally),
        }
    }

    /// What comes of the seconds so far.
    pub fn judge(&self, surroundings: &Surroundings) -> Judgement {
        let mut shared_cause = false;
        let mut pause = None;
        let mut rules = Vec::with_capacity(self.rulings.len() + 1 + surroundings.signals.len());
        for ruling in &self.rulings {
            let (evidence, finding) = self.evidence(ruling);
            match (ruling.consequence, finding) {
                (Consequence::Trip, Finding::Shared) => shared_cause = true,
                // Nothing is taken off for it, but a person should know.
                (Consequence::Trip, Finding::FewKeys) | (Consequence::Doubt, Finding::Breach) => {
                    pause.get_or_insert_with(|| evidence.reason.clone());
                }
                (Consequence::Trip, Finding::Breach) if self.is_out_of_date(ruling) => {
                    pause.get_or_insert_with(|| evidence.reason.clone());
                }
                (Consequence::Pause, Finding::Breach | Finding::Shared | Finding::ThinBlue) => {
                    pause.get_or_insert_with(|| evidence.reason.clone());
                }
                _ => {}
            }
            // It only ever speaks up.
            if ruling.consequence != Consequence::Pause {
                rules.push(evidence);
            }
        }
        if let Some((evidence, shared)) = self.health(surroundings) {
            shared_cause |= shared;
            rules.push(evidence);
        }
        rules.extend(surroundings.signals.iter().map(signal));
        let (verdict, reason) = self.conclude(&rules);
        let Sums { blue, green, .. } = &self.recent.sums;
        Judgement {
            verdict,
            reason,
            shared_cause,
            pause,
            window_seconds: self.recent.seconds.len() as u64,
            rules,
            blue: ArmEvidence::of(blue),
            green: ArmEvidence::of(green),
            baseline: self.baseline.report(),
            placebo: None,
        }
    }

    /// Does it compare with what blue was like long ago, as where green has had all the traffic since? Then that may be the
    /// time of day and no fault of green's.
    fn is_out_of_date(&self, ruling: &Ruling) -> bool {
        let compares = matches!(ruling.what, What::FailedMore | What::Slow(_) | What::CutOff);
        compares && self.baseline.is_out_of_date()
    }

    fn evidence(&self, ruling: &Ruling) -> (Evidence, Finding) {
        let Ruling { what, limit, consequence, slow_us, rule } = ruling;
        let allowed = self.allowed(ruling);
        let asked = allowed.map(|allowed| Asked {
            allowed,
            min_keys: self.policy.min_keys,
            blue_has_traffic: *what != What::Mismatched && self.baseline.was_heard_within(BLUE_IS_IDLE),
            out_of_order: (OUT_OF_ORDER * self.policy.max_error_rate).min(SURELY_OUT_OF_ORDER),
        });
        let finding = asked.as_ref().map_or(Finding::Quiet, |asked| rule.finding(asked));
        let (since_zero, recent) = (rule.since_zero(), rule.recent());
        let enough = recent.0.of >= self.policy.min_requests;
        let within = allowed.is_some_and(|allowed| match what {
            What::Failed => rule.is_surely_within(allowed),
            _ => rule.is_seemingly_within(allowed),
        });
        let trips = finding == Finding::Breach
            || (finding == Finding::Shared && self.policy.shared_cause == SharedCause::Rollback);
        let verdict = match consequence {
            Consequence::Trip if trips && !self.is_out_of_date(ruling) => Verdict::Breach,
            _ if finding == Finding::Quiet && enough && within => Verdict::Pass,
            _ => Verdict::Unknown,
        };
        let (green, blue, seconds, keys) = match finding {
            Finding::Quiet => (recent.0, Events::default(), recent.1, 0),
            _ => since_zero,
        };
        let unserved = asked.filter(|asked| rule.is_blue_out_of_order(asked)).map(|_| rule.blue_unserved());
        let spoken = Spoken { ruling, finding, green, blue, unserved, seconds, keys, allowed, enough, within };
        let evidence = Evidence {
            rule: what.name().to_owned(),
            verdict,
            reason: self.say(&spoken),
            shared_cause: finding == Finding::Shared,
            evidence: rule.evidence(),
            limit: *limit,
            observed: what.observed(&self.recent.sums),
            observed_since_raise: what.observed(&self.since_raise),
            window_seconds: seconds,
            bad: green.bad,
            of: green.of,
            blue_bad: blue.bad,
            blue_of: blue.of,
            keys,
            allowed_share: allowed,
            minimum_green: self.policy.min_requests,
            blue_p95_ms: None,
            green_p95_ms: None,
            threshold_ms: None,
        };
        let evidence = match what {
            What::Slow(_) => Evidence {
                blue_p95_ms: quantile_ms(&self.recent.sums.blue, 0.95),
                green_p95_ms: quantile_ms(&self.recent.sums.green, 0.95),
                threshold_ms: slow_us.map(|us| us as f64 / 1000.0),
                ..evidence
            },
            _ => evidence,
        };
        (evidence, finding)
    }

    /// A rule's sentence.
    fn say(&self, spoken: &Spoken<'_>) -> String {
        let Spoken { ruling, finding, green, blue, unserved, seconds, keys, allowed, enough, within } = spoken;
        let Ruling { what, limit, .. } = ruling;
        let events = |events: &Events| {
            format!("{} of {} ({})", events.bad, events.of, percent(events.share().unwrap_or_default()))
        };
        let did = match what {
            What::Failed | What::FailedMore => "failed".to_owned(),
            What::Unreachable => "could not be reached for".to_owned(),
            What::Slow(_) => {
                let slow = ruling.slow_us.unwrap_or_default() as f64 / 1000.0;
                format!("took longer than {slow:.1} ms for")
            }
            What::Overdue => format!("had no answer within {} s for", self.policy.answer_within.as_secs()),
            What::Mismatched => "did not match in".to_owned(),
            What::Declined => "declined".to_owned(),
            What::CutOff => "took and dropped at once".to_owned(),
        };
        let most = match what {
            What::Failed | What::Unreachable => format!("the limit is {}", percent(*limit)),
            What::FailedMore => {
                format!("the limit is {} more than blue, {}", percent(*limit), percent(allowed.unwrap_or_default()))
            }
            What::Slow(quantile) => format!("the limit is {limit} times blue's {}", quantile.as_str()),
            What::Overdue if overdue(self.baseline.tally()).of < self.policy.min_requests => {
                format!("{} are too many whatever blue does", percent(NEARLY_ALL))
            }
            What::Overdue => format!("the limit is {} of blue's throughput", percent(*limit)),
            What::Mismatched => format!("at least {} must match", percent(*limit)),
            What::Declined | What::CutOff => {
                format!("{} is as much as can be expected", percent(allowed.unwrap_or_default()))
            }
        };
        let seen = format!("green {did} {} in {seconds} s; {most}", events(green));
        let beside = match (unserved, blue.of) {
            (Some(unserved), _) if *finding == Finding::Shared => {
                format!("; blue failed or left waiting {}", events(unserved))
            }
            (_, 0) => String::new(),
            _ => format!("; blue {did} {}", events(blue)),
        };
        match finding {
            Finding::Quiet if allowed.is_none() => match what {
                What::Slow(_) => "too little is known of blue's latency".to_owned(),
                What::Overdue if overdue(self.baseline.tally()).of >= self.policy.min_requests => {
                    "blue leaves nearly all waiting as well, so that time says nothing".to_owned()
                }
                _ => "too little is known of blue".to_owned(),
            },
            Finding::Quiet if !enough => {
                format!("green has {} outcomes; at least {} are needed", green.of, self.policy.min_requests)
            }
            Finding::Quiet if !within && green.bad as f64 <= allowed.unwrap_or_default() * green.of as f64 => {
                format!("{seen}; that is too little to be sure")
            }
            Finding::Quiet if !within => format!("{seen}; that is too much for a pass"),
            Finding::Quiet => seen,
            Finding::Doubt => format!("{seen}{beside}; a breach takes more, and {FEWEST_SECONDS} bad seconds at least"),
            Finding::FewKeys => {
                // Of that many others would be left.
                let few = (*keys).min(u64::from(self.policy.min_keys).saturating_sub(1));
                format!(
                    "{seen}{beside}; but nearly all of it is of {few} key{}, and {} are needed: not tripped",
                    if few == 1 { "" } else { "s" },
                    self.policy.min_keys
                )
            }
            Finding::ThinBlue if blue.of == 0 => format!("{seen}; blue has not been heard of since: not tripped yet"),
            Finding::ThinBlue => format!("{seen}{beside}, too few to say that it does better: not tripped"),
            Finding::Shared if self.policy.shared_cause == SharedCause::Hold => {
                format!("{seen}{beside}: both are bad, so green is not to blame; not tripped")
            }
            Finding::Shared | Finding::Breach if self.is_out_of_date(ruling) => {
                let hours = self.baseline.report().age_seconds.unwrap_or_default() / 3_600;
                format!("{seen}; but blue was last heard of {hours} h ago: not tripped")
            }
            Finding::Shared | Finding::Breach => format!("{seen}{beside}"),
        }
    }

    /// The fast lane: every endpoint of green fails its checks. And: are blue's in the same state? `None`: there are no
    /// checks.
    fn health(&self, surroundings: &Surroundings) -> Option<(Evidence, bool)> {
        let fewest = |endpoints: &[EndpointObservation]| endpoints.iter().map(|endpoint| endpoint.failed_checks).min();
        let (failed, most) = (fewest(&surroundings.green_endpoints)?, self.policy.max_failed_checks);
        let is_bad = failed > most;
        // Both are not checked at the same moment: where both fall at once, blue may be a check behind. One that passes
        // says that it is not down.
        let shared = is_bad && fewest(&surroundings.blue_endpoints).is_some_and(|failed| failed > 0);
        let holds = shared && self.policy.shared_cause == SharedCause::Hold;
        let verdict = match (is_bad, failed) {
            (true, _) if !holds => Verdict::Breach,
            (false, 0) => Verdict::Pass,
            _ => Verdict::Unknown,
        };
        let reason = match (failed, holds) {
            (0, _) => "not every endpoint of green fails its checks".to_owned(),
            (_, true) => {
                format!(
                    "every endpoint of green has failed {failed} checks or more in a row, and those of blue fail as well: not tripped"
                )
            }
            _ => format!("every endpoint of green has failed {failed} checks or more in a row; the limit is {most}"),
        };
        let evidence = Evidence {
            verdict,
            evidence: f64::from(failed) / (f64::from(most) + 1.0),
            shared_cause: shared,
            observed: Some(f64::from(failed)),
            ..Evidence::bare(HEALTH, reason, f64::from(most))
        };
        Some((evidence, shared))
    }

    /// One breach is a breach. A pass needs the error rate, and no rule that speaks against green.
    fn conclude(&self, rules: &[Evidence]) -> (Verdict, String) {
        let breaches: Vec<&str> =
            rules.iter().filter(|rule| rule.verdict == Verdict::Breach).map(|rule| rule.reason.as_str()).collect();
        if !breaches.is_empty() {
            return (Verdict::Breach, breaches.join("; "));
        }
        let doubted = |rule: &&Evidence| {
            let knows = rule.allowed_share.is_some() && (rule.of >= rule.minimum_green.max(1) || rule.evidence > 0.0);
            let is_heard = rule.rule == What::Failed.name() || rule.rule.starts_with(SIGNAL) || rule.rule == HEALTH;
            rule.verdict == Verdict::Unknown && (knows || is_heard)
        };
        // The one that speaks loudest.
        let doubt = rules.iter().filter(doubted).max_by(|a, b| a.evidence.total_cmp(&b.evidence));
        match doubt {
            Some(rule) => (Verdict::Unknown, rule.reason.clone()),
            None if self.silence >= SILENT => {
                (Verdict::Unknown, format!("green has had no outcome for {} s", self.silence))
            }
            None => (Verdict::Pass, "green is within its limits".to_owned()),
        }
    }
}

/// What a rule's sentence is made of.
struct Spoken<'a> {
    ruling: &'a Ruling,
    finding: Finding,
    green: Events,
    blue: Events,
    /// Of a blue that is out of order.
    unserved: Option<Events>,
    seconds: u64,
    keys: u64,
    allowed: Option<f64>,
    enough: bool,
    within: bool,
}

/// How the names of rules begin that are signals from outside.
const SIGNAL: &str = "signal:";

const HEALTH: &str = "health";

fn signal(reading: &SignalReading) -> Evidence {
    Evidence {
        verdict: reading.verdict,
        evidence: reading.evidence,
        observed: reading.value,
        ..Evidence::bare(&format!("{SIGNAL}{}", reading.name), reading.reason.clone(), reading.limit)
    }
}

impl What {
    fn name(self) -> &'static str {
        match self {
            Self::Failed => "error_rate",
            Self::FailedMore => "error_increase",
            Self::Unreachable => "connect_failures",
            Self::Slow(Quantile::P50) => "p50_ratio",
            Self::Slow(Quantile::P95) => "p95_ratio",
            Self::Slow(Quantile::P99) => "p99_ratio",
            Self::Overdue => "throughput",
            Self::Mismatched => "match_rate",
            Self::Declined => "declined_share",
            Self::CutOff => "cut_off_share",
        }
    }

    /// In the unit of the limit.
    fn observed(self, sums: &Sums) -> Option<f64> {
        let Sums { blue, green, mirror } = sums;
        let ratio = |mine: Option<f64>, theirs: Option<f64>| Some(mine? / theirs.filter(|theirs| *theirs > 0.0)?);
        match self {
            Self::Failed => green.error_rate(),
            Self::FailedMore => ratio(green.error_rate(), blue.error_rate()).map(|ratio| ratio - 1.0),
            Self::Unreachable => Events::new(green.count(Outcome::Unreachable), green.judged()).share(),
            Self::Slow(quantile) => {
                let quantile = |tally: &Tally| tally.quantile_us(1.0 - quantile.tail()).map(|us| us as f64);
                ratio(quantile(green), quantile(blue).map(|us| us.max(1.0)))
            }
            Self::Overdue => {
                let answered = |tally: &Tally| overdue(tally).share().map(|share| 1.0 - share);
                ratio(answered(green), answered(blue))
            }
            Self::Mismatched => Events::new(mirror.mismatches, mirror.pairs).share().map(|share| 1.0 - share),
            Self::Declined => declined(green).share(),
            Self::CutOff => cut_off(green).share(),
        }
    }
}

/// What a configuration asks.
fn rulings(policy: &config::Guard) -> Vec<Ruling> {
    let mut rulings = Vec::new();
    let mut ask = |what, limit: Option<f64>, consequence| {
        rulings.extend(limit.map(|limit| Ruling { what, limit, consequence, slow_us: None, rule: Rule::default() }));
    };
    ask(What::Failed, Some(policy.max_error_rate), Consequence::Trip);
    ask(What::FailedMore, policy.max_error_increase, Consequence::Trip);
    ask(What::Unreachable, policy.max_connect_failures, Consequence::Trip);
    ask(What::Slow(Quantile::P50), policy.max_p50_ratio, Consequence::Trip);
    ask(What::Slow(Quantile::P95), policy.max_p95_ratio, Consequence::Trip);
    ask(What::Slow(Quantile::P99), policy.max_p99_ratio, Consequence::Trip);
    ask(What::Overdue, Some(policy.min_throughput), Consequence::Trip);
    ask(What::Mismatched, policy.min_match_rate, Consequence::Trip);
    ask(What::CutOff, Some(CUT_OFF_MARGIN), Consequence::Trip);
    ask(What::Declined, Some(DECLINED_MARGIN), Consequence::Doubt);
    ask(What::Failed, policy.pause.max_error_rate, Consequence::Pause);
    ask(What::Slow(Quantile::P95), policy.pause.max_p95_ratio, Consequence::Pause);
    ask(What::Mismatched, policy.pause.min_match_rate, Consequence::Pause);
    rulings
}

fn failed(tally: &Tally) -> Events {
    Events::new(tally.failures(), tally.judged())
}

fn overdue(tally: &Tally) -> Events {
    Events::new(tally.overdue, tally.due)
}

fn served(tally: &Tally) -> Served {
    Served {
        dispatched: tally.dispatched,
        ended: tally.judged() + tally.count(Outcome::ClientGone),
        judged: tally.judged(),
        failed: tally.failures(),
        overdue: tally.overdue,
    }
}

fn declined(tally: &Tally) -> Events {
    Events::new(tally.count(Outcome::Declined), tally.judged())
}

/// What was taken in one second may be dropped in the next one.
fn cut_off(tally: &Tally) -> Events {
    Events::new(tally.cut_off, tally.count(Outcome::Ok).max(tally.cut_off))
}

/// Whose the bad events were, where that is known.
fn keys(what: What, green: &Tally) -> Option<&Keys> {
    match what {
        What::Failed | What::FailedMore => Some(&green.failed_keys),
        // Of those above the lowest bar, which stand for those above others.
        What::Slow(_) => Some(&green.slow_keys),
        What::Overdue => Some(&green.overdue_keys),
        What::CutOff => Some(&green.cut_off_keys),
        What::Unreachable | What::Mismatched | What::Declined => None,
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests;
