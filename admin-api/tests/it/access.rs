//! Hosts, origins, tokens, and connections that misbehave.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};

use admin_api::{Access, AccessError};
use config::{Admin, Config, TlsFiles};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    time::Instant,
};

use crate::{
    http::Server,
    support::{Folder, eventually, shop, split},
};

const OPERATE: &str = "operate-0123456789";
const READ: &str = "read-0123456789abc";

fn tokens_file(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn with_tokens(path: &Path) -> Admin {
    Admin { tokens: Some(path.to_owned()), ..shop().admin.clone() }
}

#[tokio::test]
async fn a_hostile_host_or_origin_is_turned_away() {
    let server = Server::start(shop()).await;
    let own = server.address.to_string();
    let status = async |headers: &[(&str, &str)]| server.send("GET", "/status", headers, b"").await.status;
    for host in ["localhost", "localhost:1", "127.0.0.1", "[::1]:9900", "admin.example", "ADMIN.example:443", &own] {
        assert_eq!(status(&[("host", host)]).await, 200, "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", "10.0.0.1", "0.0.0.0"] {
        let answer = server.send("GET", "/status", &[("host", host)], b"").await;
        assert_eq!(answer.problem(421)["field"], "host", "{host}");
    }
    for host in ["", "a b", "user@localhost", "localhost:x", "localhost:99999", "127.0.0.1:+80"] {
        assert_eq!(status(&[("host", host)]).await, 400, "{host}");
    }
    assert_eq!(status(&[("host", "localhost"), ("host", "localhost")]).await, 400);
    server.raw(b"GET /status HTTP/1.1\r\nconnection: close\r\n\r\n").await.problem(400);
    let absolute = format!("GET http://evil.example/status HTTP/1.1\r\nhost: {own}\r\nconnection: close\r\n\r\n");
    server.raw(absolute.as_bytes()).await.problem(400);

    assert_eq!(status(&[("origin", &format!("http://{own}"))]).await, 200);
    for origin in
        ["http://evil.example", "null", "http://127.0.0.1:1", "https://localhost", &format!("http://user@{own}")]
    {
        let answer = server.send("GET", "/status", &[("origin", origin)], b"").await;
        assert_eq!(answer.problem(403)["field"], "origin", "{origin}");
    }
    let body = br#"{"green_percentage":10}"#;
    let headers = [("origin", "http://evil.example"), ("content-type", "application/json")];
    server.send("POST", "/traffic-split", &headers, body).await.problem(403);
    assert_eq!(server.plane.live("shop").split, split(0.0));
    server.stop().await;
}

#[tokio::test]
async fn tokens_say_who_may_do_what() {
    let folder = Folder::new();
    let path = folder.file("tokens");
    tokens_file(&path, &format!("# people\n{OPERATE} operate ann\n{READ} read\n"));
    let server = Server::with(shop(), &with_tokens(&path)).await;
    let status = async |authorization: &str| {
        server.send("GET", "/status", &[("authorization", authorization)], b"").await.status
    };
    let missing = server.get("/status").await;
    missing.problem(401);
    assert_eq!(missing.header("www-authenticate"), Some("Bearer realm=\"crossfade\""));
    let long = format!("Bearer {}", "x".repeat(20_000));
    for wrong in ["Bearer nonsense-0123456789", "Bearer", "Basic Zm9v", &long, "Bearer operate-0123456789x"] {
        assert_eq!(status(wrong).await, 401, "{wrong}");
    }
    assert_eq!(status(&format!("Bearer {READ}")).await, 200);
    assert_eq!(status(&format!("bearer {OPERATE}")).await, 200);
    server.get("/nothing").await.problem(401);
    assert_eq!((server.get("/health").await.status, server.get("/api/ready").await.status), (200, 200));

    let change = async |token: &str| {
        let authorization = format!("Bearer {token}");
        let headers = [("authorization", authorization.as_str()), ("content-type", "application/json")];
        server.send("POST", "/traffic-split", &headers, br#"{"green_percentage":10}"#).await
    };
    change("nonsense-0123456789").await.problem(401);
    change(READ).await.problem(403);
    assert_eq!(server.plane.live("shop").split, split(0.0));
    assert_eq!(change(OPERATE).await.status, 200);
    eventually("the refused attempt is audited", || server.store.audit.lock().len() == 3).await;
    let rows = server.store.audit.lock().clone();
    let mut actors: Vec<(&str, &str)> = rows.iter().map(|row| (row.actor.as_str(), row.outcome.as_str())).collect();
    actors.sort_unstable();
    assert_eq!(actors, [("ann", "done"), ("configuration", "done"), ("token-line-3", "refused")]);
    assert!(rows.iter().all(|row| !format!("{row:?}").contains("0123456789")), "{rows:?}");
    server.stop().await;
}

#[tokio::test]
async fn nobody_without_a_token_writes_to_the_audit_trail() {
    let folder = Folder::new();
    let path = folder.file("tokens");
    tokens_file(&path, &format!("{OPERATE} operate ann\n{READ} read\n"));
    let server = Server::with(shop(), &with_tokens(&path)).await;
    for path in ["/health", "/ready", "/api/health", "/api/ready"] {
        for method in ["POST", "DELETE", "OPTIONS", "PURGE"] {
            let answer = server.send(method, path, &[], b"").await;
            answer.problem(405);
            assert_eq!(answer.header("allow"), Some("GET,HEAD"), "{method} {path}");
        }
    }
    server.post("/rollback", "{}").await.problem(401);
    let authorization = format!("Bearer {READ}");
    let long = format!("/{}", "x".repeat(5_000));
    for path in [long.as_str(), "/api/rollback", "/status"] {
        server.send("POST", path, &[("authorization", &authorization)], b"").await.problem(403);
    }
    server.control.flush().await.unwrap();
    let rows = server.store.audit.lock().clone();
    let refused: Vec<(&str, &str)> = rows
        .iter()
        .filter(|row| row.outcome == "refused")
        .map(|row| (row.actor.as_str(), row.action.as_str()))
        .collect();
    assert_eq!(refused, [("token-line-2", "unknown"), ("token-line-2", "rollback"), ("token-line-2", "unknown")]);
    server.stop().await;
}

#[tokio::test]
async fn a_revoked_token_stops_even_when_its_file_is_refused() {
    let folder = Folder::new();
    let path = folder.file("tokens");
    tokens_file(&path, &format!("{OPERATE} operate\n{READ} read\n"));
    let server = Server::with(shop(), &with_tokens(&path)).await;
    let status = async |token: &str| {
        let authorization = format!("Bearer {token}");
        server.send("GET", "/status", &[("authorization", authorization.as_str())], b"").await
    };
    let wait_for = async |what: &str, token: &str, expected: &dyn Fn(u16, &str) -> bool| {
        let change = async {
            loop {
                let answer = status(token).await;
                if expected(answer.status, &answer.body) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), change).await.unwrap_or_else(|_| panic!("never: {what}"));
    };
    assert!(status(READ).await.json()["tokens_problem"].is_null());

    // Gone with the file: nothing is known of what it would say.
    fs::remove_file(&path).unwrap();
    wait_for("the loss shows", OPERATE, &|_, body| body.contains("\"tokens_problem\":\"admin.tokens: ")).await;
    let authorization = format!("Bearer {READ}");
    let metrics = server.send("GET", "/metrics", &[("authorization", authorization.as_str())], b"").await.body;
    assert!(metrics.contains("crossfade_admin_tokens_refused 1\n"), "{metrics}");

    // Readable by others, and with a faulty line: what is not in it stops all the same.
    fs::write(&path, format!("{READ} read\nshort read\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    wait_for("the revoked token stops", OPERATE, &|status, _| status == 401).await;
    let answer = status(READ).await;
    assert!(answer.json()["tokens_problem"].as_str().unwrap().contains("mode 644"), "{answer:?}");

    tokens_file(&path, &format!("{READ} read\n"));
    wait_for("all is well", READ, &|_, body| body.contains("\"tokens_problem\":null")).await;
    server.stop().await;
}

#[tokio::test]
async fn who_listens_with_a_token_that_is_revoked_hears_no_more() {
    let folder = Folder::new();
    let path = folder.file("tokens");
    tokens_file(&path, &format!("{OPERATE} operate\n{READ} read\n"));
    let server = Server::with(shop(), &with_tokens(&path)).await;
    let listen = async |token: &str| {
        let mut stream = server.connect().await;
        let request = format!("GET /events HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        BufReader::new(stream)
    };
    let (mut gone, mut stays) = (listen(READ).await, listen(OPERATE).await);
    // It has less to say, and may listen still.
    tokens_file(&path, &format!("{OPERATE} read\n"));
    let mut heard = String::new();
    let ended = gone.read_to_string(&mut heard);
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("the stream ends").unwrap();
    assert!(heard.contains(": listening"), "{heard}");
    server.control.reload_refused("to be told");
    let mut line = String::new();
    while !line.contains("to be told") {
        line.clear();
        assert!(stays.read_line(&mut line).await.unwrap() > 0, "the other one goes on");
    }
    server.stop().await;
}

#[tokio::test]
async fn changed_tokens_are_taken_over_and_faulty_ones_are_not() {
    let folder = Folder::new();
    let path = folder.file("tokens");
    tokens_file(&path, &format!("{OPERATE} operate\n"));
    let server = Server::with(shop(), &with_tokens(&path)).await;
    let wait_for = async |token: &str, expected: u16| {
        let authorization = format!("Bearer {token}");
        let headers = [("authorization", authorization.as_str())];
        let change = async {
            while server.send("GET", "/status", &headers, b"").await.status != expected {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), change).await.expect("a changed file is seen");
    };
    wait_for(READ, 401).await;
    tokens_file(&path, &format!("{READ} read\n"));
    wait_for(READ, 200).await;
    wait_for(OPERATE, 401).await;
    tokens_file(&path, &format!("{READ} read\n{OPERATE} admin\n"));
    let looked_at_twice = Instant::now() + Duration::from_millis(2_100);
    while Instant::now() < looked_at_twice {
        wait_for(READ, 200).await;
    }
    tokens_file(&path, &format!("{OPERATE} operate\n{READ} read\n"));
    wait_for(OPERATE, 200).await;
    server.stop().await;
}

#[test]
fn access_that_would_be_unsafe_is_not_opened() {
    let folder = Folder::new();
    let path = folder.file("tokens");
    let tls = TlsFiles { cert: "cert".into(), key: "key".into() };
    let public = |tokens: bool, tls: Option<TlsFiles>| Admin {
        listen: "0.0.0.0:9900".parse().unwrap(),
        tokens: tokens.then(|| path.clone()),
        tls,
        ..shop().admin.clone()
    };
    tokens_file(&path, &format!("{OPERATE} operate\n"));
    assert!(matches!(Access::open(&public(false, Some(tls.clone()))), Err(AccessError::Unprotected(_))));
    assert!(matches!(Access::open(&public(true, None)), Err(AccessError::Unprotected(_))));
    assert!(Access::open(&public(true, Some(tls))).is_ok());
    let listening = |address: &str| Admin { listen: address.parse().unwrap(), ..public(false, None) };
    assert!(Access::open(&listening("[::ffff:127.0.0.1]:9900")).is_ok());
    assert!(Access::open(&listening("[::ffff:10.0.0.1]:9900")).is_err());

    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let error = Access::open(&with_tokens(&path)).unwrap_err();
    assert!(error.to_string().contains("(mode 640); run chmod 600 on it"), "{error}");
    tokens_file(&path, "0123456789abcdef admin\nshort read\n");
    let error = Access::open(&with_tokens(&path)).unwrap_err().to_string();
    assert!(
        error.contains("tokens, line 1: the second word") && error.contains("tokens, line 2: the token is"),
        "{error}"
    );
    let error = Access::open(&with_tokens(&folder.file("none"))).unwrap_err();
    assert!(matches!(error, AccessError::Unreadable { .. }), "{error}");
}

/// Real time would take 10 s; the paused clock runs ahead as soon as everybody waits.
#[tokio::test(start_paused = true)]
async fn slow_heads_and_bodies_have_deadlines() {
    let server = Server::start(shop()).await;
    let mut half_a_head = server.connect().await;
    half_a_head.write_all(b"GET /status HTTP/1.1\r\nhost: local").await.unwrap();
    let mut rest = Vec::new();
    half_a_head.read_to_end(&mut rest).await.unwrap();

    let half_a_body = format!(
        "POST /traffic-split HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{{",
        server.address
    );
    server.raw(half_a_body.as_bytes()).await.problem(408);
    server.stop().await;
}

#[tokio::test]
async fn connections_are_capped_and_places_come_back() {
    let server = Server::start(shop()).await;
    let mut idle = Vec::new();
    for _ in 0..256 {
        let mut stream = server.connect().await;
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        idle.push(stream);
    }
    let mut refused = server.connect().await;
    let mut answer = Vec::new();
    refused.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 503"), "{:?}", String::from_utf8_lossy(&answer));
    drop(idle);
    let served = async {
        loop {
            let mut stream = server.connect().await;
            let mut answer = Vec::new();
            let request = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
            let sent = stream.write_all(request).await.is_ok() && stream.read_to_end(&mut answer).await.is_ok();
            if sent && answer.starts_with(b"HTTP/1.1 200") {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), served).await.expect("places come back");
    server.stop().await;
}

#[tokio::test]
async fn over_tls_it_speaks_http_1() {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = certified.signing_key.serialize_der().try_into().unwrap();
    // Named, because other crates of the workspace may bring a second one.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let server = Server::over(Some(Arc::new(tls)), shop(), &shop().admin).await;

    let mut roots = rustls::RootCertStore::empty();
    roots.add(certified.cert.der().clone()).unwrap();
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let name = "localhost".to_owned().try_into().unwrap();
    let mut stream = connector.connect(name, server.connect().await).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let request = b"GET /health HTTP/1.1\r\nhost: localhost\r\norigin: https://localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    // Plain HTTP to a TLS port ends without an answer, and without harm.
    let mut plain = server.connect().await;
    plain.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let _ = plain.read_to_end(&mut Vec::new()).await;
    assert!(connector.connect("localhost".try_into().unwrap(), server.connect().await).await.is_ok());
    server.stop().await;
}

#[tokio::test]
async fn a_config_is_enough_to_serve_on() {
    let config: Arc<Config> = shop();
    let server = Server::start(config).await;
    assert_eq!(server.get("/api/health").await.json()["service"], "crossfade");
    server.stop().await;
}
