//! A second instance takes over from the one that runs, and whatever can go wrong with that.

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, IoSlice},
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener},
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ::config::Arm;
use futures::{SinkExt, StreamExt};
use http::StatusCode;
use loadtest::origin::TcpOrigin;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest},
    net::{TcpStream, UnixListener, UnixStream},
    time::Instant,
};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    authority::Authority,
    clients::{Client, get_request},
    harness::{Crossfade, configuration, eventually, free_address, program, seeded},
    mosquitto::Mosquitto,
    mqtt::greet,
    packets::{ACCEPTED, connect, packet},
    routes::Route,
    site::{Site, any_port, key, paced, soon},
    steady::Steady,
    tcp::{from_address, label},
};

/// Short, so that what stays open does not hold up the test.
const DRAIN: &str = "[server]\ndrain = \"4s\"\nworkers = 2";

const SERVED: &str = "Took over from the instance that was running";
const TAKEN: &str = "Draining: another instance took over";

/// Where the instance of a state file is asked.
fn address(crossfade: &Crossfade) -> PathBuf {
    crossfade.dir.path().join("crossfade.db.takeover")
}

/// One that takes over by hand, or does something else.
struct ByHand {
    stream: UnixStream,
    read: Vec<u8>,
}

impl ByHand {
    async fn connect(crossfade: &Crossfade) -> Self {
        Self { stream: UnixStream::connect(address(crossfade)).await.unwrap(), read: Vec::new() }
    }

    async fn say(&mut self, word: &Value) {
        self.stream.write_all(format!("{word}\n").as_bytes()).await.unwrap();
    }

    /// The next word; `None` at the end. Sockets that come along are lost.
    async fn hear(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line = self.read.drain(..=end).collect::<Vec<_>>();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            // Not `read`: it takes a short read for the end of what there is, and descriptors make one.
            soon(self.stream.readable()).await.unwrap();
            match self.stream.try_read_buf(&mut self.read) {
                Ok(0) => return None,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) if error.kind() != ErrorKind::WouldBlock => panic!("{error}"),
                _ => {}
            }
        }
    }

    /// Asks, and has the state file released.
    async fn freeze(crossfade: &Crossfade) -> Self {
        let mut by_hand = Self::connect(crossfade).await;
        by_hand.say(&json!({ "say": "takeover", "protocol": 1, "pid": 4711 })).await;
        let told = by_hand.hear().await.unwrap();
        assert_eq!((&told["say"], &told["pid"]), (&json!("sockets"), &json!(crossfade.pid())), "{told}");
        by_hand.say(&json!({ "say": "release" })).await;
        assert_eq!(by_hand.hear().await, Some(json!({ "say": "released" })));
        by_hand
    }
}

/// Sets green's share, whatever comes of it.
async fn post_split(crossfade: &Crossfade, route: &str, percent: f64) -> (StatusCode, Value) {
    crossfade.admin.post("/traffic-split", &json!({ "route": route, "green_percentage": percent })).await
}

async fn ask(listen: SocketAddr, key: &str) -> String {
    Client::connect(listen).await.get("/", &[("x-session-id", key)]).await.origin().to_owned()
}

/// How many sockets listen on an address, in whichever process.
fn listening(address: SocketAddr) -> usize {
    let local = format!("0100007F:{:04X}", address.port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
    let listens = "0A";
    rows.filter(|row| row[1] == local && row[3] == listens).count()
}

// What is carried over

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_takeovers_in_a_row_under_load_lose_nothing() {
    let (site, authority) = (Site::start().await, Arc::new(Authority::new()));
    let folder = TempDir::new().unwrap();
    let shop = site.route().green_percentage(50.0).unguarded().unchecked();
    let mut secure = site.route().green_percentage(50.0).unguarded().unchecked();
    secure = secure.named("secure").with(authority.issue("localhost").write(folder.path(), "shop"));
    let python = TcpOrigin::start("python", any_port()).await.unwrap();
    let go = TcpOrigin::start("go", any_port()).await.unwrap();
    let bus = Route::tcp(python.address(), go.address()).green_percentage(50.0).unchecked();
    let (erlang, new) = (Mosquitto::start().await, Mosquitto::start().await);
    let broker = Route::mqtt(erlang.address, new.address).green_percentage(50.0).unchecked();
    let routes = format!("{shop}{secure}{bus}{broker}");
    let mut crossfade = Crossfade::start_with(DRAIN, &routes).await;
    let load = Steady::default().http(&shop).https(&secure, authority);
    let mut load = load.tcp(bus.listen).mqtt(broker.listen);
    load.flows(100).await;

    let mut before = Vec::new();
    // As many workers as before; more, for which sockets are added; fewer, which have several each.
    for (workers, sockets) in [(2, 2), (3, 3), (1, 3)] {
        crossfade.rewrite(&DRAIN.replace("workers = 2", &format!("workers = {workers}")), &routes);
        before.push(crossfade.take_over().await);
        load.flows(100).await;
        for route in [&shop, &secure, &bus, &broker] {
            eventually("as many sockets listen", async || (listening(route.listen) == sockets).then_some(())).await;
        }
    }
    for (nth, process) in before.iter_mut().enumerate() {
        assert_eq!(process.ended().await, Some(0), "{nth}");
        eprintln!("{}", process.logged("Draining: another instance took over").await);
    }
    load.flows(100).await;
    let done = load.stop().await;
    eprintln!("{done:?}");
    let (blue, green) = site.requests();
    let requests: u64 = done.iter().filter(|(kind, _)| kind.starts_with("http")).map(|(_, done)| done).sum();
    assert_eq!(blue + green, requests, "each request was answered, and served once");
    crossfade.signal("TERM");
    assert_eq!(crossfade.ended().await, Some(0));
    assert!(!address(&crossfade).exists());
}

#[tokio::test]
async fn splits_latches_and_their_revisions_go_with_the_state_file() {
    let site = Site::start().await;
    let (shop, mut api) = (site.route(), site.route().named("api"));
    api.listen = free_address();
    let mut crossfade = Crossfade::start_with(DRAIN, &format!("{shop}{api}")).await;
    crossfade.admin.split("shop", 37.5).await;
    crossfade.admin.split("api", 20.0).await;
    let (status, _) = crossfade.admin.post("/rollback", &json!({ "route": "api", "reason": "it looked odd" })).await;
    assert_eq!(status, StatusCode::OK);
    let states = crossfade.admin.get("/traffic-split").await.1;
    let socket = fs::metadata(address(&crossfade)).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);

    let mut before = crossfade.take_over().await;
    let lines = [(crossfade.logged(SERVED).await, before.pid()), (before.logged(TAKEN).await, crossfade.pid())];
    for (line, other) in lines {
        assert!(line.contains(&format!("pid={other}")) && line.contains("frozen="), "{line}");
    }
    assert_eq!(before.ended().await, Some(0));
    let mut after = crossfade.admin.get("/traffic-split").await.1;
    for route in after["routes"].as_array_mut().unwrap() {
        // Nobody has been counted yet.
        route["achieved"] = Value::Null;
    }
    assert_eq!(after, states);
    assert_eq!(post_split(&crossfade, "api", 1.0).await.0, StatusCode::CONFLICT, "the latch holds");
    crossfade.admin.split("shop", 40.0).await;
    let metrics = crossfade.admin.text("/metrics").await;
    assert!(metrics.contains("crossfade_takeovers_total{outcome=\"done\"} 1"), "{metrics}");
    let trail = crossfade.admin.get("/audit").await.1;
    let actions = trail["audit"].as_array().unwrap().iter().map(|row| row["action"].clone()).collect::<Vec<_>>();
    assert_eq!(actions.len(), 7, "{trail}");
}

#[tokio::test]
async fn what_else_needs_a_restart_a_takeover_does_too() {
    let site = Site::start().await;
    let (kept, mut gone, mut new) = (site.route(), site.route().named("gone"), site.route().named("new"));
    (gone.listen, new.listen) = (free_address(), free_address());
    let mut crossfade = Crossfade::start_with(DRAIN, &format!("{kept}{gone}")).await;
    let mut on_gone = Client::connect(gone.listen).await;
    on_gone.get("/", &[]).await;
    crossfade.rewrite("[server]\ndrain = \"4s\"\nworkers = 1", &format!("{new}{kept}"));
    crossfade.logged("Configuration is not reloaded").await;
    let mut before = crossfade.take_over().await;
    before.logged(TAKEN).await;
    assert_eq!(ask(kept.listen, "me").await, "python");
    assert_eq!(ask(new.listen, "me").await, "python");
    eventually("nobody listens there any more", async || {
        TcpStream::connect(gone.listen)
            .await
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
            .then_some(())
    })
    .await;
    // Who was connected is still served, once.
    let last = on_gone.get("/", &[]).await;
    assert_eq!((last.status, last.header("connection")), (StatusCode::OK, Some("close")));
    assert_eq!(before.ended().await, Some(0));
}

// What stays with the one that goes

#[tokio::test]
async fn an_idle_connection_stays_and_its_next_answer_says_that_it_was_the_last() {
    let site = Site::start().await;
    let route = site.route().green_percentage(50.0);
    let mut crossfade = Crossfade::start_with(DRAIN, &route.to_string()).await;
    let (mut first, mut second) = (Client::connect(route.listen).await, Client::connect(route.listen).await);
    for client in [&mut first, &mut second] {
        assert_ne!(client.get("/", &[]).await.header("connection"), Some("close"));
    }
    let mut before = crossfade.take_over().await;
    before.logged(TAKEN).await;
    let started = Instant::now();
    // Longer than an idle connection has after a stop.
    eventually("it is time", async || (started.elapsed() > Duration::from_secs(2)).then_some(())).await;
    let last = first.get("/", &[]).await;
    assert_eq!((last.status, last.header("connection")), (StatusCode::OK, Some("close")));
    assert!(first.rest().await.is_empty());
    // And the last one says nothing: it is closed in order before the drain is over.
    assert!(second.rest().await.is_empty());
    let idle = started.elapsed();
    assert!(idle > Duration::from_millis(2_700) && idle < Duration::from_millis(4_500), "{idle:?}");
    assert_eq!(before.ended().await, Some(0));
}

#[tokio::test]
async fn connections_that_last_stay_until_they_end_or_the_drain_is_over() {
    let site = Site::start().await;
    let python = TcpOrigin::start("python", any_port()).await.unwrap();
    let broker = Mosquitto::start().await;
    let (shop, bus) = (site.route(), Route::tcp(python.address(), free_address()).unchecked());
    let mqtt = Route::mqtt(broker.address, free_address()).unchecked();
    let mut crossfade = Crossfade::start_with(DRAIN, &format!("{shop}{bus}{mqtt}")).await;
    let (mut ends, mut lasts) = (from_address(0, bus.listen).await, from_address(1, bus.listen).await);
    let (mut subscriber, answer) = greet(mqtt.listen, &connect("subscriber")).await;
    assert_eq!(answer.as_deref(), Some(ACCEPTED));
    let (mut socket, _) = tokio_tungstenite::connect_async(format!("ws://{}/ws", shop.listen)).await.unwrap();
    assert_eq!(label(&mut ends).await, "python");

    let mut before = crossfade.take_over().await;
    before.logged(TAKEN).await;
    let started = Instant::now();
    for _ in 0..10 {
        assert_eq!((label(&mut ends).await, label(&mut lasts).await), ("python".to_owned(), "python".to_owned()));
        socket.send(Message::text("still there")).await.unwrap();
        assert_eq!(soon(socket.next()).await.unwrap().unwrap(), Message::text("python:still there"));
        subscriber.write_all(&packet(0xc0, &[])).await.unwrap();
        assert_eq!(soon(crate::packets::read_packet(&mut subscriber)).await.unwrap(), packet(0xd0, &[]));
    }
    ends.shutdown().await.unwrap();
    let mut bye = String::new();
    soon(ends.read_to_string(&mut bye)).await.unwrap();
    assert_eq!(bye, "python:bye\n");
    // The others are cut, not before the time.
    assert_eq!(before.ended().await, Some(0));
    assert!(started.elapsed() > Duration::from_millis(3_500), "{:?}", started.elapsed());
    assert!(soon(lasts.read_u8()).await.is_err() && soon(subscriber.read_u8()).await.is_err());
    assert!(soon(socket.next()).await.is_none_or(|message| message.is_err()));
    before.logged("Closing connections that did not finish in time").await;
    // And find the successor where they were.
    assert_eq!(label(&mut from_address(1, bus.listen).await).await, "python");
    assert_eq!(greet(mqtt.listen, &connect("subscriber")).await.1.as_deref(), Some(ACCEPTED));
}

#[tokio::test]
async fn what_is_pipelined_behind_the_last_answer_does_not_cost_that_answer() {
    let site = Site::start().await;
    let route = site.route();
    let mut crossfade = Crossfade::start_with(DRAIN, &route.to_string()).await;
    let mut client = Client::connect(route.listen).await;
    client.get("/", &[]).await;
    let mut before = crossfade.take_over().await;
    before.logged(TAKEN).await;
    client.send([get_request("/", &[]), get_request("/", &[])].concat()).await;
    eventually("the other side has said its last word", async || {
        client.stream.ready(Interest::READABLE).await.unwrap().is_read_closed().then_some(())
    })
    .await;
    // Only now is it read, and more is said before, which a reset would answer.
    for _ in 0..50 {
        client.send(get_request("/", &[])).await;
        tokio::task::yield_now().await;
    }
    let mut answer = Vec::new();
    soon(client.stream.read_to_end(&mut answer)).await.expect("no reset");
    let answer = String::from_utf8(answer).unwrap().to_ascii_lowercase();
    assert_eq!(answer.matches("http/1.1 200 ok").count(), 1, "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    drop(client);
    assert_eq!(before.ended().await, Some(0));
}

#[tokio::test]
async fn a_client_of_http2_that_speaks_up_after_the_last_word_is_not_reset() {
    let site = Site::start().await;
    let route = site.route();
    let mut crossfade = Crossfade::start_with(DRAIN, &route.to_string()).await;
    let mut stream = TcpStream::connect(route.listen).await.unwrap();
    stream.set_nodelay(true).unwrap();
    // RFC 9113: the preface and empty SETTINGS; then frames of 9 bytes, with their payload's length in the first three.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut taken = None;
    loop {
        let mut head = [0; 9];
        match soon(stream.read_exact(&mut head)).await {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            Err(error) => panic!("{error}"),
        }
        let mut payload = vec![0; usize::from(head[2])];
        soon(stream.read_exact(&mut payload)).await.unwrap();
        match (head[3], head[4]) {
            // SETTINGS are acknowledged, and so is the PING behind the first GOAWAY.
            (0x4, 0) => {
                stream.write_all(b"\0\0\0\x04\x01\0\0\0\0").await.unwrap();
                taken = Some(crossfade.take_over().await);
            }
            (0x6, 0) => stream.write_all(&[b"\0\0\x08\x06\x01\0\0\0\0", &payload[..]].concat()).await.unwrap(),
            _ => {}
        }
    }
    // The connection is closed as far as it is concerned, but it has not closed its side.
    for _ in 0..3 {
        stream.write_all(b"\0\0\x04\x08\0\0\0\0\0\0\0\x10\0").await.unwrap();
        stream.writable().await.unwrap();
        assert!(stream.take_error().unwrap().is_none(), "a reset");
        tokio::task::yield_now().await;
    }
    drop(stream);
    assert_eq!(taken.unwrap().ended().await, Some(0));
}

#[tokio::test]
async fn a_rollback_reaches_what_the_one_before_still_serves() {
    let site = Site::start().await;
    let route = site.route().green_percentage(100.0).unguarded();
    let mut crossfade = Crossfade::start_with("[server]\ndrain = \"20s\"", &route.to_string()).await;
    let mut idle = Vec::new();
    for _ in 0..6 {
        let mut client = Client::connect(route.listen).await;
        assert_eq!(client.get("/", &[("x-session-id", "me")]).await.origin(), "go");
        idle.push(client);
    }
    let before = crossfade.take_over().await;
    before.logged(TAKEN).await;
    for (nth, client) in idle.iter_mut().enumerate() {
        // Each has one request left. Back and forth: it is at once, not sometime.
        let (percent, expected) = if nth % 2 == 0 { (0.0, "python") } else { (100.0, "go") };
        crossfade.admin.split("shop", percent).await;
        let last = client.get("/", &[("x-session-id", "me")]).await;
        assert_eq!((last.origin(), last.header("connection")), (expected, Some("close")), "{nth}");
    }
    let mut crossfade_before = before;
    assert_eq!(crossfade_before.ended().await, Some(0));
    // There is nobody to wait for any more.
    crossfade.admin.split("shop", 10.0).await;
}

// What does not come about

/// The one that runs is as it was: it serves and takes changes.
async fn assert_as_before(crossfade: &Crossfade, route: &Route) {
    for percent in [55.0, 50.0] {
        // A connection that is kept may be at its end when it is used again: that is asked for again.
        crossfade.admin.split(route.name, percent).await;
    }
    let (blue, green) = (key(Arm::Blue), key(Arm::Green));
    assert_eq!((ask(route.listen, &blue).await, ask(route.listen, &green).await), ("python".into(), "go".into()));
    let metrics = crossfade.admin.text("/metrics").await;
    assert!(metrics.contains("crossfade_frozen 0") && metrics.contains("crossfade_ready 1"), "{metrics}");
}

#[tokio::test]
async fn a_configuration_with_a_fault_is_refused_before_anybody_is_asked() {
    let site = Site::start().await;
    let route = site.route().green_percentage(50.0);
    let mut crossfade = Crossfade::start(&route.to_string()).await;
    let missing = TempDir::new().unwrap().path().join("missing.pem");
    let tls = format!("tls = {{ cert = {missing:?}, key = {missing:?} }}");
    let tokens = configuration(crossfade.admin.address, "tokens = \"crossfade.toml\"", &route.to_string());
    for (text, named) in [
        ("[[route".to_owned(), "syntax"),
        (configuration(crossfade.admin.address, "colour = \"blue\"", &route.to_string()), "admin.colour"),
        (configuration(crossfade.admin.address, &tls, &route.to_string()), "admin.tls.cert"),
        (configuration(crossfade.admin.address, "", &route.clone().with(&tls).to_string()), "route[0].tls.cert"),
        (tokens, "admin.tokens"),
    ] {
        fs::write(crossfade.config_path(), &text).unwrap();
        let (code, said) = crossfade.try_take_over().await.err().unwrap_or_else(|| panic!("{named} serves"));
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(named) && !said.contains("panicked"), "{named}: {said}");
        assert_as_before(&crossfade, &route).await;
    }
    assert!(!crossfade.log().iter().any(|line| line.contains("Another instance")), "it was not even asked");
}

#[tokio::test]
async fn a_successor_that_cannot_start_leaves_everything_as_it_was() {
    let site = Site::start().await;
    let (route, mut more) = (site.route().green_percentage(50.0), site.route().named("more"));
    let mut crossfade = Crossfade::start(&route.to_string()).await;
    // An address that somebody else has; found out before anything is frozen.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    more.listen = taken.local_addr().unwrap();
    crossfade.rewrite("", &format!("{route}{more}"));
    let (code, said) = crossfade.try_take_over().await.err().unwrap();
    assert!(
        code == Some(1) && said.contains(&format!("cannot listen on {}; stop what uses it", more.listen)),
        "{said}"
    );
    crossfade.logged("Not taken over; going on").await;
    assert_as_before(&crossfade, &route).await;

    // A name of a file that nobody can open, once the state file was released.
    crossfade.rewrite("", &route.to_string());
    let state = crossfade.state_path();
    let mut by_hand = ByHand::freeze(&crossfade).await;
    fs::rename(&state, state.with_extension("aside")).unwrap();
    by_hand.say(&json!({ "say": "nonsense" })).await;
    crossfade.logged("The state file is not ours again").await;
    // It cannot be recorded, and says so; nobody takes another file for it.
    let (status, problem) = post_split(&crossfade, "shop", 60.0).await;
    assert_eq!((status, &problem["type"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("urn:crossfade:not-recorded")));
    fs::rename(state.with_extension("aside"), &state).unwrap();
    assert_as_before(&crossfade, &route).await;
    let metrics = crossfade.admin.text("/metrics").await;
    assert!(metrics.contains("crossfade_takeovers_total{outcome=\"failed\"} 2"), "{metrics}");
    crossfade.take_over().await;
}

#[tokio::test]
async fn while_the_state_file_is_released_nothing_changes_and_traffic_flows() {
    let site = Site::start().await;
    let route = site.route().green_percentage(50.0).unguarded().unchecked();
    let crossfade = Crossfade::start(&route.to_string()).await;
    let mut load = Steady::default().http(&route);
    load.flows(20).await;
    let successor = ByHand::freeze(&crossfade).await;
    load.flows(50).await;

    for (path, body) in [
        ("/traffic-split", json!({ "route": "shop", "green_percentage": 60 })),
        ("/traffic-split", json!({ "route": "shop", "green_percentage": 10 })),
        ("/rollback", json!({ "route": "shop", "reason": "now" })),
        ("/reset", json!({ "route": "shop", "reason": "now" })),
    ] {
        let (status, problem) = crossfade.admin.post(path, &body).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path}: {problem}");
        assert_eq!(problem["type"], "urn:crossfade:frozen", "{path}");
        assert_eq!(problem["cure"], "try again in a second", "{path}");
    }
    let request = "POST /rollback HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n";
    let answer = Client::connect(crossfade.admin.address).await.exchange(request.as_bytes()).await.unwrap();
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(crossfade.admin.green("shop").await, 50.0);
    assert_eq!(crossfade.admin.get("/ready").await.0, StatusCode::OK);
    assert_eq!(crossfade.admin.get("/audit").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert!(crossfade.admin.text("/metrics").await.contains("crossfade_frozen 1"));
    // The state file is free: whoever is asked to may have it.
    admin_api::Sqlite::open(&crossfade.state_path()).unwrap();
    // A changed configuration waits, too.
    crossfade.rewrite("", &route.to_string().replace("label = \"go\"", "label = \"rust\""));
    crossfade.signal("HUP");

    drop(successor);
    crossfade.logged("Changes are possible again").await;
    crossfade.logged("Configuration reloaded").await;
    assert_eq!(crossfade.admin.get("/traffic-split?route=shop").await.1["green"]["label"], "rust");
    load.flows(20).await;
    load.stop().await;
    crossfade.admin.split("shop", 60.0).await;
    let trail = crossfade.admin.get("/audit").await.1;
    assert!(!trail.to_string().contains("refused"), "what was refused meanwhile is not on record: {trail}");
}

#[tokio::test]
async fn whoever_talks_nonsense_is_told_so_and_changes_nothing() {
    let site = Site::start().await;
    let route = site.route().green_percentage(50.0);
    let crossfade = Crossfade::start(&route.to_string()).await;
    for (said, problem) in [
        ("rubbish\n".to_owned(), "talks nonsense"),
        ("GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), "talks nonsense"),
        ("\n".to_owned(), "talks nonsense"),
        ("{\"say\":\"takeover\"}\n".to_owned(), "talks nonsense"),
        ("{\"say\":\"release\"}\n".to_owned(), "has not been asked to take over"),
        ("{\"say\":\"takeover\",\"protocol\":2,\"pid\":7}\n".to_owned(), "speaks takeover protocol 1, not 2"),
        ("x".repeat(2 * 1024 * 1024), "a line without end"),
    ] {
        let mut stranger = ByHand::connect(&crossfade).await;
        // It may be sent away before it has said all.
        let _ = stranger.stream.write_all(said.as_bytes()).await;
        let told = stranger.hear().await.unwrap();
        assert_eq!(told["say"], "refused");
        assert!(told["problem"].as_str().unwrap().contains(problem), "{told}");
    }
    // Out of turn, with the state file released already.
    let mut stranger = ByHand::freeze(&crossfade).await;
    stranger.say(&json!({ "say": "release" })).await;
    assert_eq!(stranger.hear().await.unwrap()["say"], "refused");
    assert_eq!(stranger.hear().await, None);
    crossfade.logged("Changes are possible again").await;
    assert_as_before(&crossfade, &route).await;
}

#[tokio::test]
async fn of_two_takeovers_at_once_the_second_is_refused() {
    let site = Site::start().await;
    let route = site.route().green_percentage(50.0);
    let mut crossfade = Crossfade::start_with(DRAIN, &route.to_string()).await;
    let first = ByHand::freeze(&crossfade).await;
    let (code, said) = crossfade.try_take_over().await.err().unwrap();
    let expected =
        "the running instance refuses to be taken over: process 4711 is taking over; wait until it has, and try again";
    assert!(code == Some(1) && said.contains(expected), "{said}");
    drop(first);
    crossfade.logged("Changes are possible again").await;
    let mut before = crossfade.take_over().await;
    assert_eq!(before.ended().await, Some(0));
    assert_as_before(&crossfade, &route).await;
}

#[tokio::test]
async fn a_stop_in_the_middle_waits_for_the_takeover_whichever_way_it_goes() {
    for succeeds in [true, false] {
        let site = Site::start().await;
        let route = site.route().green_percentage(50.0);
        let mut crossfade = Crossfade::start_with(DRAIN, &route.to_string()).await;
        let mut successor = ByHand::freeze(&crossfade).await;
        crossfade.signal("TERM");
        crossfade.logged("Stopping when that instance has taken over, or failed to").await;
        // It serves as long as nobody else does.
        assert_eq!(ask(route.listen, &key(Arm::Blue)).await, "python");
        if succeeds {
            successor.say(&json!({ "say": "ready", "closing": [] })).await;
            assert_eq!(successor.hear().await, Some(json!({ "say": "go" })));
            crossfade.logged(TAKEN).await;
        } else {
            drop(successor);
            crossfade.logged("Draining: soon no new connections").await;
        }
        assert_eq!(crossfade.ended().await, Some(0));
        assert!(!crossfade.log().iter().any(|line| line.contains("Not everything")), "{succeeds}");
        // The state file is whole, and free.
        admin_api::Sqlite::open(&crossfade.state_path()).unwrap();
    }
}

const KILLS: u32 = 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_that_is_killed_at_any_moment_costs_nothing() {
    let site = Site::start().await;
    let route = site.route().green_percentage(50.0).unguarded().unchecked();
    let mut crossfade = Crossfade::start_with(DRAIN, &route.to_string()).await;
    let mut random = seeded();
    let (mut unasked, mut asked, mut frozen, mut taken) = (0, 0, 0, 0);
    for nth in 0..KILLS {
        let mut load = Steady::default().http(&route);
        load.flows(5).await;
        let said = |text: &str| crossfade.log().iter().filter(|line| line.contains(text)).count();
        let before = ["Another instance takes over", "Changes are possible again"].map(said);
        let mut successor = crossfade.start_successor();
        // What takes longest is to start, and what matters is short: most kills wait for the first word.
        if nth % 4 > 0 {
            soon(async {
                while said("Another instance takes over") == before[0] {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
        // Not a sleep: that is no finer than a millisecond.
        let (started, delay) = (Instant::now(), Duration::from_micros(random.u64(..10_000)));
        while started.elapsed() < delay {
            tokio::task::yield_now().await;
        }
        successor.kill();
        // It is as it was, or it had its successor before that died.
        let changes = eventually("changes are possible, or it was too late", async || {
            if said(TAKEN) > 0 {
                return Some(false);
            }
            let call = Client::try_connect(crossfade.admin.address).await;
            let request = "POST /traffic-split HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                content-length: 23\r\n\r\n{\"green_percentage\":50}\n";
            let answer = call.ok()?.exchange(request.as_bytes()).await.ok()?;
            (answer.status == StatusCode::OK).then_some(true)
        })
        .await;
        let after = ["Another instance takes over", "Changes are possible again"].map(said);
        if changes {
            load.flows(5).await;
            load.stop().await;
            match (after[0] > before[0], after[1] > before[1]) {
                (false, _) => unasked += 1,
                (true, false) => asked += 1,
                (true, true) => frozen += 1,
            }
        } else {
            drop(load);
            taken += 1;
            crossfade.kill_and_restart().await;
        }
    }
    eprintln!(
        "killed before it asked {unasked}, before {asked} and after {frozen} the release, when it had taken over {taken}"
    );
    assert!(frozen > 0 && taken > 0, "kills that fall on one side are worth little");
}

#[tokio::test]
async fn when_the_one_that_runs_dies_in_the_middle_its_successor_goes_on_with_the_sockets() {
    let site = Site::start().await;
    let route = site.route().green_percentage(50.0);
    for released in [false, true] {
        let (dir, admin) = (TempDir::new().unwrap(), free_address());
        fs::write(dir.path().join("crossfade.toml"), configuration(admin, DRAIN, &route.to_string())).unwrap();
        // It dies where the test wants it to, so it is played here.
        let incumbent = UnixListener::bind(dir.path().join("crossfade.db.takeover")).unwrap();
        let sockets = [route.listen, admin].map(|address| TcpListener::bind(address).unwrap());
        let mut crossfade = Crossfade::start_successor_in(dir, admin);
        let (stream, _) = soon(incumbent.accept()).await.unwrap();
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        soon(stream.read_line(&mut line)).await.unwrap();
        assert!(line.starts_with("{\"say\":\"takeover\",\"protocol\":1,\"pid\":"), "{line}");
        // Who has connected waits for whoever accepts.
        let mut waiting = Client::connect(route.listen).await;
        waiting.send(get_request("/", &[])).await;
        send_sockets(stream.get_ref(), &sockets).await;
        stream.write_all(b"{\"say\":\"sockets\",\"protocol\":1,\"pid\":1,\"count\":2}\n").await.unwrap();
        line.clear();
        soon(stream.read_line(&mut line)).await.unwrap();
        assert_eq!(line, "{\"say\":\"release\"}\n");
        if released {
            stream.write_all(b"{\"say\":\"released\"}\n").await.unwrap();
            line.clear();
            soon(stream.read_line(&mut line)).await.unwrap();
            assert_eq!(line, "{\"say\":\"ready\",\"closing\":[]}\n");
        }
        drop((stream, sockets));
        crossfade.logged("Serving the admin API").await;
        crossfade.logged("The running instance went away; going on with its sockets").await;
        assert_eq!(waiting.answer().await.origin(), "python");
        drop(waiting);
        assert_as_before(&crossfade, &route).await;
        // It can be taken over from in its turn, though somebody else's socket was there.
        let mut before = crossfade.take_over().await;
        assert_eq!(before.ended().await, Some(0));
    }
}

async fn send_sockets(stream: &UnixStream, sockets: &[TcpListener]) {
    let descriptors = sockets.iter().map(AsFd::as_fd).collect::<Vec<_>>();
    let send = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        assert!(beside.push(SendAncillaryMessage::ScmRights(&descriptors)));
        Ok(sendmsg(stream, &[IoSlice::new(b" ")], &mut beside, SendFlags::empty())?)
    };
    assert_eq!(stream.async_io(Interest::WRITABLE, send).await.unwrap(), 1);
}

#[tokio::test]
async fn the_death_of_the_one_before_does_not_concern_its_successor() {
    let site = Site::start().await;
    let route = site.route().green_percentage(50.0);
    let mut crossfade = Crossfade::start(&route.to_string()).await;
    let mut idle = Client::connect(route.listen).await;
    idle.get("/", &[]).await;
    let mut before = crossfade.take_over().await;
    before.logged(TAKEN).await;
    before.kill();
    assert!(idle.rest().await.is_empty());
    assert_as_before(&crossfade, &route).await;
    assert!(address(&crossfade).exists());
}

#[tokio::test]
async fn without_a_running_instance_a_takeover_is_a_start() {
    let site = Site::start().await;
    let route = site.route().green_percentage(50.0);
    let mut crossfade = Crossfade::start(&route.to_string()).await;
    crossfade.admin.split("shop", 50.0).await;
    crossfade.kill();
    assert!(address(&crossfade).exists(), "it had no time to remove it");
    for _ in 0..2 {
        crossfade.take_over().await;
        crossfade.logged("No instance to take over from; starting alone").await;
        assert_as_before(&crossfade, &route).await;
        crossfade.signal("TERM");
        assert_eq!(crossfade.ended().await, Some(0));
        assert!(!address(&crossfade).exists());
    }
}

#[tokio::test]
async fn without_being_told_to_a_second_instance_does_not_take_over() {
    let site = Site::start().await;
    let route = site.route().green_percentage(50.0);
    let crossfade = Crossfade::start(&route.to_string()).await;
    let second = program().args(["run", "--config"]).arg(crossfade.config_path()).output().unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(second.status.code() == Some(1) && said.contains("cannot listen on"), "{said}");
    assert_as_before(&crossfade, &route).await;
}

#[tokio::test]
async fn a_state_file_at_a_path_that_is_too_long_is_said_to_rule_a_takeover_out() {
    let site = Site::start().await;
    let route = site.route().green_percentage(50.0);
    let (dir, admin) = (TempDir::new().unwrap(), free_address());
    let deep = "deep".repeat(30);
    fs::create_dir(dir.path().join(&deep)).unwrap();
    let text = configuration(admin, "", &route.to_string()).replace("crossfade.db", &format!("{deep}/crossfade.db"));
    fs::write(dir.path().join("crossfade.toml"), text).unwrap();
    let mut crossfade = Crossfade::start_in(dir, admin).await;
    let problem = "and a socket's path may have 107; move the state file to a folder with a shorter path";
    let line = crossfade.logged("No other instance can take over from this one").await;
    assert!(line.contains(problem), "{line}");
    let (code, said) = crossfade.try_take_over().await.err().unwrap();
    assert!(code == Some(1) && said.contains("crossfade: cannot take over: ") && said.contains(problem), "{said}");
    assert_as_before(&crossfade, &route).await;
}

/// What becomes of 500 new connections a second when the one that serves them is replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures what docs/operating.md says a restart costs"]
async fn what_a_restart_costs_and_a_takeover_does_not() {
    for takeover in [false, true] {
        let site = Site::start().await;
        let route = site.route().green_percentage(50.0).unchecked();
        let mut crossfade = Crossfade::start_with("[server]\ndrain = \"25s\"", &route.to_string()).await;
        let mut kept = Vec::new();
        for _ in 0..20 {
            let mut client = Client::connect(route.listen).await;
            client.get("/", &[]).await;
            kept.push(client);
        }
        let listen = route.listen;
        let asking = tokio::spawn(paced(500, 3_000, move |n| async move {
            let mut client = Client::try_connect(listen).await.map_err(|error| error.kind())?;
            let asked = client.exchange(&get_request("/", &[("x-session-id", &n.to_string())])).await;
            asked.map(|answer| answer.status).map_err(|error| error.kind())
        }));
        eventually("traffic flows", async || (site.requests().0 > 500).then_some(())).await;
        let started = Instant::now();
        if takeover {
            let mut before = crossfade.take_over().await;
            eprintln!("takeover: {:?}", started.elapsed());
            drop(kept);
            assert_eq!(before.ended().await, Some(0));
        } else {
            crossfade.signal("TERM");
            assert_eq!(crossfade.ended().await, Some(0));
            eprintln!("stop: {:?}", started.elapsed());
            crossfade.kill_and_restart().await;
            eprintln!("restart: {:?}", started.elapsed());
        }
        let mut counts = BTreeMap::new();
        for outcome in asking.await.unwrap() {
            *counts.entry(format!("{outcome:?}")).or_insert(0) += 1;
        }
        eprintln!("{counts:?}");
        assert!(!takeover || counts.len() == 1, "{counts:?}");
    }
}
