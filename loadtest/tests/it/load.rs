//! Load against origins and against servers that answer by a script.

use std::{
    net::SocketAddr,
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use loadtest::{
    keys::Keys,
    load::{Endpoint, HttpLoad, HttpVersion, KeyPlace, Load, Pace, Protocol, TcpLoad},
    origin::{Behaviour, HttpOrigin, TcpOrigin},
    report::Report,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{any_port, soon, until};

fn http(version: HttpVersion, address: SocketAddr) -> HttpLoad {
    HttpLoad::new(version, &address.to_string())
}

fn load(protocol: Protocol, address: SocketAddr, stages: &str) -> Load {
    Load {
        protocol,
        endpoint: Endpoint::plain(address),
        target: address.to_string(),
        pace: Pace::Open(Arc::new(stages.parse().unwrap())),
        connections: 4,
        workers: 1,
        keys: Arc::new(Keys::uniform(50).unwrap()),
        timeout: Duration::from_secs(5),
        ledger: None,
    }
}

async fn run(load: &Load) -> Report {
    let report = soon(load.run(CancellationToken::new(), |_| {})).await.unwrap();
    assert!(report.end.complete);
    let account = &report.account;
    assert_eq!(account.sent, account.answered + account.failures() + account.lost, "{account:?}");
    report
}

/// A server that answers each connection by a script: bytes for each request head it reads, then it closes.
async fn scripted(script: &'static [&'static str]) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(any_port()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut seen = Vec::new();
                for answer in script {
                    while !seen.ends_with(b"\r\n\r\n") && !seen.ends_with(b"\n") {
                        if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    seen.clear();
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });
        }
    });
    (address, serving)
}

#[tokio::test]
async fn every_request_is_answered_once_over_every_kind_of_http() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        for workers in [1, 2] {
            let before = origin.seen().requests();
            let protocol = Protocol::Http(http(version, origin.address()));
            let report = run(&Load { workers, ..load(protocol, origin.address(), "300ms:100..1000,200ms:1000") }).await;
            assert_eq!(report.account.sent, 365, "{version:?}");
            assert_eq!(report.account.answered, 365, "{version:?}: {:?}", report.account);
            assert_eq!(origin.seen().requests() - before, 365);
            assert_eq!(report.arms["go"].statuses[&200], 365);
            assert_eq!(report.arms["go"].keys, 50);
            assert_eq!(report.series["latency"].all.count, 365);
            assert_eq!(report.seconds.iter().map(|second| second.sent).sum::<u64>(), 365);
        }
    }
}

#[tokio::test]
async fn websocket_messages_and_tcp_lines_are_echoed() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let websocket = HttpLoad { path: "/ws".to_owned(), ..http(HttpVersion::Http1, origin.address()) };
    let report = run(&load(Protocol::WebSocket(websocket), origin.address(), "500ms:400")).await;
    assert_eq!(report.account.answered, 200, "{:?}", report.account);
    assert_eq!(report.arms["go"].answered, 200);

    let origin = TcpOrigin::start("go", any_port()).await.unwrap();
    for (size, per_connection) in [(0, None), (64, NonZeroU64::new(1)), (30_000, NonZeroU64::new(7))] {
        let tcp = Protocol::Tcp(TcpLoad { size, requests_per_connection: per_connection });
        let report = run(&load(tcp, origin.address(), "500ms:400")).await;
        assert_eq!(report.account.answered, 200, "{size}: {:?}", report.account);
        assert_eq!(report.arms["go"].answered, 200);
    }
}

#[tokio::test]
async fn keys_travel_where_they_are_told_to() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let places =
        ["header:x-session-id", "cookie:session", "query:run_id"].map(|place| place.parse::<KeyPlace>().unwrap());
    for key in places {
        let http =
            HttpLoad { key: key.clone(), path: "/headers".to_owned(), ..http(HttpVersion::Http1, origin.address()) };
        run(&load(Protocol::Http(http), origin.address(), "100ms:100")).await;
        let recent = origin.seen().recent();
        let last = recent.last().unwrap();
        match key {
            KeyPlace::Header(_) => assert!(last.session.as_ref().unwrap().starts_with("user-")),
            KeyPlace::Query(_) => assert!(last.path.starts_with("/headers?run_id=user-"), "{}", last.path),
            // What an origin keeps of a request does not hold its cookies.
            KeyPlace::Cookie(_) | KeyPlace::ClientIp => {}
        }
    }
}

#[tokio::test]
async fn a_connection_is_closed_after_the_requests_it_is_allowed() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let before = origin.seen().connections();
        let mut http = http(version, origin.address());
        (http.requests_per_connection, http.streams) = (NonZeroU64::new(5), 1);
        let report = run(&Load { connections: 1, ..load(Protocol::Http(http), origin.address(), "200ms:500") }).await;
        assert_eq!(report.account.answered, 100, "{:?}", report.account);
        assert_eq!(origin.seen().connections() - before, 20, "{version:?}");
    }
}

/// Coordinated omission: a stall of half a second holds up the requests that were due meanwhile, and each of them must
/// show what it waited.
#[tokio::test]
async fn a_stall_is_seen_in_full() {
    const STALL: Duration = Duration::from_millis(600);
    let listener = TcpListener::bind(any_port()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut line = Vec::new();
        while stream.read_buf(&mut line).await.unwrap() > 0 {
            if line.ends_with(b"\n") {
                if served.fetch_add(1, Ordering::Relaxed) == 100 {
                    tokio::time::sleep(STALL).await;
                }
                stream.write_all(&line).await.unwrap();
                line.clear();
            }
        }
    });
    let tcp = Protocol::Tcp(TcpLoad { size: 64, requests_per_connection: None });
    let report = run(&Load { connections: 1, ..load(tcp, address, "2s:200") }).await;
    let latencies = &report.series["latency"].all;
    assert_eq!(latencies.count, 400);
    // 120 of 400 requests came due while the server slept; a closed loop would show one slow request.
    let slow = latencies.curve.iter().find(|(_, micros)| *micros >= 300_000).unwrap().0;
    assert!(slow < 0.90, "a tenth of all waited half the stall or longer: {latencies:?}");
    assert!(latencies.max >= 600_000, "{latencies:?}");
}

#[tokio::test]
async fn failures_are_told_apart() {
    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    for (script, expected) in [
        (&[""][..], "closed"),
        (&["HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort"][..], "closed"),
        (&["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel"][..], "closed"),
        (&["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"][..], "malformed"),
        (&["SSH-2.0-OpenSSH_9.2\r\n"][..], "malformed"),
        (&["HTTP/1.1 101 Switching Protocols\r\n\r\n"][..], "malformed"),
        (&["HTTP/1.1 200 OK\r\nx-loadtest-id: 0000000000000001\r\ncontent-length: 0\r\n\r\n"][..], "crossed"),
        (&[OK, ""][..], "closed"),
    ] {
        let (address, serving) = scripted(script).await;
        let protocol = Protocol::Http(http(HttpVersion::Http1, address));
        let report = run(&Load { connections: 1, ..load(protocol, address, "100ms:100") }).await;
        let account = &report.account;
        assert!(account.failed.get(expected).is_some_and(|count| *count > 0), "{script:?}: {account:?}");
        assert_eq!(account.failed.len(), 1, "{script:?}: {account:?}");
        serving.abort();
    }
}

#[tokio::test]
async fn answers_that_nobody_asked_for_are_counted() {
    const TWICE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let (address, _serving) = scripted(&[TWICE]).await;
    let protocol = Protocol::Http(http(HttpVersion::Http1, address));
    let report = run(&Load { connections: 1, ..load(protocol, address, "100ms:100") }).await;
    assert_eq!((report.account.answered, report.account.answered_twice), (10, 10), "{:?}", report.account);
}

#[tokio::test]
async fn answers_of_every_framing_are_read() {
    let (address, _serving) = scripted(&[
        "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\nuntil the end",
    ])
    .await;
    let protocol = Protocol::Http(http(HttpVersion::Http1, address));
    let report = run(&Load { connections: 1, ..load(protocol, address, "500ms:100") }).await;
    assert_eq!(report.account.answered, 50, "{:?}", report.account);
    assert_eq!(report.account.error_status, 10);
    let statuses: Vec<_> = report.arms["-"].statuses.iter().map(|(status, count)| (*status, *count)).collect();
    assert_eq!(statuses, [(200, 20), (204, 10), (404, 10), (503, 10)]);
}

#[tokio::test]
async fn a_target_that_goes_away_is_refused_and_one_that_hangs_times_out() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    origin.behaviour().set(Behaviour { hang: true, ..Behaviour::default() });
    let protocol = Protocol::Http(http(HttpVersion::Http1, origin.address()));
    let timeout = Duration::from_millis(300);
    let report = run(&Load { timeout, ..load(protocol.clone(), origin.address(), "200ms:20") }).await;
    assert_eq!(report.account.failed.keys().collect::<Vec<_>>(), ["timeout"]);

    let address = origin.address();
    origin.stop().await;
    let report = run(&load(protocol, address, "200ms:100")).await;
    assert_eq!(report.account.failed["refused"], 20);
}

#[tokio::test]
async fn a_key_that_changes_sides_is_counted() {
    let label = |label: &str| format!("HTTP/1.1 200 OK\r\nx-crossfade-arm: {label}\r\ncontent-length: 0\r\n\r\n");
    let script: Vec<&'static str> = ["blue", "green", "blue", "blue"].iter().map(|l| &*label(l).leak()).collect();
    let (address, _serving) = scripted(script.leak()).await;
    let protocol = Protocol::Http(http(HttpVersion::Http1, address));
    let keys = Arc::new(Keys::uniform(1).unwrap());
    let report = run(&Load { connections: 1, keys, ..load(protocol, address, "400ms:10") }).await;
    assert_eq!((report.account.answered, report.account.moved), (4, 2), "{:?}", report.account);
    assert_eq!(report.arms["blue"].answered, 3);
    assert!((report.arms["green"].share - 0.25).abs() < 1e-9);
}

#[tokio::test]
async fn a_slow_reader_takes_its_time() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        let mut http = http(version, origin.address());
        (http.path, http.read_rate) = ("/bytes/20000".to_owned(), NonZeroU64::new(50_000));
        let report = run(&load(Protocol::Http(http), origin.address(), "100ms:20")).await;
        assert_eq!(report.account.answered, 2, "{:?}", report.account);
        assert!(report.series["latency"].all.min >= 350_000, "{version:?}: {:?}", report.series["latency"].all);
    }
}

#[tokio::test]
async fn what_is_stopped_early_still_adds_up() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let protocol = Protocol::Http(http(HttpVersion::Http1, origin.address()));
    let load = load(protocol, origin.address(), "1h:1000");
    let stop = CancellationToken::new();
    let running = tokio::spawn({
        let stop = stop.clone();
        async move { load.run(stop, |_| {}).await }
    });
    let seen = Arc::clone(origin.seen());
    until("a hundred requests", || seen.requests() >= 100).await;
    stop.cancel();
    let report = soon(running).await.unwrap().unwrap();
    assert!(!report.end.complete && report.end.reason.is_some());
    assert_eq!(report.account.sent, report.account.answered);
    assert_eq!(report.account.sent, origin.seen().requests());
    assert_eq!(report.account.sent + report.account.unsent, 3_600_000);
}

#[tokio::test]
async fn the_closed_loop_keeps_every_connection_busy() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let protocol = Protocol::Http(http(HttpVersion::Http1, origin.address()));
    let pace = Pace::Max(Duration::from_millis(300));
    let report = run(&Load { pace, ..load(protocol, origin.address(), "1s:1") }).await;
    assert!(report.account.answered > 100, "{:?}", report.account);
    assert_eq!(origin.seen().connections(), 4);
    assert_eq!(report.end.rate_asked, None);
}

#[tokio::test]
async fn a_server_that_closes_between_requests_costs_nothing() {
    let listener = TcpListener::bind(any_port()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let serving = tokio::spawn({
        let accepted = Arc::clone(&accepted);
        async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                accepted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(answer_once(stream));
            }
        }
    });
    let protocol = Protocol::Http(http(HttpVersion::Http1, address));
    let report = run(&Load { connections: 1, ..load(protocol, address, "500ms:20") }).await;
    // Each answer promises to keep the connection, which is closed all the same, long before the next request is due.
    assert_eq!((report.account.answered, accepted.load(Ordering::Relaxed)), (10, 10), "{:?}", report.account);
    serving.abort();
}

async fn answer_once(mut stream: TcpStream) {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut seen).await.unwrap() == 0 {
            return;
        }
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
}
