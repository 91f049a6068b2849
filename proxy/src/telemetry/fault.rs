//! What went wrong with an exchange, to be told to people. In our own words: nothing of it was written by a peer.

use std::net::SocketAddr;

use admin_api::{Outcome, Sample};
use http::StatusCode;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Made where something fails; put into words once a second at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    /// Where it came from, if from anywhere.
    endpoint: Option<SocketAddr>,
    words: Words,
}

#[derive(Clone, Copy, Debug)]
enum Words {
    /// An HTTP answer that is a failure by its status, or by its gRPC status.
    Answered {
        status: StatusCode,
        grpc_status: Option<u16>,
    },
    /// The code of a CONNACK.
    Connack(u8),
    Said(&'static str),
}

impl Fault {
    /// `said`: what went wrong.
    pub(crate) fn new(endpoint: Option<SocketAddr>, said: &'static str) -> Self {
        Self { endpoint, words: Words::Said(said) }
    }

    pub(crate) fn answered(endpoint: Option<SocketAddr>, status: StatusCode, grpc_status: Option<u16>) -> Self {
        Self { endpoint, words: Words::Answered { status, grpc_status } }
    }

    pub(crate) fn connack(endpoint: SocketAddr, code: u8) -> Self {
        Self { endpoint: Some(endpoint), words: Words::Connack(code) }
    }

    /// `at`: when it was gathered.
    pub(super) fn sample(&self, outcome: Outcome, at: OffsetDateTime) -> Sample {
        let (status, message) = match self.words {
            Words::Answered { status, grpc_status: Some(code) } if !status.is_server_error() => {
                (Some(status.as_u16()), format!("answered with grpc-status {code}"))
            }
            Words::Answered { status, .. } => {
                let reason = status.canonical_reason().map(|reason| format!(" {reason}")).unwrap_or_default();
                (Some(status.as_u16()), format!("answered {}{reason}", status.as_str()))
            }
            Words::Connack(code) => (Some(code.into()), format!("answered CONNECT with code {code}")),
            Words::Said(said) => (None, said.to_owned()),
        };
        Sample {
            // Only a year beyond 9999 cannot be written.
            at: at.format(&Rfc3339).unwrap_or_default(),
            outcome: outcome.as_str(),
            status,
            endpoint: self.endpoint.map(|endpoint| endpoint.to_string()),
            message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_told_with_what_came_and_from_where() {
        let address = SocketAddr::from(([127, 0, 0, 1], 9002));
        let endpoint = Some(address);
        let from = Some("127.0.0.1:9002".to_owned());
        let answered =
            |status, grpc_status| Fault::answered(endpoint, StatusCode::from_u16(status).unwrap(), grpc_status);
        for (fault, status, message) in [
            (answered(503, None), Some(503), "answered 503 Service Unavailable"),
            (answered(503, Some(0)), Some(503), "answered 503 Service Unavailable"),
            (answered(599, None), Some(599), "answered 599"),
            (answered(200, Some(14)), Some(200), "answered with grpc-status 14"),
            (Fault::connack(address, 3), Some(3), "answered CONNECT with code 3"),
            (Fault::new(endpoint, "connection refused"), None, "connection refused"),
        ] {
            let sample = fault.sample(Outcome::Refused, OffsetDateTime::UNIX_EPOCH);
            let expected = Sample {
                at: "1970-01-01T00:00:00Z".to_owned(),
                outcome: "refused",
                status,
                endpoint: from.clone(),
                message: message.to_owned(),
            };
            assert_eq!(sample, expected);
        }
    }
}
