//! Certificates and private keys in PEM (RFC 7468), for the TLS of the HTTP server and of the Kafka client.
//!
//! Error texts follow the name of the file or setting, as in "the client key is not PEM". They contain nothing of the
//! content, since a key must not be logged.

use rustls::InconsistentKeys;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{Error, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// Why a certificate chain and a key cannot be used together.
pub(crate) enum KeyProblem {
    /// The key is of a type that is not supported.
    UnsupportedType,
    /// The key is not that of the first certificate.
    OtherCertificate,
    /// The first certificate cannot be used.
    Certificate(rustls::Error),
}

/// Returns the certificates, at least one.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let certificates = found.map_err(|cause| problem(&cause).to_owned())?;
    match certificates.is_empty() {
        true => Err("contains no certificate (BEGIN CERTIFICATE)".to_owned()),
        false => Ok(certificates),
    }
}

/// Returns the first private key.
pub(crate) fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|cause| match cause {
        Error::NoItemsFound => "contains no private key, or only an encrypted one".to_owned(),
        other => problem(&other).to_owned(),
    })
}

/// Combines a certificate chain and the key of its first certificate.
pub(crate) fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, KeyProblem> {
    let key = provider.key_provider.load_private_key(key).map_err(|_| KeyProblem::UnsupportedType)?;
    let identity = CertifiedKey::new(chain, key);
    match identity.keys_match() {
        // `Unknown`: rustls cannot get the public key of this type of key. A mismatch would make the handshakes fail.
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(identity),
        Err(rustls::Error::InconsistentKeys(_)) => Err(KeyProblem::OtherCertificate),
        Err(cause) => Err(KeyProblem::Certificate(cause)),
    }
}

fn problem(cause: &Error) -> &'static str {
    match cause {
        Error::MissingSectionEnd { .. } => "is not PEM: a section has no end",
        Error::IllegalSectionStart { .. } => "is not PEM: a section begins with a malformed line",
        Error::Base64Decode(_) => "is not PEM: a section is not base64",
        _ => "is not PEM",
    }
}
