//! Load with an account of every request, origins to put behind a proxy, and a bench of proxies side by side.
//!
//! - [`schedule`] says when requests are due, [`keys`] who sends them;
//! - [`load`] sends them and records what became of each, in a [`report`] and, where wanted, in a [`ledger`];
//! - [`origin`]: servers that say who they are, in every answer, and that can be made to misbehave while they run;
//! - [`ledger::verify`] joins what the load got with what the origins saw;
//! - `bench` runs proxies as their users would, by configurations of their own. It is the only part that knows any by name.

mod bench;
pub mod cli;
pub mod keys;
pub mod ledger;
pub mod load;
pub mod origin;
pub mod report;
pub mod schedule;
pub mod units;
