//! What a connection or request sees from start to end: all routes with their splits, immutable.
//!
//! There is one [`arc_swap::ArcSwap`] of it, in [`crate::plane::Plane`]. Whatever changes (a split, the configuration,
//! an address behind a name, a certificate) makes a new `Live`; what is under way keeps the one it started with.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use admin_api::{Access, Alerts, InstallError, RouteState};
use config::{Arm, Config, Fault, Faults, Protocol, Split};

use crate::{
    limits::Limits,
    mirror::{Mirror, MirrorThread},
    split::{Decided, Hashed, Salt},
    telemetry::Meter,
    tls,
    upstream::{self, ArmUpstream, Check, Endpoint, UpstreamTls},
    worker::Shared,
};

/// All routes, by listener.
#[derive(Debug, Default)]
pub(crate) struct Live {
    /// In the order of [`sockets_of`] at the start of the process, whatever the order of routes in a file read later:
    /// the accepting loops hold indexes into this.
    pub(crate) listeners: Vec<Listener>,
    pub(crate) routes: BTreeMap<String, Shared<Route>>,
    /// Is there to be a line of log for each request and connection?
    pub(crate) access_log: bool,
    pub(crate) limits: Limits,
}

/// The routes of one socket.
#[derive(Clone, Debug)]
pub(crate) struct Listener {
    /// As configured: what a reload is matched by.
    address: SocketAddr,
    protocol: Protocol,
    pub(crate) tls: Option<Arc<rustls::ServerConfig>>,
    /// The settings that hold before a route is known: those of the listener's first route.
    pub(crate) first: Shared<Route>,
    by_host: HashMap<String, Vec<Shared<Route>>>,
    any_host: Vec<Shared<Route>>,
}

/// One route with its split and all that serves it.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) settings: Arc<config::Route>,
    pub(crate) state: RouteState,
    salt: Salt,
    placebo: Salt,
    pub(crate) blue: Arc<ArmUpstream>,
    pub(crate) green: Arc<ArmUpstream>,
    pub(crate) meter: Shared<Meter>,
    pub(crate) mirror: Option<Arc<Mirror>>,
}

impl Route {
    pub(crate) fn split(&self) -> Split {
        self.state.split
    }

    pub(crate) fn upstream(&self, arm: Arm) -> &Arc<ArmUpstream> {
        match arm {
            Arm::Blue => &self.blue,
            Arm::Green => &self.green,
        }
    }

    /// Whether both arms are spoken to in HTTP/1.1.
    pub(crate) fn speaks_http1(&self) -> bool {
        self.blue.is_http1() && self.green.is_http1()
    }

    /// Decides about a caller. `key`: `None` when it has none, which is decided by the route's `keyless`. `wanted`: the arm
    /// it asks for, and may.
    pub(crate) fn decide(&self, key: Option<&[u8]>, wanted: Option<Arm>) -> Decided {
        // Each caller without a key is one of its own, as far as anybody can tell.
        let hashed = key.map_or_else(|| Hashed(fastrand::u64(..)), |key| Hashed::of(self.salt, key));
        let by_bucket = || Decided::new(self.placebo, self.split(), self.split().arm(hashed.bucket()), hashed);
        match (wanted, key) {
            (Some(wanted), _) => Decided::sent_to(wanted, hashed),
            (None, Some(_)) => by_bucket(),
            (None, None) => {
                self.meter.keyless();
                match self.settings.keyless {
                    config::Keyless::Blue => Decided::sent_to(Arm::Blue, hashed),
                    config::Keyless::Random => by_bucket(),
                }
            }
        }
    }
}

impl Listener {
    /// The route of a request: the longest path prefix among those of its host, else among those of any host.
    /// `host`: lower case, without port.
    pub(crate) fn find(&self, host: &str, path: &str) -> Option<&Shared<Route>> {
        let longest =
            |routes: &'_ [Shared<Route>]| routes.iter().position(|route| covers(&route.settings.matching.path, path));
        if let Some(routes) = self.by_host.get(host)
            && let Some(index) = longest(routes)
        {
            return Some(&routes[index]);
        }
        longest(&self.any_host).map(|index| &self.any_host[index])
    }
}

/// Is `prefix` a prefix of `path` that ends at a segment's end?
fn covers(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/'))
}

/// A socket to listen on.
pub(crate) struct Socket {
    pub(crate) address: SocketAddr,
    pub(crate) protocol: Protocol,
    /// Indexes into the configuration's routes; never empty.
    routes: Vec<usize>,
}

impl Socket {
    /// Its routes, each with its place in the configuration.
    fn settings<'a>(&self, config: &'a Config) -> impl Iterator<Item = (String, &'a config::Route)> {
        self.routes.iter().map(|index| (format!("route[{index}]"), &config.routes[*index]))
    }
}

/// The certificates, keys and roots that a configuration names.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// By the first route of each socket.
    listeners: BTreeMap<usize, Arc<rustls::ServerConfig>>,
    arms: BTreeMap<(usize, Arm), Arc<UpstreamTls>>,
}

impl Files {
    /// Takes as long as their disk does: not for whoever holds what a rollback needs. Errors: every fault.
    pub(crate) fn read(config: &Config) -> Result<Self, Vec<Fault>> {
        let (mut files, mut faults) = (Self::default(), Vec::new());
        for socket in sockets_of(config) {
            match tls::server_config(socket.protocol, socket.settings(config)) {
                Ok(tls) => files.listeners.extend(tls.map(|tls| (socket.routes[0], tls))),
                Err(fault) => faults.push(fault),
            }
        }
        let system = OnceCell::new();
        for (index, route) in config.routes.iter().enumerate() {
            for arm in Arm::BOTH {
                let Some(settings) = &route.arm(arm).tls else { continue };
                match UpstreamTls::load(&format!("route[{index}].{arm}.tls"), settings, &system) {
                    Ok(tls) => drop(files.arms.insert((index, arm), tls)),
                    Err(fault) => faults.push(fault),
                }
            }
        }
        if faults.is_empty() { Ok(files) } else { Err(faults) }
    }
}

/// What is wrong with the files that a configuration names: certificates, keys and tokens.
pub(crate) fn check_files(config: &Config) -> Vec<Fault> {
    let access = Access::open(&config.admin).err().map(|error| error.fault());
    let admin = config.admin.tls.iter().filter_map(|files| tls::admin_config(files).err());
    let alerts = Alerts::check_files(config);
    let files = Files::read(config).err().unwrap_or_default();
    access.into_iter().chain(admin).chain(alerts).chain(files).collect()
}

/// Where to listen, in the order of the configuration. HTTP routes with the same address share a socket; the others
/// have one each, also when all of them leave the port to the system.
pub(crate) fn sockets_of(config: &Config) -> Vec<Socket> {
    let mut sockets: Vec<Socket> = Vec::new();
    for (index, route) in config.routes.iter().enumerate() {
        let shared = |socket: &&mut Socket| route.protocol == Protocol::Http && socket.address == route.listen;
        match sockets.iter_mut().find(shared) {
            Some(socket) => socket.routes.push(index),
            None => {
                sockets.push(Socket { address: route.listen, protocol: route.protocol, routes: vec![index] });
            }
        }
    }
    sockets
}

/// Addresses behind the names of endpoints.
pub(crate) type Addresses = HashMap<String, Vec<IpAddr>>;

/// What a new `Live` is made of.
pub(crate) struct Parts<'a> {
    pub(crate) config: &'a Config,
    pub(crate) states: &'a BTreeMap<String, RouteState>,
    pub(crate) addresses: &'a Addresses,
    /// Its meters, mirrors and endpoints go on where the settings are the same.
    pub(crate) previous: &'a Live,
    /// Those of `config`. Without, it must be the one that `previous` was made of, which goes on with its own.
    pub(crate) files: Option<&'a Files>,
    pub(crate) workers: usize,
    /// As many as there are descriptors for.
    pub(crate) max_connections: usize,
    pub(crate) mirror_thread: &'a MirrorThread,
}

/// Builds the whole anew. Starts the checks of new endpoints, so it must be called within a runtime. Errors: every fault,
/// one a line; nothing has been started.
pub(crate) fn build(parts: &Parts<'_>) -> Result<Live, InstallError> {
    let mut faults = Vec::new();
    let mut routes = BTreeMap::new();
    let mut started = Vec::new();
    for (index, settings) in parts.config.routes.iter().enumerate() {
        let route = build_route(index, settings, parts, &mut started);
        routes.insert(settings.name.clone(), Shared::new(route, parts.workers));
    }
    let listeners = listeners(parts, &routes, &mut faults);
    if !faults.is_empty() {
        return Err(InstallError(Faults(faults).to_string()));
    }
    for (endpoint, check) in started {
        upstream::watch(endpoint.value(), check);
    }
    let server = &parts.config.server;
    let limits =
        Limits { connections: parts.max_connections, connections_per_client: server.max_connections_per_client };
    Ok(Live { listeners, routes, access_log: server.access_log, limits })
}

type Started = Vec<(Shared<Endpoint>, Check)>;

fn build_route(index: usize, settings: &config::Route, parts: &Parts<'_>, started: &mut Started) -> Route {
    let previous = parts.previous.routes.get(&settings.name);
    let arm = |arm: Arm, started: &mut Started| {
        let wanted = settings.arm(arm);
        let tls = match parts.files {
            Some(files) => files.arms.get(&(index, arm)).cloned(),
            None => previous.and_then(|previous| previous.upstream(arm).tls.clone()),
        };
        // Checks over TLS go on with what they started with, so other TLS makes other endpoints.
        let known = previous
            .map(|previous| previous.upstream(arm))
            .filter(|known| known.http_version == wanted.http_version)
            .filter(|known| known.tls.as_ref().map(|tls| tls.identity()) == tls.as_ref().map(|tls| tls.identity()))
            .map_or(&[][..], |known| &known.endpoints);
        let mut endpoints: Vec<Shared<Endpoint>> = Vec::new();
        for endpoint in &wanted.endpoints {
            for address in addresses_of(endpoint, parts.addresses) {
                if endpoints.iter().any(|known| known.address == address) {
                    continue;
                }
                let name = endpoint.to_string();
                let same = known
                    .iter()
                    .find(|known| known.address == address && known.name == name && known.health == settings.health);
                endpoints.push(same.map_or_else(
                    || {
                        let new = Endpoint::new(name, address, settings.health.clone(), parts.workers);
                        let check = Check { tls: tls.clone(), http_version: wanted.http_version };
                        started.push((new.clone(), check));
                        new
                    },
                    Shared::clone,
                ));
            }
        }
        Arc::new(ArmUpstream { arm, endpoints, tls, http_version: wanted.http_version })
    };
    let (blue, green) = (arm(Arm::Blue, started), arm(Arm::Green, started));
    let mirror = settings.mirror.map(|mirror| {
        let previous = previous.and_then(|previous| previous.mirror.as_deref());
        Mirror::new(previous, &settings.name, mirror, [&blue, &green], parts.workers, parts.mirror_thread)
    });
    Route {
        blue,
        green,
        state: parts.states.get(&settings.name).copied().unwrap_or_default(),
        salt: Salt::split(&settings.name),
        placebo: Salt::placebo(&settings.name),
        meter: previous.map_or_else(|| Meter::new(parts.workers), |previous| previous.meter.clone()),
        mirror,
        settings: Arc::new(settings.clone()),
    }
}

fn addresses_of(endpoint: &config::Endpoint, addresses: &Addresses) -> Vec<SocketAddr> {
    match endpoint.host.parse::<IpAddr>() {
        Ok(address) => vec![SocketAddr::new(address, endpoint.port)],
        Err(_) => addresses
            .get(&endpoint.host)
            .map(|found| found.iter().map(|address| SocketAddr::new(*address, endpoint.port)).collect())
            .unwrap_or_default(),
    }
}

fn listeners(parts: &Parts<'_>, routes: &BTreeMap<String, Shared<Route>>, faults: &mut Vec<Fault>) -> Vec<Listener> {
    let mut listeners = Vec::new();
    for socket in in_the_order_of(&parts.previous.listeners, sockets_of(parts.config), faults) {
        let mut here: Vec<&Shared<Route>> =
            socket.routes.iter().filter_map(|index| routes.get(&parts.config.routes[*index].name)).collect();
        let Some(first) = here.first().map(|route| Shared::clone(route)) else { continue };
        let tls = match parts.files {
            Some(files) => files.listeners.get(&socket.routes[0]).cloned(),
            None => parts.previous.listeners.get(listeners.len()).and_then(|known| known.tls.clone()),
        };
        here.sort_by_key(|route| std::cmp::Reverse(route.settings.matching.path.len()));
        let mut listener = Listener {
            address: socket.address,
            protocol: socket.protocol,
            tls,
            first,
            by_host: HashMap::new(),
            any_host: Vec::new(),
        };
        for route in here {
            match &route.settings.matching.host {
                Some(host) => listener.by_host.entry(host.clone()).or_default().push(route.clone()),
                None => listener.any_host.push(route.clone()),
            }
        }
        listeners.push(listener);
    }
    listeners
}

/// `sockets` as the accepting loops know them. Listeners cannot change while they are open, so a socket too many or too
/// few is a fault.
fn in_the_order_of(open: &[Listener], mut sockets: Vec<Socket>, faults: &mut Vec<Fault>) -> Vec<Socket> {
    if open.is_empty() {
        return sockets;
    }
    let restart = |problem: &str, address: SocketAddr, verb: &str| Fault {
        place: "route".to_owned(),
        line: None,
        problem: format!("the listener {address} {problem}"),
        cure: format!("restart to {verb} it"),
    };
    let mut ordered = Vec::new();
    for listener in open {
        let same = |socket: &Socket| (socket.address, socket.protocol) == (listener.address, listener.protocol);
        match sockets.iter().position(same) {
            Some(position) => ordered.push(sockets.remove(position)),
            None => faults.push(restart("has no route any more", listener.address, "close")),
        }
    }
    faults.extend(sockets.iter().map(|new| restart("is new", new.address, "open")));
    ordered
}

impl Live {
    /// The same but for one route's state. A route that is not there changes nothing.
    pub(crate) fn with_state(&self, name: &str, state: RouteState, workers: usize) -> Self {
        let Some(old) = self.routes.get(name) else {
            return Self { listeners: self.listeners.clone(), routes: self.routes.clone(), ..*self };
        };
        let new = Shared::new(Route { state, ..Route::clone(old) }, workers);
        let exchange = |route: &mut Shared<Route>| {
            if route.is(old) {
                *route = new.clone();
            }
        };
        let mut listeners = self.listeners.clone();
        for listener in &mut listeners {
            exchange(&mut listener.first);
            listener.any_host.iter_mut().chain(listener.by_host.values_mut().flatten()).for_each(exchange);
        }
        let mut routes = self.routes.clone();
        routes.insert(name.to_owned(), new);
        Self { listeners, routes, ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn a_prefix_ends_at_the_end_of_a_segment() {
        for (prefix, path, expected) in [
            ("/", "/", true),
            ("/", "/anything", true),
            ("/api", "/api", true),
            ("/api", "/api/x", true),
            ("/api", "/apis", false),
            ("/api/", "/api/x", true),
            ("/api/", "/api", false),
            ("/api", "*", false),
        ] {
            assert_eq!(covers(prefix, path), expected, "{prefix} of {path}");
        }
    }
}
