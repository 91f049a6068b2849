//! A publisher's messages that are not yet acknowledged, by packet id. Pure.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Packet ids of messages; those above are left for SUBSCRIBE.
pub(super) const PKIDS: u16 = 60_000;

/// Messages under way, in the order they were sent. Packet ids are given one after the other, so a message is found by
/// how far its id is from the first one's.
#[derive(Debug)]
pub(super) struct Flights {
    flights: VecDeque<Flight>,
    /// Packet id of the first.
    first: u16,
    unacked: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flight {
    /// Its sequence at the worker.
    pub(super) k: u32,
    pub(super) due: Instant,
    /// When it was first sent.
    pub(super) sent: Instant,
    pub(super) stage: Stage,
}

/// How far a handshake is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Published,
    /// QoS 2: the broker has it, and knows from a PUBREL that we know.
    Released,
    Over,
}

impl Default for Flights {
    fn default() -> Self {
        Self { flights: VecDeque::new(), first: 1, unacked: 0 }
    }
}

impl Flights {
    /// How many are not acknowledged.
    pub(super) fn unacked(&self) -> usize {
        self.unacked
    }

    /// Whether another can be sent while `most` may be unacknowledged.
    pub(super) fn has_room(&self, most: usize) -> bool {
        self.unacked < most && self.flights.len() < usize::from(PKIDS)
    }

    /// A message leaves; there must be room. Returns its packet id.
    pub(super) fn push(&mut self, k: u32, due: Instant, sent: Instant) -> u16 {
        self.flights.push_back(Flight { k, due, sent, stage: Stage::Published });
        self.unacked += 1;
        self.pkid(self.flights.len() - 1)
    }

    /// The handshake of `pkid` is over. `None`: there is none.
    pub(super) fn end(&mut self, pkid: u16) -> Option<Flight> {
        let flight = self.get_mut(pkid)?;
        flight.stage = Stage::Over;
        let ended = *flight;
        self.unacked -= 1;
        while self.flights.front().is_some_and(|flight| flight.stage == Stage::Over) {
            self.flights.pop_front();
            self.first = self.first % PKIDS + 1;
        }
        Some(ended)
    }

    /// The broker has the message of `pkid`.
    pub(super) fn released(&mut self, pkid: u16) {
        if let Some(flight) = self.get_mut(pkid) {
            flight.stage = Stage::Released;
        }
    }

    /// The handshake of `pkid`, if it is not over.
    pub(super) fn get(&self, pkid: u16) -> Option<Flight> {
        let flight = self.flights.get(self.position(pkid)?)?;
        (flight.stage != Stage::Over).then_some(*flight)
    }

    /// Handshakes that are not over.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, Flight)> {
        let open = self.flights.iter().enumerate().filter(|(_, flight)| flight.stage != Stage::Over);
        open.map(|(at, flight)| (self.pkid(at), *flight))
    }

    /// Forgets all, and returns those that were not over.
    pub(super) fn take(&mut self) -> Vec<Flight> {
        let open = self.iter().map(|(_, flight)| flight).collect();
        *self = Self::default();
        open
    }

    /// When the first message that has time left at `now` runs out of its `timeout`.
    pub(super) fn next_overdue(&self, now: Instant, timeout: Duration) -> Option<Instant> {
        self.iter().map(|(_, flight)| flight.sent + timeout).find(|end| *end > now)
    }

    /// Messages whose `timeout` is over at `now`.
    pub(super) fn overdue(&self, now: Instant, timeout: Duration) -> impl Iterator<Item = Flight> {
        self.iter().map(|(_, flight)| flight).take_while(move |flight| flight.sent + timeout <= now)
    }

    fn pkid(&self, at: usize) -> u16 {
        ((usize::from(self.first) - 1 + at) % usize::from(PKIDS)) as u16 + 1
    }

    fn position(&self, pkid: u16) -> Option<usize> {
        let pkids = usize::from(PKIDS);
        (1..=PKIDS).contains(&pkid).then(|| (usize::from(pkid) + pkids - usize::from(self.first)) % pkids)
    }

    fn get_mut(&mut self, pkid: u16) -> Option<&mut Flight> {
        let position = self.position(pkid)?;
        self.flights.get_mut(position).filter(|flight| flight.stage != Stage::Over)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn packet_ids_are_free_when_they_are_given_and_lead_to_their_message() {
        for seed in 0..10 {
            let mut random = fastrand::Rng::with_seed(seed);
            let start = Instant::now();
            let (mut flights, mut model) = (Flights::default(), BTreeMap::new());
            for k in 0..200_000_u32 {
                // Each message a millisecond behind the last.
                let now = start + Duration::from_millis(k.into());
                let pkid = flights.push(k, now, now);
                assert!((1..=PKIDS).contains(&pkid), "seed {seed}");
                assert_eq!(model.insert(pkid, k), None, "seed {seed}: {pkid} is in use");
                while model.len() > 100 || !flights.has_room(101) || (!model.is_empty() && random.u8(0..3) == 0) {
                    // Mostly one of the last, so that the first holds up what is behind it, until there is no room.
                    let near = pkid.saturating_sub(random.u16(0..150)).max(1);
                    let near = model.range(near..).next().filter(|_| flights.has_room(101)).map(|(pkid, _)| *pkid);
                    let ended = near.unwrap_or_else(|| flights.iter().next().unwrap().0);
                    flights.released(ended);
                    assert_eq!(flights.get(ended).unwrap().stage, Stage::Released, "seed {seed}");
                    assert_eq!(flights.end(ended).map(|flight| flight.k), model.remove(&ended), "seed {seed}");
                    assert_eq!(flights.end(ended), None, "seed {seed}");
                }
                assert_eq!(flights.unacked(), model.len(), "seed {seed}");
                assert!(flights.has_room(101) && !flights.has_room(model.len()), "seed {seed}");
            }
            let found: Vec<_> = flights.iter().map(|(pkid, flight)| (flight.k, pkid)).collect();
            assert!(found.is_sorted(), "seed {seed}: in the order they were sent");
            assert_eq!(found.iter().map(|(k, pkid)| (*pkid, *k)).collect::<BTreeMap<_, _>>(), model, "seed {seed}");

            let (timeout, (oldest, _)) = (Duration::from_millis(50), found[0]);
            let now = start + Duration::from_millis(oldest.into()) + timeout;
            assert_eq!(flights.overdue(now, timeout).map(|flight| flight.k).collect::<Vec<_>>(), [oldest]);
            assert!(flights.next_overdue(now, timeout).is_none_or(|next| next > now));
            assert_eq!(flights.take().len(), model.len());
            assert_eq!((flights.unacked(), flights.iter().count()), (0, 0));
        }
        let mut flights = Flights::default();
        assert_eq!(
            (flights.get(0), flights.get(1), flights.end(PKIDS), flights.end(u16::MAX)),
            (None, None, None, None)
        );
    }
}
