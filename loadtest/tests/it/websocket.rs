use std::time::Duration;

use futures::{SinkExt, StreamExt};
use http::StatusCode;
use loadtest::origin::{Behaviour, HttpOrigin};
use tokio::{net::TcpStream, time::Instant};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message},
};

use crate::{any_port, soon};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn connect(origin: &HttpOrigin) -> Result<Socket, Error> {
    let (socket, response) = soon(connect_async(format!("ws://{}/ws", origin.address()))).await?;
    assert_eq!(response.headers()["x-origin"], "go");
    Ok(socket)
}

#[tokio::test]
async fn text_is_answered_with_the_label_and_binary_as_it_came() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let mut socket = connect(&origin).await.unwrap();
    for (sent, expected) in [
        (Message::text("hello"), Message::text("go:hello")),
        (Message::binary(vec![0; 100_000]), Message::binary(vec![0; 100_000])),
        (Message::Ping("p".into()), Message::Pong("p".into())),
    ] {
        socket.send(sent).await.unwrap();
        assert_eq!(soon(socket.next()).await.unwrap().unwrap(), expected);
    }
    socket.close(None).await.unwrap();
    assert!(matches!(soon(socket.next()).await, Some(Ok(Message::Close(None)))));
    assert!(soon(socket.next()).await.is_none());
}

#[tokio::test]
async fn stop_ends_upgraded_connections() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let mut socket = connect(&origin).await.unwrap();
    soon(origin.stop()).await;
    assert!(!matches!(soon(socket.next()).await, Some(Ok(_))));
}

#[tokio::test]
async fn a_handshake_can_be_refused_or_followed_by_a_reset() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    origin.behaviour().change(|b| b.status = Some(StatusCode::SERVICE_UNAVAILABLE));
    match connect(&origin).await {
        Err(Error::Http(response)) => assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE),
        other => panic!("{other:?}"),
    }
    origin.behaviour().set(Behaviour { reset_after_header: true, ..Behaviour::default() });
    let mut socket = connect(&origin).await.unwrap();
    match soon(socket.next()).await {
        Some(Err(Error::Io(error))) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn messages_wait_and_fail_like_requests() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let mut socket = connect(&origin).await.unwrap();
    let sent = Instant::now();
    origin.behaviour().set(Behaviour { latency: Duration::from_millis(50).into(), ..Behaviour::default() });
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(soon(socket.next()).await.unwrap().unwrap(), Message::text("go:hello"));
    assert!(sent.elapsed() >= Duration::from_millis(50));

    // The status is for handshakes.
    origin.behaviour().set(Behaviour { status: Some(StatusCode::SERVICE_UNAVAILABLE), ..Behaviour::default() });
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(soon(socket.next()).await.unwrap().unwrap(), Message::text("go:hello"));

    origin.behaviour().set(Behaviour { error_share: 1.0, ..Behaviour::default() });
    socket.send(Message::text("hello")).await.unwrap();
    match soon(socket.next()).await {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(u16::from(frame.code), 1011),
        other => panic!("{other:?}"),
    }
    assert!(soon(socket.next()).await.is_none(), "closed in order");
}
