//! From what a plane saw to a trip.

use std::sync::Arc;

use admin_api::{Control, Guardian, Verdict};
use config::{Config, Route};
use tokio_util::sync::CancellationToken;

use crate::{
    control::ann,
    support::{FakePlane, FakeStore, config, eventually, route, shop, split},
};

async fn at_half(config: Arc<Config>) -> (Arc<Control>, Arc<FakePlane>) {
    let plane = Arc::new(FakePlane::default());
    let control = Control::open(config, Arc::new(FakeStore::default()), plane.clone()).await.unwrap();
    control.set_split("shop", split(50.0), &ann(), None).await.unwrap();
    (control, plane)
}

#[tokio::test]
async fn green_that_fails_altogether_is_off_within_five_seconds() {
    let (control, plane) = at_half(shop()).await;
    let guardian = Guardian::new(control.clone());
    for _ in 0..10 {
        plane.second("shop", (50, 0), (50, 0));
        guardian.tick();
    }
    assert_eq!(control.state("shop").unwrap().judgement.unwrap().verdict, Verdict::Pass);
    let mut seconds = 0;
    while !plane.live("shop").latched {
        plane.second("shop", (50, 0), (0, 50));
        guardian.tick();
        seconds += 1;
        assert!(seconds <= 5);
    }
    assert_eq!(plane.live("shop").split, split(0.0));
    assert_eq!(control.state("shop").unwrap().judgement.unwrap().verdict, Verdict::Breach, "kept until a reset");
}

#[tokio::test]
async fn a_reset_and_a_raise_do_not_trip_on_what_was_before() {
    let (control, plane) = at_half(shop()).await;
    let guardian = Guardian::new(control.clone());
    for _ in 0..6 {
        plane.second("shop", (50, 0), (0, 50));
    }
    guardian.tick();
    assert!(plane.live("shop").latched);
    control.reset("shop", "fixed", &ann(), None).await.unwrap();
    control.set_split("shop", split(50.0), &ann(), None).await.unwrap();
    guardian.tick();
    // The second that was under way at the reset still holds failures.
    plane.second("shop", (50, 0), (0, 50));
    guardian.tick();
    plane.second("shop", (50, 0), (50, 0));
    guardian.tick();
    assert!(!plane.live("shop").latched);
}

#[tokio::test]
async fn a_disarmed_route_and_one_without_green_are_not_judged() {
    let (control, plane) = at_half(config(vec![Route { guard: None, ..route("shop", "python", "go", 0.0) }])).await;
    for _ in 0..6 {
        plane.second("shop", (50, 0), (0, 50));
    }
    Guardian::new(control.clone()).tick();
    assert!(!plane.live("shop").latched);
    control.reload(shop()).await.unwrap();
    control.set_split("shop", split(0.0), &ann(), None).await.unwrap();
    Guardian::new(control.clone()).tick();
    assert!(!plane.live("shop").latched && control.state("shop").unwrap().judgement.is_none());
}

#[tokio::test(start_paused = true)]
async fn the_guardian_judges_what_is_over_until_it_is_stopped() {
    let (control, plane) = at_half(shop()).await;
    for _ in 0..6 {
        plane.second("shop", (50, 0), (0, 50));
    }
    let shutdown = CancellationToken::new();
    let guardian = tokio::spawn(Guardian::new(control).run(shutdown.clone()));
    eventually("it trips", || plane.live("shop").latched).await;
    shutdown.cancel();
    guardian.await.unwrap();
}
