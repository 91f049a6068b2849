//! Who is compared: how each is found, configured and started.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

use super::{
    case::Through,
    origin::SERVER,
    process::{Cpu, Process, find},
    template::{self, Template},
};

/// Who is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    /// No proxy: the floor.
    Direct,
    Nginx,
    /// nginx with two workers.
    NginxTwo,
    /// nginx with 10 000 open connections.
    NginxMany,
    /// nginx in TCP mode where the others speak HTTP: what moving the bytes costs.
    NginxStream,
    Haproxy,
    /// HAProxy with 10 000 open connections.
    HaproxyMany,
    Envoy,
    Crossfade,
    /// Crossfade with two workers.
    CrossfadeTwo,
    /// Crossfade with 10 000 open connections.
    CrossfadeMany,
    /// Crossfade with an MQTT route instead of a TCP route.
    CrossfadeMqtt,
    /// Crossfade with a mirror of everything.
    CrossfadeMirror,
    /// Crossfade with a mirror of everything to where nobody answers.
    CrossfadeMirrorHole,
    Wrk,
    Loadtest,
}

impl Peer {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nginx => "nginx",
            Self::NginxTwo => "nginx-2",
            Self::NginxMany => "nginx-10k",
            Self::NginxStream => "nginx-stream",
            Self::Haproxy => "haproxy",
            Self::HaproxyMany => "haproxy-10k",
            Self::Envoy => "envoy",
            Self::Crossfade => "crossfade",
            Self::CrossfadeTwo => "crossfade-2",
            Self::CrossfadeMany => "crossfade-10k",
            Self::CrossfadeMqtt => "crossfade-mqtt",
            Self::CrossfadeMirror => "crossfade-mirror",
            Self::CrossfadeMirrorHole => "crossfade-mirror-hole",
            Self::Wrk => "wrk",
            Self::Loadtest => "loadtest",
        }
    }

    /// What must be installed for it; nothing for `direct` and ourselves.
    pub(super) fn program(self) -> Option<Program> {
        match self {
            Self::Direct | Self::Loadtest => None,
            Self::Nginx | Self::NginxTwo | Self::NginxMany | Self::NginxStream => Some(Program::Nginx),
            Self::Haproxy | Self::HaproxyMany => Some(Program::Haproxy),
            Self::Envoy => Some(Program::Envoy),
            Self::Crossfade
            | Self::CrossfadeTwo
            | Self::CrossfadeMany
            | Self::CrossfadeMqtt
            | Self::CrossfadeMirror
            | Self::CrossfadeMirrorHole => Some(Program::Crossfade),
            Self::Wrk => Some(Program::Wrk),
        }
    }

    /// The same with one worker, or with few connections, which it is compared with.
    pub(super) fn plain(self) -> Option<Self> {
        match self {
            Self::NginxTwo | Self::NginxMany => Some(Self::Nginx),
            Self::HaproxyMany => Some(Self::Haproxy),
            Self::CrossfadeTwo | Self::CrossfadeMany => Some(Self::Crossfade),
            _ => None,
        }
    }

    /// Has 10 000 connections, most of them idle.
    pub(super) fn has_many(self) -> bool {
        matches!(self, Self::NginxMany | Self::HaproxyMany | Self::CrossfadeMany)
    }

    fn workers(self) -> usize {
        if matches!(self, Self::NginxTwo | Self::CrossfadeTwo) { 2 } else { 1 }
    }

    /// Which listener of this peer is driven in a case that is about `through`.
    pub(super) fn through(self, through: Through) -> Through {
        if self == Self::NginxStream { Through::Tcp } else { through }
    }

    /// How it is configured; none for what is no proxy.
    fn template(self, through: Through) -> Option<Template> {
        let http = matches!(through, Through::Http | Through::Https);
        match self.program()? {
            Program::Nginx => Some(if http { template::NGINX_HTTP } else { template::NGINX_TCP }),
            Program::Haproxy => Some(if http { template::HAPROXY_HTTP } else { template::HAPROXY_TCP }),
            Program::Envoy => Some(if http { template::ENVOY_HTTP } else { template::ENVOY_TCP }),
            Program::Crossfade => Some(match self {
                Self::CrossfadeMqtt => template::CROSSFADE_MQTT,
                Self::CrossfadeMirror | Self::CrossfadeMirrorHole => template::CROSSFADE_MIRROR,
                _ if http => template::CROSSFADE_HTTP,
                _ => template::CROSSFADE_TCP,
            }),
            Program::Mosquitto | Program::Wrk => None,
        }
    }
}

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Program {
    Crossfade,
    Envoy,
    Haproxy,
    Mosquitto,
    Nginx,
    Wrk,
}

impl Program {
    const ALL: [Self; 6] = [Self::Crossfade, Self::Envoy, Self::Haproxy, Self::Mosquitto, Self::Nginx, Self::Wrk];

    /// As it is called in a shell.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Crossfade => "crossfade",
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
            Self::Mosquitto => "mosquitto",
            Self::Nginx => "nginx",
            Self::Wrk => "wrk",
        }
    }

    /// What has it print its version.
    fn version_argument(self) -> &'static str {
        match self {
            Self::Crossfade | Self::Envoy => "--version",
            Self::Haproxy | Self::Wrk => "-v",
            Self::Mosquitto => "-h",
            // And how it was built.
            Self::Nginx => "-V",
        }
    }
}

/// What is installed.
#[derive(Debug)]
pub(super) struct Tools {
    found: BTreeMap<Program, Tool>,
    /// The line that has nginx load its stream module, empty when it is built in; or why there is none.
    load_stream: Result<String, &'static str>,
}

#[derive(Debug)]
struct Tool {
    path: PathBuf,
    version: String,
}

impl Tools {
    /// Looks for every program in PATH and asks it for its version; for Crossfade beside ourselves first, unless its path
    /// is given. Errors: a path that is given and cannot be run.
    pub(super) fn look(crossfade: Option<&Path>) -> anyhow::Result<Self> {
        let mut found = BTreeMap::new();
        let mut load_stream = Err("nginx is not installed");
        for program in Program::ALL {
            let path = match (program, crossfade) {
                (Program::Crossfade, Some(given)) => Some(given.to_owned()),
                (Program::Crossfade, None) => beside_ourselves(program.name()).or_else(|| find(program.name())),
                _ => find(program.name()),
            };
            let Some(path) = path else { continue };
            // Servers are started in folders of their own.
            let path = path.canonicalize().with_context(|| format!("{}: no such program", path.display()))?;
            let said = Command::new(&path).arg(program.version_argument()).output();
            let said =
                said.with_context(|| format!("{}: cannot be run; mend it or take it off PATH", path.display()))?;
            let said = [said.stdout, said.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            if program == Program::Nginx {
                load_stream = stream_module(&said, Path::exists);
            }
            let version = version(&said).unwrap_or("unknown").to_owned();
            found.insert(program, Tool { path, version });
        }
        Ok(Self { found, load_stream })
    }

    pub(super) fn path(&self, program: Program) -> Option<&Path> {
        self.found.get(&program).map(|tool| tool.path.as_path())
    }

    pub(super) fn versions(&self) -> BTreeMap<&'static str, String> {
        self.found.iter().map(|(program, tool)| (program.name(), tool.version.clone())).collect()
    }

    /// Why a peer cannot take part here.
    pub(super) fn missing(&self, peer: Peer, through: Through) -> Option<String> {
        let program = peer.program()?;
        match (peer, through) {
            _ if self.path(program).is_none() && program == Program::Crossfade => {
                Some("neither beside loadtest nor in PATH; give --crossfade".to_owned())
            }
            _ if self.path(program).is_none() => Some("not installed; `make bench-tools` installs it".to_owned()),
            (Peer::Nginx | Peer::NginxStream, Through::Tcp | Through::Mqtt) => {
                self.load_stream.as_ref().err().map(|why| (*why).to_owned())
            }
            _ => None,
        }
    }
}

fn beside_ourselves(program: &str) -> Option<PathBuf> {
    let beside = std::env::current_exe().ok()?.with_file_name(program);
    beside.is_file().then_some(beside)
}

/// The first word of what a program says that looks like a version: `nginx/1.22.1`, `HAProxy version 2.6.12-1+deb12u4`.
fn version(said: &str) -> Option<&str> {
    let mut words = said.split(|c: char| c.is_whitespace() || c == '/');
    words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))
}

/// From `nginx -V`: the line that loads the stream module, where it is a file of its own.
fn stream_module(built: &str, exists: impl Fn(&Path) -> bool) -> Result<String, &'static str> {
    let mut arguments = built.split_ascii_whitespace();
    if arguments.clone().any(|argument| argument == "--with-stream") {
        return Ok(String::new());
    }
    let folder = arguments.find_map(|argument| argument.strip_prefix("--modules-path="));
    let module = folder.map(|folder| Path::new(folder).join("ngx_stream_module.so")).filter(|module| exists(module));
    let module = module.ok_or("nginx has no stream module; `make bench-tools` installs it")?;
    Ok(format!("load_module {};", module.display()))
}

/// Ports on loopback that nobody listens on, each given once: below those that Linux hands out by itself.
#[derive(Debug, Default)]
pub(super) struct Ports {
    given: BTreeSet<u16>,
}

impl Ports {
    pub(super) fn free(&mut self) -> SocketAddr {
        loop {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(10_000..32_768)));
            if self.given.insert(address.port()) && TcpListener::bind(address).is_ok() {
                return address;
            }
        }
    }
}

/// The two that a proxy splits between; of a mirror that nobody answers, green is where the copies go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arms {
    pub(super) blue: SocketAddr,
    pub(super) green: SocketAddr,
}

impl Arms {
    /// What a template calls them.
    pub(super) fn values(self) -> [(&'static str, String); 2] {
        [("blue", self.blue.port().to_string()), ("green", self.green.port().to_string())]
    }
}

/// A started peer.
#[derive(Debug)]
pub(super) struct Started {
    /// Where to send the load.
    pub(super) address: SocketAddr,
    /// None for `direct`.
    pub(super) process: Option<Process>,
}

impl Started {
    /// Starts `peer` on `core`, or on all, in front of `arms`, and waits until it listens. The certificate is in
    /// `dir`, its own files in a folder of its own there. Errors: it does not start; with what it said.
    pub(super) async fn start(
        peer: Peer,
        through: Through,
        arms: Arms,
        tools: &Tools,
        core: Option<usize>,
        ports: &mut Ports,
        dir: &Path,
    ) -> anyhow::Result<Self> {
        let (Some(template), Some(program)) = (peer.template(through), peer.program()) else {
            return Ok(Self { address: arms.blue, process: None });
        };
        let pem = dir.join(SERVER).display().to_string();
        let dir = &dir.join(peer.name());
        fs::create_dir_all(dir).with_context(|| format!("{}: cannot be made", dir.display()))?;
        let (clear, tls, admin) = (ports.free(), ports.free(), ports.free());
        let mut values = vec![
            ("dir", dir.display().to_string()),
            ("pem", pem),
            ("port", clear.port().to_string()),
            ("tls_port", tls.port().to_string()),
            ("admin_port", admin.port().to_string()),
            ("load_stream", tools.load_stream.clone().unwrap_or_default()),
            ("workers", peer.workers().to_string()),
            // Otherwise the worker that is awake first takes nearly all connections.
            ("reuseport", if peer.workers() > 1 { "reuseport" } else { "" }.to_owned()),
            // A copy goes to the other arm.
            ("mirror_green", if peer == Peer::CrossfadeMirrorHole { "0" } else { "50" }.to_owned()),
        ];
        values.extend(arms.values());
        let Some(path) = tools.path(program) else { bail!("{}: not installed", program.name()) };
        let file = write(template, &values, dir)?;
        let file = file.display().to_string();
        let arguments: Vec<&str> = match program {
            Program::Nginx => vec!["-c", &file],
            // In the foreground.
            Program::Haproxy => vec!["-db", "-f", &file],
            Program::Envoy => vec!["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "-c", &file],
            Program::Crossfade => vec!["run", "--config", &file],
            Program::Mosquitto | Program::Wrk => bail!("{}: no proxy", program.name()),
        };
        let mut process = Process::start(peer.name(), path, arguments, core, dir)?;
        let address = if through == Through::Https { tls } else { clear };
        process.listens(address).await?;
        Ok(Self { address, process: Some(process) })
    }
}

impl Started {
    /// Processor time that it has used so far; none of `direct`. Errors: it has ended.
    pub(super) fn cpu(&self) -> anyhow::Result<Option<Cpu>> {
        self.process.as_ref().map(|process| process.cpu().context("processor time: not readable")).transpose()
    }
}

/// Writes a filled template into `dir`.
pub(super) fn write(template: Template, values: &[(&str, String)], dir: &Path) -> anyhow::Result<PathBuf> {
    let file = dir.join(template.name);
    fs::write(&file, template.fill(values)).with_context(|| format!("{}: cannot be written", file.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        let check = |said, expected| assert_eq!(version(said), expected, "{said}");
        check("nginx version: nginx/1.22.1\nbuilt with OpenSSL 3.0.17", Some("1.22.1"));
        check("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/", Some("2.6.12-1+deb12u4"));
        check(
            "\nenvoy  version: 9e5580933739775e8bce696a57a2e1bc99368f23/1.40.0/Clean/RELEASE/BoringSSL",
            Some("1.40.0"),
        );
        check("wrk debian/4.1.0-3+b2 [epoll] Copyright (C) 2012 Will Glozer", Some("4.1.0-3+b2"));
        check("mosquitto version 2.0.11\n\nmosquitto is an MQTT broker.", Some("2.0.11"));
        check("crossfade 0.1.0", Some("0.1.0"));
        check("usage", None);
    }

    #[test]
    fn the_stream_module_is_loaded_where_it_is_a_file() {
        let debian =
            "configure arguments: --modules-path=/usr/lib/nginx/modules --with-stream=dynamic --with-stream_ssl_module";
        let line = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;".to_owned();
        assert_eq!(stream_module(debian, |_| true), Ok(line));
        assert!(stream_module(debian, |_| false).is_err());
        assert_eq!(
            stream_module("--prefix=/etc/nginx --with-stream --with-http_v2_module", |_| false),
            Ok(String::new())
        );
        assert!(stream_module("--with-stream_ssl_module", |_| true).is_err());
    }

    #[test]
    fn free_ports_differ() {
        let mut ports = Ports::default();
        let given: BTreeSet<SocketAddr> = (0..50).map(|_| ports.free()).collect();
        assert_eq!(given.len(), 50);
    }
}
