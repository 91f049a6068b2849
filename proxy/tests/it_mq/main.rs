//! Temporary.
#![allow(dead_code, clippy::duplicate_mod)]
#[path = "../it/bad_input.rs"]
mod bad_input;
#[path = "../it/certificates.rs"]
mod certificates;
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
