//! A plan: how green's share rises by itself, a step at a time.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::{Split, Url};

/// Ordered steps, from the first share of green to the last. Its serialized form has the names and units of the file,
/// and no secrets: see [`Webhook`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Plan {
    /// Never empty. Each one's share of green is above that of the one before.
    #[serde(rename = "step")]
    pub steps: Vec<Step>,
    /// How long a step may go without getting on, in all, before the plan pauses. Whole seconds. Default 1 h.
    #[serde(with = "seconds")]
    pub max_hold: Duration,
    /// How long blue stays a hot standby after the last step, with the guard armed. Whole seconds. Default: not at all.
    #[serde(with = "seconds")]
    pub observe: Duration,
    /// Requests or connections a second of the whole route that its owner reckons with. Changes nothing that runs: it
    /// is what can be said of a step beforehand.
    pub expected_rps: Option<f64>,
}

/// One share of green, and what it takes to get there and to leave it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Step {
    /// 0: only copies of requests reach green.
    #[serde(with = "percent")]
    pub green: Split,
    /// Healthy time that the step collects, at least. Whole seconds.
    #[serde(with = "seconds")]
    pub bake: Duration,
    #[serde(flatten)]
    pub gates: Gates,
    /// What must have been measured over the step when its bake is over.
    #[serde(default)]
    pub require: Require,
    /// When it was not.
    pub otherwise: Otherwise,
}

/// What must be so before a step's share goes live. All of them.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Gates {
    /// Somebody approves by this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<String>,
    /// This signal of the route passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// A POST to this address is answered 2xx.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,
    /// The plans of these routes are done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
}

/// Where a step asks. Its path and query may hold a secret, and are never serialized. Shown without them, too.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Webhook {
    Known(Url),
    /// Was serialized: scheme, host and port are left.
    Forgotten(String),
}

impl Webhook {
    pub fn url(&self) -> Option<&Url> {
        match self {
            Self::Known(url) => Some(url),
            Self::Forgotten(_) => None,
        }
    }
}

impl fmt::Display for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(url) => url.fmt(f),
            Self::Forgotten(host) => host.fmt(f),
        }
    }
}

impl Serialize for Webhook {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Webhook {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let url = Url::parse(&String::deserialize(deserializer)?).map_err(|flaw| D::Error::custom(flaw.problem))?;
        Ok(Self::Forgotten(url.to_string()))
    }
}

/// Limits for what was measured over a step. `None`: not asked.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Require {
    /// The least that the share of what green answers in time may be of blue's: 0.95 is at most 5 per cent less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throughput: Option<f64>,
    /// The most that green's 95th percentile of latency may be of blue's: 1.1 is at most 10 per cent more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95_ratio: Option<f64>,
    /// The least share of mirrored pairs that match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_rate: Option<f64>,
}

/// What becomes of a plan whose step does not measure up.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Otherwise {
    /// Somebody decides.
    #[default]
    Pause,
    Rollback,
}

mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}s", duration.as_secs()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        let seconds = text.strip_suffix('s').and_then(|seconds| seconds.parse().ok());
        seconds.map(Duration::from_secs).ok_or_else(|| D::Error::custom("not whole seconds"))
    }
}

mod percent {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::Split;

    pub(super) fn serialize<S: Serializer>(split: &Split, serializer: S) -> Result<S::Ok, S::Error> {
        if split.buckets().is_multiple_of(100) {
            serializer.serialize_u16(split.buckets() / 100)
        } else {
            serializer.serialize_f64(split.percent())
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Split, D::Error> {
        Split::from_percent(f64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
