//! What the control plane tells whoever listens.

use std::sync::Arc;

use config::Split;
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::broadcast;
use utoipa::ToSchema;

use crate::{Incident, Verdict, percent, plan::State};

/// Something that happened, numbered from 1 in the order it did.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Event {
    pub number: u64,
    /// RFC 3339.
    pub at: String,
    #[serde(flatten)]
    pub what: Happened,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Happened {
    /// A route's split changed, by `action`: `split` or `rollback`. A trip has an event of its own.
    Split {
        route: String,
        action: String,
        revision: u64,
        #[serde(serialize_with = "percent::serialize")]
        #[schema(value_type = f64)]
        before: Split,
        #[serde(serialize_with = "percent::serialize")]
        #[schema(value_type = f64)]
        green_percentage: Split,
        latched: bool,
        actor: String,
        reason: String,
    },
    /// The guard changed its mind.
    Verdict {
        route: String,
        was: Option<Verdict>,
        verdict: Verdict,
        reason: String,
    },
    /// Green keeps its share, but somebody should look: both arms are bad at once (`shared_cause`), or green is beyond a
    /// limit of `[route.guard.pause]` (`pause`).
    Caution {
        route: String,
        cause: String,
        reason: String,
    },
    /// Green broke its promises and was taken off.
    Trip {
        incident: Box<Incident>,
    },
    Reset {
        route: String,
        revision: u64,
        actor: String,
        reason: String,
    },
    /// A plan went on, or waits for somebody.
    Plan {
        route: String,
        /// What has become of it.
        change: PlanNews,
        state: State,
        /// Counted from 1; one more than there are when all are done.
        step: usize,
        steps: usize,
        #[serde(serialize_with = "percent::serialize")]
        #[schema(value_type = f64)]
        green_percentage: Split,
        actor: String,
        /// A sentence.
        reason: String,
    },
    /// A changed configuration went live (`done`), or did not (`refused`).
    Reload {
        outcome: String,
        routes: Vec<String>,
        reason: String,
    },
    /// The state file can (not) be written.
    Recording {
        works: bool,
        reason: String,
    },
    /// Only to one who was too slow: this many events before this one are lost to it.
    Missed {
        missed: u64,
    },
}

impl Happened {
    /// The name of the server-sent event; the same as `type` in its data.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Split { .. } => "split",
            Self::Verdict { .. } => "verdict",
            Self::Caution { .. } => "caution",
            Self::Trip { .. } => "trip",
            Self::Reset { .. } => "reset",
            Self::Plan { .. } => "plan",
            Self::Reload { .. } => "reload",
            Self::Recording { .. } => "recording",
            Self::Missed { .. } => "missed",
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PlanNews {
    Started,
    /// A step's share is live.
    Entered,
    /// A step has all it takes.
    StepDone,
    /// Somebody has to approve of the next step.
    ApprovalWanted,
    Approved,
    /// Somebody has to look, and to resume it.
    Paused,
    Resumed,
    /// What it waited for does not matter any more.
    Skipped,
    Aborted,
    RolledBack,
    Done,
}

/// UTC to the millisecond.
pub(crate) fn rfc3339(at: OffsetDateTime) -> String {
    let milliseconds = u32::from(at.millisecond());
    let at = at.replace_nanosecond(milliseconds * 1_000_000).unwrap_or(at);
    at.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}

/// Sends events to all listeners. A listener that falls too far behind loses the oldest and is told how many.
#[derive(Debug)]
pub(crate) struct Announcer {
    sender: broadcast::Sender<Arc<Event>>,
    /// Has heard everything so far.
    early: Option<broadcast::Receiver<Arc<Event>>>,
    last: u64,
}

/// Events that a listener may be behind, at least.
const EVENTS_KEPT: usize = 256;
/// More for each route: when all trip in the same second, each has several at once.
const EVENTS_PER_ROUTE: usize = 8;

impl Announcer {
    pub(crate) fn new(routes: usize) -> Self {
        let (sender, early) = broadcast::channel(EVENTS_KEPT + EVENTS_PER_ROUTE * routes);
        Self { sender, early: Some(early), last: 0 }
    }

    pub(crate) fn announce(&mut self, at: OffsetDateTime, what: Happened) {
        self.last += 1;
        // Fails only where nobody listens.
        let _ = self.sender.send(Arc::new(Event { number: self.last, at: rfc3339(at), what }));
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.sender.subscribe()
    }

    /// The first one hears everything since the start.
    pub(crate) fn subscribe_early(&mut self) -> broadcast::Receiver<Arc<Event>> {
        self.early.take().unwrap_or_else(|| self.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_to_the_millisecond() {
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_769_854_502_123_456_789).unwrap();
        assert_eq!(rfc3339(at), "2026-01-31T10:15:02.123Z");
    }
}
