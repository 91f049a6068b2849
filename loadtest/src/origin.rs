//! Servers that say who answered. Each binds an address (port 0 picks a free one), answers with its label, counts what
//! it saw, and stops without leaving a socket behind, so that connecting to it afterwards is refused.

use std::{io, net::SocketAddr, time::Duration};

mod account;
mod behaviour;
pub mod control;
mod http;
mod latency;
mod mqtt;
mod seen;
mod serving;
mod tcp;

pub use self::{
    behaviour::{Behaviour, BehaviourHandle, Spelling, final_status},
    http::{HttpOrigin, HttpSetup},
    latency::{Latency, Stall},
    mqtt::{MqttBroker, MqttSeen},
    seen::{Seen, SeenRequest},
    serving::Listener,
    tcp::{TcpOrigin, TcpSeen},
};

/// Time between what is sent first and the reset of [`Behaviour::reset_after_header`]: enough for it to leave.
const RESET_DELAY: Duration = Duration::from_millis(10);

/// An origin could not listen on its address; the cause is the [`source`](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
#[error("{address}: cannot listen; pick an address of this machine that is free")]
pub struct ListenError {
    /// The address that was asked for.
    pub address: SocketAddr,
    /// What the operating system said.
    #[source]
    pub source: io::Error,
}
