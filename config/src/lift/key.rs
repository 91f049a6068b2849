//! Key sources as people write them, and which protocol has which.

use crate::{
    KeySource, Protocol,
    fault::{Flaw, quoted},
};

/// Every way to write a key source of a protocol; of all of them when the protocol is not known.
pub(super) fn choices(protocol: Option<Protocol>) -> &'static str {
    match protocol {
        Some(Protocol::Http) => "header:NAME, cookie:NAME, query:NAME, path:N or client-ip",
        Some(Protocol::Mqtt) => "mqtt-client-id, mqtt-username or client-ip",
        Some(Protocol::Tcp) => "client-ip or sni",
        None => "header:NAME, cookie:NAME, query:NAME, path:N, client-ip, mqtt-client-id, mqtt-username or sni",
    }
}

pub(super) fn default(protocol: Protocol) -> KeySource {
    match protocol {
        Protocol::Http | Protocol::Tcp => KeySource::ClientIp,
        Protocol::Mqtt => KeySource::MqttClientId,
    }
}

pub(super) fn fits(source: &KeySource, protocol: Protocol) -> bool {
    match source {
        KeySource::Header(_) | KeySource::Cookie(_) | KeySource::Query(_) | KeySource::PathSegment(_) => {
            protocol == Protocol::Http
        }
        KeySource::ClientIp => true,
        KeySource::MqttClientId | KeySource::MqttUsername => protocol == Protocol::Mqtt,
        KeySource::Sni => protocol == Protocol::Tcp,
    }
}

/// `protocol` only chooses what the cure names; see [`fits`].
pub(super) fn parse(text: &str, protocol: Option<Protocol>) -> Result<KeySource, Flaw> {
    let named = |name: &str, what: &str, valid: bool| {
        if valid {
            return Ok(name.to_owned());
        }
        let problem = match name {
            "" => format!("{} names no {what}", quoted(text)),
            _ => format!("{} is not the name of a {what}", quoted(name)),
        };
        let kind = text.split(':').next().unwrap_or_default();
        Err(Flaw::new(problem, format!("write a name behind the colon, such as \"{kind}:session\"")))
    };
    match text.split_once(':') {
        // The names of headers are compared without regard to case, those of cookies and parameters are not.
        Some(("header", name)) => Ok(KeySource::Header(named(name, "header", is_token(name))?.to_ascii_lowercase())),
        Some(("cookie", name)) => Ok(KeySource::Cookie(named(name, "cookie", is_token(name))?)),
        Some(("query", name)) => {
            let valid = !name.is_empty() && name.len() <= 256 && !name.chars().any(char::is_control);
            Ok(KeySource::Query(named(name, "query parameter", valid)?))
        }
        Some(("path", segment)) => {
            let digits = segment.bytes().all(|byte| byte.is_ascii_digit());
            match segment.parse() {
                Ok(segment @ 1..) if digits => Ok(KeySource::PathSegment(segment)),
                _ => Err(Flaw::new(
                    format!("{} is not the number of a path segment", quoted(segment)),
                    "write path:1 for the first one",
                )),
            }
        }
        _ => match text {
            "client-ip" => Ok(KeySource::ClientIp),
            "mqtt-client-id" => Ok(KeySource::MqttClientId),
            "mqtt-username" => Ok(KeySource::MqttUsername),
            "sni" => Ok(KeySource::Sni),
            _ => {
                Err(Flaw::new(format!("{} is not a key source", quoted(text)), format!("write {}", choices(protocol))))
            }
        },
    }
}

/// A token of RFC 9110, section 5.6.2, of a length that servers accept.
fn is_token(name: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.len() <= 256 && name.bytes().all(token)
}
