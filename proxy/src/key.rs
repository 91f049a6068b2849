//! Stage 2: finds the bytes that identify a caller. No sockets, no clock.

use std::{borrow::Cow, net::IpAddr};

use config::KeySource;
use http::{HeaderMap, HeaderValue};

/// The header of a request, however it is held.
pub trait Fields {
    /// The values of a field, in order. `name`: in lower case.
    fn values<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]>;
}

impl Fields for HeaderMap {
    fn values<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.get_all(name).iter().map(HeaderValue::as_bytes)
    }
}

/// What an HTTP request offers to take a key from.
#[derive(Clone, Copy, Debug)]
pub struct HttpCaller<'a, F> {
    pub fields: &'a F,
    /// As sent, without the query.
    pub path: &'a str,
    /// As sent, without the question mark.
    pub query: Option<&'a str>,
    pub client: IpAddr,
}

/// The first of `sources` that is present and not empty.
pub fn of_http<'a, F: Fields>(sources: &[KeySource], caller: &HttpCaller<'a, F>) -> Option<Cow<'a, [u8]>> {
    sources.iter().find_map(|source| from_http(source, caller)).filter(|key| !key.is_empty())
}

fn from_http<'a, F: Fields>(source: &KeySource, caller: &HttpCaller<'a, F>) -> Option<Cow<'a, [u8]>> {
    let found = match source {
        KeySource::Header(name) => Cow::Borrowed(caller.fields.values(name).next()?),
        KeySource::Cookie(name) => Cow::Borrowed(cookie(caller.fields, name)?),
        KeySource::Query(name) => query(caller.query?, name)?,
        KeySource::PathSegment(nth) => {
            Cow::Borrowed(caller.path.split('/').filter(|segment| !segment.is_empty()).nth(nth - 1)?.as_bytes())
        }
        KeySource::ClientIp => Cow::Owned(of_address(caller.client)),
        KeySource::MqttClientId | KeySource::MqttUsername | KeySource::Sni => return None,
    };
    // An empty value identifies nobody: the next source has its turn.
    (!found.is_empty()).then_some(found)
}

/// An address as a key; an IPv4 address is the same whether it came over an IPv6 socket or not.
pub fn of_address(client: IpAddr) -> Vec<u8> {
    match client.to_canonical() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// RFC 6265 section 5.4: `name=value` pairs divided by semicolons. Names are case-sensitive.
fn cookie<'a>(fields: &'a impl Fields, name: &str) -> Option<&'a [u8]> {
    fields.values("cookie").find_map(|line| {
        line.split(|byte| *byte == b';').find_map(|pair| {
            let value = pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            (!value.is_empty()).then_some(value)
        })
    })
}

fn query<'a>(query: &'a str, name: &str) -> Option<Cow<'a, [u8]>> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (*percent_decoded(key) == *name.as_bytes()).then(|| percent_decoded(value))
    })
}

/// Decodes `%41` and `+` as forms do; a malformed escape stays as it is.
fn percent_decoded(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(bytes);
    }
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        rest = tail;
        decoded.push(match (first, tail) {
            (b'+', _) => b' ',
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    rest = after;
                    high << 4 | low
                }
                _ => b'%',
            },
            (byte, _) => *byte,
        });
    }
    Cow::Owned(decoded)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sources: &[KeySource], headers: &[(&str, &str)], target: &str, expected: Option<&str>) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let caller = HttpCaller { fields: &map, path, query, client: IpAddr::from([192, 0, 2, 7]) };
        assert_eq!(of_http(sources, &caller).as_deref(), expected.map(str::as_bytes));
    }

    #[test]
    fn each_source_finds_its_bytes() {
        let header = [KeySource::Header("x-session-id".to_owned())];
        let cookie = [KeySource::Cookie("session".to_owned())];
        let query = [KeySource::Query("run_id".to_owned())];
        check(&header, &[("X-Session-Id", "abc")], "/", Some("abc"));
        check(&header, &[], "/", None);
        check(&cookie, &[("cookie", "a=1; session=xyz; session=second")], "/", Some("xyz"));
        check(&cookie, &[("cookie", "a=1"), ("cookie", "session=late")], "/", Some("late"));
        check(&cookie, &[("cookie", "xsession=no; Session=no; session")], "/", None);
        check(&query, &[], "/x?a=1&run_id=7", Some("7"));
        check(&query, &[], "/x?run%5Fid=a%20b+c%zz%4", Some("a b c%zz%4"));
        check(&query, &[], "/x", None);
        check(&[KeySource::PathSegment(2)], &[], "/tenants/acme/orders", Some("acme"));
        check(&[KeySource::PathSegment(2)], &[], "//tenants//acme", Some("acme"));
        check(&[KeySource::PathSegment(4)], &[], "/tenants/acme/orders", None);
    }

    #[test]
    fn the_first_source_present_wins_and_an_empty_one_is_absent() {
        let sources = [
            KeySource::Header("x-session-id".to_owned()),
            KeySource::Cookie("session".to_owned()),
            KeySource::ClientIp,
        ];
        check(&sources, &[("x-session-id", "h"), ("cookie", "session=c")], "/", Some("h"));
        check(&sources, &[("x-session-id", ""), ("cookie", "session=c")], "/", Some("c"));
        check(&sources[..2], &[("x-session-id", ""), ("cookie", "session=")], "/", None);
    }

    #[test]
    fn an_ipv4_client_is_the_same_caller_on_a_dual_stack_socket() {
        let mapped: IpAddr = "::ffff:192.0.2.7".parse().unwrap();
        assert_eq!(of_address(mapped), of_address(IpAddr::from([192, 0, 2, 7])));
        assert_ne!(of_address("2001:db8::1".parse().unwrap()), of_address("2001:db8::2".parse().unwrap()));
    }
}
