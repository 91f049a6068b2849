use bytes::{Buf, BufMut, Bytes};
use http::{Request, StatusCode, uri::PathAndQuery};
use http_body_util::{BodyExt, Full};
use loadtest::origin::{Behaviour, HttpOrigin};
use tonic::{
    Code, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::{any_port, http::Client, soon};

async fn connect(origin: &HttpOrigin) -> Channel {
    let channel = Channel::from_shared(format!("http://{}", origin.address())).unwrap();
    soon(channel.connect()).await.unwrap()
}

async fn client(origin: &HttpOrigin) -> HealthClient<Channel> {
    HealthClient::new(connect(origin).await)
}

/// Messages that are what they are.
#[derive(Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(message);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}

async fn echo(channel: &Channel, message: Bytes) -> Result<tonic::Response<Bytes>, Status> {
    let mut client = Grpc::new(channel.clone()).max_decoding_message_size(usize::MAX);
    soon(client.ready()).await.unwrap();
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("x-loadtest-id", "1a2b3c4d0000002a".parse().unwrap());
    soon(client.unary(request, PathAndQuery::from_static("/loadtest.Echo/Echo"), Plain)).await
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

#[tokio::test]
async fn echo_answers_the_message_as_it_came() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let channel = connect(&origin).await;
    for length in [0, 1, 100_000, 8 << 20] {
        let message = Bytes::from_iter((0..length).map(|nth| nth as u8));
        let answer = echo(&channel, message.clone()).await.unwrap();
        assert_eq!(answer.metadata().get("x-origin").unwrap(), "go");
        assert_eq!(answer.metadata().get("x-loadtest-id").unwrap(), "1a2b3c4d0000002a");
        assert_eq!(answer.metadata().get("grpc-status").unwrap(), "0", "the trailers came");
        assert!(answer.into_inner() == message, "{length}");
    }
    let refused = echo(&channel, vec![0; 16 << 20].into()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_sick_origin_says_so_in_grpc() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let channel = connect(&origin).await;
    for (status, code) in
        [(500, Code::Internal), (503, Code::Unavailable), (429, Code::Unavailable), (404, Code::Internal)]
    {
        let status = Some(StatusCode::from_u16(status).unwrap());
        origin.behaviour().set(Behaviour { status, ..Behaviour::default() });
        assert_eq!(echo(&channel, "hello".into()).await.unwrap_err().code(), code);
    }
    origin.behaviour().set(Behaviour { error_share: 0.5, ..Behaviour::default() });
    let mut failed = 0;
    for _ in 0..20 {
        match echo(&channel, "hello".into()).await {
            Ok(answer) => assert_eq!(answer.into_inner(), "hello"),
            Err(status) => {
                assert_eq!((status.code(), status.message()), (Code::Internal, "failed, as asked"));
                failed += 1;
            }
        }
    }
    assert!((9..=11).contains(&failed), "{failed}");
}

#[tokio::test]
async fn what_is_no_message_is_refused() {
    let origin = HttpOrigin::start("go", any_port()).await.unwrap();
    let mut client = Client::h2(origin.address()).await;
    for (body, status) in [
        (&b"\0\0\0\0\x02ab"[..], "0"),
        (b"\x01\0\0\0\x02ab", "0"),
        (b"", "13"),
        (b"ab", "13"),
        (b"\0\0\0\0\x03ab", "13"),
        (b"\0\0\0\0\0\0\0\0\0\0", "13"),
    ] {
        let request = Request::post("http://origin.example/loadtest.Echo/Echo")
            .header("content-type", "application/grpc+proto")
            .header("grpc-encoding", "gzip")
            .body(Full::from(body).boxed_unsync())
            .unwrap();
        let response = client.send(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let headers = response.headers().clone();
        let answer = soon(response.into_body().collect()).await.unwrap();
        let found = headers.get("grpc-status").or_else(|| answer.trailers().unwrap().get("grpc-status")).unwrap();
        assert_eq!(found, status, "{body:?}");
        if status == "0" {
            assert_eq!(
                (&headers["content-type"], &headers["grpc-encoding"]),
                (&"application/grpc+proto".parse().unwrap(), &"gzip".parse().unwrap())
            );
            assert_eq!(answer.to_bytes(), body);
        }
    }
}
