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
use tokio::{sync::OnceCell, time::timeout};

use crate::control::with_sources;

/// Speaks HTTP/1.1, and TLS with the system's roots. It follows no redirect and keeps no connection: a request every some
/// seconds is not worth finding out that an old one is dead.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    plain: OnceCell<HttpClient>,
    secure: OnceCell<HttpClient>,
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
        let exchange = async {
            let client = self.client(url).await?;
            let mut request =
                Request::builder().method(method).uri(url.whole()).body(Full::new(body)).map_err(|_| "is not a url")?;
            *request.headers_mut() = headers;
            request.headers_mut().insert(header::USER_AGENT, USER_AGENT);
            request.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
            client.request(request).await.map_err(|error| format!("cannot be asked: {}", with_sources(&error)))
        };
        timeout(patience, exchange).await.unwrap_or_else(|_| Err(format!("does not answer within {patience:?}")))
    }

    async fn client(&self, url: &Url) -> Result<&HttpClient, String> {
        if url.is_secure() {
            // Reading the system's roots takes a while, and most installations never need them.
            self.secure
                .get_or_try_init(|| async {
                    tokio::task::spawn_blocking(secure)
                        .await
                        .unwrap_or_else(|_| Err("cannot read the system's roots".to_owned()))
                })
                .await
        } else {
            Ok(self.plain.get_or_init(|| async { plain() }).await)
        }
    }
}

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
