//! `loadtest http`.

use std::{
    num::{NonZeroU64, NonZeroUsize},
    process::ExitCode,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};

use super::{KeyArgs, LoadArgs, Parts, Target};
use crate::{
    load::{HttpLoad, HttpVersion, KeyPlace, Protocol},
    units,
};

/// Path of the gRPC call when the target names none: what `loadtest origin http` answers.
const GRPC_ECHO: &str = "/loadtest.Echo/Echo";
/// Largest body, in bytes: each request sends it whole.
const MAX_BODY: usize = 64 << 20;

#[derive(Debug, Args)]
pub(in crate::cli) struct Http {
    /// What to ask for: http://127.0.0.1:8080/path or https://shop.example/
    #[arg(long, value_name = "URL")]
    target: Uri,
    /// Connections
    #[arg(long, default_value = "64")]
    connections: NonZeroUsize,
    /// HTTP/2, by ALPN over TLS and by prior knowledge in clear
    #[arg(long, group = "version")]
    http2: bool,
    /// Unary gRPC calls; the message is --body
    #[arg(long, group = "version")]
    grpc: bool,
    /// WebSocket text messages of --body bytes, each awaiting its echo
    #[arg(long, group = "version")]
    websocket: bool,
    /// Requests at once on a connection, with --http2 and --grpc
    #[arg(long, default_value = "1")]
    streams: NonZeroUsize,
    /// The method; GET, or POST with a body, when left out
    #[arg(long)]
    method: Option<Method>,
    /// Size of the body to send: 512, 16k, 1M
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = units::bytes)]
    body: usize,
    /// A further header, like 'accept: text/html'. Repeatable
    #[arg(long, value_name = "NAME: VALUE", value_parser = header)]
    header: Vec<(HeaderName, HeaderValue)>,
    /// Where the key goes: header:NAME, cookie:NAME, query:NAME or client-ip
    #[arg(long, value_name = "PLACE", default_value = "header:x-session-id")]
    key_in: KeyPlace,
    /// Closes each connection after so many requests
    #[arg(long, value_name = "N")]
    requests_per_connection: Option<NonZeroU64>,
    /// Reads bodies so slowly, in bytes a second
    #[arg(long, value_name = "SIZE", value_parser = units::bytes)]
    read_rate: Option<usize>,
    /// The header that says who answered; x-crossfade-arm, then x-origin, when left out
    #[arg(long, value_name = "NAME")]
    label_header: Option<HeaderName>,
    #[command(flatten)]
    keys: KeyArgs,
    #[command(flatten)]
    load: LoadArgs,
}

impl Http {
    pub(in crate::cli) async fn run(self) -> anyhow::Result<ExitCode> {
        let (target, scheme) = target(&self.target)?;
        if self.streams.get() > 1 && !(self.http2 || self.grpc) {
            bail!("--streams: HTTP/1.1 and WebSocket carry one request at a time; add --http2, or raise --connections");
        }
        if self.body > MAX_BODY {
            bail!("--body: {} bytes; give {MAX_BODY} at most", self.body);
        }
        let version = match (self.http2, self.grpc) {
            (_, true) => HttpVersion::Grpc,
            (true, _) => HttpVersion::Http2,
            (false, false) => HttpVersion::Http1,
        };
        let method = self.method.unwrap_or(if self.body > 0 { Method::POST } else { Method::GET });
        if method == Method::CONNECT {
            bail!("--method: CONNECT asks for a tunnel, which is no request; give another");
        }
        let mut headers = HeaderMap::new();
        for (name, value) in self.header {
            if [header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION].contains(&name) {
                bail!(
                    "--header {name}: is about framing, which follows from --target, --body and the rest; leave it out"
                );
            }
            headers.append(name, value);
        }

        let protocols: &[&str] = if version == HttpVersion::Http1 { &["http/1.1"] } else { &["h2"] };
        let source_by_key = self.key_in == KeyPlace::ClientIp;
        if source_by_key && self.requests_per_connection != NonZeroU64::new(1) && !self.websocket {
            bail!("--key-in client-ip: a connection has one address; add --requests-per-connection 1");
        }
        let endpoint = target.endpoint(&self.load.trust, protocols, source_by_key).await?;
        let path = self.target.path_and_query().map_or("/", |path| path.as_str());
        let http = HttpLoad {
            version,
            method,
            scheme,
            authority: self.target.authority().map(ToString::to_string).context("--target: no host")?,
            path: if self.grpc && path == "/" { GRPC_ECHO.to_owned() } else { path.to_owned() },
            headers,
            body: Bytes::from(vec![b'x'; self.body]),
            key: self.key_in,
            requests_per_connection: self.requests_per_connection,
            streams: self.streams.get(),
            read_rate: self.read_rate.and_then(|rate| NonZeroU64::new(rate as u64)),
            label: self.label_header,
        };
        let protocol = if self.websocket { Protocol::WebSocket(http) } else { Protocol::Http(http) };
        let (keys, connections) = (self.keys.keys()?, self.connections.get());
        self.load.run(Parts { protocol, endpoint, target: self.target.to_string(), keys, connections }).await
    }
}

fn target(uri: &Uri) -> anyhow::Result<(Target, &'static str)> {
    let (scheme, tls, port) = match uri.scheme_str() {
        Some("http" | "ws") => ("http", false, 80),
        Some("https" | "wss") => ("https", true, 443),
        _ => bail!("--target {uri}: no http:// or https:// address; give http://127.0.0.1:8080/"),
    };
    let host = uri.host().filter(|host| !host.is_empty());
    let host = host.with_context(|| format!("--target {uri}: no host; give http://127.0.0.1:8080/"))?;
    Ok((Target { host: host.to_owned(), port: uri.port_u16().unwrap_or(port), tls }, scheme))
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    const CURE: &str = "give 'accept: text/html'";
    let (name, value) = text.split_once(':').ok_or_else(|| format!("{text:?} is no header; {CURE}"))?;
    let name = name.trim().parse().map_err(|error| format!("{name:?}: {error}; {CURE}"))?;
    let value = value.trim().parse().map_err(|error| format!("{value:?}: {error}; {CURE}"))?;
    Ok((name, value))
}
