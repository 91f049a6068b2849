//! Judges green: `pass`, `unknown` or `breach`, with the evidence in the answer. No I/O, no clock, no memory.
//!
//! Every rule is the same question: is green's share of bad events above the allowed share, beyond chance? The bound
//! is Chernoff's (the relative entropy between what was seen and what is allowed), which holds for every sample size.
//! It must hold whichever second of the window is left out, so that one stalled second never trips a route, while a
//! green that fails altogether does so in its second or third.
//!
//! It is asked of three windows: the policy's is quick, the longer ones see what comes seldom or thinly. They share the
//! chance of a false alarm between them.
//!
//! And it is asked twice: green must be above the limit, and above what blue shows at the same time. Moving everybody
//! to a blue that is as sick helps nobody.

mod bound;

use std::{ops::Range, sync::Arc};

use bound::{BLUE_NATS, GREEN_NATS};
use config::Guard;
use hdrhistogram::Histogram;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{Outcome, SECONDS_KEPT, Second, Tally};

/// What the guard thinks of green.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Enough was seen, and it is within the limits.
    Pass,
    /// Too little was seen to say; or it is above a limit, but not yet beyond chance.
    Unknown,
    /// Above a limit beyond chance.
    Breach,
}

impl Verdict {
    /// `pass`, `unknown`, `breach`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Unknown => "unknown",
            Self::Breach => "breach",
        }
    }
}

/// A verdict and what it rests on.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Judgement {
    pub verdict: Verdict,
    /// A sentence.
    pub reason: String,
    /// Seconds that `blue` and `green` are about: the policy's window, or less after a start or a reset. A rule may have
    /// looked further back.
    pub window_seconds: u64,
    pub rules: Vec<Evidence>,
    pub blue: ArmEvidence,
    pub green: ArmEvidence,
}

/// One rule's verdict and numbers.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Evidence {
    #[schema(value_type = String, example = "error_rate")]
    pub rule: &'static str,
    pub verdict: Verdict,
    /// A sentence.
    pub reason: String,
    /// Seconds that this rule's verdict and numbers are about: of the windows that were judged, the one that tells.
    pub window_seconds: u64,
    /// From the configuration, in the rule's own unit: a share, or a ratio.
    pub limit: f64,
    /// What `limit` is compared with by eye; null when there is nothing to divide by.
    pub observed: Option<f64>,
    /// Bad events of green, and the events they are part of.
    pub bad: u64,
    pub of: u64,
    /// The share of bad events that is allowed: by the limit, or, if that is more, what blue's may be.
    pub allowed_share: f64,
    /// What the true share of bad events is at least, all but certainly, whichever second is left out. A breach is when
    /// it is above `allowed_share`. Null below the minimum; 0 may stand for any share within the limit.
    pub share_at_least: Option<f64>,
    /// Events each side must have before the rule judges; 0: that side is not asked.
    pub minimum_blue: u64,
    pub minimum_green: u64,
    pub blue: u64,
    pub green: u64,
    /// What blue's share of bad events may be at most, all but certainly, had its traffic come when green's did. The
    /// fewer outcomes blue has, the higher it is. Null where blue is not asked or has had no traffic.
    pub blue_share_at_most: Option<f64>,
    pub blue_p95_ms: Option<f64>,
    pub green_p95_ms: Option<f64>,
    /// Milliseconds that a request of green must exceed to count as bad (`p95_ratio`).
    pub threshold_ms: Option<f64>,
}

/// One arm's counts over the window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct ArmEvidence {
    pub dispatched: u64,
    pub ok: u64,
    /// Answered, and refused for a reason that lies with the client.
    pub declined: u64,
    pub unreachable: u64,
    pub refused: u64,
    pub broken: u64,
    pub timeout: u64,
    pub client_gone: u64,
    pub fallbacks: u64,
    /// Failed share of those that say something about the arm, 0 to 1.
    pub error_rate: Option<f64>,
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    pub p99_ms: Option<f64>,
}

impl ArmEvidence {
    pub fn of(tally: &Tally) -> Self {
        Self {
            dispatched: tally.dispatched,
            ok: tally.count(Outcome::Ok),
            declined: tally.count(Outcome::Declined),
            unreachable: tally.count(Outcome::Unreachable),
            refused: tally.count(Outcome::Refused),
            broken: tally.count(Outcome::Broken),
            timeout: tally.count(Outcome::Timeout),
            client_gone: tally.count(Outcome::ClientGone),
            fallbacks: tally.fallbacks,
            error_rate: tally.error_rate(),
            p50_ms: quantile_ms(tally, 0.5),
            p95_ms: quantile_ms(tally, 0.95),
            p99_ms: quantile_ms(tally, 0.99),
        }
    }
}

/// Judges green by three windows of whole seconds: the policy's, and the longer ones of [`WINDOWS`].
///
/// `seconds`: all that the plane remembers, oldest first. `after`: only seconds whose `at` is above it are evidence;
/// a reset raises it. `None`: all are.
pub fn judge(policy: &Guard, seconds: &[Arc<Second>], after: Option<u64>) -> Judgement {
    let evidence = &seconds[seconds.partition_point(|second| after.is_some_and(|after| second.at <= after))..];
    let own = policy.window.as_secs().clamp(SHORTEST_WINDOW, SECONDS_KEPT as u64) as usize;
    let lengths = WINDOWS.map(|times| (own * times).min(SECONDS_KEPT));
    let seen = Seen::of(evidence, lengths);

    let each =
        |rule: fn(&Guard, &Window<'_>) -> Evidence| seen.windows.iter().map(|window| rule(policy, window)).collect();
    let is_breach = |rule: &Evidence| rule.verdict == Verdict::Breach;
    // It never breaches, so what it is unsure of is what it has to tell.
    let is_doubt = |rule: &Evidence| rule.verdict == Verdict::Unknown && rule.share_at_least.is_some();
    let rules = vec![
        telling(each(error_rate), is_breach),
        telling(each(p95_ratio), is_breach),
        telling(lengths.map(|length| no_answers(policy, length, &seen)).into(), is_breach),
        telling(each(declined_share), is_doubt),
    ];
    let (verdict, reason) = conclude(&rules);
    let own = seen.windows.first().expect("the policy's window is always among them");
    Judgement {
        verdict,
        reason,
        window_seconds: own.seconds.len() as u64,
        rules,
        blue: ArmEvidence::of(&own.blue),
        green: ArmEvidence::of(&own.green),
    }
}

/// Seconds. In a shorter one nothing is left when a second is left out.
const SHORTEST_WINDOW: u64 = 3;

/// The windows that are judged, as multiples of the policy's; none is longer than what is kept.
const WINDOWS: [usize; bound::WINDOWS] = [1, 6, 30];

/// What is looked at, summed once.
struct Seen<'a> {
    /// Shortest first; at least one. Those that would hold the same seconds are one.
    windows: Vec<Window<'a>>,
    /// All evidence there is, and its sums.
    seconds: &'a [Arc<Second>],
    blue: Tally,
    green: Tally,
}

/// The newest seconds, oldest first, and their sums.
struct Window<'a> {
    seconds: &'a [Arc<Second>],
    blue: Tally,
    green: Tally,
}

impl<'a> Seen<'a> {
    /// Goes back in time once. Adding histograms is most of what a judgement costs.
    fn of(seconds: &'a [Arc<Second>], lengths: [usize; WINDOWS.len()]) -> Self {
        let mut seen = Self { windows: Vec::new(), seconds, blue: Tally::default(), green: Tally::default() };
        let mut summed = 0;
        for length in lengths.map(|length| length.min(seconds.len())) {
            if length > summed || seen.windows.is_empty() {
                seen.add(summed..length);
                summed = length;
                let seconds = &seconds[seconds.len() - length..];
                seen.windows.push(Window { seconds, blue: seen.blue.clone(), green: seen.green.clone() });
            }
        }
        seen.add(summed..seconds.len());
        seen
    }

    /// `ages`: seconds by their distance from the newest.
    fn add(&mut self, ages: Range<usize>) {
        for second in self.seconds.iter().rev().skip(ages.start).take(ages.len()) {
            self.blue.add(&second.blue);
            self.green.add(&second.green);
        }
    }
}

impl Window<'_> {
    fn events(&self, events: impl Fn(&Second) -> Events) -> Vec<Events> {
        self.seconds.iter().map(|second| events(second)).collect()
    }
}

/// Of one rule's evidence, shortest window first, that which decides: the first that is alarming, else the first that
/// has enough to go by, else the longest.
fn telling(mut windows: Vec<Evidence>, alarming: impl Fn(&Evidence) -> bool) -> Evidence {
    let first = windows.iter().position(alarming);
    let enough = || windows.iter().position(|rule| rule.share_at_least.is_some());
    let index = first.or_else(enough).unwrap_or(windows.len() - 1);
    windows.swap_remove(index)
}

/// One breach is a breach. A pass needs the error rate, and no rule that has enough to go by and still cannot say.
fn conclude(rules: &[Evidence]) -> (Verdict, String) {
    let undecided = |rule: &&Evidence| {
        rule.verdict == Verdict::Unknown && (rule.rule == ERROR_RATE || rule.share_at_least.is_some())
    };
    let breaches: Vec<&Evidence> = rules.iter().filter(|rule| rule.verdict == Verdict::Breach).collect();
    if !breaches.is_empty() {
        let reasons: Vec<&str> = breaches.iter().map(|rule| rule.reason.as_str()).collect();
        return (Verdict::Breach, reasons.join("; "));
    }
    match rules.iter().find(undecided) {
        Some(rule) => (Verdict::Unknown, rule.reason.clone()),
        None => (Verdict::Pass, "green is within its limits".to_owned()),
    }
}

const ERROR_RATE: &str = "error_rate";
const P95_RATIO: &str = "p95_ratio";
const NO_ANSWERS: &str = "no_answers";
const DECLINED_SHARE: &str = "declined_share";

/// Green's failed share against an absolute limit, and against blue's.
///
/// A blue without traffic is not asked: the limit alone judges. A thin one is asked, and counts for what it can show:
/// 5 outcomes without a failure leave it possible that 80 % of blue's fail, 20 that 33 %, 157 that 5 %, and green must
/// be above that. So beside a thin blue a green that fails altogether trips, and one that fails now and then waits for
/// a longer window. Taking few good outcomes for a well blue would, in an outage of both, move everybody to it by luck.
fn error_rate(policy: &Guard, window: &Window<'_>) -> Evidence {
    let limit = policy.max_error_rate;
    let events = window.events(|second| Events::failed(&second.green));
    let mut rule = Share { allowed: limit, minimum: policy.min_requests }.judge(&events);
    let above_limit = rule.verdict == Verdict::Breach;
    let blue = AtTheSameTime::of(window.seconds, |second| Events::failed(&second.blue), |second| second.green.judged());
    rule.must_exceed(blue.as_ref());

    let (bad, of, length) = (rule.bad, rule.of, window.seconds.len());
    let (blue_bad, blue_of) = (window.blue.failures(), window.blue.judged());
    let share = percent(rule.share().unwrap_or_default());
    let blue_share = percent(window.blue.error_rate().unwrap_or_default());
    let failed = format!("green failed {bad} of {of} ({share}) in the last {length} s");
    let reason = match rule.verdict {
        Verdict::Unknown if rule.at_least.is_none() => {
            format!("green has {of} outcomes in the last {length} s; at least {} are needed", policy.min_requests)
        }
        Verdict::Unknown if above_limit && blue.is_some_and(|blue| blue.share > limit) => {
            format!("{failed}, but blue fails too ({blue_bad} of {blue_of}, {blue_share}): not tripped")
        }
        Verdict::Unknown if above_limit => format!(
            "{failed}, but blue has too few outcomes to say that it fails less ({blue_bad} of {blue_of} failed): not \
             tripped"
        ),
        Verdict::Unknown => format!("{failed}; above the limit of {}, but not beyond chance", percent(limit)),
        Verdict::Pass => format!("{failed}; the limit is {}", percent(limit)),
        Verdict::Breach => {
            let at_least = percent(rule.at_least.unwrap_or_default());
            let beside = match blue_of {
                0 => String::new(),
                _ => format!("; blue failed {blue_bad} of {blue_of} ({blue_share})"),
            };
            format!("{failed}; its error rate is at least {at_least}, the limit is {}{beside}", percent(limit))
        }
    };
    Evidence {
        limit,
        observed: rule.share(),
        minimum_green: policy.min_requests,
        blue: blue_of,
        green: of,
        blue_share_at_most: blue.map(|blue| blue.at_most()),
        ..rule.evidence(ERROR_RATE, reason, length)
    }
}

/// Green's p95 against blue's over the same window. That green's p95 is above a time is the same as more than 5 % of
/// green being slower than that time, which only takes counting. The time is the ratio times an upper bound of blue's
/// p95 (an order statistic), so that blue's own luck does not trip green, and [`TOO_QUICK_TO_TELL_US`] above it at
/// least. Blue must not have been that slow itself when green was.
fn p95_ratio(policy: &Guard, window: &Window<'_>) -> Evidence {
    let limit = policy.max_p95_ratio;
    let (blue_count, green_count) = (window.blue.latency_us.len(), window.green.latency_us.len());
    let minimum_blue = policy.min_requests.max(bound::smallest_sample(TAIL, BLUE_NATS));
    let p95_us = |tally: &Tally| tally.quantile_us(1.0 - TAIL).map(|us| us as f64);
    let (blue_us, green_us) = (p95_us(&window.blue), p95_us(&window.green));
    let observed = green_us.zip(blue_us).map(|(green, blue)| green / blue.max(1.0));
    let too_slow_us = |blue: f64| (blue * limit).max(blue + TOO_QUICK_TO_TELL_US);

    let threshold_us = (blue_count >= minimum_blue)
        .then(|| bound::upper_rank(blue_count, TAIL, BLUE_NATS))
        .flatten()
        .map(|rank| too_slow_us(value_at_rank(&window.blue.latency_us, rank) as f64));
    let mut blue_at_most = None;
    let mut rule = match threshold_us {
        Some(threshold) => {
            let slow =
                |tally: &Tally| Events { bad: count_above(&tally.latency_us, threshold), of: tally.latency_us.len() };
            let share = Share { allowed: TAIL, minimum: policy.min_requests };
            let whole = slow(&window.green);
            if whole.bad as f64 <= TAIL * whole.of as f64 {
                // Cheap, and what a second more or less would change does not matter.
                share.judge(&[whole])
            } else {
                let mut rule = share.judge(&window.events(|second| slow(&second.green)));
                if rule.verdict == Verdict::Breach {
                    let green_of = |second: &Second| second.green.latency_us.len();
                    let blue = AtTheSameTime::of(window.seconds, |second| slow(&second.blue), green_of);
                    rule.must_exceed(blue.as_ref());
                    blue_at_most = blue.map(|blue| blue.at_most());
                }
                rule
            }
        }
        None => Judged { verdict: Verdict::Unknown, bad: 0, of: green_count, allowed: TAIL, at_least: None },
    };
    // The bound on blue is looser than what is seen by eye: between the two nobody can say.
    let slower = green_us.zip(blue_us).is_some_and(|(green, blue)| green > too_slow_us(blue));
    if rule.verdict == Verdict::Pass && slower {
        rule.verdict = Verdict::Unknown;
    }
    let (bad, of, length) = (rule.bad, rule.of, window.seconds.len());
    let ratio = format!("green's p95 is {:.2} times blue's in the last {length} s", observed.unwrap_or_default());
    let reason = match rule.verdict {
        Verdict::Unknown if rule.at_least.is_none() => format!(
            "blue has {blue_count} and green {green_count} latencies in the last {length} s; at least {minimum_blue} and \
             {} are needed",
            policy.min_requests
        ),
        Verdict::Unknown if blue_at_most.is_some() => {
            format!("{ratio}, above the limit of {limit}, but blue was as slow when green was: not tripped")
        }
        Verdict::Unknown => format!("{ratio}; above the limit of {limit}, but not beyond chance"),
        Verdict::Pass if observed.is_some_and(|observed| observed > limit) => {
            format!("{ratio}; above the limit of {limit}, but by less than {} ms", TOO_QUICK_TO_TELL_US / 1000.0)
        }
        Verdict::Pass => format!("{ratio}; the limit is {limit}"),
        Verdict::Breach => format!(
            "{ratio}, the limit is {limit}; {bad} of {of} took longer than {:.1} ms",
            threshold_us.unwrap_or_default() / 1000.0
        ),
    };
    Evidence {
        limit,
        observed,
        minimum_blue,
        minimum_green: policy.min_requests,
        blue: blue_count,
        green: green_count,
        blue_share_at_most: blue_at_most,
        blue_p95_ms: blue_us.map(|us| us / 1000.0),
        green_p95_ms: green_us.map(|us| us / 1000.0),
        threshold_ms: threshold_us.map(|us| us / 1000.0),
        ..rule.evidence(P95_RATIO, reason, length)
    }
}

/// The share of requests above a p95.
const TAIL: f64 = 0.05;

/// Microseconds that green's p95 may be above blue's whatever the ratio: three times 0.1 ms is noise to every client.
const TOO_QUICK_TO_TELL_US: f64 = 1_000.0;

/// Green takes requests and answers none of them. Whether that is a fault depends on the traffic, for a WebSocket may
/// stay open for days: blue, or green before, must have answered at least half of theirs.
fn no_answers(policy: &Guard, length: usize, seen: &Seen<'_>) -> Evidence {
    // Nobody answers faster than it can: what takes blue long may take green long.
    let slowest = |tally: &Tally| tally.quantile_us(0.99).unwrap_or_default();
    let slow_seconds = (2 * slowest(&seen.blue).max(slowest(&seen.green))).div_ceil(1_000_000);
    let grace = (GRACE_SECONDS + slow_seconds).min(SECONDS_KEPT as u64) as usize;

    let (before, young) = seen.seconds.split_at(seen.seconds.len().saturating_sub(grace));
    let (past, old) = before.split_at(before.len().saturating_sub(length));
    let green = |seconds: &[Arc<Second>]| seconds.iter().fold(Sent::default(), |sum, second| sum.and(&second.green));
    let green_old = green(old);
    let answered = green_old.answers() + green(young).answers();

    let blue_now = seen.seconds[past.len()..].iter().fold(Sent::default(), |sum, second| sum.and(&second.blue));
    let blue_silent = blue_now.dispatched >= policy.min_requests && blue_now.answers() == 0;
    let shares = [Sent::default().and(&seen.blue), green(past)].map(|sent| {
        let share = sent.answers() as f64 / sent.dispatched.max(1) as f64;
        (sent.dispatched >= policy.min_requests.max(1)).then_some(share.min(1.0))
    });
    let usual_share = shares.into_iter().flatten().fold(0.0, f64::max);
    let comparable = usual_share >= 0.5 && !blue_silent;

    let events: Vec<Events> = old
        .iter()
        .map(|second| second.green.dispatched)
        .map(|dispatched| Events { bad: if answered == 0 { dispatched } else { 0 }, of: dispatched })
        .collect();
    let mut rule = Share { allowed: 1.0 - usual_share / 2.0, minimum: policy.min_requests }.judge(&events);
    let silent = answered == 0 && rule.at_least.is_some();
    if silent && !(comparable && rule.verdict == Verdict::Breach) {
        (rule.verdict, rule.at_least) = (Verdict::Unknown, None);
    }
    let reason = match rule.verdict {
        Verdict::Breach => format!("green was sent {} and has answered none of them after {grace} s", rule.of),
        Verdict::Unknown if rule.of < policy.min_requests => {
            format!("green was sent {} more than {grace} s ago; at least {} are needed", rule.of, policy.min_requests)
        }
        Verdict::Unknown => {
            format!("green was sent {} and has answered none; nor is it known that it should have", rule.of)
        }
        Verdict::Pass => "green answers".to_owned(),
    };
    Evidence {
        limit: 0.0,
        observed: (rule.of > 0).then(|| answered as f64 / rule.of as f64),
        minimum_green: policy.min_requests,
        blue: seen.blue.dispatched,
        green: green_old.dispatched,
        ..rule.evidence(NO_ANSWERS, reason, old.len())
    }
}

/// What green was sent this many seconds ago or later need not be answered yet.
const GRACE_SECONDS: u64 = 5;

/// What was sent to an arm, and what came back.
#[derive(Default)]
struct Sent {
    dispatched: u64,
    judged: u64,
    timed: u64,
}

impl Sent {
    fn and(self, tally: &Tally) -> Self {
        Self {
            dispatched: self.dispatched + tally.dispatched,
            judged: self.judged + tally.judged(),
            timed: self.timed + tally.latency_us.len(),
        }
    }

    /// Whatever came back, be it only the head of an answer. That a client has left is none: it may have given up
    /// waiting.
    fn answers(&self) -> u64 {
        self.judged.max(self.timed)
    }
}

/// Green turns away more than blue does: a rewrite that answers 404 or 401 to everything. Never a breach, for clients
/// differ and may be wrong; but no pass either.
fn declined_share(policy: &Guard, window: &Window<'_>) -> Evidence {
    let declined = |tally: &Tally| Events { bad: tally.count(Outcome::Declined), of: tally.judged() };
    let (mine, theirs) = (declined(&window.green), declined(&window.blue));
    let blue = AtTheSameTime::of(window.seconds, |second| declined(&second.blue), |second| second.green.judged())
        .filter(|_| theirs.of >= policy.min_requests);
    let allowed = blue.map_or(1.0, |blue| blue.at_most());
    let events = window.events(|second| declined(&second.green));
    let mut rule = Share { allowed, minimum: policy.min_requests }.judge(&events);
    let length = window.seconds.len();
    match blue.zip(rule.share()) {
        Some((blue, share)) if rule.at_least.is_some() => {
            let more = rule.verdict == Verdict::Breach && share - blue.share >= DECLINED_MARGIN;
            rule.verdict = if more { Verdict::Unknown } else { Verdict::Pass };
        }
        _ => (rule.verdict, rule.at_least) = (Verdict::Unknown, None),
    }
    let shown = |events: &Events| {
        let share = events.bad as f64 / events.of.max(1) as f64;
        format!("{} of {} ({})", events.bad, events.of, percent(share))
    };
    let reason = match rule.at_least {
        None => format!(
            "blue has {} and green {} outcomes in the last {length} s; at least {} of each are needed",
            theirs.of, mine.of, policy.min_requests
        ),
        Some(_) => {
            let end = if rule.verdict == Verdict::Pass { "" } else { "; look at what it turns away" };
            format!("green declined {} in the last {length} s, blue {}{end}", shown(&mine), shown(&theirs))
        }
    };
    Evidence {
        limit: DECLINED_MARGIN,
        observed: rule.share(),
        minimum_blue: policy.min_requests,
        minimum_green: policy.min_requests,
        blue: theirs.of,
        green: mine.of,
        blue_share_at_most: blue.map(|blue| blue.at_most()),
        ..rule.evidence(DECLINED_SHARE, reason, length)
    }
}

/// How much higher than blue's green's declined share must be to be worth a look, as a share of all.
const DECLINED_MARGIN: f64 = 0.1;

/// Blue's share of bad events, had its traffic come when green's did.
///
/// Without this, a share of the whole window would compare different times: an outage of both, in seconds when green
/// had half of the traffic, would weigh little in a blue that has had nearly all of it since.
#[derive(Clone, Copy, Debug)]
struct AtTheSameTime {
    share: f64,
    /// How many outcomes would tell as much, were they not weighted (Kish 1965); at most as many as blue has.
    outcomes: f64,
}

impl AtTheSameTime {
    /// `None`: not in any stretch of time have both had outcomes.
    fn of(seconds: &[Arc<Second>], blue: impl Fn(&Second) -> Events, green: impl Fn(&Second) -> u64) -> Option<Self> {
        let (mut weights, mut bad, mut spread) = (0.0, 0.0, 0.0);
        let mut close = |blue: &Events, green: u64| {
            if blue.of > 0 && green > 0 {
                let (weight, outcomes) = (green as f64, blue.of as f64);
                weights += weight;
                bad += weight * (blue.bad as f64 / outcomes).min(1.0);
                spread += weight * weight / outcomes;
            }
        };
        let (mut blues, mut greens) = (Events::default(), 0_u64);
        for second in seconds.iter().rev() {
            blues = blues.and(&blue(second));
            greens = greens.saturating_add(green(second));
            if blues.of >= STRETCH && greens >= STRETCH {
                close(&blues, greens);
                (blues, greens) = (Events::default(), 0);
            }
        }
        close(&blues, greens);
        (weights > 0.0).then(|| Self { share: (bad / weights).min(1.0), outcomes: weights * weights / spread })
    }

    /// What the true share is at most, all but certainly.
    fn at_most(&self) -> f64 {
        bound::at_most(self.share, self.outcomes, BLUE_NATS)
    }
}

/// A stretch of time is as many whole seconds as it takes both arms to have this many outcomes.
const STRETCH: u64 = 10;

/// Bad events of one second, and the events they are part of.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Events {
    bad: u64,
    of: u64,
}

impl Events {
    fn failed(tally: &Tally) -> Self {
        Self { bad: tally.failures(), of: tally.judged() }
    }

    fn and(&self, other: &Self) -> Self {
        Self { bad: self.bad.saturating_add(other.bad), of: self.of.saturating_add(other.of) }
    }
}

/// The one question that every rule asks.
struct Share {
    allowed: f64,
    minimum: u64,
}

struct Judged {
    verdict: Verdict,
    bad: u64,
    of: u64,
    allowed: f64,
    at_least: Option<f64>,
}

impl Share {
    fn judge(&self, seconds: &[Events]) -> Judged {
        let Events { bad, of } = seconds.iter().fold(Events::default(), |sum, second| sum.and(second));
        let at_least = (of >= self.minimum.max(1)).then(|| {
            let without = |second: &Events| (bad.saturating_sub(second.bad), of.saturating_sub(second.of));
            let mut least = f64::INFINITY;
            for (bad, of) in seconds.iter().map(without) {
                // Most seconds are not the one that matters most; to see that is cheaper than the bound.
                if !bound::is_above(bad, of, GREEN_NATS, least) {
                    least = bound::at_least(bad, of, GREEN_NATS);
                }
            }
            least
        });
        let verdict = match at_least {
            None => Verdict::Unknown,
            Some(at_least) if at_least > self.allowed => Verdict::Breach,
            Some(_) if bad as f64 > self.allowed * of as f64 => Verdict::Unknown,
            Some(_) => Verdict::Pass,
        };
        Judged { verdict, bad, of, allowed: self.allowed, at_least }
    }
}

impl Judged {
    fn share(&self) -> Option<f64> {
        (self.of > 0).then(|| self.bad as f64 / self.of as f64)
    }

    /// Being above the allowed share is not enough where blue, at the same time, may be just as high.
    ///
    /// Each of the two bounds holds but for its own chance, so green is above both by chance no more often than it is
    /// above the one that is true (an intersection-union test).
    fn must_exceed(&mut self, blue: Option<&AtTheSameTime>) {
        let Some(blue_at_most) = blue.map(AtTheSameTime::at_most) else { return };
        self.allowed = self.allowed.max(blue_at_most);
        if self.verdict == Verdict::Breach && self.at_least.is_none_or(|at_least| at_least <= self.allowed) {
            self.verdict = Verdict::Unknown;
        }
    }

    /// What all rules have in common; the caller adds what is its own. `length`: seconds.
    fn evidence(self, rule: &'static str, reason: String, length: usize) -> Evidence {
        Evidence {
            rule,
            verdict: self.verdict,
            reason,
            window_seconds: length as u64,
            limit: self.allowed,
            observed: None,
            bad: self.bad,
            of: self.of,
            allowed_share: self.allowed,
            share_at_least: self.at_least,
            minimum_blue: 0,
            minimum_green: 0,
            blue: 0,
            green: 0,
            blue_share_at_most: None,
            blue_p95_ms: None,
            green_p95_ms: None,
            threshold_ms: None,
        }
    }
}

fn quantile_ms(tally: &Tally, quantile: f64) -> Option<f64> {
    tally.quantile_us(quantile).map(|us| us as f64 / 1000.0)
}

/// The value, at most, of the sample with this rank, counted from 1.
fn value_at_rank(latency_us: &Histogram<u64>, rank: u64) -> u64 {
    let mut below = 0_u64;
    for step in latency_us.iter_recorded() {
        below += step.count_at_value();
        if below >= rank {
            return latency_us.highest_equivalent(step.value_iterated_to());
        }
    }
    latency_us.max()
}

/// How many samples are above a time, not counting those that only may be.
fn count_above(latency_us: &Histogram<u64>, threshold_us: f64) -> u64 {
    let first_above = latency_us.highest_equivalent(threshold_us as u64).saturating_add(1);
    // `count_between` must not be asked beyond the highest bucket in use: it would answer with the count of that one.
    if latency_us.is_empty() || first_above > latency_us.max() {
        return 0;
    }
    latency_us.count_between(first_above, latency_us.max())
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests;
