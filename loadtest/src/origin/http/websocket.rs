//! `/ws`: the handshake of RFC 6455 section 4.2, then an echo that says who answers.

use std::sync::Arc;

use futures::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        handshake::server::create_response_with_body,
        protocol::{CloseFrame, Role, frame::coding::CloseCode},
    },
};
use tonic_health::pb::health_server::Health;

use super::{Body, BoxError, Cut, Origin, Tasks, endpoints};

/// Answers the handshake and leaves the echo running in `tasks`. With `reset`, the connection is reset in its place.
/// A request that is no handshake is answered 400.
pub(super) fn accept<H: Health>(
    origin: Arc<Origin<H>>,
    mut request: Request<Incoming>,
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

    tasks.spawn(async move {
        let ended = match (upgrade.await, reset) {
            (Ok(_), Some(cut)) => return cut.on_close(),
            (Ok(upgraded), None) => origin.echo(upgraded).await.map_err(BoxError::from),
            (Err(error), _) => Err(error.into()),
        };
        if let Err(error) = ended {
            tracing::debug!(error = &*error, "WebSocket ended early");
        }
    });
    response
}

impl<H: Health> Origin<H> {
    /// Pings and the closing handshake are answered by tungstenite, as long as the stream is read.
    async fn echo(&self, upgraded: Upgraded) -> tungstenite::Result<()> {
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        while let Some(message) = socket.next().await {
            let message = message?;
            let answer = match &message {
                Message::Text(text) => Message::text(format!("{}:{text}", self.label.text)),
                Message::Binary(bytes) => Message::Binary(bytes.clone()),
                Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => continue,
            };
            self.seen.message();
            if let Message::Text(text) = &message {
                self.account.text(text.as_bytes());
            }
            let turn = self.behaviour.turn(Instant::now());
            turn.wait().await;
            if turn.fails {
                let reason = "failed, as asked".into();
                socket.close(Some(CloseFrame { code: CloseCode::Error, reason })).await?;
                // Reading on is what completes the closing handshake.
                while socket.next().await.transpose()?.is_some() {}
                break;
            }
            socket.send(answer).await?;
        }
        Ok(())
    }
}
