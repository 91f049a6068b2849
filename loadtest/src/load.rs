//! Load against any server: requests that leave when they are due, and an account of each.
//!
//! A run has workers, threads with a runtime each. A worker has slots: connections, or streams of one. A slot takes the
//! next request ([`pace`]), brings it to its end ([`http1`], [`http2`], [`websocket`], [`tcp`]) and records what became of
//! it ([`record`]). MQTT messages overlap on their connection, so [`mqtt`] has slots of its own kind. Once a second
//! the workers' counts are gathered ([`gather`]) to what the progress shows and, at the end, to the report.

use std::{cell::RefCell, convert::Infallible, io, path::PathBuf, rc::Rc, sync::Arc, thread, time::Duration};

use tokio::{
    runtime,
    sync::{
        mpsc::{self, UnboundedSender},
        watch,
    },
    task::{self, LocalSet},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

mod gather;
mod http;
mod http1;
mod http2;
mod mqtt;
mod pace;
mod record;
mod stream;
mod tcp;
mod websocket;

use self::{
    gather::Gatherer,
    pace::{Due, Pacer},
    record::{Answer, Arm, Labels, Placements, Recorder, Shard},
};
pub use self::{
    gather::Progress,
    http::{HttpLoad, HttpVersion, KeyPlace},
    mqtt::{Broker, Login, MqttLoad, MqttVersion, Qos},
    pace::Pace,
    stream::{Endpoint, Trust, tls},
    tcp::TcpLoad,
};
use crate::{
    keys::Keys,
    ledger::{Id, Ledger, Owner, Page, WriteError},
    report::{Report, Run, StageAsked},
};

/// Rest after a connection could not be made in a closed loop, which would spin otherwise.
const REST: Duration = Duration::from_millis(10);

/// A run.
#[derive(Clone, Debug)]
pub struct Load {
    /// What requests are.
    pub protocol: Protocol,
    /// Where they go.
    pub endpoint: Endpoint,
    /// The target as given, for the report.
    pub target: String,
    /// When they leave.
    pub pace: Pace,
    /// Connections; for MQTT those of publishers and subscribers.
    pub connections: usize,
    /// Threads; no more than connections.
    pub workers: usize,
    /// Who sends them.
    pub keys: Arc<Keys>,
    /// Time an answer has, connecting included.
    pub timeout: Duration,
    /// Where the ledger goes, if one is kept.
    pub ledger: Option<PathBuf>,
}

/// What a request is.
#[derive(Clone, Debug)]
pub enum Protocol {
    /// A request and its response.
    Http(HttpLoad),
    /// A text message and its echo.
    WebSocket(HttpLoad),
    /// A line and its echo.
    Tcp(TcpLoad),
    /// A message published, acknowledged, and delivered.
    Mqtt(Arc<MqttLoad>),
}

impl Protocol {
    fn name(&self) -> &'static str {
        match self {
            Self::Http(http) => match http.version {
                HttpVersion::Http1 => "http/1.1",
                HttpVersion::Http2 => "http/2",
                HttpVersion::Grpc => "grpc",
            },
            Self::WebSocket(_) => "websocket",
            Self::Tcp(_) => "tcp",
            Self::Mqtt(mqtt) => match mqtt.version {
                MqttVersion::V311 => "mqtt/3.1.1",
                MqttVersion::V5 => "mqtt/5",
            },
        }
    }

    /// The series that seconds show.
    fn main_series(&self) -> &'static str {
        match self {
            // There is no acknowledgement.
            Self::Mqtt(mqtt) if mqtt.qos == Qos::AtMostOnce => "delivery",
            Self::Mqtt(_) => "ack",
            _ => "latency",
        }
    }
}

/// Why a request was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nobody listens there.
    Refused,
    /// There is no way there, or no socket left to go with.
    Unreachable,
    /// TLS could not be set up.
    Tls,
    /// The server speaks, but will not have us: a WebSocket handshake or a CONNECT it declined.
    Declined,
    /// The connection was reset.
    Reset,
    /// The connection was closed before the whole answer was in.
    Closed,
    /// What came is no answer.
    Malformed,
    /// The answer belongs to another request.
    Crossed,
    /// No whole answer in time.
    Timeout,
}

impl Failure {
    /// As reports and ledgers call it.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Tls => "tls",
            Self::Declined => "declined",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Malformed => "malformed",
            Self::Crossed => "crossed",
            Self::Timeout => "timeout",
        }
    }

    /// While connecting.
    fn connecting(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset => Self::Reset,
            _ => Self::Unreachable,
        }
    }

    /// While a handshake was under way.
    fn handshake(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData => Self::Tls,
            _ => Self::moving(error),
        }
    }

    /// While bytes moved.
    fn moving(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            io::ErrorKind::InvalidData => Self::Malformed,
            _ => Self::Reset,
        }
    }
}

/// One request at a time: a connection, or a stream of one, that connects by itself when it must.
trait Slot {
    /// The key of the open connection, where keys belong to connections.
    fn key(&self) -> Option<u64> {
        None
    }

    /// Sends a request and reads its whole answer. After an error, or when dropped before the end, the next call starts
    /// on a new connection.
    async fn exchange(&mut self, id: Id, key: u64, recorder: &Shared) -> Result<Answer, Failure>;
}

/// A worker's recorder, shared by its slots: on one thread, and never borrowed across an `.await`.
type Shared = Rc<RefCell<Recorder>>;

/// Why a run could not be made, or its account not be kept.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Ledger(#[from] WriteError),
    #[error("cannot start a worker; lower --threads or raise the limits of the system")]
    Worker(#[source] io::Error),
    #[error("broker {label}: {address} will not have us ({failure}); check its address, and that it lets us in")]
    Broker { label: String, address: String, failure: &'static str },
}

impl Load {
    /// Runs it to the end of its schedule, or until `stopped` is cancelled: no request is sent after that, and those under
    /// way have [`timeout`](Self::timeout) to be answered. `progress` is called about once a second. Errors: the ledger
    /// cannot be written, a worker cannot be started.
    pub async fn run(
        &self,
        stopped: CancellationToken,
        mut progress: impl FnMut(&Progress),
    ) -> Result<Report, LoadError> {
        let run = fastrand::u32(1..);
        let ledger = self.ledger.as_ref().map(|path| Ledger::create(path, &Owner::Load { run })).transpose()?;
        let labels = Arc::new(Labels::default());
        let placements = Arc::new(Placements::new(self.keys.count()));
        let (shards, mut gathered) = mpsc::unbounded_channel();
        let (ready, mut all_ready) = mpsc::channel(1);
        let (starts, started) = watch::channel(None);
        let witnesses = match &self.protocol {
            Protocol::Mqtt(mqtt) => Some(mqtt::Witnesses::send(mqtt, run, self.timeout, self.ledger.as_deref()).await?),
            _ => None,
        };

        let mut workers = Vec::with_capacity(self.workers);
        for nth in 0..self.workers {
            let worker = Worker {
                nth,
                load: self.clone(),
                run,
                ready: ready.clone(),
                started: started.clone(),
                shards: shards.clone(),
                labels: Arc::clone(&labels),
                placements: Arc::clone(&placements),
                page: ledger.as_ref().map(Ledger::page),
                stopped: stopped.child_token(),
            };
            let thread = thread::Builder::new().name(format!("load-{nth}")).spawn(move || worker.run());
            workers.push(thread.map_err(LoadError::Worker).inspect_err(|_| stopped.cancel())?);
        }
        drop((ready, shards));
        // Nobody sends anything: each worker drops its end when it is ready, or gone.
        let _ = all_ready.recv().await;
        let start = Instant::now();
        let mut gatherer = Gatherer::new(self.asked(run), self, Arc::clone(&labels));
        let _ = starts.send(Some(start));

        while let Some(shard) = gathered.recv().await {
            if let Some(now) = gatherer.add(shard) {
                progress(&now);
            }
        }
        let elapsed = start.elapsed();
        let mut left = 0;
        for worker in workers {
            left += worker.join().expect("a worker does not panic").map_err(LoadError::Worker)?;
        }
        let missed = match witnesses {
            Some(witnesses) => witnesses.call_back().await?,
            None => Vec::new(),
        };
        if let Some(ledger) = ledger {
            ledger.close()?;
        }
        let complete = !stopped.is_cancelled();
        let mut report = gatherer.report(elapsed, complete, left, &placements);
        report.generator.warnings.extend(missed);
        Ok(report)
    }

    /// The report of a run that did not begin.
    pub fn unrun(&self, reason: String) -> Report {
        let labels = Arc::new(Labels::default());
        let gatherer = Gatherer::new(self.asked(0), self, labels);
        let mut report = gatherer.report(Duration::ZERO, false, 0, &Placements::new(0));
        report.end.reason = Some(reason);
        report
    }

    fn asked(&self, run: u32) -> Run {
        let stages = match &self.pace {
            Pace::Open(schedule) => schedule.stages(),
            Pace::Max(_) => &[],
        };
        Run {
            protocol: self.protocol.name().to_owned(),
            target: self.target.clone(),
            id: format!("{run:08x}"),
            started_ms: crate::ledger::unix_micros() / 1000,
            stages: stages
                .iter()
                .map(|stage| StageAsked {
                    seconds: stage.duration.as_secs_f64(),
                    from: stage.rate.from,
                    to: stage.rate.to,
                })
                .collect(),
            connections: self.connections,
            threads: self.workers,
            keys: self.keys.count(),
        }
    }
}

/// A thread of a run.
struct Worker {
    nth: usize,
    load: Load,
    run: u32,
    /// Dropped when it is ready to send.
    ready: mpsc::Sender<Infallible>,
    /// When requests start, once all workers are ready.
    started: watch::Receiver<Option<Instant>>,
    shards: UnboundedSender<Shard>,
    labels: Arc<Labels>,
    placements: Arc<Placements>,
    page: Option<Page>,
    stopped: CancellationToken,
}

impl Worker {
    /// Requests of its share that were never sent. Errors: no runtime or no timer.
    fn run(self) -> io::Result<u64> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, self.work())
    }

    async fn work(self) -> io::Result<u64> {
        let Self { nth, load, run, ready, mut started, shards, labels, placements, page, stopped } = self;
        let recorder = Shared::new(Recorder::new(nth, run, shards, labels, placements, page).into());
        let crew = match &load.protocol {
            Protocol::Mqtt(mqtt) => Some(mqtt::Crew::assemble(mqtt, &load, nth, run, &recorder, &stopped).await),
            _ => None,
        };
        drop(ready);
        let Some(start) = started.wait_for(Option::is_some).await.ok().and_then(|start| *start) else {
            // The run was given up.
            return Ok(0);
        };
        recorder.borrow_mut().start(start);
        let pacer = Rc::new(Pacer::new(load.pace.clone(), start, nth, load.workers, stopped.clone())?);
        let pacing = task::spawn_local({
            let pacer = Rc::clone(&pacer);
            async move { pacer.run().await }
        });
        let rolling = task::spawn_local({
            let recorder = Shared::clone(&recorder);
            async move {
                let mut tick = time::interval(Duration::from_millis(100));
                loop {
                    let now = tick.tick().await;
                    recorder.borrow_mut().roll(now);
                }
            }
        });

        let connections = (nth..load.connections).step_by(load.workers);
        let share = Share { load: &load, pacer: &pacer, recorder: &recorder };
        let tasks = match &load.protocol {
            Protocol::Http(http) => http.slots(connections, &share),
            Protocol::WebSocket(http) => share.spawn(connections.map(|nth| websocket::Socket::new(http, &load, nth))),
            Protocol::Tcp(tcp) => share.spawn(connections.map(|nth| tcp::Line::new(tcp, &load, nth))),
            Protocol::Mqtt(_) => crew.into_iter().map(|crew| crew.play(start, &load, &pacer, &stopped)).collect(),
        };
        // What is due but found no free slot within the patience of an answer is given up.
        let end = start + load.pace.duration() + load.timeout;
        let giving_up = task::spawn_local(async move {
            time::sleep_until(end).await;
            stopped.cancel();
        });
        for task in tasks {
            // Each ends by itself: requests stop, and every exchange has its timeout. None is aborted.
            let _ = task.await;
        }
        let left = pacer.left();
        giving_up.abort();
        pacing.abort();
        rolling.abort();
        let _ = rolling.await;
        if let Ok(recorder) = Rc::try_unwrap(recorder) {
            recorder.into_inner().finish();
        }
        Ok(left)
    }
}

/// What the slots of one worker share.
struct Share<'a> {
    load: &'a Load,
    pacer: &'a Rc<Pacer>,
    recorder: &'a Shared,
}

impl Share<'_> {
    fn spawn<S: Slot + 'static>(&self, slots: impl Iterator<Item = S>) -> Vec<task::JoinHandle<()>> {
        let tasks = slots.map(|slot| {
            let (pacer, recorder) = (Rc::clone(self.pacer), Shared::clone(self.recorder));
            task::spawn_local(drive(slot, Arc::clone(&self.load.keys), self.load.timeout, pacer, recorder))
        });
        tasks.collect()
    }
}

/// Takes requests and brings each to its end, until there are no more.
async fn drive(mut slot: impl Slot, keys: Arc<Keys>, timeout: Duration, pacer: Rc<Pacer>, recorder: Shared) {
    while let Some(Due { number, at, awaited }) = pacer.next().await {
        let key = slot.key().unwrap_or_else(|| keys.of(number));
        let sent = Instant::now();
        let id = {
            let mut recorder = recorder.borrow_mut();
            recorder.sent(sent, awaited.then(|| sent - at));
            recorder.id(number)
        };
        let ended = time::timeout(timeout, slot.exchange(id, key, &recorder)).await;

        let ended = ended.unwrap_or(Err(Failure::Timeout));
        record(&mut recorder.borrow_mut(), number, key, (at, sent), &ended);
        if !awaited && matches!(ended, Err(Failure::Refused | Failure::Unreachable)) {
            time::sleep(REST).await;
        }
    }
}

/// What became of a request. `times`: when it was due, and when it left.
fn record(
    recorder: &mut Recorder,
    number: u32,
    key: u64,
    (due, sent): (Instant, Instant),
    ended: &Result<Answer, Failure>,
) {
    let now = Instant::now();
    recorder.roll(now);
    match ended {
        Ok(answer) => {
            recorder.latency("latency", answer.arm, now - due);
            recorder.answered(key, *answer);
            let outcome = if answer.failure { "error" } else { "ok" };
            recorder.entry(number, key, outcome, answer.arm, now - sent);
            for _ in 0..answer.surplus {
                recorder.entry(number, key, "again", answer.arm, now - sent);
            }
        }
        Err(failure) => {
            recorder.failed(*failure);
            recorder.entry(number, key, failure.kind(), Arm::UNKNOWN, now - sent);
        }
    }
}
