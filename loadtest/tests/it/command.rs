use std::{net::SocketAddr, path::PathBuf, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
};

use crate::{any_port, origin_ledger::entries, soon};

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

async fn interrupt(child: Child) -> Option<i32> {
    end(child, "INT").await
}

async fn end(mut child: Child, signal: &str) -> Option<i32> {
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status().await.unwrap().success());
    soon(child.wait()).await.unwrap().code()
}

/// A folder of a test's own, gone when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("loadtest-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
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
async fn an_origin_over_tls_makes_its_certificate_or_is_given_one() {
    let folder = Folder::new("tls");
    let made = folder.path("made.pem");
    let made_args = format!("origin http --listen 127.0.0.1:0 --label go --tls --write-ca {made}");
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (given, key) = (folder.path("given.pem"), folder.path("given.key"));
    std::fs::write(&given, cert.pem()).unwrap();
    std::fs::write(&key, signing_key.serialize_pem()).unwrap();
    let given_args = format!("origin http --listen 127.0.0.1:0 --label go --tls --cert {given} --key-file {key}");

    for (args, ca, hosts) in [(made_args, made, &["127.0.0.1", "localhost"][..]), (given_args, given, &["localhost"])] {
        let mut child = loadtest(&args.split(' ').collect::<Vec<_>>()).spawn().unwrap();
        let line = line(&mut child).await;
        let port = line.rsplit_once(':').unwrap().1;
        for host in hosts {
            for version in ["--http1.1", "--http2"] {
                let url = format!("https://{host}:{port}/");
                let curl = ["-sS", "-m", "10", "-4", version, "--cacert", &ca, "-w", " %{http_version}", &url];
                let output = soon(Command::new("curl").args(curl).output()).await.unwrap();
                let answer = String::from_utf8(output.stdout).unwrap();
                assert!(answer.contains(r#""origin":"go""#), "{answer} {:?}", output.stderr);
                assert!(answer.ends_with(if version == "--http2" { " 2" } else { " 1.1" }), "{answer}");
            }
        }
        assert_eq!(interrupt(child).await, Some(0));
    }
}

#[tokio::test]
async fn the_ledger_is_whole_when_an_origin_is_ended() {
    let folder = Folder::new("ledger");
    for (kind, signal) in [("http", "INT"), ("tcp", "TERM")] {
        let ledger = folder.path(kind);
        let args = format!("origin {kind} --listen 127.0.0.1:0 --label go --ledger {ledger}");
        let args: Vec<_> = args.split(' ').chain((kind == "http").then_some("--key-in=cookie:session")).collect();
        let mut child = loadtest(&args).spawn().unwrap();
        let line = line(&mut child).await;
        let address = line.rsplit_once(' ').unwrap().1;
        let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
        let asked = match kind {
            "http" => {
                "GET /status/204 HTTP/1.1\r\nhost: a\r\nx-loadtest-id: 000000000000000a\r\ncookie: session=ada\r\n\r\n"
            }
            _ => "000000000000000a ada xxx\n",
        };
        for _ in 0..3 {
            stream.write_all(asked.as_bytes()).await.unwrap();
            let mut answer = String::new();
            while !answer.ends_with(if kind == "http" { "\r\n\r\n" } else { "\n" }) {
                soon(stream.read_line(&mut answer)).await.unwrap();
            }
        }
        assert_eq!(end(child, signal).await, Some(0));
        assert_eq!(entries(ledger.as_ref()), ["000000000000000a\tada\tseen"; 3], "{kind}");
    }
}

#[tokio::test]
async fn a_ledger_that_cannot_be_written_is_a_failure() {
    let args = "origin tcp --listen 127.0.0.1:0 --label go --ledger /dev/full".split(' ').collect::<Vec<_>>();
    // The first line fails already.
    let output = soon(loadtest(&args).output()).await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with("error: /dev/full: cannot write the ledger; give a path"), "{error}");

    // Here the file is full later on: the origin goes on, and says it in the end.
    let folder = Folder::new("full");
    let ledger = folder.path("ledger");
    let origin =
        format!("{} origin tcp --listen 127.0.0.1:0 --label go --ledger {ledger}", env!("CARGO_BIN_EXE_loadtest"));
    let mut command = Command::new("sh");
    command.args(["-c", &format!("trap '' XFSZ; ulimit -f 1; exec {origin}")]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let line = line(&mut child).await;
    let mut stream = BufReader::new(TcpStream::connect(line.rsplit_once(' ').unwrap().1).await.unwrap());
    for _ in 0..100 {
        stream.write_all(b"000000000000000a ada xxx\n").await.unwrap();
        soon(stream.read_line(&mut String::new())).await.unwrap();
    }
    let mut stderr = child.stderr.take().unwrap();
    assert_eq!(end(child, "TERM").await, Some(1));
    let mut error = String::new();
    soon(stderr.read_to_string(&mut error)).await.unwrap();
    assert!(error.starts_with(&format!("loadtest: {ledger}: cannot write the ledger; give a path")), "{error}");
}

#[tokio::test]
async fn wrong_use_exits_2_and_failure_1() {
    let folder = Folder::new("wrong-use");
    let (quantiles, pem) = (folder.path("quantiles.txt"), folder.path("empty.pem"));
    std::fs::write(&quantiles, "0.5 12ms\n0.4 1ms\n0.9 x\n").unwrap();
    std::fs::write(&pem, "").unwrap();

    for args in ["", "origin", "origin http --label go", "origin http --listen nowhere --label go"] {
        let output = soon(loadtest(&args.split_whitespace().collect::<Vec<_>>()).output()).await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{args}");
    }
    for (kind, args, problem) in [
        ("http", "--status 99", "99 is no final HTTP status; give 200 to 999"),
        ("http", "--latency 20", "\"20\" is no latency; give 20ms, "),
        ("tcp", "--latency lognormal:20ms,p99=2ms", "give a p99 that is not below the median"),
        (
            "tcp",
            "--latency file:/nowhere/q.txt",
            "/nowhere/q.txt: No such file or directory (os error 2); give a readable",
        ),
        ("http", &format!("--latency file:{quantiles}"), &format!("{quantiles}:2: 0.4 comes after 0.5; give")),
        ("http", &format!("--latency file:{quantiles}"), &format!("\n{quantiles}:3: \"x\" has no unit; give")),
        ("http", "--stall 500ms", "\"500ms\" has no period; give 500ms/10s"),
        ("http", "--error-share 2", "\"2\" is out of range; give a share from 0 to 1, or from 0% to 100%"),
        ("http", "--mismatch-share x", "\"x\" is no share; give 0.1% or 0.001"),
        ("http", "--spelling kebab", "[possible values: snake, upper, pascal]"),
        ("http", "--key-in client-ip", "every address is the proxy's; give header:NAME"),
        ("http", "--write-ca ca.pem", "--tls"),
        ("http", "--tls --cert a.pem", "--key-file"),
        ("http", "--tls --write-ca /nowhere/ca.pem", "error: --write-ca /nowhere/ca.pem: No such file or directory"),
        (
            "http",
            &format!("--tls --cert {pem} --key-file {pem}"),
            &format!("error: --cert {pem}: no certificate in it; give"),
        ),
        ("http", "--tls --cert /nowhere/c --key-file /nowhere/k", "give a certificate in PEM"),
        (
            "http",
            "--ledger /nowhere/l",
            "/nowhere/l: cannot write the ledger; give a path in a folder that exists and has room: No such",
        ),
        ("tcp", "--status 500", "unexpected argument '--status'"),
    ] {
        let args = format!("origin {kind} --listen 127.0.0.1:0 --label go {args}");
        let output = soon(loadtest(&args.split(' ').collect::<Vec<_>>()).output()).await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{args}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.starts_with("error: ") && error.contains(problem), "{args}: {error}");
    }

    let taken = tokio::net::TcpListener::bind(any_port()).await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let kept = folder.path("kept.ledger");
    std::fs::write(&kept, "of the origin that runs already").unwrap();
    for (kind, more) in [("http", &["--ledger", &kept][..]), ("tcp", &["--ledger", &kept]), ("mqtt", &[])] {
        let args = [&["origin", kind, "--listen", &address, "--label", "go"], more].concat();
        let output = soon(loadtest(&args).output()).await.unwrap();
        assert_eq!(output.status.code(), Some(1));
        let error = String::from_utf8(output.stderr).unwrap();
        let start = format!("loadtest: {address}: cannot listen; pick an address of this machine that is free: ");
        assert!(error.starts_with(&start), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), "of the origin that runs already");
}

#[tokio::test]
async fn help_says_what_there_is() {
    for (args, expected) in [
        (
            "origin http --help",
            &["/record/N", "lognormal:20ms,p99=200ms", "file:quantiles.txt", "--write-ca", "500ms/10s"][..],
        ),
        ("origin tcp --help", &["--ledger", "--control", "--error-share"]),
        ("origin --help", &["http", "tcp", "mqtt"]),
    ] {
        let output = soon(loadtest(&args.split(' ').collect::<Vec<_>>()).output()).await.unwrap();
        assert_eq!(output.status.code(), Some(0));
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(expected.iter().all(|part| help.contains(part)), "{help}");
    }
}
