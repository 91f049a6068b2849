//! A second instance takes over from the one that runs, and whatever can go wrong with that.

use std::{
    fs,
    io::{ErrorKind, IoSlice},
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener},
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
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
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpStream, UnixListener, UnixStream},
    time::Instant,
};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    authority::Authority,
    clients::{Client, H2Client, get_request},
    harness::{Crossfade, configuration, eventually, free_address, program, seeded},
    mosquitto::Mosquitto,
    mqtt::greet,
    packets::{ACCEPTED, connect, packet},
    routes::Route,
    site::{Site, any_port, key, keys, soon},
    steady::Steady,
    tcp::{from_address, label},
};

/// Short, so that what stays open does not hold up the test.
const DRAIN: &str = "[server]\ndrain = \"4s\"\nworkers = 2";

const SERVED: &str = "Took over from the instance that was running";

/// Where the instance of a state file is asked.
fn address(crossfade: &Crossfade) -> PathBuf {
    crossfade.dir.path().join("crossfade.db.takeover")
}

/// One that takes over by hand, or does something else.
struct ByHand(BufReader<UnixStream>);

impl ByHand {
    async fn connect(crossfade: &Crossfade) -> Self {
        Self(BufReader::new(UnixStream::connect(address(crossfade)).await.unwrap()))
    }

    async fn say(&mut self, word: &Value) {
        self.0.write_all(format!("{word}\n").as_bytes()).await.unwrap();
    }

    /// The next word; `None` at the end. Sockets that come along are lost.
    async fn hear(&mut self) -> Option<Value> {
        let mut line = String::new();
        match soon(self.0.read_line(&mut line)).await {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap()),
            Err(error) => panic!("{error}"),
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
    for _ in 0..3 {
        before.push(crossfade.take_over().await);
        load.flows(100).await;
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
