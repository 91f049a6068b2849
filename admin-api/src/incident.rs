//! The record of a trip: one sentence that needs no explanation, and everything it rested on.

mod page;
mod sentence;

use std::sync::Arc;

use config::{Arm, Split};
use hdrhistogram::Histogram;
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

pub(crate) use self::page::page;
use crate::{
    ArmEvidence, BaselineReport, Evidence, Judgement, Recorded, SECONDS_KEPT, Sample, Second, Tally, Verdict,
    event::rfc3339,
    guard::{TAIL_NATS, around},
    percent, plan,
};

/// One trip, with everything it rested on.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Incident {
    #[schema(example = "20260131T101502Z-shop-7")]
    pub id: String,
    pub route: String,
    /// RFC 3339.
    pub at: String,
    /// What happened, for people who do not know the guard.
    pub summary: String,
    pub verdict: Verdict,
    /// The guard's sentence: of every rule in breach.
    pub reason: String,
    /// Of the rules in breach the one that speaks loudest.
    #[schema(example = "error_rate")]
    pub rule: String,
    /// Blue was as bad, or out of order, and the route says `shared_cause = "rollback"`.
    pub shared_cause: bool,
    pub labels: Labels,
    pub rules: Vec<Evidence>,
    /// Seconds that `counts` are about.
    pub window_seconds: u64,
    pub counts: Counts,
    pub blue_p95_ms: Option<f64>,
    pub green_p95_ms: Option<f64>,
    pub quantiles: Quantiles,
    pub baseline: BaselineReport,
    /// The minutes before, second by second.
    pub seconds: Series,
    /// Green's failures, in words: the first and the last that are known of those seconds.
    pub first_error: Option<Sample>,
    pub last_error: Option<Sample>,
    /// Green's share before the trip, in per cent; afterwards it is 0.
    #[serde(serialize_with = "percent::serialize")]
    #[schema(value_type = f64)]
    pub split_before: Split,
    /// That of the state the trip made.
    pub revision: u64,
    /// Of the plan that was on its way, if there was one.
    pub plan_step: Option<PlanStep>,
    /// Who took green off.
    pub actor: String,
}

/// Which step it was, from 1, and how many the plan has.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub struct PlanStep {
    pub step: usize,
    pub of: usize,
}

/// What people call the arms.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub struct Labels {
    pub blue: String,
    pub green: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Counts {
    pub blue: ArmEvidence,
    pub green: ArmEvidence,
}

/// Latencies of both arms over the same seconds.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Quantiles {
    /// The seconds that the rule in breach is about, or a minute.
    pub window_seconds: u64,
    pub blue: ArmQuantiles,
    pub green: ArmQuantiles,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ArmQuantiles {
    /// Answers they were taken of.
    pub answers: u64,
    pub p50: Option<Quantile>,
    pub p95: Option<Quantile>,
    pub p99: Option<Quantile>,
}

/// Milliseconds. Too few answers leave a side open.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
pub struct Quantile {
    pub ms: f64,
    /// The true one is below this in one case of a thousand.
    pub at_least_ms: Option<f64>,
    /// And above this in another.
    pub at_most_ms: Option<f64>,
}

/// Columns of equal length: an entry for each second, oldest first, at most 300.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Series {
    /// When the last of them ended, RFC 3339.
    pub until: String,
    pub blue: ArmSeries,
    pub green: ArmSeries,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct ArmSeries {
    pub dispatched: Vec<u64>,
    /// Endings that say something about the arm, and those of them that count against it.
    pub judged: Vec<u64>,
    pub failed: Vec<u64>,
    /// Not answered in the guard's `answer_within`.
    pub overdue: Vec<u64>,
    pub p95_ms: Vec<Option<f64>>,
}

/// What a trip knows of itself.
pub(crate) struct Trip<'a> {
    pub(crate) route: &'a config::Route,
    pub(crate) judgement: &'a Judgement,
    /// What the plane remembers, oldest first.
    pub(crate) seconds: &'a [Arc<Second>],
    pub(crate) before: &'a Recorded,
    /// The state the trip made.
    pub(crate) tripped: &'a Recorded,
    pub(crate) actor: &'a str,
    pub(crate) at: OffsetDateTime,
}

/// Seconds that latencies are taken of where a rule is about none, as health checks are.
const LATENCY_SECONDS: u64 = 60;

impl Incident {
    pub(crate) fn of(trip: &Trip<'_>) -> Self {
        let Trip { route, judgement, before, tripped, at, .. } = *trip;
        let seconds = &trip.seconds[trip.seconds.len().saturating_sub(SECONDS_KEPT)..];
        let telling = telling(judgement);
        let about = telling.map(|rule| rule.window_seconds).filter(|seconds| *seconds > 0);
        let about = &seconds[seconds.len().saturating_sub(about.unwrap_or(LATENCY_SECONDS) as usize)..];
        let mut errors = about.iter().filter_map(|second| second.green.sample.as_ref());
        let (first_error, last_error) = (errors.next(), errors.next_back());
        Self {
            id: id(&route.name, tripped.revision, at),
            route: route.name.clone(),
            at: rfc3339(at),
            summary: sentence::summary(trip, telling),
            verdict: judgement.verdict,
            reason: judgement.reason.clone(),
            rule: telling.map(|rule| rule.rule.clone()).unwrap_or_default(),
            shared_cause: telling.is_some_and(|rule| rule.shared_cause),
            labels: Labels { blue: route.blue.label.clone(), green: route.green.label.clone() },
            rules: judgement.rules.clone(),
            window_seconds: judgement.window_seconds,
            counts: Counts { blue: judgement.blue.clone(), green: judgement.green.clone() },
            blue_p95_ms: judgement.blue.p95_ms,
            green_p95_ms: judgement.green.p95_ms,
            quantiles: Quantiles::of(about),
            baseline: judgement.baseline,
            seconds: Series::of(seconds, at),
            last_error: last_error.or(first_error).cloned(),
            first_error: first_error.cloned(),
            split_before: before.split,
            revision: tripped.revision,
            plan_step: before.plan.as_ref().and_then(PlanStep::of),
            actor: trip.actor.to_owned(),
        }
    }
}

impl PlanStep {
    /// `None`: the plan is over, or only observes.
    fn of(run: &plan::Run) -> Option<Self> {
        let of = run.plan.steps.len();
        (matches!(run.state, plan::State::Running | plan::State::Paused) && run.step < of)
            .then(|| Self { step: run.step + 1, of })
    }
}

/// Of the rules in breach the one that speaks loudest.
fn telling(judgement: &Judgement) -> Option<&Evidence> {
    let breaches = judgement.rules.iter().filter(|rule| rule.verdict == Verdict::Breach);
    // The first of equals.
    breaches.rev().max_by(|one, other| one.evidence.total_cmp(&other.evidence))
}

fn id(route: &str, revision: u64, at: OffsetDateTime) -> String {
    let (date, time) = (at.date(), at.time());
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z-{route}-{revision}",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second(),
    )
}

impl Quantiles {
    fn of(seconds: &[Arc<Second>]) -> Self {
        let arm = |arm: Arm| {
            let mut sum = Tally::default();
            seconds.iter().for_each(|second| sum.add_counts(second.arm(arm)));
            let latency_us = &sum.latency_us;
            ArmQuantiles {
                answers: latency_us.len(),
                p50: Quantile::of(latency_us, 0.5),
                p95: Quantile::of(latency_us, 0.95),
                p99: Quantile::of(latency_us, 0.99),
            }
        };
        Self { window_seconds: seconds.len() as u64, blue: arm(Arm::Blue), green: arm(Arm::Green) }
    }
}

impl Quantile {
    /// `None` without samples.
    fn of(latency_us: &Histogram<u64>, quantile: f64) -> Option<Self> {
        let ms = |us: u64| us as f64 / 1000.0;
        let (at_least, at_most) = around(latency_us, quantile, TAIL_NATS);
        (!latency_us.is_empty()).then(|| Self {
            ms: ms(latency_us.value_at_quantile(quantile)),
            at_least_ms: at_least.map(ms),
            at_most_ms: at_most.map(ms),
        })
    }
}

impl Series {
    /// Without the seconds before anything happened.
    fn of(seconds: &[Arc<Second>], until: OffsetDateTime) -> Self {
        let is_idle = |tally: &Tally| tally.dispatched == 0 && tally.judged() == 0 && tally.overdue == 0;
        let idle = seconds.iter().take_while(|second| is_idle(&second.blue) && is_idle(&second.green)).count();
        let arm = |arm: Arm| {
            let mut series = ArmSeries::default();
            for tally in seconds[idle..].iter().map(|second| second.arm(arm)) {
                series.dispatched.push(tally.dispatched);
                series.judged.push(tally.judged());
                series.failed.push(tally.failures());
                series.overdue.push(tally.overdue);
                series.p95_ms.push(tally.quantile_us(0.95).map(|us| us as f64 / 1000.0));
            }
            series
        };
        Self { until: rfc3339(until), blue: arm(Arm::Blue), green: arm(Arm::Green) }
    }
}

#[cfg(test)]
mod tests;
