//! The control plane: HTTP API, guard, state database, incidents.
//!
//! Read in this order: the data plane reports what it saw (`plane`), the guard judges it (`guard`, asked once a second by
//! `guardian`) with what is heard from outside (`signal`), a split changes in one place (`control`), is remembered
//! (`store`), announced (`event`), told to whoever asked to be (`alert`), a trip is explained (`incident`), minutes are kept
//! (`history`), and people see and steer all of it (`api`). What a guard can see is said beforehand (`forecast`), and tried
//! (`simulate`).

mod plane;

mod guard;
mod guardian;
mod signal;

mod forecast;
mod simulate;

mod alert;
mod control;
mod event;
mod history;
mod incident;
mod outbound;
mod percent;
pub mod plan;
mod store;

mod api;

pub use alert::{AlertView, Alerts, Delivery, WebhookView};
pub use api::{Access, AccessError, Api, serve};
pub use control::{Actor, Control, ControlError, PlanChange, Refusal, RouteView, Watched};
pub use event::{Event, Happened, PlanNews};
pub use forecast::{Forecast, StepForecast};
pub use guard::{
    ArmEvidence, BaselineReport, Engine, Evidence, Judgement, MirrorSecond, PlaceboReport, SignalReading, Surroundings,
    Verdict,
};
pub use guardian::Guardian;
pub use history::{History, HistoryError, Recorder, Row, Wanted};
pub use incident::{Counts, Incident};
pub use plane::*;
pub use signal::{Moment, Scraper, SignalRefusal, SignalView, Signals};
pub use simulate::{
    Burst, Onset, Outage, SECONDS_A_DAY, Scenario, Sickness, Slowdown, Spell, Stall, Trip, Watch, time_to_trip, watch,
};
pub use store::{
    AUDIT_REFUSALS_KEPT, AUDIT_ROWS_KEPT, AuditRow, Batch, INCIDENTS_KEPT, IncidentRow, Latch, Recorded, SignalRow,
    Sqlite, StateStore, StoreError,
};
