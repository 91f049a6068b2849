//! Who may come in: the host a request was meant for, where a browser sent it from, and whose token it carries.

mod tokens;

use std::{
    fs,
    future::pending,
    io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::extract::Request;
use http::{HeaderMap, StatusCode, header, uri::Authority};
use parking_lot::Mutex;
use ring::digest;
pub(crate) use tokens::Tokens;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};
use tracing::{error, info, warn};

use super::Problem;
use crate::Actor;

/// What a token allows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Role {
    /// Look at everything.
    Read,
    /// Look at and change everything.
    Operate,
}

/// The rules of entry of one admin API.
#[derive(Debug)]
pub struct Access {
    /// Lower case, without port.
    hosts: Vec<String>,
    tokens: Option<Arc<TokenFile>>,
}

/// Why the admin API may not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.fault())]
pub enum AccessError {
    /// Other machines reach the address, and tokens or TLS are missing.
    Unprotected(SocketAddr),
    Unreadable {
        path: PathBuf,
        source: io::Error,
    },
    /// Others can read the tokens.
    Exposed {
        path: PathBuf,
        mode: u32,
    },
    /// Each with its line and cure.
    Faulty {
        faults: Vec<String>,
    },
}

impl AccessError {
    /// The setting to look at, what is wrong, and the cure.
    pub fn fault(&self) -> config::Fault {
        let (place, problem, cure) = match self {
            Self::Unprotected(address) => (
                "admin.listen",
                format!("{address} can be reached from other machines"),
                "set admin.tokens and admin.tls, or listen on 127.0.0.1",
            ),
            Self::Unreadable { path, .. } => {
                ("admin.tokens", format!("{} cannot be read", path.display()), "make it a file that this user can read")
            }
            Self::Exposed { path, mode } => (
                "admin.tokens",
                format!("{} can be read by others (mode {mode:03o})", path.display()),
                "run chmod 600 on it",
            ),
            Self::Faulty { faults } => ("admin.tokens", faults.join("; "), "write TOKEN ROLE [NAME] on each line"),
        };
        config::Fault { place: place.to_owned(), line: None, problem, cure: cure.to_owned() }
    }
}

/// One connection's two ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) tls: bool,
}

/// Who sent a request.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) actor: Actor,
    pub(super) role: Role,
    /// The fingerprint of its token, where one is needed.
    token: Option<digest::Digest>,
}

impl Caller {
    pub(super) fn nobody(arrival: &Arrival) -> Self {
        Self {
            actor: Actor { name: "nobody".to_owned(), from: arrival.peer.to_string() },
            role: Role::Read,
            token: None,
        }
    }
}

impl Access {
    /// Reads the tokens, if there are any. Blocks.
    ///
    /// Errors: an address that other machines reach without tokens and TLS; a tokens file with faults, or that others
    /// can read.
    pub fn open(admin: &config::Admin) -> Result<Self, AccessError> {
        if !admin.listen.ip().to_canonical().is_loopback() && (admin.tokens.is_none() || admin.tls.is_none()) {
            return Err(AccessError::Unprotected(admin.listen));
        }
        let tokens = admin.tokens.as_deref().map(TokenFile::open).transpose()?.map(Arc::new);
        let hosts = admin.hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        Ok(Self { hosts, tokens })
    }

    /// A page of another site that a browser has open must not reach us, be it by a name of its own that points here
    /// (DNS rebinding, seen by the host) or by a plain request across sites (seen by the origin).
    pub(super) fn check_host(&self, request: &Request, arrival: &Arrival) -> Result<(), Box<Problem>> {
        let host = host_of(request)?;
        if !self.knows(&host, arrival.local.ip()) {
            return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, "host", format!("{host} is not served here"))
                .field("host")
                .cure("add it to admin.hosts, or use localhost or the address it listens on"));
        }
        let mut origins = request.headers().get_all(header::ORIGIN).iter();
        let same =
            |origin: &header::HeaderValue| origin.to_str().is_ok_and(|origin| same_origin(origin, &host, arrival.tls));
        if !origins.all(same) {
            return Err(Problem::new(StatusCode::FORBIDDEN, "origin", "requests of other sites are not taken")
                .field("origin")
                .cure("leave Origin out, or use the address in Host"));
        }
        Ok(())
    }

    fn knows(&self, host: &Authority, local: IpAddr) -> bool {
        let name = host.host().to_ascii_lowercase();
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        match address {
            // No page can have a name that is an address of ours.
            Ok(address) => address.to_canonical().is_loopback() || address.to_canonical() == local.to_canonical(),
            Err(_) => name == "localhost" || self.hosts.contains(&name),
        }
    }

    /// Why the tokens file as it was last seen was not taken over.
    pub(super) fn tokens_problem(&self) -> Option<String> {
        self.tokens.as_ref()?.read.lock().problem.clone()
    }

    /// Without tokens everybody who gets here may do everything: only this machine gets here.
    pub(super) async fn identify(&self, headers: &HeaderMap, arrival: &Arrival) -> Result<Caller, Box<Problem>> {
        let from = arrival.peer.to_string();
        let Some(file) = &self.tokens else {
            return Ok(Caller { actor: Actor { name: "local".to_owned(), from }, role: Role::Operate, token: None });
        };
        let tokens = file.current().await;
        let Some(token) = bearer(headers) else {
            return Err(
                unauthorized("a token is needed").header(header::WWW_AUTHENTICATE, "Bearer realm=\"crossfade\"")
            );
        };
        let token = fingerprint(token);
        let Some((name, role)) = tokens.find(&token) else {
            return Err(unauthorized("this token is not known")
                .header(header::WWW_AUTHENTICATE, "Bearer realm=\"crossfade\", error=\"invalid_token\""));
        };
        Ok(Caller { actor: Actor { name: name.to_owned(), from }, role, token: Some(token) })
    }

    /// Ends when the token that a caller came in with is one no more.
    pub(super) fn revoked(&self, caller: &Caller) -> impl Future<Output = ()> + use<> {
        let needed = self.tokens.clone().zip(caller.token);
        async move {
            let Some((file, token)) = needed else { return pending().await };
            while file.current().await.find(&token).is_some() {
                sleep(CHECK_EVERY).await;
            }
        }
    }
}

fn unauthorized(detail: &str) -> Box<Problem> {
    Problem::new(StatusCode::UNAUTHORIZED, "token", detail)
        .field("authorization")
        .cure("send Authorization: Bearer with a token of the file in admin.tokens")
}

/// The one host a request names.
fn host_of(request: &Request) -> Result<Authority, Box<Problem>> {
    let bad = |detail: &str| {
        Problem::new(StatusCode::BAD_REQUEST, "host", detail).field("host").cure("send exactly one Host, as HTTP says")
    };
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    if more.is_some() {
        return Err(bad("there are several"));
    }
    let host = host.ok_or_else(|| bad("there is none"))?;
    let host: Authority =
        host.to_str().ok().and_then(|host| host.parse().ok()).ok_or_else(|| bad("it is not a host"))?;
    if host.as_str().contains('@') {
        return Err(bad("it names a user"));
    }
    if !has_sound_port(&host) {
        return Err(bad("its port is not a number"));
    }
    // RFC 9112, 3.2.2: of an absolute target and Host the target counts; we want no two opinions.
    if request.uri().authority().is_some_and(|target| !target.as_str().eq_ignore_ascii_case(host.as_str())) {
        return Err(bad("it is not that of the target"));
    }
    Ok(host)
}

/// No port, an empty one (RFC 3986, 3.2.3), or a number. `authority`: without a user.
fn has_sound_port(authority: &Authority) -> bool {
    let rest = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    match rest.strip_prefix(':') {
        Some(port) => port.is_empty() || (port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()),
        None => rest.is_empty(),
    }
}

/// `origin`: `scheme://host[:port]`; `null` and everything else is foreign.
fn same_origin(origin: &str, host: &Authority, tls: bool) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let Ok(authority) = authority.parse::<Authority>() else { return false };
    // No browser sends a user in it.
    if authority.as_str().contains('@') || !has_sound_port(&authority) {
        return false;
    }
    let default_port = match scheme {
        "https" => 443,
        // A page without TLS may have been written by whoever sits between.
        "http" if !tls => 80,
        _ => return false,
    };
    // Behind something that ends TLS for us, Host has the port of the outside, or none.
    let host_port = host.port_u16().unwrap_or(default_port);
    authority.host().eq_ignore_ascii_case(host.host()) && authority.port_u16().unwrap_or(default_port) == host_port
}

/// The token of exactly one `Authorization: Bearer`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, more) = (values.next()?, values.next());
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    (more.is_none() && scheme.eq_ignore_ascii_case("bearer")).then(|| token.trim())
}

/// The tokens in force, and what their file looked like when they were read.
#[derive(Debug)]
struct TokenFile {
    path: PathBuf,
    read: Mutex<Read>,
    /// One place: whoever looks at the file has it until the disk has answered.
    looking: Arc<Semaphore>,
}

#[derive(Debug)]
struct Read {
    tokens: Arc<Tokens>,
    stamp: Option<Stamp>,
    checked: Instant,
    /// Why `tokens` are not those of the file.
    problem: Option<String>,
}

/// Changes whenever the file does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    modified: Option<SystemTime>,
    changed: (i64, i64),
    inode: u64,
    length: u64,
}

const CHECK_EVERY: Duration = Duration::from_secs(1);
/// How long a request waits for a look at the file: a rollback must not wait for a disk that hangs.
const LOOK_PATIENCE: Duration = Duration::from_millis(200);
const TOKENS_LENGTH: u64 = 1024 * 1024;

impl TokenFile {
    fn open(path: &Path) -> Result<Self, AccessError> {
        let stamp = stamp(path);
        let tokens = Arc::new(read_tokens(path).map_err(|refused| refused.error)?);
        let read = Read { tokens, stamp, checked: Instant::now(), problem: None };
        Ok(Self { path: path.to_owned(), read: Mutex::new(read), looking: Arc::new(Semaphore::new(1)) })
    }

    /// The tokens, read again when their file has changed; those in memory while it does not answer.
    async fn current(self: &Arc<Self>) -> Arc<Tokens> {
        let now = Instant::now();
        {
            let mut read = self.read.lock();
            if now < read.checked + CHECK_EVERY {
                return read.tokens.clone();
            }
            read.checked = now;
        }
        if let Ok(place) = self.looking.clone().try_acquire_owned() {
            let file = self.clone();
            let look = tokio::task::spawn_blocking(move || {
                file.look();
                drop(place);
            });
            if timeout(LOOK_PATIENCE, look).await.is_err() {
                warn!(path = %self.path.display(), "The tokens file does not answer; the tokens before still count");
            }
        }
        self.read.lock().tokens.clone()
    }

    /// Reads the tokens again if their file has changed. Blocks.
    ///
    /// A file with faults adds no token and raises no role, but takes away what it does not have any more: whoever
    /// revokes a token must not have to get the rest right first. One that cannot be read changes nothing.
    fn look(&self) {
        let (before, refused) = {
            let read = self.read.lock();
            (read.stamp, read.problem.is_some())
        };
        // Before the content: a change in between is seen at the next look.
        let stamp = stamp(&self.path);
        // What could not be read may be readable now, and its stamp the same.
        if stamp == before && !refused {
            return;
        }
        let again = read_tokens(&self.path);
        let mut read = self.read.lock();
        read.stamp = stamp;
        match again {
            Ok(again) => {
                info!(path = %self.path.display(), tokens = again.len(), "Tokens read again");
                read.tokens = Arc::new(again);
                read.problem = None;
            }
            Err(Refused { error, text }) => {
                if let Some(text) = text {
                    read.tokens = Arc::new(read.tokens.restricted_to(&text));
                }
                let (problem, left) = (error.to_string(), read.tokens.len());
                if read.problem.as_ref() != Some(&problem) {
                    error!(%error, left, "Tokens not taken over; those before still count, but for what is gone");
                }
                read.problem = Some(problem);
            }
        }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = fs::metadata(path).ok()?;
    Some(Stamp {
        modified: file.modified().ok(),
        changed: (file.ctime(), file.ctime_nsec()),
        inode: file.ino(),
        length: file.len(),
    })
}

/// Why a tokens file was not taken over, and what is in it, if it could be read.
struct Refused {
    error: AccessError,
    text: Option<String>,
}

fn read_tokens(path: &Path) -> Result<Tokens, Refused> {
    let unreadable = |source| Refused { error: AccessError::Unreadable { path: path.to_owned(), source }, text: None };
    let file = fs::metadata(path).map_err(unreadable)?;
    if !file.is_file() || file.len() > TOKENS_LENGTH {
        let problem = io::Error::new(io::ErrorKind::InvalidInput, "not a file of at most 1 MiB");
        return Err(unreadable(problem));
    }
    let bytes = fs::read(path).map_err(unreadable)?;
    // A line that is no text has a token that nobody can send.
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let mode = file.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Refused { error: AccessError::Exposed { path: path.to_owned(), mode }, text: Some(text) });
    }
    Tokens::parse(&text).map_err(|faults| Refused {
        error: AccessError::Faulty {
            faults: faults.into_iter().map(|fault| format!("{}, {fault}", path.display())).collect(),
        },
        text: Some(text.clone()),
    })
}

/// Tokens are kept and compared as these only.
fn fingerprint(token: &str) -> digest::Digest {
    digest::digest(&digest::SHA256, token.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, sync::mpsc};

    use super::*;

    #[test]
    fn a_disk_that_hangs_holds_nobody_up_and_is_asked_once() {
        const OLD: &str = "old-0123456789abcdef";
        const NEW: &str = "new-0123456789abcdef";
        let path = std::env::temp_dir().join(format!("crossfade-tokens-{}", std::process::id()));
        let write = |token: &str| {
            fs::write(&path, format!("{token} operate\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        };
        write(OLD);
        let file = Arc::new(TokenFile::open(&path).unwrap());
        write(NEW);
        let due = || file.read.lock().checked = Instant::now() - 2 * CHECK_EVERY;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
        runtime.unwrap().block_on(async {
            // What hangs has the only thread there is for files.
            let (answer, hangs) = mpsc::channel::<()>();
            let hanging = tokio::task::spawn_blocking(move || hangs.recv());
            for _ in 0..3 {
                due();
                let tokens = timeout(Duration::from_secs(10), file.current()).await.expect("an answer");
                assert!(tokens.find(&fingerprint(OLD)).is_some(), "the tokens in memory");
            }
            assert_eq!(Arc::strong_count(&file), 2, "one look is under way");
            drop(answer);
            assert!(hanging.await.unwrap().is_err());
            let _looked = file.looking.acquire().await.unwrap();
            assert!(file.read.lock().tokens.find(&fingerprint(NEW)).is_some(), "what the disk said in the end");
        });
        fs::remove_file(&path).unwrap();
    }

    fn access(hosts: &[&str]) -> Access {
        Access { hosts: hosts.iter().map(|host| (*host).to_owned()).collect(), tokens: None }
    }

    #[test]
    fn only_our_own_names_are_served() {
        let access = access(&["admin.example"]);
        let local: IpAddr = "10.1.2.3".parse().unwrap();
        for (host, expected) in [
            ("localhost", true),
            ("LOCALHOST:9900", true),
            ("127.0.0.1:9900", true),
            ("127.0.0.1", true),
            ("[::1]:9900", true),
            ("[::ffff:127.0.0.1]:9900", true),
            ("10.1.2.3:80", true),
            ("10.1.2.4", false),
            ("admin.example", true),
            ("Admin.Example:8443", true),
            ("evil.example", false),
            ("localhost.evil.example", false),
            ("admin.example.evil.example:9900", false),
        ] {
            assert_eq!(access.knows(&host.parse().unwrap(), local), expected, "{host}");
        }
    }

    #[test]
    fn an_origin_must_be_the_host_that_was_asked() {
        for (origin, host, tls, expected) in [
            ("http://localhost:9900", "localhost:9900", false, true),
            ("http://LOCALHOST:9900", "localhost:9900", false, true),
            ("http://localhost", "localhost:80", false, true),
            ("https://admin.example", "admin.example", true, true),
            ("https://admin.example", "admin.example", false, true),
            ("http://admin.example", "admin.example", true, false),
            ("http://localhost:9901", "localhost:9900", false, false),
            ("http://user@localhost:9900", "localhost:9900", false, false),
            ("http://localhost:x", "localhost:80", false, false),
            ("http://evil.example", "localhost:9900", false, false),
            ("null", "localhost:9900", false, false),
            ("", "localhost:9900", false, false),
            ("file://", "localhost:9900", false, false),
        ] {
            assert_eq!(same_origin(origin, &host.parse().unwrap(), tls), expected, "{origin} at {host}");
        }
    }
}
