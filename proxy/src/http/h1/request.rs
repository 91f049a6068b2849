//! A request's head: read for what routes and identifies it, and written anew for the endpoint.

use std::{io::Write, net::IpAddr};

use config::Arm;
use http::{HeaderName, HeaderValue, request::Parts};

use crate::{
    key,
    wire::http1::{self, BodyLength, Head},
};

/// Fields that end here, by the length of their names: those for one hop (RFC 9110, section 7.6.1), and those that only
/// this proxy may set.
fn ends_here(name: &[u8]) -> bool {
    let is = |known: &[u8]| http1::reads_as(name, known);
    match name.len() {
        2 => is(b"te"),
        7 => is(b"upgrade"),
        8 => is(b"x-shadow"),
        9 => is(b"forwarded"),
        10 => is(b"connection") || is(b"keep-alive"),
        14 => name.contains(&b'_') && is(b"content-length"),
        15 => is(b"x-crossfade-arm") || is(b"x-forwarded-for"),
        16 => is(b"proxy-connection") || is(b"x-forwarded-host"),
        17 => is(b"transfer-encoding") || is(b"x-forwarded-proto"),
        18 => is(b"proxy-authenticate"),
        19 => is(b"proxy-authorization"),
        _ => false,
    }
}

/// A head that `wire::http1::scan` has found to be right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    head: &'a [u8],
    framing: &'a Head,
    pub(super) method: &'a [u8],
    /// In origin form, or `*`.
    target: &'a [u8],
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
    /// As sent: of the target in absolute form, or of `Host`.
    pub(super) authority: Option<&'a str>,
    pub(super) http11: bool,
    has_host: bool,
}

impl<'a> Request<'a> {
    /// `head`: without the empty line that may precede it. `framing`: what `scan` said of it.
    pub(super) fn new(head: &'a [u8], framing: &'a Head) -> Self {
        let (method, target, http11) = http1::request_line_of(head);
        let (of_target, target) = split_absolute(target);
        let host = http1::fields(head).find(|field| field.is(b"host"));
        let of_host = host.map(|host| host.value);
        let text = |bytes: &'a [u8]| str::from_utf8(bytes).unwrap_or_default();
        let whole = text(target);
        let (path, query) = whole.split_once('?').map_or((whole, None), |(path, query)| (path, Some(query)));
        Self {
            head,
            framing,
            method,
            target,
            path: if path.is_empty() { "/" } else { path },
            query,
            authority: of_target.or(of_host).map(text),
            http11,
            has_host: of_host.is_some(),
        }
    }

    /// The host without port and without the dot of the root, in lower case; in `room` unless it is so already.
    pub(super) fn host<'b>(&self, room: &'b mut String) -> &'b str
    where
        'a: 'b,
    {
        let authority = self.authority.unwrap_or_default();
        let host = match authority.rfind(':') {
            Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
            _ => authority,
        };
        let host = host.strip_suffix('.').unwrap_or(host);
        if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            *room = host.to_ascii_lowercase();
            return room;
        }
        host
    }

    /// The arm asked for in the request.
    pub(super) fn wanted_arm(&self) -> Option<Arm> {
        let wanted = http1::fields(self.head).find(|field| field.is(b"x-crossfade-arm"))?.value;
        Arm::BOTH.into_iter().find(|arm| arm.as_str().as_bytes().eq_ignore_ascii_case(wanted))
    }

    /// RFC 9110, section 7.6.2: how many more may pass it on; only TRACE and OPTIONS count.
    pub(super) fn max_forwards(&self) -> Option<u64> {
        if !self.counts_forwards() {
            return None;
        }
        let value = http1::fields(self.head).find(|field| field.is(b"max-forwards"))?.value;
        let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        // What is more than can be counted becomes the most that can.
        is_number.then(|| http1::decimal(value).unwrap_or(i64::MAX as u64))
    }

    fn counts_forwards(&self) -> bool {
        matches!(self.method, b"TRACE" | b"OPTIONS")
    }

    pub(super) fn is_trace(&self) -> bool {
        self.method == b"TRACE"
    }

    pub(super) fn is_head(&self) -> bool {
        self.method == b"HEAD"
    }

    /// Writes the head as the endpoint is to see it.
    pub(super) fn write(&self, out: &mut Vec<u8>, client: IpAddr, tls: bool) {
        out.extend_from_slice(self.method);
        out.push(b' ');
        if !self.target.starts_with(b"/") && self.target != b"*" {
            out.push(b'/');
        }
        out.extend_from_slice(self.target);
        out.extend_from_slice(b" HTTP/1.1\r\n");
        if !self.has_host {
            out.extend_from_slice(b"host: ");
            out.extend_from_slice(self.authority.unwrap_or_default().as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        let upgrade = self.framing.body == BodyLength::Upgrade && self.framing.says.upgrade;
        let named = if self.framing.says.hop_fields { Nominated::of(self.head) } else { Nominated::none() };
        for field in http1::fields(self.head) {
            if field.is(b"max-forwards")
                && let Some(left) = self.max_forwards()
            {
                let _ = write!(out, "max-forwards: {}\r\n", left.saturating_sub(1));
            } else if (upgrade && field.is(b"upgrade")) || (!ends_here(field.name) && !named.names(field.name)) {
                out.extend_from_slice(field.line);
            }
        }
        if upgrade {
            out.extend_from_slice(b"connection: upgrade\r\n");
        }
        if self.framing.body == BodyLength::Chunked {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        out.extend_from_slice(b"x-forwarded-for: ");
        write_address(out, client);
        let proto: &[u8] = if tls { b"\r\nx-forwarded-proto: https\r\n" } else { b"\r\nx-forwarded-proto: http\r\n" };
        out.extend_from_slice(proto);
        if let Some(authority) = self.authority {
            out.extend_from_slice(b"x-forwarded-host: ");
            out.extend_from_slice(authority.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        // RFC 9110, section 7.6.3: a gateway says that it was on the way.
        out.extend_from_slice(if self.http11 { b"via: 1.1 crossfade\r\n\r\n" } else { b"via: 1.0 crossfade\r\n\r\n" });
    }
}

/// As its `Display`, which for an IPv4 address takes as long as all the rest of a head.
fn write_address(out: &mut Vec<u8>, address: IpAddr) {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            for (nth, octet) in v4.octets().into_iter().enumerate() {
                if nth > 0 {
                    out.push(b'.');
                }
                out.extend_from_slice(itoa::Buffer::new().format(octet).as_bytes());
            }
        }
        IpAddr::V6(v6) => {
            // Writing into memory cannot fail.
            let _ = write!(out, "{v6}");
        }
    }
}

impl key::Fields for Request<'_> {
    fn values<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        http1::fields(self.head).filter(move |field| field.is(name.as_bytes())).map(|field| field.value)
    }
}

/// The authority of a target in absolute form, and the target in origin form.
fn split_absolute(target: &[u8]) -> (Option<&[u8]>, &[u8]) {
    if target.starts_with(b"/") || target == b"*" {
        return (None, target);
    }
    let after =
        target.iter().position(|byte| *byte == b'/').map_or(target.len(), |slash| (slash + 2).min(target.len()));
    let rest = &target[after..];
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let origin: &[u8] = if end == rest.len() { b"/" } else { &rest[end..] };
    (Some(&rest[..end]), origin)
}

/// Fields that `Connection` names: they end here, too.
pub(super) struct Nominated<'a> {
    /// Almost always empty: `close`, `keep-alive` and `upgrade` name no field of their own.
    names: Vec<&'a [u8]>,
}

impl<'a> Nominated<'a> {
    pub(super) fn of(head: &'a [u8]) -> Self {
        let options =
            http1::fields(head).filter(|field| field.is(b"connection")).flat_map(|field| http1::list(field.value));
        Self { names: options.filter(|option| !is_plain_option(option)).collect() }
    }

    pub(super) fn add(&mut self, value: &'a [u8]) {
        self.names.extend(http1::list(value).filter(|option| !is_plain_option(option)));
    }

    pub(super) fn none() -> Self {
        Self { names: Vec::new() }
    }

    pub(super) fn count(&self) -> usize {
        self.names.len()
    }

    pub(super) fn names(&self, name: &[u8]) -> bool {
        self.names.iter().any(|named| named.eq_ignore_ascii_case(name))
    }
}

fn is_plain_option(option: &[u8]) -> bool {
    [&b"close"[..], b"keep-alive", b"upgrade"].iter().any(|plain| option.eq_ignore_ascii_case(plain))
}

/// A head that we wrote, for the mirror.
pub(super) fn parts(head: &[u8]) -> Option<Parts> {
    let (method, target, _) = http1::request_line_of(head);
    let request = http::Request::builder().method(method).uri(target).body(()).ok()?;
    let mut parts = request.into_parts().0;
    for field in http1::fields(head) {
        parts.headers.append(HeaderName::from_bytes(field.name).ok()?, HeaderValue::from_bytes(field.value).ok()?);
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::http1::{Scan, scan};

    fn written(head: &str) -> String {
        let Scan::Head(framing) = scan(head.as_bytes(), 0) else { panic!("{head:?} is no head") };
        let mut out = Vec::new();
        Request::new(head.as_bytes(), &framing).write(&mut out, IpAddr::from([192, 0, 2, 7]), true);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn addresses_are_written_as_everybody_writes_them() {
        for address in ["0.0.0.0", "192.0.2.7", "255.255.255.255", "::1", "2001:db8::a:0"] {
            let mut out = Vec::new();
            write_address(&mut out, address.parse().unwrap());
            assert_eq!(out, address.as_bytes());
        }
        let mut out = Vec::new();
        write_address(&mut out, "::ffff:192.0.2.7".parse().unwrap());
        assert_eq!(out, b"192.0.2.7");
    }

    const ADDED: &str = "x-forwarded-for: 192.0.2.7\r\nx-forwarded-proto: https\r\nx-forwarded-host: a.example\r\nvia: 1.1 crossfade\r\n\r\n";

    #[test]
    fn an_endpoint_learns_who_called_and_nobody_can_forge_it() {
        for forged in [
            "X-Forwarded-For: 10.0.0.1",
            "x_forwarded_for: 10.0.0.1",
            "X-Forwarded_Proto: http",
            "x_forwarded-host: b",
            "Forwarded: for=10.0.0.1",
            "X-Shadow: 1",
            "x_crossfade_arm: green",
            "Proxy-Authorization: Basic x",
            "Transfer_Encoding: chunked",
            "Content_Length: 5",
            "Connection: x-hop\r\nX-Hop: 1",
            "TE: trailers",
            "Keep-Alive: 5",
        ] {
            let out = written(&format!("GET /p?q HTTP/1.1\r\nHost: a.example\r\n{forged}\r\nX-End: 1\r\n\r\n"));
            assert_eq!(out, format!("GET /p?q HTTP/1.1\r\nHost: a.example\r\nX-End: 1\r\n{ADDED}"), "{forged}");
        }
    }

    #[test]
    fn a_target_in_absolute_form_reaches_the_endpoint_in_origin_form() {
        for (target, expected) in [
            ("http://a.example/p?q", "/p?q"),
            ("http://a.example", "/"),
            ("http://a.example?q", "/?q"),
            ("HTTPS://a.example/", "/"),
        ] {
            let out = written(&format!("GET {target} HTTP/1.1\r\nHost: a.example\r\n\r\n"));
            assert_eq!(out, format!("GET {expected} HTTP/1.1\r\nHost: a.example\r\n{ADDED}"), "{target}");
        }
        let out = written("GET http://a.example/ HTTP/1.0\r\n\r\n");
        assert!(
            out.starts_with("GET / HTTP/1.1\r\nhost: a.example\r\n") && out.contains("via: 1.0 crossfade"),
            "{out}"
        );
    }

    #[test]
    fn an_upgrade_goes_on_only_when_it_was_asked_for() {
        let asked = written("GET /ws HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
        assert!(asked.contains("Upgrade: websocket\r\nconnection: upgrade\r\n"), "{asked}");
        let unnamed = written("GET /ws HTTP/1.1\r\nHost: a.example\r\nUpgrade: websocket\r\n\r\n");
        assert!(!unnamed.contains("pgrade"), "{unnamed}");
        let plain = written("POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert!(plain.contains("transfer-encoding: chunked\r\n") && !plain.contains("pgrade"), "{plain}");
    }

    #[test]
    fn forwards_are_counted_where_there_is_something_to_count() {
        for (method, value, expected) in [
            ("OPTIONS", "5", "max-forwards: 4\r\n"),
            ("TRACE", "1", "max-forwards: 0\r\n"),
            ("TRACE", "99999999999999999999", "max-forwards: 9223372036854775806\r\n"),
            ("TRACE", "many", "Max-Forwards: many\r\n"),
            ("TRACE", "", "Max-Forwards: \r\n"),
            ("GET", "5", "Max-Forwards: 5\r\n"),
        ] {
            let out = written(&format!("{method} / HTTP/1.1\r\nHost: a.example\r\nMax-Forwards: {value}\r\n\r\n"));
            assert!(out.contains(expected), "{method} {value}: {out}");
        }
    }

    #[test]
    fn the_host_is_compared_without_case_port_and_final_dot() {
        for (host, expected) in [
            ("Shop.Example:8080", "shop.example"),
            ("shop.example.", "shop.example"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
        ] {
            let head = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
            let Scan::Head(framing) = scan(head.as_bytes(), 0) else { panic!("{head:?} is no head") };
            let mut room = String::new();
            assert_eq!(Request::new(head.as_bytes(), &framing).host(&mut room), expected);
        }
    }
}
