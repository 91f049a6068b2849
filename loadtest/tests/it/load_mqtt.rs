//! MQTT load against real brokers, and through a relay that loses, repeats, reorders and cuts.

use std::{
    net::SocketAddr,
    num::NonZeroU16,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use loadtest::{
    keys::Keys,
    ledger::verify::{Decided, Inputs, Kind, LIMIT, verify},
    load::{Broker, Endpoint, Load, Login, MqttLoad, MqttVersion, Pace, Protocol, Qos, Trust, tls},
    origin::MqttBroker,
    report::{Account, Report},
};
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::{
    any_port,
    mosquitto::{Mosquitto, command},
    relay::{Relay, Way},
    soon, until,
};

const VERSIONS: [MqttVersion; 2] = [MqttVersion::V311, MqttVersion::V5];
const ALL_QOS: [Qos; 3] = [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce];

fn mqtt(version: MqttVersion, qos: Qos) -> MqttLoad {
    MqttLoad {
        version,
        qos,
        publishers: 8,
        subscribers: 0,
        size: 64,
        persistent: false,
        // mosquitto silently drops what goes beyond 20 with QoS 2 and 3.1.1.
        inflight: NonZeroU16::new(20).unwrap(),
        connect_rate: None,
        keep_alive: 30,
        login: None,
        topic_prefix: "loadtest".to_owned(),
        reconnect_every: None,
        brokers: Vec::new(),
    }
}

fn clear(address: SocketAddr) -> Endpoint {
    Endpoint { addresses: vec![address], tls: None, source_by_key: false }
}

fn load(mqtt: MqttLoad, address: SocketAddr, stages: &str) -> Load {
    Load {
        endpoint: clear(address),
        target: address.to_string(),
        pace: Pace::Open(Arc::new(stages.parse().unwrap())),
        connections: mqtt.clients(),
        workers: 1,
        keys: Arc::new(Keys::uniform(mqtt.publishers as u64).unwrap()),
        timeout: Duration::from_secs(5),
        ledger: None,
        protocol: Protocol::Mqtt(Arc::new(mqtt)),
    }
}

/// The sums that always hold.
fn check(report: &Report) -> &Account {
    let account = &report.account;
    assert_eq!(account.sent, account.answered + account.failures() + account.lost, "{account:?}");
    assert_eq!(report.seconds.iter().map(|second| second.sent).sum::<u64>(), account.sent);
    assert_eq!(report.arms.values().map(|arm| arm.answered).sum::<u64>(), account.answered);
    account
}

async fn run(load: &Load) -> Report {
    let report = soon(load.run(CancellationToken::new(), |_| {})).await.unwrap();
    assert!(report.end.complete);
    check(&report);
    report
}

/// Each message was answered once, and nothing else happened.
fn all_is_well(report: &Report, messages: u64, clients: u64, what: &str) {
    let account = &report.account;
    let expected =
        Account { sent: messages, answered: messages, connections: account.connections.clone(), ..Account::default() };
    assert_eq!(account, &expected, "{what}");
    assert!(account.connections.failed.is_empty() && account.connections.lost.is_empty(), "{what}: {account:?}");
    assert_eq!(account.connections.attempted, clients, "{what}");
    assert_eq!(report.series["connect"].all.count, clients, "{what}");
    assert_eq!(report.series["delivery"].all.count, messages, "{what}");
}

async fn every_kind_of_message_is_answered(broker: SocketAddr) {
    for version in VERSIONS {
        for qos in ALL_QOS {
            for (subscribers, workers) in [(0, 1), (3, 2)] {
                let what = format!("{version:?} {qos:?}, {subscribers} subscribers");
                let mqtt = MqttLoad { subscribers, ..mqtt(version, qos) };
                let report = run(&Load { workers, ..load(mqtt, broker, "300ms:100..900") }).await;
                all_is_well(&report, 150, 8 + subscribers as u64, &what);
                let acks = report.series.get("ack").map_or(0, |series| series.all.count);
                assert_eq!(acks, if qos == Qos::AtMostOnce { 0 } else { 150 }, "{what}");
            }
        }
    }
}

#[tokio::test]
async fn mosquitto_acknowledges_and_delivers_each_message_once() {
    let broker = Mosquitto::start().await;
    every_kind_of_message_is_answered(broker.address).await;
}

#[tokio::test]
async fn rumqttd_acknowledges_and_delivers_each_message_once() {
    let broker = MqttBroker::start("go", any_port()).await.unwrap();
    every_kind_of_message_is_answered(broker.address()).await;
}

#[tokio::test]
async fn a_closed_loop_sends_as_answers_come() {
    let (mosquitto, rumqttd) = (Mosquitto::start().await, MqttBroker::start("go", any_port()).await.unwrap());
    for address in [mosquitto.address, rumqttd.address()] {
        for qos in ALL_QOS {
            for subscribers in [0, 4] {
                let mqtt =
                    MqttLoad { subscribers, inflight: NonZeroU16::new(5).unwrap(), ..mqtt(MqttVersion::V5, qos) };
                let load = load(mqtt, address, "1s:1");
                let report = run(&Load { pace: Pace::Max(Duration::from_millis(200)), workers: 2, ..load }).await;
                let messages = report.account.sent;
                assert!(messages > 8 * 5, "{qos:?}: no message follows the first ones: {messages}");
                all_is_well(&report, messages, 8 + subscribers as u64, &format!("{qos:?} {subscribers} {address}"));
                assert!(report.series["delivery"].all.count == messages && report.run.stages.is_empty());
            }
        }
    }
}

#[tokio::test]
async fn payloads_are_as_large_as_asked_for() {
    let broker = Mosquitto::start().await;
    for size in [0, 130, 17_000, 300_000] {
        let mqtt = MqttLoad { size, ..mqtt(MqttVersion::V5, Qos::AtLeastOnce) };
        let report = run(&load(mqtt, broker.address, "200ms:100")).await;
        all_is_well(&report, 20, 8, &format!("{size} bytes"));
    }
}

#[tokio::test]
async fn connections_are_made_at_the_rate_asked_for_before_the_first_message() {
    let broker = Mosquitto::start().await;
    let mqtt = MqttLoad { connect_rate: Some(20.0), ..mqtt(MqttVersion::V311, Qos::AtLeastOnce) };
    let began = time::Instant::now();
    let report = run(&load(mqtt, broker.address, "200ms:100")).await;
    all_is_well(&report, 20, 8, "at 20 a second");
    // The eighth is due 350 ms after the first.
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(500), "{took:?}");
    assert!(
        report.end.seconds < took.as_secs_f64() - 0.3,
        "the run's clock starts when all are there: {}",
        report.end.seconds
    );
}

#[tokio::test]
async fn tls_and_passwords() {
    let dir = TempDir::new().unwrap();
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(file("cert.pem"), certified.cert.pem()).unwrap();
    std::fs::write(file("key.pem"), certified.signing_key.serialize_pem()).unwrap();
    let passwd = command("mosquitto_passwd").args(["-c", "-b", &file("passwd"), "me", "secret"]).status().unwrap();
    assert!(passwd.success());
    let config = format!(
        "certfile {}\nkeyfile {}\npassword_file {}\nallow_anonymous false",
        file("cert.pem"),
        file("key.pem"),
        file("passwd")
    );
    let broker = Mosquitto::start_with(dir, &config).await;

    let endpoint = |trust: &Trust| {
        let name = ServerName::try_from("localhost").unwrap();
        Endpoint { tls: Some((tls(trust, &[]).unwrap(), name)), ..clear(broker.address) }
    };
    let login = |password: &str| Some(Login { username: "me".to_owned(), password: password.to_owned() });
    let trusting = Trust::Pem(certified.cert.pem().into_bytes());
    for version in VERSIONS {
        let mqtt = |password| MqttLoad { login: login(password), publishers: 2, ..mqtt(version, Qos::AtLeastOnce) };
        let with = |password, trust| {
            let load = load(mqtt(password), broker.address, "200ms:100");
            Load { endpoint: endpoint(trust), timeout: Duration::from_millis(500), ..load }
        };
        all_is_well(&run(&with("secret", &trusting)).await, 20, 2, "with the password");

        let report = run(&with("wrong", &trusting)).await;
        assert_eq!((report.account.answered, report.account.failed["declined"]), (0, 20), "{version:?}");
        let connections = &report.account.connections;
        assert!(
            connections.attempted >= 2 && connections.failed["declined"] == connections.attempted,
            "{connections:?}"
        );

        let report =
            run(&with("secret", &Trust::Pem(rcgen::generate_simple_self_signed([]).unwrap().cert.pem().into()))).await;
        assert_eq!((report.account.answered, report.account.failed["tls"]), (0, 20), "{version:?}");
    }
}

/// A PUBLISH of the run that goes back to a subscriber.
fn is_delivery(way: Way, packet: &[u8]) -> bool {
    way == Way::Back && packet[0] >> 4 == 3
}

#[tokio::test]
async fn what_is_lost_repeated_reordered_or_changed_on_the_way_is_found_exactly() {
    let broker = Mosquitto::start().await;
    for qos in [Qos::AtMostOnce, Qos::AtLeastOnce] {
        // Of 100 messages of one publisher the 10th is lost, the 20th comes twice, the 30th behind the 31st, the 40th is
        // changed.
        let (mut nth, mut held) = (0, None);
        let meddler = move |way: Way, mut packet: Vec<u8>| {
            if !is_delivery(way, &packet) {
                return vec![packet];
            }
            nth += 1;
            match nth {
                10 => vec![],
                20 => vec![packet.clone(), packet],
                30 => {
                    held = Some(packet);
                    vec![]
                }
                31 => vec![packet, held.take().unwrap()],
                40 => {
                    let last = packet.len() - 1;
                    packet[last] = b'?';
                    vec![packet]
                }
                _ => vec![packet],
            }
        };
        let address = broker.address;
        let relay = Relay::start(move |_| address, meddler).await;
        let dir = TempDir::new().unwrap();
        let ledger = dir.path().join("load.ledger");
        let mqtt = MqttLoad { publishers: 1, ..mqtt(MqttVersion::V311, qos) };
        let load = load(mqtt, relay.address, "500ms:200");
        let load = Load { timeout: Duration::from_secs(1), ledger: Some(ledger.clone()), ..load };
        let report = run(&load).await;
        let account = &report.account;
        assert_eq!((account.sent, account.answered, account.lost), (100, 98, 2), "{qos:?}: {account:?}");
        // The one that came twice, and the one that was none of ours.
        assert_eq!((account.answered_twice, account.out_of_order), (2, 1), "{qos:?}: {account:?}");

        let text = std::fs::read_to_string(ledger).unwrap();
        let ids = |outcome: &str| -> Vec<u32> {
            let entries = text.lines().skip(1).map(|line| line.split('\t').collect::<Vec<_>>());
            let ids = entries.filter(|entry| entry[2] == outcome);
            ids.map(|entry| u32::from_str_radix(&entry[0][8..], 16).unwrap()).collect()
        };
        assert_eq!((ids("ok").len(), ids("lost"), ids("again")), (98, vec![9, 39], vec![19]), "{qos:?}");
    }
}

#[tokio::test]
async fn a_message_without_acknowledgement_fails_and_its_later_delivery_counts_no_more() {
    let broker = Mosquitto::start().await;
    let address = broker.address;
    for (qos, dropped) in [(Qos::AtLeastOnce, 0x40), (Qos::ExactlyOnce, 0x70)] {
        // Of 40 messages the PUBACK or PUBCOMP of the third and the fifth is lost.
        let mut nth = 0;
        let relay = Relay::start(
            move |_| address,
            move |way, packet: Vec<u8>| {
                nth += usize::from(way == Way::Back && packet[0] == dropped);
                let lost = way == Way::Back && packet[0] == dropped && matches!(nth, 3 | 5);
                if lost { vec![] } else { vec![packet] }
            },
        )
        .await;
        let mqtt = MqttLoad { publishers: 1, ..mqtt(MqttVersion::V5, qos) };
        let report = run(&Load { timeout: Duration::from_millis(400), ..load(mqtt, relay.address, "400ms:100") }).await;
        let account = &report.account;
        assert_eq!((account.sent, account.answered, account.failed["timeout"]), (40, 38, 2), "{qos:?}: {account:?}");
        assert_eq!((account.lost, account.answered_twice), (0, 0), "{qos:?}: {account:?}");
        assert_eq!((report.series["ack"].all.count, report.series["delivery"].all.count), (38, 40), "{qos:?}");
    }
}

/// Runs it, and something beside it that is broken off with it.
async fn run_beside(load: &Load, beside: impl Future<Output = ()>) -> Report {
    let beside = async {
        beside.await;
        std::future::pending::<()>().await;
    };
    tokio::select! { report = run(load) => report, () = beside => unreachable!() }
}

/// Waits until the `connections`th connection was made and traffic flows after it.
async fn flowing(relay: &Relay, connections: usize) {
    until("all are connected", || relay.connections() >= connections).await;
    let packets = relay.packets() + 500;
    until("messages flow", || relay.packets() >= packets).await;
}

async fn a_kept_session_survives_cuts(version: MqttVersion, qos: Qos, subscribers: usize) {
    let broker = Mosquitto::start().await;
    let (address, sent_again) = (broker.address, Arc::new(AtomicUsize::new(0)));
    let again = Arc::clone(&sent_again);
    let meddler = move |way, packet: Vec<u8>| {
        again.fetch_add(usize::from(way == Way::Out && packet[0] & 0xf8 == 0x38), Ordering::Relaxed);
        vec![packet]
    };
    let relay = Relay::start(move |_| address, meddler).await;
    let mqtt = MqttLoad { persistent: true, subscribers, ..mqtt(version, qos) };
    let load = load(mqtt, relay.address, "2s:500");
    let report = run_beside(&load, async {
        for nth in 1..=3 {
            flowing(&relay, load.connections * nth).await;
            // Packets are held up for a while, so that there is something under way.
            relay.hold(true);
            time::sleep(Duration::from_millis(50)).await;
            relay.cut();
            relay.hold(false);
        }
    })
    .await;
    let account = &report.account;
    let what = format!("{version:?} {qos:?} {subscribers}: {account:?}");
    assert_eq!((account.sent, account.answered), (1000, 1000), "{what}");
    let lost: u64 = account.connections.lost.values().sum();
    assert!(lost >= load.connections as u64 * 3, "{what}");
    assert_eq!(account.connections.attempted, load.connections as u64 + lost, "{what}");
    assert!(sent_again.load(Ordering::Relaxed) > 0, "{what}");
    if qos == Qos::ExactlyOnce {
        assert_eq!((account.answered_twice, account.out_of_order), (0, 0), "{what}");
    }
}

#[tokio::test]
async fn sessions_that_are_kept_lose_nothing_when_connections_are_cut() {
    let all = VERSIONS.into_iter().flat_map(|version| {
        let kinds = [(Qos::AtLeastOnce, 0), (Qos::ExactlyOnce, 0), (Qos::AtLeastOnce, 3), (Qos::ExactlyOnce, 3)];
        kinds.map(|(qos, subscribers)| a_kept_session_survives_cuts(version, qos, subscribers))
    });
    join_all(all).await;
}

#[tokio::test]
async fn a_session_that_the_other_broker_does_not_have_is_begun_anew() {
    for version in VERSIONS {
        for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
            let switched = Arc::new(AtomicBool::new(false));
            let switch = Arc::clone(&switched);
            let (first, second, relay) = two_brokers(move |_| switch.load(Ordering::Relaxed)).await;
            let mqtt = MqttLoad { persistent: true, brokers: brokers(&first, &second), ..mqtt(version, qos) };
            let load = load(mqtt, relay.address, "800ms:1000");
            let report = run_beside(&Load { timeout: Duration::from_secs(1), ..load }, async {
                flowing(&relay, 8).await;
                switched.store(true, Ordering::Relaxed);
                relay.cut();
            })
            .await;
            let account = &report.account;
            let what = format!("{version:?} {qos:?}: {account:?}");
            assert_eq!((account.sent, account.moved, account.unsent), (800, 8, 0), "{what}");
            // A handshake of QoS 2 can be cut in two: the first broker has the message, the second is asked to release it.
            let cut_in_two = account.failures() + account.lost;
            assert!(cut_in_two <= if qos == Qos::ExactlyOnce { 8 * 20 } else { 8 }, "{what}");
            assert!(account.answered >= 640, "{what}");
        }
    }
}

#[tokio::test]
async fn a_broker_that_takes_few_messages_at_once_is_not_sent_more() {
    // Of more than 20 mosquitto would lose some, or close the connection.
    let broker = Mosquitto::start().await;
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        let mqtt = MqttLoad { inflight: NonZeroU16::new(100).unwrap(), ..mqtt(MqttVersion::V5, qos) };
        let load = Load { pace: Pace::Max(Duration::from_millis(200)), ..load(mqtt, broker.address, "1s:1") };
        let report = run(&load).await;
        all_is_well(&report, report.account.sent, 8, &format!("{qos:?}"));
    }
}

#[tokio::test]
async fn silent_connections_are_kept_alive_and_dead_ones_noticed() {
    let broker = Mosquitto::start().await;
    let alive = async |version| {
        // Each publisher has a message every 4 s; the broker closes what is silent for 3 s, and a client pings after 1.5 s.
        let quiet = MqttLoad { keep_alive: 2, ..mqtt(version, Qos::AtLeastOnce) };
        all_is_well(&run(&load(quiet, broker.address, "5s:2")).await, 10, 8, &format!("{version:?}"));
    };
    let dead = async |version| {
        let broker = Mosquitto::start().await;
        let relay = Relay::to(broker.address).await;
        let quiet = MqttLoad { keep_alive: 1, ..mqtt(version, Qos::AtLeastOnce) };
        let load = Load { timeout: Duration::from_millis(200), ..load(quiet, relay.address, "2500ms:4") };
        let report = run_beside(&load, async {
            // CONNECT, CONNACK, SUBSCRIBE and SUBACK of each; the broker sees nothing more, and closes after 1.5 s.
            until("all are subscribed", || relay.packets() >= 8 * 4).await;
            relay.hold(true);
        })
        .await;
        assert!(report.account.connections.lost["timeout"] >= 8, "{:?}", report.account);
        assert_eq!(report.account.failed["timeout"], report.account.failures(), "{:?}", report.account);
    };
    for version in VERSIONS {
        tokio::join!(alive(version), dead(version));
    }
}

#[tokio::test]
async fn without_kept_sessions_a_cut_fails_what_was_under_way_and_the_sum_stays_exact() {
    let broker = Mosquitto::start().await;
    let address = broker.address;
    for qos in ALL_QOS {
        let relay = Relay::to(address).await;
        let load = load(mqtt(MqttVersion::V311, qos), relay.address, "1s:1000");
        let load = Load { timeout: Duration::from_secs(2), ..load };
        // Cut while packets are held up for a while, so that there is something under way.
        let report = run_beside(&load, async {
            flowing(&relay, load.connections).await;
            relay.hold(true);
            time::sleep(Duration::from_millis(100)).await;
            relay.cut();
            relay.hold(false);
        })
        .await;
        let account = &report.account;
        assert_eq!((account.sent, account.answered_twice, account.unsent), (1000, 0, 0), "{account:?}");
        let (failed, lost) = (account.failures(), account.lost);
        // Of QoS 0 nobody knows until it should be there.
        let gone = if qos == Qos::AtMostOnce { lost } else { failed };
        assert!((1..=200).contains(&gone), "{account:?}");
        assert!(account.failed.keys().all(|kind| matches!(&**kind, "closed" | "reset")), "{account:?}");
        assert_eq!(account.connections.lost.values().sum::<u64>(), 8, "{account:?}");
        assert_eq!(account.connections.attempted, 16, "{account:?}");
    }
}

#[tokio::test]
async fn clients_that_leave_and_come_back_lose_nothing() {
    let leaves = async |version, qos, persistent, subscribers| {
        let broker = Mosquitto::start().await;
        let reconnect_every = Some(Duration::from_millis(200));
        let mqtt = MqttLoad { reconnect_every, persistent, subscribers, ..mqtt(version, qos) };
        let report = run(&load(mqtt, broker.address, "1s:300")).await;
        let attempted = report.account.connections.attempted;
        assert!(attempted >= (8 + subscribers as u64) * 2, "{attempted}");
        all_is_well(&report, 300, attempted, &format!("{version:?} {qos:?} {persistent} {subscribers}"));
    };
    for version in VERSIONS {
        let kept = [0, 3].map(|subscribers| leaves(version, Qos::ExactlyOnce, true, subscribers));
        join_all(kept).await;
        let clean = ALL_QOS.map(|qos| [0, 3].map(|subscribers| leaves(version, qos, false, subscribers)));
        join_all(clean.into_iter().flatten()).await;
    }
}

#[tokio::test]
async fn sessions_left_over_are_not_taken_for_ours_and_none_is_left_behind() {
    let broker = Mosquitto::start().await;
    for version in VERSIONS {
        // Somebody subscribed in a session `user-0`, went away, and has messages waiting there.
        let subscribe = |client: &str| {
            let mut sub = command("mosquitto_sub");
            let port = broker.address.port().to_string();
            sub.args(["-h", "127.0.0.1", "-p", &port, "-i", client, "-c", "-q", "1", "-t", "old/#", "-W", "1"]);
            sub.output().unwrap()
        };
        let publish = || {
            let mut publish = command("mosquitto_pub");
            let port = broker.address.port().to_string();
            assert!(publish.args(["-p", &port, "-q", "1", "-t", "old/x", "-m", "old"]).status().unwrap().success());
        };
        subscribe("user-0");
        publish();
        let mqtt = MqttLoad { persistent: true, publishers: 1, ..mqtt(version, Qos::AtLeastOnce) };
        all_is_well(&run(&load(mqtt, broker.address, "200ms:100")).await, 20, 1, &format!("{version:?}"));
        // Had its session been left, this would wait in it.
        publish();
        assert_eq!(String::from_utf8_lossy(&subscribe("user-0").stdout), "", "{version:?}");
    }
}

#[tokio::test]
async fn a_stall_is_seen_in_full_and_messages_wait_for_room() {
    let broker = Mosquitto::start().await;
    let relay = Relay::to(broker.address).await;
    let mqtt =
        MqttLoad { publishers: 2, inflight: NonZeroU16::new(3).unwrap(), ..mqtt(MqttVersion::V311, Qos::AtLeastOnce) };
    let load = load(mqtt, relay.address, "1s:200");
    let report = run_beside(&load, async {
        until("messages flow", || relay.packets() >= 100).await;
        relay.hold(true);
        time::sleep(Duration::from_millis(400)).await;
        relay.hold(false);
    })
    .await;
    all_is_well(&report, 200, 2, "with a stall");
    for series in ["ack", "delivery"] {
        let latencies = &report.series[series].all;
        // 80 of 200 came due meanwhile and waited 200 ms each on average, though only 6 were on the wire.
        assert!(latencies.max >= 390_000, "{series}: {latencies:?}");
        assert!(latencies.mean >= 60_000.0, "{series}: {latencies:?}");
    }
    // That is not the generator's fault.
    assert!(report.generator.lateness.max < 200_000, "{:?}", report.generator.lateness);
}

#[tokio::test]
async fn a_run_that_is_ended_early_says_what_was_left() {
    let broker = Mosquitto::start().await;
    for (qos, persistent) in [(Qos::AtMostOnce, false), (Qos::AtLeastOnce, true)] {
        let mqtt = MqttLoad { persistent, ..mqtt(MqttVersion::V5, qos) };
        let load = load(mqtt, broker.address, "1h:100");
        let stopped = CancellationToken::new();
        let stop = stopped.clone();
        let report = soon(load.run(stopped, |progress| {
            if progress.total > 50 {
                stop.cancel();
            }
        }))
        .await
        .unwrap();
        let account = check(&report);
        assert!(!report.end.complete && account.answered > 50);
        assert_eq!((account.answered, account.sent + account.unsent), (account.sent, 360_000), "{account:?}");
    }
    // Before anybody is there.
    let nowhere = load(mqtt(MqttVersion::V5, Qos::AtLeastOnce), SocketAddr::from(([127, 0, 0, 1], 9)), "1s:100");
    let stopped = CancellationToken::new();
    stopped.cancel();
    let report = soon(nowhere.run(stopped, |_| {})).await.unwrap();
    assert_eq!((check(&report).sent, report.account.unsent), (0, 100));
}

#[tokio::test]
async fn without_a_broker_every_message_fails_for_that_reason() {
    let nobody = std::net::TcpListener::bind(any_port()).unwrap().local_addr().unwrap();
    let timeout = Duration::from_millis(300);
    let load = Load { timeout, ..load(mqtt(MqttVersion::V311, Qos::AtLeastOnce), nobody, "300ms:200") };
    let report = run(&load).await;
    assert_eq!((report.account.sent, report.account.failed["refused"]), (60, 60), "{:?}", report.account);

    let report = run(&Load { pace: Pace::Max(Duration::from_millis(300)), ..load }).await;
    let (sent, failed) = (report.account.sent, report.account.failed["refused"]);
    assert!(sent >= 8 && sent == failed, "each publisher counts what it could not send: {:?}", report.account);
}

/// Two brokers behind a relay: connection n goes to the second when `to_second` says so.
async fn two_brokers(to_second: impl Fn(usize) -> bool + Send + Sync + 'static) -> (Mosquitto, Mosquitto, Relay) {
    let (first, second) = (Mosquitto::start().await, Mosquitto::start().await);
    let addresses = [first.address, second.address];
    let relay = Relay::start(move |nth| addresses[usize::from(to_second(nth))], |_, packet| vec![packet]).await;
    (first, second, relay)
}

fn brokers(first: &Mosquitto, second: &Mosquitto) -> Vec<Broker> {
    let broker = |label: &str, broker: &Mosquitto| Broker {
        label: label.to_owned(),
        address: broker.address.to_string(),
        endpoint: clear(broker.address),
    };
    vec![broker("python", first), broker("go", second)]
}

#[tokio::test]
async fn clients_know_their_broker_and_witnesses_confirm_the_account() {
    let (first, second, relay) = two_brokers(|nth| nth % 4 == 0).await;
    let dir = TempDir::new().unwrap();
    for version in VERSIONS {
        for qos in ALL_QOS {
            let ledger = dir.path().join("load.ledger");
            let mqtt = MqttLoad { brokers: brokers(&first, &second), ..mqtt(version, qos) };
            let load = Load { ledger: Some(ledger.clone()), ..load(mqtt, relay.address, "400ms:500") };
            let report = run(&load).await;
            all_is_well(&report, 200, 8, &format!("{version:?} {qos:?}"));
            assert_eq!(report.generator.warnings.iter().filter(|warning| warning.contains("missing")).count(), 0);
            let arms: Vec<_> = report.arms.iter().map(|(label, arm)| (&**label, arm.answered, arm.keys)).collect();
            assert_eq!(arms, [("go", 50, 2), ("python", 150, 6)], "{version:?} {qos:?}");
            assert_eq!(report.series["connect"].arms["go"].count, 2);

            let origins = ["python", "go"].map(|label| dir.path().join(format!("load.ledger.{label}")));
            let ledgers = std::iter::once(ledger).chain(origins).collect();
            let inputs =
                Inputs { ledgers, changes: None, arms: Vec::new(), decided: Decided::Connection, limit: LIMIT };
            let verdict = verify(&inputs).unwrap();
            assert!(verdict.clean, "{version:?} {qos:?}: {verdict:?}");
        }
    }
    // The labels are gone with the runs.
    let port = first.address.port().to_string();
    let retained = command("mosquitto_sub").args(["-p", &port, "-t", "loadtest/#", "-W", "1"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&retained.stdout), "");
    assert!(first.dir().exists());
}

#[tokio::test]
async fn publishers_that_change_brokers_are_counted_once_each() {
    let switched = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&switched);
    let (first, second, relay) = two_brokers(move |_| switch.load(Ordering::Relaxed)).await;
    let reconnect_every = Some(Duration::from_millis(300));
    let mqtt =
        MqttLoad { brokers: brokers(&first, &second), reconnect_every, ..mqtt(MqttVersion::V311, Qos::AtLeastOnce) };
    let load = load(mqtt, relay.address, "1500ms:400");
    let report = run_beside(&load, async {
        until("some came back", || relay.connections() > 16).await;
        switched.store(true, Ordering::Relaxed);
    })
    .await;
    let account = &report.account;
    assert_eq!((account.answered, account.moved), (600, 8), "{account:?}");
    assert_eq!((report.arms["go"].keys, report.arms["python"].keys), (8, 0));
}

#[tokio::test]
async fn a_message_that_two_brokers_took_is_told_by_the_ledgers() {
    // What a publisher sends to the first broker is sent to the second too, by another client, as it was.
    let (first, second) = (Mosquitto::start().await, Mosquitto::start().await);
    let (copies, mut to_copy) = tokio::sync::mpsc::unbounded_channel::<Vec<u8>>();
    let address = first.address;
    let mut nth = 0;
    let relay = Relay::start(
        move |_| address,
        move |way, packet: Vec<u8>| {
            if way == Way::Out && packet[0] == 0x30 {
                nth += 1;
                if nth <= 3 {
                    copies.send(packet.clone()).unwrap();
                }
            }
            vec![packet]
        },
    )
    .await;
    let other = second.address;
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        let mut stream = tokio::net::TcpStream::connect(other).await.unwrap();
        stream.write_all(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01c").await.unwrap();
        while let Some(packet) = to_copy.recv().await {
            stream.write_all(&packet).await.unwrap();
        }
    });

    let dir = TempDir::new().unwrap();
    let ledger = dir.path().join("load.ledger");
    let mqtt = MqttLoad { brokers: brokers(&first, &second), ..mqtt(MqttVersion::V311, Qos::AtMostOnce) };
    let report = run(&Load { ledger: Some(ledger.clone()), ..load(mqtt, relay.address, "300ms:200") }).await;
    all_is_well(&report, 60, 8, "the load itself sees nothing of it");
    let origins = ["python", "go"].map(|label| dir.path().join(format!("load.ledger.{label}")));
    let ledgers = std::iter::once(ledger).chain(origins).collect();
    let inputs = Inputs { ledgers, changes: None, arms: Vec::new(), decided: Decided::Connection, limit: LIMIT };
    let verdict = verify(&inputs).unwrap();
    assert!(!verdict.clean);
    assert_eq!(verdict.findings[&Kind::BothSides].count, 3, "{verdict:?}");
}

#[tokio::test]
async fn a_broker_that_cannot_be_reached_directly_is_named() {
    let broker = Mosquitto::start().await;
    let nobody = std::net::TcpListener::bind(any_port()).unwrap().local_addr().unwrap();
    let go = Broker { label: "go".to_owned(), address: nobody.to_string(), endpoint: clear(nobody) };
    let mqtt = MqttLoad { brokers: vec![go], ..mqtt(MqttVersion::V311, Qos::AtLeastOnce) };
    let error = load(mqtt, broker.address, "200ms:100").run(CancellationToken::new(), |_| {}).await.unwrap_err();
    let said = error.to_string();
    assert!(said.contains("broker go") && said.contains("refused") && said.contains("; check"), "{said}");
}

#[tokio::test]
async fn the_command_reports_and_exits_by_what_happened() {
    let broker = Mosquitto::start().await;
    let dir = TempDir::new().unwrap();
    let json = dir.path().join("report.json");
    let target = format!("mqtt --target mqtt://{}", broker.address);
    let loadtest = async |args: String| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_loadtest"));
        let output = soon(command.args(args.split_whitespace()).kill_on_drop(true).output()).await.unwrap();
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        (output.status.code(), said)
    };

    for (slo, code) in [("lost<1", 0), ("delivery.p99<1us", 1)] {
        let args = format!(
            "{target} --rate 100 --duration 300ms --publishers 4 --qos 0 --slo {slo} --json {}",
            json.display()
        );
        let (exited, [out, _]) = loadtest(args).await;
        assert_eq!(exited, Some(code), "{out}");
        assert!(out.contains("30 sent, 30 answered") && out.contains("delivery") && out.contains("connect"), "{out}");
        let report: Report = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        assert_eq!((report.run.connections, report.account.connections.attempted), (4, 4));
        // There is no acknowledgement to show second by second.
        assert!(report.seconds.iter().any(|second| second.arms.values().any(|arm| arm.count > 0)));
    }

    for (args, expected) in [
        ("--qos 3", "give 0, 1 or 2"),
        ("--qos x", "give 0, 1 or 2"),
        ("--publishers 0", ""),
        ("--publishers 4 --subscribers 5", "give 4 at most"),
        ("--mqtt-version 6", ""),
        ("--size 100M", "at most"),
        ("--inflight 0", ""),
        ("--inflight 65000", "give 60000 at most"),
        ("--connect-rate 0", "above 0"),
        ("--connect-rate NaN", "above 0"),
        ("--keep-alive 1500ms", "whole seconds"),
        ("--keep-alive 20h", "65535 at most"),
        ("--reconnect-every 0s", "above 0"),
        ("--topic-prefix a/+", "no topic may start so"),
        ("--topic-prefix $SYS", "no topic may start so"),
        ("--password-file /dev/null", "--username"),
        ("--username me --password-file /does/not/exist", "cannot read"),
        ("--broker go", "no broker"),
        ("--broker a/b=127.0.0.1:1", "no broker"),
        ("--broker go=127.0.0.1", "no host and port"),
        ("--broker go=127.0.0.1:1 --broker go=127.0.0.1:2", "given twice"),
        ("--broker go=127.0.0.1:1", "broker go"),
    ] {
        let (exited, [_, said]) = loadtest(format!("{target} --rate 5 --duration 1s {args}")).await;
        assert_eq!(exited, Some(2), "{args}: {said}");
        assert!(said.contains(expected) && !said.contains("panicked"), "{args}: {said}");
        assert!(!said.starts_with("loadtest: ") || said.lines().count() == 1, "{args}: {said}");
    }
    let (exited, [_, said]) = loadtest("mqtt --target http://127.0.0.1:80 --rate 5".to_owned()).await;
    assert_eq!(exited, Some(2));
    assert!(said.contains("mqtts://"), "{said}");
}

#[tokio::test]
async fn a_server_that_speaks_something_else_is_told_by_the_kinds_of_failure() {
    let origin = loadtest::origin::HttpOrigin::start("go", any_port()).await.unwrap();
    let load = load(mqtt(MqttVersion::V5, Qos::AtLeastOnce), origin.address(), "200ms:100");
    let report = run(&Load { timeout: Duration::from_millis(300), ..load }).await;
    let account = &report.account;
    assert_eq!((account.sent, account.answered), (20, 0), "{account:?}");
    assert!(account.failed.keys().all(|kind| matches!(&**kind, "malformed" | "closed" | "reset")), "{account:?}");
}
