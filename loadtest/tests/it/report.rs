//! From a load and its origin to what is shown of them, by the commands.

use std::{
    fs, io,
    path::Path,
    process::{Output, Stdio},
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::soon;

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn loadtest(args: &[&str]) -> Output {
    soon(command(args).output()).await.unwrap()
}

/// An origin with a ledger, and the address it listens on.
async fn origin(kind: &str, label: &str, ledger: &Path) -> (Child, String) {
    let args = ["origin", kind, "--listen", "127.0.0.1:0", "--label", label, "--ledger", ledger.to_str().unwrap()];
    let mut child = command(&args).spawn().unwrap();
    let line = soon(BufReader::new(child.stdout.take().unwrap()).lines().next_line()).await.unwrap().unwrap();
    (child, line.rsplit(' ').next().unwrap().to_owned())
}

async fn interrupt(mut child: Child) {
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
    assert!(soon(child.wait()).await.unwrap().success());
}

fn text(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).unwrap()
}

#[tokio::test]
async fn a_run_is_reported_drawn_compared_and_verified() {
    let schema: Value = serde_json::from_str(include_str!("../../schema/report-1.json")).unwrap();
    let schema = jsonschema::draft202012::new(&schema).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for kind in ["http", "tcp"] {
        let path = |name: &str| folder.path().join(format!("{kind}{name}")).to_str().unwrap().to_owned();
        let [json, html, sent, seen] = [".json", ".html", ".load", ".origin"].map(path);
        let (origin, address) = origin(kind, "go", Path::new(&seen)).await;
        let target = if kind == "http" { format!("http://{address}/") } else { address };

        let mut args = vec![kind, "--target", &target, "--rate", "200", "--duration", "2s", "--connections", "4"];
        args.extend(["--json", &json, "--html", &html, "--ledger", &sent, "--slo", "p99<1h", "--slo", "errors<0.1%"]);
        let ran = loadtest(&args).await;
        let table = text(&ran.stdout);
        assert_eq!(ran.status.code(), Some(0), "{table}{}", text(&ran.stderr));
        assert!(table.contains("account  400 sent, 400 answered\n") && table.contains("✓ met  p99<1h "), "{table}");
        assert!(!table.contains('\x1b'), "{table}");

        let report: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
        let faults: Vec<_> =
            schema.iter_errors(&report).map(|fault| format!("{}: {fault}", fault.instance_path())).collect();
        assert_eq!(faults, [""; 0]);
        assert_eq!(report["arms"]["go"]["answered"], 400);
        let page = fs::read_to_string(&html).unwrap();
        assert!(page.contains("<h2>Percentiles: latency</h2>") && page.contains("all 2 objectives were met"));

        let compared = loadtest(&["compare", &json, &json]).await;
        assert_eq!(compared.status.code(), Some(0), "{}", text(&compared.stderr));
        // On a machine with other things to do a load falls behind, and says so.
        let said = text(&compared.stdout);
        let differs = said.lines().any(|line| line.starts_with("warning") && !line.contains("fell behind"));
        assert!(!differs, "{said}");

        interrupt(origin).await;
        let verdict = loadtest(&["verify", &seen, &sent]).await;
        let said = text(&verdict.stdout);
        assert_eq!(verdict.status.code(), Some(0), "{said}{}", text(&verdict.stderr));
        assert!(
            said.ends_with("none of this: lost, duplicated, both sides, wrong arm, unseen, stray, moved\n"),
            "{said}"
        );
    }

    let [http, tcp] = ["http.json", "tcp.json"].map(|name| folder.path().join(name).to_str().unwrap().to_owned());
    let compared = loadtest(&["compare", &http, &tcp, "--json"]).await;
    let json: Value = serde_json::from_slice(&compared.stdout).unwrap();
    assert_eq!(json["schema"], "loadtest-compare/1");
    assert_eq!(json["warnings"][0], "the protocols differ: http/1.1 and tcp");
    assert!(json["series"]["latency"]["go"]["p99"]["ratio"].as_f64().unwrap() > 0.0);

    // As `head` goes when it has seen enough.
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let unread = soon(command(&["compare", &http, &tcp]).stdout(writer).output()).await.unwrap();
    assert_eq!((unread.status.code(), text(&unread.stderr)), (Some(0), String::new()));
}

#[tokio::test]
async fn what_cannot_be_compared_exits_2() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.json");
    fs::write(&other, "{\"schema\": \"loadtest-report/9\"}").unwrap();
    let other = other.to_str().unwrap();
    for (args, problem) in [
        (&["compare"][..], "required arguments were not provided"),
        (&["compare", other], "required arguments were not provided"),
        (&["compare", other, other], "other.json: the schema is \"loadtest-report/9\", and this loadtest reads"),
        (&["compare", "/nowhere.json", other], "loadtest: /nowhere.json: cannot read it; give a file that exists"),
    ] {
        let output = loadtest(args).await;
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(problem), "{error}");
    }
}
