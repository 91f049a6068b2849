//! What survives a crash: splits, latches, plans, incidents, signals and the audit trail, in one SQLite file. Blocking throughout.
//!
//! A file is either exactly what was last acknowledged or it is refused. SQLite has no page checksums, so every state
//! row carries a digest of its fields and one more row seals them all together: a flipped bit, or a row that has
//! disappeared, is damage. New files appear whole (written aside, synced, linked into place), so a file that is empty
//! or cut short is damage too and never mistaken for a fresh start.

mod sqlite;

use std::{collections::BTreeMap, io, path::PathBuf};

use config::Split;
use serde::Serialize;
pub use sqlite::Sqlite;
use utoipa::ToSchema;

use crate::{RouteState, percent, plan::Run};

/// Remembers what was acknowledged. Every method blocks; async callers go through `spawn_blocking`.
pub trait StateStore: Send + Sync + 'static {
    /// The state of every route ever recorded, whether or not it is configured today.
    fn load(&self) -> Result<BTreeMap<String, Recorded>, StoreError>;

    /// Records all of a batch or nothing of it. When it returns `Ok`, the batch is on disk.
    fn record(&self, batch: &Batch) -> Result<(), StoreError>;

    /// Incidents as JSON objects, newest first; those of one route, if it is given.
    fn incidents(&self, route: Option<&str>, limit: usize) -> Result<Vec<String>, StoreError>;

    fn incident(&self, id: &str) -> Result<Option<String>, StoreError>;

    /// Audit rows, newest first; those of one route, if it is given.
    fn audit(&self, route: Option<&str>, limit: usize) -> Result<Vec<AuditRow>, StoreError>;

    /// The last value of every signal ever recorded, whether or not it is configured today.
    fn signals(&self) -> Result<Vec<SignalRow>, StoreError>;

    /// Lets another process have what is remembered. Until it is asked back everything else fails with
    /// [`StoreError::LetGo`]. Errors: it is still ours.
    fn let_go(&self) -> Result<(), StoreError>;

    /// Asks back what was let go. Errors: another process still has it, or it cannot be used any more; every method
    /// tries again from now on.
    fn take_back(&self) -> Result<(), StoreError>;
}

/// How many audit rows of changes are kept; the oldest go first.
pub const AUDIT_ROWS_KEPT: usize = 10_000;

/// How many audit rows of refused attempts are kept, besides: they never push out those of changes.
pub const AUDIT_REFUSALS_KEPT: usize = 1_000;

/// The outcomes of audit rows.
pub(crate) const DONE: &str = "done";
pub(crate) const REFUSED: &str = "refused";

/// How many incidents are kept; the oldest go first.
pub const INCIDENTS_KEPT: usize = 1_000;

/// What is remembered of one route.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recorded {
    pub split: Split,
    /// Grows with every change of split, latch or plan, from 1; not with the time that a plan has baked.
    pub revision: u64,
    /// Green may not rise until a reset.
    pub latch: Option<Latch>,
    /// The plan that was started last, however it ended.
    pub plan: Option<Run>,
}

impl Recorded {
    pub fn state(&self) -> RouteState {
        RouteState { split: self.split, revision: self.revision, latched: self.latch.is_some() }
    }
}

/// Who latched a route, when and why.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
pub struct Latch {
    pub reason: String,
    /// RFC 3339.
    pub at: String,
    pub actor: String,
}

/// What is recorded in one transaction.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    pub states: BTreeMap<String, Recorded>,
    pub audit: Vec<AuditRow>,
    pub incidents: Vec<IncidentRow>,
    /// Each takes the place of what was recorded of its signal.
    pub signals: Vec<SignalRow>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.states.is_empty() && self.audit.is_empty() && self.incidents.is_empty() && self.signals.is_empty()
    }
}

/// One change of a split or latch, or one attempt that was refused.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, ToSchema)]
pub struct AuditRow {
    /// RFC 3339.
    pub at: String,
    /// The name of the token, `local` without tokens, `guard`, `configuration`.
    pub actor: String,
    /// The peer's address, or `crossfade` for the process itself.
    pub from: String,
    /// `split`, `rollback`, `reset`, `trip`, `initial`, `plan-step` and the other `plan-…`; where an attempt was refused also
    /// `signal`, and `unknown` where it was for no such call.
    pub action: String,
    pub route: Option<String>,
    /// Green's share in per cent.
    #[serde(serialize_with = "percent::serialize_option")]
    #[schema(value_type = Option<f64>)]
    pub before: Option<Split>,
    #[serde(serialize_with = "percent::serialize_option")]
    #[schema(value_type = Option<f64>)]
    pub after: Option<Split>,
    /// The one a change made; the one in force when an attempt was refused.
    pub revision: Option<u64>,
    /// `done` or `refused`.
    pub outcome: String,
    pub reason: String,
}

/// An incident as it is stored.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IncidentRow {
    pub id: String,
    pub route: String,
    /// A JSON object.
    pub json: String,
}

/// The last value of a signal.
#[derive(Clone, Debug, PartialEq)]
pub struct SignalRow {
    pub route: String,
    pub name: String,
    /// Finite.
    pub value: f64,
    /// RFC 3339. Empty: a reset has come since, and it is no evidence any more.
    pub at: String,
}

/// Why the state file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("state file {}: could not be created; make its folder exist and writable", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("state file {}: could not be opened; make it and its folder readable and writable", path.display())]
    Open { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error(
        "state file {}: is in use by another crossfade; stop it or give this one another state file",
        path.display()
    )]
    InUse { path: PathBuf },
    #[error("state file {}: {problem}; {RESTORE}", path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error(
        "state file {}: was written by a newer crossfade (format {found}, this one knows {known}); \
         run that version, or {RESTORE}",
        path.display()
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error(
        "state file {}: is not the file that was opened any more, because it was moved, replaced or deleted; \
         move it back, or set green_percentage to what GET /traffic-split says and start crossfade again",
        path.display()
    )]
    Replaced { path: PathBuf },
    #[error("state file {}: is with another instance, which takes over", path.display())]
    LetGo { path: PathBuf },
    #[error("state file {}: {operation} failed; check the disk it is on", path.display())]
    Io { path: PathBuf, operation: &'static str, source: rusqlite::Error },
    #[error("state file: {0}")]
    Other(String),
}

const RESTORE: &str = "restore a copy of it, or move it away to start from the configuration's green_percentage";
