//! The configuration changes while running.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    process::Command,
    time::Duration,
};

use http::StatusCode;
use loadtest::origin::{HttpOrigin, TcpOrigin};
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, net::TcpStream, time};

use crate::{
    clients::{Client, H2Client},
    harness::{Crossfade, configuration, eventually, free_address, seeded},
    mosquitto::Mosquitto,
    mqtt::greet,
    packets::{Connect, DISCONNECT, connect, packet, read_packet, string, subscribe},
    routes::Route,
    site::{Site, any_port, soon},
    tcp::{address_is_green, from_address, label},
};

/// Waits until the log has said `text` for the `count`-th time.
async fn logged(crossfade: &Crossfade, text: &str, count: usize) -> Vec<String> {
    let matching = || crossfade.log().into_iter().filter(|line| line.contains(text)).collect::<Vec<_>>();
    eventually(&format!("the log says {text:?} {count} times"), async || {
        Some(matching()).filter(|lines| lines.len() >= count)
    })
    .await
}

const DONE: &str = "Configuration reloaded";
const REFUSED: &str = "Configuration is not reloaded";

#[tokio::test]
async fn a_changed_file_goes_live_and_no_connection_notices() {
    let python = TcpOrigin::start("python", any_port()).await.unwrap();
    let go = TcpOrigin::start("go", any_port()).await.unwrap();
    let rust = TcpOrigin::start("rust", any_port()).await.unwrap();
    let (blue_broker, green_broker) = (Mosquitto::start().await, Mosquitto::start().await);
    let bus = Route::tcp(python.address(), go.address()).green_percentage(50.0);
    let broker = Route::mqtt(blue_broker.address, green_broker.address).green_percentage(100.0);
    let crossfade = Crossfade::start(&format!("{bus}{broker}")).await;

    let mut steady = Vec::new();
    for n in 0..10 {
        let mut stream = from_address(n, bus.listen).await;
        steady.push((label(&mut stream).await, stream));
    }
    let (mut subscriber, _) = greet(broker.listen, &Connect::new(4, "subscriber").bytes()).await;
    tokio::io::AsyncWriteExt::write_all(&mut subscriber, &subscribe("a/#")).await.unwrap();
    assert_eq!(soon(read_packet(&mut subscriber)).await.unwrap()[0], 0x90);

    // Another label, another green, another key, other limits, no guard.
    let mut changed = bus.clone();
    changed.green = rust.address();
    let changed = changed.to_string().replace("label = \"go\"", "label = \"rust\"");
    let rekeyed = broker
        .clone()
        .with("key = [\"mqtt-username\"]")
        .table("[route.guard]\nmax_error_rate = 0.01\nbaseline = \"60s\"")
        .to_string();
    crossfade.rewrite("", &format!("{changed}{rekeyed}"));
    logged(&crossfade, DONE, 1).await;

    for (before, stream) in &mut steady {
        assert_eq!(&label(stream).await, before, "a live connection stays where it is");
    }
    for n in 0..50 {
        let expected = if address_is_green(n, 50.0) { "rust" } else { "python" };
        assert_eq!(label(&mut from_address(n, bus.listen).await).await, expected);
    }
    let (status, answer) = crossfade
        .admin
        .post("/traffic-split", &json!({ "route": "bus", "rust_percentage": 60, "python_percentage": 40 }))
        .await;
    assert_eq!((status, &answer["green"]["label"]), (StatusCode::OK, &json!("rust")), "{answer}");
    // By user name now, so a client without one has no key and is blue.
    let (_nameless, _) = greet(broker.listen, &Connect::new(4, "nameless").bytes()).await;
    assert_eq!(blue_broker.clients(), ["nameless"]);
    let named = Connect { username: Some("somebody"), ..Connect::new(4, "named") };
    let (_named, _) = greet(broker.listen, &named.bytes()).await;
    assert_eq!(green_broker.clients(), ["subscriber", "named"]);
    eventually("the guard judges by the new limits", async || {
        let status = crossfade.admin.status("broker").await;
        let rules = status["guard"]["judgement"]["rules"].as_array()?;
        rules.iter().any(|rule| rule["rule"] == "error_rate" && rule["limit"] == 0.01).then_some(())
    })
    .await;

    // The subscriber has been there all the time.
    let publish = packet(0x30, &[&string(b"a/b")[..], b"still there"].concat());
    let (mut publisher, _) = greet(green_broker.address, &Connect::new(4, "publisher").bytes()).await;
    tokio::io::AsyncWriteExt::write_all(&mut publisher, &publish).await.unwrap();
    assert_eq!(soon(read_packet(&mut subscriber)).await.unwrap(), publish);
}

#[tokio::test]
async fn sighup_reads_the_file_again() {
    let route = Route::tcp(free_address(), free_address()).unchecked();
    let crossfade = Crossfade::start(&route.to_string()).await;
    crossfade.signal("HUP");
    logged(&crossfade, DONE, 1).await;
    // In place, as an editor may write it, and with the same length: only a signal could be quicker than the watcher.
    let text = fs::read_to_string(crossfade.config_path()).unwrap();
    fs::write(crossfade.config_path(), text.replace("label = \"go\"", "label = \"ox\"")).unwrap();
    crossfade.signal("HUP");
    eventually("the new label is live", async || {
        let (_, split) = crossfade.admin.get("/traffic-split?route=bus").await;
        (split["green"]["label"] == "ox").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_faulty_file_changes_nothing_and_every_fault_is_in_the_log() {
    let python = TcpOrigin::start("python", any_port()).await.unwrap();
    let route = Route::tcp(python.address(), free_address());
    let crossfade = Crossfade::start(&route.to_string()).await;
    let mut stream = from_address(0, route.listen).await;
    assert_eq!(label(&mut stream).await, "python");
    let before = crossfade.admin.get("/traffic-split").await.1;

    let faulty =
        route.clone().with("key = [\"header:x\"]").with("colour = \"blue\"").table("[route.guard]\nbaseline = \"0s\"");
    crossfade.rewrite("", &faulty.to_string());
    logged(&crossfade, REFUSED, 1).await;
    for place in ["route[0].key[0]", "route[0].colour", "route[0].guard.baseline"] {
        assert!(crossfade.log().iter().any(|line| line.contains(place)), "{place}: {:?}", crossfade.log());
    }
    fs::write(crossfade.config_path(), "[[route").unwrap();
    logged(&crossfade, REFUSED, 2).await;
    fs::remove_file(crossfade.config_path()).unwrap();
    logged(&crossfade, REFUSED, 3).await;
    assert_eq!(crossfade.admin.get("/traffic-split").await.1["routes"][0]["revision"], before["routes"][0]["revision"]);
    assert_eq!(label(&mut stream).await, "python");
    assert_eq!(label(&mut from_address(1, route.listen).await).await, "python");

    crossfade.rewrite("", &route.to_string().replace("label = \"go\"", "label = \"rust\""));
    logged(&crossfade, DONE, 1).await;
    assert_eq!(crossfade.admin.get("/traffic-split?route=bus").await.1["green"]["label"], "rust");
}

#[tokio::test]
async fn what_needs_a_restart_is_named_and_nothing_of_the_file_goes_live() {
    let route = Route::http(free_address(), free_address()).unchecked();
    let crossfade = Crossfade::start(&route.to_string()).await;
    let relabelled = |text: &str| text.replace("label = \"go\"", "label = \"rust\"");
    let moved = {
        let mut moved = route.clone();
        moved.listen = free_address();
        moved
    };
    let more = Route::tcp(free_address(), free_address());
    let tcp = route.to_string().replace("\"http\"", "\"tcp\"").replace("key = [\"header:x-session-id\"]", "");
    let admin = configuration(free_address(), "", &route.to_string());
    let good = |routes: &str| configuration(crossfade.admin.address, "", routes);
    let cases = [
        (configuration(crossfade.admin.address, "[server]\nworkers = 7", &route.to_string()), "server.workers: "),
        (admin, "admin.listen: "),
        (good(&route.to_string()).replace("crossfade.db", "other.db"), "admin.state: "),
        (good(&moved.to_string()), "route[0].listen: "),
        (good(&format!("{route}{more}")), "route[1].listen: "),
        (good(&tcp), "route[0].protocol: "),
    ];
    for (nth, (text, named)) in cases.iter().enumerate() {
        fs::write(crossfade.dir.path().join("draft"), relabelled(text)).unwrap();
        fs::rename(crossfade.dir.path().join("draft"), crossfade.config_path()).unwrap();
        let lines = eventually(named, async || {
            let lines = crossfade.log().into_iter().filter(|line| line.contains(REFUSED)).collect::<Vec<_>>();
            lines.iter().any(|line| line.contains(named)).then_some(lines)
        })
        .await;
        assert!(
            lines.iter().any(|line| line.contains(named) && line.contains("; restart crossfade")),
            "{nth}: {lines:?}"
        );
        assert_eq!(crossfade.admin.get("/traffic-split?route=shop").await.1["green"]["label"], "go", "{named}");
    }
    assert!(!crossfade.log().iter().any(|line| line.contains(DONE)));
}

#[tokio::test]
async fn a_file_that_changes_while_crossfade_starts_is_read_again() {
    let mut random = seeded();
    for _ in 0..10 {
        let (dir, admin) = (tempfile::TempDir::new().unwrap(), free_address());
        let file = dir.path().join("crossfade.toml");
        let before = configuration(admin, "", &Route::http(free_address(), free_address()).unchecked().to_string());
        fs::write(&file, &before).unwrap();
        let draft = dir.path().join("draft");
        fs::write(&draft, before.replace("label = \"go\"", "label = \"rust\"")).unwrap();
        let moment = Duration::from_micros(random.u64(..50_000));
        let changing = tokio::spawn(async move {
            time::sleep(moment).await;
            fs::rename(draft, file).unwrap();
        });
        let crossfade = Crossfade::start_in(dir, admin).await;
        changing.await.unwrap();
        eventually(&format!("the change of {moment:?} after the start is live"), async || {
            let state = crossfade.admin.get("/traffic-split?route=shop").await.1;
            (state["green"]["label"] == "rust").then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn the_recorded_split_wins_over_green_percentage() {
    let route = Route::tcp(free_address(), free_address()).unchecked();
    let mut crossfade = Crossfade::start(&route.clone().green_percentage(10.0).to_string()).await;
    assert_eq!(crossfade.admin.green("bus").await, 10.0);
    crossfade.admin.split("bus", 42.42).await;
    crossfade.rewrite("", &route.clone().green_percentage(77.0).to_string());
    logged(&crossfade, DONE, 1).await;
    assert_eq!(crossfade.admin.green("bus").await, 42.42);
    crossfade.kill_and_restart().await;
    assert_eq!(crossfade.admin.green("bus").await, 42.42);
    // Also at zero, which is a split like any other.
    crossfade.admin.split("bus", 0.0).await;
    crossfade.kill_and_restart().await;
    assert_eq!(crossfade.admin.green("bus").await, 0.0);
}

#[tokio::test]
async fn the_access_log_begins_and_ends_while_connections_are_open() {
    let site = Site::start().await;
    let python = TcpOrigin::start("python", any_port()).await.unwrap();
    let erlang = Mosquitto::start().await;
    let shop = site.route();
    let bus = Route::tcp(python.address(), free_address()).unchecked();
    let broker = Route::mqtt(erlang.address, free_address()).unchecked();
    let routes = format!("{shop}{bus}{broker}");
    let mut crossfade = Crossfade::start(&routes).await;
    let (mut kept, h2) = (Client::connect(shop.listen).await, H2Client::connect(shop.listen).await);
    for (phase, on) in [false, true, false].into_iter().enumerate() {
        if phase > 0 {
            crossfade.rewrite(&format!("[server]\naccess_log = {on}"), &routes);
            logged(&crossfade, DONE, phase).await;
        }
        kept.get(&format!("/kept/{phase}"), &[]).await;
        h2.get(&format!("/h2/{phase}"), &[]).await;
        let mut line = from_address(0, bus.listen).await;
        label(&mut line).await;
        let (mut device, _) = greet(broker.listen, &connect("device")).await;
        tokio::io::AsyncWriteExt::write_all(&mut device, DISCONNECT).await.unwrap();
        soon(device.read_to_end(&mut Vec::new())).await.unwrap();
    }
    crossfade.signal("TERM");
    crossfade.logged("Stopped").await;
    assert_eq!(crossfade.ended().await, Some(0));
    let lines = crossfade.log().into_iter().filter(|line| line.contains(" client=")).collect::<Vec<_>>();
    let expected = ["path=\"/kept/1\"", "path=\"/h2/1\"", "route=\"broker\"", "route=\"bus\""];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for expected in expected {
        assert!(lines.iter().any(|line| line.contains(expected)), "{expected}: {lines:#?}");
    }
}

async fn asked(address: SocketAddr, path: &str) -> (StatusCode, Option<String>) {
    let mut client = Client::connect(address).await;
    let answer = client.get(path, &[]).await;
    (answer.status, answer.header("x-origin").map(str::to_owned))
}

#[tokio::test]
async fn a_new_route_on_an_existing_listener_appears_and_comes_back_with_its_split() {
    let site = Site::start().await;
    let api = HttpOrigin::start("api", any_port()).await.unwrap();
    let whole = site.route().with("match = { path = \"/\" }");
    let mut part = Route::http(api.address(), api.address()).with("match = { path = \"/api\" }").green_percentage(25.0);
    (part.name, part.listen) = ("api", whole.listen);
    let crossfade = Crossfade::start(&whole.to_string()).await;
    let mut kept = Client::connect(whole.listen).await;
    assert_eq!(kept.get("/api", &[]).await.origin(), "python");

    crossfade.rewrite("", &format!("{whole}{part}"));
    logged(&crossfade, DONE, 1).await;
    // A request sees what is live when it begins, also on a connection that is older.
    assert_eq!(kept.get("/api", &[]).await.origin(), "api");
    assert_eq!(asked(whole.listen, "/api/x").await, (StatusCode::OK, Some("api".to_owned())));
    assert_eq!(asked(whole.listen, "/").await.1.as_deref(), Some("python"));
    assert_eq!(crossfade.admin.green("api").await, 25.0);
    crossfade.admin.split("api", 33.0).await;

    crossfade.rewrite("", &whole.to_string());
    logged(&crossfade, DONE, 2).await;
    assert_eq!(kept.get("/api", &[]).await.origin(), "python");
    assert_eq!(crossfade.admin.get("/traffic-split?route=api").await.0, StatusCode::NOT_FOUND);

    crossfade.rewrite("", &format!("{part}{whole}"));
    logged(&crossfade, DONE, 3).await;
    assert_eq!(kept.get("/api", &[]).await.origin(), "api");
    assert_eq!(crossfade.admin.green("api").await, 33.0, "what was recorded is not forgotten");
}

#[tokio::test]
async fn endpoints_come_and_go_without_a_failed_request() {
    let (site, more) = (Site::start().await, HttpOrigin::start("more", any_port()).await.unwrap());
    let route = site.route();
    let crossfade = Crossfade::start(&route.to_string()).await;
    let both = route.to_string().replacen(
        &format!("endpoints = [\"{}\"]", route.blue),
        &format!("endpoints = [\"{}\", \"{}\"]", route.blue, more.address()),
        1,
    );
    let mut client = Client::connect(route.listen).await;
    for (text, wanted) in [(&both, "more"), (&route.to_string(), "python"), (&both, "more")] {
        crossfade.rewrite("", text);
        eventually(wanted, async || {
            let answer = client.get("/", &[]).await;
            assert_eq!(answer.status, StatusCode::OK);
            (answer.origin() == wanted).then_some(())
        })
        .await;
    }
    let (_, all): (StatusCode, Value) = crossfade.admin.get("/status").await;
    assert_eq!(all["routes"][0]["blue"]["endpoints"].as_array().unwrap().len(), 2, "{all}");
}

#[tokio::test]
async fn certificates_are_read_again_when_they_change() {
    let python = TcpOrigin::start("python", any_port()).await.unwrap();
    let folder = tempfile::TempDir::new().unwrap();
    let (first, second) = (crate::authority::Authority::new(), crate::authority::Authority::new());
    let tls = first.issue("localhost").write(folder.path(), "bus");
    let route = Route::tcp(python.address(), free_address()).with(tls);
    let crossfade = Crossfade::start(&route.to_string()).await;
    let tcp = TcpStream::connect(route.listen).await.unwrap();
    let mut old = first.connect(tcp, "localhost", &[]).await.unwrap();

    // Rubbish is refused and the old pair stays.
    fs::write(folder.path().join("bus.pem"), "rubbish").unwrap();
    crossfade.logged("Certificates are not reloaded, the old ones stay").await;
    let tcp = TcpStream::connect(route.listen).await.unwrap();
    first.connect(tcp, "localhost", &[]).await.unwrap();

    second.issue("localhost").write(folder.path(), "bus");
    eventually("the new certificate is shown", async || {
        let tcp = TcpStream::connect(route.listen).await.unwrap();
        second.connect(tcp, "localhost", &[]).await.ok()
    })
    .await;
    // The connection from before is still good.
    tokio::io::AsyncWriteExt::write_all(&mut old, b"still\n").await.unwrap();
    let mut answer = [0; 13];
    soon(old.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"python:still\n");
}

#[tokio::test]
async fn a_certificate_on_a_disk_that_hangs_holds_up_no_rollback() {
    let (python, go) = (free_address(), free_address());
    for asked in [false, true] {
        let folder = tempfile::TempDir::new().unwrap();
        let (ca, authority) = (folder.path().join("ca.pem"), crate::authority::Authority::new());
        authority.write(&ca);
        let pem = fs::read(&ca).unwrap();
        let tls = format!("[route.green.tls]\nserver_name = \"go.example\"\nca = {ca:?}");
        let route = Route::tcp(python, go).unchecked().green_percentage(50.0).table(tls);
        let crossfade = Crossfade::start(&route.to_string()).await;

        // Whoever reads a pipe waits for whoever writes to it.
        fs::remove_file(&ca).unwrap();
        assert!(Command::new("mkfifo").arg(&ca).status().unwrap().success());
        if asked {
            crossfade.signal("HUP");
        }
        let mut disk = eventually("the file is being read", async || {
            OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&ca).ok()
        })
        .await;
        let body = json!({ "reason": "errors" });
        assert_eq!(soon(crossfade.admin.post("/rollback", &body)).await.0, StatusCode::OK, "asked: {asked}");
        disk.write_all(&pem).unwrap();
        drop(disk);
        logged(&crossfade, if asked { DONE } else { "Certificates reloaded" }, 1).await;
        assert_eq!(crossfade.admin.green("bus").await, 0.0);
    }
}
