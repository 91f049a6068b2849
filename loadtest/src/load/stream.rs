//! Connections: TCP, with TLS where asked for.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::Failure;

/// Where connections go.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Addresses of the host, used in turn.
    pub addresses: Vec<SocketAddr>,
    /// How TLS is spoken, and to whom; in clear when none.
    pub tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// Whether each key connects from an address of its own in 127.0.0.0/8.
    pub source_by_key: bool,
}

/// Whom a TLS client believes.
#[derive(Clone, Debug)]
pub enum Trust {
    /// The authorities of the machine.
    System,
    /// Those in PEM.
    Pem(Vec<u8>),
    /// Everybody.
    Anyone,
}

/// A TLS client that offers `protocols` by ALPN. Errors, with their cure: no usable authority.
pub fn tls(trust: &Trust, protocols: &[&str]) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring speaks the default versions");
    let mut config = match trust {
        Trust::Anyone => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider))),
        Trust::System => builder.with_root_certificates(authorities(rustls_native_certs::load_native_certs().certs)?),
        Trust::Pem(pem) => {
            let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            builder.with_root_certificates(authorities(certificates.map_err(|error| error.to_string())?)?)
        }
    }
    .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

fn authorities(certificates: Vec<CertificateDer<'static>>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates);
    if roots.is_empty() { Err("no usable certificate; give a PEM file with --ca".to_owned()) } else { Ok(roots) }
}

/// Believes every certificate, as asked for by `--insecure`; signatures are checked all the same.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl Endpoint {
    /// In clear.
    pub fn plain(address: SocketAddr) -> Self {
        Self { addresses: vec![address], tls: None, source_by_key: false }
    }

    /// Connects on behalf of `key`. `nth` picks the address. Errors: TCP or TLS cannot be set up.
    pub(crate) async fn connect(&self, nth: usize, key: u64) -> Result<Stream, Failure> {
        let address = self.addresses[nth % self.addresses.len()];
        let tcp = if self.source_by_key {
            let socket = TcpSocket::new_v4().map_err(|error| Failure::connecting(&error))?;
            socket.bind(SocketAddr::new(source(key), 0)).map_err(|error| Failure::connecting(&error))?;
            socket.connect(address).await
        } else {
            TcpStream::connect(address).await
        }
        .map_err(|error| Failure::connecting(&error))?;
        tcp.set_nodelay(true).map_err(|error| Failure::connecting(&error))?;
        match &self.tls {
            None => Ok(Stream::Plain(tcp)),
            Some((config, name)) => {
                let connector = TlsConnector::from(Arc::clone(config));
                let stream = connector.connect(name.clone(), tcp).await.map_err(|error| Failure::handshake(&error))?;
                Ok(Stream::Tls(Box::new(stream)))
            }
        }
    }
}

/// A loopback address for a key: 127.1.0.0 and on, so that a splitter by client address tells keys apart.
fn source(key: u64) -> IpAddr {
    const FIRST: u32 = 0x7f01_0000;
    const COUNT: u64 = 0x00fe_ffff;
    IpAddr::V4(Ipv4Addr::from(FIRST + (key % COUNT) as u32))
}

/// A connection, in clear or not.
#[derive(Debug)]
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What a peer did while nobody asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meanwhile {
    /// Nothing.
    Quiet,
    /// It closed.
    Ended,
    /// It sent something.
    Spoke,
}

impl Stream {
    /// What the peer did since the last read. Costs no system call while the connection is quiet.
    pub(crate) fn meanwhile(&mut self) -> Meanwhile {
        let mut bytes = [0; 256];
        let mut bytes = ReadBuf::new(&mut bytes);
        match Pin::new(self).poll_read(&mut Context::from_waker(Waker::noop()), &mut bytes) {
            Poll::Pending => Meanwhile::Quiet,
            Poll::Ready(Ok(())) if !bytes.filled().is_empty() => Meanwhile::Spoke,
            Poll::Ready(_) => Meanwhile::Ended,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
