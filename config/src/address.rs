//! Addresses as people write them: listeners, endpoints, host names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::{
    Endpoint,
    fault::{Flaw, quoted},
};

/// An address to listen on: an IP address and a port.
pub(crate) fn socket(text: &str) -> Result<SocketAddr, Flaw> {
    text.parse().map_err(|_| {
        let cure = match text.strip_prefix(':').or_else(|| text.strip_prefix("*:")) {
            Some(port) if port.parse::<u16>().is_ok() => {
                format!("write \"0.0.0.0:{port}\" for every interface, \"127.0.0.1:{port}\" for this machine only")
            }
            _ => "write an ip address and a port, such as \"127.0.0.1:8080\" or \"[::1]:8080\"".to_owned(),
        };
        Flaw::new(format!("{} is not an address to listen on", quoted(text)), cure)
    })
}

/// `host:port`, the host a name or an address. Lower-cased, so that equal ones are equal.
pub(crate) fn endpoint(text: &str) -> Result<Endpoint, Flaw> {
    let flaw = |problem: &str, cure: &str| Flaw::new(format!("{} {problem}", quoted(text)), cure);
    if let Some((scheme, _)) = text.split_once("://") {
        return Err(flaw("is a url", &format!("write host:port, without {}", quoted(&format!("{scheme}://")))));
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, port)) => {
                let address: Ipv6Addr =
                    host.parse().map_err(|_| flaw("has no ipv6 address in its brackets", "write [::1]:9001"))?;
                (address.to_string(), port)
            }
            None => return Err(flaw("has an open bracket", "write [::1]:9001")),
        },
        None if text.matches(':').count() > 1 => {
            return Err(flaw("is not host:port", "write an ipv6 address in brackets: [::1]:9001"));
        }
        None => {
            let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (dns_name_or_ipv4(host)?, port)
        }
    };
    let port = port.strip_prefix(':').ok_or_else(|| flaw("has no port", "write host:port"))?;
    // `u16::from_str` takes a sign.
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse().ok().filter(|_| digits) {
        Some(0) => Err(flaw("has port 0, which cannot be connected to", "write a port from 1 to 65535")),
        Some(port) => Ok(Endpoint { host, port }),
        None => Err(flaw("has no valid port", "write a port from 1 to 65535")),
    }
}

/// A host as a client asks for it, without port. Lower-cased.
pub(crate) fn host(text: &str) -> Result<String, Flaw> {
    let flaw = |problem: &str, cure: &str| Err(Flaw::new(format!("{} {problem}", quoted(text)), cure));
    if text.contains('*') {
        return flaw("has a wildcard, which is not supported", "write a host in full");
    }
    if text.contains("://") {
        return flaw("is a url", "write the host alone, such as \"shop.example\"");
    }
    if text.starts_with('[') || text.parse::<Ipv6Addr>().is_ok() {
        return flaw("is an ipv6 address, which is not supported here", "write a name");
    }
    if text.contains(':') {
        return flaw("has a port", "write the host without its port");
    }
    if text.ends_with('.') {
        return flaw("ends with a dot", "write it without the dot");
    }
    dns_name_or_ipv4(text)
}

/// The name a TLS server is asked for. An address is refused, and so is nothing: pingora with rustls checks no
/// certificate when the name is empty.
pub(crate) fn server_name(text: &str) -> Result<String, Flaw> {
    const CURE: &str = "write the dns name in the server's certificate, such as \"app.example\"";
    if text.is_empty() {
        return Err(Flaw::new("is empty, which would switch certificate checks off", CURE));
    }
    let address = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if address.parse::<IpAddr>().is_ok() {
        return Err(Flaw::new(format!("{} is an address, not a name", quoted(text)), CURE));
    }
    host(text)
}

/// The name that a certificate for this endpoint would carry, if it has one.
pub(crate) fn certificate_name(endpoint: &Endpoint) -> Option<&str> {
    endpoint.host.parse::<IpAddr>().is_err().then(|| endpoint.host.trim_end_matches('.'))
}

/// Two different addresses that cannot both be listened on, because one of them means every interface.
pub(crate) fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    // `[::]` takes IPv4 as well: that is how Linux is set up unless told otherwise.
    let covers = |a: SocketAddr, b: SocketAddr| a.ip().is_unspecified() && (a.is_ipv6() || b.is_ipv4());
    a != b && a.port() == b.port() && a.port() != 0 && (covers(a, b) || covers(b, a))
}

/// Whether connecting to `endpoint` would certainly come back in at `listen`. A name is not looked up.
pub(crate) fn loops(listen: SocketAddr, endpoint: &Endpoint) -> bool {
    if listen.port() != endpoint.port {
        return false;
    }
    let listen = listen.ip().to_canonical();
    if endpoint.host == "localhost" {
        return listen.is_unspecified() || listen.is_loopback();
    }
    let Ok(endpoint) = endpoint.host.parse::<IpAddr>().map(|ip| ip.to_canonical()) else { return false };
    // To connect to `0.0.0.0` is to connect to this machine.
    let here = endpoint.is_loopback() || endpoint.is_unspecified();
    listen == endpoint || (here && listen.is_unspecified()) || (endpoint.is_unspecified() && listen.is_loopback())
}

fn dns_name_or_ipv4(text: &str) -> Result<String, Flaw> {
    let flaw = |problem: &str, cure: &str| Err(Flaw::new(format!("{} {problem}", quoted(text)), cure));
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.is_empty() {
        return flaw("has no host", "write a name or an address");
    }
    if !name.is_ascii() {
        return flaw("is not ascii", "write an international name in its xn-- form");
    }
    if name.len() > 253 {
        return flaw("is longer than 253 letters", "write a host name");
    }
    let numeric = name.rsplit('.').next().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
    if numeric && text.parse::<Ipv4Addr>().is_err() {
        return flaw("is neither a name nor an ipv4 address", "write four numbers from 0 to 255, or a name");
    }
    for label in name.split('.') {
        let letters = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        if label.is_empty() || label.len() > 63 || !letters || label.starts_with('-') || label.ends_with('-') {
            return flaw("is not a host name", "write letters, digits, '-' and '_', in parts separated by dots");
        }
    }
    Ok(text.to_ascii_lowercase())
}
