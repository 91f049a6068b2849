//! Status, metrics, and the API's description of itself.

use admin_api::Api;
use serde_json::{Value, json};

use crate::{
    http::Server,
    support::{shop, shop_and_broker},
};

#[tokio::test]
async fn the_openapi_document_lists_every_call() {
    let server = Server::start(shop()).await;
    let document = server.get("/openapi.json").await.json();
    assert_eq!(document, serde_json::to_value(Api::openapi()).unwrap());
    let paths = document["paths"].as_object().unwrap();
    let mut calls: Vec<String> = paths
        .iter()
        .flat_map(|(path, item)| item.as_object().unwrap().keys().map(move |method| format!("{method} {path}")))
        .collect();
    calls.sort();
    assert_eq!(
        calls,
        [
            "get /alerts",
            "get /audit",
            "get /events",
            "get /health",
            "get /history",
            "get /incidents",
            "get /incidents/{id}",
            "get /metrics",
            "get /plan",
            "get /ready",
            "get /signals",
            "get /status",
            "get /traffic-split",
            "post /plan/abort",
            "post /plan/approve",
            "post /plan/pause",
            "post /plan/resume",
            "post /plan/skip",
            "post /plan/start",
            "post /reset",
            "post /rollback",
            "post /signals",
            "post /traffic-split",
        ]
    );
    // Everything it refers to is there.
    let text = document.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(!document["components"]["schemas"][name].is_null(), "{name} is not described");
    }
    // Every call answers under its alias, too.
    for path in paths.keys().filter(|path| *path != "/events") {
        let path = path.replace("{id}", "none");
        let (plain, alias) = (server.get(&path).await.status, server.get(&format!("/api{path}")).await.status);
        assert_eq!(plain, alias, "{path}");
    }
    server.stop().await;
}

#[test]
fn every_operation_describes_its_answers() {
    let document = serde_json::to_value(Api::openapi()).unwrap();
    let shared = document["components"]["responses"].as_object().unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let responses = operation["responses"].as_object().unwrap();
            for (status, response) in responses {
                let named = response["$ref"].as_str().map(|at| at.strip_prefix("#/components/responses/").unwrap());
                let response = named.map_or(response, |name| &shared[name]);
                assert!(response["description"].is_string(), "{method} {path} {status}");
            }
            let open = ["/health", "/ready"].contains(&path.as_str());
            let mut expected = vec!["200", "400", "403", "405", "421", "503"];
            if !open {
                expected.push("401");
            }
            if !open && path != "/incidents/{id}" {
                expected.push("422");
            }
            if method == "post" {
                expected.extend(["404", "408", "413", "415", "500"]);
            }
            if (["/traffic-split", "/reset"].contains(&path.as_str()) || path.starts_with("/plan/")) && method == "post"
            {
                expected.extend(["409", "412"]);
            }
            for status in expected {
                assert!(responses.contains_key(status), "{method} {path} does not tell of {status}");
            }
            assert_eq!(operation["security"], if open { json!([]) } else { json!([{"token": []}, {}]) });
        }
    }
    assert_eq!(document["components"]["securitySchemes"]["token"]["scheme"], "bearer");

    let schemas = &document["components"]["schemas"];
    let of_plans = ["PlanRequest", "PlanApproveRequest", "PlanSkipRequest"];
    for body in ["SplitRequest", "ResetRequest", "SignalRequest"].into_iter().chain(of_plans) {
        for (field, schema) in schemas[body]["properties"].as_object().unwrap() {
            assert!(schema["type"].is_string(), "null is refused for {field} of {body}: {schema}");
        }
    }
    assert_eq!(schemas["RollbackRequest"]["properties"]["reason"]["type"], json!(["string", "null"]));
    assert_eq!(schemas["ResetRequest"]["required"], json!(["reason"]));
    assert_eq!(schemas["RollbackRequest"]["additionalProperties"], false);
    assert_eq!(schemas["SplitRequest"]["additionalProperties"]["type"], "number");
}

#[tokio::test]
async fn status_tells_everything() {
    let server = Server::start(shop_and_broker()).await;
    server.plane.second("shop", (90, 0), (8, 2));
    let status = server.get("/status").await.json();
    let shop = &status["routes"][0];
    assert_eq!((&status["service"], &status["ready"]), (&"crossfade".into(), &Value::Bool(true)));
    assert_eq!((&shop["route"], &shop["protocol"], &shop["persisted"]), (&"shop".into(), &"http".into(), &true.into()));
    assert_eq!((&shop["green"]["total"]["refused"], &shop["green"]["last_minute"]["ok"]), (&2.into(), &8.into()));
    assert_eq!(shop["green"]["last_minute"]["error_rate"], 0.2);
    assert!(shop["blue"]["last_minute"]["p95_ms"].as_f64().is_some_and(|p95| (9.9..10.2).contains(&p95)), "{shop}");
    assert_eq!(shop["green"]["endpoints"][0]["healthy"], true);
    assert_eq!((&shop["keyless"], &shop["rejected"]["bare_lf"]), (&3.into(), &2.into()));
    assert_eq!((&shop["guard"]["armed"], &shop["guard"]["judgement"]), (&true.into(), &Value::Null));
    assert_eq!(shop["mirror"]["offered"], 5);
    server.stop().await;
}

#[tokio::test]
async fn metrics_are_well_formed() {
    let server = Server::start(shop_and_broker()).await;
    server.plane.second("shop", (90, 0), (8, 2));
    let answer = server.get("/metrics").await;
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    for line in [
        "crossfade_dispatched_total{route=\"shop\",arm=\"green\"} 10",
        "crossfade_outcomes_total{route=\"shop\",arm=\"green\",outcome=\"refused\"} 2",
        "crossfade_split_ratio{route=\"broker\",arm=\"green\"} 0.05",
        "crossfade_latched{route=\"shop\"} 0",
        "crossfade_latency_seconds_bucket{route=\"shop\",arm=\"green\",le=\"0.005\"} 0",
        "crossfade_latency_seconds_bucket{route=\"shop\",arm=\"green\",le=\"+Inf\"} 8",
        "crossfade_endpoint_healthy{route=\"shop\",arm=\"green\",endpoint=\"127.0.0.1:9002\"} 1",
        "crossfade_keyless_total{route=\"shop\"} 3",
        "crossfade_rejected_total{route=\"shop\",reason=\"bare_lf\"} 2",
        "crossfade_mirror_offered_total{route=\"shop\"} 5",
        "crossfade_refused_connections_total{reason=\"limit\"} 4",
        "crossfade_rejected_total{reason=\"bare_lf\"} 7",
        "# TYPE crossfade_refused_connections_total counter",
        "# TYPE crossfade_client_connections gauge",
        "crossfade_client_connections{worker=\"1\"} 3",
        "crossfade_admin_tokens_refused 0",
        "crossfade_audit_refusals_skipped_total 0",
        "crossfade_route_info{route=\"shop\",arm=\"green\",label=\"go\",protocol=\"http\"} 1",
    ] {
        assert!(answer.body.contains(&format!("{line}\n")), "{line} is missing");
    }
    // Families stand together, each described once before its samples.
    let mut families: Vec<&str> = Vec::new();
    let mut samples: Vec<&str> = Vec::new();
    for line in answer.body.lines() {
        if let Some(described) = line.strip_prefix("# TYPE ") {
            let name = described.split(' ').next().unwrap();
            assert!(!families.contains(&name), "{name} is there twice");
            families.push(name);
        } else if !line.starts_with('#') {
            let family = families.last().unwrap();
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let name = sample.split('{').next().unwrap();
            let part = name.strip_prefix(family).unwrap_or_else(|| panic!("{line} stands below {family}"));
            assert!(["", "_bucket", "_sum", "_count"].contains(&part), "{line} stands below {family}");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'));
            assert!(sample == name || sample.ends_with("\"}"), "{line}");
            assert!(!samples.contains(&sample), "{sample} is there twice");
            samples.push(sample);
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
    server.stop().await;
}
