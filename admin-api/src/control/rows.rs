//! What waits for the disk, within bounds: rows of the audit trail, and incidents.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::{AuditRow, IncidentRow, store::REFUSED};

/// Audit rows and incidents the disk does not have, numbered. When either is full, one of its own is dropped and
/// counted: the oldest refused attempt before any change, and else the oldest.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) audit: VecDeque<(u64, AuditRow)>,
    pub(super) incidents: VecDeque<(u64, IncidentRow)>,
    pub(super) seen: u64,
    pub(super) dropped: u64,
}

pub(super) const ROWS_WAITING: usize = 1_000;

impl Rows {
    pub(super) fn audit(&mut self, row: AuditRow) {
        if self.audit.len() >= ROWS_WAITING {
            self.dropped += 1;
            match self.audit.iter().position(|(_, row)| row.outcome == REFUSED) {
                Some(refused) => drop(self.audit.remove(refused)),
                None if row.outcome == REFUSED => return,
                None => drop(self.audit.pop_front()),
            }
        }
        self.seen += 1;
        self.audit.push_back((self.seen, row));
    }

    pub(super) fn incident(&mut self, row: IncidentRow) {
        if self.incidents.len() >= ROWS_WAITING {
            self.incidents.pop_front();
            self.dropped += 1;
        }
        self.seen += 1;
        self.incidents.push_back((self.seen, row));
    }

    /// The disk has all rows up to this number.
    pub(super) fn written(&mut self, last: u64) {
        self.audit.retain(|(number, _)| *number > last);
        self.incidents.retain(|(number, _)| *number > last);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.audit.is_empty() && self.incidents.is_empty()
    }
}

/// How many refused attempts get a row of the audit trail in a minute.
const REFUSALS_A_MINUTE: u32 = 60;

/// Counts refused attempts, minute by minute.
#[derive(Default)]
pub(super) struct Refusals {
    minute: Option<Instant>,
    admitted: u32,
    pub(super) skipped: u64,
}

impl Refusals {
    pub(super) fn admit(&mut self, now: Instant) -> bool {
        if self.minute.is_none_or(|minute| now >= minute + Duration::from_secs(60)) {
            self.minute = Some(now);
            self.admitted = 0;
        }
        if self.admitted == REFUSALS_A_MINUTE {
            self.skipped += 1;
            return false;
        }
        self.admitted += 1;
        true
    }
}
