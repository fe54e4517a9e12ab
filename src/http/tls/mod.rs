//! TLS of a server: [`Tls`] is the server's current configuration, `Session` the TLS state of one connection.
//!
//! A session writes only when it is called: a connection's phase says which thread may use the socket, and that thread
//! also uses the session, which is under the same lock as the phase. All bytes of a read are decrypted and taken out of
//! the session at once, so that no request stays in it unnoticed.
//!
//! In a build without the cargo feature `tls` the two types have no values, and the code that uses them never runs.

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
#[path = "../../../tests/stories/harness/certificates.rs"]
#[allow(dead_code, reason = "the stories use more of it")]
pub(crate) mod certificates;
#[cfg(test)]
#[cfg(feature = "tls")]
#[path = "../../../tests/stories/harness/tls.rs"]
#[allow(dead_code, reason = "the stories use more of it")]
mod clients;

use std::path::PathBuf;
use std::time::Duration;

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
/// The record sent to a client that is refused before its handshake: a fatal alert, `internal_error`.
pub(super) const REFUSAL_ALERT: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 80];

/// Whether clients must present a certificate that the client CA signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// A handshake without a certificate fails.
    Required,
    /// A certificate is not required; one that is presented must be valid.
    Optional,
}

/// Files and settings of TLS.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// `certificate_file`: the server's certificate and the intermediate ones, PEM.
    pub certificate: PathBuf,
    /// `key_file`: its private key, PEM, not encrypted.
    pub key: PathBuf,
    /// `client_ca_file`: the authorities that sign client certificates, PEM; `None`: no client certificate is
    /// requested.
    pub client_ca: Option<PathBuf>,
    /// Has an effect only with `client_ca`.
    pub client_certificates: ClientCertificates,
    /// From the beginning of the connection to the end of the handshake.
    pub handshake_timeout: Duration,
}

/// A problem with one of the files: its config key, and a text to follow the key: "is /PATH, which …".
pub type FileProblem = (&'static str, String);

/// State of a session after records were decrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Received {
    /// The handshake is done.
    pub(super) handshake_done: bool,
    /// The client has sent its close_notify.
    pub(super) peer_closed: bool,
}
