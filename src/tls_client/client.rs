//! The TLS configuration of a client, made once for all its connections, which so share the cache for session
//! resumption.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::ResolvesClientCert;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SignatureScheme};

use super::TlsFailure;
use super::config::{Identity, TlsConfig, TrustRoots};
use super::session::TlsSession;
use super::verifier::{ServerVerifier, Trusted};
use crate::pem::{self, KeyProblem};

/// The TLS configuration of a client.
#[derive(Clone, Debug)]
pub(crate) struct TlsClient {
    config: Arc<ClientConfig>,
    has_identity: bool,
}

impl TlsClient {
    /// Creates the configuration. The error names the setting that cannot be used.
    pub(crate) fn new(settings: &TlsConfig) -> Result<TlsClient, String> {
        let provider = Arc::new(ring::default_provider());
        let trusted = match settings.verify_certificate {
            true => Some(trusted(&settings.roots)?),
            false => None,
        };
        let verifier = ServerVerifier {
            trusted,
            checks_name: settings.verify_host_name,
            algorithms: provider.signature_verification_algorithms,
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|cause| format!("TLS cannot be used: {cause}"))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let config = match &settings.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified_key(identity, &provider)?)))
            }
        };
        Ok(TlsClient { config: Arc::new(config), has_identity: settings.identity.is_some() })
    }

    /// Creates the state of a new connection to `host`, a name or an IP address.
    pub(crate) fn session(&self, host: &str) -> Result<TlsSession, TlsFailure> {
        let failure = |reason| TlsFailure { reason, is_refusal: false };
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| failure(format!("{host:?} is not a host name that a certificate can have")))?;
        let lacks_certificate = Arc::new(AtomicBool::new(false));
        let config = match self.has_identity {
            true => Arc::clone(&self.config),
            false => {
                let mut config = ClientConfig::clone(&self.config);
                config.client_auth_cert_resolver = Arc::new(NoCertificate(Arc::clone(&lacks_certificate)));
                Arc::new(config)
            }
        };
        let connection =
            ClientConnection::new(config, name).map_err(|cause| failure(format!("TLS cannot be used: {cause}")))?;
        Ok(TlsSession::new(connection, lacks_certificate))
    }
}

/// Answers a server's demand for a client certificate with none, and remembers the demand: the server's reaction is
/// often only an alert with another meaning, or a closed connection.
#[derive(Debug)]
struct NoCertificate(Arc<AtomicBool>);

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.store(true, Ordering::Relaxed);
        None
    }

    // Without certificates rustls would not call `resolve`.
    fn has_certs(&self) -> bool {
        true
    }
}

fn trusted(roots: &TrustRoots) -> Result<Trusted, String> {
    let mut trusted = Trusted { roots: RootCertStore::empty(), pinned: Vec::new() };
    match roots {
        TrustRoots::Pem(pem) => {
            trusted.pinned = certificates(pem, "the CA file")?;
            for certificate in trusted.pinned.iter().cloned() {
                trusted
                    .roots
                    .add(certificate)
                    .map_err(|cause| format!("the CA file contains a certificate that cannot be used: {cause}"))?;
            }
        }
        TrustRoots::System => {
            let found = rustls_native_certs::load_native_certs();
            // A system may have single certificates that rustls does not support.
            trusted.roots.add_parsable_certificates(found.certs);
            if trusted.roots.is_empty() {
                let cause = found.errors.first().map_or(String::new(), |cause| format!(": {cause}"));
                return Err(format!("the system has no CA certificates (package ca-certificates){cause}"));
            }
        }
    }
    Ok(trusted)
}

fn certified_key(identity: &Identity, provider: &CryptoProvider) -> Result<CertifiedKey, String> {
    let chain = certificates(&identity.certificates_pem, "the client certificate")?;
    let key = pem::private_key(&identity.key_pem).map_err(|text| format!("the client key {text}"))?;
    pem::certified_key(chain, key, provider).map_err(|problem| match problem {
        KeyProblem::UnsupportedType => "the client key is of an unsupported type".to_owned(),
        KeyProblem::OtherCertificate => "the client key is not that of the client certificate".to_owned(),
        KeyProblem::Certificate(cause) => format!("the client certificate cannot be used: {cause}"),
    })
}

fn certificates(content: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    pem::certificates(content).map_err(|text| format!("{what} {text}"))
}
