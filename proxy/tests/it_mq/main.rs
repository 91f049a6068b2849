//! Temporary.
#![allow(dead_code, clippy::duplicate_mod, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]
#[path = "../it/bad_input.rs"]
mod bad_input;
#[path = "../it/authority.rs"]
mod authority;
#[path = "../it/changes.rs"]
mod changes;
#[path = "../it/clients.rs"]
mod clients;
#[path = "../it/harness.rs"]
mod harness;
#[path = "../it/mosquitto.rs"]
mod mosquitto;
#[path = "../it/mqtt.rs"]
mod mqtt;
#[path = "../it/packets.rs"]
mod packets;
#[path = "../it/routes.rs"]
mod routes;
#[path = "../it/site.rs"]
mod site;
#[path = "../it/status.rs"]
mod status;
#[path = "../it/tcp.rs"]
mod tcp;
#[path = "../it/cli.rs"]
mod cli;
#[path = "../it/guard.rs"]
mod guard;
#[path = "../it/reload.rs"]
mod reload;
#[path = "../it/state.rs"]
mod state;
