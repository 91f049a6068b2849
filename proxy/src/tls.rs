//! TLS towards clients: one certificate a route, chosen by the name a client asks for.

use std::{collections::HashMap, sync::Arc};

use config::{Fault, Protocol, TlsFiles};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::upstream::read_certificates;

/// TLS for a listener's routes, each with its place in the configuration, or `None` when they have none.
pub(crate) fn server_config<'a>(
    protocol: Protocol,
    routes: impl Iterator<Item = (String, &'a config::Route)>,
) -> Result<Option<Arc<ServerConfig>>, Fault> {
    let mut by_host = HashMap::new();
    let mut first = None;
    for (place, route) in routes {
        let Some(files) = &route.tls else { return Ok(None) };
        let certified = certified_key(&format!("{place}.tls"), files)?;
        if let Some(host) = &route.matching.host {
            by_host.insert(host.clone(), Arc::clone(&certified));
        }
        first.get_or_insert(certified);
    }
    let Some(first) = first else { return Ok(None) };
    let mut config =
        ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::new(Certificates { by_host, first }));
    // An MQTT client may offer whatever its cloud asks for; only HTTP has something to choose.
    if protocol == Protocol::Http {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    }
    Ok(Some(Arc::new(config)))
}

/// TLS for the admin API.
pub(crate) fn admin_config(files: &TlsFiles) -> Result<Arc<ServerConfig>, Fault> {
    let first = certified_key("admin.tls", files)?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Certificates { by_host: HashMap::new(), first }));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certified_key(place: &str, files: &TlsFiles) -> Result<Arc<CertifiedKey>, Fault> {
    let chain = read_certificates(&format!("{place}.cert"), &files.cert)?;
    let fault = |problem: String, cure: &str| Fault {
        place: format!("{place}.key"),
        line: None,
        problem: format!("{}: {problem}", files.key.display()),
        cure: cure.to_owned(),
    };
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| fault(error.to_string(), "give a readable PEM file with a PRIVATE KEY block"))?;
    let certified = CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|error| fault(error.to_string(), &format!("give the key of {}", files.cert.display())))?;
    Ok(Arc::new(certified))
}

/// Falls back to the first route's certificate, so that clients that send no name still get an answer.
#[derive(Debug)]
struct Certificates {
    by_host: HashMap<String, Arc<CertifiedKey>>,
    first: Arc<CertifiedKey>,
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|name| self.by_host.get(name));
        Some(Arc::clone(named.unwrap_or(&self.first)))
    }
}
