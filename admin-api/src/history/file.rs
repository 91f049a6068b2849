//! The SQLite file, bounded by age and size. Blocking.

use std::{
    ffi::OsString,
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use config::{Arm, Split};
use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior, params};
use tokio::time::Instant;
use tracing::warn;

use super::{HistoryError, Row, Wanted};
use crate::{Outcome, Verdict};

/// See the module `history`. Opened when it is first used, so that it can hold up no start.
#[derive(Debug)]
pub struct History {
    settings: config::History,
    held: Mutex<Option<Held>>,
    /// One reads at a time, on a connection of its own: whoever records never waits for this lock.
    reading: Mutex<()>,
    /// Somebody has read something that cannot be right.
    suspect: AtomicBool,
}

#[derive(Debug)]
struct Held {
    connection: Connection,
    identity: Identity,
}

/// Device and inode: a file that somebody has removed is not written to any more.
type Identity = (u64, u64);

/// For one who reads. Meanwhile SQLite lets nobody finish writing.
const READING: Duration = Duration::from_secs(2);
/// Longer than somebody reads; whoever takes over writes there, too, for moments.
const WRITING: Duration = Duration::from_secs(4);
/// Steps of SQLite's between two looks at the clock: a few rows.
const STEPS: i32 = 100;

impl History {
    pub fn new(settings: config::History) -> Self {
        Self { settings, held: Mutex::default(), reading: Mutex::default(), suspect: AtomicBool::default() }
    }

    /// Writes minutes, and forgets what is too old or too much. Counts are added to those that are there already: of a
    /// process before, or of one that serves at the same time.
    ///
    /// `now`: seconds since 1970. Errors: nothing is written.
    pub fn record(&self, rows: &[Row], now: i64) -> Result<(), HistoryError> {
        let oldest = now.saturating_sub_unsigned(self.settings.keep.as_secs());
        self.write(|connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            prune(&transaction, oldest, self.most_pages() * 3 / 4)?;
            for row in rows {
                write(&transaction, row)?;
            }
            transaction.commit()?;
            // Only where the bound was larger before: otherwise freed pages are used again.
            if pages(connection, "page_count")? > self.most_pages() {
                // It frees one page a step.
                let mut statement = connection.prepare("PRAGMA incremental_vacuum")?;
                let mut steps = statement.query([])?;
                while steps.next()?.is_some() {}
            }
            Ok(())
        })
    }

    /// Minutes, oldest first, and whether older ones were left out for the limit. Errors: also, it took longer than 2 s.
    pub fn read(&self, wanted: &Wanted) -> Result<(Vec<Row>, bool), HistoryError> {
        self.read_until(wanted, Instant::now() + READING)
    }

    fn read_until(&self, wanted: &Wanted, until: Instant) -> Result<(Vec<Row>, bool), HistoryError> {
        let path = || self.path().to_owned();
        let _turn =
            self.reading.try_lock_until(until.into_std()).ok_or_else(|| HistoryError::TooMuch { path: path() })?;
        // Nothing was recorded yet, or somebody has removed it.
        if identity(self.path()).is_none() && self.path().parent().is_some_and(Path::is_dir) {
            return Ok((Vec::new(), false));
        }
        let read = || -> Result<_, Unfit> {
            let mut connection = connect(self.path(), until.saturating_duration_since(Instant::now()))?;
            connection.pragma_update(None, "query_only", true)?;
            connection.progress_handler(STEPS, Some(move || Instant::now() >= until))?;
            let transaction = connection.transaction()?;
            if !is_begun(&transaction)? {
                return Ok((Vec::new(), false));
            }
            let mut statement = transaction.prepare(&format!(
                "SELECT {COLUMNS} FROM minute WHERE at >= ?1 AND at < ?2 AND (?3 IS NULL OR route = ?3)
                 ORDER BY at DESC, route DESC, arm DESC"
            ))?;
            let mut found = statement.query(params![wanted.since, wanted.until, wanted.route])?;
            let (mut rows, mut more) = (Vec::<Row>::new(), false);
            while let Some(row) = found.next()? {
                // What a flipped bit has left unreadable is not worth the rest of the history.
                let Ok(row) = parse(row) else { continue };
                if rows.len() >= wanted.limit && rows.last().is_some_and(|newer| newer.at != row.at) {
                    more = true;
                    break;
                }
                rows.push(row);
            }
            rows.reverse();
            Ok((rows, more))
        };
        read().map_err(|unfit| match unfit {
            Unfit::Damaged(problem) => {
                // Whoever records looks at all of it, and moves it aside.
                self.suspect.store(true, Ordering::Relaxed);
                HistoryError::Damaged { path: path(), problem }
            }
            Unfit::NotOurs(problem) => HistoryError::NotOurs { path: path(), problem },
            Unfit::Unusable(_) if Instant::now() >= until => HistoryError::TooMuch { path: path() },
            Unfit::Unusable(source) => HistoryError::Io { path: path(), operation: "reading", source },
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.settings.path
    }

    fn most_pages(&self) -> u64 {
        self.settings.max / PAGE
    }

    fn write(&self, work: impl FnOnce(&mut Connection) -> rusqlite::Result<()>) -> Result<(), HistoryError> {
        let path = self.path();
        let mut guard = self.held.lock();
        let sound = !self.suspect.swap(false, Ordering::Relaxed);
        let held = match guard.take().filter(|held| sound && identity(path) == Some(held.identity)) {
            Some(held) => held,
            None => open(path, self.most_pages())?,
        };
        let held = guard.insert(held);
        work(&mut held.connection).map_err(|source| {
            // Opening it anew looks at all of it.
            if is_damage(&source) {
                *guard = None;
            }
            HistoryError::Io { path: path.to_owned(), operation: "writing", source: source.into() }
        })
    }
}

/// Marks the file as ours: "CFSH".
const APPLICATION_ID: i64 = 0x4346_5348;
const FORMAT: i64 = 1;

/// Bytes, SQLite's own default.
const PAGE: u64 = 4096;

/// Exactly as SQLite keeps it. Ordered by time, so that what is oldest is whole pages.
const TABLE: &str = "CREATE TABLE minute (at INTEGER NOT NULL, route TEXT NOT NULL, arm TEXT NOT NULL, \
    seconds INTEGER NOT NULL, split INTEGER, dispatched INTEGER NOT NULL, ok INTEGER NOT NULL, \
    declined INTEGER NOT NULL, unreachable INTEGER NOT NULL, refused INTEGER NOT NULL, broken INTEGER NOT NULL, \
    timeout INTEGER NOT NULL, client_gone INTEGER NOT NULL, fallbacks INTEGER NOT NULL, due INTEGER NOT NULL, \
    overdue INTEGER NOT NULL, p50_us INTEGER, p95_us INTEGER, p99_us INTEGER, verdict TEXT, evidence REAL, \
    PRIMARY KEY (at, route, arm)) STRICT, WITHOUT ROWID";

const COLUMNS: &str = "at, route, arm, seconds, split, dispatched, ok, declined, unreachable, refused, broken, \
    timeout, client_gone, fallbacks, due, overdue, p50_us, p95_us, p99_us, verdict, evidence";

/// Of two processes in the same minute the one that judges has the say about split and verdict, and the one with more
/// answers about latencies: quantiles cannot be added.
const WRITE: &str = "INSERT INTO minute VALUES
    (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)
    ON CONFLICT (at, route, arm) DO UPDATE SET
    seconds = min(60, seconds + excluded.seconds),
    split = coalesce(excluded.split, split),
    dispatched = dispatched + excluded.dispatched,
    ok = ok + excluded.ok,
    declined = declined + excluded.declined,
    unreachable = unreachable + excluded.unreachable,
    refused = refused + excluded.refused,
    broken = broken + excluded.broken,
    timeout = timeout + excluded.timeout,
    client_gone = client_gone + excluded.client_gone,
    fallbacks = fallbacks + excluded.fallbacks,
    due = due + excluded.due,
    overdue = overdue + excluded.overdue,
    p50_us = iif(excluded.ok + excluded.declined + excluded.refused > ok + declined + refused, excluded.p50_us, p50_us),
    p95_us = iif(excluded.ok + excluded.declined + excluded.refused > ok + declined + refused, excluded.p95_us, p95_us),
    p99_us = iif(excluded.ok + excluded.declined + excluded.refused > ok + declined + refused, excluded.p99_us, p99_us),
    verdict = coalesce(excluded.verdict, verdict),
    evidence = coalesce(excluded.evidence, evidence)";

fn write(transaction: &Transaction<'_>, row: &Row) -> rusqlite::Result<()> {
    let [ok, declined, unreachable, refused, broken, timeout, client_gone] = row.outcomes.map(u64::cast_signed);
    transaction.prepare_cached(WRITE)?.execute(params![
        row.at,
        row.route,
        row.arm.as_str(),
        row.seconds.cast_signed(),
        row.split.map(Split::buckets),
        row.dispatched.cast_signed(),
        ok,
        declined,
        unreachable,
        refused,
        broken,
        timeout,
        client_gone,
        row.fallbacks.cast_signed(),
        row.due.cast_signed(),
        row.overdue.cast_signed(),
        row.p50_us.map(u64::cast_signed),
        row.p95_us.map(u64::cast_signed),
        row.p99_us.map(u64::cast_signed),
        row.verdict.map(Verdict::as_str),
        row.evidence,
    ])?;
    Ok(())
}

fn parse(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let count = |index: usize| row.get::<_, i64>(index).map(i64::cast_unsigned);
    let optional = |index: usize| row.get::<_, Option<i64>>(index).map(|value| value.map(i64::cast_unsigned));
    let mut outcomes = [0; Outcome::ALL.len()];
    for (outcome, index) in outcomes.iter_mut().zip(6..) {
        *outcome = count(index)?;
    }
    let verdict: Option<String> = row.get(19)?;
    Ok(Row {
        at: row.get(0)?,
        route: row.get(1)?,
        arm: if row.get::<_, String>(2)? == Arm::Blue.as_str() { Arm::Blue } else { Arm::Green },
        seconds: count(3)?,
        split: row.get::<_, Option<u16>>(4)?.and_then(Split::from_buckets),
        dispatched: count(5)?,
        outcomes,
        fallbacks: count(13)?,
        due: count(14)?,
        overdue: count(15)?,
        p50_us: optional(16)?,
        p95_us: optional(17)?,
        p99_us: optional(18)?,
        verdict: [Verdict::Pass, Verdict::Unknown, Verdict::Breach]
            .into_iter()
            .find(|known| verdict.as_deref() == Some(known.as_str())),
        evidence: row.get(20)?,
    })
}

/// What a step of time that was wrong for a moment may cost: an hour of the oldest minutes each time.
const FORGOTTEN_AT_ONCE: i64 = 3600;
/// Rows, some 500 kB.
const PRUNED_AT_ONCE: i64 = 4096;
/// Of those, so that nobody waits long for a file that is far too large.
const PRUNED_AT_MOST: usize = 64;

/// Forgets minutes before `oldest`, and the oldest as long as there is more than `most` pages.
fn prune(transaction: &Transaction<'_>, oldest: i64, most: u64) -> rusqlite::Result<()> {
    let first: Option<i64> = transaction.query_row("SELECT min(at) FROM minute", [], |row| row.get(0))?;
    let Some(first) = first else { return Ok(()) };
    transaction.execute("DELETE FROM minute WHERE at < ?1", [oldest.min(first.saturating_add(FORGOTTEN_AT_ONCE))])?;
    for _ in 0..PRUNED_AT_MOST {
        if pages(transaction, "page_count")?.saturating_sub(pages(transaction, "freelist_count")?) <= most {
            break;
        }
        transaction.execute(
            "DELETE FROM minute WHERE at <= coalesce(
             (SELECT at FROM minute ORDER BY at LIMIT 1 OFFSET ?1), (SELECT min(at) FROM minute))",
            [PRUNED_AT_ONCE],
        )?;
    }
    Ok(())
}

fn pages(connection: &Connection, pragma: &str) -> rusqlite::Result<u64> {
    connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0)).map(i64::cast_unsigned)
}

/// Opens the file, or a new one where there is none or only a damaged one, which is moved aside.
fn open(path: &Path, most_pages: u64) -> Result<Held, HistoryError> {
    let judged = identity(path);
    match prepare(path, most_pages) {
        Err(Unfit::Damaged(problem)) => {
            let aside = beside(path, ".damaged");
            let moved = move_aside(path, &aside, judged);
            if moved.map_err(|source| HistoryError::Open { path: path.to_owned(), source: source.into() })? {
                warn!(
                    file = %path.display(),
                    problem,
                    aside = %aside.display(),
                    "History is damaged; beginning a new one"
                );
            }
            prepare(path, most_pages)
        }
        connected => connected,
    }
    .map_err(|unfit| match unfit {
        Unfit::Damaged(problem) | Unfit::NotOurs(problem) => HistoryError::NotOurs { path: path.to_owned(), problem },
        Unfit::Unusable(source) => HistoryError::Open { path: path.to_owned(), source },
    })
}

/// Whether it was moved; not where the path leads to another file than the one that was `judged`: another process has found
/// the same damage, and this is its new one.
fn move_aside(path: &Path, aside: &Path, judged: Option<Identity>) -> io::Result<bool> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    // Of those that are here with the same file, one at a time.
    file.lock()?;
    if Some(identity_of(&file.metadata()?)) != judged || identity(path) != judged {
        return Ok(false);
    }
    // What SQLite would roll back belongs to the damaged one. Mostly there is none. Before the file, or it might be another
    // process's, that has begun a new one.
    let _ = fs::rename(beside(path, "-journal"), beside(aside, "-journal"));
    fs::rename(path, aside)?;
    Ok(true)
}

/// Why a file is not the history.
enum Unfit {
    Damaged(String),
    /// Nobody asked us to move it away.
    NotOurs(String),
    Unusable(Box<dyn std::error::Error + Send + Sync>),
}

impl From<rusqlite::Error> for Unfit {
    fn from(error: rusqlite::Error) -> Self {
        if is_damage(&error) { Self::Damaged(error.to_string()) } else { Self::Unusable(error.into()) }
    }
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Opens a file that there is. `patience`: with others that use it.
fn connect(path: &Path, patience: Duration) -> Result<Connection, Unfit> {
    if fs::metadata(path).is_ok_and(|file| !file.is_file()) {
        return Err(Unfit::NotOurs("is not a file".to_owned()));
    }
    // To read it as well: a journal that a crash has left is to be rolled back first.
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(patience)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    Ok(connection)
}

/// Makes the file where there is none, looks at all of it, and opens it to write.
fn prepare(path: &Path, most_pages: u64) -> Result<Held, Unfit> {
    // Only then: to close it ends every lock that this process has on it, of one who reads as well.
    if identity(path).is_none() {
        let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        made.map_err(|error| Unfit::Unusable(error.into()))?;
    }
    let before = identity(path);
    let mut connection = connect(path, WRITING)?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    if fs::metadata(path).is_ok_and(|file| file.len() == 0) {
        // Before the first table, or it is too late for it.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    verify(&mut connection)?;
    connection.pragma_update(None, "max_page_count", most_pages.cast_signed())?;
    let identity = before
        .filter(|before| identity(path) == Some(*before))
        .ok_or_else(|| Unfit::Unusable("it was replaced while it was being opened".into()))?;
    Ok(Held { connection, identity })
}

/// Makes the table in an empty file; looks at all of any other.
fn verify(connection: &mut Connection) -> Result<(), Unfit> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if !is_begun(&transaction)? {
        transaction.execute_batch(TABLE)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", FORMAT)?;
        transaction.commit()?;
        return Ok(());
    }
    let check: String = transaction.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if check != "ok" {
        // The first line only names the database.
        return Err(Unfit::Damaged(
            check.lines().filter(|line| !line.starts_with("***")).collect::<Vec<_>>().join(" "),
        ));
    }
    Ok(())
}

/// Whether the table is there; not in a file without anything. Errors: the file is not a history.
fn is_begun(transaction: &Transaction<'_>) -> Result<bool, Unfit> {
    let read = |pragma: &str| transaction.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let schema = transaction
        .prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<String>>>()?;
    match (read("application_id")?, read("user_version")?) {
        (0, 0) if schema.is_empty() => return Ok(false),
        (APPLICATION_ID, FORMAT) => {}
        (APPLICATION_ID, found) if found > FORMAT => {
            let problem = format!("was written by a newer crossfade (format {found}, this one knows {FORMAT})");
            return Err(Unfit::NotOurs(problem));
        }
        (APPLICATION_ID, found) => return Err(Unfit::Damaged(format!("it has the unknown format {found}"))),
        _ => return Err(Unfit::NotOurs("is a SQLite database, but no history of crossfade".to_owned())),
    }
    if schema != [TABLE] {
        return Err(Unfit::Damaged("its tables are not those of its format".to_owned()));
    }
    Ok(true)
}

fn identity(path: &Path) -> Option<Identity> {
    fs::metadata(path).ok().as_ref().map(identity_of)
}

fn identity_of(file: &Metadata) -> Identity {
    (file.dev(), file.ino())
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests {
    use std::{env, process};

    use super::*;
    use crate::Tally;

    const ALL: Wanted = Wanted { route: None, since: i64::MIN, until: i64::MAX, limit: 1_000_000 };

    /// A history in a folder of its own, which is removed by who is done with it.
    fn history(name: &str) -> (PathBuf, History) {
        let folder = env::temp_dir().join(format!("crossfade-{name}-{}", process::id()));
        fs::create_dir(&folder).unwrap();
        let path = folder.join("h.db");
        (folder, History::new(config::History { path, keep: Duration::from_secs(3600), max: 8 * 1024 * 1024 }))
    }

    fn rows(minutes: i64) -> Vec<Row> {
        let row = |minute| Row::of(minute * 60, "shop", Arm::Blue, 60, &Tally::default());
        (0..minutes).map(|minute| Row { dispatched: 1, ..row(minute) }).collect()
    }

    #[test]
    fn neither_waits_for_the_other_to_read_or_to_record() {
        let (folder, history) = history("apart");
        let reading = history.reading.lock();
        history.record(&rows(1), 0).unwrap();
        drop(reading);
        let recording = history.held.lock();
        assert_eq!(history.read(&ALL).unwrap(), (rows(1), false));
        drop(recording);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn whoever_reads_for_too_long_is_told_to_ask_for_less() {
        let (folder, history) = history("long");
        history.record(&rows(3_000), 0).unwrap();
        // No row of it is found, so that there is none to look at the clock with.
        let nothing = Wanted { route: Some("none".to_owned()), ..ALL };
        let error = history.read_until(&nothing, Instant::now()).unwrap_err();
        assert!(matches!(error, HistoryError::TooMuch { .. }), "{error}");
        assert_eq!(history.read(&nothing).unwrap(), (Vec::new(), false));
        history.record(&rows(1), 0).unwrap();
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_others_record_after_the_same_damage_is_not_moved_away() {
        let (folder, history) = history("damage");
        let (path, aside) = (history.path(), beside(history.path(), ".damaged"));
        fs::write(path, b"once upon a time there was a blue system").unwrap();
        let judged = identity(path);
        assert!(move_aside(path, &aside, judged).unwrap());
        assert!(!move_aside(path, &aside, judged).unwrap(), "nothing is there yet");
        history.record(&rows(1), 0).unwrap();
        assert!(!move_aside(path, &aside, judged).unwrap());
        assert_eq!(history.read(&ALL).unwrap().0, rows(1));
        fs::remove_dir_all(folder).unwrap();
    }
}
