//! A certificate authority that issues as many certificates as a test wants, under any name.

use std::{fs, io, path::Path, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::site::soon;

pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
pub(crate) struct Issued {
    certificate: rcgen::Certificate,
    pub(crate) key: KeyPair,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Authorities of one name and different keys make errors hard to read.
        params.distinguished_name.push(DnType::CommonName, format!("authority {}", fastrand::u64(..)));
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn issue(&self, name: &str) -> Issued {
        self.issue_for(&[name])
    }

    pub(crate) fn issue_for(&self, names: &[&str]) -> Issued {
        let key = KeyPair::generate().unwrap();
        let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.0).unwrap();
        Issued { certificate, key }
    }

    /// Writes its own certificate, for those who are to trust it.
    pub(crate) fn write(&self, path: &Path) {
        fs::write(path, self.0.pem()).unwrap();
    }

    /// Makes a connection a TLS one that trusts this authority alone, asks for `name` and offers `alpn`.
    pub(crate) async fn connect(&self, tcp: TcpStream, name: &str, alpn: &[&str]) -> io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        soon(TlsConnector::from(Arc::new(config)).connect(name, tcp)).await
    }
}

impl Issued {
    /// As a client sees it.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        self.certificate.der()
    }

    /// Writes `NAME.pem` and `NAME.key` into a folder, each whole or not at all. The setting that names them.
    pub(crate) fn write(&self, folder: &Path, name: &str) -> String {
        for (ending, text) in [("key", self.key.serialize_pem()), ("pem", self.certificate.pem())] {
            let draft = folder.join(format!("{name}.{ending}.draft"));
            fs::write(&draft, text).unwrap();
            fs::rename(draft, folder.join(format!("{name}.{ending}"))).unwrap();
        }
        let (cert, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        format!("tls = {{ cert = {cert:?}, key = {key:?} }}")
    }

    /// A server's side of it that offers `alpn`.
    pub(crate) fn server(&self, alpn: &[&str]) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::from_pem_slice(self.key.serialize_pem().as_bytes()).unwrap();
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}
