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
        let arms = Second { at: second.at, blue: rest, green: second.placebo.clone(), ..Second::default() };
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
        // Greens that break together are all off by now.
        self.control.explain_trips();
    }

    fn judge(&self, watched: &Watched, watch: &mut Watch) {
        let route = &watched.route;
        for second in self.control.plane().seconds(route, watch.seen) {
            watch.seen = Some(second.at);
            let second = second.divided();
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

/// A second of both arms by what the mirror saw, of what ended in it. Blue's own failures are there, too: a cause that
/// both share is not green's.
fn in_parallel(at: u64, mirror: &MirrorObservation) -> Second {
    let side = |seen: &Tally| {
        let mut tally = seen.clone();
        tally.dispatched = tally.judged();
        (tally.due, tally.overdue) = (tally.judged(), tally.failures() - tally.count(Outcome::Refused));
        tally
    };
    Second { at, blue: side(&mirror.blue), green: side(&mirror.green), ..Second::default() }
}

/// How often it is looked for a second that is over: a trip comes at most this much later.
const TICK: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(endings: &[(Outcome, u64)]) -> Tally {
        let mut tally = Tally::default();
        for (outcome, times) in endings {
            tally.record_times(*outcome, *times);
        }
        tally
    }

    #[test]
    fn a_mirrored_second_holds_against_each_arm_what_was_its_own() {
        let mirror = MirrorObservation {
            blue: tally(&[(Outcome::Ok, 40), (Outcome::Refused, 3), (Outcome::Timeout, 7)]),
            green: tally(&[(Outcome::Ok, 20), (Outcome::Declined, 5), (Outcome::Refused, 15), (Outcome::Broken, 10)]),
            ..MirrorObservation::default()
        };
        let second = in_parallel(9, &mirror);
        let of = |tally: &Tally| {
            [
                tally.dispatched,
                tally.judged(),
                tally.failures(),
                tally.count(Outcome::Refused),
                tally.due,
                tally.overdue,
            ]
        };
        assert_eq!((second.at, of(&second.placebo)), (9, [0; 6]));
        assert_eq!(of(&second.blue), [50, 50, 10, 3, 50, 7]);
        assert_eq!(of(&second.green), [50, 50, 25, 15, 50, 10]);
    }

    #[test]
    fn whom_the_split_did_not_send_where_they_went_says_nothing_of_those_it_divides() {
        let (unsplit, forced) =
            (tally(&[(Outcome::Ok, 30), (Outcome::Refused, 1)]), tally(&[(Outcome::Ok, 7), (Outcome::Broken, 2)]));
        let mut second = Second { at: 7, blue: tally(&[(Outcome::Ok, 5)]), ..Second::default() };
        second.green = tally(&[(Outcome::Ok, 40)]);
        let all = Arc::new(second.clone());
        assert!(Arc::ptr_eq(&Arc::clone(&all).divided(), &all), "nothing to leave out");
        second.blue.add(&unsplit);
        second.green.add_counts(&forced);
        let without = Arc::new(Second { unsplit, forced: Some(Box::new(forced)), ..second }).divided();
        let counted = |tally: &Tally| (tally.judged(), tally.failures());
        assert_eq!((without.at, counted(&without.blue), counted(&without.green)), (7, (5, 0), (40, 0)));
        assert!(without.unsplit.is_idle() && without.forced.is_none());
    }

    /// The guard on 30 seconds in parallel.
    fn judged(blue: &[(Outcome, u64)], green: &[(Outcome, u64)]) -> (Verdict, bool) {
        let mut engine = Engine::new(&config::Guard::default());
        let well = MirrorObservation {
            blue: tally(&[(Outcome::Ok, 50)]),
            green: tally(&[(Outcome::Ok, 50)]),
            ..MirrorObservation::default()
        };
        let ill = MirrorObservation { blue: tally(blue), green: tally(green), ..MirrorObservation::default() };
        let seconds = (0..90).map(|at| in_parallel(at, if at < 60 { &well } else { &ill }));
        let judged = seconds.map(|second| engine.tick(&Arc::new(second), &Surroundings::default()));
        judged.map(|judgement| (judgement.verdict, judgement.shared_cause)).fold(
            (Verdict::Pass, false),
            |worst, now| {
                let breach = worst.0 == Verdict::Breach || now.0 == Verdict::Breach;
                (if breach { Verdict::Breach } else { now.0 }, worst.1 || now.1)
            },
        )
    }

    #[test]
    fn green_fails_in_parallel_by_its_own_answers_and_not_by_a_cause_that_blue_shares() {
        let (well, refused) = ([(Outcome::Ok, 50)], [(Outcome::Refused, 50)]);
        let (late, half) = ([(Outcome::Timeout, 50)], [(Outcome::Ok, 25), (Outcome::Timeout, 25)]);
        assert_eq!(judged(&well, &well), (Verdict::Pass, false));
        assert_eq!(judged(&well, &refused), (Verdict::Breach, false));
        assert_eq!(judged(&well, &late), (Verdict::Breach, false));
        assert_eq!(judged(&half, &half), (Verdict::Unknown, true));
        assert_eq!(judged(&late, &well), (Verdict::Pass, false));
    }
}
