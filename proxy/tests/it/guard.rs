//! The guard takes green off when it fails, keeps it off, and leaves it alone when it is well.

use std::time::Duration;

use http::StatusCode;
use loadtest::origin::{Behaviour, TcpOrigin};
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{self, Instant},
};

use crate::{
    harness::{Crossfade, eventually, free_address},
    loads::{Load, connections, connects, requests},
    mosquitto::Mosquitto,
    packets::{UNAVAILABLE, read_packet},
    routes::Route,
    site::{RawOrigin, Site, any_port},
    status::{arm, counted},
};

/// The promise: from green's first error to its share at 0.
const PROMISE: Duration = Duration::from_secs(10);

/// Waits for the trip and holds it against the promise.
async fn trips(crossfade: &Crossfade, route: &str, since: Instant) {
    eventually("green is at 0", async || (crossfade.admin.green(route).await == 0.0).then_some(())).await;
    let took = since.elapsed();
    eprintln!("{route}: green at 0, {took:?} after its first failure");
    assert!(took < PROMISE, "{took:?}");
    assert_eq!(crossfade.admin.status(route).await["latched"], true);
}

/// The only incident, after a check that it says what happened.
async fn incident(crossfade: &Crossfade, route: &str, revision: u64) -> Value {
    let (_, all) = crossfade.admin.get("/incidents").await;
    let [incident] = all["incidents"].as_array().unwrap().as_slice() else { panic!("one incident: {all}") };
    assert_eq!(incident["route"], route, "{incident}");
    assert_eq!(incident["verdict"], "breach", "{incident}");
    assert_eq!(incident["split_before"], 50, "{incident}");
    assert_eq!(incident["revision"], revision, "{incident}");
    assert!(incident["at"].as_str().unwrap().ends_with('Z'), "{incident}");
    assert!(incident["reason"].as_str().unwrap().contains("green failed"), "{incident}");
    let (_, alone) = crossfade.admin.get(&format!("/incidents/{}", incident["id"].as_str().unwrap())).await;
    assert_eq!(&alone, incident);
    incident.clone()
}

#[tokio::test]
async fn a_green_that_answers_500_is_off_within_ten_seconds_and_stays_off_until_a_reset() {
    let site = Site::start().await;
    site.green.behaviour().set(Behaviour { status: Some(StatusCode::INTERNAL_SERVER_ERROR), ..Behaviour::default() });
    let route = site.route().green_percentage(50.0);
    let mut crossfade = Crossfade::start(&route.to_string()).await;
    let load = Load::start(100, requests(route.listen));
    let since = load.first_failure().await;
    trips(&crossfade, "shop", since).await;

    // It stays off: of the next 200 requests none reaches green.
    let (green_before, good_before) = (site.green.seen().requests(), load.good());
    eventually("traffic goes on", async || (load.good() >= good_before + 200).then_some(())).await;
    // Requests that had started before the trip may still have been under way.
    assert!(site.green.seen().requests() <= green_before + 5, "green is asked after the trip");
    assert_eq!(crossfade.admin.green("shop").await, 0.0);

    let state = crossfade.admin.status("shop").await;
    let revision = state["revision"].as_u64().unwrap();
    assert!(state["latch"]["reason"].as_str().unwrap().contains("green failed"), "{state}");
    let told = incident(&crossfade, "shop", revision).await;
    let counts = &told["counts"];
    assert!(counts["green"]["refused"].as_u64().unwrap() >= 20, "{told}");
    assert!(counts["blue"]["ok"].as_u64().unwrap() >= 20, "{told}");
    assert_eq!(counts["green"]["error_rate"], 1.0, "{told}");
    // Green answered nobody well, so that it has no latency.
    assert!(told["blue_p95_ms"].as_f64().unwrap() > 0.0 && told["green_p95_ms"].is_null(), "{told}");

    // Neither a person nor a crash raises it again. Lowering is always possible.
    let raise = async |crossfade: &Crossfade, percent: f64| {
        let (status, answer) =
            crossfade.admin.post("/traffic-split", &json!({ "route": "shop", "green_percentage": percent })).await;
        (status, answer)
    };
    let (status, answer) = raise(&crossfade, 1.0).await;
    assert_eq!(status, StatusCode::CONFLICT, "{answer}");
    assert!(answer["detail"].as_str().unwrap().contains("latched"), "{answer}");
    assert_eq!(raise(&crossfade, 0.0).await.0, StatusCode::OK);
    load.stop().await;
    crossfade.kill_and_restart().await;
    assert_eq!(crossfade.admin.status("shop").await["latched"], true);
    assert_eq!(raise(&crossfade, 0.01).await.0, StatusCode::CONFLICT);
    assert_eq!(incident(&crossfade, "shop", revision).await, told);

    // A reset does, and a green that is well again is left alone.
    site.green.behaviour().set(Behaviour::default());
    let (status, answer) = crossfade.admin.post("/reset", &json!({ "route": "shop", "reason": "repaired" })).await;
    assert_eq!((status, &answer["latched"]), (StatusCode::OK, &json!(false)), "{answer}");
    assert_eq!(crossfade.admin.green("shop").await, 0.0, "a reset raises nothing by itself");
    assert_eq!(raise(&crossfade, 50.0).await.0, StatusCode::OK);
    let load = Load::start(100, requests(route.listen));
    eventually("green serves again", async || (site.green.seen().requests() > green_before + 100).then_some(())).await;
    assert_eq!((load.bad(), crossfade.admin.green("shop").await), (0, 50.0));
}

#[tokio::test]
async fn arms_that_are_well_are_never_tripped() {
    let site = Site::start().await;
    let shop = site.route().green_percentage(50.0);
    let (blue_broker, green_broker) = (Mosquitto::start().await, Mosquitto::start().await);
    let broker = Route::mqtt(blue_broker.address, green_broker.address).green_percentage(50.0);
    let python = TcpOrigin::start("python", any_port()).await.unwrap();
    let go = TcpOrigin::start("go", any_port()).await.unwrap();
    let bus = Route::tcp(python.address(), go.address()).green_percentage(50.0);
    let crossfade = Crossfade::start(&format!("{shop}{broker}{bus}")).await;
    let loads = [
        Load::start(100, requests(shop.listen)),
        Load::start(50, connects(broker.listen)),
        Load::start(50, connections(bus.listen)),
    ];
    let started = Instant::now();
    // Three times as long as a breach takes.
    while started.elapsed() < Duration::from_secs(15) {
        for route in ["shop", "broker", "bus"] {
            assert_eq!(crossfade.admin.green(route).await, 50.0, "{}", crossfade.admin.status(route).await);
        }
        time::sleep(Duration::from_millis(250)).await;
    }
    for route in ["shop", "broker", "bus"] {
        let status = crossfade.admin.status(route).await;
        assert_eq!((&status["latched"], &status["guard"]["armed"]), (&json!(false), &json!(true)), "{status}");
        assert_ne!(status["guard"]["judgement"]["verdict"], "breach", "{status}");
    }
    let shop = crossfade.admin.status("shop").await;
    assert_eq!(shop["guard"]["judgement"]["verdict"], "pass", "{shop}");
    assert_eq!(crossfade.admin.get("/incidents").await.1, json!({ "incidents": [] }));
    for load in loads {
        let (good, bad) = load.stop().await;
        assert!(good > 300 && bad == 0, "{good} good, {bad} bad");
    }
}

#[tokio::test]
async fn a_broker_that_turns_clients_away_is_off_within_ten_seconds() {
    let blue = Mosquitto::start().await;
    let green = RawOrigin::start(async |mut client: TcpStream, _| {
        if read_packet(&mut client).await.is_some() {
            let _ = client.write_all(UNAVAILABLE).await;
        }
    })
    .await;
    let route = Route::mqtt(blue.address, green.address).green_percentage(50.0);
    let crossfade = Crossfade::start(&route.to_string()).await;
    let load = Load::start(50, connects(route.listen));
    let since = load.first_failure().await;
    trips(&crossfade, "broker", since).await;
    let revision = crossfade.admin.status("broker").await["revision"].as_u64().unwrap();
    let told = incident(&crossfade, "broker", revision).await;
    assert!(told["counts"]["green"]["refused"].as_u64().unwrap() >= 20, "{told}");
    let (good, bad) = (load.good(), load.bad());
    eventually("clients go on", async || (load.good() >= good + 50).then_some(())).await;
    assert!(load.bad() <= bad + 5, "nobody is turned away any more");
}

#[tokio::test]
async fn credentials_that_both_brokers_would_refuse_do_not_trip_green() {
    let refuse = async |mut client: TcpStream, _| {
        if read_packet(&mut client).await.is_some() {
            let _ = client.write_all(&[0x20, 2, 0, 5]).await;
        }
    };
    let (blue, green) = (RawOrigin::start(refuse).await, RawOrigin::start(refuse).await);
    let route = Route::mqtt(blue.address, green.address).green_percentage(50.0);
    let crossfade = Crossfade::start(&route.to_string()).await;
    let load = Load::start(100, connects(route.listen));
    // As many as tripped it above, several times over.
    let status = counted(&crossfade, "broker", |status| arm(status, "green")["declined"].as_u64() >= Some(250)).await;
    assert_eq!((&status["latched"], &arm(&status, "green")["error_rate"]), (&json!(false), &json!(0.0)), "{status}");
    assert!(load.bad() > 0 && load.good() == 0);
}

#[tokio::test]
async fn a_green_that_cannot_be_connected_to_costs_nobody_anything_and_is_off_within_ten_seconds() {
    let blue = TcpOrigin::start("python", any_port()).await.unwrap();
    let route = Route::tcp(blue.address(), free_address()).green_percentage(50.0);
    let crossfade = Crossfade::start(&route.to_string()).await;
    let load = Load::start(100, connections(route.listen));
    trips(&crossfade, "bus", Instant::now()).await;
    let revision = crossfade.admin.status("bus").await["revision"].as_u64().unwrap();
    let told = incident(&crossfade, "bus", revision).await;
    let green = &told["counts"]["green"];
    assert!(green["unreachable"].as_u64().unwrap() >= 20, "{told}");
    assert_eq!(green["unreachable"], green["fallbacks"], "{told}");
    assert_eq!(load.stop().await.1, 0, "blue served them all");
}

#[tokio::test]
async fn a_broker_that_dies_under_load_costs_no_client_and_is_off_within_ten_seconds() {
    let (blue, mut green) = (Mosquitto::start().await, Mosquitto::start().await);
    let route = Route::mqtt(blue.address, green.address).green_percentage(50.0);
    let crossfade = Crossfade::start(&route.to_string()).await;
    let load = Load::start(100, connects(route.listen));
    eventually("both serve", async || (green.clients().len() > 50).then_some(())).await;
    // Killed between two clients: one that is connected to a broker that dies has lost its broker.
    assert_eq!(load.stop().await.1, 0);
    green.stop();
    let load = Load::start(100, connects(route.listen));
    trips(&crossfade, "broker", Instant::now()).await;
    eventually("clients go on", async || (load.good() > 300).then_some(())).await;
    assert_eq!(load.stop().await.1, 0, "blue served them all");
    let status = crossfade.admin.status("broker").await;
    assert!(arm(&status, "green")["unreachable"].as_u64() >= Some(20), "{status}");
}

#[tokio::test]
async fn a_disarmed_guard_lets_green_fail() {
    let site = Site::start().await;
    site.green.behaviour().set(Behaviour { status: Some(StatusCode::BAD_GATEWAY), ..Behaviour::default() });
    let route = site.route().green_percentage(50.0).unguarded();
    let crossfade = Crossfade::start(&route.to_string()).await;
    let load = Load::start(100, requests(route.listen));
    let status = counted(&crossfade, "shop", |status| arm(status, "green")["refused"].as_u64() >= Some(250)).await;
    assert_eq!((&status["latched"], &status["guard"]["armed"]), (&json!(false), &json!(false)), "{status}");
    assert_eq!(crossfade.admin.green("shop").await, 50.0);
    assert!(load.bad() >= 250);
}
