//! `loadtest compare`: two reports side by side.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::say;
use crate::report::{compare, json};

/// Puts the reports of two runs side by side, with differences and ratios.
#[derive(Debug, Args)]
pub(super) struct Compare {
    /// The report that is compared with.
    a: PathBuf,
    /// The report that is compared.
    b: PathBuf,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

impl Compare {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let comparison = compare::compare(&json::read(&self.a)?, &json::read(&self.b)?);
        let text = if self.json { comparison.json() } else { comparison.to_string() };
        say(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}
