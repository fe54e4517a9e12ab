//! `backend_servers`, and `tls` of the https backends among them.

use std::path::Path;

use crate::config::{Problems, Section};
use crate::ktransfer::backend_client::{BackendTls, HTTPS, check_server};
use crate::regular_file;
use crate::tls_client::{Identity, TlsConfig, TrustRoots};

/// Limit on the size of a PEM file in bytes; larger than any list of authorities.
const MAX_FILE_BYTES: usize = 4 << 20;

/// Reads the map `tls`.
pub(super) fn tls(section: Option<Section>, problems: &mut Problems) -> Option<BackendTls> {
    let mut section = section?;
    let before = problems.0.len();
    let roots = pem(&mut section, "ca_file", problems).map_or(TrustRoots::System, TrustRoots::Pem);
    let certificate = pem(&mut section, "certificate_file", problems);
    let key = pem(&mut section, "key_file", problems);
    let identity = match (certificate, key) {
        (Some(certificates_pem), Some(key_pem)) => Some(Identity { certificates_pem, key_pem }),
        (None, None) => None,
        _ if before < problems.0.len() => None,
        _ => {
            section.note("", "must have both certificate_file and key_file, or neither", problems);
            None
        }
    };
    let server_name = section.has("server_name").then(|| section.string("server_name", None, problems));
    let mut tls = None;
    if before == problems.0.len() {
        match BackendTls::new(config(roots, identity), server_name) {
            Ok(made) => tls = Some(made),
            Err(text) => section.note("", format!("cannot be used: {text}"), problems),
        }
    }
    section.finish(problems);
    tls
}

fn config(roots: TrustRoots, identity: Option<Identity>) -> TlsConfig {
    TlsConfig { roots, identity, verify_certificate: true, verify_host_name: true }
}

/// Takes the path of a file; returns its content.
fn pem(section: &mut Section, key: &str, problems: &mut Problems) -> Option<Vec<u8>> {
    let path = section.has(key).then(|| section.string(key, None, problems)).filter(|path| !path.is_empty())?;
    let content = regular_file::read(Path::new(&path), MAX_FILE_BYTES);
    content.map_err(|cause| section.note(key, format!("is {path:?}, which {cause}"), problems)).ok()
}

/// Checks `backend_servers`. If one of them has https, returns the TLS for a module that configures none: the
/// authorities of the system, and no client certificate. A system without authorities is a problem only then.
pub(super) fn check(
    section: &Section,
    servers: &[String],
    has_tls: bool,
    problems: &mut Problems,
) -> Option<BackendTls> {
    let before = problems.0.len();
    for server in servers {
        if let Err(text) = check_server(server) {
            section.note("backend_servers", text, problems);
        }
    }
    if before < problems.0.len() || has_tls || !servers.iter().any(|server| server.starts_with(HTTPS)) {
        return None;
    }
    let tls = BackendTls::new(config(TrustRoots::System, None), None);
    tls.map_err(|text| section.note("backend_servers", format!("has an https backend, but {text}"), problems)).ok()
}
