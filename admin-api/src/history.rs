//! What each minute was like: counts, latencies, split and verdict of each route and arm, in a SQLite file of its own.
//!
//! Good to have, and nothing depends on it: a file that is damaged is moved aside, and a disk that fails or hangs delays
//! neither the start nor a trip. Two processes may have the file open, while one takes over from the other.

mod file;
mod recorder;

use std::path::PathBuf;

use config::{Arm, Split};
pub use file::History;
pub use recorder::Recorder;

use crate::{Outcome, Tally, Verdict};

/// One arm of a route in one minute.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// When the minute began: seconds since 1970, a multiple of 60.
    pub at: i64,
    pub route: String,
    pub arm: Arm,
    /// Seconds of the minute that were counted; fewer than 60 in a minute with a start or a stop.
    pub seconds: u64,
    /// This arm's share at the end of the minute. `None`: another process decided about it.
    pub split: Option<Split>,
    pub dispatched: u64,
    /// In the order of [`Outcome::ALL`].
    pub outcomes: [u64; Outcome::ALL.len()],
    pub fallbacks: u64,
    pub due: u64,
    pub overdue: u64,
    /// Of what was answered, in microseconds; `None` without answers.
    pub p50_us: Option<u64>,
    pub p95_us: Option<u64>,
    pub p99_us: Option<u64>,
    /// Green's at the end of the minute. `None`: blue's row, or nobody judged it.
    pub verdict: Option<Verdict>,
    /// The strongest of all rules, as a share of what makes a breach.
    pub evidence: Option<f64>,
}

impl Row {
    /// `seconds`: how many `seen` is the sum of.
    fn of(at: i64, route: &str, arm: Arm, seconds: u64, seen: &Tally) -> Self {
        Self {
            at,
            route: route.to_owned(),
            arm,
            seconds,
            split: None,
            dispatched: seen.dispatched,
            outcomes: Outcome::ALL.map(|outcome| seen.count(outcome)),
            fallbacks: seen.fallbacks,
            due: seen.due,
            overdue: seen.overdue,
            p50_us: seen.quantile_us(0.5),
            p95_us: seen.quantile_us(0.95),
            p99_us: seen.quantile_us(0.99),
            verdict: None,
            evidence: None,
        }
    }

    pub fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize]
    }

    /// Failed share of what says something about the arm, 0 to 1; `None` without any.
    pub fn error_rate(&self) -> Option<f64> {
        let failures: u64 =
            Outcome::ALL.into_iter().filter(|outcome| outcome.is_failure()).map(|outcome| self.count(outcome)).sum();
        let judged = self.count(Outcome::Ok) + self.count(Outcome::Declined) + failures;
        (judged > 0).then(|| failures as f64 / judged as f64)
    }
}

/// Which minutes are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub route: Option<String>,
    /// Seconds since 1970: minutes that began at `since` or later, and before `until`.
    pub since: i64,
    pub until: i64,
    /// Rows; the newest are taken. Never part of a minute, so the first one may exceed it.
    pub limit: usize,
}

/// Why the history could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("history file {}: could not be opened; make it and its folder readable and writable", path.display())]
    Open { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("history file {}: {problem}; give admin.history a file of its own, or move this one away", path.display())]
    NotOurs { path: PathBuf, problem: String },
    #[error("history file {}: is damaged: {problem}; it is moved aside with the next minute", path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error("history file {}: {operation} failed; check the disk it is on", path.display())]
    Io { path: PathBuf, operation: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("history file {}: reading took more than 2 s; ask for less time at once", path.display())]
    TooMuch { path: PathBuf },
    #[error("history file {}: an earlier minute is still being written; check the disk it is on", path.display())]
    Overdue { path: PathBuf },
    #[error("history file {}: {operation} was abandoned; it is tried again", path.display())]
    Abandoned { path: PathBuf, operation: &'static str },
}
