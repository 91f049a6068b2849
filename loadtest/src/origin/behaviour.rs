//! How an origin misbehaves, changeable while it runs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clap::ValueEnum;
use http::StatusCode;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::time::{self, Instant};

use super::{Latency, Stall};

/// What an origin does to everything it is asked: HTTP requests on any path, gRPC calls, WebSocket messages, lines on
/// TCP. The default is to answer as asked, at once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Behaviour {
    /// Answers every request with this status and nothing else: WebSocket handshakes too, and gRPC calls with the
    /// `grpc-status` that corresponds. Not for lines on TCP, nor for messages on a WebSocket that is open.
    pub status: Option<StatusCode>,
    /// Waited before every answer.
    pub latency: Latency,
    /// Every so often nothing is answered for a while: answers that would fall into a stall wait until its end. The
    /// first period begins when the behaviour is changed.
    pub stall: Option<Stall>,
    /// Takes requests and never answers them. A request that was caught stays unanswered when this is turned off.
    pub hang: bool,
    /// Sends the response's header and its first bytes, then resets: the connection under HTTP/1.1 (TCP RST), the
    /// stream under HTTP/2 (RST_STREAM). On TCP the first bytes are the label. Not for messages on a WebSocket that is
    /// open.
    pub reset_after_header: bool,
    /// The share of requests, 0 to 1, that fail: answered 500, gRPC status 13, a WebSocket closed with 1011, a TCP
    /// connection reset. Below 0 or NaN is 0, above 1 is 1.
    pub error_share: f64,
    /// What `error_share` grows by with each second since the behaviour was changed.
    pub error_growth: f64,
    /// The share of HTTP requests, 0 to 1, that get a reset in place of an answer: of the connection under HTTP/1.1 (TCP
    /// RST), of the stream under HTTP/2 (RST_STREAM).
    pub reset_share: f64,
    /// The share of records, 0 to 1, that differ from what they should be in a field that means something: of the
    /// records `/record/N` by their N, of the answers of `/noisy` in their order.
    pub mismatch_share: f64,
    /// How records spell the names of their states.
    pub spelling: Spelling,
}

/// A way to spell a name of two words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Spelling {
    /// `in_transit`
    #[default]
    Snake,
    /// `IN_TRANSIT`
    Upper,
    /// `InTransit`
    Pascal,
}

/// Reads and changes the [`Behaviour`] of a running origin; a change holds for the next request. Clones share it.
#[derive(Clone, Debug)]
pub struct BehaviourHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    now: RwLock<Current>,
    turns: AtomicU64,
}

#[derive(Debug)]
struct Current {
    behaviour: Behaviour,
    since: Instant,
}

impl BehaviourHandle {
    pub(super) fn new(behaviour: Behaviour) -> Self {
        let now = RwLock::new(Current { behaviour, since: Instant::now() });
        Self { shared: Arc::new(Shared { now, turns: AtomicU64::new(0) }) }
    }

    /// The behaviour now.
    pub fn get(&self) -> Behaviour {
        self.shared.now.read().behaviour.clone()
    }

    /// Replaces the whole behaviour: `set(Behaviour::default())` is a cure.
    pub fn set(&self, behaviour: Behaviour) {
        self.change(|b| *b = behaviour);
    }

    /// Changes part of the behaviour: `change(|b| b.status = Some(StatusCode::INTERNAL_SERVER_ERROR))`.
    pub fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        let mut current = self.shared.now.write();
        change(&mut current.behaviour);
        current.since = Instant::now();
    }

    /// The behaviour towards the next request (message, line). `now` says whether it falls into a stall.
    pub(super) fn turn(&self, now: Instant) -> Turn {
        let nth = self.shared.turns.fetch_add(1, Ordering::Relaxed);
        let Current { behaviour, since } = &*self.shared.now.read();
        // From the middle, so that an origin that answers only once does so in its median.
        let latency = behaviour.latency.at((spread(nth, LATENCIES) + 0.5).fract());
        let stalled = behaviour.stall.map_or(Duration::ZERO, |stall| stall.left(now - *since + latency));
        let error_share = behaviour.error_share + behaviour.error_growth * (now - *since).as_secs_f64();
        Turn {
            nth,
            status: behaviour.status,
            fails: spread(nth, ERRORS) < error_share,
            resets: spread(nth, RESETS) < behaviour.reset_share,
            wait: latency + stalled,
            hang: behaviour.hang,
            reset_after_header: behaviour.reset_after_header,
            mismatch_share: behaviour.mismatch_share,
            spelling: behaviour.spelling,
        }
    }
}

/// [`Behaviour`] towards one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    nth: u64,
    pub(super) status: Option<StatusCode>,
    /// It is of the share that fails.
    pub(super) fails: bool,
    /// It is of the share that is reset.
    pub(super) resets: bool,
    wait: Duration,
    hang: bool,
    pub(super) reset_after_header: bool,
    mismatch_share: f64,
    pub(super) spelling: Spelling,
}

impl Turn {
    /// Waits as long as the answer has to; for ever, if it is not to come.
    pub(super) async fn wait(&self) {
        if self.hang {
            std::future::pending().await
        }
        if !self.wait.is_zero() {
            time::sleep(self.wait).await;
        }
    }

    /// Whether record `record` differs from what it should be; when none, whether this answer does.
    pub(super) fn mismatches(&self, record: Option<u64>) -> bool {
        spread(record.unwrap_or(self.nth), MISMATCHES) < self.mismatch_share
    }
}

/// Fractions of irrational numbers, in 2^-64, one for each thing decided: of the golden ratio, and of the roots of 2, 3 and
/// 7 (FIPS 180-4, section 5.3.5, has their digits). None is a sum of fractions of the others, so an origin's errors are
/// neither its slow answers nor its fast ones.
const ERRORS: u64 = 0x9E37_79B9_7F4A_7C15;
const LATENCIES: u64 = 0x6A09_E667_F3BC_C909;
const MISMATCHES: u64 = 0xBB67_AE85_84CA_A73B;
const RESETS: u64 = 0xA54F_F53A_5F1D_36F1;

/// The n-th fraction, from 0 up to 1, of a sequence that fills that range evenly: of any run of requests very nearly the
/// share x lies below x, and no rhythm of the traffic (every second request a POST) falls into step with it.
fn spread(nth: u64, irrational: u64) -> f64 {
    (nth.wrapping_mul(irrational) >> 11) as f64 / (1_u64 << 53) as f64
}

/// A status that can end a request. Errors: 1xx, and what is no status at all.
pub fn final_status(code: u16) -> Result<StatusCode, String> {
    let status = StatusCode::from_u16(code).ok().filter(|status| !status.is_informational());
    status.ok_or_else(|| format!("{code} is no final HTTP status; give 200 to 999"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(behaviour: Behaviour, count: usize) -> Vec<Turn> {
        let handle = BehaviourHandle::new(behaviour);
        (0..count).map(|_| handle.turn(Instant::now())).collect()
    }

    #[test]
    fn errors_and_mismatches_come_in_their_share() {
        for (share, expected) in
            [(f64::NAN, 0..=0), (-1.0, 0..=0), (0.05, 497..=503), (0.5, 4997..=5003), (1.0, 10_000..=10_000)]
        {
            let behaviour =
                Behaviour { error_share: share, mismatch_share: share, reset_share: share, ..Behaviour::default() };
            let turns = turns(behaviour, 10_000);
            let errors = turns.iter().filter(|turn| turn.fails).count();
            assert!(expected.contains(&errors), "{share}: {errors} errors");
            let resets = turns.iter().filter(|turn| turn.resets).count();
            assert!(expected.contains(&resets), "{share}: {resets} resets");
            let answers = turns.iter().filter(|turn| turn.mismatches(None)).count();
            assert!(expected.contains(&answers), "{share}: {answers} answers differ");
            let records = (0..10_000).filter(|record| turns[7].mismatches(Some(*record))).count();
            assert!(expected.contains(&records), "{share}: {records} records differ");
        }
    }

    #[test]
    fn errors_grow_from_the_last_change_on() {
        let behaviour = Behaviour { error_share: 0.1, error_growth: 0.02, ..Behaviour::default() };
        let handle = BehaviourHandle::new(behaviour);
        handle.change(|_| {});
        let since = handle.shared.now.read().since;
        for (seconds, expected) in
            [(0, 99..=101), (5, 198..=202), (20, 497..=503), (45, 1000..=1000), (3600, 1000..=1000)]
        {
            let at = since + Duration::from_secs(seconds);
            let errors = (0..1000).filter(|_| handle.turn(at).fails).count();
            assert!(expected.contains(&errors), "after {seconds} s: {errors} of 1000");
        }
    }

    #[test]
    fn latencies_come_in_their_distribution() {
        let behaviour = Behaviour { latency: "lognormal:20ms,p99=200ms".parse().unwrap(), ..Behaviour::default() };
        let turns = turns(behaviour, 10_000);
        assert_eq!(turns[0].wait, Duration::from_millis(20));
        let mut waits: Vec<_> = turns.iter().map(|turn| turn.wait.as_secs_f64()).collect();
        waits.sort_by(f64::total_cmp);
        for (nth, expected) in [(1000, 0.00562), (5000, 0.020), (9000, 0.0711), (9900, 0.200)] {
            assert!((waits[nth] / expected - 1.0).abs() < 0.02, "{nth}: {}", waits[nth]);
        }
    }

    #[test]
    fn errors_are_as_slow_as_all_answers() {
        let behaviour = Behaviour {
            latency: "quantiles:0=0ms,1=100ms".parse().unwrap(),
            error_share: 0.1,
            mismatch_share: 0.1,
            ..Behaviour::default()
        };
        let turns = turns(behaviour, 10_000);
        let mean = |of: fn(&&Turn) -> bool| {
            let waits: Vec<_> = turns.iter().filter(of).map(|turn| turn.wait.as_secs_f64()).collect();
            waits.iter().sum::<f64>() / waits.len() as f64
        };
        for mean in [mean(|turn| turn.fails), mean(|turn| turn.mismatches(None)), mean(|_| true)] {
            assert!((0.049..0.051).contains(&mean), "{mean}");
        }
    }

    #[test]
    fn an_answer_that_falls_into_a_stall_waits_until_its_end() {
        let ms = Duration::from_millis;
        let handle = BehaviourHandle::new(Behaviour::default());
        handle.change(|b| b.stall = Some("500ms/10s".parse().unwrap()));
        handle.change(|b| b.latency = ms(20).into());
        let since = handle.shared.now.read().since;
        // The second arrives in a stall and is answered behind it, the third the other way round.
        for (arrives, answered) in [(0, 500), (490, 510), (9_985, 10_500), (10_499, 10_519)] {
            assert_eq!(ms(arrives) + handle.turn(since + ms(arrives)).wait, ms(answered), "{arrives}");
        }
    }
}
