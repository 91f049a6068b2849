//! `loadtest http` and `tcp` as people and scripts call them: exit codes, one clear line for what cannot be, and an
//! account of whatever did happen.

use std::{
    path::Path,
    process::{Output, Stdio},
};

use loadtest::origin::{Behaviour, HttpOrigin};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, net::TcpListener, process::Command};

use crate::{any_port, soon, until};

fn loadtest(args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(args.split_whitespace()).stdin(Stdio::null()).kill_on_drop(true);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn output(args: &str) -> Output {
    soon(loadtest(args).output()).await.unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[tokio::test]
async fn what_cannot_be_run_is_refused_with_its_cure() {
    let http = "http --target http://127.0.0.1:9";
    for (args, expected) in [
        ("http --rate 5".to_owned(), "--target"),
        (http.to_owned(), "give --rate 500"),
        (format!("{http} --rate 0"), "above 0"),
        (format!("{http} --rate fast"), "no rate"),
        (format!("{http} --rate 5..x"), "no rate"),
        (format!("{http} --rate -5"), ""),
        (format!("{http} --rate 5 --duration 0s"), "above 0"),
        (format!("{http} --rate 5 --duration 10"), "no unit"),
        (format!("{http} --max --duration 0s"), "above 0"),
        (format!("{http} --max --rate 5"), "cannot be used with"),
        (format!("{http} --stages 10s"), "no stage"),
        (format!("{http} --stages 10s:5,,"), "no stage"),
        (format!("{http} --stages 10s:5 --duration 5s"), "cannot be used with"),
        (format!("{http} --stages 1000h:9e6"), "lower the rate"),
        (format!("{http} --rate 5 --connections 0"), ""),
        (format!("{http} --rate 5 --threads 0"), ""),
        (format!("{http} --rate 5 --timeout 0s"), "--timeout"),
        (format!("{http} --rate 5 --keys 0"), "--keys"),
        (format!("{http} --rate 5 --zipf 0"), "--zipf"),
        (format!("{http} --rate 5 --key-in path:x"), "no place for a key"),
        (format!("{http} --rate 5 --key-in client-ip"), "--requests-per-connection 1"),
        (format!("{http} --rate 5 --streams 4"), "--http2"),
        (format!("{http} --rate 5 --http2 --websocket"), "cannot be used with"),
        (format!("{http} --rate 5 --header nonsense"), "no header"),
        (format!("{http} --rate 5 --header content-length:5"), "framing"),
        (format!("{http} --rate 5 --body 1T"), "no size"),
        (format!("{http} --rate 5 --body 100M"), "at most"),
        (format!("{http} --rate 5 --method CONNECT"), "tunnel"),
        (format!("{http} --rate 5 --slo p99<100"), "no unit"),
        (format!("{http} --rate 5 --slo p98<1s"), "no metric"),
        ("http --target 127.0.0.1:80 --rate 5".to_owned(), "give http://"),
        ("http --target ftp://127.0.0.1/ --rate 5".to_owned(), "give http://"),
        ("http --target http://no-such-host.invalid/ --rate 5".to_owned(), "cannot be resolved"),
        ("http --target https://127.0.0.1:9/ --ca /does/not/exist --rate 5".to_owned(), "cannot read"),
        ("http --target https://127.0.0.1:9/ --ca /dev/null --rate 5".to_owned(), "no usable certificate"),
        ("tcp --target 127.0.0.1 --rate 5".to_owned(), "no host and port"),
        ("tcp --target 127.0.0.1:70000 --rate 5".to_owned(), "no host and port"),
        ("tcp --target 127.0.0.1:9 --rate 5 --size 100M".to_owned(), "at most"),
    ] {
        let output = output(&args).await;
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{args}: {said}");
        assert!(said.contains(expected) && !said.contains("panicked"), "{args}: {said}");
        // clap adds its usage below.
        assert!(said.starts_with("error: ") || said.lines().count() == 1, "{args}: {said}");
    }
}

#[tokio::test]
async fn a_target_that_is_not_there_is_said_and_the_account_still_written() {
    let nobody = TcpListener::bind(any_port()).await.unwrap().local_addr().unwrap();
    let dir = TempDir::new().unwrap();
    let report = dir.path().join("report.json");
    let output = output(&format!("http --target http://{nobody}/ --rate 5 --json {}", report.display())).await;
    let said = said(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("cannot connect") && said.lines().count() == 1, "{said}");
    let report = json(&report);
    assert_eq!(report["account"]["sent"], 0);
    assert!(report["end"]["reason"].as_str().unwrap().contains("cannot connect"), "{report}");
}

#[tokio::test]
async fn a_target_that_resets_everything_is_said_and_counted() {
    let listener = TcpListener::bind(any_port()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_zero_linger().unwrap();
        }
    });
    let dir = TempDir::new().unwrap();
    let (report, ledger) = (dir.path().join("report.json"), dir.path().join("ledger"));
    let args = format!(
        "http --target http://{address}/ --rate 50 --duration 1s --json {} --ledger {}",
        report.display(),
        ledger.display()
    );
    let output = output(&args).await;
    let said = said(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("not one of 50 requests was answered") && said.contains("reset"), "{said}");
    let report = json(&report);
    assert_eq!(report["account"]["sent"], 50);
    assert_eq!(report["account"]["answered"], 0);
    assert_eq!(std::fs::read_to_string(ledger).unwrap().lines().count(), 51);
}

#[tokio::test]
async fn too_few_files_for_the_connections_is_said_before_anything_is_sent() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let args = format!("http --target http://{}/ --rate 5 --connections 500", origin.address());
    let mut limited = Command::new("prlimit");
    limited.arg("--nofile=256:256").arg(env!("CARGO_BIN_EXE_loadtest")).args(args.split_whitespace());
    let output = soon(limited.output()).await.unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("ulimit -n") && said.lines().count() == 1, "{said}");
    assert_eq!(origin.seen().connections(), 0);
}

#[tokio::test]
async fn objectives_decide_the_exit_code() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let run = async |slo: &str| {
        let args = format!("http --target http://{}/ --rate 100 --duration 300ms {slo}", origin.address());
        let output = output(&args).await;
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, table) = run("--slo p99<10s --slo errors<0.1% --slo rate>50%").await;
    assert_eq!(code, Some(0), "{table}");
    assert!(table.contains("p99<10s") && table.contains("go"), "{table}");
    let (code, table) = run("--slo p99<1us").await;
    assert_eq!(code, Some(1), "{table}");
    origin.behaviour().set(Behaviour { error_share: 0.5, ..Behaviour::default() });
    assert_eq!(run("--slo errors<0.1%").await.0, Some(1));
    assert_eq!(run("--slo errors@go<60%").await.0, Some(0));
    assert_eq!(run("--slo p99@python<10s").await.0, Some(1), "what was not measured is not met");
}

#[tokio::test]
async fn ctrl_c_ends_a_run_early_with_a_whole_report() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let dir = TempDir::new().unwrap();
    let (report, page, ledger) = (dir.path().join("r.json"), dir.path().join("r.html"), dir.path().join("ledger"));
    let args = format!(
        "http --target http://{}/ --rate 200 --duration 1h --json {} --html {} --ledger {}",
        origin.address(),
        report.display(),
        page.display(),
        ledger.display()
    );
    let child = loadtest(&args).spawn().unwrap();
    let seen = std::sync::Arc::clone(origin.seen());
    until("fifty requests", || seen.requests() >= 50).await;
    let kill = format!("kill -INT {}", child.id().unwrap());
    assert!(Command::new("sh").args(["-c", &kill]).status().await.unwrap().success());
    let output = soon(child.wait_with_output()).await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let report = json(&report);
    assert_eq!(report["end"]["complete"], false);
    let sent = report["account"]["sent"].as_u64().unwrap();
    assert_eq!((sent, report["account"]["answered"].as_u64().unwrap()), (origin.seen().requests(), sent));
    assert_eq!(std::fs::read_to_string(ledger).unwrap().lines().count() as u64, sent + 1);
    assert!(std::fs::read_to_string(page).unwrap().contains("</html>"));
}

#[tokio::test]
async fn a_ledger_that_cannot_be_written_is_said() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let target = format!("http --target http://{}/ --rate 50 --duration 100ms", origin.address());
    for (flag, expected) in [
        ("--ledger /no/such/folder/x", "cannot write"),
        ("--json /no/such/folder/x", "cannot"),
        ("--html /no/such/folder/x", "cannot write"),
    ] {
        let output = output(&format!("{target} {flag}")).await;
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{flag}: {said}");
        assert!(said.contains(expected) && said.lines().count() == 1, "{flag}: {said}");
    }
    // The disk is full.
    let output = output(&format!("{target} --ledger /dev/full")).await;
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
}

#[tokio::test]
async fn servers_that_talk_nonsense_break_nothing() {
    let listener = TcpListener::bind(any_port()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut random = fastrand::Rng::with_seed(7);
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let length = random.usize(1..2000);
            let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
            tokio::spawn(async move { stream.write_all(&noise).await });
        }
    });
    for args in ["", "--http2", "--grpc", "--websocket"] {
        let output =
            output(&format!("http --target http://{address}/ --rate 100 --duration 300ms --timeout 2s {args}")).await;
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{args}: {said}");
        assert!(said.contains("not one of 30 requests") && !said.contains("panicked"), "{args}: {said}");
    }
    let output =
        output(&format!("http --target https://{address}/ --insecure --rate 100 --duration 300ms --timeout 2s")).await;
    assert!(said(&output).contains("tls"), "{}", said(&output));
}
