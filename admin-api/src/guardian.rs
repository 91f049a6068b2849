//! Judges every watched route once a second, trips those it finds in breach, and has the plans of the others go on. Knows
//! no rules.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use config::Split;
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{
    Control, Engine, MirrorObservation, MirrorSecond, Outcome, PlaceboReport, Second, Surroundings, Tally, Verdict,
    Watched, plan::Planner,
};

/// See the module.
pub struct Guardian {
    control: Arc<Control>,
    planner: Planner,
    /// `None` before the first look.
    routes: Mutex<Option<BTreeMap<String, Watch>>>,
}

/// What is remembered of a route that is watched.
struct Watch {
    epoch: u64,
    policy: config::Guard,
    split: Split,
    engine: Engine,
    placebo: Engine,
    report: PlaceboReport,
    /// The last second that was over when it began to be watched.
    since: Option<u64>,
    /// The last second that was judged.
    seen: Option<u64>,
    /// What the mirror had seen then.
    mirror: Option<MirrorObservation>,
}

impl Watch {
    /// `since`: only seconds above this one are judged.
    fn new(watched: &Watched, since: Option<u64>) -> Self {
        Self {
            epoch: watched.epoch,
            policy: watched.policy,
            split: watched.split,
            engine: Engine::new(&watched.policy),
            placebo: Engine::new(&watched.policy),
            report: PlaceboReport::default(),
            since,
            seen: None,
            mirror: None,
        }
    }

    fn follow(&mut self, watched: &Watched) {
        if self.epoch != watched.epoch {
            // What is usual for blue is learned again from the seconds that are remembered.
            *self = Self { report: self.report, ..Self::new(watched, self.since) };
        }
        if self.policy != watched.policy {
            self.policy = watched.policy;
            self.engine.follow(&watched.policy);
            self.placebo.follow(&watched.policy);
        }
        if watched.split != self.split {
            self.engine.split_changed();
            self.placebo.split_changed();
        }
        if watched.split > self.split {
            self.engine.risen();
        }
        self.split = watched.split;
    }

    /// The guard on a slice of blue. Nothing comes of it but a count.
    fn judge_placebo(&mut self, second: &Second) {
        if second.placebo.due + second.placebo.judged() == 0 {
            return;
        }
        let mut rest = second.blue.clone();
        rest.take_away(&second.placebo);
        let arms = Second { at: second.at, blue: rest, green: second.placebo.clone(), placebo: Tally::default() };
        let judgement = self.placebo.tick(&Arc::new(arms), &Surroundings::default());
        self.report.seconds += 1;
        self.report.evidence = judgement.rules.iter().map(|rule| rule.evidence).fold(0.0, f64::max);
        if judgement.verdict == Verdict::Breach {
            self.report.trips += 1;
            self.placebo = Engine::new(&self.policy);
        }
        let days = self.report.seconds as f64 / 86_400.0;
        self.report.trips_per_day = (self.report.seconds >= 3_600).then(|| self.report.trips as f64 / days);
    }
}

impl Guardian {
    pub fn new(control: Arc<Control>) -> Self {
        Self { planner: Planner::new(control.clone()), control, routes: Mutex::default() }
    }

    /// Judges each second soon after it is over, until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => self.tick(),
            }
        }
    }

    /// Judges the seconds that are over and were not judged yet, and trips routes that they show to be in breach.
    pub fn tick(&self) {
        // What is known of green is needed again should it thaw.
        if self.control.is_frozen() {
            return;
        }
        let watched = self.control.watched();
        let mut routes = self.routes.lock();
        // The first ones judge all there is: what is remembered of them is gone with the task or the process before.
        let is_first = routes.is_none();
        let routes = routes.get_or_insert_default();
        routes.retain(|route, _| watched.iter().any(|watched| watched.route == *route));
        for watched in &watched {
            let watch = routes.entry(watched.route.clone()).or_insert_with(|| {
                let seconds = || self.control.plane().seconds(&watched.route, None);
                let since = if is_first { None } else { seconds().last().map(|second| second.at) };
                Watch::new(watched, since)
            });
            watch.follow(watched);
            self.judge(watched, watch);
        }
    }

    fn judge(&self, watched: &Watched, watch: &mut Watch) {
        let route = &watched.route;
        for second in self.control.plane().seconds(route, watch.seen) {
            watch.seen = Some(second.at);
            if watched.after.max(watch.since).is_some_and(|after| second.at <= after) {
                watch.engine.learn(&second);
                continue;
            }
            let observed = self.control.plane().observe(route).unwrap_or_default();
            let before = std::mem::replace(&mut watch.mirror, observed.mirror);
            let mirrored = watch.mirror.as_ref().zip(before).map(|(now, before)| now.since(&before));
            let surroundings = Surroundings {
                mirror: mirrored.as_ref().map(|seen| MirrorSecond { pairs: seen.paired, mismatches: seen.mismatched }),
                blue_endpoints: observed.blue.endpoints,
                green_endpoints: observed.green.endpoints,
                signals: self.control.signals().readings(route, Instant::now()),
            };
            // Green at 0: the copies are all there is to judge it by.
            let second = match mirrored.filter(|_| watched.split == Split::NONE) {
                Some(copies) => Arc::new(in_parallel(second.at, &copies)),
                None => second,
            };
            let mut judgement = watch.engine.tick(&second, &surroundings);
            watch.judge_placebo(&second);
            judgement.placebo = (watch.report.seconds > 0).then_some(watch.report);
            let judgement = Arc::new(judgement);
            self.control.plane().watch_slower_than(route, watch.engine.slower_than_us());
            self.control.note(route, watched.epoch, &judgement);
            if judgement.verdict == Verdict::Breach {
                self.control.trip(route, watched.epoch, &judgement);
                return;
            }
            self.planner.tick(watched, &second, &judgement, &surroundings.signals);
        }
    }
}

/// A second of both arms by what the mirror saw: blue answered, and green was sent the copies.
fn in_parallel(at: u64, mirror: &MirrorObservation) -> Second {
    let mut second = Second { at, ..Second::default() };
    // That blue had no answer is not held against green.
    let failed = mirror.failed.iter().filter(|(reason, _)| **reason != "primary_failed").map(|(_, count)| count).sum();
    let sides = [(&mut second.blue, &mirror.blue_latency_us, 0), (&mut second.green, &mirror.green_latency_us, failed)];
    for (tally, latency_us, failed) in sides {
        tally.record_times(Outcome::Ok, mirror.paired);
        tally.record_times(Outcome::Timeout, failed);
        tally.dispatched = mirror.paired + failed;
        (tally.due, tally.overdue) = (tally.dispatched, failed);
        if let Some(latency_us) = latency_us {
            tally.latency_us.add(latency_us).expect("both resize");
        }
    }
    second
}

/// How often it is looked for a second that is over: a trip comes at most this much later.
const TICK: Duration = Duration::from_millis(100);
