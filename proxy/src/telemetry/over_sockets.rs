//! What is counted of real connections between real origins. Only the ends of the seconds are the test's.

use std::{future, net::SocketAddr, path::Path, pin::Pin};

use admin_api::{DataPlane, RouteState};
use config::{Config, Protocol, Split};
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use loadtest::origin::{Behaviour, HttpOrigin, TcpOrigin};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time,
};
use tokio_util::task::TaskTracker;

use super::*;
use crate::{
    alarm,
    connection::Worker,
    drain::{Drain, Drainer},
    http::Engine,
    listen::{self, Acceptor, Door, Listening},
    mirror::MirrorThread,
    plane::Plane,
    split::{Hashed, Salt},
};

/// How long anything may take that is expected to happen.
const DEADLINE: Duration = Duration::from_secs(20);

/// A route with one worker, which is this thread.
struct Site {
    plane: Arc<Plane>,
    address: SocketAddr,
    tick: Tick,
    _drainer: Drainer,
}

impl Site {
    /// `settings`: further lines of the route.
    fn start(protocol: Protocol, settings: &str, blue: SocketAddr, green: SocketAddr, green_percent: f64) -> Self {
        worker::enter(1);
        let text = format!(
            "[[route]]\nname = \"route\"\nprotocol = \"{protocol}\"\nlisten = \"127.0.0.1:0\"\n{settings}\n\
             [route.blue]\nendpoints = [\"{blue}\"]\n[route.green]\nendpoints = [\"{green}\"]\n\
             [route.health]\nprobe = \"off\"\n"
        );
        let config = Arc::new(Config::parse(&text, Path::new("")).unwrap());
        let plane = Plane::new(1, MirrorThread::start().unwrap());
        let split = Split::from_percent(green_percent).unwrap();
        let state = RouteState { split, ..RouteState::default() };
        plane.install(&config, &BTreeMap::from([("route".to_owned(), state)])).unwrap();
        let (drainer, drain) = Drainer::new();
        let address = serve(&plane, drain, protocol);
        let tick = Tick { at: 0, now: Instant::now(), utc: OffsetDateTime::UNIX_EPOCH };
        Self { plane, address, tick, _drainer: drainer }
    }

    fn open(&self) -> u64 {
        let seen = self.plane.observe("route").unwrap();
        seen.blue.open + seen.green.open
    }

    /// Waits until so many exchanges are under way.
    async fn until_open(&self, count: u64) {
        let reached = async {
            while self.open() != count {
                time::sleep(Duration::from_millis(2)).await;
            }
        };
        let reached = time::timeout(DEADLINE, reached).await;
        assert!(reached.is_ok(), "{} are open, not {count}, after {DEADLINE:?}", self.open());
    }

    /// Ends a second.
    fn end(&mut self) -> Arc<Second> {
        self.tick.now += Duration::from_secs(1);
        self.plane.live().routes["route"].meter.gather(&self.tick, Duration::from_secs(5));
        self.tick.at += 1;
        self.plane.seconds("route", None).pop().unwrap()
    }

    /// Ends so many seconds that what was dispatched is due, and no more.
    fn end_all(&mut self) -> Arc<Second> {
        (0..5).for_each(|_| drop(self.end()));
        self.end()
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }
}

fn serve(plane: &Arc<Plane>, drain: Drain, protocol: Protocol) -> SocketAddr {
    let socket = listen::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = socket.local_addr().unwrap();
    let (peers, newcomers) = listen::peers(1);
    let worker = Worker { plane: Arc::clone(plane), tasks: TaskTracker::new() };
    let engine = Engine::new(Arc::clone(plane), drain.clone());
    let acceptor = Arc::new(Acceptor { worker, engine, drain });
    let listening = Listening { socket, number: 0, door: Door { listener: 0, protocol } };
    tokio::spawn(alarm::tick());
    tokio::spawn(listen::accept(listening, Arc::clone(&acceptor), peers));
    newcomers.into_iter().for_each(|newcomers| drop(tokio::spawn(listen::welcome(newcomers, Arc::clone(&acceptor)))));
    address
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

const BY_USER: &str = "key = [\"header:x-user\"]";

/// One request over a connection of its own; what came back.
async fn get(site: &Site, user: u32) -> String {
    get_with(site, &format!("x-user: user-{user}")).await
}

/// As [`get`], of a caller that sends a header of its own.
async fn get_with(site: &Site, header: &str) -> String {
    let mut stream = site.connect().await;
    let request = format!("GET / HTTP/1.1\r\nhost: shop\r\n{header}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

/// A broker that takes every connection and says what it is told to, once it has heard something.
async fn broker(says: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind(any_port()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut clients = JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            clients.spawn(async move {
                let _ = client.read(&mut [0; 512]).await;
                let _ = client.write_all(says).await;
                future::pending::<()>().await
            });
        }
    });
    address
}

fn connect_packet(id: u32) -> Vec<u8> {
    let id = format!("device-{id:04}");
    let mut packet = vec![0x10, 12 + id.len() as u8, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60, 0, id.len() as u8];
    packet.extend_from_slice(id.as_bytes());
    packet
}

#[tokio::test]
async fn requests_that_a_black_hole_swallows_are_overdue_by_their_keys_and_those_that_blue_answers_are_not() {
    let blue = HttpOrigin::start("python", any_port()).await.unwrap();
    let green = HttpOrigin::start("go", any_port()).await.unwrap();
    green.behaviour().set(Behaviour { hang: true, ..Behaviour::default() });
    let mut site = Site::start(Protocol::Http, BY_USER, blue.address(), green.address(), 50.0);
    let split = Split::from_percent(50.0).unwrap();
    let arm = |user: u32| split.arm(Hashed::of(Salt::split("route"), format!("user-{user}").as_bytes()).bucket());
    let users = |of: Arm| (0..).filter(move |user| arm(*user) == of).take(6).collect::<Vec<_>>();

    for user in users(Arm::Blue) {
        assert!(get(&site, user).await.starts_with("HTTP/1.1 200"));
    }
    let mut waiting = Vec::new();
    // Twice each over HTTP/1.1, and once over HTTP/2.
    for user in users(Arm::Green).into_iter().chain(users(Arm::Green)) {
        let mut stream = site.connect().await;
        let request = format!("GET / HTTP/1.1\r\nhost: shop\r\nx-user: user-{user}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        waiting.push(stream);
    }
    let (mut h2, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(site.connect().await)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = |user: u32| {
        let request = Request::get("http://shop/").header("x-user", format!("user-{user}"));
        request.body(Empty::<Bytes>::new()).unwrap()
    };
    let swallowed: Vec<_> =
        users(Arm::Green).into_iter().map(|user| tokio::spawn(h2.send_request(request(user)))).collect();
    let answered = time::timeout(DEADLINE, h2.send_request(request(users(Arm::Blue)[0]))).await.unwrap().unwrap();
    assert_eq!(answered.status(), StatusCode::OK);
    drop(answered);
    site.until_open(18).await;
    // Two of them do not wait any longer, which is no answer either.
    for gone in waiting.drain(10..) {
        gone.set_zero_linger().unwrap();
    }
    site.until_open(16).await;

    let second = site.end_all();
    assert_eq!((second.blue.due, second.blue.overdue), (7, 0));
    assert_eq!((second.green.due, second.green.overdue), (18, 18));
    let keys = &second.green.overdue_keys;
    assert_eq!((keys.distinct(), keys.of_the_commonest(1), keys.total()), (6, 3, 18));
    waiting.iter().for_each(|left| left.set_zero_linger().unwrap());
    drop((waiting, h2));
    swallowed.iter().for_each(|swallowed| swallowed.abort());
    connection.abort();
    site.until_open(0).await;
    assert_eq!(site.end_all().green.overdue, 0);
}

#[tokio::test]
async fn an_answer_that_has_begun_is_an_answer_however_long_it_takes() {
    let slow = broker(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nand so on").await;
    let mut site = Site::start(Protocol::Http, BY_USER, slow, slow, 100.0);
    let mut stream = site.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: shop\r\nx-user: user-1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"and so on") {
        assert_ne!(time::timeout(DEADLINE, stream.read_buf(&mut answer)).await.unwrap().unwrap(), 0);
    }
    let second = site.end_all();
    assert_eq!((second.green.due, second.green.overdue, site.open()), (1, 0, 1));
}

#[tokio::test]
async fn a_broker_that_says_nothing_leaves_clients_waiting_and_one_that_answers_does_not() {
    for (says, overdue) in [(&b""[..], 4), (&[0x20, 2, 0, 0], 0)] {
        let green = broker(says).await;
        let mut site = Site::start(Protocol::Mqtt, "", green, green, 100.0);
        let mut clients = Vec::new();
        for id in 0..4 {
            let mut client = site.connect().await;
            client.write_all(&connect_packet(id)).await.unwrap();
            if overdue == 0 {
                time::timeout(DEADLINE, client.read_exact(&mut [0; 4])).await.unwrap().unwrap();
            }
            clients.push(client);
        }
        site.until_open(4).await;
        let second = site.end_all();
        assert_eq!((second.green.due, second.green.overdue), (4, overdue));
        assert_eq!(second.green.overdue_keys.distinct() as u64, overdue);
    }
}

#[tokio::test]
async fn a_connection_that_is_made_is_an_answer() {
    let green = TcpOrigin::start("go", any_port()).await.unwrap();
    let mut site = Site::start(Protocol::Tcp, "", green.address(), green.address(), 100.0);
    let _clients = [site.connect().await, site.connect().await];
    site.until_open(2).await;
    // The origin has seen both: they are connected.
    let connected = async {
        while green.seen().connections() < 2 {
            time::sleep(Duration::from_millis(2)).await;
        }
    };
    time::timeout(DEADLINE, connected).await.unwrap();
    let second = site.end_all();
    assert_eq!((second.green.due, second.green.overdue), (2, 0));
}

#[tokio::test]
async fn the_placebo_is_blues_and_has_the_keys_that_the_hash_says() {
    let blue = HttpOrigin::start("python", any_port()).await.unwrap();
    let green = HttpOrigin::start("go", any_port()).await.unwrap();
    let mut site = Site::start(Protocol::Http, BY_USER, blue.address(), green.address(), 20.0);
    let split = Split::from_percent(20.0).unwrap();
    let (mut of_green, mut of_placebo) = (0, 0);
    for user in 0..300 {
        let key = Hashed::of(Salt::split("route"), format!("user-{user}").as_bytes());
        let decided = Decided::new(Salt::placebo("route"), split, split.arm(key.bucket()), key);
        of_green += u64::from(decided.arm == Arm::Green);
        of_placebo += u64::from(decided.placebo);
        assert!(get(&site, user).await.starts_with("HTTP/1.1 200"));
    }
    site.until_open(0).await;
    let second = site.end();
    assert_eq!((second.green.dispatched, second.placebo.dispatched), (of_green, of_placebo));
    assert_eq!(second.blue.dispatched, 300 - of_green);
    assert!(of_placebo > 0 && of_placebo.abs_diff(of_green) < 40, "{of_placebo} as {of_green}");
    assert_eq!((green.seen().requests(), second.placebo.count(Outcome::Ok)), (of_green, of_placebo));
}

#[tokio::test]
async fn who_is_sent_somewhere_whatever_the_split_is_told_apart_from_those_whom_it_divides() {
    let blue = HttpOrigin::start("python", any_port()).await.unwrap();
    let green = HttpOrigin::start("go", any_port()).await.unwrap();
    let unsplit_of = async |green_percentage: f64, settings: &str, headers: &[&str]| {
        let settings = format!("{BY_USER}\n{settings}");
        let mut site = Site::start(Protocol::Http, &settings, blue.address(), green.address(), green_percentage);
        for header in headers {
            assert!(get_with(&site, header).await.starts_with("HTTP/1.1 200"));
        }
        site.until_open(0).await;
        let second = site.end();
        let total = site.plane.observe("route").unwrap().blue.total.dispatched;
        assert_eq!(second.blue.dispatched, total);
        let forced = second.forced.as_ref().map_or(0, |forced| forced.dispatched);
        (second.unsplit.dispatched, second.blue.dispatched, forced, second.green.dispatched)
    };
    assert_eq!(unsplit_of(100.0, "", &["x-other: 1", "x-user: user-1"]).await, (1, 1, 0, 1), "keyless");
    assert_eq!(unsplit_of(100.0, "keyless = \"random\"", &["x-other: 1"]).await, (0, 0, 0, 1));
    let asking = "x-user: user-1\r\nx-crossfade-arm: blue";
    assert_eq!(unsplit_of(100.0, "allow_override = true", &[asking]).await, (1, 1, 0, 0));
    assert_eq!(unsplit_of(100.0, "", &[asking]).await, (0, 0, 0, 1));
    let asking = "x-user: user-1\r\nx-crossfade-arm: green";
    assert_eq!(unsplit_of(0.0, "allow_override = true", &[asking]).await, (0, 0, 1, 1));
    assert_eq!(unsplit_of(0.0, "", &[asking]).await, (0, 1, 0, 0));
}

#[tokio::test]
async fn slow_answers_and_failures_are_known_by_their_keys_and_the_last_one_is_told() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let mut site = Site::start(Protocol::Http, BY_USER, origin.address(), origin.address(), 100.0);
    site.plane.watch_slower_than("route", Some(20_000));
    site.plane.watch_slower_than("no such route", Some(1));
    let both = async |site: &Site| {
        for user in [1, 2, 3, 3] {
            get(site, user).await;
        }
        site.until_open(0).await;
    };
    let keys = |second: &Second| {
        let [failed, slow] =
            [&second.green.failed_keys, &second.green.slow_keys].map(|keys| (keys.distinct(), keys.total()));
        (failed, slow)
    };
    origin.behaviour().change(|b| b.latency = Duration::from_millis(40).into());
    both(&site).await;
    let second = site.end();
    assert_eq!((keys(&second), &second.green.sample), (((0, 0), (3, 4)), &None));

    origin.behaviour().set(Behaviour { status: Some(StatusCode::BAD_GATEWAY), ..Behaviour::default() });
    both(&site).await;
    let second = site.end();
    assert_eq!(keys(&second).0, (3, 4));
    let sample = second.green.sample.clone().unwrap();
    assert_eq!((sample.outcome, sample.status), ("refused", Some(502)));
    assert_eq!(sample.endpoint, Some(origin.address().to_string()));
    assert_eq!(sample.message, "answered 502 Bad Gateway");
}

#[tokio::test]
async fn every_kind_of_failure_is_told_in_our_own_words() {
    type Origin = Pin<Box<dyn Future<Output = SocketAddr>>>;
    let closed: Origin = Box::pin(async { TcpListener::bind(any_port()).await.unwrap().local_addr().unwrap() });
    let silent = "[route.timeouts]\nresponse_header = \"50ms\"\n";
    let cases: [(Protocol, Origin, &str, &str, &str); 6] = [
        (Protocol::Http, closed, "", "unreachable", "connection refused"),
        (
            Protocol::Http,
            Box::pin(broker(b"nonsense\r\n\r\n")),
            "",
            "broken",
            "the endpoint's answer was not whole or made no sense",
        ),
        (Protocol::Http, Box::pin(broker(b"")), silent, "timeout", "the endpoint did not answer in time"),
        (Protocol::Mqtt, Box::pin(broker(&[0x20, 2, 0, 3])), "", "refused", "answered CONNECT with code 3"),
        (Protocol::Mqtt, Box::pin(broker(b"nonsense")), "", "broken", "the broker's first packet was no connack"),
        (Protocol::Mqtt, Box::pin(broker(b"")), silent, "timeout", "no connack in time"),
    ];
    for (protocol, origin, more, outcome, message) in cases {
        let origin = origin.await;
        let key = if protocol == Protocol::Http { BY_USER } else { "" };
        let mut site = Site::start(protocol, &format!("{key}\nfallback = \"none\"\n{more}"), origin, origin, 100.0);
        match protocol {
            Protocol::Http => {
                get(&site, 1).await;
                site.until_open(0).await;
            }
            _ => {
                let mut client = site.connect().await;
                client.write_all(&connect_packet(1)).await.unwrap();
                let _ = time::timeout(DEADLINE, client.read(&mut [0; 64])).await.unwrap();
            }
        }
        let second = site.end();
        let sample = second.green.sample.clone().unwrap_or_else(|| panic!("{protocol}: no {outcome}"));
        assert_eq!((sample.outcome, sample.message.as_str()), (outcome, message), "{protocol}");
        assert_eq!(sample.endpoint, Some(origin.to_string()), "{protocol}: {outcome}");
        assert_eq!(second.green.failed_keys.distinct(), usize::from(outcome != "unreachable"), "{protocol}: {outcome}");
    }
}
