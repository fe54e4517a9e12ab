//! TLS of a server: [`Tls`] is the server's current configuration, `Session` is the TLS state of one connection.
//!
//! The phase of a connection says which thread may use its socket. The same thread uses the session, which is under the
//! same lock as the phase and reads and writes only when it is called. All bytes of a read are decrypted and taken out
//! of the session at once: the poller would not report a request that stays in the session.
//!
//! In a build without the cargo feature `tls`, `Tls` and `Session` are types without values, and code that uses them
//! never runs.

#[cfg(not(feature = "tls"))]
mod disabled;
#[cfg(feature = "tls")]
mod files;
#[cfg(feature = "tls")]
mod session;
#[cfg(test)]
#[cfg(feature = "tls")]
mod tests;

#[cfg(test)]
#[cfg(feature = "tls")]
#[path = "../../../tests/stories/harness/tls.rs"]
#[allow(dead_code, reason = "the stories use more of it")]
mod clients;

use std::path::PathBuf;
use std::time::Duration;

#[cfg(test)]
#[cfg(feature = "tls")]
use crate::certificates;
#[cfg(not(feature = "tls"))]
pub(super) use disabled::Session;
#[cfg(not(feature = "tls"))]
pub use disabled::Tls;
#[cfg(feature = "tls")]
pub use files::Tls;
#[cfg(feature = "tls")]
pub(super) use session::Session;

/// The type of a handshake record: the first byte that a TLS client sends.
pub(super) const HANDSHAKE_RECORD: u8 = 0x16;
/// The record that is sent to a client whose connection is refused before its handshake: a fatal alert,
/// `internal_error`.
pub(super) const REFUSAL_ALERT: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 80];

/// Whether clients must present a certificate that an authority of `client_ca_file` has signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// A handshake without a certificate fails.
    Required,
    /// A client may connect without a certificate; if it presents one, the certificate must be valid.
    Optional,
}

/// Files and settings of TLS.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// `certificate_file`: the server's certificate, then the intermediate certificates, as PEM.
    pub certificate: PathBuf,
    /// `key_file`: the private key of the server's certificate, as PEM, not encrypted.
    pub key: PathBuf,
    /// `client_ca_file`: the authorities that sign client certificates, as PEM. With `None`, clients are not asked for
    /// a certificate.
    pub client_ca: Option<PathBuf>,
    /// Whether a client certificate is required. Without `client_ca` this has no effect.
    pub client_certificates: ClientCertificates,
    /// Time from the start of the connection to the end of the handshake.
    pub handshake_timeout: Duration,
}

/// A problem with one of the files: its config key, and the text that follows the key in a message, for instance
/// "is /PATH, which is a folder, not a file".
pub type FileProblem = (&'static str, String);

/// State of a session after it has decrypted records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Received {
    /// Whether the handshake is done.
    pub(super) handshake_done: bool,
    /// Whether the client has sent its close_notify.
    pub(super) peer_closed: bool,
}
