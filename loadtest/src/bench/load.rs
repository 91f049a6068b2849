//! Drives load: a process of its own for each interval, on the core of the load.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};

use super::process::{last_lines, pinned};
use crate::report::Report;

/// The load generators.
#[derive(Debug)]
pub(super) struct Load {
    /// `loadtest`: ourselves.
    program: PathBuf,
    core: Option<usize>,
    /// Where the report goes before it is read.
    report: PathBuf,
}

/// What another load generator says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Said {
    pub(super) answered: u64,
    pub(super) failed: u64,
    pub(super) rate: f64,
    /// Microseconds.
    pub(super) p50: f64,
    pub(super) p99: f64,
}

impl Load {
    /// The load will come from `core`; its files are in `dir`. Errors: our own program is not to be found.
    pub(super) fn new(core: Option<usize>, dir: &Path) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("loadtest: its own path is not known")?;
        Ok(Self { program, core, report: dir.join("report.json") })
    }

    /// Runs `loadtest` with `arguments` for so long. Errors: it fails, is ended early, or gets no answer at all.
    pub(super) async fn run(&self, arguments: &[String], duration: Duration) -> anyhow::Result<Report> {
        let duration = format!("{}ms", duration.as_millis());
        let mut all: Vec<&str> = arguments.iter().map(String::as_str).collect();
        all.extend(["--duration", &duration, "--quiet", "--json"]);
        let asked = || format!("loadtest {}", arguments.join(" "));
        let mut command = pinned(&self.program, self.core);
        command.args(all).arg(&self.report);
        finished(command).await.with_context(asked)?;
        let text = std::fs::read(&self.report).with_context(|| format!("{}: wrote no report", asked()))?;
        let report: Report =
            serde_json::from_slice(&text).with_context(|| format!("{}: report not readable", asked()))?;
        if !report.end.complete {
            bail!("{}: ended early: {}", asked(), report.end.reason.as_deref().unwrap_or("no reason given"));
        }
        if report.account.answered == 0 {
            bail!("{}: no answer at all, failed: {:?}", asked(), report.account.failed);
        }
        Ok(report)
    }

    /// Runs wrk with 64 connections for so long. Errors: it fails.
    pub(super) async fn wrk(&self, wrk: &Path, url: &str, duration: Duration) -> anyhow::Result<Said> {
        let mut command = pinned(wrk, self.core);
        let seconds = format!("-d{}s", duration.as_secs().max(1));
        command.args(["-t1", "-c64", &seconds, "--latency", "-H", "x-session-id: user-1", url]);
        let said = finished(command).await.context("wrk")?;
        wrk_said(&said).with_context(|| format!("wrk: its report is not understood{}", last_lines(&said)))
    }
}

/// Waits for a command; what it wrote on standard output. Errors: it fails; with what it wrote on standard error.
pub(super) async fn finished(command: std::process::Command) -> anyhow::Result<String> {
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = command.output().await.context("cannot be started")?;
    if !output.status.success() {
        bail!("failed with {}{}", output.status, last_lines(&String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn wrk_said(text: &str) -> Option<Said> {
    let starting = |start: &str| text.lines().find_map(|line| line.trim().strip_prefix(start)).map(str::trim);
    let summary = text.lines().find(|line| line.contains(" requests in "))?;
    // "Non-2xx or 3xx responses: 7", "Socket errors: connect 0, read 3, write 0, timeout 0"
    let statuses = starting("Non-2xx or 3xx responses:").and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
    let sockets = starting("Socket errors:").unwrap_or_default();
    let sockets = sockets.split([' ', ',']).filter_map(|word| word.parse::<u64>().ok()).sum::<u64>();
    Some(Said {
        answered: summary.split_ascii_whitespace().next()?.parse().ok()?,
        failed: statuses + sockets,
        rate: starting("Requests/sec:")?.parse().ok()?,
        p50: wrk_micros(starting("50%")?)?,
        p99: wrk_micros(starting("99%")?)?,
    })
}

/// `802.00us`, `1.23ms`, `1.01s`.
fn wrk_micros(text: &str) -> Option<f64> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
    let unit = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => return None,
    };
    number.parse::<f64>().ok().map(|number| number * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says_is_understood() {
        let text = "Running 5s test @ http://127.0.0.1:8080/\n  1 threads and 64 connections\n  \
                    Thread Stats   Avg      Stdev     Max   +/- Stdev\n    Latency   700.00us  100.00us   9.00ms   90.00%\n  \
                    Latency Distribution\n     50%  655.00us\n     75%  720.00us\n     90%    0.90ms\n     99%    1.25ms\n  \
                    451234 requests in 5.01s, 80.00MB read\n  Socket errors: connect 0, read 3, write 0, timeout 1\n  \
                    Non-2xx or 3xx responses: 7\nRequests/sec:  90066.68\nTransfer/sec:     15.97MB\n";
        let said = Said { answered: 451_234, failed: 11, rate: 90_066.68, p50: 655.0, p99: 1250.0 };
        assert_eq!(wrk_said(text), Some(said));
        assert_eq!(wrk_said("unable to connect to 127.0.0.1:1 Connection refused"), None);
        assert_eq!([wrk_micros("1.01s"), wrk_micros("5"), wrk_micros("5m")], [Some(1.01e6), None, None]);
    }
}
