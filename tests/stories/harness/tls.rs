//! TLS clients that trust the certificates of the tests. The unit tests of the library use this file, too.

use std::io::{self, Read};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

use super::certificates::{Authority, Certificate};

impl Authority {
    /// Returns a TLS client configuration that trusts this authority.
    pub(crate) fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        self.client_with(versions, None)
    }

    /// Returns a TLS client configuration that trusts this authority and, if given, sends a client certificate.
    pub(crate) fn client_with(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        identity: Option<&Certificate>,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.own.certificate)).expect("the certificate is an authority's");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .expect("the provider supports the versions")
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(files) => {
                let key = PrivateKeyDer::from_pem_file(&files.key).expect("a key");
                builder
                    .with_client_auth_cert(vec![certificate(&files.certificate)], key)
                    .expect("the key belongs to the certificate")
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

/// Reads the first certificate of a PEM file.
pub(crate) fn certificate(file: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(file).expect("a certificate")
}

/// A TLS connection. A read at the end of the connection fails unless the server sent close_notify.
pub(crate) type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// Returns the client's side of a TLS connection before the handshake.
pub(crate) fn new_client(config: &Arc<ClientConfig>) -> ClientConnection {
    let name = ServerName::try_from("localhost").expect("a name");
    ClientConnection::new(Arc::clone(config), name).expect("the TLS configuration is valid")
}

/// Does the TLS handshake on the socket; returns the TLS connection.
pub(crate) fn handshake(config: &Arc<ClientConfig>, socket: TcpStream) -> io::Result<TlsStream> {
    let mut stream = StreamOwned::new(new_client(config), socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// Reads to the end of the connection; returns the bytes, and whether the server sent close_notify.
pub(crate) fn read_until_closed(stream: &mut TlsStream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let ended = stream.read_to_end(&mut bytes);
    (bytes, ended.is_ok())
}
