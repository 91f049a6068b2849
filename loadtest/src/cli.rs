//! The `loadtest` command.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Context;
use clap::{Parser, Subcommand};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::EnvFilter;

mod bench;
mod compare;
mod load;
mod origin;
mod profile;
mod verify;

/// It could not be run as asked; what clap exits with for faulty flags.
const UNUSABLE: u8 = 2;

/// Load with an account of every request, and origins to put behind a proxy.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load over HTTP/1.1, HTTP/2, gRPC or WebSocket.
    Http(Box<load::http::Http>),
    /// Load over MQTT 3.1.1 and 5: messages published, acknowledged, and delivered.
    Mqtt(Box<load::mqtt::Mqtt>),
    /// Load over TCP: lines and their echoes.
    Tcp(load::tcp::Tcp),
    Verify(verify::Verify),
    Compare(compare::Compare),
    Bench(bench::Bench),
    Profile(profile::Profile),
    /// Runs a server that says who answered, until Ctrl-C.
    #[command(subcommand)]
    Origin(origin::Origin),
}

/// Runs the command that the process was started with. Exit codes: 0 done; 1 an objective or a check failed; 2 it could
/// not be run as asked.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // rumqttd calls every client that leaves an error.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,rumqttd=off"));
    // What cannot be logged would be told to standard error, too, by a macro that panics when that is gone.
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).log_internal_errors(false).init();

    let (done, failed) = match cli.command {
        Command::Http(http) => (runtime().block_on(http.run()), UNUSABLE.into()),
        Command::Mqtt(mqtt) => (runtime().block_on(mqtt.run()), UNUSABLE.into()),
        Command::Tcp(tcp) => (runtime().block_on(tcp.run()), UNUSABLE.into()),
        Command::Verify(verify) => (verify.run(), UNUSABLE.into()),
        Command::Compare(compare) => (compare.run(), UNUSABLE.into()),
        Command::Bench(bench) => (runtime().block_on(bench.run()), UNUSABLE.into()),
        Command::Profile(profile) => (runtime().block_on(profile.run()), UNUSABLE.into()),
        Command::Origin(origin) => {
            (runtime().block_on(origin::run(origin)).map(|()| ExitCode::SUCCESS), ExitCode::FAILURE)
        }
    };
    done.unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "loadtest: {error:#}");
        failed
    })
}

fn runtime() -> runtime::Runtime {
    runtime::Builder::new_multi_thread().enable_all().build().expect("threads can be started")
}

/// The first SIGINT, SIGTERM or SIGHUP. Errors: one cannot be waited for.
async fn told_to_end() -> anyhow::Result<()> {
    let wait = |kind, name| signal(kind).with_context(|| format!("{name}: cannot be waited for"));
    let mut interrupted = wait(SignalKind::interrupt(), "SIGINT")?;
    let mut terminated = wait(SignalKind::terminate(), "SIGTERM")?;
    let mut hung_up = wait(SignalKind::hangup(), "SIGHUP")?;
    tokio::select! { _ = interrupted.recv() => {} _ = terminated.recv() => {} _ = hung_up.recv() => {} }
    Ok(())
}

/// To standard output. Whoever has read enough, as `head` has, may go. Errors: it could not be written for another reason.
fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("stdout: cannot write"),
        _ => Ok(()),
    }
}
