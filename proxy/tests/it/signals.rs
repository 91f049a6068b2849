//! What is heard from outside trips a route and survives `kill -9`, and webhooks are told.

use std::{fs, os::unix::fs::PermissionsExt, sync::Arc};

use http::StatusCode;
use loadtest::origin::TcpOrigin;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use crate::{
    authority::Authority,
    harness::{Crossfade, configuration, eventually, free_address, program},
    routes::Route,
    site::{RawOrigin, any_port, read_head},
};

/// Answers every request with this page, and keeps what was posted.
async fn web(page: Arc<Mutex<String>>) -> (RawOrigin, Arc<Mutex<Vec<Value>>>) {
    let posted: Arc<Mutex<Vec<Value>>> = Arc::default();
    let kept = Arc::clone(&posted);
    let origin = RawOrigin::start(move |mut stream, _| {
        let (page, kept) = (page.lock().clone(), Arc::clone(&kept));
        async move {
            let posted = answer(&mut stream, &page).await;
            kept.lock().extend(posted);
        }
    })
    .await;
    (origin, posted)
}

/// Answers one request with this page. What was posted, if anything.
async fn answer(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), page: &str) -> Option<Value> {
    let mut request = String::from_utf8(read_head(stream).await).unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap_or_default();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let missing = length.map_or(0, |length| length.parse::<usize>().unwrap() - body.len());
    let mut rest = vec![0; missing];
    stream.read_exact(&mut rest).await.unwrap();
    request.push_str(std::str::from_utf8(&rest).unwrap());
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{page}", page.len());
    stream.write_all(answer.as_bytes()).await.unwrap();
    request.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok())
}

#[tokio::test]
async fn a_scraped_signal_takes_green_off_and_a_webhook_is_told() {
    let blue = TcpOrigin::start("python", any_port()).await.unwrap();
    let green = TcpOrigin::start("go", any_port()).await.unwrap();
    let page = Arc::new(Mutex::new("consumer_lag{group=\"go\"} 12\n".to_owned()));
    let (web, posted) = web(Arc::clone(&page)).await;
    let signal = format!(
        "[[route.signal]]\nname = \"lag\"\nlimit = \"> 1000 for 2s\"\n[route.signal.scrape]\n\
         url = \"http://{}/metrics\"\nmetric = \"consumer_lag\"\nlabels = {{ group = \"go\" }}\nevery = \"1s\"",
        web.address
    );
    let route = Route::tcp(blue.address(), green.address()).table(signal).green_percentage(50.0);
    let alert = format!("[[alert]]\nurl = \"http://{}/hook\"\nseverity = \"critical\"", web.address);
    let crossfade = Crossfade::start_with(&alert, &route.to_string()).await;
    eventually("the signal is heard", async || {
        let (_, seen) = crossfade.admin.get("/signals").await;
        (seen["signals"][0]["value"] == 12.0).then_some(())
    })
    .await;
    assert_eq!(crossfade.admin.green("bus").await, 50.0);
    *page.lock() = "consumer_lag{group=\"go\"} 1700\n".to_owned();
    let told = eventually("the webhook is told", async || posted.lock().first().cloned()).await;
    assert_eq!(crossfade.admin.green("bus").await, 0.0);
    assert_eq!(
        (&told["severity"], &told["route"], &told["event"]["type"]),
        (&"critical".into(), &"bus".into(), &"trip".into())
    );
    let text = told["text"].as_str().unwrap();
    assert!(text.contains(" green (go) of bus was taken off: lag is 1700, above 1000 for "), "{text}");
    assert!(text.ends_with(&format!(" Incident {}.", told["event"]["incident"]["id"].as_str().unwrap())), "{text}");
}

#[tokio::test]
async fn a_webhook_is_told_over_tls_if_the_system_trusts_it() {
    let (trusted, stranger) = (Authority::new(), Authority::new());
    let posted: Arc<Mutex<Vec<Value>>> = Arc::default();
    let mut hooks = Vec::new();
    for authority in [&trusted, &stranger] {
        let (acceptor, posted) = (TlsAcceptor::from(authority.issue("127.0.0.1").server(&[])), Arc::clone(&posted));
        hooks.push(
            RawOrigin::start(move |tcp, _| {
                let (acceptor, posted) = (acceptor.clone(), Arc::clone(&posted));
                async move {
                    let Ok(mut stream) = acceptor.accept(tcp).await else { return };
                    let told = answer(&mut stream, "").await;
                    posted.lock().extend(told);
                    let _ = stream.shutdown().await;
                }
            })
            .await,
        );
    }
    let alert =
        |hook: &RawOrigin, name| format!("[[alert]]\nname = \"{name}\"\nurl = \"https://{}/hook\"\n", hook.address);
    let alerts = [alert(&hooks[0], "trusted"), alert(&hooks[1], "stranger")].concat();
    let route = Route::tcp(free_address(), free_address()).unchecked();
    let crossfade = Crossfade::start_trusting(&trusted, &alerts, &route.to_string()).await;
    crossfade.admin.split("bus", 10.0).await;
    let (_, rolled_back) = crossfade.admin.post("/rollback", &json!({ "route": "bus", "reason": "enough" })).await;
    assert_eq!(rolled_back["latched"], true, "{rolled_back}");
    let told = eventually("the one that is trusted is told", async || posted.lock().first().cloned()).await;
    assert_eq!((&told["route"], &told["event"]["type"]), (&"bus".into(), &"split".into()));
    let problem = eventually("the other one is not", async || {
        let (_, seen) = crossfade.admin.get("/alerts").await;
        let to_stranger =
            seen["alerts"].as_array().unwrap().iter().find(|letter| letter["alert"] == "stranger").cloned();
        to_stranger.and_then(|letter| letter["problem"].as_str().map(str::to_owned))
    })
    .await;
    assert!(problem.contains("certificate"), "{problem}");
    assert_eq!(posted.lock().len(), 1);
}

#[tokio::test]
async fn the_last_value_of_a_signal_survives_kill_dash_nine() {
    let signal = "[[route.signal]]\nname = \"lag\"\nlimit = \"> 1000\"";
    let route = Route::tcp(free_address(), free_address()).unchecked().table(signal);
    let mut crossfade = Crossfade::start(&route.to_string()).await;
    // The last one whose second the process lived to see.
    for value in [1, 2, 17] {
        let push = json!({ "route": "bus", "name": "lag", "value": value });
        assert_eq!(crossfade.admin.post("/signals", &push).await.0, StatusCode::OK);
    }
    let recorded = eventually("it is recorded", async || {
        let text = fs::read(crossfade.state_path()).unwrap();
        text.windows(3).any(|bytes| bytes == b"lag").then_some(())
    });
    recorded.await;
    crossfade.kill_and_restart().await;
    let (_, seen) = crossfade.admin.get("/signals?route=bus").await;
    let lag = &seen["signals"][0];
    assert_eq!((&lag["value"], &lag["verdict"]), (&17.0.into(), &"pass".into()), "{lag}");
}

#[test]
fn a_secret_that_others_can_read_is_a_fault() {
    let folder = TempDir::new().unwrap();
    let (file, secret) = (folder.path().join("crossfade.toml"), folder.path().join("hook.secret"));
    let alert = "[[alert]]\nurl = \"https://hooks.example/T1\"\nsecret_file = \"hook.secret\"";
    let route = Route::tcp(free_address(), free_address());
    fs::write(&file, configuration(free_address(), alert, &route.to_string())).unwrap();
    let check = || {
        let said = program().args(["check", "--config", file.to_str().unwrap()]).output().unwrap();
        String::from_utf8(said.stdout).unwrap()
    };
    let place = format!("alert[0].secret_file: {}", secret.display());
    assert!(check().starts_with(&format!("{place} cannot be read: ")), "{}", check());
    fs::write(&secret, "\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(check(), format!("{place} can be read by others (mode 644); run chmod 600 on it\n"));
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let empty = "is empty; write the secret into it, such as from openssl rand -hex 32";
    assert_eq!(check(), format!("{place} {empty}\n"));
    fs::write(&secret, "s3cret\n").unwrap();
    assert!(check().ends_with(": ok, 1 route\n"), "{}", check());
}
