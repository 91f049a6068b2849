//! All signals of a configuration: which values are taken, what a reload and a restart keep.

use std::path::Path;

use super::*;

fn config(signals: &str) -> Config {
    let arms = "[route.blue]\nendpoints = [\"a:1\"]\n[route.green]\nendpoints = [\"b:1\"]";
    let route = "[[route]]\nname = \"shop\"\nprotocol = \"http\"\nlisten = \"127.0.0.1:80\"";
    Config::parse(&format!("{route}\n{arms}\n{signals}"), Path::new("")).unwrap()
}

const LAG: &str = "[[route.signal]]\nname = \"lag\"\nlimit = \"> 10\"\n";
const MEMORY: &str = "[[route.signal]]\nname = \"memory\"\nlimit = \"> 10 for 1m\"\n";

/// Long after this machine started, so that the past is not cut off.
fn start() -> Moment {
    let hour = Duration::from_secs(3600);
    Moment { instant: Instant::now() + hour, utc: OffsetDateTime::UNIX_EPOCH + hour }
}

fn later(moment: Moment, seconds: u64) -> Moment {
    let seconds = Duration::from_secs(seconds);
    Moment { instant: moment.instant + seconds, utc: moment.utc + seconds }
}

fn signals(text: &str, recorded: Vec<SignalRow>, now: Moment) -> Signals {
    let signals = Signals::new(recorded);
    signals.follow(&config(text), now);
    signals
}

fn verdicts(signals: &Signals, now: Moment) -> Vec<(String, Verdict)> {
    signals.readings("shop", now.instant).into_iter().map(|reading| (reading.name, reading.verdict)).collect()
}

#[test]
fn a_value_is_a_finite_number_of_now() {
    let now = start();
    let signals = signals(LAG, Vec::new(), now);
    let push = |value: f64, at: Option<i64>| {
        let at = at.map(|seconds| now.utc + time::Duration::seconds(seconds));
        signals.push("shop", "lag", value, at, now).map(|view| view.age_seconds)
    };
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(push(value, None), Err(SignalRefusal::NotFinite));
    }
    assert_eq!(push(1.0, Some(11)), Err(SignalRefusal::Future { ahead: Duration::from_secs(11) }));
    let (age, expect_every) = (Duration::from_secs(121), Duration::from_secs(120));
    assert_eq!(push(1.0, Some(-121)), Err(SignalRefusal::LongPast { age, expect_every }));
    assert!(matches!(push(1.0, Some(-100_000_000_000)), Err(SignalRefusal::LongPast { .. })));
    assert!(matches!(push(1.0, Some(100_000_000_000)), Err(SignalRefusal::Future { .. })));
    // Nothing of all that was heard.
    assert_eq!(verdicts(&signals, now), [("lag".to_owned(), Verdict::Unknown)]);
    assert_eq!(push(1.0, Some(-120)), Ok(Some(120.0)));
    assert_eq!(push(1.0, Some(10)), Ok(Some(0.0)));
    assert_eq!(push(f64::MAX, None), Ok(Some(0.0)));
    let last = "1970-01-01T01:00:00Z".to_owned();
    let overtaken = push(1.0, Some(-1)).unwrap_err();
    assert_eq!(overtaken, SignalRefusal::Overtaken { last });
    assert_eq!(
        overtaken.to_string(),
        "at: is before that of the last value, 1970-01-01T01:00:00Z; send values in the order they were measured in"
    );
    let unknown = signals.push("shop", "lagg", 1.0, None, now).unwrap_err();
    assert_eq!(unknown.to_string(), "name: there is no signal \"lagg\"; choose one of lag");
    let unknown = signals.push("other", "lag", 1.0, None, now).unwrap_err();
    assert_eq!(unknown.to_string(), "name: there is no signal \"lag\"; add a [[route.signal]] to its route");
}

#[test]
fn a_time_that_comes_twice_is_one_moment() {
    let signals = signals(LAG, Vec::new(), start());
    let first = later(start(), 60);
    let at = first.utc - Duration::from_secs(5);
    signals.push("shop", "lag", 11.0, Some(at), first).unwrap();
    // The two clocks are read one after the other.
    let again = Moment { instant: first.instant - Duration::from_micros(1), ..first };
    assert_eq!(signals.push("shop", "lag", 11.0, Some(at), again).unwrap().value, Some(11.0));
    let before = signals.push("shop", "lag", 11.0, Some(at - Duration::from_millis(1)), again);
    assert!(matches!(before, Err(SignalRefusal::Overtaken { .. })));
}

#[test]
fn a_clock_that_is_set_back_holds_nothing_up() {
    let now = start();
    let signals = signals(LAG, Vec::new(), now);
    signals.push("shop", "lag", 11.0, None, now).unwrap();
    let hour_back = Moment { utc: OffsetDateTime::UNIX_EPOCH, ..later(now, 10) };
    signals.push("shop", "lag", 1.0, None, hour_back).unwrap();
    signals.push("shop", "lag", 2.0, Some(hour_back.utc), hour_back).unwrap();
    assert_eq!(verdicts(&signals, hour_back), [("lag".to_owned(), Verdict::Pass)]);
    assert_eq!(verdicts(&signals, later(hour_back, 121)), [("lag".to_owned(), Verdict::Unknown)]);
}

#[test]
fn the_disk_gets_what_it_does_not_have() {
    let now = start();
    let row =
        |value, at: &str| SignalRow { route: "shop".to_owned(), name: "lag".to_owned(), value, at: at.to_owned() };
    let before = signals(&format!("{LAG}{MEMORY}"), Vec::new(), now);
    assert_eq!(before.unrecorded(), []);
    before.push("shop", "lag", 1.0, None, now).unwrap();
    let first = before.unrecorded();
    assert_eq!(first, [row(1.0, "1970-01-01T01:00:00Z")]);
    before.push("shop", "lag", 11.0, None, later(now, 1)).unwrap();
    // It was overtaken while it was written.
    before.written(&first);
    let second = before.unrecorded();
    assert_eq!(second, [row(11.0, "1970-01-01T01:00:01Z")]);
    before.written(&second);
    assert_eq!(before.unrecorded(), []);

    // Another process, a minute later, and one three minutes later.
    let verdict = |text: &str, seconds| {
        let now = later(now, seconds);
        let after = signals(text, second.clone(), now);
        assert_eq!(after.unrecorded(), []);
        assert_eq!(after.views(None, now.instant)[0].value, Some(11.0));
        verdicts(&after, now)[0].1
    };
    assert_eq!(verdict(LAG, 60), Verdict::Breach);
    assert_eq!(verdict(LAG, 180), Verdict::Unknown);
    // What was bad for how long is not known any more.
    let lasting = LAG.replace("> 10", "> 10 for 1s");
    assert_eq!(verdict(&lasting, 60), Verdict::Unknown);
    // One that is damaged, and one of a signal that there is not.
    let odd = vec![row(f64::NAN, "1970-01-01T01:00:00Z"), SignalRow { name: "x".to_owned(), ..row(1.0, "today") }];
    let after = signals(&format!("{LAG}{}", MEMORY.replace("memory", "x")), odd, now);
    assert!(verdicts(&after, now).iter().all(|(_, verdict)| *verdict == Verdict::Unknown));
}

#[test]
fn a_reload_keeps_what_stays() {
    let now = start();
    let signals = signals(&format!("{LAG}{MEMORY}"), Vec::new(), now);
    signals.push("shop", "lag", 11.0, None, now).unwrap();
    signals.push("shop", "memory", 1.0, None, now).unwrap();
    signals.follow(&config(MEMORY), later(now, 1));
    assert_eq!(verdicts(&signals, later(now, 1)), [("memory".to_owned(), Verdict::Pass)]);
    assert!(signals.push("shop", "lag", 1.0, None, now).is_err());
    // One that comes back still has its last value.
    signals.follow(&config(&format!("{LAG}{MEMORY}")), later(now, 2));
    let expected = [("lag".to_owned(), Verdict::Breach), ("memory".to_owned(), Verdict::Pass)];
    assert_eq!(verdicts(&signals, later(now, 2)), expected);
    signals.forget("other", later(now, 3).instant);
    assert_eq!(verdicts(&signals, later(now, 3)), expected);
    signals.forget("shop", later(now, 3).instant);
    assert!(verdicts(&signals, later(now, 4)).iter().all(|(_, verdict)| *verdict == Verdict::Unknown));
    // It is shown all the same.
    assert_eq!(signals.views(Some("shop"), later(now, 4).instant)[0].value, Some(11.0));
    assert_eq!(signals.views(Some("other"), now.instant), []);
}

#[test]
fn what_was_forgotten_stays_so_over_a_restart_and_a_reload() {
    let now = start();
    let text = format!("{LAG}{MEMORY}");
    let before = signals(&text, Vec::new(), now);
    before.push("shop", "lag", 11.0, None, now).unwrap();
    before.push("shop", "memory", 1.0, None, now).unwrap();
    before.written(&before.unrecorded());
    before.forget("shop", later(now, 1).instant);
    before.push("shop", "memory", 2.0, None, later(now, 2)).unwrap();
    let recorded = before.unrecorded();
    let expected = [("lag".to_owned(), Verdict::Unknown), ("memory".to_owned(), Verdict::Pass)];
    let after = signals(&text, recorded.clone(), later(now, 3));
    assert_eq!(verdicts(&after, later(now, 3)), expected, "{recorded:?}");
    before.written(&recorded);
    assert_eq!(before.unrecorded(), []);

    before.follow(&config(""), later(now, 3));
    before.follow(&config(&text), later(now, 4));
    assert_eq!(verdicts(&before, later(now, 4)), expected);
}

#[test]
fn a_scrape_that_fails_says_why_and_changes_nothing() {
    let now = start();
    let scrape = "[route.signal.scrape]\nurl = \"http://a/\"\nmetric = \"lag\"\n";
    let signals = signals(&format!("{LAG}{scrape}"), Vec::new(), now);
    let (key, asked, _) = signals.scrapes().remove(0);
    let view = || signals.views(None, now.instant).remove(0);
    signals.scraped(&key, &asked, Ok((1.0, None)), now);
    assert_eq!((view().value, view().problem), (Some(1.0), None));
    signals.scraped(&key, &asked, Err("http://a:80/ answers 404".to_owned()), now);
    assert_eq!((view().value, view().problem.as_deref()), (Some(1.0), Some("http://a:80/ answers 404")));
    signals.scraped(&key, &asked, Ok((2.0, Some(now.utc + Duration::from_secs(60)))), now);
    assert!(view().problem.unwrap().starts_with("at: is 1 min in the future"));
    assert_eq!(view().failed_scrapes, 2);
    // An answer to what is not asked any more.
    signals.scraped(&key, &Scrape { metric: "other".to_owned(), ..asked.clone() }, Ok((9.0, None)), now);
    assert_eq!(view().value, Some(1.0));
    signals.scraped(&key, &asked, Ok((3.0, None)), now);
    assert_eq!((view().value, view().problem), (Some(3.0), None));
}
