//! Drives the real program: `crossfade run` as a process of its own, real brokers, real clients, real sockets.

mod harness;
