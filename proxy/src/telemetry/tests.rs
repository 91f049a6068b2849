use std::collections::BTreeMap;

use config::{BUCKETS, Split};

use super::*;
use crate::split::{Hashed, Salt};

/// A meter whose seconds a test ends.
struct Bench {
    meter: Shared<Meter>,
    tick: Tick,
    answer_within: Duration,
}

impl Bench {
    fn new(workers: usize) -> Self {
        let tick = Tick { at: 0, now: Instant::now(), utc: OffsetDateTime::UNIX_EPOCH };
        Self { meter: Meter::new(workers), tick, answer_within: Duration::from_secs(5) }
    }

    fn dispatch(&self, slice: Slice, key: u64) -> Exchange {
        let decided = Decided {
            arm: slice.arm(),
            by_split: !matches!(slice, Slice::Unsplit | Slice::Forced),
            placebo: slice == Slice::Placebo,
            key: Hashed(key),
        };
        Exchange::dispatch(self.meter.handle(), &decided)
    }

    /// Ends a second that lasted so long.
    fn end_after(&mut self, lasted: Duration) -> Arc<Second> {
        self.tick.now += lasted;
        self.meter.gather(&self.tick, self.answer_within);
        self.tick.at += 1;
        self.meter.observe().seconds.last().unwrap().clone()
    }

    fn end(&mut self) -> Arc<Second> {
        self.end_after(Duration::from_secs(1))
    }
}

fn fault() -> Option<Fault> {
    Some(Fault::new(None, "a test"))
}

#[test]
fn every_exchange_is_counted_once_however_it_ends() {
    let mut bench = Bench::new(2);
    let mut answered = bench.dispatch(Slice::Green, 1);
    answered.judge(Outcome::Ok, Some(1_500), None);
    answered.judge(Outcome::Broken, None, fault());
    let abandoned = bench.dispatch(Slice::Green, 2);
    assert_eq!(bench.meter.observe().green.open, 2);
    drop((answered, abandoned));
    bench.dispatch(Slice::Green, 3).end(Outcome::Declined, Some(2_000), None);
    bench.end();
    let seen = bench.meter.observe();
    assert_eq!(seen.green.open, 0);
    assert_eq!(seen.green.total.dispatched, 3);
    let counts = [Outcome::Ok, Outcome::Declined, Outcome::ClientGone, Outcome::Broken];
    assert_eq!(counts.map(|outcome| seen.green.total.count(outcome)), [1, 1, 1, 0]);
    // Only who is served says how long that takes.
    assert_eq!(seen.green.total.latency_us.len(), 1);
    assert_eq!(seen.green.total.error_rate(), Some(0.0));
}

#[test]
fn a_fallback_is_greens_failure_and_blues_exchange() {
    let mut bench = Bench::new(1);
    let mut exchange = bench.dispatch(Slice::Green, 1);
    exchange.fall_back(Fault::new(None, "connection refused"));
    assert_eq!(exchange.arm(), Arm::Blue);
    exchange.judge(Outcome::Ok, Some(10), None);
    drop(exchange);
    let second = bench.end();
    let seen = bench.meter.observe();
    assert_eq!((seen.green.total.failures(), seen.green.total.fallbacks), (1, 1));
    assert_eq!((seen.blue.total.dispatched, seen.blue.total.failures()), (1, 0));
    assert_eq!((seen.green.open, seen.blue.open), (0, 0));
    assert_eq!(second.placebo.dispatched, 0);
    let sample = second.green.sample.clone().unwrap();
    assert_eq!((sample.outcome, sample.message.as_str()), ("unreachable", "connection refused"));
    assert_eq!(second.green.failed_keys.distinct(), 0, "no client is to blame for that");
}

#[test]
fn what_began_before_a_reset_is_no_evidence_after_it() {
    let mut bench = Bench::new(1);
    let mut old = bench.dispatch(Slice::Green, 1);
    let gone = bench.dispatch(Slice::Green, 2);
    let silent = bench.dispatch(Slice::Green, 3);
    drop(gone);
    bench.end();
    bench.meter.forget();
    old.judge(Outcome::Timeout, None, fault());
    bench.dispatch(Slice::Green, 4).judge(Outcome::Ok, Some(1), None);
    drop(old);
    let second = bench.end();
    assert_eq!((second.green.failures(), second.green.count(Outcome::Ok)), (0, 1));
    assert_eq!((second.green.failed_keys.distinct(), &second.green.sample), (0, &None));
    let seen = bench.meter.observe();
    assert_eq!((seen.green.total.failures(), seen.green.total.dispatched), (1, 4));
    let new = bench.dispatch(Slice::Green, 5);
    let later: Vec<_> = (0..10).map(|_| bench.end()).collect();
    let due: u64 = later.iter().map(|second| second.green.due).sum();
    let overdue: u64 = later.iter().map(|second| second.green.overdue).sum();
    assert_eq!((due, overdue), (1, 1), "only what was dispatched after the second of the reset");
    drop((silent, new));
    bench.end();
    assert_eq!(bench.meter.observe().green.open, 0);
}

#[test]
fn seconds_are_kept_apart_and_the_oldest_leave() {
    let mut bench = Bench::new(1);
    for _ in 0..(SECONDS_KEPT as u64 + 5) {
        bench.dispatch(Slice::Blue, 1).judge(Outcome::Ok, Some(bench.tick.at + 1), None);
        bench.end();
    }
    let seen = bench.meter.observe();
    assert_eq!(seen.seconds.len(), SECONDS_KEPT);
    assert_eq!(seen.seconds[0].at, 5);
    assert!(seen.seconds.iter().all(|second| second.blue.dispatched == 1 && second.green.dispatched == 0));
    assert_eq!(seen.blue.total.dispatched, SECONDS_KEPT as u64 + 5);
}

#[test]
fn the_placebo_and_whoever_is_not_split_are_counted_apart_and_with_their_arm() {
    let mut bench = Bench::new(1);
    assert!(bench.end().forced.is_none());
    bench.dispatch(Slice::Forced, 4).judge(Outcome::Refused, None, fault());
    bench.dispatch(Slice::Blue, 1).judge(Outcome::Ok, Some(10), None);
    bench.dispatch(Slice::Placebo, 2).judge(Outcome::Refused, Some(20), fault());
    bench.dispatch(Slice::Unsplit, 2).judge(Outcome::Ok, Some(5), None);
    bench.dispatch(Slice::Green, 3).judge(Outcome::Ok, Some(30), None);
    let second = bench.end();
    let counted = |tally: &Tally| (tally.dispatched, tally.judged(), tally.failures(), tally.latency_us.len());
    assert_eq!(counted(&second.blue), (3, 3, 1, 2));
    assert_eq!(counted(&second.placebo), (1, 1, 1, 0));
    assert_eq!(counted(&second.unsplit), (1, 1, 0, 1));
    assert_eq!(counted(second.forced.as_ref().unwrap()), (1, 1, 1, 0));
    assert_eq!(counted(&second.green), (2, 2, 1, 1));
    // What the guard goes by.
    assert_eq!((second.green.failed_keys.total(), second.green.sample.is_none()), (0, true));
    assert_eq!(counted(&bench.meter.observe().blue.total), (3, 3, 1, 2));
}

#[test]
fn keys_are_kept_of_what_a_client_may_be_to_blame_for() {
    let mut bench = Bench::new(1);
    for (key, outcome) in [
        (1, Outcome::Refused),
        (1, Outcome::Broken),
        (2, Outcome::Timeout),
        (3, Outcome::Unreachable),
        (4, Outcome::Declined),
        (5, Outcome::Ok),
        (6, Outcome::ClientGone),
    ] {
        bench.dispatch(Slice::Green, key).judge(outcome, None, outcome.is_failure().then(fault).flatten());
    }
    let second = bench.end();
    let keys = &second.green.failed_keys;
    assert_eq!((keys.distinct(), keys.of_the_commonest(1), keys.of_the_commonest(9)), (2, 2, 3));
    assert_eq!(bench.end().green.failed_keys.distinct(), 0, "a second has its own");
}

#[test]
fn slow_keys_are_counted_as_long_as_somebody_asks() {
    let mut bench = Bench::new(1);
    let mut slow = |threshold: Option<u64>| {
        bench.meter.watch_slower_than(threshold);
        for (key, us) in [(1, 900), (2, 1_000), (3, 1_001), (3, 5_000), (4, 1_000_000)] {
            bench.dispatch(Slice::Green, key).judge(Outcome::Ok, Some(us), None);
        }
        bench.dispatch(Slice::Green, 5).judge(Outcome::Timeout, None, fault());
        let keys = bench.end().green.slow_keys.clone();
        (keys.distinct(), keys.of_the_commonest(9))
    };
    assert_eq!(slow(None), (0, 0));
    assert_eq!(slow(Some(1_000)), (2, 3));
    assert_eq!(slow(Some(10_000)), (1, 1));
    assert_eq!(slow(None), (0, 0));
}

#[test]
fn the_last_failure_of_a_second_is_told() {
    let mut bench = Bench::new(1);
    bench.tick.utc = OffsetDateTime::from_unix_timestamp(1_763_735_025).unwrap();
    for said in ["first", "last"] {
        bench.dispatch(Slice::Green, 1).judge(Outcome::Broken, None, Some(Fault::new(None, said)));
    }
    bench.dispatch(Slice::Green, 1).judge(Outcome::Ok, Some(1), None);
    let sample = bench.end().green.sample.clone().unwrap();
    assert_eq!((sample.outcome, sample.message.as_str()), ("broken", "last"));
    assert_eq!(sample.at, "2025-11-21T14:23:45Z");
    assert_eq!(bench.end().green.sample, None);
}

#[test]
fn answers_are_due_after_their_time_and_missed_then_or_never() {
    let mut bench = Bench::new(1);
    let mut at_once = bench.dispatch(Slice::Green, 1);
    at_once.answered();
    let (mut in_time, mut late) = (bench.dispatch(Slice::Green, 2), bench.dispatch(Slice::Green, 3));
    drop(bench.dispatch(Slice::Green, 4));
    let silent = bench.dispatch(Slice::Green, 5);
    let mut own = bench.dispatch(Slice::Green, 6);
    own.answered();
    own.judge(Outcome::ClientGone, None, None);
    for _ in 0..5 {
        assert_eq!(bench.end().green.due, 0);
    }
    in_time.judge(Outcome::Ok, Some(4_900_000), None);
    let second = bench.end();
    assert_eq!(second.at, 5);
    assert_eq!((second.green.due, second.green.overdue), (6, 3));
    let keys = &second.green.overdue_keys;
    assert_eq!((keys.distinct(), keys.of_the_commonest(9)), (3, 3));
    late.answered();
    drop((at_once, in_time, late, silent, own));
    let later = (0..70)
        .map(|_| bench.end())
        .fold((0, 0), |(due, overdue), second| (due + second.green.due, overdue + second.green.overdue));
    assert_eq!(later, (0, 0), "each is due once");
}

#[test]
fn a_gathering_that_was_held_up_makes_nobody_overdue() {
    let mut bench = Bench::new(1);
    bench.end();
    // Nothing was gathered for half a minute, and then all of it at once.
    bench.end_after(Duration::from_secs(30));
    let mut waiting = bench.dispatch(Slice::Green, 1);
    for _ in 0..30 {
        assert_eq!(bench.end_after(Duration::ZERO).green.due, 0);
    }
    waiting.answered();
    let later: Vec<_> = (0..6).map(|_| bench.end()).collect();
    let due: u64 = later.iter().map(|second| second.green.due).sum();
    assert_eq!((due, later.iter().map(|second| second.green.overdue).sum::<u64>()), (1, 0));
}

#[test]
fn an_exchange_is_small_because_a_connection_may_keep_it_for_months() {
    assert!(size_of::<Exchange>() <= 56, "{} bytes", size_of::<Exchange>());
}

/// What a test knows of an exchange.
struct Known {
    exchange: Exchange,
    began: usize,
    slice: Slice,
    waiting: bool,
}

/// Random traffic, stalls and changes of `answer_within`: every exchange is due once and with its second, and it is
/// overdue when it had no answer then.
#[test]
fn due_and_overdue_agree_with_an_account_of_every_exchange() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bench = Bench::new(1);
        let mut open: Vec<Known> = Vec::new();
        // By the second in which they began: those without an answer yet, or ever; and all.
        let mut unanswered: BTreeMap<usize, Slices<u64>> = BTreeMap::new();
        let mut dispatched: BTreeMap<usize, Slices<u64>> = BTreeMap::new();
        let mut ended: Vec<Instant> = Vec::new();
        let mut not_due = 0;
        for _ in 0..120 {
            let now = ended.len();
            for _ in 0..random.usize(..12) {
                let slice =
                    [Slice::Blue, Slice::Green, Slice::Placebo, Slice::Unsplit, Slice::Forced][random.usize(..5)];
                let exchange = bench.dispatch(slice, random.u64(..20));
                for counts in [&mut unanswered, &mut dispatched] {
                    counts.entry(now).or_default()[slice as usize] += 1;
                }
                open.push(Known { exchange, began: now, slice, waiting: true });
            }
            for _ in 0..random.usize(..12) {
                if open.is_empty() {
                    break;
                }
                let mut known = open.swap_remove(random.usize(..open.len()));
                let mut answered = true;
                match random.u8(..7) {
                    0 => answered = false,
                    1 => {
                        known.exchange.judge(Outcome::ClientGone, None, None);
                        answered = false;
                    }
                    2 => known.exchange.judge(Outcome::Timeout, None, fault()),
                    3 => known.exchange.end(Outcome::Ok, Some(1), None),
                    4 => known.exchange.answered(),
                    _ => {
                        // It goes on, and ends later.
                        known.exchange.answered();
                        if known.waiting {
                            known.waiting = false;
                            unanswered.get_mut(&known.began).unwrap()[known.slice as usize] -= 1;
                        }
                        open.push(known);
                        continue;
                    }
                }
                if answered && known.waiting {
                    unanswered.get_mut(&known.began).unwrap()[known.slice as usize] -= 1;
                }
            }
            if random.u8(..20) == 0 {
                bench.answer_within = Duration::from_secs(random.u64(1..=60));
            }
            let lasted = if random.u8(..20) == 0 { random.u64(..20_000) } else { random.u64(900..1_100) };
            let second = bench.end_after(Duration::from_millis(lasted));
            let (mut due, mut overdue) = (Slices::<u64>::default(), Slices::<u64>::default());
            while ended.get(not_due).is_some_and(|ended| bench.tick.now - *ended + EARLY >= bench.answer_within) {
                for (sum, counts) in [(&mut due, &dispatched), (&mut overdue, &unanswered)] {
                    let of_second = counts.get(&not_due).copied().unwrap_or_default();
                    sum.iter_mut().zip(of_second).for_each(|(sum, count)| *sum += count);
                }
                not_due += 1;
            }
            ended.push(bench.tick.now);
            let forced = second.forced.as_deref().cloned().unwrap_or_default();
            let seen =
                [&second.blue, &second.green, &second.placebo, &second.unsplit, &forced].map(|t| (t.due, t.overdue));
            let of = |slice: Slice| (due[slice as usize], overdue[slice as usize]);
            let sum = |slices: &[Slice]| {
                slices.iter().map(|slice| of(*slice)).fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1))
            };
            let expected = [
                sum(&[Slice::Blue, Slice::Placebo, Slice::Unsplit]),
                sum(&[Slice::Green, Slice::Forced]),
                of(Slice::Placebo),
                of(Slice::Unsplit),
                of(Slice::Forced),
            ];
            assert_eq!(seen, expected, "seed {seed}, second {}", second.at);
            let told = second.green.overdue_keys.of_the_commonest(99);
            assert_eq!(told, second.green.overdue - forced.overdue, "seed {seed}, second {}", second.at);
        }
        drop(open);
        bench.answer_within = Duration::from_secs(1);
        (0..3).for_each(|_| drop(bench.end()));
        let total = bench.meter.observe();
        for arm in [&total.blue, &total.green] {
            let ended: u64 = Outcome::ALL.into_iter().map(|outcome| arm.total.count(outcome)).sum();
            assert_eq!((ended, arm.open), (arm.total.dispatched, 0), "seed {seed}");
            assert_eq!(arm.total.due, arm.total.dispatched, "seed {seed}");
        }
        for shard in bench.meter.shards.iter() {
            assert_eq!(shard.lock().waiting.taken(), 0, "seed {seed}: nobody waits any more");
        }
    }
}

#[test]
fn the_placebo_has_the_size_of_green() {
    let mut bench = Bench::new(1);
    let split = Split::from_percent(20.0).unwrap();
    for n in 0..BUCKETS {
        let key = Hashed::of(Salt::split("shop"), &n.to_be_bytes());
        let decided = Decided::new(Salt::placebo("shop"), split, split.arm(key.bucket()), key);
        Exchange::dispatch(bench.meter.handle(), &decided).end(Outcome::Ok, Some(1), None);
    }
    let second = bench.end();
    for tally in [&second.green, &second.placebo] {
        assert!((1_850..=2_150).contains(&tally.dispatched), "{} of 10000 at 20 %", tally.dispatched);
    }
    assert_eq!(second.blue.dispatched + second.green.dispatched, 10_000);
}
