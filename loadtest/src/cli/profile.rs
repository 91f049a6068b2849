//! `loadtest profile`: where a proxy's time goes.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, value_parser};

use super::{say, told_to_end};
use crate::bench::{Bench, Plan};

/// Shows where a proxy's time goes while a case of the bench runs through it, function by function, by `perf`.
///
/// Names need symbols, and what a function calls is known where there are frame pointers: `make profile` builds Crossfade
/// so.
#[derive(Debug, Args)]
pub(super) struct Profile {
    /// Cases of the bench; `loadtest bench --list` shows them.
    #[arg(value_name = "CASE", default_value = "http")]
    cases: Vec<String>,
    /// The program crossfade; when left out, the one beside loadtest or in PATH.
    #[arg(long, value_name = "PATH")]
    crossfade: Option<PathBuf>,
    /// Whom to look at; the last Crossfade of the case when left out, like crossfade-mqtt in mqtt.
    #[arg(long, value_name = "NAME")]
    peer: Option<String>,
    /// Seconds of load for each case.
    #[arg(long, default_value_t = 10, value_parser = value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// The folder for CASE.txt and, to go on with perf, CASE.perf.data.
    #[arg(long, value_name = "DIR", default_value = "target/profile")]
    into: PathBuf,
}

impl Profile {
    /// Runs it until it is done, or until Ctrl-C. Exit codes: 0 done, 1 ended early. Errors: it could not be run as asked,
    /// or a program failed.
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let bench = Bench::new(Plan {
            cases: self.cases,
            peers: self.peer.into_iter().collect(),
            crossfade: self.crossfade,
            rounds: 1,
            seconds: self.seconds,
        })?;
        // Whatever was started ends with the future that started it.
        tokio::select! {
            biased;
            told = told_to_end() => {
                told?;
                let _ = writeln!(io::stderr(), "profile: ended early");
                Ok(ExitCode::FAILURE)
            }
            done = bench.profile(&self.into, |file, text| say(&format!("\n{text}\nwritten to {}\n", file.display()))) => {
                done.map(|()| ExitCode::SUCCESS)
            }
        }
    }
}
