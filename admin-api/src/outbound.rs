//! Requests that the control plane makes by itself: pages of metrics it reads, webhooks it tells.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use config::Url;
use http::{HeaderMap, Method, Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{
    sync::{Mutex, OnceCell},
    time::{Instant, timeout_at},
};

use crate::control::with_sources;

/// Speaks HTTP/1.1, and TLS with the system's roots. It follows no redirect and keeps no connection: a request every some
/// seconds is not worth finding out that an old one is dead.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    plain: OnceCell<HttpClient>,
    /// Whoever reads the system's roots has it until their disk has answered.
    secure: Arc<Mutex<Option<HttpClient>>>,
}

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

impl Outbound {
    /// Sends a request and waits for the head of its answer. Errors: why there is none; nothing of the URL is in it.
    pub(crate) async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        body: Bytes,
        patience: Duration,
    ) -> Result<Response<Incoming>, String> {
        let until = Instant::now() + patience;
        let client = timeout_at(until, self.client(url)).await.map_err(|_| ROOTS_HANG)??;
        let exchange = async {
            let mut request =
                Request::builder().method(method).uri(url.whole()).body(Full::new(body)).map_err(|_| "is not a url")?;
            *request.headers_mut() = headers;
            request.headers_mut().insert(header::USER_AGENT, USER_AGENT);
            request.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
            client.request(request).await.map_err(|error| format!("cannot be asked: {}", with_sources(&error)))
        };
        timeout_at(until, exchange).await.unwrap_or_else(|_| Err(format!("does not answer within {patience:?}")))
    }

    async fn client(&self, url: &Url) -> Result<HttpClient, String> {
        if !url.is_secure() {
            return Ok(self.plain.get_or_init(|| async { plain() }).await.clone());
        }
        // Reading the system's roots takes a while, and most installations never need them.
        let mut known = self.secure.clone().lock_owned().await;
        if let Some(client) = &*known {
            return Ok(client.clone());
        }
        // To its end, also when nobody waits any more: another thread would hang at the same disk.
        let read = tokio::task::spawn_blocking(move || {
            let client = secure()?;
            *known = Some(client.clone());
            Ok(client)
        });
        read.await.unwrap_or_else(|_| Err("cannot read the system's roots".to_owned()))
    }
}

const ROOTS_HANG: &str = "cannot be verified, because the disk with the system's roots does not answer";

const USER_AGENT: header::HeaderValue =
    header::HeaderValue::from_static(concat!("crossfade/", env!("CARGO_PKG_VERSION")));

fn plain() -> HttpClient {
    client(rustls::RootCertStore::empty())
}

fn secure() -> Result<HttpClient, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err("cannot be verified, because the system has no root certificates".to_owned());
    }
    Ok(client(roots))
}

fn client(roots: rustls::RootCertStore) -> HttpClient {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring's provider has them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector)
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::mpsc};

    use super::*;

    /// Of a webhook over TLS.
    fn url() -> Url {
        let text = "[[alert]]\nname = \"chat\"\nurl = \"https://127.0.0.1:1/\"\n\
                    [[route]]\nname = \"shop\"\nprotocol = \"http\"\nlisten = \"127.0.0.1:80\"\n\
                    [route.blue]\nendpoints = [\"a:1\"]\n[route.green]\nendpoints = [\"b:1\"]\n";
        config::Config::parse(text, Path::new("")).unwrap().alerts[0].url.clone()
    }

    #[test]
    fn roots_on_a_disk_that_hangs_are_read_once() {
        let outbound = Outbound::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
        runtime.unwrap().block_on(async {
            // What hangs has the only thread there is for files.
            let (answer, hangs) = mpsc::channel::<()>();
            let hanging = tokio::task::spawn_blocking(move || hangs.recv());
            let ask = async |patience| {
                let (url, headers) = (url(), HeaderMap::new());
                let sent = outbound.send(Method::POST, &url, headers, Bytes::new(), patience).await;
                sent.map(drop).unwrap_err()
            };
            for _ in 0..3 {
                assert_eq!(ask(Duration::from_millis(20)).await, ROOTS_HANG);
            }
            assert_eq!(Arc::strong_count(&outbound.secure), 2, "one read is under way");
            drop(answer);
            assert!(hanging.await.unwrap().is_err());
            let problem = ask(Duration::from_secs(20)).await;
            assert!(problem.starts_with("cannot be asked") || problem.contains("no root certificates"), "{problem}");
        });
    }
}
