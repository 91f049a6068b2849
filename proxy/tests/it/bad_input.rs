//! What must not come through: an answer in the form its protocol has, a counter with the reason, nothing at an origin,
//! and the next connection unaffected.

use std::{collections::BTreeMap, fs, net::SocketAddr, process::Output, time::Duration};

use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{self, Instant},
};

use crate::{
    authority::Authority,
    clients::Client,
    harness::{Crossfade, eventually, free_address, program},
    packets::{Connect, connect, packet, string},
    routes::Route,
    site::{any_port, rejected as process_rejected, soon},
    status::{counted, rejected},
};

/// What a case sends.
enum Sends {
    /// At once, and then the connection stays open.
    Bytes(Vec<u8>),
    /// Nothing, ever.
    Nothing,
    /// These, one each 50 ms.
    Drip(Vec<u8>),
    /// These, and then the client closes.
    AndLeaves(Vec<u8>),
}

struct Case {
    name: &'static str,
    sends: Sends,
    /// All that comes back before the connection ends.
    answer: &'static [u8],
    reason: &'static str,
}

fn case(name: &'static str, bytes: impl Into<Vec<u8>>, answer: &'static [u8], reason: &'static str) -> Case {
    Case { name, sends: Sends::Bytes(bytes.into()), answer, reason }
}

const CLOSED: &[u8] = &[];
/// Longer than a good client needs on a busy machine, short enough to wait for.
const PATIENCE: Duration = Duration::from_millis(1500);

/// A CONNECT with everything up to its flags as given.
fn connect_of(name: &[u8], level: u8, flags: u8, rest: &[u8]) -> Vec<u8> {
    packet(0x10, &[&string(name)[..], &[level, flags, 0, 60], rest].concat())
}

fn mqtt_cases() -> Vec<Case> {
    let id = string(b"device");
    let id_5 = [&[0][..], &id].concat();
    let head = |level: u8, length: &[u8]| [&[0x10][..], length, &string(b"MQTT"), &[level, 2, 0, 60]].concat();
    // 300 000 in the form of a remaining length.
    let long = [0xe0, 0xa7, 0x12];
    vec![
        case("a PUBLISH first", packet(0x30, &[0, 1, b'a', b'b']), CLOSED, "not_connect"),
        case("a CONNECT with flags", packet(0x11, &[0, 4]), CLOSED, "not_connect"),
        case("a byte of zero", [0], CLOSED, "not_connect"),
        case("HTTP", "GET / HTTP/1.1\r\nHost: broker\r\n\r\n", CLOSED, "not_connect"),
        case("TLS to the plain port", client_hello("broker.example"), CLOSED, "not_connect"),
        case("a length of five bytes", [0x10, 0xff, 0xff, 0xff, 0xff, 0x01], CLOSED, "malformed"),
        case("no room for a name", [0x10, 0x01, 0x00], CLOSED, "malformed"),
        case("above 256 KiB, 3.1.1", head(4, &long), CLOSED, "too_large"),
        case("above 256 KiB, 5", head(5, &long), &[0x20, 3, 0, 0x95, 0], "too_large"),
        case("above 256 KiB and sent", [head(4, &long), vec![b'x'; 300_000]].concat(), CLOSED, "too_large"),
        case("another protocol's name", connect_of(b"MQTX", 4, 2, &id), CLOSED, "protocol_name"),
        case("a name in lower case", connect_of(b"mqtt", 4, 2, &id), CLOSED, "protocol_name"),
        case("a name of 65 535 bytes", [0x10, 0x7f, 0xff, 0xff, b'M'], CLOSED, "protocol_name"),
        case("level 0", connect_of(b"MQTT", 0, 2, &id), &[0x20, 2, 0, 1], "unsupported_level"),
        case("level 2", connect_of(b"MQTT", 2, 2, &id), &[0x20, 2, 0, 1], "unsupported_level"),
        case("level 6", connect_of(b"MQTT", 6, 2, &id_5), &[0x20, 3, 0, 0x84, 0], "unsupported_level"),
        case("3.1's name with level 4", connect_of(b"MQIsdp", 4, 2, &id), &[0x20, 2, 0, 1], "unsupported_level"),
        case("the reserved flag, 3.1.1", connect_of(b"MQTT", 4, 3, &id), CLOSED, "malformed"),
        case("the reserved flag, 5", connect_of(b"MQTT", 5, 3, &id_5), &[0x20, 3, 0, 0x81, 0], "malformed"),
        case("a will of quality 3, 3.1.1", connect_of(b"MQTT", 4, 0x1e, &id), CLOSED, "malformed"),
        case("a will of quality 3, 5", connect_of(b"MQTT", 5, 0x1e, &id_5), &[0x20, 3, 0, 0x81, 0], "malformed"),
        case("a password without a user", connect_of(b"MQTT", 4, 0x42, &id), CLOSED, "malformed"),
        case("an id that is not UTF-8, 3.1.1", connect_of(b"MQTT", 4, 2, &string(b"\xff\xfe")), CLOSED, "malformed"),
        case(
            "an id that is not UTF-8, 5",
            connect_of(b"MQTT", 5, 2, &[&[0][..], &string(b"\xff\xfe")].concat()),
            &[0x20, 3, 0, 0x81, 0],
            "malformed",
        ),
        case("an id with a zero", connect_of(b"MQTT", 4, 2, &string(b"a\0b")), CLOSED, "malformed"),
        case(
            "bytes behind the last field, 3.1.1",
            connect_of(b"MQTT", 4, 2, &[&id[..], b"x"].concat()),
            CLOSED,
            "malformed",
        ),
        case(
            "bytes behind the last field, 5",
            connect_of(b"MQTT", 5, 2, &[&id_5[..], b"x"].concat()),
            &[0x20, 3, 0, 0x81, 0],
            "malformed",
        ),
        case("an id longer than its packet", connect_of(b"MQTT", 4, 2, &[0xff, 0xff, b'a']), CLOSED, "malformed"),
        case(
            "a property twice",
            connect_of(b"MQTT", 5, 2, &[&[6, 0x21, 0, 1, 0x21, 0, 1][..], &id].concat()),
            &[0x20, 3, 0, 0x82, 0],
            "protocol_error",
        ),
        case(
            "a property of another packet",
            connect_of(b"MQTT", 5, 2, &[&[2, 0x24, 1][..], &id].concat()),
            &[0x20, 3, 0, 0x81, 0],
            "malformed",
        ),
        Case { name: "nothing", sends: Sends::Nothing, answer: CLOSED, reason: "connect_timeout" },
        case("half a CONNECT", &connect("half")[..10], CLOSED, "connect_timeout"),
        case("all but the last byte", connect("almost").split_last().unwrap().1, CLOSED, "connect_timeout"),
        Case {
            name: "a byte now and then",
            sends: Sends::Drip(Connect { will: Some(("w", &"x".repeat(100))), ..Connect::new(4, "slow") }.bytes()),
            answer: CLOSED,
            reason: "connect_timeout",
        },
        Case {
            name: "half a CONNECT and gone",
            sends: Sends::AndLeaves(connect("leaver")[..10].to_vec()),
            answer: CLOSED,
            reason: "client_gone",
        },
    ]
}

/// Sends a case and reads all that comes back, to the connection's end.
async fn send(case: &Case, address: SocketAddr) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let started = Instant::now();
    let mut got = Vec::new();
    match &case.sends {
        // Closed in the middle of writing is fine: the answer is what counts.
        Sends::Bytes(bytes) => drop(stream.write_all(bytes).await),
        Sends::Nothing => {}
        Sends::Drip(bytes) => {
            let (mut reading, mut writing) = stream.split();
            let drip = async {
                let mut ticks = time::interval(Duration::from_millis(50));
                for byte in bytes {
                    ticks.tick().await;
                    if writing.write_all(&[*byte]).await.is_err() {
                        break;
                    }
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                _ = soon(reading.read_to_end(&mut got)) => {}
                () = drip => {}
            }
        }
        Sends::AndLeaves(bytes) => {
            stream.write_all(bytes).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    }
    // A reset behind the answer is an end as well.
    let _ = soon(stream.read_to_end(&mut got)).await;
    if case.reason.ends_with("timeout") {
        let elapsed = started.elapsed();
        assert!(elapsed >= PATIENCE.mul_f64(0.9) && elapsed < PATIENCE * 3, "{}: closed after {elapsed:?}", case.name);
    } else {
        assert!(started.elapsed() < PATIENCE, "{}: only closed after {:?}", case.name, started.elapsed());
    }
    got
}

fn tally(cases: &[Case]) -> BTreeMap<&str, u64> {
    cases.iter().fold(BTreeMap::new(), |mut counts, case| {
        *counts.entry(case.reason).or_default() += 1;
        counts
    })
}

fn timeouts() -> String {
    format!("[route.timeouts]\nrequest_header = \"{}ms\"", PATIENCE.as_millis())
}

#[tokio::test]
async fn mqtt_that_is_no_good_is_answered_as_the_standard_says_and_reaches_no_broker() {
    let blue = TcpListener::bind(any_port()).await.unwrap();
    let broker = blue.local_addr().unwrap();
    let route = Route::mqtt(broker, broker).unchecked().table(timeouts());
    let crossfade = Crossfade::start(&route.to_string()).await;
    let cases = mqtt_cases();
    for case in &cases {
        let got = send(case, route.listen).await;
        assert_eq!(got, case.answer, "{}", case.name);
        // The next connection is fine, and the first that the broker sees at all.
        let good = connect(case.name);
        let mut client = TcpStream::connect(route.listen).await.unwrap();
        client.write_all(&good).await.unwrap();
        let (mut at_broker, _) = soon(blue.accept()).await.unwrap();
        let mut first = vec![0; good.len()];
        soon(at_broker.read_exact(&mut first)).await.unwrap();
        assert_eq!(first, good, "after {}", case.name);
    }
    let expected = tally(&cases);
    let status = counted(&crossfade, "broker", |status| {
        let counts = rejected(status);
        expected.iter().all(|(reason, count)| counts.get(*reason) == Some(&json!(count)))
    });
    let status = status.await;
    assert_eq!(rejected(&status).len(), expected.len(), "{status}");
    assert_eq!(crate::status::arm(&status, "green")["dispatched"], 0, "{status}");
    assert_eq!(crate::status::arm(&status, "blue")["dispatched"], cases.len(), "{status}");
}

/// A whole ClientHello record.
fn client_hello(name: &str) -> Vec<u8> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let config = ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let mut hello = Vec::new();
    ClientConnection::new(config.into(), name).unwrap().write_tls(&mut hello).unwrap();
    hello
}

/// The start of a hello of 512 bytes in records of a byte each.
fn one_byte_records(count: usize) -> Vec<u8> {
    [1, 0, 2, 0].into_iter().chain([3; 508]).take(count).flat_map(|byte| [22, 3, 1, 0, 1, byte]).collect()
}

#[tokio::test]
async fn a_client_hello_that_is_no_good_reaches_no_origin() {
    let blue = TcpListener::bind(any_port()).await.unwrap();
    let origin = blue.local_addr().unwrap();
    let route = Route::tcp(origin, origin).with("key = [\"sni\"]").unchecked().table(timeouts());
    let crossfade = Crossfade::start(&route.to_string()).await;
    let hello = client_hello("shop.example");
    let mut cut_field = hello.clone();
    // The length of the session id, past the end of the hello.
    cut_field[5 + 4 + 2 + 32] = 0xff;
    let cases = [
        case("an empty record", [22, 3, 1, 0, 0], CLOSED, "bad_record"),
        case("a record above 16 KiB", [22, 3, 1, 0xff, 0xff, 1], CLOSED, "bad_record"),
        case("a ServerHello", [22, 3, 1, 0, 4, 2, 0, 0, 0], CLOSED, "not_client_hello"),
        case("a hello of 16 MiB", [22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff], CLOSED, "too_large"),
        case("a hello in records of a byte", one_byte_records(300), CLOSED, "too_many_records"),
        case("a field past the end", cut_field, CLOSED, "truncated_field"),
        Case { name: "nothing", sends: Sends::Nothing, answer: CLOSED, reason: "client_hello_timeout" },
        case("half a hello", &hello[..hello.len() / 2], CLOSED, "client_hello_timeout"),
        Case {
            name: "a byte now and then",
            sends: Sends::Drip(hello.clone()),
            answer: CLOSED,
            reason: "client_hello_timeout",
        },
        Case {
            name: "half and gone",
            sends: Sends::AndLeaves(hello[..40].to_vec()),
            answer: CLOSED,
            reason: "client_gone",
        },
    ];
    for case in &cases {
        assert_eq!(send(case, route.listen).await, case.answer, "{}", case.name);
        let mut client = TcpStream::connect(route.listen).await.unwrap();
        client.write_all(&hello).await.unwrap();
        let (mut at_origin, _) = soon(blue.accept()).await.unwrap();
        let mut first = vec![0; hello.len()];
        soon(at_origin.read_exact(&mut first)).await.unwrap();
        assert!(first == hello, "after {}: the hello arrives as it was sent", case.name);
    }
    let expected = tally(&cases);
    let status = counted(&crossfade, "bus", |status| {
        let counts = rejected(status);
        expected.iter().all(|(reason, count)| counts.get(*reason) == Some(&json!(count)))
    })
    .await;
    assert_eq!(rejected(&status).len(), expected.len(), "{status}");

    // What is not TLS at all has no name: a caller without a key, as documented.
    let mut client = TcpStream::connect(route.listen).await.unwrap();
    client.write_all(b"EHLO mail.example\r\n").await.unwrap();
    let (mut at_origin, _) = soon(blue.accept()).await.unwrap();
    let mut first = [0; 19];
    soon(at_origin.read_exact(&mut first)).await.unwrap();
    assert_eq!(&first, b"EHLO mail.example\r\n");
    counted(&crossfade, "bus", |status| status["keyless"] == 1).await;
}

#[tokio::test]
async fn what_is_no_tls_handshake_ends_at_the_listener() {
    let blue = TcpListener::bind(any_port()).await.unwrap();
    let broker = blue.local_addr().unwrap();
    let (folder, authority) = (TempDir::new().unwrap(), Authority::new());
    let tls = authority.issue("localhost").write(folder.path(), "broker");
    let route = Route::mqtt(broker, broker).with(tls).unchecked().table(timeouts());
    let crossfade = Crossfade::start(&route.to_string()).await;
    let hello = client_hello("localhost");
    let cases = [
        case("plain MQTT", connect("plain"), CLOSED, "tls_handshake"),
        case("HTTP", "GET / HTTP/1.1\r\n\r\n", CLOSED, "tls_handshake"),
        case("random bytes", [0x9c; 500], CLOSED, "tls_handshake"),
        case("a record with rubbish", [&[22, 3, 1, 0, 200][..], &[0xaa; 200]].concat(), CLOSED, "tls_handshake"),
        Case { name: "nothing", sends: Sends::Nothing, answer: CLOSED, reason: "tls_handshake_timeout" },
        case("half a hello", &hello[..hello.len() / 2], CLOSED, "tls_handshake_timeout"),
        case("a hello and no more", hello.clone(), CLOSED, "tls_handshake_timeout"),
        Case {
            name: "a byte now and then",
            sends: Sends::Drip(hello.clone()),
            answer: CLOSED,
            reason: "tls_handshake_timeout",
        },
        Case {
            name: "half and gone",
            sends: Sends::AndLeaves(hello[..40].to_vec()),
            answer: CLOSED,
            reason: "tls_handshake",
        },
    ];
    for case in &cases {
        let got = send(case, route.listen).await;
        // An alert (21) tells the peer what is wrong; a ServerHello (22) is the answer to a good hello.
        assert!(
            got.is_empty() || got[0] == 21 || (case.name == "a hello and no more" && got[0] == 22),
            "{}: {got:?}",
            case.name
        );
        let tcp = TcpStream::connect(route.listen).await.unwrap();
        let mut client = authority.connect(tcp, "localhost", &[]).await.unwrap();
        let good = connect(case.name);
        client.write_all(&good).await.unwrap();
        let (mut at_broker, _) = soon(blue.accept()).await.unwrap();
        let mut first = vec![0; good.len()];
        soon(at_broker.read_exact(&mut first)).await.unwrap();
        assert_eq!(first, good, "after {}", case.name);
    }
    for (reason, count) in tally(&cases) {
        eventually(reason, async || (process_rejected(&crossfade.admin, reason).await == count).then_some(())).await;
    }
    // And inside TLS the protocol is as strict as outside.
    let tcp = TcpStream::connect(route.listen).await.unwrap();
    let mut client = authority.connect(tcp, "localhost", &[]).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut got = Vec::new();
    let _ = soon(client.read_to_end(&mut got)).await;
    assert_eq!(got, CLOSED);
    counted(&crossfade, "broker", |status| status["rejected"]["not_connect"] == 1).await;
}

/// A configuration that is wrong in many places, and where `check` must point.
const FAULTY: &str = r#"
[admin]
listen = "0.0.0.0:9900"
colour = "blue"

[[route]]
name = "shop"
protocol = "http"
listen = "127.0.0.1:8080"
key = ["header:", "sni"]
green_percentage = 150
[route.blue]
label = "same"
endpoints = []
[route.green]
label = "Same"
endpoints = ["host"]
[route.guard]
max_error_rate = 7.5
baseline = "0s"

[[route]]
name = "shop"
protocol = "carrier-pigeon"
listen = "somewhere"
[route.blue]
endpoints = ["127.0.0.1:1"]
"#;

const FAULTY_PLACES: [&str; 14] = [
    "admin.tokens",
    "admin.colour",
    "route[0].key[0]",
    "route[0].key[1]",
    "route[0].green_percentage",
    "route[0].blue.endpoints",
    "route[0].green.label",
    "route[0].green.endpoints[0]",
    "route[0].guard.max_error_rate",
    "route[0].guard.baseline",
    "route[1].name",
    "route[1].protocol",
    "route[1].listen",
    "route[1].green",
];

fn crossfade(arguments: &[&str], file: &std::path::Path) -> Output {
    program().args(arguments).arg("--config").arg(file).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn check_names_every_fault_of_a_file_with_its_place_and_cure() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("faulty.toml");
    fs::write(&file, FAULTY).unwrap();
    let checked = crossfade(&["check"], &file);
    assert_eq!(checked.status.code(), Some(1));
    let (faults, summary) = (text(&checked.stdout), text(&checked.stderr));
    for place in FAULTY_PLACES {
        let line = faults
            .lines()
            .find(|line| line.starts_with(&format!("{place} ")) || line.starts_with(&format!("{place}:")));
        let line = line.unwrap_or_else(|| panic!("no fault at {place}:\n{faults}"));
        assert!(line.contains("; "), "a cure follows the problem: {line}");
    }
    assert_eq!(summary.trim(), format!("crossfade: {} has {} faults", file.display(), faults.lines().count()));

    let json = crossfade(&["check", "--json"], &file);
    assert_eq!(json.status.code(), Some(1));
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["ok"], false);
    let listed = json["faults"].as_array().unwrap();
    assert_eq!(listed.len(), faults.lines().count());
    for (fault, line) in listed.iter().zip(faults.lines()) {
        let is = |name: &str| fault[name].as_str().unwrap_or_else(|| panic!("{name} in {fault}")).to_owned();
        assert!(
            line.starts_with(&is("place")) && line.ends_with(&format!("{}; {}", is("problem"), is("cure"))),
            "{line}"
        );
        assert!(fault["line"].is_null() || line.contains(&format!("(line {})", fault["line"])), "{line}");
    }

    // The start says the same and serves nothing.
    let started = crossfade(&["run"], &file);
    assert_eq!(started.status.code(), Some(1));
    assert!(faults.lines().all(|line| text(&started.stderr).contains(line)), "{}", text(&started.stderr));
}

#[test]
fn a_configuration_that_cannot_be_read_is_named() {
    let folder = TempDir::new().unwrap();
    let not_text = folder.path().join("binary.toml");
    fs::write(&not_text, [0xff, 0xfe, 0, 1]).unwrap();
    let not_toml = folder.path().join("broken.toml");
    fs::write(&not_toml, "[[route]\nname = ").unwrap();
    let huge = folder.path().join("huge.toml");
    fs::write(&huge, format!("#{}\n", "x".repeat(1024 * 1024))).unwrap();
    let missing = folder.path().join("missing.toml");
    for (file, place) in [
        (&missing, missing.to_str().unwrap()),
        (&folder.path().to_owned(), folder.path().to_str().unwrap()),
        (&not_text, not_text.to_str().unwrap()),
        (&huge, huge.to_str().unwrap()),
        (&not_toml, "syntax (line 1)"),
    ] {
        for command in ["check", "run"] {
            let output = crossfade(&[command], file);
            let said = text(&output.stdout) + &text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{command}: {said}");
            assert!(said.contains(place) && said.contains("; "), "{command}: {said}");
        }
    }
}

#[test]
fn a_start_without_its_certificates_is_refused_and_says_which() {
    let (folder, authority) = (TempDir::new().unwrap(), Authority::new());
    let written = authority.issue("localhost").write(folder.path(), "server");
    authority.issue("localhost").write(folder.path(), "other");
    let [cert, key, strange, missing] =
        ["server.pem", "server.key", "other.key", "missing.pem"].map(|name| folder.path().join(name));
    let tls = |cert: &std::path::Path, key: &std::path::Path| format!("tls = {{ cert = {cert:?}, key = {key:?} }}");
    assert_eq!(tls(&cert, &key), written);
    let route = || Route::tcp(free_address(), free_address());
    for (tls, named) in [
        (tls(&missing, &key), &missing),
        (tls(&cert, &missing), &missing),
        (tls(&key, &key), &key),
        (tls(&cert, &cert), &cert),
        (tls(&cert, &strange), &strange),
    ] {
        let file = folder.path().join("crossfade.toml");
        let admin = format!("[admin]\nlisten = \"{}\"\n", free_address());
        fs::write(&file, format!("{admin}{}", route().with(tls))).unwrap();
        let started = crossfade(&["run"], &file);
        let said = text(&started.stderr);
        assert_eq!(started.status.code(), Some(1), "{said}");
        assert!(
            said.contains("route[0].tls") && said.contains(named.to_str().unwrap()) && said.contains("; "),
            "{said}"
        );
    }
    // The same for what upstreams are verified with.
    let file = folder.path().join("crossfade.toml");
    let text_of = route().to_string().replace(
        "label = \"go\"",
        &format!("label = \"go\"\ntls = {{ server_name = \"x.example\", ca = {missing:?} }}"),
    );
    fs::write(&file, format!("[admin]\nlisten = \"{}\"\n{text_of}", free_address())).unwrap();
    let started = crossfade(&["run"], &file);
    let said = text(&started.stderr);
    assert_eq!(started.status.code(), Some(1), "{said}");
    assert!(said.contains("route[0].green.tls") && said.contains(missing.to_str().unwrap()), "{said}");
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let taken = TcpListener::bind(any_port()).await.unwrap();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("crossfade.toml");
    let address = taken.local_addr().unwrap();
    let mut route = Route::tcp(free_address(), free_address());
    route.listen = address;
    fs::write(&file, format!("[admin]\nlisten = \"{}\"\n{route}", free_address())).unwrap();
    let started = crossfade(&["run"], &file);
    let said = text(&started.stderr);
    assert_eq!(started.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("cannot listen on {address}; stop what uses it")), "{said}");
    assert!(!folder.path().join("crossfade.db").exists(), "a start that fails leaves nothing behind");
}

#[tokio::test]
async fn the_admin_api_refuses_what_it_must_and_changes_nothing() {
    let route = Route::http(free_address(), free_address()).green_percentage(10.0);
    let crossfade = Crossfade::start(&route.to_string()).await;
    let admin = crossfade.admin.address;
    let json = "content-type: application/json";
    let split = |body: &str| post("/traffic-split", &[json], body);
    let big = format!("{{\"route\":\"shop\",\"green_percentage\":20,\"note\":\"{}\"}}", "x".repeat(2 * 1024 * 1024));
    let cases: Vec<(&str, Vec<u8>, &[u16])> = vec![
        ("an unknown field", split(r#"{"route":"shop","green_percentage":20,"colour":"blue"}"#), &[422]),
        ("a sum of 110", split(r#"{"route":"shop","green_percentage":20,"blue_percentage":90}"#), &[422]),
        ("a label's sum of 90", split(r#"{"route":"shop","go_percentage":20,"python_percentage":70}"#), &[422]),
        ("below 0", split(r#"{"route":"shop","green_percentage":-1}"#), &[422]),
        ("above 100", split(r#"{"route":"shop","green_percentage":100.01}"#), &[422]),
        ("finer than 0.01", split(r#"{"route":"shop","green_percentage":0.001}"#), &[422]),
        ("NaN", split(r#"{"route":"shop","green_percentage":NaN}"#), &[400, 422]),
        ("a number as text", split(r#"{"route":"shop","green_percentage":"20"}"#), &[422]),
        ("no percentage", split(r#"{"route":"shop"}"#), &[422]),
        ("a field twice", split(r#"{"route":"shop","green_percentage":20,"green_percentage":30}"#), &[400, 422]),
        ("no such route", split(r#"{"route":"shed","green_percentage":20}"#), &[404]),
        ("no JSON", split("green=20"), &[400]),
        ("nothing", split(""), &[400]),
        ("2 MiB", split(&big), &[413]),
        (
            "a form",
            post("/traffic-split", &["content-type: application/x-www-form-urlencoded"], "green_percentage=20"),
            &[415],
        ),
        ("no content type", post("/traffic-split", &[], r#"{"route":"shop","green_percentage":20}"#), &[415]),
        (
            "a page of another site",
            post(
                "/traffic-split",
                &[json, "origin: https://evil.example"],
                r#"{"route":"shop","green_percentage":20}"#,
            ),
            &[403],
        ),
        ("another host", raw("GET /status HTTP/1.1\r\nhost: evil.example\r\n\r\n"), &[421, 403]),
        ("no host", raw("GET /status HTTP/1.1\r\n\r\n"), &[400, 421]),
        ("a method", raw(&format!("DELETE /traffic-split HTTP/1.1\r\nhost: {admin}\r\n\r\n")), &[405]),
        ("a path", raw(&format!("GET /secrets HTTP/1.1\r\nhost: {admin}\r\n\r\n")), &[404]),
        ("a change by GET", raw(&format!("GET /rollback HTTP/1.1\r\nhost: {admin}\r\n\r\n")), &[405]),
        (
            "a stale revision",
            post("/traffic-split", &[json, "if-match: \"999\""], r#"{"route":"shop","green_percentage":20}"#),
            &[412],
        ),
        ("no reason", post("/rollback", &[json], r#"{"route":"shop","reason":7}"#), &[422]),
    ];
    for (name, request, expected) in cases {
        let request = text(&request).replace("host: admin", &format!("host: {admin}"));
        let mut client = Client::connect(admin).await;
        let answer = client.exchange(request.as_bytes()).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(expected.contains(&answer.status.as_u16()), "{name}: {answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{name}: {answer:?}");
        assert!(answer.json()["detail"].is_string() || answer.json()["title"].is_string(), "{name}: {answer:?}");
        assert_eq!(crossfade.admin.green("shop").await, 10.0, "{name} changed nothing");
    }
}

fn raw(request: &str) -> Vec<u8> {
    request.as_bytes().to_vec()
}

fn post(path: &str, headers: &[&str], body: &str) -> Vec<u8> {
    let headers = headers.iter().map(|header| format!("{header}\r\n")).collect::<String>();
    let length = body.len();
    raw(&format!("POST {path} HTTP/1.1\r\nhost: admin\r\n{headers}content-length: {length}\r\n\r\n{body}"))
}

#[test]
fn a_command_line_that_makes_no_sense_is_a_usage_error() {
    for arguments in [
        &[][..],
        &["dance"],
        &["run"],
        &["run", "--config"],
        &["check", "--config", "a", "--config", "b"],
        &["split", "shop"],
        &["split", "shop", "many"],
        &["split", "shop", "10", "20"],
        &["rollback"],
        &["reset", "--reason", "because"],
        &["status", "--colour"],
    ] {
        let output = program().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && text(&output.stderr).contains("--help"), "{arguments:?}");
    }
}
