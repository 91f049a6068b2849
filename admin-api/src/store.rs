//! What survives a crash: splits, latches, incidents and the audit trail, in one SQLite file. Blocking throughout.
//!
//! A file is either exactly what was last acknowledged or it is refused. SQLite has no page checksums, so every state
//! row carries a digest of its fields and one more row seals them all together: a flipped bit, or a row that has
//! disappeared, is damage. New files appear whole (written aside, synced, linked into place), so a file that is empty
//! or cut short is damage too and never mistaken for a fresh start.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use config::Split;
use parking_lot::Mutex;
use ring::digest;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};
use serde::Serialize;
use utoipa::ToSchema;

use crate::RouteState;

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
}

/// What is remembered of one route.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Recorded {
    pub split: Split,
    /// Grows with every change of split or latch, from 1.
    pub revision: u64,
    /// Green may not rise until a reset.
    pub latch: Option<Latch>,
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
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Batch {
    pub states: BTreeMap<String, Recorded>,
    pub audit: Vec<AuditRow>,
    pub incidents: Vec<IncidentRow>,
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
    /// `split`, `rollback`, `reset`, `trip`, `initial`, or the path of a call that got no further.
    pub action: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Green's share in per cent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<f64Percent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<f64Percent>,
    /// That of the state after a change; the current one of a refused attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// `done` or `refused`.
    pub outcome: String,
    pub reason: String,
}
