//! `loadtest http`, `tcp` and `mqtt`: what they have in common, from the flags to the exit code.

use std::{
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    num::NonZeroUsize,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rustls::pki_types::ServerName;
use tokio::{
    net::{TcpStream, lookup_host},
    signal::unix::{SignalKind, signal},
    time,
};
use tokio_util::sync::CancellationToken;

use super::say;
use crate::{
    keys::Keys,
    load::{Endpoint, Load, Pace, Progress, Protocol, Trust, tls},
    report::{self, Report, Slo},
    schedule::{Rate, Schedule},
    units,
};

pub(super) mod http;
pub(super) mod mqtt;
pub(super) mod tcp;

/// Files a process has open beside its connections.
const OTHER_FILES: u64 = 64;
/// Time that the first connection has, which shows whether there is a target at all.
const REACH: Duration = Duration::from_secs(5);

/// When requests leave.
#[derive(Debug, Args)]
pub(super) struct PaceArgs {
    /// Requests a second, open loop: each leaves when it is due, and latency counts from then. A ramp: 500..5000
    #[arg(long, value_name = "RATE", group = "pace")]
    rate: Option<Rate>,
    /// Stages one after the other, as DURATION:RATE: 10s:500,30s:500..5000,1m:5000
    #[arg(long, group = "pace", conflicts_with = "duration")]
    stages: Option<Schedule>,
    /// Closed loop: each connection's next request as soon as the last was answered, for the most there is
    #[arg(long, group = "pace")]
    max: bool,
    /// How long requests are sent, with --rate and --max
    #[arg(long, default_value = "10s", value_parser = units::duration)]
    duration: Duration,
}

impl PaceArgs {
    pub(super) fn pace(&self) -> anyhow::Result<Pace> {
        let schedule = match (&self.stages, self.rate) {
            (Some(stages), _) => stages.clone(),
            (None, Some(rate)) => Schedule::steady(self.duration, rate)
                .map_err(|problem| anyhow::anyhow!("--rate, --duration: {problem}"))?,
            (None, None) if self.duration.is_zero() => bail!("--duration: 0; give a time above 0"),
            (None, None) if self.max => return Ok(Pace::Max(self.duration)),
            (None, None) => bail!("no pace; give --rate 500, --stages 10s:500 or --max"),
        };
        Ok(Pace::Open(Arc::new(schedule)))
    }
}

/// Who sends requests, over what.
#[derive(Debug, Args)]
pub(super) struct LoadArgs {
    #[command(flatten)]
    pub(super) pace: PaceArgs,
    /// Threads the load comes from; no more than there are connections
    #[arg(long, default_value = "1")]
    pub(super) threads: NonZeroUsize,
    /// Time an answer has, connecting included
    #[arg(long, default_value = "10s", value_parser = units::duration)]
    pub(super) timeout: Duration,
    #[command(flatten)]
    pub(super) trust: TrustArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// Whom TLS believes.
#[derive(Debug, Args)]
pub(super) struct TrustArgs {
    /// Certificate authorities to believe, in PEM, in place of the machine's
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    ca: Option<PathBuf>,
    /// Believe any certificate
    #[arg(long)]
    insecure: bool,
}

impl TrustArgs {
    fn trust(&self) -> anyhow::Result<Trust> {
        match &self.ca {
            Some(path) => {
                let pem = std::fs::read(path).with_context(|| format!("--ca {}: cannot read it", path.display()))?;
                Ok(Trust::Pem(pem))
            }
            None if self.insecure => Ok(Trust::Anyone),
            None => Ok(Trust::System),
        }
    }
}

/// Keys of requests.
#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    /// Callers that requests come from: user-0, user-1 and so on
    #[arg(long, default_value_t = 1000)]
    keys: u64,
    /// Callers call by Zipf's law with this exponent, and not equally often
    #[arg(long, value_name = "EXPONENT")]
    zipf: Option<f64>,
}

impl KeyArgs {
    pub(super) fn keys(&self) -> anyhow::Result<Arc<Keys>> {
        let keys = match self.zipf {
            Some(exponent) => Keys::zipf(self.keys, exponent),
            None => Keys::uniform(self.keys),
        };
        keys.map(Arc::new).map_err(|problem| anyhow::anyhow!("--keys, --zipf: {problem}"))
    }
}

/// What a run leaves behind.
#[derive(Debug, Args)]
pub(super) struct OutputArgs {
    /// Writes the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the report as a page to look at
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Writes the account of every request, for `loadtest verify`
    #[arg(long, value_name = "FILE")]
    pub(super) ledger: Option<PathBuf>,
    /// An objective, like 'p99<100ms', 'errors<0.1%', 'rate>99%'; exit code 1 when one is missed. Repeatable
    #[arg(long, value_name = "OBJECTIVE")]
    slo: Vec<Slo>,
    /// Prints neither progress nor tables
    #[arg(long, short)]
    quiet: bool,
}

/// Host, port and whether to speak TLS.
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: bool,
}

impl Target {
    /// Errors: the name cannot be resolved, the certificates cannot be used.
    pub(super) async fn endpoint(
        &self,
        trust: &TrustArgs,
        protocols: &[&str],
        source_by_key: bool,
    ) -> anyhow::Result<Endpoint> {
        let Self { host, port, .. } = self;
        let plain = host.trim_start_matches('[').trim_end_matches(']');
        let addresses: Vec<SocketAddr> = lookup_host((plain, *port))
            .await
            .with_context(|| format!("--target: {host}: cannot be resolved; check the name"))?
            .collect();
        if addresses.is_empty() {
            bail!("--target: {host}: has no address; check the name");
        }
        if source_by_key && !addresses.iter().all(|address| address.is_ipv4() && address.ip().is_loopback()) {
            bail!("--key-in client-ip: {host} is not on 127.0.0.0/8; only there can addresses be chosen freely");
        }
        let tls = if self.tls {
            let config = tls(&trust.trust()?, protocols).map_err(|problem| anyhow::anyhow!("TLS: {problem}"))?;
            let name = ServerName::try_from(plain.to_owned())
                .map_err(|_| anyhow::anyhow!("--target: {host}: no name that a certificate could have"))?;
            Some((config, name))
        } else {
            None
        };
        Ok(Endpoint { addresses, tls, source_by_key })
    }
}

/// Runs a load and says how it went. Exit codes: 0 done; 1 an objective was missed; 2 nothing could be run or not one
/// request was answered. Errors: the ledger or a report could not be written.
pub(super) async fn run(load: Load, output: OutputArgs) -> anyhow::Result<ExitCode> {
    let wanted = load.connections as u64 + OTHER_FILES;
    let files = rlimit::increase_nofile_limit(u64::MAX).context("open files: the limit cannot be read")?;
    if files < wanted {
        bail!(
            "{} connections need {wanted} open files and this process may have {files}; raise it with `ulimit -n {wanted}` \
             or ask for fewer connections",
            load.connections
        );
    }
    if let Err(error) = reach(&load).await {
        let reason = format!("{error:#}");
        let report = load.unrun(reason.clone());
        output.write(&report)?;
        bail!(reason);
    }

    let stopped = CancellationToken::new();
    let interrupted = interruption(stopped.clone())?;
    let shown = Shown::new(&load.pace, output.quiet);
    let ran = load.run(stopped, |progress| shown.update(progress)).await;
    interrupted.abort();
    shown.clear();
    let mut report = ran?;
    report.slos = output.slo.iter().map(|slo| slo.judge(&report)).collect();
    output.write(&report)?;

    if !output.quiet {
        say(&report::terminal::table(&report))?;
    }
    let account = &report.account;
    if account.sent > 0 && account.answered == 0 {
        let mut kinds: Vec<_> = account.failed.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        if account.lost > 0 {
            kinds.push(format!("{} lost", account.lost));
        }
        let target = &report.run.target;
        bail!(
            "--target {target}: not one of {} requests was answered ({}); check what listens there",
            account.sent,
            kinds.join(", ")
        );
    }
    Ok(if report.slos.iter().all(|slo| slo.met) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One connection before the run shows whether there is a target at all.
async fn reach(load: &Load) -> anyhow::Result<()> {
    let address = load.endpoint.addresses[0];
    let target = &load.target;
    match time::timeout(REACH, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        // Somebody is there; what becomes of requests is for the run to count.
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Ok(Err(error)) => {
            bail!("--target {target}: cannot connect to {address}: {error}; start it or check the address")
        }
        Err(_) => {
            bail!("--target {target}: {address} does not accept within {REACH:?}; check the address and the way there")
        }
    }
}

/// The first SIGINT or SIGTERM ends the run with a report of what ran; the second ends the process.
fn interruption(stopped: CancellationToken) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let mut interrupted = signal(SignalKind::interrupt()).context("SIGINT: cannot be waited for")?;
    let mut terminated = signal(SignalKind::terminate()).context("SIGTERM: cannot be waited for")?;
    Ok(tokio::spawn(async move {
        for nth in 0.. {
            tokio::select! { _ = interrupted.recv() => {} _ = terminated.recv() => {} }
            if nth > 0 {
                std::process::exit(130);
            }
            stopped.cancel();
        }
    }))
}

impl OutputArgs {
    fn write(&self, report: &Report) -> anyhow::Result<()> {
        if let Some(path) = &self.json {
            report::json::write(report, path)?;
        }
        if let Some(path) = &self.html {
            let page = report::html::page(report);
            std::fs::write(path, page).with_context(|| format!("--html {}: cannot write", path.display()))?;
        }
        Ok(())
    }
}

/// Progress: a bar on a terminal, a line now and then elsewhere.
struct Shown {
    bar: Option<ProgressBar>,
    lines: bool,
}

/// Seconds between lines where there is no terminal.
const LINE_EVERY: u64 = 5;

impl Shown {
    fn new(pace: &Pace, quiet: bool) -> Self {
        let bar = (!quiet && io::stderr().is_terminal()).then(|| {
            let style =
                ProgressStyle::with_template("{bar:30} {pos}/{len} s  {msg}").expect("the template is well formed");
            ProgressBar::new(pace.duration().as_secs().max(1)).with_style(style)
        });
        Self { lines: !quiet && bar.is_none(), bar }
    }

    fn update(&self, progress: &Progress) {
        let Progress { seconds, answered, p99, total_errors, .. } = progress;
        let line = format!("{answered}/s  p99 {}  {total_errors} errors", units::micros(*p99 as f64));
        if let Some(bar) = &self.bar {
            bar.set_position(*seconds);
            bar.set_message(line);
        } else if self.lines && seconds.is_multiple_of(LINE_EVERY) {
            let _ = writeln!(io::stderr(), "{seconds} s  {line}");
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What the protocols' commands end in.
pub(super) struct Parts {
    pub(super) protocol: Protocol,
    pub(super) endpoint: Endpoint,
    pub(super) target: String,
    pub(super) keys: Arc<Keys>,
    pub(super) connections: usize,
}

impl LoadArgs {
    pub(super) async fn run(self, parts: Parts) -> anyhow::Result<ExitCode> {
        let Parts { protocol, endpoint, target, keys, connections } = parts;
        if self.timeout.is_zero() {
            bail!("--timeout: 0; give a time above 0, like 10s");
        }
        let load = Load {
            protocol,
            endpoint,
            target,
            pace: self.pace.pace()?,
            connections,
            workers: self.threads.get().min(connections),
            keys,
            timeout: self.timeout,
            ledger: self.output.ledger.clone(),
        };
        run(load, self.output).await
    }
}
