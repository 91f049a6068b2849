//! Devices that report once a second, and reconnect now and then, so that a change of route reaches them.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rumqttc::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, Outgoing, Packet, QoS};
use tokio::{sync::Notify, time};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Rest between a connection that failed and the next attempt.
const RETRY: Duration = Duration::from_secs(1);
/// Time for the DISCONNECT to leave and the broker to close.
const FAREWELL: Duration = Duration::from_secs(2);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Publishes waiting to be sent, for each device. When full, a message that is due is not sent, and counted as skipped.
const QUEUE: usize = 16;

/// MQTT 3.1.1 clients `device-0`, `device-1` and so on, with clean sessions, that publish to `devices/<id>/state` with
/// QoS 1.
#[derive(Clone, Debug)]
pub struct MqttTraffic {
    /// The broker, or what stands before it.
    pub target: SocketAddr,
    /// Number of clients.
    pub clients: usize,
    /// Time between two messages of a client. Must not be zero.
    pub publish_every: Duration,
    /// How long a client stays connected. The first connections are shorter, each by another part, so that clients do
    /// not come back all at once.
    pub reconnect_every: Duration,
}

/// What became of connections and messages, shared with the running traffic.
#[derive(Debug, Default)]
pub struct MqttCounts {
    connected: AtomicU64,
    refused: AtomicU64,
    errors: AtomicU64,
    published: AtomicU64,
    acknowledged: AtomicU64,
    skipped: AtomicU64,
}

impl MqttTraffic {
    /// Clients that publish every second and reconnect every 20 s.
    pub fn new(target: SocketAddr, clients: usize) -> Self {
        Self { target, clients, publish_every: Duration::from_secs(1), reconnect_every: Duration::from_secs(20) }
    }

    /// Runs all clients until `until` is cancelled; each then says DISCONNECT, within 2 s.
    pub async fn run(self, counts: Arc<MqttCounts>, until: CancellationToken) {
        let devices = TaskTracker::new();
        for nth in 0..self.clients {
            let (traffic, counts, until) = (self.clone(), Arc::clone(&counts), until.clone());
            devices.spawn(async move { traffic.device(nth, &counts, &until).await });
        }
        devices.close();
        devices.wait().await;
    }

    async fn device(&self, nth: usize, counts: &MqttCounts, until: &CancellationToken) {
        let id = format!("device-{nth}");
        let mut stay = self.reconnect_every.mul_f64((nth + 1) as f64 / self.clients as f64);
        while !until.is_cancelled() {
            if let Err(error) = self.session(&id, stay, counts, until).await {
                match error {
                    ConnectionError::ConnectionRefused(_) => counts.refused.fetch_add(1, Ordering::Relaxed),
                    _ => counts.errors.fetch_add(1, Ordering::Relaxed),
                };
                tracing::debug!(%error, client = id, "MQTT connection failed");
                until.run_until_cancelled(time::sleep(RETRY)).await;
            }
            stay = self.reconnect_every;
        }
    }

    /// One connection, from CONNECT to DISCONNECT.
    async fn session(
        &self,
        id: &str,
        stay: Duration,
        counts: &MqttCounts,
        until: &CancellationToken,
    ) -> Result<(), ConnectionError> {
        let mut options = MqttOptions::new(id, self.target.ip().to_string(), self.target.port());
        options.set_keep_alive(KEEP_ALIVE);
        let (client, events) = AsyncClient::new(options, QUEUE);
        let connected = Notify::new();
        // Two futures side by side, because polling rumqttc's event loop must not be broken off while it writes.
        tokio::select! {
            ended = drive(events, counts, &connected) => ended,
            () = self.report(id, client, stay, counts, &connected, until) => Ok(()),
        }
    }

    async fn report(
        &self,
        id: &str,
        client: AsyncClient,
        stay: Duration,
        counts: &MqttCounts,
        connected: &Notify,
        until: &CancellationToken,
    ) {
        if until.run_until_cancelled(connected.notified()).await.is_none() {
            return;
        }
        let topic = format!("devices/{id}/state");
        let mut due = time::interval(self.publish_every);
        let mut nth = 0_u64;
        let publish = async {
            loop {
                due.tick().await;
                let sent = client.try_publish(&topic, QoS::AtLeastOnce, false, format!("{id} {nth}"));
                let count = if sent.is_ok() { &counts.published } else { &counts.skipped };
                count.fetch_add(1, Ordering::Relaxed);
                nth += 1;
            }
        };
        until.run_until_cancelled(time::timeout(stay, publish)).await;
        // The event loop ends the session when the broker closes; a full queue means that nothing leaves any more.
        if client.try_disconnect().is_ok() {
            time::sleep(FAREWELL).await;
        }
    }
}

/// Moves packets until the connection ends: after our DISCONNECT, which is no error, or otherwise.
///
/// After DISCONNECT the broker closes the connection (MQTT 3.1.1, section 3.14.4), and we wait for it: rumqttd, when the
/// same client comes back before it has seen the old connection off, can take the new one down in its place.
async fn drive(mut events: EventLoop, counts: &MqttCounts, connected: &Notify) -> Result<(), ConnectionError> {
    let mut leaving = false;
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                counts.connected.fetch_add(1, Ordering::Relaxed);
                connected.notify_one();
            }
            Ok(Event::Incoming(Packet::PubAck(_))) => {
                counts.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Event::Outgoing(Outgoing::Disconnect)) => leaving = true,
            Ok(_) => {}
            Err(_) if leaving => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

impl MqttCounts {
    /// Connections a broker accepted.
    pub fn connected(&self) -> u64 {
        self.connected.load(Ordering::Relaxed)
    }

    /// Connections a broker refused in its CONNACK.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Connections that could not be made, or ended otherwise than by our DISCONNECT.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Messages handed to a connection.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// Messages a broker acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Messages not sent when due: 16 of the client's were waiting already.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }
}
