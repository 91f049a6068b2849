//! `crossfade demo`: everything in one process, to see and to try.

use std::{
    env,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    num::NonZeroU64,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use config::Config;
use http::Uri;
use loadtest::{
    origin::{HttpOrigin, MqttBroker, control::Control},
    traffic::{HttpCounts, HttpTraffic, MqttCounts, MqttTraffic},
};
use tokio::{runtime, time};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::log_to_stderr;
use crate::server::{Server, stop_on_signals};

/// Requests per second, users and MQTT devices: enough for a verdict within seconds, too little to hear the fan.
const RATE: f64 = 50.0;
const USERS: NonZeroU64 = NonZeroU64::new(500).expect("not zero");
const DEVICES: usize = 20;
const REPORT_EVERY: Duration = Duration::from_secs(10);

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
            let (web, devices) = (Arc::new(HttpCounts::default()), Arc::new(MqttCounts::default()));
            let target = Uri::try_from(format!("http://{http}/")).expect("an address makes a URI");
            let running = outside.handle();
            traffic.spawn_on(HttpTraffic::new(target, RATE, USERS).run(Arc::clone(&web), until.clone()), running);
            traffic.spawn_on(MqttTraffic::new(mqtt, DEVICES).run(Arc::clone(&devices), until.clone()), running);
            traffic.spawn_on(report(web, devices, until), running);
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

#[expect(clippy::print_stdout, reason = "what the demo has to say goes to standard output")]
fn explain(http: SocketAddr, mqtt: SocketAddr, admin: SocketAddr, go_control: SocketAddr) {
    let program = env::args().next().unwrap_or_else(|| "crossfade".to_owned());
    let to_admin = if admin.port() == 9900 { String::new() } else { format!(" --admin http://{admin}") };
    println!(
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
    );
}

#[expect(clippy::print_stdout, reason = "what the demo has to say goes to standard output")]
async fn report(web: Arc<HttpCounts>, devices: Arc<MqttCounts>, until: CancellationToken) {
    let mut before = web.tally();
    let started = time::Instant::now();
    while until.run_until_cancelled(time::sleep(REPORT_EVERY)).await.is_some() {
        let now = web.tally();
        let since = |label: &str| now.answered_by(label) - before.answered_by(label);
        let bad: u64 = now.answers.iter().filter(|((_, status), _)| *status >= 500).map(|(_, count)| count).sum();
        println!(
            "{:>5} s  python {:>4}  go {:>4} answers in the last {} s; failed so far {}; devices connected {} times, {} messages acknowledged",
            started.elapsed().as_secs(),
            since("python"),
            since("go"),
            REPORT_EVERY.as_secs(),
            now.errors + bad,
            devices.connected(),
            devices.acknowledged(),
        );
        before = now;
    }
}
