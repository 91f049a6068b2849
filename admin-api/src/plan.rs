//! A plan that was started: how far it is, and what it has collected. No I/O, no clock: a second at a time.

use config::Plan;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A plan and how far it is. Recorded with its route's split, so that the two are never apart.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Run {
    /// As it was when it was started; a reload changes a plan that runs no more.
    pub plan: Plan,
    pub state: State,
    /// Which of the plan's steps, from 0; behind the last one green is done and blue is a hot standby.
    pub step: usize,
    /// The step's share is live and bakes; else its gates are waited for.
    pub entered: bool,
    /// Of this step: seconds whose verdict was `pass`, with the step's share live.
    pub healthy_seconds: u64,
    /// Of this step: seconds in which it did not get on, and waited for no person and no other route.
    pub held_seconds: u64,
    /// Seconds since the last step was done.
    pub observed_seconds: u64,
    /// Of this step: outcomes of green; while green has no share, compared copies.
    pub outcomes: u64,
    pub measured: Measured,
    /// Who has approved of this step.
    pub approved: Option<Stamp>,
    /// Somebody has said that this step's gates, or what its bake lacks, do not matter.
    pub waived: bool,
    pub started: Stamp,
    /// The last change of state or step.
    pub changed: Stamp,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Running,
    /// Until somebody resumes it.
    Paused,
    Done,
    /// By somebody. Green keeps its share.
    Aborted,
    /// Green was taken off, by the guard, by somebody or by the plan itself.
    RolledBack,
}

/// When something was changed, by whom and why.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Stamp {
    /// RFC 3339.
    pub at: String,
    pub by: String,
    pub reason: String,
}

/// What was measured over a step, second by second.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Measured {
    pub throughput: Mean,
    pub p95_ratio: Mean,
    pub match_rate: Mean,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Mean {
    pub sum: f64,
    pub seconds: u64,
}
