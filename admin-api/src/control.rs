//! The one place where a split changes.
//!
//! Loosening (green rises, a latch is cleared) goes to disk first and live second; tightening (green falls, a latch is
//! set) goes live first, at once, even while another change waits for the disk. Either way a change is acknowledged
//! only when both are done. What is live but could not be recorded is tried again every second.

mod chance;
mod plan;
mod refusal;
mod rows;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use chance::Chance;
use config::{Config, Route, Split};
use parking_lot::Mutex;
pub use plan::PlanChange;
pub use refusal::Refusal;
use rows::{Refusals, Rows};
use time::OffsetDateTime;
use tokio::{
    sync::{Mutex as AsyncMutex, MutexGuard as Turn, Notify, Semaphore, broadcast},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    AuditRow, Batch, DataPlane, Event, Happened, Incident, IncidentRow, InstallError, Judgement, Latch, Recorded,
    RouteState, Second, Signals, StateStore, StoreError, Verdict,
    event::{Announcer, rfc3339},
    incident::Trip,
    plan::{Run, Stamp, State, Wait},
    signal::Moment,
    store::{DONE, REFUSED},
};

/// Who asks for a change, and from where.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Actor {
    /// A person or a part of the process; never a secret.
    pub name: String,
    /// A peer's address, or `crossfade` for the process itself.
    pub from: String,
}

impl Actor {
    fn internal(name: &str) -> Self {
        Self { name: name.to_owned(), from: "crossfade".to_owned() }
    }
}

/// Why the control plane could not start, or a configuration could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Install(#[from] InstallError),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// One route as it is live.
#[derive(Clone, Debug)]
pub struct RouteView {
    pub route: String,
    pub recorded: Recorded,
    /// The disk has it, too.
    pub persisted: bool,
    /// The guard's last word; after a trip the one that tripped, until a reset.
    pub judgement: Option<Arc<Judgement>>,
    /// What its plan waits for, where one runs.
    pub wait: Option<Wait>,
}

/// What the guardian needs to judge a route.
#[derive(Clone, Debug)]
pub struct Watched {
    pub route: String,
    pub policy: config::Guard,
    pub split: Split,
    /// That of the state with this split.
    pub revision: u64,
    /// Only seconds above this one are evidence.
    pub after: Option<u64>,
    /// Counts resets. A judgement of an earlier epoch is void.
    pub epoch: u64,
}

/// Holds what is live, and changes it.
pub struct Control {
    plane: Arc<dyn DataPlane>,
    store: Arc<dyn StateStore>,
    /// The turn to write to disk. A loosening change keeps it from decision to live; a tightening one asks for it only
    /// when it is live already.
    turn: AsyncMutex<()>,
    /// Held for moments, never across an await. The plane is told of every change under it, so that it hears them in
    /// the order they were decided.
    now: Mutex<Now>,
    /// Locks by itself, also under `now`.
    signals: Signals,
    wake_recorder: Arc<Notify>,
    /// Threads that may read the store at a time. Whoever writes needs one, too, and so does much else.
    readers: Arc<Semaphore>,
}

struct Now {
    config: Arc<Config>,
    /// Another process is about to have the store: what changed now would be lost.
    frozen: bool,
    /// Exactly the configured ones.
    routes: BTreeMap<String, Entry>,
    /// Recorded once, not configured today.
    dormant: BTreeMap<String, Recorded>,
    /// Live states the disk does not have.
    unrecorded: BTreeSet<String>,
    /// Routes whose plan has gone on since the disk was told. No promise rests on it.
    progress: BTreeSet<String>,
    rows: Rows,
    /// Trips that are live and have no incident yet, oldest first.
    unexplained: VecDeque<Arc<Unexplained>>,
    refusals: Refusals,
    /// Why the last write failed, or what the one that is under way waits for.
    failing: Option<String>,
    announcer: Announcer,
}

/// Longest texts in an audit row that come from a caller, in characters.
const REASON_LENGTH: usize = 1_000;
const ROUTE_LENGTH: usize = 100;

/// How long a change, or a takeover, waits for the disk. A change that loosens is given up then, and one that is live
/// answered; whoever is to look after the disk is told.
const DISK_PATIENCE: Duration = Duration::from_secs(5);
const READERS: usize = 2;
const READ_PATIENCE: Duration = Duration::from_secs(2);

struct Entry {
    live: Recorded,
    next_revision: u64,
    after: Option<u64>,
    epoch: u64,
    judgement: Option<Arc<Judgement>>,
    /// When each of [`causes`] was last told.
    cautioned: [Option<Instant>; 2],
    /// What its plan waits for, as of its last second.
    wait: Option<Wait>,
    /// A step of its plan is on its way to the disk.
    entering: bool,
    /// The last second that a plan of it was told of.
    planned_until: Option<u64>,
}

impl Entry {
    fn new(live: Recorded) -> Self {
        let next_revision = live.revision + 1;
        let (wait, cautioned) = (None, [None; 2]);
        Self {
            next_revision,
            live,
            after: None,
            epoch: 0,
            judgement: None,
            cautioned,
            wait,
            entering: false,
            planned_until: None,
        }
    }

    fn reserve_revision(&mut self) -> u64 {
        let revision = self.next_revision;
        self.next_revision += 1;
        revision
    }

    /// Returns the state before. What a plan waited for before it was changed says nothing of what it waits for now.
    fn replace(&mut self, live: Recorded) -> Recorded {
        if live.plan != self.live.plan {
            self.wait = None;
        }
        std::mem::replace(&mut self.live, live)
    }

    /// Only seconds above `after` are evidence from now on.
    fn drop_evidence(&mut self, after: u64) {
        self.after = Some(after);
        self.epoch += 1;
        self.judgement = None;
        self.cautioned = [None; 2];
        if let Some(run) = &mut self.live.plan {
            run.restarted();
        }
    }
}

impl Control {
    /// Loads what is recorded, makes `config` live with it, and records the initial split of routes that are new.
    ///
    /// Needs a tokio runtime; a task of its own records what could not be written, until the control is dropped.
    /// Errors: the store cannot be read or written, or the plane refuses the configuration.
    pub async fn open(
        config: Arc<Config>,
        store: Arc<dyn StateStore>,
        plane: Arc<dyn DataPlane>,
    ) -> Result<Arc<Self>, ControlError> {
        let reader = store.clone();
        let (mut dormant, signals) = blocking(move || Ok((reader.load()?, reader.signals()?))).await?;
        dormant.values_mut().filter_map(|recorded| recorded.plan.as_mut()).for_each(Run::restarted);
        let control = Arc::new(Self {
            plane,
            store,
            turn: AsyncMutex::new(()),
            now: Mutex::new(Now {
                config: Arc::new(Config { routes: Vec::new(), ..(*config).clone() }),
                frozen: false,
                routes: BTreeMap::new(),
                dormant,
                unrecorded: BTreeSet::new(),
                progress: BTreeSet::new(),
                rows: Rows::default(),
                unexplained: VecDeque::new(),
                refusals: Refusals::default(),
                failing: None,
                announcer: Announcer::new(config.routes.len()),
            }),
            signals: Signals::new(signals),
            wake_recorder: Arc::new(Notify::new()),
            readers: Arc::new(Semaphore::new(READERS)),
        });
        let turn = control.turn.lock().await;
        control.install(&config)?;
        control.write(&turn, None).await?;
        drop(turn);
        tokio::spawn(keep_recording(Arc::downgrade(&control), control.wake_recorder.clone()));
        Ok(control)
    }

    /// Gives green a share. When it returns `Ok`, the share is on disk and live. The share it has already is no change.
    ///
    /// `if_match`: the revision the caller believes to be current. Errors: see [`Refusal`]; every one is audited.
    pub async fn set_split(
        self: &Arc<Self>,
        route: &str,
        split: Split,
        actor: &Actor,
        if_match: Option<u64>,
    ) -> Result<RouteView, Refusal> {
        let change = Change { action: "split", route: route.to_owned(), actor: actor.clone(), reason: String::new() };
        let control = self.clone();
        self.detached(async move { control.change_split(change, split, if_match).await }).await
    }

    /// Takes green off and latches the route. Errors: as of [`Self::set_split`].
    pub async fn rollback(self: &Arc<Self>, route: &str, reason: &str, actor: &Actor) -> Result<RouteView, Refusal> {
        let change =
            Change { action: "rollback", route: route.to_owned(), actor: actor.clone(), reason: reason.to_owned() };
        let control = self.clone();
        self.detached(async move {
            let rolled_back =
                control.roll_back(&change).map_err(|refusal| control.audit_refusal(&change, None, refusal))?;
            control.settle(rolled_back).await
        })
        .await
    }

    /// Clears a route's latch, if it has one, and the guard's evidence. Arguments and errors: as of
    /// [`Self::set_split`].
    pub async fn reset(
        self: &Arc<Self>,
        route: &str,
        reason: &str,
        actor: &Actor,
        if_match: Option<u64>,
    ) -> Result<RouteView, Refusal> {
        let change =
            Change { action: "reset", route: route.to_owned(), actor: actor.clone(), reason: reason.to_owned() };
        let control = self.clone();
        self.detached(async move {
            let cleared = control.clear(change.clone(), if_match).await;
            cleared.map_err(|refusal| control.audit_refusal(&change, None, refusal))
        })
        .await
    }

    /// Takes green off because it broke its promises. Live when it returns, recorded soon after;
    /// [`Self::explain_trips`] says why.
    ///
    /// Returns the revision of the state it made. `None`: there was nothing to take off, or the judgement rests on
    /// evidence that a reset has dropped since.
    pub fn trip(&self, route: &str, epoch: u64, judgement: &Arc<Judgement>) -> Option<u64> {
        self.take_off(route, epoch, judgement, Actor::internal("guard"))
    }

    fn take_off(&self, route: &str, epoch: u64, judgement: &Arc<Judgement>, actor: Actor) -> Option<u64> {
        let mut guard = self.now.lock();
        let now = &mut *guard;
        let config = now.config.clone();
        let settings = config.routes.iter().find(|settings| settings.name == route)?;
        let entry = now.routes.get_mut(route).filter(|_| !now.frozen)?;
        // A plan whose green gets nothing but copies so far ends as well.
        let planned = entry.live.plan.as_ref().is_some_and(Run::is_running);
        if entry.epoch != epoch || entry.live.latch.is_some() || (entry.live.split == Split::NONE && !planned) {
            return None;
        }
        // There is nothing to take off yet: its plan begins with what is mended by then.
        if is_untouched(&entry.live) {
            // Who is asked for an approval goes on being asked for it.
            if !matches!(entry.wait, Some(Wait::Approval(_))) {
                entry.wait = Some(Wait::Verdict(judgement.reason.clone()));
            }
            return None;
        }
        let at = OffsetDateTime::now_utc();
        let before = entry.live.clone();
        let latch = Latch { reason: judgement.reason.clone(), at: rfc3339(at), actor: actor.name.clone() };
        let tripped = Recorded {
            split: Split::NONE,
            revision: entry.reserve_revision(),
            latch: Some(latch),
            plan: rolled_back(&entry.live, stamp(at, &actor, &judgement.reason)),
        };
        entry.judgement = Some(judgement.clone());

        let change =
            Change { action: TRIP, route: route.to_owned(), actor: actor.clone(), reason: judgement.reason.clone() };
        let revision = tripped.revision;
        self.go_live(now, &change, tripped.clone(), at);
        // Green is off, and what explains it may take its milliseconds: those of other routes come first.
        now.unexplained.push_back(Arc::new(Unexplained {
            route: settings.clone(),
            judgement: judgement.clone(),
            seconds: self.plane.seconds(route, None),
            before,
            tripped,
            actor: actor.name,
            at,
        }));
        Some(revision)
    }

    /// Writes the incidents of the trips that have none yet, and announces them.
    pub fn explain_trips(&self) {
        let next = || self.now.lock().unexplained.front().cloned();
        while let Some(trip) = next() {
            let explanation = trip.explain();
            self.now.lock().explained(&trip, explanation);
            self.wake_recorder.notify_one();
        }
    }

    /// Makes another configuration live. Routes that are new start with their recorded split, or their initial one.
    ///
    /// Errors: the plane refuses it, and nothing has changed.
    pub async fn reload(self: &Arc<Self>, config: Arc<Config>) -> Result<(), ControlError> {
        let control = self.clone();
        let reload = tokio::spawn(async move {
            let turn = control.turn.lock().await;
            if control.is_frozen() {
                return Err(Refusal::Frozen.into());
            }
            let installed = control.install(&config);
            if let Err(error) = &installed {
                control.reload_refused(&error.to_string());
            }
            installed?;
            info!(routes = config.routes.len(), "Configuration is live");
            // The new routes are live and start the same way after a crash; a failed write is tried again.
            let _ = control.write(&turn, None).await;
            let routes = config.routes.iter().map(|route| route.name.clone()).collect();
            let what = Happened::Reload { outcome: "done".to_owned(), routes, reason: String::new() };
            control.now.lock().announcer.announce(OffsetDateTime::now_utc(), what);
            Ok(())
        });
        reload.await.unwrap_or_else(|_| Err(InstallError("the reload was abandoned; try it again".to_owned()).into()))
    }

    /// Tells listeners of a configuration that went no further than its faults.
    pub fn reload_refused(&self, reason: &str) {
        let mut now = self.now.lock();
        let routes = now.routes.keys().cloned().collect();
        let what = Happened::Reload { outcome: "refused".to_owned(), routes, reason: reason.to_owned() };
        now.announcer.announce(OffsetDateTime::now_utc(), what);
    }

    /// Every configured route, in the configuration's order.
    pub fn states(&self) -> Vec<RouteView> {
        let now = self.now.lock();
        now.config.routes.iter().filter_map(|route| now.view(&route.name)).collect()
    }

    pub fn state(&self, route: &str) -> Result<RouteView, Refusal> {
        let now = self.now.lock();
        now.view(route).ok_or_else(|| now.unknown(route))
    }

    pub fn config(&self) -> Arc<Config> {
        self.now.lock().config.clone()
    }

    pub fn plane(&self) -> &Arc<dyn DataPlane> {
        &self.plane
    }

    pub fn signals(&self) -> &Signals {
        &self.signals
    }

    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.now.lock().announcer.subscribe()
    }

    /// For the first caller also what has happened since [`Self::open`] began: a plan may have been paused by then.
    pub fn subscribe_early(&self) -> broadcast::Receiver<Arc<Event>> {
        self.now.lock().announcer.subscribe_early()
    }

    /// Routes whose green gets traffic, or whose plan runs, with a guard that is armed; none while frozen. Forgets what
    /// was thought of the others, but for latched ones.
    pub fn watched(&self) -> Vec<Watched> {
        let mut guard = self.now.lock();
        let now = &mut *guard;
        let mut watched = Vec::new();
        // A verdict that cannot take green off would only be noise.
        if now.frozen {
            return watched;
        }
        for route in &now.config.routes {
            let Some(entry) = now.routes.get_mut(&route.name) else { continue };
            if entry.live.latch.is_some() {
                continue;
            }
            let split = entry.live.split;
            let planned = entry.live.plan.as_ref().is_some_and(Run::is_running);
            // Of a green that was never used, nobody expects to hear.
            if planned && is_untouched(&entry.live) {
                self.signals.listen(Some(&route.name), Instant::now());
            }
            match route.guard.filter(|_| split > Split::NONE || planned) {
                Some(policy) => {
                    let (revision, after, epoch) = (entry.live.revision, entry.after, entry.epoch);
                    watched.push(Watched { route: route.name.clone(), policy, split, revision, after, epoch });
                }
                None => entry.judgement = None,
            }
        }
        watched
    }

    /// Remembers what the guard thinks of a route, and announces a change of its mind.
    pub fn note(&self, route: &str, epoch: u64, judgement: &Arc<Judgement>) {
        let mut guard = self.now.lock();
        let now = &mut *guard;
        let Some(entry) = now.routes.get_mut(route) else { return };
        if entry.epoch != epoch || entry.live.latch.is_some() {
            return;
        }
        let before = entry.judgement.replace(judgement.clone());
        let (at, instant) = (OffsetDateTime::now_utc(), Instant::now());
        let known = before.as_deref().map_or([None; 2], causes);
        // A plan that pauses says so itself.
        let planned = entry.live.plan.as_ref().is_some_and(|run| run.state == State::Running);
        for ((cause, known), last) in causes(judgement).into_iter().zip(known).zip(&mut entry.cautioned) {
            let news = cause.filter(|(cause, _)| known.is_none() && (!planned || *cause != PAUSE));
            let Some((cause, reason)) = news else { continue };
            // What comes and goes is told once in a while.
            if last.is_none_or(|last| instant >= last + CAUTION_AGAIN) {
                *last = Some(instant);
                let (cause, reason) = (cause.to_owned(), reason.to_owned());
                now.announcer.announce(at, Happened::Caution { route: route.to_owned(), cause, reason });
            }
        }
        let was = before.map(|before| before.verdict);
        if was == Some(judgement.verdict) || (was.is_none() && judgement.verdict == Verdict::Unknown) {
            return;
        }
        let (verdict, reason) = (judgement.verdict, judgement.reason.clone());
        now.announcer.announce(at, Happened::Verdict { route: route.to_owned(), was, verdict, reason });
    }

    /// Audits an attempt that was refused before it got here. `reason`: what the caller was told.
    ///
    /// Of more than 60 a minute the rest is only counted: a caller in a loop must not fill the disk.
    pub fn refused(
        &self,
        action: &'static str,
        route: Option<&str>,
        after: Option<Split>,
        actor: &Actor,
        reason: &str,
    ) {
        let mut now = self.now.lock();
        if !now.refusals.admit(Instant::now()) {
            return;
        }
        let live = route.and_then(|route| now.routes.get(route)).map(|entry| &entry.live);
        let row = AuditRow {
            at: rfc3339(OffsetDateTime::now_utc()),
            actor: actor.name.clone(),
            from: actor.from.clone(),
            action: action.to_owned(),
            // The name of one that there is fits its configuration; any other is what a caller sent.
            route: route.map(|route| if live.is_some() { route.to_owned() } else { cut(route, ROUTE_LENGTH) }),
            before: live.map(|live| live.split),
            after,
            revision: live.map(|live| live.revision),
            outcome: REFUSED.to_owned(),
            reason: cut(reason, REASON_LENGTH),
        };
        now.rows.audit(row);
        drop(now);
        self.wake_recorder.notify_one();
    }

    /// Incidents as JSON objects, newest first, with those the disk does not have yet.
    pub async fn incidents(&self, route: Option<&str>, limit: usize) -> Result<Vec<String>, StoreError> {
        let wanted = route.map(str::to_owned);
        let mut incidents = self.waiting_incidents(|row| route.is_none_or(|route| row.route == route));
        let recorded = self.read(move |store| store.incidents(wanted.as_deref(), limit)).await?;
        // A row that was written in between is in both.
        incidents.retain(|row| !recorded.contains(row));
        incidents.extend(recorded);
        incidents.truncate(limit);
        Ok(incidents)
    }

    /// One incident as a JSON object.
    pub async fn incident(&self, id: &str) -> Result<Option<String>, StoreError> {
        if let Some(waiting) = self.waiting_incidents(|row| row.id == id).pop() {
            return Ok(Some(waiting));
        }
        let id = id.to_owned();
        self.read(move |store| store.incident(&id)).await
    }

    /// Audit rows, newest first.
    pub async fn audit(&self, route: Option<&str>, limit: usize) -> Result<Vec<AuditRow>, StoreError> {
        let route = route.map(str::to_owned);
        self.read(move |store| store.audit(route.as_deref(), limit)).await
    }

    /// Reads what is on disk. Errors: also when there is no answer in time; the thread is lost to other readers until
    /// there is one, whether or not anybody still waits for it.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn StateStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (store, readers) = (self.store.clone(), self.readers.clone());
        let read = async {
            let place = readers.acquire_owned().await;
            blocking(move || {
                let read = work(&*store);
                drop(place);
                read
            })
            .await
        };
        timeout(READ_PATIENCE, read).await.unwrap_or_else(|_| Err(silent(READ_PATIENCE)))
    }

    /// Writes what the disk does not have. Done by itself; call it before the process ends, so that nothing waits.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let turn = self.turn.lock().await;
        self.write(&turn, None).await
    }

    /// Refuses every change from now on, writes what the disk does not have, and lets another process have the store.
    /// Traffic follows what is live. Errors: it could not be written or closed, or not in time, and nothing is frozen.
    pub async fn freeze(self: &Arc<Self>) -> Result<(), StoreError> {
        // Before anything is frozen: while a disk hangs green must come off.
        self.flush_within(DISK_PATIENCE).await?;
        let turn = timeout(DISK_PATIENCE, self.turn.lock()).await.map_err(|_| silent(DISK_PATIENCE))?;
        self.now.lock().frozen = true;
        let written = self.write(&turn, None).await;
        let store = self.store.clone();
        let let_go = match written {
            Ok(()) => blocking(move || store.let_go()).await,
            Err(error) => Err(error),
        };
        if let_go.is_err() {
            self.unfreeze();
        }
        let_go
    }

    fn unfreeze(&self) {
        let mut now = self.now.lock();
        // Frozen, nobody could push: that was not silence.
        self.signals.listen(None, Instant::now());
        now.frozen = false;
    }

    /// Changes again, and takes the store back. Green can be lowered and taken off at once; whatever else changes waits
    /// for the store. Errors: the store cannot be had yet. It is tried again, and changes are what they are with a disk
    /// that fails.
    pub async fn thaw(&self) -> Result<(), StoreError> {
        // With the turn, so that no reload comes before what the other process has recorded is known.
        let turn = self.turn.lock().await;
        self.unfreeze();
        let store = self.store.clone();
        let recorded = blocking(move || {
            store.take_back()?;
            store.load()
        })
        .await;
        // The other process may have recorded routes that are new to us.
        if let Ok(recorded) = &recorded {
            let now = &mut *self.now.lock();
            let dormant = recorded.iter().filter(|(route, _)| !now.routes.contains_key(*route));
            now.dormant = dormant.map(|(route, recorded)| (route.clone(), recorded.clone())).collect();
        }
        // What waited; it is tried again when this fails.
        let _ = self.write(&turn, None).await;
        recorded.map(drop)
    }

    pub fn is_frozen(&self) -> bool {
        self.now.lock().frozen
    }

    /// Audit rows and incidents that were lost because the disk failed for long.
    pub fn rows_dropped(&self) -> u64 {
        self.now.lock().rows.dropped
    }

    /// Refused attempts that were only counted, because there were too many in their minute.
    pub fn refusals_skipped(&self) -> u64 {
        self.now.lock().refusals.skipped
    }

    fn waiting_incidents(&self, wanted: impl Fn(&IncidentRow) -> bool) -> Vec<String> {
        let now = self.now.lock();
        let rows = now.rows.incidents.iter().rev();
        rows.filter(|(_, row)| wanted(row)).map(|(_, row)| row.json.clone()).collect()
    }

    async fn change_split(
        self: &Arc<Self>,
        change: Change,
        split: Split,
        if_match: Option<u64>,
    ) -> Result<RouteView, Refusal> {
        let audited = |refusal| self.audit_refusal(&change, Some(split), refusal);
        // Lowering must not wait for a turn that a raise may hold as long as the disk takes.
        let seen = match self.decide(&change, split, if_match, None).map_err(audited)? {
            Step::Done(view) => return self.settle(*view).await,
            Step::Raise { before, .. } => before.revision,
        };
        let (control, raise) = (self.clone(), change.clone());
        let raised = self.in_time(|chance| async move {
            let turn = control.turn_in_time(&chance).await?;
            match control.decide(&raise, split, Some(seen), Some(&turn)).map_err(Refusal::since_arrival)? {
                Step::Raise { before, raised } => control.loosen(&turn, &raise, &before, *raised, &chance).await,
                Step::Done(_) => Err(Refusal::Overtaken { route: raise.route }),
            }
        });
        raised.await.map_err(audited)
    }

    /// What a new split means for what is live now. Lowering is done at once.
    fn decide(
        &self,
        change: &Change,
        split: Split,
        if_match: Option<u64>,
        turn: Option<&Turn<'_, ()>>,
    ) -> Result<Step, Refusal> {
        let mut guard = self.now.lock();
        let now = &mut *guard;
        let entry = now.matching(&change.route, if_match)?;
        if split > entry.live.split {
            if let Some(latch) = &entry.live.latch {
                return Err(Refusal::Latched { route: change.route.clone(), reason: latch.reason.clone() });
            }
            // Without the turn this is only a look ahead.
            let revision = if turn.is_some() { entry.reserve_revision() } else { entry.next_revision };
            let plan = taken_over(&entry.live, change, split);
            let raised = Box::new(Recorded { split, revision, latch: None, plan });
            return Ok(Step::Raise { before: Box::new(entry.live.clone()), raised });
        }
        if split < entry.live.split {
            let plan = taken_over(&entry.live, change, split);
            let lowered = Recorded { split, revision: entry.reserve_revision(), plan, ..entry.live.clone() };
            self.go_live(now, change, lowered, OffsetDateTime::now_utc());
        }
        now.view(&change.route).map(|view| Step::Done(Box::new(view))).ok_or_else(|| now.unknown(&change.route))
    }

    fn roll_back(&self, change: &Change) -> Result<RouteView, Refusal> {
        let mut guard = self.now.lock();
        let now = &mut *guard;
        let entry = now.matching(&change.route, None)?;
        if entry.live.split == Split::NONE && entry.live.latch.is_some() {
            return now.view(&change.route).ok_or_else(|| now.unknown(&change.route));
        }
        let at = OffsetDateTime::now_utc();
        // The first reason is why green is off; a later one does not change that.
        let latch = entry.live.latch.clone().unwrap_or_else(|| Latch {
            reason: change.reason.clone(),
            at: rfc3339(at),
            actor: change.actor.name.clone(),
        });
        let rolled_back = Recorded {
            split: Split::NONE,
            revision: entry.reserve_revision(),
            latch: Some(latch),
            plan: rolled_back(&entry.live, stamp(at, &change.actor, &change.reason)),
        };
        self.go_live(now, change, rolled_back, at);
        now.view(&change.route).ok_or_else(|| now.unknown(&change.route))
    }

    async fn clear(self: &Arc<Self>, change: Change, if_match: Option<u64>) -> Result<RouteView, Refusal> {
        let seen = self.revision(&change.route, if_match)?;
        let control = self.clone();
        let cleared = self.in_time(|chance| async move {
            let turn = control.turn_in_time(&chance).await?;
            let (before, cleared) = {
                let mut now = control.now.lock();
                let entry = now.matching(&change.route, Some(seen)).map_err(Refusal::since_arrival)?;
                let before = entry.live.clone();
                let cleared = before.latch.is_some().then(|| Recorded {
                    revision: entry.reserve_revision(),
                    latch: None,
                    ..before.clone()
                });
                (before, cleared)
            };
            if let Some(cleared) = cleared {
                return control.loosen(&turn, &change, &before, cleared, &chance).await;
            }
            let after = control.forget(&change.route);
            let view = {
                let mut guard = control.now.lock();
                let now = &mut *guard;
                let entry = now.matching(&change.route, Some(seen)).map_err(Refusal::since_arrival)?;
                chance.take()?;
                entry.drop_evidence(after);
                let at = OffsetDateTime::now_utc();
                now.rows.audit(change.row(&before, &before, at));
                now.announce(&change, &before, &before, at);
                now.view(&change.route).ok_or_else(|| now.unknown(&change.route))?
            };
            drop(turn);
            control.settle(view).await
        });
        cleared.await
    }

    /// The revision of a route that is about to be changed. Errors: as of [`Now::matching`].
    fn revision(&self, route: &str, if_match: Option<u64>) -> Result<u64, Refusal> {
        Ok(self.now.lock().matching(route, if_match)?.live.revision)
    }

    /// Errors: it does not come in time.
    async fn turn_in_time(&self, chance: &Chance) -> Result<Turn<'_, ()>, Refusal> {
        timeout_at(chance.until(), self.turn.lock()).await.map_err(|_| chance.missed())
    }

    /// Disk first, then live, then the audit trail, which says what came of it.
    ///
    /// `before`: the state that the decision rests on. What has changed since, wins. `chance`: what is not live by its end
    /// never is.
    async fn loosen(
        &self,
        turn: &Turn<'_, ()>,
        change: &Change,
        before: &Recorded,
        loosened: Recorded,
        chance: &Chance,
    ) -> Result<RouteView, Refusal> {
        let unchanged = self.now.lock().live(&change.route).is_some_and(|live| live.revision == before.revision);
        if unchanged {
            self.write(turn, Some((&change.route, &loosened))).await.map_err(Refusal::NotRecorded)?;
        }
        // A green that starts anew is not judged by what an earlier attempt left behind.
        let starts_anew = before.split == Split::NONE && loosened.split > Split::NONE;
        let clears = starts_anew || (loosened.latch.is_none() && before.latch.is_some());
        let after = clears.then(|| self.forget(&change.route));
        let view = self.loosened(change, before, loosened, after, chance);
        // Overtaken, or too late: the disk has a split that was refused. Else: it is live and on disk, and what is left is its row,
        // which is tried again when this fails.
        let _ = self.write(turn, None).await;
        view
    }

    /// The end of [`Self::loosen`]: live, if nothing has come between and it is not too late. `after`: what ends the
    /// evidence, if it is cleared.
    fn loosened(
        &self,
        change: &Change,
        before: &Recorded,
        loosened: Recorded,
        after: Option<u64>,
        chance: &Chance,
    ) -> Result<RouteView, Refusal> {
        let at = OffsetDateTime::now_utc();
        let mut guard = self.now.lock();
        let now = &mut *guard;
        let entry = now.matching(&change.route, None)?;
        if entry.live.revision != before.revision {
            now.unrecorded.insert(change.route.clone());
            return Err(Refusal::Overtaken { route: change.route.clone() });
        }
        let may_go_live = plan::may_go_live(&change.route, before, &loosened, entry.judgement.as_deref());
        if let Err(refusal) = may_go_live.and_then(|()| chance.take()) {
            now.unrecorded.insert(change.route.clone());
            return Err(refusal);
        }
        if let Some(after) = after {
            entry.drop_evidence(after);
        }
        self.plane.apply(&change.route, loosened.state());
        entry.replace(loosened.clone());
        now.unrecorded.remove(&change.route);
        now.progress.remove(&change.route);
        now.rows.audit(change.row(before, &loosened, at));
        now.announce(change, before, &loosened, at);
        change.log(before, &loosened);
        now.view(&change.route).ok_or_else(|| now.unknown(&change.route))
    }

    /// Live at once; the disk later. For changes that tighten.
    fn go_live(&self, now: &mut Now, change: &Change, tightened: Recorded, at: OffsetDateTime) {
        let Some(entry) = now.routes.get_mut(&change.route) else { return };
        self.plane.apply(&change.route, tightened.state());
        let before = entry.replace(tightened.clone());
        now.unrecorded.insert(change.route.clone());
        now.rows.audit(change.row(&before, &tightened, at));
        now.announce(change, &before, &tightened, at);
        if change.action != TRIP {
            change.log(&before, &tightened);
        }
    }

    /// Waits until a state that is live, or one that has followed it, is on disk. The answer is that state. A disk that
    /// hangs is answered like one that fails: whoever took green off has to know that it is off.
    async fn settle(self: &Arc<Self>, view: RouteView) -> Result<RouteView, Refusal> {
        let pending = {
            let now = self.now.lock();
            now.unrecorded.contains(&view.route) || !now.rows.is_empty()
        };
        if pending {
            let written = self.flush_within(DISK_PATIENCE).await;
            if self.now.lock().unrecorded.contains(&view.route) {
                written.map_err(Refusal::LiveNotRecorded)?;
            }
        }
        Ok(RouteView { persisted: true, ..view })
    }

    /// Writes what the disk does not have. Errors: also when that takes longer. A write that has begun goes on then, and
    /// what comes of it is taken note of; what has not begun is left to the next.
    async fn flush_within(self: &Arc<Self>, patience: Duration) -> Result<(), StoreError> {
        let (control, given_up) = (self.clone(), CancellationToken::new());
        let until = given_up.clone();
        let _given_up = given_up.drop_guard();
        let flush = tokio::spawn(async move {
            match until.run_until_cancelled(control.turn.lock()).await {
                Some(turn) => control.write(&turn, None).await,
                None => Err(silent(patience)),
            }
        });
        match timeout(patience, flush).await {
            Ok(flushed) => flushed.unwrap_or_else(|_| Err(abandoned())),
            Err(_) => Err(silent(patience)),
        }
    }

    /// Evidence up to now says nothing any more: what is under way, and what ended up to the second that is returned,
    /// the one that is not over yet.
    fn forget(&self, route: &str) -> u64 {
        // In this order: what began after the call and ends before the look counts too little rather than too much.
        self.plane.forget(route);
        self.signals.forget(route, Instant::now());
        let last = self.plane.observe(route).and_then(|seen| seen.seconds.last().map(|second| second.at));
        last.map_or(0, |last| last + 1)
    }

    /// Makes a configuration live with the states its routes have, had, or start with.
    fn install(&self, config: &Arc<Config>) -> Result<(), InstallError> {
        let mut guard = self.now.lock();
        let now = &mut *guard;
        let start = |route: &Route| {
            let live = now.routes.get(&route.name).map(|entry| entry.live.clone());
            let recorded = || now.dormant.get(&route.name).cloned();
            live.or_else(recorded)
                .map(|known| (known, false))
                .unwrap_or_else(|| (Recorded { split: route.initial_split, revision: 1, ..Recorded::default() }, true))
        };
        let starts: BTreeMap<String, (Recorded, bool)> =
            config.routes.iter().map(|route| (route.name.clone(), start(route))).collect();
        let states: BTreeMap<String, RouteState> =
            starts.iter().map(|(route, (recorded, _))| (route.clone(), recorded.state())).collect();
        // Under the lock: a rollback in between would be undone by the states we hand over.
        self.plane.install(config, &states)?;

        let at = OffsetDateTime::now_utc();
        let mut entries = std::mem::take(&mut now.routes);
        for (route, (recorded, new)) in starts {
            now.dormant.remove(&route);
            if new {
                let initial = Change {
                    action: "initial",
                    route: route.clone(),
                    actor: Actor::internal("configuration"),
                    reason: String::new(),
                };
                now.rows.audit(AuditRow { before: None, ..initial.row(&recorded, &recorded, at) });
                now.unrecorded.insert(route.clone());
            }
            let known = entries.remove(&route);
            let went_on = known.is_some();
            let mut entry = known.unwrap_or_else(|| Entry::new(recorded));
            // What happened while nobody judged is not held against green afterwards.
            let armed = |config: &Config| config.routes.iter().any(|r| r.name == route && r.guard.is_some());
            if went_on && armed(config) && !armed(&now.config) {
                entry.drop_evidence(self.forget(&route));
            }
            now.routes.insert(route, entry);
        }
        now.dormant.extend(entries.into_iter().map(|(route, entry)| (route, entry.live)));
        self.signals.follow(config, Moment::now());
        now.config = config.clone();
        self.pause_unguarded(now, at);
        Ok(())
    }

    /// Writes what the disk does not have, and a loosened state that is not live yet.
    async fn write(&self, _turn: &Turn<'_, ()>, loosened: Option<(&str, &Recorded)>) -> Result<(), StoreError> {
        let (mut batch, last_row) = loop {
            // A trip and its incident belong in one batch.
            self.explain_trips();
            let now = self.now.lock();
            if now.unexplained.is_empty() {
                break now.batch();
            }
        };
        batch.signals = self.signals.unrecorded();
        if let Some((route, recorded)) = loosened {
            batch.states.insert(route.to_owned(), recorded.clone());
        }
        if batch.is_empty() {
            return Ok(());
        }
        let (store, batch) = (self.store.clone(), Arc::new(batch));
        let written = {
            let batch = batch.clone();
            let mut record = pin!(blocking(move || store.record(&batch)));
            match timeout(DISK_PATIENCE, &mut record).await {
                Ok(written) => written,
                // It may hang for hours, and somebody has to know.
                Err(_) => {
                    self.now.lock().recording_fails(format!("its disk has not answered for {DISK_PATIENCE:?}"));
                    record.await
                }
            }
        };
        let mut guard = self.now.lock();
        let now = &mut *guard;
        match &written {
            Ok(()) => {
                for (route, recorded) in &batch.states {
                    let live = now.live(route);
                    let (current, whole) =
                        (live.is_some_and(|live| live.revision == recorded.revision), live == Some(recorded));
                    if current {
                        now.unrecorded.remove(route);
                    }
                    if whole {
                        now.progress.remove(route);
                    }
                }
                now.rows.written(last_row);
                self.signals.written(&batch.signals);
                if now.failing.take().is_some() {
                    info!("State file can be written again");
                    let what = Happened::Recording { works: true, reason: String::new() };
                    now.announcer.announce(OffsetDateTime::now_utc(), what);
                }
            }
            // Frozen: it waits until the store is back.
            Err(StoreError::LetGo { .. }) => {}
            Err(error) => {
                now.recording_fails(with_sources(error));
                // A write that failed may have reached the disk all the same, so what is live is written again.
                now.unrecorded.extend(loosened.map(|(route, _)| route.to_owned()));
                self.wake_recorder.notify_one();
            }
        }
        written
    }

    fn audit_refusal(&self, change: &Change, after: Option<Split>, refusal: Refusal) -> Refusal {
        // Frozen: the audit trail is the other process's by now.
        if !matches!(refusal, Refusal::Frozen) {
            self.refused(change.action, Some(&change.route), after, &change.actor, &refusal.to_string());
        }
        refusal
    }

    /// Runs a change to its end, even when its caller goes away half-way: a dropped request must not leave the disk and
    /// the live state apart. It ends when everybody follows it.
    async fn detached<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, Refusal>> + Send + 'static,
    ) -> Result<T, Refusal> {
        let plane = self.plane.clone();
        let change = tokio::spawn(async move {
            let changed = change.await?;
            plane.followed().await;
            Ok(changed)
        });
        change.await.unwrap_or(Err(Refusal::Abandoned))
    }

    /// Runs a change that loosens, as far as it gets until the disk has not answered for too long: who was told that
    /// nothing has changed must not see it change minutes later.
    async fn in_time<C>(&self, change: impl FnOnce(Arc<Chance>) -> C) -> Result<RouteView, Refusal>
    where
        C: Future<Output = Result<RouteView, Refusal>> + Send + 'static,
    {
        let chance = Arc::new(Chance::new(Instant::now(), DISK_PATIENCE));
        let mut change = pin!(self.detached(change(chance.clone())));
        match timeout_at(chance.until(), &mut change).await {
            Ok(changed) => changed,
            Err(_) if chance.give_up() => Err(chance.missed()),
            // It is live, and what is left is its row.
            Err(_) => change.await,
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.wake_recorder.notify_one();
    }
}

impl Now {
    fn live(&self, route: &str) -> Option<&Recorded> {
        self.routes.get(route).map(|entry| &entry.live).or_else(|| self.dormant.get(route))
    }

    fn view(&self, route: &str) -> Option<RouteView> {
        let entry = self.routes.get(route)?;
        Some(RouteView {
            route: route.to_owned(),
            recorded: entry.live.clone(),
            persisted: !self.unrecorded.contains(route),
            judgement: entry.judgement.clone(),
            wait: entry.wait.clone().filter(|_| entry.live.plan.as_ref().is_some_and(Run::is_live)),
        })
    }

    fn unknown(&self, route: &str) -> Refusal {
        let known = self.config.routes.iter().map(|route| route.name.clone()).collect();
        Refusal::UnknownRoute { route: route.to_owned(), known }
    }

    /// The route that a change is for. Errors: nothing may change, there is no such route, or it has another revision
    /// than `if_match`.
    fn matching(&mut self, route: &str, if_match: Option<u64>) -> Result<&mut Entry, Refusal> {
        if self.frozen {
            return Err(Refusal::Frozen);
        }
        let Some(entry) = self.routes.get_mut(route) else {
            let known = self.config.routes.iter().map(|route| route.name.clone()).collect();
            return Err(Refusal::UnknownRoute { route: route.to_owned(), known });
        };
        match if_match.filter(|given| *given != entry.live.revision) {
            Some(given) => Err(Refusal::Stale { route: route.to_owned(), current: entry.live.revision, given }),
            None => Ok(entry),
        }
    }

    /// `reason`: why the disk has not what it should have.
    fn recording_fails(&mut self, reason: String) {
        if self.failing.is_none() {
            error!(error = %reason, "State file cannot be written; trying again every second");
            let what = Happened::Recording { works: false, reason: reason.clone() };
            self.announcer.announce(OffsetDateTime::now_utc(), what);
        }
        self.failing = Some(reason);
    }

    fn announce(&mut self, change: &Change, before: &Recorded, after: &Recorded, at: OffsetDateTime) {
        // Who hears what came after a trip has heard of the trip.
        if let Some(trip) = self.unexplained.iter().find(|trip| trip.route.name == change.route).cloned() {
            self.explained(&trip, trip.explain());
        }
        let plan = plan::happened(change, before, after);
        change.happened(before, after).into_iter().chain(plan).for_each(|what| self.announcer.announce(at, what));
    }

    fn explained(&mut self, trip: &Arc<Unexplained>, (incident, json): (Incident, serde_json::Result<String>)) {
        // Else somebody was quicker.
        let Some(waiting) = self.unexplained.iter().position(|other| Arc::ptr_eq(other, trip)) else { return };
        self.unexplained.remove(waiting);
        let route = &incident.route;
        warn!(route, incident = %incident.id, split_before = %incident.split_before, reason = %incident.reason, "Tripped");
        match json {
            Ok(json) => self.rows.incident(IncidentRow { id: incident.id.clone(), route: route.clone(), json }),
            Err(error) => error!(%error, route, "Incident could not be written as JSON"),
        }
        self.announcer.announce(trip.at, Happened::Trip { incident: Box::new(incident) });
    }

    /// All that the disk does not have, and the number of the last row in it.
    fn batch(&self) -> (Batch, u64) {
        let state = |route: &String| Some((route.clone(), self.live(route)?.clone()));
        let batch = Batch {
            states: self.unrecorded.union(&self.progress).filter_map(state).collect(),
            audit: self.rows.audit.iter().map(|(_, row)| row.clone()).collect(),
            incidents: self.rows.incidents.iter().map(|(_, row)| row.clone()).collect(),
            signals: Vec::new(),
        };
        (batch, self.rows.seen)
    }
}

/// A trip, and what its incident is written from.
struct Unexplained {
    route: Route,
    judgement: Arc<Judgement>,
    seconds: Vec<Arc<Second>>,
    before: Recorded,
    tripped: Recorded,
    actor: String,
    at: OffsetDateTime,
}

impl Unexplained {
    /// Takes milliseconds.
    fn explain(&self) -> (Incident, serde_json::Result<String>) {
        // Of whom the judgement is about.
        let seconds: Vec<Arc<Second>> = self.seconds.iter().cloned().map(Second::divided).collect();
        let incident = Incident::of(&Trip {
            route: &self.route,
            judgement: &self.judgement,
            seconds: &seconds,
            before: &self.before,
            tripped: &self.tripped,
            actor: &self.actor,
            at: self.at,
        });
        let json = serde_json::to_string(&incident);
        (incident, json)
    }
}

/// Why somebody should look at a route although green was not taken off: cause and reason.
fn causes(judgement: &Judgement) -> [Option<(&'static str, &str)>; 2] {
    let shared = judgement.shared_cause && judgement.verdict != Verdict::Breach;
    [
        shared.then_some((SHARED_CAUSE, judgement.reason.as_str())),
        judgement.pause.as_deref().map(|reason| (PAUSE, reason)),
    ]
}

pub(crate) const SHARED_CAUSE: &str = "shared_cause";
const PAUSE: &str = "pause";
const CAUTION_AGAIN: Duration = Duration::from_secs(600);

fn cut(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

enum Step {
    /// Live, or nothing to do; what is left is the disk.
    Done(Box<RouteView>),
    /// `before`: the state it was decided on.
    Raise { before: Box<Recorded>, raised: Box<Recorded> },
}

#[derive(Clone)]
struct Change {
    action: &'static str,
    route: String,
    actor: Actor,
    reason: String,
}

impl Change {
    fn row(&self, before: &Recorded, after: &Recorded, at: OffsetDateTime) -> AuditRow {
        AuditRow {
            at: rfc3339(at),
            actor: self.actor.name.clone(),
            from: self.actor.from.clone(),
            action: self.action.to_owned(),
            route: Some(self.route.clone()),
            before: Some(before.split),
            after: Some(after.split),
            revision: Some(after.revision),
            outcome: DONE.to_owned(),
            reason: self.reason.clone(),
        }
    }

    fn happened(&self, before: &Recorded, after: &Recorded) -> Option<Happened> {
        let (route, actor, reason) = (self.route.clone(), self.actor.name.clone(), self.reason.clone());
        match self.action {
            // Its event has the incident.
            TRIP => None,
            "reset" => Some(Happened::Reset { route, revision: after.revision, actor, reason }),
            _ if before.split == after.split && before.latch == after.latch => None,
            action => Some(Happened::Split {
                route,
                action: action.to_owned(),
                revision: after.revision,
                before: before.split,
                green_percentage: after.split,
                latched: after.latch.is_some(),
                actor,
                reason,
            }),
        }
    }

    fn log(&self, before: &Recorded, after: &Recorded) {
        info!(
            route = %self.route,
            action = self.action,
            before = %before.split,
            after = %after.split,
            revision = after.revision,
            latched = after.latch.is_some(),
            actor = %self.actor.name,
            from = %self.actor.from,
            reason = %self.reason,
            "Split state changed"
        );
    }
}

const TRIP: &str = "trip";

fn stamp(at: OffsetDateTime, actor: &Actor, reason: &str) -> Stamp {
    Stamp { at: rfc3339(at), by: actor.name.clone(), reason: reason.to_owned() }
}

/// Green has no share, and its plan has begun no step, not even one with copies.
fn is_untouched(live: &Recorded) -> bool {
    live.split == Split::NONE && live.plan.as_ref().is_some_and(|run| run.share().is_none())
}

/// The plan of a route whose green is taken off.
fn rolled_back(live: &Recorded, stamp: Stamp) -> Option<Run> {
    let mut plan = live.plan.clone();
    if let Some(run) = plan.as_mut().filter(|run| run.is_live()) {
        run.end(State::RolledBack, stamp);
    }
    plan
}

/// The plan of a route whose split somebody else changes: it waits until somebody resumes it.
fn taken_over(live: &Recorded, change: &Change, split: Split) -> Option<Run> {
    let mut plan = live.plan.clone();
    if let Some(run) = plan.as_mut().filter(|run| run.is_live()) {
        run.by_hand = true;
        if run.is_running() {
            let reason = format!("{} set green to {split}", change.actor.name);
            run.pause(false, stamp(OffsetDateTime::now_utc(), &change.actor, &reason));
        }
    }
    plan
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(abandoned()))
}

fn abandoned() -> StoreError {
    StoreError::Other("the operation was abandoned; try it again".to_owned())
}

fn silent(patience: Duration) -> StoreError {
    StoreError::Other(format!("did not answer within {patience:?}; check the disk it is on"))
}

/// Records in the background: trips, refused attempts, values of signals, and whatever could not be written.
async fn keep_recording(control: Weak<Control>, wake: Arc<Notify>) {
    loop {
        // Values of signals come all the time, and share a write.
        let _ = timeout(SIGNALS_EVERY, wake.notified()).await;
        loop {
            let Some(control) = control.upgrade() else { return };
            if control.flush().await.is_ok() {
                break;
            }
            drop(control);
            tokio::time::sleep(RETRY).await;
        }
    }
}

const RETRY: Duration = Duration::from_secs(1);
const SIGNALS_EVERY: Duration = Duration::from_secs(1);

/// An error with all that caused it, on one line.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
