//! Verifies the certificate of a server, as far as the configuration demands it. The signature of the handshake is
//! always verified: it shows that the peer has the key of its certificate.

use std::fmt;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// The checks of a server's certificate.
pub(super) struct ServerVerifier {
    /// The trusted authorities; `None` accepts every certificate with every name.
    pub(super) trusted: Option<Trusted>,
    /// Whether the certificate must have the name or the IP address of the server.
    pub(super) checks_name: bool,
    /// The signature algorithms of the cryptography provider.
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

/// Certificates that the configuration trusts.
pub(super) struct Trusted {
    /// All of them as authorities.
    pub(super) roots: RootCertStore,
    /// Those of a CA file. A server may also have one of them as its own certificate.
    pub(super) pinned: Vec<CertificateDer<'static>>,
}

impl Trusted {
    /// Verifies that the certificate is valid now, and trusted.
    fn verify(
        &self,
        own: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(own)?;
        match verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms.all) {
            // The usual self-signed certificate (`openssl req -x509`) is marked as an authority. OpenSSL and Java
            // accept it from a server if it is in the CA file. This error comes after the check of the validity period.
            Err(Error::InvalidCertificate(CertificateError::Other(cause)))
                if format!("{cause:?}").contains("CaUsedAsEndEntity") =>
            {
                let is_pinned = self.pinned.iter().any(|trusted| trusted == own);
                if is_pinned { Ok(()) } else { Err(CertificateError::UnknownIssuer.into()) }
            }
            outcome => outcome,
        }
    }
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ServerVerifier")
            .field("checks_certificate", &self.trusted.is_some())
            .field("checks_name", &self.checks_name)
            .finish_non_exhaustive()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(trusted) = &self.trusted {
            trusted.verify(own, intermediates, now, &self.algorithms)?;
            if self.checks_name {
                verify_server_name(&ParsedCertificate::try_from(own)?, server)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
