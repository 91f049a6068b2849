//! A client's connection, and what the connections of a worker share.

use std::{net::SocketAddr, sync::Arc};

use tokio_util::task::TaskTracker;

use crate::{
    live::{Listener, Live},
    plane::Plane,
    transport::Transport,
};

/// What one worker's connections share.
#[derive(Clone)]
pub(crate) struct Worker {
    pub(crate) plane: Arc<Plane>,
    /// Everything that must end before the worker may.
    pub(crate) tasks: TaskTracker,
}

/// A client's connection, TLS ended.
pub(crate) struct Accepted {
    pub(crate) transport: Transport,
    pub(crate) client: SocketAddr,
    /// Index into [`Live::listeners`].
    pub(crate) listener: usize,
    /// As of when the connection was accepted.
    pub(crate) live: Arc<Live>,
}

impl Accepted {
    pub(crate) fn listener(&self) -> &Listener {
        &self.live.listeners[self.listener]
    }
}
