//! How an HTTP origin misbehaves, changeable while it runs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use parking_lot::RwLock;

/// What an HTTP origin does to every request, on every path. The default is to answer as asked, at once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Behaviour {
    /// Answers every request with this status and nothing else (gRPC and WebSocket requests too).
    pub status: Option<StatusCode>,
    /// Waited before every answer.
    pub latency: Duration,
    /// Takes requests and never answers them. A request that was caught stays unanswered when this is turned off.
    pub hang: bool,
    /// Sends the response's header and its first bytes, then resets: the connection under HTTP/1.1 (TCP RST), the
    /// stream under HTTP/2 (RST_STREAM).
    pub reset_after_header: bool,
    /// The share of requests, 0 to 1, answered 500. Below 0 or NaN is 0, above 1 is 1.
    pub error_share: f64,
}

/// Reads and changes the [`Behaviour`] of a running origin; a change holds for the next request. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct BehaviourHandle {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    behaviour: RwLock<Behaviour>,
    decided: AtomicU64,
}

impl BehaviourHandle {
    /// The behaviour now.
    pub fn get(&self) -> Behaviour {
        self.shared.behaviour.read().clone()
    }

    /// Replaces the whole behaviour: `set(Behaviour::default())` is a cure.
    pub fn set(&self, behaviour: Behaviour) {
        *self.shared.behaviour.write() = behaviour;
    }

    /// Changes part of the behaviour: `change(|b| b.status = Some(StatusCode::INTERNAL_SERVER_ERROR))`.
    pub fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.shared.behaviour.write());
    }

    /// The behaviour towards one request, its share of errors turned into this request's status.
    pub(super) fn for_request(&self) -> Behaviour {
        let mut behaviour = self.get();
        if behaviour.status.is_none() && behaviour.error_share > 0.0 {
            let nth = self.shared.decided.fetch_add(1, Ordering::Relaxed);
            if is_error(nth, behaviour.error_share) {
                behaviour.status = Some(StatusCode::INTERNAL_SERVER_ERROR);
            }
        }
        behaviour
    }
}

/// Spreads errors by the golden ratio: any run of requests holds very nearly its share, and no rhythm of the traffic
/// (every second request a POST) falls into step with it.
fn is_error(nth: u64, share: f64) -> bool {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    const WHOLE: f64 = 18_446_744_073_709_551_616.0; // 2^64
    // A share of 1 saturates to u64::MAX, which must be an error as well.
    share >= 1.0 || nth.wrapping_mul(GOLDEN) < (share * WHOLE) as u64
}

/// A status that can end a request. Errors: 1xx, and what is no status at all.
pub fn final_status(code: u16) -> Result<StatusCode, String> {
    let status = StatusCode::from_u16(code).ok().filter(|status| !status.is_informational());
    status.ok_or_else(|| format!("{code} is no final HTTP status; give 200 to 999"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_come_in_their_share() {
        for (share, expected) in
            [(f64::NAN, 0..=0), (-1.0, 0..=0), (0.05, 498..=502), (0.5, 4998..=5002), (1.0, 10_000..=10_000)]
        {
            let errors = (0..10_000).filter(|nth| is_error(*nth, share)).count();
            assert!(expected.contains(&errors), "{share}: {errors}");
        }
    }

    #[test]
    fn a_share_of_nothing_leaves_every_request_alone() {
        let handle = BehaviourHandle::default();
        assert!((0..100).all(|_| handle.for_request().status.is_none()));
        handle.change(|b| b.error_share = 1.0);
        assert!((0..100).all(|_| handle.for_request().status == Some(StatusCode::INTERNAL_SERVER_ERROR)));
    }
}
