//! What a running process cannot take over from a changed file.

use std::net::SocketAddr;

use crate::{Admin, Config, Fault, Protocol, Route};

/// Names every setting whose change from `old` to `new` needs a restart. Empty: `new` can go live as it is.
///
/// Bound sockets and the threads behind them stay as they are while the process runs: `server.workers`, everything
/// in `[admin]`, and the set of listeners with their protocol and whether they end TLS. All else is live. The places
/// are those of the new file; they have no line, because the file has been left behind by now.
pub fn restart_needed(old: &Config, new: &Config) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut needs = |changed: bool, place: &str| {
        if changed {
            faults.push(fault(place.to_owned(), "cannot change while running"));
        }
    };
    needs(old.server.workers != new.server.workers, "server.workers");
    needs(old.admin.listen != new.admin.listen, "admin.listen");
    needs(old.admin.state != new.admin.state, "admin.state");
    // One that is nowhere written goes with the state file.
    let beside = |admin: &Admin| admin.history.path == admin.state.with_extension("history.db");
    let moved = old.admin.history.path != new.admin.history.path;
    needs(moved && !(beside(&old.admin) && beside(&new.admin)), "admin.history");
    needs(old.admin.history.keep != new.admin.history.keep, "admin.history_keep");
    needs(old.admin.history.max != new.admin.history.max, "admin.history_max");
    needs(old.admin.tokens != new.admin.tokens, "admin.tokens");
    needs(old.admin.tls != new.admin.tls, "admin.tls");
    needs(old.admin.hosts != new.admin.hosts, "admin.hosts");

    let mut reported = Vec::new();
    for (index, route) in new.routes.iter().enumerate() {
        let before = old.routes.iter().find(|before| before.name == route.name);
        if let Some(before) = before.filter(|before| before.protocol != route.protocol) {
            let problem = format!("{} was {} and cannot change while running", route.name, before.protocol);
            faults.push(fault(format!("route[{index}].protocol"), problem));
            if before.listen == route.listen {
                reported.extend([Listener::of(before), Listener::of(route)]);
            }
        }
    }
    let (before, after) = (listeners(old), listeners(new));
    for (index, listener) in &after {
        if reported.contains(listener) || before.iter().any(|(_, before)| before == listener) {
            continue;
        }
        reported.push(*listener);
        let (setting, problem) = match before.iter().find(|(_, before)| before.same_socket(listener)) {
            Some((_, before)) if before.protocol == listener.protocol => {
                reported.push(*before);
                let change = if listener.tls { "got tls" } else { "lost its tls" };
                ("tls", format!("the listener {} {change}", listener.listen))
            }
            Some((_, before)) => {
                reported.push(*before);
                let protocol = before.protocol;
                ("protocol", format!("the listener {} was {protocol}", listener.listen))
            }
            None => ("listen", format!("there was no listener {}", listener.listen)),
        };
        faults.push(fault(format!("route[{index}].{setting}"), problem));
    }
    for (_, listener) in &before {
        if !reported.contains(listener) && after.iter().all(|(_, after)| after != listener) {
            faults.push(fault("route".to_owned(), format!("no route listens on {} any more", listener.listen)));
        }
    }
    faults
}

fn fault(place: String, problem: impl Into<String>) -> Fault {
    let cure = "restart crossfade, or put the old value back".to_owned();
    Fault { place, line: None, problem: problem.into(), cure }
}

/// A socket that the process holds open.
#[derive(Clone, Copy, PartialEq)]
struct Listener<'a> {
    listen: SocketAddr,
    protocol: Protocol,
    tls: bool,
    /// Routes of MQTT and TCP on port 0 have a port each, so that the address alone does not tell them apart.
    route: Option<&'a str>,
}

impl<'a> Listener<'a> {
    fn of(route: &'a Route) -> Self {
        let alone = route.listen.port() == 0 && route.protocol != Protocol::Http;
        Self {
            listen: route.listen,
            protocol: route.protocol,
            tls: route.tls.is_some(),
            route: alone.then_some(route.name.as_str()),
        }
    }

    fn same_socket(&self, other: &Self) -> bool {
        self.listen == other.listen && self.route == other.route
    }
}

/// Each once, with the first route that it belongs to.
fn listeners(config: &Config) -> Vec<(usize, Listener<'_>)> {
    let mut listeners: Vec<(usize, Listener<'_>)> = Vec::new();
    for (index, route) in config.routes.iter().enumerate() {
        let listener = Listener::of(route);
        if listeners.iter().all(|(_, known)| *known != listener) {
            listeners.push((index, listener));
        }
    }
    listeners
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const SERVER: &str = "[server]\nworkers = 2\n[admin]\nlisten = \"127.0.0.1:9900\"\n";
    const FILES: &str = "tls = { cert = \"c\", key = \"k\" }";

    fn route(name: &str, protocol: &str, listen: &str, lines: &str) -> String {
        format!(
            "[[route]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\nlisten = \"{listen}\"\n{lines}\n\
             [route.blue]\nendpoints = [\"a:1\"]\n[route.green]\nendpoints = [\"b:1\"]\n"
        )
    }

    #[track_caller]
    fn check(old: &str, new: &str, expected: &[&str]) {
        let parse = |text| Config::parse(text, Path::new("")).unwrap_or_else(|faults| panic!("{faults}\nin\n{text}"));
        let faults: Vec<String> = restart_needed(&parse(old), &parse(new)).iter().map(ToString::to_string).collect();
        let cure = "; restart crossfade, or put the old value back";
        let expected: Vec<String> = expected.iter().map(|problem| format!("{problem}{cure}")).collect();
        assert_eq!(faults, expected, "from\n{old}\nto\n{new}");
    }

    #[test]
    fn the_process_and_the_admin_api_keep_their_settings() {
        let shop = route("shop", "http", "127.0.0.1:80", "");
        let old = format!("{SERVER}{shop}");
        check(&old, &old, &[]);
        let new = |server: &str, admin: &str| format!("[server]\n{server}\n[admin]\n{admin}\n{shop}");
        let same = "workers = 2";
        check(&old, &new("", ""), &["server.workers: cannot change while running"]);
        check(&old, &new("workers = 3", ""), &["server.workers: cannot change while running"]);
        for (key, value) in [
            ("listen", "\"127.0.0.1:9901\""),
            ("history", "\"other.db\""),
            ("history_keep", "\"7d\""),
            ("history_max", "\"8MiB\""),
            ("tokens", "\"tokens\""),
            ("tls", "{ cert = \"c\", key = \"k\" }"),
            ("hosts", "[\"a\"]"),
        ] {
            let problem = format!("admin.{key}: cannot change while running");
            check(&old, &new(same, &format!("{key} = {value}")), &[&problem]);
        }
        check(&old, &new("workers = 2\ndrain = \"1s\"\naccess_log = true\nmax_connections = 1", ""), &[]);
        check(&old, &new("workers = 2\nmax_connections_per_client = 1", ""), &[]);
    }

    #[test]
    fn listeners_stay_as_they_are() {
        let shop = route("shop", "http", "127.0.0.1:80", "");
        let api = route("api", "http", "127.0.0.1:80", "match = { path = \"/api\" }");
        let bus = route("bus", "tcp", "127.0.0.1:90", "");
        let both = format!("{shop}{bus}");
        check(&shop, &both, &["route[1].listen: there was no listener 127.0.0.1:90"]);
        check(&both, &shop, &["route: no route listens on 127.0.0.1:90 any more"]);
        check(
            &shop,
            &route("shop", "http", "127.0.0.1:81", ""),
            &[
                "route[0].listen: there was no listener 127.0.0.1:81",
                "route: no route listens on 127.0.0.1:80 any more",
            ],
        );
        let secure = route("shop", "http", "127.0.0.1:80", FILES);
        check(&shop, &secure, &["route[0].tls: the listener 127.0.0.1:80 got tls"]);
        check(&secure, &shop, &["route[0].tls: the listener 127.0.0.1:80 lost its tls"]);
        check(&secure, &secure.replace("\"c\"", "\"other\""), &[]);
        check(&shop, &format!("{shop}{api}"), &[]);
        check(&format!("{shop}{api}"), &api, &[]);
        check(&shop, &shop.replace("\"shop\"", "\"renamed\""), &[]);
        check(
            &bus,
            &route("broker", "mqtt", "127.0.0.1:90", ""),
            &["route[0].protocol: the listener 127.0.0.1:90 was tcp"],
        );
    }

    #[test]
    fn a_route_keeps_its_protocol() {
        check(
            &route("bus", "tcp", "127.0.0.1:90", ""),
            &route("bus", "mqtt", "127.0.0.1:90", FILES),
            &["route[0].protocol: bus was tcp and cannot change while running"],
        );
        check(
            &route("bus", "tcp", "127.0.0.1:90", ""),
            &route("bus", "mqtt", "127.0.0.1:91", ""),
            &[
                "route[0].protocol: bus was tcp and cannot change while running",
                "route[0].listen: there was no listener 127.0.0.1:91",
                "route: no route listens on 127.0.0.1:90 any more",
            ],
        );
        let both = |first: &str, second: &str| route("a", first, "[::1]:1", "") + &route("b", second, "[::1]:2", "");
        check(
            &both("tcp", "mqtt"),
            &both("mqtt", "tcp"),
            &[
                "route[0].protocol: a was tcp and cannot change while running",
                "route[1].protocol: b was mqtt and cannot change while running",
            ],
        );
    }

    #[test]
    fn routes_on_port_0_have_their_own_listeners_unless_they_are_http() {
        let zero = |name: &str, protocol: &str, lines: &str| route(name, protocol, "127.0.0.1:0", lines);
        let one = zero("a", "mqtt", "");
        check(&one, &(one.clone() + &zero("b", "mqtt", "")), &["route[1].listen: there was no listener 127.0.0.1:0"]);
        let http = zero("a", "http", "");
        check(&http, &(http.clone() + &zero("b", "http", "match = { path = \"/b\" }")), &[]);
    }

    #[test]
    fn everything_else_is_live() {
        let old = route("shop", "http", "127.0.0.1:80", "key = [\"client-ip\"]");
        let new = "key = [\"cookie:a\"]\ngreen_percentage = 5\nfallback = \"none\"\nkeyless = \"random\"\n\
                   match = { host = \"a\" }\nexpose_arm = true\nallow_override = true\n\
                   [route.timeouts]\nidle = \"1s\"\n[route.health]\nprobe = \"off\"\n[route.mirror]\nsample = 1\n\
                   [route.guard]\nmode = \"off\"\n[[route.signal]]\nname = \"a\"\nlimit = \"> 1\"";
        let new = route("shop", "http", "127.0.0.1:80", new).replace("\"b:1\"", "\"c:1\"");
        let new = format!("[[alert]]\nurl = \"http://a/\"\n{new}");
        check(&old, &new.replace("[\"a:1\"]", "[\"d:1\"]\ntls = {}\nhttp_version = \"2\"\nlabel = \"x\""), &[]);
    }
}
