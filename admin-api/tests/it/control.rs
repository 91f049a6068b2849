//! Order of disk and live, refusals, reloads.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use admin_api::{
    Actor, Control, ControlError, DataPlane, Engine, Happened, Judgement, Recorded, Refusal, RouteView, Sqlite,
    StateStore, StoreError, Surroundings,
};
use config::Guard;
use tokio::task::{JoinHandle, JoinSet};

use crate::support::{FakePlane, FakeStore, Folder, config, eventually, route, shop, shop_and_broker, split};

pub(crate) fn ann() -> Actor {
    Actor { name: "ann".to_owned(), from: "127.0.0.1:5".to_owned() }
}

async fn start(config: Arc<config::Config>) -> (Arc<Control>, Arc<FakePlane>, Arc<FakeStore>) {
    let (plane, store) = (Arc::new(FakePlane::default()), Arc::new(FakeStore::default()));
    let control = Control::open(config, store.clone(), plane.clone()).await.unwrap();
    (control, plane, store)
}

/// Begun, and waiting for the disk.
async fn raise_on_a_disk_that_hangs(
    control: &Arc<Control>,
    store: &FakeStore,
) -> JoinHandle<Result<RouteView, Refusal>> {
    store.hang();
    let control = Arc::clone(control);
    let raise = tokio::spawn(async move { control.set_split("shop", split(50.0), &ann(), None).await });
    eventually("the raise waits for the disk", || store.waiting.load(Ordering::Relaxed) == 1).await;
    raise
}

pub(crate) fn breach(plane: &FakePlane) -> Arc<Judgement> {
    let mut engine = Engine::new(&Guard::default());
    let mut last = None;
    for _ in 0..5 {
        plane.second("shop", (50, 0), (0, 50));
    }
    for second in plane.seconds("shop", None) {
        last = Some(engine.tick(&second, &Surroundings::default()));
    }
    Arc::new(last.expect("there were seconds"))
}

#[tokio::test]
async fn the_recorded_split_wins_over_the_configured_one() {
    let plane = Arc::new(FakePlane::default());
    let store = Arc::new(FakeStore::default());
    let first = Control::open(shop_and_broker(), store.clone(), plane.clone()).await.unwrap();
    assert_eq!(store.recorded("broker"), Recorded { split: split(5.0), revision: 1, ..Recorded::default() });
    first.set_split("broker", split(20.0), &ann(), None).await.unwrap();
    drop(first);

    let plane = Arc::new(FakePlane::default());
    let second = Control::open(shop_and_broker(), store, plane.clone()).await.unwrap();
    assert_eq!(second.state("broker").unwrap().recorded.split, split(20.0));
    assert_eq!((plane.live("broker").split, plane.live("broker").revision), (split(20.0), 2));
}

#[tokio::test]
async fn an_acknowledged_split_is_on_disk_and_live() {
    let (control, plane, store) = start(shop()).await;
    for (percent, revision) in [(10.0, 2), (25.0, 3), (5.0, 4), (0.0, 5)] {
        let view = control.set_split("shop", split(percent), &ann(), None).await.unwrap();
        assert_eq!((view.recorded.split, view.recorded.revision, view.persisted), (split(percent), revision, true));
        assert_eq!(plane.live("shop").split, split(percent));
        assert_eq!(store.recorded("shop"), view.recorded);
    }
    let same = control.set_split("shop", split(0.0), &ann(), None).await.unwrap();
    assert_eq!(same.recorded.revision, 5, "an equal split is no change");
    let actions: Vec<(String, Option<u64>)> =
        store.audit.lock().iter().map(|row| (row.action.clone(), row.revision)).collect();
    let expected = [("initial", 1), ("split", 2), ("split", 3), ("split", 4), ("split", 5)];
    assert_eq!(actions, expected.map(|(action, revision)| (action.to_owned(), Some(revision))));
}

#[tokio::test]
async fn raising_waits_for_the_disk_and_lowering_does_not() {
    let (control, plane, store) = start(shop()).await;
    control.set_split("shop", split(10.0), &ann(), None).await.unwrap();

    let raise = raise_on_a_disk_that_hangs(&control, &store).await;
    assert_eq!(plane.live("shop").split, split(10.0), "not live before it is on disk");

    let lower = tokio::spawn({
        let control = control.clone();
        async move { control.set_split("shop", split(1.0), &ann(), None).await }
    });
    eventually("the lower split is live", || plane.live("shop").split == split(1.0)).await;
    assert!(!lower.is_finished(), "not acknowledged before it is on disk");
    assert!(!control.state("shop").unwrap().persisted);

    store.release();
    assert!(matches!(raise.await.unwrap(), Err(Refusal::Overtaken { .. })));
    assert_eq!(store.recorded("shop").split, split(1.0), "before it is answered the disk has what is live");
    let lowered = lower.await.unwrap().unwrap();
    assert_eq!(lowered.recorded.split, split(1.0));
    assert_eq!(store.recorded("shop"), lowered.recorded);
    assert_eq!(plane.live("shop"), lowered.recorded.state());
    eventually("the refusal is audited", || store.audit.lock().iter().any(|row| row.outcome == "refused")).await;
    let rows = store.audit.lock();
    assert!(rows.iter().all(|row| row.outcome == "refused" || row.after != Some(split(50.0))), "{rows:?}");
}

#[tokio::test]
async fn a_change_goes_on_when_its_caller_goes_away() {
    let (control, plane, store) = start(shop()).await;
    let raise = raise_on_a_disk_that_hangs(&control, &store).await;
    raise.abort();
    store.release();
    eventually("it is live", || plane.live("shop").split == split(50.0)).await;
    assert_eq!(store.recorded("shop").split, split(50.0));
}

#[tokio::test]
async fn when_the_disk_fails_raising_changes_nothing_and_lowering_stays_live() {
    let (control, plane, store) = start(shop()).await;
    control.set_split("shop", split(10.0), &ann(), None).await.unwrap();
    store.fail(true);

    let error = control.set_split("shop", split(20.0), &ann(), None).await.unwrap_err();
    assert!(matches!(error, Refusal::NotRecorded(_)), "{error}");
    assert_eq!((plane.live("shop").split, store.recorded("shop").split), (split(10.0), split(10.0)));

    assert!(!control.state("shop").unwrap().persisted, "a write that failed may have reached the disk");

    let error = control.rollback("shop", "errors", &ann()).await.unwrap_err();
    assert!(matches!(error, Refusal::LiveNotRecorded(_)), "{error}");
    assert_eq!((plane.live("shop").split, plane.live("shop").latched), (split(0.0), true));
    assert!(!control.state("shop").unwrap().persisted);
    assert!(matches!(control.rollback("shop", "again", &ann()).await, Err(Refusal::LiveNotRecorded(_))));

    store.fail(false);
    eventually("it is recorded", || control.state("shop").unwrap().persisted).await;
    let recorded = store.recorded("shop");
    assert_eq!((recorded.split, recorded.latch.unwrap().reason), (split(0.0), "errors".to_owned()));
    let rows = store.audit.lock();
    let refused = rows.iter().find(|row| row.outcome == "refused").unwrap();
    assert!(refused.reason.starts_with("nothing has changed"), "{refused:?}");
}

#[tokio::test]
async fn a_latch_holds_green_down_until_a_reset() {
    let (control, plane, store) = start(shop()).await;
    control.set_split("shop", split(10.0), &ann(), None).await.unwrap();
    let rolled_back = control.rollback("shop", "p95", &ann()).await.unwrap();
    assert_eq!(rolled_back.recorded.revision, 3);
    assert_eq!(plane.live("shop"), rolled_back.recorded.state());
    let again = control.rollback("shop", "once more", &ann()).await.unwrap();
    assert_eq!(again.recorded, rolled_back.recorded, "rolling back twice is no change");

    let error = control.set_split("shop", split(1.0), &ann(), None).await.unwrap_err();
    assert_eq!(error.to_string(), "route shop: is latched (p95); reset it before raising green");
    assert!(control.set_split("shop", split(0.0), &ann(), None).await.is_ok());

    let stale = control.reset("shop", "fixed", &ann(), Some(2)).await.unwrap_err();
    assert!(matches!(stale, Refusal::Stale { current: 3, given: 2, .. }), "{stale}");
    assert!(plane.live("shop").latched);
    assert_eq!(*plane.forgotten.lock(), ["shop"], "green started from nothing, and nothing since");
    let reset = control.reset("shop", "fixed", &ann(), Some(3)).await.unwrap();
    assert_eq!(*plane.forgotten.lock(), ["shop", "shop"]);
    assert_eq!((reset.recorded.latch, reset.recorded.revision), (None, 4));
    assert!(!plane.live("shop").latched);
    control.set_split("shop", split(1.0), &ann(), None).await.unwrap();
    eventually("the refusal is audited", || {
        store.audit.lock().iter().any(|row| row.outcome == "refused" && row.after == Some(split(1.0)))
    })
    .await;
}

#[tokio::test]
async fn a_stale_revision_and_an_unknown_route_are_refused() {
    let (control, _, store) = start(shop()).await;
    control.set_split("shop", split(10.0), &ann(), Some(1)).await.unwrap();
    let stale = control.set_split("shop", split(20.0), &ann(), Some(1)).await.unwrap_err();
    assert!(matches!(stale, Refusal::Stale { current: 2, given: 1, .. }), "{stale}");
    let stale = control.set_split("shop", split(10.0), &ann(), Some(1)).await.unwrap_err();
    assert!(matches!(stale, Refusal::Stale { .. }), "even when it would change nothing");
    let unknown = control.rollback("shoe", "x", &ann()).await.unwrap_err();
    assert_eq!(unknown.to_string(), "route: there is no \"shoe\"; choose one of shop");
    eventually("all are audited", || {
        store.audit.lock().iter().filter(|row| row.outcome == "refused" && row.actor == "ann").count() == 3
    })
    .await;
}

#[tokio::test]
async fn a_trip_is_live_at_once_and_recorded_with_its_incident() {
    let (control, plane, store) = start(shop()).await;
    control.set_split("shop", split(50.0), &ann(), None).await.unwrap();
    let mut events = control.subscribe();
    store.fail(true);
    let judgement = breach(&plane);
    let epoch = control.watched()[0].epoch;
    let revision = control.trip("shop", epoch, &judgement).unwrap();
    assert_eq!((plane.live("shop").split, plane.live("shop").latched), (split(0.0), true));
    assert!(control.trip("shop", epoch, &judgement).is_none(), "a latched route does not trip again");
    assert!(control.watched().is_empty());
    control.explain_trips();
    let Happened::Trip { incident } = events.recv().await.unwrap().what.clone() else { panic!() };
    assert_eq!((incident.split_before, incident.revision), (split(50.0), revision));
    let listed = control.incidents(None, 10).await.unwrap();
    assert_eq!(listed.len(), 1, "known before it is recorded");

    store.fail(false);
    eventually("it is recorded", || control.state("shop").unwrap().persisted).await;
    assert_eq!(store.incident(&incident.id).unwrap().unwrap(), listed[0]);
    assert_eq!(control.incidents(None, 10).await.unwrap(), listed);
    assert_eq!(store.recorded("shop").latch.unwrap().actor, "guard");
}

#[tokio::test]
async fn who_hears_of_a_reset_has_heard_of_the_trip_before() {
    let (control, plane, store) = start(shop()).await;
    let mut revisions = Vec::new();
    let mut events = control.subscribe();
    for _ in 0..2 {
        control.set_split("shop", split(50.0), &ann(), None).await.unwrap();
        let (epoch, judgement) = (control.watched()[0].epoch, breach(&plane));
        revisions.extend(control.trip("shop", epoch, &judgement));
        control.reset("shop", "fixed", &ann(), None).await.unwrap();
    }
    control.explain_trips();
    let told = std::iter::from_fn(|| events.try_recv().ok()).map(|event| match &event.what {
        Happened::Trip { incident } => ("trip", incident.revision),
        Happened::Reset { revision, .. } => ("reset", *revision),
        Happened::Split { revision, .. } => ("split", *revision),
        other => panic!("{other:?}"),
    });
    let expected = [("split", 2), ("trip", 3), ("reset", 4), ("split", 5), ("trip", 6), ("reset", 7)];
    assert_eq!((told.collect::<Vec<_>>(), revisions), (expected.to_vec(), vec![3, 6]));
    assert_eq!(store.incidents(None, 10).unwrap().len(), 2);
}

#[tokio::test]
async fn a_reset_drops_the_evidence_and_judgements_made_of_it() {
    let (control, plane, _) = start(shop()).await;
    control.set_split("shop", split(50.0), &ann(), None).await.unwrap();
    let judgement = breach(&plane);
    let before = control.watched().remove(0);
    control.reload(shop()).await.unwrap();
    assert_eq!(control.watched()[0].after, before.after, "a reload keeps evidence");
    control.reset("shop", "try again", &ann(), None).await.unwrap();
    assert!(control.trip("shop", before.epoch, &judgement).is_none());
    assert_eq!(*plane.forgotten.lock(), ["shop", "shop"], "what is under way is no evidence either");
    let after = control.watched().remove(0);
    assert_eq!(after.after, Some(5), "five seconds were seen, and the sixth was under way");
    assert_eq!(plane.live("shop").split, split(50.0));
}

#[tokio::test]
async fn a_green_that_starts_anew_is_not_judged_by_what_was_before() {
    let (control, plane, _) = start(shop()).await;
    control.set_split("shop", split(50.0), &ann(), None).await.unwrap();
    let judgement = breach(&plane);
    let before = control.watched().remove(0);
    control.set_split("shop", split(0.0), &ann(), None).await.unwrap();
    control.set_split("shop", split(50.0), &ann(), None).await.unwrap();
    assert!(control.trip("shop", before.epoch, &judgement).is_none());
    assert_eq!(control.watched()[0].after, Some(5));
    control.set_split("shop", split(60.0), &ann(), None).await.unwrap();
    assert_eq!(control.watched()[0].after, Some(5), "raising a green that has traffic drops nothing");
}

#[tokio::test]
async fn a_guard_that_is_armed_again_starts_with_nothing() {
    let (control, plane, _) = start(shop()).await;
    control.set_split("shop", split(50.0), &ann(), None).await.unwrap();
    let mut disarmed = (*shop()).clone();
    disarmed.routes[0].guard = None;
    control.reload(Arc::new(disarmed)).await.unwrap();
    breach(&plane);
    control.reload(shop()).await.unwrap();
    assert_eq!(control.watched()[0].after, Some(5));
}

#[tokio::test]
async fn a_reload_keeps_states_and_starts_new_routes() {
    let (control, plane, store) = start(shop()).await;
    control.set_split("shop", split(10.0), &ann(), None).await.unwrap();
    control.reload(shop_and_broker()).await.unwrap();
    assert_eq!((plane.live("shop").split, plane.live("broker").split), (split(10.0), split(5.0)));
    assert_eq!(store.recorded("broker").split, split(5.0));

    control.set_split("broker", split(30.0), &ann(), None).await.unwrap();
    control.reload(shop()).await.unwrap();
    assert!(matches!(control.state("broker"), Err(Refusal::UnknownRoute { .. })));
    control.reload(shop_and_broker()).await.unwrap();
    assert_eq!(plane.live("broker").split, split(30.0), "a route that comes back has its recorded split");
    assert_eq!(control.states().len(), 2);
}

#[tokio::test]
async fn a_refused_reload_changes_nothing() {
    let (control, plane, store) = start(shop()).await;
    let mut events = control.subscribe();
    plane.refuse_install.store(true, Ordering::Relaxed);
    let error = control.reload(config(vec![route("new", "a", "b", 50.0)])).await.unwrap_err();
    assert!(matches!(error, ControlError::Install(_)), "{error}");
    assert_eq!(control.states().len(), 1);
    assert!(!store.load().unwrap().contains_key("new"), "it starts anew once its configuration is right");
    let Happened::Reload { outcome, reason, .. } = events.recv().await.unwrap().what.clone() else { panic!() };
    assert_eq!(outcome, "refused");
    assert!(reason.contains("the port is taken"));
}

#[tokio::test]
async fn many_changes_at_once_leave_disk_and_live_the_same() {
    for seed in 1..=20_u64 {
        let (control, plane, store) = start(shop()).await;
        let changes: Vec<_> = (0..40)
            .map(|n| {
                let control = control.clone();
                let percent = (seed * 7919 + n * 104_729) % 101;
                tokio::spawn(async move {
                    let changed = control.set_split("shop", split(percent as f64), &ann(), None).await;
                    assert!(matches!(changed, Ok(_) | Err(Refusal::Overtaken { .. })), "seed {seed}: {changed:?}");
                })
            })
            .collect();
        for change in changes {
            change.await.unwrap();
        }
        let view = control.state("shop").unwrap();
        assert_eq!(store.recorded("shop"), view.recorded, "seed {seed}");
        assert_eq!(plane.live("shop"), view.recorded.state(), "seed {seed}");
        let revisions: Vec<u64> = plane.applied.lock().iter().map(|(_, state)| state.revision).collect();
        assert!(revisions.is_sorted_by(|a, b| a < b), "seed {seed}: {revisions:?}");
    }
}

/// Raises, lowerings, rollbacks, trips and resets from several threads, so that they meet between any two steps.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn changes_on_many_threads_never_undo_what_came_between() {
    let mut overtaken = 0;
    for seed in 1..=60_u64 {
        let (control, plane, store) = start(shop()).await;
        let judgement = breach(&plane);
        let changes: Vec<_> = (0..80)
            .map(|n| {
                let (control, judgement) = (control.clone(), judgement.clone());
                let dice = (seed * 7919 + n * 104_729) % 1_009;
                tokio::spawn(async move {
                    let changed = match dice % 10 {
                        0 => {
                            for watched in control.watched() {
                                control.trip("shop", watched.epoch, &judgement);
                            }
                            return None;
                        }
                        1 => control.rollback("shop", "by hand", &ann()).await,
                        2 | 3 => control.reset("shop", "fixed", &ann(), None).await,
                        _ => control.set_split("shop", split((dice % 101) as f64), &ann(), None).await,
                    };
                    if let Ok(view) = &changed {
                        let expected = match dice % 10 {
                            1 => split(0.0),
                            2 | 3 => view.recorded.split,
                            _ => split((dice % 101) as f64),
                        };
                        assert_eq!(view.recorded.split, expected, "an answer shows the state its change made");
                    }
                    Some(changed)
                })
            })
            .collect();
        let mut refused = 0;
        for change in changes {
            match change.await.unwrap() {
                None | Some(Ok(_)) => {}
                Some(Err(Refusal::Latched { .. })) => refused += 1,
                Some(Err(Refusal::Overtaken { .. })) => (refused, overtaken) = (refused + 1, overtaken + 1),
                Some(Err(error)) => panic!("seed {seed}: {error}"),
            }
        }
        control.flush().await.unwrap();
        let view = control.state("shop").unwrap();
        assert!(view.persisted, "seed {seed}");
        assert_eq!(store.recorded("shop"), view.recorded, "seed {seed}");
        assert_eq!(plane.live("shop"), view.recorded.state(), "seed {seed}");

        let applied: Vec<_> = plane.applied.lock().iter().map(|(_, state)| *state).collect();
        assert!(applied.is_sorted_by(|a, b| a.revision < b.revision), "seed {seed}: {applied:?}");
        for pair in applied.windows(2) {
            let only_a_reset = !pair[0].latched || pair[1].split == split(0.0);
            assert!(only_a_reset, "seed {seed}: a trip or rollback was undone: {pair:?}");
        }
        // The audit trail has every change that went live, once, with its split, and no other.
        let rows = store.audit.lock();
        let done = rows.iter().filter(|row| row.outcome == "done" && row.action != "initial");
        let changed: Vec<_> = done
            .filter(|row| {
                row.action != "reset"
                    || applied.iter().any(|state| {
                        Some(state.revision) == row.revision
                            && row.before == Some(split(0.0))
                            && state.split == split(0.0)
                            && !state.latched
                    })
            })
            .map(|row| (row.revision.unwrap(), row.after.unwrap()))
            .collect();
        let live: BTreeSet<_> = applied.iter().map(|state| (state.revision, state.split)).collect();
        assert_eq!(changed.iter().copied().collect::<BTreeSet<_>>(), live, "seed {seed}: {rows:?}");
        let audited = rows.iter().filter(|row| row.outcome == "refused").count() as u64;
        assert_eq!(audited + control.refusals_skipped(), refused, "seed {seed}");
    }
    println!("{overtaken} overtaken");
}

#[tokio::test(start_paused = true)]
async fn refused_attempts_are_audited_up_to_a_rate() {
    let (control, _, store) = start(shop()).await;
    let refused = || store.audit.lock().iter().filter(|row| row.outcome == "refused").cloned().collect::<Vec<_>>();
    for _ in 0..500 {
        control.refused("split", Some(&"x".repeat(5_000)), None, &ann(), &"y".repeat(5_000));
    }
    control.flush().await.unwrap();
    assert_eq!((refused().len(), control.refusals_skipped()), (60, 440));
    let row = refused().remove(0);
    assert_eq!((row.route.unwrap().len(), row.reason.len()), (100, 1_000), "what a caller sent is cut");
    tokio::time::advance(std::time::Duration::from_secs(60)).await;
    control.refused("split", Some("shop"), None, &ann(), "again");
    control.flush().await.unwrap();
    assert_eq!((refused().len(), control.refusals_skipped(), control.rows_dropped()), (61, 440, 0));
}

/// Aims a trip at every moment of a raise: its decision, its write, its going live.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raise_never_undoes_a_trip_that_came_after_its_decision() {
    let (control, plane, store) = start(shop()).await;
    let judgement = breach(&plane);
    let (mut tripped_first, mut raised_first) = (0, 0);
    for round in 0..1_500_u32 {
        control.reset("shop", "fixed", &ann(), None).await.unwrap();
        control.set_split("shop", split(1.0), &ann(), None).await.unwrap();
        let epoch = control.watched()[0].epoch;
        let ready = Arc::new(AtomicBool::new(false));
        let tripper = std::thread::spawn({
            let (control, judgement, ready) = (control.clone(), judgement.clone(), ready.clone());
            move || {
                while !ready.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
                (0..round * 3).for_each(|_| std::hint::spin_loop());
                control.trip("shop", epoch, &judgement).unwrap()
            }
        });
        let raise = tokio::spawn({
            let (control, ready) = (control.clone(), ready.clone());
            async move {
                ready.store(true, Ordering::Release);
                control.set_split("shop", split(50.0), &ann(), None).await
            }
        });
        let raised = raise.await.unwrap();
        let tripped = tripper.join().unwrap();
        match raised {
            Ok(view) => {
                assert!(view.recorded.revision < tripped, "round {round}: a raise undid a trip");
                raised_first += 1;
            }
            Err(Refusal::Latched { .. } | Refusal::Overtaken { .. }) => tripped_first += 1,
            Err(error) => panic!("round {round}: {error}"),
        }
        assert_eq!(plane.live("shop").split, split(0.0), "round {round}");
        control.flush().await.unwrap();
        assert_eq!(store.recorded("shop"), control.state("shop").unwrap().recorded, "round {round}");
    }
    println!("{tripped_first} tripped first, {raised_first} raised first");
}

#[tokio::test]
async fn frozen_nothing_changes_and_what_another_recorded_meanwhile_counts_afterwards() {
    let (folder, plane) = (Folder::new(), Arc::new(FakePlane::default()));
    let path = folder.file("state.db");
    let control = Control::open(shop(), Arc::new(Sqlite::open(&path).unwrap()), plane.clone()).await.unwrap();
    control.set_split("shop", split(10.0), &ann(), None).await.unwrap();
    let (judgement, epoch) = (breach(&plane), control.watched()[0].epoch);

    control.freeze().await.unwrap();
    assert!(control.is_frozen());
    for percent in [5.0, 50.0] {
        let refused = control.set_split("shop", split(percent), &ann(), None).await;
        assert!(matches!(refused, Err(Refusal::Frozen)), "{percent}");
    }
    assert!(matches!(control.rollback("shop", "now", &ann()).await, Err(Refusal::Frozen)));
    assert!(matches!(control.reset("shop", "now", &ann(), None).await, Err(Refusal::Frozen)));
    assert!(matches!(control.reload(shop_and_broker()).await, Err(ControlError::Refused(Refusal::Frozen))));
    assert!(control.watched().is_empty() && control.trip("shop", epoch, &judgement).is_none(), "the guard pauses");
    assert!(matches!(control.audit(None, 10).await, Err(StoreError::LetGo { .. })));
    assert_eq!(plane.live("shop").split, split(10.0));

    // The other process knows one more route, records it, and dies.
    let other =
        Control::open(shop_and_broker(), Arc::new(Sqlite::open(&path).unwrap()), Arc::new(FakePlane::default()));
    let other = other.await.unwrap();
    other.set_split("broker", split(77.0), &ann(), None).await.unwrap();
    assert!(matches!(control.thaw().await, Err(StoreError::InUse { .. })), "not before the other lets go of it");
    // A change is what it is with a disk that fails: green can be lowered, and not be raised.
    assert!(matches!(control.set_split("shop", split(20.0), &ann(), None).await, Err(Refusal::NotRecorded(_))));
    let lowered = control.set_split("shop", split(9.0), &ann(), None).await;
    assert!(matches!(lowered, Err(Refusal::LiveNotRecorded(_))) && plane.live("shop").split == split(9.0));
    drop(other);
    eventually("it is recorded", || control.state("shop").unwrap().persisted).await;
    control.freeze().await.unwrap();
    control.thaw().await.unwrap();
    control.reload(shop_and_broker()).await.unwrap();
    assert_eq!(control.state("broker").unwrap().recorded.split, split(77.0));
    let epoch = control.watched()[0].epoch;
    assert!(control.trip("shop", epoch, &judgement).is_some(), "and the guard judges");
}

#[tokio::test]
async fn what_is_live_before_a_freeze_is_on_disk_after_it() {
    let (control, plane, store) = start(shop()).await;
    control.set_split("shop", split(10.0), &ann(), None).await.unwrap();
    store.hang();
    let lower = tokio::spawn({
        let control = control.clone();
        async move { control.set_split("shop", split(1.0), &ann(), None).await }
    });
    eventually("the lower split is live", || plane.live("shop").split == split(1.0)).await;
    let freeze = tokio::spawn({
        let control = control.clone();
        async move { control.freeze().await }
    });
    store.release();
    freeze.await.unwrap().unwrap();
    assert_eq!(store.recorded("shop").split, split(1.0));
    assert_eq!(lower.await.unwrap().unwrap().recorded.split, split(1.0), "and it is acknowledged");

    // What cannot be written is not handed over.
    control.thaw().await.unwrap();
    store.fail(true);
    assert!(matches!(control.set_split("shop", split(0.5), &ann(), None).await, Err(Refusal::LiveNotRecorded(_))));
    assert!(control.freeze().await.is_err() && !control.is_frozen());
}

#[tokio::test]
async fn a_disk_that_hangs_keeps_two_readers_at_most_and_answers_the_others() {
    let (control, plane, store) = start(shop()).await;
    control.set_split("shop", split(10.0), &ann(), None).await.unwrap();
    let raise = raise_on_a_disk_that_hangs(&control, &store).await;
    let mut readers = JoinSet::new();
    for _ in 0..20 {
        let control = control.clone();
        readers.spawn(async move {
            tokio::join!(control.audit(None, 1), control.incidents(None, 1), control.incident("x"))
        });
    }
    while let Some(read) = readers.join_next().await {
        let (audit, incidents, incident) = read.unwrap();
        assert!(audit.is_err() && incidents.is_err(), "answered");
        let problem = "state file: did not answer within 2s; check the disk it is on";
        assert_eq!(incident.unwrap_err().to_string(), problem);
    }
    assert_eq!(store.reading.load(Ordering::Relaxed), 2, "nobody has a thread that nobody waits for");
    store.release();
    raise.await.unwrap().unwrap();
    assert_eq!(plane.live("shop").split, split(50.0));
    assert_eq!(control.audit(None, 1).await.unwrap().len(), 1, "and afterwards all is as it was");
}

#[tokio::test]
async fn what_waited_for_its_turn_does_not_undo_what_came_after_it() {
    let (control, plane, store) = start(shop()).await;
    control.set_split("shop", split(25.0), &ann(), None).await.unwrap();
    store.hang();
    control.refused("split", None, None, &ann(), "has the turn");
    eventually("a write hangs", || store.waiting.load(Ordering::Relaxed) == 1).await;
    let change = |percent| {
        let control = control.clone();
        tokio::spawn(async move { control.set_split("shop", split(percent), &ann(), None).await })
    };
    let raise = change(50.0);
    // Tasks get their turns in order, so the raise has been decided on by then.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    let lower = change(10.0);
    eventually("the lower split is live", || plane.live("shop").split == split(10.0)).await;
    store.release();
    assert!(matches!(raise.await.unwrap(), Err(Refusal::Overtaken { .. })));
    assert_eq!(lower.await.unwrap().unwrap().recorded.split, split(10.0));
    assert_eq!((plane.live("shop").split, store.recorded("shop").split), (split(10.0), split(10.0)));
}

#[tokio::test]
async fn a_raise_is_answered_and_given_up_where_the_disk_hangs_and_somebody_is_told() {
    let (control, plane, store) = start(shop()).await;
    control.set_split("shop", split(10.0), &ann(), None).await.unwrap();
    let before = control.state("shop").unwrap().recorded;
    let mut events = control.subscribe();
    // The first hangs at the disk, the second waits for its turn.
    let at_the_disk = raise_on_a_disk_that_hangs(&control, &store).await;
    let in_line = control.set_split("shop", split(60.0), &ann(), None).await;
    for answer in [at_the_disk.await.unwrap(), in_line] {
        let Err(Refusal::NotRecorded(error)) = answer else { panic!("{answer:?}") };
        assert_eq!(error.to_string(), "state file: did not answer within 5s; check the disk it is on");
    }
    let Happened::Recording { works: false, reason } = events.recv().await.unwrap().what.clone() else { panic!() };
    assert_eq!(reason, "its disk has not answered for 5s");

    store.release();
    assert!(matches!(events.recv().await.unwrap().what, Happened::Recording { works: true, .. }));
    control.flush().await.unwrap();
    assert_eq!((plane.live("shop"), store.recorded("shop")), (before.state(), before));
    let refused = || store.audit.lock().iter().filter(|row| row.outcome == "refused").count();
    eventually("both are audited, once", || refused() == 2).await;
}

#[tokio::test]
async fn a_rollback_on_a_disk_that_hangs_is_live_at_once_and_answered() {
    let (control, plane, store) = start(shop()).await;
    control.set_split("shop", split(10.0), &ann(), None).await.unwrap();
    store.hang();
    // The first hangs at the disk, the second waits for its turn.
    let mut rollbacks = JoinSet::new();
    for _ in 0..2 {
        let control = control.clone();
        rollbacks.spawn(async move { control.rollback("shop", "errors", &ann()).await });
        eventually("a write hangs", || store.waiting.load(Ordering::Relaxed) == 1).await;
    }
    assert_eq!((plane.live("shop").split, plane.live("shop").latched), (split(0.0), true));
    while let Some(answer) = rollbacks.join_next().await {
        let Err(Refusal::LiveNotRecorded(error)) = answer.unwrap() else { panic!("not on disk") };
        assert_eq!(error.to_string(), "state file: did not answer within 5s; check the disk it is on");
    }
    assert!(!control.state("shop").unwrap().persisted);

    store.release();
    eventually("it is recorded", || control.state("shop").unwrap().persisted).await;
    assert_eq!(store.recorded("shop"), control.state("shop").unwrap().recorded);
    let rows = store.audit.lock().iter().filter(|row| row.action == "rollback").count();
    assert_eq!(rows, 1, "once");
}

#[tokio::test]
async fn a_takeover_that_fails_on_a_disk_that_hangs_keeps_green_on_no_longer() {
    let (control, plane, store) = start(shop()).await;
    control.set_split("shop", split(10.0), &ann(), None).await.unwrap();
    let judgement = breach(&plane);

    control.freeze().await.unwrap();
    store.hang();
    let thaw = tokio::spawn({
        let control = control.clone();
        async move { control.thaw().await }
    });
    eventually("the store is asked back", || store.reading.load(Ordering::Relaxed) == 1).await;
    let epoch = control.watched()[0].epoch;
    assert!(control.trip("shop", epoch, &judgement).is_some(), "the guard judges");
    assert_eq!(plane.live("shop").split, split(0.0));

    // Nothing is frozen for another that cannot have the store.
    assert!(control.freeze().await.is_err() && !control.is_frozen());
    store.release();
    thaw.await.unwrap().unwrap();
    eventually("the trip is recorded", || control.state("shop").unwrap().persisted).await;
}
