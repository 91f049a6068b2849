//! Stage 6: copies requests of a sample of keys to the other arm and compares the answers.
//!
//! Copies live on a thread of their own. The request that is copied never waits for one and never learns of it: it only
//! leaves its answer's status, latency and hash behind. What does not fit in is dropped and counted.

use std::{sync::Arc, thread};

use admin_api::{MirrorObservation, Outcome};
use config::{Arm, HttpVersion};
use http::{HeaderValue, Request, StatusCode, Uri, header, request::Parts};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::{
    runtime,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{self, Duration, Instant},
};
use xxhash_rust::xxh3::Xxh3;

use crate::{
    http::answered,
    split::{Salt, bucket},
    upstream::ArmUpstream,
    worker::PerWorker,
};

/// The thread that all copies run on.
#[derive(Clone, Debug)]
pub(crate) struct MirrorThread(runtime::Handle);

impl MirrorThread {
    /// Starts it. It ends with the process.
    pub(crate) fn start() -> std::io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        thread::Builder::new()
            .name("mirror".to_owned())
            .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
        Ok(Self(handle))
    }
}

type CopyClient = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// A route's mirror: its settings, what is under way and what came of it.
#[derive(Debug)]
pub(crate) struct Mirror {
    settings: config::Mirror,
    salt: Salt,
    permits: Arc<Semaphore>,
    meter: Arc<Meter>,
    clients: [CopyClient; 2],
    thread: MirrorThread,
}

/// Counts, each worker for itself; the copies' thread has a shard of its own.
#[derive(Debug)]
struct Meter(PerWorker<Mutex<MirrorObservation>>);

impl Meter {
    fn count(&self, change: impl FnOnce(&mut MirrorObservation)) {
        change(&mut self.0.local().lock());
    }
}

impl Mirror {
    /// `previous`: the same route's before a reload, whose counts go on.
    pub(crate) fn new(
        previous: Option<&Self>,
        name: &str,
        settings: config::Mirror,
        arms: [&ArmUpstream; 2],
        workers: usize,
        thread: &MirrorThread,
    ) -> Arc<Self> {
        Arc::new(Self {
            settings,
            salt: Salt::mirror(name),
            permits: Arc::new(Semaphore::new(settings.max_in_flight)),
            meter: previous.map_or_else(|| Arc::new(Meter(PerWorker::new(workers))), |p| Arc::clone(&p.meter)),
            clients: arms.map(client),
            thread: thread.clone(),
        })
    }

    /// Copies a request if its method is safe, its key is in the sample and there is room. `to`: the arm that has not
    /// been chosen. `request`: as the chosen one is sent it, only asked for when it may be copied. The tap then watches
    /// the primary's answer.
    pub(crate) fn offer(
        self: &Arc<Self>,
        to: &Arc<ArmUpstream>,
        key: Option<&[u8]>,
        method: &[u8],
        without_body: bool,
        request: impl FnOnce() -> Option<Parts>,
    ) -> Option<Tap> {
        if !matches!(method, b"GET" | b"HEAD" | b"OPTIONS") {
            return None;
        }
        let sampled = match key {
            Some(key) => bucket(self.salt, key) < self.settings.sample.buckets(),
            None => fastrand::u16(..config::BUCKETS) < self.settings.sample.buckets(),
        };
        let dropped = |reason| self.meter.count(|seen| *seen.dropped.entry(reason).or_default() += 1);
        self.meter.count(|seen| {
            seen.offered += 1;
            seen.unsampled += u64::from(!sampled);
        });
        if !sampled {
            return None;
        }
        let Some(request) = request() else {
            dropped("bad_target");
            return None;
        };
        if let Some(reason) = incomparable(&request, without_body) {
            dropped(reason);
            return None;
        }
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            dropped("in_flight");
            return None;
        };
        let (sender, receiver) = oneshot::channel();
        let copy = Copy {
            mirror: Arc::clone(self),
            to: Arc::clone(to),
            request: self.copy_of(&request),
            primary: receiver,
            _permit: permit,
        };
        self.thread.0.spawn(copy.run());
        Some(Tap { sender: Some(sender), status: None, latency_us: 0, body: BodyHash::new(self.settings.max_body) })
    }

    fn copy_of(&self, request: &Parts) -> Request<Empty<Bytes>> {
        let mut copy = Request::new(Empty::new());
        *copy.method_mut() = request.method.clone();
        *copy.uri_mut() = request.uri.clone();
        *copy.headers_mut() = request.headers.clone();
        let headers = copy.headers_mut();
        if !headers.contains_key(header::HOST)
            && let Some(host) = request.uri.authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok())
        {
            headers.insert(header::HOST, host);
        }
        for name in [header::CONNECTION, header::EXPECT, header::TE] {
            headers.remove(name);
        }
        headers.insert("x-shadow", HeaderValue::from_static("crossfade"));
        copy
    }

    pub(crate) fn observe(&self) -> MirrorObservation {
        let mut total = MirrorObservation::default();
        for shard in self.meter.0.iter() {
            total.add(&shard.lock());
        }
        total
    }
}

/// Why a request cannot be compared: what is only for one side's state, or no plain answer.
fn incomparable(request: &Parts, without_body: bool) -> Option<&'static str> {
    if !without_body {
        return Some("body");
    }
    [
        (header::UPGRADE, "upgrade"),
        (header::RANGE, "range"),
        (header::IF_NONE_MATCH, "conditional"),
        (header::IF_MODIFIED_SINCE, "conditional"),
        (header::IF_MATCH, "conditional"),
        (header::IF_UNMODIFIED_SINCE, "conditional"),
    ]
    .into_iter()
    .find_map(|(name, reason)| request.headers.contains_key(name).then_some(reason))
}

fn client(arm: &ArmUpstream) -> CopyClient {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(Duration::from_secs(2)));
    let tls = match &arm.tls {
        Some(tls) => tls.client(),
        // Never used: the URIs of an arm without TLS say `http`.
        None => {
            rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth()
        }
    };
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    let name = arm.tls.as_ref().and_then(|tls| ServerName::try_from(tls.server_name.clone()).ok());
    let builder = match name {
        Some(name) => builder.with_server_name_resolver(FixedServerNameResolver::new(name)),
        None => builder,
    };
    let connector = match arm.http_version {
        HttpVersion::Http2 => builder.enable_http2().wrap_connector(http),
        HttpVersion::Http1 => builder.enable_http1().wrap_connector(http),
        HttpVersion::Auto => builder.enable_http1().enable_http2().wrap_connector(http),
    };
    Client::builder(TokioExecutor::new())
        .http2_only(arm.http_version == HttpVersion::Http2)
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(30))
        .retry_canceled_requests(false)
        .build(connector)
}

/// What one side answered.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    latency_us: u64,
    /// `None`: longer than is compared, or not whole.
    body: Option<u128>,
}

/// What came of one side of a pair. A side that has no answer to be held to account for is [`Outcome::ClientGone`].
type Ending = Result<Answer, Outcome>;

/// Watches the primary's answer for one copied request.
#[derive(Debug)]
pub(crate) struct Tap {
    /// `None`: all has been told.
    sender: Option<oneshot::Sender<Ending>>,
    status: Option<StatusCode>,
    latency_us: u64,
    body: BodyHash,
}

impl Tap {
    pub(crate) fn answered(&mut self, status: StatusCode, latency_us: u64) {
        self.status = Some(status);
        self.latency_us = latency_us;
    }

    pub(crate) fn body(&mut self, bytes: &[u8]) {
        self.body.update(bytes);
        // As of the copy, no more is read than is compared: how fast the client takes the rest is its own affair.
        if let (None, Some(status)) = (self.body.left, self.status) {
            self.tell(Ok(Answer { status, latency_us: self.latency_us, body: None }));
        }
    }

    /// The primary's exchange is over. `error`: what it says about the arm.
    pub(crate) fn finish(mut self, error: Option<Outcome>) {
        let answer = |status, body| Answer { status, latency_us: self.latency_us, body };
        let ending = match (error, self.status) {
            (None, Some(status)) => Ok(answer(status, self.body.finish())),
            // Whoever left had been answered.
            (Some(Outcome::ClientGone), Some(status)) => Ok(answer(status, None)),
            (error, _) => Err(error.unwrap_or(Outcome::ClientGone)),
        };
        self.tell(ending);
    }

    fn tell(&mut self, ending: Ending) {
        if let Some(sender) = self.sender.take() {
            // The copy may have given up by now.
            let _ = sender.send(ending);
        }
    }
}

/// Hashes a body as it passes, up to a length.
struct BodyHash {
    hasher: Box<Xxh3>,
    left: Option<usize>,
}

impl std::fmt::Debug for BodyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BodyHash").field("left", &self.left).finish_non_exhaustive()
    }
}

impl BodyHash {
    fn new(limit: usize) -> Self {
        Self { hasher: Box::default(), left: Some(limit) }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.left = self.left.and_then(|left| left.checked_sub(bytes.len()));
        if self.left.is_some() {
            self.hasher.update(bytes);
        }
    }

    fn finish(&self) -> Option<u128> {
        self.left.map(|_| self.hasher.digest128())
    }
}

/// One copy from its start to its comparison.
struct Copy {
    mirror: Arc<Mirror>,
    to: Arc<ArmUpstream>,
    request: Request<Empty<Bytes>>,
    primary: oneshot::Receiver<Ending>,
    _permit: OwnedSemaphorePermit,
}

impl Copy {
    async fn run(self) {
        let Self { mirror, to, request, primary, _permit } = self;
        let patience = mirror.settings.timeout;
        // Each for itself: that one is late is not the other's failure, and that both are tells whose fault it is.
        let (copy, primary) =
            tokio::join!(time::timeout(patience, mirror.send(&to, request)), time::timeout(patience, primary));
        let copy = copy.unwrap_or(Err(Outcome::Timeout));
        let primary = primary.map_or(Err(Outcome::Timeout), |told| told.unwrap_or(Err(Outcome::ClientGone)));
        mirror.meter.count(|seen| account(seen, to.arm, &primary, &copy));
    }
}

impl Mirror {
    async fn send(&self, to: &ArmUpstream, mut request: Request<Empty<Bytes>>) -> Ending {
        let lease = to.choose(&[]).ok_or(Outcome::Unreachable)?;
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        let scheme = if to.tls.is_some() { "https" } else { "http" };
        // A target that has no place in a URI, such as `*`, is the client's.
        *request.uri_mut() =
            Uri::try_from(format!("{scheme}://{}{target}", lease.address())).map_err(|_| Outcome::ClientGone)?;
        let started = Instant::now();
        let response = self.clients[to.arm as usize]
            .request(request)
            .await
            .map_err(|error| if error.is_connect() { Outcome::Unreachable } else { Outcome::Broken })?;
        let latency_us = started.elapsed().as_micros() as u64;
        let status = response.status();
        let body = hash_body(response.into_body(), self.settings.max_body).await?;
        Ok(Answer { status, latency_us, body })
    }
}

/// Reads no further than is compared: a body without end costs no more than a long one.
async fn hash_body(mut body: Incoming, limit: usize) -> Result<Option<u128>, Outcome> {
    let mut hash = BodyHash::new(limit);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(|_| Outcome::Broken)?.into_data() {
            hash.update(&data);
        }
        if hash.left.is_none() {
            break;
        }
    }
    Ok(hash.finish())
}

fn account(seen: &mut MirrorObservation, copy_to: Arm, primary: &Ending, copy: &Ending) {
    let failed = match (primary, copy) {
        // How long the arm would have taken is not known, so the copy is held against nobody either.
        (Err(Outcome::ClientGone), _) => {
            *seen.failed.entry(Outcome::ClientGone.as_str()).or_default() += 1;
            return;
        }
        (_, Err(outcome)) => Some(outcome.as_str()),
        (Err(_), Ok(_)) => Some("primary_failed"),
        (Ok(primary), Ok(copy)) => {
            compare(seen, primary, copy);
            None
        }
    };
    if let Some(reason) = failed {
        *seen.failed.entry(reason).or_default() += 1;
    }
    for (arm, ending) in [(copy_to.other(), primary), (copy_to, copy)] {
        let tally = match arm {
            Arm::Blue => &mut seen.blue,
            Arm::Green => &mut seen.green,
        };
        match ending {
            // Latencies are compared pair by pair.
            Ok(answer) => {
                tally.record(answered(answer.status, None), failed.is_none().then_some(answer.latency_us));
            }
            Err(outcome) => tally.record(*outcome, None),
        }
    }
}

fn compare(seen: &mut MirrorObservation, primary: &Answer, copy: &Answer) {
    let same_class = primary.status.as_u16() / 100 == copy.status.as_u16() / 100;
    let other_body = matches!((primary.body, copy.body), (Some(primary), Some(copy)) if primary != copy);
    seen.paired += 1;
    seen.mismatched += u64::from(!same_class || other_body);
    if same_class {
        seen.status_class_equal += 1;
    } else {
        seen.status_class_differs += 1;
    }
    match (primary.body, copy.body) {
        (Some(primary), Some(copy)) if primary == copy => seen.body_equal += 1,
        (Some(_), Some(_)) => seen.body_differs += 1,
        _ => seen.body_not_compared += 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_are_counted_for_the_arm_that_had_them_whichever_was_the_primary() {
        let answer = |status| -> Ending {
            Ok(Answer { status: StatusCode::from_u16(status).unwrap(), latency_us: 900, body: None })
        };
        let late = || -> Ending { Err(Outcome::Timeout) };
        // The primary's, the copy's, why they are no pair, and the outcomes of both.
        let cases = [
            (answer(200), answer(200), None, [Some(Outcome::Ok), Some(Outcome::Ok)]),
            (answer(200), answer(500), None, [Some(Outcome::Ok), Some(Outcome::Refused)]),
            (answer(503), answer(404), None, [Some(Outcome::Refused), Some(Outcome::Declined)]),
            (answer(200), late(), Some("timeout"), [Some(Outcome::Ok), Some(Outcome::Timeout)]),
            (late(), answer(200), Some("primary_failed"), [Some(Outcome::Timeout), Some(Outcome::Ok)]),
            (late(), late(), Some("timeout"), [Some(Outcome::Timeout), Some(Outcome::Timeout)]),
            (
                Err(Outcome::Broken),
                Err(Outcome::Unreachable),
                Some("unreachable"),
                [Some(Outcome::Broken), Some(Outcome::Unreachable)],
            ),
            (Err(Outcome::ClientGone), late(), Some("client_gone"), [None, None]),
        ];
        for (primary, copy, failed, outcomes) in cases {
            for copy_to in [Arm::Green, Arm::Blue] {
                let mut seen = MirrorObservation::default();
                account(&mut seen, copy_to, &primary, &copy);
                let place = format!("{primary:?} and {copy:?} to {copy_to}");
                assert_eq!(seen.failed.keys().copied().next(), failed, "{place}");
                assert_eq!(seen.paired, u64::from(failed.is_none()), "{place}");
                let tallies = if copy_to == Arm::Green { [&seen.blue, &seen.green] } else { [&seen.green, &seen.blue] };
                for (tally, outcome) in tallies.into_iter().zip(outcomes) {
                    for any in Outcome::ALL {
                        assert_eq!(tally.count(any), u64::from(Some(any) == outcome), "{any:?}, {place}");
                    }
                    let good = u64::from(outcome == Some(Outcome::Ok));
                    assert_eq!(tally.latency_us.len(), seen.paired * good, "{place}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_tap_tells_once_and_no_more_than_is_compared() {
        let tap = || {
            let (sender, receiver) = oneshot::channel();
            (Tap { sender: Some(sender), status: None, latency_us: 0, body: BodyHash::new(4) }, receiver)
        };
        let (mut long, mut told) = tap();
        long.answered(StatusCode::OK, 700);
        long.body(b"four");
        assert!(told.try_recv().is_err(), "more may come");
        long.body(b"!");
        let answer = told.try_recv().unwrap().unwrap();
        assert_eq!((answer.status, answer.latency_us, answer.body), (StatusCode::OK, 700, None));
        long.finish(Some(Outcome::Broken));

        for (status, error, expected) in [
            (Some(StatusCode::OK), None, Ok(true)),
            (Some(StatusCode::OK), Some(Outcome::ClientGone), Ok(false)),
            (Some(StatusCode::OK), Some(Outcome::Broken), Err(Outcome::Broken)),
            (None, Some(Outcome::Timeout), Err(Outcome::Timeout)),
            (None, Some(Outcome::ClientGone), Err(Outcome::ClientGone)),
            (None, None, Err(Outcome::ClientGone)),
        ] {
            let (mut short, mut told) = tap();
            if let Some(status) = status {
                short.answered(status, 700);
            }
            short.finish(error);
            let ending = told.try_recv().unwrap();
            assert_eq!(ending.map(|answer| answer.body.is_some()), expected, "{status:?}, {error:?}");
        }
    }
}
