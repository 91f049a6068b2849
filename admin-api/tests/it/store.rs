//! A state file is what was last acknowledged, or it is refused.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use admin_api::{
    AuditRow, Batch, IncidentRow, Latch, Recorded, SignalRow, Sqlite, StateStore, StoreError,
    plan::{Measured, Origin, Run, Stamp, State},
};
use config::{Gates, Plan, Require};
use rusqlite::Connection;

use crate::support::{Folder, split, write};

fn states() -> BTreeMap<String, Recorded> {
    let latch = Latch { reason: "p95".to_owned(), at: "2026-01-31T10:15:02.123Z".to_owned(), actor: "ann".to_owned() };
    BTreeMap::from([
        ("shop".to_owned(), Recorded { split: split(12.5), revision: 7, latch: None, plan: Some(plan()) }),
        ("broker".to_owned(), Recorded { split: split(0.0), revision: 3, latch: Some(latch), plan: None }),
    ])
}

fn plan() -> Run {
    let step = |green, gates| config::Step {
        green: split(green),
        bake: Duration::from_secs(600),
        gates,
        require: Require { match_rate: Some(0.8), ..Require::default() },
        otherwise: config::Otherwise::Rollback,
    };
    let gates = Gates { approval: Some("go-live".to_owned()), after: vec!["broker".to_owned()], ..Gates::default() };
    let stamp = Stamp { at: "2026-01-31T10:15:02.123Z".to_owned(), by: "ann".to_owned(), reason: String::new() };
    Run {
        plan: Plan {
            steps: vec![step(0.0, Gates::default()), step(12.5, gates)],
            max_hold: Duration::from_secs(3600),
            observe: Duration::ZERO,
            expected_rps: Some(50.0),
        },
        origin: Origin::Configured,
        state: State::Running,
        step: 1,
        entered: true,
        first: 0,
        healthy_seconds: 17,
        held_seconds: 3,
        observed_seconds: 0,
        outcomes: 850,
        measured: Measured::default(),
        approved: Some(stamp.clone()),
        waived: false,
        overruled: false,
        doubted: false,
        by_hand: false,
        started: stamp.clone(),
        changed: stamp,
    }
}

fn recorded(path: &Path) -> Sqlite {
    let store = Sqlite::open(path).unwrap();
    let audit = AuditRow { action: "split".to_owned(), route: Some("shop".to_owned()), ..AuditRow::default() };
    store.record(&Batch { states: states(), audit: vec![audit], ..Batch::default() }).unwrap();
    store
}

fn load(path: &Path) -> Result<BTreeMap<String, Recorded>, StoreError> {
    Sqlite::open(path)?.load()
}

fn message(path: &Path) -> String {
    load(path).unwrap_err().to_string()
}

#[test]
fn what_was_recorded_is_there_after_a_restart() {
    let folder = Folder::new();
    let path = folder.file("state.db");
    drop(recorded(&path));
    assert_eq!(load(&path).unwrap(), states());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(folder.names(), ["state.db"]);
}

/// What the program before plans and signals had written.
const FORMAT_1: &str = include_str!("store/format-1.sql");

#[test]
fn a_file_of_the_first_format_is_read_and_becomes_one_of_the_second_with_the_first_change() {
    let folder = Folder::new();
    let path = folder.file("state.db");
    let old = || {
        let _ = fs::remove_file(&path);
        Connection::open(&path).unwrap().execute_batch(FORMAT_1).unwrap();
    };
    let format = || {
        let connection = Connection::open(&path).unwrap();
        connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0)).unwrap()
    };
    let at = "2026-11-21T17:56:50.601Z".to_owned();
    let latch = Latch { reason: "p95".to_owned(), at: at.clone(), actor: "local".to_owned() };
    let mut states = BTreeMap::from([
        ("broker".to_owned(), Recorded { split: split(0.0), revision: 2, latch: Some(latch), plan: None }),
        ("shop".to_owned(), Recorded { split: split(12.5), revision: 2, latch: None, plan: None }),
    ]);

    // Who only reads it leaves it to the program that wrote it.
    old();
    let store = Sqlite::open(&path).unwrap();
    assert_eq!((store.load().unwrap(), store.signals().unwrap()), (states.clone(), Vec::new()));
    store.let_go().unwrap();
    assert_eq!(format(), 1);

    store.take_back().unwrap();
    let planned = Recorded { revision: 3, plan: Some(plan()), ..states["shop"].clone() };
    let signal = SignalRow { route: "shop".to_owned(), name: "lag".to_owned(), value: -1.5, at };
    let shop = BTreeMap::from([("shop".to_owned(), planned.clone())]);
    store.record(&Batch { states: shop, signals: vec![signal.clone()], ..Batch::default() }).unwrap();
    states.insert("shop".to_owned(), planned);
    assert_eq!((store.load().unwrap(), store.signals().unwrap()), (states.clone(), vec![signal.clone()]));
    assert_eq!(store.audit(None, 100).unwrap().len(), 4, "nothing else is lost");
    drop(store);
    assert_eq!(format(), 2);
    let store = Sqlite::open(&path).unwrap();
    assert_eq!((store.load().unwrap(), store.signals().unwrap()), (states, vec![signal]));
    drop(store);

    // Damage is found before anything is made of it.
    old();
    Connection::open(&path).unwrap().execute_batch("UPDATE state SET split = 5000 WHERE route = 'shop'").unwrap();
    assert!(message(&path).contains("the row of route \"shop\" does not match its digest"), "{}", message(&path));
    old();
    Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 2").unwrap();
    assert!(message(&path).contains("its tables are not those of its format"), "{}", message(&path));
}

#[test]
fn a_signal_has_one_last_value() {
    let folder = Folder::new();
    let store = recorded(&folder.file("state.db"));
    let row = |name: &str, value| SignalRow {
        route: "shop".to_owned(),
        name: name.to_owned(),
        value,
        at: "2026-01-31T10:15:02Z".to_owned(),
    };
    let batch = |signals| Batch { signals, ..Batch::default() };
    store.record(&batch(vec![row("lag", 1.0), row("memory", 1e300)])).unwrap();
    store.record(&batch(vec![row("lag", 2.0)])).unwrap();
    assert_eq!(store.signals().unwrap(), [row("lag", 2.0), row("memory", 1e300)]);
    assert_eq!(store.load().unwrap(), states());
}

#[test]
fn a_new_file_appears_whole_and_beside_leftovers_of_a_killed_start() {
    let folder = Folder::new();
    let path = folder.file("state.db");
    let leftover = folder.file(&format!("state.db.new-{}", std::process::id()));
    write(&leftover, b"half a");
    assert_eq!(load(&path).unwrap(), BTreeMap::new());
    assert_eq!(folder.names(), ["state.db"]);
}

#[test]
fn a_second_process_is_told_that_the_file_is_in_use() {
    let folder = Folder::new();
    let path = folder.file("state.db");
    let first = recorded(&path);
    let error = Sqlite::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("is in use by another crossfade; stop it or give this one"), "{error}");
    assert_eq!(first.load().unwrap(), states());
    drop(first);
    assert_eq!(load(&path).unwrap(), states());
}

#[test]
fn what_is_let_go_another_may_have_until_it_is_taken_back() {
    let folder = Folder::new();
    let (path, away) = (folder.file("state.db"), folder.file("away.db"));
    let store = recorded(&path);
    store.let_go().unwrap();
    assert_eq!(folder.names(), ["state.db"], "without a journal beside it");
    assert!(matches!(store.load(), Err(StoreError::LetGo { .. })));
    assert!(matches!(store.record(&Batch::default()), Err(StoreError::LetGo { .. })));
    let other = Sqlite::open(&path).unwrap();
    assert!(matches!(store.take_back(), Err(StoreError::InUse { .. })));
    assert!(matches!(store.load(), Err(StoreError::InUse { .. })), "it is tried again");
    drop(other);
    assert_eq!(store.load().unwrap(), states());
    assert!(matches!(Sqlite::open(&path), Err(StoreError::InUse { .. })));

    // Another file in its place is not it, and a missing one is not made anew.
    store.let_go().unwrap();
    fs::rename(&path, &away).unwrap();
    assert!(matches!(store.take_back(), Err(StoreError::Replaced { .. })) && !path.exists());
    drop(recorded(&path));
    assert!(matches!(store.load(), Err(StoreError::Replaced { .. })));
    fs::rename(&away, &path).unwrap();
    assert_eq!(store.load().unwrap(), states());
}

#[test]
fn nothing_is_acknowledged_into_a_file_that_the_path_has_left() {
    let folder = Folder::new();
    let (path, away) = (folder.file("state.db"), folder.file("away.db"));
    let store = recorded(&path);
    let batch = Batch {
        states: BTreeMap::from([(
            "shop".to_owned(),
            Recorded { split: split(99.0), revision: 8, ..Recorded::default() },
        )]),
        ..Batch::default()
    };
    let refused = |store: &Sqlite| {
        let error = store.record(&batch).unwrap_err();
        assert!(matches!(error, StoreError::Replaced { .. }), "{error}");
        assert!(error.to_string().contains("moved, replaced or deleted; move it back, or"), "{error}");
    };
    fs::rename(&path, &away).unwrap();
    refused(&store);
    write(&path, &fs::read(&away).unwrap());
    refused(&store);
    fs::rename(&away, &path).unwrap();
    store.record(&batch).unwrap();
    assert_eq!(store.load().unwrap()["shop"].revision, 8);
    fs::remove_file(&path).unwrap();
    refused(&store);
}

#[test]
fn refused_attempts_never_push_out_changes() {
    let folder = Folder::new();
    let store = recorded(&folder.file("state.db"));
    let row = |outcome: &str, number: usize| AuditRow {
        outcome: outcome.to_owned(),
        reason: number.to_string(),
        ..AuditRow::default()
    };
    let batch = |audit| Batch { audit, ..Batch::default() };
    store.record(&batch((0..50).map(|n| row("done", n)).collect())).unwrap();
    store.record(&batch((0..15_000).map(|n| row("refused", n)).collect())).unwrap();
    let kept = store.audit(None, usize::MAX >> 1).unwrap();
    assert_eq!(kept.iter().filter(|row| row.outcome == "done").count(), 50);
    assert_eq!(kept.iter().filter(|row| row.outcome == "refused").count(), admin_api::AUDIT_REFUSALS_KEPT);
    assert_eq!(kept[0].reason, "14999");
}

#[test]
fn files_that_are_not_ours_are_refused_and_left_alone() {
    let folder = Folder::new();
    let path = folder.file("state.db");
    let sql = |statement: &str| Connection::open(&path).unwrap().execute_batch(statement).unwrap();

    let refused = |expected: &str| {
        let before = fs::read(&path).unwrap();
        let text = message(&path);
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("state.db") && text.contains("move it away to start from"), "{text}");
        assert_eq!(fs::read(&path).unwrap(), before);
        fs::remove_file(&path).unwrap();
    };
    write(&path, b"");
    refused("is empty");
    write(&path, b"[admin]\nlisten = \"127.0.0.1:9900\"\n");
    refused("is too short to be a SQLite database");
    write(&path, &b"[admin]\nlisten = \"127.0.0.1:9900\"\n".repeat(100));
    refused("is not a SQLite database");
    write(&path, &[0; 8192]);
    refused("is");
    sql("CREATE TABLE theirs (x)");
    refused("not one of crossfade");
    drop(recorded(&path));
    sql("PRAGMA user_version = 99");
    refused("was written by a newer crossfade (format 99, this one knows 2)");
    drop(recorded(&path));
    sql("PRAGMA user_version = 0");
    refused("unknown format 0");
    drop(recorded(&path));
    sql("CREATE TABLE theirs (x)");
    refused("its tables are not those of its format");
    drop(recorded(&path));
    sql("UPDATE state SET split = 5000 WHERE route = 'shop'");
    refused("the row of route \"shop\" does not match its digest");
    drop(recorded(&path));
    sql("UPDATE state SET plan = NULL WHERE route = 'shop'");
    refused("the row of route \"shop\" does not match its digest");
    drop(recorded(&path));
    sql("DELETE FROM state WHERE route = 'broker'");
    refused("its state rows do not match their seal");
    drop(recorded(&path));
    sql("DELETE FROM seal");
    refused("its state rows do not match their seal");
    fs::create_dir(&path).unwrap();
    assert!(message(&path).contains("is not a file"));
}

#[test]
fn a_missing_file_with_a_journal_is_damage() {
    let folder = Folder::new();
    let path = folder.file("state.db");
    write(&folder.file("state.db-journal"), b"what a killed process had begun");
    assert!(message(&path).contains("state.db-journal is there, which belongs to it"), "{}", message(&path));
    assert!(!path.exists());
}

#[test]
fn a_folder_that_is_missing_is_named() {
    let folder = Folder::new();
    let text = message(&folder.file("no/state.db"));
    assert!(text.contains("could not be created; make its folder exist and writable"), "{text}");
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let folder = Folder::new();
    let path = folder.file("state.db");
    drop(recorded(&path));
    let whole = fs::read(&path).unwrap();
    let cut = folder.file("cut.db");
    for length in (0..whole.len()).step_by(512).chain([1, 99, 100, 101, whole.len() - 1]) {
        write(&cut, &whole[..length]);
        let error = load(&cut).expect_err(&format!("{length} of {} bytes", whole.len()));
        assert!(matches!(error, StoreError::Damaged { .. }), "{length}: {error}");
    }
}

/// Most bytes of a page are free space or bookkeeping without consequence: then the answer must be the right one.
#[test]
fn a_flipped_byte_never_makes_a_wrong_split() {
    let folder = Folder::new();
    let path = folder.file("state.db");
    drop(recorded(&path));
    let whole = fs::read(&path).unwrap();
    let page_of = |table: &str| -> usize {
        let connection = Connection::open(&path).unwrap();
        let query = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
        connection.query_row(query, [table], |row| row.get::<_, u32>(0)).unwrap() as usize
    };
    let page = 4096;
    let (state, seal) = (page_of("state"), page_of("seal"));
    let in_row_pages = [state, seal].into_iter().flat_map(|number| (number - 1) * page..number * page);
    // Elsewhere a prime stride, which visits every part of the header, the schema and the other tables.
    let elsewhere = (0..200).chain((200..whole.len()).step_by(13));
    let flipped = folder.file("flipped.db");
    let (mut refused, mut right) = (0, 0);
    for at in in_row_pages.chain(elsewhere) {
        for mask in [0x01, 0x80, 0xff] {
            // Free space takes as many visits as it deserves.
            if mask != 0xff && whole[at] == 0 && at % 7 != 0 {
                continue;
            }
            let mut bytes = whole.clone();
            bytes[at] ^= mask;
            write(&flipped, &bytes);
            match load(&flipped) {
                Ok(loaded) => {
                    assert_eq!(loaded, states(), "byte {at}, mask {mask:#x}");
                    right += 1;
                }
                Err(StoreError::Damaged { .. } | StoreError::Newer { .. } | StoreError::Open { .. }) => refused += 1,
                Err(error) => panic!("byte {at}, mask {mask:#x}: {error}"),
            }
            let _ = fs::remove_file(folder.file("flipped.db-journal"));
            let _ = fs::remove_file(folder.file("flipped.db-wal"));
        }
    }
    println!("{refused} refused, {right} without consequence");
    assert!(refused > 500 && right > 500);
}

/// What `kill -9` in the middle of a commit leaves behind: pages of the new state, and a journal with the old ones.
#[test]
fn a_hot_journal_is_rolled_back() {
    let folder = Folder::new();
    let path = folder.file("state.db");
    drop(recorded(&path));

    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("PRAGMA cache_size = 1; PRAGMA journal_mode = DELETE; BEGIN IMMEDIATE").unwrap();
    connection.execute("UPDATE state SET split = 10000", []).unwrap();
    // More pages than the cache holds push the changed ones out to the file.
    connection
        .execute_batch(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
             INSERT INTO incident SELECT NULL, i, 'shop', hex(zeroblob(500)) FROM n",
        )
        .unwrap();
    let (torn, journal) = (folder.file("torn.db"), folder.file("torn.db-journal"));
    fs::copy(&path, &torn).unwrap();
    fs::copy(folder.file("state.db-journal"), &journal).unwrap();
    drop(connection);

    fs::copy(&torn, folder.file("bare.db")).unwrap();
    assert!(load(&folder.file("bare.db")).is_err(), "without its journal the copy is torn, or this test shows nothing");
    assert_eq!(load(&torn).unwrap(), states());
}

#[test]
fn rows_are_bounded_and_newest_first() {
    let folder = Folder::new();
    let store = recorded(&folder.file("state.db"));
    let audit = |number: usize| AuditRow {
        action: number.to_string(),
        route: Some(if number.is_multiple_of(2) { "even" } else { "odd" }.to_owned()),
        before: Some(split(1.0)),
        after: None,
        revision: Some(u64::MAX),
        ..AuditRow::default()
    };
    let incident = |number: usize| IncidentRow {
        id: format!("i-{number}"),
        route: "shop".to_owned(),
        json: format!("{{\"number\":{number}}}"),
    };
    let batch = Batch {
        states: BTreeMap::new(),
        audit: (0..admin_api::AUDIT_ROWS_KEPT + 5).map(audit).collect(),
        incidents: (0..admin_api::INCIDENTS_KEPT + 5).map(incident).collect(),
        signals: Vec::new(),
    };
    store.record(&batch).unwrap();
    assert_eq!(store.audit(None, usize::MAX >> 1).unwrap().len(), admin_api::AUDIT_ROWS_KEPT);
    assert_eq!(store.audit(None, 1).unwrap(), [audit(admin_api::AUDIT_ROWS_KEPT + 4)]);
    assert_eq!(store.audit(Some("odd"), 1).unwrap(), [audit(admin_api::AUDIT_ROWS_KEPT + 3)]);
    assert_eq!(store.incidents(None, usize::MAX >> 1).unwrap().len(), admin_api::INCIDENTS_KEPT);
    assert_eq!(store.incidents(Some("shop"), 1).unwrap(), ["{\"number\":1004}"]);
    assert_eq!(store.incident("i-4").unwrap(), None);
    assert_eq!(store.incident("i-5").unwrap().unwrap(), "{\"number\":5}");
    assert_eq!(store.load().unwrap(), states());
}
