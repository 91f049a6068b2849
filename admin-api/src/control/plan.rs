//! What is done about plans. A plan changes with its route's state and in the same record: what goes on loosens, what
//! stops tightens.

use std::{sync::Arc, time::Duration};

use config::{Plan, Route, Split};
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::warn;

use super::{Actor, Chance, Change, Control, Now, Refusal, RouteView, stamp};
use crate::{
    Happened, Judgement, PlanNews, Recorded, Verdict, Watched,
    plan::{Action, Inputs, Origin, Run, State, Wait},
};

/// What somebody wants of a plan.
#[derive(Clone, Debug)]
pub enum PlanChange {
    /// From its first step on that is not below what green has.
    Start(Box<Plan>),
    Pause,
    Resume,
    /// By the name that the step asks for.
    Approve(String),
    /// What it waits for now does not matter.
    Skip,
    Abort,
}

impl PlanChange {
    /// The word of the audit trail.
    pub fn action(&self) -> &'static str {
        match self {
            Self::Start(_) => "plan-start",
            Self::Pause => "plan-pause",
            Self::Resume => "plan-resume",
            Self::Approve(_) => "plan-approve",
            Self::Skip => "plan-skip",
            Self::Abort => "plan-abort",
        }
    }
}

impl Control {
    /// Steers a route's plan. When it returns `Ok`, that is on disk; green's share follows within a second.
    ///
    /// `if_match`: the revision the caller believes to be current. Errors: see [`Refusal`]; every one is audited.
    pub async fn change_plan(
        self: &Arc<Self>,
        route: &str,
        wanted: PlanChange,
        reason: &str,
        actor: &Actor,
        if_match: Option<u64>,
    ) -> Result<RouteView, Refusal> {
        let change = Change {
            action: wanted.action(),
            route: route.to_owned(),
            actor: actor.clone(),
            reason: reason.to_owned(),
        };
        let control = self.clone();
        self.detached(async move {
            let steered = control.steer(change.clone(), wanted, if_match).await;
            steered.map_err(|refusal| control.audit_refusal(&change, None, refusal))
        })
        .await
    }

    /// The plan that was started last.
    pub fn plan(&self, route: &str) -> Option<Run> {
        self.now.lock().live(route)?.plan.clone()
    }

    /// Whether the last plan of a route is done, and what came of it was not taken back.
    pub(crate) fn is_plan_done(&self, route: &str) -> bool {
        self.now.lock().live(route).is_some_and(|live| {
            let run = live.plan.as_ref().filter(|run| run.state == State::Done && live.latch.is_none());
            run.and_then(|run| run.plan.steps.last()).is_some_and(|last| live.split >= last.green)
        })
    }

    /// A second of a route's plan. What it comes to goes live, or is on its way to the disk, when this returns. `second`:
    /// which second; one that is not above the last counts no more.
    pub(crate) fn tick_plan(
        self: &Arc<Self>,
        watched: &Watched,
        second: u64,
        inputs: &Inputs<'_>,
        judgement: &Arc<Judgement>,
    ) {
        let actor = Actor::internal("plan");
        let mut guard = self.now.lock();
        let now = &mut *guard;
        let Some(entry) = now.routes.get_mut(&watched.route).filter(|_| !now.frozen) else { return };
        if entry.planned_until.is_some_and(|until| second <= until) {
            return;
        }
        entry.planned_until = Some(second);
        if entry.entering && now.failing.is_some() {
            entry.wait = Some(Wait::Disk);
        }
        // A judgement of another share says nothing about this one.
        if entry.epoch != watched.epoch || entry.live.revision != watched.revision || entry.entering {
            return;
        }
        let Some(run) = entry.live.plan.as_mut().filter(|run| run.is_running()) else { return };
        let ticked = run.tick(inputs);
        let mut run = run.clone();
        if ticked.progress {
            now.progress.insert(watched.route.clone());
            self.wake_recorder.notify_one();
        }
        let asked_before = entry.wait.replace(ticked.wait.clone());
        if now.failing.is_some() && ticked.action == Some(Action::Enter) {
            entry.wait = Some(Wait::Disk);
        }
        if let Wait::Approval(name) = &ticked.wait
            && asked_before.as_ref() != Some(&ticked.wait)
        {
            let reason = format!("step {} of {} waits for the approval {name:?}", run.step + 1, run.plan.steps.len());
            let what = news(&watched.route, &run, PlanNews::ApprovalWanted, entry.live.split, &actor.name, &reason);
            now.announcer.announce(OffsetDateTime::now_utc(), what);
        }
        let at = OffsetDateTime::now_utc();
        let change = |action, reason: &str| Change {
            action,
            route: watched.route.clone(),
            actor: actor.clone(),
            reason: reason.to_owned(),
        };
        let (change, split) = match ticked.action {
            None => return,
            Some(Action::RollBack { reason }) => {
                drop(guard);
                let judgement = Judgement { verdict: Verdict::Breach, reason, ..(**judgement).clone() };
                self.take_off(&watched.route, watched.epoch, &Arc::new(judgement), actor);
                return;
            }
            Some(Action::Pause { reason, anew }) => {
                run.pause(anew, stamp(at, &actor, &reason));
                warn!(route = %watched.route, reason, "A plan pauses");
                (change("plan-pause", &reason), entry.live.split)
            }
            Some(Action::Next) => {
                let reason = done(&run);
                run.next(stamp(at, &actor, &reason));
                (change("plan-step", &reason), entry.live.split)
            }
            Some(Action::Enter) => {
                let Some(green) = run.current().map(|step| step.green) else { return };
                let change = change("plan-step", &begins(&run));
                if green >= entry.live.split {
                    entry.entering = true;
                    drop(guard);
                    self.enter_step(change, watched.revision, Chance::new(Instant::now(), DECISION_KEEPS));
                    return;
                }
                run.enter(stamp(at, &actor, &change.reason));
                (change, green)
            }
        };
        let state =
            Recorded { split, revision: entry.reserve_revision(), latch: entry.live.latch.clone(), plan: Some(run) };
        self.go_live(now, &change, state, at);
        drop(guard);
        self.wake_recorder.notify_one();
    }

    /// Disk first: green rises, or begins to earn its bake.
    fn enter_step(self: &Arc<Self>, change: Change, revision: u64, chance: Chance) {
        let (control, route) = (self.clone(), change.route.clone());
        let entering = tokio::spawn(async move {
            let turn = control.turn_in_time(&chance).await?;
            let (before, entered) = {
                let mut now = control.now.lock();
                let entry = now.matching(&change.route, Some(revision))?;
                let before = entry.live.clone();
                let overtaken = || Refusal::Overtaken { route: change.route.clone() };
                let mut run = before.plan.clone().ok_or_else(overtaken)?;
                may_begin(&change.route, &run, entry.judgement.as_deref())?;
                let green = run.current().ok_or_else(overtaken)?.green;
                run.enter(stamp(OffsetDateTime::now_utc(), &change.actor, &change.reason));
                let revision = entry.reserve_revision();
                (before, Recorded { split: green, revision, latch: None, plan: Some(run) })
            };
            control.loosen(&turn, &change, &before, entered, &chance).await
        });
        let control = self.clone();
        tokio::spawn(async move {
            let entered = entering.await.unwrap_or(Err(Refusal::Abandoned));
            control.plane.followed().await;
            if let Some(entry) = control.now.lock().routes.get_mut(&route) {
                entry.entering = false;
            }
            // What came between wins; what could not be recorded is tried again with the next second.
            if let Err(refusal) = entered {
                warn!(route, %refusal, "A step of a plan has not begun");
            }
        });
    }

    /// Plans go on only where somebody watches.
    pub(super) fn pause_unguarded(&self, now: &mut Now, at: OffsetDateTime) {
        let unguarded: Vec<String> =
            now.config.routes.iter().filter(|route| route.guard.is_none()).map(|route| route.name.clone()).collect();
        for route in unguarded {
            let Some(entry) = now.routes.get_mut(&route) else { continue };
            let Some(mut run) = entry.live.plan.clone().filter(|run| run.is_running()) else { continue };
            let change = Change {
                action: "plan-pause",
                route,
                actor: Actor::internal("configuration"),
                reason: "the guard of the route is off".to_owned(),
            };
            run.pause(false, stamp(at, &change.actor, &change.reason));
            let paused = Recorded { revision: entry.reserve_revision(), plan: Some(run), ..entry.live.clone() };
            self.go_live(now, &change, paused, at);
        }
    }

    async fn steer(
        self: &Arc<Self>,
        change: Change,
        wanted: PlanChange,
        if_match: Option<u64>,
    ) -> Result<RouteView, Refusal> {
        // To stop must not wait for a turn that a raise may hold as long as the disk takes.
        if matches!(wanted, PlanChange::Pause | PlanChange::Abort) {
            {
                let mut guard = self.now.lock();
                let now = &mut *guard;
                let at = OffsetDateTime::now_utc();
                if let Some((_, stopped)) = now.steered(&change, &wanted, if_match, at)? {
                    self.go_live(now, &change, stopped, at);
                }
            }
            let view = self.state(&change.route)?;
            return self.settle(view).await;
        }
        let seen = self.revision(&change.route, if_match)?;
        let control = self.clone();
        let steered = self.in_time(|chance| async move {
            let turn = control.turn_in_time(&chance).await?;
            let steered = control.now.lock().steered(&change, &wanted, Some(seen), OffsetDateTime::now_utc());
            match steered.map_err(Refusal::since_arrival)? {
                Some((before, after)) => control.loosen(&turn, &change, &before, after, &chance).await,
                None => control.state(&change.route),
            }
        });
        steered.await
    }
}

impl Now {
    /// What a route is, and what it becomes of it. `None`: it is so already. Errors: as of [`Now::matching`], and that
    /// its plan is in no state for it.
    fn steered(
        &mut self,
        change: &Change,
        wanted: &PlanChange,
        if_match: Option<u64>,
        at: OffsetDateTime,
    ) -> Result<Option<(Recorded, Recorded)>, Refusal> {
        let config = self.config.clone();
        let configured = config.routes.iter().find(|route| route.name == change.route);
        let entry = self.matching(&change.route, if_match)?;
        let Some(run) = steered(&entry.live, configured, change, wanted, at)? else { return Ok(None) };
        let before = entry.live.clone();
        let after = Recorded { revision: entry.reserve_revision(), plan: Some(run), ..before.clone() };
        Ok(Some((before, after)))
    }
}

/// How long what a step was entered for, the answers of its gates among it, is true. Then everything is asked again.
const DECISION_KEEPS: Duration = Duration::from_secs(2);

/// Errors: the guard's last word is none to begin a step on. It may have been another one when that was decided.
fn may_begin(route: &str, run: &Run, judgement: Option<&Judgement>) -> Result<(), Refusal> {
    let goes_on = |judgement: &Judgement| judgement.pause.is_none() || run.overruled;
    let passes = judgement.is_some_and(|judgement| judgement.verdict == Verdict::Pass && goes_on(judgement));
    if passes || run.waived || run.step == run.first {
        return Ok(());
    }
    Err(Refusal::Plan {
        route: route.to_owned(),
        problem: "the guard does not say pass any more".to_owned(),
        cure: "see its status for what it waits for".to_owned(),
    })
}

/// The same of a state that is on disk, and is to go live.
pub(super) fn may_go_live(
    route: &str,
    before: &Recorded,
    after: &Recorded,
    judgement: Option<&Judgement>,
) -> Result<(), Refusal> {
    match (&before.plan, &after.plan) {
        (Some(run), Some(entered)) if entered.entered && !run.entered => may_begin(route, run, judgement),
        _ => Ok(()),
    }
}

/// The plan that `wanted` makes of what there is. `None`: it is so already.
fn steered(
    live: &Recorded,
    configured: Option<&Route>,
    change: &Change,
    wanted: &PlanChange,
    at: OffsetDateTime,
) -> Result<Option<Run>, Refusal> {
    let refused = |problem: &str, cure: &str| {
        let route = change.route.clone();
        Err(Refusal::Plan { route, problem: problem.to_owned(), cure: cure.to_owned() })
    };
    let stamp = stamp(at, &change.actor, &change.reason);
    let known = live.plan.clone().filter(Run::is_live);
    if let PlanChange::Start(plan) = wanted {
        if let Some(latch) = &live.latch {
            return Err(Refusal::Latched { route: change.route.clone(), reason: latch.reason.clone() });
        }
        if known.is_some() {
            return refused("has a plan that is not over", "abort it before starting another one");
        }
        let is_configured = configured.is_some_and(|route| route.plan.as_ref() == Some(&**plan));
        let origin = if is_configured { Origin::Configured } else { Origin::Sent };
        return match Run::start((**plan).clone(), origin, live.split, stamp) {
            Ok(run) => Ok(Some(run)),
            Err(last) => refused(
                &format!("green has {} already, and the plan ends with {last}", live.split),
                "lower green first, or start a plan that goes further",
            ),
        };
    }
    let Some(mut run) = known else {
        let cure = if live.latch.is_some() { "reset the route, and start one" } else { "start one first" };
        return refused("has no plan that goes on", cure);
    };
    // Who skips a hot standby ends the plan.
    let goes_on = matches!(wanted, PlanChange::Resume) || matches!(wanted, PlanChange::Skip if run.current().is_some());
    if goes_on && configured.is_none_or(|route| route.guard.is_none()) {
        return refused(
            "its guard is off, so its plan cannot go on",
            "remove mode = \"off\" from [route.guard], or abort the plan",
        );
    }
    match wanted {
        PlanChange::Start(_) => {}
        PlanChange::Pause if run.state == State::Paused => return Ok(None),
        PlanChange::Pause => run.pause(false, stamp),
        PlanChange::Resume if run.state == State::Running => return Ok(None),
        PlanChange::Resume => run.resume(live.split, stamp),
        PlanChange::Approve(name) => {
            let asked = run.current().filter(|_| !run.entered).and_then(|step| step.gates.approval.as_ref());
            match asked {
                Some(asked) if asked == name && run.approved.is_some() => return Ok(None),
                Some(asked) if asked == name => run.approve(stamp),
                Some(asked) => {
                    let (problem, cure) = (
                        format!("step {} asks for the approval {asked:?}, not {name:?}", run.step + 1),
                        format!("approve {asked:?}"),
                    );
                    return refused(&problem, &cure);
                }
                None => return refused("its plan asks for no approval now", "see its status for what it waits for"),
            }
        }
        PlanChange::Skip => {
            // Who lowered green did not mean it to go on past that.
            if let Some(share) = run.share().filter(|share| run.state == State::Paused && *share != live.split) {
                let problem = format!("green has {}, and not the {share} of its plan", live.split);
                return refused(&problem, "resume or abort the plan");
            }
            if run.by_hand && run.share().is_none() {
                let problem = format!("somebody gave green {} before its plan began", live.split);
                return refused(&problem, "resume or abort the plan");
            }
            run.skip(stamp);
        }
        PlanChange::Abort => run.end(State::Aborted, stamp),
    }
    Ok(Some(run))
}

/// What a change has made of a plan, if anything.
pub(super) fn happened(change: &Change, before: &Recorded, after: &Recorded) -> Option<Happened> {
    let run = after.plan.as_ref()?;
    let was = before.plan.as_ref();
    let news_is = match (was, run.state) {
        (Some(was), _) if was == run => return None,
        (Some(was), State::Running | State::Paused) if run.approved.is_some() && was.approved.is_none() => {
            PlanNews::Approved
        }
        (was, State::Running) if was.is_none_or(|was| !was.is_live()) => PlanNews::Started,
        (Some(was), State::Paused) if was.state == State::Paused => return None,
        (_, State::Paused) => PlanNews::Paused,
        (_, State::Aborted) => PlanNews::Aborted,
        (_, State::RolledBack) => PlanNews::RolledBack,
        (_, State::Done) => PlanNews::Done,
        (Some(was), State::Running) if run.waived && !was.waived && change.action == "plan-skip" => PlanNews::Skipped,
        (Some(was), State::Running) if was.state == State::Paused => PlanNews::Resumed,
        (_, State::Running) if run.entered => PlanNews::Entered,
        (_, State::Running) => PlanNews::StepDone,
    };
    let reason = if run.state == State::Running { &change.reason } else { &run.changed.reason };
    Some(news(&change.route, run, news_is, after.split, &change.actor.name, reason))
}

fn news(route: &str, run: &Run, change: PlanNews, green: Split, actor: &str, reason: &str) -> Happened {
    Happened::Plan {
        route: route.to_owned(),
        change,
        state: run.state,
        step: run.step + 1,
        steps: run.plan.steps.len(),
        green_percentage: green,
        actor: actor.to_owned(),
        reason: reason.to_owned(),
    }
}

fn begins(run: &Run) -> String {
    let green = run.current().map_or(Split::NONE, |step| step.green);
    format!("step {} of {}, {green}, begins", run.step + 1, run.plan.steps.len())
}

fn done(run: &Run) -> String {
    let steps = run.plan.steps.len();
    match run.current() {
        None => format!("blue was a hot standby for {} s", run.observed_seconds),
        Some(_) if run.waived => format!("step {} of {steps} was skipped", run.step + 1),
        Some(step) => format!(
            "step {} of {steps}, {}, is done: {} s healthy, {} outcomes of green",
            run.step + 1,
            step.green,
            run.healthy_seconds,
            run.outcomes
        ),
    }
}
