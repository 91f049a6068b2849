//! What became of each message of a worker, so that each is counted once. Pure.
//!
//! Messages go by their sequence at the worker. They take 12 bytes each, in chunks of 4096; once all messages of a chunk
//! have met their fate, 1 bit of each is kept: whether it was delivered, to know a second delivery.

use crate::load::record::Arm;

/// Messages in a chunk.
const CHUNK: usize = 4096;

/// All messages of a worker.
#[derive(Debug, Default)]
pub(super) struct Fates {
    chunks: Vec<Chunk>,
    open: u64,
}

#[derive(Debug)]
enum Chunk {
    /// Messages, and how many of them have met their fate.
    Open(Box<[Message; CHUNK]>, usize),
    /// Which of them were delivered.
    Closed(Box<[u64; CHUNK / 64]>),
}

/// A message: what is kept of it while its fate is open.
#[derive(Clone, Copy, Debug, Default)]
struct Message {
    /// When it was sent, in microseconds since the start: 48 bits are nine years.
    sent_low: u32,
    sent_high: u16,
    arm: Arm,
    state: u8,
    lane: u32,
}

const _: () = assert!(size_of::<Message>() == 12, "the documentation says so");

const SENT: u8 = 1;
const ACKED: u8 = 2;
const DELIVERED: u8 = 4;
const FAILED: u8 = 8;

/// What is known of a message that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    /// In microseconds since the start.
    pub(super) at_us: u64,
    /// Its publisher's lane.
    pub(super) lane: u32,
    /// Where to; once acknowledged, who did.
    pub(super) arm: Arm,
}

/// What an acknowledgement means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acked {
    /// With it the message is answered.
    Answered(Sent),
    /// The delivery is still to come.
    Awaited,
    /// The message had failed already.
    Late,
}

/// What a delivery means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// With it the message is answered.
    Answered(Sent),
    /// The acknowledgement is still to come.
    Awaited,
    /// The message had failed already.
    Late,
    /// It was delivered before.
    Again,
    /// That publisher did not send it.
    Stray,
}

impl Fates {
    /// Messages whose fate is open.
    pub(super) fn open(&self) -> u64 {
        self.open
    }

    /// Message `k` was sent for the first time. `acked`: it needs no acknowledgement.
    pub(super) fn sent(&mut self, k: u32, sent: Sent, acked: bool) {
        let nth = k as usize / CHUNK;
        while self.chunks.len() <= nth {
            self.chunks.push(Chunk::Open(Box::new([Message::default(); CHUNK]), 0));
        }
        let Some(message) = self.open_message(k) else { return };
        *message = Message::new(sent, acked);
        self.open += 1;
    }

    /// `arm` acknowledged message `k`.
    pub(super) fn acked(&mut self, k: u32, arm: Arm) -> Acked {
        let Some(message) = self.open_message(k).filter(|message| message.is_open()) else { return Acked::Late };
        message.arm = arm;
        message.state |= ACKED;
        let sent = message.sent();
        if message.is_open() {
            return Acked::Awaited;
        }
        self.settle(k);
        Acked::Answered(sent)
    }

    /// Message `k` of `lane` was delivered.
    pub(super) fn delivered(&mut self, k: u32, lane: u32) -> Delivery {
        let (chunk, at) = (k as usize / CHUNK, k as usize % CHUNK);
        match self.chunks.get_mut(chunk) {
            None => Delivery::Stray,
            Some(Chunk::Closed(delivered)) => {
                let (word, bit) = (&mut delivered[at / 64], 1 << (at % 64));
                let again = *word & bit != 0;
                *word |= bit;
                if again { Delivery::Again } else { Delivery::Late }
            }
            Some(Chunk::Open(messages, _)) => {
                let message = &mut messages[at];
                if message.state & SENT == 0 || message.lane != lane {
                    return Delivery::Stray;
                }
                if message.state & DELIVERED != 0 {
                    return Delivery::Again;
                }
                message.state |= DELIVERED;
                let sent = message.sent();
                match message.state & (FAILED | ACKED) {
                    0 => Delivery::Awaited,
                    ACKED => {
                        self.settle(k);
                        Delivery::Answered(sent)
                    }
                    _ => Delivery::Late,
                }
            }
        }
    }

    /// Message `k` will not be answered. `None` when its fate is known already.
    pub(super) fn failed(&mut self, k: u32) -> Option<Sent> {
        let message = self.open_message(k).filter(|message| message.is_open())?;
        message.state |= FAILED;
        let sent = message.sent();
        self.settle(k);
        Some(sent)
    }

    /// The messages whose fate is open, and whether they were acknowledged.
    pub(super) fn rest(&self) -> impl Iterator<Item = (u32, Sent, bool)> {
        let open = self.chunks.iter().enumerate().filter_map(|(nth, chunk)| match chunk {
            Chunk::Open(messages, _) => Some((nth, messages)),
            Chunk::Closed(_) => None,
        });
        open.flat_map(|(nth, messages)| {
            let open = messages.iter().enumerate().filter(|(_, message)| message.is_open());
            open.map(move |(at, message)| ((nth * CHUNK + at) as u32, message.sent(), message.state & ACKED != 0))
        })
    }

    fn open_message(&mut self, k: u32) -> Option<&mut Message> {
        match self.chunks.get_mut(k as usize / CHUNK)? {
            Chunk::Open(messages, _) => Some(&mut messages[k as usize % CHUNK]),
            Chunk::Closed(_) => None,
        }
    }

    /// The fate of message `k` is known.
    fn settle(&mut self, k: u32) {
        self.open -= 1;
        let chunk = &mut self.chunks[k as usize / CHUNK];
        let Chunk::Open(messages, settled) = chunk else { return };
        *settled += 1;
        if *settled == CHUNK {
            let mut delivered = Box::new([0; CHUNK / 64]);
            for (at, message) in messages.iter().enumerate() {
                delivered[at / 64] |= u64::from(message.state & DELIVERED != 0) << (at % 64);
            }
            *chunk = Chunk::Closed(delivered);
        }
    }
}

impl Message {
    fn new(Sent { at_us, lane, arm }: Sent, acked: bool) -> Self {
        let state = SENT | if acked { ACKED } else { 0 };
        Self { sent_low: at_us as u32, sent_high: (at_us >> 32) as u16, arm, state, lane }
    }

    fn sent(&self) -> Sent {
        let at_us = u64::from(self.sent_high) << 32 | u64::from(self.sent_low);
        Sent { at_us, lane: self.lane, arm: self.arm }
    }

    /// It was sent, and neither failed nor was answered.
    fn is_open(&self) -> bool {
        self.state & (SENT | FAILED) == SENT && self.state & (ACKED | DELIVERED) != ACKED | DELIVERED
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn sent(at_us: u64) -> Sent {
        Sent { at_us, lane: 7, arm: Arm::UNKNOWN }
    }

    fn delivered(fates: &mut Fates, k: u32) -> Delivery {
        fates.delivered(k, 7)
    }

    #[test]
    fn a_message_is_answered_once_it_is_acknowledged_and_delivered_in_either_order() {
        let mut fates = Fates::default();
        (0..4).for_each(|k| fates.sent(k, sent(u64::from(k)), k == 3));
        assert_eq!(
            (fates.acked(0, Arm::UNKNOWN), delivered(&mut fates, 0)),
            (Acked::Awaited, Delivery::Answered(sent(0)))
        );
        assert_eq!(
            (delivered(&mut fates, 1), fates.acked(1, Arm::UNKNOWN)),
            (Delivery::Awaited, Acked::Answered(sent(1)))
        );
        assert_eq!(delivered(&mut fates, 3), Delivery::Answered(sent(3)), "QoS 0 is not acknowledged");
        assert_eq!((delivered(&mut fates, 0), fates.acked(0, Arm::UNKNOWN)), (Delivery::Again, Acked::Late));
        assert_eq!((fates.failed(2), fates.failed(2), fates.failed(0)), (Some(sent(2)), None, None));
        assert_eq!((delivered(&mut fates, 2), delivered(&mut fates, 2)), (Delivery::Late, Delivery::Again));
        assert_eq!((delivered(&mut fates, 4), delivered(&mut fates, u32::MAX)), (Delivery::Stray, Delivery::Stray));
        fates.sent(4, sent(4), true);
        assert_eq!((fates.delivered(4, 8), delivered(&mut fates, 4)), (Delivery::Stray, Delivery::Answered(sent(4))));
        assert_eq!((fates.open(), fates.rest().count()), (0, 0));
    }

    /// What a plain map makes of the same events.
    #[derive(Default)]
    struct Model(BTreeMap<u32, u8>);

    impl Model {
        fn is_open(state: u8) -> bool {
            !matches!(state, s if s & FAILED != 0 || s & (ACKED | DELIVERED) == ACKED | DELIVERED)
        }

        fn note(&mut self, k: u32, event: u8) -> (Option<u8>, bool) {
            let Some(state) = self.0.get_mut(&k) else { return (None, false) };
            let before = *state;
            if event == DELIVERED || Self::is_open(before) {
                *state |= event;
            }
            (Some(before), Self::is_open(before) && !Self::is_open(*state))
        }
    }

    #[test]
    fn every_message_has_one_fate_whatever_happens_in_whatever_order() {
        for seed in 0..20 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut fates, mut model) = (Fates::default(), Model::default());
            let (mut answered, mut failed, mut count) = (0, 0, 0);
            let messages = CHUNK as u32 * 3;
            let mut order: Vec<u32> = (0..messages).collect();
            // Sent nearly in order, as publishers take turns.
            order.chunks_mut(50).for_each(|some| random.shuffle(some));
            for event in 0..messages * 6 {
                let k = if event % 6 == 0 { order[(event / 6) as usize] } else { random.u32(0..messages) };
                match random.u8(0..8) {
                    _ if event % 6 == 0 => {
                        let acked = random.u8(0..4) == 0;
                        fates.sent(k, sent(u64::from(k)), acked);
                        model.0.insert(k, if acked { ACKED } else { 0 });
                        count += 1;
                    }
                    0..3 => {
                        let (before, settled) = model.note(k, ACKED);
                        let acked = fates.acked(k, Arm::UNKNOWN);
                        assert_eq!(matches!(acked, Acked::Answered(_)), settled, "seed {seed}");
                        assert_eq!(acked == Acked::Late, !before.is_some_and(Model::is_open), "seed {seed}");
                        answered += u32::from(settled);
                    }
                    3..7 => {
                        let (before, settled) = model.note(k, DELIVERED);
                        let expected = match before {
                            None => Delivery::Stray,
                            Some(before) if before & DELIVERED != 0 => Delivery::Again,
                            Some(_) if settled => Delivery::Answered(sent(u64::from(k))),
                            Some(before) if Model::is_open(before) => Delivery::Awaited,
                            Some(_) => Delivery::Late,
                        };
                        assert_eq!(delivered(&mut fates, k), expected, "seed {seed}, message {k}");
                        answered += u32::from(settled);
                    }
                    _ => {
                        let (_, settled) = model.note(k, FAILED);
                        assert_eq!(fates.failed(k), settled.then_some(sent(u64::from(k))), "seed {seed}");
                        failed += u32::from(settled);
                    }
                }
            }
            let rest: Vec<_> = fates.rest().map(|(k, _, acked)| (k, acked)).collect();
            let open = model.0.iter().filter(|(_, state)| Model::is_open(**state));
            assert_eq!(rest, open.map(|(k, state)| (*k, state & ACKED != 0)).collect::<Vec<_>>(), "seed {seed}");
            assert_eq!(
                (fates.open(), answered + failed + rest.len() as u32),
                (rest.len() as u64, count),
                "seed {seed}"
            );
            // Close what is open: a bit a message remains, and second deliveries are still known.
            rest.iter().for_each(|(k, _)| assert!(fates.failed(*k).is_some()));
            assert!(fates.chunks.iter().all(|chunk| matches!(chunk, Chunk::Closed(_))), "seed {seed}");
            for (k, state) in &model.0 {
                let expected = if state & DELIVERED != 0 { Delivery::Again } else { Delivery::Late };
                assert_eq!(delivered(&mut fates, *k), expected, "seed {seed}");
            }
        }
    }
}
