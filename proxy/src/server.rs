//! Puts the parts together, runs them, and ends them in order.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::{IpAddr, SocketAddr, TcpListener as StdListener, ToSocketAddrs},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    thread,
    time::SystemTime,
};

use admin_api::{
    Access, Alerts, Api, Control, ControlError, DataPlane, Guardian, History, Recorder, Refusal, Scraper, Sqlite,
};
use anyhow::{Context, Result, anyhow, bail};
use config::{Config, Faults, Protocol};
use tokio::{
    net::TcpListener,
    runtime::{self, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::{self, Duration, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    alarm,
    connection::Worker,
    drain::{Drain, Drainer, End, Why},
    http::Engine,
    listen::{self, Acceptor, Door, Listening},
    live::{Addresses, check_files, sockets_of},
    mirror::MirrorThread,
    plane::Plane,
    takeover::{Incumbent, Offer},
    tls, worker,
};

/// How often files and names are looked at again.
const FILES_EVERY: Duration = Duration::from_secs(1);
const NAMES_EVERY: Duration = Duration::from_secs(5);
/// How long a look-up of names may hold up the start or a reload.
const NAMES_PATIENCE: Duration = Duration::from_secs(5);
/// Names looked up at a time, also those that nobody waits for any more: each has a thread, and so do the writes to the
/// state file.
static LOOK_UPS: Semaphore = Semaphore::const_new(64);
/// What the state file may take when the process ends: a disk that is merely slow is worth waiting for.
const STATE_PATIENCE: Duration = Duration::from_secs(10);
/// What the last minute of the history may take then: longer than somebody reads it.
const HISTORY_PATIENCE: Duration = Duration::from_secs(3);
/// What is left on threads then, such as a write to a disk that hangs.
const THREADS_PATIENCE: Duration = Duration::from_secs(1);

/// A configuration whose sockets are bound, so that nothing but their traffic can go wrong from here on.
pub(crate) struct Server {
    control_runtime: Arc<Runtime>,
    /// `None`: the configuration is not from a file, and nobody takes over from this process.
    file: Option<ConfigFile>,
    config: Arc<Config>,
    workers: usize,
    /// In the order of the configuration.
    listeners: Vec<Listener>,
    admin: StdListener,
    /// The process whose sockets these are.
    incumbent: Option<Incumbent>,
}

/// The sockets of an address that routes listen on.
struct Listener {
    /// One for each worker; more, when they were another process's that had more.
    sockets: Vec<StdListener>,
    protocol: Protocol,
}

/// What to do about a process that runs on the same state file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Start {
    /// Be refused by it.
    Alone,
    /// Take its sockets over. Without one, start alone.
    TakeOver,
}

impl Server {
    /// Reads a file, which is watched from then on, and binds, or takes sockets over. Errors: every fault of the file; an
    /// address that is taken or not ours; a process that cannot be taken over from.
    pub(crate) fn open(path: PathBuf, start: Start) -> Result<Self> {
        // Looked at before it is read: a change in between must show as one, or it would never be seen.
        let config_seen = fingerprint(&path);
        let config = Config::load(&path)?;
        let control_runtime = control_runtime()?;
        let incumbent = match start {
            Start::Alone => None,
            Start::TakeOver => {
                // Nobody is bothered for a start that comes to nothing.
                let faults = check_files(&config);
                if !faults.is_empty() {
                    return Err(Faults(faults).into());
                }
                let incumbent = control_runtime.block_on(Incumbent::ask(&config.admin.state))?;
                if incumbent.is_none() {
                    tracing::info!("No instance to take over from; starting alone");
                }
                incumbent
            }
        };
        let seen =
            Look { config: config_seen, named: files_named_by(&config).map(|file| fingerprint(&file)).collect() };
        Ok(Self { file: Some(ConfigFile { path, seen }), ..Self::listen(config, control_runtime, incumbent)? })
    }

    /// Binds. Errors: an address that is taken or not ours.
    pub(crate) fn bind(config: Config) -> Result<Self> {
        Self::listen(config, control_runtime()?, None)
    }

    fn listen(config: Config, control_runtime: Arc<Runtime>, mut incumbent: Option<Incumbent>) -> Result<Self> {
        let workers =
            config.server.workers.map_or_else(|| thread::available_parallelism().map_or(1, usize::from), usize::from);
        let mut open = |address| -> Result<Vec<_>> {
            let taken = incumbent.as_mut().map(|incumbent| incumbent.take(address)).unwrap_or_default();
            if taken.is_empty() { Ok(vec![listen::bind(address)?]) } else { Ok(taken) }
        };
        let listeners = sockets_of(&config)
            .into_iter()
            .map(|socket| {
                let sockets = listen::for_workers(open(socket.address)?, workers)
                    .with_context(|| format!("cannot listen on {}", socket.address))?;
                Ok(Listener { sockets, protocol: socket.protocol })
            })
            .collect::<Result<Vec<_>>>()?;
        let admin = open(config.admin.listen)?.swap_remove(0);
        Ok(Self { control_runtime, file: None, config: Arc::new(config), workers, listeners, admin, incumbent })
    }

    /// Where it listens: the routes' sockets in the order of the configuration, and the admin API's.
    pub(crate) fn addresses(&self) -> io::Result<(Vec<SocketAddr>, SocketAddr)> {
        let listeners = self.listeners.iter().map(|listener| listener.sockets[0].local_addr());
        let listeners = listeners.collect::<io::Result<_>>()?;
        Ok((listeners, self.admin.local_addr()?))
    }

    /// Serves until `stop` is cancelled or another process has taken over, then drains. `on_ready`: called when everything
    /// serves. Errors: the state database or a file the configuration names; nothing has been served then.
    pub(crate) fn run(self, stop: CancellationToken, on_ready: impl FnOnce()) -> Result<()> {
        let control_runtime = Arc::clone(&self.control_runtime);
        let served = control_runtime.block_on(self.serve(stop, on_ready));
        end(control_runtime);
        served
    }

    async fn serve(mut self, stop: CancellationToken, on_ready: impl FnOnce()) -> Result<()> {
        let access = Access::open(&self.config.admin)?;
        let admin_tls = match &self.config.admin.tls {
            Some(files) => Some(tls::admin_config(files).map_err(|fault| anyhow!("{fault}"))?),
            None => None,
        };
        let thread = MirrorThread::start().context("cannot start the mirror's thread")?;
        let plane = Plane::new(self.workers, thread);
        let names = names_of(&self.config);
        if !names.is_empty() {
            plane.take_addresses(look_up(&names, &Addresses::new()).await)?;
        }
        // From here to `ready` the incumbent can change nothing: whatever takes long comes before.
        if let Some(incumbent) = &mut self.incumbent {
            incumbent.release().await?;
        }
        let store = Sqlite::open(&self.config.admin.state)?;
        let control =
            Control::open(Arc::clone(&self.config), Arc::new(store), Arc::clone(&plane) as Arc<dyn DataPlane>).await?;
        let (drainer, drain) = Drainer::new();
        let accept = CancellationToken::new();
        let workers = start_workers(&self, &plane, &drain, &accept)?;
        let admin = listener(self.admin.try_clone().context("cannot share a listening socket")?)?;
        if let Some(incumbent) = self.incumbent {
            if stop.is_cancelled() {
                bail!("stopped before it had taken over");
            }
            if let Some(predecessor) = incumbent.ready().await? {
                plane.took_over_from(predecessor);
            }
            plane.takeovers.done.fetch_add(1, Ordering::Relaxed);
        }
        accept.cancel();
        // The workers have handles of their own, and so has the API: a socket closes, and refuses, when the last of them
        // stops accepting and the offer is gone.
        let sockets = self.listeners.into_iter().flat_map(|listener| listener.sockets).chain([self.admin]).collect();
        let offer = self.file.as_ref().and_then(|_| {
            Offer::new(&self.config.admin.state, sockets, Arc::clone(&control), Arc::clone(&plane))
                .inspect_err(|error| tracing::warn!(%error, "No other instance can take over from this one"))
                .ok()
        });
        let alerts = Alerts::new(Arc::clone(&control));
        let history = Arc::new(Recorder::new(Arc::clone(&control), History::new(self.config.admin.history.clone())));
        let api = Api::new(Arc::clone(&control), access, Arc::clone(&alerts), Arc::clone(&history));
        let end = CancellationToken::new();
        let until = end.clone();
        let telling = tokio::spawn(keep_going("alerts", move || Arc::clone(&alerts).run(until.clone())));
        let end_of_api = end.child_token();
        let mut tasks = background(&plane, &control, &history, self.file.as_ref(), &end);
        let serving_api = tokio::spawn(admin_api::serve(admin, admin_tls, api, end_of_api.clone()));
        plane.set_serving(true);
        on_ready();

        let taken = match offer {
            Some(offer) => offer.until_taken(&stop).await,
            None => {
                stop.cancelled().await;
                None
            }
        };
        let patience = control.config().server.drain;
        let until = Instant::now() + patience;
        match taken {
            None => {
                tracing::info!(?patience, "Draining: soon no new connections, open ones may finish");
                plane.set_serving(false);
                drainer.begin(End { until, why: Why::Stopped });
            }
            Some(taken) => {
                let (pid, frozen) = (taken.pid, taken.frozen);
                tracing::info!(
                    pid,
                    ?frozen,
                    ?patience,
                    "Draining: another instance took over, open connections may finish"
                );
                drainer.begin(End { until, why: Why::TakenOver { closing: taken.closing.clone() } });
                end_of_api.cancel();
                tasks.spawn(taken.follow(Arc::clone(&plane)));
            }
        }
        let all_ended = tokio::task::spawn_blocking(move || {
            workers.into_iter().for_each(|worker| {
                // A worker that panicked has ended as well, and said so.
                let _ = worker.join();
            })
        });
        all_ended.await.context("waiting for the workers")?;
        end.cancel();
        // What is on disk is the successor's.
        if !control.is_frozen() {
            match time::timeout(STATE_PATIENCE, control.flush()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "Not everything that changed is on disk"),
                Err(_) => tracing::error!("Not everything that changed is on disk, which does not answer"),
            }
        }
        // A disk that hangs holds nobody up for that.
        let _ = time::timeout(HISTORY_PATIENCE, history.finish()).await;
        // It gives its own requests a few seconds.
        let _ = serving_api.await;
        // So do these to tell of what happened last.
        let _ = telling.await;
        tasks.shutdown().await;
        tracing::info!("Stopped");
        Ok(())
    }
}

fn control_runtime() -> Result<Arc<Runtime>> {
    // Two, so that a large configuration that goes live does not hold up everything else. What reads files has threads of
    // its own.
    let control = runtime::Builder::new_multi_thread().worker_threads(2).thread_name("control").enable_all().build();
    Ok(Arc::new(control.context("cannot start the control plane's threads")?))
}

/// Leaves behind what still hangs on a thread: dropped, a runtime would wait for it as long as it takes.
fn end(runtime: Arc<Runtime>) {
    if let Some(runtime) = Arc::into_inner(runtime) {
        runtime.shutdown_timeout(THREADS_PATIENCE);
    }
}

/// What goes on beside the traffic.
fn background(
    plane: &Arc<Plane>,
    control: &Arc<Control>,
    history: &Arc<Recorder>,
    file: Option<&ConfigFile>,
    end: &CancellationToken,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let both = || (Arc::clone(plane), Arc::clone(control));
    let (gathering, _) = both();
    tasks.spawn(keep_going("telemetry", move || Arc::clone(&gathering).gather()));
    let ((_, judging), until) = (both(), end.clone());
    tasks.spawn(keep_going("guard", move || Guardian::new(Arc::clone(&judging)).run(until.clone())));
    let ((_, scraping), until) = (both(), end.clone());
    tasks.spawn(keep_going("signals", move || Scraper::new(Arc::clone(&scraping)).run(until.clone())));
    let (recording, until) = (Arc::clone(history), end.clone());
    tasks.spawn(keep_going("history", move || Arc::clone(&recording).run(until.clone())));
    let (plane, control) = both();
    tasks.spawn(keep_going("names", move || look_up_again(Arc::clone(&plane), Arc::clone(&control))));
    if let Some(file) = file.cloned() {
        let (plane, control) = both();
        tasks.spawn(keep_going("reload", move || {
            reload_on_change(file.clone(), Arc::clone(&plane), Arc::clone(&control))
        }));
    }
    tasks
}

/// Runs a task again when it panics: without the guard, or without counts, the proxy would go on blind.
async fn keep_going<F>(task: &'static str, start: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut running = JoinSet::new();
    loop {
        // In a set of its own, so that it ends with us.
        running.spawn(start());
        match running.join_next().await {
            Some(Err(error)) if error.is_panic() => tracing::error!(task, %error, "Panicked; starting again"),
            _ => return,
        }
        time::sleep(Duration::from_secs(1)).await;
    }
}

fn listener(listener: StdListener) -> Result<TcpListener> {
    TcpListener::from_std(listener).context("cannot watch a listening socket")
}

/// One thread a worker, each with a runtime of its own that accepts on sockets of its own. `accept`: when to begin.
fn start_workers(
    server: &Server,
    plane: &Arc<Plane>,
    drain: &Drain,
    accept: &CancellationToken,
) -> Result<Vec<thread::JoinHandle<()>>> {
    let (peers, newcomers) = listen::peers(server.workers);
    let mut listening = (0..server.workers).map(|_| Vec::new()).collect::<Vec<_>>();
    let mut number = 0;
    for (listener, Listener { sockets, protocol }) in server.listeners.iter().enumerate() {
        let door = Door { listener, protocol: *protocol };
        for (worker, nth) in listen::shares(sockets.len(), server.workers) {
            let socket = sockets[nth].try_clone().context("cannot share a listening socket")?;
            listening[worker].push(Listening { socket, number: number + nth, door });
        }
        number += sockets.len();
    }
    (1..)
        .zip(listening.into_iter().zip(newcomers))
        .map(|(id, (listening, newcomers))| {
            let (plane, peers, mut drain, accept) = (Arc::clone(plane), peers.clone(), drain.clone(), accept.clone());
            let runtime =
                runtime::Builder::new_current_thread().enable_all().build().context("cannot start a worker")?;
            let work = async move {
                let tasks = TaskTracker::new();
                let engine = Engine::new(Arc::clone(&plane), drain.clone());
                let worker = Worker { plane, tasks: tasks.clone() };
                let acceptor = Arc::new(Acceptor { worker, engine, drain: drain.clone() });
                tokio::spawn(alarm::tick());
                let mut accepting = JoinSet::new();
                accept.cancelled().await;
                for socket in listening {
                    accepting.spawn(listen::accept(socket, Arc::clone(&acceptor), peers.clone()));
                }
                // The ways to the workers end with the last of these loops.
                drop(peers);
                accepting.spawn(listen::welcome(newcomers, acceptor));
                let end = drain.begins().await;
                alarm::wake_all();
                let finish = async {
                    while accepting.join_next().await.is_some() {}
                    tasks.close();
                    tasks.wait().await;
                };
                if time::timeout_at(end.until, finish).await.is_err() {
                    tracing::warn!(open = tasks.len(), "Closing connections that did not finish in time");
                }
            };
            thread::Builder::new()
                .name(format!("worker-{id}"))
                .spawn(move || {
                    worker::enter(id);
                    runtime.block_on(work);
                })
                .context("cannot start a worker")
        })
        .collect()
}

/// The names among a configuration's endpoints.
fn names_of(config: &Config) -> BTreeSet<String> {
    let endpoints = config.routes.iter().flat_map(|route| route.blue.endpoints.iter().chain(&route.green.endpoints));
    endpoints
        .filter(|endpoint| endpoint.host.parse::<IpAddr>().is_err())
        .map(|endpoint| endpoint.host.clone())
        .collect()
}

/// A name that cannot be looked up keeps the addresses it had.
async fn look_up(names: &BTreeSet<String>, known: &Addresses) -> Addresses {
    let mut looking = JoinSet::new();
    for name in names.iter().cloned() {
        looking.spawn(async move {
            let host = name.clone();
            let look = async move {
                let place = LOOK_UPS.acquire().await;
                blocking(move || {
                    let found = (host.as_str(), 0).to_socket_addrs();
                    drop(place);
                    found
                })
                .await
            };
            let found = match time::timeout(NAMES_PATIENCE, look).await {
                Ok(Ok(found)) => Ok(found.map(|address| address.ip()).collect::<BTreeSet<_>>()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {NAMES_PATIENCE:?}")),
            };
            (name, found)
        });
    }
    let mut addresses = HashMap::new();
    while let Some(Ok((name, found))) = looking.join_next().await {
        match found {
            Ok(found) => {
                addresses.insert(name, found.into_iter().collect());
            }
            Err(problem) => {
                let kept = known.get(&name).cloned().unwrap_or_default();
                tracing::warn!(name, problem, kept = kept.len(), "Cannot look up an endpoint's name");
                addresses.insert(name, kept);
            }
        }
    }
    addresses
}

async fn look_up_again(plane: Arc<Plane>, control: Arc<Control>) {
    loop {
        time::sleep(NAMES_EVERY).await;
        let names = names_of(&control.config());
        if names.is_empty() {
            continue;
        }
        match plane.take_addresses(look_up(&names, &plane.addresses()).await) {
            Ok(true) => tracing::info!("Addresses of endpoints changed"),
            Ok(false) => {}
            Err(fault) => tracing::error!(%fault, "New addresses are not live"),
        }
    }
}

/// Watches the configuration and the files it names; SIGHUP reads all of them at once.
async fn reload_on_change(file: ConfigFile, plane: Arc<Plane>, control: Arc<Control>) {
    let ConfigFile { path, mut seen } = file;
    let hangup = Arc::new(Notify::new());
    if let Ok(mut signals) = signal(SignalKind::hangup()) {
        let hangup = Arc::clone(&hangup);
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                hangup.notify_one()
            }
        });
    }
    let mut asked = false;
    loop {
        asked |= tokio::select! {
            () = hangup.notified() => true,
            () = time::sleep(FILES_EVERY) => false,
        };
        // What changes while another instance takes over is read by that one, or afterwards.
        if control.is_frozen() {
            continue;
        }
        let mut now = look_at(path.clone(), control.config()).await;
        if asked || now.config != seen.config {
            if reload(&path, &plane, &control).await == Reload::PutOff {
                continue;
            }
            // Which files are named may be another question now.
            now.named = look_at(path.clone(), control.config()).await.named;
        }
        if asked || now.named != seen.named {
            let plane = Arc::clone(&plane);
            match blocking(move || plane.reread_files()).await {
                Ok(()) => tracing::info!("Certificates reloaded"),
                Err(fault) => tracing::error!(%fault, "Certificates are not reloaded, the old ones stay"),
            }
        }
        (seen, asked) = (now, false);
    }
}

/// The file that is watched, and how it looked when it was read.
#[derive(Clone)]
struct ConfigFile {
    path: PathBuf,
    seen: Look,
}

/// What the configuration file and those it names looked like at a moment.
#[derive(Clone)]
struct Look {
    config: Option<Fingerprint>,
    named: Vec<Option<Fingerprint>>,
}

async fn look_at(path: PathBuf, config: Arc<Config>) -> Look {
    blocking(move || Look {
        config: fingerprint(&path),
        named: files_named_by(&config).map(|file| fingerprint(&file)).collect(),
    })
    .await
}

/// Files may be on a disk that hangs, names with a server that does, and the guard must go on meanwhile.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("reading and looking up do not panic, and nobody aborts them")
}

/// What became of a changed file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Reload {
    /// It is live, or refused.
    Done,
    /// Another instance takes over. Should that fail, it is read again.
    PutOff,
}

/// Makes a changed file live, or says why not and changes nothing.
async fn reload(path: &Path, plane: &Arc<Plane>, control: &Arc<Control>) -> Reload {
    let file = path.to_owned();
    let config = match blocking(move || Config::load(&file)).await {
        Ok(config) => config,
        Err(faults) => return refuse(control, &faults.to_string()),
    };
    let old = control.config();
    let faults = config::restart_needed(&old, &config);
    if !faults.is_empty() {
        return refuse(control, &Faults(faults).to_string());
    }
    // New names must have addresses before traffic is sent to them; the old ones keep theirs.
    let mut names = names_of(&config);
    names.append(&mut names_of(&old));
    if !names.is_empty() {
        let found = look_up(&names, &plane.addresses()).await;
        if let Err(fault) = plane.take_addresses(found) {
            return refuse(control, &fault.to_string());
        }
    }
    let config = Arc::new(config);
    let (reader, named) = (Arc::clone(plane), Arc::clone(&config));
    if let Err(fault) = blocking(move || reader.read_files(&named)).await {
        return refuse(control, &fault.to_string());
    }
    match control.reload(config).await {
        Ok(()) => tracing::info!("Configuration reloaded"),
        Err(ControlError::Refused(Refusal::Frozen)) => return Reload::PutOff,
        // The control has told whoever listens to its events.
        Err(fault) => tracing::error!(%fault, "Configuration is not reloaded, the old one stays"),
    }
    Reload::Done
}

fn refuse(control: &Control, faults: &str) -> Reload {
    tracing::error!(faults, "Configuration is not reloaded, the old one stays");
    control.reload_refused(faults);
    Reload::Done
}

fn files_named_by(config: &Config) -> impl Iterator<Item = PathBuf> {
    let mut files = BTreeSet::new();
    for route in &config.routes {
        files.extend(route.tls.iter().flat_map(|tls| [tls.cert.clone(), tls.key.clone()]));
        files.extend([&route.blue, &route.green].into_iter().filter_map(|arm| arm.tls.as_ref()?.ca.clone()));
    }
    files.into_iter()
}

/// When it was changed, its length and its inode.
type Fingerprint = (SystemTime, u64, u64);

/// Changes when a file does. Follows links, so that a swapped directory (as Kubernetes mounts secrets) shows.
fn fingerprint(path: &Path) -> Option<Fingerprint> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

/// Cancels `stop` at the first SIGTERM or SIGINT and leaves the process at the second.
pub(crate) fn stop_on_signals(stop: &CancellationToken) -> Result<()> {
    let stop = stop.clone();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let Ok(runtime) = runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            let (Ok(mut terminate), Ok(mut interrupt)) =
                (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
            else {
                return tracing::error!("Cannot listen for signals");
            };
            either(&mut terminate, &mut interrupt).await;
            stop.cancel();
            either(&mut terminate, &mut interrupt).await;
            tracing::warn!("Second signal: leaving at once");
            std::process::exit(1);
        });
    })?;
    Ok(())
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_thread_that_hangs_does_not_keep_the_process() {
        let runtime = control_runtime().unwrap();
        // As a write to a disk that does not answer.
        let (hold, held) = mpsc::channel::<()>();
        let (begun, begins) = mpsc::channel();
        runtime.spawn_blocking(move || {
            begun.send(()).unwrap();
            held.recv()
        });
        begins.recv().unwrap();
        let (ended, ends) = mpsc::channel();
        thread::spawn(move || {
            end(runtime);
            ended.send(()).unwrap();
        });
        assert_eq!(ends.recv_timeout(Duration::from_secs(20)), Ok(()));
        drop(hold);
    }
}
