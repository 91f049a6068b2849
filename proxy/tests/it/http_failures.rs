//! What clients of an HTTP route see when an arm, a client or the process itself goes away.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ::config::Arm;
use http::{Request, StatusCode};
use hyper::body::Bytes;
use loadtest::origin::{Behaviour, HttpOrigin};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{self, Instant},
};

use crate::{
    authority::Authority,
    clients::{Answer, Client, H2Client, get_request, send_body},
    harness::{Crossfade, eventually},
    routes::Route,
    site::{RawOrigin, Site, any_port, arm_of, count, key, keys, paced, read_head, rejected, reset, soon},
    status::counted,
};

/// One GET over a connection of its own.
async fn get_once(listen: SocketAddr, key: &str) -> std::io::Result<Answer> {
    let mut client = Client::try_connect(listen).await?;
    client.exchange(&get_request("/", &[("x-session-id", key)])).await
}

// Fallback

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_green_that_stops_costs_no_request_and_is_counted_and_taken_out() {
    let site = Arc::new(Site::start().await);
    let route = site.route().green_percentage(50.0);
    let crossfade = Crossfade::start(&route.to_string()).await;
    let listen = route.listen;
    let stopping = Arc::clone(&site);
    let answers = paced(100, 700, |n| {
        let site = (n == 200).then(|| Arc::clone(&stopping));
        async move {
            if let Some(site) = site {
                site.green.stop().await;
            }
            get_once(listen, &format!("user-{n}")).await
        }
    })
    .await;
    let failed: Vec<_> =
        answers.iter().filter(|answer| !answer.as_ref().is_ok_and(|answer| answer.status == StatusCode::OK)).collect();
    assert!(failed.is_empty(), "{} of 700 failed: {failed:?}", failed.len());

    let status = counted(&crossfade, "shop", |status| status["latched"] == true).await;
    assert_eq!(status["green"]["percentage"], 0.0, "{status}");
    let (unreachable, fallbacks) = (count(&status, "green", "unreachable"), count(&status, "green", "fallbacks"));
    assert!(unreachable > 0 && unreachable == fallbacks, "{status}");
    assert_eq!(count(&status, "blue", "failures"), 0, "{status}");
    let (code, incidents) = crossfade.admin.get("/incidents").await;
    assert_eq!(code, StatusCode::OK);
    assert_eq!(incidents["incidents"].as_array().map(Vec::len), Some(1), "{incidents}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_fallback_green_keys_get_503_until_the_guard_trips() {
    let site = Site::start().await;
    let route = site.route().with("fallback = \"none\"").green_percentage(50.0);
    let crossfade = Crossfade::start(&route.to_string()).await;
    let listen = route.listen;
    site.green.stop().await;
    let answers = paced(100, 600, |n| async move {
        let key = format!("user-{n}");
        (arm_of("shop", key.as_bytes(), 50.0), get_once(listen, &key).await.unwrap())
    })
    .await;
    let mut turned_away = 0;
    let mut served_instead = 0;
    for (arm, answer) in answers {
        match (arm, answer.status) {
            (Arm::Blue, StatusCode::OK) => {}
            // A split that changed between two requests: nothing of green's is served by blue before that.
            (Arm::Green, StatusCode::OK) => served_instead += 1,
            (Arm::Green, StatusCode::SERVICE_UNAVAILABLE) => {
                assert_eq!(served_instead, 0, "green's keys were served before the guard tripped");
                assert_eq!(answer.header("connection"), Some("close"), "the connection ends, and the answer says so");
                turned_away += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(turned_away > 0);
    counted(&crossfade, "shop", |status| status["latched"] == true).await;
    let status = counted(&crossfade, "shop", |status| count(status, "green", "unreachable") == turned_away).await;
    assert_eq!(count(&status, "green", "fallbacks"), 0);
    assert_eq!(get_once(listen, &key(Arm::Green)).await.unwrap().origin(), "python");
}

#[tokio::test]
async fn blue_never_falls_back_to_green() {
    let site = Site::start().await;
    let route = site.route().green_percentage(50.0);
    let crossfade = Crossfade::start(&route.to_string()).await;
    site.blue.stop().await;
    for key in keys(Arm::Blue).take(20) {
        let answer = get_once(route.listen, &key).await.unwrap();
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.text(), "no endpoint could be reached\n");
    }
    assert_eq!(site.green.seen().requests(), 0);
    for key in keys(Arm::Green).take(5) {
        assert_eq!(get_once(route.listen, &key).await.unwrap().origin(), "go");
    }
    let status = counted(&crossfade, "shop", |status| count(status, "blue", "unreachable") == 20).await;
    assert_eq!(count(&status, "green", "dispatched"), 5);
}

#[tokio::test]
async fn a_body_whose_green_could_not_be_reached_arrives_whole_at_blue() {
    let site = Site::start().await;
    // Without checks green stays in use: every request tries it first.
    let route = site.route().green_percentage(50.0).unchecked().unguarded();
    let crossfade = Crossfade::start(&route.to_string()).await;
    site.green.stop().await;
    let key = key(Arm::Green);
    let body: String = (0..30_000).map(|n| format!("{n:010}")).collect();
    let mut client = Client::connect(route.listen).await;
    let head = format!("POST /echo HTTP/1.1\r\nhost: a\r\nx-session-id: {key}\r\n");

    let whole =
        client.exchange(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await.unwrap();
    assert_eq!(whole.origin(), "python");
    assert!(whole.text() == body, "the body changed");

    client.send(format!("{head}transfer-encoding: chunked\r\n\r\n")).await;
    client.send("5\r\nfirst\r\n").await;
    assert_eq!(client.head().await.status, StatusCode::OK);
    assert_eq!(client.chunk().await.unwrap(), b"first");
    client.send("6\r\nsecond\r\n0\r\n\r\n").await;
    assert_eq!(client.chunk().await.unwrap(), b"second");
    assert!(client.chunk().await.unwrap().is_empty());

    let h2 = H2Client::connect(route.listen).await;
    let request = Request::post("http://a/echo").header("x-session-id", &key).body(()).unwrap();
    let (response, mut up) = h2.open(request).await;
    let sent = Bytes::from(body.clone());
    let sending = tokio::spawn(async move { send_body(&mut up, sent, true).await });
    let mut down = soon(response).await.unwrap().into_body();
    let mut got = Vec::new();
    while let Some(data) = soon(down.data()).await {
        let data = data.unwrap();
        down.flow_control().release_capacity(data.len()).unwrap();
        got.extend_from_slice(&data);
    }
    soon(sending).await.unwrap().unwrap();
    assert!(got == body.as_bytes(), "the body changed over http/2");
    counted(&crossfade, "shop", |status| count(status, "green", "fallbacks") == 3).await;
    assert_eq!(site.requests(), (3, 0));
}

#[tokio::test]
async fn a_green_that_does_not_take_connections_is_left_after_the_connect_timeout() {
    // A listener whose backlog is full: SYNs get no answer.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&any_port().into()).unwrap();
    socket.listen(0).unwrap();
    let green = socket.local_addr().unwrap().as_socket().unwrap();
    let mut filling = Vec::new();
    while let Ok(connected) = time::timeout(Duration::from_millis(200), TcpStream::connect(green)).await {
        filling.push(connected.unwrap());
    }
    let blue = HttpOrigin::start("python", any_port()).await.unwrap();
    let route = Route::http(blue.address(), green)
        .green_percentage(100.0)
        .unchecked()
        .table("[route.timeouts]\nconnect = \"500ms\"");
    let crossfade = Crossfade::start(&route.to_string()).await;
    let started = Instant::now();
    assert_eq!(get_once(route.listen, "me").await.unwrap().origin(), "python");
    let took = started.elapsed();
    assert!((450..5_000).contains(&took.as_millis()), "{took:?}");
    counted(&crossfade, "shop", |status| count(status, "green", "fallbacks") == 1).await;
}

// Endpoints

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusing_endpoint_leaves_at_once_and_returns_when_it_is_well() {
    let site = Site::start().await;
    let second = HttpOrigin::start("go", any_port()).await.unwrap();
    let route = site
        .route()
        .and_green(second.address())
        .green_percentage(100.0)
        .with("fallback = \"none\"")
        .table("[route.health]\ninterval = \"200ms\"\nhealthy_after = 2");
    let crossfade = Crossfade::start(&route.to_string()).await;
    let listen = route.listen;
    let healthy = |status: &serde_json::Value, address: SocketAddr| {
        let endpoints = status["green"]["endpoints"].as_array().unwrap();
        endpoints.iter().find(|endpoint| endpoint["address"] == address.to_string()).unwrap()["healthy"].clone()
    };
    let burst = async |what: &str| {
        for answer in paced(500, 200, |n| async move { get_once(listen, &format!("user-{n}")).await }).await {
            let answer = answer.unwrap();
            assert_eq!((answer.status, answer.origin()), (StatusCode::OK, "go"), "{what}");
        }
    };
    burst("both are well").await;
    let shared = (site.green.seen().requests(), second.seen().requests());
    assert!(shared.0 > 50 && shared.1 > 50, "requests are not shared: {shared:?}");

    second.stop().await;
    burst("one refuses").await;
    counted(&crossfade, "shop", |status| healthy(status, second.address()) == false).await;
    burst("one is out").await;

    let second = HttpOrigin::start("go", second.address()).await.unwrap();
    counted(&crossfade, "shop", |status| healthy(status, second.address()) == true).await;
    burst("both are well again").await;
    assert!(second.seen().requests() > 50, "it gets no traffic: {}", second.seen().requests());
    let status = crossfade.admin.status("shop").await;
    assert_eq!((count(&status, "green", "failures"), count(&status, "blue", "dispatched")), (0, 0), "{status}");
}

#[tokio::test]
async fn an_http_check_asks_for_its_path_and_believes_the_status() {
    let site = Site::start().await;
    let route = site
        .route()
        .green_percentage(100.0)
        .unguarded()
        .table("[route.health]\nprobe = \"http\"\npath = \"/healthz\"\ninterval = \"100ms\"");
    let crossfade = Crossfade::start(&route.to_string()).await;
    eventually("green is asked", async || (site.green.seen().count(&http::Method::GET, "/healthz") > 0).then_some(()))
        .await;
    assert_eq!(get_once(route.listen, "me").await.unwrap().origin(), "go");
    site.green.behaviour().change(|b| b.status = Some(StatusCode::SERVICE_UNAVAILABLE));
    counted(&crossfade, "shop", |status| status["green"]["endpoints"][0]["healthy"] == false).await;
    let failed = |status: &serde_json::Value| status["green"]["endpoints"][0]["failed_checks"].as_u64().unwrap();
    counted(&crossfade, "shop", |status| failed(status) >= 5).await;
    assert_eq!(get_once(route.listen, "me").await.unwrap().origin(), "python");
    site.green.behaviour().set(Behaviour::default());
    let status = counted(&crossfade, "shop", |status| status["green"]["endpoints"][0]["healthy"] == true).await;
    assert_eq!(failed(&status), 0);
    assert_eq!(get_once(route.listen, "me").await.unwrap().origin(), "go");
}

// Retries

/// Answers the first request of a connection and notes every head. What happens then is `fate`'s: it gets how many
/// requests the connection has brought, and says whether this one is answered.
async fn noting(fate: impl Fn(usize, usize) -> bool + Send + Sync + 'static) -> (RawOrigin, Arc<Mutex<Vec<String>>>) {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let (noted, fate) = (Arc::clone(&heads), Arc::new(fate));
    let origin = RawOrigin::start(move |mut stream, connection| {
        let (noted, fate) = (Arc::clone(&noted), Arc::clone(&fate));
        async move {
            for request in 0.. {
                let head = read_head(&mut stream).await;
                if head.is_empty() {
                    return;
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                noted.lock().unwrap().push(head.lines().next().unwrap().to_owned());
                if !fate(connection, request) {
                    return reset(stream);
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            }
        }
    })
    .await;
    (origin, heads)
}

const POST: &[u8] = b"POST /post HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody";

#[tokio::test]
async fn nothing_is_sent_twice_when_an_arm_breaks_after_the_request() {
    for (what, request) in [("POST", POST.to_vec()), ("GET", get_request("/get", &[]))] {
        let (origin, heads) = noting(|_, _| false).await;
        let blue = HttpOrigin::start("python", any_port()).await.unwrap();
        let route = Route::http(blue.address(), origin.address)
            .with("keyless = \"random\"")
            .green_percentage(100.0)
            .unchecked()
            .unguarded();
        let crossfade = Crossfade::start(&route.to_string()).await;
        let answer = Client::connect(route.listen).await.exchange(&request).await.unwrap();
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{what}");
        assert_eq!(heads.lock().unwrap().len(), 1, "{what}");
        assert_eq!(origin.connections(), 1, "{what}");
        let status = counted(&crossfade, "shop", |status| count(status, "green", "broken") == 1).await;
        assert_eq!(count(&status, "green", "dispatched"), 1);
        assert_eq!(blue.seen().requests(), 0, "{what}: what green may have received does not go to blue");
    }
}

#[tokio::test]
async fn a_pooled_connection_that_turns_out_dead_is_replaced_for_a_get_and_not_for_a_post() {
    // The first connection breaks at its second request, before anything of the answer was sent.
    for (what, request, sent, expected) in [
        ("GET", get_request("/get", &[]), 2, StatusCode::OK),
        ("POST", POST.to_vec(), 1, StatusCode::BAD_GATEWAY),
        (
            "GET with a body",
            b"GET /get HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx".to_vec(),
            1,
            StatusCode::BAD_GATEWAY,
        ),
    ] {
        let (origin, heads) = noting(|connection, request| connection > 0 || request == 0).await;
        let route = Route::http(origin.address, origin.address).unchecked().unguarded();
        let _crossfade = Crossfade::start(&route.to_string()).await;
        let mut client = Client::connect(route.listen).await;
        assert_eq!(client.get("/first", &[]).await.status, StatusCode::OK);
        let answer = client.exchange(&request).await.unwrap();
        assert_eq!(answer.status, expected, "{what}");
        let heads = heads.lock().unwrap();
        let repeated = heads.iter().filter(|head| !head.contains("/first")).count();
        assert_eq!(repeated, sent, "{what}: {heads:?}");
    }
}

#[tokio::test]
async fn an_origin_that_restarts_between_two_requests_costs_none_not_even_a_post() {
    let site = Site::start().await;
    let route = site.route().unchecked().unguarded();
    let _crossfade = Crossfade::start(&route.to_string()).await;
    let mut client = Client::connect(route.listen).await;
    let mut blue = site.blue;
    for round in 0..5 {
        assert_eq!(client.get("/", &[]).await.status, StatusCode::OK, "round {round}");
        blue.stop().await;
        blue = HttpOrigin::start("python", blue.address()).await.unwrap();
        assert_eq!(client.exchange(POST).await.unwrap().status, StatusCode::OK, "round {round}");
        assert_eq!(blue.seen().requests(), 1, "round {round}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_ends_the_clients_connection_and_counts_once() {
    let site = Site::start().await;
    let route = site.route().green_percentage(50.0).unguarded();
    let crossfade = Crossfade::start(&route.to_string()).await;
    site.green.behaviour().change(|b| b.reset_after_header = true);
    let key = key(Arm::Green);
    let broken = Client::connect(route.listen).await.exchange(&get_request("/", &[("x-session-id", &key)])).await;
    assert!(broken.is_err(), "an answer that was cut looks whole: {broken:?}");
    let h2 = H2Client::connect(route.listen).await;
    let broken = h2.try_get("/", &[("x-session-id", &key)]).await;
    assert!(broken.is_err(), "an answer that was cut looks whole over http/2: {broken:?}");
    let healthy = h2.get("/", &[("x-session-id", &crate::site::key(Arm::Blue))]).await;
    assert_eq!(healthy.status, StatusCode::OK, "other streams of the connection go on");
    let status = counted(&crossfade, "shop", |status| count(status, "green", "broken") == 2).await;
    assert_eq!((count(&status, "green", "failures"), site.green.seen().requests()), (2, 2), "{status}");
}

// Timeouts

fn timeouts(text: &str) -> String {
    format!("[route.timeouts]\n{text}")
}

#[tokio::test]
async fn a_header_that_drips_is_408_within_its_time_however_busy_it_looks() {
    let site = Site::start().await;
    let route = site.route().unchecked().table(timeouts("request_header = \"1s\""));
    let crossfade = Crossfade::start(&route.to_string()).await;
    let mut client = Client::connect(route.listen).await;
    // Also the second request of a connection: its patience starts with its first byte.
    client.get("/", &[]).await;
    let started = Instant::now();
    let mut drops = time::interval(Duration::from_millis(100));
    let answer = loop {
        tokio::select! {
            answer = client.stream.read_buf(&mut client.buffer) => break answer.unwrap(),
            _ = drops.tick() => {
                let byte = if started.elapsed() < Duration::from_millis(50) { b"G" } else { b"E" };
                client.stream.write_all(byte).await.unwrap();
            }
        }
    };
    assert!(answer > 0, "closed without a word");
    assert!((900..3_000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    assert_eq!(client.answer().await.status, StatusCode::REQUEST_TIMEOUT);
    assert!(client.rest().await.is_empty());
    assert_eq!(rejected(&crossfade.admin, "request_header_timeout").await, 1);
    assert_eq!(site.connections(), (1, 0));
}

#[tokio::test]
async fn who_says_nothing_is_left_alone_and_then_closed() {
    let ours = Authority::new();
    let (site, folder) = (Site::start().await, tempfile::TempDir::new().unwrap());
    let limits = timeouts("request_header = \"1s\"\nkeepalive = \"1s\"");
    let clear = site.route().table(&*limits);
    let tls = site.route().named("tls").with(ours.issue("shop.example").write(folder.path(), "shop")).table(&*limits);
    let crossfade = Crossfade::start(&format!("{clear}{tls}")).await;

    let mut silent = Client::connect(clear.listen).await;
    let mut idle = Client::connect(clear.listen).await;
    idle.get("/", &[]).await;
    let mut half_preface = Client::connect(clear.listen).await;
    half_preface.send("PRI * HTTP/2.0\r\n\r\nSM").await;
    let idle_h2 = H2Client::connect(clear.listen).await;
    idle_h2.get("/", &[]).await;
    let mut no_handshake = Client::connect(tls.listen).await;
    let started = Instant::now();
    assert!(idle.rest().await.is_empty(), "an idle connection ends without a word");
    assert!(silent.rest().await.is_empty());
    half_preface.rest().await;
    no_handshake.rest().await;
    soon(idle_h2.connection).await.unwrap().unwrap();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    eventually("the handshake that never came is counted", async || {
        (rejected(&crossfade.admin, "tls_handshake_timeout").await == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_arm_that_never_answers_is_504_and_counted() {
    let site = Site::start().await;
    let route =
        site.route().green_percentage(50.0).unguarded().table(timeouts("response_header = \"1s\"\nidle = \"2s\""));
    let crossfade = Crossfade::start(&route.to_string()).await;
    site.green.behaviour().change(|b| b.hang = true);
    let key = key(Arm::Green);
    let started = Instant::now();
    let h2 = H2Client::connect(route.listen).await;
    let two = h2.get("/", &[("x-session-id", &key)]);
    let mut client = Client::connect(route.listen).await;
    let post = format!("POST / HTTP/1.1\r\nhost: a\r\nx-session-id: {key}\r\ncontent-length: 4\r\n\r\nbody");
    let three = client.exchange(post.as_bytes());
    let handshake = format!(
        "GET /ws HTTP/1.1\r\nhost: a\r\nx-session-id: {key}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    let mut upgrading = Client::connect(route.listen).await;
    let (one, two, three, four) =
        tokio::join!(get_once(route.listen, &key), two, three, upgrading.exchange(handshake.as_bytes()));
    for answer in [one.unwrap(), two, three.unwrap()] {
        assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(answer.text(), "the endpoint did not answer in time\n");
    }
    assert!(four.is_err() || four.is_ok_and(|answer| answer.status == StatusCode::GATEWAY_TIMEOUT));
    assert!((900..4_000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    let status = counted(&crossfade, "shop", |status| count(status, "green", "timeout") == 4).await;
    assert_eq!(count(&status, "green", "failures"), 4);
    assert_eq!(site.green.seen().requests(), 4, "none was sent again");
    assert_eq!(site.blue.seen().requests(), 0);
}

#[tokio::test]
async fn a_client_that_stalls_within_its_body_is_told_so_and_no_arm_is_blamed() {
    let site = Site::start().await;
    let route = site.route().unguarded().table(timeouts("response_header = \"1s\""));
    let crossfade = Crossfade::start(&route.to_string()).await;
    for n in 1..=3 {
        let mut client = Client::connect(route.listen).await;
        let started = Instant::now();
        let answer = client.exchange(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nsome").await.unwrap();
        assert_eq!(answer.status, StatusCode::REQUEST_TIMEOUT);
        assert!((900..4_000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
        assert!(client.rest().await.is_empty());
        let status = counted(&crossfade, "shop", |status| count(status, "blue", "client_gone") == n).await;
        assert_eq!(count(&status, "blue", "failures"), 0, "{status}");
    }
    eventually("blue is let go", async || (site.blue.seen().open_connections() == 0).then_some(())).await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_left_after_the_write_timeout() {
    let site = Site::start().await;
    let route = site.route().unchecked().unguarded().table(timeouts("write = \"1s\""));
    let crossfade = Crossfade::start(&route.to_string()).await;
    let mut client = Client::connect(route.listen).await;
    client.send(get_request("/endless", &[])).await;
    let h2 = H2Client::connect(route.listen).await;
    let request = Request::get("http://a/endless").body(()).unwrap();
    let (response, mut up) = h2.open(request).await;
    up.send_data(Bytes::new(), true).unwrap();
    let response = soon(response).await.unwrap();
    eventually("both answers are under way", async || (site.blue.seen().requests() == 2).then_some(())).await;
    eventually("blue is let go", async || (site.blue.seen().open_connections() == 0).then_some(())).await;
    let status = counted(&crossfade, "shop", |status| count(status, "blue", "open") == 0).await;
    assert_eq!(count(&status, "blue", "failures"), 0, "{status}");
    drop(response);
}

#[tokio::test]
async fn a_body_that_falls_silent_ends_after_the_read_patience() {
    let origin = RawOrigin::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart").await.unwrap();
        let mut nothing = [0];
        let _ = stream.read(&mut nothing).await;
    })
    .await;
    let route =
        Route::http(origin.address, origin.address).unchecked().unguarded().table(timeouts("response_header = \"1s\""));
    let crossfade = Crossfade::start(&route.to_string()).await;
    let mut client = Client::connect(route.listen).await;
    let started = Instant::now();
    client.send(get_request("/", &[])).await;
    client.head().await;
    assert_eq!(client.rest().await, b"part");
    assert!((900..4_000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    counted(&crossfade, "shop", |status| count(status, "blue", "failures") == 1).await;
}

#[tokio::test]
async fn each_part_of_an_answer_has_the_read_patience_whatever_its_head_took() {
    let origin = RawOrigin::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        for part in ["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na", "b"] {
            time::sleep(Duration::from_millis(1_300)).await;
            stream.write_all(part.as_bytes()).await.unwrap();
        }
    })
    .await;
    let route =
        Route::http(origin.address, origin.address).unchecked().unguarded().table(timeouts("response_header = \"2s\""));
    let crossfade = Crossfade::start(&route.to_string()).await;
    let answer = Client::connect(route.listen).await.get("/", &[]).await;
    assert_eq!(&answer.body[..], b"ab");
    counted(&crossfade, "shop", |status| count(status, "blue", "ok") == 1).await;
}

// Bounds

#[tokio::test]
async fn one_connection_too_many_is_closed_and_counted_and_the_others_live() {
    let site = Site::start().await;
    let route = site.route();
    let crossfade = Crossfade::start_with("[server]\nmax_connections = 10", &route.to_string()).await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut client = Client::connect(route.listen).await;
        client.get("/", &[]).await;
        clients.push(client);
    }
    for _ in 0..5 {
        assert!(get_once(route.listen, "me").await.is_err());
    }
    for client in &mut clients {
        client.get("/", &[]).await;
    }
    assert_eq!(rejected(&crossfade.admin, "max_connections").await, 5);
    clients.pop();
    eventually("there is room again", async || get_once(route.listen, "me").await.ok()).await;
}

#[tokio::test]
async fn without_descriptors_new_connections_wait_and_old_ones_live() {
    let site = Site::start().await;
    let route = site.route().unchecked();
    let crossfade = Crossfade::start(&route.to_string()).await;
    let mut old = Client::connect(route.listen).await;
    old.get("/", &[]).await;
    let limit = |limit: usize| {
        let nofile = format!("--nofile={limit}:20000");
        let limited =
            std::process::Command::new("prlimit").args(["--pid", &crossfade.pid().to_string(), &nofile]).status();
        assert!(limited.expect("prlimit is installed (util-linux)").success());
    };
    // The limit is on the number of the next descriptor: below this one there are no gaps to be filled.
    limit(3);
    let mut waiting = Vec::new();
    for _ in 0..20 {
        let mut client = Client::connect(route.listen).await;
        client.send(get_request("/", &[])).await;
        waiting.push(client);
    }
    eventually("what could not be accepted is counted", async || {
        // The admin API needs a descriptor as well: its connection was opened before the limit and is kept.
        (rejected(&crossfade.admin, "accept_failed").await > 0).then_some(())
    })
    .await;
    for _ in 0..20 {
        assert_eq!(old.get("/", &[]).await.status, StatusCode::OK);
    }
    limit(10_000);
    let started = Instant::now();
    for mut client in waiting {
        assert_eq!(client.answer().await.status, StatusCode::OK);
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    let complaints = crossfade.log().iter().filter(|line| line.contains("Cannot accept")).count();
    assert!(complaints <= 20, "{complaints} lines of log");
}

// The end of the process

async fn refused(listen: SocketAddr) {
    eventually("new connections are refused", async || {
        TcpStream::connect(listen).await.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_stop_finishes_what_is_open_and_takes_nothing_new() {
    let site = Site::start().await;
    let route = site.route().green_percentage(50.0);
    let mut crossfade = Crossfade::start(&route.to_string()).await;
    let (blue_key, green_key) = (key(Arm::Blue), key(Arm::Green));
    let mut idle = Client::connect(route.listen).await;
    idle.get("/", &[("x-session-id", &blue_key)]).await;
    site.green.behaviour().change(|b| b.latency = Duration::from_secs(2).into());

    let mut slow = Client::connect(route.listen).await;
    slow.send(get_request("/slow", &[("x-session-id", &green_key)])).await;
    let mut streaming = Client::connect(route.listen).await;
    let path = "/stream?chunks=20&interval_ms=100";
    streaming.send(get_request(path, &[("x-session-id", &blue_key)])).await;
    streaming.head().await;
    let h2 = H2Client::connect(route.listen).await;
    let slow_stream = tokio::spawn(h2.get("/slow", &[("x-session-id", &green_key)]));
    eventually("all are under way", async || (site.green.seen().requests() == 2).then_some(())).await;

    crossfade.signal("TERM");
    eventually("it says that it is not ready", async || {
        (crossfade.admin.get("/ready").await.0 == StatusCode::SERVICE_UNAVAILABLE).then_some(())
    })
    .await;
    // A request that was on its way when the stop came is served, and told that it was the last.
    let last = idle.get("/", &[("x-session-id", &blue_key)]).await;
    assert_eq!((last.status, last.header("connection")), (StatusCode::OK, Some("close")));
    assert!(idle.rest().await.is_empty());
    refused(route.listen).await;

    let answer = slow.answer().await;
    assert_eq!((answer.status, answer.header("connection")), (StatusCode::OK, Some("close")));
    assert_eq!(soon(slow_stream).await.unwrap().status, StatusCode::OK);
    assert!(h2.try_get("/", &[]).await.is_err(), "the connection has been told to go away");
    soon(h2.connection).await.unwrap().unwrap();
    let mut lines = 0;
    loop {
        let chunk = streaming.chunk().await.unwrap();
        if chunk.is_empty() {
            break;
        }
        lines += chunk.iter().filter(|byte| **byte == b'\n').count();
    }
    assert_eq!(lines, 20);
    assert_eq!(crossfade.ended().await, Some(0));
}

#[tokio::test]
async fn a_stop_with_nothing_open_ends_before_the_drain_does() {
    for (signal, drain) in [("TERM", "25s"), ("INT", "25s"), ("TERM", "1s")] {
        let site = Site::start().await;
        let route = site.route();
        let mut crossfade = Crossfade::start_with(&format!("[server]\ndrain = \"{drain}\""), &route.to_string()).await;
        get_once(route.listen, "me").await.unwrap();
        let started = Instant::now();
        crossfade.signal(signal);
        assert_eq!(crossfade.ended().await, Some(0), "{signal}");
        assert!(started.elapsed() < Duration::from_secs(4), "{signal}: {:?}", started.elapsed());
        let log = crossfade.log();
        assert!(!log.iter().any(|line| line.contains("did not finish in time")), "{log:?}");
    }
}

#[tokio::test]
async fn who_comes_with_http2_right_after_a_stop_may_ask_before_it_is_told_to_go() {
    const PING: u8 = 6;
    const GOAWAY: u8 = 7;
    let site = Site::start().await;
    let route = site.route();
    let mut crossfade = Crossfade::start(&route.to_string()).await;
    crossfade.signal("TERM");
    crossfade.logged("Draining").await;
    // One that hears the server's settings before it asks.
    let mut client = TcpStream::connect(route.listen).await.unwrap();
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    client.write_all(b"\0\0\x08\x06\0\0\0\0\0are here").await.unwrap();
    let mut kinds = Vec::new();
    while kinds.last() != Some(&PING) {
        let mut frame = [0; 9];
        soon(client.read_exact(&mut frame)).await.unwrap();
        let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]);
        soon(client.read_exact(&mut vec![0; length as usize])).await.unwrap();
        kinds.push(frame[3]);
    }
    assert!(!kinds.contains(&GOAWAY), "{kinds:?}");
    let h2 = H2Client::connect(route.listen).await;
    assert_eq!(h2.get("/", &[]).await.status, StatusCode::OK);
    soon(h2.connection).await.unwrap().unwrap();
    drop(client);
    assert_eq!(crossfade.ended().await, Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_at_once_and_a_drain_has_an_end() {
    for second_signal in [true, false] {
        let site = Site::start().await;
        site.blue.behaviour().change(|b| b.hang = true);
        let route = site.route();
        let drain = if second_signal { "25s" } else { "1s" };
        let mut crossfade = Crossfade::start_with(&format!("[server]\ndrain = \"{drain}\""), &route.to_string()).await;
        let mut hanging = Client::connect(route.listen).await;
        hanging.send(get_request("/", &[])).await;
        eventually("it is under way", async || (site.blue.seen().requests() == 1).then_some(())).await;
        let started = Instant::now();
        crossfade.signal("TERM");
        crossfade.logged("Draining").await;
        if second_signal {
            crossfade.signal("TERM");
        }
        let code = crossfade.ended().await;
        assert_eq!(code, Some(i32::from(second_signal)));
        let took = started.elapsed();
        assert!(took < Duration::from_secs(4), "{took:?}");
        assert!(second_signal || took > Duration::from_millis(900), "{took:?}");
        assert!(hanging.rest().await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_under_load_breaks_no_request() {
    let site = Site::start().await;
    let route = site.route().green_percentage(50.0);
    let mut crossfade = Crossfade::start(&route.to_string()).await;
    let (listen, served) = (route.listen, Arc::new(AtomicUsize::new(0)));
    let mut clients = Vec::new();
    for n in 0..8 {
        let served = Arc::clone(&served);
        clients.push(tokio::spawn(async move {
            // Clients that connect anew are refused at last; those that keep a connection are told on an answer.
            for round in 0.. {
                let Ok(mut client) = Client::try_connect(listen).await else { return };
                loop {
                    let request = get_request("/", &[("x-session-id", &format!("user-{n}-{round}"))]);
                    let answer = match client.exchange(&request).await {
                        Ok(answer) => answer,
                        Err(error) => panic!("client {n}, round {round}: {error}"),
                    };
                    assert_eq!(answer.status, StatusCode::OK);
                    served.fetch_add(1, Ordering::Relaxed);
                    if n % 2 == 0 || answer.header("connection") == Some("close") {
                        break;
                    }
                }
            }
        }));
    }
    eventually("traffic flows", async || (served.load(Ordering::Relaxed) > 500).then_some(())).await;
    crossfade.signal("TERM");
    assert_eq!(crossfade.ended().await, Some(0));
    for client in clients {
        soon(client).await.unwrap();
    }
}
