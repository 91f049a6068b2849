use crate::{
    cuts,
    wire::http1::{self, BodyLength, Head, MAX_FIELDS, MAX_HEAD, Scan, rejection_response, scan},
};

/// The verdict on a request's head is the same whole, byte by byte and in pieces, and does not depend on what follows; an
/// unfinished head ends in a refusal once it is as long as a head may be; a head that passes is read by `httparse` in the
/// same way, to its fields, its framing, whether the connection stays open, and the rest of what is
/// said of it.
pub fn http1_head(bytes: &[u8]) {
    let whole = scan(bytes, 0);
    let shown = bytes.escape_ascii();
    assert_eq!(resumed(bytes, bytes.chunks(1)), whole, "byte by byte: {shown}");
    assert_eq!(resumed(bytes, cuts::pieces(bytes)), whole, "in pieces: {shown}");
    match whole {
        Scan::Incomplete { scanned } => {
            assert!(scanned <= bytes.len() && bytes.len() < MAX_HEAD, "{scanned}: {shown}");
            let ended = bytes.windows(4).any(|end| end == b"\r\n\r\n");
            assert!(!ended || bytes.starts_with(b"PRI * HTTP/2.0\r\n\r\n"), "it is whole: {shown}");
            let mut endless = bytes.to_vec();
            endless.resize(MAX_HEAD, b'x');
            assert!(matches!(scan(&endless, scanned), Scan::Rejected(_)), "{shown}");
        }
        Scan::Http2Preface => assert!(bytes.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), "{shown}"),
        Scan::Rejected(rejection) => {
            assert!(matches!(rejection.status, 400 | 405 | 431 | 501 | 505), "{rejection:?}");
            assert!(rejection_response(&rejection).starts_with(b"HTTP/1.1 "));
            assert_eq!(scan(&[bytes, b"\r\n\r\nx"].concat(), 0), whole, "with more: {shown}");
        }
        Scan::Head(head) => {
            assert!(head.length <= bytes.len().min(MAX_HEAD), "{shown}");
            assert_eq!(scan(&bytes[..head.length], 0), whole, "without what follows: {shown}");
            for cut in cuts::prefixes(bytes, head.length).into_iter().filter(|cut| *cut < head.length) {
                assert!(matches!(scan(&bytes[..cut], 0), Scan::Incomplete { .. }), "cut at {cut}: {shown}");
            }
            read_alike(&bytes[..head.length], head);
        }
    }
}

/// The first verdict as the pieces come, each call resuming where the last one left off.
fn resumed<'a>(bytes: &[u8], pieces: impl Iterator<Item = &'a [u8]>) -> Scan {
    let (mut end, mut resume) = (0, 0);
    for piece in pieces {
        end += piece.len();
        match scan(&bytes[..end], resume) {
            Scan::Incomplete { scanned } => {
                // While it may be HTTP/2's preface it starts over.
                assert!(scanned == 0 || (resume..=end).contains(&scanned), "{scanned} after {resume}, {end} bytes");
                resume = scanned;
            }
            verdict => return verdict,
        }
    }
    scan(bytes, resume)
}

fn read_alike(bytes: &[u8], head: Head) {
    let shown = bytes.escape_ascii();
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    assert_eq!(request.parse(bytes), Ok(httparse::Status::Complete(bytes.len())), "{shown}");

    let plain = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    let (method, target, http11) = http1::request_line_of(plain);
    assert_eq!(request.method.map(str::as_bytes), Some(method), "{shown}");
    assert_eq!(request.path.map(str::as_bytes), Some(target), "{shown}");
    assert_eq!(request.version, Some(u8::from(http11)), "{shown}");
    let ours: Vec<_> = http1::fields(plain).map(|field| (field.name, field.value)).collect();
    let theirs: Vec<_> = request.headers.iter().map(|field| (field.name.as_bytes(), field.value)).collect();
    assert_eq!(ours, theirs, "{shown}");
    let lines: usize = http1::fields(plain).map(|field| field.line.len()).sum();
    assert!(plain.len() > lines && plain[..plain.len() - 2].ends_with(b"\r\n"), "{shown}");

    let values = |name: &str| -> Vec<&[u8]> {
        request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value).collect()
    };
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    let length_is = |length: u64| lengths.iter().all(|value| str::from_utf8(value).unwrap().parse() == Ok(length));
    match head.body {
        BodyLength::Length(length) => {
            assert!(length > 0 && lengths.len() == 1 && length_is(length) && codings.is_empty(), "{shown}");
        }
        BodyLength::Chunked => {
            assert!(http11 && lengths.is_empty() && codings.len() == 1, "{shown}");
            assert!(codings[0].eq_ignore_ascii_case(b"chunked"), "{shown}");
        }
        BodyLength::None | BodyLength::Upgrade => {
            assert!(codings.is_empty() && lengths.len() <= 1 && length_is(0), "{shown}");
            assert!(head.body == BodyLength::None || (http11 && !values("upgrade").is_empty()), "{shown}");
        }
    }
    let hosts = values("host").len();
    assert!(hosts == 1 || (hosts == 0 && !http11), "{shown}");
    let options = values("connection").into_iter().flat_map(|value| value.split(|byte| *byte == b','));
    let mut options: Vec<_> = options.map(|option| option.trim_ascii().to_ascii_lowercase()).collect();
    let mut said = |known: &[u8]| {
        let before = options.len();
        options.retain(|option| option != known);
        options.len() < before
    };
    let (close, keep_alive, _, _) = (said(b"close"), said(b"keep-alive"), said(b"upgrade"), said(b""));
    assert_eq!(head.keep_alive, !close && (http11 || keep_alive), "{shown}");
    assert_eq!(head.says.hop_fields, !options.is_empty(), "{shown}");
    assert_eq!(head.says.expect, !values("expect").is_empty(), "{shown}");
    let events = values("accept").iter().any(|accept| accept.starts_with(b"text/event-stream"));
    assert_eq!(head.says.events, events, "{shown}");
    assert!(method != b"CONNECT" && (method != b"POST" || !head.idempotent), "{shown}");
}
