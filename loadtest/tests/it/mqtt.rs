use std::{net::SocketAddr, time::Duration};

use loadtest::origin::MqttBroker;
use rumqttc::{
    AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS,
    v5::{self, mqttbytes::v5::Packet as Packet5},
};
use tokio::net::TcpStream;

use crate::{any_port, soon, until};

fn v4(id: &str, address: SocketAddr) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new(id, address.ip().to_string(), address.port());
    options.set_keep_alive(Duration::from_secs(30)).set_max_packet_size(1 << 20, 1 << 20);
    AsyncClient::new(options, 10)
}

fn v5(id: &str, address: SocketAddr) -> (v5::AsyncClient, v5::EventLoop) {
    let mut options = v5::MqttOptions::new(id, address.ip().to_string(), address.port());
    options.set_keep_alive(Duration::from_secs(30));
    v5::AsyncClient::new(options, 10)
}

/// Polls until `wanted` says yes to a packet that came in.
async fn wait(events: &mut EventLoop, wanted: impl Fn(&Packet) -> bool) -> Packet {
    soon(async {
        loop {
            match events.poll().await.unwrap() {
                Event::Incoming(packet) if wanted(&packet) => return packet,
                _ => {}
            }
        }
    })
    .await
}

async fn wait5(events: &mut v5::EventLoop, wanted: impl Fn(&Packet5) -> bool) -> Packet5 {
    soon(async {
        loop {
            match events.poll().await.unwrap() {
                v5::Event::Incoming(packet) if wanted(&packet) => return packet,
                _ => {}
            }
        }
    })
    .await
}

#[tokio::test]
async fn both_versions_meet_on_one_port() {
    let broker = MqttBroker::start("go", any_port()).await.unwrap();
    let (old, mut old_events) = v4("old", broker.address());
    let (new, mut new_events) = v5("new", broker.address());

    old.subscribe("from/new", QoS::AtLeastOnce).await.unwrap();
    wait(&mut old_events, |packet| matches!(packet, Packet::SubAck(_))).await;
    new.subscribe("from/old", v5::mqttbytes::QoS::AtLeastOnce).await.unwrap();
    wait5(&mut new_events, |packet| matches!(packet, Packet5::SubAck(_))).await;
    assert_eq!((broker.seen().connects(), broker.seen().open_connections()), (2, 2));
    assert_eq!(broker.seen().clients(), ["old", "new"]);

    old.publish("from/old", QoS::AtLeastOnce, false, "hello").await.unwrap();
    wait(&mut old_events, |packet| matches!(packet, Packet::PubAck(_))).await;
    let Packet5::Publish(message) = wait5(&mut new_events, |p| matches!(p, Packet5::Publish(_))).await else {
        unreachable!()
    };
    assert_eq!(message.payload, "hello");

    let payload = vec![b'x'; 100_000];
    new.publish("from/new", v5::mqttbytes::QoS::AtLeastOnce, false, payload.clone()).await.unwrap();
    wait5(&mut new_events, |packet| matches!(packet, Packet5::PubAck(_))).await;
    let Packet::Publish(message) = wait(&mut old_events, |p| matches!(p, Packet::Publish(_))).await else {
        unreachable!()
    };
    assert_eq!(message.payload, payload);
    assert_eq!(broker.seen().publishes(), 2);

    drop((old_events, new_events));
    until("the clients are counted as gone", || broker.seen().open_connections() == 0).await;
}

#[tokio::test]
async fn a_publish_without_subscribers_is_acknowledged() {
    let broker = MqttBroker::start("go", any_port()).await.unwrap();
    let (client, mut events) = v4("lonely", broker.address());
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        client.publish("nobody/listens", qos, false, "hello").await.unwrap();
        wait(&mut events, |packet| matches!(packet, Packet::PubAck(_) | Packet::PubComp(_))).await;
    }
}

#[tokio::test]
async fn stop_closes_connections_and_frees_the_port() {
    let broker = MqttBroker::start("go", any_port()).await.unwrap();
    let address = broker.address();
    let (_client, mut events) = v4("a", address);
    wait(&mut events, |packet| matches!(packet, Packet::ConnAck(_))).await;

    soon(broker.stop()).await;
    soon(events.poll()).await.unwrap_err();
    let refused = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(broker.seen().open_connections(), 0);

    let again = MqttBroker::start("go", address).await.unwrap();
    let (_client, mut events) = v4("a", again.address());
    wait(&mut events, |packet| matches!(packet, Packet::ConnAck(_))).await;
}

#[tokio::test]
async fn an_address_in_use_is_an_error_that_names_it() {
    let broker = MqttBroker::start("go", any_port()).await.unwrap();
    let error = MqttBroker::start("other", broker.address()).await.unwrap_err();
    assert_eq!(error.address, broker.address());
    assert_eq!(error.source.kind(), std::io::ErrorKind::AddrInUse);
}
