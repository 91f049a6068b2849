//! Until when a decision to loosen may be carried out.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use super::{Refusal, silent};

/// Whoever takes it first has it: who makes the decision live, or who answers that nothing has changed.
#[derive(Debug)]
pub(super) struct Chance {
    until: Instant,
    patience: Duration,
    taken: AtomicBool,
}

impl Chance {
    /// `since`: when what the decision rests on was known.
    pub(super) fn new(since: Instant, patience: Duration) -> Self {
        Self { until: since + patience, patience, taken: AtomicBool::new(false) }
    }

    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// To make it live. Errors: it is too late.
    pub(super) fn take(&self) -> Result<(), Refusal> {
        if Instant::now() < self.until && self.give_up() { Ok(()) } else { Err(self.missed()) }
    }

    /// Whether it never becomes live, because nobody has made it so.
    pub(super) fn give_up(&self) -> bool {
        !self.taken.swap(true, Ordering::AcqRel)
    }

    pub(super) fn missed(&self) -> Refusal {
        Refusal::NotRecorded(silent(self.patience))
    }
}
