//! `loadtest tcp`.

use std::{
    num::{NonZeroU64, NonZeroUsize},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::Args;

use super::{KeyArgs, LoadArgs, Parts, Target};
use crate::{
    load::{Protocol, TcpLoad},
    units,
};

/// Largest line, in bytes: it is read whole.
const MAX_SIZE: usize = 16 << 20;

#[derive(Debug, Args)]
pub(in crate::cli) struct Tcp {
    /// Host and port of a server that echoes lines: 127.0.0.1:7000
    #[arg(long, value_name = "HOST:PORT")]
    target: String,
    /// Speaks TLS
    #[arg(long)]
    tls: bool,
    /// Connections
    #[arg(long, default_value = "64")]
    connections: NonZeroUsize,
    /// Length of a line, in bytes, its end included; at least what its id and key need
    #[arg(long, default_value = "64", value_parser = units::bytes)]
    size: usize,
    /// Closes each connection after so many lines
    #[arg(long, value_name = "N")]
    requests_per_connection: Option<NonZeroU64>,
    /// Connects from an address of each key's own, in 127.0.0.0/8
    #[arg(long)]
    source_by_key: bool,
    #[command(flatten)]
    keys: KeyArgs,
    #[command(flatten)]
    load: LoadArgs,
}

impl Tcp {
    pub(in crate::cli) async fn run(self) -> anyhow::Result<ExitCode> {
        if self.size > MAX_SIZE {
            bail!("--size: {} bytes; give {MAX_SIZE} at most", self.size);
        }
        let target = host_and_port(&self.target, self.tls)?;
        let endpoint = target.endpoint(&self.load.trust, &[], self.source_by_key).await?;
        let tcp = TcpLoad { size: self.size, requests_per_connection: self.requests_per_connection };
        let (keys, connections) = (self.keys.keys()?, self.connections.get());
        self.load.run(Parts { protocol: Protocol::Tcp(tcp), endpoint, target: self.target, keys, connections }).await
    }
}

/// `host:port`, the host in brackets when it is an IPv6 address.
pub(super) fn host_and_port(text: &str, tls: bool) -> anyhow::Result<Target> {
    let parts = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = parts
        .filter(|(host, port)| !host.is_empty() && *port > 0)
        .with_context(|| format!("--target {text}: no host and port; give 127.0.0.1:7000"))?;
    Ok(Target { host: host.to_owned(), port, tls })
}
