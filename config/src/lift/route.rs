//! One `[[route]]`.

use std::{net::SocketAddr, ops::RangeInclusive, path::Path, time::Duration};

use super::{key, path, plan, signal, tls_files};
use crate::{
    Arm, ArmSettings, Endpoint, Fallback, Guard, Health, HealthProbe, HttpVersion, KeySource, Keyless, Match, Mirror,
    PauseLimits, Protocol, Route, SharedCause, Split, Timeouts, UpstreamTls, address,
    fault::{Flaw, quoted},
    reader::{Spot, Table, Value},
};

/// What could be read of a route, for the checks between routes, which want to say something even of faulty ones.
pub(super) struct Draft {
    pub(super) name: Option<String>,
    pub(super) protocol: Option<Protocol>,
    pub(super) listen: Option<SocketAddr>,
    /// Whether there is a `tls`, faulty or not.
    pub(super) tls: bool,
    pub(super) matching: Option<Match>,
    /// The routes that the plan waits for, if there is one.
    pub(super) after: Option<Vec<(Spot, String)>>,
    /// `None`: a fault has been reported.
    pub(super) route: Option<Route>,
    pub(super) spots: Spots,
}

/// Where the settings of a draft are.
pub(super) struct Spots {
    pub(super) name: Spot,
    pub(super) listen: Spot,
    pub(super) tls: Spot,
    pub(super) matching: Spot,
}

pub(super) fn lift(table: &mut Table<'_>, base: &Path) -> Draft {
    let name = table.required("name", "write name = \"shop\"").and_then(|value| word(&value));
    let protocol = table
        .required("protocol", "write protocol = \"http\", \"mqtt\" or \"tcp\"")
        .and_then(|value| value.choice(&[("http", Protocol::Http), ("mqtt", Protocol::Mqtt), ("tcp", Protocol::Tcp)]));
    let listen = table.required("listen", "write listen = \"127.0.0.1:8080\"").and_then(|value| value.socket());
    let spots = Spots {
        name: table.spot("name"),
        listen: table.spot("listen"),
        tls: table.spot("tls"),
        matching: table.spot("match"),
    };
    let tls = tls_files(table, base);
    let has_tls = table.has("tls");
    let key = match table.take("key") {
        Some(value) => key_sources(&value, protocol, has_tls),
        None => protocol.map(|protocol| vec![key::default(protocol)]),
    };
    let keyless = table.choice("keyless", &[("blue", Keyless::Blue), ("random", Keyless::Random)], Keyless::Blue);
    let fallback = table.choice("fallback", &[("blue", Fallback::Blue), ("none", Fallback::None)], Fallback::Blue);
    let initial_split = table.take("green_percentage").and_then(|value| value.percent()).unwrap_or(Split::NONE);
    http_only(table, protocol, &["match", "expose_arm", "allow_override", "mirror"]);
    let expose_arm = table.boolean("expose_arm", false);
    let allow_override = table.boolean("allow_override", false);
    let matching = match table.table("match", "match = { host = \"shop.example\", path = \"/\" }", matching) {
        Some(matching) => matching,
        None => Some(Match::default()).filter(|_| !table.has("match")),
    };
    let timeouts = table.table("timeouts", "[route.timeouts]", timeouts).unwrap_or_default();
    let health = match table.table("health", "[route.health] with probe = \"tcp\"", |table| health(table, protocol)) {
        Some(health) => health,
        None => Some(Health::default()),
    };
    let mirror = table.table("mirror", "[route.mirror] with sample = 10.0", mirror).flatten();
    let mirrored = table.has("mirror");
    let guard = match table.table("guard", "[route.guard] with mode = \"on\"", |table| guard(table, protocol, mirrored))
    {
        Some(guard) => guard,
        None => Some(Guard::default()),
    };
    let mut names = Vec::new();
    let signals = table
        .take("signal")
        .and_then(|value| value.tables("route.signal", |table| signal::lift(table, &mut names)))
        .unwrap_or_default();
    let around = plan::Around { guard: guard.as_ref(), mirrored, signals: &names };
    let plan = table.table("plan", "[route.plan] with a [[route.plan.step]]", |table| plan::lift(table, &around));
    table.belongs_below("step", "write its header with plan: [[route.plan.step]]");
    let (plan, after) = plan.map(|draft| (draft.plan, draft.after)).unzip();
    // What is no table is a faulty plan, and not none: who waits for it is not at fault.
    let after = after.or_else(|| table.has("plan").then(Vec::new));
    let mut labels = Vec::new();
    let blue = arm(table, Arm::Blue, &mut labels, protocol, listen, base);
    let green = arm(table, Arm::Green, &mut labels, protocol, listen, base);
    let route = || {
        Some(Route {
            name: name.clone()?,
            protocol: protocol?,
            listen: listen?,
            tls,
            matching: matching.clone()?,
            key: key?,
            keyless,
            fallback,
            initial_split,
            expose_arm,
            allow_override,
            blue: blue?,
            green: green?,
            timeouts,
            health,
            mirror,
            guard,
            signals: signals.into_iter().collect::<Option<_>>()?,
            plan: plan.flatten(),
        })
    };
    let route = route();
    Draft { name, protocol, listen, tls: has_tls, matching, after, route, spots }
}

/// The name of a route, a signal or an alert, or an arm's label. People type them, and they end up in URLs, metrics and
/// JSON fields.
pub(super) fn word(value: &Value<'_>) -> Option<String> {
    let text = value.string()?;
    let valid = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if text.is_empty() || text.len() > 64 || !valid {
        value.fault(
            format!("{} is not a name", quoted(text)),
            "write 1 to 64 of the characters a-z, A-Z, 0-9, '-' and '_'",
        );
        return None;
    }
    Some(text.to_owned())
}

fn http_only(table: &Table<'_>, protocol: Option<Protocol>, keys: &[&str]) {
    let Some(protocol @ (Protocol::Mqtt | Protocol::Tcp)) = protocol else { return };
    for key in keys {
        if table.has(key) {
            table.fault(key, format!("only an http route has it, and this one is {protocol}"), "remove it");
        }
    }
}

fn key_sources(value: &Value<'_>, protocol: Option<Protocol>, tls: bool) -> Option<Vec<KeySource>> {
    let items = value.list()?;
    if items.is_empty() {
        value.fault("is empty", format!("write {}", key::choices(protocol)));
        return None;
    }
    let mut sources: Vec<KeySource> = Vec::new();
    for item in &items {
        let Some(source) = item.string().and_then(|text| item.accept(key::parse(text, protocol))) else { continue };
        if let Some(protocol) = protocol.filter(|protocol| !key::fits(&source, *protocol)) {
            item.fault(
                format!("a route with protocol = \"{protocol}\" has no such key"),
                format!("write {}", key::choices(Some(protocol))),
            );
        } else if source == KeySource::Sni && tls {
            item.fault(
                "this route ends tls itself, so no server name is left to peek at",
                "write \"client-ip\", or remove tls from the route",
            );
        } else if sources.contains(&source) {
            item.fault("is in the list twice", "remove one of the two");
        } else if sources.contains(&KeySource::ClientIp) {
            item.fault("is never tried, because client-ip before it is always present", "move client-ip to the end");
        }
        sources.push(source);
    }
    (sources.len() == items.len()).then_some(sources)
}

fn matching(table: &mut Table<'_>) -> Option<Match> {
    let default = Match::default();
    let host = match table.take("host") {
        Some(value) => value.string().and_then(|text| value.accept(address::host(text))).map(Some),
        None => Some(default.host),
    };
    let path = match table.take("path") {
        Some(value) => request_path(&value, "?#").map(|path| without_last_slash(&path)),
        None => Some(default.path),
    };
    Some(Match { host: host?, path: path? })
}

/// `/api/` and `/api` mean the same prefix; one spelling lets two routes be compared.
fn without_last_slash(path: &str) -> String {
    match path.trim_end_matches('/') {
        "" => "/".to_owned(),
        trimmed => trimmed.to_owned(),
    }
}

/// A path as it stands in a request line, without the characters of `except`.
fn request_path(value: &Value<'_>, except: &str) -> Option<String> {
    let text = value.string()?;
    let path = if !text.starts_with('/') {
        Err(Flaw::new(format!("{} does not start with '/'", quoted(text)), "write a path such as \"/api\""))
    } else if let Some(character) = text.chars().find(|c| !c.is_ascii_graphic() || except.contains(*c)) {
        Err(Flaw::new(
            format!("{} has the character {character:?}", quoted(text)),
            "write a path as clients send it, percent-encoded where needed",
        ))
    } else {
        Ok(text.to_owned())
    };
    value.accept(path)
}

fn timeouts(table: &mut Table<'_>) -> Timeouts {
    let default = Timeouts::default();
    Timeouts {
        request_header: table.duration("request_header", default.request_header),
        keepalive: table.duration("keepalive", default.keepalive),
        connect: table.duration("connect", default.connect),
        response_header: table.duration("response_header", default.response_header),
        idle: table.duration("idle", default.idle),
        write: table.duration("write", default.write),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Probe {
    Tcp,
    Http,
    Off,
}

fn health(table: &mut Table<'_>, protocol: Option<Protocol>) -> Option<Health> {
    let default = Health::default();
    let probe = table.choice("probe", &[("tcp", Probe::Tcp), ("http", Probe::Http), ("off", Probe::Off)], Probe::Tcp);
    if let (Probe::Http, Some(protocol @ (Protocol::Mqtt | Protocol::Tcp))) = (probe, protocol) {
        table.fault("probe", format!("only an http route has it, and this one is {protocol}"), "write probe = \"tcp\"");
    }
    let path = table.take("path");
    match (&path, probe) {
        (None, Probe::Http) => table.fault("path", "is missing", "write path = \"/health\""),
        (Some(path), Probe::Tcp) => {
            path.fault("a tcp probe asks for no path", "write probe = \"http\", or remove the path");
        }
        _ => {}
    }
    let path = path.and_then(|value| request_path(&value, "#")).unwrap_or_default();
    let interval = table.duration("interval", default.interval);
    // The default follows a shorter interval: who asks for more checks a second has not asked for a fault.
    let timeout = table.duration("timeout", default.timeout.min(interval));
    if timeout > interval {
        table.fault(
            "timeout",
            format!("is longer than the interval, {interval:?}"),
            "write a timeout of at most the interval, or a longer interval",
        );
    }
    let healthy_after = table.integer("healthy_after", 1..=1000, default.healthy_after);
    let unhealthy_after = table.integer("unhealthy_after", 1..=1000, default.unhealthy_after);
    let probe = match probe {
        Probe::Tcp => HealthProbe::Tcp,
        Probe::Http => HealthProbe::Http { path },
        Probe::Off => return None,
    };
    Some(Health { probe, interval, timeout, healthy_after, unhealthy_after })
}

/// A body is held in memory once for each copy under way.
const LARGEST_BODY: u64 = 16 * 1024 * 1024;

fn mirror(table: &mut Table<'_>) -> Option<Mirror> {
    let sample = table.required("sample", "write sample = 10.0 for 10 per cent of the keys");
    let max_in_flight = table.integer("max_in_flight", 1..=10_000, 100);
    let timeout = table.duration("timeout", Duration::from_secs(5));
    let max_body = table.take("max_body").and_then(|value| value.size(1..=LARGEST_BODY)).unwrap_or(64 * 1024);
    Some(Mirror { sample: sample?.percent()?, max_in_flight, timeout, max_body })
}

fn guard(table: &mut Table<'_>, protocol: Option<Protocol>, mirrored: bool) -> Option<Guard> {
    let default = Guard::default();
    let armed = table.choice("mode", &[("on", true), ("off", false)], true);
    let max_error_rate = optional_share(table, "max_error_rate", FEW).unwrap_or(default.max_error_rate);
    let max_error_increase = bounded(
        table.take("max_error_increase"),
        |increase| increase > 0.0 && increase <= 100.0,
        "write a share of blue's error rate above 0 and at most 100, such as 0.5 for half as much again",
    );
    let max_p95_ratio = optional_ratio(table, "max_p95_ratio").or(default.max_p95_ratio);
    let min_match_rate = min_match_rate(table, protocol, mirrored);
    let guard = Guard {
        max_error_rate,
        max_error_increase,
        max_connect_failures: optional_share(table, "max_connect_failures", FEW),
        max_p50_ratio: optional_ratio(table, "max_p50_ratio"),
        max_p95_ratio,
        max_p99_ratio: optional_ratio(table, "max_p99_ratio"),
        min_throughput: optional_share(table, "min_throughput", "0.5 for half of blue's")
            .unwrap_or(default.min_throughput),
        answer_within: whole_seconds(table, "answer_within", default.answer_within, 1..=60),
        min_match_rate,
        max_failed_checks: table.integer("max_failed_checks", 1..=1000, default.max_failed_checks),
        min_requests: table.integer("min_requests", 1..=1_000_000_000, default.min_requests),
        min_keys: table.integer("min_keys", 1..=32, default.min_keys),
        baseline: whole_seconds(table, "baseline", default.baseline, 10..=300),
        shared_cause: table.choice(
            "shared_cause",
            &[("hold", SharedCause::Hold), ("rollback", SharedCause::Rollback)],
            default.shared_cause,
        ),
        pause: table
            .table("pause", "[route.guard.pause] with max_error_rate = 0.01", |table| {
                let pause = PauseLimits {
                    max_error_rate: optional_share(table, "max_error_rate", FEW),
                    max_p95_ratio: optional_ratio(table, "max_p95_ratio"),
                    min_match_rate: self::min_match_rate(table, protocol, mirrored),
                };
                check_stricter(table, &pause, max_error_rate, max_p95_ratio, min_match_rate);
                pause
            })
            .unwrap_or_default(),
    };
    armed.then_some(guard)
}

/// The limits that take green off come first: one to pause at that is not stricter would never be reached.
fn check_stricter(
    table: &Table<'_>,
    limits: &PauseLimits,
    max_error_rate: f64,
    max_p95_ratio: Option<f64>,
    min_match_rate: Option<f64>,
) {
    let stricter = |key, pause: Option<f64>, limit: Option<f64>, side, is: fn(&f64, &f64) -> bool| {
        if let (Some(pause), Some(limit)) = (pause, limit)
            && !is(&pause, &limit)
        {
            let problem = format!("{pause} is not {side} the limit at which green is taken off, {limit}");
            table.fault(key, problem, "write a stricter limit, or leave it out");
        }
    };
    stricter("max_error_rate", limits.max_error_rate, Some(max_error_rate), "below", f64::lt);
    stricter("max_p95_ratio", limits.max_p95_ratio, max_p95_ratio, "below", f64::lt);
    stricter("min_match_rate", limits.min_match_rate, min_match_rate, "above", f64::gt);
}

/// What nobody measures would never be asked.
fn min_match_rate(table: &mut Table<'_>, protocol: Option<Protocol>, mirrored: bool) -> Option<f64> {
    const KEY: &str = "min_match_rate";
    http_only(table, protocol, &[KEY]);
    if table.has(KEY) && protocol == Some(Protocol::Http) && !mirrored {
        let cure = "add [route.mirror] with sample = 10.0, or remove it";
        table.fault(KEY, "is measured by the mirror, and this route has none", cure);
    }
    optional_share(table, KEY, "0.7 for 70 per cent")
}

/// How a limit for failures is written.
const FEW: &str = "0.05 for 5 per cent";

fn optional_share(table: &mut Table<'_>, key: &'static str, example: &str) -> Option<f64> {
    let cure = format!("write a share above 0 and below 1, such as {example}");
    bounded(table.take(key), |share| share > 0.0 && share < 1.0, &cure)
}

fn optional_ratio(table: &mut Table<'_>, key: &'static str) -> Option<f64> {
    let cure = "write a ratio above 1 and at most 100, such as 2.0 for twice blue's";
    bounded(table.take(key), |ratio| ratio > 1.0 && ratio <= 100.0, cure)
}

/// Evidence is counted second by second.
fn whole_seconds(table: &mut Table<'_>, key: &'static str, default: Duration, range: RangeInclusive<u64>) -> Duration {
    let duration = table.duration(key, default);
    if duration.subsec_nanos() > 0 || !range.contains(&duration.as_secs()) {
        let (least, most) = range.into_inner();
        table.fault(
            key,
            format!("{duration:?} is out of range"),
            format!("write whole seconds from \"{least}s\" to \"{most}s\""),
        );
    }
    duration
}

fn bounded(value: Option<Value<'_>>, range: impl Fn(f64) -> bool, cure: &str) -> Option<f64> {
    let value = value?;
    let number = value.number()?;
    if !range(number) {
        value.fault(format!("{number} is out of range"), cure);
        return None;
    }
    Some(number)
}

fn arm(
    table: &mut Table<'_>,
    arm: Arm,
    labels: &mut Vec<String>,
    protocol: Option<Protocol>,
    listen: Option<SocketAddr>,
    base: &Path,
) -> Option<ArmSettings> {
    let example = format!("[route.{arm}] with endpoints = [\"127.0.0.1:9001\"]");
    let key = arm.as_str();
    if !table.has(key) {
        table.fault(key, "is missing", format!("add {example}"));
    }
    table
        .table(key, &example, |table| {
            let label = table.take("label").map_or_else(|| Some(key.to_owned()), |value| label(&value, arm, labels));
            labels.extend(label.clone());
            let endpoints = table
                .required("endpoints", "write endpoints = [\"127.0.0.1:9001\"]")
                .and_then(|value| endpoints(&value, listen));
            http_only(table, protocol, &["http_version"]);
            let versions = [("auto", HttpVersion::Auto), ("1.1", HttpVersion::Http1), ("2", HttpVersion::Http2)];
            let http_version = table.choice("http_version", &versions, HttpVersion::Auto);
            let tls = table
                .table("tls", "tls = { server_name = \"app.example\" }", |table| {
                    upstream_tls(table, endpoints.as_deref(), base)
                })
                .flatten();
            Some(ArmSettings { label: label?, endpoints: endpoints?, tls, http_version })
        })
        .flatten()
}

/// `taken`: the label of the arm read before. Case does not make a difference that people can tell apart.
fn label(value: &Value<'_>, arm: Arm, taken: &[String]) -> Option<String> {
    let label = word(value)?;
    if taken.iter().any(|taken| taken.eq_ignore_ascii_case(&label)) {
        value.fault(format!("{} is also blue's label", quoted(&label)), "write another label for one of the two");
        return None;
    }
    if label.eq_ignore_ascii_case(arm.other().as_str()) {
        value.fault(format!("{} is the name of the other arm", quoted(&label)), "write another label, or none");
        return None;
    }
    Some(label)
}

/// `None` if one of them is faulty.
fn endpoints(value: &Value<'_>, listen: Option<SocketAddr>) -> Option<Vec<Endpoint>> {
    let items = value.list()?;
    if items.is_empty() {
        value.fault("is empty", "write at least one, such as [\"127.0.0.1:9001\"]");
        return None;
    }
    let mut endpoints = Vec::new();
    for item in &items {
        let Some(endpoint) = item.string().and_then(|text| item.accept(address::endpoint(text))) else { continue };
        if endpoints.contains(&endpoint) {
            item.fault(format!("{endpoint} is in the list twice"), "remove one of the two");
        }
        if listen.is_some_and(|listen| address::loops(listen, &endpoint)) {
            item.fault(
                format!("{endpoint} is where this route listens, so that requests would go in circles"),
                "write the address of the system behind it",
            );
        }
        endpoints.push(endpoint);
    }
    (endpoints.len() == items.len()).then_some(endpoints)
}

fn upstream_tls(table: &mut Table<'_>, endpoints: Option<&[Endpoint]>, base: &Path) -> Option<UpstreamTls> {
    let server_name = table.take("server_name");
    let ca = table.take("ca").and_then(|value| path(&value, base));
    let server_name = match server_name {
        Some(value) => value.string().and_then(|text| value.accept(address::server_name(text)))?,
        None => {
            let (first, rest) = endpoints?.split_first()?;
            let Some(name) = address::certificate_name(first).filter(|_| rest.iter().all(|e| e.host == first.host))
            else {
                table.fault(
                    "server_name",
                    "is missing, and the endpoints are not all one dns name",
                    "write server_name = \"app.example\", the name in their certificate",
                );
                return None;
            };
            name.to_owned()
        }
    };
    Some(UpstreamTls { server_name, ca })
}
