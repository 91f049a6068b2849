use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use loadtest::origin::{Behaviour, HttpOrigin, SeenRequest};
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::mpsc, time};
use tokio_rustls::TlsConnector;

use crate::{any_port, soon, until};

pub(crate) type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// A connection of one of the two protocols.
pub(crate) enum Client {
    H1(http1::SendRequest<Body>),
    H2(http2::SendRequest<Body>),
}

impl Client {
    pub(crate) async fn h1(address: std::net::SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (client, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self::H1(client)
    }

    pub(crate) async fn h2(address: std::net::SocketAddr) -> Self {
        Self::h2_on(TcpStream::connect(address).await.unwrap()).await
    }

    async fn h2_on(stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static) -> Self {
        let (client, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        Self::H2(client)
    }

    pub(crate) async fn send(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        soon(async {
            match self {
                Self::H1(client) => {
                    client.ready().await?;
                    client.send_request(request).await
                }
                Self::H2(client) => {
                    client.ready().await?;
                    client.send_request(request).await
                }
            }
        })
        .await
    }

    pub(crate) async fn get(&mut self, path: &str) -> Response<Incoming> {
        self.send(get(path)).await.unwrap()
    }
}

pub(crate) fn get(path: &str) -> Request<Body> {
    Request::get(format!("http://origin.example{path}")).body(Empty::new().boxed_unsync()).unwrap()
}

pub(crate) async fn bytes(response: Response<Incoming>) -> Bytes {
    soon(response.into_body().collect()).await.unwrap().to_bytes()
}

pub(crate) async fn json(response: Response<Incoming>) -> Value {
    serde_json::from_slice(&bytes(response).await).unwrap()
}

/// One of each protocol, on connections of their own.
pub(crate) async fn both(origin: &HttpOrigin) -> [Client; 2] {
    [Client::h1(origin.address()).await, Client::h2(origin.address()).await]
}

#[tokio::test]
async fn every_answer_says_who_gave_it() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    for mut client in both(&origin).await {
        let mut request = get("/cart/7?full=1");
        request.headers_mut().insert("x-session-id", HeaderValue::from_static("ada"));
        let response = client.send(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["x-origin"], "go");
        assert_eq!(response.headers()["content-type"], "application/json");
        let expected = json!({"origin": "go", "method": "GET", "path": "/cart/7?full=1", "key": "ada"});
        assert_eq!(json(response).await, expected);

        // The body is read, so the connection carries the next request.
        let post = Request::post("http://origin.example/").body(Full::from(vec![0; 1 << 20]).boxed_unsync()).unwrap();
        let response = client.send(post).await.unwrap();
        assert_eq!(json(response).await["key"], Value::Null);
    }
    assert_eq!(origin.seen().requests(), 4);
    assert_eq!(origin.seen().connections(), 2);
}

#[tokio::test]
async fn what_was_seen_is_counted_and_listed() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let mut client = Client::h1(origin.address()).await;
    for path in ["/a?n=1", "/a?n=2", "/b"] {
        bytes(client.get(path).await).await;
    }
    let mut request = get("/b");
    *request.method_mut() = Method::HEAD;
    request.headers_mut().insert("x-shadow", HeaderValue::from_static("1"));
    request.headers_mut().insert("x-session-id", HeaderValue::from_static("ada"));
    bytes(client.send(request).await.unwrap()).await;

    let seen = origin.seen();
    assert_eq!((seen.count(&Method::GET, "/a"), seen.count(&Method::POST, "/a")), (2, 0));
    let expected = [("/a", Method::GET, 2), ("/b", Method::GET, 1), ("/b", Method::HEAD, 1)];
    assert_eq!(seen.by_path(), expected.map(|(path, method, n)| (path.to_owned(), method, n)));
    let last = SeenRequest {
        method: Method::HEAD,
        path: "/b".to_owned(),
        shadow: Some("1".to_owned()),
        session: Some("ada".to_owned()),
    };
    assert_eq!(seen.recent().last(), Some(&last));
    assert_eq!(seen.recent()[0].path, "/a?n=1");

    assert_eq!(seen.open_connections(), 1);
    drop(client);
    until("the connection is counted as closed", || origin.seen().open_connections() == 0).await;
}

#[tokio::test]
async fn echo_streams_both_ways_and_returns_trailers() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    for mut client in both(&origin).await {
        let (frames, body) = mpsc::channel::<Frame<Bytes>>(1);
        let body = futures::stream::unfold(body, |mut body| async { body.recv().await.map(|f| (Ok(f), body)) });
        let h2 = matches!(client, Client::H2(_));
        let request = Request::post("http://origin.example/echo").body(StreamBody::new(body).boxed_unsync()).unwrap();
        let mut response = client.send(request).await.unwrap();
        for part in ["one", "two"] {
            // The next part is sent when this one is back: nothing is held until the end.
            frames.send(Frame::data(Bytes::from(part))).await.unwrap();
            let frame = soon(response.body_mut().frame()).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), part);
        }
        if h2 {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", HeaderValue::from_static("6"));
            frames.send(Frame::trailers(trailers.clone())).await.unwrap();
            let frame = soon(response.body_mut().frame()).await.unwrap().unwrap();
            assert_eq!(frame.into_trailers().unwrap(), trailers);
        }
        drop(frames);
        assert!(soon(response.body_mut().frame()).await.is_none());
    }
}

#[tokio::test]
async fn headers_come_back_in_order() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    for mut client in both(&origin).await {
        let mut request = get("/headers");
        for (name, value) in [("x-b", "1"), ("x-a", "2"), ("x-b", "3")] {
            request.headers_mut().append(name, HeaderValue::from_static(value));
        }
        let pairs = json(client.send(request).await.unwrap()).await;
        let ours: Vec<_> =
            pairs.as_array().unwrap().iter().filter(|p| p[0].as_str().unwrap().starts_with("x-")).collect();
        assert_eq!(json!(ours), json!([["x-b", "1"], ["x-b", "3"], ["x-a", "2"]]));
    }
}

#[tokio::test]
async fn sizes_statuses_streams_and_events_are_as_asked() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    for mut client in both(&origin).await {
        for size in [0, 1, 16 * 1024, 100_000] {
            let response = client.get(&format!("/bytes/{size}")).await;
            assert_eq!(response.headers()["content-length"], size.to_string().as_str());
            assert_eq!(bytes(response).await.len(), size);
        }
        for status in [204, 418, 503] {
            let response = client.get(&format!("/status/{status}")).await;
            assert_eq!(response.status(), status);
            assert_eq!(response.headers()["x-origin"], "go");
        }
        for faulty in ["/status/100", "/status/x", "/status/", "/bytes/-1", "/bytes/", "/stream?chunks=x"] {
            assert_eq!(client.get(faulty).await.status(), StatusCode::BAD_REQUEST, "{faulty}");
        }
        let response = client.get("/stream?chunks=3&interval_ms=1").await;
        assert_eq!(bytes(response).await, "chunk 0\nchunk 1\nchunk 2\n");

        let response = client.get("/sse").await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let events = String::from_utf8(bytes(response).await.to_vec()).unwrap();
        assert_eq!(events.matches("\n\n").count(), 3);
        assert!(events.starts_with("id: 1\nevent: tick\ndata: {"), "{events}");
    }
}

#[tokio::test]
async fn endless_is_endless_and_a_slow_stream_comes_piece_by_piece() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    for mut client in both(&origin).await {
        let mut response = client.get("/stream?chunks=2&interval_ms=3600000").await;
        let first = soon(response.body_mut().frame()).await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "chunk 0\n");
    }
    for mut client in both(&origin).await {
        let mut response = client.get("/endless").await;
        let mut received = 0;
        while received < 10 << 20 {
            received += soon(response.body_mut().frame()).await.unwrap().unwrap().into_data().unwrap().len();
        }
    }
}

#[tokio::test]
async fn tls_offers_both_protocols() {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["origin.example".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let origin = HttpOrigin::start_tls("go", any_port(), Arc::new(server)).await.unwrap();

    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    for (offer, agreed) in [(vec!["h2", "http/1.1"], "h2"), (vec!["http/1.1"], "http/1.1")] {
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = offer.iter().map(|p| p.as_bytes().to_vec()).collect();
        let stream = TcpStream::connect(origin.address()).await.unwrap();
        let name = "origin.example".try_into().unwrap();
        let stream = soon(TlsConnector::from(Arc::new(config)).connect(name, stream)).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(agreed.as_bytes()));
        let mut client = if agreed == "h2" {
            Client::h2_on(stream).await
        } else {
            let (client, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            Client::H1(client)
        };
        assert_eq!(json(client.get("/").await).await["origin"], "go");
    }
}

#[tokio::test]
async fn behaviour_changes_while_running() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    for mut client in both(&origin).await {
        origin.behaviour().change(|b| b.status = Some(StatusCode::INTERNAL_SERVER_ERROR));
        let response = client.get("/bytes/10").await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(response.headers()["x-origin"], "go");
        assert_eq!(bytes(response).await.len(), 0);

        origin.behaviour().set(Behaviour { latency: Duration::from_millis(50).into(), ..Behaviour::default() });
        let sent = time::Instant::now();
        assert_eq!(client.get("/").await.status(), StatusCode::OK);
        assert!(sent.elapsed() >= Duration::from_millis(50));

        origin.behaviour().set(Behaviour { error_share: 0.25, ..Behaviour::default() });
        let mut errors = 0;
        for _ in 0..100 {
            let response = client.get("/").await;
            errors += usize::from(response.status() == StatusCode::INTERNAL_SERVER_ERROR);
            bytes(response).await;
        }
        assert!((23..=27).contains(&errors), "{errors}");

        origin.behaviour().set(Behaviour { hang: true, ..Behaviour::default() });
        let before = origin.seen().requests();
        {
            let request = client.send(get("/"));
            tokio::pin!(request);
            let caught = until("the request is seen", || origin.seen().requests() > before);
            tokio::select! {
                answer = &mut request => panic!("answered: {answer:?}"),
                () = caught => {}
            }
        }
        origin.behaviour().set(Behaviour::default());
    }
}

#[tokio::test]
async fn a_reset_comes_after_the_header() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    origin.behaviour().set(Behaviour { reset_after_header: true, ..Behaviour::default() });
    for mut client in both(&origin).await {
        let response = client.get("/bytes/1000000").await;
        assert_eq!(response.status(), StatusCode::OK);
        let error = soon(response.into_body().collect()).await.unwrap_err();
        match client {
            Client::H1(_) => {
                let cause = std::error::Error::source(&error).unwrap().downcast_ref::<std::io::Error>().unwrap();
                assert_eq!(cause.kind(), std::io::ErrorKind::ConnectionReset);
            }
            Client::H2(_) => {
                origin.behaviour().set(Behaviour::default());
                // Only the stream was reset.
                assert_eq!(client.get("/").await.status(), StatusCode::OK);
            }
        }
    }
}

#[tokio::test]
async fn a_share_of_requests_is_reset_in_place_of_an_answer() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    origin.behaviour().set(Behaviour { reset_share: 0.3, ..Behaviour::default() });
    let (mut resets, mut h2) = ([0; 2], Client::h2(origin.address()).await);
    for _ in 0..50 {
        let mut h1 = Client::h1(origin.address()).await;
        if let Err(error) = h1.send(get("/")).await {
            let cause = std::error::Error::source(&error).unwrap().downcast_ref::<std::io::Error>().unwrap();
            assert_eq!(cause.kind(), std::io::ErrorKind::ConnectionReset);
            resets[0] += 1;
        }
        // Only the stream is reset: the next one is sent on the same connection.
        resets[1] += u32::from(h2.send(get("/")).await.is_err());
    }
    assert!(resets.iter().sum::<u32>() == 30 && resets.iter().all(|resets| *resets >= 10), "{resets:?}");
    assert_eq!(origin.seen().connections(), 51);
}

#[tokio::test]
async fn after_stop_connecting_is_refused_and_the_port_can_be_taken_again() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let address = origin.address();
    let mut clients = both(&origin).await;
    let mut bodies = Vec::new();
    for client in &mut clients {
        let mut response = client.get("/endless").await;
        soon(response.body_mut().frame()).await.unwrap().unwrap();
        bodies.push(response.into_body());
    }

    soon(origin.stop()).await;
    let refused = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    for mut body in bodies {
        soon(async { while let Some(Ok(_)) = body.frame().await {} }).await;
    }
    assert_eq!(origin.seen().open_connections(), 0);

    let again = HttpOrigin::start("go again", address).await.unwrap();
    assert_eq!(again.address(), address);
    assert_eq!(json(Client::h1(address).await.get("/").await).await["origin"], "go again");
}

#[tokio::test]
async fn without_its_listener_an_origin_serves_the_connections_it_has() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let mut clients = both(&origin).await;
    for client in &mut clients {
        bytes(client.get("/").await).await;
    }
    soon(origin.stop_listening()).await;
    assert!(TcpStream::connect(origin.address()).await.is_err());
    for client in &mut clients {
        assert_eq!(client.get("/").await.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn dropping_an_origin_stops_it() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let address = origin.address();
    drop(origin);
    soon(async { while TcpStream::connect(address).await.is_ok() {} }).await;
}

#[tokio::test]
async fn an_address_in_use_is_an_error_that_names_it() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let error = HttpOrigin::start("other", origin.address()).await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("{}: cannot listen; ", origin.address())), "{error}");
    assert_eq!(error.source.kind(), std::io::ErrorKind::AddrInUse);
}
