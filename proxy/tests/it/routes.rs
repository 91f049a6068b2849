//! The text of a configuration's routes.

use std::{fmt, net::SocketAddr};

use crate::harness::free_address;

/// One `[[route]]`, to be printed into a configuration.
#[derive(Clone)]
pub(crate) struct Route {
    pub(crate) name: &'static str,
    pub(crate) listen: SocketAddr,
    pub(crate) blue: SocketAddr,
    pub(crate) green: SocketAddr,
    protocol: &'static str,
    labels: [&'static str; 2],
    more_green: Vec<SocketAddr>,
    settings: Vec<String>,
    green_settings: Vec<String>,
    tables: Vec<String>,
}

impl Route {
    /// `broker`, from `erlang` to `go`.
    pub(crate) fn mqtt(blue: SocketAddr, green: SocketAddr) -> Self {
        Self::new("mqtt", "broker", ["erlang", "go"], blue, green)
    }

    /// `bus`, from `python` to `go`.
    pub(crate) fn tcp(blue: SocketAddr, green: SocketAddr) -> Self {
        Self::new("tcp", "bus", ["python", "go"], blue, green)
    }

    /// `shop`, from `python` to `go`, by the header `x-session-id`.
    pub(crate) fn http(blue: SocketAddr, green: SocketAddr) -> Self {
        Self::new("http", "shop", ["python", "go"], blue, green).with("key = [\"header:x-session-id\"]")
    }

    fn new(
        protocol: &'static str,
        name: &'static str,
        labels: [&'static str; 2],
        blue: SocketAddr,
        green: SocketAddr,
    ) -> Self {
        let listen = free_address();
        let (more_green, settings, green_settings, tables) = Default::default();
        Self { name, listen, blue, green, protocol, labels, more_green, settings, green_settings, tables }
    }

    pub(crate) fn named(self, name: &'static str) -> Self {
        Self { name, ..self }
    }

    /// On the same socket as another route.
    pub(crate) fn beside(self, other: &Self) -> Self {
        Self { listen: other.listen, ..self }
    }

    /// Key sources in place of its own: `["cookie:session", "client-ip"]`.
    pub(crate) fn key(mut self, sources: &[&str]) -> Self {
        self.settings.retain(|setting| !setting.starts_with("key ="));
        self.with(format!("key = {sources:?}"))
    }

    /// Another endpoint of green.
    pub(crate) fn and_green(mut self, endpoint: SocketAddr) -> Self {
        self.more_green.push(endpoint);
        self
    }

    /// A setting of the route itself: `keyless = "random"`.
    pub(crate) fn with(mut self, setting: impl Into<String>) -> Self {
        self.settings.push(setting.into());
        self
    }

    /// A setting of green: `http_version = "2"`.
    pub(crate) fn with_green(mut self, setting: impl Into<String>) -> Self {
        self.green_settings.push(setting.into());
        self
    }

    /// A table below the route, from its header on.
    pub(crate) fn table(mut self, text: impl Into<String>) -> Self {
        self.tables.push(text.into());
        self
    }

    /// Where the route starts as long as no split is recorded for it.
    pub(crate) fn green_percentage(self, percent: f64) -> Self {
        self.with(format!("green_percentage = {percent:?}"))
    }

    /// Without health checks: only the test's own connections reach an origin.
    pub(crate) fn unchecked(self) -> Self {
        self.table("[route.health]\nprobe = \"off\"")
    }

    /// Without the guard, for a green that is to go on failing.
    pub(crate) fn unguarded(self) -> Self {
        self.table("[route.guard]\nmode = \"off\"")
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, listen, blue, green, protocol, labels, more_green, settings, green_settings, tables } = self;
        writeln!(f, "[[route]]\nname = {name:?}\nprotocol = {protocol:?}\nlisten = \"{listen}\"")?;
        settings.iter().try_for_each(|setting| writeln!(f, "{setting}"))?;
        writeln!(f, "[route.blue]\nlabel = {:?}\nendpoints = [\"{blue}\"]", labels[0])?;
        let green: Vec<_> = [green].into_iter().chain(more_green).map(SocketAddr::to_string).collect();
        writeln!(f, "[route.green]\nlabel = {:?}\nendpoints = {green:?}", labels[1])?;
        green_settings.iter().try_for_each(|setting| writeln!(f, "{setting}"))?;
        tables.iter().try_for_each(|table| writeln!(f, "{table}"))
    }
}
