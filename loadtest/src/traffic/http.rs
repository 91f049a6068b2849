//! GET requests at a constant rate, each with the key of one of a number of users.

use std::{
    collections::BTreeMap,
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use parking_lot::Mutex;
use tokio::{sync::Semaphore, time};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Connections kept open between requests.
const CONNECTIONS: usize = 8;
/// Requests at once. When full, a request that is due is not sent, and counted as skipped.
const IN_FLIGHT: usize = 64;
/// Time an answer has, its body included. Later is an error.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Pairs of label and status counted apart. When full, further ones are counted under the label `other`.
const TALLIED: usize = 200;

type HttpClient = Client<HttpConnector, Empty<Bytes>>;

/// Open-loop HTTP traffic: requests leave when they are due, whether or not earlier ones were answered.
#[derive(Clone, Debug)]
pub struct HttpTraffic {
    /// What to get: `http://127.0.0.1:8080/`.
    pub target: Uri,
    /// Requests per second. 0, or what is not a number, sends nothing.
    pub rate_per_second: f64,
    /// Number of users, who take turns: their keys are `user-0`, `user-1` and so on.
    pub keys: NonZeroU64,
    /// The header that carries the key.
    pub header: HeaderName,
}

/// What became of the requests, shared with the running traffic.
#[derive(Debug, Default)]
pub struct HttpCounts {
    sent: AtomicU64,
    skipped: AtomicU64,
    errors: AtomicU64,
    answers: Mutex<BTreeMap<(String, u16), u64>>,
}

/// [`HttpCounts`] at one moment. `sent` is the sum of answers, errors and requests under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpTally {
    /// Requests sent.
    pub sent: u64,
    /// Requests not sent when due: 64 were unanswered already.
    pub skipped: u64,
    /// Requests without a whole answer within 5 s.
    pub errors: u64,
    /// Whole answers by the origin's label (its `x-origin` header, `-` without one) and status.
    pub answers: BTreeMap<(String, u16), u64>,
}

impl HttpTraffic {
    /// Traffic with the key in `x-session-id`.
    pub fn new(target: Uri, rate_per_second: f64, keys: NonZeroU64) -> Self {
        Self { target, rate_per_second, keys, header: HeaderName::from_static("x-session-id") }
    }

    /// Sends until `until` is cancelled, then waits for the answers under way, 5 s at most. What became of each request
    /// is counted in `counts`.
    pub async fn run(self, counts: Arc<HttpCounts>, until: CancellationToken) {
        let Some(period) = period(self.rate_per_second) else {
            return until.cancelled().await;
        };
        let client: HttpClient = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(CONNECTIONS)
            .build_http();
        let free = Arc::new(Semaphore::new(IN_FLIGHT));
        let requests = TaskTracker::new();
        // Late ticks come in a burst: the schedule stands, whatever delayed us.
        let mut due = time::interval(period);

        for nth in 0_u64.. {
            if until.run_until_cancelled(due.tick()).await.is_none() {
                break;
            }
            let Ok(permit) = Arc::clone(&free).try_acquire_owned() else {
                counts.skipped.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            counts.sent.fetch_add(1, Ordering::Relaxed);
            let request = self.request(nth);
            let (client, counts) = (client.clone(), Arc::clone(&counts));
            requests.spawn(async move {
                let _permit = permit;
                match time::timeout(TIMEOUT, fetch(&client, request)).await {
                    Ok(Ok((label, status))) => counts.answer(label, status),
                    Ok(Err(error)) => {
                        tracing::debug!(error = &*error, "Request failed");
                        counts.errors.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(_) => {
                        tracing::debug!("Request timed out");
                        counts.errors.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        requests.close();
        requests.wait().await;
    }

    fn request(&self, nth: u64) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.target.clone();
        let key = HeaderValue::try_from(format!("user-{}", nth % self.keys)).expect("a key is letters and digits");
        request.headers_mut().insert(self.header.clone(), key);
        request
    }
}

impl HttpCounts {
    /// The counts at this moment.
    pub fn tally(&self) -> HttpTally {
        HttpTally {
            sent: self.sent.load(Ordering::Relaxed),
            skipped: self.skipped.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            answers: self.answers.lock().clone(),
        }
    }

    fn answer(&self, label: String, status: u16) {
        let mut answers = self.answers.lock();
        let mut kind = (label, status);
        if answers.len() >= TALLIED && !answers.contains_key(&kind) {
            kind.0 = "other".to_owned();
        }
        *answers.entry(kind).or_default() += 1;
    }
}

impl HttpTally {
    /// Whole answers of the origin that calls itself `label`, whatever their status.
    pub fn answered_by(&self, label: &str) -> u64 {
        self.answers.iter().filter(|((by, _), _)| by == label).map(|(_, count)| count).sum()
    }
}

fn period(rate_per_second: f64) -> Option<Duration> {
    let period = Duration::try_from_secs_f64(rate_per_second.recip()).ok()?;
    (!period.is_zero()).then_some(period)
}

async fn fetch(
    client: &HttpClient,
    request: Request<Empty<Bytes>>,
) -> Result<(String, u16), Box<dyn std::error::Error + Send + Sync>> {
    let response = client.request(request).await?;
    let label = response
        .headers()
        .get("x-origin")
        .map_or_else(|| "-".to_owned(), |label| String::from_utf8_lossy(label.as_bytes()).into_owned());
    let status = response.status().as_u16();
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        frame?;
    }
    Ok((label, status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_without_meaning_has_no_period() {
        for (rate, expected) in [
            (100.0, Some(Duration::from_millis(10))),
            (0.5, Some(Duration::from_secs(2))),
            (0.0, None),
            (-1.0, None),
            (f64::NAN, None),
            (f64::INFINITY, None),
        ] {
            assert_eq!(period(rate), expected, "{rate}");
        }
    }
}
