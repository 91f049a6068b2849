//! Reading and changing splits over HTTP, with everything that can be wrong about a body.

use std::sync::atomic::Ordering;

use serde_json::json;

use crate::{
    http::Server,
    support::{eventually, shop, shop_and_broker, split},
};

#[tokio::test]
async fn a_split_is_read_and_changed() {
    let server = Server::start(shop_and_broker()).await;
    let all = server.get("/traffic-split").await;
    assert_eq!((all.status, all.header("etag")), (200, None));
    assert_eq!(all.header("cache-control"), Some("no-store"));
    assert_eq!(
        all.json(),
        json!({"routes": [
            {"route": "shop", "revision": 1, "blue": {"label": "python", "percentage": 100},
             "green": {"label": "go", "percentage": 0}, "latched": false, "achieved": null},
            {"route": "broker", "revision": 1, "blue": {"label": "erlang", "percentage": 95},
             "green": {"label": "golang", "percentage": 5}, "latched": false, "achieved": null},
        ]})
    );
    let changed =
        server.post("/traffic-split", r#"{"route":"shop","green_percentage":12.5,"blue_percentage":87.5}"#).await;
    assert_eq!((changed.status, changed.header("etag")), (200, Some("\"2\"")));
    assert_eq!(server.plane.live("shop").split, split(12.5));
    assert_eq!(server.store.recorded("shop").split, split(12.5));

    server.plane.second("shop", (30, 0), (10, 0));
    let one = server.get("/traffic-split?route=shop").await;
    assert_eq!(one.header("etag"), Some("\"2\""));
    assert_eq!(one.json()["green"]["percentage"], 12.5);
    assert_eq!(one.json()["achieved"], json!({"blue": 75.0, "green": 25.0}));
    server.stop().await;
}

#[tokio::test]
async fn labels_and_single_sides_work() {
    let server = Server::start(shop()).await;
    for (body, expected) in [
        (r#"{"go_percentage":10,"python_percentage":90}"#, 10.0),
        (r#"{"route":"shop","go_percentage":20}"#, 20.0),
        (r#"{"python_percentage":70}"#, 30.0),
        (r#"{"blue_percentage":99.99}"#, 0.01),
        (r#"{"green_percentage":100,"python_percentage":0}"#, 100.0),
        (r#"{"green_percentage":1e1}"#, 10.0),
    ] {
        let answer = server.post("/api/traffic-split", body).await;
        assert_eq!(answer.status, 200, "{body}: {answer:?}");
        assert_eq!(server.plane.live("shop").split, split(expected), "{body}");
    }
    let only = server.get("/traffic-split").await;
    assert_eq!(only.header("etag"), Some("\"7\""), "with a single route there is no doubt whose revision it is");
    server.stop().await;
}

#[tokio::test]
async fn every_bad_body_is_refused_with_its_field() {
    let server = Server::start(shop_and_broker()).await;
    for (body, status, field) in [
        ("", 400, ""),
        ("{", 400, ""),
        (r#"{"route":"shop","green_percentage":NaN}"#, 400, ""),
        (r#"{"route":"shop","green_percentage":10} trailing"#, 400, ""),
        ("[]", 422, "body"),
        ("\"shop\"", 422, "body"),
        (r#"{"green_percentage":10}"#, 422, "route"),
        (r#"{"route":7,"green_percentage":10}"#, 422, "route"),
        (r#"{"route":null,"green_percentage":10}"#, 422, "route"),
        (r#"{"route":"shoe","green_percentage":10}"#, 404, "route"),
        (r#"{"route":"shop"}"#, 422, "green_percentage"),
        (r#"{"route":"shop","green_percentage":-1}"#, 422, "green_percentage"),
        (r#"{"route":"shop","green_percentage":100.01}"#, 422, "green_percentage"),
        (r#"{"route":"shop","green_percentage":0.001}"#, 422, "green_percentage"),
        (r#"{"route":"shop","green_percentage":"10"}"#, 422, "green_percentage"),
        (r#"{"route":"shop","go_percentage":"10"}"#, 422, "go_percentage"),
        (r#"{"route":"shop","green_percentage":null}"#, 422, "green_percentage"),
        (r#"{"route":"shop","green_percentage":[10]}"#, 422, "green_percentage"),
        (r#"{"route":"shop","green_percentage":10,"blue_percentage":80}"#, 422, "green_percentage"),
        (r#"{"route":"shop","green_percentage":10,"blue_percentage":90,"go_percentage":10}"#, 422, "go_percentage"),
        (r#"{"route":"shop","green_percentage":10,"green_percentage":10}"#, 422, "green_percentage"),
        (r#"{"route":"shop","golang_percentage":10}"#, 422, "green_percentage"),
        (r#"{"route":"shop","green_percentage":10,"colour":"blue"}"#, 422, "colour"),
    ] {
        let answer = server.post("/traffic-split", body).await;
        let problem = answer.problem(status);
        let named = |name: &str| problem["field"] == name || problem["faults"].to_string().contains(name);
        assert!(field.is_empty() || named(field), "{body}: {problem}");
    }
    assert_eq!(server.plane.live("shop").split, split(0.0));
    assert!(server.plane.applied.lock().is_empty());

    let problem = server
        .post("/traffic-split", r#"{"route":"shop","colour":1,"green_percentage":"x","shape":2,"blue_percentage":-1}"#)
        .await
        .problem(422);
    let mut fields: Vec<&str> =
        problem["faults"].as_array().unwrap().iter().map(|fault| fault["field"].as_str().unwrap()).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["blue_percentage", "colour", "green_percentage", "shape"]);
    assert!(problem["faults"].to_string().contains("use one of route, blue_percentage, green_percentage, python_"));

    let members: Vec<String> = (0..2_000).map(|n| format!("\"{n}\":1")).collect();
    let answer = server.post("/traffic-split", &format!("{{{}}}", members.join(","))).await;
    answer.problem(422);
    assert!(answer.body.len() < 1_000, "an answer does not dwarf its question");

    let metrics = server.get("/metrics").await.body;
    assert!(metrics.contains("crossfade_admin_refused_total{reason=\"unknown-route\"} 1\n"), "{metrics}");
    server.stop().await;
}

#[tokio::test]
async fn refused_attempts_are_audited() {
    let server = Server::start(shop()).await;
    server.post("/traffic-split", r#"{"green_percentage":101}"#).await.problem(422);
    server.post("/reset", "{}").await.problem(422);
    server.post("/traffic-split", "{").await.problem(400);
    eventually("all three are there", || {
        server.store.audit.lock().iter().filter(|row| row.outcome == "refused").count() == 3
    })
    .await;
    let audit = server.get("/audit?limit=3").await.json();
    let mut actions: Vec<&str> =
        audit["audit"].as_array().unwrap().iter().map(|row| row["action"].as_str().unwrap()).collect();
    actions.sort_unstable();
    assert_eq!(actions, ["reset", "split", "split"]);
    assert_eq!(audit["audit"][0]["actor"], "local");
    assert!(audit["audit"][0]["from"].as_str().unwrap().starts_with("127.0.0.1:"));
    server.stop().await;
}

#[tokio::test]
async fn a_condition_on_the_revision_is_kept() {
    let server = Server::start(shop()).await;
    let change = async |tag: &str, green: u8| {
        let headers = [("content-type", "application/json; charset=utf-8"), ("if-match", tag)];
        let body = format!("{{\"green_percentage\":{green}}}");
        server.send("POST", "/traffic-split", &headers, body.as_bytes()).await
    };
    assert_eq!(change("\"1\"", 10).await.status, 200);
    assert_eq!(change("\"1\"", 20).await.problem(412)["field"], "if-match");
    assert_eq!(change("\"1\", \"2\"", 20).await.status, 200);
    assert_eq!(change("*", 30).await.status, 200);
    change("W/\"4\"", 40).await.problem(412);
    change("4", 40).await.problem(400);
    assert_eq!(server.plane.live("shop").split, split(30.0));
    server.stop().await;
}

#[tokio::test]
async fn rollback_latches_and_reset_frees() {
    let server = Server::start(shop()).await;
    server.post("/traffic-split", r#"{"green_percentage":50}"#).await;
    let rolled_back = server.post("/rollback", r#"{"route":"shop","reason":"p95 is up"}"#).await;
    assert_eq!((rolled_back.status, &rolled_back.json()["latched"]), (200, &json!(true)));
    let conflict = server.post("/traffic-split", r#"{"green_percentage":1}"#).await.problem(409);
    assert!(conflict["detail"].as_str().unwrap().contains("p95 is up"), "{conflict}");
    assert_eq!(conflict["cure"], "reset it before raising green");
    let body = br#"{"route":"shop","reason":"fixed"}"#;
    let conditional = async |path: &str| {
        let headers = [("content-type", "application/json"), ("if-match", "\"1\"")];
        server.send("POST", path, &headers, body).await
    };
    assert_eq!(conditional("/reset").await.problem(412)["field"], "if-match");
    assert_eq!(conditional("/rollback").await.status, 200, "an emergency stop does not fail on a stale tag");
    assert!(server.plane.live("shop").latched);
    server.post("/reset", r#"{"route":"shop"}"#).await.problem(422);
    server.post("/reset", r#"{"route":"shop","reason":" "}"#).await.problem(422);
    server.post("/reset", r#"{"route":"shop","reason":"a\nb"}"#).await.problem(422);
    server.post("/rollback", r#"{"route":"shoe"}"#).await.problem(404);
    let reset = server.post("/reset", r#"{"route":"shop","reason":"fixed"}"#).await;
    assert_eq!((reset.status, &reset.json()["latched"]), (200, &json!(false)));
    assert_eq!(server.post("/traffic-split", r#"{"green_percentage":1}"#).await.status, 200);
    assert_eq!(server.post("/rollback", "{}").await.status, 200, "in a hurry no reason is asked for");
    server.stop().await;
}

#[tokio::test]
async fn a_disk_that_fails_is_a_503_that_says_what_is_live() {
    let server = Server::start(shop()).await;
    server.post("/traffic-split", r#"{"green_percentage":50}"#).await;
    server.store.fail(true);
    let raise = server.post("/traffic-split", r#"{"green_percentage":60}"#).await.problem(503);
    assert_eq!(raise["type"], "urn:crossfade:not-recorded");
    let lower = server.post("/traffic-split", r#"{"green_percentage":5}"#).await.problem(503);
    assert_eq!(lower["type"], "urn:crossfade:live-but-not-recorded");
    assert!(lower["detail"].as_str().unwrap().contains("live but not recorded"), "{lower}");
    assert_eq!(server.plane.live("shop").split, split(5.0));
    assert_eq!(server.get("/status").await.json()["routes"][0]["persisted"], false);
    server.store.fail(false);
    eventually("it is recorded", || server.store.recorded("shop").split == split(5.0)).await;
    assert_eq!(server.get("/status").await.json()["routes"][0]["persisted"], true);
    server.stop().await;
}

#[tokio::test]
async fn large_and_undeclared_bodies_are_refused() {
    let server = Server::start(shop()).await;
    let large = format!("{{\"route\":\"{}\"}}", "x".repeat(2 * 1024 * 1024));
    server.post("/traffic-split", &large).await.problem(413);
    let announced = format!(
        "POST /traffic-split HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\nexpect: 100-continue\r\n\
         content-length: 2097152\r\n\r\n",
        server.address
    );
    server.raw(announced.as_bytes()).await.problem(413);
    let body = br#"{"green_percentage":10}"#;
    for headers in [
        vec![],
        vec![("content-type", "text/plain")],
        vec![("content-type", "application/x-www-form-urlencoded")],
        vec![("content-type", "application/jsonp")],
        vec![("content-type", "text/plain"), ("content-type", "application/json")],
    ] {
        server.send("POST", "/traffic-split", &headers, body).await.problem(415);
    }
    server.send("POST", "/rollback", &[], b"").await.problem(415);
    assert!(server.plane.applied.lock().is_empty());
    server.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_a_problem_too() {
    let server = Server::start(shop()).await;
    server.get("/nothing").await.problem(404);
    server.get("/api").await.problem(404);
    server.get("/api/nothing").await.problem(404);
    server.get("/traffic-split?route=shoe").await.problem(404);
    server.get("/incidents/none").await.problem(404);
    server.get("/incidents/%ff").await.problem(404);
    assert_eq!(server.get("/traffic-split?rout=shop").await.problem(422)["field"], "rout");
    assert_eq!(server.get("/incidents?limit=0").await.problem(422)["field"], "limit");
    assert_eq!(server.get("/incidents?limit=1000").await.status, 200);
    for (method, path, allow) in [
        ("DELETE", "/traffic-split", "GET,HEAD,POST"),
        ("GET", "/rollback", "POST"),
        ("POST", "/status", "GET,HEAD"),
        ("OPTIONS", "/api/reset", "POST"),
    ] {
        let answer = server.send(method, path, &[], b"").await;
        answer.problem(405);
        assert_eq!(answer.header("allow"), Some(allow), "{method} {path}");
    }
    server.plane.draining.store(true, Ordering::Relaxed);
    server.get("/ready").await.problem(503);
    assert_eq!(server.get("/health").await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn detail_and_cure_are_apart_whatever_a_reason_says() {
    let server = Server::start(shop()).await;
    server.post("/traffic-split", r#"{"green_percentage":50}"#).await;
    server.post("/rollback", r#"{"reason":"green failed 9 of 20; its error rate is high; see above"}"#).await;
    let conflict = server.post("/traffic-split", r#"{"green_percentage":60}"#).await.problem(409);
    let detail = "route shop: is latched (green failed 9 of 20; its error rate is high; see above)";
    assert_eq!((&conflict["detail"], &conflict["cure"]), (&detail.into(), &"reset it before raising green".into()));
    server.stop().await;
}

#[tokio::test]
async fn a_rollback_is_not_refused_for_how_its_reason_is_written() {
    let server = Server::start(shop()).await;
    for (reason, kept) in [
        (Some("two\nlines\r\n".to_owned()), "two lines".to_owned()),
        (Some("ä".repeat(501)), "ä".repeat(500)),
        (Some(" \n".to_owned()), "no reason given".to_owned()),
        (None, "no reason given".to_owned()),
    ] {
        assert_eq!(server.post("/traffic-split", r#"{"green_percentage":10}"#).await.status, 200);
        assert_eq!(server.post("/rollback", &json!({ "reason": reason }).to_string()).await.status, 200);
        assert_eq!(server.plane.live("shop").split, split(0.0));
        assert_eq!(server.control.state("shop").unwrap().recorded.latch.unwrap().reason, kept);
        assert_eq!(server.post("/reset", r#"{"reason":"again"}"#).await.status, 200);
    }
    server.stop().await;
}

#[tokio::test]
async fn what_is_null_in_a_plan_is_left_out() {
    let server = Server::start(shop()).await;
    let plan = json!({
        "step": [{ "green": 10, "bake": "1h", "approval": null, "require": { "throughput": null } }],
        "observe": null,
    });
    let answer = server.post("/plan/start", &json!({ "plan": plan }).to_string()).await;
    assert_eq!((answer.status, &answer.json()["run"]["state"]), (200, &json!("running")), "{answer:?}");
    server.stop().await;
}
