use std::time::Duration;

use super::*;

/// What one arm did in one second.
#[derive(Clone, Copy, Default)]
struct Did {
    ok: u64,
    failed: u64,
    latency_us: u64,
    unanswered: u64,
    declined: u64,
}

fn ok(ok: u64) -> Did {
    Did { ok, latency_us: 10_000, ..Did::default() }
}

fn tally(did: Did) -> Tally {
    let mut tally = Tally::default();
    tally.dispatched = did.ok + did.failed + did.declined + did.unanswered;
    for n in 0..did.ok {
        // Spread by a fifth around the middle, the same for every arm.
        tally.record(Outcome::Ok, Some(did.latency_us * (80 + n % 40) / 100));
    }
    for _ in 0..did.failed {
        tally.record(Outcome::Refused, Some(did.latency_us));
    }
    for _ in 0..did.declined {
        tally.record(Outcome::Declined, Some(did.latency_us));
    }
    tally
}

fn seconds(each: impl IntoIterator<Item = (Did, Did)>) -> Vec<Arc<Second>> {
    let second = |(at, (blue, green))| Arc::new(Second { at, blue: tally(blue), green: tally(green) });
    (0..).zip(each).map(second).collect()
}

fn verdict(each: impl IntoIterator<Item = (Did, Did)>) -> Verdict {
    judge(&Guard::default(), &seconds(each), None).verdict
}

fn rule<'a>(judgement: &'a Judgement, name: &str) -> &'a Evidence {
    judgement.rules.iter().find(|rule| rule.rule == name).unwrap()
}

#[test]
fn verdicts() {
    let broken = Did { failed: 50, latency_us: 1_000, ..Did::default() };
    let failing = |failed| Did { failed, ..ok(50 - failed) };
    let slow = |latency_us| Did { latency_us, ..ok(50) };
    let many = |green: Did| vec![(ok(50), green); 10];
    for (name, expected, each) in [
        ("nothing", Verdict::Unknown, vec![]),
        ("no traffic", Verdict::Unknown, vec![(ok(0), ok(0)); 10]),
        ("green idle", Verdict::Unknown, many(ok(0))),
        ("both well", Verdict::Pass, many(ok(50))),
        ("too little", Verdict::Unknown, vec![(ok(5), broken.half()), (ok(5), ok(0))]),
        ("4 % errors", Verdict::Pass, many(failing(2))),
        ("6 % errors are not beyond chance", Verdict::Unknown, many(failing(3))),
        ("20 % errors", Verdict::Breach, many(failing(10))),
        ("all errors, three seconds", Verdict::Breach, vec![(ok(50), broken); 3]),
        ("all errors, from the middle of a second", Verdict::Breach, vec![(ok(50), broken.half()), (ok(50), broken)]),
        ("one stalled second", Verdict::Unknown, {
            let mut each = many(ok(50));
            each[4].1 = broken;
            each
        }),
        ("all errors without any blue", Verdict::Breach, vec![(ok(0), broken); 3]),
        ("well without any blue", Verdict::Pass, vec![(ok(0), ok(50)); 10]),
        ("a little slower", Verdict::Pass, many(slow(15_000))),
        ("five times slower", Verdict::Breach, many(slow(50_000))),
        ("slow, but blue is too thin to compare with", Verdict::Pass, vec![(ok(5), slow(50_000)); 10]),
        ("older than every window", Verdict::Pass, {
            let mut each = vec![(ok(50), broken); 5];
            each.extend(vec![(ok(50), ok(50)); SECONDS_KEPT]);
            each
        }),
    ] {
        assert_eq!(verdict(each), expected, "{name}");
    }
}

impl Did {
    fn half(self) -> Self {
        Self { ok: self.ok / 2, failed: self.failed / 2, unanswered: self.unanswered / 2, ..self }
    }
}

#[test]
fn a_green_that_answers_nothing_is_a_breach_where_blue_answers() {
    let silent = Did { unanswered: 50, ..Did::default() };
    let no_answers = |each: Vec<(Did, Did)>| {
        let judgement = judge(&Guard::default(), &seconds(each), None);
        rule(&judgement, NO_ANSWERS).verdict
    };
    assert_eq!(no_answers(vec![(ok(50), silent); 9]), Verdict::Breach);
    assert_eq!(no_answers(vec![(ok(50), silent); 4]), Verdict::Unknown, "still within its grace");
    assert_eq!(no_answers(vec![(silent, silent); 12]), Verdict::Unknown, "blue does not answer either");
    assert_eq!(no_answers(vec![(ok(0), silent); 12]), Verdict::Unknown, "nobody knows that it should");
    let mut stops = vec![(ok(0), ok(50)); 20];
    stops.extend(vec![(ok(0), silent); 17]);
    assert_eq!(no_answers(stops), Verdict::Breach, "it did before");
    let slow_blue = Did { latency_us: 8_000_000, ..ok(50) };
    assert_eq!(no_answers(vec![(slow_blue, silent); 15]), Verdict::Unknown, "green may take as long as blue");
}

#[test]
fn seconds_before_a_reset_are_no_evidence() {
    let broken = Did { failed: 50, ..Did::default() };
    let mut each = vec![(ok(50), broken); 6];
    each.extend(vec![(ok(50), ok(50)); 3]);
    let seconds = seconds(each);
    let policy = Guard::default();
    assert_eq!(judge(&policy, &seconds, None).verdict, Verdict::Breach);
    let after = judge(&policy, &seconds, Some(5));
    assert_eq!((after.verdict, after.window_seconds, after.green.refused), (Verdict::Pass, 3, 0));
    assert_eq!(judge(&policy, &seconds, Some(u64::MAX)).verdict, Verdict::Unknown);
}

#[test]
fn the_evidence_says_what_it_rests_on() {
    let failing = Did { failed: 10, ..ok(40) };
    let judgement = judge(&Guard::default(), &seconds(vec![(ok(50), failing); 10]), None);
    assert_eq!(
        judgement.reason,
        "green failed 100 of 500 (20.0 %) in the last 10 s; its error rate is at least 12.1 %, the limit is 5.0 %; \
         blue failed 0 of 500 (0.0 %)"
    );
    let rule = rule(&judgement, ERROR_RATE);
    assert_eq!((rule.bad, rule.of, rule.blue, rule.green, rule.minimum_green), (100, 500, 500, 500, 20));
    assert_eq!(rule.observed, Some(0.2));
    let json = serde_json::to_value(&judgement).unwrap();
    assert_eq!(json["verdict"], "breach");
    assert_eq!(json["rules"][0]["rule"], "error_rate");
    assert!(json["green"]["p95_ms"].is_f64());
}

#[test]
fn a_green_that_clients_give_up_on_is_one_that_answers_nothing() {
    let mut given_up = Tally::default();
    given_up.dispatched = 50;
    (0..50).for_each(|_| given_up.record(Outcome::ClientGone, None));
    let second = |at| Arc::new(Second { at, blue: tally(ok(50)), green: given_up.clone() });
    let judgement = judge(&Guard::default(), &(0..10).map(second).collect::<Vec<_>>(), None);
    assert_eq!(judgement.verdict, Verdict::Breach);
    assert_eq!(judgement.reason, "green was sent 200 and has answered none of them after 6 s");
}

#[test]
fn the_shortest_window_still_trips() {
    let policy = Guard { window: Duration::from_secs(1), ..Guard::default() };
    let broken = Did { failed: 50, ..Did::default() };
    assert_eq!(judge(&policy, &seconds(vec![(ok(50), broken); 5]), None).verdict, Verdict::Breach);
}

#[test]
fn the_window_is_the_policys() {
    let policy = Guard { window: Duration::from_secs(3), ..Guard::default() };
    let judgement = judge(&policy, &seconds(vec![(ok(50), ok(50)); 20]), None);
    assert_eq!((judgement.window_seconds, judgement.green.ok), (3, 150));
}

/// What each second held, as many as it takes for a breach by a guard that looks every second.
fn seconds_to_trip(each: impl Fn(u64) -> (Did, Did)) -> Option<u64> {
    let all = seconds((0..SECONDS_KEPT as u64).map(each));
    (1..=all.len()).find(|&n| judge(&Guard::default(), &all[..n], None).verdict == Verdict::Breach).map(|n| n as u64)
}

fn failing(failed: u64, of: u64) -> Did {
    Did { failed, ..ok(of - failed) }
}

#[test]
fn a_blue_that_is_as_sick_keeps_green_where_it_is() {
    let judged = |blue, green| {
        let judgement = judge(&Guard::default(), &seconds(vec![(blue, green); 5]), None);
        (judgement.verdict, judgement.reason)
    };
    let (verdict, reason) = judged(failing(8, 15), failing(8, 16));
    assert_eq!(verdict, Verdict::Unknown);
    assert_eq!(
        reason,
        "green failed 40 of 80 (50.0 %) in the last 5 s, but blue fails too (40 of 75, 53.3 %): not tripped"
    );
    assert_eq!(judged(failing(50, 50), failing(50, 50)).0, Verdict::Unknown, "blue is dead");
    assert_eq!(judged(failing(50, 50), failing(10, 50)).0, Verdict::Unknown, "blue is dead, green is not well");
    assert_eq!(judged(failing(5, 50), failing(30, 50)).0, Verdict::Breach, "blue fails, but much less");
    assert_eq!(judged(ok(0), failing(10, 50)).0, Verdict::Breach, "no blue: the limit alone judges");
    assert_eq!(judged(ok(1), failing(50, 50)).0, Verdict::Breach, "a thin blue that is well");
    let (verdict, reason) = judged(ok(1), failing(20, 50));
    assert_eq!(verdict, Verdict::Unknown, "a thin blue cannot vouch for less");
    assert_eq!(
        reason,
        "green failed 100 of 250 (40.0 %) in the last 5 s, but blue has too few outcomes to say that it fails less \
         (0 of 5 failed): not tripped"
    );
}

#[test]
fn arms_are_compared_at_the_same_time() {
    // An outage of both; the split was changed in its midst, and again after it.
    let mut each = vec![(ok(99), ok(1)); 100];
    let mut stretch = |length, one: (Did, Did)| {
        for _ in 0..length {
            each.push(one);
            let judgement = judge(&Guard::default(), &seconds(each.clone()), None);
            assert_ne!(judgement.verdict, Verdict::Breach, "{}", judgement.reason);
        }
    };
    stretch(10, (failing(50, 99), failing(1, 1)));
    stretch(20, (failing(25, 50), failing(25, 50)));
    stretch(20, (ok(99), ok(1)));
    stretch(20, (ok(10), ok(90)));
    // The same for slowness.
    let slow = Did { latency_us: 500_000, ..ok(50) };
    let mut each = vec![(ok(50), ok(50)); 10];
    each.extend(vec![(slow, slow); 10]);
    each.extend(vec![(ok(400), ok(1)); 40]);
    for n in 1..=each.len() {
        let judgement = judge(&Guard::default(), &seconds(each[..n].to_vec()), None);
        assert_ne!(judgement.verdict, Verdict::Breach, "{n}: {}", judgement.reason);
    }
}

#[test]
fn what_is_thin_or_seldom_trips_by_a_longer_window() {
    let trickle = seconds_to_trip(|_| (ok(1), failing(1, 1))).unwrap();
    assert!(trickle <= 30, "{trickle}");
    let bursts = seconds_to_trip(|at| (ok(10), if at % 12 == 0 { failing(100, 100) } else { ok(0) })).unwrap();
    assert!(bursts <= 25, "{bursts}");
    // 16 %, at 10 a second.
    let share = seconds_to_trip(|at| (ok(10), failing([1, 2, 1, 2, 2][at as usize % 5], 10))).unwrap();
    assert!(share <= 60, "{share}");
    let quick = seconds_to_trip(|_| (ok(50), failing(50, 50))).unwrap();
    assert!(quick <= 3, "{quick}");
    // Without blue, and where no answer comes at all.
    assert!(seconds_to_trip(|_| (ok(0), failing(1, 1))).is_some_and(|n| n <= 30));
    assert!(seconds_to_trip(|_| (ok(5), Did { unanswered: 1, ..Did::default() })).is_some_and(|n| n <= 40));

    let judgement = judge(&Guard::default(), &seconds(vec![(ok(1), failing(1, 1)); 50]), None);
    assert_eq!((judgement.window_seconds, rule(&judgement, ERROR_RATE).window_seconds), (10, 50));
    assert!(judgement.reason.starts_with("green failed 50 of 50 (100.0 %) in the last 50 s"), "{}", judgement.reason);
}

#[test]
fn a_pass_may_rest_on_a_longer_window_where_the_policys_is_thin() {
    let judgement = judge(&Guard::default(), &seconds(vec![(ok(1), ok(1)); 60]), None);
    assert_eq!((judgement.verdict, rule(&judgement, ERROR_RATE).window_seconds), (Verdict::Pass, 60));
    let judgement = judge(&Guard::default(), &seconds(vec![(ok(50), ok(50)); 60]), None);
    assert_eq!((judgement.verdict, rule(&judgement, ERROR_RATE).window_seconds), (Verdict::Pass, 10));
}

#[test]
fn a_green_that_turns_everybody_away_does_not_pass() {
    let declining = |declined, of| Did { declined, ..ok(of - declined) };
    let judged = |blue, green| {
        let judgement = judge(&Guard::default(), &seconds(vec![(blue, green); 10]), None);
        (judgement.verdict, rule(&judgement, DECLINED_SHARE).verdict, judgement.reason)
    };
    let (verdict, alone, reason) = judged(ok(50), declining(50, 50));
    assert_eq!((verdict, alone), (Verdict::Unknown, Verdict::Unknown));
    assert_eq!(
        reason,
        "green declined 500 of 500 (100.0 %) in the last 10 s, blue 0 of 500 (0.0 %); look at what it turns away"
    );
    let verdict = |blue, green| judged(blue, green).1;
    assert_eq!(verdict(declining(50, 50), declining(50, 50)), Verdict::Pass, "so does blue");
    assert_eq!(verdict(declining(5, 50), declining(9, 50)), Verdict::Pass, "8 points more");
    assert_eq!(verdict(declining(50, 50), ok(50)), Verdict::Pass, "less");
    assert_eq!(judged(ok(0), declining(50, 50)).0, Verdict::Pass, "nothing to compare with");
    let trickle = seconds(vec![(ok(1), declining(1, 1)); 60]);
    assert_eq!(judge(&Guard::default(), &trickle, None).verdict, Verdict::Unknown, "by a longer window");
}

#[test]
fn samples_above_a_time_are_counted_but_for_those_that_only_may_be() {
    let mut random = Xorshift(11);
    for _ in 0..200 {
        let mut histogram = Histogram::new(2).unwrap();
        let magnitude = 1 + random.below(31);
        let most = 1 + random.below(1 << magnitude);
        (0..random.below(50)).for_each(|_| histogram.record(random.below(most)).unwrap());
        for threshold_us in [0.0, 0.5, 1e30, most as f64, most as f64 / 2.0, random.below(2 * most) as f64 + 0.7] {
            let expected: u64 = histogram
                .iter_recorded()
                .filter(|step| histogram.lowest_equivalent(step.value_iterated_to()) as f64 > threshold_us)
                .map(|step| step.count_at_value())
                .sum();
            assert_eq!(count_above(&histogram, threshold_us), expected, "{threshold_us} of {most}");
        }
    }
}

#[test]
fn a_difference_that_nobody_notices_trips_nothing() {
    let taking = |latency_us| Did { latency_us, ..ok(50) };
    let judged = |blue, green| {
        let judgement = judge(&Guard::default(), &seconds(vec![(taking(blue), taking(green)); 10]), None);
        (judgement.verdict, rule(&judgement, P95_RATIO).reason.clone())
    };
    let (verdict, reason) = judged(100, 300);
    assert_eq!(verdict, Verdict::Pass);
    assert!(reason.ends_with("; above the limit of 2, but by less than 1 ms"), "{reason}");
    assert_eq!(judged(100, 900).0, Verdict::Pass);
    assert_eq!(judged(100, 2_000).0, Verdict::Breach);
    assert_eq!(judged(10_000, 30_000).0, Verdict::Breach);
}

#[test]
fn one_failure_more_in_place_of_a_success_never_helps_green_beside_any_blue() {
    for seed in 1..=300 {
        let mut random = Xorshift(seed);
        let mut each: Vec<(Did, Did)> = (0..1 + random.below(25))
            .map(|_| {
                let mut any = |most| {
                    let of = random.below(most);
                    failing(random.below(of + 1) / (1 + random.below(20)), of)
                };
                (any(30), any(60))
            })
            .collect();
        let policy = Guard { window: Duration::from_secs(3), ..Guard::default() };
        let mut before = None;
        for _ in 0..20 {
            let judgement = judge(&policy, &seconds(each.clone()), None);
            let breach = rule(&judgement, ERROR_RATE).verdict == Verdict::Breach;
            assert!(breach || before != Some(true), "seed {seed}: {:?}", rule(&judgement, ERROR_RATE));
            before = Some(breach);
            let one = random.below(each.len() as u64) as usize;
            let green = &mut each[one].1;
            let more = green.ok.min(1 + random.below(10));
            (green.ok, green.failed) = (green.ok - more, green.failed + more);
        }
    }
}

/// Not random enough for anything but tests (Marsaglia 2003).
struct Xorshift(u64);

impl Xorshift {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn severity(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Pass => 0,
        Verdict::Unknown => 1,
        Verdict::Breach => 2,
    }
}

#[test]
fn one_more_failure_never_makes_green_look_better() {
    for seed in 1..=2_000 {
        let mut random = Xorshift(seed);
        let length = 1 + random.below(12) as usize;
        let mut events: Vec<Events> = (0..length)
            .map(|_| {
                let of = random.below(60);
                Events { bad: if of == 0 { 0 } else { random.below(of + 1) / (1 + random.below(9)) }, of }
            })
            .collect();
        let share = Share { allowed: 0.05, minimum: 20 };
        let mut before = share.judge(&events);
        for _ in 0..40 {
            let second = random.below(length as u64) as usize;
            let one = &mut events[second];
            // Either a success becomes a failure, or there is one more.
            if one.bad == one.of || random.below(2) == 0 {
                one.of += 1;
            }
            one.bad += 1;
            let after = share.judge(&events);
            let enough = before.at_least.is_some();
            assert!(!enough || after.at_least >= before.at_least, "seed {seed}: {events:?}");
            assert!(!enough || severity(after.verdict) >= severity(before.verdict), "seed {seed}: {events:?}");
            before = after;
        }
    }
}

#[test]
fn no_counts_are_too_extreme() {
    let most = u64::MAX;
    let counts = [0, 1, 2, 19, 20, 1_000_000, most / 2, most - 1, most];
    for allowed in [0.0, 1e-12, 0.05, 1.0 - 1e-12, 1.0] {
        for minimum in [0, 1, 20, most] {
            for bad in counts {
                for of in counts {
                    let share = Share { allowed, minimum };
                    for seconds in [vec![Events { bad, of }; 1], vec![Events { bad, of }; 3]] {
                        let judged = share.judge(&seconds);
                        assert!(judged.at_least.is_none_or(|at_least| (0.0..=1.0).contains(&at_least)));
                    }
                }
            }
        }
    }
    for n in counts {
        for nats in [BLUE_NATS, GREEN_NATS] {
            assert!(bound::upper_rank(n, TAIL, nats).is_none_or(|rank| (1..=n).contains(&rank)));
            for seen in [0.0, 1e-12, 0.5, 1.0 - 1e-12, 1.0] {
                let at_most = bound::at_most(seen, n as f64, nats);
                assert!((seen..=1.0).contains(&at_most), "{seen} of {n}: {at_most}");
            }
        }
    }
    let second = || Arc::new(Second::default());
    for blue in counts {
        for green in counts {
            for bad in counts {
                let blue = |_: &Second| Events { bad, of: blue };
                let same = AtTheSameTime::of(&[second(), second(), second()], blue, |_| green);
                assert!(same.is_none_or(|same| (0.0..=1.0).contains(&same.at_most())), "{same:?}");
            }
        }
    }
}
