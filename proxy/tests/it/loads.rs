//! Open-loop load whose single requests may fail.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    task::{JoinHandle, JoinSet},
    time::{self, Instant},
};

use crate::{
    clients::{Client, get_request},
    harness::eventually,
    packets::{ACCEPTED, DISCONNECT, PINGREQ, PINGRESP, connect, read_packet},
    site::soon,
    tcp::{from_address, try_label},
};

/// How long a client waits for its answer.
const PATIENCE: Duration = Duration::from_secs(8);

/// Starts `work` at a steady rate until dropped, whatever becomes of earlier ones. Counts what ended well, and not.
pub(crate) struct Load {
    good: Arc<AtomicUsize>,
    bad: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    running: JoinHandle<()>,
}

/// A request or connection under way; `true` when it ended well.
type Work = Pin<Box<dyn Future<Output = bool> + Send>>;

impl Load {
    /// `rate`: a second. `work`: gets the number of the request, from 0.
    pub(crate) fn start<F: Future<Output = bool> + Send + 'static>(
        rate: u32,
        mut work: impl FnMut(u16) -> F + Send + 'static,
    ) -> Self {
        let (good, bad, stop) =
            (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (counted_good, counted_bad, stopped) = (Arc::clone(&good), Arc::clone(&bad), Arc::clone(&stop));
        let running = tokio::spawn(async move {
            let mut under_way = JoinSet::new();
            let mut ticks = time::interval(Duration::from_secs(1) / rate);
            for n in 0.. {
                ticks.tick().await;
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let (good, bad, work) = (Arc::clone(&counted_good), Arc::clone(&counted_bad), work(n));
                under_way.spawn(async move { (if work.await { good } else { bad }).fetch_add(1, Ordering::Relaxed) });
            }
            under_way.join_all().await;
        });
        Self { good, bad, stop, running }
    }

    pub(crate) fn good(&self) -> usize {
        self.good.load(Ordering::Relaxed)
    }

    pub(crate) fn bad(&self) -> usize {
        self.bad.load(Ordering::Relaxed)
    }

    /// Waits for the first failure.
    pub(crate) async fn first_failure(&self) -> Instant {
        eventually("something fails", async || (self.bad() > 0).then(Instant::now)).await
    }

    /// Starts nothing more and waits for what is under way. What ended well, and not.
    pub(crate) async fn stop(mut self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        soon(&mut self.running).await.unwrap();
        (self.good(), self.bad())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// GET by a new key each time; `true` for status 200.
pub(crate) fn requests(listen: SocketAddr) -> impl FnMut(u16) -> Work + Send {
    exchanges(listen, |n| get_request("/", &[("x-session-id", &format!("user-{n}"))]))
}

/// The same with requests of one's own. They have kept connections: one is opened when none is idle.
pub(crate) fn exchanges(
    listen: SocketAddr,
    mut request: impl FnMut(u16) -> Vec<u8> + Send,
) -> impl FnMut(u16) -> Work + Send {
    let idle = Arc::<Mutex<Vec<Client>>>::default();
    move |n| {
        let (idle, request) = (Arc::clone(&idle), request(n));
        patiently(async move {
            let kept = idle.lock().unwrap().pop();
            let mut client = match kept {
                Some(client) => client,
                None => Client::try_connect(listen).await.ok()?,
            };
            let answer = client.exchange(&request).await.ok()?;
            if answer.header("connection") != Some("close") {
                idle.lock().unwrap().push(client);
            }
            (answer.status == StatusCode::OK).then_some(())
        })
    }
}

/// CONNECT with a new id each time; `true` when accepted.
pub(crate) fn connects(listen: SocketAddr) -> impl FnMut(u16) -> Work + Send {
    move |n| {
        patiently(async move {
            let mut stream = TcpStream::connect(listen).await.ok()?;
            stream.write_all(&connect(&format!("device-{n}"))).await.ok()?;
            let answer = read_packet(&mut stream).await?;
            stream.write_all(DISCONNECT).await.ok()?;
            (answer == ACCEPTED).then_some(())
        })
    }
}

/// CONNECT with a new id each time, and a ping; `true` when both are answered.
pub(crate) fn sessions(listen: SocketAddr) -> impl FnMut(u16) -> Work + Send {
    move |n| {
        patiently(async move {
            let mut stream = TcpStream::connect(listen).await.ok()?;
            stream.write_all(&connect(&format!("device-{n}"))).await.ok()?;
            let accepted = read_packet(&mut stream).await?;
            stream.write_all(PINGREQ).await.ok()?;
            let answer = read_packet(&mut stream).await?;
            stream.write_all(DISCONNECT).await.ok()?;
            (accepted == ACCEPTED && answer == PINGRESP).then_some(())
        })
    }
}

/// A connection from a new address each time; `true` when an origin answers.
pub(crate) fn connections(listen: SocketAddr) -> impl FnMut(u16) -> Work + Send {
    move |n| {
        patiently(async move {
            let mut stream = from_address(n, listen).await;
            ["python", "go"].contains(&try_label(&mut stream).await?.as_str()).then_some(())
        })
    }
}

fn patiently(work: impl Future<Output = Option<()>> + Send + 'static) -> Work {
    Box::pin(async move { time::timeout(PATIENCE, work).await.is_ok_and(|done| done.is_some()) })
}
