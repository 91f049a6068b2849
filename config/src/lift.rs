//! A document becomes a [`Config`]. Every fault is collected, none stops the walk.

mod alert;
mod key;
mod listeners;
mod plan;
mod route;
mod signal;

use std::{
    fs::File,
    io::Read,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

use toml::de::DeTable;

use crate::{
    Admin, Config, Fault, Faults, History, Server, TlsFiles, address,
    fault::{Flaw, quoted},
    reader::{Document, Table, Value},
};

impl Config {
    /// Reads the file at `path`. Relative paths in it become relative to its folder.
    ///
    /// Errors: the file cannot be read, is not UTF-8, or has any of the faults of [`parse`](Self::parse).
    pub fn load(path: &Path) -> Result<Self, Faults> {
        let unreadable = |problem: String, cure: &str| {
            let place = path.display().to_string();
            Faults(vec![Fault { place, line: None, problem, cure: cure.to_owned() }])
        };
        let mut bytes = Vec::new();
        // One byte too many is enough to know, and a device without end is not read to its end.
        File::open(path).and_then(|file| file.take(LARGEST as u64 + 1).read_to_end(&mut bytes)).map_err(|error| {
            unreadable(format!("cannot be read: {error}"), "name a file that exists and that this user may read")
        })?;
        if bytes.len() > LARGEST {
            return Err(too_large(path.display().to_string()));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
            let column = valid.len() - valid.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1) + 1;
            let mut faults = unreadable(format!("is not utf-8 from column {column} on"), "save it as utf-8");
            faults.0[0].line = Some(line);
            faults
        })?;
        Self::parse(&text, path.parent().unwrap_or_else(|| Path::new("")))
    }

    /// Lifts the text of a configuration file. Pure: no file is opened, no name looked up.
    ///
    /// `base`: the folder that relative paths in the text are relative to. Errors: every fault of the text at once;
    /// when it is not TOML, only those of its syntax.
    pub fn parse(text: &str, base: &Path) -> Result<Self, Faults> {
        if text.len() > LARGEST {
            return Err(too_large("file".to_owned()));
        }
        let document = Document::new(text);
        let (root, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            return Err(syntax_faults(&document, text, &errors));
        }
        let config = document.read(root.get_ref(), |table| lift(&document, table, base));
        let faults = document.into_faults();
        match config {
            Some(config) if faults.is_empty() => Ok(config),
            _ => Err(Faults(faults)),
        }
    }
}

/// A file of a thousand routes is smaller, and the checks between routes compare each with each.
const LARGEST: usize = 1024 * 1024;

const MOST_SYNTAX_FAULTS: usize = 100;

fn too_large(place: String) -> Faults {
    let problem = "is larger than 1 MiB".to_owned();
    Faults(vec![Fault { place, line: None, problem, cure: "name a configuration file of crossfade".to_owned() }])
}

fn syntax_faults(document: &Document, text: &str, errors: &[toml::de::Error]) -> Faults {
    let mut faults: Vec<Fault> = Vec::new();
    // A file of another kind has an error in every line; nobody reads more than the first of them.
    for error in errors.iter().take(MOST_SYNTAX_FAULTS) {
        let position = error.span().map(|span| document.position(span.start));
        let (line, column) = position.unzip();
        // The parser recovers as well as it can; a second error in a line mostly follows from the first.
        if line.is_some() && faults.iter().any(|fault| fault.line == line) {
            continue;
        }
        let what = match error.span().and_then(|span| text.get(span)) {
            Some(key) if error.message() == "duplicate key" => format!("duplicate key {}", quoted(key)),
            _ => error.message().to_owned(),
        };
        let problem = match column {
            Some(column) => format!("{what} at column {column}"),
            None => what,
        };
        let sign = error.span().and_then(|span| text.get(span.start..)).is_some_and(|rest| rest.starts_with('%'));
        let cure = if sign { "write the number without %" } else { "correct the toml here" };
        faults.push(Fault { place: "syntax".to_owned(), line, problem, cure: cure.to_owned() });
    }
    faults.sort_by_key(|fault| fault.line);
    Faults(faults)
}

fn lift(document: &Document, table: &mut Table<'_>, base: &Path) -> Option<Config> {
    let server = table.table("server", "[server]", server).unwrap_or_else(server_defaults);
    let admin = match table.table("admin", "[admin]", |table| admin(table, base)) {
        Some(admin) => admin,
        None => Some(admin_defaults(base)),
    };
    let mut names = Vec::new();
    let alerts = table
        .take("alert")
        .and_then(|value| value.tables("alert", |table| alert::lift(table, &mut names, base)))
        .unwrap_or_default();
    let drafts = table
        .required("route", "add a [[route]] table")
        .and_then(|value| value.tables("route", |table| route::lift(table, base)))
        .unwrap_or_default();
    listeners::check(document, &drafts, admin.as_ref().map(|admin| admin.listen));
    // A route without a name cannot be waited for.
    let plans = drafts.iter().filter_map(|draft| {
        let (route, after) = (draft.name.clone()?, draft.after.clone());
        Some(plan::Waits { route, after })
    });
    plan::check_order(document, &plans.collect::<Vec<_>>());
    let routes: Option<Vec<_>> = drafts.into_iter().map(|draft| draft.route).collect();
    let alerts: Option<Vec<_>> = alerts.into_iter().collect();
    Some(Config { server, admin: admin?, alerts: alerts?, routes: routes? })
}

fn server_defaults() -> Server {
    Server {
        workers: None,
        drain: Duration::from_secs(25),
        access_log: false,
        max_connections: 50_000,
        max_connections_per_client: None,
    }
}

fn server(table: &mut Table<'_>) -> Server {
    let default = server_defaults();
    Server {
        workers: count(table, "workers", 1024),
        drain: table.duration("drain", default.drain),
        access_log: table.boolean("access_log", default.access_log),
        max_connections: table.integer("max_connections", 1..=MOST_CONNECTIONS, default.max_connections),
        max_connections_per_client: count(table, "max_connections_per_client", MOST_CONNECTIONS),
    }
}

const MOST_CONNECTIONS: u64 = 10_000_000;

fn count(table: &mut Table<'_>, key: &'static str, most: u64) -> Option<NonZeroUsize> {
    table.take(key).and_then(|value| value.integer(1..=most)).and_then(NonZeroUsize::new)
}

fn admin_defaults(base: &Path) -> Admin {
    Admin {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9900)),
        state: base.join("crossfade.db"),
        history: history_defaults(&base.join("crossfade.db")),
        tokens: None,
        tls: None,
        hosts: Vec::new(),
    }
}

/// `None` when the address is faulty, so that nothing is compared with one that nobody wrote.
fn admin(table: &mut Table<'_>, base: &Path) -> Option<Admin> {
    let default = admin_defaults(base);
    let listen = match table.take("listen") {
        Some(value) => value.socket(),
        None => Some(default.listen),
    };
    let state = table.take("state").and_then(|value| path(&value, base)).unwrap_or(default.state);
    let history = history(table, base, &state);
    let tokens = table.take("tokens").and_then(|value| path(&value, base));
    let tls = tls_files(table, base);
    let hosts = table.take("hosts").and_then(|value| hosts(&value)).unwrap_or_default();
    let listen = listen?;
    if !listen.ip().to_canonical().is_loopback() {
        let problem = format!("is missing, and {listen} can be reached from other machines");
        if !table.has("tokens") {
            table.fault("tokens", &problem, "write tokens = \"tokens.txt\", or listen on 127.0.0.1");
        }
        if !table.has("tls") {
            table.fault(
                "tls",
                &problem,
                "write tls = { cert = \"admin.pem\", key = \"admin.key\" }, or listen on 127.0.0.1",
            );
        }
    }
    Some(Admin { listen, state, history, tokens, tls, hosts })
}

fn history_defaults(state: &Path) -> History {
    History { path: state.with_extension("history.db"), keep: Duration::from_secs(30 * 24 * 3600), max: 64 * MIB }
}

/// `state`: where the state file is.
fn history(table: &mut Table<'_>, base: &Path, state: &Path) -> History {
    let default = history_defaults(state);
    let path = match table.take("history") {
        Some(value) => {
            let path = path(&value, base);
            if path.as_deref() == Some(state) {
                value.fault("is the state file", "write the path of another file, such as \"crossfade.history.db\"");
            }
            path.unwrap_or(default.path)
        }
        None => default.path,
    };
    let keep = table.take("history_keep").and_then(|value| value.age()).unwrap_or(default.keep);
    // Less would have no room for a minute of a thousand routes.
    let max = table.take("history_max").and_then(|value| value.size(8 * MIB..=16 * 1024 * MIB));
    History { path, keep, max: max.unwrap_or(default.max) }
}

const MIB: u64 = 1024 * 1024;

fn hosts(value: &Value<'_>) -> Option<Vec<String>> {
    // Every one is looked at before the first faulty one makes the list useless.
    let hosts: Vec<_> = value.list()?.iter().map(|host| host.accept(address::host(host.string()?))).collect();
    hosts.into_iter().collect()
}

/// `tls = { cert, key }` of a listener.
fn tls_files(table: &mut Table<'_>, base: &Path) -> Option<TlsFiles> {
    table
        .table("tls", "tls = { cert = \"cert.pem\", key = \"key.pem\" }", |table| {
            let cert = table.required("cert", "write cert = \"cert.pem\", the certificate chain");
            let key = table.required("key", "write key = \"key.pem\", the private key");
            let cert = cert.and_then(|value| path(&value, base));
            let key = key.and_then(|value| path(&value, base));
            Some(TlsFiles { cert: cert?, key: key? })
        })
        .flatten()
}

fn path(value: &Value<'_>, base: &Path) -> Option<PathBuf> {
    let text = value.string()?;
    // No system opens a name with a NUL, and each says so in its own dark words.
    let path = match text {
        "" => Err(Flaw::new("is empty", "write the path of a file")),
        _ if text.contains('\0') => Err(Flaw::new("has a nul character", "write the path of a file")),
        _ => Ok(base.join(text)),
    };
    value.accept(path)
}

#[cfg(test)]
mod tests;
