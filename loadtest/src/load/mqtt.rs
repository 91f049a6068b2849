//! Messages published, acknowledged, and delivered.
//!
//! A worker has clients, each a task with a connection ([`client`], over [`wire`], in [`packet`]s). They share a
//! [`board`], which hands out what is due to the publishers in turn and keeps what became of it ([`fates`]): publishers and
//! the subscribers of their topics are at the same worker, so nothing is shared between workers. All clients connect and
//! subscribe before the schedule starts. What brokers took can be witnessed past the target ([`broker`]).

use std::{cell::RefCell, fmt, num::NonZeroU16, rc::Rc, sync::Arc, time::Duration};

use mqttbytes::QoS;
use tokio::{
    sync::Semaphore,
    task::{self, JoinHandle},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use self::{
    board::{Board, Place},
    client::{Client, Common},
};
use super::{Load, Pace, Shared, pace::Pacer};

mod board;
mod broker;
mod client;
mod fates;
mod flights;
mod message;
mod packet;
mod wire;

pub use self::broker::Broker;
pub(super) use self::broker::Witnesses;

/// Clients of a worker that connect at once, where no rate was asked for.
const CONNECTING: usize = 64;
/// What a packet may have beside its payload, in bytes: a topic and properties.
const BESIDES: usize = 128 * 1024;
/// Messages that come due in one go before clients have their turn.
const AT_ONCE: u32 = 32;

/// Messages from publishers `user-0`, `user-1` and so on, each to a topic of its own.
#[derive(Clone, Debug)]
pub struct MqttLoad {
    pub version: MqttVersion,
    /// Of publishing and of subscribing.
    pub qos: Qos,
    /// Above 0.
    pub publishers: usize,
    /// Clients `sub-0`, `sub-1` and so on, which share the publishers' topics out among themselves; not more than
    /// publishers. When 0 each publisher subscribes to its own topic.
    pub subscribers: usize,
    /// Length of a payload, in bytes; more when its id, key and time need it.
    pub size: usize,
    /// Whether brokers keep a client's session while it is away. It comes back to it and finishes what was under way.
    pub persistent: bool,
    /// Most unacknowledged messages of a publisher; at most 60 000. In a closed loop: most messages on their way from it.
    pub inflight: NonZeroU16,
    /// Connections a second at the start; 64 at once in each thread when none.
    pub connect_rate: Option<f64>,
    /// Seconds; 0 is never.
    pub keep_alive: u16,
    pub login: Option<Login>,
    /// What all topics start with: no wildcards.
    pub topic_prefix: String,
    /// How long clients stay connected before they leave and come back; to the end when none.
    pub reconnect_every: Option<Duration>,
    /// Brokers that can be reached past the target. With a ledger each has a witness, whose ledger is beside it.
    pub brokers: Vec<Broker>,
}

/// Version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MqttVersion {
    V311,
    V5,
}

/// Quality of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    AtMostOnce = 0,
    AtLeastOnce = 1,
    ExactlyOnce = 2,
}

impl TryFrom<u8> for Qos {
    type Error = String;

    /// Errors, with the cure: not 0, 1 or 2.
    fn try_from(qos: u8) -> Result<Self, String> {
        match qos {
            0 => Ok(Self::AtMostOnce),
            1 => Ok(Self::AtLeastOnce),
            2 => Ok(Self::ExactlyOnce),
            _ => Err(format!("QoS {qos}; give 0, 1 or 2")),
        }
    }
}

impl From<Qos> for QoS {
    fn from(qos: Qos) -> Self {
        match qos {
            Qos::AtMostOnce => Self::AtMostOnce,
            Qos::AtLeastOnce => Self::AtLeastOnce,
            Qos::ExactlyOnce => Self::ExactlyOnce,
        }
    }
}

/// Who clients say they are.
#[derive(Clone)]
pub struct Login {
    pub username: String,
    /// Not sent when empty.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

impl MqttLoad {
    /// All clients of a run.
    pub fn clients(&self) -> usize {
        self.publishers + self.subscribers
    }

    /// Whether a broker keeps messages for a subscriber that is away: those of QoS 0 it need not keep.
    fn keeps_messages(&self) -> bool {
        self.persistent && self.qos != Qos::AtMostOnce
    }

    /// The largest packet to expect, in bytes.
    fn largest_packet(&self) -> usize {
        self.size + BESIDES
    }

    fn topic(&self, run: u32, publisher: usize) -> String {
        format!("{}/{run:08x}/{publisher}", self.topic_prefix)
    }

    fn arm_topic(&self, run: u32) -> String {
        format!("{}/{run:08x}/arm", self.topic_prefix)
    }

    fn mark_topic(&self, run: u32) -> String {
        format!("{}/{run:08x}/mark", self.topic_prefix)
    }

    fn all_topics(&self, run: u32) -> String {
        format!("{}/{run:08x}/+", self.topic_prefix)
    }
}

/// The clients of one worker.
pub(super) struct Crew {
    common: Rc<Common>,
    clients: Vec<JoinHandle<()>>,
}

impl Crew {
    /// Connects the clients of `worker`. Returns when all are there, when none was added for as long as an answer may take,
    /// or when the run is stopped.
    pub(super) async fn assemble(
        mqtt: &Arc<MqttLoad>,
        load: &Load,
        worker: usize,
        run: u32,
        recorder: &Shared,
        stopped: &CancellationToken,
    ) -> Self {
        let place = Place::new(mqtt, worker, load.workers);
        let common = Rc::new(Common {
            endpoint: load.endpoint.clone(),
            timeout: load.timeout,
            began: Instant::now(),
            permits: mqtt.connect_rate.is_none().then(|| Semaphore::new(CONNECTING)),
            board: RefCell::new(Board::new(mqtt, place, load.timeout, recorder)),
            done: CancellationToken::new(),
            arm_topic: (!mqtt.brokers.is_empty()).then(|| mqtt.arm_topic(run)),
            mqtt: Arc::clone(mqtt),
        });
        let mut clients = Vec::new();
        if mqtt.subscribers > 0 {
            let groups = place.groups().enumerate();
            clients.extend(groups.map(|(group, key)| Client::subscriber(&common, key, group, run)));
        }
        clients.extend(place.publishers().enumerate().map(|(lane, key)| {
            let group = (mqtt.subscribers == 0).then_some(lane);
            Client::publisher(&common, key, lane, group, run)
        }));
        let expected = clients.len();
        let clients = clients.into_iter().map(|client| task::spawn_local(client.run())).collect();
        let crew = Self { common, clients };

        let last =
            mqtt.connect_rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(mqtt.clients() as f64 / rate));
        let all_there = async {
            let mut arrived = 0;
            let mut patience = crew.common.began + last + load.timeout;
            while arrived < expected && time::timeout_at(patience, crew.changed()).await.is_ok() {
                let now = crew.common.board.borrow().arrived();
                if now > arrived {
                    patience = patience.max(Instant::now() + load.timeout);
                }
                arrived = now;
            }
        };
        stopped.run_until_cancelled(all_there).await;
        crew
    }

    /// Has messages published when they are due, from `start` on, and ends with the account complete.
    pub(super) fn play(
        self,
        start: Instant,
        load: &Load,
        pacer: &Rc<Pacer>,
        stopped: &CancellationToken,
    ) -> JoinHandle<()> {
        let board = &self.common.board;
        board.borrow_mut().play(start, &load.pace, pacer);
        let (pace, pacer, stopped) = (load.pace.clone(), Rc::clone(pacer), stopped.clone());
        task::spawn_local(async move {
            match pace {
                Pace::Open(_) => self.hand_out(&pacer).await,
                Pace::Max(duration) => {
                    stopped.run_until_cancelled(time::sleep_until(start + duration)).await;
                }
            }
            let board = || self.common.board.borrow_mut();
            stopped.run_until_cancelled(self.until(|(waiting, _)| waiting == 0)).await;
            board().close();
            // Who needs longer is not waited for.
            let _ = time::timeout(self.common.timeout, self.until(|(_, open)| open == 0)).await;
            let left = board().settle_all(Instant::now());
            pacer.give_back(left);
            self.common.done.cancel();
            for client in self.clients {
                let _ = client.await;
            }
        })
    }

    /// Hands out messages as they come due.
    async fn hand_out(&self, pacer: &Pacer) {
        let mut at_once = 0;
        while let Some(due) = pacer.next().await {
            self.common.board.borrow_mut().comes_due();
            at_once = if due.awaited { 0 } else { at_once + 1 };
            if at_once == AT_ONCE {
                at_once = 0;
                task::yield_now().await;
            }
        }
    }

    /// Waits until what is pending is as `enough` wants it.
    async fn until(&self, enough: impl Fn((u64, u64)) -> bool) {
        while !enough(self.common.board.borrow().pending()) {
            self.changed().await;
        }
    }

    async fn changed(&self) {
        let changed = Rc::clone(&self.common.board.borrow().changed);
        changed.notified().await;
    }
}
