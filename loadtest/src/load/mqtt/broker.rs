//! Brokers that can be reached past whatever stands before them: each is told its label, which clients then read from it,
//! and is watched by a witness that writes down what the broker took.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::{Buf, BufMut};
use tokio::{
    task::JoinHandle,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{
    MqttLoad, Qos, message,
    packet::{self, Ack, Connect, Packet, Step},
    wire::Wire,
};
use crate::{
    ledger::{Ledger, Owner, Page, WriteError, unix_micros},
    load::{Endpoint, Failure, LoadError},
};

/// Keep-alive of a witness, in seconds.
const KEEP_ALIVE: u16 = 60;
/// Packet ids of what a witness sends.
const LABEL: u16 = 1;
const SUBSCRIBE: u16 = 2;
const MARK: u16 = 3;
const CLEAR: u16 = 4;

/// A broker, reached directly.
#[derive(Clone, Debug)]
pub struct Broker {
    /// The name of the arm it is.
    pub label: String,
    /// Its address as given.
    pub address: String,
    pub endpoint: Endpoint,
}

/// The witnesses of a run, one at each broker.
pub(in crate::load) struct Witnesses {
    leave: CancellationToken,
    witnesses: Vec<JoinHandle<Result<(), String>>>,
    ledgers: Vec<Ledger>,
}

impl Witnesses {
    /// Sends a witness to each broker, and returns when each broker has its label. Errors: a broker cannot be reached, or
    /// will not have it; a ledger cannot be created.
    pub(in crate::load) async fn send(
        mqtt: &Arc<MqttLoad>,
        run: u32,
        timeout: Duration,
        ledger: Option<&Path>,
    ) -> Result<Self, LoadError> {
        let leave = CancellationToken::new();
        let (mut witnesses, mut ledgers) = (Vec::new(), Vec::new());
        for broker in &mqtt.brokers {
            let page = match ledger {
                Some(path) => {
                    let owner = Owner::Origin { label: broker.label.clone() };
                    let ledger = Ledger::create(&beside(path, &broker.label), &owner)?;
                    let page = ledger.page();
                    ledgers.push(ledger);
                    Some(page)
                }
                None => None,
            };
            let arriving = Witness::arrive(Arc::clone(mqtt), broker, run, page);
            let arrived = time::timeout(timeout, arriving).await.unwrap_or(Err(Failure::Timeout));
            let witness = arrived.map_err(|failure| LoadError::Broker {
                label: broker.label.clone(),
                address: broker.address.clone(),
                failure: failure.kind(),
            })?;
            let label = broker.label.clone();
            let attended = witness.attend(leave.clone(), timeout);
            witnesses.push(tokio::spawn(async move {
                attended.await.map_err(|failure| {
                    format!(
                        "the connection to broker {label} past the target was lost ({}): what it took after that is \
                         missing in its ledger",
                        failure.kind()
                    )
                })
            }));
        }
        Ok(Self { leave, witnesses, ledgers })
    }

    /// Calls the witnesses back, once each has seen all that its broker took, and returns what they missed. Errors: a
    /// ledger could not be written.
    pub(in crate::load) async fn call_back(self) -> Result<Vec<String>, WriteError> {
        self.leave.cancel();
        let mut missed = Vec::new();
        for witness in self.witnesses {
            missed.extend(witness.await.expect("a witness does not panic").err());
        }
        self.ledgers.into_iter().try_for_each(Ledger::close)?;
        Ok(missed)
    }
}

/// The file for what the broker of `label` took.
fn beside(ledger: &Path, label: &str) -> PathBuf {
    let mut name = OsString::from(ledger);
    name.push(".");
    name.push(label);
    name.into()
}

/// A client of one broker.
struct Witness {
    mqtt: Arc<MqttLoad>,
    wire: Wire,
    run: u32,
    page: Option<Page>,
    /// Acknowledgements that came.
    acked: Vec<u16>,
    /// Its own last message came back.
    marked: bool,
}

impl Witness {
    /// Connects, gives the broker its label, and subscribes if there is something to write on.
    async fn arrive(mqtt: Arc<MqttLoad>, broker: &Broker, run: u32, page: Option<Page>) -> Result<Self, Failure> {
        let mut wire = Wire::new(broker.endpoint.connect(0, 0).await?);
        let version = mqtt.version;
        let login = mqtt.login.as_ref().map(|login| (login.username.as_str(), login.password.as_str()));
        let client_id = format!("witness-{run:08x}");
        let connect = Connect { client_id: &client_id, clean: true, keep: false, keep_alive: KEEP_ALIVE, login };
        packet::connect(version, &connect, &mut wire.out);
        if !wire.welcome(version).await?.accepted {
            return Err(Failure::Declined);
        }
        let label = broker.label.as_bytes();
        packet::notice(version, &mqtt.arm_topic(run), label, (Qos::AtLeastOnce, LABEL), true, &mut wire.out);
        let recording = page.is_some();
        if recording {
            packet::subscribe(version, SUBSCRIBE, &[mqtt.all_topics(run)], mqtt.qos, &mut wire.out);
        }
        let mut witness = Self { mqtt, wire, run, page, acked: Vec::new(), marked: false };
        while !(witness.acked.contains(&LABEL) && (!recording || witness.acked.contains(&SUBSCRIBE))) {
            witness.wire.moves().await?;
            witness.receive()?;
        }
        Ok(witness)
    }

    /// Writes down what comes until it is to leave; then what is still on its way, for `timeout` at most, and clears the
    /// label. Errors: the connection was lost.
    async fn attend(mut self, leave: CancellationToken, timeout: Duration) -> Result<(), Failure> {
        let every = Duration::from_secs(KEEP_ALIVE.into()) / 2;
        let mut pings = time::interval_at(Instant::now() + every, every);
        loop {
            tokio::select! {
                () = leave.cancelled() => break,
                moved = self.wire.moves() => {
                    moved?;
                    self.receive()?;
                }
                _ = pings.tick() => self.wire.out.put_slice(&packet::PING),
            }
        }
        let (version, arm_topic) = (self.mqtt.version, self.mqtt.arm_topic(self.run));
        if self.page.is_some() {
            // A message of its own, sent like all others: what the broker took before comes before.
            let qos = self.mqtt.qos;
            let pkid = if qos == Qos::AtMostOnce { 0 } else { MARK };
            packet::notice(version, &self.mqtt.mark_topic(self.run), b"", (qos, pkid), false, &mut self.wire.out);
            self.until(timeout, |witness| witness.marked).await?;
        }
        packet::notice(version, &arm_topic, b"", (Qos::AtLeastOnce, CLEAR), true, &mut self.wire.out);
        self.until(timeout, |witness| witness.acked.contains(&CLEAR)).await?;
        self.wire.leave(version, true).await;
        Ok(())
    }

    async fn until(&mut self, timeout: Duration, enough: impl Fn(&Self) -> bool) -> Result<(), Failure> {
        let waiting = async {
            while !enough(self) {
                self.wire.moves().await?;
                self.receive()?;
            }
            Ok(())
        };
        time::timeout(timeout, waiting).await.unwrap_or(Err(Failure::Timeout))
    }

    fn receive(&mut self) -> Result<(), Failure> {
        let Self { mqtt, wire, run, page, acked, marked } = self;
        let mark = mqtt.mark_topic(*run);
        let mut at = 0;
        while let Some((packet, length)) = packet::read(mqtt.version, &wire.read[at..], mqtt.largest_packet())? {
            match packet {
                Packet::Publish(publish) => {
                    if publish.topic == mark.as_bytes() {
                        *marked = true;
                    } else if let Some(page) = page
                        && let Some(message) = message::read(publish.payload, mqtt.size)
                    {
                        page.origin(message.id, &format!("user-{}", message.key), false, unix_micros());
                    }
                    match publish.qos {
                        Qos::AtMostOnce => {}
                        Qos::AtLeastOnce => packet::answer(Step::Acknowledged, publish.pkid, &mut wire.out),
                        Qos::ExactlyOnce => packet::answer(Step::Received, publish.pkid, &mut wire.out),
                    }
                }
                Packet::Ack(Ack { step: Step::Release, pkid, .. }) => {
                    packet::answer(Step::Complete, pkid, &mut wire.out);
                }
                Packet::Ack(Ack { step: Step::Received, pkid, .. }) => {
                    packet::answer(Step::Release, pkid, &mut wire.out)
                }
                Packet::Ack(Ack { refused: true, .. }) | Packet::SubAck { granted: false } => {
                    return Err(Failure::Declined);
                }
                Packet::Ack(Ack { pkid, .. }) => acked.push(pkid),
                Packet::SubAck { granted: true } => acked.push(SUBSCRIBE),
                Packet::Pong => {}
                Packet::Disconnect => return Err(Failure::Closed),
                Packet::ConnAck(_) => return Err(Failure::Malformed),
            }
            at += length;
        }
        wire.read.advance(at);
        Ok(())
    }
}
