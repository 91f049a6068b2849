//! Clients of every protocol that never rest, and to whom nothing may happen.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use ::config::Arm;
use futures::future::join_all;
use http::{Request, StatusCode};
use rumqttc::{AsyncClient, Event, MqttOptions, Outgoing, Packet, QoS};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::{
    authority::Authority,
    clients::{Answer, Client, H2Client, get_request},
    harness::eventually,
    routes::Route,
    site::{arm_of, soon},
};

/// Clients that go on until they are stopped. Whatever is refused, reset, cut or answered wrongly ends one of them.
#[derive(Default)]
pub(crate) struct Steady {
    stop: Arc<AtomicBool>,
    clients: JoinSet<Result<(), String>>,
    done: BTreeMap<&'static str, Arc<AtomicU64>>,
}

/// What a client counts by, and hears when it is to stop from.
#[derive(Clone)]
struct Pace {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

impl Pace {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn one_more(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }
}

/// An HTTP route, and how its clients come in.
#[derive(Clone)]
struct Door {
    route: &'static str,
    listen: SocketAddr,
    authority: Option<Arc<Authority>>,
}

impl Steady {
    fn spawn<F>(&mut self, kind: &'static str, client: impl FnOnce(Pace) -> F)
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let done = Arc::clone(self.done.entry(kind).or_default());
        let running = client(Pace { stop: Arc::clone(&self.stop), done });
        self.clients.spawn(async move { running.await.map_err(|error| format!("{kind}: {error}")) });
    }

    /// HTTP/1.1 over kept connections, over a new one for each request, and HTTP/2 with four streams at a time, on a route
    /// that is at 50 %.
    pub(crate) fn http(mut self, route: &Route) -> Self {
        let door = Door { route: route.name, listen: route.listen, authority: None };
        for n in 0..4 {
            self.spawn("http/1.1 kept", |pace| keep(door.clone(), n, pace));
            self.spawn("http/1.1 each", |pace| connect_each(door.clone(), n, pace));
            self.spawn("http/2", |pace| stream(door.clone(), n, pace));
        }
        self
    }

    /// The same over TLS.
    pub(crate) fn https(mut self, route: &Route, authority: Arc<Authority>) -> Self {
        let door = Door { route: route.name, listen: route.listen, authority: Some(authority) };
        for n in 0..2 {
            self.spawn("https/1.1 kept", |pace| keep(door.clone(), n, pace));
            self.spawn("https/1.1 each", |pace| connect_each(door.clone(), n, pace));
            self.spawn("https/2", |pace| stream(door.clone(), n, pace));
        }
        self
    }

    /// Connections of twenty lines each.
    pub(crate) fn tcp(mut self, listen: SocketAddr) -> Self {
        for n in 0..4 {
            self.spawn("tcp", |pace| talk(listen, n, pace));
        }
        self
    }

    /// Sessions of ten messages with QoS 1 each, to themselves.
    pub(crate) fn mqtt(mut self, listen: SocketAddr) -> Self {
        for n in 0..4 {
            self.spawn("mqtt", |pace| publish(listen, n, pace));
        }
        self
    }

    /// Waits until each kind has done `more` than so far. Panics when a client has ended.
    pub(crate) async fn flows(&mut self, more: u64) {
        let before = self.done.iter().map(|(kind, done)| (*kind, done.load(Ordering::Relaxed))).collect::<Vec<_>>();
        for (kind, before) in before {
            let (done, clients) = (&self.done[kind], &mut self.clients);
            eventually(kind, async || {
                if let Some(ended) = clients.try_join_next() {
                    panic!("a client ended: {:?}", ended.unwrap());
                }
                (done.load(Ordering::Relaxed) >= before + more).then_some(())
            })
            .await;
        }
    }

    /// Stops the clients. How many requests, lines or messages there were of each kind.
    pub(crate) async fn stop(mut self) -> BTreeMap<&'static str, u64> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = soon(self.clients.join_next()).await {
            ended.unwrap().unwrap();
        }
        self.done.iter().map(|(kind, done)| (*kind, done.load(Ordering::Relaxed))).collect()
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Door {
    async fn connect(&self, alpn: &str) -> Result<Box<dyn Stream + 'static>, String> {
        let tcp = soon(TcpStream::connect(self.listen)).await.map_err(|error| format!("connecting: {error}"))?;
        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
        match &self.authority {
            None => Ok(Box::new(tcp)),
            Some(authority) => match authority.connect(tcp, "localhost", &[alpn]).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(format!("the handshake: {error}")),
            },
        }
    }

    fn check(&self, answer: &Answer, key: &str) -> Result<(), String> {
        let expected = if arm_of(self.route, key.as_bytes(), 50.0) == Arm::Green { "go" } else { "python" };
        if (answer.status, answer.header("x-origin")) != (StatusCode::OK, Some(expected)) {
            return Err(format!("{answer:?} for {key}, which is {expected}"));
        }
        Ok(())
    }
}

/// Keeps its connection until an answer says that it ends.
async fn keep(door: Door, n: u32, pace: Pace) -> Result<(), String> {
    while pace.goes_on() {
        let mut client = Client::over(door.connect("http/1.1").await?);
        for request in 0.. {
            let key = format!("kept-{n}-{request}");
            let answer = client.exchange(&get_request("/", &[("x-session-id", &key)])).await;
            let answer = answer.map_err(|error| format!("request {request} of a connection: {error}"))?;
            door.check(&answer, &key)?;
            pace.one_more();
            if answer.header("connection") == Some("close") || !pace.goes_on() {
                break;
            }
        }
    }
    Ok(())
}

async fn connect_each(door: Door, n: u32, pace: Pace) -> Result<(), String> {
    for request in 0.. {
        if !pace.goes_on() {
            break;
        }
        let key = format!("each-{n}-{request}");
        let mut client = Client::over(door.connect("http/1.1").await?);
        let answer = client.exchange(&get_request("/", &[("x-session-id", &key)])).await;
        door.check(&answer.map_err(|error| format!("request {request}: {error}"))?, &key)?;
        pace.one_more();
    }
    Ok(())
}

/// Keeps its connection until it is told to go away. What was sent before that is answered.
async fn stream(door: Door, n: u32, pace: Pace) -> Result<(), String> {
    while pace.goes_on() {
        let client = H2Client::over(door.connect("h2").await?).await;
        for round in 0.. {
            let keys = (0..4).map(|stream| format!("stream-{n}-{round}-{stream}")).collect::<Vec<_>>();
            let mut asked = Vec::new();
            for key in &keys {
                // Long answers have the client speak up in between: it makes room for more.
                let path = if round % 2 == 0 { "/" } else { "/bytes/200000" };
                let request = Request::get(format!("http://shop.example{path}"));
                let request = request.header("x-session-id", key).body(()).unwrap();
                // Not sent: the connection ends.
                let Ok(mut sender) = soon(client.sender.clone().ready()).await else { break };
                let Ok((response, _)) = sender.send_request(request, true) else { break };
                asked.push((key, response));
            }
            let whole = asked.len() == keys.len();
            let answers = join_all(asked.into_iter().map(async |(key, response)| {
                let answer = crate::clients::whole(soon(response).await?).await?;
                Ok::<_, h2::Error>((key, answer))
            }));
            for answered in answers.await {
                let (key, answer) = answered.map_err(|error| format!("round {round} of a connection: {error}"))?;
                door.check(&answer, key)?;
                pace.one_more();
            }
            if !whole || !pace.goes_on() {
                break;
            }
        }
        drop(client.sender);
        soon(client.connection).await.unwrap().map_err(|error| format!("the end of a connection: {error}"))?;
    }
    Ok(())
}

async fn talk(listen: SocketAddr, n: u32, pace: Pace) -> Result<(), String> {
    while pace.goes_on() {
        let mut stream = soon(TcpStream::connect(listen)).await.map_err(|error| format!("connecting: {error}"))?;
        for line in 0..20 {
            let said = format!("{n} {line}\n");
            soon(stream.write_all(said.as_bytes())).await.map_err(|error| format!("line {line}: {error}"))?;
            let mut heard = Vec::new();
            while heard.last() != Some(&b'\n') {
                let read = soon(stream.read_buf(&mut heard)).await.map_err(|error| format!("line {line}: {error}"))?;
                if read == 0 {
                    return Err(format!("cut off in line {line}"));
                }
            }
            let heard = String::from_utf8_lossy(&heard);
            if heard.split_once(':').is_none_or(|(_, echo)| echo != said) {
                return Err(format!("{heard:?} for {said:?}"));
            }
            pace.one_more();
        }
        soon(stream.shutdown()).await.map_err(|error| format!("ending: {error}"))?;
        soon(stream.read_to_end(&mut Vec::new())).await.map_err(|error| format!("the end: {error}"))?;
    }
    Ok(())
}

async fn publish(listen: SocketAddr, n: u32, pace: Pace) -> Result<(), String> {
    for session in 0.. {
        if !pace.goes_on() {
            break;
        }
        let id = format!("steady-{n}-{session}");
        let (client, mut events) = AsyncClient::new(MqttOptions::new(&id, listen.ip().to_string(), listen.port()), 10);
        let failed = |error: &dyn std::fmt::Display| format!("{id}: {error}");
        client.subscribe(&id, QoS::AtLeastOnce).await.map_err(|error| failed(&error))?;
        let (mut sent, mut received, mut acknowledged) = (0, 0, 0);
        loop {
            match soon(events.poll()).await.map_err(|error| failed(&error))? {
                Event::Incoming(Packet::SubAck(_)) => {}
                Event::Incoming(Packet::PubAck(_)) => acknowledged += 1,
                Event::Incoming(Packet::Publish(message)) if message.payload == received.to_string() => received += 1,
                Event::Incoming(Packet::Publish(message)) => return Err(failed(&format!("{message:?}"))),
                Event::Outgoing(Outgoing::Disconnect) => break,
                _ => continue,
            }
            if received != sent || acknowledged != sent {
                continue;
            }
            if sent > 0 {
                pace.one_more();
            }
            if sent == 10 {
                client.disconnect().await.map_err(|error| failed(&error))?;
                continue;
            }
            let publishing = client.publish(&id, QoS::AtLeastOnce, false, sent.to_string());
            publishing.await.map_err(|error| failed(&error))?;
            sent += 1;
        }
    }
    Ok(())
}
