//! Reads an MQTT client's CONNECT and the head of the broker's CONNACK, for 3.1, 3.1.1 and 5. Section numbers are those
//! of the 3.1.1 and 5.0 standards of OASIS, which agree on them unless a version is named.

use std::fmt;

/// The longest CONNECT that is read, in bytes, fixed header included: room for four fields of the longest kind, 64 KiB.
pub const MAX_CONNECT: usize = 256 * 1024;

/// The first byte of a CONNECT: packet type 1, all four flags 0 ([MQTT-2.2.2-1], in 5.0 [MQTT-2.1.3-1]).
const CONNECT: u8 = 0x10;
/// The first byte of a CONNACK.
const CONNACK: u8 = 0x20;
/// The first byte of a DISCONNECT.
const DISCONNECT: u8 = 0xe0;
/// The reason code of a broker that ends a session because its client has begun another one (5.0, 3.14.2.1).
pub const SESSION_TAKEN_OVER: u8 = 0x8e;
/// The first byte of an AUTH, which only version 5 has.
const AUTH: u8 = 0xf0;

/// Looks at all the bytes a client has sent so far. Anything after the packet is left alone: a client may go on before
/// its CONNACK (3.1.4).
///
/// Until the packet is whole only its first dozen bytes are looked at, so calling again for every byte costs the same
/// each time; a client that speaks something else is refused at the first byte that says so.
pub fn parse_connect(bytes: &[u8]) -> Parsed<'_> {
    let head = match read_head(bytes) {
        Ok(head) => head,
        Err(Stop::Incomplete) => return Parsed::Incomplete,
        Err(Stop::Refused(refusal)) => return Parsed::Refused(refusal),
    };
    let Some(rest) = bytes.get(head.payload..head.length) else { return Parsed::Incomplete };
    match read_rest(&head, rest) {
        Ok(connect) => Parsed::Connect(connect),
        Err(fault) => Parsed::Refused(fault.refusal(Some(head.version))),
    }
}

/// The reason code of a DISCONNECT (3.14) that bytes end with, if its length is one byte, as that of all but those with
/// long texts is. Where packets begin is not known, so a payload that ends in such bytes passes for one.
pub fn disconnect_at_end(bytes: &[u8]) -> Option<u8> {
    let tail = &bytes[bytes.len().saturating_sub(2 + 0x7f)..];
    memchr::memrchr_iter(DISCONNECT, tail).find_map(|at| {
        let (&length, rest) = tail[at + 1..].split_first()?;
        // 5.0, 3.14.2.1: without one it is 0.
        (usize::from(length) == rest.len()).then(|| rest.first().copied().unwrap_or(0))
    })
}

/// What the bytes so far amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// Nothing wrong yet, more to come.
    Incomplete,
    Connect(Connect<'a>),
    Refused(Refusal),
}

/// The fields of a CONNECT that a proxy needs; the packet itself goes on verbatim.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Connect<'a> {
    pub version: Version,
    /// The highest bit of the protocol level, by which a broker says that it connects as a bridge. No standard has it;
    /// mosquitto and others send it as 0x83 and 0x84.
    pub bridge: bool,
    /// Clean Start in version 5, Clean Session before (3.1.2.4).
    pub clean_start: bool,
    /// 0: none (3.1.2.10).
    pub keep_alive_s: u16,
    /// Valid UTF-8 without U+0000; may be empty, which leaves the choice of an id to the broker (3.1.3.1).
    pub client_id: &'a [u8],
    /// Valid UTF-8 without U+0000.
    pub username: Option<&'a [u8]>,
    /// Bytes of the whole packet, fixed header included.
    pub length: usize,
}

impl fmt::Debug for Connect<'_> {
    /// Without the user name: with some brokers it is the access token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("version", &self.version)
            .field("bridge", &self.bridge)
            .field("clean_start", &self.clean_start)
            .field("keep_alive_s", &self.keep_alive_s)
            .field("client_id", &String::from_utf8_lossy(self.client_id))
            .field("username", &self.username.map(|_| "…"))
            .field("length", &self.length)
            .finish()
    }
}

/// The protocol a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// Name `MQIsdp`, level 3.
    V31,
    /// Name `MQTT`, level 4.
    V311,
    /// Name `MQTT`, level 5.
    V5,
}

/// Why a client is turned away, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// A metric label: `not_connect`, `malformed`, `protocol_error`, `protocol_name`, `unsupported_level` or
    /// `too_large`.
    pub reason: &'static str,
    /// What to send before closing; empty: just close.
    pub answer: &'static [u8],
}

impl Refusal {
    /// The first packet must be a CONNECT [MQTT-3.1.0-1]. Before one, a server has no version to answer in: close. A
    /// CONNECT whose flags aren't 0 is none either: 0x16 is how TLS begins.
    const NOT_CONNECT: Self = Self { reason: "not_connect", answer: &[] };

    /// [MQTT-3.1.2-1]: a server may close without a CONNACK on an unknown name, and version 5 adds that answering would
    /// reveal an MQTT server to whatever this is.
    const PROTOCOL_NAME: Self = Self { reason: "protocol_name", answer: &[] };

    /// [MQTT-3.1.2-2]. A level below 5 means a client of the 3.x family, which understands only the short CONNACK with
    /// return code 1; one above 5 means a client from the future, which is told in the form of version 5, 0x84.
    fn unsupported_level(level: u8) -> Self {
        let answer: &'static [u8] =
            if level & !BRIDGE < 5 { &[CONNACK, 2, 0, 0x01] } else { &[CONNACK, 3, 0, 0x84, 0] };
        Self { reason: "unsupported_level", answer }
    }

    /// Version 5 has a code for it, 0x95 (3.1.4, 4.13); 3.x closes.
    fn too_large(version: Version) -> Self {
        Self { reason: "too_large", answer: if version == Version::V5 { &[CONNACK, 3, 0, 0x95, 0] } else { &[] } }
    }
}

/// The CONNACK that tells a client that no broker can be reached: return code 3 (3.1.1, 3.2.2.3), 0x88 in version 5
/// (3.2.2.2).
pub fn server_unavailable(version: Version) -> &'static [u8] {
    match version {
        Version::V31 | Version::V311 => &[CONNACK, 2, 0, 0x03],
        Version::V5 => &[CONNACK, 3, 0, 0x88, 0],
    }
}

/// Looks at the first bytes of a broker, or at those after a [`Connack::Auth`]. `version`: that of the CONNECT it
/// answers.
pub fn parse_connack(bytes: &[u8], version: Version) -> Connack {
    let Some((&first, after)) = bytes.split_first() else { return Connack::Incomplete };
    if first != CONNACK && !(first == AUTH && version == Version::V5) {
        return Connack::NotConnack;
    }
    let varint = match read_varint(after) {
        Ok(varint) => varint,
        Err(Stop::Incomplete) => return Connack::Incomplete,
        Err(Stop::Refused(_)) => return Connack::NotConnack,
    };
    let length = 1 + varint.width + varint.value;
    if first == AUTH {
        return if bytes.len() < length { Connack::Incomplete } else { Connack::Auth { length } };
    }
    // 3.2.1: exactly two bytes in 3.x. Also for version 5: a broker that only knows 3.x answers code 1 in its own form.
    if varint.value < 2 || (varint.value > 2 && version != Version::V5) {
        return Connack::NotConnack;
    }
    let &[flags, ref after @ ..] = &after[varint.width..] else { return Connack::Incomplete };
    // 3.2.2.1: all flags but Session Present are 0. In 3.1 the whole byte is unused.
    if flags > 1 && version != Version::V31 {
        return Connack::NotConnack;
    }
    after.first().map_or(Connack::Incomplete, |&code| Connack::Connack { code, length })
}

/// What a broker's first bytes amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connack {
    Incomplete,
    NotConnack,
    /// A step of enhanced authentication (version 5, 4.12) comes before the CONNACK, and all its `length` bytes are here:
    /// skip them and parse what follows.
    Auth {
        length: usize,
    },
    /// Known as soon as its code is, which can be before all of its `length` bytes have come. `code` 0: accepted.
    Connack {
        code: u8,
        length: usize,
    },
}

/// Whether a refusing CONNACK counts against the broker rather than the client.
///
/// A code is the client's when something the client chose explains it: its id, its credentials, what it asks of its
/// will, a packet the broker finds malformed. It is the broker's when another broker with the same users would have
/// accepted: unavailable, busy, over quota, redirecting elsewhere, or lacking what the standard lets a client ask for. So
/// "unsupported protocol version" is the broker's: only versions that a standard defines are forwarded, and a rewrite
/// that forgot one must not look healthy. Codes the standard doesn't define are the broker's as well.
pub fn connack_is_broker_fault(version: Version, code: u8) -> bool {
    match (version, code) {
        (_, 0) => false,
        // 3.1.1, 3.2.2.3: identifier rejected, bad user name or password, not authorised. The others are unacceptable
        // version (1), server unavailable (3) and reserved. In version 5, codes below 0x80 come from a broker that
        // answers in the form of 3.x.
        (Version::V31 | Version::V311, _) | (Version::V5, ..0x80) => !matches!(code, 2 | 4 | 5),
        (Version::V5, _) => !matches!(
            code,
            0x81 // malformed packet
                | 0x82 // protocol error
                | 0x85 // client identifier not valid
                | 0x86 // bad user name or password
                | 0x87 // not authorised
                | 0x8a // banned
                | 0x8c // bad authentication method
                | 0x90 // topic name (of the will) invalid
                | 0x95 // packet too large
                | 0x99 // payload format (of the will) invalid
        ),
    }
}

/// The bit of the protocol level that says "a bridge".
const BRIDGE: u8 = 0x80;

/// The connect flags, 3.1.2.3.
mod flag {
    pub(super) const RESERVED: u8 = 0x01;
    pub(super) const CLEAN_START: u8 = 0x02;
    pub(super) const WILL: u8 = 0x04;
    pub(super) const WILL_QOS: u8 = 0x18;
    pub(super) const WILL_RETAIN: u8 = 0x20;
    pub(super) const PASSWORD: u8 = 0x40;
    pub(super) const USER_NAME: u8 = 0x80;
}

/// The first bytes of a CONNECT, up to and with its flags.
struct Head {
    version: Version,
    bridge: bool,
    flags: u8,
    /// Where the bytes after the flags begin.
    payload: usize,
    /// Bytes of the whole packet.
    length: usize,
}

enum Stop {
    Incomplete,
    Refused(Refusal),
}

/// What can be wrong inside a packet, as version 5 tells apart (4.13); 3.x closes for both [MQTT-3.1.4-1].
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Can't be read as the standard says: 0x81.
    Malformed,
    /// Can be read but says what it must not: 0x82.
    Protocol,
}

impl Fault {
    /// `version`: `None` before it is known, and then there is no form to answer in.
    fn refusal(self, version: Option<Version>) -> Refusal {
        let v5 = version == Some(Version::V5);
        match self {
            Self::Malformed => {
                Refusal { reason: "malformed", answer: if v5 { &[CONNACK, 3, 0, 0x81, 0] } else { &[] } }
            }
            Self::Protocol => {
                Refusal { reason: "protocol_error", answer: if v5 { &[CONNACK, 3, 0, 0x82, 0] } else { &[] } }
            }
        }
    }
}

/// Looks at no more than 5 + 8 + 2 bytes, each check made as soon as its byte is there.
fn read_head(bytes: &[u8]) -> Result<Head, Stop> {
    let malformed = |version| Stop::Refused(Fault::Malformed.refusal(version));
    let (&first, after) = bytes.split_first().ok_or(Stop::Incomplete)?;
    if first != CONNECT {
        return Err(Stop::Refused(Refusal::NOT_CONNECT));
    }
    let remaining = read_varint(after)?;
    let start = 1 + remaining.width;
    let length = start + remaining.value;
    let byte = |at: usize, version| {
        if at >= remaining.value { Err(malformed(version)) } else { bytes.get(start + at).ok_or(Stop::Incomplete) }
    };

    // The name, and the one level of the 3.x family that goes with it.
    let (name, v3_level): (&[u8], u8) = match (*byte(0, None)?, byte(1, None)) {
        (0, Ok(4)) => (b"MQTT", 4),
        (0, Ok(6)) => (b"MQIsdp", 3),
        (0, Err(stop)) => return Err(stop),
        _ => return Err(Stop::Refused(Refusal::PROTOCOL_NAME)),
    };
    for (at, expected) in name.iter().enumerate() {
        if byte(2 + at, None)? != expected {
            return Err(Stop::Refused(Refusal::PROTOCOL_NAME));
        }
    }
    let at = 2 + name.len();
    let level = *byte(at, None)?;
    let (version, bridge) = match level {
        5 if v3_level == 4 => (Version::V5, false),
        _ if level & !BRIDGE == v3_level => {
            (if v3_level == 4 { Version::V311 } else { Version::V31 }, level & BRIDGE != 0)
        }
        // `MQIsdp` is the name of 3.1 alone: whatever its level, the client reads the short CONNACK.
        _ if v3_level == 3 => return Err(Stop::Refused(Refusal::unsupported_level(0))),
        _ => return Err(Stop::Refused(Refusal::unsupported_level(level))),
    };

    if length > MAX_CONNECT {
        return Err(Stop::Refused(Refusal::too_large(version)));
    }
    // Version 5 wants the shortest encoding of a length [MQTT-1.5.5-1]; 3.x says nothing.
    if version == Version::V5 && !remaining.shortest {
        return Err(malformed(Some(version)));
    }
    let flags = *byte(at + 1, Some(version))?;
    if !flags_agree(version, flags) {
        return Err(malformed(Some(version)));
    }
    Ok(Head { version, bridge, flags, payload: start + at + 2, length })
}

/// The rules between the connect flags, 3.1.2.3 to 3.1.2.9.
fn flags_agree(version: Version, flags: u8) -> bool {
    let has = |bit| flags & bit != 0;
    // [MQTT-3.1.2-14], in 5.0 [MQTT-3.1.2-12]: 3 is not a quality of service.
    let will_qos_exists = !has(flag::WILL) || flags & flag::WILL_QOS != flag::WILL_QOS;
    // [MQTT-3.1.2-22]; 3.1 says the same. Version 5 allows a password alone (3.1.2.9).
    let password_has_user = version == Version::V5 || !has(flag::PASSWORD) || has(flag::USER_NAME);
    // [MQTT-3.1.2-3]: bit 0 is 0. [MQTT-3.1.2-11], -13, -15: nothing is said about a will that isn't there. Version 3.1
    // has a server disregard these bits.
    let unused_is_zero = version == Version::V31
        || (!has(flag::RESERVED) && (has(flag::WILL) || flags & (flag::WILL_QOS | flag::WILL_RETAIN) == 0));
    will_qos_exists && password_has_user && unused_is_zero
}

/// Reads the rest of a whole packet, which begins after its flags.
fn read_rest<'a>(head: &Head, rest: &'a [u8]) -> Result<Connect<'a>, Fault> {
    let mut rest = Rest(rest);
    let has = |bit| head.flags & bit != 0;
    let v5 = head.version == Version::V5;

    let keep_alive_s = rest.u16()?;
    if v5 {
        let seen = rest.properties(connect_property)?;
        // 3.1.2.11.10: data of an authentication without its method.
        if seen & (1 << AUTHENTICATION_DATA) != 0 && seen & (1 << AUTHENTICATION_METHOD) == 0 {
            return Err(Fault::Protocol);
        }
    }
    // An empty id together with a kept session is the broker's to refuse, with code 2 [MQTT-3.1.3-8], as are ids over 23
    // bytes in 3.1: a broker may take them.
    let client_id = rest.string()?;
    if has(flag::WILL) {
        if v5 {
            rest.properties(will_property)?;
        }
        rest.string()?;
        rest.binary()?;
    }
    // Version 3.1 wants the remaining length to take precedence over these flags: a user name or password may be
    // announced and missing.
    let announced = |bit, rest: &Rest<'_>| has(bit) && !(head.version == Version::V31 && rest.0.is_empty());
    let username = if announced(flag::USER_NAME, &rest) { Some(rest.string()?) } else { None };
    if announced(flag::PASSWORD, &rest) {
        rest.binary()?;
    }
    if !rest.0.is_empty() {
        return Err(Fault::Malformed);
    }
    Ok(Connect {
        version: head.version,
        bridge: head.bridge,
        clean_start: has(flag::CLEAN_START),
        keep_alive_s,
        client_id,
        username,
        length: head.length,
    })
}

/// The unread part of a packet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Fault::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, Fault> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, Fault> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Two bytes of length and as many bytes of anything (5.0, 1.5.6).
    fn binary(&mut self) -> Result<&'a [u8], Fault> {
        let length = self.u16()?;
        self.take(length.into())
    }

    /// A UTF-8 string: well-formed [MQTT-1.5.3-1] (no surrogates either) and without U+0000 [MQTT-1.5.3-2]; in 5.0
    /// [MQTT-1.5.4-1] and -2.
    fn string(&mut self) -> Result<&'a [u8], Fault> {
        let bytes = self.binary()?;
        if std::str::from_utf8(bytes).is_ok() && !bytes.contains(&0) { Ok(bytes) } else { Err(Fault::Malformed) }
    }

    /// A property list of version 5, 2.2.2, of which `kind` says what may be in it. Answers with a bit for every
    /// identifier seen.
    fn properties(&mut self, kind: fn(u8) -> Option<Kind>) -> Result<u64, Fault> {
        let length = match read_varint(self.0) {
            Ok(varint) if varint.shortest => varint,
            _ => return Err(Fault::Malformed),
        };
        self.take(length.width)?;
        let mut list = Self(self.take(length.value)?);
        let mut seen = 0;
        while !list.0.is_empty() {
            let id = list.u8()?;
            // 2.2.2.2: an identifier that isn't one, or belongs to another packet, makes the packet malformed.
            let kind = kind(id).ok_or(Fault::Malformed)?;
            // 3.1.2.11, 3.1.3.2: all but the user property appear once at most.
            if kind != Kind::Pair && seen & (1 << id) != 0 {
                return Err(Fault::Protocol);
            }
            seen |= 1 << id;
            let allowed = match kind {
                Kind::Flag => list.u8()? <= 1,
                Kind::Fixed(width) => list.take(width).map(|_| true)?,
                Kind::NotZero(width) => list.take(width)?.iter().any(|&byte| byte != 0),
                Kind::Binary => list.binary().map(|_| true)?,
                Kind::String => list.string().map(|_| true)?,
                Kind::Pair => list.string().and_then(|_| list.string()).map(|_| true)?,
            };
            if !allowed {
                return Err(Fault::Protocol);
            }
        }
        Ok(seen)
    }
}

/// How the value of a property is written, and which values are an error.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// One byte, 0 or 1.
    Flag,
    /// A number of this many bytes.
    Fixed(usize),
    /// Likewise, and 0 is an error.
    NotZero(usize),
    Binary,
    String,
    /// A user property: two strings, any number of times.
    Pair,
}

const AUTHENTICATION_METHOD: u8 = 0x15;
const AUTHENTICATION_DATA: u8 = 0x16;

/// Properties of a CONNECT, 3.1.2.11. All identifiers are below 64, so that one word can hold which were seen.
fn connect_property(id: u8) -> Option<Kind> {
    Some(match id {
        0x11 => Kind::Fixed(4), // session expiry interval
        AUTHENTICATION_METHOD => Kind::String,
        AUTHENTICATION_DATA => Kind::Binary,
        0x17 => Kind::Flag,       // request problem information
        0x19 => Kind::Flag,       // request response information
        0x21 => Kind::NotZero(2), // receive maximum
        0x22 => Kind::Fixed(2),   // topic alias maximum
        0x26 => Kind::Pair,       // user property
        0x27 => Kind::NotZero(4), // maximum packet size
        _ => return None,
    })
}

/// Properties of a will, 3.1.3.2.
fn will_property(id: u8) -> Option<Kind> {
    Some(match id {
        0x01 => Kind::Flag,     // payload format indicator
        0x02 => Kind::Fixed(4), // message expiry interval
        0x03 => Kind::String,   // content type
        0x08 => Kind::String,   // response topic
        0x09 => Kind::Binary,   // correlation data
        0x18 => Kind::Fixed(4), // will delay interval
        0x26 => Kind::Pair,     // user property
        _ => return None,
    })
}

struct Varint {
    value: usize,
    /// Bytes it takes, 1 to 4.
    width: usize,
    /// Whether fewer bytes would not have done.
    shortest: bool,
}

/// A variable byte integer, 2.2.3 (in 5.0, 1.5.5): seven bits a byte, lowest first, four bytes at most.
fn read_varint(bytes: &[u8]) -> Result<Varint, Stop> {
    let mut value = 0;
    for (at, &byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            return Ok(Varint { value, width: at + 1, shortest: at == 0 || byte != 0 });
        }
    }
    Err(if bytes.len() < 4 { Stop::Incomplete } else { Stop::Refused(Fault::Malformed.refusal(None)) })
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::{super::seeded::Xorshift, *};

    fn string(bytes: impl AsRef<[u8]>) -> Vec<u8> {
        let bytes = bytes.as_ref();
        [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
    }

    fn varint(mut value: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value >= 128 {
            bytes.push(value as u8 | 128);
            value /= 128;
        }
        bytes.push(value as u8);
        bytes
    }

    fn packet(rest: impl AsRef<[u8]>) -> Vec<u8> {
        let rest = rest.as_ref();
        [&[CONNECT], varint(rest.len()).as_slice(), rest].concat()
    }

    fn connect(name: &str, level: u8, flags: u8, rest: &[&[u8]]) -> Vec<u8> {
        packet([&string(name), [level, flags, 0, 60].as_slice(), &rest.concat()].concat())
    }

    fn v31(flags: u8, rest: &[&[u8]]) -> Vec<u8> {
        connect("MQIsdp", 3, flags, rest)
    }

    fn v311(flags: u8, rest: &[&[u8]]) -> Vec<u8> {
        connect("MQTT", 4, flags, rest)
    }

    /// With these properties and the client id `id`.
    fn v5(flags: u8, properties: impl AsRef<[u8]>, rest: &[&[u8]]) -> Vec<u8> {
        let properties = properties.as_ref();
        let rest = rest.concat();
        connect("MQTT", 5, flags, &[&varint(properties.len()), properties, &string("id"), &rest])
    }

    /// The first answer to the bytes as they come one by one.
    fn dripped(bytes: &[u8]) -> (usize, Parsed<'_>) {
        (0..=bytes.len())
            .map(|end| (end, parse_connect(&bytes[..end])))
            .find(|(_, parsed)| *parsed != Parsed::Incomplete)
            .unwrap_or((bytes.len(), Parsed::Incomplete))
    }

    fn accepted(bytes: &[u8]) -> Connect<'_> {
        let Parsed::Connect(connect) = parse_connect(bytes) else {
            panic!("{}: {:?}", bytes.escape_ascii(), parse_connect(bytes));
        };
        assert_eq!(connect.length, bytes.len());
        assert_eq!(dripped(bytes), (bytes.len(), Parsed::Connect(connect)));
        let more = [bytes, b"\xc0\0"].concat();
        assert_eq!(parse_connect(&more), Parsed::Connect(connect));
        connect
    }

    fn check_refused(bytes: impl AsRef<[u8]>, reason: &str, answer: &[u8]) {
        let bytes = bytes.as_ref();
        let shown = bytes[..bytes.len().min(200)].escape_ascii().to_string();
        for parsed in [parse_connect(bytes), dripped(bytes).1] {
            let Parsed::Refused(refusal) = parsed else { panic!("{shown}: {parsed:?}") };
            assert_eq!((refusal.reason, refusal.answer), (reason, answer), "{shown}");
        }
    }

    const V5_MALFORMED: &[u8] = &[0x20, 3, 0, 0x81, 0];
    const V5_PROTOCOL_ERROR: &[u8] = &[0x20, 3, 0, 0x82, 0];

    #[test]
    fn a_disconnect_is_known_at_the_end_of_what_was_sent() {
        let long = [&[0xe0, 0x7f, 0x98][..], &[0; 0x7e]].concat();
        for (bytes, expected) in [
            (&b""[..], None),
            (&[0xe0], None),
            (&[0xe0, 0], Some(0)),
            (&[0xe0, 1, 4], Some(4)),
            (&[0xe0, 2, 0x8e, 0], Some(0x8e)),
            (&[0xe0, 2, 4], None),
            (&[0x30, 3, 0, 1, b't', 0xe0, 0], Some(0)),
            (&[0xe0, 0, 0xc0, 0], None),
            (&[0xc0, 0], None),
            (&long, Some(0x98)),
            (&[0xe0, 1, 4].repeat(50), Some(4)),
        ] {
            assert_eq!(disconnect_at_end(bytes), expected, "{bytes:02x?}");
        }
    }

    #[test]
    fn every_version_is_read_with_and_without_the_bridge_bit() {
        for (name, level, version, bridge) in [
            ("MQIsdp", 0x03, Version::V31, false),
            ("MQIsdp", 0x83, Version::V31, true),
            ("MQTT", 0x04, Version::V311, false),
            ("MQTT", 0x84, Version::V311, true),
        ] {
            let bytes = connect(name, level, flag::CLEAN_START, &[&string("id")]);
            let expected = Connect {
                version,
                bridge,
                clean_start: true,
                keep_alive_s: 60,
                client_id: b"id",
                username: None,
                length: bytes.len(),
            };
            assert_eq!(accepted(&bytes), expected);
        }
        let bytes = v5(0, [], &[]);
        let connect = accepted(&bytes);
        assert_eq!((connect.version, connect.bridge, connect.clean_start), (Version::V5, false, false));
    }

    #[test]
    fn everything_a_connect_can_carry_is_read() {
        let bytes =
            v311(0xee, &[&string("caf\u{e9}"), &string("will/topic"), &string([0, 255]), &string("u"), &string([255])]);
        assert_eq!(
            (accepted(&bytes).client_id, accepted(&bytes).username),
            ("caf\u{e9}".as_bytes(), Some(b"u".as_slice()))
        );

        let bytes = v311(flag::USER_NAME, &[&string(""), &string("")]);
        assert_eq!((accepted(&bytes).client_id, accepted(&bytes).username), (b"".as_slice(), Some(b"".as_slice())));

        let properties = [
            &[0x11, 0, 0, 0, 1, 0x21, 0, 1, 0x27, 0, 0, 0, 1, 0x22, 0, 0, 0x19, 1, 0x17, 0, 0x15],
            string("m").as_slice(),
            &[0x16],
            &string([0, 255]),
            &[0x26],
            &string("k"),
            &string("v"),
            &[0x26],
            &string("k"),
            &string("v"),
        ]
        .concat();
        let will = [
            &[0x01, 1, 0x02, 0, 0, 0, 0, 0x03],
            string("t").as_slice(),
            &[0x08],
            &string("r"),
            &[0x09],
            &string([0]),
            &[0x18, 0, 0, 0, 9],
        ]
        .concat();
        let rest: [&[u8]; 6] = [&varint(will.len()), &will, &string("t"), &string("p"), &string("u"), &string([0])];
        let bytes = v5(0xf6, properties, &rest);
        assert_eq!((accepted(&bytes).client_id, accepted(&bytes).username), (b"id".as_slice(), Some(b"u".as_slice())));
    }

    #[test]
    fn what_the_broker_may_judge_is_left_to_it() {
        // An empty id with a kept session, a long id in 3.1, a password alone in 5.
        assert_eq!(accepted(&v311(0, &[&string("")])).client_id, b"");
        assert_eq!(accepted(&v31(0, &[&string([b'x'; 60])])).client_id.len(), 60);
        assert_eq!(accepted(&v5(flag::PASSWORD, [], &[&string("p")])).username, None);
        assert_eq!(accepted(&v311(0, &[&string([b'x'; 65_535])])).client_id.len(), 65_535);
    }

    #[test]
    fn version_31_is_read_with_its_own_leniency() {
        // Announced and missing user name or password; bits without a meaning set.
        assert_eq!(accepted(&v31(0xc0, &[&string("id")])).username, None);
        assert_eq!(accepted(&v31(0xc0, &[&string("id"), &string("u")])).username, Some(b"u".as_slice()));
        assert_eq!(accepted(&v31(0x39, &[&string("id")])).client_id, b"id");
        check_refused(v311(0xc0, &[&string("id"), &string("u")]), "malformed", &[]);
        // A longer encoding than needed of the remaining length, in 3.x.
        let mut bytes = v311(0, &[&string("id")]);
        bytes.splice(1..2, [bytes[1] | 0x80, 0x80, 0x80, 0]);
        assert_eq!(accepted(&bytes).client_id, b"id");
    }

    #[test]
    fn other_protocols_are_refused_at_the_first_byte_that_shows_it() {
        for (bytes, reason, at) in [
            (b"GET / HTTP/1.1".as_slice(), "not_connect", 1),
            (b"\x16\x03\x01", "not_connect", 1),
            (b"\xc0\0", "not_connect", 1),
            (b"\0", "not_connect", 1),
            (b"\x11\x0e", "not_connect", 1),
            (b"\x10\0", "malformed", 2),
            (b"\x10\x05\0\x04MQT", "malformed", 7),
            (b"\x10\x80\x80\x80\x80\x01\0\x04MQTT\x05", "malformed", 5),
            (b"\x10\x0e\x01", "protocol_name", 3),
            (b"\x10\x0e\0\x05", "protocol_name", 4),
            (b"\x10\x0e\0\x04MQTt", "protocol_name", 8),
            (b"\x10\x0e\0\x06MQIsd_", "protocol_name", 10),
            (b"\x10\xff\xff\xff\x7f\0\x04HTTP", "protocol_name", 8),
        ] {
            check_refused(bytes, reason, &[]);
            assert_eq!(dripped(bytes).0, at.min(bytes.len()), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn unknown_levels_are_answered_in_the_form_the_client_may_know() {
        for (name, level, answer) in [
            ("MQTT", 0, &[0x20, 2, 0, 1][..]),
            ("MQTT", 3, &[0x20, 2, 0, 1]),
            ("MQTT", 0x83, &[0x20, 2, 0, 1]),
            ("MQTT", 6, &[0x20, 3, 0, 0x84, 0]),
            ("MQTT", 0x7f, &[0x20, 3, 0, 0x84, 0]),
            ("MQTT", 0x85, &[0x20, 3, 0, 0x84, 0]),
            ("MQIsdp", 4, &[0x20, 2, 0, 1]),
            ("MQIsdp", 5, &[0x20, 2, 0, 1]),
        ] {
            let bytes = connect(name, level, 0xff, &[]);
            check_refused(&bytes, "unsupported_level", answer);
            assert_eq!(dripped(&bytes).0, 2 + 2 + name.len() + 1);
        }
    }

    #[test]
    fn too_large_a_packet_is_refused_as_soon_as_its_version_is_known() {
        let largest = MAX_CONNECT - 1 - 3;
        for (remaining, name, level, answer) in [
            (largest + 1, "MQTT", 5, Some(&[0x20, 3, 0, 0x95, 0][..])),
            (268_435_455, "MQTT", 5, Some(&[0x20, 3, 0, 0x95, 0])),
            (largest + 1, "MQTT", 4, Some(&[])),
            (largest + 1, "MQIsdp", 3, Some(&[])),
            (largest, "MQTT", 5, None),
        ] {
            let bytes = [&[CONNECT], varint(remaining).as_slice(), &string(name), &[level]].concat();
            match answer {
                Some(answer) => check_refused(&bytes, "too_large", answer),
                None => assert_eq!(parse_connect(&bytes), Parsed::Incomplete),
            }
            assert_eq!(parse_connect(&bytes[..bytes.len() - 1]), Parsed::Incomplete);
        }
    }

    #[test]
    fn a_packet_of_exactly_the_limit_passes() {
        let longest = string([b'x'; 65_535]);
        let properties = [&[0x26], longest.as_slice(), &longest, &[0x26, 0, 0], &longest].concat();
        let room = MAX_CONNECT - v5(flag::PASSWORD, &properties, &[&string("")]).len();
        let bytes = v5(flag::PASSWORD, &properties, &[&string(vec![0; room])]);
        assert_eq!(bytes.len(), MAX_CONNECT);
        assert!(matches!(parse_connect(&bytes), Parsed::Connect(connect) if connect.length == MAX_CONNECT));
    }

    #[test]
    fn malformed_packets_of_3x_are_closed_on_and_those_of_5_are_told() {
        let id = string("id");
        let will = [string("t"), string("p")].concat();
        for (flags, rest) in [
            (flag::RESERVED, vec![id.as_slice()]),
            (flag::WILL_RETAIN, vec![&id]),
            (0x08, vec![&id]),
            (flag::WILL | flag::WILL_QOS, vec![&id, &will]),
            (flag::WILL, vec![&id]),
            (flag::WILL, vec![&id, &will[..4]]),
            (flag::USER_NAME, vec![&id]),
            (0, vec![]),
            (0, vec![&id[..3]]),
            (0, vec![&id, &[0]]),
        ] {
            check_refused(v311(flags, &rest), "malformed", &[]);
        }
        for id in [b"\xff".as_slice(), b"a\0b", b"\xed\xa0\x80", b"\xc0\x80"] {
            check_refused(v311(0, &[&string(id)]), "malformed", &[]);
            check_refused(v31(0, &[&string(id)]), "malformed", &[]);
        }
        check_refused(v311(flag::PASSWORD, &[&id, &id]), "malformed", &[]);
        check_refused(v311(flag::USER_NAME, &[&id, &string("\0")]), "malformed", &[]);
        check_refused(v31(0, &[&id, &[0]]), "malformed", &[]);
        check_refused(v31(flag::WILL | flag::WILL_QOS, &[&id, &will]), "malformed", &[]);

        for bytes in [
            v5(flag::RESERVED, [], &[]),
            v5(flag::WILL_RETAIN, [], &[]),
            v5(flag::WILL | flag::WILL_QOS, [], &[&[0], &will]),
            v5(flag::WILL, [], &[&[5], &will]),
            v5(0, [], &[&[0]]),
            connect("MQTT", 5, 0, &[]),
            connect("MQTT", 5, 0, &[&[9]]),
            connect("MQTT", 5, 0, &[&[0x80, 0], &id]),
            connect("MQTT", 5, 0, &[&[0x80, 0x80, 0x80, 0x80, 1], &id]),
            connect("MQTT", 5, 0, &[&[0], &string("\0")]),
            [&[CONNECT, 0x90, 0x00], &v5(0, [], &[])[2..]].concat(),
        ] {
            check_refused(bytes, "malformed", V5_MALFORMED);
        }
    }

    #[test]
    fn properties_of_version_5_are_held_to_the_standard() {
        for (properties, reason, answer) in [
            (&[0x11, 0, 0, 0][..], "malformed", V5_MALFORMED),
            (&[0x00], "malformed", V5_MALFORMED),
            (&[0x01, 0], "malformed", V5_MALFORMED), // belongs to a will
            (&[0x8b, 0x01], "malformed", V5_MALFORMED),
            (&[0xff], "malformed", V5_MALFORMED),
            (&[0x26, 0, 1, b'k', 0, 2, b'v'], "malformed", V5_MALFORMED),
            (&[0x15, 0, 1, 0], "malformed", V5_MALFORMED),
            (&[0x22, 0, 1, 0x22, 0, 1], "protocol_error", V5_PROTOCOL_ERROR),
            (&[0x21, 0, 0], "protocol_error", V5_PROTOCOL_ERROR),
            (&[0x27, 0, 0, 0, 0], "protocol_error", V5_PROTOCOL_ERROR),
            (&[0x17, 2], "protocol_error", V5_PROTOCOL_ERROR),
            (&[0x19, 2], "protocol_error", V5_PROTOCOL_ERROR),
            (&[0x16, 0, 0], "protocol_error", V5_PROTOCOL_ERROR),
        ] {
            check_refused(v5(0, properties, &[]), reason, answer);
        }
        for (properties, reason, answer) in [
            (&[0x11, 0, 0, 0, 0][..], "malformed", V5_MALFORMED), // belongs to the connection
            (&[0x03, 0, 9], "malformed", V5_MALFORMED),
            (&[0x01, 2], "protocol_error", V5_PROTOCOL_ERROR),
            (&[0x01, 0, 0x01, 0], "protocol_error", V5_PROTOCOL_ERROR),
        ] {
            let rest: [&[u8]; 4] = [&varint(properties.len()), properties, &string("t"), &string("p")];
            check_refused(v5(flag::WILL, [], &rest), reason, answer);
        }
    }

    #[test]
    fn a_user_name_stays_out_of_logs() {
        let bytes = v311(flag::USER_NAME, &[&string("id"), &string("token-1234")]);
        assert!(!format!("{:?}", accepted(&bytes)).contains("token"));
    }

    #[test]
    fn a_client_learns_that_no_broker_can_be_reached() {
        for version in [Version::V31, Version::V311, Version::V5] {
            let bytes = server_unavailable(version);
            let code = if version == Version::V5 { 0x88 } else { 3 };
            assert_eq!(parse_connack(bytes, version), Connack::Connack { code, length: bytes.len() });
            assert!(connack_is_broker_fault(version, code));
        }
    }

    #[test]
    fn a_connack_is_known_as_soon_as_its_code_is() {
        use Version::{V5, V31, V311};
        for (bytes, version, expected) in [
            (&[][..], V5, Connack::Incomplete),
            (&[0x20], V5, Connack::Incomplete),
            (&[0x20, 2], V311, Connack::Incomplete),
            (&[0x20, 2, 0], V311, Connack::Incomplete),
            (&[0x20, 2, 1, 0], V311, Connack::Connack { code: 0, length: 4 }),
            (&[0x20, 2, 0, 5, 0x30], V311, Connack::Connack { code: 5, length: 4 }),
            (&[0x20, 2, 7, 0], V31, Connack::Connack { code: 0, length: 4 }),
            (&[0x20, 2, 2], V311, Connack::NotConnack),
            (&[0x20, 3], V311, Connack::NotConnack),
            (&[0x20, 1], V5, Connack::NotConnack),
            (&[0x20, 0x80, 0x80], V5, Connack::Incomplete),
            (&[0x20, 0x80, 0x80, 0x80, 0x80], V5, Connack::NotConnack),
            (&[0x20, 3, 0, 0x87], V5, Connack::Connack { code: 0x87, length: 5 }),
            (&[0x20, 0x83, 0x02, 0, 0], V5, Connack::Connack { code: 0, length: 262 }),
            (&[0x20, 2, 0, 1], V5, Connack::Connack { code: 1, length: 4 }),
            (&[0x30], V5, Connack::NotConnack),
            (&[0x21], V5, Connack::NotConnack),
            (b"HTTP/1.1 400", V311, Connack::NotConnack),
            (&[0xf0, 2], V5, Connack::Incomplete),
            (&[0xf0, 2, 0x18, 0, 0x20], V5, Connack::Auth { length: 4 }),
            (&[0xf0], V311, Connack::NotConnack),
        ] {
            assert_eq!(parse_connack(bytes, version), expected, "{bytes:x?}");
            for cut in 0..bytes.len() {
                let early = parse_connack(&bytes[..cut], version);
                assert!(early == Connack::Incomplete || early == expected, "{bytes:x?}, {cut}: {early:?}");
            }
        }
    }

    #[test]
    fn refusals_that_the_client_explains_do_not_count_against_the_broker() {
        for (version, client, broker) in [
            (Version::V31, &[0, 2, 4, 5][..], &[1, 3, 6, 255][..]),
            (Version::V311, &[0, 2, 4, 5], &[1, 3, 6, 255]),
            (
                Version::V5,
                &[0, 2, 4, 5, 0x81, 0x82, 0x85, 0x86, 0x87, 0x8a, 0x8c, 0x90, 0x95, 0x99],
                &[1, 3, 0x80, 0x83, 0x84, 0x88, 0x89, 0x97, 0x9a, 0x9b, 0x9c, 0x9d, 0x9f, 0xff],
            ),
        ] {
            for code in client {
                assert!(!connack_is_broker_fault(version, *code), "{version:?} {code:#x}");
            }
            for code in broker {
                assert!(connack_is_broker_fault(version, *code), "{version:?} {code:#x}");
            }
        }
    }

    /// A CONNECT with random fields, mostly valid.
    fn random_connect(random: &mut Xorshift) -> Vec<u8> {
        let name = random.pick(&["MQTT", "MQTT", "MQTT", "MQIsdp"]);
        let level = if name == "MQIsdp" { 3 } else { 4 + random.below(2) as u8 } | (random.below(8) / 7 * 0x80) as u8;
        let will = if random.below(2) == 0 { 0 } else { flag::WILL | (random.below(3) << 3) as u8 };
        let login = [0, flag::USER_NAME, flag::USER_NAME | flag::PASSWORD][random.below(3)];
        let properties = [
            vec![],
            vec![0x11, 0, 0, 0, 9],
            vec![0x21, 0, 9, 0x22, 0, 9],
            [&[0x26], string("k").as_slice(), &string("v")].concat(),
            [&[0x15], string("m").as_slice(), &[0x16], &string("d")].concat(),
        ];
        let will_properties = [vec![], vec![0x18, 0, 0, 0, 9], [&[0x03], string("t").as_slice()].concat()];
        let mut rest = Vec::new();
        let mut list = |rest: &mut Vec<u8>, properties: &[Vec<u8>]| {
            if level == 5 {
                let properties = &properties[random.below(properties.len())];
                rest.extend(varint(properties.len()));
                rest.extend(properties);
            }
        };
        list(&mut rest, &properties);
        rest.extend(string("client"));
        if will != 0 {
            list(&mut rest, &will_properties);
            rest.extend([string("t"), string("p")].concat());
        }
        for bit in [flag::USER_NAME, flag::PASSWORD] {
            if login & bit != 0 {
                rest.extend(string("name"));
            }
        }
        connect(name, level, will | login | flag::CLEAN_START, &[&rest])
    }

    /// Reads an accepted packet with another parser, which knows no bridges, nor 3.1, nor passwords that aren't UTF-8,
    /// and takes an empty user name for none.
    fn check_against_mqttbytes(bytes: &[u8], connect: Connect<'_>) -> bool {
        use mqttbytes::{v4, v5};
        if connect.bridge || connect.version == Version::V31 {
            return false;
        }
        let shown = bytes.escape_ascii();
        let mut stream = bytes::BytesMut::from(bytes);
        // It is known to panic on some input; that is not ours to test.
        let read = catch_unwind(AssertUnwindSafe(|| match connect.version {
            Version::V5 => v5::read(&mut stream, MAX_CONNECT).map(|packet| match packet {
                v5::Packet::Connect(read) => {
                    (read.client_id, read.keep_alive, read.clean_session, read.login.map(|login| login.username))
                }
                other => panic!("{shown}: {other:?}"),
            }),
            _ => v4::read(&mut stream, MAX_CONNECT).map(|packet| match packet {
                v4::Packet::Connect(read) => {
                    (read.client_id, read.keep_alive, read.clean_session, read.login.map(|login| login.username))
                }
                other => panic!("{shown}: {other:?}"),
            }),
        }));
        match read {
            Ok(Ok((client_id, keep_alive, clean, username))) => {
                assert_eq!(client_id.as_bytes(), connect.client_id, "{shown}");
                assert_eq!((keep_alive, clean), (connect.keep_alive_s, connect.clean_start), "{shown}");
                let username = username.unwrap_or_default();
                assert_eq!(username.as_bytes(), connect.username.unwrap_or_default(), "{shown}");
                true
            }
            Ok(Err(mqttbytes::Error::TopicNotUtf8)) => false,
            Ok(Err(error)) => panic!("{shown}: {error}"),
            Err(_) => false,
        }
    }

    #[test]
    fn hostile_input_gets_one_answer_however_it_is_cut_and_what_passes_mqttbytes_reads_alike() {
        let mut random = Xorshift::from_env();
        let mut compared = 0;
        for round in 0..20_000 {
            let mut bytes = if round % 10 == 0 { random.bytes(60) } else { random_connect(&mut random) };
            if round % 3 > 0 {
                random.mutate(&mut bytes, &[&[0], &[0xff], &[0, 0], &[CONNECT], &[0x26, 0, 0, 0, 0], &[0x80]]);
            }
            let parsed = parse_connect(&bytes);
            assert_eq!(dripped(&bytes).1, parsed, "{}", bytes.escape_ascii());
            if let Parsed::Connect(connect) = parsed {
                compared += u32::from(check_against_mqttbytes(&bytes[..connect.length], connect));
            }
            for version in [Version::V31, Version::V311, Version::V5] {
                let _ = parse_connack(&bytes, version);
                if let Some(first) = bytes.first_mut() {
                    *first = if random.below(4) == 0 { AUTH } else { CONNACK };
                }
            }
        }
        assert!(compared > 1000, "only {compared} packets compared: the generator tests nothing");
    }
}
