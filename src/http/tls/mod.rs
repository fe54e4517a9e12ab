//! TLS of a server: [`Tls`] is what its connections begin with, `Session` one connection's end of it.
//!
//! Neither reads or writes by itself when it likes: a connection's phase says who may touch the socket, and that one
//! also works with the session, which lies under the same lock as the phase. Whatever a read brought is decrypted and
//! taken out of the session at once, so that no request is ever left behind in it.
//!
//! In a build without the cargo feature `tls` the two types have no values, and what would use them is never run.

#[cfg(not(feature = "tls"))]
mod absent;
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
#[allow(dead_code, reason = "the stories take more of it")]
pub(crate) mod certificates;
#[cfg(test)]
#[cfg(feature = "tls")]
#[path = "../../../tests/stories/harness/tls.rs"]
#[allow(dead_code, reason = "the stories take more of it")]
mod clients;

use std::path::PathBuf;
use std::time::Duration;

#[cfg(not(feature = "tls"))]
pub(super) use absent::Session;
#[cfg(not(feature = "tls"))]
pub use absent::Tls;
#[cfg(feature = "tls")]
pub use files::Tls;
#[cfg(feature = "tls")]
pub(super) use session::Session;

/// With this byte everything begins that a client of TLS sends: a record with a message of the handshake.
pub(super) const FIRST_BYTE: u8 = 0x16;
/// What a client is told that is turned away before its handshake: a fatal alert, `internal_error`.
pub(super) const TURNED_AWAY: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 80];

/// Whether clients have to show a certificate that the client CA signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// No connection without.
    Required,
    /// One that is shown must be good.
    Optional,
}

/// Where the certificates are, and what goes with them.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// `certificate_file`: the server's certificate and those between it and the root, PEM.
    pub certificate: PathBuf,
    /// `key_file`: its private key, PEM, not encrypted.
    pub key: PathBuf,
    /// `client_ca_file`: who signs certificates of clients, PEM; without it clients are not asked for any.
    pub client_ca: Option<PathBuf>,
    /// Only with `client_ca`.
    pub client_certificates: ClientCertificates,
    /// From the beginning of the connection to the end of the handshake.
    pub handshake_timeout: Duration,
}

/// What is wrong with one of the files: its key (as in [`TlsSettings`]), and a text that begins with what it is.
pub type FileProblem = (&'static str, String);

/// What came of bytes that arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Received {
    /// The handshake is done.
    pub(super) established: bool,
    /// The client said that it sends nothing more.
    pub(super) ended: bool,
}
