//! What is heard of green from outside: a consumer's lag, memory, a figure of the business. Pushed (`api`) or scraped
//! (`scrape`), judged value by value (`watch`), and remembered over a restart.

mod exposition;
mod scrape;
mod watch;

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use config::{Config, Scrape, Signal, SignalLimit};
use parking_lot::Mutex;
pub use scrape::Scraper;
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::Instant;
use utoipa::ToSchema;
use watch::Watch;

use crate::{SignalReading, SignalRow, Verdict, event::rfc3339};

/// Every route's signals. Its lock is held for moments, and no other is taken under it.
#[derive(Debug, Default)]
pub struct Signals {
    state: Mutex<State>,
}

/// Route and name.
type Key = (String, String);

#[derive(Debug, Default)]
struct State {
    /// Exactly the configured ones.
    entries: BTreeMap<Key, Entry>,
    /// Recorded, and not configured today.
    dormant: HashMap<Key, SignalRow>,
}

#[derive(Debug)]
struct Entry {
    signal: Signal,
    watch: Watch,
    /// The disk has another value.
    unrecorded: bool,
    /// Why the last scrape had no value.
    problem: Option<String>,
    failed_scrapes: u64,
}

/// A moment, by both clocks. Ages are counted by the one that never jumps.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub instant: Instant,
    pub utc: OffsetDateTime,
}

impl Moment {
    pub fn now() -> Self {
        Self { instant: Instant::now(), utc: OffsetDateTime::now_utc() }
    }

    /// When something happened that bears this time; now, if the time is still to come. `None`: before this machine started.
    fn instant_of(&self, utc: OffsetDateTime) -> Option<Instant> {
        let age = Duration::try_from(self.utc - utc).unwrap_or_default();
        self.instant.checked_sub(age)
    }
}

/// Why a value was not taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{}: {}; {}", self.field(), self.problem(), self.cure())]
pub enum SignalRefusal {
    Unknown {
        name: String,
        known: Vec<String>,
    },
    NotFinite,
    Future {
        ahead: Duration,
    },
    LongPast {
        age: Duration,
        expect_every: Duration,
    },
    /// A newer one is there.
    Overtaken {
        last: String,
    },
}

impl SignalRefusal {
    /// The field of `POST /signals` to look at.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "name",
            Self::NotFinite => "value",
            Self::Future { .. } | Self::LongPast { .. } | Self::Overtaken { .. } => "at",
        }
    }

    pub fn problem(&self) -> String {
        match self {
            Self::Unknown { name, .. } => format!("there is no signal {name:?}"),
            Self::NotFinite => "is not a finite number".to_owned(),
            Self::Future { ahead } => format!("is {} in the future", span(*ahead)),
            Self::LongPast { age, expect_every } => {
                format!("is {} ago, and a value is good for {}", span(*age), span(*expect_every))
            }
            Self::Overtaken { last } => format!("is before that of the last value, {last}"),
        }
    }

    pub fn cure(&self) -> String {
        match self {
            Self::Unknown { known, .. } if known.is_empty() => "add a [[route.signal]] to its route".to_owned(),
            Self::Unknown { known, .. } => format!("choose one of {}", known.join(", ")),
            Self::NotFinite => "give it a number".to_owned(),
            Self::Future { .. } => "set the clocks of both machines, or leave it out".to_owned(),
            Self::LongPast { .. } => "send a value when it is measured, or set a longer expect_every".to_owned(),
            Self::Overtaken { .. } => "send values in the order they were measured in".to_owned(),
        }
    }
}

/// Clocks of two machines differ by this much without anybody's fault.
const CLOCKS_DIFFER: Duration = Duration::from_secs(10);

/// A signal as it is now.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct SignalView {
    pub route: String,
    pub name: String,
    /// As configured.
    #[schema(example = "> 1000 for 300s")]
    pub limit: String,
    /// What silence means: `hold`, `ignore` or `breach`.
    #[schema(value_type = String)]
    pub silent: &'static str,
    /// A longer time without a value is silence.
    pub expect_every_seconds: f64,
    /// False: it is pushed.
    pub scraped: bool,
    /// The last one.
    pub value: Option<f64>,
    /// When that was measured, RFC 3339.
    pub at: Option<String>,
    pub age_seconds: Option<f64>,
    pub verdict: Verdict,
    /// A sentence.
    pub reason: String,
    /// Why the last scrape had no value; null when it had one.
    pub problem: Option<String>,
    /// Since the start.
    pub failed_scrapes: u64,
}

impl Signals {
    /// `recorded`: the last values, as of an earlier process.
    pub(crate) fn new(recorded: Vec<SignalRow>) -> Self {
        let dormant = recorded.into_iter().map(|row| ((row.route.clone(), row.name.clone()), row)).collect();
        Self { state: Mutex::new(State { entries: BTreeMap::new(), dormant }) }
    }

    /// Takes a configuration over. Signals that keep their limit keep their evidence.
    pub(crate) fn follow(&self, config: &Config, now: Moment) {
        let state = &mut *self.state.lock();
        let mut before = std::mem::take(&mut state.entries);
        for route in &config.routes {
            for signal in &route.signals {
                let key = (route.name.clone(), signal.name.clone());
                let entry = match before.remove(&key) {
                    Some(mut entry) => {
                        entry.watch.follow(signal);
                        if entry.signal.scrape != signal.scrape {
                            entry.problem = None;
                        }
                        Entry { signal: signal.clone(), ..entry }
                    }
                    None => {
                        let mut watch = Watch::new(signal, now.instant);
                        let recorded = state.dormant.remove(&key);
                        if let Some((value, utc)) = recorded.as_ref().and_then(SignalRow::parse) {
                            watch.restore(value, utc, now);
                        }
                        Entry { signal: signal.clone(), watch, unrecorded: false, problem: None, failed_scrapes: 0 }
                    }
                };
                state.entries.insert(key, entry);
            }
        }
        for (key, entry) in before {
            let row = entry.row(&key);
            state.dormant.extend(row.map(|row| (key, row)));
        }
    }

    /// Takes a pushed value. `at`: when it was measured, if not now.
    pub fn push(
        &self,
        route: &str,
        name: &str,
        value: f64,
        at: Option<OffsetDateTime>,
        now: Moment,
    ) -> Result<SignalView, SignalRefusal> {
        let state = &mut *self.state.lock();
        let key = (route.to_owned(), name.to_owned());
        let Some(entry) = state.entries.get_mut(&key) else {
            let of_route = state.entries.keys().filter(|(other, _)| other == route);
            return Err(SignalRefusal::Unknown {
                name: name.to_owned(),
                known: of_route.map(|(_, name)| name.clone()).collect(),
            });
        };
        entry.take(value, at, now)?;
        Ok(entry.view(&key, now.instant))
    }

    /// What came of a scrape. `scrape`: what was asked, so that an answer to what is not asked any more is left aside.
    fn scraped(&self, key: &Key, scrape: &Scrape, outcome: Scraped, now: Moment) {
        let state = &mut *self.state.lock();
        let entry = state.entries.get_mut(key);
        let Some(entry) = entry.filter(|entry| entry.signal.scrape.as_ref() == Some(scrape)) else { return };
        let (route, signal) = key;
        let taken = outcome.and_then(|(value, at)| entry.take(value, at, now).map_err(|refusal| refusal.to_string()));
        match taken {
            Ok(()) => {
                if entry.problem.take().is_some() {
                    tracing::info!(route, signal, "Signal can be scraped again");
                }
            }
            Err(problem) => {
                entry.failed_scrapes += 1;
                if entry.problem.is_none() {
                    tracing::warn!(route, signal, %problem, "Signal cannot be scraped");
                }
                entry.problem = Some(problem);
            }
        }
    }

    /// What each of a route's signals says now, in the order of their names.
    pub fn readings(&self, route: &str, now: Instant) -> Vec<SignalReading> {
        let state = self.state.lock();
        let of_route = state.entries.iter().filter(|((other, _), _)| other == route);
        of_route.map(|((_, name), entry)| entry.watch.reading(name, now)).collect()
    }

    /// What was heard up to now is no evidence any more.
    pub(crate) fn forget(&self, route: &str, now: Instant) {
        for (_, entry) in self.state.lock().entries.iter_mut().filter(|((other, _), _)| other == route) {
            entry.watch.forget(now);
            entry.unrecorded = true;
        }
    }

    /// Silence up to now was nobody's fault. `route`: `None` for all.
    pub(crate) fn listen(&self, route: Option<&str>, now: Instant) {
        let state = &mut *self.state.lock();
        let wanted = state.entries.iter_mut().filter(|((other, _), _)| route.is_none_or(|route| route == other));
        wanted.for_each(|(_, entry)| entry.watch.listen(now));
    }

    /// Every signal, or those of one route.
    pub fn views(&self, route: Option<&str>, now: Instant) -> Vec<SignalView> {
        let state = self.state.lock();
        let wanted = state.entries.iter().filter(|((other, _), _)| route.is_none_or(|route| route == other));
        wanted.map(|(key, entry)| entry.view(key, now)).collect()
    }

    /// What is to be scraped: where, and which values are bad.
    fn scrapes(&self) -> Vec<(Key, Scrape, SignalLimit)> {
        let state = self.state.lock();
        let scrape = |(key, entry): (&Key, &Entry)| {
            let signal = &entry.signal;
            Some((key.clone(), signal.scrape.clone()?, signal.limit))
        };
        state.entries.iter().filter_map(scrape).collect()
    }

    /// Values that the disk does not have.
    pub(crate) fn unrecorded(&self) -> Vec<SignalRow> {
        let state = self.state.lock();
        let unrecorded = state.entries.iter().filter(|(_, entry)| entry.unrecorded);
        unrecorded.filter_map(|(key, entry)| entry.row(key)).collect()
    }

    /// The disk has these.
    pub(crate) fn written(&self, rows: &[SignalRow]) {
        let state = &mut *self.state.lock();
        for row in rows {
            let key = (row.route.clone(), row.name.clone());
            if let Some(entry) = state.entries.get_mut(&key)
                && entry.row(&key).as_ref() == Some(row)
            {
                entry.unrecorded = false;
            }
        }
    }
}

/// A value and when it was measured, if the sample says; or why there is none.
type Scraped = Result<(f64, Option<OffsetDateTime>), String>;

impl Entry {
    fn take(&mut self, value: f64, at: Option<OffsetDateTime>, now: Moment) -> Result<(), SignalRefusal> {
        if !value.is_finite() {
            return Err(SignalRefusal::NotFinite);
        }
        let utc = at.unwrap_or(now.utc);
        let ahead = Duration::try_from(utc - now.utc).unwrap_or_default();
        if ahead > CLOCKS_DIFFER {
            return Err(SignalRefusal::Future { ahead });
        }
        let expect_every = self.signal.expect_every;
        let measured = now.instant_of(utc).filter(|at| now.instant.duration_since(*at) <= expect_every);
        let Some(measured) = measured else {
            let age = Duration::try_from(now.utc - utc).unwrap_or_default();
            return Err(SignalRefusal::LongPast { age, expect_every });
        };
        // What is a little ahead of our clock is as old as what comes now.
        let utc = utc.min(now.utc);
        // Two clocks are not read in one moment: the same time twice, as in a push that is repeated, is the same moment.
        let measured = self.watch.last().filter(|last| last.utc == utc).map_or(measured, |last| last.at);
        if let Err(last) = self.watch.take(value, measured, utc) {
            return Err(SignalRefusal::Overtaken { last: rfc3339(last) });
        }
        self.unrecorded = true;
        Ok(())
    }

    fn row(&self, (route, name): &Key) -> Option<SignalRow> {
        let last = self.watch.last()?;
        let at = self.watch.evidence().map(|heard| rfc3339(heard.utc)).unwrap_or_default();
        Some(SignalRow { route: route.clone(), name: name.clone(), value: last.value, at })
    }

    fn view(&self, (route, name): &Key, now: Instant) -> SignalView {
        let reading = self.watch.reading(name, now);
        let last = self.watch.last();
        SignalView {
            route: route.clone(),
            name: name.clone(),
            limit: self.signal.limit.to_string(),
            silent: self.signal.silent.as_str(),
            expect_every_seconds: self.signal.expect_every.as_secs_f64(),
            scraped: self.signal.scrape.is_some(),
            value: last.map(|last| last.value),
            at: last.map(|last| rfc3339(last.utc)),
            age_seconds: last.map(|last| now.saturating_duration_since(last.at).as_secs_f64()),
            verdict: reading.verdict,
            reason: reading.reason,
            problem: self.problem.clone(),
            failed_scrapes: self.failed_scrapes,
        }
    }
}

impl SignalRow {
    /// `None`: it is no evidence any more, or has no time that we can read.
    fn parse(&self) -> Option<(f64, OffsetDateTime)> {
        let at = OffsetDateTime::parse(&self.at, &Rfc3339).ok()?;
        self.value.is_finite().then_some((self.value, at))
    }
}

/// `45 s`, `5 min`, `2 h 10 min`.
fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0) if !duration.is_zero() => format!("{} ms", duration.as_millis()),
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, 0) => format!("{minutes} min"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, 0, _) => format!("{hours} h"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests;
