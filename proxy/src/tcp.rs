//! TCP routes: a connection goes to an arm as a whole; its bytes are not looked at, but for a TLS client's server name.

use admin_api::Outcome;
use bytes::{Buf, BytesMut};
use config::KeySource;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{self, Instant},
};

use crate::{
    connection::Accepted,
    forward::{Patience, relay},
    key,
    live::Route,
    telemetry::{Exchange, Fault},
    transport::Transport,
    upstream,
    wire::client_hello::{Hello, MAX_HELLO, parse_client_hello},
};

pub(crate) async fn serve(accepted: Accepted) {
    let route = accepted.listener().first.handle();
    let access_log = accepted.live.access_log;
    let Accepted { mut transport, client, .. } = accepted;
    let mut first_bytes = BytesMut::new();
    let key = match extract(&route, &mut transport, client.ip(), &mut first_bytes).await {
        Ok(key) => key,
        Err(reason) => return route.meter.reject(reason),
    };
    let mut exchange = Exchange::dispatch(route.meter.handle(), &route.decide(key.as_deref(), None));
    let Ok(mut connected) = Box::pin(upstream::connect(&route, &mut exchange)).await else { return };
    exchange.judge(Outcome::Ok, Some(connected.latency_us), None);
    let (established, endpoint) = (Instant::now(), connected.lease.address());
    let gone = Fault::new(Some(endpoint), "the endpoint took the connection and closed it without a byte");
    let timeouts = &route.settings.timeouts;
    let patience = Patience { idle: timeouts.idle, write: timeouts.write, after_upstream: timeouts.idle };
    let peeked = first_bytes.len() as u64;
    match time::timeout(timeouts.write, connected.upstream.write_all_buf(&mut first_bytes)).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return exchange.cut_off(gone),
        Err(_) => return,
    }
    // It may live for months: nothing of its beginning is kept.
    drop((first_bytes, key));
    let moved = relay(&mut transport, &mut connected.upstream, patience, &mut ()).await;
    if moved.down == 0 && moved.was_left_at_once(established) {
        exchange.cut_off(gone);
    }
    exchange.add_bytes(peeked + moved.up, moved.down);
    if access_log {
        tracing::info!(
            target: "access", route = route.settings.name, %client, arm = %exchange.arm(),
            bytes_in = peeked + moved.up, bytes_out = moved.down, ended = moved.ended.as_str(), "tcp"
        );
    }
}

/// The caller's key, and in `first_bytes` what had to be read to find it. Errors: why the connection is refused.
async fn extract(
    route: &Route,
    transport: &mut Transport,
    client: std::net::IpAddr,
    first_bytes: &mut BytesMut,
) -> Result<Option<Vec<u8>>, &'static str> {
    for source in &route.settings.key {
        match source {
            KeySource::ClientIp => return Ok(Some(key::of_address(client))),
            KeySource::Sni => {
                let hello = read_server_name(transport, first_bytes);
                let limit = route.settings.timeouts.request_header;
                if let Some(name) = time::timeout(limit, hello).await.map_err(|_| "client_hello_timeout")?? {
                    return Ok(Some(name.into_bytes()));
                }
            }
            _ => {}
        }
    }
    Ok(None)
}

async fn read_server_name(transport: &mut Transport, bytes: &mut BytesMut) -> Result<Option<String>, &'static str> {
    loop {
        match parse_client_hello(bytes.chunk()) {
            Hello::ServerName(name) => return Ok(Some(name)),
            // Something else than TLS has no name, so it is a caller without a key.
            Hello::NoServerName | Hello::NotTls => return Ok(None),
            Hello::Malformed(reason) => return Err(reason),
            Hello::Incomplete if bytes.len() >= MAX_HELLO => return Err("client_hello_too_large"),
            Hello::Incomplete => {}
        }
        bytes.reserve(1024);
        match transport.read_buf(bytes).await {
            Ok(0) | Err(_) => return Err("client_gone"),
            Ok(_) => {}
        }
    }
}
