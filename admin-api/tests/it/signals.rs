//! What is heard from outside: pushed, scraped, judged, and remembered.

use std::{path::Path, sync::Arc, time::Duration};

use admin_api::{Control, Guardian, Scraper, Sqlite, StateStore};
use config::Config;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio_util::sync::CancellationToken;

use crate::{
    control::ann,
    http::Server,
    peer::{Peer, Reply},
    support::{FakePlane, FakeStore, Folder, eventually, split},
};

/// A route `shop` with these signals.
fn watching(signals: &str) -> Arc<Config> {
    let text = format!(
        "[[route]]\nname = \"shop\"\nprotocol = \"http\"\nlisten = \"127.0.0.1:80\"\n\
         [route.blue]\nendpoints = [\"a:1\"]\n[route.green]\nlabel = \"go\"\nendpoints = [\"b:1\"]\n{signals}"
    );
    Arc::new(Config::parse(&text, Path::new("")).unwrap_or_else(|faults| panic!("{faults}")))
}

const LAG: &str = "[[route.signal]]\nname = \"lag\"\nlimit = \"> 1000\"\n";

async fn signal(server: &Server) -> Value {
    server.get("/signals").await.json()["signals"][0].clone()
}

#[tokio::test]
async fn values_are_pushed_and_shown() {
    let server = Server::start(watching(LAG)).await;
    let empty = signal(&server).await;
    assert_eq!((&empty["verdict"], &empty["value"], &empty["at"]), (&"unknown".into(), &Value::Null, &Value::Null));
    assert_eq!(
        (&empty["limit"], &empty["silent"], &empty["scraped"]),
        (&"> 1000".into(), &"hold".into(), &false.into())
    );

    let answer = server.post("/api/signals", r#"{"name":"lag","value":17}"#).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(
        (&answer.json()["verdict"], &answer.json()["reason"]),
        (&"pass".into(), &"lag is 17, not above 1000".into())
    );
    let at = (OffsetDateTime::now_utc() - Duration::from_secs(5)).replace_nanosecond(0).unwrap();
    let body = json!({ "route": "shop", "name": "lag", "value": 1.5e3, "at": at.format(&Rfc3339).unwrap() });
    // Measured before the one that is there.
    server.post("/signals", &body.to_string()).await.problem(422);
    server.post("/signals", r#"{"route":"shop","name":"lag","value":1500.5}"#).await;
    let shown = signal(&server).await;
    assert_eq!((&shown["value"], &shown["verdict"]), (&1500.5.into(), &"breach".into()));
    assert!(shown["age_seconds"].as_f64().unwrap() < 20.0, "{shown}");
    assert_eq!(server.get("/signals?route=shop").await.json()["signals"][0]["name"], "lag");
    server.get("/signals?route=bus").await.problem(404);
    let metrics = server.get("/metrics").await.body;
    assert!(metrics.contains("\ncrossfade_signal_value{route=\"shop\",signal=\"lag\"} 1500.5\n"), "{metrics}");

    eventually("it is on disk", || server.store.signals().unwrap().iter().any(|row| row.value == 1500.5)).await;
    server.stop().await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_its_field() {
    let server = Server::start(watching(LAG)).await;
    let now = OffsetDateTime::now_utc();
    let at = |seconds: i64| (now + time::Duration::seconds(seconds)).format(&Rfc3339).unwrap();
    for (body, field) in [
        (json!({ "name": "lag" }), "value"),
        (json!({ "value": 1 }), "name"),
        (json!({ "name": "lagg", "value": 1 }), "name"),
        (json!({ "name": "lag", "value": "NaN" }), "value"),
        (json!({ "name": "lag", "value": "Infinity" }), "value"),
        (json!({ "name": "lag", "value": null }), "value"),
        (json!({ "name": "lag", "value": true }), "value"),
        (json!({ "name": "lag", "value": 1, "at": at(60) }), "at"),
        (json!({ "name": "lag", "value": 1, "at": at(-3600) }), "at"),
        (json!({ "name": "lag", "value": 1, "at": "today" }), "at"),
        (json!({ "name": "lag", "value": 1, "at": 1769854502 }), "at"),
        (json!({ "name": "lag", "value": 1, "unit": "s" }), "unit"),
    ] {
        let problem = server.post("/signals", &body.to_string()).await.problem(422);
        assert_eq!(problem["field"], field, "{body}: {problem}");
        assert!(problem["faults"][0]["cure"].as_str().is_some_and(|cure| !cure.is_empty()), "{problem}");
    }
    // These are no JSON.
    for body in [r#"{"name":"lag","value":NaN}"#, r#"{"name":"lag","value":1e999}"#] {
        server.post("/signals", body).await.problem(400);
    }
    server.post("/signals", r#"{"route":"bus","name":"lag","value":1}"#).await.problem(404);
    assert_eq!(signal(&server).await["value"], Value::Null);
    server.stop().await;
}

#[tokio::test]
async fn a_signal_trips_and_a_reset_forgets_it() {
    let server = Server::start(watching(LAG)).await;
    let control = &server.control;
    control.set_split("shop", split(50.0), &ann(), None).await.unwrap();
    let guardian = Guardian::new(control.clone());
    let second = || {
        server.plane.second("shop", (50, 0), (50, 0));
        guardian.tick();
    };
    // The second in which green starts is no evidence.
    second();
    server.post("/signals", r#"{"name":"lag","value":17}"#).await;
    second();
    assert_eq!(server.plane.live("shop").split, split(50.0));
    server.post("/signals", r#"{"name":"lag","value":1700}"#).await;
    second();
    assert_eq!(server.plane.live("shop").split, split(0.0));
    let latch = control.state("shop").unwrap().recorded.latch.unwrap();
    assert!(latch.reason.contains("lag is 1700, above 1000"), "{latch:?}");

    control.reset("shop", "consumers added", &ann(), None).await.unwrap();
    control.set_split("shop", split(50.0), &ann(), None).await.unwrap();
    (0..3).for_each(|_| second());
    assert_eq!(server.plane.live("shop").split, split(50.0), "the value before the reset is no evidence");
    server.post("/signals", r#"{"name":"lag","value":1700}"#).await;
    second();
    assert_eq!(server.plane.live("shop").split, split(0.0));
    server.stop().await;
}

#[tokio::test]
async fn values_are_scraped() {
    let page = "# TYPE lag gauge\nlag{group=\"go\",partition=\"0\"} 5\nlag{group=\"go\",partition=\"1\"} 700\n\
                lag{group=\"python\"} 9000\nmemory_bytes 1.5e8\n";
    let peer = Peer::start([Reply::Page(page.to_owned())]).await;
    let scrape = |name: &str, metric: &str, rest: &str| {
        format!(
            "[[route.signal]]\nname = \"{name}\"\nlimit = \"> 1000\"\n[route.signal.scrape]\n\
             url = \"http://{}/metrics?secret\"\nmetric = \"{metric}\"\nevery = \"1s\"\n{rest}\n",
            peer.address
        )
    };
    let config = watching(
        &[
            scrape("lag", "lag", "labels = { group = \"go\" }"),
            scrape("missing", "lagg", ""),
            scrape("sum", "lag", "labels = { group = \"go\" }\ncombine = \"sum\""),
        ]
        .concat(),
    );
    let (plane, store) = (Arc::new(FakePlane::default()), Arc::new(FakeStore::default()));
    let control = Control::open(config, store, plane).await.unwrap();
    let shutdown = CancellationToken::new();
    let scraping = tokio::spawn(Scraper::new(control.clone()).run(shutdown.clone()));
    let view = |nth: usize| control.signals().views(Some("shop"), tokio::time::Instant::now())[nth].clone();
    eventually("all are scraped", || view(2).value.is_some()).await;
    assert_eq!((view(0).value, view(2).value), (Some(700.0), Some(705.0)));
    let place = format!("http://{}/metrics", peer.address);
    assert_eq!(view(1).problem, Some(format!("{place} has no lagg")));
    // One page, asked for once for all three.
    let request = peer.requests().remove(0);
    assert_eq!(request.line, "GET /metrics?secret HTTP/1.1");
    assert_eq!(request.header("accept"), Some("text/plain;version=0.0.4"));
    assert!(request.header("user-agent").unwrap().starts_with("crossfade/"));
    let asked = peer.requests().len();
    eventually("it is scraped again", || peer.requests().len() > asked).await;

    // The last good value stays, and what is wrong is said.
    for (reply, problem) in [
        (Reply::Status(503), "answers 503 Service Unavailable"),
        (Reply::Status(302), "answers 302 Found; write the url that it leads to"),
        (Reply::Page("<html>\n".to_owned()), "line 1: does not begin with a name"),
        (Reply::Page("lag 1\nlag 2".to_owned()), "line 2: is cut off"),
        (Reply::Raw("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nlag 1\n".to_owned()), "breaks off"),
        (Reply::Close, "cannot be asked: "),
        (Reply::Hang, "does not answer within 1s"),
    ] {
        peer.reply(reply);
        let expected = format!("{place} {problem}");
        eventually(problem, || view(0).problem.is_some_and(|problem| problem.starts_with(&expected))).await;
    }
    assert_eq!(view(0).value, Some(700.0));
    assert!(view(0).failed_scrapes >= 7);
    peer.reply(Reply::Page("lag{group=\"go\"} 1001\n".to_owned()));
    eventually("it can be scraped again", || view(0).problem.is_none()).await;
    assert_eq!((view(0).value, view(0).reason.as_str()), (Some(1001.0), "lag is 1001, above 1000"));
    shutdown.cancel();
    scraping.await.unwrap();
}

#[tokio::test]
async fn the_last_values_outlive_the_process() {
    let folder = Folder::new();
    let path = folder.file("crossfade.db");
    let open = async || {
        let store = Arc::new(Sqlite::open(&path).unwrap());
        let control = Control::open(watching(LAG), store.clone(), Arc::new(FakePlane::default())).await.unwrap();
        (control, store)
    };
    let (control, store) = open().await;
    control.signals().push("shop", "lag", 17.0, None, admin_api::Moment::now()).unwrap();
    eventually("it is on disk", || store.signals().unwrap().len() == 1).await;
    drop((control, store));
    // The task that records lets go of the file within a second.
    eventually("the file is free", || Sqlite::open(&path).is_ok()).await;
    let (control, _) = open().await;
    let view = control.signals().views(None, tokio::time::Instant::now()).remove(0);
    assert_eq!((view.value, view.reason.as_str()), (Some(17.0), "lag is 17, not above 1000"));
}

#[tokio::test]
async fn what_a_reset_has_dropped_takes_no_green_off_after_a_restart() {
    let (config, store) = (watching(LAG), Arc::new(FakeStore::default()));
    let open = async || {
        let plane = Arc::new(FakePlane::default());
        let control = Control::open(config.clone(), store.clone(), plane.clone()).await.unwrap();
        (Guardian::new(control.clone()), control, plane)
    };
    let (guardian, control, plane) = open().await;
    let second = |guardian: &Guardian, plane: &FakePlane| {
        plane.second("shop", (50, 0), (50, 0));
        guardian.tick();
    };
    control.set_split("shop", split(10.0), &ann(), None).await.unwrap();
    control.signals().push("shop", "lag", 1500.0, None, admin_api::Moment::now()).unwrap();
    eventually("it trips", || {
        second(&guardian, &plane);
        plane.live("shop").latched
    })
    .await;
    control.flush().await.unwrap();
    control.reset("shop", "mended", &ann(), None).await.unwrap();
    control.set_split("shop", split(10.0), &ann(), None).await.unwrap();
    drop((guardian, control));

    let (guardian, control, plane) = open().await;
    (0..5).for_each(|_| second(&guardian, &plane));
    assert_eq!(plane.live("shop").split, split(10.0));
    control.signals().push("shop", "lag", 1500.0, None, admin_api::Moment::now()).unwrap();
    eventually("a new value trips it", || {
        second(&guardian, &plane);
        plane.live("shop").latched
    })
    .await;
}
