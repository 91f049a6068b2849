use std::path::Path;

use super::{rows::ROWS_WAITING, *};
use crate::{Observation, ProcessMetric, Second, SignalRow};

#[derive(Default)]
struct Plane(Mutex<Vec<RouteState>>);

impl DataPlane for Plane {
    fn apply(&self, _: &str, state: RouteState) {
        self.0.lock().push(state);
    }

    fn forget(&self, _: &str) {}

    fn install(&self, _: &Arc<Config>, _: &BTreeMap<String, RouteState>) -> Result<(), InstallError> {
        Ok(())
    }

    fn observe(&self, _: &str) -> Option<Observation> {
        None
    }

    fn seconds(&self, _: &str, _: Option<u64>) -> Vec<Arc<Second>> {
        Vec::new()
    }

    fn watch_slower_than(&self, _: &str, _: Option<u64>) {}

    fn ready(&self) -> bool {
        true
    }

    fn process_metrics(&self) -> Vec<ProcessMetric> {
        Vec::new()
    }
}

#[derive(Default)]
struct Store(Mutex<Vec<Batch>>);

impl StateStore for Store {
    fn load(&self) -> Result<BTreeMap<String, Recorded>, StoreError> {
        Ok(BTreeMap::new())
    }

    fn record(&self, batch: &Batch) -> Result<(), StoreError> {
        self.0.lock().push(batch.clone());
        Ok(())
    }

    fn incidents(&self, _: Option<&str>, _: usize) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }

    fn incident(&self, _: &str) -> Result<Option<String>, StoreError> {
        Ok(None)
    }

    fn audit(&self, _: Option<&str>, _: usize) -> Result<Vec<AuditRow>, StoreError> {
        Ok(Vec::new())
    }

    fn signals(&self) -> Result<Vec<SignalRow>, StoreError> {
        Ok(Vec::new())
    }

    fn let_go(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn take_back(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Threads do not meet often enough in the moment between the two for a test from outside.
#[tokio::test]
async fn what_comes_between_a_decision_and_its_write_wins() {
    let text = r#"
        [admin]
        listen = "127.0.0.1:9900"
        state = "unused.db"
        [[route]]
        name = "shop"
        protocol = "tcp"
        listen = "127.0.0.1:8080"
        key = ["client-ip"]
        green_percentage = 1
        [route.blue]
        label = "python"
        endpoints = ["127.0.0.1:9001"]
        [route.green]
        label = "go"
        endpoints = ["127.0.0.1:9002"]
    "#;
    let config = Arc::new(Config::parse(text, Path::new(".")).unwrap());
    let (plane, store) = (Arc::new(Plane::default()), Arc::new(Store::default()));
    let control = Control::open(config, store.clone(), plane.clone()).await.unwrap();
    let change =
        |action| Change { action, route: "shop".to_owned(), actor: Actor::internal("test"), reason: "test".to_owned() };
    let (raise, stop) = (change("split"), change("rollback"));
    let half = Split::from_percent(50.0).unwrap();

    let turn = control.turn.lock().await;
    let Step::Raise { before, raised } = control.decide(&raise, half, None, Some(&turn)).unwrap() else {
        panic!("half is more than a hundredth");
    };
    let stopped = control.roll_back(&stop).unwrap();
    let chance = Chance::new(Instant::now(), DISK_PATIENCE);
    let refused = control.loosen(&turn, &raise, &before, *raised, &chance).await;
    assert!(matches!(refused, Err(Refusal::Overtaken { .. })), "{refused:?}");
    drop(turn);

    assert_eq!(*plane.0.lock(), [stopped.recorded.state()]);
    assert_eq!(control.state("shop").unwrap().recorded, stopped.recorded);
    let written = store.0.lock();
    let disk: Vec<&Recorded> = written.iter().filter_map(|batch| batch.states.get("shop")).collect();
    assert_eq!(disk.last(), Some(&&stopped.recorded), "on disk before the raise is answered");
    assert!(disk.iter().all(|state| state.split != half), "what was refused does not reach the disk");
    assert!(written.iter().flat_map(|batch| &batch.audit).all(|row| row.after != Some(half)), "nor the trail");
}

#[test]
fn what_waits_for_the_disk_gives_way_by_worth() {
    let audit = |outcome: &str, number: usize| AuditRow {
        outcome: outcome.to_owned(),
        reason: number.to_string(),
        ..AuditRow::default()
    };
    let mut rows = Rows::default();
    rows.incident(IncidentRow { id: "first".to_owned(), route: "shop".to_owned(), json: "{}".to_owned() });
    (0..10).for_each(|n| rows.audit(audit(DONE, n)));
    (0..5_000).for_each(|n| rows.audit(audit(REFUSED, n)));
    let done = |rows: &Rows| rows.audit.iter().filter(|(_, row)| row.outcome == DONE).count();
    assert_eq!((rows.audit.len(), done(&rows), rows.dropped), (ROWS_WAITING, 10, 4_010));
    (0..2_000).for_each(|n| rows.audit(audit(DONE, n)));
    rows.audit(audit(REFUSED, 0));
    assert_eq!((rows.audit.len(), done(&rows)), (ROWS_WAITING, ROWS_WAITING));
    assert_eq!(rows.audit[0].1.reason, "1000", "the oldest change goes first");
    assert_eq!(rows.incidents.len(), 1, "an incident gives way to no audit row");
    assert!(rows.audit.iter().is_sorted_by_key(|(number, _)| *number));
}
