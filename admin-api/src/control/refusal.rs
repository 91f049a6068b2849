//! Why a change was refused, in words.

use crate::StoreError;

/// Why a change was refused.
#[derive(Debug, thiserror::Error)]
#[error("{}; {}", self.problem(), self.cure())]
pub enum Refusal {
    /// See [`Control::freeze`].
    Frozen,
    UnknownRoute {
        route: String,
        known: Vec<String>,
    },
    Stale {
        route: String,
        current: u64,
        given: u64,
    },
    Latched {
        route: String,
        reason: String,
    },
    /// The route changed between the decision and the moment it was to go live.
    Overtaken {
        route: String,
    },
    /// The route's plan is not in a state for this.
    Plan {
        route: String,
        problem: String,
        cure: String,
    },
    NotRecorded(#[source] StoreError),
    LiveNotRecorded(#[source] StoreError),
    Abandoned,
}

impl Refusal {
    /// Of a change that asks again for the revision that it met when it arrived, and not for one that its caller named.
    pub(super) fn since_arrival(self) -> Self {
        match self {
            Self::Stale { route, .. } => Self::Overtaken { route },
            refusal => refusal,
        }
    }

    /// The place and what is wrong there. What the store says of its file is for the logs.
    pub fn problem(&self) -> String {
        match self {
            Self::Frozen => "nothing can be changed while another instance takes over".to_owned(),
            Self::UnknownRoute { route, .. } => format!("route: there is no {route:?}"),
            Self::Stale { route, current, given } => format!("route {route}: its revision is {current}, not {given}"),
            Self::Latched { route, reason } => format!("route {route}: is latched ({reason})"),
            Self::Overtaken { route } => format!("route {route}: it was changed while this change was being recorded"),
            Self::Plan { route, problem, .. } => format!("route {route}: {problem}"),
            Self::NotRecorded(_) => "nothing has changed, because it could not be recorded".to_owned(),
            Self::LiveNotRecorded(_) => {
                "the change is live but not recorded, and would be lost by a restart".to_owned()
            }
            Self::Abandoned => "the change was abandoned".to_owned(),
        }
    }

    /// What to do about it.
    pub fn cure(&self) -> String {
        match self {
            Self::Frozen => "try again in a second".to_owned(),
            Self::UnknownRoute { known, .. } => format!("choose one of {}", known.join(", ")),
            Self::Stale { .. } => "read its state again before changing it".to_owned(),
            Self::Latched { .. } => "reset it before raising green".to_owned(),
            Self::Overtaken { .. } => "read its state again".to_owned(),
            Self::Plan { cure, .. } => cure.clone(),
            Self::NotRecorded(_) => "see the log and the state file's disk, and try again".to_owned(),
            Self::LiveNotRecorded(_) => {
                "see the log and the state file's disk; it is tried again every second".to_owned()
            }
            Self::Abandoned => "read the route's state before trying again".to_owned(),
        }
    }
}
