//! MQTT routes: the CONNECT decides the arm and is forwarded verbatim, the CONNACK is read on its way back, and all
//! other bytes pass untouched.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
};

use admin_api::Outcome;
use bytes::BytesMut;
use config::KeySource;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{self, Instant},
};

use crate::{
    connection::Accepted,
    forward::{Ended, Moved, Observer, Patience, Seen, Side, relay},
    key,
    live::Route,
    telemetry::{Exchange, Fault},
    transport::Transport,
    upstream::{self, Connected, Lease},
    wire::mqtt::{
        Connack, Connect, MAX_CONNECT, Parsed, SESSION_TAKEN_OVER, Version, connack_is_broker_fault, disconnect_at_end,
        parse_connack, parse_connect, server_unavailable,
    },
};

pub(crate) async fn serve(accepted: Accepted) {
    let route = accepted.listener().first.handle();
    let access_log = accepted.live.access_log;
    let Accepted { mut transport, client, .. } = accepted;
    let mut first_bytes = BytesMut::new();
    let reading = read_connect(&route, &mut transport, client.ip(), &mut first_bytes);
    let greeting = match time::timeout(route.settings.timeouts.request_header, reading).await {
        Ok(Ok(greeting)) => greeting,
        Ok(Err(refused)) => {
            route.meter.reject(refused.reason);
            return transport.close_with(refused.answer).await;
        }
        Err(_) => return route.meter.reject("connect_timeout"),
    };
    let mut exchange = Exchange::dispatch(route.meter.handle(), &route.decide(greeting.key.as_deref(), None));
    let started = Instant::now();
    let Ok(mut connected) = Box::pin(upstream::connect(&route, &mut exchange)).await else {
        return transport.close_with(server_unavailable(greeting.version)).await;
    };
    let (sent, leaving) = (first_bytes.len() as u64, disconnect_at_end(&first_bytes).is_some());
    let timeouts = &route.settings.timeouts;
    if !matches!(time::timeout(timeouts.write, connected.upstream.write_all_buf(&mut first_bytes)).await, Ok(Ok(()))) {
        let fault = Fault::new(Some(connected.lease.address()), "the broker did not take the connect packet");
        exchange.judge(Outcome::Broken, None, Some(fault));
        return transport.close_with(server_unavailable(greeting.version)).await;
    }
    // It may live for months: nothing of its beginning is kept.
    drop((first_bytes, greeting.key));
    let Connected { upstream, lease, .. } = &mut connected;
    let answered = AtomicBool::new(false);
    let answer = Answer {
        exchange: &mut exchange,
        lease,
        version: greeting.version,
        started,
        begun: BytesMut::new(),
        answered: &answered,
        accepted: None,
        leaving,
        taken_over: false,
    };
    let moved = carry(&route, &mut transport, upstream, answer).await;
    let Some(moved) = moved else { return transport.close_with(server_unavailable(greeting.version)).await };
    exchange.add_bytes(sent + moved.up, moved.down);
    if access_log {
        tracing::info!(
            target: "access", route = route.settings.name, %client, arm = %exchange.arm(),
            bytes_in = sent + moved.up, bytes_out = moved.down, ended = moved.ended.as_str(), "mqtt"
        );
    }
}

/// Relays until the end and judges the arm by its CONNACK. `None`: the broker went silent or away before the client saw
/// anything of an answer, so that it can still be told.
async fn carry(
    route: &Route,
    client: &mut Transport,
    upstream: &mut Transport,
    mut answer: Answer<'_>,
) -> Option<Moved> {
    let timeouts = &route.settings.timeouts;
    let patience = Patience { idle: timeouts.idle, write: timeouts.write, after_upstream: timeouts.idle };
    let answered = answer.answered;
    let ended = {
        let relaying = relay(client, upstream, patience, &mut answer);
        tokio::pin!(relaying);
        tokio::select! {
            moved = &mut relaying => Some(moved),
            () = time::sleep(timeouts.response_header) => {
                if answered.load(Ordering::Relaxed) { Some(relaying.await) } else { None }
            }
        }
    };
    let Answer { exchange, lease, accepted, leaving, taken_over, begun, .. } = answer;
    if answered.load(Ordering::Relaxed) {
        if let (Some(moved), Some(accepted)) = (&ended, accepted)
            && moved.was_left_at_once(accepted)
            && !leaving
            && !taken_over
        {
            exchange
                .cut_off(Fault::new(Some(lease.address()), "the broker accepted the client and closed the connection"));
        }
        return ended;
    }
    // What the client has seen of a CONNACK cannot be made whole by one of ours.
    let begun = begun.len() as u64;
    match ended {
        // A client that leaves before the answer says nothing about the broker.
        Some(moved) if matches!(moved.first_gone, Some((Side::Client, _))) => Some(moved),
        Some(moved) => {
            let fault = Fault::new(Some(lease.address()), "the broker closed the connection before its connack");
            exchange.judge(Outcome::Broken, None, Some(fault));
            (moved.down > 0).then_some(moved)
        }
        None => {
            exchange.judge(Outcome::Timeout, None, Some(Fault::new(Some(lease.address()), "no connack in time")));
            (begun > 0).then_some(Moved { up: 0, down: begun, ended: Ended::UpstreamBroke, first_gone: None })
        }
    }
}

/// Watches a broker's first bytes for the CONNACK, and whether the client takes its leave.
struct Answer<'a> {
    exchange: &'a mut Exchange,
    lease: &'a Lease,
    version: Version,
    started: Instant,
    /// Of a packet that has not arrived whole.
    begun: BytesMut,
    answered: &'a AtomicBool,
    /// When.
    accepted: Option<Instant>,
    /// What the client sent last ends with a DISCONNECT: the broker is to close the connection.
    leaving: bool,
    /// The broker ends the session because the client has begun another one.
    taken_over: bool,
}

impl Observer for Answer<'_> {
    fn see_client(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.leaving = disconnect_at_end(bytes).is_some();
        }
    }

    fn see_upstream(&mut self, bytes: &[u8]) -> Seen {
        self.taken_over |= disconnect_at_end(bytes) == Some(SESSION_TAKEN_OVER);
        if self.answered.load(Ordering::Relaxed) {
            return Seen::Enough;
        }
        // A broker that leaves without a word: the client is not to see that end, so that it can still be told.
        if bytes.is_empty() {
            return Seen::Stop;
        }
        self.begun.extend_from_slice(bytes);
        let broker = self.lease.address();
        let nonsense = || Some(Fault::new(Some(broker), "the broker's first packet was no connack"));
        let (outcome, fault) = loop {
            match parse_connack(&self.begun, self.version) {
                Connack::Incomplete if self.begun.len() < MAX_CONNECT => return Seen::More,
                Connack::Incomplete | Connack::NotConnack => break (Outcome::Broken, nonsense()),
                Connack::Auth { length } => bytes::Buf::advance(&mut self.begun, length),
                Connack::Connack { code: 0, .. } => break (Outcome::Ok, None),
                Connack::Connack { code, .. } if connack_is_broker_fault(self.version, code) => {
                    break (Outcome::Refused, Some(Fault::connack(broker, code)));
                }
                Connack::Connack { .. } => break (Outcome::Declined, None),
            }
        };
        let now = Instant::now();
        self.accepted = (outcome == Outcome::Ok).then_some(now);
        let latency = (outcome != Outcome::Broken).then(|| (now - self.started).as_micros() as u64);
        self.exchange.judge(outcome, latency, fault);
        self.answered.store(true, Ordering::Relaxed);
        self.begun = BytesMut::new();
        Seen::Enough
    }
}

/// What a CONNECT says that matters here.
struct Greeting {
    version: Version,
    key: Option<Vec<u8>>,
}

struct Refused {
    reason: &'static str,
    answer: &'static [u8],
}

async fn read_connect(
    route: &Route,
    transport: &mut Transport,
    client: IpAddr,
    bytes: &mut BytesMut,
) -> Result<Greeting, Refused> {
    loop {
        match parse_connect(bytes) {
            Parsed::Connect(connect) => {
                return Ok(Greeting { version: connect.version, key: extract(&route.settings.key, &connect, client) });
            }
            Parsed::Refused(refusal) => return Err(Refused { reason: refusal.reason, answer: refusal.answer }),
            Parsed::Incomplete => {}
        }
        // The parser refuses a CONNECT that says it is longer than this, so there is always room for the next read.
        debug_assert!(bytes.len() < MAX_CONNECT + 8192, "the parser must bound what is read");
        bytes.reserve(1024);
        match transport.read_buf(bytes).await {
            Ok(0) | Err(_) => return Err(Refused { reason: "client_gone", answer: &[] }),
            Ok(_) => {}
        }
    }
}

fn extract(sources: &[KeySource], connect: &Connect<'_>, client: IpAddr) -> Option<Vec<u8>> {
    sources.iter().find_map(|source| {
        let key = match source {
            KeySource::MqttClientId => connect.client_id.to_vec(),
            KeySource::MqttUsername => connect.username?.to_vec(),
            KeySource::ClientIp => key::of_address(client),
            _ => return None,
        };
        (!key.is_empty()).then_some(key)
    })
}
