//! Origins to put behind a proxy, and traffic to put in front of one.
//!
//! Knows nothing of any particular proxy: everything here speaks plain HTTP, MQTT or TCP.
//!
//! - [`origin`]: servers that say who they are, in every answer, and that can be made to misbehave while they run;
//! - [`traffic`]: light, steady clients that count what came back and from whom.

pub mod origin;
pub mod traffic;
