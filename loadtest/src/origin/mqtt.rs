//! A real MQTT broker, rumqttd, embedded: 3.1.1 and 5 on one port, sharing one space of topics.
//!
//! rumqttd's own `Broker` takes one port for each version and runs until the process ends. Its parts allow more: its
//! `Server` takes any [`Protocol`], so [`AnyVersion`] looks at the first packet of a connection and lets rumqttd's codec
//! for that version do the rest; and it is a future, so a runtime of our own can be made to drop it, with every
//! connection it spawned.
//!
//! rumqttd logs every client that leaves as an error: filter it out (`rumqttd=off`) where logs are read by people.

use std::{
    collections::VecDeque,
    error::Error as _,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::BytesMut;
use parking_lot::Mutex;
use rumqttd::{
    ConnectionSettings, LinkType, Router, RouterConfig, Server, ServerSettings,
    protocol::{Error as ProtocolError, Packet, Protocol, v4::V4, v5::V5},
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    sync::oneshot,
    time,
};
use tokio_util::sync::CancellationToken;

use super::ListenError;

/// Clients at once. rumqttd leaves a client beyond it without an answer.
const MAX_CONNECTIONS: usize = 10_000;
/// The largest packet, in bytes.
const MAX_PACKET: usize = 1024 * 1024;
/// Messages sent to one client and not yet acknowledged.
const MAX_IN_FLIGHT: usize = 200;
/// Time a client has for its CONNECT, in milliseconds.
const CONNECT_TIMEOUT_MS: u16 = 10_000;
/// Messages are kept for slow and returning subscribers in this many segments of this many bytes, for each filter
/// subscribed to. When full, the oldest segment is dropped.
const SEGMENTS: usize = 8;
const SEGMENT: usize = 1024 * 1024;

/// Client ids kept in [`MqttSeen::clients`]. When full, the oldest is dropped.
const CLIENTS_KEPT: usize = 10_000;

/// Time given to copies of the closed listener. Whoever answers later has taken the port.
const COPIES_GONE: Duration = Duration::from_secs(1);

/// Free ports tried when port 0 was asked for: another process may take a port between our look and rumqttd's bind.
const PORTS_TRIED: usize = 16;

/// A running MQTT broker. Dropping it stops it, without waiting. One idle thread of rumqttd's stays behind for each
/// broker: its router cannot be ended.
#[derive(Debug)]
pub struct MqttBroker {
    label: String,
    address: SocketAddr,
    seen: Arc<MqttSeen>,
    stop: CancellationToken,
    stopped: CancellationToken,
}

/// What a broker saw since it was started.
#[derive(Debug, Default)]
pub struct MqttSeen {
    connects: AtomicU64,
    open: AtomicU64,
    publishes: AtomicU64,
    clients: Mutex<VecDeque<String>>,
}

impl MqttBroker {
    /// Starts a broker that serves MQTT 3.1.1 and 5, without passwords.
    ///
    /// `label`: names its threads; MQTT has no place for it on the wire. `address`: port 0 picks a free one, see
    /// [`address`](Self::address). Errors: the address cannot be listened on, or no thread could be started.
    pub async fn start(label: impl Into<String>, address: SocketAddr) -> Result<Self, ListenError> {
        let label = label.into();
        let mut tries = PORTS_TRIED;
        loop {
            let failed = |source| ListenError { address, source };
            let concrete = concrete(address).await.map_err(failed)?;
            match Self::serve(&label, concrete).await {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && address.port() == 0 && tries > 1 => {
                    tries -= 1;
                }
                broker => return broker.map_err(failed),
            }
        }
    }

    /// Where it listens, the port filled in.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The label it was started with.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// What it saw so far.
    pub fn seen(&self) -> &Arc<MqttSeen> {
        &self.seen
    }

    /// Closes the listener and every connection, and returns once connecting is refused. Sessions and messages are
    /// gone.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.stopped.cancelled().await;
        // A program that is being started right now holds a copy of the listener until it execs.
        let _ = time::timeout(COPIES_GONE, async {
            while TcpStream::connect(self.address).await.is_ok() {
                time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }

    async fn serve(label: &str, address: SocketAddr) -> io::Result<Self> {
        let seen = Arc::new(MqttSeen::default());
        let stop = CancellationToken::new();
        let stopped = CancellationToken::new();
        let (ready, listening) = oneshot::channel();

        let (settings, protocol) = (settings(label, address), AnyVersion::new(Arc::clone(&seen)));
        let (until, at_end) = (stop.clone(), stopped.clone().drop_guard());
        thread::Builder::new().name(format!("mqtt-{label}")).spawn(move || {
            // Declared first, dropped last: by then the runtime, and with it every socket, is gone.
            let _at_end = at_end;
            run(settings, protocol, ready, &until);
        })?;

        listening.await.map_err(|_| io::Error::other("the broker's thread ended while starting"))??;
        Ok(Self { label: label.to_owned(), address, seen, stop, stopped })
    }
}

impl Drop for MqttBroker {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl MqttSeen {
    /// CONNECT packets received.
    pub fn connects(&self) -> u64 {
        self.connects.load(Ordering::Acquire)
    }

    /// Clients connected now.
    pub fn open_connections(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// PUBLISH packets received.
    pub fn publishes(&self) -> u64 {
        self.publishes.load(Ordering::Relaxed)
    }

    /// The client ids of the last 10 000 CONNECT packets, oldest first.
    pub fn clients(&self) -> Vec<String> {
        self.clients.lock().iter().cloned().collect()
    }

    fn connect(self: &Arc<Self>, client_id: &str) -> OpenConnection {
        let mut clients = self.clients.lock();
        if clients.len() == CLIENTS_KEPT {
            clients.pop_front();
        }
        clients.push_back(client_id.to_owned());
        drop(clients);
        self.open.fetch_add(1, Ordering::Relaxed);
        // Last, so that whoever waits for the count finds the client in the list.
        self.connects.fetch_add(1, Ordering::Release);
        OpenConnection(Arc::clone(self))
    }
}

/// Counts a client as connected while it lives.
struct OpenConnection(Arc<MqttSeen>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// `address` with a port that is free now, in place of port 0, which rumqttd would bind without telling which it got.
async fn concrete(address: SocketAddr) -> io::Result<SocketAddr> {
    if address.port() != 0 {
        return Ok(address);
    }
    TcpListener::bind(address).await?.local_addr()
}

fn settings(label: &str, address: SocketAddr) -> ServerSettings {
    ServerSettings {
        name: label.to_owned(),
        listen: address,
        tls: None,
        next_connection_delay_ms: 0,
        connections: ConnectionSettings {
            connection_timeout_ms: CONNECT_TIMEOUT_MS,
            max_payload_size: MAX_PACKET,
            max_inflight_count: MAX_IN_FLIGHT,
            auth: None,
            external_auth: None,
            dynamic_filters: false,
        },
    }
}

fn router() -> RouterConfig {
    RouterConfig {
        max_connections: MAX_CONNECTIONS,
        max_outgoing_packet_count: MAX_IN_FLIGHT as u64,
        max_segment_size: SEGMENT,
        max_segment_count: SEGMENTS,
        // rumqttd refuses a publish that no filter matches, or keeps a log of 200 KB for each topic: one for all.
        initialized_filters: Some(vec!["#".to_owned()]),
        ..RouterConfig::default()
    }
}

/// The broker's thread: rumqttd spawns its connections on the runtime that runs it, so dropping this one ends them.
fn run(
    settings: ServerSettings,
    protocol: AnyVersion,
    ready: oneshot::Sender<io::Result<()>>,
    until: &CancellationToken,
) {
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        // Nobody listens any more when the starter gave up.
        Err(error) => return drop(ready.send(Err(error))),
    };
    runtime.block_on(async {
        let mut server = Server::new(settings, Router::new(0, router()).spawn(), protocol);
        let mut ready = Some(ready);
        tokio::select! {
            // In this order: rumqttd binds in its first step, so when the second branch runs it is listening.
            biased;
            ended = server.start(LinkType::Remote) => {
                let error = ended.err().map_or_else(|| io::Error::other("the broker ended"), |error| {
                    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
                    let code = cause.and_then(io::Error::raw_os_error);
                    code.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
                });
                if let Some(ready) = ready.take() {
                    let _ = ready.send(Err(error));
                }
            }
            () = async {
                if let Some(ready) = ready.take() {
                    let _ = ready.send(Ok(()));
                }
                until.cancelled().await;
            } => {}
        }
    });
}

/// The codec of one connection: that of the version its CONNECT asks for.
struct AnyVersion {
    version: Option<Version>,
    seen: Arc<MqttSeen>,
    open: Option<OpenConnection>,
}

#[derive(Clone, Copy)]
enum Version {
    V4,
    V5,
}

impl AnyVersion {
    fn new(seen: Arc<MqttSeen>) -> Self {
        Self { version: None, seen, open: None }
    }
}

/// rumqttd clones the codec for each connection, which starts anew.
impl Clone for AnyVersion {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.seen))
    }
}

impl Protocol for AnyVersion {
    fn read_mut(&mut self, stream: &mut BytesMut, max_size: usize) -> Result<Packet, ProtocolError> {
        let version = match self.version {
            Some(version) => version,
            None => *self.version.insert(version(stream).ok_or(ProtocolError::InsufficientBytes(1))?),
        };
        let packet = match version {
            Version::V4 => V4.read_mut(stream, max_size),
            Version::V5 => V5.read_mut(stream, max_size),
        }?;
        match &packet {
            Packet::Connect(connect, ..) => self.open = Some(self.seen.connect(&connect.client_id)),
            Packet::Publish(..) => {
                self.seen.publishes.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
        Ok(packet)
    }

    fn write(&self, packet: Packet, buffer: &mut BytesMut) -> Result<usize, ProtocolError> {
        match self.version {
            Some(Version::V5) => V5.write(packet, buffer),
            Some(Version::V4) | None => V4.write(packet, buffer),
        }
    }
}

/// Which codec reads a connection that starts with `bytes`; `None` while there are too few to say. Whatever is not a
/// CONNECT of version 5 goes to the codec for 3.1.1, which refuses what it does not know.
fn version(bytes: &[u8]) -> Option<Version> {
    /// Fixed header (MQTT 5.0, section 2.1.1): packet type and flags, then at most four bytes of length, of which all
    /// but the last have the top bit set.
    const CONNECT: u8 = 0x10;
    /// Variable header (MQTT 5.0, section 3.1.2): the protocol's name with its length, then its version.
    const MQTT_5: &[u8] = b"\x00\x04MQTT\x05";

    let (&first, rest) = bytes.split_first()?;
    let last = rest.iter().take(4).position(|byte| byte & 0x80 == 0);
    let header = match last {
        _ if first != CONNECT => return Some(Version::V4),
        Some(last) => &rest[last + 1..],
        None if rest.len() >= 4 => return Some(Version::V4),
        None => return None,
    };
    match header.get(..MQTT_5.len()) {
        Some(start) if start == MQTT_5 => Some(Version::V5),
        Some(_) => Some(Version::V4),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_the_version() {
        fn check(bytes: &[u8], expected: &str) {
            let found = match version(bytes) {
                Some(Version::V4) => "4",
                Some(Version::V5) => "5",
                None => "more",
            };
            assert_eq!(found, expected, "{bytes:?}");
        }
        check(b"", "more");
        check(b"\x10", "more");
        check(b"\x10\x10\x00\x04MQTT", "more");
        check(b"\x10\x10\x00\x04MQTT\x05", "5");
        check(b"\x10\x90\x01\x00\x04MQTT\x05", "5");
        check(b"\x10\x10\x00\x04MQTT\x04", "4");
        check(b"\x10\x10\x00\x06MQIsdp\x03", "4");
        check(b"\x10\xff\xff\xff\xff", "4");
        check(b"GET / HTTP/1.1", "4");
    }
}
