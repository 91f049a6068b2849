//! Tells webhooks what has happened: apart from everything else, each in order, and as often as it takes.

mod message;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, VecDeque},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use config::{Alert, AlertFormat, Config, Fault, Severity};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use message::Message;
use parking_lot::Mutex;
use ring::hmac;
use serde::Serialize;
use serde_json::json;
use time::OffsetDateTime;
use tokio::{
    sync::{
        Notify, Semaphore,
        broadcast::error::{RecvError, TryRecvError},
    },
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use utoipa::ToSchema;

use crate::{Control, Event, Happened, event::rfc3339, outbound::Outbound};

/// Sends what happens to every webhook that wants it, and remembers what became of it.
pub struct Alerts {
    control: Arc<Control>,
    outbound: Outbound,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By the alert's name.
    lanes: BTreeMap<String, Lane>,
    /// Oldest first.
    record: VecDeque<AlertView>,
    /// Events that went by untold.
    missed: u64,
}

/// What one webhook is to be told, in order. What was tried in vain comes first, the latest before the others.
#[derive(Default)]
struct Lane {
    waiting: VecDeque<Letter>,
    /// One more waits.
    arrived: Arc<Notify>,
    /// A task delivers.
    busy: bool,
    secret: Arc<Secret>,
    delivered: u64,
    failed: u64,
    dropped: u64,
}

/// One message to one webhook.
struct Letter {
    id: String,
    alert: String,
    event: Arc<Event>,
    message: Message,
    since: Instant,
    attempts: u32,
    /// No attempt before.
    due: Instant,
}

/// Messages below critical that wait for one webhook. One more, and the oldest of the least severe gives way.
const WAITING: usize = 64;
/// Critical ones, apart from the others: all routes may trip at once, and each has to be told of.
const CRITICAL_WAITING: usize = 4096;
/// Messages remembered for `GET /alerts`.
const KEPT: usize = 200;
/// For one attempt.
const PATIENCE: Duration = Duration::from_secs(5);
/// For its secret, on top.
const SECRET_PATIENCE: Duration = Duration::from_secs(1);
/// No attempt begins later than this after the event.
const GIVE_UP: Duration = Duration::from_secs(15 * 60);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// For what is under way when the process ends.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// One message to one webhook, and what became of it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct AlertView {
    /// The same in the message.
    pub id: String,
    /// The webhook's name in the configuration.
    pub alert: String,
    /// Its address, without the path, which may be secret.
    #[schema(example = "https://hooks.example:443")]
    pub to: String,
    #[schema(value_type = String, example = "critical")]
    pub severity: Severity,
    /// The event's type.
    #[schema(value_type = String, example = "trip")]
    pub event: &'static str,
    pub route: Option<String>,
    pub text: String,
    /// When it happened, RFC 3339.
    pub at: String,
    pub state: Delivery,
    pub attempts: u32,
    /// Why the last attempt failed.
    pub problem: Option<String>,
    /// RFC 3339.
    pub delivered_at: Option<String>,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// It is, or will be, tried.
    Waiting,
    Delivered,
    /// Refused, or tried for 15 minutes.
    Failed,
    /// Gave way to others, because too many were waiting.
    Dropped,
}

/// One webhook, and what it was told since the start.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct WebhookView {
    /// Its name in the configuration.
    pub alert: String,
    /// Its address, without the path, which may be secret.
    pub to: String,
    /// The least that it is told.
    #[schema(value_type = String)]
    pub severity: Severity,
    pub waiting: usize,
    pub delivered: u64,
    pub failed: u64,
    pub dropped: u64,
}

impl Alerts {
    pub fn new(control: Arc<Control>) -> Arc<Self> {
        Arc::new(Self { control, outbound: Outbound::default(), state: Mutex::default() })
    }

    /// What is wrong with the files that a configuration's alerts name. Blocks.
    pub fn check_files(config: &Config) -> Vec<Fault> {
        let fault = |(index, alert): (usize, &Alert)| {
            let (problem, cure) = read_secret(alert.secret_file.as_deref()?).err()?;
            Some(Fault { place: format!("alert[{index}].secret_file"), line: None, problem, cure: cure.to_owned() })
        };
        config.alerts.iter().enumerate().filter_map(fault).collect()
    }

    /// Tells until `shutdown`, and then, for some seconds, what is left.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut events = self.control.subscribe_early();
        let config = self.control.config();
        let mut lanes = JoinSet::new();
        // Beside the lanes: a file whose disk hangs holds nobody up.
        lanes.spawn_blocking(move || {
            for fault in Self::check_files(&config) {
                warn!(%fault, "A webhook will not be told");
            }
        });
        let mut missed = 0;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                event = events.recv() => match event {
                    Ok(event) => self.hear(&event, &mut missed, &mut lanes, &shutdown),
                    Err(RecvError::Lagged(more)) => missed += more,
                    Err(RecvError::Closed) => break,
                },
                Some(ended) = lanes.join_next() => {
                    if let Err(error) = ended {
                        warn!(%error, "Telling a webhook panicked; it goes on with the next event");
                    }
                }
            }
        }
        // What happened just before the end is what people want to know.
        loop {
            match events.try_recv() {
                Ok(event) => self.hear(&event, &mut missed, &mut lanes, &shutdown),
                Err(TryRecvError::Lagged(more)) => missed += more,
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        let _ = timeout(LAST_WORDS, async { while lanes.join_next().await.is_some() {} }).await;
    }

    /// The newest messages, newest first.
    pub fn record(&self, limit: usize) -> Vec<AlertView> {
        self.state.lock().record.iter().rev().take(limit).cloned().collect()
    }

    /// Events that went by too fast to tell of them, since the start.
    pub fn missed(&self) -> u64 {
        self.state.lock().missed
    }

    /// Every configured webhook.
    pub fn webhooks(&self) -> Vec<WebhookView> {
        let config = self.control.config();
        let state = self.state.lock();
        let view = |alert: &Alert| {
            let lane = state.lanes.get(&alert.name);
            let count = |of: fn(&Lane) -> u64| lane.map_or(0, of);
            WebhookView {
                alert: alert.name.clone(),
                to: alert.url.to_string(),
                severity: alert.severity,
                waiting: lane.map_or(0, |lane| lane.waiting.len() + usize::from(lane.busy)),
                delivered: count(|lane| lane.delivered),
                failed: count(|lane| lane.failed),
                dropped: count(|lane| lane.dropped),
            }
        };
        config.alerts.iter().map(view).collect()
    }

    /// Takes an event. `missed`: how many went by before it, which is told first.
    fn hear(
        self: &Arc<Self>,
        event: &Arc<Event>,
        missed: &mut u64,
        lanes: &mut JoinSet<()>,
        shutdown: &CancellationToken,
    ) {
        let missed = std::mem::take(missed);
        if missed > 0 {
            warn!(missed, "Events went by too fast to tell of them");
            self.state.lock().missed += missed;
            let (number, at) = (event.number.saturating_sub(1), event.at.clone());
            self.take(&Arc::new(Event { number, at, what: Happened::Missed { missed } }), lanes, shutdown);
        }
        self.take(event, lanes, shutdown);
    }

    /// Queues an event for everybody who wants it. Never waits.
    fn take(self: &Arc<Self>, event: &Arc<Event>, lanes: &mut JoinSet<()>, shutdown: &CancellationToken) {
        let config = self.control.config();
        let Some(message) = Message::of(&event.what, &config) else { return };
        let state = &mut *self.state.lock();
        // What a reload took away has nobody to tell any more.
        state.lanes.retain(|name, lane| lane.busy || config.alerts.iter().any(|alert| alert.name == *name));
        for alert in config.alerts.iter().filter(|alert| alert.severity <= message.severity) {
            let id = format!("{}-{}-{}", event.at, event.number, alert.name);
            let now = Instant::now();
            let letter = Letter {
                id: id.clone(),
                alert: alert.name.clone(),
                event: event.clone(),
                message: message.clone(),
                since: now,
                attempts: 0,
                due: now,
            };
            state.remember(AlertView {
                id,
                alert: alert.name.clone(),
                to: alert.url.to_string(),
                severity: message.severity,
                event: event.what.name(),
                route: message.route.clone(),
                text: message.text.clone(),
                at: event.at.clone(),
                state: Delivery::Waiting,
                attempts: 0,
                problem: None,
                delivered_at: None,
            });
            if let Some(dropped) = state.lanes.entry(alert.name.clone()).or_default().queue(letter) {
                warn!(alert = %alert.name, id = %dropped.id, "Too many messages wait for a webhook; one is dropped");
                state.note(&dropped.id, |view| view.state = Delivery::Dropped);
            }
            let lane = state.lanes.entry(alert.name.clone()).or_default();
            if !std::mem::replace(&mut lane.busy, true) {
                lanes.spawn(self.clone().deliver_all(alert.name.clone(), shutdown.clone()));
            }
        }
    }

    async fn deliver_all(self: Arc<Self>, name: String, shutdown: CancellationToken) {
        let mut busy = Busy { alerts: &self, name: &name, over: false };
        // Not told yet.
        let mut held = None;
        loop {
            let (next, arrived) = {
                let state = &mut *self.state.lock();
                let Some(lane) = state.lanes.get_mut(&name) else { return };
                if let Some(letter) = held.take() {
                    lane.waiting.push_front(letter);
                }
                // Under the lock, so that nothing is queued between the look and the end.
                lane.busy = !lane.waiting.is_empty();
                busy.over = !lane.busy;
                (lane.next(), lane.arrived.clone())
            };
            let Some(mut letter) = next else { return };
            // The end does not wait, and what comes meanwhile may be more severe.
            if letter.due > Instant::now() && !shutdown.is_cancelled() {
                tokio::select! {
                    () = sleep_until(letter.due) => {}
                    () = arrived.notified() => {}
                    () = shutdown.cancelled() => {}
                }
                held = Some(letter);
                continue;
            }
            let Some(outcome) = self.deliver(&mut letter, &shutdown).await else {
                held = Some(letter);
                continue;
            };
            let state = &mut *self.state.lock();
            if let Some(lane) = state.lanes.get_mut(&name) {
                match outcome {
                    Delivery::Delivered => lane.delivered += 1,
                    _ => lane.failed += 1,
                }
            }
            state.note(&letter.id, |view| {
                view.state = outcome;
                if outcome == Delivery::Delivered {
                    view.delivered_at = Some(rfc3339(OffsetDateTime::now_utc()));
                }
            });
        }
    }

    /// Tries once. `None`: it is to be tried again when it is due.
    async fn deliver(&self, letter: &mut Letter, shutdown: &CancellationToken) -> Option<Delivery> {
        let config = self.control.config();
        // A reload may have mended what was wrong with it.
        let alert = config.alerts.iter().find(|alert| alert.name == letter.alert);
        let answer = match alert {
            Some(alert) => self.attempt(alert, letter).await,
            None => Err(Failure::last("is not configured any more")),
        };
        letter.attempts += 1;
        let attempt = letter.attempts;
        let failure = answer.err();
        self.state.lock().note(&letter.id, |view| {
            view.attempts = attempt;
            view.problem = failure.as_ref().map(|failure| failure.problem.clone());
        });
        let (name, id) = (&letter.alert, &letter.id);
        let Some(Failure { problem, again }) = failure else {
            info!(alert = %name, %id, attempt, "Webhook told");
            return Some(Delivery::Delivered);
        };
        let pause = pause_after(attempt);
        // The little time before the end is for what has not been tried.
        if !again || shutdown.is_cancelled() || letter.since.elapsed() + pause > GIVE_UP {
            warn!(alert = %name, %id, attempt, %problem, "Webhook could not be told");
            return Some(Delivery::Failed);
        }
        warn!(alert = %name, %id, attempt, %problem, ?pause, "Webhook not told yet");
        letter.due = Instant::now() + pause;
        None
    }

    async fn attempt(&self, alert: &Alert, letter: &Letter) -> Result<(), Failure> {
        let body = Bytes::from(letter.body(alert.format));
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(id) = HeaderValue::try_from(&letter.id) {
            headers.insert(DELIVERY, id);
        }
        if let Some(path) = &alert.secret_file {
            let secret = self.state.lock().lanes.entry(alert.name.clone()).or_default().secret.clone();
            // Never unsigned: whoever checks signatures would take it for somebody else's.
            let secret =
                secret.read(path).await.map_err(|problem| Failure::retry(format!("secret_file: {problem}")))?;
            if let Ok(signature) = HeaderValue::try_from(sign(&secret, &body)) {
                headers.insert(SIGNATURE, signature);
            }
        }
        let answer = self.outbound.send(Method::POST, &alert.url, headers, body, PATIENCE).await;
        let status = answer.map_err(Failure::retry)?.status();
        match status {
            status if status.is_success() => Ok(()),
            status if status.is_redirection() => {
                Err(Failure::last(format!("answers {status}; write the url that it leads to")))
            }
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
                Err(Failure::retry(format!("answers {status}")))
            }
            status if status.is_server_error() => Err(Failure::retry(format!("answers {status}"))),
            // It would say the same again.
            status => Err(Failure::last(format!("answers {status}"))),
        }
    }
}

/// The same in every attempt, so that a message that came twice can be told from two.
const DELIVERY: HeaderName = HeaderName::from_static("crossfade-delivery");
const SIGNATURE: HeaderName = HeaderName::from_static("crossfade-signature");

/// Lets a lane be delivered again when its task ends before its time.
struct Busy<'a> {
    alerts: &'a Alerts,
    name: &'a str,
    /// Somebody else may be at it already.
    over: bool,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        if let Some(lane) = self.alerts.state.lock().lanes.get_mut(self.name) {
            lane.busy = false;
        }
    }
}

/// What a webhook's messages are signed with.
struct Secret {
    /// One place: whoever reads the file has it until the disk has answered.
    reading: Arc<Semaphore>,
    /// The one that was read last, and where.
    last: Mutex<Option<(PathBuf, Vec<u8>)>>,
}

impl Default for Secret {
    fn default() -> Self {
        Self { reading: Arc::new(Semaphore::new(1)), last: Mutex::default() }
    }
}

impl Secret {
    /// Reads it again; while the disk does not answer it is the one that was read last. Errors: what is wrong.
    async fn read(self: &Arc<Self>, path: &Path) -> Result<Vec<u8>, String> {
        if let Ok(place) = self.reading.clone().try_acquire_owned() {
            let (secret, path) = (self.clone(), path.to_owned());
            let read = tokio::task::spawn_blocking(move || {
                let read = read_secret(&path);
                *secret.last.lock() = read.as_ref().ok().map(|read| (path, read.clone()));
                drop(place);
                read
            });
            if let Ok(read) = timeout(SECRET_PATIENCE, read).await {
                return read.map_err(|_| "cannot be read".to_owned())?.map_err(|(problem, _)| problem);
            }
        }
        let last = self.last.lock().clone().filter(|(of, _)| of == path).map(|(_, secret)| secret);
        last.ok_or_else(|| format!("{} cannot be read: its disk does not answer", path.display()))
    }
}

/// Why an attempt failed, and whether another one may not.
struct Failure {
    problem: String,
    again: bool,
}

impl Failure {
    fn retry(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), again: true }
    }

    fn last(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), again: false }
    }
}

impl State {
    fn remember(&mut self, view: AlertView) {
        if self.record.len() >= KEPT {
            self.record.pop_front();
        }
        self.record.push_back(view);
    }

    /// Nothing happens to one that is too old to be remembered.
    fn note(&mut self, id: &str, change: impl FnOnce(&mut AlertView)) {
        self.record.iter_mut().rev().find(|view| view.id == id).map(change);
    }
}

impl Lane {
    /// The one that gave way, if any.
    fn queue(&mut self, letter: Letter) -> Option<Letter> {
        self.waiting.push_back(letter);
        self.arrived.notify_one();
        let severities = || self.waiting.iter().map(|letter| letter.message.severity).enumerate();
        let critical = severities().filter(|(_, severity)| *severity == Severity::Critical).count();
        let gives_way = if self.waiting.len() - critical > WAITING {
            severities().min_by_key(|(at, severity)| (*severity, *at))?.0
        } else if critical > CRITICAL_WAITING {
            severities().find(|(_, severity)| *severity == Severity::Critical)?.0
        } else {
            return None;
        };
        self.dropped += 1;
        self.waiting.remove(gives_way)
    }

    /// The first; but what was tried in vain lets go ahead what is more severe, because the fault may be its own.
    fn next(&mut self) -> Option<Letter> {
        if self.waiting.front()?.attempts == 0 {
            return self.waiting.pop_front();
        }
        let severities = self.waiting.iter().map(|letter| letter.message.severity).enumerate();
        let severest = severities.max_by_key(|(at, severity)| (*severity, Reverse(*at)))?.0;
        self.waiting.remove(severest)
    }
}

impl Letter {
    fn body(&self, format: AlertFormat) -> String {
        let Message { severity, route, text } = &self.message;
        let body = match format {
            AlertFormat::Json => json!({
                "source": "crossfade",
                "id": self.id,
                "severity": severity,
                "route": route,
                "text": text,
                "event": *self.event,
            }),
            AlertFormat::Text => json!({ "text": message::for_chat(*severity, text) }),
        };
        body.to_string()
    }
}

/// 1, 2, 4 … seconds, at most a minute.
fn pause_after(attempt: u32) -> Duration {
    let seconds = 1_u64.checked_shl(attempt - 1).unwrap_or(u64::MAX);
    Duration::from_secs(seconds).min(LONGEST_PAUSE)
}

/// `sha256=` and the HMAC in hexadecimal digits.
fn sign(secret: &[u8], body: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), body);
    let digits: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={digits}")
}

const LONGEST_SECRET: u64 = 4096;

/// The content of a secret file without the end of its last line. Errors: problem and cure.
fn read_secret(path: &Path) -> Result<Vec<u8>, (String, &'static str)> {
    let shown = path.display();
    let unreadable = |error| (format!("{shown} cannot be read: {error}"), "make it a file that this user can read");
    let file = fs::metadata(path).map_err(unreadable)?;
    if !file.is_file() || file.len() > LONGEST_SECRET {
        return Err((format!("{shown} is not a file of at most 4 KiB"), "write the secret into a file"));
    }
    let mode = file.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err((format!("{shown} can be read by others (mode {mode:03o})"), "run chmod 600 on it"));
    }
    let mut secret = fs::read(path).map_err(unreadable)?;
    while secret.last().is_some_and(|byte| b"\r\n".contains(byte)) {
        secret.pop();
    }
    if secret.is_empty() {
        return Err((format!("{shown} is empty"), "write the secret into it, such as from openssl rand -hex 32"));
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Happened;

    #[test]
    fn pauses_grow_to_a_minute() {
        let seconds: Vec<u64> = (1..=9).map(|attempt| pause_after(attempt).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(pause_after(1000), LONGEST_PAUSE);
    }

    #[test]
    fn signatures_are_those_of_rfc_4231() {
        // Test case 2.
        let signature = sign(b"Jefe", b"what do ya want for nothing?");
        assert_eq!(signature, "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    fn letter(number: usize, severity: Severity) -> Letter {
        let what = Happened::Recording { works: true, reason: String::new() };
        Letter {
            id: number.to_string(),
            alert: "chat".to_owned(),
            event: Arc::new(Event { number: number as u64, at: String::new(), what }),
            message: Message { severity, route: None, text: String::new() },
            since: Instant::now(),
            attempts: 0,
            due: Instant::now(),
        }
    }

    #[test]
    fn the_least_severe_and_oldest_gives_way() {
        let mut lane = Lane::default();
        assert!(lane.queue(letter(0, Severity::Critical)).is_none());
        assert!(lane.queue(letter(1, Severity::Info)).is_none());
        for number in 2..=WAITING {
            assert!(lane.queue(letter(number, Severity::Warning)).is_none());
        }
        let gave_way = [1, 2, 3].map(|_| lane.queue(letter(100, Severity::Warning)).unwrap().id);
        assert_eq!((gave_way, lane.dropped), (["1", "2", "3"].map(str::to_owned), 3));
        assert_eq!(lane.queue(letter(101, Severity::Info)).unwrap().id, "101");
        assert_eq!((lane.waiting[0].id.as_str(), lane.waiting.len()), ("0", 1 + WAITING));
    }

    #[test]
    fn routes_that_trip_together_are_all_told_of() {
        let mut lane = Lane::default();
        for number in 0..WAITING {
            assert!(lane.queue(letter(number, Severity::Warning)).is_none());
        }
        for number in 0..CRITICAL_WAITING {
            assert!(lane.queue(letter(1000 + number, Severity::Critical)).is_none(), "{number} wait");
        }
        assert_eq!(lane.queue(letter(1, Severity::Critical)).unwrap().id, "1000");
        assert_eq!((lane.waiting.len(), lane.dropped), (WAITING + CRITICAL_WAITING, 1));
    }

    #[test]
    fn what_was_tried_in_vain_lets_the_more_severe_go_ahead() {
        use Severity::{Critical, Info, Warning};
        let mut lane = Lane::default();
        for (number, severity) in [Info, Warning, Critical, Warning, Critical].into_iter().enumerate() {
            lane.queue(letter(number, severity));
        }
        let mut first = lane.next().unwrap();
        assert_eq!(first.id, "0", "in order, as long as nothing fails");
        first.attempts = 1;
        lane.waiting.push_front(first);
        let order: Vec<String> = std::iter::from_fn(|| lane.next()).map(|letter| letter.id).collect();
        assert_eq!(order, ["2", "4", "1", "3", "0"]);
    }
}
