//! MQTT packets (3.1.1 and 5). Those of every message are read in place; the rare ones are `mqttbytes`'.

use bytes::{BufMut, Bytes, BytesMut};
use mqttbytes::{v4, v5};

use super::{MqttVersion, Qos};

/// Topics in one SUBSCRIBE: no broker takes fewer (AWS IoT Core: 8).
pub(super) const TOPICS: usize = 8;
/// Seconds that a broker of version 5 keeps a session without a connection.
const SESSION_EXPIRY: u32 = 3600;

/// PINGREQ.
pub(super) const PING: [u8; 2] = [0xc0, 0];

/// What came is no packet, or none that a broker sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// What a broker sends.
#[derive(Debug, PartialEq)]
pub(super) enum Packet<'a> {
    ConnAck(Welcome),
    Publish(Publish<'a>),
    Ack(Ack),
    SubAck { granted: bool },
    Pong,
    Disconnect,
}

/// A CONNACK: whether the broker takes us, and what it allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Welcome {
    pub(super) accepted: bool,
    pub(super) session_present: bool,
    /// Messages of QoS 1 and 2 it takes before it has acknowledged the first of them.
    pub(super) receive_max: u16,
    pub(super) max_qos: u8,
    /// The largest packet it takes, in bytes.
    pub(super) max_packet: u32,
    /// Seconds, in place of the client's own.
    pub(super) keep_alive: Option<u16>,
}

#[derive(Debug, PartialEq)]
pub(super) struct Publish<'a> {
    pub(super) qos: Qos,
    /// 0 with QoS 0.
    pub(super) pkid: u16,
    pub(super) topic: &'a [u8],
    pub(super) payload: &'a [u8],
}

/// A packet of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) step: Step,
    pub(super) pkid: u16,
    /// Version 5: the other side will not have the message.
    pub(super) refused: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// PUBACK, the whole answer with QoS 1.
    Acknowledged,
    /// PUBREC.
    Received,
    /// PUBREL, the sender's answer to that.
    Release,
    /// PUBCOMP, the end with QoS 2.
    Complete,
}

/// The first packet in `bytes` and its length; `None` when more must come. `most`: the largest packet to expect. Errors:
/// it is none.
pub(super) fn read(version: MqttVersion, bytes: &[u8], most: usize) -> Result<Option<(Packet<'_>, usize)>, Malformed> {
    let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
    let kind = kind(version, first)?;
    let Some((length, width)) = varint(rest)? else { return Ok(None) };
    if length > most {
        return Err(Malformed);
    }
    let whole = 1 + width + length;
    let Some(body) = bytes.get(1 + width..whole) else { return Ok(None) };
    let packet = match kind {
        Kind::ConnAck => Packet::ConnAck(welcome(version, &bytes[..whole])?),
        Kind::Publish => Packet::Publish(publish(version, first, body)?),
        Kind::Ack(step) => Packet::Ack(ack(step, body)?),
        Kind::SubAck => Packet::SubAck { granted: is_granted(version, body)? },
        Kind::Pong => Packet::Pong,
        Kind::Disconnect => Packet::Disconnect,
    };
    Ok(Some((packet, whole)))
}

#[derive(Clone, Copy)]
enum Kind {
    ConnAck,
    Publish,
    Ack(Step),
    SubAck,
    Pong,
    Disconnect,
}

/// What the first byte says: all of it but a PUBLISH's flags is fixed.
fn kind(version: MqttVersion, first: u8) -> Result<Kind, Malformed> {
    match first {
        0x20 => Ok(Kind::ConnAck),
        0x30..0x40 => Ok(Kind::Publish),
        0x40 => Ok(Kind::Ack(Step::Acknowledged)),
        0x50 => Ok(Kind::Ack(Step::Received)),
        0x62 => Ok(Kind::Ack(Step::Release)),
        0x70 => Ok(Kind::Ack(Step::Complete)),
        0x90 => Ok(Kind::SubAck),
        0xd0 => Ok(Kind::Pong),
        0xe0 if version == MqttVersion::V5 => Ok(Kind::Disconnect),
        _ => Err(Malformed),
    }
}

/// A variable byte integer and its width; `None` when more must come.
fn varint(bytes: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let mut value = 0;
    for (nth, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * nth);
        if byte & 0x80 == 0 {
            return Ok(Some((value, nth + 1)));
        }
    }
    if bytes.len() < 4 { Ok(None) } else { Err(Malformed) }
}

fn split(bytes: &[u8], at: usize) -> Result<(&[u8], &[u8]), Malformed> {
    bytes.split_at_checked(at).ok_or(Malformed)
}

fn u16_of(bytes: &[u8]) -> Result<(u16, &[u8]), Malformed> {
    let (number, rest) = bytes.split_first_chunk().ok_or(Malformed)?;
    Ok((u16::from_be_bytes(*number), rest))
}

/// What follows the properties of version 5.
fn skip_properties(version: MqttVersion, bytes: &[u8]) -> Result<&[u8], Malformed> {
    match version {
        MqttVersion::V311 => Ok(bytes),
        MqttVersion::V5 => {
            let (length, width) = varint(bytes)?.ok_or(Malformed)?;
            Ok(split(bytes, width + length)?.1)
        }
    }
}

fn publish(version: MqttVersion, first: u8, body: &[u8]) -> Result<Publish<'_>, Malformed> {
    let qos = Qos::try_from(first >> 1 & 3).map_err(|_| Malformed)?;
    let (length, rest) = u16_of(body)?;
    let (topic, rest) = split(rest, length.into())?;
    let (pkid, rest) = if qos == Qos::AtMostOnce { (0, rest) } else { u16_of(rest)? };
    Ok(Publish { qos, pkid, topic, payload: skip_properties(version, rest)? })
}

fn ack(step: Step, body: &[u8]) -> Result<Ack, Malformed> {
    let (pkid, rest) = u16_of(body)?;
    // Without a reason it is success (MQTT 5.0, section 3.4.2.1); 3.1.1 has none.
    Ok(Ack { step, pkid, refused: rest.first().is_some_and(|reason| *reason >= 0x80) })
}

fn is_granted(version: MqttVersion, body: &[u8]) -> Result<bool, Malformed> {
    let (_, rest) = u16_of(body)?;
    Ok(skip_properties(version, rest)?.iter().all(|code| *code < 0x80))
}

fn welcome(version: MqttVersion, packet: &[u8]) -> Result<Welcome, Malformed> {
    let mut welcome = Welcome {
        accepted: false,
        session_present: false,
        receive_max: u16::MAX,
        max_qos: 2,
        max_packet: u32::MAX,
        keep_alive: None,
    };
    let mut stream = BytesMut::from(packet);
    match version {
        MqttVersion::V311 => {
            let Ok(v4::Packet::ConnAck(ack)) = v4::read(&mut stream, packet.len()) else { return Err(Malformed) };
            welcome.accepted = ack.code == v4::ConnectReturnCode::Success;
            welcome.session_present = ack.session_present;
        }
        MqttVersion::V5 => {
            // A broker that does not know version 5 says so in the form it knows (MQTT 5.0, section 3.1.2.2).
            if matches!(packet, [_, 2, _, 1..=u8::MAX]) {
                return Ok(welcome);
            }
            let Ok(v5::Packet::ConnAck(ack)) = v5::read(&mut stream, packet.len()) else { return Err(Malformed) };
            welcome.accepted = ack.code == v5::ConnectReturnCode::Success;
            welcome.session_present = ack.session_present;
            if let Some(properties) = ack.properties {
                welcome.receive_max = properties.receive_max.unwrap_or(u16::MAX).max(1);
                welcome.max_qos = properties.max_qos.unwrap_or(2);
                welcome.max_packet = properties.max_packet_size.unwrap_or(u32::MAX);
                welcome.keep_alive = properties.server_keep_alive;
            }
        }
    }
    Ok(welcome)
}

/// What a CONNECT says.
pub(super) struct Connect<'a> {
    pub(super) client_id: &'a str,
    /// Forget the session there may be.
    pub(super) clean: bool,
    /// Keep the session when the connection ends.
    pub(super) keep: bool,
    /// Seconds; 0 is never.
    pub(super) keep_alive: u16,
    /// User name and password; an empty one is not sent.
    pub(super) login: Option<(&'a str, &'a str)>,
}

/// Writes a CONNECT; `out` must be empty. In 3.1.1 a session is kept if it was not to be forgotten.
pub(super) fn connect(version: MqttVersion, connect: &Connect<'_>, out: &mut BytesMut) {
    // `mqttbytes` counts from the start of its buffer.
    debug_assert!(out.is_empty(), "a CONNECT is the first packet");
    let Connect { client_id, clean, keep, keep_alive, login } = *connect;
    let written = match version {
        MqttVersion::V311 => {
            let mut packet = v4::Connect::new(client_id);
            packet.clean_session = clean;
            packet.keep_alive = keep_alive;
            packet.login = login.map(|(name, password)| v4::Login::new(name, password));
            packet.write(out)
        }
        MqttVersion::V5 => {
            let mut packet = v5::Connect::new(client_id);
            packet.clean_session = clean;
            packet.keep_alive = keep_alive;
            packet.login = login.map(|(name, password)| v5::Login::new(name, password));
            packet.properties = keep.then_some(v5::ConnectProperties {
                session_expiry_interval: Some(SESSION_EXPIRY),
                receive_maximum: None,
                max_packet_size: None,
                topic_alias_max: None,
                request_response_info: None,
                request_problem_info: None,
                user_properties: Vec::new(),
                authentication_method: None,
                authentication_data: None,
            });
            packet.write(out)
        }
    };
    written.expect("a CONNECT is smaller than 256 MB");
}

/// Writes a SUBSCRIBE to [`TOPICS`] topics at most.
pub(super) fn subscribe(version: MqttVersion, pkid: u16, topics: &[String], qos: Qos, out: &mut BytesMut) {
    let topics = topics.iter().cloned();
    let written = match version {
        MqttVersion::V311 => {
            let filters = topics.map(|path| v4::SubscribeFilter { path, qos: qos.into() });
            let mut packet = v4::Subscribe::new_many(filters);
            packet.pkid = pkid;
            packet.write(out)
        }
        MqttVersion::V5 => {
            let mut packet = v5::Subscribe::new_many(topics.map(|path| v5::SubscribeFilter::new(path, qos.into())));
            packet.pkid = pkid;
            packet.write(out)
        }
    };
    written.expect("a few topics are smaller than 256 MB");
}

/// Writes a PUBLISH that is no message of the run. `pkid`: 0 with QoS 0.
pub(super) fn notice(
    version: MqttVersion,
    topic: &str,
    payload: &[u8],
    (qos, pkid): (Qos, u16),
    retain: bool,
    out: &mut BytesMut,
) {
    let payload = Bytes::copy_from_slice(payload);
    let written = match version {
        MqttVersion::V311 => {
            let mut packet = v4::Publish::from_bytes(topic, qos.into(), payload);
            (packet.pkid, packet.retain) = (pkid, retain);
            packet.write(out)
        }
        MqttVersion::V5 => {
            let mut packet = v5::Publish::from_bytes(topic, qos.into(), payload);
            (packet.pkid, packet.retain) = (pkid, retain);
            packet.write(out)
        }
    };
    written.expect("a notice is smaller than 256 MB");
}

/// Writes the next packet of a handshake, as a success.
pub(super) fn answer(step: Step, pkid: u16, out: &mut BytesMut) {
    let first = match step {
        Step::Acknowledged => 0x40,
        Step::Received => 0x50,
        Step::Release => 0x62,
        Step::Complete => 0x70,
    };
    let [high, low] = pkid.to_be_bytes();
    out.put_slice(&[first, 2, high, low]);
}

/// Writes a DISCONNECT. `forget`: version 5, the session ends with it.
pub(super) fn disconnect(version: MqttVersion, forget: bool, out: &mut BytesMut) {
    let mut packet = v5::Disconnect::new();
    match version {
        MqttVersion::V5 if forget => {
            let mut properties = v5::DisconnectProperties::new();
            properties.session_expiry_interval = Some(0);
            packet.properties = Some(properties);
            packet.write(out).expect("a DISCONNECT is smaller than 256 MB");
        }
        // Without anything to say it is the same in both versions.
        _ => out.put_slice(&[0xe0, 0]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [MqttVersion; 2] = [MqttVersion::V311, MqttVersion::V5];

    fn whole(version: MqttVersion, bytes: &[u8]) -> Packet<'_> {
        for cut in 0..bytes.len() {
            assert_eq!(read(version, &bytes[..cut], 1000), Ok(None), "cut at {cut}");
        }
        let (packet, length) = read(version, bytes, 1000).unwrap().unwrap();
        assert_eq!(length, bytes.len());
        packet
    }

    #[test]
    fn what_mqttbytes_writes_is_read() {
        for version in BOTH {
            for (qos, pkid) in [(Qos::AtMostOnce, 0), (Qos::AtLeastOnce, 7), (Qos::ExactlyOnce, 60_000)] {
                let mut bytes = BytesMut::new();
                notice(version, "a/b", b"hello", (qos, pkid), false, &mut bytes);
                let expected = Publish { qos, pkid, topic: b"a/b", payload: b"hello" };
                assert_eq!(whole(version, &bytes), Packet::Publish(expected));
            }
            for step in [Step::Acknowledged, Step::Received, Step::Release, Step::Complete] {
                let mut bytes = BytesMut::new();
                answer(step, 7, &mut bytes);
                assert_eq!(whole(version, &bytes), Packet::Ack(Ack { step, pkid: 7, refused: false }));
            }
            assert_eq!(whole(version, &[0xd0, 0]), Packet::Pong);
        }
    }

    #[test]
    fn reasons_and_properties_of_version_5_are_understood() {
        let read = |bytes: &'static [u8]| whole(MqttVersion::V5, bytes);
        // Properties before the payload: message expiry.
        let publish = read(b"\x30\x0a\x00\x01t\x05\x02\x00\x00\x00\x09x");
        assert_eq!(publish, Packet::Publish(Publish { qos: Qos::AtMostOnce, pkid: 0, topic: b"t", payload: b"x" }));
        let refused = |bytes: &'static [u8]| matches!(read(bytes), Packet::Ack(Ack { refused: true, .. }));
        assert!(!refused(b"\x40\x03\x00\x01\x10") && refused(b"\x40\x03\x00\x01\x97"));
        assert!(refused(b"\x70\x04\x00\x01\x92\x00"));
        assert_eq!(read(b"\x90\x05\x00\x01\x00\x01\x02"), Packet::SubAck { granted: true });
        assert_eq!(read(b"\x90\x05\x00\x01\x00\x01\x87"), Packet::SubAck { granted: false });
        for disconnect in [&b"\xe0\x00"[..], b"\xe0\x01\x8e", b"\xe0\x02\x8b\x00"] {
            assert_eq!(read(disconnect), Packet::Disconnect);
        }
        let Packet::ConnAck(welcome) = read(b"\x20\x0b\x01\x00\x08\x21\x00\x14\x24\x01\x13\x00\x05") else { panic!() };
        assert!(welcome.accepted && welcome.session_present);
        assert_eq!((welcome.receive_max, welcome.max_qos, welcome.keep_alive), (20, 1, Some(5)));
        for refusal in [&b"\x20\x03\x00\x87\x00"[..], b"\x20\x02\x00\x01"] {
            assert!(matches!(read(refusal), Packet::ConnAck(Welcome { accepted: false, .. })));
        }
    }

    #[test]
    fn what_is_no_packet_of_a_broker_is_malformed() {
        for (version, bytes) in [
            (MqttVersion::V311, &b"\x00\x00"[..]),
            (MqttVersion::V311, b"\x10\x00"),
            (MqttVersion::V311, b"\xe0\x00"),
            (MqttVersion::V311, b"\x36\x00"),
            (MqttVersion::V311, b"\x30\x01\x00"),
            (MqttVersion::V311, b"\x30\x02\x00\x01"),
            (MqttVersion::V311, b"\x40\x01\x00"),
            (MqttVersion::V311, b"\x20\x02\x00\x09"),
            (MqttVersion::V5, b"\x30\x04\x00\x01t\x05"),
            (MqttVersion::V5, b"\x20\x00"),
            (MqttVersion::V5, b"HTTP/1.1 400"),
            (MqttVersion::V5, b"\x30\xff\xff\xff\xff"),
            (MqttVersion::V5, b"\x30\xff\xff\x03"),
        ] {
            assert_eq!(read(version, bytes, 1000), Err(Malformed), "{bytes:?}");
        }
        let mut bytes = vec![0; 64];
        for seed in 0..100_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            random.fill(&mut bytes);
            for version in BOTH {
                let _ = read(version, &bytes[..random.usize(..64)], 1000);
            }
        }
    }

    #[test]
    fn what_we_send_is_what_mqttbytes_reads() {
        for version in BOTH {
            let mut bytes = BytesMut::new();
            let login = Some(("me", "secret"));
            connect(
                version,
                &Connect { client_id: "user-7", clean: false, keep: true, keep_alive: 30, login },
                &mut bytes,
            );
            disconnect(version, true, &mut bytes);
            if version == MqttVersion::V311 {
                let Ok(v4::Packet::Connect(connect)) = v4::read(&mut bytes, 1000) else { panic!() };
                assert_eq!((&*connect.client_id, connect.clean_session, connect.keep_alive), ("user-7", false, 30));
                assert_eq!(v4::read(&mut bytes, 1000), Ok(v4::Packet::Disconnect));
            } else {
                let Ok(v5::Packet::Connect(connect)) = v5::read(&mut bytes, 1000) else { panic!() };
                assert_eq!(connect.login.unwrap().password, "secret");
                assert_eq!(connect.properties.unwrap().session_expiry_interval, Some(SESSION_EXPIRY));
                let Ok(v5::Packet::Disconnect(disconnect)) = v5::read(&mut bytes, 1000) else { panic!() };
                assert_eq!(disconnect.properties.unwrap().session_expiry_interval, Some(0));
            }
            assert!(bytes.is_empty());
        }
    }
}
