use http::StatusCode;
use loadtest::origin::{Behaviour, HttpOrigin};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::{any_port, soon};

async fn client(origin: &HttpOrigin) -> HealthClient<Channel> {
    let channel = Channel::from_shared(format!("http://{}", origin.address())).unwrap();
    HealthClient::new(soon(channel.connect()).await.unwrap())
}

fn service(name: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: name.to_owned() }
}

#[tokio::test]
async fn health_is_checked_and_watched_on_the_http_port() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let mut client = client(&origin).await;

    let answer = soon(client.check(service(""))).await.unwrap();
    assert_eq!(answer.metadata().get("x-origin").unwrap(), "go");
    assert_eq!(answer.metadata().get("grpc-status").unwrap(), "0", "the trailers came");
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);

    let mut watched = soon(client.watch(service(""))).await.unwrap().into_inner();
    let status = soon(watched.message()).await.unwrap().unwrap();
    assert_eq!(status.status(), ServingStatus::Serving);
}

#[tokio::test]
async fn what_is_unknown_is_refused_by_grpc_status() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let mut client = client(&origin).await;
    let refused = soon(client.check(service("nobody"))).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
}

#[tokio::test]
async fn behaviour_applies_to_grpc() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let mut client = client(&origin).await;
    origin.behaviour().set(Behaviour { status: Some(StatusCode::SERVICE_UNAVAILABLE), ..Behaviour::default() });
    // The mapping of HTTP statuses is in the gRPC specification, "HTTP to gRPC Status Code Mapping".
    assert_eq!(soon(client.check(service(""))).await.unwrap_err().code(), Code::Unavailable);
    origin.behaviour().set(Behaviour { reset_after_header: true, ..Behaviour::default() });
    soon(client.check(service(""))).await.unwrap_err();
    origin.behaviour().set(Behaviour::default());
    soon(client.check(service(""))).await.unwrap();
}
