//! What people get to read about a trip.

use http::StatusCode;
use loadtest::origin::Behaviour;
use serde_json::json;

use crate::{
    cli::{ask, ask_json},
    harness::{Crossfade, eventually},
    loads::{Load, requests},
    site::Site,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_trip_is_a_page_and_json_on_the_command_line_also_after_kill_dash_nine() {
    let site = Site::start().await;
    site.green.behaviour().set(Behaviour { status: Some(StatusCode::INTERNAL_SERVER_ERROR), ..Behaviour::default() });
    let route = site.route().green_percentage(50.0);
    let mut crossfade = Crossfade::start(&route.to_string()).await;
    let load = Load::start(100, requests(route.listen));
    eventually("green is at 0", async || (crossfade.admin.green("shop").await == 0.0).then_some(())).await;
    load.stop().await;

    let told = ask_json(&crossfade, &["incident", "--last", "shop"]).await;
    let id = told["id"].as_str().unwrap();
    assert_eq!(ask_json(&crossfade, &["incident", id]).await, told);
    let summary = told["summary"].as_str().unwrap();
    assert!(
        summary.contains("UTC green (go) of shop was taken off: ") && summary.contains("requests failed in"),
        "{summary}"
    );
    assert!(summary.ends_with("Everyone is served by blue (python)."), "{summary}");
    let failed = told["seconds"]["green"]["failed"].as_array().unwrap();
    assert!(failed.iter().map(|count| count.as_u64().unwrap()).sum::<u64>() >= 100, "{told}");
    assert!(told["quantiles"]["blue"]["p50"]["at_most_ms"].is_number(), "{told}");

    for error in [&told["first_error"], &told["last_error"]] {
        assert_eq!((&error["outcome"], &error["status"]), (&json!("refused"), &json!(500)), "{told}");
        assert_eq!(error["endpoint"], site.green.address().to_string(), "{told}");
        assert_eq!(error["message"], "answered 500 Internal Server Error", "{told}");
    }

    let page = ask(&crossfade, &["incident", "--last", "shop"]).await;
    assert_eq!((page.code, page.err.as_str()), (Some(0), ""));
    assert!(page.out.starts_with(&format!("# Incident {id}\n\n{summary}\n")), "{}", page.out);
    crossfade.kill_and_restart().await;
    assert_eq!(ask(&crossfade, &["incident", id]).await.out, page.out, "the record is on disk");
}
