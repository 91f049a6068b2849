//! A connection to an arm for protocols that own their upstream connection: MQTT and TCP.

use std::{io, net::SocketAddr};

use config::{Arm, Fallback};
use tokio::{
    net::TcpStream,
    time::{self, Instant},
};
use tokio_rustls::TlsStream;

use super::{ArmUpstream, Lease};
use crate::{live::Route, telemetry::Exchange, transport::Transport};

/// An established connection, and how long establishing it took.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) upstream: Transport,
    pub(crate) latency_us: u64,
    /// Keeps the endpoint's load counted.
    _lease: Lease,
}

/// Tries the endpoints of the exchange's arm one by one, then, where the route says so, those of blue. `None`: nobody
/// could be reached; the exchange is not judged yet.
pub(crate) async fn connect(route: &Route, exchange: &mut Exchange) -> Option<Connected> {
    if let Some(connected) = connect_arm(route, exchange.arm()).await {
        return Some(connected);
    }
    if exchange.arm() == Arm::Blue || route.settings.fallback == Fallback::None {
        return None;
    }
    exchange.fall_back();
    connect_arm(route, Arm::Blue).await
}

async fn connect_arm(route: &Route, arm: Arm) -> Option<Connected> {
    let upstream = route.upstream(arm);
    let mut tried = Vec::new();
    while let Some(lease) = upstream.choose(&tried) {
        let started = Instant::now();
        let address = lease.address();
        let connecting = establish(upstream, address);
        let failure = match time::timeout(route.settings.timeouts.connect, connecting).await {
            Ok(Ok(stream)) => {
                let latency_us = started.elapsed().as_micros() as u64;
                return Some(Connected { upstream: stream, latency_us, _lease: lease });
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no connection within {:?}", route.settings.timeouts.connect),
        };
        tracing::debug!(route = route.settings.name, %arm, %address, failure, "Connecting failed");
        lease.endpoint.connecting_failed();
        tried.push(address);
    }
    None
}

async fn establish(upstream: &ArmUpstream, address: SocketAddr) -> io::Result<Transport> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    Ok(match &upstream.tls {
        None => Transport::Plain(tcp),
        Some(tls) => Transport::Tls(Box::new(TlsStream::Client(tls.connect(tcp).await?))),
    })
}
