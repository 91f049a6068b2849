//! The control plane from outside: a fake data plane, a real listener, a real state file.
#![allow(clippy::unwrap_used, reason = "clippy.toml lets tests unwrap, but does not see that these helpers are tests")]

mod access;
mod alerts;
mod bodies;
mod control;
mod crash;
mod documents;
mod events;
mod guard;
mod history;
mod http;
mod incidents;
mod peer;
mod plan;
mod signals;
mod store;
mod support;
