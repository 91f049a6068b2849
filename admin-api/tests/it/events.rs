//! Server-sent events.

use std::time::Duration;

use admin_api::Guardian;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

use crate::{
    http::Server,
    support::{shop, split},
};

struct Listener(BufReader<TcpStream>);

impl Listener {
    async fn new(server: &Server) -> Self {
        let mut stream = server.connect().await;
        stream.write_all(b"GET /api/events HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut listener = Self(BufReader::new(stream));
        while listener.line().await.unwrap() != ": listening" {}
        listener
    }

    /// `None`: the stream has ended.
    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = timeout(Duration::from_secs(20), self.0.read_line(&mut line)).await.expect("a line in time");
        (read.unwrap() > 0).then(|| line.trim_end().to_owned())
    }

    async fn event(&mut self) -> (String, Value) {
        let mut name = String::new();
        loop {
            let line = self.line().await.expect("the stream goes on");
            if let Some(event) = line.strip_prefix("event: ") {
                name = event.to_owned();
            } else if let Some(data) = line.strip_prefix("data: ") {
                return (name, serde_json::from_str(data).unwrap());
            }
        }
    }
}

#[tokio::test]
async fn everything_that_happens_is_told() {
    let server = Server::start(shop()).await;
    let mut listener = Listener::new(&server).await;
    server.post("/traffic-split", r#"{"green_percentage":50}"#).await;
    let (name, data) = listener.event().await;
    assert_eq!((name.as_str(), &data["type"], &data["number"]), ("split", &"split".into(), &1.into()));
    assert_eq!((&data["before"], &data["green_percentage"], &data["actor"]), (&0.into(), &50.into(), &"local".into()));

    let guardian = Guardian::new(server.control.clone());
    // The second in which green starts is no evidence.
    for _ in 0..6 {
        server.plane.second("shop", (50, 0), (0, 50));
    }
    guardian.tick();
    assert_eq!(server.plane.live("shop").split, split(0.0));
    let (name, data) = listener.event().await;
    assert_eq!((name.as_str(), &data["verdict"]), ("verdict", &"breach".into()));
    let (name, data) = listener.event().await;
    assert_eq!((name.as_str(), &data["incident"]["split_before"]), ("trip", &50.into()));
    let id = data["incident"]["id"].as_str().unwrap();
    let incident = server.get(&format!("/incidents/{id}")).await.json();
    assert_eq!(incident, data["incident"]);
    assert_eq!((&incident["counts"]["green"]["refused"], &incident["verdict"]), (&250.into(), &"breach".into()));
    assert_eq!(server.get("/incidents").await.json()["incidents"][0], incident);
    let status = server.get("/status").await.json();
    assert_eq!(status["routes"][0]["guard"]["judgement"]["verdict"], "breach");
    assert_eq!(status["routes"][0]["latch"]["actor"], "guard");

    server.post("/reset", r#"{"reason":"fixed"}"#).await;
    assert_eq!(listener.event().await.0, "reset");
    server.control.reload(shop()).await.unwrap();
    assert_eq!(listener.event().await.0, "reload");
    server.stop().await;
    while listener.line().await.is_some() {}
}

#[tokio::test]
async fn a_slow_listener_is_told_how_much_it_missed() {
    let server = Server::start(shop()).await;
    let mut listener = Listener::new(&server).await;
    // More than fits into sockets and the queue together.
    let reason = "x".repeat(100_000);
    for _ in 0..600 {
        server.control.reload_refused(&reason);
    }
    let missed = async {
        loop {
            let (name, data) = listener.event().await;
            if name == "missed" {
                return data;
            }
        }
    };
    assert!(missed.await["missed"].as_u64().unwrap() > 0);
    server.stop().await;
}

#[tokio::test]
async fn listeners_leave_room_for_others() {
    let server = Server::start(shop()).await;
    let mut listeners = Vec::new();
    for _ in 0..64 {
        listeners.push(Listener::new(&server).await);
    }
    server.get("/events").await.problem(503);
    assert_eq!(server.post("/rollback", "{}").await.status, 200);
    drop(listeners);
    server.stop().await;
}
