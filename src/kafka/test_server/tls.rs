//! TLS servers. Their certificates are made with the `openssl` command.

use std::fs;
use std::net::TcpStream;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion};

use crate::certificates::{Authority, Certificate};
use crate::kafka::config::{Identity, TlsConfig, TrustRoots};

pub(in crate::kafka) type TlsStream = StreamOwned<ServerConnection, TcpStream>;

/// Returns a server configuration with a certificate and a key, which belong together or not.
/// `client_authority`: signs the client certificates that the server requires.
pub(in crate::kafka) fn server(
    certificate: &Certificate,
    key: &Certificate,
    client_authority: Option<&Authority>,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let chain = vec![CertificateDer::from_pem_file(&certificate.certificate).unwrap()];
    let key = provider.key_provider.load_private_key(PrivateKeyDer::from_pem_file(&key.key).unwrap()).unwrap();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions).unwrap();
    let builder = match client_authority {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(&authority.own.certificate).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    Arc::new(builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)))))
}

/// Returns the server's side of a connection. The handshake is made by the first read.
pub(in crate::kafka) fn accept(config: &Arc<ServerConfig>, socket: TcpStream) -> TlsStream {
    StreamOwned::new(ServerConnection::new(Arc::clone(config)).unwrap(), socket)
}

/// Returns client settings that trust an authority.
pub(in crate::kafka) fn trusting(authority: &Authority) -> TlsConfig {
    TlsConfig {
        roots: TrustRoots::Pem(fs::read(&authority.own.certificate).unwrap()),
        identity: None,
        verify_certificate: true,
        verify_host_name: true,
    }
}

pub(in crate::kafka) fn identity(certificate: &Certificate) -> Identity {
    Identity {
        certificates_pem: fs::read(&certificate.certificate).unwrap(),
        key_pem: fs::read(&certificate.key).unwrap(),
    }
}
