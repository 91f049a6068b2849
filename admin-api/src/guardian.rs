//! Asks the guard about every watched route once a second, and trips those it finds in breach. Knows no rules.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{Control, Verdict, judge};

/// See the module.
pub struct Guardian {
    control: Arc<Control>,
}

impl Guardian {
    pub fn new(control: Arc<Control>) -> Self {
        Self { control }
    }

    /// Ticks once a second until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut ticks = interval(TICK);
        // After a stall one look is enough: it sees all the seconds there are.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => self.tick(),
            }
        }
    }

    /// Observes, judges and, on a breach, trips every watched route once.
    pub fn tick(&self) {
        for watched in self.control.watched() {
            let Some(seen) = self.control.plane().observe(&watched.route) else { continue };
            let judgement = Arc::new(judge(&watched.policy, &seen.seconds, watched.after));
            self.control.note(&watched.route, watched.epoch, &judgement);
            if judgement.verdict == Verdict::Breach {
                self.control.trip(&watched.route, watched.epoch, &judgement);
            }
        }
    }
}

const TICK: Duration = Duration::from_secs(1);
