//! MQTT routes between real brokers, with real clients and with raw bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    process::{Command, Stdio},
    time::Duration,
};

use futures::{StreamExt, stream};
use loadtest::origin::MqttBroker;
use proxy::split::{Salt, bucket};
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS, v5};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    authority::Authority,
    harness::{Crossfade, eventually, free_address},
    mosquitto::{Mosquitto, command},
    packets::{
        ACCEPTED, Connect, DISCONNECT, UNAVAILABLE, UNAVAILABLE_5, connect, packet, publish, read_packet, string,
        subscribe,
    },
    routes::Route,
    site::soon,
    status::{arm, counted, rejected},
};

/// Sends a first packet and waits for the answer; `None`: closed without one.
pub(crate) async fn greet(address: SocketAddr, first: &[u8]) -> (TcpStream, Option<Vec<u8>>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(first).await.unwrap();
    let answer = soon(read_packet(&mut stream)).await;
    (stream, answer)
}

/// Connects, insists on being accepted, and disconnects.
async fn visit(address: SocketAddr, client_id: &str) {
    let (mut stream, answer) = greet(address, &connect(client_id)).await;
    assert_eq!(answer.as_deref(), Some(ACCEPTED), "{client_id}");
    stream.write_all(DISCONNECT).await.unwrap();
    soon(stream.read_to_end(&mut Vec::new())).await.unwrap();
}

pub(crate) fn is_green(route: &str, key: &str, percent: f64) -> bool {
    f64::from(bucket(Salt::split(route), key.as_bytes())) < percent * 100.0
}

/// The first `count` of `prefix-0`, `prefix-1`, … that are green at `percent`, or that are not.
fn keys(prefix: &str, green: bool, percent: f64, count: usize) -> Vec<String> {
    (0..).map(|n| format!("{prefix}-{n}")).filter(|key| is_green("broker", key, percent) == green).take(count).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_client_ids_split_between_two_brokers_and_come_back_to_the_same_one() {
    const CLIENTS: usize = 10_000;
    let (blue, green) = (Mosquitto::start().await, Mosquitto::start().await);
    let route = Route::mqtt(blue.address, green.address);
    let crossfade = Crossfade::start(&route.to_string()).await;
    let mut seen = (0, 0);
    // Who was where is what the brokers' own logs say.
    let mut greens_at = async |percent: f64| -> BTreeSet<String> {
        crossfade.admin.split("broker", percent).await;
        stream::iter(0..CLIENTS)
            .map(|n| visit_owned(route.listen, format!("device-{n}")))
            .buffer_unordered(64)
            .collect::<()>()
            .await;
        let (blues, greens) = (blue.clients().split_off(seen.0), green.clients().split_off(seen.1));
        assert_eq!(blues.len() + greens.len(), CLIENTS, "every client reaches one broker, once");
        seen = (seen.0 + blues.len(), seen.1 + greens.len());
        let (blues, greens) = (BTreeSet::from_iter(blues), BTreeSet::from_iter(greens));
        assert_eq!(blues.len() + greens.len(), CLIENTS);
        assert!(blues.is_disjoint(&greens));
        greens
    };
    let ten = greens_at(10.0).await;
    let quarter = greens_at(25.0).await;
    let ten_again = greens_at(10.0).await;
    eprintln!("of {CLIENTS} client ids: {} green at 10 %, {} at 25 %", ten.len(), quarter.len());
    assert!((900..=1100).contains(&ten.len()), "{} at 10 %", ten.len());
    assert!((2350..=2650).contains(&quarter.len()), "{} at 25 %", quarter.len());
    assert!(ten.is_subset(&quarter), "raising the split moves nobody off green");
    assert_eq!(ten, ten_again);
}

async fn visit_owned(address: SocketAddr, client_id: String) {
    visit(address, &client_id).await;
}

/// rumqttc of 3.1.1: subscribes, publishes to itself, and has its message back.
async fn round_trip(address: SocketAddr, id: &str, qos: QoS) {
    let (client, mut events) = AsyncClient::new(options(id, address), 10);
    let topic = format!("round/{id}");
    let acknowledged = |packet: &Packet| match qos {
        QoS::AtMostOnce => true,
        QoS::AtLeastOnce => matches!(packet, Packet::PubAck(_)),
        QoS::ExactlyOnce => matches!(packet, Packet::PubComp(_)),
    };
    client.subscribe(&topic, qos).await.unwrap();
    incoming(&mut events, |packet| matches!(packet, Packet::SubAck(_))).await;
    client.publish(&topic, qos, false, "there and back").await.unwrap();
    let (mut message, mut done) = (None, qos == QoS::AtMostOnce);
    while message.is_none() || !done {
        let packet = incoming(&mut events, |packet| matches!(packet, Packet::Publish(_)) || acknowledged(packet)).await;
        done |= !matches!(packet, Packet::Publish(_));
        if let Packet::Publish(publish) = packet {
            assert!(message.replace(publish).is_none(), "{id}: delivered twice");
        }
    }
    let message = message.unwrap();
    assert_eq!((message.payload.as_ref(), message.qos), (b"there and back".as_slice(), qos), "{id}");
}

fn options(id: &str, address: SocketAddr) -> MqttOptions {
    let mut options = MqttOptions::new(id, address.ip().to_string(), address.port());
    options.set_keep_alive(Duration::from_secs(30));
    options
}

/// Polls on until a packet that was waited for comes in.
async fn incoming(events: &mut EventLoop, wanted: impl Fn(&Packet) -> bool) -> Packet {
    soon(async {
        loop {
            if let Event::Incoming(packet) = events.poll().await.unwrap()
                && wanted(&packet)
            {
                return packet;
            }
        }
    })
    .await
}

/// The same with version 5.
async fn round_trip_5(address: SocketAddr, id: &str, qos: v5::mqttbytes::QoS) {
    use v5::mqttbytes::{QoS, v5::Packet};
    let mut options = v5::MqttOptions::new(id, address.ip().to_string(), address.port());
    options.set_keep_alive(Duration::from_secs(30));
    let (client, mut events) = v5::AsyncClient::new(options, 10);
    let topic = format!("round/{id}");
    client.subscribe(&topic, qos).await.unwrap();
    let (mut message, mut done) = (None, qos == QoS::AtMostOnce);
    soon(async {
        while message.is_none() || !done {
            let v5::Event::Incoming(packet) = events.poll().await.unwrap() else { continue };
            match packet {
                Packet::SubAck(_) => client.publish(&topic, qos, false, "there and back").await.unwrap(),
                Packet::PubAck(_) | Packet::PubComp(_) => done = true,
                Packet::Publish(publish) => assert!(message.replace(publish).is_none(), "{id}: delivered twice"),
                _ => {}
            }
        }
    })
    .await;
    let message = message.unwrap();
    assert_eq!((message.payload.as_ref(), message.qos), (b"there and back".as_slice(), qos), "{id}");
}

#[tokio::test]
async fn real_clients_exchange_messages_of_every_quality_through_either_arm() {
    let blue = Mosquitto::start().await;
    let green = MqttBroker::start("go", free_address()).await.unwrap();
    let route = Route::mqtt(blue.address, green.address());
    let crossfade = Crossfade::start(&route.to_string()).await;
    for (arm, percent) in [("blue", 0.0), ("green", 100.0)] {
        crossfade.admin.split("broker", percent).await;
        for qos in 0..=2 {
            let quality = rumqttc::qos(qos).unwrap();
            round_trip(route.listen, &format!("{arm}-four-{qos}"), quality).await;
            let quality = v5::mqttbytes::qos(qos).unwrap();
            round_trip_5(route.listen, &format!("{arm}-five-{qos}"), quality).await;
        }
    }
    let expected =
        |arm: &str| (0..=2).flat_map(|qos| [format!("{arm}-four-{qos}"), format!("{arm}-five-{qos}")]).collect();
    let is: Vec<String> = expected("blue");
    assert_eq!(blue.clients(), is);
    let is: Vec<String> = expected("green");
    assert_eq!(green.seen().clients(), is);
    let status = counted(&crossfade, "broker", |status| arm(status, "green")["ok"] == 6).await;
    assert_eq!(arm(&status, "blue")["ok"], 6, "{status}");
}

fn client(program: &str, address: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = command(program);
    command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()]).args(arguments);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn mosquittos_own_clients_of_every_version_work_through_the_proxy() {
    let (blue, green) = (Mosquitto::start().await, Mosquitto::start().await);
    let route = Route::mqtt(blue.address, green.address);
    let crossfade = Crossfade::start(&route.to_string()).await;
    for (broker, percent) in [(&blue, 0.0), (&green, 100.0)] {
        crossfade.admin.split("broker", percent).await;
        for version in ["mqttv31", "mqttv311", "mqttv5"] {
            for qos in ["0", "1", "2"] {
                let topic = format!("kept/{version}/{qos}");
                let common = ["-V", version, "-q", qos, "-t", &topic];
                // Retained, so that it does not matter which of the two is there first.
                let (from, to) = (format!("pub-{version}-{qos}"), format!("sub-{version}-{qos}"));
                let sent =
                    client("mosquitto_pub", route.listen, &common).args(["-i", &from, "-r", "-m", "kept"]).output();
                let sent = sent.unwrap();
                assert!(sent.status.success(), "{version} {qos}: {}", String::from_utf8_lossy(&sent.stderr));
                let mut subscriber = client("mosquitto_sub", route.listen, &common);
                let got = subscriber.args(["-i", &to, "-C", "1", "-W", "10"]).output().unwrap();
                assert_eq!(String::from_utf8_lossy(&got.stdout), "kept\n", "{version} {qos}");
                assert_eq!(broker.clients()[broker.clients().len() - 2..], [from, to]);
            }
        }
    }
}

#[tokio::test]
async fn a_bridge_between_brokers_works_through_the_proxy() {
    let (blue, green) = (Mosquitto::start().await, Mosquitto::start().await);
    let route = Route::mqtt(blue.address, green.address).green_percentage(100.0);
    let _crossfade = Crossfade::start(&route.to_string()).await;
    // mosquitto says that it is a bridge in the protocol level: 0x84.
    let edge = Mosquitto::start_with(&format!(
        "connection uplink\naddress {}\nremote_clientid edge\ntopic readings/# out 1\nnotifications false\n\
         restart_timeout 1",
        route.listen
    ))
    .await;
    eventually("the bridge is at green", async || green.clients().contains(&"edge".to_owned()).then_some(())).await;
    let mut sub = client("mosquitto_sub", green.address, &["-t", "readings/#", "-C", "1", "-W", "15", "-v"]);
    let subscriber = sub.stdout(Stdio::piped()).spawn().unwrap();
    let published = client("mosquitto_pub", edge.address, &["-t", "readings/1", "-m", "21", "-r", "-q", "1"]).output();
    assert!(published.unwrap().status.success());
    let got = tokio::task::spawn_blocking(|| subscriber.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&got.stdout), "readings/1 21\n");
    assert!(blue.clients().is_empty());
    // And as bytes, so that it is certain that the bit was set.
    for level in [0x83, 0x84] {
        let (_stream, answer) = greet(route.listen, &Connect::new(level, "raw-bridge").bytes()).await;
        assert_eq!(answer.as_deref(), Some(ACCEPTED), "{level:#x}");
    }
}

#[tokio::test]
async fn clients_with_the_same_user_name_share_an_arm_when_it_is_the_key() {
    let (blue, green) = (Mosquitto::start().await, Mosquitto::start().await);
    let route = Route::mqtt(blue.address, green.address)
        .with("key = [\"mqtt-username\", \"mqtt-client-id\"]")
        .green_percentage(50.0);
    let _crossfade = Crossfade::start(&route.to_string()).await;
    let users = (0..20).map(|n| format!("user-{n}")).collect::<Vec<_>>();
    let mut expected = BTreeMap::from([(true, BTreeSet::new()), (false, BTreeSet::new())]);
    for user in &users {
        for level in [3, 4, 5] {
            let id = format!("{user}-device-{level}");
            let connect = Connect { username: Some(user), ..Connect::new(level, &id) };
            let (_stream, answer) = greet(route.listen, &connect.bytes()).await;
            assert_eq!(answer.unwrap()[3], 0);
            expected.get_mut(&is_green("broker", user, 50.0)).unwrap().insert(id);
        }
    }
    // Without a user name the next key has its turn.
    let nameless = keys("nameless", true, 50.0, 1).remove(0);
    visit(route.listen, &nameless).await;
    expected.get_mut(&true).unwrap().insert(nameless);
    assert_eq!(BTreeSet::from_iter(green.clients()), expected[&true]);
    assert_eq!(BTreeSet::from_iter(blue.clients()), expected[&false]);
}

#[tokio::test]
async fn an_empty_client_id_follows_keyless_and_is_counted() {
    const CLIENTS: usize = 60;
    let (blue, green) = (Mosquitto::start().await, Mosquitto::start().await);
    let route = Route::mqtt(blue.address, green.address).green_percentage(100.0);
    let crossfade = Crossfade::start(&route.to_string()).await;
    for _ in 0..CLIENTS {
        visit(route.listen, "").await;
    }
    assert_eq!((blue.clients().len(), green.clients().len()), (CLIENTS, 0), "keyless = \"blue\" is blue at any split");
    counted(&crossfade, "broker", |status| status["keyless"] == CLIENTS).await;

    crossfade.rewrite("", &route.clone().with("keyless = \"random\"").to_string());
    crossfade.logged("Configuration reloaded").await;
    crossfade.admin.split("broker", 50.0).await;
    for _ in 0..CLIENTS {
        visit(route.listen, "").await;
    }
    let greens = green.clients().len();
    // Below 1e-9 for either bound with 60 draws at one half.
    assert!((8..=52).contains(&greens), "{greens} of {CLIENTS} drawn green at 50 %");
    assert_eq!(blue.clients().len(), 2 * CLIENTS - greens);
    counted(&crossfade, "broker", |status| status["keyless"] == 2 * CLIENTS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_listener_serves_raw_and_real_clients() {
    let (blue, green) = (Mosquitto::start().await, Mosquitto::start().await);
    let (folder, authority) = (TempDir::new().unwrap(), Authority::new());
    let tls = authority.issue("localhost").write(folder.path(), "broker");
    let route = Route::mqtt(blue.address, green.address).with(tls).green_percentage(100.0);
    let _crossfade = Crossfade::start(&route.to_string()).await;
    let tcp = TcpStream::connect(route.listen).await.unwrap();
    let mut stream = authority.connect(tcp, "localhost", &[]).await.unwrap();
    stream.write_all(&connect("raw")).await.unwrap();
    assert_eq!(soon(read_packet(&mut stream)).await.unwrap(), ACCEPTED);

    let roots = folder.path().join("roots.pem");
    authority.write(&roots);
    let port = route.listen.port().to_string();
    let mut publish = command("mosquitto_pub");
    publish
        .args(["-h", "localhost", "-p", &port, "-i", "real", "-t", "a", "-m", "b", "-q", "2", "--cafile"])
        .arg(roots);
    let published = tokio::task::spawn_blocking(move || publish.output().unwrap()).await.unwrap();
    assert!(published.status.success(), "{}", String::from_utf8_lossy(&published.stderr));
    assert_eq!(green.clients(), ["raw", "real"]);
}

/// A broker's place, where the test itself accepts.
async fn place() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn arrives(listener: &TcpListener) -> TcpStream {
    soon(listener.accept()).await.unwrap().0
}

/// A client says this first, and its broker hears it: both ends.
async fn meet(listen: SocketAddr, broker: &TcpListener, said: &[u8]) -> (TcpStream, TcpStream) {
    let mut client = TcpStream::connect(listen).await.unwrap();
    client.write_all(said).await.unwrap();
    let mut broker = arrives(broker).await;
    expect_bytes(&mut broker, said).await;
    (client, broker)
}

async fn expect_bytes(stream: &mut TcpStream, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    soon(stream.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, expected);
}

async fn expect_end(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    soon(stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"", "nothing more is sent");
}

#[tokio::test]
async fn a_connect_is_forwarded_byte_for_byte_however_it_arrives_and_whatever_follows_it() {
    let (green, address) = place().await;
    let route = Route::mqtt(free_address(), address).green_percentage(100.0).unchecked().unguarded();
    let _crossfade = Crossfade::start(&route.to_string()).await;

    // A length in more bytes than it needs, which 3.x does not forbid.
    let mut stretched = connect("stretched");
    stretched.splice(1..2, [stretched[1] | 0x80, 0x80, 0]);
    let everything_of_5 = {
        let properties = [
            &[0x11, 0, 0, 0, 30, 0x21, 0, 10, 0x27, 0, 1, 0, 0][..],
            &[&[0x26][..], &string(b"name"), &string("wert \u{1f980}".as_bytes())].concat(),
            &[&[0x15][..], &string(b"SCRAM-SHA-1"), &[0x16], &string(b"data")].concat(),
        ]
        .concat();
        let will_properties =
            [&[0x18, 0, 0, 0, 5, 0x01, 0][..], &[&[0x08][..], &string(b"answer/to")].concat()].concat();
        let body = [
            &string(b"MQTT")[..],
            &[5, 0b1110_1110, 0, 10, properties.len() as u8],
            &properties,
            &string(b"every-field"),
            &[will_properties.len() as u8],
            &will_properties,
            &string(b"will/topic"),
            &string(&[0, 255, 1]),
            &string(b"user"),
            &string(&[0, 1, 2, 254]),
        ]
        .concat();
        packet(0x10, &body)
    };
    let large = Connect { will: Some(("will", &"x".repeat(60_000))), ..Connect::new(4, "large") }.bytes();
    for first in [connect("plain"), Connect::new(3, "old").bytes(), stretched, everything_of_5, large] {
        // Whole.
        let _both = meet(route.listen, &green, &first).await;

        // Together with what a client may send before its CONNACK (3.1.4), and with what comes later.
        let behind = [subscribe("a/#"), publish("a/b", b"early"), vec![0xc0, 0]].concat();
        let all = [first.as_slice(), &behind].concat();
        let (mut client, mut broker) = meet(route.listen, &green, &all).await;
        broker.write_all(ACCEPTED).await.unwrap();
        expect_bytes(&mut client, ACCEPTED).await;
        client.write_all(&behind).await.unwrap();
        expect_bytes(&mut broker, &behind).await;

        // In single bytes, each a segment of its own.
        if first.len() < 1000 {
            let mut client = TcpStream::connect(route.listen).await.unwrap();
            client.set_nodelay(true).unwrap();
            for byte in &all {
                client.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            let mut broker = arrives(&green).await;
            expect_bytes(&mut broker, &all).await;
        }
    }
}

#[tokio::test]
async fn each_side_may_end_its_half_and_still_listen() {
    let (green, address) = place().await;
    let route = Route::mqtt(free_address(), address).green_percentage(100.0).unchecked();
    let crossfade = Crossfade::start(&route.to_string()).await;

    // The client says all it has to say, and still gets its answers.
    let mut client = TcpStream::connect(route.listen).await.unwrap();
    let said = [connect("brief"), publish("a", b"b")].concat();
    client.write_all(&said).await.unwrap();
    client.shutdown().await.unwrap();
    let mut broker = arrives(&green).await;
    expect_bytes(&mut broker, &said).await;
    expect_end(&mut broker).await;
    broker.write_all(ACCEPTED).await.unwrap();
    expect_bytes(&mut client, ACCEPTED).await;
    broker.write_all(&publish("c", b"d")).await.unwrap();
    expect_bytes(&mut client, &publish("c", b"d")).await;
    broker.shutdown().await.unwrap();
    expect_end(&mut client).await;

    // The broker does.
    let (mut client, mut broker) = meet(route.listen, &green, &connect("listener")).await;
    broker.write_all(ACCEPTED).await.unwrap();
    broker.shutdown().await.unwrap();
    expect_bytes(&mut client, ACCEPTED).await;
    expect_end(&mut client).await;
    client.write_all(&publish("late", b"still heard")).await.unwrap();
    expect_bytes(&mut broker, &publish("late", b"still heard")).await;
    client.shutdown().await.unwrap();
    expect_end(&mut broker).await;

    let status = counted(&crossfade, "broker", |status| arm(status, "green")["cut_off"] == 1).await;
    let green = arm(&status, "green");
    // Whoever has said all when it has hardly begun has given the client up, though it still hears it out.
    assert_eq!((&green["ok"], &green["failures"]), (&2.into(), &0.into()), "{status}");
}

#[tokio::test]
async fn a_client_that_is_killed_leaves_its_will_and_one_that_disconnects_does_not() {
    let (blue, green) = (Mosquitto::start().await, Mosquitto::start().await);
    let route = Route::mqtt(blue.address, green.address).green_percentage(100.0);
    let _crossfade = Crossfade::start(&route.to_string()).await;
    let (mut heir, answer) = greet(green.address, &connect("heir")).await;
    assert_eq!(answer.as_deref(), Some(ACCEPTED));
    heir.write_all(&subscribe("wills/#")).await.unwrap();
    assert_eq!(soon(read_packet(&mut heir)).await.unwrap()[0], 0x90);

    // A process, killed.
    let mut sub = client("mosquitto_sub", route.listen, &["-i", "killed", "-t", "x", "--will-topic", "wills/killed"]);
    let mut killed = sub.args(["--will-payload", "gone"]).spawn().unwrap();
    eventually("the client is at green", async || green.clients().contains(&"killed".to_owned()).then_some(())).await;
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(soon(read_packet(&mut heir)).await.unwrap(), publish("wills/killed", b"gone"));

    // A connection, reset.
    let will = |topic| Connect { will: Some((topic, "gone")), ..Connect::new(4, "device") }.bytes();
    let (stream, answer) = greet(route.listen, &will("wills/reset")).await;
    assert_eq!(answer.as_deref(), Some(ACCEPTED));
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    assert_eq!(soon(read_packet(&mut heir)).await.unwrap(), publish("wills/reset", b"gone"));

    // A farewell.
    let (mut stream, answer) = greet(route.listen, &will("wills/polite")).await;
    assert_eq!(answer.as_deref(), Some(ACCEPTED));
    stream.write_all(DISCONNECT).await.unwrap();
    expect_end(&mut stream).await;
    // The broker has closed, so a will would have come before this.
    heir.write_all(&publish("wills/none", b"end")).await.unwrap();
    assert_eq!(soon(read_packet(&mut heir)).await.unwrap(), publish("wills/none", b"end"));
}

#[tokio::test]
async fn green_out_of_reach_costs_no_client_with_fallback_blue() {
    const CLIENTS: usize = 200;
    let blue = Mosquitto::start().await;
    let route = Route::mqtt(blue.address, free_address()).green_percentage(50.0).unguarded();
    let crossfade = Crossfade::start(&route.to_string()).await;
    for n in 0..CLIENTS {
        visit(route.listen, &format!("device-{n}")).await;
    }
    let greens = (0..CLIENTS).filter(|n| is_green("broker", &format!("device-{n}"), 50.0)).count();
    let status = counted(&crossfade, "broker", |status| arm(status, "blue")["ok"] == CLIENTS).await;
    let green = arm(&status, "green");
    assert_eq!(
        (&green["dispatched"], &green["unreachable"], &green["fallbacks"]),
        (&greens.into(), &greens.into(), &greens.into()),
        "{status}"
    );
    assert_eq!(green["error_rate"], 1.0, "{status}");
    assert_eq!(arm(&status, "blue")["failures"], 0, "{status}");
    assert_eq!(blue.clients().len(), CLIENTS);
}

#[tokio::test]
async fn a_client_is_told_when_no_broker_can_be_reached() {
    let blue = Mosquitto::start().await;
    // Green gone, and nobody may serve in its place.
    let route =
        Route::mqtt(blue.address, free_address()).with("fallback = \"none\"").green_percentage(100.0).unguarded();
    let crossfade = Crossfade::start(&route.to_string()).await;
    // Blue gone: nobody ever does.
    let mut dead = Route::mqtt(free_address(), free_address());
    dead.name = "dead";
    let without_blue = Crossfade::start(&dead.to_string()).await;
    for (crossfade, route, side) in [(&crossfade, &route, "green"), (&without_blue, &dead, "blue")] {
        for (level, expected) in
            [(3, UNAVAILABLE), (4, UNAVAILABLE), (0x84, UNAVAILABLE), (5, UNAVAILABLE_5), (4, UNAVAILABLE)]
        {
            let (mut stream, answer) = greet(route.listen, &Connect::new(level, "device").bytes()).await;
            assert_eq!(answer.as_deref(), Some(expected), "{side}, level {level:#x}");
            expect_end(&mut stream).await;
        }
        let status = counted(crossfade, route.name, |status| arm(status, side)["unreachable"] == 5).await;
        assert_eq!(arm(&status, side)["fallbacks"], 0, "{status}");
    }
    assert!(blue.clients().is_empty());
}

#[tokio::test]
async fn a_broker_that_goes_silent_before_its_connack_is_a_timeout_and_the_client_is_told() {
    let (green, address) = place().await;
    let route = Route::mqtt(free_address(), address)
        .green_percentage(100.0)
        .unchecked()
        .table("[route.timeouts]\nresponse_header = \"200ms\"");
    let crossfade = Crossfade::start(&route.to_string()).await;
    for (level, expected) in [(4, UNAVAILABLE), (5, UNAVAILABLE_5)] {
        let first = Connect::new(level, "patient").bytes();
        let ((mut client, answer), mut broker) = tokio::join!(greet(route.listen, &first), arrives(&green));
        assert_eq!(answer.as_deref(), Some(expected));
        expect_end(&mut client).await;
        expect_bytes(&mut broker, &first).await;
        soon(broker.read_to_end(&mut Vec::new())).await.unwrap();
    }
    let status = counted(&crossfade, "broker", |status| arm(status, "green")["timeout"] == 2).await;
    assert_eq!(arm(&status, "green")["failures"], 2, "{status}");
}

#[tokio::test]
async fn a_broker_that_leaves_before_its_connack_is_broken_and_the_client_is_told() {
    let (green, address) = place().await;
    let route = Route::mqtt(free_address(), address).green_percentage(100.0).unchecked().unguarded();
    let crossfade = Crossfade::start(&route.to_string()).await;
    for (reset, level, expected) in
        [(false, 4, UNAVAILABLE), (false, 5, UNAVAILABLE_5), (true, 4, UNAVAILABLE), (true, 5, UNAVAILABLE_5)]
    {
        let first = Connect::new(level, "unlucky").bytes();
        let leaves = async {
            let mut broker = arrives(&green).await;
            expect_bytes(&mut broker, &first).await;
            if reset {
                socket2::SockRef::from(&broker).set_linger(Some(Duration::ZERO)).unwrap();
            }
        };
        let ((mut client, answer), ()) = tokio::join!(greet(route.listen, &first), leaves);
        assert_eq!(answer.as_deref(), Some(expected), "level {level}, reset: {reset}");
        expect_end(&mut client).await;
    }
    counted(&crossfade, "broker", |status| arm(status, "green")["broken"] == 4).await;
}

#[tokio::test]
async fn connacks_are_measured() {
    let (green, address) = place().await;
    let route = Route::mqtt(free_address(), address).green_percentage(100.0).unchecked().unguarded();
    let crossfade = Crossfade::start(&route.to_string()).await;
    let cases: [(u8, &[u8], &str); 9] = [
        (4, &[0x20, 2, 1, 0], "ok"),
        (5, &[0x20, 3, 0, 0, 0], "ok"),
        (4, &[0x20, 2, 0, 3], "refused"),
        (5, &[0x20, 3, 0, 0x88, 0], "refused"),
        (5, &[0x20, 3, 0, 0x97, 0], "refused"),
        (3, &[0x20, 2, 0, 4], "declined"),
        (4, &[0x20, 2, 0, 5], "declined"),
        (5, &[0x20, 3, 0, 0x87, 0], "declined"),
        (4, b"HTTP/1.1 400 Bad Request\r\n\r\n", "broken"),
    ];
    for (level, answer, _) in cases {
        let first = Connect::new(level, "device").bytes();
        let (mut client, mut broker) = meet(route.listen, &green, &first).await;
        broker.write_all(answer).await.unwrap();
        // The client reads what its broker says, whatever that is.
        expect_bytes(&mut client, answer).await;
        // A broker that goes first gives up whom it has accepted.
        drop(client);
        expect_end(&mut broker).await;
    }
    let status = counted(&crossfade, "broker", |status| arm(status, "green")["dispatched"] == cases.len()).await;
    for outcome in ["ok", "refused", "declined", "broken"] {
        let expected = cases.iter().filter(|case| case.2 == outcome).count();
        assert_eq!(arm(&status, "green")[outcome], expected, "{outcome}: {status}");
    }
    let latency = &arm(&status, "green")["p95_ms"];
    assert!(latency.as_f64().is_some_and(|ms| ms > 0.0 && ms < 5_000.0), "{status}");
}

#[tokio::test]
async fn whom_a_broker_accepts_and_gives_up_at_once_is_counted() {
    const ACCEPTED_5: &[u8] = &[0x20, 3, 0, 0, 0];
    let (green, address) = place().await;
    let route = Route::mqtt(free_address(), address).green_percentage(100.0).unchecked().unguarded();
    let crossfade = Crossfade::start(&route.to_string()).await;
    // What client and broker say after the CONNACK before the broker closes, and whether that counts.
    let said: [(u8, &[u8], &[u8], bool); 8] = [
        (4, &[], &[], true),
        (4, &[0xc0, 0], &[0xd0, 0], true),
        (5, &[], &[0xe0, 1, 0x82], true),
        (4, &publish("t", b"x"), &[], true),
        (4, DISCONNECT, &[], false),
        (4, &[&publish("t", b"x"), DISCONNECT].concat(), &[], false),
        (5, &[0xe0, 2, 4, 0], &[], false),
        (5, &[], &[0xe0, 2, 0x8e, 0], false),
    ];
    let mut cut_off = 0;
    for (level, of_client, of_broker, counts) in said {
        let first = Connect::new(level, "device").bytes();
        let accepted = if level == 5 { ACCEPTED_5 } else { ACCEPTED };
        let (mut client, mut broker) = meet(route.listen, &green, &first).await;
        broker.write_all(accepted).await.unwrap();
        expect_bytes(&mut client, accepted).await;
        client.write_all(of_client).await.unwrap();
        expect_bytes(&mut broker, of_client).await;
        broker.write_all(of_broker).await.unwrap();
        drop(broker);
        expect_bytes(&mut client, of_broker).await;
        expect_end(&mut client).await;
        cut_off += usize::from(counts);
    }
    // All at once: what a client says with its CONNECT counts, too.
    let hasty = [&connect("hasty"), DISCONNECT].concat();
    let (mut client, mut broker) = meet(route.listen, &green, &hasty).await;
    broker.write_all(ACCEPTED).await.unwrap();
    drop(broker);
    expect_bytes(&mut client, ACCEPTED).await;
    expect_end(&mut client).await;
    drop(client);

    let status = counted(&crossfade, "broker", |status| arm(status, "green")["cut_off"] == cut_off).await;
    let green = arm(&status, "green");
    assert_eq!((&green["ok"], &green["dispatched"]), (&(said.len() + 1).into(), &(said.len() + 1).into()), "{status}");
    assert_eq!((&green["failures"], &green["open"]), (&0.into(), &0.into()), "{status}");
}

#[tokio::test]
async fn a_broker_may_end_a_session_that_it_has_served() {
    let (green, address) = place().await;
    let route = Route::mqtt(free_address(), address).green_percentage(100.0).unchecked().unguarded();
    let crossfade = Crossfade::start(&route.to_string()).await;
    let (mut client, mut broker) = meet(route.listen, &green, &connect("device")).await;
    broker.write_all(ACCEPTED).await.unwrap();
    expect_bytes(&mut client, ACCEPTED).await;
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    drop(broker);
    expect_end(&mut client).await;
    drop(client);
    let status = counted(&crossfade, "broker", |status| arm(status, "green")["open"] == 0).await;
    let green = arm(&status, "green");
    assert_eq!((&green["ok"], &green["cut_off"]), (&1.into(), &0.into()), "{status}");
}

#[tokio::test]
async fn bytes_are_counted_and_connections_open_are_shown() {
    let (green, address) = place().await;
    let route = Route::mqtt(free_address(), address).green_percentage(100.0).unchecked();
    let crossfade = Crossfade::start(&route.to_string()).await;
    let mut client = TcpStream::connect(route.listen).await.unwrap();
    let said = [connect("counted"), publish("a", &[7; 100_000])].concat();
    let mut broker = {
        let (sent, broker) = tokio::join!(client.write_all(&said), async {
            let mut broker = arrives(&green).await;
            expect_bytes(&mut broker, &said).await;
            broker
        });
        sent.unwrap();
        broker
    };
    broker.write_all(ACCEPTED).await.unwrap();
    expect_bytes(&mut client, ACCEPTED).await;
    counted(&crossfade, "broker", |status| arm(status, "green")["open"] == 1).await;
    drop((client, broker));
    let status = counted(&crossfade, "broker", |status| arm(status, "green")["bytes_in"] == said.len()).await;
    assert_eq!(arm(&status, "green")["bytes_out"], ACCEPTED.len(), "{status}");
    assert_eq!(arm(&status, "green")["open"], 0, "{status}");
    assert!(rejected(&status).is_empty(), "{status}");
}
