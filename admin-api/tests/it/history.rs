//! What the minutes were like, in a file that nothing depends on.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc, thread, time::Duration};

use admin_api::{Control, History, HistoryError, Outcome, Recorder, Row, Verdict, Wanted};
use config::Arm;
use rusqlite::Connection;
use time::OffsetDateTime;

use crate::{
    control::ann,
    http::Server,
    support::{FakePlane, FakeStore, Folder, seeded, shop, shop_and_broker, split, write},
};

const MINUTE: i64 = 60;
/// A minute's beginning: 2026-01-31T10:15:00Z.
const TEN_15: i64 = 1_769_854_500;
const ALL: Wanted = Wanted { route: None, since: i64::MIN, until: i64::MAX, limit: 1_000_000 };

fn settings(path: &Path) -> config::History {
    config::History { path: path.to_owned(), keep: Duration::from_secs(3600), max: 8 * 1024 * 1024 }
}

fn open(path: &Path) -> History {
    History::new(settings(path))
}

/// A minute of green in which `ok` requests were answered.
fn row(at: i64, route: &str, ok: u64) -> Row {
    Row {
        at,
        route: route.to_owned(),
        arm: Arm::Green,
        seconds: 60,
        split: Some(split(10.0)),
        dispatched: ok,
        outcomes: [ok, 0, 0, 0, 0, 0, 0],
        fallbacks: 0,
        due: ok,
        overdue: 0,
        p50_us: (ok > 0).then_some(1_000 + ok),
        p95_us: (ok > 0).then_some(2_000 + ok),
        p99_us: (ok > 0).then_some(3_000 + ok),
        verdict: Some(Verdict::Pass),
        evidence: Some(0.25),
    }
}

fn kept(history: &History) -> Vec<Row> {
    history.read(&ALL).unwrap().0
}

fn moment(at: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at).unwrap()
}

/// A control over a fake plane, and what records its minutes.
async fn recorded(history: History) -> (Arc<FakePlane>, Arc<Control>, Recorder) {
    let plane = Arc::new(FakePlane::default());
    let control = Control::open(shop(), Arc::new(FakeStore::default()), plane.clone()).await.unwrap();
    let recorder = Recorder::new(control.clone(), history);
    (plane, control, recorder)
}

async fn all(recorder: &Recorder) -> Vec<Row> {
    recorder.read(ALL).await.unwrap().0
}

#[tokio::test]
async fn each_second_is_counted_once_and_in_its_minute() {
    let folder = Folder::new();
    let (plane, control, recorder) = recorded(open(&folder.file("h.db"))).await;
    control.set_split("shop", split(25.0), &ann(), None).await.unwrap();
    let seconds = |count: u64| (0..count).for_each(|_| plane.second("shop", (3, 0), (1, 1)));

    // 30 s, then the rest of the minute and 2 s of the next, then that one and one more, of which nothing is over.
    seconds(30);
    recorder.record(moment(TEN_15 + 30)).await;
    assert_eq!(all(&recorder).await, [], "nothing is over");
    seconds(32);
    recorder.record(moment(TEN_15 + 62)).await;
    recorder.record(moment(TEN_15 + 62)).await;
    let rows = all(&recorder).await;
    let [blue, green] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((blue.arm, blue.at, blue.seconds, blue.dispatched), (Arm::Blue, TEN_15, 60, 180));
    assert_eq!((green.arm, green.at, green.seconds, green.dispatched), (Arm::Green, TEN_15, 60, 120));
    assert_eq!((green.count(Outcome::Ok), green.count(Outcome::Refused)), (60, 60));
    assert_eq!((blue.error_rate(), green.error_rate()), (Some(0.0), Some(0.5)));
    assert_eq!((blue.split, green.split), (Some(split(75.0)), Some(split(25.0))));
    assert!(blue.p50_us.is_some_and(|us| (9_900..10_200).contains(&us)), "{blue:?}");
    assert_eq!((blue.verdict, green.verdict, green.evidence), (None, None, None), "nobody has judged");

    seconds(59);
    recorder.record(moment(TEN_15 + 121)).await;
    let rows = all(&recorder).await;
    assert_eq!(rows.len(), 4);
    assert_eq!((rows[2].at, rows[2].seconds, rows[3].dispatched), (TEN_15 + MINUTE, 60, 120));
    // Later than the plane remembers; what it does is counted.
    seconds(400);
    recorder.record(moment(TEN_15 + 521)).await;
    let counted: u64 = all(&recorder).await.iter().filter(|row| row.arm == Arm::Green).map(|row| row.seconds).sum();
    assert_eq!(counted, 480, "the rest is of a minute that is not over");
}

#[tokio::test]
async fn a_stop_writes_the_minute_it_is_in_and_the_next_start_adds_to_it() {
    let folder = Folder::new();
    let path = folder.file("h.db");
    let now = || OffsetDateTime::now_utc().unix_timestamp();
    let began = now().div_euclid(MINUTE) * MINUTE;
    for ok in [5, 7] {
        let (plane, _, recorder) = recorded(open(&path)).await;
        plane.second("shop", (ok, 0), (0, 0));
        recorder.finish().await;
        recorder.finish().await;
    }
    let rows = kept(&open(&path));
    let blue: Vec<&Row> = rows.iter().filter(|row| row.arm == Arm::Blue).collect();
    assert_eq!(blue.iter().map(|row| row.dispatched).sum::<u64>(), 12);
    // It may have been the last second of a minute.
    assert!(blue.len() <= 2 && blue.iter().all(|row| (began - MINUTE..=now()).contains(&row.at)), "{rows:?}");
    assert_eq!(blue.iter().map(|row| row.seconds).sum::<u64>(), 2);
}

#[test]
fn minutes_of_two_processes_are_one() {
    let folder = Folder::new();
    let (one, other) = (open(&folder.file("h.db")), open(&folder.file("h.db")));
    let busy = Row { outcomes: [80, 1, 2, 3, 4, 5, 6], dispatched: 101, overdue: 2, ..row(TEN_15, "shop", 80) };
    one.record(&[busy], TEN_15).unwrap();
    // It has been taken over from: it counts, and has no say about the split.
    let last = Row { split: None, verdict: None, evidence: None, seconds: 25, ..row(TEN_15, "shop", 7) };
    other.record(&[last], TEN_15).unwrap();
    let rows = kept(&one);
    let [sum] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((sum.dispatched, sum.outcomes, sum.due, sum.overdue), (108, [87, 1, 2, 3, 4, 5, 6], 87, 2));
    assert_eq!(
        (sum.seconds, sum.split, sum.verdict, sum.evidence),
        (60, Some(split(10.0)), Some(Verdict::Pass), Some(0.25))
    );
    assert_eq!(
        (sum.p50_us, sum.p95_us, sum.p99_us),
        (Some(1_080), Some(2_080), Some(3_080)),
        "those of the busier one"
    );
    // In the other order.
    let more = Row { split: Some(split(0.0)), verdict: Some(Verdict::Breach), ..row(TEN_15, "shop", 1_000) };
    other.record(&[more], TEN_15).unwrap();
    let sum = kept(&one).remove(0);
    assert_eq!((sum.split, sum.verdict, sum.p99_us), (Some(split(0.0)), Some(Verdict::Breach), Some(4_000)));
}

#[test]
fn processes_that_write_at_the_same_time_lose_nothing() {
    let folder = Folder::new();
    let path = folder.file("h.db");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let history = open(&path);
                (0..25).for_each(|minute| {
                    history.record(&[row(TEN_15 + minute % 5 * MINUTE, "shop", 1)], TEN_15).unwrap();
                    assert!(!kept(&history).is_empty());
                });
            });
        }
    });
    let rows = kept(&open(&path));
    assert_eq!(
        rows.iter().map(|row| (row.at, row.dispatched)).collect::<Vec<_>>(),
        (0..5).map(|minute| (TEN_15 + minute * MINUTE, 20)).collect::<Vec<_>>()
    );
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(folder.names(), ["h.db"]);
}

#[test]
fn what_is_old_is_forgotten_an_hour_at_a_time() {
    let folder = Folder::new();
    let history = open(&folder.file("h.db"));
    let minutes: Vec<Row> = (0..180).map(|minute| row(TEN_15 + minute * MINUTE, "shop", 1)).collect();
    history.record(&minutes, TEN_15).unwrap();
    let first = |history: &History| kept(history)[0].at;
    // An hour is kept: of the second hour nothing is too old.
    history.record(&[], TEN_15 + 61 * MINUTE).unwrap();
    assert_eq!(first(&history), TEN_15 + MINUTE);
    // A clock that is years ahead for a moment costs an hour, not everything, and one that is behind nothing.
    history.record(&[], TEN_15 + 1_000_000_000).unwrap();
    assert_eq!(first(&history), TEN_15 + 61 * MINUTE);
    for now in [0, i64::MIN, TEN_15] {
        history.record(&[], now).unwrap();
    }
    assert_eq!(first(&history), TEN_15 + 61 * MINUTE);
    for _ in 0..4 {
        history.record(&[], i64::MAX).unwrap();
    }
    assert_eq!(kept(&history), []);
}

#[test]
fn the_file_never_grows_beyond_its_bound_and_keeps_what_is_newest() {
    let folder = Folder::new();
    let path = folder.file("h.db");
    let max = 8 * 1024 * 1024;
    let with =
        |max: u64| History::new(config::History { keep: Duration::from_secs(1_000_000_000), max, ..settings(&path) });
    let size = || fs::metadata(&path).unwrap().len();
    let batch = |minute: i64| -> Vec<Row> {
        (0..1_000).map(|n| row(TEN_15 + minute * MINUTE, &format!("route-number-{n}"), 100_000)).collect()
    };
    let history = with(max);
    for minute in 0..120 {
        history.record(&batch(minute), TEN_15).unwrap();
        assert!(size() <= max, "{} in minute {minute}", size());
    }
    let rows = kept(&history);
    println!("{} bytes hold {} rows, {} bytes each", size(), rows.len(), size() / rows.len() as u64);
    assert_eq!(rows.last().unwrap().at, TEN_15 + 119 * MINUTE);
    assert!(rows.len() > 25_000 && rows.len().is_multiple_of(1_000), "whole minutes: {}", rows.len());
    assert!(size() > max / 2);

    // A larger bound is used, and a smaller one again makes the file smaller.
    drop(history);
    let history = with(4 * max);
    (120..260).for_each(|minute| history.record(&batch(minute), TEN_15).unwrap());
    assert!(size() > max * 3 / 2, "{}", size());
    drop(history);
    let history = with(max);
    history.record(&batch(260), TEN_15).unwrap();
    assert!(size() <= max, "{}", size());
    assert_eq!(kept(&history).last().unwrap().at, TEN_15 + 260 * MINUTE);
}

/// A history with some thousand rows, and its bytes.
fn sound(path: &Path) -> Vec<u8> {
    let history = open(path);
    history
        .record(&(0..3_000).map(|minute| row(TEN_15 + minute * MINUTE, "shop", 9)).collect::<Vec<_>>(), TEN_15)
        .unwrap();
    drop(history);
    fs::read(path).unwrap()
}

#[test]
fn a_damaged_file_is_moved_aside() {
    let folder = Folder::new();
    let path = folder.file("h.db");
    let aside = folder.file("h.db.damaged");
    let good = sound(&path);
    let with = |from: usize, bytes: &[u8]| {
        let mut damaged = good.clone();
        damaged[from..from + bytes.len()].copy_from_slice(bytes);
        damaged
    };
    for (what, bytes) in [
        ("cut short", good[..good.len() / 2].to_vec()),
        ("cut in a page", good[..5_000].to_vec()),
        ("no database", b"once upon a time there was a blue system, and people were used to it".repeat(100)),
        ("a few bytes", b"hello".to_vec()),
        ("zeros at the beginning", with(0, &[0; 4096])),
        ("zeros in the middle", with(3 * 4096, &[0; 4096])),
        ("another format", with(60, &[0, 0, 0, 0])),
        ("another schema", {
            let at = good.windows(9).position(|bytes| bytes == b"p99_us IN").unwrap();
            with(at, b"p98_us IN")
        }),
    ] {
        write(&path, &bytes);
        let history = open(&path);
        history.record(&[row(TEN_15, "shop", 1)], TEN_15).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(kept(&history), [row(TEN_15, "shop", 1)], "{what}");
        let kept = fs::read(&aside).unwrap();
        let first = kept.iter().zip(&bytes).position(|(kept, byte)| kept != byte);
        assert!(kept == bytes, "{what}: {} of {} bytes, another one at {first:?}", kept.len(), bytes.len());
        assert_eq!(folder.names(), ["h.db", "h.db.damaged"], "{what}");
    }
    // Nothing is not damage: a process that died while it made the file leaves that.
    fs::remove_file(&aside).unwrap();
    write(&path, b"");
    open(&path).record(&[], TEN_15).unwrap();
    assert_eq!(folder.names(), ["h.db"]);
}

#[test]
fn whatever_is_in_the_file_it_is_recorded_on() {
    let mut random = seeded();
    let folder = Folder::new();
    let path = folder.file("h.db");
    let good = sound(&path);
    for round in 0..300 {
        let mut bytes = good.clone();
        for _ in 0..=random.usize(..40) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
        if round % 3 == 0 {
            bytes.truncate(random.usize(..bytes.len()));
        }
        write(&path, &bytes);
        let history = open(&path);
        let read = history.read(&ALL);
        // Damage that only shows when it is written to costs one minute's try.
        let now = TEN_15 + 10_000 * MINUTE;
        let tries = (0..3).find(|_| history.record(&[row(now, "after", 1)], TEN_15).is_ok());
        match tries {
            Some(_) => assert!(kept(&history).iter().any(|row| row.route == "after" && row.at == now), "{read:?}"),
            // A flipped bit in the header may make it another program's file, or a newer crossfade's.
            None => assert!(
                matches!(history.record(&[], TEN_15), Err(HistoryError::NotOurs { .. } | HistoryError::Open { .. })),
                "round {round}"
            ),
        }
    }
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let folder = Folder::new();
    let path = folder.file("h.db");
    let refused = |words: &str| {
        let error = open(&path).record(&[], TEN_15).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("give admin.history a file of its own"), "{error}");
        assert_eq!(folder.names(), ["h.db"]);
    };
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE customers (name TEXT)").unwrap();
    let before = fs::read(&path).unwrap();
    refused("is a SQLite database, but no history of crossfade");
    assert!(fs::read(&path).unwrap() == before);
    fs::remove_file(&path).unwrap();
    open(&path).record(&[], TEN_15).unwrap();
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 7).unwrap();
    refused("was written by a newer crossfade (format 7, this one knows 1)");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    refused("is not a file");
}

#[tokio::test]
async fn what_cannot_be_written_waits_and_is_written_later() {
    let folder = Folder::new();
    let path = folder.file("later/h.db");
    let (plane, _, recorder) = recorded(open(&path)).await;
    for minute in 1..=3 {
        (0..60).for_each(|_| plane.second("shop", (1, 0), (0, 0)));
        recorder.record(moment(TEN_15 + minute * MINUTE)).await;
        let problem = recorder.problem().unwrap();
        assert!(problem.contains("could not be opened; make it and its folder readable and writable"), "{problem}");
    }
    assert!(recorder.read(ALL).await.is_err());
    fs::create_dir(folder.file("later")).unwrap();
    recorder.record(moment(TEN_15 + 3 * MINUTE)).await;
    assert_eq!((recorder.problem(), recorder.rows_lost()), (None, 0));
    let rows = all(&recorder).await;
    assert_eq!(rows.iter().map(|row| row.at).collect::<Vec<_>>(), [0, 0, 60, 60, 120, 120].map(|after| TEN_15 + after));
    assert!(rows.iter().all(|row| row.dispatched == if row.arm == Arm::Blue { 60 } else { 0 }), "{rows:?}");

    // A file that somebody has removed is made anew, and not written to where nobody finds it.
    fs::remove_file(&path).unwrap();
    (0..60).for_each(|_| plane.second("shop", (2, 0), (0, 0)));
    recorder.record(moment(TEN_15 + 4 * MINUTE)).await;
    assert_eq!(all(&recorder).await.len(), 2);
    assert!(path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_somebody_holds_delays_nobody_else() {
    let folder = Folder::new();
    let path = folder.file("h.db");
    let (plane, control, recorder) = recorded(open(&path)).await;
    recorder.record(moment(TEN_15)).await;
    let holder = Connection::open(&path).unwrap();
    holder.execute_batch("BEGIN EXCLUSIVE").unwrap();
    (0..60).for_each(|_| plane.second("shop", (1, 0), (0, 0)));
    let recording = async {
        recorder.record(moment(TEN_15 + MINUTE)).await;
        std::time::SystemTime::now()
    };
    let changing = async {
        // It has begun to wait.
        tokio::time::sleep(Duration::from_millis(200)).await;
        control.set_split("shop", split(50.0), &ann(), None).await.unwrap();
        control.rollback("shop", "while it waits", &ann()).await.unwrap();
        std::time::SystemTime::now()
    };
    let (recorded, changed) = tokio::join!(recording, changing);
    assert!(changed < recorded);
    let problem = recorder.problem().unwrap();
    assert!(problem.contains("writing failed; check the disk it is on"), "{problem}");
    holder.execute_batch("ROLLBACK").unwrap();
    recorder.record(moment(TEN_15 + MINUTE)).await;
    assert_eq!((recorder.problem(), all(&recorder).await.len()), (None, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn minutes_go_on_while_one_is_still_being_written() {
    let folder = Folder::new();
    let path = folder.file("h.db");
    let (plane, _, recorder) = recorded(open(&path)).await;
    recorder.record(moment(TEN_15)).await;
    let holder = Connection::open(&path).unwrap();
    holder.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let minute = || (0..60).for_each(|_| plane.second("shop", (1, 0), (0, 0)));
    minute();
    let hangs = recorder.record(moment(TEN_15 + MINUTE));
    let goes_on = async {
        for after in 2..=6 {
            minute();
            recorder.record(moment(TEN_15 + after * MINUTE)).await;
            let problem = recorder.problem().unwrap();
            assert!(problem.contains("an earlier minute is still being written; check the disk"), "{problem}");
        }
        holder.execute_batch("ROLLBACK").unwrap();
    };
    tokio::join!(hangs, goes_on);
    recorder.record(moment(TEN_15 + 6 * MINUTE)).await;
    assert_eq!((recorder.problem(), recorder.rows_lost()), (None, 0));
    let rows = all(&recorder).await;
    let minutes: Vec<_> = rows.iter().filter(|row| row.arm == Arm::Blue).map(|row| (row.at, row.dispatched)).collect();
    assert_eq!(minutes, (0..6).map(|after| (TEN_15 + after * MINUTE, 60)).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_given_up_while_one_is_being_written_are_counted() {
    let folder = Folder::new();
    let path = folder.file("h.db");
    let (plane, _, recorder) = recorded(open(&path)).await;
    recorder.record(moment(TEN_15)).await;
    let holder = Connection::open(&path).unwrap();
    holder.execute_batch("BEGIN EXCLUSIVE").unwrap();
    plane.second("shop", (1, 0), (0, 0));
    let hangs = recorder.record(moment(TEN_15 + MINUTE));
    let goes_on = async {
        // Two rows each.
        (0..4_200 * MINUTE).for_each(|_| plane.second("shop", (0, 0), (0, 0)));
        recorder.record(moment(TEN_15 + 4_201 * MINUTE)).await;
        assert_eq!(recorder.rows_lost(), 2 * 4_200 - 8_192);
        holder.execute_batch("ROLLBACK").unwrap();
    };
    tokio::join!(hangs, goes_on);
}

#[test]
fn pages_of_any_size_hold_every_row_once() {
    let mut random = seeded();
    let folder = Folder::new();
    let history = open(&folder.file("h.db"));
    let mut expected = BTreeMap::new();
    for _ in 0..400 {
        let (minute, route) = (random.i64(0..120), ["shop", "bus", "broker"][random.usize(..3)]);
        let row = Row { arm: Arm::BOTH[random.usize(..2)], ..row(TEN_15 + minute * MINUTE, route, random.u64(..9)) };
        if expected.insert((row.at, row.route.clone(), row.arm), row.clone()).is_none() {
            history.record(&[row], TEN_15).unwrap();
        }
    }
    let sums = kept(&history);
    assert!(sums.is_sorted_by_key(|row| (row.at, row.route.clone(), row.arm)));
    for limit in [1, 2, 3, 5, 8, 50, 1_000] {
        let (mut until, mut pages) = (i64::MAX, Vec::new());
        loop {
            let (rows, more) = history.read(&Wanted { until, limit, ..ALL }).unwrap();
            assert!(rows.len() < limit + 6, "a minute has at most six rows");
            until = rows[0].at;
            pages.push(rows);
            if !more {
                break;
            }
        }
        assert_eq!(pages.into_iter().rev().flatten().collect::<Vec<_>>(), sums, "limit {limit}");
    }
    let only = Wanted { route: Some("bus".to_owned()), since: TEN_15 + 60, until: TEN_15 + 3_600, limit: 1_000 };
    let (rows, more) = history.read(&only).unwrap();
    let wanted = |row: &&Row| row.route == "bus" && (TEN_15 + 60..TEN_15 + 3_600).contains(&row.at);
    assert_eq!((rows, more), (sums.iter().filter(wanted).cloned().collect(), false));
}

#[tokio::test]
async fn the_history_is_asked_for_by_route_and_time() {
    let server = Server::start(shop_and_broker()).await;
    (0..60).for_each(|_| server.plane.second("shop", (9, 0), (8, 2)));
    let now = OffsetDateTime::now_utc().unix_timestamp();
    // The minute before this one.
    let ended = now.div_euclid(MINUTE) * MINUTE;
    server.history.record(moment(ended)).await;
    let answer = server.get("/history?route=shop&since=-10m").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let rows = answer.json();
    assert_eq!(rows["more"], false);
    let [blue, green] = rows["history"].as_array().unwrap().as_slice() else { panic!("{rows}") };
    assert_eq!((&blue["arm"], &blue["percentage"], &blue["dispatched"]), (&"blue".into(), &100.into(), &540.into()));
    assert_eq!((&green["arm"], &green["percentage"], &green["seconds"]), (&"green".into(), &0.into(), &60.into()));
    assert_eq!((&green["ok"], &green["refused"], &green["error_rate"]), (&480.into(), &120.into(), &0.2.into()));
    assert!(green["p95_ms"].as_f64().is_some_and(|ms| (9.9..10.2).contains(&ms)), "{green}");
    assert!(green["verdict"].is_null() && green["at"].as_str().unwrap().ends_with(":00Z"), "{green}");

    // A cut falls between minutes, and `until` is where to go on.
    let (first, length) = (green["at"].as_str().unwrap(), rows["history"].as_array().unwrap().len());
    assert_eq!(server.get("/history?limit=1").await.json()["history"].as_array().unwrap().len(), length);
    let before = server.get(&format!("/history?since=-1d&until={first}")).await.json();
    assert_eq!(before, serde_json::json!({ "history": [], "more": false }));
    assert_eq!(server.get("/history?route=broker").await.json()["history"], serde_json::json!([]), "never counted");

    let problem = server.get("/history?route=shed").await.problem(404);
    assert_eq!(problem["field"], "route", "{problem}");
    for (query, field) in [
        ("since=yesterday", "since"),
        ("until=-1", "until"),
        ("since=-1h&until=-2h", "since"),
        ("since=2999-01-01T00:00:00Z", "since"),
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("limit=1&limit=2", "limit"),
        ("route=", "route"),
        ("from=-1h", "from"),
        ("since=-99999999999999999999d", "since"),
    ] {
        let problem = server.get(&format!("/history?{query}")).await.problem(422);
        assert_eq!(problem["field"], field, "{query}: {problem}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_history_that_cannot_be_read_is_said_to_be_and_disturbs_nothing_else() {
    let server = Server::start(shop()).await;
    fs::create_dir(server.history_path()).unwrap();
    server.plane.second("shop", (1, 0), (0, 0));
    server.history.record(OffsetDateTime::now_utc()).await;
    let problem = server.get("/history").await.problem(503);
    assert_eq!(problem["type"], "urn:crossfade:history", "{problem}");
    let status = server.get("/status").await.json();
    assert!(status["history_problem"].as_str().unwrap().contains("is not a file"), "{status}");
    assert!(server.get("/metrics").await.body.contains("crossfade_history_failing 1\n"));
    fs::remove_dir(server.history_path()).unwrap();
    server.history.record(OffsetDateTime::now_utc()).await;
    assert_eq!(server.get("/status").await.json()["history_problem"], serde_json::Value::Null);
    assert_eq!(server.get("/history").await.status, 200);
    server.stop().await;
}
