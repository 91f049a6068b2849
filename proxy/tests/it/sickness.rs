//! Arms that fall sick at a known moment, under load: how long it is until green is at 0, and when it must stay.
//!
//! A test is one proxy with a route for each sickness, so that all of them take the time of one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use ::config::Arm;
use http::StatusCode;
use loadtest::origin::{Behaviour, HttpOrigin, Latency};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{self, Instant},
};

use crate::{
    clients::get_request,
    harness::{Crossfade, eventually},
    loads::{Load, connections, connects, exchanges, requests, sessions},
    mosquitto::Mosquitto,
    packets::{ACCEPTED, PINGREQ, PINGRESP, UNAVAILABLE, read_packet},
    routes::Route,
    site::{RawOrigin, Site, any_port, arm_of},
};

/// What befalls an arm.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Sickness {
    /// Every request is answered 500, every CONNECT "server unavailable".
    Errors,
    /// Three times the latency.
    Slow,
    /// Nothing is answered.
    Silent,
    /// Nobody listens any more.
    Refused,
    /// Connections are accepted, CONNECTs too, and closed at once.
    CutOff,
    /// 30 % of requests are reset.
    Resets,
    /// Each second another 2 % of requests are answered 500.
    Drift,
    /// One second in ten nothing is answered.
    Stalls,
}

impl Sickness {
    /// Green must be at 0 by then. The guard's own times, twice, for machines that are busy.
    fn bound(self) -> Duration {
        Duration::from_secs(match self {
            Self::Errors | Self::Refused | Self::CutOff | Self::Resets => 14,
            Self::Slow | Self::Silent | Self::Drift => 25,
            Self::Stalls => unreachable!("nothing trips"),
        })
    }

    /// The rule that finds it.
    fn rule(self) -> &'static str {
        match self {
            Self::Errors | Self::Refused | Self::Resets | Self::Drift => "error_rate",
            Self::CutOff => "cut_off_share",
            Self::Slow => "p95_ratio",
            Self::Silent => "throughput",
            Self::Stalls => unreachable!("nothing trips"),
        }
    }

    /// What is slow is so beside what is usual. Where both are, that is soon what is usual.
    fn breaks_limits_of_both(self) -> bool {
        self != Self::Slow
    }
}

/// The server of one arm.
enum Origin {
    Http(HttpOrigin),
    /// A broker that knows CONNECT and PINGREQ and no more, or an origin of lines.
    Raw {
        origin: RawOrigin,
        sickness: Arc<Mutex<Option<Sickness>>>,
    },
    Mosquitto(Mosquitto),
}

impl Origin {
    async fn http(label: &str, usual: Duration) -> Self {
        let origin = HttpOrigin::start(label, any_port()).await.unwrap();
        origin.behaviour().change(|b| b.latency = latency(usual));
        Self::Http(origin)
    }

    async fn broker() -> Self {
        let sickness = Arc::<Mutex<Option<Sickness>>>::default();
        let shared = Arc::clone(&sickness);
        let serve = move |mut client: TcpStream, _| {
            let sickness = Arc::clone(&shared);
            async move {
                if read_packet(&mut client).await.is_none() {
                    return;
                }
                let now = *sickness.lock().unwrap();
                let answer = match now {
                    None | Some(Sickness::CutOff) => ACCEPTED,
                    Some(Sickness::Errors) => UNAVAILABLE,
                    Some(_) => &[],
                };
                let _ = client.write_all(answer).await;
                if now == Some(Sickness::CutOff) {
                    return;
                }
                while let Some(packet) = read_packet(&mut client).await {
                    if packet == PINGREQ {
                        let _ = client.write_all(PINGRESP).await;
                    }
                }
            }
        };
        Self::Raw { origin: RawOrigin::start(serve).await, sickness }
    }

    async fn lines(label: &'static str) -> Self {
        let sickness = Arc::<Mutex<Option<Sickness>>>::default();
        let shared = Arc::clone(&sickness);
        let serve = move |mut client: TcpStream, _| {
            let sickness = *shared.lock().unwrap();
            async move {
                // A question is always the same.
                let mut question = [0; 2];
                while sickness.is_none() && client.read_exact(&mut question).await.is_ok() {
                    let _ = client.write_all(format!("{label}:?\n").as_bytes()).await;
                }
            }
        };
        Self::Raw { origin: RawOrigin::start(serve).await, sickness }
    }

    fn address(&self) -> SocketAddr {
        match self {
            Self::Http(origin) => origin.address(),
            Self::Raw { origin, .. } => origin.address,
            Self::Mosquitto(broker) => broker.address,
        }
    }

    async fn fall_sick(&mut self, with: Sickness) {
        match self {
            Self::Http(origin) if with == Sickness::Refused => origin.stop().await,
            Self::Http(origin) => origin.behaviour().change(|b| match with {
                Sickness::Errors => b.status = Some(StatusCode::INTERNAL_SERVER_ERROR),
                Sickness::Slow => b.latency = latency(3 * LONG),
                Sickness::Silent => b.hang = true,
                Sickness::Resets => b.reset_share = 0.3,
                Sickness::Drift => b.error_growth = 0.02,
                Sickness::Stalls => b.stall = Some("1s/10s".parse().unwrap()),
                Sickness::Refused | Sickness::CutOff => unreachable!("it is stopped, or speaks no HTTP"),
            }),
            Self::Raw { sickness, .. } => *sickness.lock().unwrap() = Some(with),
            Self::Mosquitto(broker) => broker.stop(),
        }
    }
}

/// What answers take where that matters: long beside what a busy machine adds, which is added to both.
const LONG: Duration = Duration::from_millis(300);

/// As widely spread as answers commonly are.
fn latency(median: Duration) -> Latency {
    format!("lognormal:{}ms,sigma=0.5", median.as_millis()).parse().unwrap()
}

/// A route between two arms that are well, and what will befall them.
struct Case {
    route: Route,
    sickness: Sickness,
    blue: Origin,
    green: Origin,
    since: Option<Instant>,
}

impl Case {
    /// `name`: of the route, and begins with its protocol.
    async fn new(name: &'static str, sickness: Sickness) -> Self {
        let protocol = name.split('-').next().unwrap();
        let (blue, green, route): (_, _, fn(_, _) -> _) = match (protocol, sickness) {
            ("http", _) => {
                let usual = if sickness == Sickness::Slow { LONG } else { Duration::from_millis(10) };
                (Origin::http("python", usual).await, Origin::http("go", usual).await, Route::http)
            }
            ("tcp", _) => (Origin::lines("python").await, Origin::lines("go").await, Route::tcp),
            ("mqtt", Sickness::Refused) => {
                (Origin::Mosquitto(Mosquitto::start().await), Origin::Mosquitto(Mosquitto::start().await), Route::mqtt)
            }
            ("mqtt", _) => (Origin::broker().await, Origin::broker().await, Route::mqtt),
            _ => panic!("{name} begins with no protocol"),
        };
        let route = route(blue.address(), green.address()).named(name).green_percentage(50.0);
        Self { route, sickness, blue, green, since: None }
    }

    fn setting(mut self, change: impl FnOnce(Route) -> Route) -> Self {
        self.route = change(self.route);
        self
    }

    /// Load of many keys, `rate` a second.
    fn load(&self, rate: u32) -> Load {
        let listen = self.route.listen;
        match (&self.green, self.sickness) {
            // What is reset must not be sent again by the proxy, or fewer than 30 % would show.
            (Origin::Http(_), Sickness::Resets) => Load::start(rate, exchanges(listen, post)),
            (Origin::Http(_), _) => Load::start(rate, requests(listen)),
            (Origin::Raw { .. }, Sickness::CutOff) if self.route.name.starts_with("tcp") => {
                Load::start(rate, connections(listen))
            }
            (Origin::Raw { .. }, Sickness::CutOff) => Load::start(rate, sessions(listen)),
            (Origin::Raw { .. } | Origin::Mosquitto(_), _) => Load::start(rate, connects(listen)),
        }
    }

    async fn green_falls_sick(&mut self) {
        self.since = Some(Instant::now());
        self.green.fall_sick(self.sickness).await;
    }

    async fn both_fall_sick(&mut self) {
        self.since = Some(Instant::now());
        tokio::join!(self.blue.fall_sick(self.sickness), self.green.fall_sick(self.sickness));
    }
}

fn post(n: u16) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nhost: shop.example\r\nx-session-id: user-{n}\r\ncontent-length: 0\r\n\r\n").into_bytes()
}

fn configuration<'a>(cases: impl IntoIterator<Item = &'a Case>) -> String {
    cases.into_iter().map(|case| case.route.to_string()).collect()
}

/// `/status` by route.
async fn statuses(crossfade: &Crossfade) -> BTreeMap<String, Value> {
    let (_, mut all) = crossfade.admin.get("/status").await;
    let routes = all["routes"].as_array_mut().unwrap().drain(..);
    routes.map(|status| (status["route"].as_str().unwrap().to_owned(), status)).collect()
}

/// Waits until each is a `pass`, with so many latencies of blue to compare with.
async fn well<'a>(crossfade: &Crossfade, routes: impl IntoIterator<Item = &'a Route>, latencies: u64) {
    let routes: Vec<_> = routes.into_iter().map(|route| route.name).collect();
    eventually("all are well", async || {
        let all = statuses(crossfade).await;
        let is_well = |route: &&str| {
            let judgement = &all[*route]["guard"]["judgement"];
            judgement["verdict"] == "pass" && judgement["baseline"]["latencies"].as_u64() >= Some(latencies)
        };
        routes.iter().all(is_well).then_some(())
    })
    .await;
}

/// Waits until green is at 0 everywhere. How long after its sickness that was, as seen every 50 ms.
async fn all_off<'a>(crossfade: &Crossfade, cases: impl IntoIterator<Item = &'a Case>) -> BTreeMap<&'a str, Duration> {
    let mut on: BTreeMap<_, _> = cases.into_iter().map(|case| (case.route.name, case)).collect();
    let mut off = BTreeMap::new();
    let begun = Instant::now();
    let mut ticks = time::interval(Duration::from_millis(50));
    while !on.is_empty() {
        ticks.tick().await;
        let (_, splits) = crossfade.admin.get("/traffic-split").await;
        for split in splits["routes"].as_array().unwrap() {
            if split["green"]["percentage"] == 0
                && let Some(case) = on.remove(split["route"].as_str().unwrap())
            {
                off.insert(case.route.name, case.since.unwrap().elapsed());
            }
        }
        if begun.elapsed() > Duration::from_secs(30) {
            let statuses = statuses(crossfade).await;
            let why: Vec<_> =
                on.keys().map(|route| format!("{route}: {}", statuses[*route]["guard"]["judgement"])).collect();
            panic!("green serves on, off are {off:?}:\n{}", why.join("\n"));
        }
    }
    off
}

/// Holds the times against their bounds, the incidents against the rules that should have found them, and prints both.
async fn assert_promised<'a>(
    crossfade: &Crossfade,
    cases: impl IntoIterator<Item = &'a Case>,
    off: &BTreeMap<&str, Duration>,
    failed: impl Fn(&str) -> usize,
) {
    // Green is off before it is written why.
    let incidents = eventually("each trip has its incident", async || {
        let (_, incidents) = crossfade.admin.get("/incidents").await;
        (incidents["incidents"].as_array().unwrap().len() >= off.len()).then_some(incidents)
    })
    .await;
    let mut late = Vec::new();
    eprintln!("{:<32} {:>8} {:>9}  why", "route", "off", "failures");
    for case in cases {
        let (route, took) = (case.route.name, off[case.route.name]);
        let incident = incidents["incidents"].as_array().unwrap().iter().find(|incident| incident["route"] == route);
        let incident = incident.unwrap_or_else(|| panic!("no incident of {route}"));
        eprintln!("{route:<32} {:>6.2} s {:>9}  {}", took.as_secs_f64(), failed(route), incident["reason"]);
        let is_broken = |rule: &Value| rule["rule"] == case.sickness.rule() && rule["verdict"] == "breach";
        assert!(incident["rules"].as_array().unwrap().iter().any(is_broken), "{incident}");
        if took > case.sickness.bound() {
            late.push((route, took));
        }
    }
    assert!(late.is_empty(), "{late:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn green_is_off_within_seconds_whatever_befalls_it() {
    let mut cases = [
        Case::new("http-500s", Sickness::Errors).await,
        Case::new("http-3-times-as-slow", Sickness::Slow).await,
        Case::new("http-black-hole", Sickness::Silent).await,
        Case::new("http-refused", Sickness::Refused).await,
        Case::new("http-refused-no-fallback", Sickness::Refused)
            .await
            .setting(|route| route.with("fallback = \"none\"")),
        Case::new("http-30-percent-resets", Sickness::Resets).await,
        Case::new("http-drift", Sickness::Drift).await,
        Case::new("mqtt-refusals", Sickness::Errors).await,
        Case::new("mqtt-killed", Sickness::Refused).await,
        Case::new("mqtt-black-hole", Sickness::Silent).await,
    ];
    let crossfade = Crossfade::start(&configuration(&cases)).await;
    let loads: BTreeMap<_, _> = cases.iter().map(|case| (case.route.name, case.load(200))).collect();
    well(&crossfade, cases.iter().map(|case| &case.route), 800).await;
    // A second has just begun, so its bad events count only when it is over: these are the longest times.
    for case in &mut cases {
        case.green_falls_sick().await;
    }
    let off = all_off(&crossfade, &cases).await;
    assert_promised(&crossfade, &cases, &off, |route| loads[route].bad()).await;
    // Blue serves them all: of what was under way when it stopped listening some may have failed.
    for route in ["http-refused", "mqtt-killed"] {
        assert!(loads[route].bad() < 50, "{route}: {} failures", loads[route].bad());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_green_that_takes_connections_and_drops_them_is_off_within_seconds() {
    let mut cases =
        [Case::new("mqtt-cut-off", Sickness::CutOff).await, Case::new("tcp-cut-off", Sickness::CutOff).await];
    let crossfade = Crossfade::start(&configuration(&cases)).await;
    let loads: BTreeMap<_, _> = cases.iter().map(|case| (case.route.name, case.load(100))).collect();
    well(&crossfade, cases.iter().map(|case| &case.route), 200).await;
    for case in &mut cases {
        case.green_falls_sick().await;
    }
    let off = all_off(&crossfade, &cases).await;
    assert_promised(&crossfade, &cases, &off, |route| loads[route].bad()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_befalls_both_arms_or_one_client_or_only_for_a_second_is_not_held_against_green() {
    let mut held = [
        Case::new("http-500s-hold", Sickness::Errors).await,
        Case::new("http-3-times-as-slow-hold", Sickness::Slow).await,
        Case::new("http-black-hole-hold", Sickness::Silent).await,
        Case::new("http-refused-hold", Sickness::Refused).await,
        Case::new("http-30-percent-resets-hold", Sickness::Resets).await,
        Case::new("http-drift-hold", Sickness::Drift).await,
        Case::new("mqtt-refusals-hold", Sickness::Errors).await,
        Case::new("mqtt-killed-hold", Sickness::Refused).await,
        Case::new("mqtt-black-hole-hold", Sickness::Silent).await,
        Case::new("mqtt-cut-off-hold", Sickness::CutOff).await,
    ];
    let rolled_back = [
        Case::new("http-500s-rollback", Sickness::Errors).await,
        Case::new("http-black-hole-rollback", Sickness::Silent).await,
        Case::new("http-refused-rollback", Sickness::Refused).await,
        Case::new("http-30-percent-resets-rollback", Sickness::Resets).await,
        Case::new("http-drift-rollback", Sickness::Drift).await,
        Case::new("mqtt-refusals-rollback", Sickness::Errors).await,
        Case::new("mqtt-killed-rollback", Sickness::Refused).await,
        Case::new("mqtt-black-hole-rollback", Sickness::Silent).await,
        Case::new("mqtt-cut-off-rollback", Sickness::CutOff).await,
    ];
    let shared_cause = "[route.guard]\nshared_cause = \"rollback\"";
    let mut rolled_back = rolled_back.map(|case| case.setting(|route| route.table(shared_cause)));
    let mut stalling = Case::new("http-stalls", Sickness::Stalls).await;
    let site = Site::start().await;
    let clumsy = site.route().named("http-broken-client").green_percentage(50.0);

    let all = held.iter().chain(&rolled_back).chain([&stalling]);
    let crossfade = Crossfade::start(&format!("{}{clumsy}", configuration(all))).await;
    let rate = 40;
    let held_loads: Vec<_> = held.iter().map(|case| case.load(rate)).collect();
    let loads: BTreeMap<_, _> = rolled_back.iter().map(|case| (case.route.name, case.load(rate))).collect();
    let steady = [stalling.load(100), Load::start(100, requests(clumsy.listen))];
    well(&crossfade, [&stalling.route, &clumsy], 200).await;

    // Three in ten requests are of one client, which fails whatever it does.
    let key = (0..).map(|n| format!("broken-{n}")).find(|key| arm_of(clumsy.name, key.as_bytes(), 50.0) == Arm::Green);
    let broken = get_request("/status/500", &[("x-session-id", &key.unwrap())]);
    let broken = Load::start(43, exchanges(clumsy.listen, move |_| broken.clone()));
    let begun = Instant::now();
    stalling.both_fall_sick().await;

    // Long enough for blue to be known, or what befalls it would soon be what is usual.
    well(&crossfade, held.iter().chain(&rolled_back).map(|case| &case.route), 200).await;
    for case in held.iter_mut().chain(&mut rolled_back) {
        case.both_fall_sick().await;
    }

    let seen_for_twenty_seconds = async {
        let (begun, mut shared) = (Instant::now(), BTreeSet::new());
        while begun.elapsed() < Duration::from_secs(20) {
            let is_shared = |status: &Value| status["guard"]["judgement"]["shared_cause"] == true;
            let statuses = statuses(&crossfade).await.into_iter();
            shared.extend(statuses.filter(|(_, status)| is_shared(status)).map(|(route, _)| route));
            time::sleep(Duration::from_millis(200)).await;
        }
        (shared, statuses(&crossfade).await)
    };
    let (off, (shared, statuses_then)) = tokio::join!(all_off(&crossfade, &rolled_back), seen_for_twenty_seconds);
    assert_promised(&crossfade, &rolled_back, &off, |route| loads[route].bad()).await;
    for case in &held {
        let status = &statuses_then[case.route.name];
        // What is latched stays so: it was never tripped.
        assert_eq!((&status["green"]["percentage"], &status["latched"]), (&json!(50), &json!(false)), "{status}");
        if case.sickness.breaks_limits_of_both() {
            assert!(shared.contains(case.route.name), "no shared cause: {status}");
        }
    }
    drop((held_loads, loads));

    time::sleep_until(begun + Duration::from_secs(40)).await;
    let statuses = statuses(&crossfade).await;
    for route in [stalling.route.name, clumsy.name] {
        let status = &statuses[route];
        assert_eq!((&status["green"]["percentage"], &status["latched"]), (&json!(50), &json!(false)), "{status}");
    }
    let green = &statuses[clumsy.name]["green"]["last_minute"];
    assert!(green["error_rate"].as_f64() > Some(0.3), "{green}");
    let judgement = &statuses[clumsy.name]["guard"]["judgement"];
    assert!(judgement["reason"].as_str().unwrap().contains("nearly all of it is of 1 key"), "{judgement}");
    let waited = &statuses[stalling.route.name]["green"]["last_minute"]["p99_ms"];
    assert!(waited.as_f64() > Some(500.0), "it did stall: {waited}");
    drop((steady, broken));
}

#[tokio::test]
async fn a_disk_that_takes_nothing_delays_no_trip() {
    let site = Site::start().await;
    let route = site.route().green_percentage(50.0);
    let mut crossfade = Crossfade::start_on_a_small_disk(&route.to_string()).await;
    let load = Load::start(100, requests(route.listen));
    well(&crossfade, [&route], 100).await;

    let pid = crossfade.pid().to_string();
    let files_of_at_most = |bytes: &str| {
        let limit = format!("--fsize={bytes}:unlimited");
        let limited = Command::new("prlimit").args(["--pid", &pid, &limit]).status();
        assert!(limited.expect("prlimit is installed (util-linux)").success());
    };
    files_of_at_most("1");
    let raise = json!({ "route": "shop", "green_percentage": 60 });
    let (status, answer) = crossfade.admin.post("/traffic-split", &raise).await;
    assert!(status.is_server_error(), "{status}: {answer}");

    let since = Instant::now();
    site.green.behaviour().set(Behaviour { status: Some(StatusCode::BAD_GATEWAY), ..Behaviour::default() });
    eventually("green is at 0", async || (crossfade.admin.green("shop").await == 0.0).then_some(())).await;
    let took = since.elapsed();
    eprintln!("{:<32} {:>6.2} s", "http-500s, the disk is full", took.as_secs_f64());
    assert!(took < Sickness::Errors.bound(), "{took:?}");
    let state = crossfade.admin.status("shop").await;
    assert_eq!((&state["latched"], &state["persisted"]), (&json!(true), &json!(false)), "{state}");
    let (at_green, good) = (site.green.seen().requests(), load.good());
    eventually("traffic goes on", async || (load.good() >= good + 200).then_some(())).await;
    // Requests that had started before the trip may still have been under way.
    assert!(site.green.seen().requests() <= at_green + 5, "green is asked after the trip");
    assert_eq!(crossfade.admin.status("shop").await["persisted"], false);

    // It is recorded as soon as the disk takes it, and survives what comes then.
    files_of_at_most("unlimited");
    eventually("it is recorded", async || (crossfade.admin.status("shop").await["persisted"] == true).then_some(()))
        .await;
    load.stop().await;
    crossfade.kill_and_restart().await;
    assert_eq!(crossfade.admin.status("shop").await["latched"], true);
    assert_eq!(crossfade.admin.green("shop").await, 0.0);
    let (_, incidents) = crossfade.admin.get("/incidents").await;
    assert_eq!(incidents["incidents"].as_array().unwrap().len(), 1, "{incidents}");
}
