use std::time::Duration;

use super::*;

fn stamp(reason: &str) -> Stamp {
    Stamp { at: "2026-01-31T10:15:02.123Z".to_owned(), by: "ann".to_owned(), reason: reason.to_owned() }
}

fn split(percent: f64) -> Split {
    Split::from_percent(percent).unwrap()
}

fn step(green: f64, bake: u64) -> Step {
    Step {
        green: split(green),
        bake: Duration::from_secs(bake),
        gates: config::Gates::default(),
        require: Require::default(),
        otherwise: Otherwise::Pause,
    }
}

fn plan(steps: Vec<Step>) -> Plan {
    Plan { steps, max_hold: Duration::from_secs(10), observe: Duration::ZERO, expected_rps: None }
}

const WELL: Inputs<'_> = Inputs {
    verdict: Verdict::Pass,
    reason: "all is well",
    shared_cause: false,
    pause: None,
    outcomes: 10,
    minimum: 20,
    throughput: Some(1.0),
    p95_ratio: Some(1.0),
    match_rate: None,
    gates: Gates { after: None, signal: None, webhook: None },
};
const UNKNOWN: Inputs<'_> = Inputs { verdict: Verdict::Unknown, reason: "too little was seen", outcomes: 0, ..WELL };

/// A plan, the share that is live, and what was asked for.
struct Play {
    run: Run,
    live: Split,
    entered: Vec<f64>,
}

impl Play {
    fn start(plan: Plan) -> Self {
        Self {
            run: Run::start(plan, Origin::Sent, Split::NONE, stamp("")).unwrap(),
            live: Split::NONE,
            entered: Vec::new(),
        }
    }

    /// One second, and what the control plane would make of it.
    fn second(&mut self, inputs: &Inputs<'_>) -> Ticked {
        let ticked = self.run.tick(inputs);
        match ticked.action.clone() {
            None => {}
            Some(Action::Enter) => {
                self.live = self.run.current().unwrap().green;
                self.entered.push(self.live.percent());
                self.run.enter(stamp(""));
            }
            Some(Action::Next) => self.run.next(stamp("")),
            Some(Action::Pause { reason, anew }) => self.run.pause(anew, stamp(&reason)),
            Some(Action::RollBack { reason }) => {
                self.live = Split::NONE;
                self.run.end(State::RolledBack, stamp(&reason));
            }
        }
        ticked
    }

    /// Seconds until the plan runs no more.
    fn play(&mut self, inputs: &Inputs<'_>) -> usize {
        (1..1_000)
            .find(|_| {
                self.second(inputs);
                self.run.state != State::Running
            })
            .expect("it ends")
    }
}

#[test]
fn a_healthy_green_walks_up_all_steps() {
    let mut play = Play::start(plan(vec![step(1.0, 3), step(10.0, 2), step(100.0, 5)]));
    let seconds = play.play(&WELL);
    assert_eq!((play.run.state, &play.entered[..]), (State::Done, &[1.0, 10.0, 100.0][..]));
    assert_eq!(seconds, (1 + 3) + (1 + 2) + (1 + 5), "each step takes a second to begin, and its bake");
}

#[test]
fn blue_stands_by_afterwards_also_through_a_quiet_night() {
    let mut play = Play::start(Plan { observe: Duration::from_secs(7), ..plan(vec![step(100.0, 2)]) });
    (0..3).for_each(|_| _ = play.second(&WELL));
    assert_eq!((play.run.state, play.run.current()), (State::Running, None));
    let sick = Inputs { shared_cause: true, reason: "both are bad", ..UNKNOWN };
    for _ in 0..3 {
        assert_eq!(play.second(&sick).wait, Wait::Verdict("both are bad".to_owned()));
    }
    assert_eq!(play.play(&UNKNOWN), 7);
    assert_eq!(play.run.state, State::Done);
}

#[test]
fn only_healthy_seconds_bake() {
    let mut play = Play::start(plan(vec![step(10.0, 5)]));
    play.second(&WELL);
    for second in 0..8 {
        play.second(if second % 2 == 0 { &WELL } else { &UNKNOWN });
    }
    assert_eq!((play.run.healthy_seconds, play.run.held_seconds, play.run.state), (4, 4, State::Running));
    // The last second must be a good one, too.
    play.second(&UNKNOWN);
    assert_eq!(play.run.state, State::Running);
    play.second(&WELL);
    assert_eq!(play.run.state, State::Done);
}

#[test]
fn thin_traffic_holds_a_step_and_then_pauses_the_plan() {
    let thin = Inputs { outcomes: 1, ..WELL };
    let mut play = Play::start(plan(vec![step(10.0, 5), step(50.0, 5)]));
    let seconds = play.play(&thin);
    assert_eq!((play.run.state, play.live), (State::Paused, split(10.0)));
    assert_eq!(seconds, 1 + 4 + 10, "to begin, what the bake lets pass unheld, and max_hold");
    let reason = "did not get on for 10 s, waiting for traffic: 14 of 20 outcomes of green";
    assert_eq!(play.run.changed.reason, reason);
    // Who resumes it gets as long again.
    play.run.resume(play.live, stamp("look at it at night"));
    let ticked = play.second(&thin);
    assert_eq!((ticked.wait, play.run.held_seconds), (Wait::Outcomes { seen: 15, needed: 20 }, 1));
    assert_eq!(play.run.healthy_seconds, 15, "it goes on with what it had");
    play.second(&WELL);
    assert_eq!((play.run.state, play.run.step), (State::Running, 1));
}

#[test]
fn a_green_that_is_never_judged_pauses_the_plan() {
    let mut play = Play::start(plan(vec![step(10.0, 5)]));
    play.play(&UNKNOWN);
    assert_eq!((play.run.state, play.live, play.run.healthy_seconds), (State::Paused, split(10.0), 0));
    assert!(play.run.changed.reason.ends_with("waiting for a verdict of pass: too little was seen"), "{:?}", play.run);
}

#[test]
fn a_limit_to_pause_at_pauses() {
    let mut play = Play::start(plan(vec![step(10.0, 5)]));
    (0..3).for_each(|_| _ = play.second(&WELL));
    play.second(&Inputs { pause: Some("green failed 2 %"), ..WELL });
    assert_eq!((play.run.state, play.run.healthy_seconds), (State::Paused, 2));
    assert_eq!(play.second(&WELL).action, None, "until somebody resumes it");
    play.run.resume(play.live, stamp(""));
    assert_eq!(play.play(&WELL), 3);
    assert_eq!(play.run.state, State::Done);
}

#[test]
fn who_goes_on_in_spite_of_a_pause_gets_on_with_that_step() {
    let mut play = Play::start(plan(vec![step(10.0, 5), step(50.0, 5)]));
    let told = |reason| Inputs { pause: Some(reason), ..WELL };
    (0..3).for_each(|_| _ = play.second(&WELL));
    play.second(&told("green failed 2 %"));
    play.run.resume(play.live, stamp("that is the noise of a test"));
    (0..3).for_each(|_| _ = play.second(&told("green failed 3 %")));
    assert_eq!((play.run.state, play.run.step), (State::Running, 1), "its figures may change");
    play.second(&told("green failed 2 %"));
    assert_eq!((play.run.state, &play.entered[..]), (State::Paused, &[10.0][..]), "but not with a higher share");
    play.run.skip(stamp("still that"));
    (0..3).for_each(|_| _ = play.second(&told("green failed 2 %")));
    assert_eq!((play.run.state, play.run.healthy_seconds, &play.entered[..]), (State::Running, 2, &[10.0, 50.0][..]));
    play.second(&WELL);
    play.second(&told("green failed 2 %"));
    assert_eq!(play.run.state, State::Paused, "what was over and comes back is news");

    // Nothing to go on in spite of: whatever comes is news.
    play.run.resume(play.live, stamp(""));
    play.second(&WELL);
    play.run.skip(stamp("seen enough"));
    play.second(&told("green failed 2 %"));
    assert_eq!((play.run.state, play.run.step), (State::Paused, 1));
    play.run.resume(play.live, stamp(""));
    play.second(&told("green failed 2 %"));
    assert_eq!(play.run.state, State::Done, "it is skipped all the same");
}

#[test]
fn who_resumes_what_somebody_paused_overrules_nothing() {
    let mut play = Play::start(plan(vec![step(10.0, 2), step(50.0, 5)]));
    (0..2).for_each(|_| _ = play.second(&WELL));
    play.run.pause(false, stamp("for the night"));
    play.run.resume(play.live, stamp("good morning"));
    play.second(&Inputs { pause: Some("green failed 2 %"), ..WELL });
    assert_eq!((play.run.state, &play.entered[..]), (State::Paused, &[10.0][..]));
}

#[test]
fn gates_are_asked_in_turn_before_a_step_begins() {
    let mut second = step(50.0, 1);
    second.gates.approval = Some("go-live".to_owned());
    let mut play = Play::start(plan(vec![step(10.0, 2), second]));
    while play.run.step == 0 {
        play.second(&WELL);
    }
    let closed = Gates { after: Some("users"), signal: Some("lag is 5"), webhook: Some("said 503") };
    let mut told = Inputs { gates: closed, ..WELL };
    assert_eq!(play.second(&told).wait, Wait::After("users".to_owned()));
    told.gates.after = None;
    for _ in 0..50 {
        assert_eq!(play.second(&told).wait, Wait::Approval("go-live".to_owned()), "people take their time");
    }
    assert_eq!(play.run.held_seconds, 0);
    play.run.approve(stamp(""));
    assert_eq!(play.second(&told).wait, Wait::Signal("lag is 5".to_owned()));
    told.gates.signal = None;
    assert_eq!(play.second(&told).wait, Wait::Webhook("said 503".to_owned()));
    assert_eq!(play.run.held_seconds, 2, "machines do not");
    told.gates.webhook = None;
    assert_eq!(play.second(&Inputs { verdict: Verdict::Unknown, ..told }).wait, Wait::Verdict(WELL.reason.to_owned()));
    assert_eq!(play.entered, [10.0]);
    play.second(&told);
    assert_eq!(play.entered, [10.0, 50.0]);
}

#[test]
fn what_a_step_requires_is_measured_over_the_step() {
    let required = |otherwise| {
        let require = Require { throughput: Some(0.95), p95_ratio: Some(1.1), match_rate: Some(0.8) };
        Play::start(plan(vec![Step { require, otherwise, ..step(0.0, 4) }, step(10.0, 1)]))
    };
    let seen = |throughput, p95_ratio, match_rate| Inputs {
        throughput: Some(throughput),
        p95_ratio: Some(p95_ratio),
        match_rate: Some(match_rate),
        ..WELL
    };
    // Promoted.
    let mut play = required(Otherwise::Rollback);
    play.play(&seen(0.96, 1.05, 0.85));
    assert_eq!((play.run.state, play.live), (State::Done, split(10.0)));
    // Not measured: it waits.
    let mut play = required(Otherwise::Rollback);
    play.play(&WELL);
    assert!(play.run.changed.reason.contains("there is no match rate of both arms yet"), "{:?}", play.run.changed);
    // Rolled back, with every reason.
    let mut play = required(Otherwise::Rollback);
    play.play(&seen(0.9, 1.2, 0.85));
    assert_eq!((play.run.state, play.live), (State::RolledBack, Split::NONE));
    assert_eq!(
        play.run.changed.reason,
        "green did not measure up: its throughput was 0.900, below the 0.95 that the plan requires; \
         its p95 ratio was 1.200, above the 1.1 that the plan requires"
    );
    // Paused, and baked once more when it goes on.
    let mut play = required(Otherwise::Pause);
    play.play(&seen(1.0, 1.0, 0.7));
    assert_eq!((play.run.state, play.run.step, play.run.healthy_seconds), (State::Paused, 0, 0));
    play.run.resume(play.live, stamp("the noise was tuned away"));
    play.play(&seen(1.0, 1.0, 0.9));
    assert_eq!(play.run.state, State::Done);
}

#[test]
fn a_restart_weighs_what_was_measured_before() {
    let mut mean = Mean::default();
    (0..30).for_each(|_| mean.see(Some(0.5)));
    mean.restarted();
    (0..10).for_each(|_| mean.see(Some(0.9)));
    mean.see(None);
    mean.see(Some(f64::NAN));
    assert!((mean.value().unwrap() - 0.6).abs() < 1e-9, "{mean:?}");
    assert_eq!(Mean::default().value(), None);
}

#[test]
fn a_plan_begins_where_green_is() {
    let steps = || plan(vec![step(1.0, 1), step(10.0, 1), step(50.0, 1)]);
    for (live, first) in [(0.0, 0), (1.0, 0), (1.01, 1), (10.0, 1), (50.0, 2)] {
        assert_eq!(Run::start(steps(), Origin::Sent, split(live), stamp("")).unwrap().step, first, "{live}");
    }
    assert_eq!(Run::start(steps(), Origin::Sent, split(51.0), stamp("")), Err(split(50.0)));
}

#[test]
fn who_resumes_a_plan_gives_green_the_share_of_its_step_back() {
    let mut play = Play::start(plan(vec![step(10.0, 3), step(50.0, 30)]));
    while play.run.healthy_seconds < 5 {
        play.second(&WELL);
    }
    // Somebody lowers it, and the plan is resumed.
    play.run.pause(false, stamp("ann set green to 5 %"));
    play.run.resume(split(5.0), stamp(""));
    assert_eq!((play.run.step, play.run.entered, play.run.healthy_seconds), (1, false, 0));
    play.second(&UNKNOWN);
    assert_eq!((play.entered.last(), play.run.step), (Some(&50.0), 1), "without its gates, which were open");

    // The same while the next step's gates are waited for: the last step that was entered begins anew.
    let mut last = step(50.0, 5);
    last.gates.approval = Some("a".to_owned());
    let mut play = Play::start(plan(vec![step(10.0, 3), last]));
    (0..10).for_each(|_| _ = play.second(&WELL));
    assert_eq!((play.run.step, play.run.entered), (1, false));
    play.run.pause(false, stamp(""));
    play.run.resume(split(20.0), stamp(""));
    play.second(&WELL);
    assert_eq!((&play.entered[..], play.run.step), (&[10.0, 10.0][..], 0));
}

#[test]
fn what_is_skipped_is_what_it_waits_for() {
    let mut first = step(10.0, 100);
    first.gates.approval = Some("a".to_owned());
    let mut play = Play::start(Plan { observe: Duration::from_secs(100), ..plan(vec![first, step(50.0, 100)]) });
    play.second(&WELL);
    assert!(play.entered.is_empty());
    play.run.skip(stamp("nobody is there"));
    play.second(&UNKNOWN);
    assert_eq!((&play.entered[..], play.run.waived), (&[10.0][..], false), "the gates, and no more");
    play.second(&UNKNOWN);
    assert_eq!(play.run.step, 0);
    play.run.skip(stamp("long enough"));
    play.second(&UNKNOWN);
    play.second(&UNKNOWN);
    assert_eq!(play.entered, [10.0], "what is not known lets no step begin");
    play.second(&WELL);
    assert_eq!(play.entered, [10.0, 50.0]);
    play.run.skip(stamp(""));
    play.second(&WELL);
    assert_eq!((play.run.current(), play.run.state), (None, State::Running));
    play.run.skip(stamp(""));
    assert_eq!(play.run.state, State::Done);
}

#[test]
fn what_is_recorded_is_read_again_as_it_was() {
    let mut gated = step(12.5, 600);
    gated.gates = config::Gates {
        approval: Some("go".to_owned()),
        signal: Some("lag".to_owned()),
        webhook: None,
        after: vec!["users".to_owned()],
    };
    gated.require = Require { throughput: Some(0.95), ..Require::default() };
    let mut run = Run::start(plan(vec![step(0.0, 60), gated]), Origin::Sent, Split::NONE, stamp("why")).unwrap();
    run.enter(stamp(""));
    run.tick(&WELL);
    run.approve(stamp(""));
    let text = serde_json::to_string(&run).unwrap();
    assert_eq!(serde_json::from_str::<Run>(&text).unwrap(), run, "{text}");
}

/// Whatever happens in whatever order: no panic, green only ever gets a share of the plan, never a step's without its
/// bake or somebody's word, and an unknown or bad second earns nothing.
#[test]
fn nothing_makes_a_plan_go_on_that_should_not() {
    let seed = std::env::var("PLAN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("PLAN_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut ends = std::collections::BTreeMap::<&str, u32>::new();
    for _ in 0..3_000 {
        let mut steps = Vec::new();
        let mut green = 0.0;
        for _ in 0..random.usize(1..5) {
            let mut step = step(green, random.u64(1..6));
            if random.bool() {
                step.gates.approval = Some("a".to_owned());
            }
            if random.bool() {
                step.require.throughput = Some(0.9);
                step.otherwise = if random.bool() { Otherwise::Rollback } else { Otherwise::Pause };
            }
            steps.push(step);
            green += random.f64().mul_add(10.0, 1.0).round();
        }
        let shares: Vec<f64> = steps.iter().map(|step| step.green.percent()).collect();
        let observe = Duration::from_secs(random.u64(0..4));
        let mut play = Play::start(Plan { observe, ..plan(steps) });
        for _ in 0..120 {
            let inputs = Inputs {
                verdict: [Verdict::Pass, Verdict::Pass, Verdict::Pass, Verdict::Unknown, Verdict::Breach]
                    [random.usize(0..5)],
                pause: (random.u8(..) == 0).then_some("pause"),
                outcomes: [0, 5, 20, u64::MAX][random.usize(0..4)],
                throughput: [None, Some(1.0), Some(0.5), Some(f64::NAN), Some(f64::INFINITY)][random.usize(0..5)],
                gates: Gates { signal: (random.u8(..) < 40).then_some("no"), ..Gates::default() },
                ..WELL
            };
            let before = play.run.clone();
            let (ticked, live) = (play.second(&inputs), play.live);
            let earned = play.run.healthy_seconds > before.healthy_seconds;
            assert!(!earned || inputs.verdict == Verdict::Pass, "{before:?} {inputs:?}");
            if ticked.action == Some(Action::Next) && before.current().is_some() && !before.waived {
                let step = before.current().unwrap();
                assert!(inputs.verdict == Verdict::Pass, "{before:?} {inputs:?}");
                assert!(before.healthy_seconds + 1 >= step.bake.as_secs(), "{before:?} {inputs:?}");
            }
            if ticked.action == Some(Action::Enter) {
                let gates = &before.current().unwrap().gates;
                let open = (gates.approval.is_none() || before.approved.is_some()) && inputs.gates.signal.is_none();
                assert!(open || before.waived, "{before:?} {inputs:?}");
                assert!(shares.contains(&live.percent()));
            }
            assert!(play.run.step <= play.run.plan.steps.len());
            if play.run.is_live() {
                match random.u8(..) {
                    0..10 => play.run.approve(stamp("")),
                    10..12 => play.run.skip(stamp("")),
                    12..15 => play.run.pause(false, stamp("")),
                    15..60 if play.run.state == State::Paused => {
                        let live = if random.bool() { play.live } else { split(f64::from(random.u8(0..100))) };
                        play.run.resume(live, stamp(""));
                    }
                    _ => {}
                }
            }
            if random.u8(..) == 0 {
                play.run.restarted();
            }
        }
        *ends.entry(play.run.state.as_str()).or_default() += 1;
    }
    assert!(ends.len() >= 4, "the plays end in few ways only: {ends:?}");
}
