//! A fake data plane, a store that can fail or wait, and small helpers.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use admin_api::{
    AuditRow, Batch, DataPlane, EndpointObservation, IncidentRow, InstallError, MetricKind, MirrorObservation,
    Observation, Outcome, ProcessMetric, Recorded, RouteState, Second, SignalRow, StateStore, StoreError, Tally,
};
use config::{
    Admin, ArmSettings, Config, Endpoint, Fallback, Guard, HttpVersion, KeySource, Keyless, Match, Protocol, Route,
    Server, Split, Timeouts,
};
use parking_lot::{Condvar, Mutex};

/// A folder of its own, gone when dropped.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("crossfade-admin-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn split(percent: f64) -> Split {
    Split::from_percent(percent).unwrap()
}

pub(crate) fn route(name: &str, blue: &str, green: &str, initial: f64) -> Route {
    let arm = |label: &str, port| ArmSettings {
        label: label.to_owned(),
        endpoints: vec![Endpoint { host: "127.0.0.1".to_owned(), port }],
        tls: None,
        http_version: HttpVersion::Auto,
    };
    Route {
        name: name.to_owned(),
        protocol: Protocol::Http,
        listen: "127.0.0.1:8080".parse().unwrap(),
        tls: None,
        matching: Match::default(),
        key: vec![KeySource::ClientIp],
        keyless: Keyless::Blue,
        fallback: Fallback::Blue,
        initial_split: split(initial),
        expose_arm: false,
        allow_override: false,
        blue: arm(blue, 9001),
        green: arm(green, 9002),
        timeouts: Timeouts::default(),
        health: None,
        mirror: None,
        guard: Some(Guard::default()),
        signals: Vec::new(),
        plan: None,
    }
}

pub(crate) fn config(routes: Vec<Route>) -> Arc<Config> {
    Arc::new(Config {
        server: Server {
            workers: None,
            drain: Duration::from_secs(25),
            access_log: false,
            max_connections: 1_000,
            max_connections_per_client: None,
        },
        admin: Admin {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            state: "unused".into(),
            history: config::History {
                path: "unused".into(),
                keep: Duration::from_secs(24 * 3600),
                max: 8 * 1024 * 1024,
            },
            tokens: None,
            tls: None,
            hosts: vec!["admin.example".to_owned()],
        },
        alerts: Vec::new(),
        routes,
    })
}

pub(crate) fn shop() -> Arc<Config> {
    config(vec![route("shop", "python", "go", 0.0)])
}

pub(crate) fn shop_and_broker() -> Arc<Config> {
    config(vec![route("shop", "python", "go", 0.0), route("broker", "erlang", "golang", 5.0)])
}

/// Remembers what it was told, and reports what a test made it see.
#[derive(Default)]
pub(crate) struct FakePlane {
    pub(crate) live: Mutex<BTreeMap<String, RouteState>>,
    pub(crate) applied: Mutex<Vec<(String, RouteState)>>,
    pub(crate) installs: AtomicU64,
    pub(crate) refuse_install: AtomicBool,
    pub(crate) draining: AtomicBool,
    pub(crate) seen: Mutex<BTreeMap<String, Observation>>,
    pub(crate) forgotten: Mutex<Vec<String>>,
}

impl FakePlane {
    pub(crate) fn live(&self, route: &str) -> RouteState {
        self.live.lock()[route]
    }

    /// Adds one whole second: how many succeeded and failed on blue and on green.
    pub(crate) fn second(&self, route: &str, blue: (u64, u64), green: (u64, u64)) {
        let mut seen = self.seen.lock();
        let seen = seen.entry(route.to_owned()).or_default();
        let tally = |(ok, failed): (u64, u64)| {
            let mut tally = Tally::default();
            tally.dispatched = ok + failed;
            (0..ok).for_each(|_| tally.record(Outcome::Ok, Some(10_000)));
            (0..failed).for_each(|_| tally.record(Outcome::Refused, Some(2_000)));
            tally
        };
        let (blue, green, placebo) = (tally(blue), tally(green), Tally::default());
        let second = Second { at: seen.seconds.len() as u64, blue, green, placebo, ..Second::default() };
        seen.blue.total.add(&second.blue);
        seen.green.total.add(&second.green);
        seen.seconds.push(Arc::new(second));
    }
}

impl DataPlane for FakePlane {
    fn apply(&self, route: &str, state: RouteState) {
        self.live.lock().insert(route.to_owned(), state);
        self.applied.lock().push((route.to_owned(), state));
    }

    fn forget(&self, route: &str) {
        self.forgotten.lock().push(route.to_owned());
    }

    fn install(&self, config: &Arc<Config>, states: &BTreeMap<String, RouteState>) -> Result<(), InstallError> {
        if self.refuse_install.load(Ordering::Relaxed) {
            return Err(InstallError("route[0].listen: the port is taken; choose another".to_owned()));
        }
        assert!(config.routes.iter().map(|route| &route.name).all(|name| states.contains_key(name)));
        assert_eq!(config.routes.len(), states.len());
        *self.live.lock() = states.clone();
        self.installs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn observe(&self, route: &str) -> Option<Observation> {
        let mut seen = self.seen.lock().get(route).cloned().unwrap_or_default();
        seen.keyless = 3;
        seen.rejected.insert("bare_lf", 2);
        seen.mirror = Some(MirrorObservation { offered: 5, ..MirrorObservation::default() });
        seen.green.endpoints.push(EndpointObservation {
            address: "127.0.0.1:9002".to_owned(),
            healthy: true,
            failed_checks: 0,
            in_flight: 1,
        });
        Some(seen)
    }

    fn seconds(&self, route: &str, after: Option<u64>) -> Vec<Arc<Second>> {
        let seen = self.seen.lock();
        let seconds = seen.get(route).map(|seen| seen.seconds.clone()).unwrap_or_default();
        seconds.into_iter().filter(|second| after.is_none_or(|after| second.at > after)).collect()
    }

    fn watch_slower_than(&self, _: &str, _: Option<u64>) {}

    fn ready(&self) -> bool {
        !self.draining.load(Ordering::Relaxed)
    }

    fn process_metrics(&self) -> Vec<ProcessMetric> {
        let counter = |name, reason: &str, value| ProcessMetric {
            kind: MetricKind::Counter,
            name,
            help: "Connections above the limit",
            label: Some(("reason", reason.to_owned())),
            value,
        };
        // Out of order, and one of a name that routes have, too.
        vec![
            ProcessMetric {
                kind: MetricKind::Gauge,
                name: "crossfade_client_connections",
                help: "Open ones",
                label: Some(("worker", "1".to_owned())),
                value: 3,
            },
            counter("crossfade_refused_connections_total", "limit", 4),
            counter("crossfade_rejected_total", "bare_lf", 7),
            counter("crossfade_refused_connections_total", "drain", 1),
        ]
    }
}

/// A store in memory whose disk can fail, or hang.
#[derive(Default)]
pub(crate) struct FakeStore {
    states: Mutex<BTreeMap<String, Recorded>>,
    pub(crate) audit: Mutex<Vec<AuditRow>>,
    incidents: Mutex<Vec<IncidentRow>>,
    signals: Mutex<BTreeMap<(String, String), SignalRow>>,
    pub(crate) failing: AtomicBool,
    hanging: Mutex<bool>,
    released: Condvar,
    pub(crate) waiting: AtomicU64,
    pub(crate) reading: AtomicU64,
}

impl FakeStore {
    pub(crate) fn recorded(&self, route: &str) -> Recorded {
        self.states.lock()[route].clone()
    }

    pub(crate) fn hang(&self) {
        *self.hanging.lock() = true;
    }

    pub(crate) fn release(&self) {
        *self.hanging.lock() = false;
        self.released.notify_all();
    }

    /// A write that hangs has the file, and a read waits for it.
    fn read(&self) {
        self.reading.fetch_add(1, Ordering::Relaxed);
        let mut hanging = self.hanging.lock();
        while *hanging {
            self.released.wait(&mut hanging);
        }
        self.reading.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn fail(&self, failing: bool) {
        self.failing.store(failing, Ordering::Relaxed);
    }
}

impl StateStore for FakeStore {
    fn load(&self) -> Result<BTreeMap<String, Recorded>, StoreError> {
        Ok(self.states.lock().clone())
    }

    fn record(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut hanging = self.hanging.lock();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        while *hanging {
            self.released.wait(&mut hanging);
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        drop(hanging);
        if self.failing.load(Ordering::Relaxed) {
            return Err(StoreError::Other("no space left on device".to_owned()));
        }
        self.states.lock().extend(batch.states.clone());
        self.audit.lock().extend(batch.audit.iter().cloned());
        self.incidents.lock().extend(batch.incidents.iter().cloned());
        let signals = batch.signals.iter().map(|row| ((row.route.clone(), row.name.clone()), row.clone()));
        self.signals.lock().extend(signals);
        Ok(())
    }

    fn incidents(&self, route: Option<&str>, limit: usize) -> Result<Vec<String>, StoreError> {
        self.read();
        let incidents = self.incidents.lock();
        let wanted = incidents.iter().rev().filter(|row| route.is_none_or(|route| row.route == route));
        Ok(wanted.take(limit).map(|row| row.json.clone()).collect())
    }

    fn incident(&self, id: &str) -> Result<Option<String>, StoreError> {
        self.read();
        Ok(self.incidents.lock().iter().find(|row| row.id == id).map(|row| row.json.clone()))
    }

    fn audit(&self, _: Option<&str>, limit: usize) -> Result<Vec<AuditRow>, StoreError> {
        self.read();
        Ok(self.audit.lock().iter().rev().take(limit).cloned().collect())
    }

    fn signals(&self) -> Result<Vec<SignalRow>, StoreError> {
        Ok(self.signals.lock().values().cloned().collect())
    }

    fn let_go(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn take_back(&self) -> Result<(), StoreError> {
        self.read();
        Ok(())
    }
}

/// Randomness that a failed test can be run again with: `IT_SEED=…`.
pub(crate) fn seeded() -> fastrand::Rng {
    let seed = std::env::var("IT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    eprintln!("IT_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// Waits for a condition, at most 20 s.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let patience = tokio::time::timeout(Duration::from_secs(20), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    patience.await.unwrap_or_else(|_| panic!("never happened: {what}"));
}

pub(crate) fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
}
