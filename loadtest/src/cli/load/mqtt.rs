//! `loadtest mqtt`.

use std::{
    num::{NonZeroU16, NonZeroUsize},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use super::{LoadArgs, Parts, Target};
use crate::{
    keys::Keys,
    load::{Broker, Login, MqttLoad, MqttVersion, Protocol, Qos},
    units,
};

/// Largest payload, in bytes: each message is sent whole.
const MAX_SIZE: usize = 16 << 20;
/// Most unacknowledged messages of a publisher: each needs a packet id of its own.
const MAX_INFLIGHT: u16 = 60_000;
/// Most topics of a subscriber: it subscribes to 8 in one packet, and has 5 000 packet ids for that.
const MAX_TOPICS: usize = 40_000;

#[derive(Debug, Args)]
pub(in crate::cli) struct Mqtt {
    /// The broker, or what stands before it: 127.0.0.1:1883, mqtt://host:port or, with TLS, mqtts://host:port
    #[arg(long, value_name = "HOST:PORT")]
    target: String,
    /// Speaks TLS, as with an mqtts:// target
    #[arg(long)]
    tls: bool,
    /// Version of the protocol
    #[arg(long, value_enum, default_value = "3.1.1")]
    mqtt_version: Version,
    /// Clients that publish: user-0, user-1 and so on
    #[arg(long, default_value = "100")]
    publishers: NonZeroUsize,
    /// Clients that subscribe to the publishers' topics, shared out among them; 0: each publisher to its own
    #[arg(long, default_value = "0")]
    subscribers: usize,
    /// Quality of service, of publishing and subscribing: 0, 1 or 2
    #[arg(long, default_value = "1", value_parser = qos)]
    qos: Qos,
    /// Size of a payload; at least what its id, its publisher and its time need
    #[arg(long, default_value = "64", value_parser = units::bytes)]
    size: usize,
    /// Sessions that outlive a connection: clients come back to them and finish what was under way
    #[arg(long)]
    persistent: bool,
    /// Most unacknowledged messages of a publisher; with --max, most messages on their way from it
    #[arg(long, value_name = "N", default_value = "100")]
    inflight: NonZeroU16,
    /// Connections a second at the start; 64 at once in each thread when left out
    #[arg(long, value_name = "N")]
    connect_rate: Option<f64>,
    /// Time without a packet that a client and the broker bear, in whole seconds; 0s for ever
    #[arg(long, default_value = "30s", value_parser = units::duration)]
    keep_alive: Duration,
    /// User name
    #[arg(long)]
    username: Option<String>,
    /// File that holds the password
    #[arg(long, value_name = "FILE", requires = "username")]
    password_file: Option<PathBuf>,
    /// What all topics start with: PREFIX/RUN/PUBLISHER
    #[arg(long, value_name = "PREFIX", default_value = "loadtest")]
    topic_prefix: String,
    /// Leaves so long after connecting, with DISCONNECT, and comes back
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    reconnect_every: Option<Duration>,
    /// A broker behind the target and where to reach it directly, to know who serves a client. Repeatable
    #[arg(long, value_name = "LABEL=HOST:PORT", value_parser = labelled)]
    broker: Vec<(String, String)>,
    #[command(flatten)]
    load: LoadArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Version {
    #[value(name = "3.1.1", alias = "4")]
    V311,
    #[value(name = "5")]
    V5,
}

impl Mqtt {
    pub(in crate::cli) async fn run(mut self) -> anyhow::Result<ExitCode> {
        let publishers = self.publishers.get();
        self.check()?;
        let login = self.login()?;
        let endpoint = target("--target", &self.target, self.tls)?.endpoint(&self.load.trust, &[], false).await?;
        let mut brokers = Vec::with_capacity(self.broker.len());
        for (label, address) in self.broker {
            let endpoint = target("--broker", &address, false)?.endpoint(&self.load.trust, &[], false).await?;
            brokers.push(Broker { label, address, endpoint });
        }
        // Publishers are at one thread with the subscriber of their topics.
        let apart = if self.subscribers == 0 { self.publishers } else { self.subscribers.try_into()? };
        self.load.threads = self.load.threads.min(apart);
        let mqtt = MqttLoad {
            version: match self.mqtt_version {
                Version::V311 => MqttVersion::V311,
                Version::V5 => MqttVersion::V5,
            },
            qos: self.qos,
            publishers,
            subscribers: self.subscribers,
            size: self.size,
            persistent: self.persistent,
            inflight: self.inflight,
            connect_rate: self.connect_rate,
            keep_alive: u16::try_from(self.keep_alive.as_secs())?,
            login,
            topic_prefix: self.topic_prefix,
            reconnect_every: self.reconnect_every,
            brokers,
        };
        let keys = Keys::uniform(publishers as u64).map_err(|problem| anyhow::anyhow!("--publishers: {problem}"))?;
        let parts = Parts {
            connections: mqtt.clients(),
            protocol: Protocol::Mqtt(Arc::new(mqtt)),
            endpoint,
            target: self.target,
            keys: Arc::new(keys),
        };
        self.load.run(parts).await
    }

    /// Errors: flags that cannot be, with their cure.
    fn check(&self) -> anyhow::Result<()> {
        let publishers = self.publishers.get();
        let keep_alive = self.keep_alive;
        let prefix = &self.topic_prefix;
        let mut labels: Vec<_> = self.broker.iter().map(|(label, _)| label).collect();
        labels.sort_unstable();
        if self.subscribers > publishers {
            bail!(
                "--subscribers: {} share out the topics of {publishers} publishers; give {publishers} at most",
                self.subscribers
            );
        }
        if self.subscribers > 0 && publishers.div_ceil(self.subscribers) > MAX_TOPICS {
            bail!("--subscribers: each would have more than {MAX_TOPICS} topics; give more of them");
        }
        if self.size > MAX_SIZE {
            bail!("--size: {} bytes; give {MAX_SIZE} at most", self.size);
        }
        if self.inflight.get() > MAX_INFLIGHT {
            bail!("--inflight: {}; give {MAX_INFLIGHT} at most", self.inflight);
        }
        if self.connect_rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
            bail!("--connect-rate: {}; give connections a second above 0", self.connect_rate.unwrap_or_default());
        }
        if keep_alive.subsec_nanos() > 0 || keep_alive.as_secs() > u16::MAX.into() {
            bail!("--keep-alive: {keep_alive:?}; give whole seconds, {} at most, or 0s for none", u16::MAX);
        }
        if self.reconnect_every.is_some_and(|every| every.is_zero()) {
            bail!("--reconnect-every: 0; give a time above 0, or leave it out");
        }
        if prefix.is_empty() || prefix.len() > 1024 || prefix.starts_with('$') || prefix.contains(['+', '#', '\0']) {
            bail!("--topic-prefix {prefix:?}: no topic may start so; give letters, digits and slashes");
        }
        if let Some(twice) = labels.windows(2).find(|labels| labels[0] == labels[1]) {
            bail!("--broker: {} is given twice; give each broker a label of its own", twice[0]);
        }
        Ok(())
    }

    fn login(&self) -> anyhow::Result<Option<Login>> {
        let Some(username) = self.username.clone() else { return Ok(None) };
        let password = match &self.password_file {
            Some(path) => {
                let text = std::fs::read_to_string(path);
                text.with_context(|| format!("--password-file {}: cannot read it", path.display()))?
                    .trim_end()
                    .to_owned()
            }
            None => String::new(),
        };
        Ok(Some(Login { username, password }))
    }
}

/// Errors: no host, no port.
fn target(flag: &str, text: &str, tls: bool) -> anyhow::Result<Target> {
    let (rest, tls, default) = match text.split_once("://") {
        None => (text, tls, None),
        Some(("mqtt", rest)) => (rest, tls, Some(1883)),
        Some(("mqtts", rest)) => (rest, true, Some(8883)),
        Some(_) => {
            bail!("{flag} {text}: no mqtt:// or mqtts:// address; give 127.0.0.1:1883 or mqtts://broker.example")
        }
    };
    let rest = rest.trim_end_matches('/');
    let bare = rest.ends_with(']') || !rest.contains(':');
    let (host, port) = match (default, rest.rsplit_once(':').filter(|_| !bare)) {
        (_, Some((host, port))) => (host, port.parse().ok().filter(|port| *port > 0)),
        (default, None) => (rest, default),
    };
    match port {
        Some(port) if !host.is_empty() && !host.contains('/') && (host.ends_with(']') || !host.contains(':')) => {
            Ok(Target { host: host.to_owned(), port, tls })
        }
        _ => bail!("{flag} {text}: no host and port; give 127.0.0.1:1883"),
    }
}

fn qos(text: &str) -> Result<Qos, String> {
    text.parse::<u8>().map_err(|_| format!("{text:?} is no QoS; give 0, 1 or 2"))?.try_into()
}

/// The label goes into the name of a file.
fn labelled(text: &str) -> Result<(String, String), String> {
    let plain = |label: &str| {
        let plain = label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        plain && !label.is_empty() && label.len() <= 64 && label != "-"
    };
    match text.split_once('=') {
        Some((label, address)) if plain(label) => Ok((label.to_owned(), address.to_owned())),
        _ => Err(format!(
            "{text:?} is no broker; give its label, of letters and digits, and its address: go=127.0.0.1:1884"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        for (text, host, port, tls) in [
            ("127.0.0.1:1884", "127.0.0.1", 1884, false),
            ("broker.example:1884", "broker.example", 1884, false),
            ("mqtt://broker.example", "broker.example", 1883, false),
            ("mqtts://broker.example/", "broker.example", 8883, true),
            ("mqtts://[::1]:1884", "[::1]", 1884, true),
            ("mqtt://[::1]", "[::1]", 1883, false),
        ] {
            let target = target("--target", text, false).unwrap();
            assert_eq!((&*target.host, target.port, target.tls), (host, port, tls), "{text}");
        }
        for faulty in
            ["", "host", ":1883", "host:", "host:0", "host:99999", "http://host:80", "mqtt://", "mqtt://a/b:1", "::1"]
        {
            let fault = target("--target", faulty, true).err().unwrap().to_string();
            assert!(fault.contains("; give ") && !fault.contains('\n'), "{faulty}: {fault}");
        }
    }

    #[test]
    fn brokers_have_labels() {
        assert_eq!(labelled("go=127.0.0.1:1"), Ok(("go".to_owned(), "127.0.0.1:1".to_owned())));
        for faulty in ["", "go", "=x", "a/b=x", "../x=y", "-=x", "a b=x"] {
            assert!(labelled(faulty).is_err(), "{faulty}");
        }
    }
}
