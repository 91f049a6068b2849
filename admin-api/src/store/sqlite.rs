//! The store on one machine: a SQLite file that one process holds.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io, mem,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use config::Split;
use parking_lot::Mutex;
use ring::digest;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};

use super::{
    AUDIT_REFUSALS_KEPT, AUDIT_ROWS_KEPT, AuditRow, Batch, INCIDENTS_KEPT, IncidentRow, Latch, REFUSED, Recorded,
    SignalRow, StateStore, StoreError,
};

/// See the module `store`.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    /// Of the file that was opened.
    identity: Identity,
    held: Mutex<Held>,
}

#[derive(Debug)]
enum Held {
    Open(Connection),
    LetGo,
    /// Asked back, and not had yet.
    Wanted,
}

/// Device and inode: the path may lead to another file one day.
type Identity = (u64, u64);

impl Sqlite {
    /// Opens a state file, or makes a new one where there is none, and keeps it locked until dropped. Blocks.
    ///
    /// Errors: the file is in use, damaged in any way, or cannot be created. A damaged file is left as it is.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        match fs::metadata(path) {
            Ok(file) if !file.is_file() => return Err(damaged(path, "is not a file")),
            Ok(file) if file.len() == 0 => return Err(damaged(path, "is empty")),
            // SQLite takes some of these for empty databases and fills them in.
            Ok(file) if file.len() < SMALLEST => return Err(damaged(path, "is too short to be a SQLite database")),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(path)?,
            Err(source) => return Err(StoreError::Open { path: path.to_owned(), source: source.into() }),
        }
        let (identity, connection) = acquire(path)?;
        Ok(Self { path: path.to_owned(), identity, held: Mutex::new(Held::Open(connection)) })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let held = &mut *self.held.lock();
        if matches!(held, Held::Wanted) {
            *held = Held::Open(self.acquire_again()?);
        }
        match held {
            Held::Open(connection) => work(connection),
            Held::LetGo | Held::Wanted => Err(StoreError::LetGo { path: self.path.clone() }),
        }
    }

    /// The file that was opened first, and no other.
    fn acquire_again(&self) -> Result<Connection, StoreError> {
        self.check_in_place()?;
        let (identity, connection) = acquire(&self.path)?;
        if identity != self.identity {
            return Err(StoreError::Replaced { path: self.path.clone() });
        }
        Ok(connection)
    }

    /// Nobody would find what is written to a file that the path does not lead to.
    fn check_in_place(&self) -> Result<(), StoreError> {
        if identity(&self.path) == Some(self.identity) {
            return Ok(());
        }
        Err(StoreError::Replaced { path: self.path.clone() })
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError {
        let path = self.path.clone();
        move |source| StoreError::Io { path, operation, source }
    }
}

impl StateStore for Sqlite {
    fn load(&self) -> Result<BTreeMap<String, Recorded>, StoreError> {
        self.with(|connection| sealed_states(&self.path, connection))
    }

    fn record(&self, batch: &Batch) -> Result<(), StoreError> {
        self.with(|connection| {
            self.check_in_place()?;
            write(connection, batch).map_err(self.failed("writing"))?;
            self.check_in_place()
        })
    }

    fn incidents(&self, route: Option<&str>, limit: usize) -> Result<Vec<String>, StoreError> {
        let read = |connection: &Connection| {
            connection
                .prepare_cached(
                    "SELECT json FROM incident WHERE ?1 IS NULL OR route = ?1 ORDER BY number DESC LIMIT ?2",
                )?
                .query_map(params![route, limit as i64], |row| row.get(0))?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        self.with(|connection| read(connection).map_err(self.failed("reading")))
    }

    fn incident(&self, id: &str) -> Result<Option<String>, StoreError> {
        let read = |connection: &Connection| {
            connection.query_row("SELECT json FROM incident WHERE id = ?1", [id], |row| row.get(0)).optional()
        };
        self.with(|connection| read(connection).map_err(self.failed("reading")))
    }

    fn audit(&self, route: Option<&str>, limit: usize) -> Result<Vec<AuditRow>, StoreError> {
        let read = |connection: &Connection| {
            connection
                .prepare_cached(
                    "SELECT at, actor, source, action, route, before, after, revision, outcome, reason
                     FROM audit WHERE ?1 IS NULL OR route = ?1 ORDER BY number DESC LIMIT ?2",
                )?
                .query_map(params![route, limit as i64], |row| {
                    Ok(AuditRow {
                        at: row.get(0)?,
                        actor: row.get(1)?,
                        from: row.get(2)?,
                        action: row.get(3)?,
                        route: row.get(4)?,
                        before: row.get::<_, Option<u16>>(5)?.and_then(Split::from_buckets),
                        after: row.get::<_, Option<u16>>(6)?.and_then(Split::from_buckets),
                        revision: row.get::<_, Option<i64>>(7)?.map(i64::cast_unsigned),
                        outcome: row.get(8)?,
                        reason: row.get(9)?,
                    })
                })?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        self.with(|connection| read(connection).map_err(self.failed("reading")))
    }

    fn signals(&self) -> Result<Vec<SignalRow>, StoreError> {
        let read = |connection: &Connection| {
            if format(connection)? < 2 {
                return Ok(Vec::new());
            }
            connection
                .prepare_cached("SELECT route, name, value, at FROM signal ORDER BY route, name")?
                .query_map([], |row| {
                    Ok(SignalRow { route: row.get(0)?, name: row.get(1)?, value: row.get(2)?, at: row.get(3)? })
                })?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        self.with(|connection| read(connection).map_err(self.failed("reading")))
    }

    fn let_go(&self) -> Result<(), StoreError> {
        let held = &mut *self.held.lock();
        if let Held::Open(connection) = mem::replace(held, Held::LetGo) {
            connection.close().map_err(|(connection, error)| {
                *held = Held::Open(connection);
                self.failed("closing")(error)
            })?;
        }
        Ok(())
    }

    fn take_back(&self) -> Result<(), StoreError> {
        let held = &mut *self.held.lock();
        if matches!(held, Held::LetGo) {
            *held = Held::Wanted;
            *held = Held::Open(self.acquire_again()?);
        }
        Ok(())
    }
}

/// Opens, locks and checks a file that is there. SQLite does not tell which one it has opened: the one that is there
/// before and after.
fn acquire(path: &Path) -> Result<(Identity, Connection), StoreError> {
    let before = identity(path);
    let connection = connect(path)?;
    let identity = before
        .filter(|before| identity(path) == Some(*before))
        .ok_or_else(|| StoreError::Replaced { path: path.to_owned() })?;
    verify(path, &connection)?;
    Ok((identity, connection))
}

/// The smallest page that SQLite has (file format, 1.3.2); a database is at least one page.
const SMALLEST: u64 = 512;

/// Marks the file as ours: "CFSD".
const APPLICATION_ID: i64 = 0x4346_5344;
/// 2 has plans and signals. A file of format 1 becomes one of 2 with the first change: until then the program that wrote
/// it can have it back, also when a takeover fails.
const FORMAT: i64 = 2;

/// Text of each table, exactly as SQLite keeps it, so that a flipped bit in the schema shows.
const AUDIT: &str = "CREATE TABLE audit (number INTEGER PRIMARY KEY, at TEXT NOT NULL, actor TEXT NOT NULL, \
     source TEXT NOT NULL, action TEXT NOT NULL, route TEXT, before INTEGER, after INTEGER, \
     revision INTEGER, outcome TEXT NOT NULL, reason TEXT NOT NULL) STRICT";
const INCIDENT: &str = "CREATE TABLE incident (number INTEGER PRIMARY KEY, id TEXT NOT NULL, route TEXT NOT NULL, \
     json TEXT NOT NULL) STRICT";
const SEAL: &str = "CREATE TABLE seal (states INTEGER NOT NULL, digest BLOB NOT NULL) STRICT";
const SIGNAL: &str = "CREATE TABLE signal (route TEXT NOT NULL, name TEXT NOT NULL, value REAL NOT NULL, \
     at TEXT NOT NULL, PRIMARY KEY (route, name)) STRICT, WITHOUT ROWID";
const STATE: &str = "CREATE TABLE state (route TEXT PRIMARY KEY NOT NULL, split INTEGER NOT NULL, \
     revision INTEGER NOT NULL, latch_reason TEXT, latch_at TEXT, latch_actor TEXT, plan TEXT, \
     digest BLOB NOT NULL) STRICT, WITHOUT ROWID";
const STATE_1: &str = "CREATE TABLE state (route TEXT PRIMARY KEY NOT NULL, split INTEGER NOT NULL, \
     revision INTEGER NOT NULL, latch_reason TEXT, latch_at TEXT, latch_actor TEXT, \
     digest BLOB NOT NULL) STRICT, WITHOUT ROWID";

/// By name.
const TABLES: [&str; 5] = [AUDIT, INCIDENT, SEAL, SIGNAL, STATE];
const TABLES_1: [&str; 4] = [AUDIT, INCIDENT, SEAL, STATE_1];

fn tables(format: i64) -> &'static [&'static str] {
    if format < 2 { &TABLES_1 } else { &TABLES }
}

/// Makes a new file whole: nobody ever sees one without its schema, whatever dies in between.
fn create(path: &Path) -> Result<(), StoreError> {
    let failed = |source: io::Error| StoreError::Create { path: path.to_owned(), source };
    for ending in ["-journal", "-wal"] {
        // SQLite would roll such a leftover back into the new file.
        if beside(path, ending).exists() {
            let leftover = beside(path, ending);
            let problem =
                format!("is missing, but {} is there, which belongs to it and has to go with it", leftover.display());
            return Err(damaged(path, problem));
        }
    }
    let aside = beside(path, &format!(".new-{}", std::process::id()));
    // A leftover of a process that died here and had our id.
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let written = write_new(&aside).map_err(failed).and_then(|()| {
        // Unlike a rename, a link does not replace a file that another process put there meanwhile; that one is ours
        // to open then.
        match fs::hard_link(&aside, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            // Some file systems have no links.
            Err(_) => fs::rename(&aside, path).map_err(failed),
            Ok(()) => Ok(()),
        }
    });
    let _ = fs::remove_file(&aside);
    written?;
    sync_folder(path).map_err(failed)
}

fn write_new(aside: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(aside)?;
    let schema = |connection: &mut Connection| -> rusqlite::Result<()> {
        connection.pragma_update(None, "journal_mode", "MEMORY")?;
        let transaction = connection.transaction()?;
        for sql in TABLES {
            transaction.execute_batch(sql)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", FORMAT)?;
        reseal(&transaction)?;
        transaction.commit()
    };
    let mut connection =
        Connection::open_with_flags(aside, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(io::Error::other)?;
    schema(&mut connection).map_err(io::Error::other)?;
    drop(connection);
    File::open(aside)?.sync_all()
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    File::open(folder)?.sync_all()
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

fn identity(path: &Path) -> Option<Identity> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Opens and locks, and lets SQLite roll back what a killed process had begun.
fn connect(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connect = || {
        let connection = Connection::open_with_flags(path, flags)?;
        // A backup tool holds the file for moments only.
        connection.busy_timeout(Duration::from_millis(500))?;
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.pragma_update(None, "cell_size_check", true)?;
        connection.pragma_update(None, "foreign_keys", false)?;
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update(None, "synchronous", "EXTRA")?;
        // Takes the lock at once and keeps it: locking_mode=EXCLUSIVE alone waits for the first write.
        connection.execute_batch("BEGIN EXCLUSIVE; COMMIT")?;
        connection.pragma_update(None, "journal_mode", "DELETE")?;
        Ok(connection)
    };
    connect().map_err(|error| refused(path, error))
}

/// What an error while opening says about the file.
fn refused(path: &Path, error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::InUse { path: path.to_owned() },
        Some(
            ErrorCode::CannotOpen
            | ErrorCode::PermissionDenied
            | ErrorCode::ReadOnly
            | ErrorCode::SystemIoFailure
            | ErrorCode::OutOfMemory
            | ErrorCode::DiskFull,
        ) => StoreError::Open { path: path.to_owned(), source: error.into() },
        Some(ErrorCode::NotADatabase) => damaged(path, "is not a SQLite database"),
        _ => damaged(path, format!("is damaged ({error})")),
    }
}

fn damaged(path: &Path, problem: impl Into<String>) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), problem: problem.into() }
}

fn verify(path: &Path, connection: &Connection) -> Result<(), StoreError> {
    let application = connection.pragma_query_value(None, "application_id", |row| row.get::<_, i64>(0));
    if application.map_err(|error| refused(path, error))? != APPLICATION_ID {
        return Err(damaged(path, "is a SQLite database, but not one of crossfade"));
    }
    let found = format(connection).map_err(|error| refused(path, error))?;
    if found > FORMAT {
        return Err(StoreError::Newer { path: path.to_owned(), found, known: FORMAT });
    }
    if found < 1 {
        return Err(damaged(path, format!("has the unknown format {found}")));
    }
    let check: String = connection
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(|error| refused(path, error))?;
    if check != "ok" {
        // The first line only names the database.
        let first = check.lines().filter(|line| !line.starts_with("***")).collect::<Vec<_>>().join(" ");
        return Err(damaged(path, format!("is damaged ({first})")));
    }
    let read_schema = || {
        connection
            .prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")?
            .query_map([], |row| row.get(0))?
            .collect::<rusqlite::Result<Vec<String>>>()
    };
    let schema = read_schema().map_err(|error| refused(path, error))?;
    if schema != tables(found) {
        return Err(damaged(path, "is damaged (its tables are not those of its format)"));
    }
    sealed_states(path, connection).map(drop)
}

/// Which format the file has.
fn format(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Reads the state rows and refuses them unless each one and their whole are as they were written.
fn sealed_states(path: &Path, connection: &Connection) -> Result<BTreeMap<String, Recorded>, StoreError> {
    let read = || {
        let rows = state_rows(connection)?;
        let seals = connection
            .prepare_cached("SELECT states, digest FROM seal")?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<Vec<(i64, Vec<u8>)>>>()?;
        Ok((rows, seals))
    };
    let (rows, seals) = read().map_err(|error| refused(path, error))?;

    let mut states = BTreeMap::new();
    for row in &rows {
        let recorded = row
            .parse()
            .map_err(|problem| damaged(path, format!("is damaged (the row of route {:?} {problem})", row.route)))?;
        states.insert(row.route.clone(), recorded);
    }
    let whole = seal(rows.iter().map(|row| row.digest.as_slice()));
    match seals.as_slice() {
        [(count, digest)] if *count == rows.len() as i64 && digest == whole.as_ref() => Ok(states),
        _ => Err(damaged(path, "is damaged (its state rows do not match their seal)")),
    }
}

fn state_rows(connection: &Connection) -> rusqlite::Result<Vec<StateRow>> {
    let format = format(connection)?;
    let plan = if format < 2 { "NULL" } else { "plan" };
    connection
        .prepare_cached(&format!(
            "SELECT route, split, revision, latch_reason, latch_at, latch_actor, {plan}, digest FROM state \
             ORDER BY route"
        ))?
        .query_map([], |row| {
            Ok(StateRow {
                format,
                route: row.get(0)?,
                split: row.get(1)?,
                revision: row.get(2)?,
                latch: [row.get(3)?, row.get(4)?, row.get(5)?],
                plan: row.get(6)?,
                digest: row.get(7)?,
            })
        })?
        .collect()
}

struct StateRow {
    /// Of the file it is in.
    format: i64,
    route: String,
    split: i64,
    revision: i64,
    latch: [Option<String>; 3],
    /// JSON.
    plan: Option<String>,
    digest: Vec<u8>,
}

impl StateRow {
    fn of(route: &str, recorded: &Recorded) -> rusqlite::Result<Self> {
        let latch = match recorded.latch.clone() {
            Some(Latch { reason, at, actor }) => [Some(reason), Some(at), Some(actor)],
            None => [None, None, None],
        };
        let plan = recorded.plan.as_ref().map(serde_json::to_string).transpose();
        let row = Self {
            format: FORMAT,
            route: route.to_owned(),
            split: recorded.split.buckets().into(),
            revision: recorded.revision.cast_signed(),
            latch,
            plan: plan.map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?,
            digest: Vec::new(),
        };
        Ok(row.sealed())
    }

    fn sealed(mut self) -> Self {
        self.digest = self.digest_of_fields().as_ref().to_vec();
        self
    }

    fn write(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        let Self { format: _, route, split, revision, latch: [reason, at, actor], plan, digest } = self;
        transaction
            .prepare_cached("REPLACE INTO state VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?
            .execute(params![route, split, revision, reason, at, actor, plan, digest])?;
        Ok(())
    }

    /// Errors: what is wrong with it.
    fn parse(&self) -> Result<Recorded, &'static str> {
        if self.digest != self.digest_of_fields().as_ref() {
            return Err("does not match its digest");
        }
        let latch = match self.latch.clone() {
            [Some(reason), Some(at), Some(actor)] => Some(Latch { reason, at, actor }),
            [None, None, None] => None,
            _ => return Err("has half a latch"),
        };
        let split = u16::try_from(self.split).ok().and_then(Split::from_buckets).ok_or("has a split that is none")?;
        let plan = self.plan.as_deref().map(serde_json::from_str).transpose().map_err(|_| "has a plan that is none")?;
        Ok(Recorded { split, revision: self.revision.cast_unsigned(), latch, plan })
    }

    fn digest_of_fields(&self) -> digest::Digest {
        let mut context = digest::Context::new(&digest::SHA256);
        let mut field = |bytes: Option<&[u8]>| {
            // Lengths keep two neighbouring fields apart; -1 is a field that is not there.
            let length = bytes.map_or(-1, |bytes| bytes.len() as i64);
            context.update(&length.to_le_bytes());
            context.update(bytes.unwrap_or_default());
        };
        field(Some(self.route.as_bytes()));
        field(Some(&self.split.to_le_bytes()));
        field(Some(&self.revision.to_le_bytes()));
        for part in &self.latch {
            field(part.as_deref().map(str::as_bytes));
        }
        if self.format >= 2 {
            field(self.plan.as_deref().map(str::as_bytes));
        }
        context.finish()
    }
}

fn seal<'a>(digests: impl Iterator<Item = &'a [u8]>) -> digest::Digest {
    let mut context = digest::Context::new(&digest::SHA256);
    for digest in digests {
        context.update(&(digest.len() as u64).to_le_bytes());
        context.update(digest);
    }
    context.finish()
}

fn reseal(connection: &Connection) -> rusqlite::Result<()> {
    let digests = connection
        .prepare_cached("SELECT digest FROM state ORDER BY route")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<Vec<u8>>>>()?;
    let whole = seal(digests.iter().map(Vec::as_slice));
    connection.execute("DELETE FROM seal", [])?;
    connection.execute("INSERT INTO seal VALUES (?1, ?2)", params![digests.len() as i64, whole.as_ref()])?;
    Ok(())
}

/// From format 1, whose rows have been found to be as they were written. All of it is in the transaction.
fn migrate(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    let rows = state_rows(transaction)?;
    transaction.execute_batch("DROP TABLE state")?;
    transaction.execute_batch(STATE)?;
    transaction.execute_batch(SIGNAL)?;
    for row in rows {
        StateRow { format: FORMAT, ..row }.sealed().write(transaction)?;
    }
    transaction.pragma_update(None, "user_version", FORMAT)
}

fn write(connection: &mut Connection, batch: &Batch) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let old = format(&transaction)? < FORMAT;
    if old {
        migrate(&transaction)?;
    }
    for (route, recorded) in &batch.states {
        StateRow::of(route, recorded)?.write(&transaction)?;
    }
    if old || !batch.states.is_empty() {
        reseal(&transaction)?;
    }
    for SignalRow { route, name, value, at } in &batch.signals {
        transaction
            .prepare_cached("REPLACE INTO signal VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![route, name, value, at])?;
    }
    for row in &batch.audit {
        transaction
            .prepare_cached("INSERT INTO audit VALUES (NULL, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?
            .execute(params![
                row.at,
                row.actor,
                row.from,
                row.action,
                row.route,
                row.before.map(Split::buckets),
                row.after.map(Split::buckets),
                row.revision.map(u64::cast_signed),
                row.outcome,
                row.reason,
            ])?;
    }
    for IncidentRow { id, route, json } in &batch.incidents {
        transaction
            .prepare_cached("INSERT INTO incident VALUES (NULL, ?1, ?2, ?3)")?
            .execute(params![id, route, json])?;
    }
    if !batch.audit.is_empty() {
        for (refused, kept) in [(false, AUDIT_ROWS_KEPT), (true, AUDIT_REFUSALS_KEPT)] {
            transaction
                .prepare_cached(
                    "DELETE FROM audit WHERE (outcome = ?1) = ?2 AND number <=
                     (SELECT number FROM audit WHERE (outcome = ?1) = ?2 ORDER BY number DESC LIMIT 1 OFFSET ?3)",
                )?
                .execute(params![REFUSED, refused, kept as i64])?;
        }
    }
    transaction.execute(
        "DELETE FROM incident WHERE number <= (SELECT max(number) FROM incident) - ?1",
        [INCIDENTS_KEPT as i64],
    )?;
    transaction.commit()
}
