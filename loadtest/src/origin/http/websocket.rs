//! `/ws`: the handshake of RFC 6455 section 4.2, then an echo that says who answers.

use std::sync::Arc;

use futures::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, handshake::server::create_response_with_body, protocol::Role},
};

use super::{Body, BoxError, Cut, Tasks, endpoints};

/// Answers the handshake and leaves the echo running in `tasks`. With `reset`, the connection is reset in its place.
/// A request that is no handshake is answered 400.
pub(super) fn accept(
    mut request: Request<Incoming>,
    label: &Arc<str>,
    reset: Option<Cut>,
    tasks: &Tasks,
) -> Response<Body> {
    let upgrade = hyper::upgrade::on(&mut request);
    let request = request.map(|_| ());
    let response = match create_response_with_body(&request, || ()) {
        Ok(response) => response.map(|()| http_body_util::Empty::new().map_err(BoxError::from).boxed_unsync()),
        Err(error) => {
            return endpoints::text(StatusCode::BAD_REQUEST, format!("/ws: {error}; send a WebSocket handshake\n"));
        }
    };

    let label = Arc::clone(label);
    tasks.spawn(async move {
        let ended = match (upgrade.await, reset) {
            (Ok(_), Some(cut)) => return cut.on_close(),
            (Ok(upgraded), None) => echo(upgraded, &label).await.map_err(BoxError::from),
            (Err(error), _) => Err(error.into()),
        };
        if let Err(error) = ended {
            tracing::debug!(error = &*error, "WebSocket ended early");
        }
    });
    response
}

/// Pings and the closing handshake are answered by tungstenite, as long as the stream is read.
async fn echo(upgraded: Upgraded, label: &str) -> tungstenite::Result<()> {
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    while let Some(message) = socket.next().await {
        match message? {
            Message::Text(text) => socket.send(Message::text(format!("{label}:{text}"))).await?,
            Message::Binary(bytes) => socket.send(Message::Binary(bytes)).await?,
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => {}
        }
    }
    Ok(())
}
