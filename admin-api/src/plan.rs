//! A plan that was started: how far it is, what it has collected, and what comes next. No I/O, no clock: a second at a
//! time.
//!
//! A step is entered when its gates are open, bakes while the guard says `pass`, and is done when it has its bake,
//! enough outcomes, and what it requires. What is not known never lets a plan go on.

mod runner;
mod webhook;

use std::fmt;

use config::{Otherwise, Plan, Require, Split, Step};
pub use runner::Planner;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Verdict;

/// A plan and how far it is. Recorded with its route's split, so that the two are never apart.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Run {
    /// As it was when it was started: a reload changes none that runs.
    pub plan: Plan,
    pub origin: Origin,
    pub state: State,
    /// Which of the plan's steps, from 0; behind the last one green is done, and blue a hot standby.
    pub step: usize,
    /// The step's share is live and bakes; else its gates are waited for.
    pub entered: bool,
    /// The step that it began with.
    pub first: usize,
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
    /// Somebody has said that what this step waits for does not matter.
    pub waived: bool,
    /// Somebody has let it go on although the guard wanted it to pause: in this step, as long as the guard says so
    /// without a break.
    #[serde(default)]
    pub overruled: bool,
    /// It is paused because the guard wanted it.
    #[serde(default)]
    pub doubted: bool,
    /// Somebody has given green another share since it ran.
    #[serde(default)]
    pub by_hand: bool,
    pub started: Stamp,
    /// The last change of state or step.
    pub changed: Stamp,
}

/// Where a plan is from, and with it the addresses of its webhooks, which may hold secrets and are not recorded.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The configuration had the same.
    Configured,
    Sent,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Running,
    /// Until somebody resumes it. Green keeps its share.
    Paused,
    Done,
    /// By somebody. Green keeps its share.
    Aborted,
    /// Green was taken off, by the guard, by somebody or by the plan itself.
    RolledBack,
}

impl State {
    pub const ALL: [Self; 5] = [Self::Running, Self::Paused, Self::Done, Self::Aborted, Self::RolledBack];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Done => "done",
            Self::Aborted => "aborted",
            Self::RolledBack => "rolled_back",
        }
    }
}

/// When something was changed, by whom and why.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Stamp {
    /// RFC 3339.
    pub at: String,
    pub by: String,
    pub reason: String,
}

/// What was measured over a step.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Measured {
    pub throughput: Mean,
    pub p95_ratio: Mean,
    pub match_rate: Mean,
}

/// A figure that the guard forms since the split rose, and forms anew after a restart.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Mean {
    /// Before the last restart: the figures times the seconds they were about.
    before: f64,
    before_seconds: u64,
    last: f64,
    seconds: u64,
}

impl Mean {
    fn see(&mut self, figure: Option<f64>) {
        if let Some(figure) = figure.filter(|figure| figure.is_finite()) {
            self.last = figure;
            self.seconds = self.seconds.saturating_add(1);
        }
    }

    fn restarted(&mut self) {
        self.before += self.last * self.seconds as f64;
        self.before_seconds = self.before_seconds.saturating_add(self.seconds);
        (self.last, self.seconds) = (0.0, 0);
    }

    /// Over the step; `None`: nothing was measured.
    pub fn value(&self) -> Option<f64> {
        let seconds = self.before_seconds.saturating_add(self.seconds);
        (seconds > 0).then(|| (self.before + self.last * self.seconds as f64) / seconds as f64)
    }
}

/// What a second has told.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub verdict: Verdict,
    /// The guard's sentence.
    pub reason: &'a str,
    /// Green breaks a limit, and blue does at the same time.
    pub shared_cause: bool,
    /// Why the guard wants the plan to wait for somebody.
    pub pause: Option<&'a str>,
    /// Outcomes of green in this second; while it has no share, compared copies.
    pub outcomes: u64,
    /// How many a step must have.
    pub minimum: u64,
    /// Since the split rose.
    pub throughput: Option<f64>,
    pub p95_ratio: Option<f64>,
    pub match_rate: Option<f64>,
    pub gates: Gates<'a>,
}

/// What is known of the gates that [`Run::gates`] asks for. `None`: open.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gates<'a> {
    /// Which route's plan is not done, or was taken back since.
    pub after: Option<&'a str>,
    /// Why the signal does not pass.
    pub signal: Option<&'a str>,
    /// Why the webhook has not said yes.
    pub webhook: Option<&'a str>,
}

/// Why a plan does not go on in this second.
#[derive(Clone, Debug, PartialEq)]
pub enum Wait {
    /// It does: the step bakes, or blue is a hot standby.
    Time,
    After(String),
    Approval(String),
    Signal(String),
    Webhook(String),
    /// The guard does not say `pass`.
    Verdict(String),
    Outcomes {
        seen: u64,
        needed: u64,
    },
    Unmeasured(&'static str),
    /// The step is to begin, and the state file's disk does not let it.
    Disk,
}

impl Wait {
    /// For as long as it takes: somebody knows.
    fn is_patient(&self) -> bool {
        matches!(self, Self::Time | Self::After(_) | Self::Approval(_))
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time => f.write_str("time"),
            Self::After(route) => write!(f, "the plan of route {route}, which is not done, or was taken back"),
            Self::Approval(name) => write!(f, "the approval {name:?}"),
            Self::Signal(reason) => write!(f, "a signal: {reason}"),
            Self::Webhook(reason) => write!(f, "the webhook: {reason}"),
            Self::Verdict(reason) => write!(f, "a verdict of pass: {reason}"),
            Self::Outcomes { seen, needed } => write!(f, "traffic: {seen} of {needed} outcomes of green"),
            Self::Disk => f.write_str("the state file's disk"),
            Self::Unmeasured(figure) => write!(f, "a measurement: there is no {figure} of both arms yet"),
        }
    }
}

/// What is to be done about a plan.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// The step's share goes live: [`Run::enter`].
    Enter,
    /// The step is done: [`Run::next`].
    Next,
    /// [`Run::pause`]. `anew`: the step has to be baked once more.
    Pause { reason: String, anew: bool },
    /// Green is taken off: [`Run::end`].
    RollBack { reason: String },
}

/// What a second came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Ticked {
    pub wait: Wait,
    pub action: Option<Action>,
    /// What is to be recorded has changed.
    pub progress: bool,
}

impl Run {
    /// Begins with the first step that is not below what green has. Errors: green has more than the plan ends with, in
    /// per cent.
    pub fn start(plan: Plan, origin: Origin, live: Split, stamp: Stamp) -> Result<Self, Split> {
        let last = plan.steps.last().map_or(Split::NONE, |last| last.green);
        let first = plan.steps.iter().position(|step| step.green >= live).ok_or(last)?;
        Ok(Self {
            plan,
            origin,
            state: State::Running,
            step: first,
            entered: false,
            first,
            healthy_seconds: 0,
            held_seconds: 0,
            observed_seconds: 0,
            outcomes: 0,
            measured: Measured::default(),
            approved: None,
            waived: false,
            overruled: false,
            doubted: false,
            by_hand: false,
            started: stamp.clone(),
            changed: stamp,
        })
    }

    /// Something may still come of it.
    pub fn is_live(&self) -> bool {
        matches!(self.state, State::Running | State::Paused)
    }

    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// The step that bakes, or whose gates are waited for. `None`: all are done.
    pub fn current(&self) -> Option<&Step> {
        self.plan.steps.get(self.step)
    }

    /// The step whose gates are asked in the next second.
    pub fn gates(&self) -> Option<&config::Gates> {
        let step = self.current()?;
        (self.state == State::Running && !self.entered && !self.waived).then_some(&step.gates)
    }

    /// The share that green has as far as this plan goes. `None`: nothing was entered yet.
    pub fn share(&self) -> Option<Split> {
        let step =
            if self.entered { self.step } else { self.step.checked_sub(1).filter(|last| *last >= self.first)? };
        self.plan.steps.get(step).map(|step| step.green)
    }

    /// One second. Counts what it earns, and says what is to be done.
    pub fn tick(&mut self, inputs: &Inputs<'_>) -> Ticked {
        if self.state != State::Running {
            return Ticked { wait: Wait::Time, action: None, progress: false };
        }
        self.overruled &= inputs.pause.is_some();
        let doubt = inputs.pause.filter(|_| !self.overruled);
        self.doubted = doubt.is_some();
        if let Some(reason) = doubt {
            let action = Action::Pause { reason: reason.to_owned(), anew: false };
            return Ticked { wait: Wait::Verdict(reason.to_owned()), action: Some(action), progress: false };
        }
        let (wait, action, progress) = match self.plan.steps.get(self.step).cloned() {
            Some(step) if self.entered => self.bake(&step, inputs),
            Some(step) => self.knock(&step, inputs),
            None => self.stand_by(inputs),
        };
        if wait.is_patient() || action.is_some() {
            return Ticked { wait, action, progress };
        }
        self.held_seconds = self.held_seconds.saturating_add(1);
        let action = (self.held_seconds >= self.plan.max_hold.as_secs()).then(|| Action::Pause {
            reason: format!("did not get on for {} s, waiting for {wait}", self.held_seconds),
            anew: false,
        });
        Ticked { wait, action, progress: true }
    }

    fn knock(&self, step: &Step, inputs: &Inputs<'_>) -> (Wait, Option<Action>, bool) {
        let (wanted, known) = (&step.gates, &inputs.gates);
        let closed = if self.waived {
            None
        } else if let Some(route) = known.after {
            Some(Wait::After(route.to_owned()))
        } else if let Some(name) = wanted.approval.as_ref().filter(|_| self.approved.is_none()) {
            Some(Wait::Approval(name.clone()))
        } else if let Some(reason) = known.signal {
            Some(Wait::Signal(reason.to_owned()))
        } else if let Some(reason) = known.webhook {
            Some(Wait::Webhook(reason.to_owned()))
        } else if self.step > self.first && inputs.verdict != Verdict::Pass {
            // It passed when the step before was done; that may be long ago.
            Some(Wait::Verdict(inputs.reason.to_owned()))
        } else {
            None
        };
        match closed {
            Some(wait) => (wait, None, false),
            None => (Wait::Time, Some(Action::Enter), false),
        }
    }

    fn bake(&mut self, step: &Step, inputs: &Inputs<'_>) -> (Wait, Option<Action>, bool) {
        let before = (self.healthy_seconds, self.outcomes, self.measured);
        let passes = inputs.verdict == Verdict::Pass;
        self.healthy_seconds = self.healthy_seconds.saturating_add(u64::from(passes));
        self.outcomes = self.outcomes.saturating_add(inputs.outcomes);
        self.measured.throughput.see(inputs.throughput);
        self.measured.p95_ratio.see(inputs.p95_ratio);
        self.measured.match_rate.see(inputs.match_rate);
        let progress = before != (self.healthy_seconds, self.outcomes, self.measured);

        let (wait, action) = if self.waived {
            (Wait::Time, Some(Action::Next))
        } else if !passes {
            (Wait::Verdict(inputs.reason.to_owned()), None)
        } else if self.healthy_seconds < step.bake.as_secs() {
            (Wait::Time, None)
        } else if self.outcomes < inputs.minimum {
            (Wait::Outcomes { seen: self.outcomes, needed: inputs.minimum }, None)
        } else {
            match self.measured.meets(&step.require) {
                Met::Yes => (Wait::Time, Some(Action::Next)),
                Met::Unmeasured(figure) => (Wait::Unmeasured(figure), None),
                Met::No(reason) => {
                    let action = match step.otherwise {
                        Otherwise::Pause => Action::Pause { reason, anew: true },
                        Otherwise::Rollback => Action::RollBack { reason },
                    };
                    (Wait::Time, Some(action))
                }
            }
        };
        (wait, action, progress)
    }

    fn stand_by(&mut self, inputs: &Inputs<'_>) -> (Wait, Option<Action>, bool) {
        // A quiet night is no reason to stand by longer; a green that is sick together with blue is.
        if inputs.shared_cause {
            return (Wait::Verdict(inputs.reason.to_owned()), None, false);
        }
        self.observed_seconds = self.observed_seconds.saturating_add(1);
        let over = self.observed_seconds >= self.plan.observe.as_secs();
        (Wait::Time, over.then_some(Action::Next), true)
    }

    /// The step's share is live from now on.
    pub fn enter(&mut self, stamp: Stamp) {
        self.begin_step(self.step, stamp);
        self.entered = true;
    }

    /// The step is done, or blue has stood by long enough.
    pub fn next(&mut self, stamp: Stamp) {
        self.overruled = false;
        let standing_by = self.step >= self.plan.steps.len();
        if !standing_by {
            self.begin_step(self.step + 1, stamp.clone());
        }
        if standing_by || (self.current().is_none() && self.plan.observe.is_zero()) {
            self.end(State::Done, stamp);
        }
    }

    /// Until somebody resumes it. `anew`: what was collected in this step counts no more.
    pub fn pause(&mut self, anew: bool, stamp: Stamp) {
        if anew {
            (self.healthy_seconds, self.outcomes, self.measured) = (0, 0, Measured::default());
        }
        self.state = State::Paused;
        self.changed = stamp;
    }

    /// Goes on with what it has. Where green has another share by now, the plan gives it back its own, and bakes the
    /// step anew.
    pub fn resume(&mut self, live: Split, stamp: Stamp) {
        if self.share().is_some_and(|share| share != live) {
            let step = if self.entered { self.step } else { self.step - 1 };
            self.begin_step(step, stamp.clone());
            self.waived = true;
        }
        self.go_on();
        self.held_seconds = 0;
        self.changed = stamp;
    }

    /// What it waits for now does not matter.
    pub fn skip(&mut self, stamp: Stamp) {
        self.go_on();
        self.waived = true;
        self.changed = stamp.clone();
        if self.current().is_none() {
            self.end(State::Done, stamp);
        }
    }

    pub fn approve(&mut self, stamp: Stamp) {
        self.approved = Some(stamp);
    }

    /// `state`: one in which it is not live.
    pub fn end(&mut self, state: State, stamp: Stamp) {
        self.state = state;
        self.changed = stamp;
    }

    /// What the guard has measured begins anew.
    pub fn restarted(&mut self) {
        let Measured { throughput, p95_ratio, match_rate } = &mut self.measured;
        [throughput, p95_ratio, match_rate].into_iter().for_each(Mean::restarted);
    }

    /// Who lets a plan go on has been told why it paused, and overrules the guard only if it was for that.
    fn go_on(&mut self) {
        self.overruled |= std::mem::take(&mut self.doubted);
        self.by_hand = false;
        self.state = State::Running;
    }

    fn begin_step(&mut self, step: usize, stamp: Stamp) {
        self.step = step;
        self.entered = false;
        (self.healthy_seconds, self.held_seconds, self.observed_seconds, self.outcomes) = (0, 0, 0, 0);
        self.measured = Measured::default();
        self.approved = None;
        self.waived = false;
        self.changed = stamp;
    }
}

enum Met {
    Yes,
    Unmeasured(&'static str),
    /// A sentence.
    No(String),
}

impl Measured {
    fn meets(&self, require: &Require) -> Met {
        let asked = [
            ("throughput", require.throughput, self.throughput.value(), "below"),
            ("match rate", require.match_rate, self.match_rate.value(), "below"),
            ("p95 ratio", require.p95_ratio, self.p95_ratio.value(), "above"),
        ];
        let asked = asked.into_iter().filter_map(|(name, limit, value, bad)| Some((name, limit?, value, bad)));
        let mut missed = Vec::new();
        for (name, limit, value, bad) in asked {
            let Some(value) = value else { return Met::Unmeasured(name) };
            let is_missed = if bad == "below" { value < limit } else { value > limit };
            if is_missed {
                missed.push(format!("its {name} was {value:.3}, {bad} the {limit} that the plan requires"));
            }
        }
        if missed.is_empty() { Met::Yes } else { Met::No(format!("green did not measure up: {}", missed.join("; "))) }
    }
}

#[cfg(test)]
mod tests;
