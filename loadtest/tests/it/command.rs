use std::{net::SocketAddr, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
};

use crate::{any_port, soon};

fn loadtest(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// The one line an origin prints when it listens.
async fn line(child: &mut Child) -> String {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    soon(lines.next_line()).await.unwrap().unwrap()
}

async fn interrupt(mut child: Child) -> Option<i32> {
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("sh").args(["-c", &format!("kill -INT {pid}")]).status().await.unwrap().success());
    soon(child.wait()).await.unwrap().code()
}

#[tokio::test]
async fn an_origin_says_where_it_listens_and_ends_by_ctrl_c() {
    for kind in ["http", "tcp", "mqtt"] {
        let mut child = loadtest(&["origin", kind, "--listen", "127.0.0.1:0", "--label", "go"]).spawn().unwrap();
        let line = line(&mut child).await;
        let address: SocketAddr =
            line.strip_prefix(&format!("{kind} origin go listening on ")).unwrap().parse().unwrap();
        // Kept open: a client must not keep an origin from ending.
        let _stream = TcpStream::connect(address).await.unwrap();
        assert_eq!(interrupt(child).await, Some(0));
        assert!(TcpStream::connect(address).await.is_err());
    }
}

#[tokio::test]
async fn behaviour_is_given_on_the_command_line_and_changed_through_the_control_endpoint() {
    let args = "origin http --listen 127.0.0.1:0 --label go --status 503 --latency 1ms --control 127.0.0.1:0";
    let mut child = loadtest(&args.split(' ').collect::<Vec<_>>()).spawn().unwrap();
    let line = line(&mut child).await;
    let (address, control) =
        line.strip_prefix("http origin go listening on ").unwrap().split_once(", control on ").unwrap();

    let curl = async |args: &[&str]| {
        let output = soon(Command::new("curl").args(["-sS", "-m", "10"]).args(args).output()).await.unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let status = ["-o", "/dev/null", "-w", "%{http_code}", address];
    assert_eq!(curl(&status).await, "503");
    let control = format!("http://{control}/behaviour");
    let state = curl(&["-X", "PUT", "-d", "{}", &control]).await;
    assert!(state.contains(r#""status":null"#), "{state}");
    assert_eq!(curl(&status).await, "200");
    assert_eq!(interrupt(child).await, Some(0));
}

#[tokio::test]
async fn wrong_use_exits_2_and_failure_1() {
    for args in [
        vec![],
        vec!["origin"],
        vec!["origin", "http", "--label", "go"],
        vec!["origin", "http", "--listen", "nowhere", "--label", "go"],
        vec!["origin", "http", "--listen", "127.0.0.1:0", "--label", "go", "--status", "99"],
        vec!["origin", "http", "--listen", "127.0.0.1:0", "--label", "go", "--latency", "20"],
    ] {
        let output = soon(loadtest(&args).output()).await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }

    let taken = tokio::net::TcpListener::bind(any_port()).await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for kind in ["http", "tcp", "mqtt"] {
        let output = soon(loadtest(&["origin", kind, "--listen", &address, "--label", "go"]).output()).await.unwrap();
        assert_eq!(output.status.code(), Some(1));
        let error = String::from_utf8(output.stderr).unwrap();
        let start = format!("loadtest: {address}: cannot listen; pick an address of this machine that is free: ");
        assert!(error.starts_with(&start), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
