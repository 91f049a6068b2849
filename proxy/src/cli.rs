//! The command line.

mod client;
mod demo;
mod incident;
mod plan;
mod simulate;

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use admin_api::StepForecast;
use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use config::{Config, Faults};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{
    live::check_files,
    server::{Server, Start, stop_on_signals},
};
use client::Client;

/// Splits traffic between a running system (blue) and its rewrite (green), compares them, and rolls back by itself.
#[derive(Debug, Parser)]
#[command(
    name = "crossfade",
    version,
    max_term_width = 100,
    after_help = "\
Exit status: 0 done, 1 refused or failed, 2 usage.
Start with `crossfade demo`: it needs nothing but this program."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Carry traffic as a configuration file says
    Run {
        /// The configuration file; read again when it changes and on SIGHUP
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Take over from the instance that runs on the same state file, without a lost connection: it finishes what it has
        /// and ends. Where none runs, start as usual
        #[arg(long)]
        takeover: bool,
        /// Log as JSON, one object a line
        #[arg(long)]
        json: bool,
    },
    /// Say everything that is wrong with a configuration file, and what can be seen in the steps of its plans
    Check {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
    /// Try it out: two web servers, two MQTT brokers, some traffic, the proxy and its admin API in one process
    Demo(demo::Demo),
    /// Play a route's guard against synthetic arms: how often it trips for nothing, and how soon for something
    Simulate(simulate::Simulate),
    /// Show each route's split, verdict, error rate, latency and plan under way
    Status {
        /// Only this route
        route: Option<String>,
        #[command(flatten)]
        admin: Admin,
    },
    /// Set green's share of a route
    Split {
        /// Its name, as `crossfade status` lists it
        route: String,
        /// Green's share in per cent, in steps of 0.01: 12.5
        #[arg(value_name = "PERCENT", value_parser = percent, allow_negative_numbers = true)]
        percent: f64,
        #[command(flatten)]
        admin: Admin,
    },
    /// Let green's share rise by itself, step by step
    #[command(subcommand)]
    Plan(plan::Plan),
    /// Set green's share to 0 and keep it there until a reset
    Rollback {
        /// Its name, as `crossfade status` lists it
        route: String,
        /// Why, for the record
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        admin: Admin,
    },
    /// Tell what happened when a route was tripped, as a page to read
    Incident(incident::Incident),
    /// Let green's share of a route be raised again after a trip or a rollback, and drop what the guard has seen so far
    Reset {
        /// Its name, as `crossfade status` lists it
        route: String,
        /// Why, for the record
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        admin: Admin,
    },
}

/// Where the admin API of a running crossfade is.
#[derive(Debug, Args)]
struct Admin {
    /// The admin API's address
    #[arg(long = "admin", value_name = "URL", env = "CROSSFADE_ADMIN", default_value = "http://127.0.0.1:9900")]
    url: String,
    /// A file whose first word is the token to show
    #[arg(long, value_name = "FILE", env = "CROSSFADE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// PEM roots to verify the admin API with, instead of the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // Both TLS stacks in here, the engine's and ours, are to use the same provider; a second call changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Its reader may be gone as well, and the exit code says the same.
            let _ = writeln!(io::stderr(), "crossfade: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Run { config, takeover, json } => {
            log_to_stderr(json, "info");
            let server = Server::open(config, if takeover { Start::TakeOver } else { Start::Alone })?;
            let stop = CancellationToken::new();
            stop_on_signals(&stop)?;
            let (listeners, admin) = server.addresses()?;
            server.run(stop, || {
                for address in &listeners {
                    tracing::info!(%address, "Listening");
                }
                tracing::info!(%admin, "Serving the admin API");
            })
        }
        Command::Check { config, json } => check(&config, json),
        Command::Demo(demo) => demo.run(),
        Command::Simulate(simulate) => simulate.run(),
        Command::Status { route, admin } => Client::new(&admin)?.status(route.as_deref()),
        Command::Split { route, percent, admin } => Client::new(&admin)?.split(&route, percent),
        Command::Plan(plan) => plan.run(),
        Command::Rollback { route, reason, admin } => Client::new(&admin)?.rollback(&route, reason.as_deref()),
        Command::Incident(incident) => incident.show(),
        Command::Reset { route, reason, admin } => Client::new(&admin)?.reset(&route, &reason),
    }
}

fn check(path: &Path, json: bool) -> Result<()> {
    let (routes, steps, faults) = match Config::load(path) {
        Ok(config) => (config.routes.len(), step_forecasts(&config), Faults(check_files(&config))),
        Err(faults) => (0, Vec::new(), faults),
    };
    let count = faults.0.len();
    if json {
        let steps: Vec<_> = steps
            .iter()
            .map(|(place, step)| {
                json!({
                    "place": place,
                    "sentence": step.to_string(),
                    "requests": step.requests,
                    "shows": step.shows,
                    "honest": step.is_honest(),
                    "honest_bake_seconds": step.honest_bake.as_secs(),
                })
            })
            .collect();
        print(&json!({ "ok": count == 0, "routes": routes, "faults": faults, "steps": steps }))?;
    } else if count == 0 {
        let ok = format!("{}: ok, {routes} route{}", path.display(), if routes == 1 { "" } else { "s" });
        let steps = steps.iter().map(|(place, step)| format!("\n{place}: {step}"));
        print(&steps.fold(ok, |lines, step| lines + &step))?;
    } else {
        print(&faults)?;
    }
    if count > 0 {
        bail!("{} has {count} fault{}", path.display(), if count == 1 { "" } else { "s" });
    }
    Ok(())
}

/// The place of each step of a plan of which it is known how much traffic it gets, and what can be seen in it.
fn step_forecasts(config: &Config) -> Vec<(String, StepForecast)> {
    let routes = config.routes.iter().enumerate();
    let plans = routes.filter_map(|(route, settings)| {
        let plan = settings.plan.as_ref()?;
        Some((route, settings.guard?, plan.expected_rps?, &plan.steps))
    });
    plans
        .flat_map(|(route, guard, rps, steps)| {
            steps.iter().enumerate().filter_map(move |(index, step)| {
                let forecast = StepForecast::new(&guard, rps, step.green, step.bake)?;
                Some((format!("route[{route}].plan.step[{index}]"), forecast))
            })
        })
        .collect()
}

/// Of a share: the API says what it may be.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
    number.ok_or_else(|| format!("{text:?} is not a number; give per cent from 0 to 100 without %, such as 12.5"))
}

/// The result, to standard output. Errors: as of [`unless_unread`].
fn print(result: &impl fmt::Display) -> Result<()> {
    unless_unread(writeln!(io::stdout(), "{result}"))
}

/// Whoever has read enough, as `head` has, may go: what was asked for is done all the same. Errors: it could not be written
/// for another reason.
fn unless_unread(written: io::Result<()>) -> Result<()> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("cannot write the result"),
        _ => Ok(()),
    }
}

/// `RUST_LOG` decides what is logged; without it `default` and up, and of the libraries only warnings.
fn log_to_stderr(json: bool, default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        EnvFilter::new(format!(
            "warn,proxy={default},admin_api={default},config={default},access=info,pingora=error,rumqttd=off"
        ))
    });
    // What cannot be logged would be told to standard error, too, by a macro that panics when that is gone.
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).log_internal_errors(false);
    if json {
        subscriber.json().flatten_event(true).init();
    } else {
        subscriber.with_ansi(io::stderr().is_terminal()).with_target(false).init();
    }
}
