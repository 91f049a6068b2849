//! Active checks: one task an endpoint, which ends when the last configuration that names the endpoint has gone.

use std::{
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use config::{Health, HealthProbe, HttpVersion};
use http::Request;
use http_body_util::Empty;
use hyper::{
    body::Bytes,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, task::JoinHandle, time};

use super::{Endpoint, UpstreamTls, is_shortage};

/// How an endpoint is checked.
#[derive(Clone, Debug)]
pub(crate) struct Check {
    pub(crate) tls: Option<Arc<UpstreamTls>>,
    pub(crate) http_version: HttpVersion,
}

/// Checks `endpoint` for as long as somebody else holds it.
pub(crate) fn watch(endpoint: &Arc<Endpoint>, check: Check) {
    if let Some(health) = endpoint.health.clone() {
        tokio::spawn(check_while_used(Arc::downgrade(endpoint), endpoint.name.clone(), health, check));
    }
}

async fn check_while_used(endpoint: Weak<Endpoint>, name: String, health: Health, check: Check) {
    let (mut passed, mut failed) = (0_u32, 0_u32);
    // The endpoints of a large configuration must not all be checked at the same moment.
    time::sleep(health.interval.mul_f64(fastrand::f64() * 0.5)).await;
    let mut ticks = time::interval(health.interval);
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(address) = endpoint.upgrade().map(|endpoint| endpoint.address) else { return };
        let result = time::timeout(health.timeout, probe(&health.probe, address, &name, &check)).await;
        let problem = match result {
            Ok(Ok(())) => None,
            // Our own trouble says nothing about the endpoint.
            Ok(Err(Failed::Shortage)) => continue,
            Ok(Err(Failed::Endpoint(problem))) => Some(problem),
            Err(_) => Some(format!("no answer within {:?}", health.timeout)),
        };
        let Some(endpoint) = endpoint.upgrade() else { return };
        failed = if problem.is_some() { failed.saturating_add(1) } else { 0 };
        endpoint.set_failed_checks(failed);
        if let Some(problem) = problem {
            passed = 0;
            if failed >= health.unhealthy_after {
                endpoint.connecting_failed(&problem);
            }
        } else {
            // A connection that failed since the last check makes the endpoint start over.
            passed = if endpoint.is_healthy() { 0 } else { passed.saturating_add(1) };
            if passed >= health.healthy_after {
                tracing::info!(endpoint = name, %address, "Endpoint is healthy again");
                endpoint.set_healthy(true);
            }
        }
    }
}

enum Failed {
    Endpoint(String),
    Shortage,
}

impl<E: std::error::Error> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Endpoint(error.to_string())
    }
}

async fn probe(probe: &HealthProbe, address: SocketAddr, host: &str, check: &Check) -> Result<(), Failed> {
    let tcp = match TcpStream::connect(address).await {
        Err(error) if is_shortage(&error) => return Err(Failed::Shortage),
        tcp => tcp?,
    };
    match (probe, &check.tls) {
        (HealthProbe::Tcp, None) => {
            // Closing with a reset leaves no TIME_WAIT behind, check after check.
            let _ = socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
            Ok(())
        }
        // A certificate that cannot be verified keeps real traffic out, so it must keep the endpoint out.
        (HealthProbe::Tcp, Some(tls)) => {
            tls.connect(tcp, check.alpn()).await?;
            Ok(())
        }
        (HealthProbe::Http { path }, None) => check.get(TokioIo::new(tcp), path, host).await,
        (HealthProbe::Http { path }, Some(tls)) => {
            let stream = tls.connect(tcp, check.alpn()).await?;
            check.get(TokioIo::new(stream), path, host).await
        }
    }
}

impl Check {
    fn alpn(&self) -> &[&[u8]] {
        match self.http_version {
            HttpVersion::Http2 => &[b"h2"],
            HttpVersion::Auto | HttpVersion::Http1 => &[],
        }
    }

    async fn get<S>(&self, io: TokioIo<S>, path: &str, host: &str) -> Result<(), Failed>
    where
        TokioIo<S>: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let request = Request::get(path).header(http::header::USER_AGENT, "crossfade-health-check");
        let answer = if self.http_version == HttpVersion::Http2 {
            let scheme = if self.tls.is_some() { "https" } else { "http" };
            let request = request.uri(format!("{scheme}://{host}{path}")).body(Empty::<Bytes>::new())?;
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            let connection = AbortOnDrop(tokio::spawn(connection));
            let answer = sender.send_request(request).await;
            drop(connection);
            answer?
        } else {
            let request = request.header(http::header::HOST, host).body(Empty::<Bytes>::new())?;
            let (mut sender, connection) = http1::handshake(io).await?;
            let connection = AbortOnDrop(tokio::spawn(connection));
            let answer = sender.send_request(request).await;
            drop(connection);
            answer?
        };
        let status = answer.status();
        if status.is_success() || status.is_redirection() {
            Ok(())
        } else {
            Err(Failed::Endpoint(format!("answered {status}")))
        }
    }
}

/// Ends a check's connection with the check, also when that is given up.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
