use crate::{
    cuts,
    response::{Asked, Body, MAX_HEAD, Nonsense, Response},
};

/// The most fields of a head that is read.
const MAX_FIELDS: usize = 128;
/// Those that are written on top.
const ADDED: usize = 2;

/// A response's head is read alike whole and as it comes, for every client; what is written for the client is read again
/// with the same status and the same framing, by us and by `httparse`, with one framing at most and without what was for
/// the other hop; nothing is written before the verdict is known.
pub fn http1_response(bytes: &[u8]) {
    let asked = Asked { head: false, upgrade: true, http11: true, expose_arm: false };
    let (whole, written) = read(bytes, asked);
    let shown = bytes.escape_ascii();
    let near = whole.as_ref().map_or(0, |whole| whole.as_ref().map_or(0, |whole| whole.length));
    let mut first = None;
    for cut in cuts::prefixes(bytes, near) {
        let (verdict, out) = read(&bytes[..cut], asked);
        match (&first, verdict) {
            (None, Ok(None)) => {}
            (None, verdict) => first = Some((verdict.map(|head| head.map(facts)), out)),
            (Some(first), verdict) => {
                assert_eq!(*first, (verdict.map(|head| head.map(facts)), out), "changed by byte {cut}: {shown}");
            }
        }
    }
    match &whole {
        Ok(Some(_)) => (0..16).for_each(|bits| {
            let on = |bit: u8| bits & (1 << bit) != 0;
            check(bytes, Asked { head: on(0), upgrade: on(1), http11: on(2), expose_arm: on(3) });
        }),
        Ok(None) => {
            assert!(bytes.len() < MAX_HEAD && written.is_empty(), "{shown}");
            let ended = bytes.trim_ascii_start().windows(4).any(|end| end == b"\r\n\r\n");
            assert!(!ended, "it is whole: {shown}");
        }
        Err(Nonsense) => assert!(written.is_empty(), "{shown}"),
    }
    let whole = whole.map(|head| head.map(facts));
    assert_eq!(first.unwrap_or((Ok(None), Vec::new())), (whole, written), "{shown}");
}

fn read(bytes: &[u8], asked: Asked) -> (Result<Option<Response>, Nonsense>, Vec<u8>) {
    let mut out = Vec::new();
    (Response::read(bytes, asked, &mut out), out)
}

/// A head's facts, so that two can be compared.
fn facts(head: Response) -> (u16, usize, Framing, bool, Option<u16>) {
    (head.status.as_u16(), head.length, Framing::from(&head.body), head.reusable, head.grpc_status)
}

#[derive(Debug, PartialEq)]
enum Framing {
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

impl From<&Body> for Framing {
    fn from(body: &Body) -> Self {
        match body {
            Body::None => Self::None,
            Body::Length(length) => Self::Length(*length),
            Body::Chunked(_) => Self::Chunked,
            Body::UntilClose => Self::UntilClose,
        }
    }
}

fn check(bytes: &[u8], asked: Asked) {
    let (verdict, mut out) = read(bytes, asked);
    let shown = format!("{asked:?}: {}\nwritten anew: {}", bytes.escape_ascii(), out.escape_ascii());
    let Ok(Some(response)) = verdict else {
        // Who did not ask for an upgrade gets none; nothing else depends on what was asked.
        assert!(!asked.upgrade && verdict.is_err() && out.is_empty(), "{shown}");
        return;
    };
    assert!(response.length <= bytes.len() && bytes[..response.length].ends_with(b"\n"), "{shown}");
    let status = response.status.as_u16();
    assert!((100..=999).contains(&status) && (status != 101 || asked.upgrade), "{shown}");
    let framing = Framing::from(&response.body);

    out.extend_from_slice(b"\r\n");
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS + ADDED];
    let mut parsed = httparse::Response::new(&mut fields);
    assert_eq!(parsed.parse(&out), Ok(httparse::Status::Complete(out.len())), "{shown}");
    assert_eq!((parsed.code, parsed.version), (Some(status), Some(1)), "{shown}");
    let count = |name: &str| parsed.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).count();
    let (lengths, codings) = (count("content-length"), count("transfer-encoding"));
    assert!(lengths + codings <= 1, "{shown}");
    assert!((status >= 200 && status != 204) || (lengths, codings) == (0, 0), "{shown}");
    assert!(asked.http11 || codings == 0, "{shown}");
    for hop in ["keep-alive", "proxy-connection", "proxy-authenticate"] {
        assert_eq!(count(hop), 0, "{hop}: {shown}");
    }
    assert!(!asked.expose_arm || count("x-crossfade-arm") == 0, "{shown}");
    assert_eq!(count("connection"), usize::from(status == 101), "{shown}");
    assert!(status == 101 || count("upgrade") == 0, "{shown}");
    assert!(out.iter().all(|byte| !byte.is_ascii_control() || matches!(byte, b'\r' | b'\n' | b'\t')), "{shown}");
    assert!(!out.windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r'), "{shown}");

    // One with the most fields may have outgrown what we would take ourselves.
    if parsed.headers.len() > MAX_FIELDS {
        return;
    }
    let (again, _) = read(&out, asked);
    let Ok(Some(again)) = again else { panic!("{again:?}: {shown}") };
    assert_eq!((again.status, again.length), (response.status, out.len()), "{shown}");
    // A client of 1.0 knows no chunks: for it the body ends with the connection.
    let expected = if framing == Framing::Chunked && !asked.http11 { Framing::UntilClose } else { framing };
    assert_eq!(Framing::from(&again.body), expected, "{shown}");
}
