//! The `loadtest` command: origins to put behind a proxy.

use std::{
    io::{self, Write},
    net::SocketAddr,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use http::StatusCode;
use loadtest::origin::{Behaviour, HttpOrigin, MqttBroker, TcpOrigin, control::Control, final_status};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Origins to put behind a proxy.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a server that says who answered, until Ctrl-C.
    #[command(subcommand)]
    Origin(Origin),
}

#[derive(Debug, Subcommand)]
enum Origin {
    /// HTTP/1.1 and HTTP/2 in clear, gRPC health and WebSocket echo.
    Http {
        #[command(flatten)]
        listener: Listener,
        /// Answers every request with this status.
        #[arg(long, value_parser = status)]
        status: Option<StatusCode>,
        /// Waited before every answer: 20ms, 1.5s.
        #[arg(long, default_value = "0ms", value_parser = duration)]
        latency: Duration,
        /// Address of an endpoint to change the behaviour while running (GET and PUT /behaviour, GET /seen).
        #[arg(long)]
        control: Option<SocketAddr>,
    },
    /// Answers each line with "<label>:<line>".
    Tcp {
        #[command(flatten)]
        listener: Listener,
    },
    /// A broker for MQTT 3.1.1 and 5.
    Mqtt {
        #[command(flatten)]
        listener: Listener,
    },
}

#[derive(Debug, Args)]
struct Listener {
    /// Address to listen on; port 0 picks a free one.
    #[arg(long)]
    listen: SocketAddr,
    /// How the origin calls itself.
    #[arg(long)]
    label: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    // rumqttd calls every client that leaves an error.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,rumqttd=off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();

    let Command::Origin(origin) = cli.command;
    match run(origin).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "loadtest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(origin: Origin) -> anyhow::Result<()> {
    // Before the line that says we listen, so that whoever reads it can already end us.
    let mut interrupted = signal(SignalKind::interrupt()).context("SIGINT: cannot be waited for")?;
    let mut terminated = signal(SignalKind::terminate()).context("SIGTERM: cannot be waited for")?;
    let ended = async {
        tokio::select! { _ = interrupted.recv() => {} _ = terminated.recv() => {} }
    };

    match origin {
        Origin::Http { listener, status, latency, control } => {
            let origin = HttpOrigin::start(&listener.label, listener.listen).await?;
            origin.behaviour().set(Behaviour { status, latency, ..Behaviour::default() });
            let control = match control {
                Some(address) => Some(Control::start(&origin, address).await?),
                None => None,
            };
            announce("http", &listener.label, origin.address(), control.as_ref().map(Control::address))?;
            ended.await;
            origin.stop().await;
        }
        Origin::Tcp { listener } => {
            let origin = TcpOrigin::start(&listener.label, listener.listen).await?;
            announce("tcp", &listener.label, origin.address(), None)?;
            ended.await;
            origin.stop().await;
        }
        Origin::Mqtt { listener } => {
            let broker = MqttBroker::start(&listener.label, listener.listen).await?;
            announce("mqtt", &listener.label, broker.address(), None)?;
            ended.await;
            broker.stop().await;
        }
    }
    Ok(())
}

fn announce(kind: &str, label: &str, address: SocketAddr, control: Option<SocketAddr>) -> anyhow::Result<()> {
    let control = control.map_or_else(String::new, |address| format!(", control on {address}"));
    let mut out = io::stdout().lock();
    writeln!(out, "{kind} origin {label} listening on {address}{control}")
        .and_then(|()| out.flush())
        .context("stdout: cannot write")
}

fn status(text: &str) -> Result<StatusCode, String> {
    let code = text.parse().map_err(|_| "not a number; give an HTTP status, 200 to 999".to_owned())?;
    final_status(code)
}

fn duration(text: &str) -> Result<Duration, String> {
    let seconds = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(millis), _) => millis.parse::<f64>().map(|millis| millis / 1000.0),
        (None, Some(seconds)) => seconds.parse(),
        (None, None) => return Err("no unit; give 20ms or 1.5s".to_owned()),
    };
    let seconds = seconds.map_err(|_| "not a number; give 20ms or 1.5s".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| format!("{error}; give 20ms or 1.5s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_number_and_a_unit() {
        assert_eq!(duration("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        for faulty in ["", "20", "ms", "-1s", "NaNs", "infs", "1e300s"] {
            assert!(duration(faulty).is_err(), "{faulty}");
        }
    }

    #[test]
    fn a_status_must_be_able_to_end_a_request() {
        assert_eq!(status("503"), Ok(StatusCode::SERVICE_UNAVAILABLE));
        for faulty in ["", "abc", "99", "101", "1000", "70000"] {
            assert!(status(faulty).is_err(), "{faulty}");
        }
    }
}
