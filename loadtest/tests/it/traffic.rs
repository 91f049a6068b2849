use std::{collections::BTreeSet, num::NonZeroU64, sync::Arc, time::Duration};

use http::{StatusCode, Uri};
use loadtest::{
    origin::{Behaviour, HttpOrigin, MqttBroker},
    traffic::{HttpCounts, HttpTraffic, MqttCounts, MqttTraffic},
};
use tokio_util::sync::CancellationToken;

use crate::{any_port, soon, until};

fn target(origin: &HttpOrigin) -> Uri {
    format!("http://{}/shop", origin.address()).parse().unwrap()
}

#[tokio::test]
async fn http_answers_are_counted_by_origin_and_status() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let counts = Arc::new(HttpCounts::default());
    let stop = CancellationToken::new();
    let traffic = HttpTraffic::new(target(&origin), 500.0, NonZeroU64::new(5).unwrap());
    let running = tokio::spawn(traffic.run(Arc::clone(&counts), stop.clone()));

    until("20 answers", || counts.tally().answered_by("go") >= 20).await;
    origin.behaviour().set(Behaviour { status: Some(StatusCode::BAD_GATEWAY), ..Behaviour::default() });
    let failed = ("go".to_owned(), 502);
    until("an error status", || counts.tally().answers.contains_key(&failed)).await;
    stop.cancel();
    soon(running).await.unwrap();

    let tally = counts.tally();
    assert_eq!(tally.errors, 0);
    assert_eq!(tally.sent, tally.answered_by("go"));
    assert_eq!(tally.sent, origin.seen().requests());
    let keys: BTreeSet<_> = origin.seen().recent().into_iter().filter_map(|request| request.session).collect();
    assert_eq!(keys, ["user-0", "user-1", "user-2", "user-3", "user-4"].map(str::to_owned).into());
    assert!(origin.seen().connections() < tally.sent, "connections are kept");
}

#[tokio::test]
async fn http_requests_to_nobody_are_errors() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    origin.stop().await;
    let counts = Arc::new(HttpCounts::default());
    let stop = CancellationToken::new();
    let traffic = HttpTraffic::new(target(&origin), 100.0, NonZeroU64::MIN);
    let running = tokio::spawn(traffic.run(Arc::clone(&counts), stop.clone()));
    until("3 errors", || counts.tally().errors >= 3).await;
    stop.cancel();
    soon(running).await.unwrap();
    assert!(counts.tally().answers.is_empty());
}

#[tokio::test]
async fn a_hanging_origin_bounds_the_requests_under_way() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    origin.behaviour().change(|b| b.hang = true);
    let counts = Arc::new(HttpCounts::default());
    let stop = CancellationToken::new();
    let traffic = HttpTraffic::new(target(&origin), 1000.0, NonZeroU64::MIN);
    let running = tokio::spawn(traffic.run(Arc::clone(&counts), stop.clone()));
    until("requests are skipped", || counts.tally().skipped > 0).await;
    assert_eq!(counts.tally().sent, 64);
    stop.cancel();
    soon(running).await.unwrap();
    assert_eq!(counts.tally().errors, counts.tally().sent);
}

#[tokio::test]
async fn devices_publish_and_reconnect() {
    let broker = MqttBroker::start("go", any_port()).await.unwrap();
    let counts = Arc::new(MqttCounts::default());
    let stop = CancellationToken::new();
    let traffic = MqttTraffic {
        publish_every: Duration::from_millis(20),
        reconnect_every: Duration::from_millis(200),
        ..MqttTraffic::new(broker.address(), 3)
    };
    let running = tokio::spawn(traffic.run(Arc::clone(&counts), stop.clone()));
    until("every device came back", || counts.connected() >= 9).await;
    until("messages are acknowledged", || counts.acknowledged() >= 30).await;
    stop.cancel();
    soon(running).await.unwrap();

    assert_eq!((counts.refused(), counts.errors(), counts.skipped()), (0, 0, 0));
    assert_eq!(counts.connected(), broker.seen().connects());
    let devices: BTreeSet<_> = broker.seen().clients().into_iter().collect();
    assert_eq!(devices, ["device-0", "device-1", "device-2"].map(str::to_owned).into());
    until("every device left", || broker.seen().open_connections() == 0).await;
}

#[tokio::test]
async fn devices_come_back_when_the_broker_does() {
    let broker = MqttBroker::start("go", any_port()).await.unwrap();
    let counts = Arc::new(MqttCounts::default());
    let stop = CancellationToken::new();
    let running = tokio::spawn(MqttTraffic::new(broker.address(), 1).run(Arc::clone(&counts), stop.clone()));
    until("the device connected", || counts.connected() == 1).await;
    soon(broker.stop()).await;
    until("the loss is counted", || counts.errors() >= 1).await;
    let again = MqttBroker::start("go", broker.address()).await.unwrap();
    until("the device connected again", || again.seen().connects() >= 1).await;
    stop.cancel();
    soon(running).await.unwrap();
}
