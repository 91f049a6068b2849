//! What must hold of every input of a parser, whatever a peer sends: one function a fuzz target, which panics when it does
//! not hold. Coverage-guided runs (`fuzz_targets/`) and the replay of the corpus (`tests/`) call the same ones.

mod chunked;
mod client_hello;
mod cuts;
mod http1_head;
mod http1_request;
mod http1_response;
mod mqtt_connect;
mod mqtt_packets;

// Included, not depended on; see `wire`. What only the proxy uses of them is unused here.
#[allow(dead_code)]
#[path = "../../proxy/src/key.rs"]
mod key;
#[allow(dead_code)]
#[path = "../../proxy/src/http/h1/request.rs"]
mod request;
#[allow(dead_code)]
#[path = "../../proxy/src/http/h1/response.rs"]
mod response;
#[allow(dead_code)]
pub mod wire;

pub use chunked::chunked;
pub use client_hello::client_hello;
pub use http1_head::http1_head;
pub use http1_request::http1_request;
pub use http1_response::http1_response;
pub use mqtt_connect::mqtt_connect;
pub use mqtt_packets::mqtt_packets;
