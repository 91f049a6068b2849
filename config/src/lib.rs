//! The configuration file as written, lifted into types that cannot be wrong.
//!
//! Pure: no sockets, no clock, no file is opened here but by [`Config::load`]. Every fault of a file is reported at
//! once, each with its place and its cure.

mod address;
mod alert;
mod fault;
mod lift;
mod plan;
mod reader;
mod reload;
mod route;
mod signal;
mod split;
mod url;

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, time::Duration};

pub use alert::{Alert, AlertFormat, Severity};
pub use fault::{Fault, Faults};
pub use plan::{Gates, Otherwise, Plan, Require, Step, Webhook};
pub use reload::restart_needed;
pub use route::{
    ArmSettings, Endpoint, Fallback, Guard, Health, HealthProbe, HttpVersion, KeySource, Keyless, Match, Mirror,
    PauseLimits, Protocol, Route, SharedCause, Timeouts, TlsFiles, UpstreamTls,
};
pub use signal::{Beyond, Combine, Scrape, Signal, SignalLimit, Silent};
pub use split::{Arm, BUCKETS, NotAPercentage, Split};
pub use url::Url;

/// Everything a configuration file says, with defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub server: Server,
    pub admin: Admin,
    /// Who is told what happens. Names are unique.
    pub alerts: Vec<Alert>,
    /// In the order of the file. Names are unique; at least one.
    pub routes: Vec<Route>,
}

/// What holds for the whole process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Threads that carry traffic. `None`: one for each core.
    pub workers: Option<NonZeroUsize>,
    /// How long a stop waits for open requests and connections. Default 25 s.
    pub drain: Duration,
    /// One log line a request or connection. Off by default.
    pub access_log: bool,
    /// Open client connections in all; one more is closed at once and counted. Default 50 000.
    pub max_connections: usize,
    /// The same for those of one client: an IPv4 address, or the /64 network of an IPv6 address. `None`: no limit.
    pub max_connections_per_client: Option<NonZeroUsize>,
}

/// The admin API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    pub listen: SocketAddr,
    /// SQLite file; created if missing. A relative path is relative to the configuration file.
    pub state: PathBuf,
    pub history: History,
    /// A file with one `TOKEN ROLE [NAME]` a line. Needed for every address that is not loopback.
    pub tokens: Option<PathBuf>,
    /// Needed for every address that is not loopback.
    pub tls: Option<TlsFiles>,
    /// Further values of `Host` that are answered, besides the loopback names and `listen` itself. Lower
    /// case, without port.
    pub hosts: Vec<String>,
}

/// Counts and latencies of each minute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// SQLite file of its own; created if missing. By default it stands beside the state file: `crossfade.history.db`.
    pub path: PathBuf,
    /// How long a minute is kept. Default 30 days.
    pub keep: Duration,
    /// Bytes of the file; the oldest minutes go first. Default 64 MiB.
    pub max: u64,
}
