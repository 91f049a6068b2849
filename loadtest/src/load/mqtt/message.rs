//! A message of the run: `<id> user-<publisher> <due> <padding>`, due being microseconds since the start.

use bytes::{BufMut, BytesMut};

use super::{MqttVersion, Qos};
use crate::ledger::Id;

/// Digits of the time it was due: always as many, so that a message is written by filling in a form.
const DUE: usize = 16;
const PADDING: u8 = b'x';

/// What a publisher's messages have in common: a PUBLISH in which only id, time, packet id and DUP are left open.
#[derive(Debug)]
pub(super) struct Form {
    head: Vec<u8>,
    /// Where the packet id goes, if there is one, and the payload begins.
    pkid: Option<usize>,
    payload: usize,
    padding: usize,
}

impl Form {
    /// Messages of publisher `key` to `topic`, of `size` bytes, or as many as the head of the payload needs.
    pub(super) fn new(version: MqttVersion, qos: Qos, topic: &str, key: u64, size: usize) -> Self {
        let start = format!("{} user-{key} {:0DUE$} ", Id(0), 0);
        let padding = size.saturating_sub(start.len());

        let mut body = Vec::with_capacity(topic.len() + start.len() + 16);
        body.put_u16(topic.len() as u16);
        body.put_slice(topic.as_bytes());
        let pkid = (qos != Qos::AtMostOnce).then(|| {
            body.put_u16(0);
            body.len() - 2
        });
        if version == MqttVersion::V5 {
            // No properties.
            body.put_u8(0);
        }
        let payload = body.len();
        body.put_slice(start.as_bytes());

        let mut head = vec![0x30 | (qos as u8) << 1];
        let mut length = body.len() + padding;
        while length > 0x7f {
            head.push(length as u8 & 0x7f | 0x80);
            length >>= 7;
        }
        head.push(length as u8);
        let fixed = head.len();
        head.append(&mut body);
        Self { head, pkid: pkid.map(|at| fixed + at), payload: fixed + payload, padding }
    }

    /// Writes a message. `due_us`: when it was due, in microseconds since the start. `pkid` is not sent with QoS 0.
    pub(super) fn write(&self, id: Id, due_us: u64, pkid: u16, dup: bool, out: &mut BytesMut) {
        let from = out.len();
        out.reserve(self.len());
        out.put_slice(&self.head);
        let packet = &mut out[from..];
        if dup {
            packet[0] |= 0x08;
        }
        if let Some(at) = self.pkid {
            packet[at..at + 2].copy_from_slice(&pkid.to_be_bytes());
        }
        packet[self.payload..self.payload + Id::LEN].copy_from_slice(&id.digits());
        let mut left = due_us;
        let end = packet.len() - 1;
        for digit in packet[end - DUE..end].iter_mut().rev() {
            *digit = b'0' + (left % 10) as u8;
            left /= 10;
        }
        out.put_bytes(PADDING, self.padding);
    }

    /// Length of a packet, in bytes.
    pub(super) fn len(&self) -> usize {
        self.head.len() + self.padding
    }
}

/// What the payload of a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) id: Id,
    pub(super) key: u64,
    pub(super) due_us: u64,
}

/// Reads a payload of messages of `size`; `None` when it is not exactly what a [`Form`] writes.
pub(super) fn read(payload: &[u8], size: usize) -> Option<Message> {
    let (id, rest) = payload.split_at_checked(Id::LEN)?;
    let rest = rest.strip_prefix(b" user-")?;
    let (key, rest) = rest.split_at(rest.iter().take(20).position(|byte| *byte == b' ')?);
    let (due, rest) = rest[1..].split_at_checked(DUE)?;
    let padding = rest.strip_prefix(b" ")?;
    let expected = size.saturating_sub(payload.len() - padding.len());
    let whole = padding.len() == expected && padding.iter().all(|byte| *byte == PADDING);
    whole.then_some(Message { id: Id::parse(id)?, key: number(key)?, due_us: number(due)? })
}

fn number(digits: &[u8]) -> Option<u64> {
    let digit = |digit: &u8| digit.is_ascii_digit().then(|| u64::from(digit - b'0'));
    let add = |number: u64, digit| number.checked_mul(10)?.checked_add(digit);
    (!digits.is_empty()).then_some(())?;
    digits.iter().try_fold(0, |number, next| add(number, digit(next)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::mqtt::packet::{self, Packet};

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let id = Id::new(0x1a2b_3c4d, 42);
        for version in [MqttVersion::V311, MqttVersion::V5] {
            for qos in [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce] {
                for size in [0, 40, 41, 42, 64, 126, 200, 20_000] {
                    let form = Form::new(version, qos, "loadtest/1a2b3c4d/7", 7, size);
                    let mut out = BytesMut::from(&b"before"[..]);
                    form.write(id, 1_234_567, 99, true, &mut out);
                    let bytes = &out[b"before".len()..];
                    assert_eq!(bytes.len(), form.len());
                    assert_eq!(bytes[0] & 0x08, 0x08);

                    let (packet, length) = packet::read(version, bytes, 1 << 20).unwrap().unwrap();
                    assert_eq!(length, bytes.len());
                    let Packet::Publish(publish) = packet else { panic!("{packet:?}") };
                    let pkid = if qos == Qos::AtMostOnce { 0 } else { 99 };
                    assert_eq!((publish.qos, publish.pkid, publish.topic), (qos, pkid, &b"loadtest/1a2b3c4d/7"[..]));
                    assert_eq!(publish.payload.len(), size.max(41));
                    assert_eq!(read(publish.payload, size), Some(Message { id, key: 7, due_us: 1_234_567 }));
                }
            }
        }
    }

    #[test]
    fn what_was_changed_on_the_way_is_not_a_message() {
        let payload = format!("{} user-7 {:016} xxxx", Id::new(1, 2), 3);
        let size = payload.len();
        assert!(read(payload.as_bytes(), size).is_some());
        for at in 0..size {
            let mut changed = payload.clone().into_bytes();
            changed[at] = b'?';
            assert_eq!(read(&changed, size), None, "{at}");
            assert_eq!(read(&payload.as_bytes()[..at], size), None, "{at}");
        }
        assert_eq!(read(format!("{payload}x").as_bytes(), size), None);
        assert_eq!(read(b"", 0), None);
        assert_eq!(read(format!("{} user-99999999999999999999 {:016} ", Id(1), 3).as_bytes(), 0), None);
    }
}
