//! What a run came to, as one value: written as JSON, printed as tables, drawn as a page, compared with another run.
//!
//! The JSON is a contract, [`SCHEMA`]: fields are added under the same version, and change their meaning or go only with
//! the next. All times are in microseconds unless their name says otherwise.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

pub mod compare;
mod condensed;
pub mod html;
pub mod json;
#[cfg(test)]
pub(crate) mod sample;
mod slo;
pub(crate) mod table;
pub mod terminal;

pub use self::slo::{Slo, SloFault, SloResult};

/// The version of the schema, in the field `schema` of every report.
pub const SCHEMA: &str = "loadtest-report/1";

/// One run: what was asked, what became of each request, and how long it took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// What was run.
    pub run: Run,
    /// How the run ended.
    pub end: End,
    /// Every request or message by its fate.
    pub account: Account,
    /// Latencies by what was timed: `latency` for HTTP, WebSocket and TCP; `connect`, `ack` and `delivery` for MQTT.
    /// All count from the intended time, so a stall is seen in full.
    pub series: BTreeMap<String, Series>,
    /// What each arm answered, by its label; `-` where nobody said.
    pub arms: BTreeMap<String, Arm>,
    /// One row a second of the run, in order.
    pub seconds: Vec<Second>,
    /// How the load generator itself fared.
    pub generator: Generator,
    /// The objectives given, and whether they were met.
    pub slos: Vec<SloResult>,
}

/// What was asked.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Run {
    /// `http/1.1`, `http/2`, `grpc`, `websocket`, `tcp`, `mqtt/3.1.1` or `mqtt/5`.
    pub protocol: String,
    /// Where it went, as given.
    pub target: String,
    /// Hexadecimal, the first half of every id of the run.
    pub id: String,
    /// Unix time of the start, in milliseconds.
    pub started_ms: u64,
    /// The arrivals asked for; empty when the load was closed-loop (`--max`).
    pub stages: Vec<StageAsked>,
    /// Connections asked for.
    pub connections: usize,
    /// Threads the load came from.
    pub threads: usize,
    /// Keys the requests were spread over.
    pub keys: u64,
}

/// A part of the schedule: the rate goes from `from` to `to`, both per second, in a straight line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StageAsked {
    pub seconds: f64,
    pub from: f64,
    pub to: f64,
}

/// How a run ended.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct End {
    /// It ran to the end of its schedule.
    pub complete: bool,
    /// Why it did not, in one line.
    pub reason: Option<String>,
    /// Seconds from the first intended request to the last answer.
    pub seconds: f64,
    /// Requests a second asked for, over those seconds; none when closed-loop.
    pub rate_asked: Option<f64>,
    /// Answers a second.
    pub rate_achieved: f64,
}

/// Every request (HTTP, WebSocket, TCP) or message (MQTT) by its fate. `sent` is the sum of `answered`, `failed` and
/// `lost`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Requests whose first byte was handed to a connection, or whose connection could not be made.
    pub sent: u64,
    /// Requests answered, whatever the status; MQTT: messages acknowledged (QoS 1 and 2) and, where a subscriber should
    /// have it, delivered.
    pub answered: u64,
    /// Requests not answered, by kind: `refused`, `reset`, `closed`, `timeout`, `tls`, `malformed` and so on.
    pub failed: BTreeMap<String, u64>,
    /// Requests answered, but with a status that is a failure (5xx; gRPC status other than 0).
    pub error_status: u64,
    /// Answers that came for a request already answered, or for none of ours.
    pub answered_twice: u64,
    /// MQTT: messages acknowledged and never delivered to the subscriber that should have them.
    pub lost: u64,
    /// MQTT: messages delivered behind a later one of the same publisher and topic.
    pub out_of_order: u64,
    /// Answers from another arm than the one that answered the same key before.
    pub moved: u64,
    /// Intended requests never sent, since the run was ended early.
    pub unsent: u64,
    /// MQTT: connections, which are apart from messages.
    #[serde(default, skip_serializing_if = "Connections::is_empty")]
    pub connections: Connections,
}

/// Connections by their fate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// Attempts, successful or not.
    pub attempted: u64,
    /// Attempts that failed, by kind; `declined`: by a CONNACK or a SUBACK.
    pub failed: BTreeMap<String, u64>,
    /// Connections that ended though nobody meant them to, by kind.
    pub lost: BTreeMap<String, u64>,
}

impl Connections {
    fn is_empty(&self) -> bool {
        self.attempted == 0
    }

    fn add(&mut self, other: &Self) {
        self.attempted += other.attempted;
        add_kinds(&mut self.failed, &other.failed);
        add_kinds(&mut self.lost, &other.lost);
    }
}

fn add_kinds(sum: &mut BTreeMap<String, u64>, kinds: &BTreeMap<String, u64>) {
    for (kind, count) in kinds {
        *sum.entry(kind.clone()).or_default() += count;
    }
}

impl Account {
    /// Adds the counts of another part of the same run.
    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.answered += other.answered;
        add_kinds(&mut self.failed, &other.failed);
        self.error_status += other.error_status;
        self.answered_twice += other.answered_twice;
        self.lost += other.lost;
        self.out_of_order += other.out_of_order;
        self.moved += other.moved;
        self.unsent += other.unsent;
        self.connections.add(&other.connections);
    }

    /// Requests not answered, over all kinds.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// The share of requests that failed, answered with a failure, or were lost: 0 to 1. 0 when nothing was sent.
    pub fn error_share(&self) -> f64 {
        let faults = self.failures() + self.error_status + self.lost;
        if self.sent == 0 { 0.0 } else { faults as f64 / self.sent as f64 }
    }
}

/// Latencies of one kind, over all answers and by arm.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Series {
    pub all: Latencies,
    pub arms: BTreeMap<String, Latencies>,
}

/// What one arm answered.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Arm {
    /// Requests it answered.
    pub answered: u64,
    /// Those of them answered with a failure.
    pub error_status: u64,
    /// Its share of all answers, 0 to 1.
    pub share: f64,
    /// Keys it answered last.
    pub keys: u64,
    /// Answers by status (HTTP, gRPC: the HTTP status).
    pub statuses: BTreeMap<u16, u64>,
}

/// The distribution of a latency, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    pub count: u64,
    pub min: u64,
    pub mean: f64,
    pub p50: u64,
    pub p90: u64,
    pub p95: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
    /// Points of the curve for plotting: `[quantile from 0 to 1, microseconds]`, rising.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub curve: Vec<(f64, u64)>,
}

impl Latencies {
    /// The distribution with its curve.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let curve = histogram
            .iter_quantiles(5)
            .map(|step| (step.quantile_iterated_to(), step.value_iterated_to()))
            .take_while(|(quantile, _)| *quantile <= 1.0)
            .collect();
        Self { curve, ..Self::summary(histogram) }
    }

    /// The distribution without its curve.
    pub fn summary(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            count: histogram.len(),
            min: if histogram.is_empty() { 0 } else { histogram.min() },
            mean: histogram.mean(),
            p50: at(0.50),
            p90: at(0.90),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
            curve: Vec::new(),
        }
    }
}

/// One second of a run, by the time of the answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Second {
    /// Seconds since the start, whole: 0 is the first.
    pub at: u64,
    /// Requests sent in it.
    pub sent: u64,
    /// Requests that failed in it or were answered with a failure.
    pub errors: u64,
    /// Latencies by arm (`latency`; for MQTT `ack`, or `delivery` with QoS 0).
    pub arms: BTreeMap<String, Latencies>,
}

/// How the load generator itself fared: whether its figures can be believed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Generator {
    /// Cores it used, 1.0 being one core all the time.
    pub cpu: f64,
    /// How late requests left although a connection was free for them: the generator's own fault. Included in every
    /// latency.
    pub lateness: Latencies,
    /// What to know before believing the figures; empty is good.
    pub warnings: Vec<String>,
}
