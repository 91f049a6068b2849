//! What origins write to their ledgers.

use std::{
    fs,
    path::{Path, PathBuf},
};

use futures::{SinkExt, StreamExt};
use http::{HeaderValue, Request};
use loadtest::{
    ledger::{Id, Ledger, Owner, unix_micros},
    origin::{Behaviour, HttpOrigin, HttpSetup, Listener, TcpOrigin},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};
use tokio_tungstenite::{connect_async, tungstenite::Message};

use crate::{
    any_port,
    http::{Body, Client, both, bytes, get},
    soon, until,
};

/// A ledger in a file of this test's own, gone when dropped.
struct Book {
    path: PathBuf,
}

impl Book {
    fn new(test: &str) -> Self {
        Self { path: std::env::temp_dir().join(format!("loadtest-{test}-{}.ledger", std::process::id())) }
    }

    fn open(&self) -> Ledger {
        Ledger::create(&self.path, &Owner::Origin { label: "go".to_owned() }).unwrap()
    }

    /// The entries without their times, which are checked.
    fn entries(&self) -> Vec<String> {
        entries(&self.path)
    }
}

impl Drop for Book {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

pub(crate) fn entries(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("# loadtest-ledger 1 origin go"));
    let entries = lines.map(|line| {
        let (entry, time) = line.rsplit_once('\t').unwrap();
        assert!(unix_micros().abs_diff(time.parse().unwrap()) < 3600 * 1_000_000, "{line}");
        entry.to_owned()
    });
    entries.collect()
}

fn request(path: &str, headers: &[(&'static str, &str)]) -> Request<Body> {
    let mut request = get(path);
    for (name, value) in headers {
        request.headers_mut().append(*name, HeaderValue::from_str(value).unwrap());
    }
    request
}

#[tokio::test]
async fn every_request_with_an_id_is_written_and_its_id_sent_back() {
    let book = Book::new("requests");
    let ledger = book.open();
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    origin.record(&ledger);
    for (run, mut client) in (1..).zip(both(&origin).await) {
        let ids: Vec<_> = (0..6).map(|number| Id::new(run, number).to_string()).collect();
        for (number, (path, headers)) in [
            ("/", &[("x-session-id", "ada")][..]),
            ("/status/503", &[("x-session-id", "")]),
            ("/echo", &[]),
            ("/", &[("x-session-id", "ada"), ("x-shadow", "crossfade")]),
            ("/", &[("x-session-id", "a\tb")]),
        ]
        .into_iter()
        .enumerate()
        {
            let headers = [&[("x-loadtest-id", &*ids[number])], headers].concat();
            let response = client.send(request(path, &headers)).await.unwrap();
            assert_eq!(response.headers()["x-loadtest-id"], ids[number]);
            bytes(response).await;
        }

        // What is no id is sent back, too, and written nowhere.
        let response = client.send(request("/", &[("x-loadtest-id", "7")])).await.unwrap();
        assert_eq!(response.headers()["x-loadtest-id"], "7");
        assert!(!client.get("/").await.headers().contains_key("x-loadtest-id"));

        // It is written when it comes in, whatever becomes of it.
        origin.behaviour().change(|b| b.hang = true);
        let expected = [
            format!("{}\tada\tseen", ids[0]),
            format!("{}\t-\tseen", ids[1]),
            format!("{}\t-\tseen", ids[2]),
            format!("{}\tada\tshadow", ids[3]),
            format!("{}\t?\tseen", ids[4]),
            format!("{}\t-\tseen", ids[5]),
        ];
        tokio::select! {
            answer = client.send(request("/", &[("x-loadtest-id", &ids[5])])) => panic!("answered: {answer:?}"),
            () = until("the hanging request is in the file", || book.entries().ends_with(&expected)) => {}
        }
        origin.behaviour().set(Behaviour::default());
    }
    soon(origin.stop()).await;
    ledger.close().unwrap();
    assert_eq!(book.entries().len(), 12);
}

#[tokio::test]
async fn an_origin_that_is_dropped_lets_its_ledger_be_closed() {
    let book = Book::new("dropped");
    let ledger = book.open();
    let http = HttpOrigin::start("go", any_port()).await.unwrap();
    let tcp = TcpOrigin::start("go", any_port()).await.unwrap();
    http.record(&ledger);
    tcp.record(&ledger);
    let mut client = Client::h2(http.address()).await;
    bytes(client.send(request("/", &[("x-loadtest-id", &Id(1).to_string())])).await.unwrap()).await;
    drop((http, tcp));
    soon(tokio::task::spawn_blocking(|| ledger.close())).await.unwrap().unwrap();
    assert_eq!(book.entries(), ["0000000000000001\t-\tseen"]);
}

#[tokio::test]
async fn the_key_is_where_the_setup_says() {
    for (nth, place) in ["cookie:session", "query:run_id"].into_iter().enumerate() {
        let book = Book::new(&format!("key-{nth}"));
        let ledger = book.open();
        let listener = Listener::bind(any_port()).await.unwrap();
        let setup = HttpSetup { ledger: Some(&ledger), key: place.parse().unwrap(), ..HttpSetup::default() };
        let origin = HttpOrigin::serve("go", listener, setup);
        let id = Id(1).to_string();
        let headers = [("x-loadtest-id", &*id), ("x-session-id", "no"), ("cookie", "a=b; session=ada")];
        let mut client = Client::h1(origin.address()).await;
        bytes(client.send(request("/?run_id=ada", &headers)).await.unwrap()).await;
        origin.stop().await;
        ledger.close().unwrap();
        assert_eq!(book.entries(), [format!("{id}\tada\tseen")], "{place}");
    }
}

#[tokio::test]
async fn messages_and_lines_that_begin_with_an_id_are_written() {
    let texts =
        ["0000000000000001 user-7 xxx", "hello", "0000000000000002 user-8", "0000000000000003", "0000000000000004x "];
    let expected = ["1\tuser-7\tseen", "2\tuser-8\tseen", "3\t-\tseen"].map(|entry| format!("000000000000000{entry}"));

    let book = Book::new("messages");
    let ledger = book.open();
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    origin.record(&ledger);
    let (mut socket, _) = soon(connect_async(format!("ws://{}/ws", origin.address()))).await.unwrap();
    for text in texts {
        socket.send(Message::text(text)).await.unwrap();
        assert_eq!(soon(socket.next()).await.unwrap().unwrap(), Message::text(format!("go:{text}")));
    }
    assert_eq!(origin.seen().messages(), 5);
    soon(origin.stop()).await;
    ledger.close().unwrap();
    assert_eq!(book.entries(), expected);

    let book = Book::new("lines");
    let ledger = book.open();
    let listener = Listener::bind(any_port()).await.unwrap();
    let origin = TcpOrigin::serve("go", listener, Behaviour::default(), Some(&ledger));
    let mut stream = BufReader::new(TcpStream::connect(origin.address()).await.unwrap());
    for text in texts {
        stream.write_all(format!("{text}\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon(stream.read_line(&mut answer)).await.unwrap();
        assert_eq!(answer, format!("go:{text}\n"));
    }
    soon(origin.stop()).await;
    ledger.close().unwrap();
    assert_eq!(book.entries(), expected);
}
