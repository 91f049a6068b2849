//! A trip as people read of it afterwards.

use std::sync::Arc;

use admin_api::{Batch, Guardian, IncidentRow, StateStore};
use serde_json::{Value, json};

use crate::{
    control::ann,
    http::{Answer, Server},
    support::{config, route, shop, split},
};

/// Trips `shop` with a green that answers nobody, after ten seconds in which it did.
async fn tripped() -> (Server, Value) {
    let server = Server::start(shop()).await;
    server.control.set_split("shop", split(50.0), &ann(), None).await.unwrap();
    let guardian = Guardian::new(server.control.clone());
    for second in 0..60 {
        server.plane.second("shop", (50, 0), if second < 10 { (50, 0) } else { (0, 50) });
        guardian.tick();
        if server.plane.live("shop").latched {
            break;
        }
    }
    let incident = server.get("/incidents?route=shop").await.json()["incidents"][0].clone();
    (server, incident)
}

async fn get(server: &Server, path: &str, accept: &str) -> Answer {
    server.send("GET", path, &[("accept", accept)], b"").await
}

#[tokio::test]
async fn an_incident_says_in_one_sentence_what_happened_and_has_what_it_rests_on() {
    let (server, incident) = tripped().await;
    let summary = incident["summary"].as_str().unwrap();
    let failed = incident["rules"][0]["bad"].as_u64().unwrap();
    assert!((200..=250).contains(&failed), "{incident}");
    let expected = format!(
        "UTC green (go) of shop was taken off: {failed} of {failed} requests failed in {} s (limit 5 %), while blue \
         failed 0 of {failed}. Everyone is served by blue (python).",
        failed / 50
    );
    assert!(summary.starts_with("At ") && summary.ends_with(&expected), "{summary}\n{expected}");
    assert_eq!((&incident["rule"], &incident["actor"]), (&json!("error_rate"), &json!("guard")));
    assert_eq!(incident["labels"], json!({ "blue": "python", "green": "go" }));
    assert_eq!((&incident["split_before"], &incident["plan_step"]), (&json!(50), &Value::Null));
    let columns = incident["seconds"]["green"].as_object().unwrap();
    let lengths: Vec<usize> = columns.values().map(|column| column.as_array().unwrap().len()).collect();
    assert_eq!(lengths, [10 + failed as usize / 50; 5]);
    let failures = incident["seconds"]["green"]["failed"].as_array().unwrap();
    assert_eq!(failures[9..11], [json!(0), json!(50)]);
    let answers = |arm: &str| incident["quantiles"][arm]["answers"].as_u64().unwrap();
    assert_eq!((answers("blue"), answers("green")), (failed, 0));
    assert!(incident["quantiles"]["blue"]["p95"]["at_most_ms"].is_number(), "{}", incident["quantiles"]);
    server.stop().await;
}

#[tokio::test]
async fn a_route_has_incidents_now_or_then_and_else_the_answer_lists_the_routes() {
    let (server, incident) = tripped().await;
    let unknown = server.get("/incidents?route=shed").await.problem(404);
    assert_eq!((&unknown["field"], &unknown["cure"]), (&json!("route"), &json!("choose one of shop")), "{unknown}");
    let broker = config(vec![route("broker", "python", "go", 0.0)]);
    server.control.reload(broker).await.unwrap();
    assert_eq!(server.get("/incidents?route=broker").await.json()["incidents"], json!([]));
    let kept = server.get("/incidents?route=shop").await.json();
    assert_eq!(kept["incidents"][0]["id"], incident["id"], "it is not configured any more");
    server.stop().await;
}

#[tokio::test]
async fn who_asks_for_markdown_gets_a_page() {
    let (server, incident) = tripped().await;
    let path = format!("/incidents/{}", incident["id"].as_str().unwrap());
    for accept in ["text/markdown", "text/html, TEXT/Markdown;q=0.9", "text/plain,text/markdown"] {
        let answer = get(&server, &path, accept).await;
        assert_eq!(answer.header("content-type"), Some("text/markdown; charset=utf-8"), "{accept}");
        assert!(answer.body.starts_with(&format!("# Incident {}\n", incident["id"].as_str().unwrap())), "{answer:?}");
        assert!(answer.body.contains(incident["summary"].as_str().unwrap()), "{answer:?}");
        assert_eq!(answer.header("vary"), Some("accept"));
    }
    for accept in ["application/json", "*/*", "", "text/markdownish", "text/*"] {
        let answer = get(&server, &path, accept).await;
        assert_eq!(answer.header("content-type"), Some("application/json"), "{accept:?}");
        assert_eq!(answer.json(), incident);
    }
    get(&server, "/incidents/none", "text/markdown").await.problem(404);
    server.stop().await;
}

#[tokio::test]
async fn what_was_recorded_before_is_still_read() {
    let server = Server::start(shop()).await;
    let store: Arc<dyn StateStore> = server.store.clone();
    let old =
        json!({ "id": "old", "route": "shop", "at": "2026-01-31T10:15:02.123Z", "reason": "green failed 100 of 500" });
    let rows = [("old", old.to_string()), ("odd", "[]".to_owned())];
    let incidents = rows.map(|(id, json)| IncidentRow { id: id.to_owned(), route: "shop".to_owned(), json }).into();
    store.record(&Batch { incidents, ..Batch::default() }).unwrap();
    assert_eq!(server.get("/incidents/old").await.json(), old);
    let page = get(&server, "/incidents/old", "text/markdown").await.body;
    assert!(page.starts_with("# Incident old\n\ngreen failed 100 of 500\n"), "{page}");
    assert!(get(&server, "/incidents/odd", "text/markdown").await.body.starts_with("# Incident –\n"));
    server.stop().await;
}
