//! What the clients of one worker share: whose turn it is, what became of each message, who is there.
//!
//! It lives on one thread and is never borrowed across an `.await`.

use std::{rc::Rc, sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::{sync::Notify, time::Instant};

use super::{
    MqttLoad, Qos,
    fates::{Acked, Delivery, Fates, Sent},
    flights::Flight,
    message,
};
use crate::{
    ledger::Id,
    load::{
        Failure, Pace, Shared,
        pace::Pacer,
        record::{Answer, Arm},
    },
    schedule::Schedule,
};

/// Who is whose. Publisher `i` belongs to group `i mod groups`, for which one client subscribes; without subscribers of
/// their own publishers are groups of one. Group `j` is at worker `j mod workers` with all its clients.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) worker: usize,
    pub(super) workers: usize,
    publishers: usize,
    groups: usize,
    groups_here: usize,
}

impl Place {
    pub(super) fn new(mqtt: &MqttLoad, worker: usize, workers: usize) -> Self {
        let groups = if mqtt.subscribers == 0 { mqtt.publishers } else { mqtt.subscribers };
        let groups_here = (worker..groups).step_by(workers).count();
        Self { worker, workers, publishers: mqtt.publishers, groups, groups_here }
    }

    /// The groups at this worker, by their number in the run.
    pub(super) fn groups(self) -> impl Iterator<Item = usize> {
        (self.worker..self.groups).step_by(self.workers)
    }

    /// The publishers at this worker, by their number in the run, in the order of lanes.
    pub(super) fn publishers(self) -> impl Iterator<Item = usize> {
        (0..self.publishers).filter(move |publisher| publisher % self.groups % self.workers == self.worker)
    }

    /// The lane of a publisher, if it is at this worker.
    fn lane(self, key: u64) -> Option<usize> {
        let publisher = usize::try_from(key).ok().filter(|publisher| *publisher < self.publishers)?;
        let (row, group) = (publisher / self.groups, publisher % self.groups);
        (group % self.workers == self.worker).then(|| row * self.groups_here + group / self.workers)
    }
}

/// Whose turn it is, and what became of it all.
pub(super) struct Board {
    place: Place,
    run: u32,
    qos: Qos,
    size: usize,
    timeout: Duration,
    inflight: usize,
    /// Whether brokers keep messages for a subscriber that is away.
    kept: bool,
    recorder: Shared,
    fates: Fates,
    lanes: Vec<Lane>,
    groups: Vec<Group>,
    play: Option<Play>,
    /// Open loop: messages whose time has come, and those of them that wait.
    due: u32,
    waiting: u64,
    /// Closed loop: messages taken.
    taken: u32,
    /// Nothing is sent any more.
    closed: bool,
    /// Clients that were there at least once.
    arrived: usize,
    /// Told when no message waits or when none is open, and when a client arrives.
    pub(super) changed: Rc<Notify>,
}

/// A publisher.
struct Lane {
    key: u64,
    group: usize,
    /// Open loop: its next message.
    next: u32,
    /// Messages sent whose fate is open, and how many of them are not waited for any more.
    open: u32,
    adrift: u32,
    last_sent: Option<Instant>,
    /// Its last message that was delivered.
    delivered: Option<u32>,
    /// Its client has no connection, or is about to leave it.
    away: bool,
    /// Why its client has no connection.
    down: Option<Failure>,
    /// Messages wait for something else than their time: that they leave late is not our fault.
    blocked: bool,
    wake: Rc<Notify>,
}

/// What one client subscribes to.
#[derive(Default)]
struct Group {
    lanes: Vec<usize>,
    subscribed: bool,
    down: Option<Failure>,
    wake: Rc<Notify>,
}

/// The part of a run in which messages are sent.
struct Play {
    start: Instant,
    pacer: Rc<Pacer>,
    schedule: Option<Arc<Schedule>>,
}

/// A message that may leave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    pub(super) k: u32,
    pub(super) at: Instant,
}

impl Lane {
    fn new(key: u64, group: usize, first: u32) -> Self {
        Self {
            key,
            group,
            next: first,
            open: 0,
            adrift: 0,
            last_sent: None,
            delivered: None,
            away: true,
            down: None,
            blocked: true,
            wake: Rc::default(),
        }
    }
}

impl Board {
    pub(super) fn new(mqtt: &MqttLoad, place: Place, timeout: Duration, recorder: &Shared) -> Self {
        let mut groups: Vec<Group> = place.groups().map(|_| Group::default()).collect();
        let lanes = place.publishers().enumerate().map(|(nth, publisher)| {
            let nth_group = publisher % place.groups / place.workers;
            let lane = Lane::new(publisher as u64, nth_group, nth as u32);
            let group = &mut groups[nth_group];
            group.lanes.push(nth);
            if mqtt.subscribers == 0 {
                // One client for both.
                group.wake = Rc::clone(&lane.wake);
            }
            lane
        });
        let lanes = lanes.collect();
        Self {
            place,
            run: recorder.borrow().id(0).run(),
            qos: mqtt.qos,
            size: mqtt.size,
            timeout,
            inflight: mqtt.inflight.get().into(),
            kept: mqtt.keeps_messages(),
            recorder: Shared::clone(recorder),
            fates: Fates::default(),
            lanes,
            groups,
            play: None,
            due: 0,
            waiting: 0,
            taken: 0,
            closed: false,
            arrived: 0,
            changed: Rc::default(),
        }
    }

    /// From now on messages are sent.
    pub(super) fn play(&mut self, start: Instant, pace: &Pace, pacer: &Rc<Pacer>) {
        let schedule = match pace {
            Pace::Open(schedule) => Some(Arc::clone(schedule)),
            Pace::Max(_) => None,
        };
        self.play = Some(Play { start, pacer: Rc::clone(pacer), schedule });
        self.lanes.iter().for_each(|lane| lane.wake.notify_one());
    }

    /// The time of the next message has come.
    pub(super) fn comes_due(&mut self) {
        let lane = self.due as usize % self.lanes.len();
        self.due += 1;
        self.waiting += 1;
        self.lanes[lane].wake.notify_one();
    }

    /// The next message of `lane`, if it may leave now.
    pub(super) fn take(&mut self, lane: usize) -> Option<Due> {
        let at = &self.lanes[lane];
        if self.closed || at.away || !self.groups[at.group].subscribed {
            return None;
        }
        if self.is_open_loop() {
            let due = self.peek(lane)?;
            self.advance(lane);
            return Some(due);
        }
        let under_way = at.open.saturating_sub(at.adrift) as usize;
        if under_way >= self.inflight { None } else { self.draw() }
    }

    /// Closed loop: the next message, whoever takes it.
    fn draw(&mut self) -> Option<Due> {
        let due = self.play.as_ref()?.pacer.next().now_or_never().flatten()?;
        self.taken += 1;
        Some(Due { k: self.taken - 1, at: due.at })
    }

    /// Open loop: the first message of `lane` that waits.
    fn peek(&self, lane: usize) -> Option<Due> {
        let play = self.play.as_ref()?;
        let k = Some(self.lanes[lane].next).filter(|k| *k < self.due)?;
        let since = play.schedule.as_ref()?.due(self.number(k)).expect("what came due is in the schedule");
        Some(Due { k, at: play.start + since })
    }

    fn advance(&mut self, lane: usize) {
        self.lanes[lane].next += self.lanes.len() as u32;
        self.waiting -= 1;
        if self.waiting == 0 {
            self.changed.notify_one();
        }
    }

    /// A message that was taken leaves on a connection to `arm`.
    pub(super) fn sent(&mut self, lane: usize, due: Due, arm: Arm, now: Instant) {
        let at_us = self.micros(now);
        let open_loop = self.is_open_loop();
        let at = &mut self.lanes[lane];
        at.open += 1;
        at.last_sent = Some(now);
        let late = (open_loop && !at.blocked).then(|| now.saturating_duration_since(due.at));
        self.recorder.borrow_mut().sent(now, late);
        self.fates.sent(due.k, Sent { at_us, lane: lane as u32, arm }, self.qos == Qos::AtMostOnce);
    }

    /// `lane` has sent what it could: what waits now does so for want of room, of a connection or of a subscriber.
    pub(super) fn sent_all(&mut self, lane: usize) {
        self.lanes[lane].blocked = self.peek(lane).is_some();
    }

    /// A message was acknowledged by `arm`.
    pub(super) fn acked(&mut self, lane: usize, flight: &Flight, arm: Arm, now: Instant) {
        let acked = self.fates.acked(flight.k, arm);
        if acked != Acked::Late {
            self.recorder.borrow_mut().latency("ack", arm, now.saturating_duration_since(flight.due));
        }
        if let Acked::Answered(sent) = acked {
            self.answered(flight.k, lane, Sent { arm, ..sent }, now);
        }
    }

    /// A message will not be answered.
    pub(super) fn failed(&mut self, lane: usize, k: u32, failure: Failure, now: Instant) {
        if let Some(sent) = self.fates.failed(k) {
            let since = self.since(sent.at_us, now);
            let mut recorder = self.recorder.borrow_mut();
            recorder.failed(failure);
            recorder.entry(self.number(k), self.lanes[lane].key, failure.kind(), Arm::UNKNOWN, since);
            drop(recorder);
            self.settled(lane);
        }
    }

    /// `arm` delivered a payload to the client that subscribes for `group`.
    pub(super) fn delivered(&mut self, group: Option<usize>, payload: &[u8], arm: Arm, now: Instant) {
        let Some((k, lane, due_us)) = self.understand(group, payload) else { return self.stray() };
        let key = self.lanes[lane].key;
        let since = self.since(due_us, now);
        match self.fates.delivered(k, lane as u32) {
            Delivery::Stray => self.stray(),
            Delivery::Late => {}
            Delivery::Again => {
                let mut recorder = self.recorder.borrow_mut();
                recorder.account().answered_twice += 1;
                recorder.entry(self.number(k), key, "again", arm, since);
            }
            first @ (Delivery::Awaited | Delivery::Answered(_)) => {
                let delivered = &mut self.lanes[lane].delivered;
                let behind = delivered.is_some_and(|last| k < last);
                *delivered = (*delivered).max(Some(k));
                let mut recorder = self.recorder.borrow_mut();
                recorder.latency("delivery", arm, since);
                recorder.account().out_of_order += u64::from(behind);
                drop(recorder);
                if let Delivery::Answered(sent) = first {
                    self.answered(k, lane, sent, now);
                }
            }
        }
    }

    /// The sequence, the lane and the time of a message that may have been sent to `group`.
    fn understand(&self, group: Option<usize>, payload: &[u8]) -> Option<(u32, usize, u64)> {
        let message::Message { id, key, due_us } = message::read(payload, self.size)?;
        let lane = self.place.lane(key).filter(|lane| Some(self.lanes[*lane].group) == group)?;
        let behind = id.number().checked_sub(self.place.worker as u32)?;
        let ours = id.run() == self.run && behind.is_multiple_of(self.place.workers as u32);
        ours.then_some((behind / self.place.workers as u32, lane, due_us))
    }

    /// Something was delivered that is no message of ours, or not for that subscriber.
    fn stray(&self) {
        self.recorder.borrow_mut().account().answered_twice += 1;
    }

    fn answered(&mut self, k: u32, lane: usize, sent: Sent, now: Instant) {
        let key = self.lanes[lane].key;
        let since = self.since(sent.at_us, now);
        let mut recorder = self.recorder.borrow_mut();
        recorder.answered(key, Answer { arm: sent.arm, status: 0, failure: false, surplus: 0 });
        recorder.entry(self.number(k), key, "ok", sent.arm, since);
        drop(recorder);
        self.settled(lane);
    }

    /// The fate of a message is known.
    fn settled(&mut self, lane: usize) {
        let open_loop = self.is_open_loop();
        let at = &mut self.lanes[lane];
        at.open -= 1;
        at.adrift = at.adrift.min(at.open);
        let group = &self.groups[at.group];
        // Closed loop: there is room for the next. And who wants to leave may have waited for this.
        if !open_loop || at.away {
            at.wake.notify_one();
        }
        if !group.subscribed {
            group.wake.notify_one();
        }
        if self.fates.open() == 0 {
            self.changed.notify_one();
        }
    }

    /// A client has a connection over which it may publish for `lane` and is subscribed for `group`.
    pub(super) fn arrives(&mut self, lane: Option<usize>, group: Option<usize>, first: bool) {
        if let Some(lane) = lane {
            let lane = &mut self.lanes[lane];
            (lane.away, lane.down) = (false, None);
            lane.wake.notify_one();
        }
        if let Some(group) = group {
            let group = &mut self.groups[group];
            (group.subscribed, group.down) = (true, None);
            group.lanes.iter().for_each(|lane| self.lanes[*lane].wake.notify_one());
        }
        if first {
            self.arrived += 1;
            self.changed.notify_one();
        }
    }

    /// A client is about to leave: nothing is sent by it or, unless brokers keep it, to it.
    pub(super) fn departs(&mut self, lane: Option<usize>, group: Option<usize>) {
        if let Some(lane) = lane {
            let lane = &mut self.lanes[lane];
            (lane.away, lane.blocked) = (true, true);
        }
        if let Some(group) = group.filter(|_| !self.kept) {
            self.groups[group].subscribed = false;
            for lane in &self.groups[group].lanes {
                self.lanes[*lane].blocked = true;
            }
        }
    }

    /// A client's connection is gone, and `why` there is none. What was on its way to it will not come, unless brokers
    /// keep it.
    pub(super) fn is_gone(&mut self, lane: Option<usize>, group: Option<usize>, why: Option<Failure>) {
        self.departs(lane, group);
        if let Some(lane) = lane {
            self.lanes[lane].down = why;
        }
        if let Some(group) = group {
            self.groups[group].down = why;
            if !self.kept {
                for lane in &self.groups[group].lanes {
                    self.lanes[*lane].adrift = self.lanes[*lane].open;
                }
            }
        }
    }

    /// Whether nothing is on its way from `lane` or to `group`.
    pub(super) fn is_quiet(&self, lane: Option<usize>, group: Option<usize>) -> bool {
        let to_group = group.map_or(&[][..], |group| &self.groups[group].lanes);
        to_group.iter().copied().chain(lane).all(|lane| self.lanes[lane].open <= self.lanes[lane].adrift)
    }

    /// What `lane` has sent, and nothing after it for as long as an answer may take, is not waited for any more.
    pub(super) fn write_off(&mut self, lane: usize, now: Instant) {
        let lane = &mut self.lanes[lane];
        if lane.open > lane.adrift && lane.last_sent.is_some_and(|sent| sent + self.timeout <= now) {
            lane.adrift = lane.open;
            lane.wake.notify_one();
        }
    }

    /// Fails messages that have waited for a connection as long as an answer may take, for the reason that there is none.
    /// In a closed loop, where nothing waits, it is the next one that fails.
    pub(super) fn expire(&mut self, lane: usize, now: Instant) {
        let at = &self.lanes[lane];
        let Some(reason) = at.down.or(self.groups[at.group].down) else { return };
        while let Some(due) = self.peek(lane).filter(|due| due.at + self.timeout <= now) {
            self.advance(lane);
            self.fail_unsent(lane, due, reason, now);
        }
        if !self.is_open_loop()
            && !self.closed
            && let Some(due) = self.draw()
        {
            self.fail_unsent(lane, due, reason, now);
        }
    }

    fn fail_unsent(&mut self, lane: usize, due: Due, reason: Failure, now: Instant) {
        self.lanes[lane].blocked = true;
        self.sent(lane, due, Arm::UNKNOWN, now);
        self.failed(lane, due.k, reason, now);
    }

    /// A connection was made to `arm`, from TCP to CONNACK in `took`.
    pub(super) fn connected(&self, arm: Arm, took: Duration) {
        let mut recorder = self.recorder.borrow_mut();
        recorder.latency("connect", arm, took);
        recorder.account().connections.attempted += 1;
    }

    /// A connection could not be made.
    pub(super) fn not_connected(&self, failure: Failure) {
        let mut recorder = self.recorder.borrow_mut();
        let connections = &mut recorder.account().connections;
        connections.attempted += 1;
        *connections.failed.entry(failure.kind().to_owned()).or_default() += 1;
    }

    /// A connection ended though nobody meant it to.
    pub(super) fn disconnected(&self, failure: Failure) {
        let mut recorder = self.recorder.borrow_mut();
        *recorder.account().connections.lost.entry(failure.kind().to_owned()).or_default() += 1;
    }

    /// Clients that were there at least once.
    pub(super) fn arrived(&self) -> usize {
        self.arrived
    }

    /// Messages that wait to be sent, and messages whose fate is open.
    pub(super) fn pending(&self) -> (u64, u64) {
        (self.waiting, self.fates.open())
    }

    /// Nothing is sent from now on.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Ends the account: what was acknowledged and not delivered is lost, what was not acknowledged failed. Returns how
    /// many messages were due and never left.
    pub(super) fn settle_all(&mut self, now: Instant) -> u64 {
        (0..self.lanes.len()).for_each(|lane| self.expire(lane, now));
        let rest: Vec<_> = self.fates.rest().collect();
        for (k, sent, acked) in rest {
            let lane = sent.lane as usize;
            if !acked {
                let reason = self.lanes[lane].down.unwrap_or(Failure::Timeout);
                self.failed(lane, k, reason, now);
            } else if self.fates.failed(k).is_some() {
                let mut recorder = self.recorder.borrow_mut();
                recorder.account().lost += 1;
                recorder.entry(self.number(k), self.lanes[lane].key, "lost", sent.arm, self.since(sent.at_us, now));
            }
        }
        self.waiting
    }

    fn is_open_loop(&self) -> bool {
        self.play.as_ref().is_none_or(|play| play.schedule.is_some())
    }

    /// The arm of a label.
    pub(super) fn arm(&self, label: &[u8]) -> Arm {
        self.recorder.borrow_mut().arm(label)
    }

    /// The seconds before that of `now` are over.
    pub(super) fn roll(&self, now: Instant) {
        self.recorder.borrow_mut().roll(now);
    }

    pub(super) fn wake_of_lane(&self, lane: usize) -> Rc<Notify> {
        Rc::clone(&self.lanes[lane].wake)
    }

    pub(super) fn wake_of_group(&self, group: usize) -> Rc<Notify> {
        Rc::clone(&self.groups[group].wake)
    }

    pub(super) fn id(&self, k: u32) -> Id {
        Id::new(self.run, self.number(k))
    }

    /// Microseconds since the start.
    pub(super) fn micros(&self, at: Instant) -> u64 {
        let since = self.play.as_ref().map_or(Duration::ZERO, |play| at.saturating_duration_since(play.start));
        since.as_micros() as u64
    }

    fn since(&self, at_us: u64, now: Instant) -> Duration {
        Duration::from_micros(self.micros(now).saturating_sub(at_us))
    }

    /// The number in the run of message `k` of this worker.
    fn number(&self, k: u32) -> u32 {
        (self.place.worker as u32).wrapping_add(k.wrapping_mul(self.place.workers as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_publisher_has_one_lane_at_the_worker_of_its_group() {
        for (publishers, subscribers, workers) in [(1, 0, 1), (10, 0, 3), (10, 3, 2), (7, 7, 7), (100, 8, 3), (5, 4, 4)]
        {
            let mut found = vec![0; publishers];
            for worker in 0..workers {
                let groups = if subscribers == 0 { publishers } else { subscribers };
                let groups_here = (worker..groups).step_by(workers).count();
                let place = Place { worker, workers, publishers, groups, groups_here };
                assert_eq!(place.groups().count(), groups_here);
                for (lane, publisher) in place.publishers().enumerate() {
                    assert_eq!(place.lane(publisher as u64), Some(lane), "{publisher} of {place:?}");
                    assert!(place.groups().any(|group| group == publisher % groups), "{publisher} of {place:?}");
                    found[publisher] += 1;
                }
                let elsewhere = (0..publishers).filter(|publisher| place.lane(*publisher as u64).is_none()).count();
                assert_eq!(place.publishers().count() + elsewhere, publishers, "{place:?}");
                assert_eq!((place.lane(publishers as u64), place.lane(u64::MAX)), (None, None));
            }
            assert!(found.iter().all(|count| *count == 1), "{publishers} {subscribers} {workers}: {found:?}");
        }
    }
}
