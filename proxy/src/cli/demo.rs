//! `crossfade demo`: everything in one process, to see and to try.

use std::{
    collections::BTreeMap,
    env,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    num::NonZeroU16,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use config::Config;
use http::HeaderName;
use loadtest::{
    keys::Keys,
    load::{Endpoint, HttpLoad, HttpVersion, Load, MqttLoad, MqttVersion, Pace, Progress, Protocol, Qos},
    origin::{HttpOrigin, MqttBroker, control::Control},
    schedule::{Rate, Schedule},
};
use tokio::{runtime, time};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{log_to_stderr, print};
use crate::server::{Server, stop_on_signals};

/// Requests per second, users and MQTT devices: enough for a verdict within seconds, too little to hear the fan.
const RATE: f64 = 50.0;
const USERS: u64 = 500;
const DEVICES: usize = 20;
/// Devices come back so often that a change of the split reaches them while somebody watches.
const RECONNECT_EVERY: Duration = Duration::from_secs(20);
/// Seconds between two lines about the traffic.
const REPORT_EVERY: u64 = 10;
/// How long one run of the load lasts before the next begins: a run keeps a row for each of its seconds.
const RUN: Duration = Duration::from_secs(3600);

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Port of the web route; another one is taken when it is in use
    #[arg(long, default_value_t = 8080)]
    http_port: u16,
    /// Port of the MQTT route
    #[arg(long, default_value_t = 1883)]
    mqtt_port: u16,
    /// Port of the admin API
    #[arg(long, default_value_t = 9900)]
    admin_port: u16,
}

/// Both systems, in front of which the demo's proxy stands.
struct Systems {
    python: HttpOrigin,
    go: HttpOrigin,
    go_control: Control,
    erlang: MqttBroker,
    new_broker: MqttBroker,
}

impl Demo {
    pub(super) fn run(self) -> Result<()> {
        log_to_stderr(false, "info");
        let outside = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let systems = outside.block_on(Systems::start())?;
        let folder = tempfile::tempdir().context("cannot make a folder for the demo's state")?;
        let (http, mqtt, admin) = (free(self.http_port), free(self.mqtt_port), free(self.admin_port));
        let config = Config::parse(&systems.configuration(http, mqtt, admin), folder.path())?;
        let server = Server::bind(config)?;

        let stop = CancellationToken::new();
        stop_on_signals(&stop)?;
        let traffic = TaskTracker::new();
        let until = stop.child_token();
        let go_control = systems.go_control.address();
        server.run(stop, || {
            explain(http, mqtt, admin, go_control);
            let running = outside.handle();
            traffic.spawn_on(keep_up(web_load(http), "web", until.clone()), running);
            traffic.spawn_on(keep_up(device_load(mqtt), "devices", until), running);
        })?;
        traffic.close();
        outside.block_on(async { time::timeout(Duration::from_secs(5), traffic.wait()).await }).unwrap_or_default();
        Ok(())
    }
}

impl Systems {
    async fn start() -> Result<Self> {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let go = HttpOrigin::start("go", any).await?;
        Ok(Self {
            python: HttpOrigin::start("python", any).await?,
            go_control: Control::start(&go, any).await?,
            go,
            erlang: MqttBroker::start("erlang", any).await?,
            new_broker: MqttBroker::start("go", any).await?,
        })
    }

    fn configuration(&self, http: SocketAddr, mqtt: SocketAddr, admin: SocketAddr) -> String {
        format!(
            r#"
[server]
drain = "5s"

[admin]
listen = "{admin}"
state = "demo.db"

[[route]]
name = "shop"
protocol = "http"
listen = "{http}"
key = ["header:x-session-id", "client-ip"]
green_percentage = 10
expose_arm = true
[route.blue]
label = "python"
endpoints = ["{}"]
[route.green]
label = "go"
endpoints = ["{}"]
[route.mirror]
sample = 20.0

[[route]]
name = "broker"
protocol = "mqtt"
listen = "{mqtt}"
green_percentage = 10
[route.blue]
label = "erlang"
endpoints = ["{}"]
[route.green]
label = "go"
endpoints = ["{}"]
"#,
            self.python.address(),
            self.go.address(),
            self.erlang.address(),
            self.new_broker.address()
        )
    }
}

/// The wanted port, or, when somebody else has it, one that is free.
fn free(port: u16) -> SocketAddr {
    let here = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|listener| listener.local_addr());
    here(port).or_else(|_| here(0)).unwrap_or_else(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

fn explain(http: SocketAddr, mqtt: SocketAddr, admin: SocketAddr, go_control: SocketAddr) {
    let program = env::args().next().unwrap_or_else(|| "crossfade".to_owned());
    let to_admin = if admin.port() == 9900 { String::new() } else { format!(" --admin http://{admin}") };
    tell(&format!(
        "
A web shop (python → go) and an MQTT broker (erlang → go) are being moved, {RATE} requests/s from {USERS} users and
{DEVICES} devices go through, 10 % of the keys to green.

  web      http://{http}/          answers say which system they come from
  MQTT     {mqtt}
  admin    http://{admin}/status   also /traffic-split /metrics /events /incidents /openapi.json

Try, in another terminal:

  1. see both routes                 {program} status{to_admin}
  2. move half of the users          {program} split shop 50{to_admin}
  3. turn green sick, and watch it   curl -X PUT http://{go_control}/behaviour -H 'content-type: application/json' -d '{{\"status\":500}}'
     roll back by itself             {program} status{to_admin}

  The same user stays where it is:   curl -i http://{http}/ -H 'x-session-id: me'
  After a rollback, when healed:     {program} reset shop --reason 'green mended'{to_admin}

Ctrl-C ends everything.
"
    ));
}

fn web_load(target: SocketAddr) -> Load {
    let label = Some(HeaderName::from_static("x-origin"));
    let http = HttpLoad { label, ..HttpLoad::new(HttpVersion::Http1, &target.to_string()) };
    load(Protocol::Http(http), target, RATE, 8, USERS)
}

fn device_load(target: SocketAddr) -> Load {
    let mqtt = MqttLoad {
        version: MqttVersion::V311,
        qos: Qos::AtLeastOnce,
        publishers: DEVICES,
        subscribers: 0,
        size: 64,
        persistent: false,
        inflight: NonZeroU16::MIN,
        connect_rate: None,
        keep_alive: 10,
        login: None,
        topic_prefix: "devices".to_owned(),
        reconnect_every: Some(RECONNECT_EVERY),
        brokers: Vec::new(),
    };
    load(Protocol::Mqtt(Arc::new(mqtt)), target, DEVICES as f64, DEVICES, DEVICES as u64)
}

fn load(protocol: Protocol, target: SocketAddr, rate: f64, connections: usize, keys: u64) -> Load {
    let schedule = Schedule::steady(RUN, Rate { from: rate, to: rate }).expect("it lasts and holds requests");
    Load {
        protocol,
        endpoint: Endpoint::plain(target),
        target: target.to_string(),
        pace: Pace::Open(Arc::new(schedule)),
        connections,
        workers: 1,
        keys: Arc::new(Keys::uniform(keys).expect("there are some, and not too many")),
        timeout: Duration::from_secs(5),
        ledger: None,
    }
}

/// Runs a load again and again, and says how it goes.
async fn keep_up(load: Load, what: &'static str, until: CancellationToken) {
    while !until.is_cancelled() {
        let mut before = BTreeMap::new();
        let ran = load.run(until.clone(), |progress| say(what, progress, &mut before)).await;
        if let Err(error) = ran {
            tracing::error!(%error, what, "The demo's traffic does not flow");
            until.run_until_cancelled(time::sleep(Duration::from_secs(5))).await;
        }
    }
}

fn say(what: &str, progress: &Progress, before: &mut BTreeMap<String, u64>) {
    if !progress.seconds.is_multiple_of(REPORT_EVERY) {
        return;
    }
    let answers: Vec<_> = progress
        .arms
        .iter()
        .map(|(arm, count)| {
            format!("{} {:>4}", if arm == "-" { "acknowledged" } else { arm }, count - before.get(arm).unwrap_or(&0))
        })
        .collect();
    tell(&format!(
        "{:>5} s  {what:<8} {} in the last {REPORT_EVERY} s; failed so far {}",
        progress.seconds,
        answers.join("  "),
        progress.total_errors
    ));
    before.clone_from(&progress.arms);
}

/// The demo goes on whether or not it is heard.
fn tell(what: &str) {
    if let Err(error) = print(&what) {
        tracing::warn!(%error, "The demo cannot say how it goes");
    }
}
