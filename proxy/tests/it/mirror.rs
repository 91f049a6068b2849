//! Copies for the other arm: which requests, what came of them, and that nobody but the counts ever notices.

use std::{net::SocketAddr, time::Duration};

use ::config::Arm;
use http::StatusCode;
use loadtest::origin::{HttpOrigin, Latency};
use proxy::split::{Salt, bucket};
use serde_json::Value;
use tokio::{
    io::AsyncReadExt,
    time::{self, Instant},
};

use crate::{
    clients::{Client, get_request},
    harness::{Crossfade, eventually, free_address},
    routes::Route,
    site::{RawOrigin, Site, any_port, count, key, keys},
    status::counted,
};

fn mirror(sample: f64, more: &str) -> String {
    format!("[route.mirror]\nsample = {sample:?}\n{more}")
}

/// How many copies ended for a reason, of those `kind` (`dropped`, `failed`) counts.
fn ended(status: &Value, kind: &str, reason: &str) -> u64 {
    status["mirror"][kind][reason].as_u64().unwrap_or_default()
}

fn tally(status: &Value, what: &str) -> u64 {
    status["mirror"][what].as_u64().unwrap_or_else(|| panic!("no {what} in {status}"))
}

#[tokio::test]
async fn safe_requests_are_copied_to_the_other_arm_and_marked() {
    let site = Site::start().await;
    let route = site.route().green_percentage(50.0).unchecked().table(mirror(100.0, ""));
    let crossfade = Crossfade::start(&route.to_string()).await;
    let mut client = Client::connect(route.listen).await;
    for (arm, mine, other) in [(Arm::Blue, &site.blue, &site.green), (Arm::Green, &site.green, &site.blue)] {
        let key = key(arm);
        let fields = format!("host: shop.example\r\nx-session-id: {key}\r\n");
        for method in ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH"] {
            client.send(format!("{method} /{arm}/{method}?a=b HTTP/1.1\r\n{fields}content-length: 0\r\n\r\n")).await;
            let status = if method == "HEAD" { client.head().await.status } else { client.answer().await.status };
            assert_eq!(status, StatusCode::OK, "{method}");
        }
        let copied = || {
            let seen = other.seen().recent().into_iter().filter(|seen| seen.path.contains(&format!("/{arm}/")));
            seen.collect::<Vec<_>>()
        };
        eventually("the copies have come", async || (copied().len() == 3).then_some(())).await;
        for seen in copied() {
            assert_eq!(seen.path, format!("/{arm}/{}?a=b", seen.method));
            assert!(["GET", "HEAD", "OPTIONS"].contains(&seen.method.as_str()), "{seen:?}");
            assert_eq!(seen.shadow.as_deref(), Some("crossfade"), "{seen:?}");
            assert_eq!(seen.session.as_deref(), Some(&*key), "{seen:?}");
        }
        let own = mine.seen().recent().into_iter().filter(|seen| seen.path.contains(&format!("/{arm}/")));
        assert!(own.clone().all(|seen| seen.shadow.is_none()) && own.count() == 7);
    }
    let status = counted(&crossfade, "shop", |status| tally(status, "paired") == 6).await;
    // The origins name themselves in their answers, but not in those to HEAD.
    assert_eq!((tally(&status, "offered"), tally(&status, "status_class_equal")), (6, 6), "{status}");
    assert_eq!((tally(&status, "body_equal"), tally(&status, "body_differs")), (2, 4), "{status}");
    let both = |status: &Value| count(status, "blue", "dispatched") + count(status, "green", "dispatched");
    let status = counted(&crossfade, "shop", |status| both(status) >= 14).await;
    assert_eq!(both(&status), 14, "copies count as traffic: {status}");
}

#[tokio::test]
async fn only_the_sampled_keys_are_copied_and_always_the_same() {
    let site = Site::start().await;
    let route = site.route().unchecked().table(mirror(20.0, ""));
    let crossfade = Crossfade::start(&route.to_string()).await;
    let keys: Vec<_> = (0..500).map(|n| format!("user-{n}")).collect();
    let sampled = |key: &String| bucket(Salt::mirror("shop"), key.as_bytes()) < 2_000;
    let expected: Vec<_> = keys.iter().filter(|key| sampled(key)).collect();
    assert!((70..=130).contains(&expected.len()), "{}", expected.len());
    let mut client = Client::connect(route.listen).await;
    for round in 1..=2 {
        for key in &keys {
            assert_eq!(client.get("/", &[("x-session-id", key)]).await.origin(), "python");
        }
        let count = round * expected.len() as u64;
        eventually("the copies have come", async || (site.green.seen().requests() == count).then_some(())).await;
    }
    let mut seen: Vec<_> = site.green.seen().recent().into_iter().filter_map(|seen| seen.session).collect();
    seen.sort();
    seen.dedup();
    let mut expected: Vec<_> = expected.into_iter().cloned().collect();
    expected.sort();
    assert_eq!(seen, expected);
    let status = counted(&crossfade, "shop", |status| tally(status, "paired") == 2 * expected.len() as u64).await;
    assert_eq!(tally(&status, "unsampled"), 1_000 - 2 * expected.len() as u64, "{status}");
}

#[tokio::test]
async fn what_cannot_be_compared_is_not_copied_and_said_so() {
    let site = Site::start().await;
    let route = site.route().unchecked().table(mirror(100.0, "max_body = 1024"));
    let crossfade = Crossfade::start(&route.to_string()).await;
    let mut client = Client::connect(route.listen).await;
    client.exchange(b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody").await.unwrap();
    client.get("/", &[("range", "bytes=0-1")]).await;
    client.get("/", &[("if-none-match", "\"x\"")]).await;
    let status = counted(&crossfade, "shop", |status| tally(status, "offered") == 3).await;
    for (reason, times) in [("body", 1), ("range", 1), ("conditional", 1)] {
        assert_eq!(ended(&status, "dropped", reason), times, "{reason}: {status}");
    }
    assert_eq!(site.green.seen().requests(), 0);
    // A body that is too long is copied and not compared.
    client.get("/bytes/100000", &[]).await;
    let status = counted(&crossfade, "shop", |status| tally(status, "paired") == 1).await;
    assert_eq!(tally(&status, "body_not_compared"), 1, "{status}");
    site.green.behaviour().change(|b| b.status = Some(StatusCode::INTERNAL_SERVER_ERROR));
    assert_eq!(client.get("/", &[]).await.status, StatusCode::OK);
    let status = counted(&crossfade, "shop", |status| tally(status, "paired") == 2).await;
    assert_eq!((tally(&status, "status_class_differs"), tally(&status, "body_differs")), (1, 1), "{status}");
    assert_eq!(count(&status, "green", "failures"), 0, "a copy says nothing about green's traffic");
}

#[tokio::test]
async fn when_all_places_are_taken_copies_are_dropped_and_counted_and_none_is_sent_twice() {
    let site = Site::start().await;
    site.green.behaviour().change(|b| b.hang = true);
    let route = site.route().unchecked().table(mirror(100.0, "max_in_flight = 5\ntimeout = \"2s\""));
    let crossfade = Crossfade::start(&route.to_string()).await;
    let mut client = Client::connect(route.listen).await;
    for _ in 0..50 {
        assert_eq!(client.get("/", &[]).await.origin(), "python");
    }
    let status = counted(&crossfade, "shop", |status| ended(status, "failed", "timeout") == 5).await;
    assert_eq!((ended(&status, "dropped", "in_flight"), tally(&status, "paired")), (45, 0), "{status}");
    assert_eq!(site.green.seen().requests(), 5);
    // There is room again.
    site.green.behaviour().change(|b| b.hang = false);
    client.get("/", &[]).await;
    counted(&crossfade, "shop", |status| tally(status, "paired") == 1).await;
}

#[tokio::test]
async fn a_primary_that_is_late_or_left_is_not_the_copys_failure() {
    let site = Site::start().await;
    let route = site.route().unchecked().table(mirror(100.0, "timeout = \"1s\""));
    let crossfade = Crossfade::start(&route.to_string()).await;
    let late: Latency = "2s".parse().unwrap();
    let mut client = Client::connect(route.listen).await;
    site.blue.behaviour().change(|b| b.latency = late.clone());
    assert_eq!(client.get("/", &[]).await.origin(), "python", "the client has it still");
    let status = counted(&crossfade, "shop", |status| ended(status, "failed", "primary_failed") == 1).await;
    assert_eq!(ended(&status, "failed", "timeout"), 0, "{status}");
    // Both: the copy's own comes first.
    site.green.behaviour().change(|b| b.latency = late);
    client.get("/", &[]).await;
    counted(&crossfade, "shop", |status| ended(status, "failed", "timeout") == 1).await;
    site.green.behaviour().change(|b| b.latency = Latency::default());
    let mut impatient = Client::connect(route.listen).await;
    impatient.send("GET /left HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let get = http::Method::GET;
    eventually("it is copied", async || (site.green.seen().count(&get, "/left") == 1).then_some(())).await;
    impatient.stream.set_zero_linger().unwrap();
    drop(impatient);
    let status = counted(&crossfade, "shop", |status| ended(status, "failed", "client_gone") == 1).await;
    assert_eq!((ended(&status, "failed", "primary_failed"), tally(&status, "paired")), (1, 0), "{status}");
}

/// Latencies of `count` GETs at 100 a second over eight connections; every one must be answered by blue.
async fn latencies(listen: SocketAddr, count: usize) -> Vec<Duration> {
    const CONNECTIONS: usize = 8;
    let one = |first: usize| async move {
        let mut client = Client::connect(listen).await;
        let mut ticks = time::interval(Duration::from_millis(10 * CONNECTIONS as u64));
        let mut took = Vec::new();
        for n in (first..count).step_by(CONNECTIONS) {
            ticks.tick().await;
            let started = Instant::now();
            let key = format!("user-{n}");
            let answer = client.exchange(&get_request("/", &[("x-session-id", &key)])).await.unwrap();
            assert_eq!((answer.status, answer.origin()), (StatusCode::OK, "python"));
            took.push(started.elapsed());
        }
        took
    };
    let running = (0..CONNECTIONS).map(|first| tokio::spawn(one(first)));
    let mut all: Vec<_> = futures::future::join_all(running).await.into_iter().flat_map(Result::unwrap).collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_hangs_refuses_or_never_ends_harms_no_request() {
    let blue = HttpOrigin::start("python", any_port()).await.unwrap();
    // Takes connections and requests, and never answers.
    let silent = RawOrigin::start(|mut stream, _| async move {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
    })
    .await;
    let endless = HttpOrigin::start("go", any_port()).await.unwrap();
    let streaming = RawOrigin::start(|mut stream, _| async move {
        use tokio::io::AsyncWriteExt;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n").await;
        while stream.write_all(&[b'x'; 1024]).await.is_ok() {}
    })
    .await;
    let plain = Route::http(blue.address(), endless.address()).named("plain").unchecked();
    let to = |name, green| {
        let copies = mirror(100.0, "max_in_flight = 20\ntimeout = \"500ms\"");
        Route::http(blue.address(), green).named(name).unchecked().table(copies)
    };
    let hanging = to("hanging", silent.address);
    let refusing = to("refusing", free_address());
    let never_ending = to("never-ending", streaming.address);
    let crossfade = Crossfade::start(&format!("{plain}{hanging}{refusing}{never_ending}")).await;

    const COUNT: usize = 500;
    latencies(plain.listen, 40).await;
    // Side by side: what else happens on this machine happens to all of them.
    let (without, hung, refused, streamed) = tokio::join!(
        latencies(plain.listen, COUNT),
        latencies(hanging.listen, COUNT),
        latencies(refusing.listen, COUNT),
        latencies(never_ending.listen, COUNT),
    );
    let quantile = |sorted: &[Duration], share: f64| sorted[(sorted.len() as f64 * share) as usize];
    let (median, p99) = (quantile(&without, 0.5), quantile(&without, 0.99));
    println!("without mirror: median {median:?}, p99 {p99:?}");
    for (what, with) in [("hanging", &hung), ("refusing", &refused), ("never ending", &streamed)] {
        assert_eq!(with.len(), COUNT, "{what}");
        let (with_median, with_p99) = (quantile(with, 0.5), quantile(with, 0.99));
        println!("{what}: median {with_median:?}, p99 {with_p99:?}");
        // One that waited for its copy would take 500 ms.
        let slack = Duration::from_millis(20);
        assert!(with_median < 2 * median + slack, "{what}: median {with_median:?}, without a mirror {median:?}");
        assert!(with_p99 < 3 * p99 + slack, "{what}: p99 {with_p99:?}, without a mirror {p99:?}");
    }
    let offered = COUNT as u64;
    let status = counted(&crossfade, "hanging", |status| {
        ended(status, "dropped", "in_flight") + ended(status, "failed", "timeout") == offered
    })
    .await;
    assert!(ended(&status, "failed", "timeout") >= 20, "{status}");
    counted(&crossfade, "refusing", |status| {
        ended(status, "failed", "unreachable") + ended(status, "dropped", "in_flight") == offered
    })
    .await;
    let status = counted(&crossfade, "never-ending", |status| {
        let done = tally(status, "paired") + ended(status, "failed", "timeout") + ended(status, "failed", "broken");
        done + ended(status, "dropped", "in_flight") == offered
    })
    .await;
    assert!(tally(&status, "body_not_compared") > 0, "a body without end is given up, not compared: {status}");
    for route in ["plain", "hanging", "refusing", "never-ending"] {
        let status = counted(&crossfade, route, |status| count(status, "blue", "ok") >= offered).await;
        assert_eq!((count(&status, "blue", "failures"), count(&status, "green", "dispatched")), (0, 0), "{status}");
    }
}

#[tokio::test]
async fn copies_follow_the_split_and_go_to_the_arm_that_did_not_answer() {
    let site = Site::start().await;
    let route = site.route().unchecked().table(mirror(100.0, ""));
    let crossfade = Crossfade::start(&route.to_string()).await;
    let mut client = Client::connect(route.listen).await;
    let keys: Vec<_> = keys(Arm::Green).take(10).collect();
    for (percent, primary) in [(0.0, "python"), (100.0, "go")] {
        crossfade.admin.split("shop", percent).await;
        for key in &keys {
            assert_eq!(client.get(&format!("/{percent}"), &[("x-session-id", key)]).await.origin(), primary);
        }
        let (main, copy) = if primary == "go" { (&site.green, &site.blue) } else { (&site.blue, &site.green) };
        let path = format!("/{percent}");
        let get = http::Method::GET;
        eventually("the copies have come", async || (copy.seen().count(&get, &path) == 10).then_some(())).await;
        assert_eq!(main.seen().count(&get, &path), 10);
    }
    let seen = site.blue.seen().recent();
    assert!(seen.iter().all(|seen| seen.shadow.is_some() == (seen.path == "/100")), "{seen:?}");
}
