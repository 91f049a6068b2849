//! WebSocket text messages and their echoes.

use futures::{FutureExt, SinkExt, StreamExt};
use http::{Request, Uri};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, Message, client::IntoClientRequest},
};

use super::{Endpoint, Failure, Load, Shared, Slot, http::HttpLoad, record::Answer, record::Arm, stream::Stream, tcp};
use crate::ledger::Id;

/// A WebSocket that carries one message after the other.
pub(super) struct Socket {
    http: HttpLoad,
    endpoint: Endpoint,
    nth: usize,
    open: Option<Open>,
}

struct Open {
    socket: WebSocketStream<Stream>,
    key: u64,
    /// Who accepted the handshake, where it said so.
    arm: Arm,
    messages: u64,
}

impl Socket {
    pub(super) fn new(http: &HttpLoad, load: &Load, nth: usize) -> Self {
        Self { http: http.clone(), endpoint: load.endpoint.clone(), nth, open: None }
    }

    async fn connect(&self, key: u64, recorder: &Shared) -> Result<Open, Failure> {
        let stream = self.endpoint.connect(self.nth, key).await?;
        let (socket, response) =
            client_async(self.handshake(key)?, stream).await.map_err(|error| Failure::websocket(&error))?;
        let headers = response.headers();
        let arm = self.http.arm(|name| headers.get(name).map(|value| value.as_bytes()), &mut recorder.borrow_mut());
        Ok(Open { socket, key, arm, messages: 0 })
    }

    fn handshake(&self, key: u64) -> Result<Request<()>, Failure> {
        let scheme = if self.http.scheme == "https" { "wss" } else { "ws" };
        let mut path = Vec::new();
        self.http.write_path(&mut path, key);
        let uri = Uri::builder().scheme(scheme).authority(self.http.authority.as_str()).path_and_query(path).build();
        let request = uri.map_err(tungstenite::Error::from).and_then(IntoClientRequest::into_client_request);
        let mut request = request.map_err(|error| Failure::websocket(&error))?;
        let headers = request.headers_mut();
        headers.extend(self.http.headers.clone());
        if let Some((name, value)) = self.http.key_header(key) {
            headers.insert(name, value);
        }
        Ok(request)
    }
}

impl Slot for Socket {
    fn key(&self) -> Option<u64> {
        self.open.as_ref().map(|open| open.key)
    }

    async fn exchange(&mut self, id: Id, key: u64, recorder: &Shared) -> Result<Answer, Failure> {
        let mut surplus = 0;
        let kept = match self.open.take() {
            // What came meanwhile: a ping is answered, an end noticed, a message nobody asked for counted.
            Some(mut open) => match open.socket.next().now_or_never() {
                None | Some(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => Some(open),
                Some(Some(Ok(Message::Text(_) | Message::Binary(_)))) => {
                    surplus += 1;
                    Some(open)
                }
                Some(_) => None,
            },
            None => None,
        };
        let mut open = match kept {
            Some(open) => open,
            None => self.connect(key, recorder).await?,
        };
        open.messages += 1;

        let mut text = format!("{id} user-{key} ");
        text.extend(std::iter::repeat_n('x', self.http.body.len().saturating_sub(text.len())));
        let failed = |error: tungstenite::Error| Failure::websocket(&error);
        open.socket.send(Message::text(text.as_str())).await.map_err(failed)?;
        let label = loop {
            match open.socket.next().await {
                Some(Ok(Message::Text(echo))) => {
                    break tcp::label(echo.as_bytes(), text.as_bytes())?.map(<[u8]>::to_vec);
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Binary(_))) => return Err(Failure::Malformed),
                Some(Ok(Message::Close(_))) | None => return Err(Failure::Closed),
                Some(Err(error)) => return Err(failed(error)),
            }
        };
        let arm = if open.arm == Arm::UNKNOWN {
            label.map_or(Arm::UNKNOWN, |label| recorder.borrow_mut().arm(&label))
        } else {
            open.arm
        };
        if self.http.requests_per_connection.is_some_and(|most| open.messages >= most.get()) {
            // The closing handshake (RFC 6455, section 7); the answer is in, whatever becomes of it.
            let _ = open.socket.close(None).await;
            while let Some(Ok(_)) = open.socket.next().await {}
        } else {
            self.open = Some(open);
        }
        Ok(Answer { arm, status: 0, failure: false, surplus })
    }
}

impl Failure {
    fn websocket(error: &tungstenite::Error) -> Self {
        use tungstenite::error::ProtocolError;
        match error {
            tungstenite::Error::Io(error) => Self::moving(error),
            tungstenite::Error::Http(_) => Self::Declined,
            tungstenite::Error::ConnectionClosed
            | tungstenite::Error::AlreadyClosed
            | tungstenite::Error::Protocol(
                ProtocolError::ResetWithoutClosingHandshake | ProtocolError::HandshakeIncomplete,
            ) => Self::Closed,
            _ => Self::Malformed,
        }
    }
}
