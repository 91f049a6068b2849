//! The cases: what is driven through which peers, and why others are not in it.

use serde::Serialize;

use super::{peer::Peer, result::figure};

/// Something to compare the peers in.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    /// What it measures, for people.
    pub(super) about: &'static str,
    pub(super) kind: Kind,
    /// Who it fits.
    pub(super) peers: &'static [Peer],
    /// Who it does not fit, and why.
    pub(super) others: &'static [(&'static str, &'static str)],
    /// Whom all are compared with.
    pub(super) to: Peer,
    /// In what.
    pub(super) by: By,
}

/// How a case is measured.
#[derive(Debug)]
pub(super) enum Kind {
    /// `loadtest` with these arguments, separated by spaces, through a proxy.
    Load { through: Through, path: &'static str, arguments: &'static str },
    /// `loadtest` with these arguments over HTTP, while proxies, load and origins may use all cores alike: for proxies
    /// with more workers than one.
    Workers { arguments: &'static str },
    /// `loadtest` with these arguments over HTTP: `few` for most peers, and for those that [have many
    /// connections](Peer::has_many) `many`, while [`MANY_IDLE`] others are open.
    Many { few: &'static str, many: &'static str },
    /// Memory, with so many connections open that have been used once.
    Idle { through: Through },
    /// Load generators, all with 64 connections, without a proxy.
    Generator,
}

/// What is sent through one peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drive {
    pub(super) through: Through,
    pub(super) path: &'static str,
    /// Of `loadtest`, separated by spaces.
    pub(super) arguments: &'static str,
    /// Connections that are open besides, each used once.
    pub(super) idle: usize,
}

impl Kind {
    /// Which of the listeners the case is about.
    pub(super) fn through(&self) -> Through {
        match self {
            Self::Load { through, .. } | Self::Idle { through } => *through,
            Self::Workers { .. } | Self::Many { .. } | Self::Generator => Through::Http,
        }
    }

    /// What is sent through `peer`; `None` where the case is not about load through a proxy.
    pub(super) fn drive(&self, peer: Peer) -> Option<Drive> {
        let (path, arguments, idle) = match *self {
            Self::Load { path, arguments, .. } => (path, arguments, 0),
            Self::Workers { arguments } => ("/", arguments, 0),
            Self::Many { many, .. } if peer.has_many() => ("/", many, MANY_IDLE),
            Self::Many { few, .. } => ("/", few, 0),
            Self::Idle { .. } | Self::Generator => return None,
        };
        Some(Drive { through: peer.through(self.through()), path, arguments, idle })
    }
}

/// Which of a proxy's listeners, and so which configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Through {
    Http,
    /// HTTP/1.1 or HTTP/2 over TLS, which ends at the proxy.
    Https,
    /// TCP mode in front of the HTTP origins.
    Tcp,
    /// TCP mode, or better, in front of the brokers.
    Mqtt,
}

/// The figure that peers are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum By {
    /// Processor time for each answer.
    Cpu,
    /// Answers a second.
    Rate,
    /// Memory for each connection.
    Memory,
    /// The 99th percentile of latency, less that without a proxy.
    Added,
}

impl By {
    pub(super) fn figure(self) -> &'static str {
        match self {
            Self::Cpu => figure::CPU,
            Self::Rate => figure::RATE,
            Self::Memory => figure::MEMORY,
            Self::Added => figure::ADDED,
        }
    }
}

/// Connections that an idle case opens.
pub(super) const IDLE: usize = 4000;
/// Idle connections of case `many`, and all.
pub(super) const MANY_IDLE: usize = 8000;
pub(super) const MANY: usize = 10_000;

const NO_TLS: (&str, &str) = ("direct", "the origin speaks neither TLS nor HTTP/2");
const SAME_DIRECT: (&str, &str) = ("direct", "the same as in the case of this load over HTTP");
const NO_COST: (&str, &str) = ("direct", "there is no proxy whose cost could grow");
const BY_ITSELF: &str = "each is compared with itself here, and these are enough beside Crossfade";
const NO_PROXY: (&str, &str) = ("direct", "there is no proxy to measure");

pub(super) const CASES: &[Case] = &[
    Case {
        name: "http",
        about: "HTTP/1.1, 64 keep-alive connections, small responses",
        kind: Kind::Load { through: Through::Http, path: "/", arguments: "http --max --connections 64" },
        peers: &[Peer::Direct, Peer::Nginx, Peer::NginxStream, Peer::Haproxy, Peer::Envoy, Peer::Crossfade],
        others: &[],
        to: Peer::Nginx,
        by: By::Cpu,
    },
    Case {
        name: "close",
        about: "HTTP/1.1, a connection for each request, 64 at a time",
        kind: Kind::Load {
            through: Through::Http,
            path: "/",
            arguments: "http --max --connections 64 --requests-per-connection 1",
        },
        peers: &[Peer::Direct, Peer::Nginx, Peer::Haproxy, Peer::Envoy, Peer::Crossfade],
        others: &[],
        to: Peer::Nginx,
        by: By::Cpu,
    },
    Case {
        name: "large",
        about: "HTTP/1.1, 16 keep-alive connections, responses of 1 MiB",
        kind: Kind::Load { through: Through::Http, path: "/large", arguments: "http --max --connections 16" },
        peers: &[Peer::Direct, Peer::Nginx, Peer::Haproxy, Peer::Envoy, Peer::Crossfade],
        others: &[],
        to: Peer::Nginx,
        by: By::Cpu,
    },
    Case {
        name: "tls",
        about: "HTTP/1.1 over TLS that ends at the proxy, 64 keep-alive connections, small responses",
        kind: Kind::Load { through: Through::Https, path: "/", arguments: "http --max --connections 64" },
        peers: &[Peer::Nginx, Peer::Haproxy, Peer::Envoy, Peer::Crossfade],
        others: &[NO_TLS],
        to: Peer::Nginx,
        by: By::Cpu,
    },
    Case {
        name: "http2",
        about: "HTTP/2 over TLS that ends at the proxy, 8 connections with 8 streams each, small responses",
        kind: Kind::Load {
            through: Through::Https,
            path: "/",
            arguments: "http --max --http2 --connections 8 --streams 8",
        },
        peers: &[Peer::Nginx, Peer::Haproxy, Peer::Envoy, Peer::Crossfade],
        others: &[NO_TLS],
        to: Peer::Nginx,
        by: By::Cpu,
    },
    Case {
        name: "workers",
        about: "one worker and two, HTTP/1.1, 10000 requests/s on 64 keep-alive connections, nothing pinned",
        kind: Kind::Workers { arguments: "http --rate 10000 --connections 64" },
        peers: &[Peer::Nginx, Peer::NginxTwo, Peer::Crossfade, Peer::CrossfadeTwo],
        others: &[("haproxy", BY_ITSELF), ("envoy", BY_ITSELF), NO_COST],
        to: Peer::Nginx,
        by: By::Cpu,
    },
    Case {
        name: "many",
        about: "HTTP/1.1, 20000 requests/s on 64 keep-alive connections, and on 2000 while 8000 more are open",
        // A closed loop would have 2000 requests in flight instead of 64, which is another load.
        kind: Kind::Many { few: "http --rate 20000 --connections 64", many: "http --rate 20000 --connections 2000" },
        peers: &[Peer::Nginx, Peer::NginxMany, Peer::Haproxy, Peer::HaproxyMany, Peer::Crossfade, Peer::CrossfadeMany],
        others: &[("envoy", BY_ITSELF), NO_COST],
        to: Peer::Nginx,
        by: By::Cpu,
    },
    Case {
        name: "latency",
        about: "latency that a proxy adds, HTTP/1.1, 5000 requests/s on 64 keep-alive connections, small responses",
        kind: Kind::Load { through: Through::Http, path: "/", arguments: "http --rate 5000 --connections 64" },
        peers: &[Peer::Direct, Peer::Nginx, Peer::Haproxy, Peer::Envoy, Peer::Crossfade],
        others: &[],
        to: Peer::Nginx,
        by: By::Added,
    },
    Case {
        name: "tcp-small",
        about: "TCP mode, the same requests as in http",
        kind: Kind::Load { through: Through::Tcp, path: "/", arguments: "http --max --connections 64" },
        peers: &[Peer::Nginx, Peer::Haproxy, Peer::Envoy, Peer::Crossfade],
        others: &[SAME_DIRECT],
        to: Peer::Nginx,
        by: By::Cpu,
    },
    Case {
        name: "tcp-large",
        about: "TCP mode, the same requests as in large",
        kind: Kind::Load { through: Through::Tcp, path: "/large", arguments: "http --max --connections 16" },
        peers: &[Peer::Nginx, Peer::Haproxy, Peer::Envoy, Peer::Crossfade],
        others: &[SAME_DIRECT],
        to: Peer::Nginx,
        by: By::Cpu,
    },
    Case {
        name: "mqtt",
        about: "MQTT 3.1.1, 64 clients that are delivered what they publish, QoS 1, one message at a time, through TCP mode",
        kind: Kind::Load {
            through: Through::Mqtt,
            path: "",
            arguments: "mqtt --max --mqtt-version 3.1.1 --publishers 64 --inflight 1 --qos 1 --size 64",
        },
        peers: &[Peer::Direct, Peer::Nginx, Peer::Haproxy, Peer::Envoy, Peer::Crossfade, Peer::CrossfadeMqtt],
        others: &[],
        to: Peer::Nginx,
        by: By::Cpu,
    },
    Case {
        name: "idle-http",
        about: "memory of a keep-alive connection that has had one answer, 4000 open",
        kind: Kind::Idle { through: Through::Http },
        peers: &[Peer::Nginx, Peer::Haproxy, Peer::Envoy, Peer::Crossfade],
        others: &[NO_PROXY],
        to: Peer::Nginx,
        by: By::Memory,
    },
    Case {
        name: "idle-mqtt",
        about: "memory of an MQTT connection that has had its CONNACK, client's and broker's side together, 4000 open",
        kind: Kind::Idle { through: Through::Mqtt },
        peers: &[Peer::Nginx, Peer::Haproxy, Peer::Envoy, Peer::Crossfade, Peer::CrossfadeMqtt],
        others: &[NO_PROXY],
        to: Peer::Nginx,
        by: By::Memory,
    },
    Case {
        name: "mirror",
        about: "HTTP/1.1, 2000 requests/s on 64 keep-alive connections, mirror off, at 100 %, and at 100 % to a black hole",
        kind: Kind::Load { through: Through::Http, path: "/", arguments: "http --rate 2000 --connections 64" },
        peers: &[Peer::Crossfade, Peer::CrossfadeMirror, Peer::CrossfadeMirrorHole],
        others: &[
            ("nginx", "its mirror holds up the next request of the connection, and compares nothing"),
            ("haproxy", "it has no mirror but through an agent of its own"),
            ("envoy", "its mirror compares nothing, which is most of the work"),
        ],
        to: Peer::Crossfade,
        by: By::Cpu,
    },
    Case {
        name: "generator",
        about: "load generators against the origin, one thread, 64 keep-alive connections, small responses",
        kind: Kind::Generator,
        peers: &[Peer::Wrk, Peer::Loadtest],
        others: &[],
        to: Peer::Wrk,
        by: By::Rate,
    },
];

impl Case {
    /// The cases of these names, in their own order; all when none is named. Errors: a name that is none.
    pub(super) fn named(names: &[String]) -> Result<Vec<&'static Self>, String> {
        if let Some(unknown) = names.iter().find(|name| CASES.iter().all(|case| case.name != name.as_str())) {
            let known: Vec<&str> = CASES.iter().map(|case| case.name).collect();
            return Err(format!("no case {unknown:?}; there are {}", known.join(", ")));
        }
        Ok(CASES.iter().filter(|case| names.is_empty() || names.iter().any(|name| name == case.name)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_found_by_name_in_their_own_order() {
        let names = |asked: &[&str]| {
            let asked: Vec<String> = asked.iter().map(|name| (*name).to_owned()).collect();
            Case::named(&asked).map(|cases| cases.iter().map(|case| case.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["tls", "http"]), Ok(vec!["http", "tls"]));
        assert_eq!(names(&[]).unwrap().len(), CASES.len());
        assert!(names(&["http", "htp"]).unwrap_err().starts_with("no case \"htp\"; there are http, close"));
    }

    #[test]
    fn whoever_all_are_compared_with_takes_part() {
        for case in CASES {
            let compared = case.peers.iter().filter_map(|peer| peer.plain()).chain([case.to]);
            for peer in compared {
                assert!(case.peers.contains(&peer), "{}: {}", case.name, peer.name());
            }
        }
    }

    #[test]
    fn many_connections_are_those_that_are_busy_and_the_idle_ones() {
        let case = CASES.iter().find(|case| case.name == "many").unwrap();
        let idle = |peer| case.kind.drive(peer).unwrap().idle;
        assert_eq!([idle(Peer::Crossfade), idle(Peer::CrossfadeMany)], [0, MANY_IDLE]);
        let busy = case.kind.drive(Peer::CrossfadeMany).unwrap().arguments.rsplit(' ').next().unwrap();
        assert_eq!(busy.parse::<usize>().unwrap() + MANY_IDLE, MANY);
    }

    #[test]
    fn the_floor_of_http_is_driven_as_tcp() {
        let http = &CASES[0];
        let through = |peer| http.kind.drive(peer).unwrap().through;
        assert_eq!([through(Peer::Nginx), through(Peer::NginxStream)], [Through::Http, Through::Tcp]);
    }
}
