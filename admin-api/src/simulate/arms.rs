//! Two synthetic arms, a second at a time: what a data plane would have counted of them.

use std::collections::VecDeque;

use super::{
    Behaviour, Scenario, Sickness, Spell,
    draw::{Draw, Latencies},
};
use crate::{Keys, LATENCY_MAX_US, Outcome, Second, Tally};

/// Plays a [`Scenario`].
pub(super) struct Arms {
    scenario: Scenario,
    latencies: Latencies,
    /// Seconds: the guard's `answer_within`.
    answer_within: u64,
    green: Stream,
    blue: Stream,
    green_stalls: Spells,
    blue_stalls: Spells,
    bursts: Spells,
    outages: Spells,
    slowdowns: Spells,
    draw: Draw,
    sickness: Option<(Sickness, u64)>,
    second: Second,
}

impl Arms {
    pub(super) fn new(scenario: Scenario, answer_within: u64, seed: u64) -> Self {
        let mut draw = Draw::new(seed);
        let Scenario { green_rps, share, clients, .. } = scenario;
        let mut stream = |share: f64, rps| Stream::new(rps, ((clients as f64 * share) as u64).max(1), &mut draw);
        let green = stream(share, green_rps);
        let blue = stream(1.0 - share, green_rps * (1.0 - share) / share);
        let mut spells = |spell| Spells::new(spell, draw.fork());
        Self {
            green,
            blue,
            green_stalls: spells(scenario.stall.map(|stall| stall.spell)),
            blue_stalls: spells(scenario.stall.map(|stall| stall.spell)),
            bursts: spells(scenario.burst.map(|burst| burst.spell)),
            outages: spells(scenario.outage.map(|outage| outage.spell)),
            slowdowns: spells(scenario.slowdown.map(|slowdown| slowdown.spell)),
            latencies: Latencies::lognormal(scenario.latency_us, scenario.sigma),
            answer_within,
            draw,
            sickness: None,
            second: Second::default(),
            scenario,
        }
    }

    /// From the next second on green is sick.
    pub(super) fn fall_sick(&mut self, sickness: Sickness) {
        self.sickness = Some((sickness, self.second.at + 1));
    }

    /// The next second. `slower_than_us`: from which latency on it counts as slow.
    pub(super) fn second(&mut self, slower_than_us: Option<u64>) -> &Second {
        self.second.at += 1;
        self.second.green.clear();
        self.second.blue.clear();
        let at = self.second.at;
        let burst = self.scenario.burst.map_or(1.0, |burst| burst.factor);
        let rate = if self.bursts.pass().is_some() { burst } else { 1.0 };
        let outage = self.outages.pass().and(self.scenario.outage).map_or(0.0, |outage| outage.error_rate);
        let slower = self.slowdowns.pass().and(self.scenario.slowdown).map_or(1.0, |slowdown| slowdown.factor);
        let healthy = Behaviour { errors: self.scenario.error_rate.max(outage), slower, ..Behaviour::default() };
        let sick = match self.sickness {
            Some((sickness, since)) => sickness.at(&healthy, at - since),
            None => healthy,
        };
        let (green_stall, blue_stall) = (self.green_stalls.pass(), self.blue_stalls.pass());
        let moment = |behaviour, stall, broken_client| Moment {
            at,
            rate,
            behaviour,
            stall,
            stall_fails: self.scenario.stall.is_some_and(|stall| stall.fails),
            broken_client,
            latencies: &self.latencies,
            slower_than_us,
            answer_within: self.answer_within,
            patience: self.scenario.patience,
        };
        let (on_green, on_blue) =
            (moment(sick, green_stall, self.scenario.broken_client), moment(healthy, blue_stall, 0.0));
        self.green.play(&on_green, &mut self.second.green, &mut self.draw);
        self.blue.play(&on_blue, &mut self.second.blue, &mut self.draw);
        &self.second
    }
}

/// What happens to a stream in a second.
struct Moment<'a> {
    at: u64,
    /// Times the usual rate.
    rate: f64,
    behaviour: Behaviour,
    /// Seconds that a stall has still to go, this one with them.
    stall: Option<u64>,
    stall_fails: bool,
    broken_client: f64,
    latencies: &'a Latencies,
    slower_than_us: Option<u64>,
    answer_within: u64,
    patience: u64,
}

/// Requests of one arm, or of a slice of it.
struct Stream {
    rps: f64,
    clients: u64,
    /// Tells its clients from others'.
    first_client: u64,
    /// How many were sent in each of the last seconds, and how many of those have no answer within the deadline.
    sent: VecDeque<(u64, u64)>,
    /// The second in which patience ends, and how many are given up then.
    silent: VecDeque<(u64, u64)>,
    held_up: Vec<Answers>,
}

/// Answers to what was sent in a second.
struct Answers {
    sent: u64,
    ok: u64,
    failed: u64,
}

impl Stream {
    fn new(rps: f64, clients: u64, draw: &mut Draw) -> Self {
        Self {
            rps,
            clients,
            first_client: draw.below(u64::MAX / 2),
            sent: VecDeque::new(),
            silent: VecDeque::new(),
            held_up: Vec::new(),
        }
    }

    fn play(&mut self, moment: &Moment<'_>, into: &mut Tally, draw: &mut Draw) {
        let Behaviour { errors, unreachable, silent, .. } = moment.behaviour;
        let sent = draw.poisson(self.rps * moment.rate);
        let broken = draw.binomial(sent, moment.broken_client);
        let unreachable = draw.binomial(sent - broken, unreachable);
        let silent = draw.binomial(sent - broken - unreachable, silent);
        let answered = sent - broken - unreachable - silent;
        let all_fail = moment.stall.is_some() && moment.stall_fails;
        let failed = if all_fail { answered } else { draw.binomial(answered, errors) };
        let answers = Answers { sent: moment.at, ok: answered - failed, failed };

        into.dispatched += sent;
        into.record_times(Outcome::Unreachable, unreachable);
        into.record_times(Outcome::Broken, broken);
        (0..broken).for_each(|_| into.failed_keys.count(self.first_client));
        let mut late = if moment.patience > moment.answer_within { silent } else { 0 };
        match moment.stall.filter(|_| !moment.stall_fails) {
            Some(left) => {
                late += if left > moment.answer_within { answered } else { 0 };
                self.held_up.push(answers);
            }
            None => {
                let mut held_up = std::mem::take(&mut self.held_up);
                held_up.drain(..).chain([answers]).for_each(|answers| self.answer(moment, &answers, into, draw));
                self.held_up = held_up;
            }
        }
        self.give_up(moment, silent, into, draw);
        self.fall_due(moment, (sent, late), into, draw);
    }

    fn answer(&self, moment: &Moment<'_>, answers: &Answers, into: &mut Tally, draw: &mut Draw) {
        let seconds_held_up = moment.at - answers.sent;
        into.record_times(Outcome::Ok, answers.ok);
        into.record_times(Outcome::Refused, answers.failed);
        let mut count = |draw: &mut Draw, us: f64, times| {
            let us = (us * moment.behaviour.slower) as u64;
            into.latency_us.record_n(us.min(LATENCY_MAX_US), times).expect("it resizes");
            if moment.slower_than_us.is_some_and(|bar| us > bar) {
                self.blame(&mut into.slow_keys, times, draw);
            }
        };
        if seconds_held_up == 0 {
            moment.latencies.draw_many(draw, answers.ok, count);
        } else {
            for _ in 0..answers.ok {
                let waited = (seconds_held_up as f64 - draw.uniform()) * 1e6;
                let us = waited + moment.latencies.draw(draw);
                count(draw, us, 1);
            }
        }
        self.blame(&mut into.failed_keys, answers.failed, draw);
    }

    /// What had no answer until the proxy's patience ended has failed.
    fn give_up(&mut self, moment: &Moment<'_>, silent: u64, into: &mut Tally, draw: &mut Draw) {
        if silent > 0 {
            self.silent.push_back((moment.at + moment.patience, silent));
        }
        if let Some((at, given_up)) = self.silent.front().copied()
            && at <= moment.at
        {
            self.silent.pop_front();
            into.record_times(Outcome::Timeout, given_up);
            self.blame(&mut into.failed_keys, given_up, draw);
        }
    }

    /// What was sent the deadline ago is due.
    fn fall_due(&mut self, moment: &Moment<'_>, sent: (u64, u64), into: &mut Tally, draw: &mut Draw) {
        self.sent.push_back(sent);
        if self.sent.len() as u64 > moment.answer_within
            && let Some((due, overdue)) = self.sent.pop_front()
        {
            (into.due, into.overdue) = (due, overdue);
            self.blame(&mut into.overdue_keys, overdue, draw);
        }
    }

    /// Counts clients, each as likely as any other.
    fn blame(&self, keys: &mut Keys, times: u64, draw: &mut Draw) {
        (0..times).for_each(|_| keys.count(self.first_client + draw.below(self.clients)));
    }
}

/// Something that comes over the traffic once in each period, at any moment of it.
struct Spells {
    spell: Option<Spell>,
    /// Second of the period, and the one in which it begins.
    at: u64,
    begins: u64,
    draw: Draw,
}

impl Spells {
    fn new(spell: Option<Spell>, draw: Draw) -> Self {
        Self { spell, at: 0, begins: 0, draw }
    }

    /// A second passes: how many it has to go, this one with them; `None` outside of it.
    fn pass(&mut self) -> Option<u64> {
        let Spell { lasts, every } = self.spell?;
        if self.at == 0 {
            self.begins = self.draw.below(every.saturating_sub(lasts) + 1);
        }
        let ends = self.begins + lasts;
        let left = (self.begins..ends).contains(&self.at).then(|| ends - self.at);
        self.at = (self.at + 1) % every.max(1);
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::{Burst, Outage, Stall};

    const ANSWER_WITHIN: u64 = 5;

    fn play(scenario: Scenario, sickness: Option<Sickness>, seed: u64, seconds: u64) -> Vec<Second> {
        let mut arms = Arms::new(scenario, ANSWER_WITHIN, seed);
        if let Some(sickness) = sickness {
            arms.fall_sick(sickness);
        }
        (0..seconds).map(|_| arms.second(Some(100_000)).clone()).collect()
    }

    fn sum<'a>(tallies: impl Iterator<Item = &'a Tally>) -> Tally {
        let mut sum = Tally::default();
        tallies.for_each(|tally| sum.add(tally));
        sum
    }

    fn check_share(what: &str, bad: u64, of: u64, expected: f64) {
        let room = 5.0 * (expected * (1.0 - expected) / of as f64).sqrt() + 1e-9;
        assert!((bad as f64 / of as f64 - expected).abs() <= room, "{what}: {bad} of {of}, not {expected}");
    }

    #[test]
    fn arms_do_what_the_scenario_says() {
        let seconds = 20_000;
        for (seed, share) in [0.01, 0.1, 0.5, 0.9].into_iter().enumerate() {
            let scenario = Scenario { green_rps: 5.0, share, error_rate: 0.02, ..Scenario::default() };
            let played = play(scenario, None, seed as u64, seconds);
            let green = sum(played.iter().map(|second| &second.green));
            let blue = sum(played.iter().map(|second| &second.blue));
            let what = format!("share {share}, seed {seed}");
            check_share(&what, green.dispatched, green.dispatched + blue.dispatched, share);
            assert!((green.dispatched as f64 / seconds as f64 - 5.0).abs() < 5.0 * (5.0 / seconds as f64).sqrt());
            for arm in [green, blue] {
                check_share(&what, arm.failures(), arm.judged(), 0.02);
                let p95 = arm.quantile_us(0.95).unwrap() as f64;
                assert!((p95 / (20_000.0 * f64::exp(0.5 * 1.645)) - 1.0).abs() < 0.05, "{what}: {p95}");
            }
        }
    }

    #[test]
    fn a_sick_green_is_sick_in_the_way_it_is_told() {
        let healthy = Sickness::default();
        let scenario = Scenario { error_rate: 0.0, green_rps: 50.0, ..Scenario::default() };
        let green = |sickness| {
            let played = play(scenario, Some(sickness), 3, 2_000);
            sum(played.iter().map(|second| &second.green))
        };
        let failed = green(Sickness { errors: 0.3, ..healthy });
        check_share("errors", failed.count(Outcome::Refused), failed.judged(), 0.3);
        assert_eq!(failed.failed_keys.distinct(), Keys::MOST);
        let cut_off = green(Sickness { unreachable: 0.4, ..healthy });
        check_share("unreachable", cut_off.count(Outcome::Unreachable), cut_off.judged(), 0.4);
        let silent = green(Sickness { silent: 0.2, ..healthy });
        check_share("overdue", silent.overdue, silent.due, 0.2);
        let slow = green(Sickness { slower: 3.0, ..healthy });
        assert!(slow.quantile_us(0.5).is_some_and(|median| median.abs_diff(60_000) < 1_200));
        assert!(slow.slow_keys.distinct() > 10);
        let grown = play(scenario, Some(Sickness { errors: 1.0, over: 99, ..healthy }), 3, 200);
        let half = sum(grown[45..55].iter().map(|second| &second.green));
        check_share("half of the way", half.failures(), half.judged(), 0.505);
        assert_eq!(sum(grown[100..].iter().map(|second| &second.green)).error_rate(), Some(1.0));
    }

    /// Whatever happens: all that was sent ends once, and is due once.
    #[test]
    fn all_that_is_sent_is_due_once_and_ends_once() {
        for seed in 0..60 {
            let mut draw = Draw::new(seed);
            let mut spell = |every: u64| Spell { lasts: 1 + draw.below(every - 1), every };
            let (stall, burst, outage) = (spell(20), spell(40), spell(60));
            let fails = seed % 2 == 0;
            let scenario = Scenario {
                green_rps: 10.0,
                share: 0.3,
                error_rate: 0.1,
                broken_client: 0.1,
                patience: 1 + seed % 9,
                stall: (seed % 3 > 0).then_some(Stall { spell: stall, fails }),
                burst: Some(Burst { spell: burst, factor: 4.0 }),
                outage: Some(Outage { spell: outage, error_rate: 0.6 }),
                ..Scenario::default()
            };
            let sickness = Sickness { errors: 0.2, unreachable: 0.1, silent: 0.2, slower: 2.0, over: 30 };
            let mut arms = Arms::new(scenario, ANSWER_WITHIN, seed);
            arms.fall_sick(sickness);
            let mut played: Vec<_> = (0..300).map(|_| arms.second(Some(50_000)).clone()).collect();
            // Nothing more is sent, and nothing stalls any more.
            for stream in [&mut arms.green, &mut arms.blue] {
                stream.rps = 0.0;
            }
            (arms.green_stalls.spell, arms.blue_stalls.spell) = (None, None);
            played.extend((0..60).map(|_| arms.second(Some(50_000)).clone()));
            for arm in config::Arm::BOTH {
                let all = sum(played.iter().map(|second| second.arm(arm)));
                assert_eq!(all.judged(), all.dispatched, "{arm}, seed {seed}");
                assert_eq!(all.due, all.dispatched, "{arm}, seed {seed}");
                assert!(all.overdue <= all.due);
                assert_eq!(all.latency_us.len(), all.count(Outcome::Ok), "{arm}, seed {seed}");
                let blamed = all.failures() - all.count(Outcome::Unreachable);
                assert_eq!(all.failed_keys.total(), blamed, "{arm}, seed {seed}");
                assert!(played.iter().all(|second| second.arm(arm).overdue <= second.arm(arm).due));
            }
        }
    }

    #[test]
    fn a_stalled_arm_answers_nothing_and_then_all() {
        let stall = Stall { spell: Spell { lasts: 7, every: 60 }, fails: false };
        let scenario = Scenario { stall: Some(stall), error_rate: 0.0, ..Scenario::default() };
        let played = play(scenario, None, 1, 600);
        let silent: Vec<u64> =
            played.iter().filter(|second| second.green.judged() == 0).map(|second| second.at).collect();
        assert_eq!(silent.len(), 70, "{silent:?}");
        let after = played.iter().filter(|second| second.green.judged() > 250).count();
        assert_eq!(after, 10);
        // Those of the first two seconds of a stall wait for longer than five.
        assert_eq!(played.iter().filter(|second| second.green.overdue > 0).count(), 20);
    }
}
