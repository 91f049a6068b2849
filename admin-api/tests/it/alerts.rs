//! Webhooks that hang, refuse, fail and check signatures.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use admin_api::{Alerts, Control, Guardian, Refusal};
use config::Config;
use ring::hmac;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    control::ann,
    http::Server,
    peer::{Peer, Reply, Request},
    plan::{plan, start, step},
    support::{FakePlane, FakeStore, Folder, eventually, split},
};

/// A route `shop`, and these alerts. Paths are below `base`.
fn telling(alerts: &str, base: &Path) -> Arc<Config> {
    let text = format!(
        "{alerts}\n[[route]]\nname = \"shop\"\nprotocol = \"http\"\nlisten = \"127.0.0.1:80\"\n\
         [route.blue]\nlabel = \"python\"\nendpoints = [\"a:1\"]\n[route.green]\nlabel = \"go\"\nendpoints = [\"b:1\"]\n"
    );
    Arc::new(Config::parse(&text, base).unwrap_or_else(|faults| panic!("{faults}")))
}

fn alert(peer: &Peer, rest: &str) -> String {
    format!("[[alert]]\nurl = \"http://{}/secret/path\"\n{rest}\n", peer.address)
}

async fn rolled_back(server: &Server, reason: &str) {
    server.control.set_split("shop", split(50.0), &ann(), None).await.unwrap();
    server.control.rollback("shop", reason, &ann()).await.unwrap();
}

async fn record(server: &Server) -> Vec<Value> {
    server.get("/alerts").await.json()["alerts"].as_array().unwrap().clone()
}

/// The newest message, as soon as it is in this state.
async fn in_state(server: &Server, state: &str) -> Value {
    for _ in 0..2000 {
        if let Some(newest) = record(server).await.first()
            && newest["state"] == state
        {
            return newest.clone();
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("never {state}: {:?}", record(server).await);
}

fn is_signed(request: &Request, secret: &[u8]) -> bool {
    let Some(digits) = request.header("crossfade-signature").and_then(|value| value.strip_prefix("sha256=")) else {
        return false;
    };
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    let tag: Vec<u8> = (0..digits.len()).step_by(2).map(byte).collect();
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, secret), request.body.as_bytes(), &tag).is_ok()
}

#[tokio::test]
async fn everybody_is_told_what_they_asked_for_in_their_form() {
    let folder = Folder::new();
    let secret = folder.file("secret");
    fs::write(&secret, "s3cret\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let [all, chat, critical] = [
        Peer::start([Reply::Status(200)]).await,
        Peer::start([Reply::Status(204)]).await,
        Peer::start([Reply::Status(200)]).await,
    ];
    let alerts = [
        alert(&all, "name = \"all\"\nseverity = \"info\"\nsecret_file = \"secret\""),
        alert(&chat, "name = \"chat\"\nformat = \"text\""),
        alert(&critical, "severity = \"critical\""),
    ];
    let server = Server::start(telling(&alerts.concat(), secret.parent().unwrap())).await;
    rolled_back(&server, "<!channel> p95 doubled").await;
    eventually("both are told", || all.requests().len() == 2 && chat.requests().len() == 1).await;

    let requests = all.requests();
    assert!(requests.iter().all(|request| is_signed(request, b"s3cret") && !is_signed(request, b"other")));
    let bodies: Vec<Value> = requests.iter().map(|request| serde_json::from_str(&request.body).unwrap()).collect();
    assert_eq!((&bodies[0]["severity"], &bodies[0]["event"]["type"]), (&"info".into(), &"split".into()));
    assert_eq!(bodies[0]["text"], "shop: ann took green (go) from 0 % to 50 %");
    assert_eq!((&bodies[1]["severity"], &bodies[1]["route"]), (&"warning".into(), &"shop".into()));
    assert_eq!(bodies[1]["text"], "shop: ann took green (go) off at 50 %: <!channel> p95 doubled");
    assert_eq!(bodies[1]["event"]["action"], "rollback");
    assert_eq!(requests[1].line, "POST /secret/path HTTP/1.1");
    assert_eq!(requests[1].header("crossfade-delivery"), bodies[1]["id"].as_str());
    assert_ne!(bodies[0]["id"], bodies[1]["id"]);

    let told = chat.requests().remove(0);
    assert_eq!(told.body, r#"{"text":"[warning] shop: ann took green (go) off at 50 %: ‹!channel› p95 doubled"}"#);
    assert_eq!((told.header("crossfade-signature"), told.header("content-type")), (None, Some("application/json")));
    assert_eq!(critical.requests().len(), 0);

    // Who hears of it all, and the secret is nowhere.
    in_state(&server, "delivered").await;
    let shown = server.get("/alerts").await;
    assert!(!shown.body.contains("secret") && !shown.body.contains("s3cret"), "{shown:?}");
    let webhooks = &shown.json()["webhooks"];
    assert_eq!((&webhooks[0]["alert"], &webhooks[0]["delivered"]), (&"all".into(), &2.into()));
    assert_eq!((&webhooks[2]["alert"], &webhooks[2]["delivered"]), (&"alert-3".into(), &0.into()));
    assert_eq!(webhooks[1]["to"], format!("http://{}", chat.address));
    let metrics = server.get("/metrics").await.body;
    assert!(metrics.contains("\ncrossfade_alerts_total{alert=\"all\",outcome=\"delivered\"} 2\n"), "{metrics}");
    server.stop().await;
}

#[tokio::test]
async fn what_fails_is_tried_again_in_order() {
    let peer = Peer::start([Reply::Status(500), Reply::Close, Reply::Status(429), Reply::Status(200)]).await;
    let server = Server::start(telling(&alert(&peer, ""), Path::new(""))).await;
    rolled_back(&server, "p95 doubled").await;
    server.control.reset("shop", "again", &ann(), None).await.unwrap();
    rolled_back(&server, "p95 doubled again").await;
    in_state(&server, "delivered").await;
    let record = record(&server).await;
    assert_eq!(record.len(), 2);
    assert_eq!((&record[1]["attempts"], &record[1]["state"]), (&4.into(), &"delivered".into()));
    assert_eq!((&record[0]["attempts"], &record[0]["problem"]), (&1.into(), &Value::Null));
    let ids: Vec<_> =
        peer.requests().iter().map(|request| request.header("crossfade-delivery").unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 5);
    assert!(ids[..4].iter().all(|id| *id == ids[0]) && ids[4] != ids[0], "{ids:?}");
    assert_eq!(record[1]["id"], ids[0]);
    server.stop().await;
}

/// A message that its webhook has refused to digest three times, and four seconds until the next attempt.
async fn stuck() -> (Peer, Server) {
    let peer = Peer::start([Reply::Status(500)]).await;
    let server = Server::start(telling(&alert(&peer, ""), Path::new(""))).await;
    rolled_back(&server, "p95 doubled").await;
    eventually("it is tried three times", || peer.requests().len() == 3).await;
    for _ in 0..2000 {
        if record(&server).await[0]["attempts"] == 3 {
            peer.reply(Reply::Status(200));
            return (peer, server);
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("never tried: {:?}", record(&server).await);
}

fn types(peer: &Peer) -> Vec<String> {
    let event = |request: &Request| serde_json::from_str::<Value>(&request.body).unwrap()["event"]["type"].clone();
    peer.requests().iter().map(|request| event(request).as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn what_cannot_be_digested_does_not_hold_back_what_is_more_severe() {
    let (peer, server) = stuck().await;
    server.control.reset("shop", "again", &ann(), None).await.unwrap();
    server.control.set_split("shop", split(50.0), &ann(), None).await.unwrap();
    let guardian = Guardian::new(server.control.clone());
    for _ in 0..30 {
        server.plane.second("shop", (50, 0), (20, 30));
        guardian.tick();
    }
    eventually("both are told", || peer.requests().len() == 5).await;
    assert_eq!(types(&peer)[3..], ["trip", "split"]);
    server.stop().await;
}

#[tokio::test]
async fn what_waits_is_tried_once_more_at_the_end() {
    let (peer, server) = stuck().await;
    server.stop().await;
    assert_eq!(types(&peer), ["split"; 4]);
}

#[tokio::test]
async fn that_events_went_by_is_told() {
    let peer = Peer::start([Reply::Status(200)]).await;
    let server = Server::start(telling(&alert(&peer, "severity = \"critical\""), Path::new(""))).await;
    // Listening; and then it has no turn in between.
    rolled_back(&server, "p95 doubled").await;
    for _ in 0..1_000 {
        server.control.reload_refused("nonsense");
    }
    eventually("it is told", || !peer.requests().is_empty()).await;
    let told: Value = serde_json::from_str(&peer.requests()[0].body).unwrap();
    assert_eq!((&told["severity"], &told["event"]["type"]), (&"critical".into(), &"missed".into()));
    let missed = told["event"]["missed"].as_u64().unwrap();
    assert!(missed >= 300, "{missed}");
    let text = format!("crossfade: {missed} events went by too fast to tell of them; look at /incidents and /audit");
    assert_eq!(told["text"], text);
    let metrics = server.get("/metrics").await.body;
    assert!(metrics.contains(&format!("\ncrossfade_alerts_missed_total {missed}\n")), "{metrics}");
    server.stop().await;
}

#[tokio::test]
async fn a_plan_that_is_paused_by_the_start_is_told() {
    let peer = Peer::start([Reply::Status(200)]).await;
    let guarded = telling(&alert(&peer, ""), Path::new(""));
    let store = Arc::<FakeStore>::default();
    let before = Control::open(guarded.clone(), store.clone(), Arc::<FakePlane>::default()).await.unwrap();
    before.change_plan("shop", start(plan(vec![step(10.0, 1_000)])), "test", &ann(), None).await.unwrap();
    before.flush().await.unwrap();
    drop(before);

    let mut unguarded = Config::clone(&guarded);
    unguarded.routes[0].guard = None;
    let control = Control::open(Arc::new(unguarded), store, Arc::<FakePlane>::default()).await.unwrap();
    let shutdown = CancellationToken::new();
    let telling = tokio::spawn(Alerts::new(control).run(shutdown.clone()));
    eventually("it is told", || !peer.requests().is_empty()).await;
    let told: Value = serde_json::from_str(&peer.requests()[0].body).unwrap();
    assert_eq!(
        (&told["event"]["change"], &told["event"]["reason"]),
        (&"paused".into(), &"the guard of the route is off".into())
    );
    shutdown.cancel();
    telling.await.unwrap();
}

#[tokio::test]
async fn what_says_no_is_not_asked_again() {
    for (status, problem) in
        [(404, "answers 404 Not Found"), (307, "answers 307 Temporary Redirect; write the url that it leads to")]
    {
        let peer = Peer::start([Reply::Status(status)]).await;
        let server = Server::start(telling(&alert(&peer, ""), Path::new(""))).await;
        rolled_back(&server, "p95 doubled").await;
        let failed = in_state(&server, "failed").await;
        assert_eq!((&failed["attempts"], &failed["problem"]), (&1.into(), &problem.into()));
        assert_eq!(peer.requests().len(), 1);
        server.stop().await;
    }
}

#[tokio::test]
async fn one_that_hangs_holds_up_nobody() {
    let (hanging, other) = (Peer::start([Reply::Hang]).await, Peer::start([Reply::Status(200)]).await);
    let alerts = [alert(&hanging, ""), alert(&other, "")].concat();
    let server = Server::start(telling(&alerts, Path::new(""))).await;
    for n in 0..80 {
        rolled_back(&server, &format!("reason {n}")).await;
        server.control.reset("shop", "again", &ann(), None).await.unwrap();
    }
    eventually("the other one is told all of it", || other.requests().len() == 80).await;
    eventually("it has been asked", || !hanging.requests().is_empty()).await;
    let webhooks = server.get("/alerts").await.json()["webhooks"].clone();
    assert_eq!((&webhooks[1]["delivered"], &webhooks[1]["dropped"]), (&80.into(), &0.into()));
    // One is under way and 64 wait: 15 have given way.
    assert_eq!((&webhooks[0]["waiting"], &webhooks[0]["dropped"]), (&65.into(), &15.into()));
    eventually("an attempt ends", || hanging.requests().len() > 1).await;
    let first = server.get("/alerts?limit=200").await.json()["alerts"]
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .find(|alert| alert["alert"] == "alert-1" && alert["attempts"] != 0)
        .unwrap()
        .clone();
    assert_eq!(first["problem"], "does not answer within 5s");
    server.stop().await;
}

#[tokio::test]
async fn nothing_is_sent_unsigned_and_what_comes_late_is_not_too_late() {
    let folder = Folder::new();
    let secret = folder.file("secret");
    // Nobody listens yet.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let alerts = format!("[[alert]]\nurl = \"http://{address}/\"\nsecret_file = \"secret\"\n");
    let server = Server::start(telling(&alerts, secret.parent().unwrap())).await;
    rolled_back(&server, "p95 doubled").await;
    let problem = async |what: &str| {
        for _ in 0..2000 {
            let newest = record(&server).await[0].clone();
            if newest["problem"].as_str().is_some_and(|problem| problem.contains(what)) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("never {what}: {:?}", record(&server).await);
    };
    problem("secret_file: ").await;
    fs::write(&secret, "s3cret").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    problem("can be read by others (mode 644)").await;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    problem("cannot be asked: ").await;
    let peer = Peer::at(address, [Reply::Status(200)]).await;
    let delivered = in_state(&server, "delivered").await;
    assert!(delivered["attempts"].as_u64().unwrap() >= 4 && delivered["delivered_at"].is_string(), "{delivered}");
    assert!(is_signed(&peer.requests()[0], b"s3cret"));
    server.stop().await;
}

#[tokio::test]
async fn that_both_arms_are_bad_is_told_once() {
    let peer = Peer::start([Reply::Status(200)]).await;
    let server = Server::start(telling(&alert(&peer, ""), Path::new(""))).await;
    server.control.set_split("shop", split(50.0), &ann(), None).await.unwrap();
    let guardian = Guardian::new(server.control.clone());
    for second in 0..60 {
        let arm = if second < 30 { (50, 0) } else { (20, 30) };
        server.plane.second("shop", arm, arm);
        guardian.tick();
    }
    assert_eq!(server.plane.live("shop").split, split(50.0));
    eventually("it is told", || !peer.requests().is_empty()).await;
    in_state(&server, "delivered").await;
    let told: Vec<Value> = peer.requests().iter().map(|request| serde_json::from_str(&request.body).unwrap()).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0]["event"]["type"], &told[0]["event"]["cause"]), (&"caution".into(), &"shared_cause".into()));
    server.stop().await;
}

#[test]
fn a_disk_that_hangs_stops_no_webhook() {
    let folder = Folder::new();
    let secret = folder.file("secret");
    fs::write(&secret, "s3cret\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let peer = Peer::start([Reply::Status(200)]).await;
        let alerts = alert(&peer, "severity = \"info\"\nsecret_file = \"secret\"");
        let server = Server::start(telling(&alerts, secret.parent().unwrap())).await;
        server.control.set_split("shop", split(50.0), &ann(), None).await.unwrap();
        in_state(&server, "delivered").await;

        // What hangs has the only thread there is for files.
        server.store.hang();
        let rollback = server.control.rollback("shop", "errors", &ann()).await;
        assert!(matches!(rollback, Err(Refusal::LiveNotRecorded(_))));
        eventually("it is told of", || peer.requests().len() == 2).await;
        let told = peer.requests().remove(1);
        assert!(told.body.contains("rollback") && is_signed(&told, b"s3cret"), "{told:?}");
        server.store.release();
        server.stop().await;
    });
}
