//! MQTT packets as bytes, and how to read the next one off a connection.

use tokio::io::{AsyncRead, AsyncReadExt};

pub(crate) const DISCONNECT: &[u8] = &[0xe0, 0];
pub(crate) const PINGREQ: &[u8] = &[0xc0, 0];
pub(crate) const PINGRESP: &[u8] = &[0xd0, 0];
/// CONNACK "accepted" of 3.1 and 3.1.1.
pub(crate) const ACCEPTED: &[u8] = &[0x20, 2, 0, 0];
/// CONNACK "server unavailable" of 3.1 and 3.1.1, and of 5.
pub(crate) const UNAVAILABLE: &[u8] = &[0x20, 2, 0, 3];
pub(crate) const UNAVAILABLE_5: &[u8] = &[0x20, 3, 0, 0x88, 0];

/// What a CONNECT says. `level`: 3, 4 or 5, with 0x80 added for a bridge.
#[derive(Clone, Copy)]
pub(crate) struct Connect<'a> {
    pub(crate) level: u8,
    pub(crate) client_id: &'a str,
    pub(crate) username: Option<&'a str>,
    /// Topic and payload.
    pub(crate) will: Option<(&'a str, &'a str)>,
}

impl<'a> Connect<'a> {
    pub(crate) fn new(level: u8, client_id: &'a str) -> Self {
        Self { level, client_id, username: None, will: None }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let name: &[u8] = if self.level & 0x7f == 3 { b"MQIsdp" } else { b"MQTT" };
        let mut body = string(name);
        let clean_session = 0x02;
        let will = if self.will.is_some() { 0x04 } else { 0 };
        let username = if self.username.is_some() { 0x80 } else { 0 };
        body.extend([self.level, clean_session | will | username, 0, 60]);
        if self.level == 5 {
            body.push(0);
        }
        body.extend(string(self.client_id.as_bytes()));
        if let Some((topic, payload)) = self.will {
            if self.level == 5 {
                body.push(0);
            }
            body.extend(string(topic.as_bytes()));
            body.extend(string(payload.as_bytes()));
        }
        if let Some(username) = self.username {
            body.extend(string(username.as_bytes()));
        }
        packet(0x10, &body)
    }
}

/// A CONNECT of 3.1.1.
pub(crate) fn connect(client_id: &str) -> Vec<u8> {
    Connect::new(4, client_id).bytes()
}

/// A PUBLISH of 3.1.1 with QoS 0.
pub(crate) fn publish(topic: &str, payload: &[u8]) -> Vec<u8> {
    packet(0x30, &[&string(topic.as_bytes()), payload].concat())
}

/// A SUBSCRIBE of 3.1.1 with QoS 0.
pub(crate) fn subscribe(topic: &str) -> Vec<u8> {
    packet(0x82, &[&[0, 1], string(topic.as_bytes()).as_slice(), &[0]].concat())
}

pub(crate) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut length = body.len();
    loop {
        let more = if length > 0x7f { 0x80 } else { 0 };
        bytes.push((length & 0x7f) as u8 | more);
        length >>= 7;
        if length == 0 {
            break;
        }
    }
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text].concat()
}

/// Reads one packet, whatever it is; `None` when the connection ends before its first byte.
pub(crate) async fn read_packet(stream: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let mut bytes = vec![stream.read_u8().await.ok()?];
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = stream.read_u8().await.expect("a packet's length");
        bytes.push(byte);
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let body = bytes.len();
    bytes.resize(body + length, 0);
    stream.read_exact(&mut bytes[body..]).await.expect("a whole packet");
    Some(bytes)
}
