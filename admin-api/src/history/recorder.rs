//! Once a minute: from the plane's seconds to rows on disk.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::Arc,
    time::Duration,
};

use config::Arm;
use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{History, HistoryError, Row, Wanted};
use crate::{Control, Judgement, Tally, control::with_sources};

/// Sums the seconds of every route up to minutes, and writes those that are over.
pub struct Recorder {
    control: Arc<Control>,
    history: Arc<History>,
    seen: Mutex<Seen>,
    /// Who writes.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Seen {
    /// Of each route: the last second that was counted.
    last: BTreeMap<String, u64>,
    /// By when they began and by route.
    minutes: BTreeMap<(i64, String), Minute>,
    /// What each route's guard last said in an earlier minute. It stays with a latched route, which nobody judges.
    judged: BTreeMap<String, Arc<Judgement>>,
    /// Finished, and not on disk; nor being written.
    waiting: VecDeque<Row>,
    lost: u64,
    problem: Option<String>,
}

#[derive(Default)]
struct Minute {
    seconds: u64,
    blue: Tally,
    green: Tally,
}

/// Rows that wait for a disk that fails or hangs. The oldest are given up for newer ones, and counted. They fit into the room
/// that pruning leaves in the smallest file.
const WAITING: usize = 8192;

/// After the end of a minute, so that its last second is there.
const AFTER_THE_MINUTE: u64 = 2;

impl Recorder {
    pub fn new(control: Arc<Control>, history: History) -> Self {
        Self { control, history: Arc::new(history), seen: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }

    /// Records every minute until `shutdown`, also while an earlier one is still being written: the plane soon forgets its
    /// seconds. What has begun then is for [`Self::finish`].
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut recording = JoinSet::new();
        loop {
            let into = OffsetDateTime::now_utc().unix_timestamp().rem_euclid(60).unsigned_abs();
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(Duration::from_secs(60 - into + AFTER_THE_MINUTE)) => {}
            }
            while recording.try_join_next().is_some() {}
            let recorder = Arc::clone(&self);
            recording.spawn(async move { recorder.record(OffsetDateTime::now_utc()).await });
        }
        while recording.join_next().await.is_some() {}
    }

    /// Writes every minute that is over. A failure is logged once and tried again with the next minute, and so it is where
    /// an earlier minute is still being written.
    pub async fn record(&self, now: OffsetDateTime) {
        let now = now.unix_timestamp();
        self.gather(now);
        self.close(minute(now));
        match self.turn.try_lock() {
            Ok(_turn) => self.write(now).await,
            Err(_) => self.seen.lock().fail(&HistoryError::Overdue { path: self.history.path().to_owned() }),
        }
    }

    /// Writes the minute that is not over as well, before the process ends. Waits for what is being written.
    pub async fn finish(&self) {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        self.gather(now);
        self.close(i64::MAX);
        let _turn = self.turn.lock().await;
        self.write(now).await;
    }

    pub async fn read(&self, wanted: Wanted) -> Result<(Vec<Row>, bool), HistoryError> {
        self.blocking("reading", move |history| history.read(&wanted)).await
    }

    /// Rows that were given up because the disk failed or hung for long.
    pub fn rows_lost(&self) -> u64 {
        self.seen.lock().lost
    }

    /// Why the last minute could not be written; `None` when it was.
    pub fn problem(&self) -> Option<String> {
        self.seen.lock().problem.clone()
    }

    /// Adds the seconds that are new to their minutes.
    fn gather(&self, now: i64) {
        let mut guard = self.seen.lock();
        let seen = &mut *guard;
        for view in self.control.states() {
            let Some(observed) = self.control.plane().observe(&view.route) else { continue };
            let Some(newest) = observed.seconds.last().map(|second| second.at) else { continue };
            let last = seen.last.insert(view.route.clone(), newest);
            for second in observed.seconds.iter().filter(|second| last.is_none_or(|last| second.at > last)) {
                // The newest has just ended.
                let began = now.saturating_sub_unsigned(newest - second.at + 1);
                let minute = seen.minutes.entry((minute(began), view.route.clone())).or_default();
                minute.seconds += 1;
                minute.blue.add(&second.blue);
                minute.green.add(&second.green);
            }
        }
        seen.last.retain(|route, _| self.control.state(route).is_ok());
    }

    /// Writes all that wait. For who has the turn.
    async fn write(&self, now: i64) {
        let rows: Vec<Row> = self.seen.lock().waiting.drain(..).collect();
        let rows = Arc::new(rows);
        let batch = Arc::clone(&rows);
        let written = self.blocking("writing", move |history| history.record(&batch, now)).await;
        let mut guard = self.seen.lock();
        let seen = &mut *guard;
        match written {
            Ok(()) => {
                if seen.problem.take().is_some() {
                    info!("History can be written again");
                }
            }
            Err(error) => {
                let newer = mem::replace(&mut seen.waiting, Arc::unwrap_or_clone(rows).into());
                seen.waiting.extend(newer);
                seen.give_up();
                seen.fail(&error);
            }
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&History) -> Result<T, HistoryError> + Send + 'static,
    ) -> Result<T, HistoryError> {
        let history = Arc::clone(&self.history);
        tokio::task::spawn_blocking(move || work(&history))
            .await
            .unwrap_or_else(|_| Err(HistoryError::Abandoned { path: self.history.path().to_owned(), operation }))
    }

    /// Makes rows of the minutes before `until`.
    fn close(&self, until: i64) {
        let mut guard = self.seen.lock();
        let seen = &mut *guard;
        // Its splits are the other process's to tell.
        let views = if self.control.is_frozen() { Vec::new() } else { self.control.states() };
        let later = seen.minutes.split_off(&(until, String::new()));
        for ((at, route), minute) in mem::replace(&mut seen.minutes, later) {
            let row = |arm, tally| Row::of(at, &route, arm, minute.seconds, tally);
            let (mut blue, mut green) = (row(Arm::Blue, &minute.blue), row(Arm::Green, &minute.green));
            if let Some(view) = views.iter().find(|view| view.route == route) {
                blue.split = Some(view.recorded.split.complement());
                green.split = Some(view.recorded.split);
                let before = seen.judged.get(&route);
                let new = view.judgement.as_ref().filter(|now| before.is_none_or(|before| !Arc::ptr_eq(before, now)));
                green.verdict = new.map(|judgement| judgement.verdict);
                green.evidence = new.and_then(|judgement| strongest(judgement));
            }
            seen.waiting.extend([blue, green]);
        }
        seen.judged = views.into_iter().filter_map(|view| Some((view.route, view.judgement?))).collect();
        seen.give_up();
    }
}

impl Seen {
    /// Gives up the oldest rows, where too many wait.
    fn give_up(&mut self) {
        let too_many = self.waiting.len().saturating_sub(WAITING);
        self.waiting.drain(..too_many);
        self.lost += too_many as u64;
    }

    /// Remembers why a minute is not on disk, and logs the first of several reasons.
    fn fail(&mut self, error: &HistoryError) {
        let problem = with_sources(error);
        if self.problem.is_none() {
            warn!(error = %problem, "History cannot be written; trying again every minute");
        }
        self.problem = Some(problem);
    }
}

/// The strongest evidence of all rules.
fn strongest(judgement: &Judgement) -> Option<f64> {
    judgement.rules.iter().map(|rule| rule.evidence).reduce(f64::max)
}

/// When the minute began that has this moment.
fn minute(at: i64) -> i64 {
    at - at.rem_euclid(60)
}
