use std::time::Duration;

use config::{Guard, PauseLimits};

use super::*;

/// What one arm did in one second.
#[derive(Clone, Copy, Default)]
struct Did {
    ok: u64,
    failed: u64,
    declined: u64,
    unreachable: u64,
    latency_us: u64,
    /// And not ended.
    sent: u64,
    overdue: u64,
    /// Failures were of this many keys.
    keys: u64,
}

fn ok(ok: u64) -> Did {
    Did { ok, latency_us: 10_000, keys: 1_000, ..Did::default() }
}

fn failing(failed: u64, of: u64) -> Did {
    Did { failed, ..ok(of - failed) }
}

fn taking(latency_us: u64) -> Did {
    Did { latency_us, ..ok(50) }
}

fn tally(did: Did, at: u64) -> Tally {
    let mut tally = Tally::default();
    tally.dispatched = did.ok + did.failed + did.declined + did.unreachable + did.sent;
    for n in 0..did.ok {
        // Spread by a fifth around the middle, the same for every arm.
        tally.record(Outcome::Ok, Some(did.latency_us * (80 + n % 40) / 100));
    }
    (0..did.declined).for_each(|_| tally.record(Outcome::Declined, Some(did.latency_us)));
    (0..did.unreachable).for_each(|_| tally.record(Outcome::Unreachable, None));
    for n in 0..did.failed {
        tally.record(Outcome::Refused, Some(did.latency_us));
        tally.failed_keys.count((at + n) % did.keys.max(1));
    }
    (tally.due, tally.overdue) = (tally.dispatched, did.overdue);
    tally
}

/// An engine that is fed one second after the other.
struct Watched {
    engine: Engine,
    at: u64,
    surroundings: Surroundings,
    last: Option<Judgement>,
}

impl Watched {
    fn by(policy: Guard) -> Self {
        Self { engine: Engine::new(&policy), at: 0, surroundings: Surroundings::default(), last: None }
    }

    fn second(&mut self, blue: Did, green: Did) -> Verdict {
        let (blue, green) = (tally(blue, self.at), tally(green, self.at));
        let second = Arc::new(Second { at: self.at, blue, green, ..Second::default() });
        self.at += 1;
        let judgement = self.engine.tick(&second, &self.surroundings);
        let verdict = judgement.verdict;
        self.last = Some(judgement);
        verdict
    }

    fn seconds(&mut self, count: u64, blue: Did, green: Did) -> Verdict {
        (0..count).map(|_| self.second(blue, green)).last().unwrap_or(Verdict::Unknown)
    }

    /// How many such seconds it takes for a breach.
    fn until_breach(&mut self, blue: Did, green: Did, most: u64) -> Option<u64> {
        (1..=most).find(|_| self.second(blue, green) == Verdict::Breach)
    }

    fn judgement(&self) -> &Judgement {
        self.last.as_ref().expect("there was a second")
    }

    fn rule(&self, name: &str) -> &Evidence {
        self.judgement().rules.iter().find(|rule| rule.rule == name).expect("a rule of that name")
    }
}

/// After a healthy minute.
fn warm(policy: Guard) -> Watched {
    let mut watched = Watched::by(policy);
    assert_eq!(watched.seconds(60, ok(50), ok(50)), Verdict::Pass);
    watched
}

#[test]
fn verdicts_of_what_goes_on_for_long() {
    for (name, expected, blue, green) in [
        ("no traffic", Verdict::Unknown, ok(0), ok(0)),
        ("green idle", Verdict::Unknown, ok(50), ok(0)),
        ("both well", Verdict::Pass, ok(50), ok(50)),
        ("no blue", Verdict::Pass, ok(0), ok(50)),
        ("2 % errors", Verdict::Pass, ok(50), failing(1, 50)),
        ("20 % errors", Verdict::Breach, ok(50), failing(10, 50)),
        ("10 % errors", Verdict::Breach, ok(50), failing(5, 50)),
        ("all errors, thin blue", Verdict::Breach, ok(1), failing(50, 50)),
        ("all errors, no blue", Verdict::Breach, ok(0), failing(50, 50)),
        ("a little slower", Verdict::Pass, ok(50), taking(15_000)),
        ("five times slower", Verdict::Breach, ok(50), taking(50_000)),
        ("three times slower, and nobody notices", Verdict::Pass, taking(100), taking(300)),
        ("slower than blue and noticed", Verdict::Breach, taking(100), taking(2_000)),
        ("both 10 % errors", Verdict::Unknown, failing(5, 50), failing(5, 50)),
        ("both dead", Verdict::Unknown, failing(50, 50), failing(50, 50)),
        ("blue fails, but much less", Verdict::Breach, failing(5, 50), failing(30, 50)),
        ("blue is dead, green half", Verdict::Unknown, failing(50, 50), failing(25, 50)),
        ("turns everybody away", Verdict::Unknown, ok(50), Did { declined: 50, ..ok(0) }),
        ("so does blue", Verdict::Pass, Did { declined: 50, ..ok(0) }, Did { declined: 50, ..ok(0) }),
        ("unreachable", Verdict::Breach, ok(50), Did { unreachable: 50, ..ok(0) }),
    ] {
        let mut watched = Watched::by(Guard::default());
        let worst = (0..120).map(|_| watched.second(blue, green)).max_by_key(|verdict| *verdict as u8);
        let last = watched.judgement().verdict;
        let seen = if worst == Some(Verdict::Breach) { Verdict::Breach } else { last };
        assert_eq!(seen, expected, "{name}: {}", watched.judgement().reason);
    }
}

#[test]
fn a_green_that_fails_altogether_trips_in_five_seconds() {
    for rate in [50, 5_000] {
        let mut watched = warm(Guard::default());
        assert_eq!(watched.until_breach(ok(50), failing(rate, rate), 10), Some(5), "at {rate} a second");
    }
    let mut watched = warm(Guard::default());
    assert!(watched.until_breach(ok(1), failing(1, 1), 30).is_some_and(|seconds| seconds <= 8));
}

#[test]
fn one_bad_second_in_a_minute_trips_nothing_on_whichever_arm() {
    for (blue, green) in [(ok(50), failing(50, 50)), (failing(50, 50), failing(50, 50))] {
        let mut watched = warm(Guard::default());
        for _ in 0..120 {
            assert_ne!(watched.second(blue, green), Verdict::Breach);
            for _ in 0..59 {
                assert_ne!(watched.second(ok(50), ok(50)), Verdict::Breach, "{}", watched.judgement().reason);
            }
        }
    }
}

#[test]
fn the_evidence_says_what_it_rests_on() {
    let mut watched = warm(Guard::default());
    assert!(watched.until_breach(ok(50), failing(25, 50), 10).is_some());
    assert_eq!(
        watched.judgement().reason,
        "green failed 125 of 250 (50.0 %) in 5 s; the limit is 5.0 %; blue failed 0 of 250 (0.0 %)"
    );
    let rule = watched.rule("error_rate");
    assert_eq!((rule.bad, rule.of, rule.blue_bad, rule.blue_of, rule.window_seconds), (125, 250, 0, 250, 5));
    assert!(rule.evidence >= 1.0 && rule.keys >= 3);
    let json = serde_json::to_value(watched.judgement()).unwrap();
    assert_eq!(json["verdict"], "breach");
    assert_eq!(json["rules"][0]["rule"], "error_rate");
    assert!(json["green"]["p95_ms"].is_f64());
}

#[test]
fn both_arms_bad_is_a_shared_cause_and_the_route_says_what_follows() {
    let mut watched = warm(Guard::default());
    assert_eq!(watched.until_breach(failing(40, 50), failing(40, 50), 300), None);
    assert!(watched.judgement().shared_cause);
    assert!(watched.judgement().reason.ends_with("both are bad, so green is not to blame; not tripped"));
    // Blue recovers, green does not.
    assert!(watched.until_breach(ok(50), failing(40, 50), 10).is_some());

    let mut watched = warm(Guard { shared_cause: SharedCause::Rollback, ..Guard::default() });
    assert!(watched.until_breach(failing(40, 50), failing(40, 50), 10).is_some());
    assert!(watched.judgement().shared_cause);

    let slow = taking(500_000);
    let mut watched = warm(Guard::default());
    watched.seconds(240, ok(50), ok(50));
    let mut shared = false;
    for _ in 0..20 {
        assert_ne!(watched.second(slow, slow), Verdict::Breach);
        shared |= watched.judgement().shared_cause;
    }
    assert!(shared);
}

#[test]
fn a_split_that_changes_in_an_outage_of_both_does_not_make_it_greens() {
    let mut watched = Watched::by(Guard::default());
    for (length, blue, green) in [
        (100, ok(99), ok(1)),
        (10, failing(50, 99), failing(1, 1)),
        (20, failing(25, 50), failing(25, 50)),
        (20, ok(99), ok(1)),
        (20, ok(10), ok(90)),
    ] {
        watched.engine.split_changed();
        for _ in 0..length {
            assert_ne!(watched.second(blue, green), Verdict::Breach, "{}", watched.judgement().reason);
        }
    }
}

#[test]
fn one_or_two_broken_clients_trip_nothing_and_three_do() {
    let of_keys = |keys| Did { keys, ..failing(10, 50) };
    let mut watched = warm(Guard::default());
    for (keys, trips) in [(1, false), (2, false), (30, true)] {
        let breach = watched.until_breach(ok(50), of_keys(keys), 30);
        assert_eq!(breach.is_some(), trips, "{keys}: {}", watched.judgement().reason);
    }
    let mut one = warm(Guard { min_keys: 1, ..Guard::default() });
    assert!(one.until_breach(ok(50), of_keys(1), 10).is_some());
    // One that is broken, and now and then a failure of somebody else.
    let mut watched = warm(Guard::default());
    for n in 0..300 {
        let mut green = tally(Did { keys: 1, ..failing(10, 50) }, 0);
        if n % 10 == 0 {
            green.record(Outcome::Refused, None);
            green.failed_keys.count(1_000 + n);
        }
        let blue = tally(ok(50), 0);
        let second = Second { at: watched.at, blue, green, ..Second::default() };
        watched.at += 1;
        let judgement = watched.engine.tick(&Arc::new(second), &Surroundings::default());
        assert_ne!(judgement.verdict, Verdict::Breach, "{}", judgement.reason);
    }
}

#[test]
fn a_green_that_leaves_requests_waiting_trips_by_its_throughput() {
    let hanging = |overdue| Did { overdue, latency_us: 0, ok: 50 - overdue, ..ok(0) };
    let mut watched = warm(Guard::default());
    let silent = Did { overdue: 50, ..ok(0) };
    let mut waiting = tally(silent, 0);
    (waiting.dispatched, waiting.due) = (50, 50);
    let seconds = (1..=10).find(|_| {
        let second = Second { at: watched.at, blue: tally(ok(50), 0), green: waiting.clone(), ..Second::default() };
        watched.at += 1;
        let judgement = watched.engine.tick(&Arc::new(second), &Surroundings::default());
        watched.last = Some(judgement);
        watched.judgement().verdict == Verdict::Breach
    });
    assert_eq!(seconds, Some(5));
    assert_eq!(
        watched.judgement().reason,
        "green had no answer within 5 s for 250 of 250 (100.0 %) in 5 s; the limit is 50.0 % of blue's throughput; blue had \
         no answer within 5 s for 0 of 250 (0.0 %)"
    );
    let mut watched = warm(Guard::default());
    assert_eq!(watched.until_breach(hanging(50), hanging(50), 30), None, "blue does not answer either");
    // Blue leaves nearly all of its requests waiting as well, always: that is what the traffic is like.
    let long = |overdue| Did { overdue, ..ok(50) };
    let mut watched = Watched::by(Guard::default());
    assert_eq!(watched.until_breach(long(48), long(50), 300), None);
    assert!(watched.rule("throughput").reason.starts_with("blue leaves nearly all waiting as well"));
    // Where it answers a few, a green that answers nobody is seen.
    let mut watched = Watched::by(Guard::default());
    assert_eq!(watched.until_breach(long(40), long(40), 300), None);
    assert!(watched.until_breach(long(40), hung(50), 60).is_some());
}

#[test]
fn error_increase_asks_of_blue_what_is_usual() {
    let policy = Guard { max_error_increase: Some(0.5), max_error_rate: 0.2, ..Guard::default() };
    let mut watched = Watched::by(policy);
    watched.seconds(300, failing(1, 100), failing(1, 100));
    assert_eq!(watched.rule("error_increase").verdict, Verdict::Pass);
    let seconds = watched.until_breach(failing(1, 100), failing(4, 100), 60);
    assert!(seconds.is_some(), "{}", watched.judgement().reason);
    assert!(watched.judgement().reason.contains("the limit is 50.0 % more than blue"));
}

#[test]
fn other_quantiles_are_asked_where_they_are_configured() {
    let policy = Guard { max_p50_ratio: Some(1.5), max_p95_ratio: None, max_p99_ratio: Some(3.0), ..Guard::default() };
    let mut watched = warm(policy);
    assert!(watched.until_breach(ok(50), taking(30_000), 20).is_some());
    assert!(watched.rule("p50_ratio").verdict == Verdict::Breach && watched.rule("p99_ratio").threshold_ms.is_some());
    assert!(watched.judgement().rules.iter().all(|rule| rule.rule != "p95_ratio"));
}

#[test]
fn mirrored_pairs_that_do_not_match_trip_and_below_that_a_plan_pauses() {
    let pause = PauseLimits { min_match_rate: Some(0.9), ..PauseLimits::default() };
    let mut watched = warm(Guard { min_match_rate: Some(0.7), pause, ..Guard::default() });
    let pairs = |mismatches| Some(MirrorSecond { pairs: 50, mismatches });
    watched.surroundings.mirror = pairs(1);
    assert_eq!(watched.seconds(30, ok(50), ok(50)), Verdict::Pass);
    assert_eq!(watched.judgement().pause, None);
    watched.surroundings.mirror = pairs(10);
    watched.seconds(30, ok(50), ok(50));
    assert_ne!(watched.judgement().verdict, Verdict::Breach);
    assert!(watched.judgement().pause.as_ref().is_some_and(|why| why.contains("at least 90.0 % must match")));
    watched.surroundings.mirror = pairs(40);
    assert!(watched.until_breach(ok(50), ok(50), 10).is_some());
    assert!(watched.judgement().reason.contains("at least 70.0 % must match"));
}

#[test]
fn health_checks_are_a_fast_lane() {
    let endpoints = |failed: &[u32]| {
        failed
            .iter()
            .map(|failed_checks| EndpointObservation {
                address: "127.0.0.1:1".to_owned(),
                healthy: *failed_checks == 0,
                failed_checks: *failed_checks,
                in_flight: 0,
            })
            .collect::<Vec<_>>()
    };
    for (name, blue, green, expected) in [
        ("well", &[0][..], &[0, 0][..], Verdict::Pass),
        ("one of two is down", &[0], &[9, 0], Verdict::Pass),
        ("three checks", &[0], &[3, 4], Verdict::Unknown),
        ("more than three", &[0], &[4, 4], Verdict::Breach),
        ("blue as well", &[7], &[4, 4], Verdict::Unknown),
        ("blue as well, a check behind", &[3], &[4, 4], Verdict::Unknown),
        ("one of blue's is up", &[7, 0], &[4, 4], Verdict::Breach),
    ] {
        let mut watched = warm(Guard::default());
        watched.surroundings.blue_endpoints = endpoints(blue);
        watched.surroundings.green_endpoints = endpoints(green);
        watched.second(ok(50), ok(50));
        assert_eq!(watched.rule("health").verdict, expected, "{name}: {}", watched.judgement().reason);
        assert_eq!(watched.judgement().verdict == Verdict::Breach, expected == Verdict::Breach, "{name}");
        assert_eq!(watched.judgement().shared_cause, name.starts_with("blue as well"));
    }
}

#[test]
fn a_signal_counts_like_any_rule() {
    for verdict in [Verdict::Pass, Verdict::Unknown, Verdict::Breach] {
        let mut watched = warm(Guard::default());
        let reason = "lag is 2000".to_owned();
        let (name, value) = ("lag".to_owned(), Some(2000.0));
        let reading = SignalReading { name, verdict, reason, evidence: 0.25, value, limit: 1000.0 };
        watched.surroundings.signals = vec![reading];
        assert_eq!(watched.second(ok(50), ok(50)), verdict, "{}", watched.judgement().reason);
        assert_eq!(watched.rule("signal:lag").observed, Some(2000.0));
        assert_eq!(watched.rule("signal:lag").evidence, 0.25);
    }
}

#[test]
fn a_reload_keeps_the_evidence_of_rules_it_does_not_touch() {
    let mut watched = warm(Guard::default());
    watched.seconds(3, ok(50), failing(50, 50));
    let evidence = watched.rule("error_rate").evidence;
    assert!(evidence > 0.5);
    watched.engine.follow(&Guard { max_p95_ratio: Some(3.0), min_keys: 2, ..Guard::default() });
    watched.second(ok(0), ok(0));
    assert_eq!(watched.rule("error_rate").evidence, evidence);
    watched.engine.follow(&Guard { max_error_rate: 0.1, ..Guard::default() });
    watched.second(ok(0), ok(0));
    assert_eq!(watched.rule("error_rate").evidence, 0.0);
}

#[test]
fn who_is_served_since_a_raise_must_be_seen_before_it_passes() {
    let mut watched = warm(Guard::default());
    watched.engine.risen();
    assert_eq!(watched.second(ok(50), ok(10)), Verdict::Unknown);
    assert_eq!(watched.seconds(6, ok(50), ok(10)), Verdict::Pass);
    assert!(watched.rule("throughput").observed_since_raise.is_some());
}

#[test]
fn without_traffic_what_was_seen_is_no_pass_for_long() {
    let mut watched = warm(Guard::default());
    assert_eq!(watched.seconds(10, ok(0), ok(0)), Verdict::Pass);
    assert_eq!(watched.seconds(30, ok(50), ok(0)), Verdict::Unknown);
    assert!(watched.judgement().reason.starts_with("green has had no outcome for"));
    assert_eq!(watched.second(ok(50), ok(50)), Verdict::Pass);
}

#[test]
fn a_blue_without_traffic_is_compared_with_as_it_last_was() {
    let mut watched = warm(Guard { baseline: Duration::from_secs(30), ..Guard::default() });
    watched.seconds(900, ok(0), ok(50));
    assert_eq!(watched.judgement().baseline.age_seconds, Some(900));
    assert!(watched.judgement().baseline.latencies >= 1_000);
    assert!(watched.until_breach(ok(0), taking(60_000), 10).is_some());
}

#[test]
fn nothing_good_ever_trips_and_nothing_at_all_panics() {
    let policy = Guard {
        max_error_increase: Some(0.1),
        max_connect_failures: Some(0.001),
        max_p50_ratio: Some(1.5),
        max_p99_ratio: Some(2.0),
        min_match_rate: Some(0.99),
        ..Guard::default()
    };
    for seed in 1..=30 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut good, mut wild) = (Watched::by(policy), Watched::by(policy));
        for at in 0..200 {
            let mut any = |most: u64| if random.bool() { random.u64(0..=most) } else { 0 };
            let well = |ok: u64| Did { ok, latency_us: 10_000, ..Did::default() };
            let verdict = good.second(well(any(200)), well(any(200)));
            assert_ne!(verdict, Verdict::Breach, "seed {seed}: {}", good.judgement().reason);
            let mut arm = || {
                let mut tally = Tally::default();
                for outcome in Outcome::ALL {
                    tally.record_times(outcome, any(u64::MAX >> 20));
                    tally.record(outcome, Some(any(u64::MAX)));
                }
                (tally.due, tally.overdue) = (any(u64::MAX >> 20), any(u64::MAX >> 20));
                tally.failed_keys.count(any(5));
                tally
            };
            let second = Second { at: at * (1 + seed % 3), blue: arm(), green: arm(), ..Second::default() };
            let pairs = Some(MirrorSecond { pairs: any(9), mismatches: any(99) });
            let judgement =
                wild.engine.tick(&Arc::new(second), &Surroundings { mirror: pairs, ..Surroundings::default() });
            assert!(judgement.rules.iter().all(|rule| rule.evidence.is_finite()), "seed {seed}");
            if random.u8(..) == 0 {
                wild.engine.risen();
            }
        }
    }
}

#[test]
fn one_failure_more_in_place_of_a_success_never_helps_green_beside_a_blue_that_is_well() {
    for seed in 1..=60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let each: Vec<(u64, u64)> = (0..40)
            .map(|_| {
                let of = random.u64(0..60);
                (random.u64(0..=of) / random.u64(1..10), of)
            })
            .collect();
        let first_breach = |each: &[(u64, u64)]| {
            let mut watched = warm(Guard::default());
            each.iter().position(|(bad, of)| watched.second(ok(50), failing(*bad, *of)) == Verdict::Breach)
        };
        let mut worse = each.clone();
        let one = random.usize(..worse.len());
        worse[one].0 += u64::from(worse[one].0 < worse[one].1);
        let (before, after) = (first_breach(&each), first_breach(&worse));
        assert!(before.is_none_or(|before| after.is_some_and(|after| after <= before)), "seed {seed}");
    }
}

#[test]
fn a_green_that_comes_and_goes_trips() {
    let mut watched = warm(Guard::default());
    let seconds = (0..600).find(|second| {
        let green = if second % 5 < 4 { failing(500, 500) } else { ok(500) };
        watched.second(ok(500), green) == Verdict::Breach
    });
    assert!(seconds.is_some_and(|seconds| seconds <= 70), "{seconds:?}");
}

#[test]
fn a_client_that_fails_all_day_does_not_hide_what_comes_after() {
    let mut watched = warm(Guard::default());
    let broken = Did { keys: 1, ..failing(10, 50) };
    assert_eq!(watched.until_breach(ok(50), broken, 4 * 3_600), None);
    assert!(watched.judgement().pause.is_some(), "somebody should look");
    assert!(watched.until_breach(ok(50), failing(50, 50), 20).is_some(), "{}", watched.judgement().reason);
}

#[test]
fn after_an_outage_of_both_a_green_within_its_limit_is_soon_well_again() {
    let mut watched = Watched::by(Guard::default());
    watched.seconds(120, ok(5), ok(5));
    assert_eq!(watched.until_breach(failing(5, 5), failing(5, 5), 600), None);
    let green = |at: u64| failing(u64::from(at.is_multiple_of(20)), 5);
    let verdicts: Vec<Verdict> = (0..1_800).map(|at| watched.second(ok(5), green(at))).collect();
    assert!(!verdicts.contains(&Verdict::Breach), "{}", watched.judgement().reason);
    assert!(verdicts[900..].contains(&Verdict::Pass), "{}", watched.judgement().reason);
}

#[test]
fn a_green_with_all_the_traffic_that_answers_nothing_trips_though_nothing_is_known_of_blue() {
    let mut watched = Watched::by(Guard::default());
    let mut silent = Tally::default();
    (silent.dispatched, silent.due, silent.overdue) = (50, 50, 50);
    let seconds = (1..=90).find(|_| {
        let second = Second { at: watched.at, green: silent.clone(), ..Second::default() };
        watched.at += 1;
        watched.engine.tick(&Arc::new(second), &Surroundings::default()).verdict == Verdict::Breach
    });
    assert!(seconds.is_some(), "never");
    let mut watched = Watched::by(Guard::default());
    let mixed = Did { overdue: 45, ..ok(50) };
    assert_eq!(watched.until_breach(ok(0), mixed, 300), None, "some are answered: the traffic may be like that");
}

#[test]
fn what_blue_was_like_hours_ago_takes_nothing_off_but_somebody_is_told() {
    let mut watched = warm(Guard::default());
    watched.seconds(4_000, ok(0), ok(50));
    assert_eq!(watched.until_breach(ok(0), taking(60_000), 60), None);
    assert!(watched.judgement().pause.as_ref().is_some_and(|why| why.ends_with("1 h ago: not tripped")));
    assert!(watched.until_breach(ok(0), failing(50, 50), 10).is_some(), "a limit of its own needs no blue");
}

#[test]
fn a_stray_answer_of_blue_does_not_make_what_it_was_like_hours_ago_a_measure_again() {
    let mut watched = warm(Guard::default());
    watched.seconds(4_000, ok(0), ok(50));
    watched.seconds(60, ok(0), taking(60_000));
    for _ in 0..3 {
        assert_ne!(watched.second(ok(1), taking(60_000)), Verdict::Breach, "{}", watched.judgement().reason);
        assert_eq!(watched.until_breach(ok(0), taking(60_000), 60), None, "{}", watched.judgement().reason);
    }
    assert_eq!(watched.judgement().baseline.outcomes, 3, "what is older than the hour is gone");
    // Blue is back, and takes as long as green: what spoke against green then is nothing now.
    assert_eq!(watched.until_breach(taking(60_000), taking(60_000), 60), None, "{}", watched.judgement().reason);
}

#[test]
fn a_green_with_a_request_a_minute_trips_as_well() {
    let unreachable = Did { unreachable: 1, ..ok(0) };
    for (name, blue, green) in
        [("fails", ok(1), failing(1, 1)), ("fails alone", ok(0), failing(1, 1)), ("unreachable", ok(1), unreachable)]
    {
        let mut watched = Watched::by(Guard::default());
        let minutes = (1..=30).find(|_| {
            watched.seconds(59, blue, ok(0));
            watched.second(blue, green) == Verdict::Breach
        });
        assert!(minutes.is_some_and(|minutes| minutes <= 10), "{name}: {}", watched.judgement().reason);
    }
}

#[test]
fn a_long_outage_of_both_is_shared_also_where_blue_has_next_to_no_traffic() {
    let mut watched = Watched::by(Guard::default());
    for at in 0..3_600 {
        let blue = if at % 150 == 0 { failing(1, 1) } else { ok(0) };
        assert_ne!(watched.second(blue, failing(50, 50)), Verdict::Breach, "second {at}");
    }
    assert!(watched.judgement().shared_cause);
}

#[test]
fn long_polls_that_are_answered_in_the_end_trip_nothing_while_nothing_is_known_of_blue() {
    let mut watched = Watched::by(Guard::default());
    let polls = Did { overdue: 49, ..ok(50) };
    assert_eq!(watched.until_breach(ok(0), polls, 300), None, "{}", watched.judgement().reason);
}

#[test]
fn a_green_that_stops_answering_is_seen_though_nothing_is_known_of_blue() {
    let mut watched = Watched::by(Guard::default());
    watched.seconds(600, ok(0), ok(50));
    let seconds = (1..=120).find(|_| {
        let mut green = tally(Did { overdue: 50, ..ok(0) }, 0);
        (green.dispatched, green.due) = (50, 50);
        let second = Second { at: watched.at, green, ..Second::default() };
        watched.at += 1;
        watched.engine.tick(&Arc::new(second), &Surroundings::default()).verdict == Verdict::Breach
    });
    assert!(seconds.is_some_and(|seconds| seconds > 30), "{seconds:?}");
}

#[test]
fn a_blue_of_which_little_is_known_leaves_no_gap_for_a_green_that_answers_nothing() {
    let mut watched = Watched::by(Guard::default());
    watched.seconds(10, ok(1), ok(0));
    let silent = Did { overdue: 50, ..ok(0) };
    let seconds = (1..=90).find(|_| {
        let mut green = tally(silent, 0);
        (green.dispatched, green.due) = (50, 50);
        let second = Second { at: watched.at, green, ..Second::default() };
        watched.at += 1;
        watched.engine.tick(&Arc::new(second), &Surroundings::default()).verdict == Verdict::Breach
    });
    assert!(seconds.is_some(), "never");
}

/// Requests that are sent and not answered in time.
fn hung(of: u64) -> Did {
    Did { sent: of, overdue: of, ..ok(0) }
}

#[test]
fn a_lull_and_then_clients_that_wait_long_trip_nothing_while_nothing_is_known_of_blue() {
    let mut watched = Watched::by(Guard::default());
    watched.seconds(600, ok(0), ok(50));
    watched.seconds(70, ok(0), ok(0));
    assert_eq!(watched.until_breach(ok(0), hung(50), 40), None, "{}", watched.judgement().reason);
    watched.seconds(60, ok(0), Did { overdue: 50, ..ok(50) });
    // The same after a restart.
    let mut watched = Watched::by(Guard::default());
    assert_eq!(watched.until_breach(ok(0), hung(20), 40), None, "{}", watched.judgement().reason);
}

#[test]
fn how_fast_blue_fails_is_no_measure_of_what_is_slow() {
    let mut watched = Watched::by(Guard::default());
    watched.seconds(600, ok(50), ok(50));
    for blue in [Did { latency_us: 1_000, ..failing(50, 50) }, Did { declined: 50, latency_us: 1_000, ..ok(0) }] {
        assert_eq!(watched.until_breach(blue, ok(50), 1_200), None, "{}", watched.judgement().reason);
    }
}

#[test]
fn one_cause_may_look_different_on_each_arm() {
    let slow = taking(500_000);
    let hung_in_part = |of: u64, hung: u64| Did { sent: hung, overdue: hung, ..ok(of - hung) };
    for (name, blue, green) in [
        ("blue hangs, green fails", hung(50), failing(50, 50)),
        ("so with little traffic", hung(10), failing(10, 10)),
        ("so with more", hung(20), failing(20, 20)),
        ("blue hangs in part, green fails in part", hung_in_part(50, 15), failing(15, 50)),
        ("so with half", hung_in_part(50, 25), failing(25, 50)),
        ("green hangs, blue fails", failing(50, 50), hung(50)),
        ("blue fails, green is slow", failing(50, 50), slow),
        ("blue hangs, green is slow", hung(50), slow),
        ("blue fails half, green is slow", failing(25, 50), slow),
    ] {
        let mut watched = Watched::by(Guard::default());
        watched.seconds(300, ok(blue.sent + blue.ok + blue.failed), ok(50));
        // It is not overdue before its time.
        let at = |did: Did, second| if second < 5 { Did { overdue: 0, ..did } } else { did };
        let (mut shared, mut last) = (false, String::new());
        for second in 0..60 {
            let verdict = watched.second(at(blue, second), at(green, second));
            assert_ne!(verdict, Verdict::Breach, "{name}, {second}: {}", watched.judgement().reason);
            if watched.judgement().shared_cause {
                (shared, last) = (true, watched.judgement().reason.clone());
            }
        }
        assert!(shared && last.contains("blue failed or left waiting"), "{name}: {last}");
        // Blue is well again, green is not.
        let seconds = watched.until_breach(ok(50), green, 200);
        assert!(seconds.is_some(), "{name}: {}", watched.judgement().reason);
    }
}

#[test]
fn what_hangs_and_then_fails_is_counted_once() {
    let mut watched = Watched::by(Guard::default());
    watched.seconds(300, ok(50), ok(50));
    for second in 0..120 {
        let green = match second {
            0..5 => Did { sent: 38, ..ok(12) },
            5..10 => Did { sent: 38, overdue: 38, ..ok(12) },
            _ => Did { overdue: 38, ..failing(38, 50) },
        };
        let verdict = watched.second(failing(36, 50), green);
        assert_ne!(verdict, Verdict::Breach, "{second}: {}", watched.judgement().reason);
    }
}

#[test]
fn a_blue_that_always_fails_much_hides_no_green_that_is_slow() {
    let mut watched = Watched::by(Guard { max_error_rate: 0.3, ..Guard::default() });
    watched.seconds(300, failing(13, 50), failing(10, 50));
    assert!(watched.until_breach(failing(13, 50), taking(500_000), 30).is_some(), "{}", watched.judgement().reason);
    let mut watched = Watched::by(Guard { max_error_rate: 0.01, ..Guard::default() });
    watched.seconds(300, failing(3, 50), ok(50));
    assert!(watched.until_breach(failing(3, 50), taking(500_000), 30).is_some(), "{}", watched.judgement().reason);
}

#[test]
fn the_last_answers_of_a_blue_that_has_no_more_traffic_hide_nothing_for_long() {
    let mut watched = Watched::by(Guard::default());
    watched.seconds(300, ok(25), ok(25));
    watched.second(ok(3), failing(25, 50));
    let seconds = watched.until_breach(ok(0), failing(25, 50), 300);
    assert!(seconds.is_some_and(|seconds| seconds <= 70), "{seconds:?}: {}", watched.judgement().reason);
}

#[test]
fn a_thin_blue_that_happens_to_do_better_in_an_outage_of_both_trips_nothing() {
    // Of both arms a fifth fails; blue has one request a second and is lucky for a while.
    let mut watched = Watched::by(Guard::default());
    watched.seconds(300, ok(1), ok(50));
    for at in 0..10 {
        assert_ne!(watched.second(ok(1), failing(10, 50)), Verdict::Breach, "{at}: {}", watched.judgement().reason);
    }
    // Blue has not been heard of since it began.
    let mut watched = Watched::by(Guard::default());
    watched.seconds(300, ok(1), ok(50));
    for at in 0..8 {
        assert_ne!(watched.second(ok(0), failing(50, 50)), Verdict::Breach, "{at}: {}", watched.judgement().reason);
    }
    assert!(watched.until_breach(ok(0), failing(50, 50), 10).is_some());
}

#[test]
fn somebody_is_told_of_a_green_that_turns_everybody_away() {
    let away = Did { declined: 50, ..ok(0) };
    let mut watched = warm(Guard::default());
    assert_eq!(watched.until_breach(ok(50), away, 60), None);
    assert!(watched.judgement().pause.as_ref().is_some_and(|why| why.starts_with("green declined")));
    let mut watched = warm(Guard::default());
    watched.seconds(60, away, away);
    assert_eq!(watched.judgement().pause, None, "blue does so, too");
}

#[test]
fn what_is_slow_follows_a_thin_blue() {
    let mut watched = Watched::by(Guard::default());
    let blue = |latency_us| Did { latency_us, ..ok(1) };
    watched.seconds(1_500, blue(10_000), ok(0));
    let before = watched.rule("p95_ratio").threshold_ms.unwrap();
    watched.seconds(1_500, blue(50_000), ok(0));
    let after = watched.rule("p95_ratio").threshold_ms.unwrap();
    assert!(after > 4.0 * before, "{before} ms, then {after} ms");
}
