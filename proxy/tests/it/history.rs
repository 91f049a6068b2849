//! Minutes outlive the process that saw them.

use std::fs;

use http::StatusCode;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    clients::Client,
    harness::{Admin, Crossfade, configuration, eventually, free_address},
    routes::Route,
    site::Site,
    status::{arm, counted},
};

/// How many requests of `shop` the history knows of blue.
async fn remembered(admin: &Admin) -> u64 {
    let (status, answer) = admin.get("/history?route=shop&since=-1h").await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let rows = answer["history"].as_array().unwrap();
    rows.iter().filter(|row| row["arm"] == "blue").map(|row| row["ok"].as_u64().unwrap()).sum()
}

/// Sends requests to blue, and waits until they are counted.
async fn requests(crossfade: &Crossfade, route: &Route, count: u64) -> Value {
    let mut client = Client::connect(route.listen).await;
    for _ in 0..count {
        assert_eq!(client.get("/", &[]).await.status, StatusCode::OK);
    }
    counted(crossfade, "shop", |status| arm(status, "blue")["ok"] == count).await
}

#[tokio::test]
async fn a_minute_is_there_after_a_stop_and_adds_up_over_a_takeover() {
    let site = Site::start().await;
    let route = site.route();
    let mut crossfade = Crossfade::start(&route.to_string()).await;
    requests(&crossfade, &route, 20).await;
    crossfade.signal("TERM");
    assert_eq!(crossfade.ended().await, Some(0));
    crossfade.kill_and_restart().await;
    assert_eq!(remembered(&crossfade.admin).await, 20);

    // The one that was taken over from still writes what it saw.
    requests(&crossfade, &route, 30).await;
    let mut before = crossfade.take_over().await;
    assert_eq!(before.ended().await, Some(0));
    assert_eq!(remembered(&crossfade.admin).await, 50);
}

#[tokio::test]
async fn a_damaged_history_does_not_hold_up_the_start() {
    let site = Site::start().await;
    let (dir, admin, route) = (TempDir::new().unwrap(), free_address(), site.route());
    fs::write(dir.path().join("crossfade.toml"), configuration(admin, "", &route.to_string())).unwrap();
    let history = dir.path().join("crossfade.history.db");
    fs::write(&history, "not a database, and long enough for one".repeat(500)).unwrap();
    let mut crossfade = Crossfade::start_in(dir, admin).await;
    requests(&crossfade, &route, 5).await;
    // Who only reads moves nothing away.
    let (status, answer) = crossfade.admin.get("/history?route=shop&since=-1h").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{answer}");
    crossfade.signal("TERM");
    assert_eq!(crossfade.ended().await, Some(0));
    crossfade.logged("History is damaged; beginning a new one").await;
    assert!(fs::read_to_string(history.with_extension("db.damaged")).unwrap().starts_with("not a database"));
    crossfade.kill_and_restart().await;
    eventually("it is remembered", async || (remembered(&crossfade.admin).await == 5).then_some(())).await;
}
