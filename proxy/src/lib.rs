//! Crossfade's data plane, and the program around it.
//!
//! The way of a connection, a module a stage, in the order data meets them:
//! [`listen`] accepted → [`key`] extracted → [`split`] decided → [`upstream`] connected → [`forward`] bytes moved →
//! [`mirror`] tapped → [`telemetry`] recorded. [`http`], [`mqtt`] and [`tcp`] call the stages for their protocol on the
//! [`connection`] they are handed; [`wire`] parses what a peer sends first.
//!
//! All of them see one [`live`] snapshot from start to end. [`plane`] holds it and is what the control plane changes.
//! [`server`] puts all of it together; [`drain`] tells of the end, and [`takeover`] passes the sockets on to a successor.

mod forward;
pub mod key;
mod listen;
mod mirror;
pub mod split;
mod telemetry;
mod upstream;

mod alarm;
mod buffer;
mod connection;
mod http;
mod mqtt;
mod splice;
mod tcp;
mod tls;
mod transport;
pub mod wire;

mod limits;
mod live;
mod plane;
mod worker;

mod drain;
mod server;
mod takeover;

pub mod cli;
