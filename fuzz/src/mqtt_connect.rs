use crate::{
    cuts::{self, Draw},
    wire::mqtt::{Connack, Connect, MAX_CONNECT, Parsed, Refusal, Version, parse_connack, parse_connect},
};

/// Bytes within which a client that says it sends more than we take is refused: fixed header, name, level, flags.
const HEAD: usize = 5 + 8 + 2;

/// The verdict on a CONNECT is the same whole and byte by byte; every shorter prefix of one that passes is unfinished;
/// an unfinished one is not there to the last byte, and announces no more than the limit; what passes is well-formed text from within the packet, and the
/// same packet with another client id passes with that id; a refusal is answered with what a client can read.
pub fn mqtt_connect(bytes: &[u8]) {
    let shown = bytes.escape_ascii();
    let whole = parse_connect(bytes);
    let first = (0..=bytes.len())
        .map(|end| parse_connect(&bytes[..end]))
        .find(|parsed| *parsed != Parsed::Incomplete)
        .unwrap_or(Parsed::Incomplete);
    assert_eq!(first, whole, "byte by byte: {shown}");
    match whole {
        Parsed::Incomplete => {
            assert!(announced(bytes).is_none_or(|length| bytes.len() < length), "it is whole: {shown}");
            assert!(bytes.len() < HEAD || announced(bytes).is_some_and(|length| length <= MAX_CONNECT), "{shown}");
        }
        Parsed::Refused(refusal) => check_refusal(refusal),
        Parsed::Connect(connect) => {
            assert!(connect.length <= bytes.len().min(MAX_CONNECT), "{shown}");
            assert_eq!(announced(bytes), Some(connect.length), "{shown}");
            let packet = &bytes[..connect.length];
            assert_eq!(parse_connect(packet), whole, "without what follows: {shown}");
            for cut in cuts::prefixes(packet, connect.length).into_iter().filter(|cut| *cut < packet.len()) {
                assert_eq!(parse_connect(&packet[..cut]), Parsed::Incomplete, "cut at {cut}: {shown}");
            }
            for text in [Some(connect.client_id), connect.username].into_iter().flatten() {
                assert!(str::from_utf8(text).is_ok() && !text.contains(&0), "{shown}");
            }
            check_other_id(packet, connect);
        }
    }
}

/// Bytes of the packet by its fixed header: `None` when that is not one.
pub(crate) fn announced(bytes: &[u8]) -> Option<usize> {
    let width = 1 + bytes.get(1..)?.iter().take(4).position(|byte| *byte < 0x80)?;
    let value = bytes[1..=width].iter().rev().fold(0, |value, byte| value << 7 | usize::from(byte & 0x7f));
    Some(1 + width + value)
}

fn check_refusal(Refusal { reason, answer }: Refusal) {
    const REASONS: [&str; 6] =
        ["not_connect", "malformed", "protocol_error", "protocol_name", "unsupported_level", "too_large"];
    assert!(REASONS.contains(&reason), "{reason}");
    let version = if answer.len() == 5 { Version::V5 } else { Version::V311 };
    let read = parse_connack(answer, version);
    let refuses = matches!(read, Connack::Connack { code: 1.., length } if length == answer.len());
    assert!(answer.is_empty() || refuses, "{reason}: {answer:?}");
}

fn check_other_id(packet: &[u8], connect: Connect<'_>) {
    let at = connect.client_id.as_ptr().addr() - packet.as_ptr().addr();
    let (before, after) = (&packet[..at - 2], &packet[at + connect.client_id.len()..]);
    let length = u16::from_be_bytes([packet[at - 2], packet[at - 1]]);
    assert_eq!(usize::from(length), connect.client_id.len(), "{}", packet.escape_ascii());

    let id = "ø".repeat(Draw::from(packet).below(80));
    let header = 1 + packet[1..].iter().position(|byte| *byte < 0x80).unwrap_or(0) + 1;
    let rest = [&before[header..], &(id.len() as u16).to_be_bytes(), id.as_bytes(), after].concat();
    let mut other = vec![packet[0]];
    let mut left = rest.len();
    while left >= 0x80 {
        other.push(left as u8 | 0x80);
        left >>= 7;
    }
    other.push(left as u8);
    other.extend(rest);
    if other.len() <= MAX_CONNECT {
        let expected = Connect { client_id: id.as_bytes(), length: other.len(), ..connect };
        assert_eq!(parse_connect(&other), Parsed::Connect(expected), "{}", packet.escape_ascii());
    }
}
