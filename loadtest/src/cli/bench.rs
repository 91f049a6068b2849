//! `loadtest bench`: proxies side by side.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use clap::{Args, value_parser};

use super::{say, told_to_end};
use crate::bench::{Bench as Runner, Plan, markdown, render_case, render_goals};

/// Compares Crossfade with nginx, HAProxy and Envoy on this machine, under the same load.
///
/// Every proxy gets one worker and the first core, load and origins the second. What is not installed is left out, and so
/// is whom a case does not fit: `--list` says why.
#[derive(Debug, Args)]
pub(super) struct Bench {
    /// What to measure; everything when left out. `--list` shows the names.
    #[arg(value_name = "CASE")]
    cases: Vec<String>,
    /// The program crossfade; when left out, the one beside loadtest or in PATH.
    #[arg(long, value_name = "PATH")]
    crossfade: Option<PathBuf>,
    /// Only this peer; can be given more than once.
    #[arg(long = "peer", value_name = "NAME")]
    peers: Vec<String>,
    /// How often each peer is measured.
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Seconds of load for each peer in each round.
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Writes the results there, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the tables there, as Markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Says what there is to measure and who would take part, and does nothing.
    #[arg(long)]
    list: bool,
}

impl Bench {
    /// Runs it until it is done, or until Ctrl-C; what was measured is shown and written either way. Exit codes: 0 done,
    /// 1 ended early. Errors: it could not be run as asked, or a peer failed.
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let mut bench = Runner::new(Plan {
            cases: self.cases,
            peers: self.peers,
            crossfade: self.crossfade,
            rounds: self.rounds.into(),
            seconds: self.seconds,
        })?;
        if self.list {
            say(&bench.list())?;
            return Ok(ExitCode::SUCCESS);
        }

        let _ = writeln!(io::stderr(), "{}", bench.announcement());
        // Whatever was started ends with the future that started it.
        let done = tokio::select! {
            biased;
            told = told_to_end() => { told?; None }
            done = bench.run(|case| { let _ = say(&format!("\n## {}\n\n{}", case.name, render_case(case))); }) => Some(done),
        };
        bench.clear();

        let outcome = bench.outcome();
        if !outcome.goals.is_empty() {
            say(&format!("\n## goals\n\n{}", render_goals(&outcome.goals)))?;
        }
        let write = |file: &PathBuf, text: String| {
            fs::write(file, text).with_context(|| format!("{}: cannot be written", file.display()))
        };
        if let Some(file) = &self.json {
            let text = serde_json::to_string_pretty(outcome).expect("results are JSON");
            write(file, text + "\n")?;
        }
        if let Some(file) = &self.markdown {
            write(file, markdown(outcome))?;
        }
        match done {
            Some(done) => done.map(|()| ExitCode::SUCCESS),
            None => {
                let _ = writeln!(io::stderr(), "bench: ended early, after {} of the cases", outcome.cases.len());
                Ok(ExitCode::FAILURE)
            }
        }
    }
}
