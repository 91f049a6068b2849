//! Drives the real program: `crossfade run` as a process of its own, real brokers, real clients, real sockets.

#![expect(clippy::unwrap_used, reason = "clippy allows it in tests, but not in their helpers")]

mod authority;
mod bad_input;
mod changes;
mod cli;
mod clients;
mod connections;
mod differential;
mod guard;
mod harness;
mod history;
mod http;
mod http_bad_input;
mod http_edges;
mod http_failures;
mod incident;
mod loads;
mod mirror;
mod mosquitto;
mod mqtt;
mod packets;
mod peers;
mod plan;
mod reload;
mod routes;
mod scenarios;
mod sickness;
mod signals;
mod site;
mod state;
mod status;
mod steady;
mod takeover;
mod tcp;
