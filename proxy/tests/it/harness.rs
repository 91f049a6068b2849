//! What the tests share: the program under test, free ports, waiting for conditions, and an admin client.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    mem,
    net::{SocketAddr, TcpListener},
    ops::{Deref, DerefMut},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{self, Instant};

use crate::authority::Authority;

/// How long anything may take that is expected to happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// An address on loopback that nobody listens on, and that nobody else gets: below the ports that Linux hands out by
/// itself, and each once a run.
pub(crate) fn free_address() -> SocketAddr {
    static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], fastrand::u16(10_000..32_768)));
        if TAKEN.lock().unwrap().insert(address.port()) && TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// Waits until `condition` gives a value; panics with `what` when it does not in time.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what} ({caller})");
            time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A process that runs `crossfade run`, ended with the test.
pub(crate) struct Process {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    reading: Option<JoinHandle<()>>,
}

/// A running crossfade with its folder and its admin API.
pub(crate) struct Crossfade {
    process: Process,
    pub(crate) admin: Admin,
    /// Holds the configuration and the state; kept for restarts.
    pub(crate) dir: TempDir,
}

impl Crossfade {
    /// Starts it on `routes`, the `[[route]]` part of a configuration, and waits until it is ready.
    pub(crate) async fn start(routes: &str) -> Self {
        Self::start_with("", routes).await
    }

    /// The same, with further lines: top-level tables such as `[server]`.
    pub(crate) async fn start_with(more: &str, routes: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let admin = free_address();
        fs::write(dir.path().join("crossfade.toml"), configuration(admin, more, routes)).unwrap();
        Self::start_in(dir, admin).await
    }

    /// The same where the system trusts this authority and no other.
    pub(crate) async fn start_trusting(authority: &Authority, more: &str, routes: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let (admin, roots) = (free_address(), dir.path().join("roots.pem"));
        authority.write(&roots);
        fs::write(dir.path().join("crossfade.toml"), configuration(admin, more, routes)).unwrap();
        let mut trusting = program();
        trusting.env("SSL_CERT_FILE", roots).env_remove("SSL_CERT_DIR");
        Self::try_start(trusting, dir, admin).await.unwrap_or_else(|refused| panic!("{refused:?}"))
    }

    /// The same with room for `descriptors` open files and no more.
    pub(crate) async fn start_with_descriptors(descriptors: usize, routes: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let admin = free_address();
        fs::write(dir.path().join("crossfade.toml"), configuration(admin, "", routes)).unwrap();
        // It becomes the program once the limit is set.
        let mut limited = Command::new("prlimit");
        limited.arg(format!("--nofile={descriptors}:{descriptors}")).arg(program().get_program());
        limited.env_remove("CROSSFADE_ADMIN").env_remove("RUST_LOG");
        Self::try_start(limited, dir, admin).await.unwrap_or_else(|refused| panic!("{refused:?}"))
    }

    /// The same on a disk that can be full: what would write more to a file than `prlimit --fsize` lets it is refused that,
    /// where other programs are ended.
    pub(crate) async fn start_on_a_small_disk(routes: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let admin = free_address();
        fs::write(dir.path().join("crossfade.toml"), configuration(admin, "", routes)).unwrap();
        let mut shielded = Command::new("sh");
        shielded.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(program().get_program());
        shielded.env_remove("CROSSFADE_ADMIN").env_remove("RUST_LOG");
        Self::try_start(shielded, dir, admin).await.unwrap_or_else(|refused| panic!("{refused:?}"))
    }

    /// Starts it on a folder that holds a `crossfade.toml` whose admin API is at `admin`.
    pub(crate) async fn start_in(dir: TempDir, admin: SocketAddr) -> Self {
        Self::try_start_in(dir, admin).await.unwrap_or_else(|refused| panic!("{refused:?}"))
    }

    /// The same for a start that may be refused.
    pub(crate) async fn try_start_in(dir: TempDir, admin: SocketAddr) -> Result<Self, Refused> {
        Self::try_start(program(), dir, admin).await
    }

    async fn try_start(program: Command, dir: TempDir, admin: SocketAddr) -> Result<Self, Refused> {
        let process = Process::spawn(program, &dir, &[]);
        let mut crossfade = Self { process, admin: Admin::new(admin), dir };
        match crossfade.ready().await {
            Ok(()) => Ok(crossfade),
            Err(status) => {
                let said = crossfade.whole_log();
                Err(Refused { code: status.code(), said, dir: crossfade.dir })
            }
        }
    }

    /// Starts another process on the same folder, which takes over. The one before is returned, draining.
    pub(crate) async fn take_over(&mut self) -> Process {
        let before = self.try_take_over().await;
        before.unwrap_or_else(|(code, said)| panic!("ended with {code:?}: {said}"))
    }

    /// The same for a takeover that may be refused. Errors: the exit code, and all that was said.
    pub(crate) async fn try_take_over(&mut self) -> Result<Process, (Option<i32>, String)> {
        let mut successor = self.start_successor();
        match successor.says_or_ends("Serving the admin API").await {
            Ok(()) => Ok(mem::replace(&mut self.process, successor)),
            Err(status) => Err((status.code(), successor.whole_log())),
        }
    }

    /// Only starts the other process.
    pub(crate) fn start_successor(&self) -> Process {
        Process::spawn(program(), &self.dir, &["--takeover"])
    }

    /// Only starts one that takes over from something else than a process that was started here.
    pub(crate) fn start_successor_in(dir: TempDir, admin: SocketAddr) -> Self {
        let process = Process::spawn(program(), &dir, &["--takeover"]);
        Self { process, admin: Admin::new(admin), dir }
    }

    /// Ends it as `kill -9` does and starts it again on the same configuration and state.
    pub(crate) async fn kill_and_restart(&mut self) {
        self.kill();
        self.process = Process::spawn(program(), &self.dir, &[]);
        if let Err(status) = self.ready().await {
            panic!("crossfade ended with {status}");
        }
    }

    /// Writes a new `[[route]]` part into the configuration.
    pub(crate) fn rewrite(&self, more: &str, routes: &str) {
        // A file appears whole or not at all: the watcher must not see half of it.
        let (draft, file) = (self.dir.path().join("draft"), self.config_path());
        fs::write(&draft, configuration(self.admin.address, more, routes)).unwrap();
        fs::rename(draft, file).unwrap();
    }

    pub(crate) fn config_path(&self) -> PathBuf {
        self.dir.path().join("crossfade.toml")
    }

    pub(crate) fn state_path(&self) -> PathBuf {
        self.dir.path().join("crossfade.db")
    }

    /// Errors: it ended instead.
    async fn ready(&mut self) -> Result<(), ExitStatus> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.process.child.try_wait().unwrap() {
                return Err(status);
            }
            if self.admin.try_get("/ready").await.is_some_and(|(status, _)| status == StatusCode::OK) {
                return Ok(());
            }
            assert!(Instant::now() < deadline, "crossfade is not ready:\n{}", self.log().join("\n"));
            time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Deref for Crossfade {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Crossfade {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Process {
    fn spawn(mut program: Command, dir: &TempDir, arguments: &[&str]) -> Self {
        let mut child = program
            .args(["run", "--config"])
            .arg(dir.path().join("crossfade.toml"))
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let kept = Arc::clone(&log);
        let read = move || lines.map_while(Result::ok).for_each(|line| kept.lock().unwrap().push(line));
        Self { child, log, reading: Some(thread::spawn(read)) }
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name: `TERM`, `HUP`.
    pub(crate) fn signal(&self, name: &str) {
        // The shell's own `kill`: the program of that name is a package that a small machine lacks.
        let kill = format!("kill -s {name} {}", self.pid());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits for the process to end by itself; its exit code.
    pub(crate) async fn ended(&mut self) -> Option<i32> {
        let child = &mut self.child;
        eventually("crossfade ends", async || child.try_wait().unwrap()).await.code()
    }

    /// The log so far, a line each.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Waits for a line of the log that holds `text`.
    pub(crate) async fn logged(&self, text: &str) -> String {
        eventually(&format!("the log says {text:?}"), async || self.log().into_iter().find(|line| line.contains(text)))
            .await
    }

    /// Waits until the log holds `text`. Errors: it ended instead.
    async fn says_or_ends(&mut self, text: &str) -> Result<(), ExitStatus> {
        eventually(&format!("the log says {text:?}, or it ends"), async || {
            if self.log().iter().any(|line| line.contains(text)) {
                return Some(Ok(()));
            }
            self.child.try_wait().unwrap().map(Err)
        })
        .await
    }

    /// All that a process that has ended said.
    fn whole_log(&mut self) -> String {
        if let Some(reading) = self.reading.take() {
            reading.join().unwrap();
        }
        self.log().join("\n")
    }
}

/// A start that came to nothing: the exit code, and all that was said.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) code: Option<i32>,
    pub(crate) said: String,
    pub(crate) dir: TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("crossfade's log:\n{}", self.log().join("\n"));
        }
    }
}

pub(crate) fn configuration(admin: SocketAddr, more: &str, routes: &str) -> String {
    format!("[admin]\nlisten = \"{admin}\"\nstate = \"crossfade.db\"\n{more}\n{routes}\n")
}

/// The program under test.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crossfade"));
    command.env_remove("CROSSFADE_ADMIN").env_remove("RUST_LOG");
    command
}

/// The admin API as a person with curl uses it.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) address: SocketAddr,
    client: Client<hyper_util::client::legacy::connect::HttpConnector, Full<Bytes>>,
}

impl Admin {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, client: Client::builder(TokioExecutor::new()).build_http() }
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.try_get(path).await.expect("the admin API answers")
    }

    pub(crate) async fn try_get(&self, path: &str) -> Option<(StatusCode, Value)> {
        self.call(Method::GET, path, String::new()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        self.call(Method::POST, path, body.to_string()).await.expect("the admin API answers")
    }

    /// Sets green's share and insists on success.
    #[track_caller]
    pub(crate) fn split(&self, route: &str, green: f64) -> impl Future<Output = Value> {
        let caller = std::panic::Location::caller();
        async move {
            let wanted = serde_json::json!({ "route": route, "green_percentage": green });
            let (status, answer) = self.post("/traffic-split", &wanted).await;
            assert_eq!(status, StatusCode::OK, "{answer} ({caller})");
            answer
        }
    }

    /// Green's share of a route, in per cent.
    pub(crate) async fn green(&self, route: &str) -> f64 {
        let (status, state) = self.get(&format!("/traffic-split?route={route}")).await;
        assert_eq!(status, StatusCode::OK, "{state}");
        state["green"]["percentage"].as_f64().unwrap()
    }

    /// `/status` of one route.
    pub(crate) async fn status(&self, route: &str) -> Value {
        let (status, all) = self.get("/status").await;
        assert_eq!(status, StatusCode::OK, "{all}");
        all["routes"].as_array().unwrap().iter().find(|state| state["route"] == route).cloned().unwrap()
    }

    /// What is answered, as text.
    pub(crate) async fn text(&self, path: &str) -> String {
        let uri = format!("http://{}{path}", self.address).parse().unwrap();
        let response = time::timeout(DEADLINE, self.client.get(uri)).await.unwrap().unwrap();
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().into()).unwrap()
    }

    async fn call(&self, method: Method, path: &str, body: String) -> Option<(StatusCode, Value)> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("content-type", "application/json")
            .body(Full::from(body))
            .unwrap();
        let response = time::timeout(DEADLINE, self.client.request(request)).await.ok()?.ok()?;
        let status = response.status();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }
}

/// Randomness that a failed test can be run again with: `IT_SEED=…`.
pub(crate) fn seeded() -> fastrand::Rng {
    let seed = std::env::var("IT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    eprintln!("IT_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}
