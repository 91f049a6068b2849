//! The command line as people and scripts use it.

use std::{fs, io, net::SocketAddr, process::Output};

use http::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    authority::Authority,
    harness::{Admin, Crossfade, eventually, free_address, program},
    routes::Route,
};

pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

fn said(output: Output) -> Said {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

fn run(arguments: &[&str]) -> Said {
    said(program().args(arguments).output().unwrap())
}

/// A command to a running crossfade.
pub(crate) async fn ask(crossfade: &Crossfade, arguments: &[&str]) -> Said {
    let mut command = program();
    command.args(arguments).args(["--admin", &format!("http://{}", crossfade.admin.address)]);
    said(tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap())
}

/// The same with `--json`: the exit code and the object.
pub(crate) async fn ask_json(crossfade: &Crossfade, arguments: &[&str]) -> Value {
    let Said { code, out, err } = ask(crossfade, &[arguments, &["--json"]].concat()).await;
    assert_eq!((code, err.as_str()), (Some(0), ""), "{arguments:?}: {out}");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error} in {out}"))
}

#[test]
fn every_command_explains_itself() {
    let all = run(&["--help"]);
    assert_eq!((all.code, all.err.as_str()), (Some(0), ""));
    for (command, mentions) in [
        ("run", "--config <FILE>"),
        ("check", "--json"),
        ("demo", "--"),
        ("status", "--admin <URL>"),
        ("split", "<PERCENT>"),
        ("plan", "approve"),
        ("rollback", "--reason <REASON>"),
        ("reset", "--token-file <FILE>"),
        ("incident", "--last <ROUTE>"),
        ("simulate", "--green-rps <RATE>"),
    ] {
        assert!(all.out.lines().any(|line| line.trim_start().starts_with(command)), "{command} in {}", all.out);
        let help = run(&[command, "--help"]);
        assert_eq!((help.code, help.err.as_str()), (Some(0), ""), "{command}");
        let usage = format!("Usage: crossfade {command}");
        assert!(help.out.contains(&usage) && help.out.contains(mentions), "{command}: {}", help.out);
    }
    assert!(all.out.contains("Exit status: 0 done, 1 refused or failed, 2 usage."));
    let version = run(&["--version"]);
    assert_eq!(version.out.trim(), format!("crossfade {}", env!("CARGO_PKG_VERSION")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_instance_is_asked_and_steered() {
    let broker = Route::mqtt(free_address(), free_address()).unchecked();
    let bus = Route::tcp(free_address(), free_address()).unchecked();
    let crossfade = Crossfade::start(&format!("{broker}{bus}")).await;

    let status = ask(&crossfade, &["status"]).await;
    assert_eq!((status.code, status.err.as_str()), (Some(0), ""));
    for word in ["ROUTE", "broker", "bus", "erlang", "python", "go", "100 %", "0 %"] {
        assert!(status.out.contains(word), "{word} in {}", status.out);
    }
    let one = ask(&crossfade, &["status", "bus"]).await;
    assert!(one.out.contains("bus") && !one.out.contains("broker"), "{}", one.out);
    let all = ask_json(&crossfade, &["status"]).await;
    assert_eq!(all["routes"].as_array().unwrap().len(), 2);
    let one = ask_json(&crossfade, &["status", "broker"]).await;
    assert_eq!((one["routes"].as_array().unwrap().len(), &one["routes"][0]["route"]), (1, &json!("broker")));

    let split = ask(&crossfade, &["split", "bus", "12.34"]).await;
    assert_eq!((split.code, split.err.as_str()), (Some(0), ""));
    assert_eq!(split.out, "bus: python 87.66 %, go 12.34 % (revision 2)\n");
    assert_eq!(crossfade.admin.green("bus").await, 12.34);
    let split = ask_json(&crossfade, &["split", "bus", "20"]).await;
    assert_eq!((&split["green"]["percentage"], &split["revision"]), (&json!(20), &json!(3)));

    let back = ask(&crossfade, &["rollback", "bus", "--reason", "lag above a second"]).await;
    assert_eq!((back.code, back.err.as_str()), (Some(0), ""));
    assert_eq!(back.out, "bus: python 100 %, go 0 % (revision 4), latched until `crossfade reset bus --reason '…'`\n");
    let status = ask(&crossfade, &["status", "bus"]).await;
    assert!(status.out.contains("latched: lag above a second"), "{}", status.out);

    let raised = ask(&crossfade, &["split", "bus", "1"]).await;
    assert_eq!((raised.code, raised.out.as_str()), (Some(1), ""));
    assert!(raised.err.starts_with("crossfade: refused (409): ") && raised.err.contains("reset"), "{}", raised.err);
    let reset = ask_json(&crossfade, &["reset", "bus", "--reason", "repaired"]).await;
    assert_eq!((&reset["latched"], &reset["green"]["percentage"]), (&json!(false), &json!(0)));
    assert_eq!(ask(&crossfade, &["split", "bus", "1"]).await.code, Some(0));
    let back = ask_json(&crossfade, &["rollback", "bus"]).await;
    assert_eq!(back["latched"], true);
    let reset = ask(&crossfade, &["reset", "bus", "--reason", "repaired again"]).await;
    assert!(reset.out.ends_with(", free to be raised\n"), "{}", reset.out);

    let (_, trail) = crossfade.admin.get("/audit?route=bus").await;
    let reasons =
        trail["audit"].as_array().unwrap().iter().filter_map(|row| row["reason"].as_str()).collect::<Vec<_>>();
    for reason in ["lag above a second", "repaired", "no reason given", "repaired again"] {
        assert!(reasons.contains(&reason), "{reason} in {reasons:?}");
    }
    assert_eq!(crossfade.admin.green("broker").await, 0.0, "the other route is left alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_steered() {
    let steps = "[route.plan]\n[[route.plan.step]]\ngreen = 10\nbake = \"1h\"\napproval = \"go-live\"\n";
    let bus = Route::tcp(free_address(), free_address()).unchecked().table(steps);
    let crossfade = Crossfade::start(&bus.to_string()).await;
    let says = async |arguments: &[&str], expected: &str| {
        let Said { code, out, err } = ask(&crossfade, &[&["plan"], arguments].concat()).await;
        assert_eq!((code, err.as_str()), (Some(0), ""), "{arguments:?}: {out}");
        assert!(out.starts_with(expected), "{arguments:?}: {out}");
    };
    says(&["status"], "bus: not started, green 0 %\n").await;
    says(&["start", "bus"], "bus: running, step 1 of 1 (10 %) is to begin, green 0 %").await;
    let status = ask(&crossfade, &["status"]).await;
    assert!(status.out.contains("\n\nPLANS\nbus: running, step 1 of 1 (10 %) is to begin"), "{}", status.out);
    eventually("it asks", async || {
        let status = ask(&crossfade, &["plan", "status", "bus"]).await;
        status.out.contains("waits for the approval \"go-live\"").then_some(())
    })
    .await;
    says(
        &["pause", "bus", "--reason", "lunch"],
        "bus: paused, step 1 of 1 (10 %) is to begin, green 0 %; by local: lunch",
    )
    .await;
    says(&["resume", "bus"], "bus: running, step 1 of 1").await;
    says(&["approve", "bus", "go-live"], "bus: running, step 1 of 1").await;
    eventually("it begins", async || (crossfade.admin.green("bus").await == 10.0).then_some(())).await;
    says(&["status", "bus"], "bus: running, step 1 of 1, green 10 %, 0 of 3600 s healthy").await;
    let skipped = ask(&crossfade, &["plan", "skip", "bus", "--reason", "seen enough"]).await;
    let (after, before) = skipped.out.split_once("\nskipped: ").unwrap_or_default();
    assert!(after.starts_with("bus: running, step 1 of 1"), "{}", skipped.out);
    assert!(before.starts_with("bus: running, step 1 of 1, green 10 %, "), "{}", skipped.out);
    let run = async || ask_json(&crossfade, &["plan", "status", "bus"]).await["plans"][0]["run"].clone();
    eventually("it is done", async || (run().await["state"] == "done").then_some(())).await;
    says(&["status"], "bus: done, all 1 steps are done, green 10 %").await;

    let file = crossfade.dir.path().join("plan.json");
    fs::write(&file, r#"{"step":[{"green":50,"bake":"1h"}]}"#).unwrap();
    says(&["start", "bus", "--file", file.to_str().unwrap()], "bus: running, step 1 of 1 (50 %)").await;
    says(&["abort", "bus"], "bus: aborted, step 1 of 1 (50 %)").await;
    let status = ask(&crossfade, &["status"]).await;
    assert!(!status.out.contains("PLANS"), "{}", status.out);
    let refused = ask(&crossfade, &["plan", "skip", "bus", "--reason", "again"]).await;
    assert_eq!((refused.code, refused.out.as_str()), (Some(1), ""));
    assert_eq!(refused.err, "crossfade: refused (409): route bus: has no plan that goes on; start one first\n");
    let unknown = ask(&crossfade, &["plan", "status", "train"]).await;
    assert_eq!((unknown.code, unknown.err.contains("no route train")), (Some(1), true), "{}", unknown.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_exits_with_1_and_says_why() {
    let bus = Route::tcp(free_address(), free_address()).unchecked();
    let crossfade = Crossfade::start(&bus.to_string()).await;
    for (arguments, expected) in [
        (&["split", "shed", "10"][..], "shed"),
        (&["split", "bus", "101"], "green_percentage"),
        (&["split", "bus", "0.001"], "green_percentage"),
        (&["split", "bus", "-1"], "green_percentage"),
        (&["rollback", "shed", "--reason", "x"], "shed"),
        (&["reset", "shed", "--reason", "x"], "shed"),
        (&["incident", "none"], "there is no such incident; see /incidents"),
        (&["incident", "../status?x=\"y z\""], "there is no such incident"),
        (&["incident", "--last", "bus"], "route bus has no incident"),
        (&["incident", "--last", "shed"], "there is no \"shed\"; choose one of bus"),
        (&["status", "shed"], "no route shed; `crossfade status` lists them"),
    ] {
        let Said { code, out, err } = ask(&crossfade, arguments).await;
        assert_eq!((code, out.as_str()), (Some(1), ""), "{arguments:?}: {err}");
        assert!(
            err.starts_with("crossfade: ") && err.contains(expected) && err.lines().count() == 1,
            "{arguments:?}: {err}"
        );
    }
    assert_eq!(crossfade.admin.green("bus").await, 0.0);
}

#[test]
fn what_is_not_understood_exits_with_2_and_says_what_to_give() {
    for (arguments, expected) in [
        (&["split", "bus", "5%"][..], "\"5%\" is not a number; give per cent from 0 to 100 without %, such as 12.5"),
        (&["split", "bus", "nan"], "\"nan\" is not a number"),
        (&["incident"], "<ID|--last <ROUTE>>"),
        (&["incident", "x", "--last", "bus"], "cannot be used with"),
    ] {
        let Said { code, out, err } = run(arguments);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(err.contains(expected), "{arguments:?}: {err}");
    }
}

#[test]
fn an_instance_that_is_not_there_is_a_clear_error() {
    let nobody = format!("http://{}", free_address());
    for arguments in [
        &["status"][..],
        &["split", "bus", "10"],
        &["rollback", "bus", "--reason", "x"],
        &["reset", "bus", "--reason", "x"],
    ] {
        let Said { code, out, err } = run(&[arguments, &["--admin", &nobody]].concat());
        assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
        let expected = format!("crossfade: cannot ask {nobody}/");
        assert!(err.starts_with(&expected) && err.contains("is crossfade running"), "{err}");
        // From the environment as well.
        let from_environment = said(program().args(arguments).env("CROSSFADE_ADMIN", &nobody).output().unwrap());
        assert_eq!((from_environment.code, from_environment.err), (Some(1), err));
    }
    let wrong = run(&["status", "--admin", "not a url"]);
    assert_eq!(wrong.code, Some(1), "{}", wrong.err);
    let no_token = run(&["status", "--admin", &nobody, "--token-file", "/nonexistent/token"]);
    assert_eq!(no_token.code, Some(1));
    assert!(no_token.err.contains("cannot read the token file /nonexistent/token"), "{}", no_token.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_tls_are_used_where_the_admin_api_asks_for_them() {
    const READER: &str = "reader-0123456789abcdef";
    const OPERATOR: &str = "operator-0123456789abcdef";
    let (dir, authority) = (TempDir::new().unwrap(), Authority::new());
    let tls = authority.issue("localhost").write(dir.path(), "admin");
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let secret = |name: &str, text: String| {
        fs::write(path(name), text).unwrap();
        // A file of secrets that everybody may read is refused.
        assert!(program_chmod(&path(name)));
        path(name)
    };
    secret("tokens", format!("# comment\n{READER} read monitoring\n{OPERATOR} operate alice\n"));
    let (reader, operator) = (secret("reader", READER.to_owned()), secret("operator", format!("{OPERATOR}\n")));
    authority.write(std::path::Path::new(&path("roots.pem")));
    let admin = free_address();
    let bus = Route::tcp(free_address(), free_address()).unchecked();
    let text = format!("[admin]\nlisten = \"{admin}\"\ntokens = \"tokens\"\n{tls}\nhosts = [\"localhost\"]\n{bus}");
    fs::write(path("crossfade.toml"), text).unwrap();
    let mut child = program().args(["run", "--config", &path("crossfade.toml")]).spawn().unwrap();
    let url = format!("https://localhost:{}", admin.port());
    let ask = async |arguments: &[&str], token: Option<&str>| {
        let mut command = program();
        command.args(arguments).args(["--admin", &url, "--ca", &path("roots.pem")]);
        command.args(token.iter().flat_map(|file| ["--token-file", file]));
        said(tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap())
    };
    eventually("the admin API answers", async || {
        (ask(&["status"], Some(&operator)).await.code == Some(0)).then_some(())
    })
    .await;

    let nobody = ask(&["status"], None).await;
    assert_eq!(nobody.code, Some(1));
    assert!(nobody.err.starts_with("crossfade: refused (401): "), "{}", nobody.err);
    assert_eq!(ask(&["status"], Some(&reader)).await.code, Some(0));
    let read_only = ask(&["split", "bus", "10"], Some(&reader)).await;
    assert_eq!(read_only.code, Some(1));
    assert!(read_only.err.starts_with("crossfade: refused (403): "), "{}", read_only.err);
    let changed = ask(&["split", "bus", "10"], Some(&operator)).await;
    assert_eq!(changed.code, Some(0), "{}", changed.err);
    for said in [&nobody, &read_only, &changed] {
        assert!(!format!("{}{}", said.out, said.err).contains("0123456789abcdef"), "no token is shown");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

fn program_chmod(path: &str) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).is_ok()
}

#[test]
fn a_good_file_passes_the_check() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("crossfade.toml");
    let routes =
        format!("{}{}", Route::tcp(free_address(), free_address()), Route::mqtt(free_address(), free_address()));
    fs::write(&file, routes).unwrap();
    let file = file.to_str().unwrap();
    let checked = run(&["check", "--config", file]);
    assert_eq!((checked.code, checked.err.as_str()), (Some(0), ""));
    assert_eq!(checked.out, format!("{file}: ok, 2 routes\n"));
    let json: Value = serde_json::from_str(&run(&["check", "--json", "--config", file]).out).unwrap();
    assert_eq!(json, json!({ "ok": true, "routes": 2, "faults": [], "steps": [] }));
}

#[test]
fn the_check_says_what_can_be_seen_in_the_steps_of_a_plan() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("crossfade.toml");
    let plan = "\
        [route.plan]\nexpected_rps = 50\n\
        [[route.plan.step]]\ngreen = 1\nbake = \"60s\"\n\
        [[route.plan.step]]\ngreen = 50\nbake = \"10m\"\n";
    let bus = Route::tcp(free_address(), free_address());
    fs::write(&file, format!("{}{bus}{plan}", Route::mqtt(free_address(), free_address()))).unwrap();
    let file = file.to_str().unwrap();
    let checked = run(&["check", "--config", file]);
    assert_eq!((checked.code, checked.err.as_str()), (Some(0), ""), "{}", checked.out);
    let said: Vec<&str> = checked.out.lines().skip(1).collect();
    let [first, second] = said.as_slice() else { panic!("{}", checked.out) };
    assert_eq!(
        *first,
        "route[1].plan.step[0]: 1 % for 60 s at 50 requests/s is 30 requests: only a failure of half of them shows; \
         bake at least 306 s"
    );
    assert!(
        second.starts_with("route[1].plan.step[1]: 50 % for 600 s at 50 requests/s is 15000 requests: a failure of ")
    );
    let json: Value = serde_json::from_str(&run(&["check", "--json", "--config", file]).out).unwrap();
    let step = |index: usize| (&json["steps"][index]["honest"], &json["steps"][index]["honest_bake_seconds"]);
    assert_eq!([step(0), step(1)], [(&json!(false), &json!(306)), (&json!(true), &json!(7))]);
}

/// Little enough for a build that is not optimized.
const BRIEFLY: [&str; 6] = ["--days", "0.02", "--seeds", "2", "--runs", "3"];

/// As `head` goes when it has seen enough.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_changes_nothing() {
    let gone = || {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        writer
    };
    let unread = |arguments: &[&str], admin: SocketAddr| {
        let mut command = program();
        command.args(arguments).env("CROSSFADE_ADMIN", format!("http://{admin}")).stdout(gone());
        said(command.output().unwrap())
    };
    let steps = "[route.plan]\n[[route.plan.step]]\ngreen = 10\nbake = \"1h\"\n";
    let bus = Route::tcp(free_address(), free_address()).unchecked().table(steps);
    let crossfade = Crossfade::start(&bus.to_string()).await;
    let faulty = crossfade.dir.path().join("faulty.toml");
    fs::write(&faulty, "").unwrap();
    let (good, faulty, admin) = (crossfade.config_path(), faulty.to_str().unwrap(), crossfade.admin.address);
    let good = good.to_str().unwrap();
    for arguments in [
        &["check", "--config", good][..],
        &["check", "--config", good, "--json"],
        &["status"],
        &["plan", "start", "bus"],
        &["plan", "status", "--json"],
        &["rollback", "bus", "--reason", "drill"],
        &[&["simulate"][..], &BRIEFLY].concat(),
    ] {
        let Said { code, err, .. } = unread(arguments, admin);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{arguments:?}");
    }
    assert_eq!(ask_json(&crossfade, &["status"]).await["routes"][0]["latched"], true, "what was asked for is done");
    let Said { code, err, .. } = unread(&["check", "--config", faulty], admin);
    assert_eq!((code, err), (Some(1), format!("crossfade: {faulty} has 1 fault\n")));
    let unheard = program().args(["check", "--config", faulty]).stdout(gone()).stderr(gone()).status().unwrap();
    assert_eq!(unheard.code(), Some(1));
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let full = said(program().args(["check", "--config", good]).stdout(full).output().unwrap());
    assert!(full.code == Some(1) && full.err.starts_with("crossfade: cannot write the result: "), "{}", full.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_any_more_stops_no_traffic() {
    let crossfade = Crossfade::start(&Route::tcp(free_address(), free_address()).unchecked().to_string()).await;
    let (dir, admin) = (TempDir::new().unwrap(), Admin::new(free_address()));
    let text = fs::read_to_string(crossfade.config_path()).unwrap();
    let text = text.replace(&crossfade.admin.address.to_string(), &admin.address.to_string());
    drop(crossfade);
    let file = dir.path().join("crossfade.toml");
    fs::write(&file, text).unwrap();
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let mut child = program().arg("run").arg("--config").arg(&file).stderr(writer).spawn().unwrap();
    eventually("it is ready", async || {
        assert_eq!(child.try_wait().unwrap(), None, "it ended");
        let (status, _) = admin.try_get("/ready").await?;
        (status == StatusCode::OK).then_some(())
    })
    .await;
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_guard_is_tried_against_synthetic_arms() {
    let text = run(&[&["simulate"][..], &BRIEFLY].concat());
    assert_eq!((text.code, text.err.as_str()), (Some(0), ""));
    for expected in [
        "the default guard",
        "false trips",
        "0 in 57.6 minutes: all but surely less than one in 19.2 minutes",
        "SECONDS TO TRIP",
        "20 % errors",
        "100 % silent",
    ] {
        assert!(text.out.contains(expected), "{expected} in {}", text.out);
    }

    let (folder, file) = (TempDir::new().unwrap(), "crossfade.toml");
    let file = folder.path().join(file);
    let guarded = |guard: &str| format!("{}[route.guard]\n{guard}\n", Route::tcp(free_address(), free_address()));
    fs::write(&file, guarded("max_error_rate = 0.5")).unwrap();
    let file = file.to_str().unwrap();
    let sick = ["--green-rps", "20", "--sick-errors", "40%", "--sick-silent", "0.9", "--json"];
    let slowly = run(&[&["simulate", "--sick-errors", "40%", "--sick-over", "1m"][..], &BRIEFLY].concat());
    assert!(slowly.out.lines().last().unwrap().ends_with("  -"), "nothing is forecast of it: {}", slowly.out);
    let lenient = run(&[&["simulate", "--config", file][..], &BRIEFLY, &sick].concat());
    assert_eq!((lenient.code, lenient.err.as_str()), (Some(0), ""));
    let lenient: Value = serde_json::from_str(&lenient.out).unwrap();
    assert_eq!((&lenient["route"], &lenient["healthy"]["false_trips"]), (&json!("bus"), &json!(0)));
    let [onsets] = lenient["time_to_trip"].as_array().unwrap().as_slice() else { panic!("{lenient}") };
    assert_eq!(
        (&onsets["runs"], &onsets["missed"], &onsets["sickness"]["silent"]),
        (&json!(3), &json!(0), &json!(0.9))
    );
    assert!(onsets["seconds"]["median"].as_u64().is_some_and(|seconds| (9..30).contains(&seconds)), "{onsets}");

    fs::write(file, guarded("mode = \"off\"")).unwrap();
    let off = run(&["simulate", "--config", file]);
    assert_eq!(off.code, Some(1));
    assert!(off.err.contains("the guard of route bus is off; take mode = \"off\" out"), "{}", off.err);
    let unknown = run(&["simulate", "--config", file, "--route", "shed"]);
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.err.contains("has no route shed; give --route, one of bus"), "{}", unknown.err);
}

#[test]
fn what_cannot_be_simulated_is_a_matter_of_usage() {
    for (arguments, expected) in [
        (["--green-rps", "nan"], "give a number from"),
        (["--green-rps", "-1"], "give a number from"),
        (["--sigma", "-1"], "give a number from"),
        (["--days", "-1"], "give a number from"),
        (["--sick-errors", "-1"], "give a share from 0 to 1"),
        (["--share", "half"], "is no share"),
        (["--share", "0"], "green gets nothing"),
        (["--share", "101%"], "give a share from 0 to 1, or from 0% to 100%"),
        (["--stall", "1m/1m"], "never ends"),
        (["--burst", "10s/1m"], "is no burst"),
        (["--days", "inf"], "give a number from"),
        (["--seeds", "0"], "0 is not in"),
        (["--route", "bus"], "--config <FILE>"),
    ] {
        let said = run(&["simulate", arguments[0], arguments[1]]);
        assert_eq!((said.code, said.out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(said.err.contains(expected), "{arguments:?}: {}", said.err);
    }
}
