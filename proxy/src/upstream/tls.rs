//! TLS towards an arm. Certificates are verified, always, against the system's roots or those of the configuration.

use std::{cell::OnceCell, io, path::Path, sync::Arc};

use config::Fault;
use pingora::{protocols::tls::CaType, utils::tls::WrappedX509};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What a connection to an arm's endpoints needs.
#[derive(Debug)]
pub(crate) struct UpstreamTls {
    pub(crate) server_name: String,
    /// The configuration's own roots as the HTTP engine wants them, which builds its own client.
    roots: Option<Arc<CaType>>,
    roots_id: u64,
    client: Arc<ClientConfig>,
}

impl UpstreamTls {
    /// `place`: the setting's, for errors. `system`: the system's roots, read when they are first wanted.
    pub(crate) fn load(
        place: &str,
        settings: &config::UpstreamTls,
        system: &OnceCell<RootCertStore>,
    ) -> Result<Arc<Self>, Fault> {
        let mut store = RootCertStore::empty();
        let mut roots_id = 0;
        let roots = match &settings.ca {
            Some(path) => {
                let mut parsed = Vec::new();
                for root in read_certificates(&format!("{place}.ca"), path)? {
                    let unusable = |error: String| Fault {
                        place: format!("{place}.ca"),
                        line: None,
                        problem: format!("{} is no CA certificate: {error}", path.display()),
                        cure: "give the PEM certificates that sign the endpoints'".to_owned(),
                    };
                    store.add(root.clone()).map_err(|error| unusable(error.to_string()))?;
                    roots_id = xxh3_64_with_seed(&root, roots_id);
                    let certificate = WrappedX509::try_new(root.to_vec(), |der| {
                        x509_parser::parse_x509_certificate(der).map(|(_, certificate)| certificate)
                    });
                    parsed.push(certificate.map_err(|error| unusable(error.to_string()))?);
                }
                Some(parsed.into())
            }
            None => {
                store = system.get_or_init(system_roots).clone();
                if store.is_empty() {
                    return Err(Fault {
                        place: place.to_owned(),
                        line: None,
                        problem: "the system has no root certificates to verify the endpoints with".to_owned(),
                        cure: "install ca-certificates or set ca".to_owned(),
                    });
                }
                None
            }
        };
        let client = ClientConfig::builder().with_root_certificates(store).with_no_client_auth();
        Ok(Arc::new(Self { server_name: settings.server_name.clone(), roots, roots_id, client: Arc::new(client) }))
    }

    /// TLS on a connection that stands. `alpn`: the protocols to offer; none: ALPN is left out.
    pub(crate) async fn connect(&self, tcp: TcpStream, alpn: &[&[u8]]) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(self.server_name.clone())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let mut client = Arc::clone(&self.client);
        if !alpn.is_empty() {
            Arc::make_mut(&mut client).alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        }
        TlsConnector::from(client).connect(name, tcp).await
    }

    pub(crate) fn engine_roots(&self) -> Option<Arc<CaType>> {
        self.roots.clone()
    }

    /// Tells connections that were verified against different roots apart. 0: the system's.
    pub(crate) fn roots_id(&self) -> u64 {
        self.roots_id
    }

    /// Equal for two that accept the same endpoints.
    pub(crate) fn identity(&self) -> (&str, u64) {
        (&self.server_name, self.roots_id)
    }

    /// For clients that set up their own connections, such as the mirror's.
    pub(crate) fn client(&self) -> ClientConfig {
        ClientConfig::clone(&self.client)
    }
}

fn system_roots() -> RootCertStore {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    store
}

/// Every certificate of a PEM file; at least one. `place`: the setting that names it, for errors.
pub(crate) fn read_certificates(place: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let fault = |problem: String| Fault {
        place: place.to_owned(),
        line: None,
        problem: format!("{}: {problem}", path.display()),
        cure: "give a readable PEM file with CERTIFICATE blocks".to_owned(),
    };
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| fault(error.to_string()))?;
    if certificates.is_empty() {
        return Err(fault("holds no certificate".to_owned()));
    }
    Ok(certificates)
}
