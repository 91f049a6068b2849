//! Active checks: one task an endpoint, which ends when the last configuration that names the endpoint has gone.

use std::{
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use config::{Health, HealthProbe};
use http::Request;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time};

use super::{Endpoint, UpstreamTls};

/// Checks `endpoint` for as long as somebody else holds it. `host`: what HTTP checks send as `Host`.
pub(crate) fn watch(endpoint: &Arc<Endpoint>, host: String, tls: Option<Arc<UpstreamTls>>) {
    if let Some(health) = endpoint.health.clone() {
        tokio::spawn(check_while_used(Arc::downgrade(endpoint), health, host, tls));
    }
}

async fn check_while_used(endpoint: Weak<Endpoint>, health: Health, host: String, tls: Option<Arc<UpstreamTls>>) {
    let (mut passed, mut failed) = (0_u32, 0_u32);
    // The endpoints of a large configuration must not all be checked at the same moment.
    time::sleep(health.interval.mul_f64(fastrand::f64() * 0.5)).await;
    let mut ticks = time::interval(health.interval);
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(address) = endpoint.upgrade().map(|endpoint| endpoint.address) else { return };
        let result = time::timeout(health.timeout, probe(&health.probe, address, &host, tls.as_deref())).await;
        let problem = match result {
            Ok(Ok(())) => None,
            Ok(Err(problem)) => Some(problem),
            Err(_) => Some(format!("no answer within {:?}", health.timeout)),
        };
        let Some(endpoint) = endpoint.upgrade() else { return };
        if let Some(problem) = problem {
            (passed, failed) = (0, failed.saturating_add(1));
            if failed >= health.unhealthy_after && endpoint.is_healthy() {
                tracing::warn!(%address, problem, "Endpoint is unhealthy");
                endpoint.set_healthy(false);
            }
        } else {
            // A connection that failed since the last check makes the endpoint start over.
            passed = if endpoint.is_healthy() { 0 } else { passed.saturating_add(1) };
            failed = 0;
            if passed >= health.healthy_after {
                tracing::info!(%address, "Endpoint is healthy again");
                endpoint.set_healthy(true);
            }
        }
    }
}

async fn probe(probe: &HealthProbe, address: SocketAddr, host: &str, tls: Option<&UpstreamTls>) -> Result<(), String> {
    let tcp = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    match (probe, tls) {
        (HealthProbe::Tcp, _) => {
            // Closing with a reset leaves no TIME_WAIT behind, check after check.
            let _ = socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
            Ok(())
        }
        (HealthProbe::Http { path }, None) => get(TokioIo::new(tcp), path, host).await,
        (HealthProbe::Http { path }, Some(tls)) => {
            let stream = tls.connect(tcp).await.map_err(|error| error.to_string())?;
            get(TokioIo::new(stream), path, host).await
        }
    }
}

async fn get<S>(io: TokioIo<S>, path: &str, host: &str) -> Result<(), String>
where
    TokioIo<S>: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(text)?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path)
        .header(http::header::HOST, host)
        .header(http::header::USER_AGENT, "crossfade-health-check")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(text);
    connection.abort();
    let status = answer?.status();
    if status.is_success() || status.is_redirection() { Ok(()) } else { Err(format!("answered {status}")) }
}
