//! Judges green: `pass`, `unknown` or `breach`, with the evidence in the answer. No I/O, no clock, no memory.
//!
//! Every rule is the same question: is green's share of bad events above the allowed share, beyond chance? The bound
//! is Chernoff's (the relative entropy between what was seen and what is allowed), which holds for every sample size.
//! It must hold whichever second of the window is left out, so that one stalled second never trips a route, while a
//! green that fails altogether does so in its second or third.

mod bound;

use std::sync::Arc;

use bound::{CERTAIN_NATS, TAIL_NATS};
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
    /// Seconds that were looked at: the policy's window, or less after a start or a reset.
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
    /// From the configuration, in the rule's own unit: a share, or a ratio.
    pub limit: f64,
    /// What `limit` is compared with by eye; null when there is nothing to divide by.
    pub observed: Option<f64>,
    /// Bad events of green, and the events they are part of.
    pub bad: u64,
    pub of: u64,
    /// The share of bad events that the limit allows.
    pub allowed_share: f64,
    /// What the true share of bad events is at least, all but certainly, whichever second is left out. A breach is when
    /// it is above `allowed_share`. Null below the minimum.
    pub share_at_least: Option<f64>,
    /// Events each side must have before the rule judges; 0: that side is not asked.
    pub minimum_blue: u64,
    pub minimum_green: u64,
    pub blue: u64,
    pub green: u64,
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

/// Judges green by the policy's window of whole seconds.
///
/// `seconds`: all that the plane remembers, oldest first. `after`: only seconds whose `at` is above it are evidence;
/// a reset raises it. `None`: all are.
pub fn judge(policy: &Guard, seconds: &[Arc<Second>], after: Option<u64>) -> Judgement {
    let evidence = &seconds[seconds.partition_point(|second| after.is_some_and(|after| second.at <= after))..];
    let window_seconds = policy.window.as_secs().clamp(SHORTEST_WINDOW, SECONDS_KEPT as u64) as usize;
    let window = &evidence[evidence.len().saturating_sub(window_seconds)..];

    let (blue, green) = (sum(window, |second| &second.blue), sum(window, |second| &second.green));
    let rules = vec![
        error_rate(policy, window, &green),
        p95_ratio(policy, window, &blue, &green),
        no_answers(policy, window_seconds, evidence),
    ];
    let (verdict, reason) = conclude(&rules);
    Judgement {
        verdict,
        reason,
        window_seconds: window.len() as u64,
        rules,
        blue: ArmEvidence::of(&blue),
        green: ArmEvidence::of(&green),
    }
}

/// Seconds. In a shorter one nothing is left when a second is left out.
const SHORTEST_WINDOW: u64 = 3;

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

/// Green's failed share against an absolute limit; blue need not have any traffic.
fn error_rate(policy: &Guard, window: &[Arc<Second>], green: &Tally) -> Evidence {
    let limit = policy.max_error_rate;
    let events: Vec<Events> =
        window.iter().map(|second| Events { bad: second.green.failures(), of: second.green.judged() }).collect();
    let rule = Share { allowed: limit, minimum: policy.min_requests }.judge(&events);
    let (bad, of, length) = (rule.bad, rule.of, window.len());
    let share = percent(rule.share().unwrap_or_default());
    let reason = match rule.verdict {
        Verdict::Unknown if rule.at_least.is_none() => {
            format!("green has {of} outcomes in the last {length} s; at least {} are needed", policy.min_requests)
        }
        Verdict::Unknown => format!(
            "green failed {bad} of {of} ({share}) in the last {length} s; above the limit of {}, but not beyond chance",
            percent(limit)
        ),
        Verdict::Pass => {
            format!("green failed {bad} of {of} ({share}) in the last {length} s; the limit is {}", percent(limit))
        }
        Verdict::Breach => format!(
            "green failed {bad} of {of} ({share}) in the last {length} s; its error rate is at least {}, the limit is {}",
            percent(rule.at_least.unwrap_or_default()),
            percent(limit)
        ),
    };
    Evidence {
        limit,
        observed: rule.share(),
        minimum_green: policy.min_requests,
        blue: sum(window, |second| &second.blue).judged(),
        green: green.judged(),
        ..rule.evidence(ERROR_RATE, reason)
    }
}

/// Green's p95 against blue's over the same window. That green's p95 is above a time is the same as more than 5 % of
/// green being slower than that time, which only takes counting. The time is the ratio times an upper bound of blue's
/// p95 (an order statistic), so that blue's own luck does not trip green.
fn p95_ratio(policy: &Guard, window: &[Arc<Second>], blue: &Tally, green: &Tally) -> Evidence {
    let limit = policy.max_p95_ratio;
    let (blue_count, green_count) = (blue.latency_us.len(), green.latency_us.len());
    let minimum_blue = policy.min_requests.max(bound::smallest_sample(TAIL, TAIL_NATS));
    let p95 = |tally| quantile_ms(tally, 1.0 - TAIL);
    let observed = p95(green).zip(p95(blue)).map(|(green, blue)| green / blue.max(0.001));

    let threshold_us = (blue_count >= minimum_blue)
        .then(|| bound::upper_rank(blue_count, TAIL, TAIL_NATS))
        .flatten()
        .map(|rank| value_at_rank(&blue.latency_us, rank) as f64 * limit);
    let mut rule = match threshold_us {
        Some(threshold) => {
            let events: Vec<Events> = window
                .iter()
                .map(|second| &second.green.latency_us)
                .map(|latency| Events { bad: count_above(latency, threshold), of: latency.len() })
                .collect();
            Share { allowed: TAIL, minimum: policy.min_requests }.judge(&events)
        }
        None => Judged { verdict: Verdict::Unknown, bad: 0, of: green_count, allowed: TAIL, at_least: None },
    };
    // The bound on blue is looser than what is seen by eye: between the two nobody can say.
    if rule.verdict == Verdict::Pass && observed.is_some_and(|observed| observed > limit) {
        rule.verdict = Verdict::Unknown;
    }
    let (bad, of, length) = (rule.bad, rule.of, window.len());
    let ratio = observed.unwrap_or_default();
    let reason = match rule.verdict {
        Verdict::Unknown if rule.at_least.is_none() => format!(
            "blue has {blue_count} and green {green_count} latencies in the last {length} s; at least {minimum_blue} and \
             {} are needed",
            policy.min_requests
        ),
        Verdict::Unknown => format!(
            "green's p95 is {ratio:.2} times blue's in the last {length} s; above the limit of {limit}, but not beyond \
             chance"
        ),
        Verdict::Pass => {
            format!("green's p95 is {ratio:.2} times blue's in the last {length} s; the limit is {limit}")
        }
        Verdict::Breach => format!(
            "green's p95 is {ratio:.2} times blue's in the last {length} s, the limit is {limit}; {bad} of {of} took \
             longer than {:.1} ms",
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
        blue_p95_ms: p95(blue),
        green_p95_ms: p95(green),
        threshold_ms: threshold_us.map(|us| us / 1000.0),
        ..rule.evidence(P95_RATIO, reason)
    }
}

/// The share of requests above a p95.
const TAIL: f64 = 0.05;

/// Green takes requests and answers none of them. Whether that is a fault depends on the traffic, for a WebSocket may
/// stay open for days: blue, or green before, must have answered at least half of theirs.
fn no_answers(policy: &Guard, window_seconds: usize, evidence: &[Arc<Second>]) -> Evidence {
    let blue_all = sum(evidence, |second| &second.blue);
    let green_all = sum(evidence, |second| &second.green);
    // Nobody answers faster than it can: what takes blue long may take green long.
    let slowest = |tally: &Tally| tally.quantile_us(0.99).unwrap_or_default();
    let slow_seconds = (2 * slowest(&blue_all).max(slowest(&green_all))).div_ceil(1_000_000);
    let grace = (GRACE_SECONDS + slow_seconds).min(SECONDS_KEPT as u64) as usize;

    let (before, young) = evidence.split_at(evidence.len().saturating_sub(grace));
    let (past, old) = before.split_at(before.len().saturating_sub(window_seconds));
    let green_old = sum(old, |second| &second.green);
    let answered = answers(&green_old) + answers(&sum(young, |second| &second.green));

    let blue_now = sum(&evidence[past.len()..], |second| &second.blue);
    let blue_silent = blue_now.dispatched >= policy.min_requests && answers(&blue_now) == 0;
    let shares = [&blue_all, &sum(past, |second| &second.green)].map(|tally| {
        let share = answers(tally) as f64 / tally.dispatched.max(1) as f64;
        (tally.dispatched >= policy.min_requests.max(1)).then_some(share.min(1.0))
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
        blue: blue_all.dispatched,
        green: green_old.dispatched,
        ..rule.evidence(NO_ANSWERS, reason)
    }
}

/// What green was sent this many seconds ago or later need not be answered yet.
const GRACE_SECONDS: u64 = 5;

/// Whatever came back, be it only the head of an answer. That a client has left is none: it may have given up waiting.
fn answers(tally: &Tally) -> u64 {
    tally.judged().max(tally.latency_us.len())
}

/// Bad events of one second, and the events they are part of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Events {
    bad: u64,
    of: u64,
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
        let (bad, of) = seconds
            .iter()
            .fold((0_u64, 0_u64), |(bad, of), second| (bad.saturating_add(second.bad), of.saturating_add(second.of)));
        let at_least = (of >= self.minimum.max(1)).then(|| {
            let without = |second: &Events| {
                bound::at_least(bad.saturating_sub(second.bad), of.saturating_sub(second.of), CERTAIN_NATS)
            };
            seconds.iter().map(without).fold(f64::INFINITY, f64::min)
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

    /// What all rules have in common; the caller adds what is its own.
    fn evidence(self, rule: &'static str, reason: String) -> Evidence {
        Evidence {
            rule,
            verdict: self.verdict,
            reason,
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
            blue_p95_ms: None,
            green_p95_ms: None,
            threshold_ms: None,
        }
    }
}

fn sum<'a>(seconds: &'a [Arc<Second>], arm: impl Fn(&'a Second) -> &'a Tally) -> Tally {
    let mut total = Tally::default();
    for second in seconds {
        total.add(arm(second));
    }
    total
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
    // Not `count_between`: beyond the highest bucket in use it answers with the count of that bucket.
    latency_us
        .iter_recorded()
        .filter(|step| latency_us.lowest_equivalent(step.value_iterated_to()) as f64 > threshold_us)
        .map(|step| step.count_at_value())
        .sum()
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What one arm did in one second.
    #[derive(Clone, Copy, Default)]
    struct Did {
        ok: u64,
        failed: u64,
        latency_us: u64,
        unanswered: u64,
    }

    fn ok(ok: u64) -> Did {
        Did { ok, latency_us: 10_000, ..Did::default() }
    }

    fn tally(did: Did) -> Tally {
        let mut tally = Tally::default();
        tally.dispatched = did.ok + did.failed + did.unanswered;
        for n in 0..did.ok {
            // Spread by a fifth around the middle, the same for every arm.
            tally.record(Outcome::Ok, Some(did.latency_us * (80 + n % 40) / 100));
        }
        for _ in 0..did.failed {
            tally.record(Outcome::Refused, Some(did.latency_us));
        }
        tally
    }

    fn seconds(each: impl IntoIterator<Item = (Did, Did)>) -> Vec<Arc<Second>> {
        let second = |(at, (blue, green))| Arc::new(Second { at, blue: tally(blue), green: tally(green) });
        (0..).zip(each).map(second).collect()
    }

    fn verdict(each: impl IntoIterator<Item = (Did, Did)>) -> Verdict {
        judge(&Guard::default(), &seconds(each), None).verdict
    }

    fn rule<'a>(judgement: &'a Judgement, name: &str) -> &'a Evidence {
        judgement.rules.iter().find(|rule| rule.rule == name).unwrap()
    }

    #[test]
    fn verdicts() {
        let broken = Did { failed: 50, latency_us: 1_000, ..Did::default() };
        let failing = |failed| Did { failed, ..ok(50 - failed) };
        let slow = |latency_us| Did { latency_us, ..ok(50) };
        let many = |green: Did| vec![(ok(50), green); 10];
        for (name, expected, each) in [
            ("nothing", Verdict::Unknown, vec![]),
            ("no traffic", Verdict::Unknown, vec![(ok(0), ok(0)); 10]),
            ("green idle", Verdict::Unknown, many(ok(0))),
            ("both well", Verdict::Pass, many(ok(50))),
            ("too little", Verdict::Unknown, vec![(ok(5), broken.half()), (ok(5), ok(0))]),
            ("4 % errors", Verdict::Pass, many(failing(2))),
            ("6 % errors are not beyond chance", Verdict::Unknown, many(failing(3))),
            ("20 % errors", Verdict::Breach, many(failing(10))),
            ("all errors, three seconds", Verdict::Breach, vec![(ok(50), broken); 3]),
            (
                "all errors, from the middle of a second",
                Verdict::Breach,
                vec![(ok(50), broken.half()), (ok(50), broken)],
            ),
            ("one stalled second", Verdict::Unknown, {
                let mut each = many(ok(50));
                each[4].1 = broken;
                each
            }),
            ("all errors without any blue", Verdict::Breach, vec![(ok(0), broken); 3]),
            ("well without any blue", Verdict::Pass, vec![(ok(0), ok(50)); 10]),
            ("a little slower", Verdict::Pass, many(slow(15_000))),
            ("five times slower", Verdict::Breach, many(slow(50_000))),
            ("slow, but blue is too thin to compare with", Verdict::Pass, vec![(ok(5), slow(50_000)); 10]),
            ("older than the window", Verdict::Pass, {
                let mut each = vec![(ok(50), broken); 5];
                each.extend(many(ok(50)));
                each
            }),
        ] {
            assert_eq!(verdict(each), expected, "{name}");
        }
    }

    impl Did {
        fn half(self) -> Self {
            Self { ok: self.ok / 2, failed: self.failed / 2, unanswered: self.unanswered / 2, ..self }
        }
    }

    #[test]
    fn a_green_that_answers_nothing_is_a_breach_where_blue_answers() {
        let silent = Did { unanswered: 50, ..Did::default() };
        let no_answers = |each: Vec<(Did, Did)>| {
            let judgement = judge(&Guard::default(), &seconds(each), None);
            rule(&judgement, NO_ANSWERS).verdict
        };
        assert_eq!(no_answers(vec![(ok(50), silent); 9]), Verdict::Breach);
        assert_eq!(no_answers(vec![(ok(50), silent); 4]), Verdict::Unknown, "still within its grace");
        assert_eq!(no_answers(vec![(silent, silent); 12]), Verdict::Unknown, "blue does not answer either");
        assert_eq!(no_answers(vec![(ok(0), silent); 12]), Verdict::Unknown, "nobody knows that it should");
        let mut stops = vec![(ok(0), ok(50)); 20];
        stops.extend(vec![(ok(0), silent); 17]);
        assert_eq!(no_answers(stops), Verdict::Breach, "it did before");
        let slow_blue = Did { latency_us: 8_000_000, ..ok(50) };
        assert_eq!(no_answers(vec![(slow_blue, silent); 15]), Verdict::Unknown, "green may take as long as blue");
    }

    #[test]
    fn seconds_before_a_reset_are_no_evidence() {
        let broken = Did { failed: 50, ..Did::default() };
        let mut each = vec![(ok(50), broken); 6];
        each.extend(vec![(ok(50), ok(50)); 3]);
        let seconds = seconds(each);
        let policy = Guard::default();
        assert_eq!(judge(&policy, &seconds, None).verdict, Verdict::Breach);
        let after = judge(&policy, &seconds, Some(5));
        assert_eq!((after.verdict, after.window_seconds, after.green.refused), (Verdict::Pass, 3, 0));
        assert_eq!(judge(&policy, &seconds, Some(u64::MAX)).verdict, Verdict::Unknown);
    }

    #[test]
    fn the_evidence_says_what_it_rests_on() {
        let failing = Did { failed: 10, ..ok(40) };
        let judgement = judge(&Guard::default(), &seconds(vec![(ok(50), failing); 10]), None);
        assert_eq!(
            judgement.reason,
            "green failed 100 of 500 (20.0 %) in the last 10 s; its error rate is at least 12.4 %, the limit is 5.0 %"
        );
        let rule = rule(&judgement, ERROR_RATE);
        assert_eq!((rule.bad, rule.of, rule.blue, rule.green, rule.minimum_green), (100, 500, 500, 500, 20));
        assert_eq!(rule.observed, Some(0.2));
        let json = serde_json::to_value(&judgement).unwrap();
        assert_eq!(json["verdict"], "breach");
        assert_eq!(json["rules"][0]["rule"], "error_rate");
        assert!(json["green"]["p95_ms"].is_f64());
    }

    #[test]
    fn a_green_that_clients_give_up_on_is_one_that_answers_nothing() {
        let mut given_up = Tally::default();
        given_up.dispatched = 50;
        (0..50).for_each(|_| given_up.record(Outcome::ClientGone, None));
        let second = |at| Arc::new(Second { at, blue: tally(ok(50)), green: given_up.clone() });
        let judgement = judge(&Guard::default(), &(0..10).map(second).collect::<Vec<_>>(), None);
        assert_eq!(judgement.verdict, Verdict::Breach);
        assert_eq!(judgement.reason, "green was sent 200 and has answered none of them after 6 s");
    }

    #[test]
    fn the_shortest_window_still_trips() {
        let policy = Guard { window: Duration::from_secs(1), ..Guard::default() };
        let broken = Did { failed: 50, ..Did::default() };
        assert_eq!(judge(&policy, &seconds(vec![(ok(50), broken); 5]), None).verdict, Verdict::Breach);
    }

    #[test]
    fn the_window_is_the_policys() {
        let policy = Guard { window: Duration::from_secs(3), ..Guard::default() };
        let judgement = judge(&policy, &seconds(vec![(ok(50), ok(50)); 20]), None);
        assert_eq!((judgement.window_seconds, judgement.green.ok), (3, 150));
    }

    /// Not random enough for anything but tests (Marsaglia 2003).
    struct Xorshift(u64);

    impl Xorshift {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % bound
        }
    }

    fn severity(verdict: Verdict) -> u8 {
        match verdict {
            Verdict::Pass => 0,
            Verdict::Unknown => 1,
            Verdict::Breach => 2,
        }
    }

    #[test]
    fn one_more_failure_never_makes_green_look_better() {
        for seed in 1..=2_000 {
            let mut random = Xorshift(seed);
            let length = 1 + random.below(12) as usize;
            let mut events: Vec<Events> = (0..length)
                .map(|_| {
                    let of = random.below(60);
                    Events { bad: if of == 0 { 0 } else { random.below(of + 1) / (1 + random.below(9)) }, of }
                })
                .collect();
            let share = Share { allowed: 0.05, minimum: 20 };
            let mut before = share.judge(&events);
            for _ in 0..40 {
                let second = random.below(length as u64) as usize;
                let one = &mut events[second];
                // Either a success becomes a failure, or there is one more.
                if one.bad == one.of || random.below(2) == 0 {
                    one.of += 1;
                }
                one.bad += 1;
                let after = share.judge(&events);
                let enough = before.at_least.is_some();
                assert!(!enough || after.at_least >= before.at_least, "seed {seed}: {events:?}");
                assert!(!enough || severity(after.verdict) >= severity(before.verdict), "seed {seed}: {events:?}");
                before = after;
            }
        }
    }

    #[test]
    fn no_counts_are_too_extreme() {
        let most = u64::MAX;
        let counts = [0, 1, 2, 19, 20, 1_000_000, most / 2, most - 1, most];
        for allowed in [0.0, 1e-12, 0.05, 1.0 - 1e-12, 1.0] {
            for minimum in [0, 1, 20, most] {
                for bad in counts {
                    for of in counts {
                        let share = Share { allowed, minimum };
                        for seconds in [vec![Events { bad, of }; 1], vec![Events { bad, of }; 3]] {
                            let judged = share.judge(&seconds);
                            assert!(judged.at_least.is_none_or(|at_least| (0.0..=1.0).contains(&at_least)));
                        }
                    }
                }
            }
        }
        for n in counts {
            for nats in [TAIL_NATS, CERTAIN_NATS] {
                assert!(bound::upper_rank(n, TAIL, nats).is_none_or(|rank| (1..=n).contains(&rank)));
            }
        }
    }
}
