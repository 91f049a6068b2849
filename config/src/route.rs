//! One route: a stream of traffic that is being moved from blue to green.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use serde::Serialize;

use crate::{Arm, Plan, Signal, Split};

/// A listener plus a match, a key, two arms and a split.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Letters, digits, `-` and `_`, at most 64; unique in a file.
    pub name: String,
    pub protocol: Protocol,
    /// HTTP routes with equal addresses share one listener, those on the same address with port 0 too. An MQTT or TCP
    /// route has its listener to itself: with port 0 a port of its own, even beside a route with an equal address.
    pub listen: SocketAddr,
    /// Terminates TLS with these files. Routes that share a listener either all have it or none has.
    pub tls: Option<TlsFiles>,
    /// Only HTTP routes have one that is not the default.
    pub matching: Match,
    /// Tried in order; the first one present in a request is its key. Never empty, and fits the protocol.
    pub key: Vec<KeySource>,
    pub keyless: Keyless,
    pub fallback: Fallback,
    /// Green's share as long as the state database holds none for this route.
    pub initial_split: Split,
    /// Adds `x-crossfade-arm` to responses (HTTP).
    pub expose_arm: bool,
    /// Lets a request choose its arm by `x-crossfade-arm` (HTTP).
    pub allow_override: bool,
    pub blue: ArmSettings,
    pub green: ArmSettings,
    pub timeouts: Timeouts,
    /// `None`: endpoints are taken for healthy until connecting fails.
    pub health: Option<Health>,
    pub mirror: Option<Mirror>,
    /// `None`: disarmed.
    pub guard: Option<Guard>,
    /// What the guard asks besides, and plans may. Names are unique.
    pub signals: Vec<Signal>,
    /// How green rises by itself, once it is started.
    pub plan: Option<Plan>,
}

impl Route {
    pub fn arm(&self, arm: Arm) -> &ArmSettings {
        match arm {
            Arm::Blue => &self.blue,
            Arm::Green => &self.green,
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Http,
    Mqtt,
    Tcp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Mqtt => "mqtt",
            Self::Tcp => "tcp",
        })
    }
}

/// A PEM certificate chain and its key. Read again when they change.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Which requests of a listener a route takes. The longest path prefix of a route with the request's host wins, then
/// that of a route without a host.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Match {
    /// A name or an IPv4 address; lower case, without port. `None`: every host.
    pub host: Option<String>,
    /// Starts with `/`, and ends with one only when it is nothing else. `/api` takes `/api` and `/api/x`, not `/apis`.
    pub path: String,
}

impl Default for Match {
    fn default() -> Self {
        Self { host: None, path: "/".to_owned() }
    }
}

/// Where the bytes that identify a caller are found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KeySource {
    /// `header:NAME` (HTTP); lower case.
    Header(String),
    /// `cookie:NAME` (HTTP).
    Cookie(String),
    /// `query:NAME` (HTTP), percent-decoded.
    Query(String),
    /// `path:N` (HTTP): the N-th segment of the path, counted from 1.
    PathSegment(usize),
    /// `client-ip` (all).
    ClientIp,
    /// `mqtt-client-id` (MQTT).
    MqttClientId,
    /// `mqtt-username` (MQTT).
    MqttUsername,
    /// `sni` (TCP): the server name of a TLS ClientHello, which is peeked at and not terminated.
    Sni,
}

/// Who serves a caller without a key.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Keyless {
    #[default]
    Blue,
    /// A bucket drawn anew for each request or connection.
    Random,
}

/// Who serves when green cannot be connected to.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Fallback {
    #[default]
    Blue,
    None,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ArmSettings {
    /// What people call this system: `python`, `go`. Defaults to the arm's name; the two of a route differ.
    pub label: String,
    /// Never empty.
    pub endpoints: Vec<Endpoint>,
    /// Speak TLS to the endpoints.
    pub tls: Option<UpstreamTls>,
    /// HTTP routes only.
    pub http_version: HttpVersion,
}

/// `host:port`. A host that is no address is looked up by name, and again while running.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Endpoint {
    /// A name, or an address; an IPv6 address without brackets.
    pub host: String,
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// TLS towards an arm. Certificates are always verified.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UpstreamTls {
    /// The name that is sent (SNI) and that the certificate must carry. Never empty, never an address.
    pub server_name: String,
    /// PEM roots. `None`: the system's.
    pub ca: Option<PathBuf>,
}

/// Which HTTP an arm is spoken to in.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum HttpVersion {
    /// Over TLS what ALPN settles on; in clear HTTP/2 for gRPC and HTTP/1.1 for the rest.
    #[default]
    Auto,
    Http1,
    Http2,
}

/// How long each wait may take. None is infinite.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// From a request's first byte to the end of its header; also a whole TLS handshake, a whole MQTT CONNECT and a
    /// whole ClientHello. Default 10 s.
    pub request_header: Duration,
    /// An idle client connection between two requests. Default 75 s.
    pub keepalive: Duration,
    /// TCP (and TLS) to an endpoint. Default 3 s.
    pub connect: Duration,
    /// From the request to the response's header, and between two reads of a body either way (HTTP); from CONNECT to
    /// CONNACK (MQTT). Default 60 s.
    pub response_header: Duration,
    /// Silence in both directions of a tunnel (WebSocket, MQTT, TCP), of a gRPC call or of an event stream. Default 1 h.
    pub idle: Duration,
    /// A peer that takes no bytes. Default 60 s.
    pub write: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            request_header: Duration::from_secs(10),
            keepalive: Duration::from_secs(75),
            connect: Duration::from_secs(3),
            response_header: Duration::from_secs(60),
            idle: Duration::from_secs(3600),
            write: Duration::from_secs(60),
        }
    }
}

/// Active checks of every endpoint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Health {
    pub probe: HealthProbe,
    /// Default 2 s.
    pub interval: Duration,
    /// Default 1 s, or `interval` if that is shorter; at most `interval`.
    pub timeout: Duration,
    /// Passed checks in a row before an endpoint comes back. Default 2.
    pub healthy_after: u32,
    /// Failed checks in a row before it leaves. Default 1. A refused connection of real traffic counts as all of them.
    pub unhealthy_after: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            probe: HealthProbe::Tcp,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            healthy_after: 2,
            unhealthy_after: 1,
        }
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HealthProbe {
    /// A connection is enough.
    Tcp,
    /// GET of this path answers 2xx or 3xx (HTTP routes).
    Http { path: String },
}

/// Copies a share of requests to the other arm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mirror {
    /// Share of keys whose requests are copied.
    pub sample: Split,
    /// Copies under way at once; one more is dropped and counted. Default 100.
    pub max_in_flight: usize,
    /// For a whole copy. Default 5 s.
    pub timeout: Duration,
    /// Bytes of a response body that are compared. Default 64 KiB.
    pub max_body: usize,
}

/// When green has broken its promises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guard {
    /// Green's failed share that is one too many, 0 to 1. Default 0.05.
    pub max_error_rate: f64,
    /// How much more often than blue green may fail, as a share of blue's: 0.5 is up by half. Default: not asked.
    pub max_error_increase: Option<f64>,
    /// The share of green's requests or connections for which no endpoint could be reached that is one too many, 0 to 1.
    /// Default: not asked apart from `max_error_rate`, which counts them as well.
    pub max_connect_failures: Option<f64>,
    /// Green's quantile divided by blue's that is too much, above 1. Only p95 has a default, 2.
    pub max_p50_ratio: Option<f64>,
    pub max_p95_ratio: Option<f64>,
    pub max_p99_ratio: Option<f64>,
    /// The least that the share of what green answers in time may be of blue's. Default 0.5.
    pub min_throughput: f64,
    /// What is not answered in this time is not answered, for `min_throughput`. Whole seconds. Default 5 s.
    pub answer_within: Duration,
    /// The least share of mirrored pairs that must match. Default: not asked.
    pub min_match_rate: Option<f64>,
    /// Checks in a row that every endpoint of green may fail. Default 3.
    pub max_failed_checks: u32,
    /// Outcomes of green that a rule must have before it says `pass`. Default 20.
    pub min_requests: u64,
    /// Different keys that must have seen green's bad events before it is tripped for them. Default 3.
    pub min_keys: u32,
    /// How far back blue is looked at for what is usual. Whole seconds. Default 5 min.
    pub baseline: Duration,
    /// What to do when blue breaks the limits as well.
    pub shared_cause: SharedCause,
    /// Lower limits, above which a plan waits and somebody is told.
    pub pause: PauseLimits,
}

/// What to do when both arms are bad at once.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SharedCause {
    /// Moving everybody to a blue that is as sick helps nobody.
    #[default]
    Hold,
    Rollback,
}

/// Limits of [`Guard`] at which a plan does not go on. `None`: not asked.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PauseLimits {
    pub max_error_rate: Option<f64>,
    pub max_p95_ratio: Option<f64>,
    pub min_match_rate: Option<f64>,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            max_error_rate: 0.05,
            max_error_increase: None,
            max_connect_failures: None,
            max_p50_ratio: None,
            max_p95_ratio: Some(2.0),
            max_p99_ratio: None,
            min_throughput: 0.5,
            answer_within: Duration::from_secs(5),
            min_match_rate: None,
            max_failed_checks: 3,
            min_requests: 20,
            min_keys: 3,
            baseline: Duration::from_secs(300),
            shared_cause: SharedCause::Hold,
            pause: PauseLimits::default(),
        }
    }
}
