//! TCP routes: by the client's address and by the name in its ClientHello.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use loadtest::origin::TcpOrigin;
use proxy::split::{Salt, bucket};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    authority::{Authority, Issued},
    harness::{Crossfade, free_address},
    routes::Route,
    site::soon,
    status::{arm, counted, rejected},
};

/// Connects from another address of this machine: 127.0.`n`.
pub(crate) async fn from_address(n: u16, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    let [high, low] = (n + 1).to_be_bytes();
    socket.bind(SocketAddr::from(([127, 0, high, low], 0))).unwrap();
    socket.connect(to).await.unwrap()
}

/// Is [`from_address`]'s `n`-th address green on the route `bus`?
pub(crate) fn address_is_green(n: u16, percent: f64) -> bool {
    let [high, low] = (n + 1).to_be_bytes();
    f64::from(bucket(Salt::split("bus"), &[127, 0, high, low])) < percent * 100.0
}

/// Says a line and hears whose origin it is.
pub(crate) async fn label(stream: &mut TcpStream) -> String {
    try_label(stream).await.expect("the origin answers")
}

/// The same; `None`: the connection ended.
pub(crate) async fn try_label(stream: &mut TcpStream) -> Option<String> {
    stream.write_all(b"?\n").await.ok()?;
    let mut answer = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        soon(stream.read_exact(&mut byte)).await.ok()?;
        answer.push(byte[0]);
    }
    Some(String::from_utf8(answer).unwrap().strip_suffix(":?\n").unwrap().to_owned())
}

async fn origins() -> (TcpOrigin, TcpOrigin) {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    (TcpOrigin::start("python", any).await.unwrap(), TcpOrigin::start("go", any).await.unwrap())
}

#[tokio::test]
async fn an_address_keeps_its_arm() {
    const ADDRESSES: u16 = 300;
    let (blue, green) = origins().await;
    let route = Route::tcp(blue.address(), green.address());
    let crossfade = Crossfade::start(&route.to_string()).await;
    for percent in [30.0, 60.0, 30.0, 0.0, 100.0] {
        crossfade.admin.split("bus", percent).await;
        for n in 0..ADDRESSES {
            let expected = if address_is_green(n, percent) { "go" } else { "python" };
            assert_eq!(label(&mut from_address(n, route.listen).await).await, expected, "{n} at {percent} %");
        }
    }
    let greens = (0..ADDRESSES).filter(|n| address_is_green(*n, 30.0)).count();
    // Five standard deviations around 90.
    assert!((50..=130).contains(&greens), "{greens} of {ADDRESSES} at 30 %");
}

/// A TLS server that tells every client its own name.
fn tls_origin(issued: &Issued, label: &'static str) -> (SocketAddr, JoinHandle<()>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let (listener, acceptor) = (TcpListener::from_std(listener).unwrap(), TlsAcceptor::from(issued.server(&[])));
    let serving = tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(tcp).await?;
                let name = stream.get_ref().1.server_name().unwrap_or("nobody").to_owned();
                stream.write_all(format!("{label} serves {name}\n").as_bytes()).await?;
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await?;
                stream.write_all(&rest).await?;
                stream.shutdown().await
            });
        }
    });
    (address, serving)
}

#[tokio::test]
async fn tls_passes_untouched_to_the_arm_of_the_name_that_is_asked_for() {
    let (authority, names) = (Authority::new(), ["*.shop.example", "127.0.0.1"]);
    let (python, go) = (authority.issue_for(&names), authority.issue_for(&names));
    let ((blue, _serving_blue), (green, _serving_green)) = (tls_origin(&python, "python"), tls_origin(&go, "go"));
    let route = Route::tcp(blue, green).with("key = [\"sni\"]").green_percentage(50.0).unchecked();
    let crossfade = Crossfade::start(&route.to_string()).await;
    let mut arms = BTreeMap::new();
    for n in (0..40).chain(0..40) {
        let name = format!("Eu-{n}.shop.example");
        // Names are the same in upper and lower case.
        let is_green = bucket(Salt::split("bus"), name.to_lowercase().as_bytes()) < 5_000;
        let (label, issued) = if is_green { ("go", &go) } else { ("python", &python) };
        let tcp = TcpStream::connect(route.listen).await.unwrap();
        let mut stream = authority.connect(tcp, &name, &[]).await.unwrap();
        let seen = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        assert_eq!(&seen, issued.certificate(), "the handshake is with the origin itself");
        let payload = format!("{n}").repeat(10_000);
        stream.write_all(payload.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        soon(stream.read_to_string(&mut answer)).await.unwrap();
        let (first, rest) = answer.split_once('\n').unwrap();
        assert_eq!(first, format!("{label} serves {}", name.to_lowercase()));
        assert!(rest == payload, "{} bytes came back instead of {}", rest.len(), payload.len());
        *arms.entry(label).or_insert(0) += 1;
    }
    assert!(arms.len() == 2, "both arms were asked: {arms:?}");

    // A client that goes to an address sends no name: keyless, so blue.
    let tcp = TcpStream::connect(route.listen).await.unwrap();
    let stream = authority.connect(tcp, "127.0.0.1", &[]).await.unwrap();
    let mut line = String::new();
    soon(BufReader::new(stream).read_line(&mut line)).await.unwrap();
    assert_eq!(line, "python serves nobody\n");
    let status = counted(&crossfade, "bus", |status| status["keyless"] == 1).await;
    assert!(rejected(&status).is_empty(), "{status}");
}

#[tokio::test]
async fn a_hello_in_single_bytes_is_understood_and_passed_on_whole() {
    let authority = Authority::new();
    let (address, _serving) = tls_origin(&authority.issue("slow.example"), "go");
    let route = Route::tcp(free_address(), address).with("key = [\"sni\"]").green_percentage(100.0).unchecked();
    let _crossfade = Crossfade::start(&route.to_string()).await;
    // A relay of the test's own that cuts what the client sends.
    let cutter = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let cut = cutter.local_addr().unwrap();
    let listen = route.listen;
    tokio::spawn(async move {
        let (client, _) = cutter.accept().await?;
        let proxy = TcpStream::connect(listen).await?;
        proxy.set_nodelay(true)?;
        let ((mut from_client, mut to_client), (mut from_proxy, mut to_proxy)) =
            (client.into_split(), proxy.into_split());
        tokio::spawn(async move { tokio::io::copy(&mut from_proxy, &mut to_client).await });
        while let Ok(byte) = from_client.read_u8().await {
            to_proxy.write_all(&[byte]).await?;
            tokio::task::yield_now().await;
        }
        std::io::Result::Ok(())
    });
    let stream = authority.connect(TcpStream::connect(cut).await.unwrap(), "slow.example", &[]).await.unwrap();
    let mut line = String::new();
    soon(BufReader::new(stream).read_line(&mut line)).await.unwrap();
    assert_eq!(line, "go serves slow.example\n");
}

#[tokio::test]
async fn tls_that_ends_here_leaves_the_origin_plain_bytes() {
    let (blue, green) = origins().await;
    let (folder, authority) = (TempDir::new().unwrap(), Authority::new());
    let tls = authority.issue("localhost").write(folder.path(), "bus");
    let route = Route::tcp(blue.address(), green.address()).with(tls).green_percentage(100.0);
    let _crossfade = Crossfade::start(&route.to_string()).await;
    let tcp = TcpStream::connect(route.listen).await.unwrap();
    let mut stream = authority.connect(tcp, "localhost", &[]).await.unwrap();
    stream.write_all(b"over TLS\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "go:over TLS\ngo:bye\n");
}

#[tokio::test]
async fn each_side_may_end_its_half_and_still_listen() {
    let (blue, green) = origins().await;
    let route = Route::tcp(blue.address(), green.address()).green_percentage(100.0);
    let _crossfade = Crossfade::start(&route.to_string()).await;
    let mut client = TcpStream::connect(route.listen).await.unwrap();
    client.write_all(b"last words\n").await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    soon(client.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "go:last words\ngo:bye\n");
    assert_eq!(green.seen().byes(), 1);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let route = Route::tcp(listener.local_addr().unwrap(), green.address()).unchecked();
    let _crossfade = Crossfade::start(&route.to_string()).await;
    let mut client = TcpStream::connect(route.listen).await.unwrap();
    let (mut origin, _) = soon(listener.accept()).await.unwrap();
    origin.write_all(b"that is all").await.unwrap();
    origin.shutdown().await.unwrap();
    let mut heard = String::new();
    soon(client.read_to_string(&mut heard)).await.unwrap();
    assert_eq!(heard, "that is all");
    client.write_all(b"still here").await.unwrap();
    client.shutdown().await.unwrap();
    heard.clear();
    soon(origin.read_to_string(&mut heard)).await.unwrap();
    assert_eq!(heard, "still here");
}

#[tokio::test]
async fn a_silent_connection_ends_after_the_idle_time_and_not_before() {
    let (blue, green) = origins().await;
    let route =
        Route::tcp(blue.address(), green.address()).table("[route.timeouts]\nidle = \"500ms\"").green_percentage(100.0);
    let crossfade = Crossfade::start(&route.to_string()).await;
    let mut client = TcpStream::connect(route.listen).await.unwrap();
    assert_eq!(label(&mut client).await, "go");
    let silent_since = tokio::time::Instant::now();
    let ended = soon(client.read(&mut [0; 16])).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    assert!(silent_since.elapsed() >= Duration::from_millis(450), "{:?}", silent_since.elapsed());
    counted(&crossfade, "bus", |status| arm(status, "green")["open"] == 0).await;
}

#[tokio::test]
async fn green_out_of_reach_costs_no_connection_with_fallback_blue_and_is_refused_with_none() {
    const CONNECTIONS: u16 = 200;
    let (blue, _) = origins().await;
    let route = Route::tcp(blue.address(), free_address()).green_percentage(50.0).unguarded();
    let crossfade = Crossfade::start(&route.to_string()).await;
    let greens = (0..CONNECTIONS).filter(|n| address_is_green(*n, 50.0)).count();
    for n in 0..CONNECTIONS {
        assert_eq!(label(&mut from_address(n, route.listen).await).await, "python");
    }
    let status = counted(&crossfade, "bus", |status| arm(status, "blue")["ok"] == CONNECTIONS).await;
    let green = arm(&status, "green");
    assert_eq!((&green["unreachable"], &green["fallbacks"]), (&greens.into(), &greens.into()), "{status}");

    crossfade.rewrite("", &route.clone().with("fallback = \"none\"").to_string());
    crossfade.logged("Configuration reloaded").await;
    for n in 0..CONNECTIONS {
        let mut stream = from_address(n, route.listen).await;
        if address_is_green(n, 50.0) {
            let ended = soon(stream.read(&mut [0; 16])).await;
            assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        } else {
            assert_eq!(label(&mut stream).await, "python");
        }
    }
    let status = counted(&crossfade, "bus", |status| arm(status, "green")["unreachable"] == 2 * greens).await;
    assert_eq!(arm(&status, "green")["fallbacks"], greens, "{status}");
    assert_eq!(arm(&status, "blue")["failures"], 0, "{status}");
}

#[tokio::test]
async fn whom_an_endpoint_takes_and_drops_without_a_byte_is_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let route = Route::tcp(free_address(), address).green_percentage(100.0).unchecked().unguarded();
    let crossfade = Crossfade::start(&route.to_string()).await;
    // What both say, whether the client goes first, and whether the endpoint resets the connection.
    let cases: [(&[u8], &[u8], bool, bool); 6] = [
        (b"", b"", false, false),
        (b"question", b"", false, false),
        (b"question", b"", false, true),
        (b"question", b"answer", false, false),
        (b"one way", b"", true, false),
        (b"one way", b"", true, true),
    ];
    for (of_client, of_endpoint, client_first, reset) in cases {
        let mut client = TcpStream::connect(route.listen).await.unwrap();
        client.write_all(of_client).await.unwrap();
        let (mut endpoint, _) = soon(listener.accept()).await.unwrap();
        let mut heard = vec![0; of_client.len()];
        soon(endpoint.read_exact(&mut heard)).await.unwrap();
        if client_first {
            client.shutdown().await.unwrap();
            assert_eq!(soon(endpoint.read(&mut [0])).await.unwrap(), 0);
        }
        endpoint.write_all(of_endpoint).await.unwrap();
        if reset {
            socket2::SockRef::from(&endpoint).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(endpoint);
        let mut answer = Vec::new();
        let _ended = soon(client.read_to_end(&mut answer)).await;
        assert_eq!(answer, of_endpoint);
    }
    let status = counted(&crossfade, "bus", |status| arm(status, "green")["cut_off"] == 3).await;
    let green = arm(&status, "green");
    assert_eq!((&green["ok"], &green["dispatched"]), (&cases.len().into(), &cases.len().into()), "{status}");
    assert_eq!(green["open"], 0, "{status}");
}

#[tokio::test]
async fn connecting_is_measured_and_bytes_are_counted() {
    let (blue, green) = origins().await;
    let route = Route::tcp(blue.address(), green.address()).green_percentage(100.0);
    let crossfade = Crossfade::start(&route.to_string()).await;
    let mut client = TcpStream::connect(route.listen).await.unwrap();
    let payload = [&b"x".repeat(50_000)[..], b"\n"].concat();
    let writing = client.write_all(&payload);
    soon(writing).await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = Vec::new();
    soon(client.read_to_end(&mut answer)).await.unwrap();
    let status = counted(&crossfade, "bus", |status| arm(status, "green")["bytes_in"] == payload.len()).await;
    let green = arm(&status, "green");
    assert_eq!((&green["bytes_out"], &green["ok"]), (&answer.len().into(), &1.into()), "{status}");
    assert!(green["p95_ms"].as_f64().is_some_and(|ms| ms >= 0.0), "{status}");
}
