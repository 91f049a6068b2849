//! Certificates made for a test, and TLS clients that trust them.

use std::{fs, io, net::SocketAddr, path::PathBuf, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A certificate, its key, and the authority that signed it.
pub(crate) struct Certificates {
    authority: CertificateDer<'static>,
    authority_pem: String,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key: KeyPair,
}

impl Certificates {
    /// For a server of `names`, signed by an authority of its own.
    pub(crate) fn new(names: &[&str]) -> Self {
        Self::with_authority(&Self::authority(), names)
    }

    pub(crate) fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    pub(crate) fn with_authority(authority: &CertifiedIssuer<'static, KeyPair>, names: &[&str]) -> Self {
        let key = KeyPair::generate().unwrap();
        let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, authority).unwrap();
        Self {
            authority: authority.der().clone(),
            authority_pem: authority.pem(),
            certificate: certificate.der().clone(),
            certificate_pem: certificate.pem(),
            key,
        }
    }

    /// Writes `ca.pem`, `server.pem` and `server.key`. The line that a route names them with.
    pub(crate) fn write(&self, folder: &TempDir) -> String {
        let file = |name: &str, text: String| -> PathBuf {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        file("ca.pem", self.authority_pem.clone());
        let (cert, key) =
            (file("server.pem", self.certificate_pem.clone()), file("server.key", self.key.serialize_pem()));
        format!("tls = {{ cert = {cert:?}, key = {key:?} }}")
    }

    /// The server's certificate as a client sees it.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], key);
        Arc::new(config.unwrap())
    }

    /// Trusts the authority and nobody else.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone()).unwrap();
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    /// A client that asks for `name` and insists on it.
    pub(crate) async fn connect(&self, address: SocketAddr, name: &str) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(self.client())).connect(name, TcpStream::connect(address).await?).await
    }
}
