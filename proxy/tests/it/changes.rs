//! The split changes while long-lived connections carry traffic.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use loadtest::origin::TcpOrigin;
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};

use crate::{
    harness::{Crossfade, seeded},
    mosquitto::Mosquitto,
    mqtt::{greet, is_green},
    packets::{ACCEPTED, connect},
    routes::Route,
    site::{any_port, soon},
    status::counted,
    tcp::{address_is_green, from_address, label},
};

/// Changes for each of the two routes.
const CHANGES: u16 = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_changes_close_no_connection_lose_no_message_and_hold_at_once_for_new_ones() {
    let (blue_broker, green_broker) = (Mosquitto::start().await, Mosquitto::start().await);
    let blue = TcpOrigin::start("python", any_port()).await.unwrap();
    let green = TcpOrigin::start("go", any_port()).await.unwrap();
    let broker = Route::mqtt(blue_broker.address, green_broker.address).green_percentage(50.0);
    let bus = Route::tcp(blue.address(), green.address()).green_percentage(50.0);
    let crossfade = Crossfade::start(&format!("{broker}{bus}")).await;

    let stop = Arc::new(AtomicBool::new(false));
    let mut talking = JoinSet::new();
    let ids = (0..12).map(|n| format!("steady-{n}")).collect::<Vec<_>>();
    for id in ids.clone() {
        talking.spawn(publish_to_oneself(broker.listen, id, Arc::clone(&stop)));
    }
    for n in 0..12 {
        let mut stream = from_address(n, bus.listen).await;
        let (before, stop) = (label(&mut stream).await, Arc::clone(&stop));
        assert_eq!(before, if address_is_green(n, 50.0) { "go" } else { "python" });
        talking.spawn(async move {
            let mut lines = 0;
            while !stop.load(Ordering::Relaxed) {
                let line = format!("{lines}\n");
                stream.write_all(line.as_bytes()).await.map_err(|error| format!("{n} after {lines}: {error}"))?;
                let expected = format!("{before}:{line}");
                let mut answer = vec![0; expected.len()];
                soon(stream.read_exact(&mut answer)).await.map_err(|error| format!("{n} after {lines}: {error}"))?;
                if answer != expected.as_bytes() {
                    return Err(format!("{:?} in place of {expected:?}", String::from_utf8_lossy(&answer)));
                }
                lines += 1;
            }
            Ok(lines)
        });
    }
    counted(&crossfade, "broker", |status| {
        status["blue"]["open"].as_u64().unwrap() + status["green"]["open"].as_u64().unwrap() == 12
    })
    .await;

    let mut random = seeded();
    for nth in 0..CHANGES {
        let percent = f64::from(random.u16(0..=10_000)) / 100.0;
        crossfade.admin.split("broker", percent).await;
        let id = format!("new-{nth}");
        let (_stream, answer) = greet(broker.listen, &connect(&id)).await;
        assert_eq!(answer.as_deref(), Some(ACCEPTED));
        let at = if is_green("broker", &id, percent) { &green_broker } else { &blue_broker };
        assert!(at.clients().contains(&id), "{id} at {percent} %");

        crossfade.admin.split("bus", percent).await;
        let n = 1000 + nth;
        let expected = if address_is_green(n, percent) { "go" } else { "python" };
        assert_eq!(label(&mut from_address(n, bus.listen).await).await, expected, "{n} at {percent} %");
        assert!(talking.try_join_next().is_none(), "a steady connection ended at change {nth}");
    }

    stop.store(true, Ordering::Relaxed);
    let mut exchanged = Vec::new();
    while let Some(ended) = soon(talking.join_next()).await {
        exchanged.push(ended.unwrap().unwrap());
    }
    eprintln!("messages and lines of each connection during the changes: {exchanged:?}");
    assert!(exchanged.iter().all(|count| *count > 0), "{exchanged:?}");
    for id in ids {
        let seen =
            [&blue_broker, &green_broker].map(|broker| broker.clients().iter().filter(|seen| **seen == id).count());
        let expected = if is_green("broker", &id, 50.0) { [0, 1] } else { [1, 0] };
        assert_eq!(seen, expected, "{id} connected once and stayed");
    }
}

/// Publishes numbers to its own topic with QoS 1, each when the one before it has come back, until `stop`. How many.
/// Errors: anything that is not exactly that.
async fn publish_to_oneself(address: std::net::SocketAddr, id: String, stop: Arc<AtomicBool>) -> Result<u64, String> {
    let options = MqttOptions::new(&id, address.ip().to_string(), address.port());
    let (client, mut events) = AsyncClient::new(options, 10);
    let topic = format!("steady/{id}");
    client.subscribe(&topic, QoS::AtLeastOnce).await.map_err(|error| error.to_string())?;
    let (mut sent, mut received, mut acknowledged) = (0, 0, 0);
    loop {
        match soon(events.poll()).await.map_err(|error| format!("{id} after {received}: {error}"))? {
            Event::Incoming(Packet::SubAck(_)) => {}
            Event::Incoming(Packet::PubAck(_)) => acknowledged += 1,
            Event::Incoming(Packet::Publish(message)) => {
                if message.payload != received.to_string() {
                    return Err(format!("{id}: {:?} in place of {received}", message.payload));
                }
                received += 1;
            }
            _ => continue,
        }
        if received == sent && acknowledged == sent {
            if stop.load(Ordering::Relaxed) {
                return Ok(received);
            }
            client
                .publish(&topic, QoS::AtLeastOnce, false, sent.to_string())
                .await
                .map_err(|error| error.to_string())?;
            sent += 1;
        }
    }
}
