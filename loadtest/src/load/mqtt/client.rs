//! A client: it connects, subscribes, publishes what is due, acknowledges what comes, and comes back when it must.

use std::{
    cell::RefCell,
    collections::{HashSet, VecDeque},
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::{Buf, BufMut};
use tokio::{
    sync::{Notify, Semaphore},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{
    MqttLoad, MqttVersion, Qos,
    board::Board,
    flights::{Flights, PKIDS, Stage},
    message::Form,
    packet::{self, Ack, Connect, Packet, Publish, Step, TOPICS, Welcome},
    wire::Wire,
};
use crate::load::{Endpoint, Failure, record::Arm};

/// Bytes waiting to be written, above which messages wait too.
const BACKLOG: usize = 256 * 1024;
/// Rest between a connection that failed and the next attempt: doubled each time.
const RESTS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

/// What the clients of a worker have in common.
pub(super) struct Common {
    pub(super) mqtt: Arc<MqttLoad>,
    pub(super) endpoint: Endpoint,
    /// Time for an answer, and for connecting with all that belongs to it.
    pub(super) timeout: Duration,
    /// When the first client of the run was to connect.
    pub(super) began: Instant,
    /// How many may be connecting at once; any number, when it is said how many a second.
    pub(super) permits: Option<Semaphore>,
    pub(super) board: RefCell<Board>,
    /// The run is over: clients leave.
    pub(super) done: CancellationToken,
    /// Where a broker says its label, if brokers do.
    pub(super) arm_topic: Option<String>,
}

/// A client of the broker under test.
pub(super) struct Client {
    common: Rc<Common>,
    /// Among all clients of the run.
    nth: usize,
    id: String,
    publishing: Option<Publishing>,
    group: Option<usize>,
    topics: Vec<String>,
    wake: Rc<Notify>,
    /// QoS 2: packet ids of messages that came and are not released.
    received: HashSet<u16>,
    /// The last arm it was connected to.
    arm: Arm,
    /// A broker keeps a session of this run for it.
    has_session: bool,
    /// It was there at least once.
    known: bool,
}

/// What a client has that publishes.
struct Publishing {
    lane: usize,
    form: Form,
    flights: Flights,
    /// Packet ids of what is to be sent again on this connection.
    again: VecDeque<u16>,
}

/// How a connection ended.
enum End {
    /// The run is over.
    Done,
    /// The client left, to come back.
    Left,
    Lost(Failure),
}

/// What is true for one connection.
struct Visit {
    welcome: Welcome,
    /// From TCP to CONNACK.
    took: Duration,
    /// SUBACKs to come, and whether the broker is yet to say its label.
    subacks: usize,
    nameless: bool,
    /// It may publish, and gets what is published for it.
    ready: bool,
    /// When it must be ready.
    deadline: Instant,
    /// Messages that may be unacknowledged.
    window: usize,
    /// Time without a packet after which it pings.
    ping_every: Option<Duration>,
    pinged: Option<Instant>,
    last_in: Instant,
    last_out: Instant,
    /// When it leaves, and since when it waits for what is under way.
    leave_at: Option<Instant>,
    leaving: Option<Instant>,
    /// When to look after all that again.
    look_at: Instant,
}

impl Client {
    /// Publisher `key` of `lane`, which subscribes for `group` if there are no subscribers.
    pub(super) fn publisher(common: &Rc<Common>, key: usize, lane: usize, group: Option<usize>, run: u32) -> Self {
        let mqtt = &common.mqtt;
        let topic = mqtt.topic(run, key);
        let form = Form::new(mqtt.version, mqtt.qos, &topic, key as u64, mqtt.size);
        let publishing = Publishing { lane, form, flights: Flights::default(), again: VecDeque::new() };
        let wake = common.board.borrow().wake_of_lane(lane);
        let topics = group.map(|_| topic).into_iter().collect();
        Self::new(common, key, format!("user-{key}"), Some(publishing), group, topics, wake)
    }

    /// Subscriber `key` for the publishers of `group`.
    pub(super) fn subscriber(common: &Rc<Common>, key: usize, group: usize, run: u32) -> Self {
        let mqtt = &common.mqtt;
        let topics = (key..mqtt.publishers).step_by(mqtt.subscribers).map(|publisher| mqtt.topic(run, publisher));
        let wake = common.board.borrow().wake_of_group(group);
        Self::new(common, mqtt.publishers + key, format!("sub-{key}"), None, Some(group), topics.collect(), wake)
    }

    fn new(
        common: &Rc<Common>,
        nth: usize,
        id: String,
        publishing: Option<Publishing>,
        group: Option<usize>,
        topics: Vec<String>,
        wake: Rc<Notify>,
    ) -> Self {
        Self {
            // First of all it learns where it is.
            topics: common.arm_topic.iter().cloned().chain(topics).collect(),
            common: Rc::clone(common),
            nth,
            id,
            publishing,
            group,
            wake,
            received: HashSet::new(),
            arm: Arm::UNKNOWN,
            has_session: false,
            known: false,
        }
    }

    /// Connects again and again, until the run is over.
    pub(super) async fn run(mut self) {
        let common = Rc::clone(&self.common);
        let done = &common.done;
        let begin = common.mqtt.connect_rate.map(|rate| common.began + Duration::from_secs_f64(self.nth as f64 / rate));
        if let Some(begin) = begin {
            done.run_until_cancelled(time::sleep_until(begin)).await;
        }
        let (mut due, mut rest) = (begin, Duration::ZERO);
        while !done.is_cancelled() {
            let end = match done.run_until_cancelled(self.enter(due.take())).await {
                None => End::Done,
                Some(Err(failure)) => {
                    common.board.borrow().not_connected(failure);
                    End::Lost(failure)
                }
                Some(Ok((mut wire, mut visit))) => {
                    let end = self.stay(&mut wire, &mut visit).await;
                    let end = end.unwrap_or_else(End::Lost);
                    match &end {
                        End::Lost(failure) if visit.ready => {
                            rest = Duration::ZERO;
                            common.board.borrow().disconnected(*failure);
                        }
                        End::Lost(failure) => common.board.borrow().not_connected(*failure),
                        End::Left => wire.leave(common.mqtt.version, false).await,
                        End::Done => {
                            wire.leave(common.mqtt.version, true).await;
                            self.has_session &= common.mqtt.version == MqttVersion::V311;
                        }
                    }
                    end
                }
            };
            self.is_gone(&end);
            if let End::Lost(_) = end {
                done.run_until_cancelled(time::sleep(rest.mul_f64(1.0 + fastrand::f64()))).await;
                rest = (rest * 2).clamp(RESTS[0], RESTS[1]);
            }
        }
        if self.has_session {
            // What it left at the broker would wait there for ever.
            let _ = time::timeout(common.timeout, self.forget()).await;
        }
    }

    /// Connects. `due`: when it should have been; latency counts from then. Errors: no connection, or it is declined.
    async fn enter(&mut self, due: Option<Instant>) -> Result<(Wire, Visit), Failure> {
        let common = Rc::clone(&self.common);
        let _permit = match &common.permits {
            Some(permits) => Some(permits.acquire().await.expect("permits are never closed")),
            None => None,
        };
        let since = due.unwrap_or_else(Instant::now);
        let deadline = Instant::now() + common.timeout;
        let entered = time::timeout_at(deadline, self.introduce()).await;
        let (wire, welcome) = entered.unwrap_or(Err(Failure::Timeout))?;
        let now = Instant::now();
        let visit = Visit {
            welcome,
            took: now - since,
            subacks: self.topics.len().div_ceil(TOPICS),
            nameless: common.arm_topic.is_some(),
            ready: false,
            deadline,
            window: usize::from(common.mqtt.inflight.get().min(welcome.receive_max)),
            // Well before the broker, which waits half as long again, loses patience.
            ping_every: match welcome.keep_alive.unwrap_or(common.mqtt.keep_alive) {
                0 => None,
                seconds => Some(Duration::from_secs(seconds.into()).mul_f64(0.75)),
            },
            pinged: None,
            last_in: now,
            last_out: now,
            leave_at: None,
            leaving: None,
            look_at: now,
        };
        Ok((wire, visit))
    }

    /// CONNECT and CONNACK; in a session of this run or, the first time, in one of its own.
    async fn introduce(&mut self) -> Result<(Wire, Welcome), Failure> {
        let Self { common, .. } = self;
        let MqttLoad { persistent, version, .. } = *common.mqtt;
        let first = !self.has_session;
        let clean = !persistent || (first && version == MqttVersion::V5);
        let (mut wire, mut welcome) = self.connect(clean, persistent).await?;
        if persistent && first && welcome.session_present {
            // Left over from another run. Version 3.1.1 forgets a session only in favour of one that it does not keep.
            wire.leave(version, true).await;
            self.forget().await?;
            (wire, welcome) = self.connect(false, true).await?;
        }
        self.has_session = persistent;
        Ok((wire, welcome))
    }

    /// Makes the broker forget the session.
    async fn forget(&self) -> Result<(), Failure> {
        let (wire, _) = self.connect(true, false).await?;
        wire.leave(self.common.mqtt.version, true).await;
        Ok(())
    }

    async fn connect(&self, clean: bool, keep: bool) -> Result<(Wire, Welcome), Failure> {
        let Common { mqtt, endpoint, .. } = &*self.common;
        let mut wire = Wire::new(endpoint.connect(self.nth, self.nth as u64).await?);
        let login = mqtt.login.as_ref().map(|login| (login.username.as_str(), login.password.as_str()));
        let connect = Connect { client_id: &self.id, clean, keep, keep_alive: mqtt.keep_alive, login };
        packet::connect(mqtt.version, &connect, &mut wire.out);
        let welcome = wire.welcome(mqtt.version).await?;
        let largest = self.publishing.as_ref().map_or(0, |publishing| publishing.form.len());
        let serves = welcome.max_qos >= mqtt.qos as u8 && welcome.max_packet as usize >= largest;
        if welcome.accepted && serves { Ok((wire, welcome)) } else { Err(Failure::Declined) }
    }

    /// Everything after CONNACK. Errors: the connection is over.
    async fn stay(&mut self, wire: &mut Wire, visit: &mut Visit) -> Result<End, Failure> {
        let common = Rc::clone(&self.common);
        let wake = Rc::clone(&self.wake);
        let mut done = pin!(common.done.cancelled());
        if !visit.welcome.session_present {
            self.received.clear();
        }
        let mut timer = pin!(time::sleep_until(visit.look_at));

        for (nth, topics) in self.topics.chunks(TOPICS).enumerate() {
            packet::subscribe(common.mqtt.version, PKIDS + 1 + nth as u16, topics, common.mqtt.qos, &mut wire.out);
        }
        // Packets may have come right behind the CONNACK.
        self.receive(wire, visit, visit.last_in)?;
        self.settle_in(visit, visit.last_in);
        loop {
            let now = Instant::now();
            self.publish(wire, visit, now);
            if now >= visit.look_at {
                if self.look(wire, visit, now)? {
                    return Ok(End::Left);
                }
                timer.as_mut().reset(visit.look_at);
            }
            tokio::select! {
                biased;
                () = &mut done => return Ok(End::Done),
                moved = wire.moves() => {
                    moved?;
                    let now = Instant::now();
                    visit.last_in = now;
                    self.receive(wire, visit, now)?;
                }
                // There is something to publish, or nothing to wait for any more.
                () = wake.notified() => {
                    if visit.leaving.is_some() {
                        visit.look_at = Instant::now();
                    }
                }
                () = &mut timer => {}
            }
        }
    }

    /// Once it is subscribed and knows where it is, it is there.
    fn settle_in(&mut self, visit: &mut Visit, now: Instant) {
        if visit.ready || visit.subacks > 0 || visit.nameless {
            return;
        }
        visit.ready = true;
        let mqtt = &self.common.mqtt;
        visit.leave_at = mqtt.reconnect_every.map(|every| {
            // The first stays are shorter, each by another part, so that clients do not leave all at once.
            let part = (self.nth + 1) as f64 / mqtt.clients() as f64;
            now + if self.known { every } else { every.mul_f64(part) }
        });
        visit.look_at = now;
        if let Some(publishing) = &mut self.publishing {
            publishing.again = publishing.flights.iter().map(|(pkid, _)| pkid).collect();
        }
        let mut board = self.common.board.borrow_mut();
        board.connected(self.arm, visit.took);
        board.arrives(self.publishing.as_ref().map(|publishing| publishing.lane), self.group, !self.known);
        self.known = true;
    }

    /// Understands what was read, and answers it.
    fn receive(&mut self, wire: &mut Wire, visit: &mut Visit, now: Instant) -> Result<(), Failure> {
        let common = Rc::clone(&self.common);
        let mut board = common.board.borrow_mut();
        board.roll(now);
        let largest = common.mqtt.largest_packet();
        let mut at = 0;
        while let Some((packet, length)) = packet::read(common.mqtt.version, &wire.read[at..], largest)? {
            match packet {
                Packet::Publish(Publish { qos, pkid, topic, payload }) => {
                    // QoS 2: what is sent again before it was released came already.
                    let first = qos != Qos::ExactlyOnce || self.received.insert(pkid);
                    if common.arm_topic.as_ref().is_some_and(|arm| arm.as_bytes() == topic) {
                        // At the end of a run it is cleared.
                        if !payload.is_empty() {
                            self.arm = board.arm(payload);
                            visit.nameless = false;
                        }
                    } else if first {
                        board.delivered(self.group, payload, self.arm, now);
                    }
                    match qos {
                        Qos::AtMostOnce => {}
                        Qos::AtLeastOnce => packet::answer(Step::Acknowledged, pkid, &mut wire.out),
                        Qos::ExactlyOnce => packet::answer(Step::Received, pkid, &mut wire.out),
                    }
                }
                Packet::Ack(Ack { step: Step::Release, pkid, .. }) => {
                    self.received.remove(&pkid);
                    packet::answer(Step::Complete, pkid, &mut wire.out);
                }
                Packet::Ack(ack) => {
                    if let Some(publishing) = &mut self.publishing {
                        publishing.acknowledged(ack, self.arm, &mut board, wire, now);
                    }
                }
                Packet::SubAck { granted: true } => visit.subacks = visit.subacks.saturating_sub(1),
                Packet::SubAck { granted: false } => return Err(Failure::Declined),
                Packet::Pong => {}
                Packet::Disconnect => return Err(Failure::Closed),
                Packet::ConnAck(_) => return Err(Failure::Malformed),
            }
            at += length;
        }
        drop(board);
        wire.read.advance(at);
        if !wire.out.is_empty() {
            visit.last_out = now;
        }
        self.settle_in(visit, now);
        Ok(())
    }

    /// Sends again what the last connection left open, then what is due.
    fn publish(&mut self, wire: &mut Wire, visit: &mut Visit, now: Instant) {
        let Some(Publishing { lane, form, flights, again }) = &mut self.publishing else { return };
        if !visit.ready {
            return;
        }
        let before = wire.out.len();
        let mut board = self.common.board.borrow_mut();
        while wire.out.len() < BACKLOG
            && flights.unacked().saturating_sub(again.len()) < visit.window
            && let Some(pkid) = again.pop_front()
        {
            match flights.get(pkid) {
                // A broker that has no session of ours has not seen it.
                Some(flight) if flight.stage == Stage::Published => {
                    let (id, due_us) = (board.id(flight.k), board.micros(flight.due));
                    form.write(id, due_us, pkid, visit.welcome.session_present, &mut wire.out);
                }
                Some(_) => packet::answer(Step::Release, pkid, &mut wire.out),
                None => {}
            }
        }
        let acked = self.common.mqtt.qos == Qos::AtMostOnce;
        while again.is_empty()
            && wire.out.len() < BACKLOG
            && (acked || flights.has_room(visit.window))
            && let Some(due) = board.take(*lane)
        {
            let pkid = if acked { 0 } else { flights.push(due.k, due.at, now) };
            board.sent(*lane, due, self.arm, now);
            form.write(board.id(due.k), board.micros(due.at), pkid, false, &mut wire.out);
        }
        board.sent_all(*lane);
        if wire.out.len() > before {
            visit.last_out = now;
        }
    }

    /// Looks after what goes by time: pings, overdue answers, leaving. True: it has nothing more to do here. Errors: the
    /// connection is dead.
    fn look(&mut self, wire: &mut Wire, visit: &mut Visit, now: Instant) -> Result<bool, Failure> {
        let common = Rc::clone(&self.common);
        let timeout = common.timeout;
        if !visit.ready && now >= visit.deadline {
            if visit.subacks > 0 {
                return Err(Failure::Timeout);
            }
            // A broker that was not given a label.
            (self.arm, visit.nameless) = (Arm::UNKNOWN, false);
            self.settle_in(visit, now);
        }
        visit.look_at = if visit.ready { now + timeout } else { visit.deadline };

        if let Some(every) = visit.ping_every {
            visit.pinged = visit.pinged.filter(|pinged| visit.last_in <= *pinged);
            if visit.pinged.is_none() && now >= visit.last_in.min(visit.last_out) + every {
                wire.out.put_slice(&packet::PING);
                (visit.pinged, visit.last_out) = (Some(now), now);
            }
            let next = match visit.pinged {
                Some(pinged) if now >= pinged + timeout => return Err(Failure::Timeout),
                Some(pinged) => pinged + timeout,
                None => visit.last_in.min(visit.last_out) + every,
            };
            visit.look_at = visit.look_at.min(next);
        }

        let mut board = common.board.borrow_mut();
        let lane = self.publishing.as_ref().map(|publishing| publishing.lane);
        if let Some(Publishing { lane, flights, .. }) = &self.publishing {
            flights.overdue(now, timeout).for_each(|flight| board.failed(*lane, flight.k, Failure::Timeout, now));
            if let Some(next) = flights.next_overdue(now, timeout) {
                visit.look_at = visit.look_at.min(next);
            }
            board.expire(*lane, now);
            board.write_off(*lane, now);
        }

        let Some(leave_at) = visit.leave_at.filter(|_| visit.ready && !board.is_closed()) else { return Ok(false) };
        if now < leave_at {
            visit.look_at = visit.look_at.min(leave_at);
            return Ok(false);
        }
        if common.mqtt.keeps_messages() {
            return Ok(true);
        }
        // Without a session that keeps it, what is under way would be lost by our leaving.
        let leaving = *visit.leaving.get_or_insert(now);
        board.departs(lane, self.group);
        visit.look_at = visit.look_at.min(leaving + timeout);
        Ok(board.is_quiet(lane, self.group) || now >= leaving + timeout)
    }

    /// The connection has ended, or could not be made.
    fn is_gone(&mut self, end: &End) {
        let common = Rc::clone(&self.common);
        let mut board = common.board.borrow_mut();
        let now = Instant::now();
        let failure = match end {
            End::Lost(failure) => Some(*failure),
            End::Done | End::Left => None,
        };
        let lane = self.publishing.as_ref().map(|publishing| publishing.lane);
        board.is_gone(lane, self.group, failure);
        if let Some(Publishing { lane, flights, .. }) = &mut self.publishing {
            if !common.mqtt.persistent {
                let failure = failure.unwrap_or(Failure::Timeout);
                flights.take().iter().for_each(|flight| board.failed(*lane, flight.k, failure, now));
            }
            flights.overdue(now, common.timeout).for_each(|flight| {
                board.failed(*lane, flight.k, failure.unwrap_or(Failure::Timeout), now);
            });
            board.expire(*lane, now);
        }
    }
}

impl Publishing {
    /// A step of a handshake came.
    fn acknowledged(&mut self, ack: Ack, arm: Arm, board: &mut Board, wire: &mut Wire, now: Instant) {
        let Ack { step, pkid, refused } = ack;
        if step == Step::Received && !refused {
            self.flights.released(pkid);
            // Also when the broker has forgotten that we answered.
            packet::answer(Step::Release, pkid, &mut wire.out);
            return;
        }
        let Some(flight) = self.flights.end(pkid) else { return };
        if refused {
            board.failed(self.lane, flight.k, Failure::Declined, now);
        } else {
            board.acked(self.lane, &flight, arm, now);
        }
    }
}
