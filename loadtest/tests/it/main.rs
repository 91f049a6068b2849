//! Every origin driven by a real client. Ports are picked free; waits have deadlines.

#![expect(clippy::unwrap_used, reason = "clippy allows it in tests, but not in their helpers")]

mod behaviour;
mod bench;
mod command;
mod grpc;
mod http;
mod load;
mod load_command;
mod load_mqtt;
mod mosquitto;
mod mqtt;
mod origin_ledger;
mod relay;
mod report;
mod tcp;
mod verify;
mod websocket;

use std::{net::SocketAddr, time::Duration};

use tokio::time;

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Fails the test when `future` is not done by the deadline.
async fn soon<F: Future>(future: F) -> F::Output {
    time::timeout(DEADLINE, future).await.expect("not done by the deadline")
}

/// Waits until `condition` holds.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = time::Instant::now() + DEADLINE;
    while !condition() {
        assert!(time::Instant::now() < deadline, "not by the deadline: {what}");
        time::sleep(Duration::from_millis(5)).await;
    }
}
