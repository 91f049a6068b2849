//! Tells webhooks what has happened: apart from everything else, each in order, and as often as it takes.

mod message;

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
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
    sync::broadcast::error::RecvError,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use utoipa::ToSchema;

use crate::{Control, Event, event::rfc3339, outbound::Outbound};

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
}

/// What one webhook is to be told, in order.
#[derive(Default)]
struct Lane {
    waiting: VecDeque<Arc<Letter>>,
    /// A task delivers.
    busy: bool,
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
}

/// Messages that wait for one webhook. One more, and the oldest of the least severe gives way.
const WAITING: usize = 64;
/// Messages remembered for `GET /alerts`.
const KEPT: usize = 200;
/// For one attempt.
const PATIENCE: Duration = Duration::from_secs(5);
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
        let mut events = self.control.subscribe();
        let config = self.control.config();
        let faults = tokio::task::spawn_blocking(move || Self::check_files(&config)).await;
        for fault in faults.unwrap_or_default() {
            warn!(%fault, "A webhook will not be told");
        }
        let mut lanes = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                event = events.recv() => match event {
                    Ok(event) => self.take(&event, &mut lanes),
                    Err(RecvError::Lagged(missed)) => warn!(missed, "Events went by too fast to tell of them"),
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
        while let Ok(event) = events.try_recv() {
            self.take(&event, &mut lanes);
        }
        let _ = timeout(LAST_WORDS, async { while lanes.join_next().await.is_some() {} }).await;
    }

    /// The newest messages, newest first.
    pub fn record(&self, limit: usize) -> Vec<AlertView> {
        self.state.lock().record.iter().rev().take(limit).cloned().collect()
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

    /// Queues an event for everybody who wants it. Never waits.
    fn take(self: &Arc<Self>, event: &Arc<Event>, lanes: &mut JoinSet<()>) {
        let config = self.control.config();
        let Some(message) = Message::of(&event.what, &config) else { return };
        let state = &mut *self.state.lock();
        // What a reload took away has nobody to tell any more.
        state.lanes.retain(|name, lane| lane.busy || config.alerts.iter().any(|alert| alert.name == *name));
        for alert in config.alerts.iter().filter(|alert| alert.severity <= message.severity) {
            let id = format!("{}-{}-{}", event.at, event.number, alert.name);
            let letter = Letter {
                id: id.clone(),
                alert: alert.name.clone(),
                event: event.clone(),
                message: message.clone(),
                since: Instant::now(),
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
                warn!(alert = %alert.name, waiting = WAITING, "Too many messages wait for a webhook; one is dropped");
                state.note(&dropped.id, |view| view.state = Delivery::Dropped);
            }
            let lane = state.lanes.entry(alert.name.clone()).or_default();
            if !std::mem::replace(&mut lane.busy, true) {
                lanes.spawn(self.clone().deliver_all(alert.name.clone()));
            }
        }
    }

    async fn deliver_all(self: Arc<Self>, name: String) {
        let mut busy = Busy { alerts: &self, name: &name, over: false };
        loop {
            let next = {
                let state = &mut *self.state.lock();
                let Some(lane) = state.lanes.get_mut(&name) else { return };
                // Under the lock, so that nothing is queued between the look and the end.
                lane.busy = !lane.waiting.is_empty();
                busy.over = !lane.busy;
                lane.waiting.pop_front()
            };
            let Some(letter) = next else { return };
            let outcome = self.deliver(&letter).await;
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

    /// Tries until it is delivered, refused, or too late.
    async fn deliver(&self, letter: &Letter) -> Delivery {
        let name = &letter.alert;
        for attempt in 1.. {
            let config = self.control.config();
            // A reload may have mended what was wrong with it.
            let alert = config.alerts.iter().find(|alert| alert.name == *name);
            let answer = match alert {
                Some(alert) => self.attempt(alert, letter).await,
                None => Err(Failure::last("is not configured any more")),
            };
            let failure = answer.err();
            self.state.lock().note(&letter.id, |view| {
                view.attempts = attempt;
                view.problem = failure.as_ref().map(|failure| failure.problem.clone());
            });
            let Some(Failure { problem, again }) = failure else {
                info!(alert = %name, id = %letter.id, attempt, "Webhook told");
                return Delivery::Delivered;
            };
            let pause = pause_after(attempt);
            if !again || letter.since.elapsed() + pause > GIVE_UP {
                warn!(alert = %name, id = %letter.id, attempt, %problem, "Webhook could not be told");
                return Delivery::Failed;
            }
            warn!(alert = %name, id = %letter.id, attempt, %problem, ?pause, "Webhook not told yet");
            sleep(pause).await;
        }
        Delivery::Failed
    }

    async fn attempt(&self, alert: &Alert, letter: &Letter) -> Result<(), Failure> {
        let body = Bytes::from(letter.body(alert.format));
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(id) = HeaderValue::try_from(&letter.id) {
            headers.insert(DELIVERY, id);
        }
        if let Some(path) = alert.secret_file.clone() {
            let secret = tokio::task::spawn_blocking(move || read_secret(&path)).await;
            let secret = secret.unwrap_or_else(|_| Err(("secret_file: cannot be read".to_owned(), "")));
            // Never unsigned: whoever checks signatures would take it for somebody else's.
            let secret = secret.map_err(|(problem, _)| Failure::retry(format!("secret_file: {problem}")))?;
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
    fn queue(&mut self, letter: Letter) -> Option<Arc<Letter>> {
        self.waiting.push_back(Arc::new(letter));
        if self.waiting.len() <= WAITING {
            return None;
        }
        self.dropped += 1;
        let severities = self.waiting.iter().map(|letter| letter.message.severity).enumerate();
        let least = severities.min_by_key(|(at, severity)| (*severity, *at))?.0;
        self.waiting.remove(least)
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

    #[test]
    fn the_least_severe_and_oldest_gives_way() {
        let letter = |number: u64, severity| {
            let what = Happened::Recording { works: true, reason: String::new() };
            Letter {
                id: number.to_string(),
                alert: "chat".to_owned(),
                event: Arc::new(Event { number, at: String::new(), what }),
                message: Message { severity, route: None, text: String::new() },
                since: Instant::now(),
            }
        };
        let mut lane = Lane::default();
        assert!(lane.queue(letter(0, Severity::Critical)).is_none());
        assert!(lane.queue(letter(1, Severity::Info)).is_none());
        for number in 2..WAITING as u64 {
            assert!(lane.queue(letter(number, Severity::Warning)).is_none());
        }
        let gave_way = [1, 2, 3].map(|_| lane.queue(letter(100, Severity::Warning)).unwrap().id.clone());
        assert_eq!((gave_way, lane.waiting.len(), lane.dropped), (["1", "2", "3"].map(str::to_owned), WAITING, 3));
        assert_eq!(lane.queue(letter(101, Severity::Info)).unwrap().id, "101");
        assert_eq!(lane.waiting[0].id, "0");
    }
}
