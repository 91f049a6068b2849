//! A connection to an arm for protocols that own their upstream connection: MQTT and TCP.

use std::{io, net::SocketAddr};

use admin_api::Outcome;
use config::{Arm, Fallback};
use tokio::{
    net::TcpStream,
    time::{self, Instant},
};
use tokio_rustls::TlsStream;

use super::{ArmUpstream, Lease, is_shortage};
use crate::{
    live::Route,
    telemetry::{Exchange, Fault},
    transport::Transport,
};

/// An established connection, and how long establishing it took.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) upstream: Transport,
    pub(crate) latency_us: u64,
    /// Keeps the endpoint's load counted.
    pub(crate) lease: Lease,
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum NotConnected {
    /// No endpoint could be reached; for the last one, why.
    Unreachable(Hindrance),
    /// This process has no descriptors, ports or memory left: says nothing about the arm.
    Shortage,
}

/// Why an endpoint could not be connected to, in our words: an error's own may hold what the other side wrote.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Hindrance {
    /// None was tried.
    #[default]
    Unhealthy,
    Refused,
    Silent,
    NoWay,
    Tls,
    Other,
}

impl Hindrance {
    pub(crate) fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut => Self::Silent,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Self::NoWay,
            // Which is what rustls calls everything that is wrong with the other side.
            io::ErrorKind::InvalidData => Self::Tls,
            _ => Self::Other,
        }
    }

    /// `endpoint`: the last that was tried.
    pub(crate) fn fault(self, endpoint: Option<SocketAddr>) -> Fault {
        let said = match self {
            Self::Unhealthy => "no endpoint is healthy",
            Self::Refused => "connection refused",
            Self::Silent => "no connection in time",
            Self::NoWay => "no way to the address",
            Self::Tls => "tls could not be agreed on",
            Self::Other => "connecting failed",
        };
        Fault::new(endpoint, said)
    }
}

/// Tries the endpoints of the exchange's arm one by one, then, where the route says so, those of blue. Errors: the
/// exchange is judged.
pub(crate) async fn connect(route: &Route, exchange: &mut Exchange) -> Result<Connected, NotConnected> {
    let mut tried = Vec::new();
    loop {
        let hindrance = match connect_arm(route, exchange.arm(), &mut tried).await {
            Err(NotConnected::Unreachable(hindrance)) => hindrance,
            Err(NotConnected::Shortage) => {
                exchange.answered();
                return Err(NotConnected::Shortage);
            }
            connected => return connected,
        };
        let fault = hindrance.fault(tried.last().copied());
        if exchange.arm() == Arm::Blue || route.settings.fallback != Fallback::Blue {
            exchange.judge(Outcome::Unreachable, None, Some(fault));
            return Err(NotConnected::Unreachable(hindrance));
        }
        exchange.fall_back(fault);
        tried.clear();
    }
}

/// `tried`: gets the endpoints that could not be connected to.
async fn connect_arm(route: &Route, arm: Arm, tried: &mut Vec<SocketAddr>) -> Result<Connected, NotConnected> {
    let upstream = route.upstream(arm);
    let mut hindrance = Hindrance::default();
    while let Some(lease) = upstream.choose(tried) {
        let started = Instant::now();
        let address = lease.address();
        let connecting = establish(upstream, address);
        let failure = match time::timeout(route.settings.timeouts.connect, connecting).await {
            Ok(Ok(stream)) => {
                let latency_us = started.elapsed().as_micros() as u64;
                return Ok(Connected { upstream: stream, latency_us, lease });
            }
            Ok(Err(error)) if is_shortage(&error) => {
                route.meter.reject("no_descriptors");
                return Err(NotConnected::Shortage);
            }
            Ok(Err(error)) => {
                hindrance = Hindrance::of(&error);
                error.to_string()
            }
            Err(_) => {
                hindrance = Hindrance::Silent;
                format!("no connection within {:?}", route.settings.timeouts.connect)
            }
        };
        tracing::debug!(route = route.settings.name, %arm, %address, failure, "Connecting failed");
        lease.endpoint.connecting_failed(&failure);
        tried.push(address);
    }
    Err(NotConnected::Unreachable(hindrance))
}

/// A new connection to an endpoint, TLS set up.
pub(crate) async fn establish(upstream: &ArmUpstream, address: SocketAddr) -> io::Result<Transport> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    Ok(match &upstream.tls {
        None => tcp.into(),
        Some(tls) => Transport::Tls(Box::new(TlsStream::Client(tls.connect(tcp, &[]).await?))),
    })
}
