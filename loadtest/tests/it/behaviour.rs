//! Origins that misbehave as they are told, and the endpoint that tells them.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use loadtest::origin::{Behaviour, HttpOrigin, Latency, Spelling, TcpOrigin, control::Control};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::Instant,
};

use crate::{
    any_port,
    http::{Client, both, bytes, json},
    soon,
};

async fn line(stream: &mut BufReader<TcpStream>, line: &str) -> String {
    stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_line(&mut answer)).await.unwrap();
    answer
}

async fn connect(address: SocketAddr) -> BufReader<TcpStream> {
    BufReader::new(TcpStream::connect(address).await.unwrap())
}

#[tokio::test]
async fn answers_take_as_long_as_the_distribution_says() {
    let latency: Latency = "quantiles:0.5=0ms,0.5001=60ms".parse().unwrap();
    let http = HttpOrigin::start("go", any_port()).await.unwrap();
    let tcp = TcpOrigin::start("go", any_port()).await.unwrap();
    http.behaviour().change(|b| b.latency = latency.clone());
    tcp.behaviour().change(|b| b.latency = latency);

    let mut slow = [0; 2];
    let (mut client, mut stream) = (Client::h1(http.address()).await, connect(tcp.address()).await);
    for _ in 0..20 {
        let sent = Instant::now();
        bytes(client.get("/").await).await;
        slow[0] += u32::from(sent.elapsed() >= Duration::from_millis(60));
        let sent = Instant::now();
        assert_eq!(line(&mut stream, "hello").await, "go:hello\n");
        slow[1] += u32::from(sent.elapsed() >= Duration::from_millis(60));
    }
    // Half of them by the distribution; on a busy machine others may take as long.
    assert!(slow.iter().all(|slow| (9..=14).contains(slow)), "{slow:?}");
}

#[tokio::test]
async fn in_a_stall_everything_waits_until_its_end() {
    let http = HttpOrigin::start("go", any_port()).await.unwrap();
    let tcp = TcpOrigin::start("go", any_port()).await.unwrap();
    let (mut clients, mut stream) = (both(&http).await, connect(tcp.address()).await);
    let (mut ends, stall) = (Vec::new(), Duration::from_millis(300));
    let begun = Instant::now();
    http.behaviour().change(|b| b.stall = Some("300ms/1h".parse().unwrap()));
    tcp.behaviour().change(|b| b.stall = Some("300ms/1h".parse().unwrap()));
    let answers = clients.iter_mut().map(async |client| {
        bytes(client.get("/").await).await;
        begun.elapsed()
    });
    let (answers, answer) = tokio::join!(join_all(answers), line(&mut stream, "hello"));
    ends.extend(answers);
    assert_eq!(answer, "go:hello\n");
    ends.push(begun.elapsed());
    assert!(ends.iter().all(|end| *end >= stall), "{ends:?}");

    // The next stall is an hour away.
    for client in &mut clients {
        bytes(client.get("/").await).await;
    }
    line(&mut stream, "hello").await;
}

#[tokio::test]
async fn lines_hang_fail_and_break_off() {
    let origin = TcpOrigin::start("go", any_port()).await.unwrap();
    let reset =
        |result: std::io::Result<usize>| assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);

    origin.behaviour().change(|b| b.error_share = 1.0);
    let mut stream = connect(origin.address()).await;
    stream.write_all(b"hello\n").await.unwrap();
    reset(soon(stream.read(&mut [0; 9])).await);

    origin.behaviour().set(Behaviour { reset_after_header: true, ..Behaviour::default() });
    let mut stream = connect(origin.address()).await;
    stream.write_all(b"hello\n").await.unwrap();
    let mut label = [0; 3];
    soon(stream.read_exact(&mut label)).await.unwrap();
    assert_eq!(&label, b"go:");
    reset(soon(stream.read(&mut [0; 9])).await);

    origin.behaviour().set(Behaviour { hang: true, ..Behaviour::default() });
    let (mut caught, mut later) = (connect(origin.address()).await, connect(origin.address()).await);
    caught.write_all(b"hello\n").await.unwrap();
    crate::until("the line is seen", || origin.seen().lines() == 3).await;
    origin.behaviour().set(Behaviour::default());
    assert_eq!(line(&mut later, "hello").await, "go:hello\n");
    let mut answer = String::new();
    tokio::select! {
        biased;
        read = caught.read_line(&mut answer) => panic!("answered: {read:?}"),
        _ = line(&mut later, "again") => {}
    }
}

#[tokio::test]
async fn records_differ_in_noise_until_they_are_told_to_mismatch() {
    let blue = HttpOrigin::start("blue", any_port()).await.unwrap();
    let green = HttpOrigin::start("green", any_port()).await.unwrap();
    green.behaviour().change(|b| b.spelling = Spelling::Upper);
    let (mut at_blue, mut at_green) = (Client::h1(blue.address()).await, Client::h2(green.address()).await);
    /// What is left without what docs/origins.md calls noise.
    async fn meaning(client: &mut Client, path: &str) -> Value {
        let mut record = json(client.get(path).await).await;
        let fields = record.as_object_mut().unwrap();
        assert!(fields.remove("served_at").is_some() && fields.remove("request_id").is_some());
        fields["tags"].as_array_mut().unwrap().sort_by_key(ToString::to_string);
        fields["state"] = fields["state"].as_str().unwrap().to_uppercase().into();
        fields["weight_kg"] = format!("{:.9}", fields["weight_kg"].as_f64().unwrap()).into();
        record
    }

    for n in 0..20 {
        let path = format!("/record/{n}");
        let (blue, green) = (meaning(&mut at_blue, &path).await, meaning(&mut at_green, &path).await);
        assert_eq!((&blue, &blue["id"]), (&green, &json!(n)));
    }
    assert_eq!(meaning(&mut at_blue, "/noisy").await, meaning(&mut at_green, "/record/0").await);
    assert_ne!(bytes(at_blue.get("/noisy").await).await, bytes(at_blue.get("/noisy").await).await);
    for faulty in ["/record", "/record/", "/record/x", "/record/-1"] {
        assert_eq!(at_blue.get(faulty).await.status(), StatusCode::BAD_REQUEST, "{faulty}");
    }

    green.behaviour().change(|b| b.mismatch_share = 0.25);
    let mut mismatches = Vec::new();
    for _ in 0..2 {
        let mut numbers = BTreeSet::new();
        for n in 0..40 {
            let path = format!("/record/{n}");
            if meaning(&mut at_blue, &path).await != meaning(&mut at_green, &path).await {
                numbers.insert(n);
            }
        }
        mismatches.push(numbers);
    }
    assert!((9..=11).contains(&mismatches[0].len()), "{mismatches:?}");
    assert_eq!(mismatches[0], mismatches[1], "a record that mismatches always does");

    let expected = meaning(&mut at_blue, "/noisy").await;
    let mut differ = 0;
    for _ in 0..40 {
        differ += u32::from(meaning(&mut at_green, "/noisy").await != expected);
    }
    assert!((9..=11).contains(&differ), "{differ}");
}

/// Calls the control endpoint with a body.
async fn put(control: &Control, body: &'static str) -> (StatusCode, Value) {
    let body = Full::from(Bytes::from_static(body.as_bytes())).boxed_unsync();
    let request = Request::put("/behaviour").header("host", "x").body(body).unwrap();
    let response = Client::h1(control.address()).await.send(request).await.unwrap();
    (response.status(), json(response).await)
}

#[tokio::test]
async fn the_control_endpoint_replaces_the_behaviour() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let control = Control::start(&origin, any_port()).await.unwrap();

    let (status, state) = put(
        &control,
        r#"{"status": 503, "latency": "lognormal:20ms,sigma=0.5", "stall": "500ms/10s", "mismatch_share": 0.5,
            "spelling": "pascal", "error_growth": 0.02, "reset_share": 0.3}"#,
    )
    .await;
    assert_eq!(status, StatusCode::OK, "{state}");
    let written = json!({
        "status": 503, "latency": "lognormal:20ms,sigma=0.5", "stall": "500ms/10s", "hang": false,
        "reset_after_header": false, "error_share": 0.0, "error_growth": 0.02, "reset_share": 0.3, "mismatch_share": 0.5,
        "spelling": "pascal",
    });
    assert_eq!(state, written);
    let expected = Behaviour {
        status: Some(StatusCode::SERVICE_UNAVAILABLE),
        latency: "lognormal:20ms,sigma=0.5".parse().unwrap(),
        stall: Some("500ms/10s".parse().unwrap()),
        error_growth: 0.02,
        reset_share: 0.3,
        mismatch_share: 0.5,
        spelling: Spelling::Pascal,
        ..Behaviour::default()
    };
    assert_eq!(origin.behaviour().get(), expected);
    let mut client = Client::h1(control.address()).await;
    assert_eq!(json(client.get("/behaviour").await).await, written);

    for (faulty, problem) in [
        (r#"{"status": 100}"#, "status: 100 is no final HTTP status; give "),
        (r#"{"error_share": 2}"#, "error_share: 2 is not a share; give "),
        (r#"{"error_growth": -0.1}"#, "error_growth: -0.1 is not a share; give "),
        (r#"{"reset_share": 1.1}"#, "reset_share: 1.1 is not a share; give "),
        (r#"{"mismatch_share": -1}"#, "mismatch_share: -1 is not a share; give "),
        (r#"{"latency": "20"}"#, "latency: \"20\" is no latency; give "),
        (r#"{"latency": "file:/etc/passwd"}"#, "latency: files are read on the command line only; give "),
        (r#"{"latency": 20}"#, "body: invalid type"),
        (r#"{"stall": "10s/1s"}"#, "stall: 10s in every 1s; give "),
        (r#"{"spelling": "kebab"}"#, "body: unknown variant `kebab`"),
        (r#"{"statuss": 500}"#, "body: unknown field `statuss`"),
        (r#"{"status": 100, "stall": "x"}"#, "status: 100 is no final HTTP status; give 200 to 999\nstall: "),
        ("[", "body: "),
    ] {
        let (status, answer) = put(&control, faulty).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(answer["error"].as_str().unwrap().starts_with(problem), "{answer}");
    }
    assert_eq!(origin.behaviour().get(), expected, "a faulty change changes nothing");

    assert_eq!(put(&control, "{}").await.0, StatusCode::OK);
    assert_eq!(origin.behaviour().get(), Behaviour::default());
    bytes(Client::h1(origin.address()).await.get("/").await).await;
    let seen = json!({"requests": 1, "messages": 0, "connections": 1});
    let counts = json(client.get("/seen").await).await;
    assert!(seen.as_object().unwrap().iter().all(|(name, count)| &counts[name] == count), "{counts}");
}

#[tokio::test]
async fn a_tcp_origin_is_controlled_too() {
    let origin = TcpOrigin::start("go", any_port()).await.unwrap();
    let control = Control::start(&origin, any_port()).await.unwrap();
    let (status, state) = put(&control, r#"{"latency": "5ms", "hang": true}"#).await;
    assert_eq!((status, &state["latency"]), (StatusCode::OK, &json!("5ms")));
    let latency = Duration::from_millis(5).into();
    assert_eq!(origin.behaviour().get(), Behaviour { latency, hang: true, ..Behaviour::default() });

    for faulty in
        [r#"{"status": 500}"#, r#"{"reset_share": 0.5}"#, r#"{"mismatch_share": 0.5}"#, r#"{"spelling": "upper"}"#]
    {
        let (status, answer) = put(&control, faulty).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(answer["error"].as_str().unwrap().ends_with("a TCP origin has none; leave it out"), "{answer}");
    }

    // What it was asked reads back as what it can be told.
    assert_eq!(put(&control, "{}").await.0, StatusCode::OK);
    assert_eq!(line(&mut connect(origin.address()).await, "hello").await, "go:hello\n");
    let counts = json(Client::h1(control.address()).await.get("/seen").await).await;
    assert_eq!((&counts["lines"], &counts["connections"]), (&json!(1), &json!(1)));
}
