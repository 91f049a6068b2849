//! Reads what `/status` says of a route.

use std::{panic::Location, time::Duration};

use serde_json::{Map, Value, json};
use tokio::time::{self, Instant};

use crate::harness::{Crossfade, DEADLINE};

/// Everything counted of one arm since the start, in one object: outcomes, `failures` as their sum, `dispatched`,
/// `fallbacks`, latencies, `open`, `bytes_in` and `bytes_out`.
pub(crate) fn arm(status: &Value, arm: &str) -> Value {
    let mut all: Map<String, Value> = status[arm].as_object().unwrap().clone();
    let Some(Value::Object(total)) = all.remove("total") else { panic!("no total of {arm} in {status}") };
    all.extend(total);
    let count = |outcome: &str| all[outcome].as_u64().unwrap();
    let failures: u64 = ["unreachable", "refused", "broken", "timeout"].map(count).iter().sum();
    all.insert("failures".to_owned(), json!(failures));
    Value::Object(all)
}

/// What was turned away on a route before an arm was chosen, by reason.
pub(crate) fn rejected(status: &Value) -> Map<String, Value> {
    status["rejected"].as_object().unwrap().clone()
}

/// `/status` of a route as soon as `reached` holds: counts are gathered once a second. Shows the last one otherwise.
#[track_caller]
pub(crate) fn counted(
    crossfade: &Crossfade,
    route: &str,
    reached: impl Fn(&Value) -> bool,
) -> impl Future<Output = Value> {
    let caller = Location::caller();
    async move {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let status = crossfade.admin.status(route).await;
            if reached(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "not counted as expected within {DEADLINE:?} ({caller}): {status}");
            time::sleep(Duration::from_millis(20)).await;
        }
    }
}
