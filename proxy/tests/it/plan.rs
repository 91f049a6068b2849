//! Plans walk up by themselves with a healthy green, and only then.

use std::time::Duration;

use http::StatusCode;
use loadtest::origin::Behaviour;
use serde_json::{Value, json};
use tokio::time;

use crate::{
    clients::Client,
    harness::{Crossfade, eventually},
    loads::{Load, requests},
    site::Site,
};

/// A plan with these steps, each a second of what hours are outside.
fn plan(steps: &[(f64, u64)], more: &str) -> String {
    let step = |(green, bake): &(f64, u64)| format!("[[route.plan.step]]\ngreen = {green:?}\nbake = \"{bake}s\"\n");
    format!("[route.plan]\n{more}\n{}", steps.iter().map(step).collect::<String>())
}

async fn post(crossfade: &Crossfade, call: &str, body: &Value) -> Value {
    let (status, answer) = crossfade.admin.post(&format!("/plan/{call}"), body).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer
}

async fn run(crossfade: &Crossfade) -> Value {
    let (status, plan) = crossfade.admin.get("/plan?route=shop").await;
    assert_eq!(status, StatusCode::OK, "{plan}");
    plan["run"].clone()
}

/// Longer than [`eventually`]: a plan takes its time.
async fn state(crossfade: &Crossfade, wanted: &str) -> Value {
    let patience = time::timeout(Duration::from_secs(90), async {
        loop {
            let run = run(crossfade).await;
            if run["state"] == wanted {
                return run;
            }
            time::sleep(Duration::from_millis(50)).await;
        }
    });
    match patience.await {
        Ok(run) => run,
        Err(_) => panic!("never {wanted}: {}", run(crossfade).await),
    }
}

/// Green's shares in the order they were live, by the audit trail.
async fn shares(crossfade: &Crossfade) -> Vec<f64> {
    let (_, trail) = crossfade.admin.get("/audit?route=shop").await;
    let rows = trail["audit"].as_array().unwrap().iter().rev();
    let mut shares: Vec<f64> =
        rows.filter(|row| row["outcome"] == "done").filter_map(|row| row["after"].as_f64()).collect();
    shares.dedup();
    shares
}

#[tokio::test]
async fn a_healthy_green_gets_everything_step_by_step() {
    let site = Site::start().await;
    let route = site.route().table(plan(&[(5.0, 2), (10.0, 2), (50.0, 2), (100.0, 2)], "observe = \"2s\""));
    let crossfade = Crossfade::start(&route.to_string()).await;
    let load = Load::start(200, requests(route.listen));
    let started = post(&crossfade, "start", &json!({ "route": "shop" })).await;
    assert_eq!((&started["run"]["state"], &started["run"]["step"]), (&json!("running"), &json!(1)), "{started}");
    let done = state(&crossfade, "done").await;
    assert_eq!(crossfade.admin.green("shop").await, 100.0, "{done}");
    assert_eq!(shares(&crossfade).await, [0.0, 5.0, 10.0, 50.0, 100.0]);
    assert!(site.green.seen().requests() > 100);
    assert_eq!(load.stop().await.1, 0);
    let (_, trail) = crossfade.admin.get("/audit?route=shop").await;
    let by_plan = |row: &&Value| row["actor"] == "plan" && row["action"] == "plan-step";
    assert!(trail["audit"].as_array().unwrap().iter().filter(by_plan).count() >= 8, "{trail}");
}

#[tokio::test]
async fn a_green_that_breaks_under_load_is_rolled_back_at_the_step_that_shows_it() {
    let site = Site::start().await;
    let route = site.route().table(plan(&[(10.0, 3), (25.0, 3), (60.0, 60), (100.0, 3)], ""));
    let crossfade = Crossfade::start(&route.to_string()).await;
    let load = Load::start(200, requests(route.listen));
    post(&crossfade, "start", &json!({ "route": "shop" })).await;
    // It bears a quarter of the load, and not more.
    eventually_above(&crossfade, 25.0).await;
    site.green.behaviour().set(Behaviour { status: Some(StatusCode::SERVICE_UNAVAILABLE), ..Behaviour::default() });
    let ended = state(&crossfade, "rolled_back").await;
    assert_eq!((&ended["step"], &ended["entered"]), (&json!(3), &json!(true)), "{ended}");
    assert_eq!(ended["changed"]["by"], "guard", "{ended}");
    assert_eq!(shares(&crossfade).await, [0.0, 10.0, 25.0, 60.0, 0.0]);
    let status = crossfade.admin.status("shop").await;
    assert_eq!(status["latched"], true, "{status}");
    let (_, incidents) = crossfade.admin.get("/incidents?route=shop").await;
    assert_eq!(incidents["incidents"].as_array().unwrap().len(), 1, "{incidents}");
    // What was rolled back starts again only after a reset, and from the beginning.
    let (refused, answer) = crossfade.admin.post("/plan/start", &json!({ "route": "shop" })).await;
    assert_eq!(refused, StatusCode::CONFLICT, "{answer}");
    assert!(load.bad() > 0);
}

async fn eventually_above(crossfade: &Crossfade, share: f64) {
    let patience = time::timeout(Duration::from_secs(60), async {
        while crossfade.admin.green("shop").await <= share {
            time::sleep(Duration::from_millis(20)).await;
        }
    });
    if patience.await.is_err() {
        panic!("green never gets more than {share} %: {}", run(crossfade).await);
    }
}

#[tokio::test]
async fn thin_traffic_pauses_a_plan_and_more_of_it_lets_it_go_on() {
    let site = Site::start().await;
    let route = site.route().table(plan(&[(50.0, 2), (100.0, 2)], "max_hold = \"5s\""));
    let crossfade = Crossfade::start(&route.to_string()).await;
    let load = Load::start(1, requests(route.listen));
    post(&crossfade, "start", &json!({ "route": "shop" })).await;
    let paused = state(&crossfade, "paused").await;
    assert_eq!((&paused["step"], &paused["held_seconds"]), (&json!(1), &json!(5)), "{paused}");
    assert!(paused["changed"]["reason"].as_str().unwrap().starts_with("did not get on for 5 s"), "{paused}");
    assert_eq!(crossfade.admin.green("shop").await, 50.0, "it keeps what it has");
    load.stop().await;
    let load = Load::start(100, requests(route.listen));
    post(&crossfade, "resume", &json!({ "route": "shop", "reason": "the day begins" })).await;
    state(&crossfade, "done").await;
    assert_eq!((crossfade.admin.green("shop").await, load.stop().await.1), (100.0, 0));
}

#[tokio::test]
async fn a_killed_process_goes_on_with_the_bake_it_had() {
    let site = Site::start().await;
    let route = site.route().table(plan(&[(50.0, 12), (100.0, 2)], ""));
    let mut crossfade = Crossfade::start(&route.to_string()).await;
    let _load = Load::start(100, requests(route.listen));
    post(&crossfade, "start", &json!({ "route": "shop" })).await;
    let seconds = |run: &Value| run["healthy_seconds"].as_u64().unwrap();
    let before = eventually("it bakes", async || Some(run(&crossfade).await).filter(|run| seconds(run) >= 5)).await;
    crossfade.kill_and_restart().await;
    let after = run(&crossfade).await;
    assert_eq!((&after["state"], &after["step"], &after["entered"]), (&json!("running"), &json!(1), &json!(true)));
    // What the disk had not got yet is a second or two.
    assert!(seconds(&after) + 3 >= seconds(&before), "{after} after {before}");
    assert!(seconds(&after) <= seconds(&before) + 2, "downtime earns nothing: {after} after {before}");
    assert_eq!(crossfade.admin.green("shop").await, 50.0);
    state(&crossfade, "done").await;
    assert_eq!(crossfade.admin.green("shop").await, 100.0);
}

/// Green answers nobody before it is decided.
#[tokio::test]
async fn a_parallel_run_is_decided_by_what_was_measured() {
    for (error_share, wanted, share) in [(0.1, "done", 100.0), (0.3, "rolled_back", 0.0)] {
        let site = Site::start().await;
        site.green.behaviour().set(Behaviour { error_share, ..Behaviour::default() });
        let steps = "[route.mirror]\nsample = 100\n[route.guard]\nmin_match_rate = 0.3\nmax_p95_ratio = 20\n\
                     max_error_rate = 0.5\n[route.plan]\n\
                     [[route.plan.step]]\ngreen = 0\nbake = \"5s\"\notherwise = \"rollback\"\n\
                     require = { throughput = 0.9, p95_ratio = 20, match_rate = 0.8 }\n\
                     [[route.plan.step]]\ngreen = 100\nbake = \"2s\"\n";
        let route = site.route().table(steps);
        let crossfade = Crossfade::start(&route.to_string()).await;
        let listen = route.listen;
        let load = Load::start(100, move |n| async move {
            let mut client = Client::connect(listen).await;
            // The origins name themselves in their answers, but not in those to HEAD.
            client.send(format!("HEAD /{n} HTTP/1.1\r\nhost: a\r\nx-session-id: user-{n}\r\n\r\n")).await;
            client.head().await.status == StatusCode::OK
        });
        post(&crossfade, "start", &json!({ "route": "shop" })).await;
        let ended = state(&crossfade, wanted).await;
        assert_eq!(crossfade.admin.green("shop").await, share, "{ended}");
        if wanted == "rolled_back" {
            assert_eq!(load.stop().await.1, 0, "no client has noticed anything");
        }
        let (_, incidents) = crossfade.admin.get("/incidents").await;
        let incidents = incidents["incidents"].as_array().unwrap();
        if wanted == "done" {
            assert!(incidents.is_empty(), "{incidents:?}");
            continue;
        }
        assert_eq!((&ended["step"], &ended["changed"]["by"]), (&json!(1), &json!("plan")), "{ended}");
        let reason = ended["changed"]["reason"].as_str().unwrap();
        assert!(reason.starts_with("green did not measure up: its match rate was 0."), "{reason}");
        assert_eq!(incidents.len(), 1);
        assert_eq!(crossfade.admin.status("shop").await["latched"], true);
    }
}

/// Nothing is asked of the pairs: that green's own answers are failures is enough.
#[tokio::test]
async fn copies_that_green_answers_with_failures_end_a_parallel_run() {
    let site = Site::start().await;
    site.green.behaviour().set(Behaviour { error_share: 1.0, ..Behaviour::default() });
    let steps = "[route.mirror]\nsample = 100\n[route.plan]\n[[route.plan.step]]\ngreen = 0\nbake = \"5s\"\n\
                 [[route.plan.step]]\ngreen = 100\nbake = \"2s\"\n";
    let route = site.route().table(steps);
    let crossfade = Crossfade::start(&route.to_string()).await;
    let load = Load::start(100, requests(route.listen));
    post(&crossfade, "start", &json!({ "route": "shop" })).await;
    let ended = state(&crossfade, "rolled_back").await;
    assert_eq!((&ended["step"], &ended["changed"]["by"]), (&json!(1), &json!("guard")), "{ended}");
    assert_eq!(load.stop().await.1, 0, "no client has noticed anything");
}

#[tokio::test]
async fn people_steer_a_plan() {
    let site = Site::start().await;
    let steps = "[route.plan]\n[[route.plan.step]]\ngreen = 20\nbake = \"2s\"\n\
                 [[route.plan.step]]\ngreen = 50\nbake = \"60s\"\napproval = \"go-live\"\n\
                 [[route.plan.step]]\ngreen = 100\nbake = \"60s\"\n";
    let route = site.route().table(steps);
    let crossfade = Crossfade::start(&route.to_string()).await;
    let _load = Load::start(100, requests(route.listen));
    let route = json!({ "route": "shop" });
    let refused = async |call: &str, body: &Value, says: &str| {
        let (status, answer) = crossfade.admin.post(&format!("/plan/{call}"), body).await;
        assert_eq!(status, StatusCode::CONFLICT, "{answer}");
        assert!(answer["detail"].as_str().unwrap().contains(says), "{answer}");
    };
    refused("pause", &route, "has no plan that goes on").await;
    post(&crossfade, "start", &route).await;
    refused("start", &route, "has a plan that is not over").await;

    let wanted = json!("go-live");
    eventually("it asks", async || (run(&crossfade).await["approval_wanted"] == wanted).then_some(())).await;
    assert_eq!(crossfade.admin.green("shop").await, 20.0);
    refused("approve", &json!({ "route": "shop", "approval": "launch" }), "asks for the approval \"go-live\"").await;
    let approved = post(&crossfade, "approve", &json!({ "route": "shop", "approval": "go-live" })).await;
    assert_eq!(approved["run"]["waits_for"], Value::Null, "nobody has looked since");
    eventually("half", async || (crossfade.admin.green("shop").await == 50.0).then_some(())).await;

    // A hand on the split takes the plan off it.
    crossfade.admin.split("shop", 30.0).await;
    let paused = run(&crossfade).await;
    assert_eq!((&paused["state"], &paused["step"]), (&json!("paused"), &json!(2)), "{paused}");
    assert_eq!(paused["changed"]["reason"], "local set green to 30 %");
    assert_eq!(crossfade.admin.status("shop").await["guard"]["armed"], true);
    post(&crossfade, "resume", &route).await;
    eventually("half again", async || (crossfade.admin.green("shop").await == 50.0).then_some(())).await;
    post(&crossfade, "skip", &json!({ "route": "shop", "reason": "seen enough" })).await;
    eventually("all", async || (crossfade.admin.green("shop").await == 100.0).then_some(())).await;
    let aborted = post(&crossfade, "abort", &json!({ "route": "shop", "reason": "by hand from here" })).await;
    assert_eq!((&aborted["run"]["state"], &aborted["green_percentage"]), (&json!("aborted"), &json!(100)));
    crossfade.admin.split("shop", 10.0).await;
    post(&crossfade, "start", &json!({ "route": "shop", "plan": { "step": [{ "green": 30, "bake": "1h" }] } })).await;
    eventually("another plan", async || (crossfade.admin.green("shop").await == 30.0).then_some(())).await;
    let (_, answer) = crossfade.admin.post("/rollback", &json!({ "route": "shop", "reason": "enough" })).await;
    assert_eq!(answer["latched"], true, "{answer}");
    let ended = run(&crossfade).await;
    assert_eq!((&ended["state"], &ended["changed"]["reason"]), (&json!("rolled_back"), &json!("enough")), "{ended}");
    refused("resume", &route, "has no plan that goes on").await;
    let (_, answer) = crossfade.admin.post("/plan/resume", &route).await;
    assert_eq!(answer["cure"], "reset the route, and start one", "{answer}");
}

#[tokio::test]
async fn a_plan_that_is_sent_is_checked_like_one_in_the_file() {
    let site = Site::start().await;
    let crossfade = Crossfade::start(&site.route().to_string()).await;
    let plan = json!({
        "step": [
            { "green": 0, "bake": "1h" },
            { "green": 10, "bake": "0s", "after": ["shop", "shoe"] },
            { "green": 5, "bake": "1m", "require": { "match_rate": 2 }, "otherwise": "shrug" },
        ],
        "max_hold": 5,
    });
    let (status, answer) = crossfade.admin.post("/plan/start", &json!({ "route": "shop", "plan": plan })).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    let mut fields: Vec<&str> =
        answer["faults"].as_array().unwrap().iter().map(|fault| fault["field"].as_str().unwrap()).collect();
    fields.sort_unstable();
    assert_eq!(
        fields,
        [
            "plan.max_hold",
            "plan.step[0].green",
            "plan.step[1].after[0]",
            "plan.step[1].after[1]",
            "plan.step[1].bake",
            "plan.step[2].green",
            "plan.step[2].otherwise",
            "plan.step[2].require.match_rate",
            "plan.step[2].require.match_rate",
        ],
        "{answer}"
    );
    for plan in [json!(null), json!(7), json!([]), json!({ "step": [] }), json!({ "step": [{ "green": null }] })] {
        let (status, answer) = crossfade.admin.post("/plan/start", &json!({ "route": "shop", "plan": plan })).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{plan}: {answer}");
        assert!(answer["cure"].is_string(), "{answer}");
    }
    for (plan, field, problem) in [
        (json!(null), "plan", "is null, not an object"),
        (json!("x"), "plan", "is a text, not an object"),
        (json!({}), "plan.step", "is missing"),
        (json!({ "step": [] }), "plan.step", "is empty"),
        (json!({ "step": { "green": 1 } }), "plan.step", "is an object, not a list"),
        (json!({ "step": [{ "green": 1, "bake": "1m" }, 5] }), "plan.step[1]", "is a number, not an object"),
    ] {
        let (_, answer) = crossfade.admin.post("/plan/start", &json!({ "route": "shop", "plan": plan })).await;
        assert_eq!((&answer["field"], &answer["detail"]), (&json!(field), &json!(format!("{field}: {problem}"))));
        assert_eq!(answer["cure"], r#"send an object such as {"step":[{"green":1,"bake":"10m"}]}"#);
    }
    let plan = json!({ "step": [{ "green": null, "bake": "1m" }] });
    let (_, answer) = crossfade.admin.post("/plan/start", &json!({ "route": "shop", "plan": plan })).await;
    assert_eq!(answer["detail"], "plan.step[0].green: is missing", "{answer}");
    let (status, answer) = crossfade.admin.post("/plan/start", &json!({ "route": "shop" })).await;
    assert_eq!((status, &answer["field"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("plan")), "{answer}");
}
