//! The bench with nginx alone, which is what tests can count on. It compares nothing here: it must only do its work.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{process::Command, time};

use crate::{DEADLINE, soon, until};

fn bench(args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.arg("bench").args(args.split(' ').filter(|arg| !arg.is_empty()));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn run(args: &str, json: Option<&Path>) -> Output {
    let mut command = bench(args);
    if let Some(json) = json {
        command.arg("--json").arg(json);
    }
    // Some seconds of load besides.
    time::timeout(DEADLINE * 3, command.output()).await.expect("not done by the deadline").unwrap()
}

fn results(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// The processes that run in `folder` or name it on their command line.
fn processes(folder: &str) -> usize {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let is_there = |pid: &fs::DirEntry| {
        let runs_in = fs::read_link(pid.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
        runs_in
            || fs::read(pid.path().join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(folder))
    };
    pids.filter(is_there).count()
}

#[tokio::test]
async fn a_case_is_measured_and_written() {
    let dir = TempDir::new().unwrap();
    let (json, markdown) = (dir.path().join("bench.json"), dir.path().join("bench.md"));
    let args = format!("http --peer nginx --peer direct --rounds 1 --seconds 1 --markdown {}", markdown.display());
    let output = run(&args, Some(&json)).await;
    assert!(output.status.success(), "{output:?}");

    let results = results(&json);
    assert_eq!((&results["schema"], &results["complete"]), (&"loadtest-bench/1".into(), &true.into()));
    assert!(results["versions"]["nginx"].as_str().unwrap().starts_with("1."), "{results}");
    let case = &results["cases"][0];
    assert_eq!(case["notes"], Value::Array(Vec::new()), "nothing fails, and keys stay where they are");
    let [direct, nginx] = case["peers"].as_array().unwrap().as_slice() else { panic!("{case}") };
    assert!(direct["rounds"][0]["answered"].as_u64().unwrap() > 0, "{direct}");
    assert!(direct["summary"].get("cpu_us").is_none(), "{direct}");
    for figure in ["requests_per_second", "p50_us", "p99_us", "cpu_us"] {
        assert!(nginx["summary"][figure]["median"].as_f64().unwrap() > 0.0, "{figure}: {nginx}");
    }
    assert_eq!(nginx["ratio"]["rounds"], serde_json::json!([1.0]));

    let table = "| nginx ";
    assert!(String::from_utf8_lossy(&output.stdout).contains(table), "{output:?}");
    assert!(fs::read_to_string(&markdown).unwrap().contains(table));
}

#[tokio::test]
async fn ctrl_c_ends_what_was_started_and_keeps_what_was_measured() {
    let dir = TempDir::new().unwrap();
    let json = dir.path().join("bench.json");
    // Where the bench has its files, so that its processes can be told from others.
    let files = dir.path().join("files");
    fs::create_dir(&files).unwrap();
    let mut command = bench("http --peer nginx --rounds 1 --seconds 600");
    let child = command.env("TMPDIR", &files).arg("--json").arg(&json).spawn().unwrap();
    let files = files.to_str().unwrap();
    // The origin and the peer with a worker each, and the load.
    until("the bench measures", || processes(files) >= 5).await;

    let kill = format!("kill -s INT {}", child.id().unwrap());
    assert!(Command::new("sh").args(["-c", &kill]).status().await.unwrap().success());
    let output = soon(child.wait_with_output()).await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("ended early"), "{output:?}");
    until("what it started has ended", || processes(files) == 0).await;
    assert_eq!(fs::read_dir(files).unwrap().count(), 0, "its files are gone");
    let results = results(&json);
    assert_eq!((&results["complete"], &results["cases"]), (&false.into(), &Value::Array(Vec::new())));
}

#[tokio::test]
async fn what_cannot_be_run_is_refused_in_one_line() {
    let check = async |args: &str, expected: &str| {
        let output = run(args, None).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args}: {said}");
        assert!(said.starts_with(expected) && said.lines().count() == 1, "{args}: {said}");
    };
    check("htp", "loadtest: no case \"htp\"; there are http, close").await;
    check("--peer apache", "loadtest: no peer \"apache\"; there are crossfade").await;
    check("--crossfade /nowhere/crossfade", "loadtest: /nowhere/crossfade: no such program").await;
}

#[tokio::test]
async fn a_peer_that_fails_to_start_is_quoted() {
    // A program that is no proxy, and says so.
    let output = run("http --peer crossfade --rounds 1 --seconds 1 --crossfade /bin/ls", None).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("loadtest: case http: crossfade: ended by itself, exit status: 2: "), "{said}");
    assert!(said.contains("unrecognized option"), "{said}");
}

#[tokio::test]
async fn each_case_of_load_is_driven_through_nginx() {
    let dir = TempDir::new().unwrap();
    let json = dir.path().join("bench.json");
    let peers = "--peer direct --peer nginx --peer nginx-2 --peer nginx-stream";
    let output = run(&format!("http workers latency {peers} --rounds 1 --seconds 1"), Some(&json)).await;
    assert!(output.status.success(), "{output:?}");
    let results = results(&json);
    let figure =
        |case: usize, peer: usize, name: &str| results["cases"][case]["peers"][peer]["rounds"][0][name].as_f64();
    let ratio = |case: usize, peer: usize, kind: &str| {
        let ratio = &results["cases"][case]["peers"][peer][kind];
        (ratio["to"].as_str().unwrap_or_default().to_owned(), ratio["rounds"].as_array().map(Vec::len))
    };
    // direct, nginx and nginx-stream; nginx and nginx-2; direct and nginx.
    assert_eq!(ratio(0, 1, "floor"), ("nginx-stream".to_owned(), Some(1)));
    assert_eq!(ratio(1, 1, "ratio"), ("nginx".to_owned(), Some(1)));
    let p99 = figure(2, 1, "p99_us").unwrap() - figure(2, 0, "p99_us").unwrap();
    assert_eq!(figure(2, 1, "added_p99_us"), Some(p99));
    assert_eq!(results["goals"], Value::Array(Vec::new()), "without Crossfade there is nothing to promise");
}

#[tokio::test]
async fn a_profile_needs_a_profiler_and_somebody_to_look_at() {
    let dir = TempDir::new().unwrap();
    // Of what the bench needs there is nginx alone.
    let (own, into) = (dir.path().join("bin"), dir.path().join("profile"));
    fs::create_dir(&own).unwrap();
    let nginx = Command::new("sh").args(["-c", "PATH=$PATH:/usr/sbin command -v nginx"]).output().await.unwrap();
    symlink(String::from_utf8(nginx.stdout).unwrap().trim(), own.join("nginx")).unwrap();
    let check = async |args: &[&str], expected: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
        command.arg("profile").args(args).arg("--into").arg(&into).env("PATH", &own);
        let output = soon(command.output()).await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.starts_with(expected) && said.lines().count() == 1, "{args:?}: {said}");
    };
    check(&["http"], "loadtest: perf: not installed; it is in linux-perf").await;
    check(&["htp"], "loadtest: no case \"htp\"; there are http").await;
    symlink("/bin/true", own.join("perf")).unwrap();
    check(&["http", "--peer", "direct"], "loadtest: case http: nobody to look at; ").await;
    check(&["idle-http", "--peer", "nginx"], "loadtest: case idle-http: it is not about load through a proxy").await;
}

#[tokio::test]
async fn the_list_says_who_takes_part_and_who_does_not() {
    let output = run("--list mirror", None).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.starts_with("mirror  "), "{output:?}");
    assert!(said.contains("left out: nginx ("), "{said}");
}
