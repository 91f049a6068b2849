use crate::{
    cuts::Draw,
    wire::client_hello::{Hello, MAX_HELLO, parse_client_hello},
};

/// Most bytes of handshake in a record, and most records that are looked at.
const MAX_FRAGMENT: usize = 1 << 14;
const MAX_RECORDS: usize = 256;

/// The verdict on a ClientHello is the same whole and byte by byte, with or without what follows, and however the message
/// is divided into records; an unfinished one ends in a refusal once it is as long as we look; a name is one that was
/// sent, in lower case.
pub fn client_hello(bytes: &[u8]) {
    let shown = bytes.escape_ascii();
    let whole = parse_client_hello(bytes);
    let first = (0..=bytes.len())
        .map(|end| (end, parse_client_hello(&bytes[..end])))
        .find(|(_, hello)| *hello != Hello::Incomplete);
    let (end, hello) = first.unwrap_or((bytes.len(), Hello::Incomplete));
    assert_eq!(hello, whole, "byte by byte: {shown}");
    match &whole {
        Hello::Incomplete => {
            let mut endless = bytes.to_vec();
            endless.resize(MAX_HELLO, 0);
            assert_ne!(parse_client_hello(&endless), Hello::Incomplete, "{shown}");
            if let [_, high, middle, low, body @ ..] = message(bytes).as_slice() {
                let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
                assert!(body.len() < length, "it is whole: {shown}");
            }
        }
        Hello::NotTls => assert!(bytes[0] != 22 || bytes[1] != 3, "{shown}"),
        Hello::Malformed(reason) => assert!(reason.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase())),
        Hello::NoServerName | Hello::ServerName(_) => {
            assert_eq!(parse_client_hello(&[&bytes[..end], &[0xff; 9]].concat()), whole, "with more: {shown}");
            let message = message(&bytes[..end]);
            if let Hello::ServerName(name) = &whole {
                assert!(!name.is_empty() && name.len() <= 255, "{shown}");
                assert!(name.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()), "{shown}");
                let sent = message.windows(name.len()).any(|sent| sent.eq_ignore_ascii_case(name.as_bytes()));
                assert!(sent, "{name}: {shown}");
            }
            let least = message.len().div_ceil(MAX_RECORDS).max(1);
            let fragment = (least + Draw::from(bytes).below(message.len())).min(MAX_FRAGMENT);
            let divided = records(&message, fragment);
            if divided.len() <= MAX_HELLO {
                assert_eq!(parse_client_hello(&divided), whole, "in records of {fragment}: {shown}");
            }
        }
    }
}

/// The handshake message in records that hold all of it, and nothing that follows it.
fn message(mut records: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    while let [_, _, _, high, low, rest @ ..] = records {
        let (fragment, after) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])).min(rest.len()));
        message.extend_from_slice(fragment);
        records = after;
    }
    message
}

fn records(message: &[u8], fragment: usize) -> Vec<u8> {
    let record = |part: &[u8]| [&[22, 3, 1], &(part.len() as u16).to_be_bytes()[..], part].concat();
    message.chunks(fragment).flat_map(record).collect()
}
