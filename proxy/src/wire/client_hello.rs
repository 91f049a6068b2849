//! Reads the server name (SNI) out of a TLS ClientHello that goes on untouched: the proxy peeks, it doesn't terminate.
//! Sections are those of RFC 8446 (TLS 1.3) and RFC 6066 (server name indication).

use std::borrow::Cow;

/// How many bytes of a connection are looked at, record headers included. Hellos with post-quantum key shares have 2 to
/// 4 KiB.
pub const MAX_HELLO: usize = 64 * 1024;

/// The longest host name that is taken for one; no name in the DNS is longer (RFC 1035, 3.1).
const MAX_NAME: usize = 255;
/// The longest fragment a record may carry, 5.1.
const MAX_FRAGMENT: usize = 1 << 14;
/// The most records a hello may span. They are walked again for every segment that arrives, so a hello in tens of
/// thousands of records would cost the proxy more than the client; real ones span one to a few.
const MAX_RECORDS: usize = 256;
const RECORD_HEADER: usize = 5;
const HANDSHAKE_HEADER: usize = 4;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// What the first bytes of a connection amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// Nothing wrong yet, more to come.
    Incomplete,
    /// In lower case, as names are compared without regard to case; otherwise as sent. An IP address or a trailing dot,
    /// which RFC 6066 rules out but clients send, stays. With encrypted ClientHello this is the public name.
    ServerName(String),
    /// A whole ClientHello without a name to go by: no such extension, no host name in it, or a name that can't be one
    /// (empty, over 255 bytes, not of visible ASCII). To refuse a strange name is the server's business, and it has an
    /// alert for it (`unrecognized_name`), which a proxy that doesn't terminate can't send.
    NoServerName,
    /// Not a handshake record: another protocol, or a ClientHello in the form of SSL 2.
    NotTls,
    /// TLS, but nothing a server could read. The reason is a metric label: `bad_record`, `not_client_hello`, `too_large`,
    /// `too_many_records`, `truncated_field`, `trailing_bytes`, `bad_field` or `repeated_extension`.
    Malformed(&'static str),
}

/// Looks at all the bytes a client has sent so far; what follows the hello is left alone. Allocates only once the hello is
/// whole: for the name, and to join a hello that came in several records.
pub fn parse_client_hello(bytes: &[u8]) -> Hello {
    let seen = &bytes[..bytes.len().min(MAX_HELLO)];
    let message = match gather(seen) {
        Ok(Some(message)) => message,
        Ok(None) if bytes.len() < MAX_HELLO => return Hello::Incomplete,
        Ok(None) => return Hello::Malformed(TOO_LARGE),
        Err(hello) => return hello,
    };
    match find_name(&message) {
        Ok(Some(name)) => Hello::ServerName(name),
        Ok(None) => Hello::NoServerName,
        Err(reason) => Hello::Malformed(reason),
    }
}

const BAD_RECORD: &str = "bad_record";
const TOO_LARGE: &str = "too_large";
const TOO_MANY_RECORDS: &str = "too_many_records";
const TRUNCATED_FIELD: &str = "truncated_field";
const TRAILING_BYTES: &str = "trailing_bytes";
const BAD_FIELD: &str = "bad_field";

/// Finds the ClientHello's body in the records that carry it: `None` as long as it isn't whole, borrowed when one record
/// has all of it, put together otherwise (5.1 lets a handshake message span records as it likes).
fn gather(bytes: &[u8]) -> Result<Option<Cow<'_, [u8]>>, Hello> {
    let malformed = |reason| Err(Hello::Malformed(reason));
    let mut header = [0; HANDSHAKE_HEADER];
    // Handshake bytes in the records before `rest`.
    let mut gathered = 0;
    let mut rest = bytes;
    for _ in 0..MAX_RECORDS {
        // 5.1: the version of a record, 3.x, is to be ignored, but its first byte tells TLS from other protocols.
        match rest {
            [kind, ..] if *kind != HANDSHAKE => {
                return if gathered == 0 { Err(Hello::NotTls) } else { malformed(BAD_RECORD) };
            }
            [_, major, ..] if *major != 3 => {
                return if gathered == 0 { Err(Hello::NotTls) } else { malformed(BAD_RECORD) };
            }
            _ => {}
        }
        let Some((record, after)) = rest.split_at_checked(RECORD_HEADER) else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
        // 5.1: a handshake record is never empty.
        if length == 0 || length > MAX_FRAGMENT {
            return malformed(BAD_RECORD);
        }
        let fragment = &after[..after.len().min(length)];

        for (at, byte) in fragment.iter().enumerate().take(HANDSHAKE_HEADER.saturating_sub(gathered)) {
            header[gathered + at] = *byte;
        }
        let available = gathered + fragment.len();
        if available >= 1 && header[0] != CLIENT_HELLO {
            return malformed("not_client_hello");
        }
        if available >= HANDSHAKE_HEADER {
            let body = usize::from(header[1]) << 16 | usize::from(header[2]) << 8 | usize::from(header[3]);
            let message = HANDSHAKE_HEADER + body;
            if RECORD_HEADER + message > MAX_HELLO {
                return malformed(TOO_LARGE);
            }
            if available >= message {
                if gathered == 0 {
                    return Ok(Some(Cow::Borrowed(&fragment[HANDSHAKE_HEADER..message])));
                }
                return Ok(Some(Cow::Owned(join(bytes, message))));
            }
        }
        if fragment.len() < length {
            return Ok(None);
        }
        gathered += length;
        rest = &after[length..];
    }
    malformed(TOO_MANY_RECORDS)
}

/// Puts the body of a message of `length` bytes together from records that [`gather`] has found in order and enough.
fn join(mut records: &[u8], length: usize) -> Vec<u8> {
    let mut message = Vec::with_capacity(length);
    while message.len() < length {
        let Some((header, after)) = records.split_at_checked(RECORD_HEADER) else { break };
        let fragment = after.len().min(usize::from(u16::from_be_bytes([header[3], header[4]])));
        message.extend_from_slice(&after[..fragment.min(length - message.len())]);
        records = &after[fragment..];
    }
    message.split_off(HANDSHAKE_HEADER.min(message.len()))
}

/// Reads the body of a ClientHello, 4.1.2. Errors: a metric label.
fn find_name(body: &[u8]) -> Result<Option<String>, &'static str> {
    let mut body = Rest(body);
    body.take(2 + 32)?; // legacy version, random
    let session_id = body.vector8()?;
    let cipher_suites = body.vector16()?;
    let compression_methods = body.vector8()?;
    if session_id.len() > 32
        || cipher_suites.is_empty()
        || cipher_suites.len() % 2 != 0
        || compression_methods.is_empty()
    {
        return Err(BAD_FIELD);
    }
    // Before TLS 1.3 a hello may end here.
    if body.0.is_empty() {
        return Ok(None);
    }
    let mut extensions = Rest(body.vector16()?);
    body.end()?;

    let mut server_name = None;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vector16()?;
        // 4.2: no extension twice. Only this one matters here; unknown ones and GREASE (RFC 8701) are skipped.
        if kind == SERVER_NAME && server_name.replace(data).is_some() {
            return Err("repeated_extension");
        }
    }
    server_name.map_or(Ok(None), first_host_name)
}

/// Reads the extension's list, RFC 6066, 3. Every later kind of name must begin with a length of two bytes, so unknown
/// kinds can be skipped. What follows the first host name is not read: a second one is forbidden, and servers either
/// refuse it or go by the first.
fn first_host_name(extension: &[u8]) -> Result<Option<String>, &'static str> {
    let mut extension = Rest(extension);
    let mut names = Rest(extension.vector16()?);
    extension.end()?;
    if names.0.is_empty() {
        return Err(BAD_FIELD);
    }
    while !names.0.is_empty() {
        let kind = names.u8()?;
        let name = names.vector16()?;
        if kind == HOST_NAME {
            return Ok(host_name(name));
        }
    }
    Ok(None)
}

fn host_name(name: &[u8]) -> Option<String> {
    let valid = !name.is_empty() && name.len() <= MAX_NAME && name.iter().all(u8::is_ascii_graphic);
    valid.then(|| name.iter().map(|&byte| char::from(byte.to_ascii_lowercase())).collect())
}

/// The unread part of a structure.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(TRUNCATED_FIELD)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, &'static str> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, &'static str> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A vector whose length has one byte, 3.4.
    fn vector8(&mut self) -> Result<&'a [u8], &'static str> {
        let length = self.u8()?;
        self.take(length.into())
    }

    /// A vector whose length has two bytes, 3.4.
    fn vector16(&mut self) -> Result<&'a [u8], &'static str> {
        let length = self.u16()?;
        self.take(length.into())
    }

    fn end(&self) -> Result<(), &'static str> {
        if self.0.is_empty() { Ok(()) } else { Err(TRAILING_BYTES) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName, server::Acceptor};

    use super::{super::seeded::Xorshift, *};

    /// A vector with a length of two bytes.
    fn vector16(bytes: impl AsRef<[u8]>) -> Vec<u8> {
        let bytes = bytes.as_ref();
        [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
    }

    fn extension(kind: u16, data: impl AsRef<[u8]>) -> Vec<u8> {
        [kind.to_be_bytes().to_vec(), vector16(data)].concat()
    }

    fn server_name(names: &[(u8, &[u8])]) -> Vec<u8> {
        let list: Vec<u8> = names.iter().flat_map(|(kind, name)| [vec![*kind], vector16(name)].concat()).collect();
        extension(SERVER_NAME, vector16(list))
    }

    /// A handshake message around these extensions, behind one of GREASE.
    fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
        let extensions = [extension(0x0a0a, []), extensions.concat()].concat();
        let body =
            [&[3, 3], [7; 32].as_slice(), &[1, 9], &[0, 4, 0x1a, 0x1a, 0x13, 0x01], &[1, 0], &vector16(extensions)];
        wrap(body.concat())
    }

    fn wrap(body: impl AsRef<[u8]>) -> Vec<u8> {
        let body = body.as_ref();
        [&[CLIENT_HELLO], &(body.len() as u32).to_be_bytes()[1..], body].concat()
    }

    /// The message in records of `fragment` bytes.
    fn records(message: &[u8], fragment: usize) -> Vec<u8> {
        message.chunks(fragment).flat_map(|chunk| [[HANDSHAKE, 3, 1].to_vec(), vector16(chunk)].concat()).collect()
    }

    fn record(message: &[u8]) -> Vec<u8> {
        records(message, MAX_FRAGMENT)
    }

    fn named(name: &str) -> Hello {
        Hello::ServerName(name.into())
    }

    fn malformed(reason: &'static str) -> Hello {
        Hello::Malformed(reason)
    }

    /// The first answer to the bytes as they come one by one.
    fn dripped(bytes: &[u8]) -> Hello {
        (0..=bytes.len())
            .map(|end| parse_client_hello(&bytes[..end]))
            .find(|hello| *hello != Hello::Incomplete)
            .unwrap_or(Hello::Incomplete)
    }

    fn check(bytes: impl AsRef<[u8]>, expected: &Hello) {
        let bytes = bytes.as_ref();
        assert_eq!(parse_client_hello(bytes), *expected, "{}", bytes.escape_ascii());
        assert_eq!(dripped(bytes), *expected, "{}", bytes.escape_ascii());
    }

    #[test]
    fn a_name_is_found_in_lower_case() {
        for (names, expected) in [
            (&[(HOST_NAME, "a.example".as_bytes())][..], named("a.example")),
            (&[(HOST_NAME, b"A.Example")], named("a.example")),
            (&[(HOST_NAME, b"a.example.")], named("a.example.")),
            (&[(HOST_NAME, b"under_score")], named("under_score")),
            (&[(HOST_NAME, b"192.0.2.1")], named("192.0.2.1")),
            (&[(7, b"\0\xff"), (HOST_NAME, b"a")], named("a")),
            (&[(HOST_NAME, b"a"), (HOST_NAME, b"b")], named("a")),
            (&[(HOST_NAME, &[b'x'; 255])], named(&"x".repeat(255))),
            (&[(HOST_NAME, &[b'x'; 256])], Hello::NoServerName),
            (&[(HOST_NAME, b"")], Hello::NoServerName),
            (&[(HOST_NAME, b"a b")], Hello::NoServerName),
            (&[(HOST_NAME, b"a\0b")], Hello::NoServerName),
            (&[(HOST_NAME, "caf\u{e9}".as_bytes())], Hello::NoServerName),
            (&[(7, b"a")], Hello::NoServerName),
            (&[], malformed(BAD_FIELD)),
        ] {
            check(record(&message(&[server_name(names), extension(0xffff, [1, 2, 3])])), &expected);
        }
    }

    #[test]
    fn a_hello_may_span_records_of_any_size() {
        let message = message(&[extension(21, [0; 40]), server_name(&[(HOST_NAME, b"a.example")])]);
        for fragment in 1..=message.len() {
            let bytes = records(&message, fragment);
            check(&bytes, &named("a.example"));
            for cut in 0..bytes.len() {
                assert_eq!(parse_client_hello(&bytes[..cut]), Hello::Incomplete, "{fragment}, {cut}");
            }
        }
    }

    #[test]
    fn what_follows_a_hello_is_left_alone() {
        let hello = record(&message(&[server_name(&[(HOST_NAME, b"a")])]));
        check([hello.as_slice(), b"\x14\x03\x03\0\x01\x01"].concat(), &named("a"));
        check([hello.as_slice(), &[0; MAX_HELLO]].concat(), &named("a"));
    }

    #[test]
    fn a_hello_without_a_name_has_none() {
        check(record(&message(&[])), &Hello::NoServerName);
        let without_extensions = [[3, 3].as_slice(), &[7; 32], &[0], &[0, 2, 0, 0x2f], &[1, 0]].concat();
        check(record(&wrap(&without_extensions)), &Hello::NoServerName);
    }

    #[test]
    fn other_protocols_are_told_at_once() {
        for bytes in [
            b"G".as_slice(),
            b"SSH-2.0",
            b"\x10\x0c\0\x04MQTT",
            b"\x80\x2e\x01\x03\x01", // SSL 2
            b"\x15\x03\x01",         // an alert
            b"\x16\x02",
            b"\x16\xfe\xfd", // DTLS
        ] {
            check(bytes, &Hello::NotTls);
        }
    }

    #[test]
    fn hellos_that_no_server_could_read_are_malformed() {
        let hello = message(&[server_name(&[(HOST_NAME, b"a")])]);
        let body = &hello[HANDSHAKE_HEADER..];
        let edited = |at: usize, byte: u8| {
            let mut body = body.to_vec();
            body[at] = byte;
            record(&wrap(body))
        };
        let a = server_name(&[(HOST_NAME, b"a")]);
        for (bytes, reason) in [
            (b"\x16\x03\x01\0\0".to_vec(), BAD_RECORD),
            (b"\x16\x03\x01\x40\x01".to_vec(), BAD_RECORD),
            ([records(&hello[..9], 9), b"\x17\x03".to_vec()].concat(), BAD_RECORD),
            ([records(&hello[..9], 9), b"\x16\x04".to_vec()].concat(), BAD_RECORD),
            (b"\x16\x03\x01\0\x04\x02".to_vec(), "not_client_hello"),
            (b"\x16\x03\x01\0\x04\x01\x01\0\0".to_vec(), TOO_LARGE),
            (record(&wrap(&body[..20])), TRUNCATED_FIELD),
            (record(&wrap(&body[..body.len() - 1])), TRUNCATED_FIELD),
            (record(&wrap([body, &[0]].concat())), TRAILING_BYTES),
            (record(&wrap([&body[..34], &[33], &[0; 33], &body[36..]].concat())), BAD_FIELD), // session id
            (edited(37, 3), BAD_FIELD),                                                       // cipher suites, odd
            (record(&wrap([&body[..36], &[0, 0], &body[42..]].concat())), BAD_FIELD),         // no cipher suites
            (record(&message(&[a.clone(), a])), "repeated_extension"),
            (record(&message(&[extension(SERVER_NAME, [])])), TRUNCATED_FIELD),
            (record(&message(&[extension(SERVER_NAME, [0, 0, 9])])), TRAILING_BYTES),
            (record(&message(&[extension(SERVER_NAME, [0, 3, 0, 0, 9])])), TRUNCATED_FIELD),
        ] {
            check(bytes, &malformed(reason));
        }
    }

    #[test]
    fn a_hello_that_does_not_end_in_time_is_refused() {
        let padding = extension(21, vec![0; 65_400]);
        let whole = message(&[padding, server_name(&[(HOST_NAME, b"a")])]);
        assert_eq!(parse_client_hello(&record(&whole)), named("a"));
        // Record headers count.
        let bytes = records(&whole, 256);
        assert_eq!(parse_client_hello(&bytes[..MAX_HELLO - 1]), Hello::Incomplete);
        assert_eq!(parse_client_hello(&bytes[..MAX_HELLO]), Hello::Malformed(TOO_LARGE));
        assert_eq!(parse_client_hello(&bytes), Hello::Malformed(TOO_LARGE));
        let bytes = records(&whole, 1);
        let limit = MAX_RECORDS * (RECORD_HEADER + 1);
        assert_eq!(parse_client_hello(&bytes[..limit - 1]), Hello::Incomplete);
        assert_eq!(parse_client_hello(&bytes[..limit]), Hello::Malformed(TOO_MANY_RECORDS));
        assert_eq!(parse_client_hello(&bytes), Hello::Malformed(TOO_MANY_RECORDS));
    }

    /// The first flight of a real client. Its key share differs from run to run, so failures print the whole input.
    fn hello_of_rustls(name: &'static str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from(name).unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_real_client_is_understood() {
        check(hello_of_rustls("Shop.Example"), &named("shop.example"));
        check(hello_of_rustls("192.0.2.1"), &Hello::NoServerName);
    }

    #[test]
    fn hostile_input_gets_one_answer_however_it_is_cut_and_the_name_that_rustls_reads() {
        let mut random = Xorshift::from_env();
        let real = hello_of_rustls("a.example");
        let small = message(&[server_name(&[(HOST_NAME, b"a.example")])]);
        let mut names = 0;
        for round in 0..3_000 {
            let mut bytes = match round % 4 {
                0 => random.bytes(120),
                1 => real.clone(),
                2 => records(&real[RECORD_HEADER..], 1 + random.below(200)),
                _ => records(&small, 1 + random.below(80)),
            };
            if round % 3 > 0 {
                random.mutate(&mut bytes, &[&[0], &[HANDSHAKE, 3, 1, 0, 4], &[0xff, 0xff], &[0, 0, 0]]);
            }
            let answer = parse_client_hello(&bytes);
            assert_eq!(dripped(&bytes), answer, "{}", bytes.escape_ascii());
            let mut acceptor = Acceptor::default();
            let mut input = bytes.as_slice();
            while !input.is_empty() && acceptor.read_tls(&mut input).is_ok_and(|read| read > 0) {}
            if let Ok(Some(accepted)) = acceptor.accept() {
                names += 1;
                match (accepted.client_hello().server_name(), answer) {
                    (Some(name), answer) => assert_eq!(answer, named(name), "{}", bytes.escape_ascii()),
                    // rustls drops what is no DNS name: addresses, names with a trailing dot.
                    (None, Hello::NoServerName | Hello::ServerName(_)) => {}
                    (None, other) => panic!("{other:?}: {}", bytes.escape_ascii()),
                }
            }
        }
        assert!(names > 300, "rustls accepted only {names}: the generator tests nothing");
    }
}
