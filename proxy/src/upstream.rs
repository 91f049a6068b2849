//! Stage 4: picks an endpoint of an arm and knows which ones are well.

mod connect;
mod health;
mod pool;
mod tls;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use admin_api::EndpointObservation;
use config::{Arm, Health, HttpVersion};
use parking_lot::Mutex;
use tokio::time::Instant;

pub(crate) use connect::{Connected, Hindrance, NotConnected, connect, establish};
pub(crate) use health::{Check, watch};
pub(crate) use tls::{UpstreamTls, read_certificates};

use crate::{
    transport::Transport,
    worker::{self, Handle, PerWorker, Shared},
};
use pool::Pool;

/// One side of a route, with its names looked up.
#[derive(Debug)]
pub(crate) struct ArmUpstream {
    pub(crate) arm: Arm,
    pub(crate) endpoints: Vec<Shared<Endpoint>>,
    pub(crate) tls: Option<Arc<UpstreamTls>>,
    pub(crate) http_version: HttpVersion,
}

impl ArmUpstream {
    /// The less loaded of two healthy endpoints drawn at random ("the power of two choices"), leaving out those in
    /// `tried`. Load is what this worker itself has under way, so that choosing shares nothing.
    ///
    /// Blue has nobody behind it: when none of its endpoints is known to be well, all of them are tried.
    pub(crate) fn choose(&self, tried: &[SocketAddr]) -> Option<Lease> {
        let untried = || self.endpoints.iter().filter(|endpoint| !tried.contains(&endpoint.address));
        let healthy = untried().filter(|endpoint| endpoint.is_healthy()).count();
        let any = healthy == 0 && self.arm == Arm::Blue;
        let candidates = || untried().filter(|endpoint| any || endpoint.is_healthy());
        let count = if any { untried().count() } else { healthy };
        let endpoint = match count {
            0 => return None,
            1 => candidates().next()?,
            // Health may change while we look: then the first that is still there is as good as any.
            _ => {
                let first = fastrand::usize(..count);
                let second = (first + fastrand::usize(1..count)) % count;
                let pick = |nth| candidates().nth(nth).or_else(|| candidates().next());
                let (first, second) = (pick(first)?, pick(second)?);
                if second.in_flight.local().load(Ordering::Relaxed) < first.in_flight.local().load(Ordering::Relaxed) {
                    second
                } else {
                    first
                }
            }
        };
        Some(Lease::new(endpoint))
    }

    /// Whether it is spoken to in HTTP/1.1 and nothing else. In clear there is nothing to negotiate with.
    pub(crate) fn is_http1(&self) -> bool {
        self.http_version == HttpVersion::Http1 || (self.http_version == HttpVersion::Auto && self.tls.is_none())
    }

    pub(crate) fn observe(&self) -> Vec<EndpointObservation> {
        self.endpoints
            .iter()
            .map(|endpoint| EndpointObservation {
                address: endpoint.address.to_string(),
                healthy: endpoint.is_healthy(),
                failed_checks: endpoint.failed_checks.load(Ordering::Relaxed),
                in_flight: endpoint.in_flight.iter().map(|count| count.load(Ordering::Relaxed)).sum(),
            })
            .collect()
    }
}

/// One address of an arm. Kept across reloads that do not touch it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// As configured: `host:port`.
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) health: Option<Health>,
    healthy: AtomicBool,
    /// In a row.
    failed_checks: AtomicU32,
    /// It has answered in HTTP/2.
    speaks_h2: AtomicBool,
    in_flight: PerWorker<AtomicU64>,
    pool: PerWorker<Mutex<Pool>>,
}

impl Endpoint {
    /// Starts healthy: the first check, or the first connection, says otherwise.
    pub(crate) fn new(name: String, address: SocketAddr, health: Option<Health>, workers: usize) -> Shared<Self> {
        let endpoint = Self {
            name,
            address,
            health,
            healthy: AtomicBool::new(true),
            failed_checks: AtomicU32::new(0),
            speaks_h2: AtomicBool::new(false),
            in_flight: PerWorker::new(workers),
            pool: PerWorker::new(workers),
        };
        Shared::new(endpoint, workers)
    }

    pub(crate) fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    pub(crate) fn set_healthy(&self, healthy: bool) {
        self.healthy.store(healthy, Ordering::Relaxed);
    }

    /// So many checks in a row have failed, as of the last one.
    pub(crate) fn set_failed_checks(&self, failed: u32) {
        self.failed_checks.store(failed, Ordering::Relaxed);
    }

    /// Real traffic could not connect. With checks on, the endpoint leaves at once and the checks bring it back;
    /// without them nothing would, so it stays.
    pub(crate) fn connecting_failed(&self, problem: &str) {
        if self.health.is_some() && self.healthy.swap(false, Ordering::Relaxed) {
            tracing::warn!(endpoint = self.name, address = %self.address, problem, "Endpoint is unhealthy");
        }
    }

    /// An idle connection that still stands: of this worker's, or of another one's that has many. `surely`: for a request
    /// that could not be sent again.
    pub(crate) fn take_idle(&self, surely: bool) -> Option<Transport> {
        let own = self.pool.local().lock().take(surely);
        // Only where there would be a new connection, which costs far more than to look around.
        own.or_else(|| {
            let spare = self.pool.iter().find_map(|pool| pool.try_lock()?.spare())?;
            spare.moved_here().filter(Transport::is_silent)
        })
    }

    /// Keeps a connection for this worker's next request. `since`: when it was used last. `doubtful`: something that belongs
    /// to no answer may still come on it.
    pub(crate) fn keep_idle(&self, transport: Transport, since: Instant, doubtful: bool) {
        self.pool.local().lock().keep(transport, since, doubtful);
    }

    /// Closes connections that were idle for long.
    pub(crate) fn sweep(&self, now: Instant) {
        for pool in self.pool.iter() {
            pool.lock().sweep(now);
        }
    }

    /// It has answered in HTTP/2.
    pub(crate) fn speaks_h2(&self) {
        // Read first: writing each time would make every worker fetch the line anew.
        if !self.is_known_to_speak_h2() {
            self.speaks_h2.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_known_to_speak_h2(&self) -> bool {
        self.speaks_h2.load(Ordering::Relaxed)
    }
}

/// Does this error of connecting lie with our own process or machine? EMFILE, ENFILE, ENOMEM, ENOBUFS, and
/// EADDRNOTAVAIL, which means that no local port is left.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(24 | 23 | 12 | 105 | 99))
}

/// An endpoint in use; counted as load until dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) endpoint: Handle<Endpoint>,
    worker: usize,
}

impl Lease {
    fn new(endpoint: &Shared<Endpoint>) -> Self {
        let worker = worker::id();
        endpoint.in_flight.of(worker).fetch_add(1, Ordering::Relaxed);
        Self { endpoint: endpoint.handle(), worker }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.endpoint.address
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.in_flight.of(self.worker).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arm(arm: Arm, ports: &[u16]) -> ArmUpstream {
        let endpoints = ports
            .iter()
            .map(|port| {
                let address = SocketAddr::from(([127, 0, 0, 1], *port));
                Endpoint::new(address.to_string(), address, Some(Health::default()), 1)
            })
            .collect();
        ArmUpstream { arm, endpoints, tls: None, http_version: HttpVersion::Auto }
    }

    #[test]
    fn the_less_loaded_endpoint_of_two_is_chosen() {
        let green = arm(Arm::Green, &[1, 2]);
        let first = green.choose(&[]).unwrap();
        for _ in 0..20 {
            assert_ne!(green.choose(&[]).unwrap().address(), first.address());
        }
        drop(first);
        assert!(green.observe().iter().all(|endpoint| endpoint.in_flight == 0));
    }

    #[tokio::test]
    async fn a_worker_that_would_have_to_connect_takes_what_another_has_to_spare() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let endpoint = Endpoint::new(address.to_string(), address, None, 2);
        let (kept, is_kept) = tokio::sync::oneshot::channel();
        let (end, ends) = tokio::sync::oneshot::channel::<()>();
        let other = std::thread::spawn({
            let endpoint = endpoint.clone();
            move || {
                worker::enter(2);
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async move {
                    for _ in 0..10 {
                        let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
                        endpoint.keep_idle(tcp.into(), Instant::now(), false);
                    }
                    kept.send(()).unwrap();
                    ends.await.unwrap();
                });
            }
        });
        is_kept.await.unwrap();
        worker::enter(1);
        let mut accepted: Vec<_> = (0..10).map(|_| listener.accept().unwrap().0).collect();
        // The second to be idle for longest has been closed by the endpoint meanwhile.
        drop(accepted.remove(1));
        let mut moved = endpoint.take_idle(false).expect("ten are more than a worker keeps to itself");
        tokio::io::AsyncWriteExt::write_all(&mut moved, b"x").await.unwrap();
        io::Read::read_exact(&mut accepted[0], &mut [0]).unwrap();
        io::Write::write_all(&mut accepted[0], b"y").unwrap();
        tokio::io::AsyncReadExt::read_exact(&mut moved, &mut [0]).await.unwrap();
        assert!(endpoint.take_idle(false).is_none(), "it is closed");
        assert!(endpoint.take_idle(false).is_none(), "the other worker keeps eight");
        end.send(()).unwrap();
        other.join().unwrap();
    }

    #[test]
    fn tried_and_unhealthy_endpoints_are_left_out() {
        let green = arm(Arm::Green, &[1, 2, 3]);
        green.endpoints[1].connecting_failed("refused");
        let tried = [green.endpoints[0].address];
        for _ in 0..20 {
            assert_eq!(green.choose(&tried).unwrap().address().port(), 3);
        }
        green.endpoints[2].set_healthy(false);
        assert!(green.choose(&tried).is_none());
        green.endpoints[1].set_healthy(true);
        assert_eq!(green.choose(&tried).unwrap().address().port(), 2);
    }

    #[test]
    fn blue_is_tried_even_when_no_check_passes() {
        let blue = arm(Arm::Blue, &[1, 2]);
        blue.endpoints.iter().for_each(|endpoint| endpoint.set_healthy(false));
        let first = blue.choose(&[]).unwrap().address();
        let second = blue.choose(&[first]).unwrap().address();
        assert_ne!(first, second);
        assert!(blue.choose(&[first, second]).is_none());
    }
}
