//! For unit tests: both ends of TLS. The server's end is rustls.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::BackendTls;
use crate::certificates::{Authority, Certificate};
use crate::tls_client::{Identity, TlsConfig, TrustRoots};

/// `client_authority`: signs the client certificates that the server requires.
pub(super) fn server_config(own: &Certificate, client_authority: Option<&Authority>) -> Arc<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let chain = vec![CertificateDer::from_pem_file(&own.certificate).unwrap()];
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = match client_authority {
        None => builder.unwrap().with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(&authority.own.certificate).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.unwrap().with_client_cert_verifier(verifier)
        }
    };
    Arc::new(builder.with_single_cert(chain, PrivateKeyDer::from_pem_file(&own.key).unwrap()).unwrap())
}

/// The client's end: it trusts `authority`, and shows `identity`.
pub(super) fn tls(authority: &Path, identity: Option<&Certificate>, server_name: Option<&str>) -> BackendTls {
    let read = |path: &Path| fs::read(path).unwrap();
    let identity = identity.map(|own| Identity { certificates_pem: read(&own.certificate), key_pem: read(&own.key) });
    let roots = TrustRoots::Pem(read(authority));
    let config = TlsConfig { roots, identity, verify_certificate: true, verify_host_name: true };
    BackendTls::new(config, server_name.map(str::to_owned)).unwrap()
}
