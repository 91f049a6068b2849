//! An HTTP route between two origins, and what is asked about it.

use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ::config::{Arm, Split};
use loadtest::origin::HttpOrigin;
use proxy::split::{Salt, bucket};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time,
};

use crate::{
    harness::{Admin, Crossfade, DEADLINE},
    routes::Route,
    status,
};

/// Port 0 on loopback.
pub(crate) fn any_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// Fails the test when `future` is not done by the deadline.
#[track_caller]
pub(crate) fn soon<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    async move {
        let done = time::timeout(DEADLINE, future).await;
        done.unwrap_or_else(|_| panic!("not within {DEADLINE:?} ({caller})"))
    }
}

/// Blue and green of one route, answering as they should until told otherwise.
pub(crate) struct Site {
    pub(crate) blue: HttpOrigin,
    pub(crate) green: HttpOrigin,
}

impl Site {
    pub(crate) async fn start() -> Self {
        Self {
            blue: HttpOrigin::start("python", any_port()).await.unwrap(),
            green: HttpOrigin::start("go", any_port()).await.unwrap(),
        }
    }

    /// `shop`, by `x-session-id`, everything on blue.
    pub(crate) fn route(&self) -> Route {
        Route::http(self.blue.address(), self.green.address())
    }

    /// Requests that reached blue and green.
    pub(crate) fn requests(&self) -> (u64, u64) {
        (self.blue.seen().requests(), self.green.seen().requests())
    }

    /// Connections that reached blue and green.
    pub(crate) fn connections(&self) -> (u64, u64) {
        (self.blue.seen().connections(), self.green.seen().connections())
    }
}

/// The arm of a key, from the hash alone.
pub(crate) fn arm_of(route: &str, key: &[u8], green_percentage: f64) -> Arm {
    Split::from_percent(green_percentage).unwrap().arm(bucket(Salt::split(route), key))
}

/// Keys that route `shop` sends to `arm` at 50 %; every call gives the same ones.
pub(crate) fn keys(arm: Arm) -> impl Iterator<Item = String> {
    (0..).map(|n| format!("user-{n}")).filter(move |key| arm_of("shop", key.as_bytes(), 50.0) == arm)
}

pub(crate) fn key(arm: Arm) -> String {
    keys(arm).next().unwrap()
}

/// A count of one arm since the start: `dispatched`, `fallbacks`, `failures`, or an outcome such as `timeout`.
pub(crate) fn count(status: &Value, arm: &str, what: &str) -> u64 {
    status::arm(status, arm)[what].as_u64().unwrap_or_else(|| panic!("no {what} of {arm} in {status}"))
}

/// How much was refused for a reason, before or after its route was known.
pub(crate) async fn rejected(admin: &Admin, reason: &str) -> u64 {
    let metrics = admin.text("/metrics").await;
    let label = format!("reason=\"{reason}\"");
    let families = ["crossfade_rejected_total{", "crossfade_unrouted_total{"];
    let counted = |line: &&str| families.iter().any(|family| line.starts_with(family)) && line.contains(&label);
    metrics.lines().filter(counted).map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// An origin that a test writes itself: gets every connection and its number, from 0.
pub(crate) struct RawOrigin {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    accepting: AbortHandle,
}

impl RawOrigin {
    pub(crate) async fn start<F>(serve: impl Fn(TcpStream, usize) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(any_port()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, counted.fetch_add(1, Ordering::SeqCst)));
            }
        });
        Self { address, connections, accepting: accepting.abort_handle() }
    }

    /// Connections accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for RawOrigin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Reads to the end of a request's head; what came of the body is behind it. Empty when the client has gone.
pub(crate) async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read_buf(&mut head).await {
            Ok(0) | Err(_) => return Vec::new(),
            Ok(_) => {}
        }
    }
    head
}

/// Closes with a reset in place of an orderly end.
pub(crate) fn reset(stream: TcpStream) {
    stream.set_zero_linger().unwrap();
    drop(stream);
}

/// Starts `count` of `work` at `rate` a second, whatever becomes of the earlier ones, and waits for all.
pub(crate) async fn paced<T, F>(rate: u32, count: usize, mut work: impl FnMut(usize) -> F) -> Vec<T>
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let mut ticks = time::interval(Duration::from_secs(1) / rate);
    let mut running = Vec::new();
    for n in 0..count {
        ticks.tick().await;
        running.push(tokio::spawn(work(n)));
    }
    let mut results = Vec::new();
    for work in running {
        results.push(soon(work).await.unwrap());
    }
    results
}

/// The most memory the process ever held, in KiB.
pub(crate) fn peak_kib(crossfade: &Crossfade) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", crossfade.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}
