//! Whole migrations under load, with an account of every request: what a person needs to see before production moves.
//!
//! The loads are open-loop, and their ledgers are joined with what the origins saw.

use std::{
    fs,
    net::SocketAddr,
    num::{NonZeroU16, NonZeroU64},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use loadtest::{
    keys::Keys,
    ledger::{
        Ledger, Owner, unix_micros,
        verify::{self, Decided, Inputs},
    },
    load::{Broker, Endpoint, HttpLoad, HttpVersion, Load, MqttLoad, MqttVersion, Pace, Protocol, Qos, TcpLoad, Trust},
    origin::TcpOrigin,
    report::Report,
};
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::{task::JoinSet, time};
use tokio_util::sync::CancellationToken;

use crate::{
    authority::Authority,
    harness::Crossfade,
    mosquitto::Mosquitto,
    routes::Route,
    site::{Site, any_port, arm_of},
};

/// Behind a busy machine's slowest answer: what takes longer counts as lost.
const PATIENCE: Duration = Duration::from_secs(15);

/// Blue and green for HTTP and for TCP, and their accounts.
struct Origins {
    http: Site,
    tcp: [TcpOrigin; 2],
    ledgers: Vec<Ledger>,
    dir: TempDir,
}

impl Origins {
    async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let http = Site::start().await;
        let tcp = ["python", "go"].map(|label| TcpOrigin::start(label, any_port()));
        let [blue, green] = tcp;
        let tcp = [blue.await.unwrap(), green.await.unwrap()];
        let mut ledgers = Vec::new();
        let mut ledger = |kind: &str, label: &str| {
            let owner = Owner::Origin { label: label.to_owned() };
            ledgers.push(Ledger::create(&dir.path().join(format!("{kind}-{label}")), &owner).unwrap());
            ledgers.len() - 1
        };
        let [a, b, c, d] = [("http", "python"), ("http", "go"), ("tcp", "python"), ("tcp", "go")]
            .map(|(kind, label)| ledger(kind, label));
        http.blue.record(&ledgers[a]);
        http.green.record(&ledgers[b]);
        tcp[0].record(&ledgers[c]);
        tcp[1].record(&ledgers[d]);
        Self { http, tcp, ledgers, dir }
    }

    fn tcp_route(&self) -> Route {
        Route::tcp(self.tcp[0].address(), self.tcp[1].address()).key(&["client-ip"])
    }

    /// Connections they have accepted.
    fn connections(&self) -> u64 {
        let (blue, green) = self.http.connections();
        blue + green + self.tcp.iter().map(|origin| origin.seen().connections()).sum::<u64>()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Ends the origins and their accounts. Returns the folder with all ledgers.
    async fn end(self) -> TempDir {
        let Self { http, tcp, ledgers, dir } = self;
        http.blue.stop().await;
        http.green.stop().await;
        for origin in &tcp {
            origin.stop().await;
        }
        ledgers.into_iter().for_each(|ledger| ledger.close().unwrap());
        dir
    }
}

fn load(protocol: Protocol, address: SocketAddr, stages: &str, connections: usize) -> Load {
    Load {
        protocol,
        endpoint: Endpoint::plain(address),
        target: address.to_string(),
        pace: Pace::Open(Arc::new(stages.parse().unwrap())),
        connections,
        workers: 1,
        keys: Arc::new(Keys::uniform(200).unwrap()),
        timeout: PATIENCE,
        ledger: None,
    }
}

/// A load with a name, by which its ledger is called, and when its arm is decided.
struct Part {
    name: &'static str,
    load: Load,
    decided: Decided,
    /// Which origins it reaches.
    kind: &'static str,
}

impl Part {
    fn new(name: &'static str, kind: &'static str, decided: Decided, load: Load) -> Self {
        Self { name, load, decided, kind }
    }
}

/// 2 000 requests and 200 new connections a second over everything that HTTP and TCP routes carry.
fn everything(http_at: SocketAddr, tcp_at: SocketAddr, seconds: u64) -> Vec<Part> {
    let host = http_at.to_string();
    let stages = |rate: u64| format!("{seconds}s:{rate}");
    let per_connection = |requests, version| HttpLoad {
        requests_per_connection: NonZeroU64::new(requests),
        ..HttpLoad::new(version, &host)
    };
    let web = |version| Protocol::Http(HttpLoad::new(version, &host));
    let websocket = HttpLoad { path: "/ws".to_owned(), ..per_connection(20, HttpVersion::Http1) };
    let line = |requests| Protocol::Tcp(TcpLoad { size: 64, requests_per_connection: NonZeroU64::new(requests) });
    let many = |load: Load| Load { keys: Arc::new(Keys::uniform(1_000_000).unwrap()), ..load };
    let by_source = |load: Load| Load { endpoint: Endpoint { source_by_key: true, ..load.endpoint.clone() }, ..load };
    vec![
        Part::new("http1-kept", "http", Decided::Request, load(web(HttpVersion::Http1), http_at, &stages(900), 32)),
        Part::new(
            "http1-new",
            "http",
            Decided::Request,
            load(Protocol::Http(per_connection(1, HttpVersion::Http1)), http_at, &stages(150), 16),
        ),
        Part::new("http2", "http", Decided::Request, load(web(HttpVersion::Http2), http_at, &stages(500), 2)),
        Part::new(
            "websocket",
            "http",
            Decided::Connection,
            many(load(Protocol::WebSocket(websocket), http_at, &stages(200), 8)),
        ),
        Part::new("tcp-kept", "tcp", Decided::Connection, many(by_source(load(line(50), tcp_at, &stages(150), 8)))),
        Part::new("tcp-new", "tcp", Decided::Connection, many(by_source(load(line(2), tcp_at, &stages(100), 8)))),
    ]
}

/// 200 messages a second from 40 devices that come back every two seconds, QoS 1, each to its own topic. What the brokers
/// took is witnessed past the proxy.
fn devices(at: SocketAddr, brokers: [SocketAddr; 2], seconds: u64) -> Part {
    const DEVICES: usize = 40;
    let brokers = ["python", "go"].into_iter().zip(brokers).map(|(label, address)| Broker {
        label: label.to_owned(),
        address: address.to_string(),
        endpoint: Endpoint::plain(address),
    });
    let mqtt = MqttLoad {
        version: MqttVersion::V311,
        qos: Qos::AtLeastOnce,
        publishers: DEVICES,
        subscribers: 0,
        size: 64,
        persistent: false,
        inflight: NonZeroU16::new(10).unwrap(),
        connect_rate: None,
        keep_alive: 30,
        login: None,
        topic_prefix: "devices".to_owned(),
        reconnect_every: Some(Duration::from_secs(2)),
        brokers: brokers.collect(),
    };
    let load = load(Protocol::Mqtt(Arc::new(mqtt)), at, &format!("{seconds}s:200"), DEVICES);
    let keys = Arc::new(Keys::uniform(DEVICES as u64).unwrap());
    Part::new("mqtt", "mqtt", Decided::Connection, Load { keys, ..load })
}

/// Runs all parts at once, each into a ledger of its own.
async fn run(parts: &[Part], origins: &Origins) -> Vec<Report> {
    let mut running = JoinSet::new();
    for (nth, part) in parts.iter().enumerate() {
        let load = Load { ledger: Some(origins.path(part.name)), ..part.load.clone() };
        running.spawn(async move { (nth, load.run(CancellationToken::new(), |_| {}).await.unwrap()) });
    }
    let mut reports = running.join_all().await;
    reports.sort_by_key(|(nth, _)| *nth);
    reports.into_iter().map(|(_, report)| report).collect()
}

/// Nothing was lost, repeated, answered by both sides or by the wrong one, and keys moved only with a change. `changes`:
/// the file that lists those of a kind's route.
fn check(parts: &[Part], reports: &[Report], dir: &Path, changes: impl Fn(&str) -> PathBuf) {
    for (part, report) in parts.iter().zip(reports) {
        let (name, account) = (part.name, &report.account);
        assert!(account.sent > 0 && account.answered == account.sent, "{name}: {account:?}");
        assert_eq!((account.error_status, account.answered_twice), (0, 0), "{name}: {account:?}");
        let origins = ["python", "go"].map(|label| match part.kind {
            // Witnesses write beside the load's.
            "mqtt" => dir.join(format!("{name}.{label}")),
            kind => dir.join(format!("{kind}-{label}")),
        });
        let verdict = verify::verify(&Inputs {
            ledgers: [dir.join(name)].into_iter().chain(origins).collect(),
            changes: Some(changes(part.kind)),
            arms: Vec::new(),
            decided: part.decided,
            limit: verify::LIMIT,
        });
        let verdict = verdict.unwrap_or_else(|faults| panic!("{name}: {faults}"));
        assert!(verdict.clean, "{name}:\n{}", verdict.json());
        assert_eq!(verdict.requests, account.sent, "{name}");
    }
}

/// A change of a split: when it was asked for, when it was acknowledged, and to what.
struct Change {
    from: u64,
    until: u64,
    green: f64,
}

/// Every answer came from an arm that some split in force between its sending and its end had for its key.
fn check_arms(ledger: &Path, route: &str, changes: &[Change]) {
    let text = fs::read_to_string(ledger).unwrap();
    let mut checked = 0;
    for line in text.lines().skip(1) {
        let fields: Vec<_> = line.split('\t').collect();
        let [_, key, "ok", label, sent, done] = fields[..] else { panic!("{line}") };
        let (sent, done): (u64, u64) = (sent.parse().unwrap(), done.parse().unwrap());
        // A split may be in force from when it was asked for until its successor is acknowledged.
        let in_force = changes
            .iter()
            .enumerate()
            .filter(|(nth, change)| change.from <= done && changes.get(nth + 1).is_none_or(|next| next.until >= sent));
        let mut arms = in_force.map(|(_, change)| match arm_of(route, key.as_bytes(), change.green) {
            config::Arm::Blue => "python",
            config::Arm::Green => "go",
        });
        assert!(arms.any(|arm| arm == label), "{key} was answered by {label}, which no split says: {line}");
        checked += 1;
    }
    assert!(checked > 0);
}

fn write_changes(path: &Path, changes: &[Change]) {
    let lines: Vec<_> = changes.iter().map(|change| format!("{} {}\n", change.from, change.until)).collect();
    fs::write(path, lines.concat()).unwrap();
}

/// A thousand changes of the split, under 2 000 requests a second over kept and new HTTP/1.1 connections, HTTP/2,
/// WebSocket, TCP and MQTT.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_split_changes_lose_nothing() {
    const CHANGES: u64 = 1000;
    const SECONDS: u64 = 25;
    let origins = Origins::start().await;
    let brokers = [Mosquitto::start().await, Mosquitto::start().await];
    let [blue, green] = [&brokers[0], &brokers[1]].map(|broker| broker.address);
    let (web, bus, broker) = (origins.http.route(), origins.tcp_route(), Route::mqtt(blue, green));
    let crossfade = Crossfade::start(&format!("{web}\n{bus}\n{broker}")).await;
    let mut parts = everything(web.listen, bus.listen, SECONDS);
    parts.push(devices(broker.listen, [blue, green], SECONDS));

    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut changes = [("shop", Vec::new()), ("bus", Vec::new()), ("broker", Vec::new())];
    for (_, changes) in &mut changes {
        let before = unix_micros();
        changes.push(Change { from: before, until: before, green: 0.0 });
    }
    let changing = async {
        let mut tick = time::interval(Duration::from_secs(SECONDS) / CHANGES as u32);
        for _ in 0..CHANGES {
            tick.tick().await;
            let (route, changes) = &mut changes[random.usize(..3)];
            let green = f64::from(random.u32(0..=10_000)) / 100.0;
            let from = unix_micros();
            crossfade.admin.split(route, green).await;
            changes.push(Change { from, until: unix_micros(), green });
        }
    };
    let both = async { tokio::join!(run(&parts, &origins), changing) };
    let (reports, ()) = time::timeout(Duration::from_secs(SECONDS * 4), both).await.expect("done in good time");

    let connections = origins.connections();
    let dir = origins.end().await;
    for (route, changes) in &changes {
        write_changes(&dir.path().join(format!("changes-{route}")), changes);
    }
    check(&parts, &reports, dir.path(), |kind| {
        dir.path().join(match kind {
            "http" => "changes-shop",
            "tcp" => "changes-bus",
            _ => "changes-broker",
        })
    });
    for part in parts.iter().filter(|part| part.decided == Decided::Request) {
        check_arms(&dir.path().join(part.name), "shop", &changes[0].1);
    }
    let sent: u64 = reports.iter().map(|report| report.account.sent).sum();
    println!("{sent} requests over {connections} connections to the origins, {CHANGES} changes");
    // Both arms have served, and keys have moved: the scenario was what it says.
    for (part, report) in parts.iter().zip(&reports) {
        assert!(report.arms.contains_key("python") && report.arms.contains_key("go"), "{}", part.name);
        assert!(report.account.moved > 0 || part.decided == Decided::Connection, "{}", part.name);
    }
}

/// Configurations and certificates change every few hundred milliseconds, under load in clear, over TLS and over TCP.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn reloads_of_configuration_and_certificates_lose_nothing() {
    const SECONDS: u64 = 12;
    const RELOADS: u32 = 30;
    let origins = Origins::start().await;
    let (authority, certificates) = (Authority::new(), TempDir::new().unwrap());
    let tls = authority.issue("localhost").write(certificates.path(), "shop");
    let web = origins.http.route().green_percentage(50.0);
    let secure = origins.http.route().named("secure").with(tls).green_percentage(50.0);
    let bus = origins.tcp_route().green_percentage(50.0);
    let crossfade = Crossfade::start(&format!("{web}\n{secure}\n{bus}")).await;

    let mut parts = everything(web.listen, bus.listen, SECONDS);
    authority.write(&certificates.path().join("ca.pem"));
    let trust = Trust::Pem(fs::read(certificates.path().join("ca.pem")).unwrap());
    let over_tls = |name, version, alpn, requests, rate: u32, connections| {
        let config = loadtest::load::tls(&trust, &[alpn]).unwrap();
        let host = format!("localhost:{}", secure.listen.port());
        let web = HttpLoad {
            scheme: "https",
            requests_per_connection: NonZeroU64::new(requests),
            ..HttpLoad::new(version, &host)
        };
        let load = load(Protocol::Http(web), secure.listen, &format!("{SECONDS}s:{rate}"), connections);
        let tls = Some((config, ServerName::try_from("localhost").unwrap()));
        Part::new(name, "http", Decided::Request, Load { endpoint: Endpoint { tls, ..load.endpoint.clone() }, ..load })
    };
    parts.push(over_tls("tls1-kept", HttpVersion::Http1, "http/1.1", u64::MAX, 100, 4));
    parts.push(over_tls("tls1-new", HttpVersion::Http1, "http/1.1", 1, 20, 4));
    parts.push(over_tls("tls2", HttpVersion::Http2, "h2", u64::MAX, 100, 2));

    let reloading = async {
        let mut tick = time::interval(Duration::from_secs(SECONDS - 2) / RELOADS);
        for nth in 0..RELOADS {
            tick.tick().await;
            // Another limit, another route on the same socket, and another certificate, each time.
            let limit = format!("[route.guard]\nmax_error_rate = {}", 0.05 + f64::from(nth) / 1000.0);
            let more =
                origins.http.route().named("more").beside(&web).with(format!("match = {{ path = \"/more{nth}\" }}"));
            authority.issue("localhost").write(certificates.path(), "shop");
            crossfade.rewrite("", &format!("{}\n{more}\n{secure}\n{bus}", web.clone().table(limit)));
            crossfade.signal("HUP");
        }
    };
    let both = async { tokio::join!(run(&parts, &origins), reloading) };
    let (reports, ()) = time::timeout(Duration::from_secs(SECONDS * 5), both).await.expect("done in good time");

    let log = crossfade.log();
    let reloaded = |what: &str| log.iter().filter(|line| line.contains(what)).count();
    let (configurations, certificates) = (reloaded("Configuration reloaded"), reloaded("Certificates reloaded"));
    println!("{configurations} configurations and {certificates} certificates were reloaded");
    // Signals that come while one is being followed are one.
    assert!(configurations >= 10 && certificates >= 10, "{configurations} and {certificates}");
    assert!(!log.iter().any(|line| line.contains("not reloaded")), "{}", log.join("\n"));
    let dir = origins.end().await;
    write_changes(&dir.path().join("none"), &[]);
    check(&parts, &reports, dir.path(), |_| dir.path().join("none"));
}

/// Two takeovers one after the other, each by a process that starts while the one before it carries all the load, which
/// ends by itself when its last connection does.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_process_that_is_replaced_under_load_twice_loses_nothing() {
    const SECONDS: u64 = 12;
    let origins = Origins::start().await;
    let brokers = [Mosquitto::start().await, Mosquitto::start().await];
    let [blue, green] = [&brokers[0], &brokers[1]].map(|broker| broker.address);
    let web = origins.http.route().green_percentage(50.0);
    let bus = origins.tcp_route().green_percentage(50.0);
    let broker = Route::mqtt(blue, green).green_percentage(50.0);
    let routes = format!("{web}\n{bus}\n{broker}");
    let mut crossfade = Crossfade::start_with("[server]\ndrain = \"30s\"", &routes).await;
    let mut parts = everything(web.listen, bus.listen, SECONDS);
    parts.push(devices(broker.listen, [blue, green], SECONDS));

    let replacing = async {
        let mut before = Vec::new();
        for _ in 0..2 {
            time::sleep(Duration::from_secs(SECONDS / 4)).await;
            before.push(crossfade.take_over().await);
        }
        before
    };
    let both = async { tokio::join!(run(&parts, &origins), replacing) };
    let (reports, before) = time::timeout(Duration::from_secs(SECONDS * 5), both).await.expect("done in good time");
    for mut process in before {
        assert_eq!(process.ended().await, Some(0));
    }
    let dir = origins.end().await;
    write_changes(&dir.path().join("none"), &[]);
    check(&parts, &reports, dir.path(), |_| dir.path().join("none"));
    let sent: u64 = reports.iter().map(|report| report.account.sent).sum();
    println!("{sent} requests, two takeovers");
}
