//! `loadtest origin`: a server to put behind a proxy.

use std::{
    error::Error as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use clap::{Args, Subcommand, error::ErrorKind};
use http::StatusCode;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::signal::unix::{SignalKind, signal};

use super::say;
use crate::{
    ledger::{Ledger, Owner},
    load::KeyPlace,
    origin::{
        Behaviour, HttpOrigin, HttpSetup, Latency, Listener, MqttBroker, Spelling, Stall, TcpOrigin, control::Control,
        final_status,
    },
    units,
};

const PATHS: &str = "\
Paths:
  any other              200 and JSON: origin, method, path, key
  /echo                  the request's body as it comes in, its trailers after it
  /headers               the request's headers as JSON, in their order
  /bytes/N               N bytes
  /status/NNN            that status
  /stream?chunks=N&interval_ms=M, /endless, /sse
                         bodies that take their time
  /record/N, /noisy      JSON with fields that are noise, for comparing
  /ws                    WebSocket echo: text is answered <label>:<text>
  /loadtest.Echo/Echo    gRPC: the message as it came; grpc.health.v1.Health too

Every answer carries x-origin, and the request's x-loadtest-id if it had one.";

const LATENCIES: &str = "\
Waited before every answer:
  20ms                             always that
  lognormal:20ms,p99=200ms         by its median and its 99th percentile
  lognormal:20ms,sigma=0.8         by its median and the deviation of the logarithm
  quantiles:0.5=12ms,0.99=80ms     straight lines between quantiles
  file:quantiles.txt               the same, a line each: 0.5 12ms";

#[derive(Debug, Subcommand)]
pub(super) enum Origin {
    /// HTTP/1.1 and HTTP/2, gRPC and WebSocket included.
    #[command(after_long_help = PATHS)]
    Http(Box<Http>),
    /// Answers each line with "<label>:<line>".
    Tcp {
        #[command(flatten)]
        address: Address,
        #[command(flatten)]
        manners: Manners,
    },
    /// A broker for MQTT 3.1.1 and 5.
    Mqtt {
        #[command(flatten)]
        address: Address,
    },
}

#[derive(Debug, Args)]
pub(super) struct Http {
    #[command(flatten)]
    address: Address,
    /// Answers every request with this status; gRPC calls with the grpc-status that corresponds.
    #[arg(long, value_parser = status)]
    status: Option<StatusCode>,
    #[command(flatten)]
    manners: Manners,
    /// This share of requests gets a reset in place of an answer, 1% or 0.01.
    #[arg(long, default_value = "0", value_parser = units::share)]
    reset_share: f64,
    /// This share of the answers of /record/N and /noisy differs in a field that is no noise: 1%, 0.01.
    #[arg(long, default_value = "0", value_parser = units::share)]
    mismatch_share: f64,
    /// How /record/N and /noisy spell the names of states.
    #[arg(long, value_enum, default_value_t)]
    spelling: Spelling,
    /// Where requests have the key that the ledger names: header:NAME, cookie:NAME or query:NAME.
    #[arg(long, default_value = "header:x-session-id", value_parser = key_place)]
    key_in: KeyPlace,
    #[command(flatten)]
    tls: Tls,
}

#[derive(Debug, Args)]
pub(super) struct Address {
    /// Address to listen on; port 0 picks a free one.
    #[arg(long)]
    listen: SocketAddr,
    /// How the origin calls itself.
    #[arg(long)]
    label: String,
}

/// What origins for HTTP and TCP have in common.
#[derive(Debug, Args)]
pub(super) struct Manners {
    /// Waited before every answer: 20ms, lognormal:20ms,p99=200ms, file:quantiles.txt.
    #[arg(long, default_value = "0ms", value_parser = Latency::from_argument, long_help = LATENCIES)]
    latency: Latency,
    /// Every so often nothing is answered for a while: 500ms/10s is 500 ms in every 10 s.
    #[arg(long)]
    stall: Option<Stall>,
    /// This share of requests fails, 1% or 0.01: HTTP 500, gRPC status 13, WebSocket close 1011, TCP reset.
    #[arg(long, default_value = "0", value_parser = units::share)]
    error_share: f64,
    /// What the share of failures grows by each second, 1% or 0.01.
    #[arg(long, default_value = "0", value_parser = units::share)]
    error_growth: f64,
    /// Takes requests and never answers them.
    #[arg(long)]
    hang: bool,
    /// Sends the header and the first bytes of every answer (on TCP the label), then resets.
    #[arg(long)]
    reset_after_header: bool,
    /// Writes everything that comes in with an id to this file, for loadtest verify.
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Address of an endpoint to change the behaviour while running (GET and PUT /behaviour, GET /seen).
    #[arg(long)]
    control: Option<SocketAddr>,
}

#[derive(Debug, Args)]
struct Tls {
    /// Speaks TLS, with a certificate made for localhost and the address unless --cert names one.
    #[arg(long)]
    tls: bool,
    /// The certificate with its chain, PEM.
    #[arg(long, value_name = "FILE", requires_all = ["tls", "key_file"])]
    cert: Option<PathBuf>,
    /// The private key of --cert, PEM.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key_file: Option<PathBuf>,
    /// Where the certificate that was made is written, PEM: what clients have to trust.
    #[arg(long, value_name = "FILE", requires = "tls", conflicts_with = "cert")]
    write_ca: Option<PathBuf>,
}

/// Runs it until SIGINT or SIGTERM. Faults of the arguments that only show here end the process as clap does.
pub(super) async fn run(origin: Origin) -> anyhow::Result<()> {
    // Before the line that says we listen, so that whoever reads it can already end us.
    let mut interrupted = signal(SignalKind::interrupt()).context("SIGINT: cannot be waited for")?;
    let mut terminated = signal(SignalKind::terminate()).context("SIGTERM: cannot be waited for")?;
    let ended = async {
        tokio::select! { _ = interrupted.recv() => {} _ = terminated.recv() => {} }
    };

    match origin {
        Origin::Http(http) => {
            let Http { address, status, manners, reset_share, mismatch_share, spelling, key_in, tls } = *http;
            let Address { listen, label } = address;
            let tls = tls.config(listen).unwrap_or_else(unusable);
            let (listener, control, ledger) = manners.open(&label, listen).await?;
            let behaviour = Behaviour { status, reset_share, mismatch_share, spelling, ..manners.behaviour() };
            let setup = HttpSetup { tls, behaviour, ledger: ledger.as_ref(), key: key_in };
            let origin = HttpOrigin::serve(&label, listener, setup);
            let control = control.map(|listener| Control::serve(&origin, listener));
            announce("http", &label, origin.address(), control.as_ref())?;
            ended.await;
            origin.stop().await;
            ledger.map_or(Ok(()), Ledger::close)?;
        }
        Origin::Tcp { address: Address { listen, label }, manners } => {
            let (listener, control, ledger) = manners.open(&label, listen).await?;
            let origin = TcpOrigin::serve(&label, listener, manners.behaviour(), ledger.as_ref());
            let control = control.map(|listener| Control::serve(&origin, listener));
            announce("tcp", &label, origin.address(), control.as_ref())?;
            ended.await;
            origin.stop().await;
            ledger.map_or(Ok(()), Ledger::close)?;
        }
        Origin::Mqtt { address: Address { listen, label } } => {
            let broker = MqttBroker::start(&label, listen).await?;
            announce("mqtt", &label, broker.address(), None)?;
            ended.await;
            broker.stop().await;
        }
    }
    Ok(())
}

impl Manners {
    /// The listeners of the origin and its control endpoint, and its ledger: last, so that an origin that cannot listen
    /// does not empty the ledger of the one that does.
    async fn open(
        &self,
        label: &str,
        listen: SocketAddr,
    ) -> anyhow::Result<(Listener, Option<Listener>, Option<Ledger>)> {
        let listener = Listener::bind(listen).await?;
        let control = match self.control {
            Some(address) => Some(Listener::bind(address).await?),
            None => None,
        };
        let owner = Owner::Origin { label: label.to_owned() };
        let ledger = self.ledger.as_deref().map(|path| Ledger::create(path, &owner));
        let ledger = ledger.transpose().unwrap_or_else(|error| {
            unusable(format!("{error}: {}", error.source().map_or_else(String::new, ToString::to_string)))
        });
        Ok((listener, control, ledger))
    }

    fn behaviour(&self) -> Behaviour {
        Behaviour {
            latency: self.latency.clone(),
            stall: self.stall,
            hang: self.hang,
            reset_after_header: self.reset_after_header,
            error_share: self.error_share,
            error_growth: self.error_growth,
            ..Behaviour::default()
        }
    }
}

impl Tls {
    /// `listen`: an address the certificate is to be good for. Errors: the place, the problem and the cure.
    fn config(self, listen: SocketAddr) -> Result<Option<Arc<ServerConfig>>, String> {
        if !self.tls {
            return Ok(None);
        }
        let (chain, key) = match (&self.cert, &self.key_file) {
            (Some(cert), Some(key)) => read(cert, key)?,
            _ => {
                let names = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned(), listen.ip().to_string()];
                let made = rcgen::generate_simple_self_signed(names).map_err(|error| format!("--tls: {error}"))?;
                if let Some(path) = &self.write_ca {
                    fs::write(path, made.cert.pem()).map_err(|error| {
                        format!("--write-ca {}: {error}; give a path in a folder that exists", path.display())
                    })?;
                }
                (vec![made.cert.der().clone()], PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into()))
            }
        };
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|error| {
                format!("--cert, --key-file: {error}; give a certificate and the key that belongs to it")
            })?;
        Ok(Some(Arc::new(config)))
    }
}

fn read(cert: &Path, key: &Path) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| error.to_string()).and_then(|chain| match chain.is_empty() {
        true => Err("no certificate in it".to_owned()),
        false => Ok(chain),
    });
    let chain = chain.map_err(|problem| format!("--cert {}: {problem}; give a certificate in PEM", cert.display()))?;
    let key = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| format!("--key-file {}: {error}; give a private key in PEM", key.display()))?;
    Ok((chain, key))
}

fn unusable<T>(problem: String) -> T {
    clap::Error::raw(ErrorKind::ValueValidation, problem + "\n").exit()
}

fn announce(kind: &str, label: &str, address: SocketAddr, control: Option<&Control>) -> anyhow::Result<()> {
    let control = control.map_or_else(String::new, |control| format!(", control on {}", control.address()));
    say(&format!("{kind} origin {label} listening on {address}{control}\n"))
}

fn status(text: &str) -> Result<StatusCode, String> {
    let code = text.parse().map_err(|_| "not a number; give an HTTP status, 200 to 999".to_owned())?;
    final_status(code)
}

fn key_place(text: &str) -> Result<KeyPlace, String> {
    match text.parse()? {
        KeyPlace::ClientIp => {
            Err("behind a proxy every address is the proxy's; give header:NAME, cookie:NAME or query:NAME".to_owned())
        }
        place => Ok(place),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_must_be_able_to_end_a_request() {
        assert_eq!(status("503"), Ok(StatusCode::SERVICE_UNAVAILABLE));
        for faulty in ["", "abc", "99", "101", "1000", "70000"] {
            assert!(status(faulty).is_err(), "{faulty}");
        }
    }
}
