//! Plans and the order of disk and live.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use admin_api::{
    Control, Guardian, Happened, Moment, PlanChange, PlanNews, Refusal, Sqlite, StateStore, Verdict,
    plan::{Run, State, Wait},
};
use config::{Config, Gates, Otherwise, Plan, Require, Route, Step};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    control::ann,
    peer::{Peer, Reply},
    support::{FakePlane, FakeStore, Folder, config, eventually, route, split},
};

pub(crate) fn step(green: f64, bake: u64) -> Step {
    Step {
        green: split(green),
        bake: Duration::from_secs(bake),
        gates: Gates::default(),
        require: Require::default(),
        otherwise: Otherwise::Pause,
    }
}

pub(crate) fn plan(steps: Vec<Step>) -> Plan {
    Plan { steps, max_hold: Duration::from_secs(100), observe: Duration::ZERO, expected_rps: None }
}

pub(crate) fn start(plan: Plan) -> PlanChange {
    PlanChange::Start(Box::new(plan))
}

/// A control plane whose seconds pass when a test says so.
struct Site<S = FakeStore> {
    control: Arc<Control>,
    plane: Arc<FakePlane>,
    store: Arc<S>,
    guardian: Guardian,
}

impl Site {
    /// With the shop, and its plan started.
    async fn with(plan: Plan) -> Self {
        let site = Self::open(config(vec![route("shop", "python", "go", 0.0)]), Arc::default()).await;
        site.change(start(plan)).await.unwrap();
        site
    }
}

impl<S: StateStore> Site<S> {
    async fn open(config: Arc<Config>, store: Arc<S>) -> Self {
        let plane = Arc::new(FakePlane::default());
        let control = Control::open(config, store.clone(), plane.clone()).await.unwrap();
        Self { guardian: Guardian::new(control.clone()), control, plane, store }
    }

    async fn change(&self, change: PlanChange) -> Result<admin_api::RouteView, Refusal> {
        self.control.change_plan("shop", change, "test", &ann(), None).await
    }

    /// One second in which both arms are well.
    fn second(&self) {
        self.plane.second("shop", (50, 0), (50, 0));
        self.guardian.tick();
    }

    /// Seconds pass until the plan is as it should be.
    async fn pass_until(&self, what: &str, condition: impl Fn(&Run) -> bool) {
        eventually(what, || {
            self.second();
            condition(&self.run())
        })
        .await;
    }

    fn run(&self) -> Run {
        self.control.plan("shop").unwrap()
    }

    /// Seconds pass until the plan waits for something of which this is a part.
    async fn waits_for(&self, what: &str) {
        eventually(what, || {
            self.second();
            self.control.state("shop").unwrap().wait.is_some_and(|wait| wait.to_string().contains(what))
        })
        .await;
    }

    fn entered(&self, step: usize) -> impl Fn(&Run) -> bool {
        move |run| run.step == step && run.entered
    }

    fn live(&self) -> f64 {
        self.plane.live("shop").split.percent()
    }
}

#[tokio::test]
async fn a_step_is_on_disk_before_it_is_live_and_stopping_waits_for_nothing() {
    let site = Site::with(plan(vec![step(10.0, 3), step(50.0, 3)])).await;
    site.pass_until("the first step", site.entered(0)).await;
    assert_eq!((site.live(), site.store.recorded("shop").split), (10.0, split(10.0)));
    site.pass_until("the second one is to begin", |run| run.step == 1).await;

    site.store.hang();
    eventually("it waits for the disk", || {
        site.second();
        site.store.waiting.load(Ordering::Relaxed) > 0
    })
    .await;
    (0..5).for_each(|_| site.second());
    assert_eq!(site.live(), 10.0, "not live before it is on disk");
    let paused = tokio::spawn({
        let control = site.control.clone();
        async move { control.change_plan("shop", PlanChange::Pause, "wait", &ann(), None).await }
    });
    eventually("it is paused", || site.run().state == State::Paused).await;
    assert!(!paused.is_finished(), "but not acknowledged before it is on disk");
    site.store.release();
    paused.await.unwrap().unwrap();
    (0..5).for_each(|_| site.second());
    assert_eq!((site.live(), site.run().entered), (10.0, false), "what came between wins");
    let recorded = site.store.recorded("shop");
    assert_eq!((recorded.split, recorded.plan.unwrap().state), (split(10.0), State::Paused));
}

#[tokio::test]
async fn a_disk_that_fails_holds_a_plan_and_one_that_works_again_lets_it_go_on() {
    let site = Site::with(plan(vec![step(10.0, 2), step(50.0, 2)])).await;
    site.pass_until("the first step", site.entered(0)).await;
    site.store.fail(true);
    eventually("it is to begin", || {
        site.second();
        site.run().step == 1
    })
    .await;
    for _ in 0..20 {
        site.second();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(site.live(), 10.0);
    assert!(matches!(site.change(PlanChange::Skip).await, Err(Refusal::NotRecorded(_))));
    site.store.fail(false);
    site.pass_until("the second step", site.entered(1)).await;
    assert_eq!((site.live(), site.store.recorded("shop").split), (50.0, split(50.0)));
    site.pass_until("the end", |run| run.state == State::Done).await;
}

#[tokio::test]
async fn a_trip_ends_the_plan_in_the_same_record() {
    let site = Site::with(plan(vec![step(10.0, 100)])).await;
    let mut events = site.control.subscribe();
    site.pass_until("it bakes", |run| run.healthy_seconds > 3).await;
    while !site.plane.live("shop").latched {
        site.plane.second("shop", (50, 0), (0, 50));
        site.guardian.tick();
    }
    let run = site.run();
    assert_eq!((run.state, run.changed.by.as_str(), site.live()), (State::RolledBack, "guard", 0.0));
    eventually("it is recorded", || site.store.recorded("shop").latch.is_some()).await;
    assert_eq!(site.store.recorded("shop").plan.unwrap().state, State::RolledBack);
    let told = std::iter::from_fn(|| events.try_recv().ok());
    let plans: Vec<_> = told
        .filter_map(|event| match &event.what {
            Happened::Plan { change, step, .. } => Some((*change, *step)),
            _ => None,
        })
        .collect();
    assert_eq!(plans, [(PlanNews::Entered, 1), (PlanNews::RolledBack, 1)]);

    assert!(matches!(site.change(start(plan(vec![step(10.0, 1)]))).await, Err(Refusal::Latched { .. })));
    site.control.reset("shop", "mended", &ann(), None).await.unwrap();
    assert_eq!(site.run().state, State::RolledBack, "a reset starts nothing by itself");
    site.change(start(plan(vec![step(10.0, 1)]))).await.unwrap();
    site.pass_until("another one", |run| run.state == State::Done).await;
}

#[tokio::test]
async fn a_hand_on_the_split_pauses_the_plan_in_the_same_record() {
    let site = Site::with(plan(vec![step(10.0, 100)])).await;
    for percent in [5.0, 30.0] {
        site.pass_until("the step is entered", site.entered(0)).await;
        site.control.set_split("shop", split(percent), &ann(), None).await.unwrap();
        let recorded = site.store.recorded("shop");
        let run = recorded.plan.unwrap();
        assert_eq!((recorded.split, run.state), (split(percent), State::Paused));
        assert_eq!(run.changed.reason, format!("ann set green to {percent} %"));
        (0..10).for_each(|_| site.second());
        assert_eq!(site.live(), percent);
        let skipped = site.change(PlanChange::Skip).await;
        let refused =
            format!("route shop: green has {percent} %, and not the 10 % of its plan; resume or abort the plan");
        assert_eq!(skipped.unwrap_err().to_string(), refused);
        site.change(PlanChange::Resume).await.unwrap();
        site.pass_until("its own share is back", |_| site.live() == 10.0).await;
    }
    site.pass_until("the step is entered", site.entered(0)).await;
    // The share it has already is no change, and takes the plan off nothing.
    site.control.set_split("shop", split(10.0), &ann(), None).await.unwrap();
    assert_eq!(site.run().state, State::Running);
    site.control.rollback("shop", "enough", &ann()).await.unwrap();
    assert_eq!((site.run().state, site.live()), (State::RolledBack, 0.0));
}

/// Its bake is recorded every second; that is nobody's business.
#[tokio::test]
async fn progress_gets_in_the_way_of_no_change_and_makes_nothing_unrecorded() {
    let site = Site::with(plan(vec![step(10.0, 1_000)])).await;
    site.pass_until("it bakes", |run| run.healthy_seconds > 2).await;
    eventually("its progress is on disk", || {
        site.store.recorded("shop").plan.is_some_and(|run| run.healthy_seconds == site.run().healthy_seconds)
    })
    .await;
    let revision = site.control.state("shop").unwrap().recorded.revision;
    site.store.hang();
    let raise = tokio::spawn({
        let control = site.control.clone();
        async move { control.set_split("shop", split(40.0), &ann(), None).await }
    });
    eventually("the raise waits for the disk", || site.store.waiting.load(Ordering::Relaxed) > 0).await;
    let before = site.run().healthy_seconds;
    (0..3).for_each(|_| site.second());
    assert!(site.run().healthy_seconds > before);
    assert!(site.control.state("shop").unwrap().persisted);
    site.store.release();
    let raised = raise.await.unwrap().unwrap();
    assert_eq!((raised.recorded.split, raised.recorded.revision), (split(40.0), revision + 1));
}

#[tokio::test]
async fn a_restart_goes_on_and_a_guard_that_is_gone_pauses() {
    let site = Site::with(plan(vec![step(10.0, 1_000)])).await;
    site.pass_until("it bakes", |run| run.healthy_seconds > 5).await;
    site.control.flush().await.unwrap();
    let (baked, store) = (site.run().healthy_seconds, site.store.clone());
    drop(site);
    let site = Site::open(config(vec![route("shop", "python", "go", 0.0)]), store.clone()).await;
    let run = site.run();
    assert_eq!((run.state, run.healthy_seconds, site.live()), (State::Running, baked, 10.0));
    site.pass_until("it bakes on", |run| run.healthy_seconds > baked + 3).await;

    let unguarded = config(vec![Route { guard: None, ..route("shop", "python", "go", 0.0) }]);
    site.control.reload(unguarded).await.unwrap();
    assert_eq!(
        (site.run().state, site.run().changed.reason.as_str()),
        (State::Paused, "the guard of the route is off")
    );
    eventually("it is recorded", || {
        store.load().unwrap()["shop"].plan.as_ref().is_some_and(|run| run.state == State::Paused)
    })
    .await;
    assert_eq!(site.live(), 10.0);
}

/// A shop whose plans pause when green fails more than 1 %.
fn pausing_at_one_per_cent() -> Arc<Config> {
    let pause = config::PauseLimits { max_error_rate: Some(0.01), ..config::PauseLimits::default() };
    let guard = config::Guard { max_error_rate: 0.5, pause, ..config::Guard::default() };
    config(vec![Route { guard: Some(guard), ..route("shop", "python", "go", 0.0) }])
}

#[tokio::test]
async fn who_goes_on_in_spite_of_the_guard_gets_on_and_is_asked_again_for_the_next_share() {
    let site = Site::open(pausing_at_one_per_cent(), Arc::<FakeStore>::default()).await;
    site.change(start(plan(vec![step(10.0, 1_000), step(50.0, 1_000)]))).await.unwrap();
    site.pass_until("the first step", site.entered(0)).await;
    let bad_until = async |what: &str, condition: &dyn Fn(&Run) -> bool| {
        eventually(what, || {
            site.plane.second("shop", (50, 0), (45, 5));
            site.guardian.tick();
            condition(&site.run())
        })
        .await;
    };
    bad_until("it pauses", &|run| run.state == State::Paused).await;
    let baked = site.run().healthy_seconds;
    site.change(PlanChange::Resume).await.unwrap();
    bad_until("it bakes on", &|run| run.healthy_seconds > baked + 3).await;
    assert_eq!(site.run().state, State::Running);
    site.change(PlanChange::Skip).await.unwrap();
    bad_until("it pauses before the next step", &|run| run.step == 1 && run.state == State::Paused).await;
    assert_eq!(site.live(), 10.0);
    site.change(PlanChange::Skip).await.unwrap();
    bad_until("the next step begins, and bakes", &|run| run.entered && run.healthy_seconds > 3).await;
    assert_eq!((site.live(), site.run().state), (50.0, State::Running));
}

#[tokio::test]
async fn a_plan_whose_guard_is_off_does_not_go_on() {
    let site = Site::with(Plan { observe: Duration::from_secs(1_000), ..plan(vec![step(10.0, 10)]) }).await;
    site.pass_until("it bakes", site.entered(0)).await;
    let unguarded = config(vec![Route { guard: None, ..route("shop", "python", "go", 0.0) }]);
    site.control.reload(unguarded.clone()).await.unwrap();
    for wanted in [PlanChange::Resume, PlanChange::Skip] {
        let refused = site.change(wanted).await.unwrap_err().to_string();
        let expected = "route shop: its guard is off, so its plan cannot go on; \
                        remove mode = \"off\" from [route.guard], or abort the plan";
        assert_eq!(refused, expected);
    }
    assert_eq!(site.run().state, State::Paused);
    site.control.reload(config(vec![route("shop", "python", "go", 0.0)])).await.unwrap();
    site.change(PlanChange::Resume).await.unwrap();
    site.pass_until("blue stands by", |run| run.current().is_none()).await;
    site.control.reload(unguarded).await.unwrap();
    assert!(matches!(site.change(PlanChange::Resume).await, Err(Refusal::Plan { .. })));
    site.change(PlanChange::Skip).await.unwrap();
    assert_eq!(site.run().state, State::Done);
}

#[tokio::test]
async fn a_hot_standby_is_not_earned_while_both_arms_are_bad() {
    let site = Site::with(Plan { observe: Duration::from_secs(1_000), ..plan(vec![step(50.0, 1)]) }).await;
    site.pass_until("blue stands by", |run| run.observed_seconds > 3).await;
    let bad = || {
        site.plane.second("shop", (0, 50), (0, 50));
        site.guardian.tick();
    };
    eventually("the cause is shared", || {
        bad();
        site.control.state("shop").unwrap().judgement.is_some_and(|judgement| judgement.shared_cause)
    })
    .await;
    let before = site.run().observed_seconds;
    (0..10).for_each(|_| bad());
    assert_eq!((site.run().state, site.run().observed_seconds), (State::Running, before));
    site.pass_until("both are well again", |run| run.observed_seconds > before + 3).await;
}

#[tokio::test]
async fn a_frozen_plan_earns_nothing() {
    let site = Site::with(plan(vec![step(10.0, 1_000)])).await;
    site.pass_until("it bakes", |run| run.healthy_seconds > 2).await;
    site.control.freeze().await.unwrap();
    let before = site.run();
    (0..10).for_each(|_| site.second());
    assert_eq!(site.run(), before);
    assert_eq!(site.store.recorded("shop").plan.unwrap(), before, "the other process gets all of it");
    assert!(matches!(site.change(PlanChange::Abort).await, Err(Refusal::Frozen)));
    site.control.thaw().await.unwrap();
    site.pass_until("it bakes on", |run| run.healthy_seconds > before.healthy_seconds).await;
}

#[tokio::test]
async fn no_second_bakes_a_plan_twice() {
    let mut site = Site::with(plan(vec![step(10.0, 1_000)])).await;
    site.pass_until("it bakes", |run| run.healthy_seconds > 20).await;
    let mut expected = site.run();
    site.control.freeze().await.unwrap();
    site.guardian.tick();
    site.control.thaw().await.unwrap();
    site.guardian.tick();
    assert_eq!(site.run(), expected, "frozen and thawed");
    site.guardian = Guardian::new(site.control.clone());
    site.guardian.tick();
    assert_eq!(site.run(), expected, "a guardian that starts anew");
    site.second();
    expected.healthy_seconds += 1;
    assert_eq!(site.run().healthy_seconds, expected.healthy_seconds);
}

#[tokio::test]
async fn a_plan_is_held_by_no_second_before_it_runs() {
    let site = Site::open(gated_by_a_signal(), Arc::<FakeStore>::default()).await;
    (0..50).for_each(|_| site.second());
    let wanted = site.control.config().routes[0].plan.clone().unwrap();
    site.change(start(wanted)).await.unwrap();
    site.guardian.tick();
    assert_eq!(site.run().held_seconds, 0, "started");
    site.second();
    assert_eq!(site.run().held_seconds, 1);
    site.change(PlanChange::Pause).await.unwrap();
    (0..50).for_each(|_| site.second());
    site.change(PlanChange::Resume).await.unwrap();
    site.guardian.tick();
    assert_eq!(site.run().held_seconds, 0, "resumed");
    site.second();
    assert_eq!(site.run().held_seconds, 1);
}

#[tokio::test]
async fn a_step_begins_on_no_verdict_that_is_over() {
    let site = Site::with(plan(vec![step(10.0, 3), step(50.0, 3)])).await;
    site.pass_until("the second step is to begin", |run| run.step == 1).await;
    site.store.hang();
    eventually("it waits for the disk", || {
        site.second();
        site.store.waiting.load(Ordering::Relaxed) > 0
    })
    .await;
    (0..3).for_each(|_| site.second());
    for _ in 0..40 {
        site.plane.second("shop", (50, 0), (0, 0));
        site.guardian.tick();
    }
    let verdict = site.control.state("shop").unwrap().judgement.unwrap().verdict;
    assert_eq!(verdict, Verdict::Unknown, "green is silent");
    site.store.release();
    eventually("the disk has what is live", || site.store.waiting.load(Ordering::Relaxed) == 0).await;
    for _ in 0..20 {
        site.guardian.tick();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!((site.live(), site.run().step, site.run().entered), (10.0, 1, false));
    let recorded = site.store.recorded("shop");
    assert_eq!((recorded.split, recorded.plan.unwrap().entered), (split(10.0), false));
    site.pass_until("it passes again", site.entered(1)).await;
    assert_eq!((site.live(), site.store.recorded("shop").split), (50.0, split(50.0)));
}

#[tokio::test]
async fn an_approval_is_asked_for_once_and_opens_its_gate() {
    let mut gated = step(50.0, 1);
    gated.gates.approval = Some("go-live".to_owned());
    let site = Site::with(plan(vec![step(10.0, 1), gated])).await;
    let mut events = site.control.subscribe();
    site.pass_until("it is to begin", |run| run.step == 1).await;
    (0..50).for_each(|_| site.second());
    let told = std::iter::from_fn(|| events.try_recv().ok());
    let wanted = told.filter(|event| {
        matches!(&event.what, Happened::Plan { change: PlanNews::ApprovalWanted, step: 2, reason, .. }
            if reason == "step 2 of 2 waits for the approval \"go-live\"")
    });
    assert_eq!((wanted.count(), site.live()), (1, 10.0));
    site.change(PlanChange::Approve("go-live".to_owned())).await.unwrap();
    assert_eq!(site.store.recorded("shop").plan.unwrap().approved.unwrap().by, "ann");
    site.change(PlanChange::Approve("go-live".to_owned())).await.unwrap();
    site.pass_until("the end", |run| run.state == State::Done).await;
    assert_eq!(site.live(), 50.0);
}

/// A shop with a signal, and without a plan of its own.
fn watching_lag() -> Arc<Config> {
    let text = "[[route]]\nname = \"shop\"\nprotocol = \"http\"\nlisten = \"127.0.0.1:80\"\n\
                [[route.signal]]\nname = \"lag\"\nlimit = \"> 1000\"\nsilent = \"breach\"\nexpect_every = \"5s\"\n\
                [route.blue]\nendpoints = [\"a:1\"]\n[route.green]\nendpoints = [\"b:1\"]\n";
    Arc::new(Config::parse(text, Path::new("")).unwrap_or_else(|faults| panic!("{faults}")))
}

#[tokio::test]
async fn a_green_that_was_never_used_is_waited_for_and_not_taken_off() {
    let mut gated = step(0.0, 1_000);
    gated.gates.after = vec!["users".to_owned()];
    let site = Site::open(watching_lag(), Arc::<FakeStore>::default()).await;
    site.change(start(plan(vec![gated, step(10.0, 1)]))).await.unwrap();
    let heard = |value| drop(site.control.signals().push("shop", "lag", value, None, Moment::now()).unwrap());
    heard(1700.0);
    site.waits_for("a verdict of pass: lag is 1700").await;
    heard(17.0);
    site.waits_for("the plan of route users").await;
    assert_eq!((site.run().state, site.plane.live("shop").latched), (State::Running, false));

    site.change(PlanChange::Skip).await.unwrap();
    site.pass_until("copies are sent", site.entered(0)).await;
    heard(1700.0);
    site.second();
    assert_eq!((site.run().state, site.plane.live("shop").latched), (State::RolledBack, true));
}

#[tokio::test]
async fn a_green_that_was_never_used_is_not_silent() {
    let mut gated = step(10.0, 1_000);
    gated.gates.approval = Some("go-live".to_owned());
    let site = Site::open(watching_lag(), Arc::<FakeStore>::default()).await;
    some_seconds_pass().await;
    site.change(start(plan(vec![gated]))).await.unwrap();
    site.waits_for("the approval").await;
    some_seconds_pass().await;
    site.change(PlanChange::Approve("go-live".to_owned())).await.unwrap();
    site.pass_until("it begins", site.entered(0)).await;
    some_seconds_pass().await;
    eventually("it should have been heard of by now", || {
        site.second();
        site.run().state == State::RolledBack
    })
    .await;
}

#[tokio::test]
async fn a_takeover_that_fails_is_no_silence() {
    let site = Site::open(watching_lag(), Arc::<FakeStore>::default()).await;
    site.control.set_split("shop", split(10.0), &ann(), None).await.unwrap();
    site.control.freeze().await.unwrap();
    some_seconds_pass().await;
    site.control.thaw().await.unwrap();
    (0..3).for_each(|_| site.second());
    assert!(!site.plane.live("shop").latched, "nobody could push");
    some_seconds_pass().await;
    eventually("it is silent", || {
        site.second();
        site.plane.live("shop").latched
    })
    .await;
}

#[tokio::test]
async fn a_plan_that_has_not_begun_is_not_skipped_past_a_hand_on_the_split() {
    let mut gated = step(10.0, 1_000);
    gated.gates.approval = Some("go-live".to_owned());
    let site = Site::open(config(vec![route("shop", "python", "go", 5.0)]), Arc::<FakeStore>::default()).await;
    site.change(start(plan(vec![gated]))).await.unwrap();
    for pause_first in [false, true] {
        if pause_first {
            site.change(PlanChange::Pause).await.unwrap();
        }
        let green = site.live() - 1.0;
        site.control.set_split("shop", split(green), &ann(), None).await.unwrap();
        let refused =
            format!("route shop: somebody gave green {green} % before its plan began; resume or abort the plan");
        assert_eq!(site.change(PlanChange::Skip).await.unwrap_err().to_string(), refused);
        site.change(PlanChange::Resume).await.unwrap();
        site.waits_for("the approval").await;
    }
    site.change(PlanChange::Skip).await.unwrap();
    site.pass_until("it begins", site.entered(0)).await;
}

#[tokio::test]
async fn a_resume_that_was_not_answered_does_not_happen_later() {
    let site = Site::with(plan(vec![step(10.0, 1_000)])).await;
    site.change(PlanChange::Pause).await.unwrap();
    site.store.hang();
    site.control.refused("split", None, None, &ann(), "has the turn");
    eventually("a write hangs", || site.store.waiting.load(Ordering::Relaxed) == 1).await;
    assert!(matches!(site.change(PlanChange::Resume).await, Err(Refusal::NotRecorded(_))));
    site.store.release();
    site.control.flush().await.unwrap();
    assert_eq!((site.run().state, site.store.recorded("shop").plan.unwrap().state), (State::Paused, State::Paused));
}

#[tokio::test]
async fn a_step_begins_on_no_answer_that_is_old() {
    let site = Site::with(plan(vec![step(10.0, 3)])).await;
    site.store.hang();
    eventually("it waits for the disk", || {
        site.second();
        site.store.waiting.load(Ordering::Relaxed) > 0
    })
    .await;
    some_seconds_pass().await;
    site.waits_for("the state file's disk").await;
    site.store.release();
    eventually("the disk has what is live", || site.store.waiting.load(Ordering::Relaxed) == 0).await;
    site.control.flush().await.unwrap();
    assert_eq!((site.live(), site.run().entered), (0.0, false));
    let recorded = site.store.recorded("shop");
    assert_eq!((recorded.split, recorded.plan.unwrap().entered), (split(0.0), false));
    site.pass_until("all is asked again", site.entered(0)).await;
}

/// The shop's plan waits for that of the users.
async fn two_waves() -> (Site, Plan) {
    let mut gated = step(10.0, 1);
    gated.gates.after = vec!["users".to_owned()];
    let routes = vec![route("shop", "python", "go", 0.0), route("users", "a", "b", 0.0)];
    (Site::open(config(routes), Arc::<FakeStore>::default()).await, plan(vec![gated]))
}

impl Site {
    /// The users' plan, to its end with so much of green.
    async fn first_wave(&self, green: f64) {
        let users = start(plan(vec![step(green, 1)]));
        self.control.change_plan("users", users, "first wave", &ann(), None).await.unwrap();
        eventually("users are done", || {
            self.plane.second("users", (50, 0), (50, 0));
            self.second();
            self.control.plan("users").unwrap().state == State::Done
        })
        .await;
    }
}

#[tokio::test]
async fn waves_begin_when_those_before_are_done() {
    let (site, second_wave) = two_waves().await;
    site.change(start(second_wave)).await.unwrap();
    (0..10).for_each(|_| site.second());
    assert_eq!(
        site.control.state("shop").unwrap().wait.unwrap().to_string(),
        "the plan of route users, which is not done, or was taken back"
    );
    site.first_wave(100.0).await;
    site.pass_until("the shop follows", |run| run.state == State::Done).await;
}

#[tokio::test]
async fn a_wave_that_was_taken_back_holds_those_behind_it() {
    let (site, second_wave) = two_waves().await;
    site.first_wave(50.0).await;
    let waits = || {
        (0..10).for_each(|_| site.second());
        site.control.state("shop").unwrap().wait.unwrap().to_string()
    };
    let expected = "the plan of route users, which is not done, or was taken back";
    site.control.rollback("users", "enough", &ann()).await.unwrap();
    site.change(start(second_wave)).await.unwrap();
    assert_eq!(waits(), expected, "latched");
    site.control.reset("users", "mended", &ann(), None).await.unwrap();
    assert_eq!(waits(), expected, "at 0");
    site.control.set_split("users", split(50.0), &ann(), None).await.unwrap();
    site.pass_until("the shop follows", |run| run.state == State::Done).await;
}

#[tokio::test]
async fn a_wave_that_was_raised_beyond_its_plan_lets_those_behind_it_begin() {
    let (site, second_wave) = two_waves().await;
    site.first_wave(50.0).await;
    site.control.set_split("users", split(80.0), &ann(), None).await.unwrap();
    site.change(start(second_wave)).await.unwrap();
    site.pass_until("the shop follows", |run| run.state == State::Done).await;
}

#[tokio::test]
async fn the_plan_of_every_route_in_breach_ends_before_any_incident_is_written() {
    let shop_and_users = vec![route("shop", "python", "go", 0.0), route("users", "a", "b", 0.0)];
    let site = Site::open(config(shop_and_users), Arc::<FakeStore>::default()).await;
    let routes = ["shop", "users"];
    for route in routes {
        let wanted = start(plan(vec![step(50.0, 1_000)]));
        site.control.change_plan(route, wanted, "test", &ann(), None).await.unwrap();
    }
    let second = |green| {
        routes.iter().for_each(|route| site.plane.second(route, (50, 0), green));
        site.guardian.tick();
    };
    eventually("both bake", || {
        second((50, 0));
        routes.iter().all(|route| site.control.plan(route).unwrap().healthy_seconds > 3)
    })
    .await;
    let mut events = site.control.subscribe();
    while !site.plane.live("users").latched {
        second((0, 50));
    }
    let told = std::iter::from_fn(|| events.try_recv().ok()).filter_map(|event| match &event.what {
        Happened::Plan { route, change: PlanNews::RolledBack, .. } => Some((false, route.clone())),
        Happened::Trip { incident } => Some((true, incident.route.clone())),
        _ => None,
    });
    let expected = [false, true].map(|incident| routes.map(|route| (incident, route.to_owned()))).concat();
    assert_eq!(told.collect::<Vec<_>>(), expected);
}

/// A shop whose plan waits for a signal.
fn gated_by_a_signal() -> Arc<Config> {
    let text = "[[route]]\nname = \"shop\"\nprotocol = \"http\"\nlisten = \"127.0.0.1:80\"\n\
                [[route.signal]]\nname = \"lag\"\nlimit = \"> 1000\"\n\
                [[route.plan.step]]\ngreen = 10\nbake = \"1s\"\nsignal = \"lag\"\n\
                [route.blue]\nendpoints = [\"a:1\"]\n[route.green]\nendpoints = [\"b:1\"]\n";
    Arc::new(Config::parse(text, Path::new("")).unwrap())
}

#[tokio::test]
async fn a_signal_opens_its_gate() {
    let config = gated_by_a_signal();
    let wanted = config.routes[0].plan.clone().unwrap();
    let site = Site::open(config, Arc::<FakeStore>::default()).await;
    site.change(start(wanted)).await.unwrap();
    (0..20).for_each(|_| site.second());
    let wait = site.control.state("shop").unwrap().wait.unwrap().to_string();
    assert!(wait.starts_with("a signal: lag: "), "{wait}");
    assert_eq!(site.live(), 0.0);
    // What was heard before green started says nothing about it: it is heard again.
    let heard = || drop(site.control.signals().push("shop", "lag", 17.0, None, Moment::now()).unwrap());
    site.pass_until("it passes", |run| {
        heard();
        run.state == State::Done
    })
    .await;
}

#[tokio::test]
async fn a_webhook_is_asked_until_it_says_yes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/may-go-on", listener.local_addr().unwrap());
    let (asked, says_no) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(1)));
    let bodies = Arc::new(parking_lot::Mutex::new(Vec::new()));
    tokio::spawn({
        let (asked, says_no, bodies) = (asked.clone(), says_no.clone(), bodies.clone());
        async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"}") {
                    let mut bytes = [0; 1024];
                    match client.read(&mut bytes).await {
                        Ok(0) | Err(_) => break,
                        Ok(read) => request.extend_from_slice(&bytes[..read]),
                    }
                }
                bodies.lock().push(String::from_utf8(request).unwrap());
                let no = asked.fetch_add(1, Ordering::Relaxed) < says_no.load(Ordering::Relaxed);
                let status = if no { "503 Service Unavailable" } else { "204 No Content" };
                let _ = client.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await;
            }
        }
    });
    let written = serde_json::json!({ "step": [{ "green": 10, "bake": "1s", "webhook": url }] });
    let shop = route("shop", "python", "go", 0.0);
    let site = Site::with(Plan::lift(&written, &shop, std::slice::from_ref(&shop)).unwrap()).await;
    site.waits_for("answered 503").await;
    assert_eq!(site.live(), 0.0);
    site.pass_until("it says yes", |run| run.state == State::Done).await;
    let body = bodies.lock()[1].clone();
    assert!(body.starts_with("POST /may-go-on HTTP/1.1\r\n"), "{body}");
    assert!(body.contains(r#"{"route":"shop","step":1,"steps":1,"green_percentage":10,"started_at":""#), "{body}");
}

/// Of the shop, with a step that asks at this path of the peer.
fn asking(peer: &Peer, target: &str) -> Plan {
    let written = serde_json::json!({
        "step": [{ "green": 10, "bake": "1s", "webhook": format!("http://{}{target}", peer.address) }]
    });
    let shop = route("shop", "python", "go", 0.0);
    Plan::lift(&written, &shop, std::slice::from_ref(&shop)).unwrap()
}

/// What runs when the process is started again in this folder, with `configured` in the file, after `started` was.
async fn restarted(folder: &Folder, configured: Plan, started: Plan) -> Site<Sqlite> {
    let config = config(vec![Route { plan: Some(configured), ..route("shop", "python", "go", 0.0) }]);
    let open = || Arc::new(Sqlite::open(&folder.file("state.db")).unwrap());
    let site = Site::open(config.clone(), open()).await;
    site.change(start(started)).await.unwrap();
    site.waits_for("answered 503").await;
    site.control.flush().await.unwrap();
    site.store.let_go().unwrap();
    for name in folder.names() {
        let bytes = fs::read(folder.file(&name)).unwrap();
        assert!(!bytes.windows(6).any(|window| window == b"SECRET"), "{name} has it");
    }
    Site::open(config, open()).await
}

#[tokio::test]
async fn what_is_secret_in_a_webhook_is_in_the_configuration_alone_and_asked_with_after_a_restart() {
    let (folder, peer) = (Folder::new(), Peer::start([Reply::Status(503)]).await);
    let plan = asking(&peer, "/may?token=SECRET");
    let site = restarted(&folder, plan.clone(), plan).await;
    let before = peer.requests().len();
    site.waits_for("answered 503").await;
    assert_eq!(peer.requests()[before].line, "POST /may?token=SECRET HTTP/1.1");

    peer.reply(Reply::Status(204));
    let config = config(vec![Route { plan: Some(asking(&peer, "/new")), ..route("shop", "python", "go", 0.0) }]);
    site.control.reload(config).await.unwrap();
    site.pass_until("it says yes", |run| run.state == State::Done).await;
    assert_eq!(peer.requests().last().unwrap().line, "POST /new HTTP/1.1", "a secret that was changed is taken over");
}

#[tokio::test]
async fn a_webhook_that_was_sent_is_not_asked_after_a_restart_and_the_plan_says_so() {
    let (folder, peer) = (Folder::new(), Peer::start([Reply::Status(503)]).await);
    let site = restarted(&folder, asking(&peer, "/other"), asking(&peer, "/may?token=SECRET")).await;
    let asked = peer.requests().len();
    site.waits_for("the rest of its address was sent with the plan and is not recorded").await;
    (0..20).for_each(|_| site.second());
    assert_eq!((site.live(), site.run().held_seconds > 10, peer.requests().len()), (0.0, true, asked));
    site.change(PlanChange::Skip).await.unwrap();
    site.pass_until("the end", |run| run.state == State::Done).await;
}

/// The time between two questions passes.
async fn some_seconds_pass() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(10)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_yes_of_a_webhook_counts_until_it_says_no() {
    let peer = Peer::start([Reply::Status(204)]).await;
    let site = Site::with(asking(&peer, "/may")).await;
    site.store.fail(true);
    eventually("it says yes, and the disk no", || {
        site.second();
        peer.requests().len() == 1 && site.control.state("shop").unwrap().wait == Some(Wait::Disk)
    })
    .await;
    peer.reply(Reply::Status(503));
    some_seconds_pass().await;
    site.waits_for("answered 503").await;
    site.store.fail(false);
    (0..20).for_each(|_| site.second());
    assert_eq!((site.live(), site.run().entered), (0.0, false));
    peer.reply(Reply::Status(204));
    some_seconds_pass().await;
    site.pass_until("the end", |run| run.state == State::Done).await;
}

#[tokio::test]
async fn a_webhook_is_asked_once_at_a_time_however_often_a_plan_is_resumed() {
    let peer = Peer::start([Reply::Status(503)]).await;
    let routes = vec![route("shop", "python", "go", 5.0)];
    let site = Site::open(config(routes), Arc::<FakeStore>::default()).await;
    site.change(start(asking(&peer, "/may"))).await.unwrap();
    for _ in 0..3 {
        site.waits_for("answered 503").await;
        site.change(PlanChange::Pause).await.unwrap();
        site.second();
        site.change(PlanChange::Resume).await.unwrap();
    }
    site.waits_for("answered 503").await;
    for asked in 5..8 {
        some_seconds_pass().await;
        eventually("it is asked again", || {
            site.second();
            peer.requests().len() >= asked
        })
        .await;
        assert_eq!(peer.requests().len(), asked);
    }
}
