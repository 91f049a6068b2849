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
    telemetry::Exchange,
    transport::{Socket, Transport},
};

/// An established connection, and how long establishing it took.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) upstream: Transport,
    pub(crate) latency_us: u64,
    /// Keeps the endpoint's load counted.
    _lease: Lease,
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum NotConnected {
    /// No endpoint could be reached.
    Unreachable,
    /// This process has no descriptors, ports or memory left: says nothing about the arm.
    Shortage,
}

/// Tries the endpoints of the exchange's arm one by one, then, where the route says so, those of blue. Errors: the
/// exchange is judged.
pub(crate) async fn connect(route: &Route, exchange: &mut Exchange) -> Result<Connected, NotConnected> {
    let mut connected = connect_arm(route, exchange.arm()).await;
    let may_fall_back = exchange.arm() == Arm::Green && route.settings.fallback == Fallback::Blue;
    if may_fall_back && matches!(connected, Err(NotConnected::Unreachable)) {
        exchange.fall_back();
        connected = connect_arm(route, Arm::Blue).await;
    }
    if matches!(connected, Err(NotConnected::Unreachable)) {
        exchange.judge(Outcome::Unreachable, None);
    }
    connected
}

async fn connect_arm(route: &Route, arm: Arm) -> Result<Connected, NotConnected> {
    let upstream = route.upstream(arm);
    let mut tried = Vec::new();
    while let Some(lease) = upstream.choose(&tried) {
        let started = Instant::now();
        let address = lease.address();
        let connecting = establish(upstream, address);
        let failure = match time::timeout(route.settings.timeouts.connect, connecting).await {
            Ok(Ok(stream)) => {
                let latency_us = started.elapsed().as_micros() as u64;
                return Ok(Connected { upstream: stream, latency_us, _lease: lease });
            }
            Ok(Err(error)) if is_shortage(&error) => {
                route.meter.reject("no_descriptors");
                return Err(NotConnected::Shortage);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no connection within {:?}", route.settings.timeouts.connect),
        };
        tracing::debug!(route = route.settings.name, %arm, %address, failure, "Connecting failed");
        lease.endpoint.connecting_failed(&failure);
        tried.push(address);
    }
    Err(NotConnected::Unreachable)
}

/// A new connection to an endpoint, TLS set up.
pub(crate) async fn establish(upstream: &ArmUpstream, address: SocketAddr) -> io::Result<Transport> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    Ok(match &upstream.tls {
        None => Transport::Plain(Socket::Watched(tcp)),
        Some(tls) => Transport::Tls(Box::new(TlsStream::Client(tls.connect(tcp, &[]).await?))),
    })
}
