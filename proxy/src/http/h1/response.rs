//! A response's head: checked, and written anew for the client.

use std::mem::MaybeUninit;

use http::StatusCode;

use super::request::Nominated;
use crate::wire::{chunked::Chunks, http1};

/// The longest head of a response, in bytes, and the most fields.
pub(super) const MAX_HEAD: usize = 128 * 1024;
const MAX_FIELDS: usize = 128;
/// The most fields that `Connection` may name.
const MAX_NOMINATED: usize = 32;

/// The head of a response.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: StatusCode,
    /// Its bytes, up to and with the empty line.
    pub(super) length: usize,
    pub(super) body: Body,
    /// Whether the endpoint takes another request on the connection.
    pub(super) reusable: bool,
    /// It announces a body that does not follow, as it may (to HEAD, with 304): an endpoint that is mistaken about that sends
    /// it all the same.
    pub(super) doubtful: bool,
    pub(super) grpc_status: Option<u16>,
}

/// What follows the head (RFC 9112, section 6.3).
#[derive(Debug)]
pub(super) enum Body {
    None,
    /// So many bytes still.
    Length(u64),
    Chunked(Box<Chunks>),
    UntilClose,
}

/// What the client can take and has asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) head: bool,
    pub(super) upgrade: bool,
    pub(super) http11: bool,
    /// Whether the arm is said in the answer: then nobody else may have said it.
    pub(super) expose_arm: bool,
}

/// The endpoint's answer cannot be read in one way only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nonsense;

impl Response {
    /// Reads a head and writes it to `out` as the client is to see it, without the empty line, since the caller has fields
    /// to add. `None`: more must come. Errors: it makes no sense.
    pub(super) fn read(bytes: &[u8], asked: Asked, out: &mut Vec<u8>) -> Result<Option<Self>, Nonsense> {
        let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut parsed = httparse::Response::new(&mut []);
        let read =
            httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, bytes, &mut fields);
        let httparse::Status::Complete(length) = read.map_err(|_| Nonsense)? else {
            return if bytes.len() >= MAX_HEAD { Err(Nonsense) } else { Ok(None) };
        };
        let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Nonsense)?;
        let switching = status == StatusCode::SWITCHING_PROTOCOLS;
        if switching && !asked.upgrade {
            return Err(Nonsense);
        }

        let mut framing = Framing::default();
        let mut named = Nominated::none();
        let (mut said_close, mut said_keep) = (false, false);
        let mut grpc_status = None;
        for field in parsed.headers.iter() {
            framing.take(field)?;
            match field.name.len() {
                10 if field.name.eq_ignore_ascii_case("connection") => {
                    for option in http1::list(field.value) {
                        said_close |= option.eq_ignore_ascii_case(b"close");
                        said_keep |= option.eq_ignore_ascii_case(b"keep-alive");
                    }
                    named.add(field.value);
                    if named.count() > MAX_NOMINATED {
                        return Err(Nonsense);
                    }
                }
                11 if field.name.eq_ignore_ascii_case("grpc-status") => {
                    grpc_status = str::from_utf8(field.value).ok().and_then(|status| status.parse().ok());
                }
                _ => {}
            }
        }
        // RFC 9112, section 6.1: such framing is faulty.
        if framing.chunked && parsed.version == Some(0) {
            return Err(Nonsense);
        }
        let body = framing.body(status, asked.head)?;
        // RFC 9112, section 9.3: `close` wins.
        let close = said_close || (parsed.version == Some(0) && !said_keep);
        // RFC 9110, section 8.6: not in 1xx and 204, where there is no body either.
        let bodiless = status.is_informational() || status == StatusCode::NO_CONTENT;

        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(parsed.reason.unwrap_or_default().as_bytes());
        out.extend_from_slice(b"\r\n");
        for field in parsed.headers.iter() {
            let name = field.name.as_bytes();
            let stays = match name.len() {
                14 if name.eq_ignore_ascii_case(b"content-length") => false,
                7 if name.eq_ignore_ascii_case(b"upgrade") => switching,
                10 if name.eq_ignore_ascii_case(b"connection") || name.eq_ignore_ascii_case(b"keep-alive") => false,
                15 if name.eq_ignore_ascii_case(b"x-crossfade-arm") => !asked.expose_arm && !named.names(name),
                16 if name.eq_ignore_ascii_case(b"proxy-connection") => false,
                17 if name.eq_ignore_ascii_case(b"transfer-encoding") => false,
                18 if name.eq_ignore_ascii_case(b"proxy-authenticate") => false,
                _ => !named.names(name),
            };
            if stays {
                out.extend_from_slice(name);
                out.extend_from_slice(b": ");
                out.extend_from_slice(field.value);
                out.extend_from_slice(b"\r\n");
            }
        }
        if switching {
            out.extend_from_slice(b"connection: upgrade\r\n");
        }
        // Once, and in one spelling, however often it came.
        if let Some(length) = framing.length.filter(|_| !bodiless) {
            out.extend_from_slice(b"content-length: ");
            out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        if asked.http11 && (matches!(body, Body::Chunked(_)) || (asked.head && framing.chunked && !bodiless)) {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        // An endpoint that announces a body where there is none may send it all the same.
        let odd = bodiless && (framing.chunked || framing.length.is_some_and(|length| length > 0));
        let reusable = !close && !switching && !odd && !matches!(body, Body::UntilClose);
        let doubtful =
            matches!(body, Body::None) && (framing.chunked || framing.length.is_some_and(|length| length > 0));
        Ok(Some(Self { status, length, body, reusable, doubtful, grpc_status }))
    }
}

#[derive(Default)]
struct Framing {
    length: Option<u64>,
    chunked: bool,
}

impl Framing {
    /// RFC 9112, sections 6.1 to 6.3. A length that is repeated with the same value is that length.
    fn take(&mut self, field: &httparse::Header<'_>) -> Result<(), Nonsense> {
        match field.name.len() {
            14 if field.name.eq_ignore_ascii_case("content-length") => {
                // An empty element is no length: others see none at all then.
                for value in field.value.split(|byte| *byte == b',') {
                    let length = http1::decimal(value.trim_ascii()).ok_or(Nonsense)?;
                    if self.length.is_some_and(|known| known != length) {
                        return Err(Nonsense);
                    }
                    self.length = Some(length);
                }
            }
            17 if field.name.eq_ignore_ascii_case("transfer-encoding") => {
                if self.chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Nonsense);
                }
                self.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn body(&self, status: StatusCode, to_head: bool) -> Result<Body, Nonsense> {
        if self.chunked && self.length.is_some() {
            return Err(Nonsense);
        }
        Ok(match self.length {
            _ if to_head || status.is_informational() => Body::None,
            _ if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) => Body::None,
            Some(0) => Body::None,
            Some(length) => Body::Length(length),
            None if self.chunked => Body::Chunked(Box::default()),
            None => Body::UntilClose,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Asked = Asked { head: false, upgrade: false, http11: true, expose_arm: false };

    fn read(head: &str, asked: Asked) -> Result<(Response, String), Nonsense> {
        let mut out = Vec::new();
        let response = Response::read(head.as_bytes(), asked, &mut out)?.expect("the head is whole");
        Ok((response, String::from_utf8(out).unwrap()))
    }

    #[test]
    fn a_head_is_written_anew_without_what_was_for_one_hop() {
        let head = "HTTP/1.1 200 Fine\r\nContent-Length: 5, 5\r\nConnection: keep-alive, x-hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n\
                    Upgrade: h2c\r\nProxy-Authenticate: Basic\r\nX-End: 2\r\nx-crossfade-arm: blue\r\n\r\n";
        let (response, out) = read(head, ASKED).unwrap();
        assert!(matches!(response.body, Body::Length(5)) && response.reusable);
        assert_eq!(out, "HTTP/1.1 200 Fine\r\nX-End: 2\r\nx-crossfade-arm: blue\r\ncontent-length: 5\r\n");
        let (_, out) = read(head, Asked { expose_arm: true, ..ASKED }).unwrap();
        assert!(!out.contains("x-crossfade-arm"));
    }

    #[test]
    fn the_body_is_as_long_as_rfc_9112_says() {
        for (head, asked_head, expected, reusable) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false, "None", true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n", true, "None", true),
            ("HTTP/1.1 204 No Content\r\n\r\n", false, "None", true),
            ("HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n", false, "None", false),
            ("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", false, "None", true),
            ("HTTP/1.1 103 Early Hints\r\n\r\n", false, "None", true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", false, "Chunked", true),
            ("HTTP/1.1 200 OK\r\n\r\n", false, "UntilClose", false),
            ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close, keep-alive\r\n\r\n", false, "Length", false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n", false, "Length", false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\nconnection: keep-alive\r\n\r\n", false, "Length", true),
        ] {
            let (response, out) = read(head, Asked { head: asked_head, ..ASKED }).unwrap();
            assert!(format!("{:?}", response.body).starts_with(expected), "{head:?}: {:?}", response.body);
            assert_eq!(response.reusable, reusable, "{head:?}");
            let announced = head.contains("length: 5") || head.contains("length: 7");
            assert_eq!(response.doubtful, expected == "None" && announced, "{head:?}");
            assert_eq!(out.contains("transfer-encoding"), expected == "Chunked", "{head:?}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_makes_no_sense() {
        let many = format!("HTTP/1.1 200 OK\r\nconnection: {}\r\n\r\n", "x,".repeat(100));
        for head in [
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\nconnection: keep-alive\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1,\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: ,1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: \r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx y: z\r\n\r\n",
            "SSH-2.0-OpenSSH\r\n\r\n",
            &many,
        ] {
            assert_eq!(read(head, ASKED).map(|_| ()), Err(Nonsense), "{head:?}");
            for cut in 0..head.len() {
                // Until it is whole it may be found wrong, and never right.
                let part = Response::read(&head.as_bytes()[..cut], ASKED, &mut Vec::new());
                assert!(matches!(part, Ok(None) | Err(Nonsense)), "{head:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn a_head_is_waited_for_to_its_last_byte_and_nothing_is_written_before() {
        for head in [
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n",
            "HTTP/1.0 200\r\nx-a: caf\u{e9}\r\nx-empty:\r\n\r\n",
            "\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: x-a, close\r\nx-a: 1\r\n\r\n",
        ] {
            for cut in 0..head.len() {
                let mut out = Vec::new();
                let part = Response::read(&head.as_bytes()[..cut], ASKED, &mut out);
                assert!(matches!(part, Ok(None)) && out.is_empty(), "{head:?} cut at {cut}");
            }
            assert_eq!(read(head, ASKED).unwrap().0.length, head.len());
        }
    }
}
