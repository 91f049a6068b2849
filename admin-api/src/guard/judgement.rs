//! What the guard answers, as people and scripts see it.

use serde::Serialize;
use utoipa::ToSchema;

use super::BaselineReport;
use crate::{Outcome, Tally};

/// What the guard thinks of green.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Enough was seen, and it is within the limits.
    Pass,
    /// Too little was seen to say; or something speaks against green, but not enough; or both arms are bad.
    Unknown,
    /// Green breaks a limit, beyond chance.
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
    /// Green breaks a limit, and blue does at the same time.
    pub shared_cause: bool,
    /// Why a plan must not go on, and somebody should look, although nothing is to be taken off for it: a limit of
    /// `[route.guard.pause]`, a client that fails, a green that turns everybody away, a measure that is out of date.
    pub pause: Option<String>,
    /// Seconds that `blue` and `green` are about: a minute, or less after a start or a reset.
    pub window_seconds: u64,
    pub rules: Vec<Evidence>,
    pub blue: ArmEvidence,
    pub green: ArmEvidence,
    pub baseline: BaselineReport,
    /// What the same guard says of a slice of blue that is as large as green. Null while there is none.
    pub placebo: Option<PlaceboReport>,
}

/// A slice of blue, judged as if it were green: whatever trips there is a false alarm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct PlaceboReport {
    /// Breaches since the process started.
    pub trips: u64,
    /// Seconds in which there was something to judge.
    pub seconds: u64,
    /// Breaches a day, were it always so; null below an hour.
    pub trips_per_day: Option<f64>,
    /// Of the rule with the most, as [`Evidence::evidence`].
    pub evidence: f64,
}

/// One rule's verdict and numbers.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Evidence {
    /// `error_rate`, `p95_ratio`, …, `signal:NAME`.
    #[schema(example = "error_rate")]
    pub rule: String,
    pub verdict: Verdict,
    /// A sentence.
    pub reason: String,
    /// Blue is as bad, or out of order.
    pub shared_cause: bool,
    /// How strongly it speaks against green: 1 is a breach. 0 where nothing does.
    pub evidence: f64,
    /// From the configuration, in the rule's own unit: a share, or a ratio.
    pub limit: f64,
    /// What `limit` is compared with by eye, over the last minute; null when there is nothing to divide by.
    pub observed: Option<f64>,
    /// The same since the split last rose.
    pub observed_since_raise: Option<f64>,
    /// Seconds that the counts below are about: since the evidence was last 0, or else the last minutes.
    pub window_seconds: u64,
    /// Bad events of green, and the events they are part of.
    pub bad: u64,
    pub of: u64,
    /// The same of blue in these seconds, where it is asked and something speaks against green.
    pub blue_bad: u64,
    pub blue_of: u64,
    /// Different keys that green's bad events were of, as far as they are known, at least.
    pub keys: u64,
    /// The share of bad events that is allowed; null while it is not known what is usual.
    pub allowed_share: Option<f64>,
    /// Events of green that a `pass` takes.
    pub minimum_green: u64,
    pub blue_p95_ms: Option<f64>,
    pub green_p95_ms: Option<f64>,
    /// Milliseconds above which a request counts as slow (`p50_ratio`, `p95_ratio`, `p99_ratio`).
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
    /// Of `ok`: taken, and dropped at once.
    pub cut_off: u64,
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
            cut_off: tally.cut_off,
            error_rate: tally.error_rate(),
            p50_ms: quantile_ms(tally, 0.5),
            p95_ms: quantile_ms(tally, 0.95),
            p99_ms: quantile_ms(tally, 0.99),
        }
    }
}

impl Evidence {
    /// Without counts.
    pub(super) fn bare(rule: &str, reason: String, limit: f64) -> Self {
        Self {
            rule: rule.to_owned(),
            verdict: Verdict::Unknown,
            reason,
            shared_cause: false,
            evidence: 0.0,
            limit,
            observed: None,
            observed_since_raise: None,
            window_seconds: 0,
            bad: 0,
            of: 0,
            blue_bad: 0,
            blue_of: 0,
            keys: 0,
            allowed_share: None,
            minimum_green: 0,
            blue_p95_ms: None,
            green_p95_ms: None,
            threshold_ms: None,
        }
    }
}

pub(super) fn quantile_ms(tally: &Tally, quantile: f64) -> Option<f64> {
    tally.quantile_us(quantile).map(|us| us as f64 / 1000.0)
}
