//! Origins to put behind a proxy, and traffic to put in front of one.
//!
//! Knows nothing of any particular proxy: everything here speaks plain HTTP, MQTT or TCP.
//!
//! - [`origin`]: servers that say who they are, in every answer, and that can be made to misbehave while they run;
//! - [`traffic`]: light, steady clients that count what came back and from whom.

mod bench;
pub mod cli;
pub mod keys;
pub mod ledger;
pub mod load;
pub mod origin;
pub mod report;
pub mod schedule;
pub mod traffic;
pub mod units;
