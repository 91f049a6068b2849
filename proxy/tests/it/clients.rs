//! HTTP clients that see every byte, and keep their connection until told otherwise.

use std::{
    io::{Error, ErrorKind},
    net::{IpAddr, SocketAddr},
};

use futures::future::poll_fn;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use hyper::body::Bytes;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinHandle,
};

use crate::site::soon;

/// A whole answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The label of the origin that answered.
    pub(crate) fn origin(&self) -> &str {
        self.header("x-origin").unwrap_or_else(|| panic!("no origin answered: {self:?}"))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The request's headers as `/headers` of an origin tells them; values of a repeated name in their order.
    pub(crate) fn told(&self, name: &str) -> Vec<String> {
        let pairs: Vec<(String, String)> = serde_json::from_slice(&self.body).unwrap();
        pairs.into_iter().filter(|(told, _)| told == name).map(|(_, value)| value).collect()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// One HTTP/1 connection.
pub(crate) struct Client<S = TcpStream> {
    pub(crate) stream: S,
    /// Read and not part of an answer yet.
    pub(crate) buffer: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).await.unwrap()
    }

    pub(crate) async fn try_connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = soon(TcpStream::connect(address)).await?;
        stream.set_nodelay(true)?;
        Ok(Self::over(stream))
    }

    /// From an address of ours, such as 127.0.0.7.
    pub(crate) async fn connect_from(source: IpAddr, address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(source, 0)).unwrap();
        Self::over(soon(socket.connect(address)).await.unwrap())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) fn over(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.stream.write_all(bytes.as_ref())).await.unwrap();
        soon(self.stream.flush()).await.unwrap();
    }

    /// Sends a GET and reads its answer; the connection stays.
    #[track_caller]
    pub(crate) fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> impl Future<Output = Answer> {
        let caller = std::panic::Location::caller();
        let request = get_request(path, headers);
        async move {
            match self.exchange(&request).await {
                Ok(answer) => answer,
                Err(error) => panic!("{error}, in place of an answer ({caller})"),
            }
        }
    }

    /// Sends bytes and reads one answer.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> std::io::Result<Answer> {
        soon(self.stream.write_all(request)).await?;
        soon(self.stream.flush()).await?;
        self.try_answer().await
    }

    /// The next answer, read to the end of its body.
    #[track_caller]
    pub(crate) fn answer(&mut self) -> impl Future<Output = Answer> {
        let caller = std::panic::Location::caller();
        async move { self.try_answer().await.unwrap_or_else(|error| panic!("{error}, in place of an answer ({caller})")) }
    }

    pub(crate) async fn try_answer(&mut self) -> std::io::Result<Answer> {
        let (status, headers) = self.try_head().await?;
        let body = self.try_body(status, &headers).await?;
        Ok(Answer { status, headers, body })
    }

    /// The header of the next answer, also one of status 1xx, and no more.
    pub(crate) async fn head(&mut self) -> Answer {
        let (status, headers) = self.try_head().await.unwrap();
        Answer { status, headers, body: Bytes::new() }
    }

    async fn try_head(&mut self) -> std::io::Result<(StatusCode, HeaderMap)> {
        loop {
            let mut fields = [httparse::EMPTY_HEADER; 64];
            let mut response = httparse::Response::new(&mut fields);
            if let httparse::Status::Complete(length) = response.parse(&self.buffer).map_err(Error::other)? {
                let status = StatusCode::from_u16(response.code.unwrap_or_default()).map_err(Error::other)?;
                let mut headers = HeaderMap::new();
                for field in response.headers {
                    headers.append(
                        HeaderName::from_bytes(field.name.as_bytes()).unwrap(),
                        HeaderValue::from_bytes(field.value).unwrap(),
                    );
                }
                self.buffer.drain(..length);
                return Ok((status, headers));
            }
            self.more().await?;
        }
    }

    async fn try_body(&mut self, status: StatusCode, headers: &HeaderMap) -> std::io::Result<Bytes> {
        if status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED || status.is_informational() {
            return Ok(Bytes::new());
        }
        if let Some(length) = headers.get("content-length") {
            let length: usize = length.to_str().unwrap().parse().map_err(Error::other)?;
            while self.buffer.len() < length {
                self.more().await?;
            }
            return Ok(self.buffer.drain(..length).collect());
        }
        let mut body = Vec::new();
        if headers.contains_key("transfer-encoding") {
            loop {
                let chunk = self.chunk().await?;
                if chunk.is_empty() {
                    return Ok(body.into());
                }
                body.extend(chunk);
            }
        }
        loop {
            match self.more().await {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    return Ok(std::mem::take(&mut self.buffer).into());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The next chunk of a chunked body; empty at its end. Trailers are skipped.
    pub(crate) async fn chunk(&mut self) -> std::io::Result<Vec<u8>> {
        let line = self.line().await?;
        let size = line.split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size.trim(), 16).map_err(Error::other)?;
        if size == 0 {
            while !self.line().await?.is_empty() {}
            return Ok(Vec::new());
        }
        while self.buffer.len() < size + 2 {
            self.more().await?;
        }
        let chunk = self.buffer.drain(..size).collect();
        self.buffer.drain(..2);
        Ok(chunk)
    }

    async fn line(&mut self) -> std::io::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                let line = self.buffer.drain(..end + 2).collect::<Vec<_>>();
                return String::from_utf8(line[..end].to_vec()).map_err(Error::other);
            }
            self.more().await?;
        }
    }

    pub(crate) async fn more(&mut self) -> std::io::Result<()> {
        match soon(self.stream.read_buf(&mut self.buffer)).await? {
            0 => Err(Error::new(ErrorKind::UnexpectedEof, "the connection ended")),
            _ => Ok(()),
        }
    }

    /// Waits for the connection's end. What came before it is returned.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.more().await.is_ok() {}
        std::mem::take(&mut self.buffer)
    }
}

pub(crate) fn get_request(path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut request = format!("GET {path} HTTP/1.1\r\nhost: shop.example\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += "\r\n";
    request.into_bytes()
}

/// One HTTP/2 connection.
pub(crate) struct H2Client {
    pub(crate) sender: h2::client::SendRequest<Bytes>,
    /// Ends with the connection.
    pub(crate) connection: JoinHandle<Result<(), h2::Error>>,
}

impl H2Client {
    /// With prior knowledge.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::over(soon(TcpStream::connect(address)).await.unwrap()).await
    }

    pub(crate) async fn over(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (sender, connection) = soon(h2::client::handshake(io)).await.unwrap();
        Self { sender, connection: tokio::spawn(connection) }
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str, headers: &[(&str, &str)]) -> impl Future<Output = Answer> + Send + use<> {
        let caller = std::panic::Location::caller();
        let getting = self.try_get(path, headers);
        async move { getting.await.unwrap_or_else(|error| panic!("{error}, in place of an answer ({caller})")) }
    }

    pub(crate) fn try_get(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> impl Future<Output = Result<Answer, h2::Error>> + Send + use<> {
        let mut request = Request::get(format!("http://shop.example{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        let sender = self.sender.clone();
        async move {
            let mut sender = soon(sender.ready()).await?;
            let (response, _) = sender.send_request(request, true)?;
            whole(soon(response).await?).await
        }
    }

    /// Sends a header and leaves the body open.
    pub(crate) async fn open(&self, request: Request<()>) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
        let mut sender = soon(self.sender.clone().ready()).await.unwrap();
        sender.send_request(request, false).unwrap()
    }
}

/// Sends all of `bytes`, as the other side makes room for them.
pub(crate) async fn send_body(
    stream: &mut h2::SendStream<Bytes>,
    mut bytes: Bytes,
    end: bool,
) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        let Some(room) = soon(poll_fn(|cx| stream.poll_capacity(cx))).await else {
            return Err(h2::Reason::STREAM_CLOSED.into());
        };
        let part = bytes.split_to(room?.min(bytes.len()));
        stream.send_data(part, end && bytes.is_empty())?;
    }
    Ok(())
}

pub(crate) async fn whole(response: http::Response<h2::RecvStream>) -> Result<Answer, h2::Error> {
    let (head, mut stream) = response.into_parts();
    let mut body = Vec::new();
    while let Some(data) = soon(stream.data()).await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    Ok(Answer { status: head.status, headers: head.headers, body: body.into() })
}
