//! The parsers, from where they are: their crate has too much else in it to be built for every run.

#[path = "../../proxy/src/wire/chunked.rs"]
pub mod chunked;
#[path = "../../proxy/src/wire/client_hello.rs"]
pub mod client_hello;
#[path = "../../proxy/src/wire/http1.rs"]
pub mod http1;
#[path = "../../proxy/src/wire/mqtt.rs"]
pub mod mqtt;
