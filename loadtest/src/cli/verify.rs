//! `loadtest verify`: joins what loads sent and got with what origins saw.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::say;
use crate::ledger::verify::{self, ArmOf, Decided, Inputs};

/// Joins ledgers and exits with 1 if anything was lost, duplicated, on both sides, answered by the wrong arm, unseen,
/// stray, or moved without a change; with 2 if they cannot be joined.
///
/// Needs 32 bytes of memory for each request, about 20 bytes and its length for each different key, and 24 bytes for each
/// second answer and for each sighting of a request after the first.
#[derive(Debug, Args)]
pub(super) struct Verify {
    /// Ledgers of one load at least and of any number of origins, in any order.
    #[arg(required = true, value_name = "FILE")]
    ledgers: Vec<PathBuf>,
    /// Times at which splits were changed: START or START END on each line, in Unix microseconds. A key may move only
    /// with one of them. Without it moves are counted but not judged; an empty file says that there were none.
    #[arg(long, value_name = "FILE")]
    changes: Option<PathBuf>,
    /// The arm an origin is behind, where the load knows it by another name than the origin's label. Repeatable.
    #[arg(long = "arm", value_name = "ARM=LABEL")]
    arms: Vec<ArmOf>,
    /// What the proxy decides an arm for: each request, or each connection (MQTT, TCP, WebSocket), which keeps it.
    #[arg(long, value_enum, default_value_t = Decided::Request)]
    decided_per: Decided,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
    /// Entries held in memory at most.
    #[arg(long, value_name = "N", default_value_t = verify::LIMIT)]
    limit_entries: usize,
}

impl Verify {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Self { ledgers, changes, arms, decided_per: decided, json, limit_entries: limit } = self;
        let verdict = verify::verify(&Inputs { ledgers, changes, arms, decided, limit })?;
        let text = if json { verdict.json() } else { verdict.to_string() };
        say(&text)?;
        Ok(if verdict.clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
