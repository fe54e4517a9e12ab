//! The settings of TLS as a client.

use std::fmt;

/// Settings of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The certificate authorities that may sign the server's certificate.
    pub roots: TrustRoots,
    /// The client's certificate, for servers that demand one.
    pub identity: Option<Identity>,
    /// Whether the server's certificate is verified. With `false` its name is not verified either; an active attacker
    /// can then read and change everything.
    pub verify_certificate: bool,
    /// Whether the server's certificate must be for the host name or IP address of the server
    /// (`ssl.endpoint.identification.algorithm` of Kafka).
    pub verify_host_name: bool,
}

/// Where trusted certificate authorities come from.
#[derive(Clone, PartialEq, Eq)]
pub enum TrustRoots {
    /// The operating system's.
    System,
    /// The content of a PEM file with certificates.
    Pem(Vec<u8>),
}

impl fmt::Debug for TrustRoots {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrustRoots::System => formatter.write_str("System"),
            TrustRoots::Pem(pem) => write!(formatter, "Pem({} bytes)", pem.len()),
        }
    }
}

/// Certificate and private key of a client.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The client's certificate, then the intermediate certificates, as PEM.
    pub certificates_pem: Vec<u8>,
    /// The private key of the client's certificate, as PEM, not encrypted.
    pub key_pem: Vec<u8>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Identity").finish_non_exhaustive()
    }
}
