//! The data plane as the control plane sees it: one `ArcSwap`, and who may change it.

use std::{
    collections::BTreeMap,
    future,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use ::time::OffsetDateTime;
use admin_api::{DataPlane, InstallError, MetricKind, Observation, ProcessMetric, RouteState, Second};
use arc_swap::{ArcSwap, Guard};
use config::{Arm, Config, Fault, Faults};
use parking_lot::Mutex;
use tokio::time;

use crate::{
    limits::{Clients, within_file_limit},
    listen::Connections,
    live::{self, Addresses, Files, Live, Parts, sockets_of},
    mirror::MirrorThread,
    splice,
    takeover::Predecessor,
    telemetry::{Rejections, Tick},
};

/// Shared by the workers, the control plane and the mirror.
#[derive(Debug)]
pub(crate) struct Plane {
    live: ArcSwap<Live>,
    /// What `live` was made from. Held while a new one is made, so that no change is lost between two.
    source: Mutex<Source>,
    /// Of a configuration that is about to be installed.
    read: Mutex<Option<(Arc<Config>, Files)>>,
    workers: usize,
    mirror_thread: MirrorThread,
    serving: AtomicBool,
    /// Gathered so far.
    seconds: AtomicU64,
    /// Turned away before a route was known.
    pub(crate) rejections: Rejections,
    /// Open client connections of all listeners.
    pub(crate) connections: Connections,
    pub(crate) clients: Arc<Clients>,
    pub(crate) takeovers: Takeovers,
    /// Whom this process took over from.
    predecessor: OnceLock<Predecessor>,
}

/// How often a takeover came to which end.
#[derive(Debug, Default)]
pub(crate) struct Takeovers {
    /// By this process.
    pub(crate) done: AtomicU64,
    /// Of this process.
    pub(crate) failed: AtomicU64,
}

#[derive(Clone, Debug, Default)]
struct Source {
    config: Option<Arc<Config>>,
    states: BTreeMap<String, RouteState>,
    addresses: Addresses,
    /// As many as there are descriptors for.
    max_connections: usize,
}

impl Plane {
    pub(crate) fn new(workers: usize, mirror_thread: MirrorThread) -> Arc<Self> {
        Arc::new(Self {
            live: ArcSwap::default(),
            source: Mutex::default(),
            read: Mutex::default(),
            workers,
            mirror_thread,
            serving: AtomicBool::new(false),
            seconds: AtomicU64::new(0),
            rejections: Rejections::new(workers),
            connections: Connections::new(workers),
            clients: Clients::new(),
            takeovers: Takeovers::default(),
            predecessor: OnceLock::new(),
        })
    }

    /// What a connection or request takes at its start and keeps.
    pub(crate) fn live(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// The same for a moment, in which nothing is awaited: cheaper, as nobody is told that it is held.
    pub(crate) fn glance(&self) -> Guard<Arc<Live>> {
        self.live.load()
    }

    /// Turns `/ready` on or off.
    pub(crate) fn set_serving(&self, serving: bool) {
        self.serving.store(serving, Ordering::Relaxed);
    }

    /// Has the process before this one follow every split from now on. Once.
    pub(crate) fn took_over_from(&self, predecessor: Predecessor) {
        let _ = self.predecessor.set(predecessor);
    }

    /// Reads the files that a configuration names, so that its `install`, which rollbacks wait for, waits for no disk.
    /// Blocks. Errors: every fault.
    pub(crate) fn read_files(&self, config: &Arc<Config>) -> Result<(), InstallError> {
        let files = Files::read(config).map_err(faulty)?;
        *self.read.lock() = Some((Arc::clone(config), files));
        Ok(())
    }

    /// Reads the configuration's files again. Blocks. Errors: nothing changed.
    pub(crate) fn reread_files(&self) -> Result<(), InstallError> {
        let Some(config) = self.source.lock().config.clone() else { return Ok(()) };
        let files = Files::read(&config).map_err(faulty)?;
        let source = self.source.lock();
        // A configuration that came meanwhile has read its own.
        if source.config.as_ref().is_some_and(|now| Arc::ptr_eq(now, &config)) {
            let live = self.build(&config, &source, Some(&files))?;
            self.live.store(Arc::new(live));
        }
        Ok(())
    }

    /// Takes new addresses behind names. Names that are not in `found` keep theirs: they may have been added while these
    /// were looked up. Returns whether anything changed. Errors: nothing changed.
    pub(crate) fn take_addresses(&self, found: Addresses) -> Result<bool, InstallError> {
        let mut source = self.source.lock();
        let mut new = source.clone();
        new.addresses.extend(found);
        if new.addresses == source.addresses {
            return Ok(false);
        }
        if let Some(config) = &new.config {
            let live = self.build(config, &new, None)?;
            self.live.store(Arc::new(live));
        }
        *source = new;
        Ok(true)
    }

    /// The addresses that are live.
    pub(crate) fn addresses(&self) -> Addresses {
        self.source.lock().addresses.clone()
    }

    /// Closes a second on every route, once a second, for ever.
    pub(crate) async fn gather(self: Arc<Self>) {
        let mut ticks = time::interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(time::MissedTickBehavior::Burst);
        loop {
            ticks.tick().await;
            let at = self.seconds.fetch_add(1, Ordering::Relaxed);
            let tick = Tick { at, now: time::Instant::now(), utc: OffsetDateTime::now_utc() };
            for route in self.live().routes.values() {
                let answer_within = route.settings.guard.unwrap_or_default().answer_within;
                route.meter.gather(&tick, answer_within);
                let endpoints = route.blue.endpoints.iter().chain(&route.green.endpoints);
                endpoints.for_each(|endpoint| endpoint.sweep(tick.now));
            }
        }
    }

    fn build(&self, config: &Config, source: &Source, files: Option<&Files>) -> Result<Live, InstallError> {
        live::build(&Parts {
            config,
            states: &source.states,
            addresses: &source.addresses,
            previous: &self.live.load(),
            files,
            workers: self.workers,
            max_connections: source.max_connections,
            mirror_thread: &self.mirror_thread,
        })
    }
}

fn faulty(faults: Vec<Fault>) -> InstallError {
    InstallError(Faults(faults).to_string())
}

impl DataPlane for Plane {
    fn apply(&self, route: &str, state: RouteState) {
        let mut source = self.source.lock();
        if let Some(known) = source.states.get_mut(route) {
            *known = state;
            self.live.store(Arc::new(self.live.load().with_state(route, state, self.workers)));
            if let Some(predecessor) = self.predecessor.get() {
                predecessor.tell(route, state);
            }
        }
    }

    fn followed(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        match self.predecessor.get() {
            Some(predecessor) => Box::pin(predecessor.followed()),
            None => Box::pin(future::ready(())),
        }
    }

    fn forget(&self, route: &str) {
        if let Some(route) = self.live.load().routes.get(route) {
            route.meter.forget();
        }
    }

    fn watch_slower_than(&self, route: &str, us: Option<u64>) {
        if let Some(route) = self.live.load().routes.get(route) {
            route.meter.watch_slower_than(us);
        }
    }

    fn install(&self, config: &Arc<Config>, states: &BTreeMap<String, RouteState>) -> Result<(), InstallError> {
        let read = self.read.lock().take().filter(|(of, _)| Arc::ptr_eq(of, config));
        let files = match read {
            Some((_, files)) => files,
            // At the start nobody waits.
            None => Files::read(config).map_err(faulty)?,
        };
        let mut source = self.source.lock();
        let mut new = Source { config: Some(Arc::clone(config)), states: states.clone(), ..source.clone() };
        let wanted = config.server.max_connections;
        if source.config.as_ref().is_none_or(|old| old.server.max_connections != wanted) {
            // Each worker has a handle of its own for each of its sockets.
            new.max_connections =
                within_file_limit(wanted, self.workers * (2 * sockets_of(config).len() + splice::DESCRIPTORS));
        }
        let live = self.build(config, &new, Some(&files))?;
        self.live.store(Arc::new(live));
        *source = new;
        Ok(())
    }

    fn observe(&self, route: &str) -> Option<Observation> {
        let live = self.live();
        let route = live.routes.get(route)?;
        let mut observation = route.meter.observe();
        observation.blue.endpoints = route.upstream(Arm::Blue).observe();
        observation.green.endpoints = route.upstream(Arm::Green).observe();
        observation.mirror = route.mirror.as_ref().map(|mirror| mirror.observe());
        Some(observation)
    }

    fn seconds(&self, route: &str, after: Option<u64>) -> Vec<Arc<Second>> {
        self.live.load().routes.get(route).map(|route| route.meter.seconds(after)).unwrap_or_default()
    }

    fn ready(&self) -> bool {
        self.serving.load(Ordering::Relaxed)
    }

    fn process_metrics(&self) -> Vec<ProcessMetric> {
        let rejected = self.rejections.totals().into_iter().map(|(reason, value)| ProcessMetric {
            kind: MetricKind::Counter,
            name: "crossfade_unrouted_total",
            help: "Connections and requests turned away before their route was known",
            label: Some(("reason", reason.to_owned())),
            value,
        });
        let takeovers = [("done", &self.takeovers.done), ("failed", &self.takeovers.failed)];
        let takeovers = takeovers.into_iter().map(|(outcome, count)| ProcessMetric {
            kind: MetricKind::Counter,
            name: "crossfade_takeovers_total",
            help: "done: this process took over from another; failed: it was to be taken over and went on",
            label: Some(("outcome", outcome.to_owned())),
            value: count.load(Ordering::Relaxed),
        });
        let connections = (1..).zip(self.connections.by_worker()).flat_map(|(worker, (open, handed_over))| {
            let of_worker = |kind, name, help, value| ProcessMetric {
                kind,
                name,
                help,
                label: Some(("worker", usize::to_string(&worker))),
                value,
            };
            [
                of_worker(
                    MetricKind::Gauge,
                    "crossfade_client_connections",
                    "Open client connections that a worker serves",
                    open as u64,
                ),
                of_worker(
                    MetricKind::Counter,
                    "crossfade_handed_over_total",
                    "Client connections that a worker accepted and left to one that had clearly fewer",
                    handed_over,
                ),
            ]
        });
        rejected.chain(takeovers).chain(connections).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, path::Path};

    use super::*;

    fn found(names: &[(&str, &str)]) -> Addresses {
        let address = |address: &str| address.parse::<IpAddr>().unwrap();
        names.iter().map(|(name, found)| ((*name).to_owned(), vec![address(found)])).collect()
    }

    /// Where the endpoints of an arm are.
    fn addresses(plane: &Plane, arm: Arm) -> Vec<String> {
        let live = plane.live();
        live.routes["shop"].upstream(arm).endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
    }

    #[test]
    fn new_addresses_of_some_names_leave_the_others_and_old_ones_change_nothing() {
        let text = "[[route]]\nname = \"shop\"\nprotocol = \"http\"\nlisten = \"127.0.0.1:8080\"\nkey = [\"client-ip\"]\n\
            [route.blue]\nendpoints = [\"blue.example:80\"]\n[route.green]\nendpoints = [\"green.example:81\"]\n\
            [route.health]\nprobe = \"off\"\n";
        let config = Arc::new(Config::parse(text, Path::new("")).unwrap());
        let plane = Plane::new(1, MirrorThread::start().unwrap());
        // Names are looked up before there is a configuration to use them.
        assert!(plane.take_addresses(found(&[("blue.example", "10.0.0.1"), ("green.example", "10.0.0.2")])).unwrap());
        let states = BTreeMap::from([("shop".to_owned(), RouteState::default())]);
        plane.install(&config, &states).unwrap();
        assert_eq!(addresses(&plane, Arm::Blue), ["10.0.0.1:80"]);
        assert_eq!(addresses(&plane, Arm::Green), ["10.0.0.2:81"]);

        let before = plane.live();
        for same in [found(&[]), found(&[("green.example", "10.0.0.2")]), plane.addresses()] {
            assert!(!plane.take_addresses(same).unwrap());
        }
        assert!(Arc::ptr_eq(&plane.live(), &before));

        assert!(plane.take_addresses(found(&[("green.example", "10.0.0.3"), ("other.example", "10.0.0.4")])).unwrap());
        assert_eq!(addresses(&plane, Arm::Blue), ["10.0.0.1:80"]);
        assert_eq!(addresses(&plane, Arm::Green), ["10.0.0.3:81"]);
        let kept = |live: &Live| live.routes["shop"].upstream(Arm::Blue).endpoints[0].clone();
        assert!(kept(&plane.live()).is(&kept(&before)), "an endpoint whose address is the same goes on");

        // A name that is not found any more is empty, not kept: who looks up decides what to keep.
        assert!(plane.take_addresses(Addresses::from([("green.example".to_owned(), Vec::new())])).unwrap());
        assert!(addresses(&plane, Arm::Green).is_empty());
        assert_eq!(plane.addresses().len(), 3);
    }
}
