//! HTTP/1.1 where one side stops, breaks off or floods in the middle of an exchange.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use http::StatusCode;
use loadtest::origin::HttpOrigin;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time,
};

use crate::{
    authority::Authority,
    clients::{Client, get_request},
    harness::{Crossfade, eventually},
    routes::Route,
    site::{RawOrigin, any_port, count, read_head, soon},
    status::counted,
};

/// Both arms on one origin.
async fn before(origin: &RawOrigin) -> (Crossfade, Route) {
    let route = Route::http(origin.address, origin.address).unchecked().unguarded();
    (Crossfade::start(&route.to_string()).await, route)
}

#[tokio::test]
async fn a_client_that_resets_is_noticed_while_the_endpoint_is_silent() {
    let closed = Arc::new(Mutex::new(0));
    let seen = Arc::clone(&closed);
    let origin = RawOrigin::start(move |mut stream, _| {
        let seen = Arc::clone(&seen);
        async move {
            read_head(&mut stream).await;
            // Answers nothing, and waits for the other side to give up.
            let _ = stream.read(&mut [0]).await;
            *seen.lock().unwrap() += 1;
        }
    })
    .await;
    let (crossfade, route) = before(&origin).await;
    for _ in 0..3 {
        let mut client = TcpStream::connect(route.listen).await.unwrap();
        client.write_all(&get_request("/", &[("accept", "text/event-stream")])).await.unwrap();
        let connections = origin.connections();
        eventually("the request arrives", async || (origin.connections() >= connections.max(1)).then_some(())).await;
        client.set_zero_linger().unwrap();
        drop(client);
    }
    // Patience for an answer is a minute: this comes of the reset.
    counted(&crossfade, "shop", |status| count(status, "blue", "client_gone") == 3).await;
    eventually("nothing is kept", async || (*closed.lock().unwrap() == origin.connections()).then_some(())).await;
}

#[tokio::test]
async fn a_half_closed_client_still_gets_a_late_answer() {
    let origin = RawOrigin::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        time::sleep(Duration::from_millis(300)).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate").await.unwrap();
    })
    .await;
    let (_crossfade, route) = before(&origin).await;
    let mut client = TcpStream::connect(route.listen).await.unwrap();
    client.write_all(&get_request("/", &[])).await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    soon(client.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("late"), "{answer}");
}

#[tokio::test]
async fn an_answer_whose_body_makes_no_sense_from_its_first_byte_is_502() {
    let origin = RawOrigin::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nZZ").await.unwrap();
        let _ = stream.read(&mut [0]).await;
    })
    .await;
    let (crossfade, route) = before(&origin).await;
    let answer = Client::connect(route.listen).await.get("/", &[]).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    counted(&crossfade, "shop", |status| count(status, "blue", "broken") == 1).await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_not_look_whole_to_a_client_of_1_0() {
    let origin = RawOrigin::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n").await.unwrap();
    })
    .await;
    let (_crossfade, route) = before(&origin).await;
    let mut client = TcpStream::connect(route.listen).await.unwrap();
    client.write_all(b"GET / HTTP/1.0\r\nhost: a\r\n\r\n").await.unwrap();
    let ended = soon(client.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_err(), "the end looks like that of a whole answer");
}

#[tokio::test]
async fn a_request_that_got_an_interim_answer_is_not_sent_again() {
    let origin = RawOrigin::start(|mut stream, _| async move {
        // The first request leaves a connection to reuse; on it the second gets a word, and no answer.
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        if !read_head(&mut stream).await.is_empty() {
            stream.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let (_crossfade, route) = before(&origin).await;
    let mut client = Client::connect(route.listen).await;
    assert_eq!(client.get("/", &[]).await.status, StatusCode::OK);
    client.send("DELETE / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(client.head().await.status, StatusCode::EARLY_HINTS);
    assert_eq!(client.answer().await.status, StatusCode::BAD_GATEWAY);
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn a_flood_of_interim_answers_ends() {
    let origin = RawOrigin::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        while stream.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").await.is_ok() {}
    })
    .await;
    let (crossfade, route) = before(&origin).await;
    let mut client = TcpStream::connect(route.listen).await.unwrap();
    client.write_all(&get_request("/", &[])).await.unwrap();
    let mut said = Vec::new();
    soon(client.read_to_end(&mut said)).await.unwrap();
    let said = String::from_utf8(said).unwrap();
    assert_eq!(said.matches("HTTP/1.1 103").count(), 32);
    assert!(said.contains("HTTP/1.1 502"), "{said}");
    counted(&crossfade, "shop", |status| count(status, "blue", "broken") == 1).await;
}

#[tokio::test]
async fn a_client_that_stops_its_body_on_an_early_answer_gets_all_of_it() {
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    let gate = Mutex::new(Some(gone));
    let origin = RawOrigin::start(move |mut stream, _| {
        let gate = gate.lock().unwrap().take();
        async move {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 8\r\n\r\ntoo ").await.unwrap();
            if let Some(gate) = gate {
                gate.await.unwrap();
            }
            stream.write_all(b"much").await.unwrap();
        }
    })
    .await;
    let (_crossfade, route) = before(&origin).await;
    let mut client = TcpStream::connect(route.listen).await.unwrap();
    client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10000000\r\n\r\nsome").await.unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"too ") {
        assert!(soon(client.read_buf(&mut said)).await.unwrap() > 0, "{said:?}");
    }
    client.shutdown().await.unwrap();
    go.send(()).unwrap();
    soon(client.read_to_end(&mut said)).await.unwrap();
    assert!(said.ends_with(b"too much"), "{:?}", String::from_utf8_lossy(&said));
}

#[tokio::test]
async fn a_long_upload_reaches_an_endpoint_behind_tls_to_its_last_byte() {
    let (authority, folder) = (Authority::new(), TempDir::new().unwrap());
    let ca = folder.path().join("ca.pem");
    authority.write(&ca);
    let tls = authority.issue("app.example").server(&["http/1.1"]);
    let origin = HttpOrigin::start_tls("python", any_port(), tls).await.unwrap();
    let route = Route::http(origin.address(), origin.address())
        .unchecked()
        .table(format!("[route.blue.tls]\nserver_name = \"app.example\"\nca = {ca:?}"))
        .table(format!("[route.green.tls]\nserver_name = \"app.example\"\nca = {ca:?}"));
    // The path of our own carries it where nothing else was negotiated.
    let text = route.to_string().replace("label = ", "http_version = \"1.1\"\nlabel = ");
    let _crossfade = Crossfade::start(&text).await;
    let body = vec![b'x'; 8 << 20];
    let mut client = Client::connect(route.listen).await;
    for _ in 0..3 {
        // Answered only when all of it has come.
        client.send(format!("POST /status/201 HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len())).await;
        client.send(&body).await;
        assert_eq!(client.answer().await.status, StatusCode::CREATED);
    }
}

#[tokio::test]
async fn an_upgrade_that_was_not_asked_for_of_us_is_no_answer() {
    let origin = RawOrigin::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n").await.unwrap();
    })
    .await;
    let (_crossfade, route) = before(&origin).await;
    // `Connection` does not name it: it was for the hop before.
    let answer = Client::connect(route.listen).await.get("/", &[("upgrade", "x")]).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
}
