use loadtest::origin::TcpOrigin;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use crate::{any_port, soon, until};

#[tokio::test]
async fn each_line_is_answered_and_a_half_close_with_bye() {
    let origin = TcpOrigin::start("go", any_port()).await.unwrap();
    let mut stream = BufReader::new(TcpStream::connect(origin.address()).await.unwrap());
    for line in ["hello", "", "again"] {
        stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon(stream.read_line(&mut answer)).await.unwrap();
        assert_eq!(answer, format!("go:{line}\n"));
    }
    stream.write_all(b"cut").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    soon(stream.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "go:cut\ngo:bye\n");

    let seen = origin.seen();
    until("the connection is counted as closed", || seen.open_connections() == 0).await;
    assert_eq!((seen.connections(), seen.lines(), seen.byes()), (1, 4, 1));
}

#[tokio::test]
async fn stop_closes_connections_and_frees_the_port() {
    let origin = TcpOrigin::start("go", any_port()).await.unwrap();
    let mut stream = BufReader::new(TcpStream::connect(origin.address()).await.unwrap());
    stream.write_all(b"hello\n").await.unwrap();
    soon(stream.read_line(&mut String::new())).await.unwrap();

    soon(origin.stop()).await;
    assert_eq!(soon(stream.read_line(&mut String::new())).await.unwrap_or(0), 0);
    assert!(TcpStream::connect(origin.address()).await.is_err());
    TcpOrigin::start("go", origin.address()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn stop_is_complete_while_programs_are_being_started() {
    let starting = tokio::spawn(async {
        loop {
            tokio::process::Command::new("true").status().await.unwrap();
        }
    });
    for _ in 0..100 {
        let origin = TcpOrigin::start("go", any_port()).await.unwrap();
        let address = origin.address();
        tokio::task::yield_now().await;
        soon(origin.stop()).await;
        let refused = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        soon(TcpOrigin::start("go", address).await.unwrap().stop()).await;
    }
    starting.abort();
}
