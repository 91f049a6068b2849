//! An HTTP server that others are told of, or asked at, and that misbehaves on demand.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// What it does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Status(u16),
    /// 200 with this body.
    Page(String),
    /// Whatever this is.
    Raw(String),
    /// Takes the request and says nothing.
    Hang,
    Close,
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) line: String,
    head: String,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        headers.find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// The last one is repeated.
    replies: Arc<Mutex<VecDeque<Reply>>>,
    requests: Arc<Mutex<Vec<Request>>>,
    /// Ends with it.
    _serving: JoinSet<()>,
}

impl Peer {
    pub(crate) async fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), replies).await
    }

    pub(crate) async fn at(address: SocketAddr, replies: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let replies = Arc::new(Mutex::new(replies.into_iter().collect::<VecDeque<_>>()));
        let requests = Arc::default();
        let mut serving = JoinSet::new();
        serving.spawn(accept(listener, Arc::clone(&replies), Arc::clone(&requests)));
        Self { address, replies, requests, _serving: serving }
    }

    pub(crate) fn reply(&self, reply: Reply) {
        *self.replies.lock() = [reply].into();
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().clone()
    }
}

async fn accept(listener: TcpListener, replies: Arc<Mutex<VecDeque<Reply>>>, requests: Arc<Mutex<Vec<Request>>>) {
    let mut serving = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        serving.spawn(serve(stream, Arc::clone(&replies), Arc::clone(&requests)));
    }
}

async fn serve(mut stream: TcpStream, replies: Arc<Mutex<VecDeque<Reply>>>, requests: Arc<Mutex<Vec<Request>>>) {
    let Some(request) = read(&mut stream).await else { return };
    let reply = {
        let replies = &mut *replies.lock();
        requests.lock().push(request);
        if replies.len() > 1 { replies.pop_front() } else { replies.front().cloned() }
    };
    let answer = match reply.unwrap() {
        Reply::Status(status) => {
            format!("HTTP/1.1 {status} x\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")
        }
        Reply::Page(page) => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{page}", page.len()),
        Reply::Raw(raw) => raw,
        Reply::Hang => std::future::pending().await,
        Reply::Close => return,
    };
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

async fn read(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).await.ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&piece[..read]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let line = head.lines().next()?.to_owned();
        let request = Request { line, head: head.to_owned(), body: body.to_owned() };
        let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
        if body.len() >= length {
            return Some(request);
        }
    }
}
