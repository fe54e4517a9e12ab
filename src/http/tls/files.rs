//! Reads the certificates and the key from their files, at the start and on each reload.
//!
//! Each reload creates a new rustls configuration with a new session ticket key. So a client whose ticket was issued
//! before the reload needs a full handshake, in which its certificate is verified against the current client CA.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};

use super::session::Session;
use super::{ClientCertificates, FileProblem, TlsSettings};
use crate::locks;
use crate::pem::{self, KeyProblem};
use crate::regular_file;

/// Limit on the size of a file in bytes; larger than any certificate chain or list of authorities.
const MAX_FILE_BYTES: usize = 4 << 20;

/// The TLS configuration for new connections of a server. Clones share the configuration, so [`Tls::reload`] changes it
/// for all clones.
#[derive(Clone)]
pub struct Tls {
    shared: Arc<SharedConfig>,
}

struct SharedConfig {
    settings: TlsSettings,
    current: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files. The error contains every problem that was found in them.
    pub fn load(settings: TlsSettings) -> Result<Tls, Vec<FileProblem>> {
        let current = RwLock::new(read(&settings)?.0);
        Ok(Tls { shared: Arc::new(SharedConfig { settings, current }) })
    }

    /// Reads the files again and uses them for new connections. Returns a summary of the files; after an error the
    /// previous configuration stays in use.
    pub fn reload(&self) -> Result<String, String> {
        let settings = &self.shared.settings;
        let (config, summary) = read(settings).map_err(|problems| {
            let texts: Vec<_> = problems.iter().map(|(key, text)| format!("{key} {text}")).collect();
            texts.join("; ")
        })?;
        *locks::write(&self.shared.current) = config;
        Ok(summary)
    }

    pub(in crate::http) fn handshake_timeout(&self) -> Duration {
        self.shared.settings.handshake_timeout
    }

    /// Creates the TLS state of a new connection.
    pub(in crate::http) fn session(&self) -> Box<Session> {
        let current = locks::read(&self.shared.current);
        Box::new(Session::new(Arc::clone(&current)))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.settings.fmt(formatter)
    }
}

/// Reads the files; returns the rustls configuration and a summary of the files.
fn read(settings: &TlsSettings) -> Result<(Arc<ServerConfig>, String), Vec<FileProblem>> {
    let provider = Arc::new(ring::default_provider());
    let mut problems = Vec::new();
    let chain = record_problem("certificate_file", &settings.certificate, certificates, &mut problems);
    let key = record_problem("key_file", &settings.key, private_key, &mut problems);
    let roots = settings.client_ca.as_deref().and_then(|file| {
        record_problem(
            "client_ca_file",
            file,
            |file| authorities(file).map(|roots| (file.to_owned(), roots)),
            &mut problems,
        )
    });
    // The key is compared with the certificate only if both could be read.
    let identity = chain.zip(key).and_then(|(chain, key)| {
        let length = chain.len();
        identity(chain, key, settings, &provider).map_err(|problem| problems.push(problem)).ok().map(|it| (it, length))
    });
    let (Some((identity, length)), true) = (identity, problems.is_empty()) else { return Err(problems) };

    let mut summary = format!("certificates: {length} from {}", settings.certificate.display());
    let verifier = match roots {
        None => None,
        Some((file, roots)) => {
            summary += &format!(", client authorities: {} from {}", roots.len(), file.display());
            let verifier = client_verifier(roots, settings.client_certificates, &provider);
            Some(verifier.map_err(|text| {
                vec![("client_ca_file", format!("is {}, which cannot be used: {text}", file.display()))]
            })?)
        }
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has cipher suites for TLS 1.2 and 1.3");
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(identity)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ticketer = ring::Ticketer::new().map_err(|cause| {
        vec![("key_file", format!("cannot be used: creating the session ticket key failed: {cause}"))]
    })?;
    Ok((Arc::new(config), summary))
}

/// Reads one file with `read`. If that fails, adds the problem to `problems`, with the config key and the path, and
/// returns `None`.
fn record_problem<T>(
    key: &'static str,
    file: &Path,
    read: impl FnOnce(&Path) -> Result<T, String>,
    problems: &mut Vec<FileProblem>,
) -> Option<T> {
    read(file).map_err(|text| problems.push((key, format!("is {}, which {text}", file.display())))).ok()
}

fn content(file: &Path) -> Result<Vec<u8>, String> {
    regular_file::read(file, MAX_FILE_BYTES).map_err(|cause| cause.to_string())
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    pem::certificates(&content(file)?)
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    pem::private_key(&content(file)?)
}

fn authorities(file: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots
            .add(certificate)
            .map_err(|cause| format!("contains a certificate that cannot be used as an authority: {cause}"))?;
    }
    Ok(roots)
}

/// Combines the certificate chain and the key. Fails if the key is not that of the first certificate.
fn identity(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    settings: &TlsSettings,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, FileProblem> {
    let (certificate, key_file) = (settings.certificate.display(), settings.key.display());
    pem::certified_key(chain, key, provider).map_err(|problem| match problem {
        KeyProblem::UnsupportedType => {
            ("key_file", format!("is {key_file}, which has a private key of an unsupported type"))
        }
        KeyProblem::OtherCertificate => {
            ("key_file", format!("is {key_file}, which is not the key of the first certificate in {certificate}"))
        }
        KeyProblem::Certificate(cause) => {
            ("certificate_file", format!("is {certificate}, whose first certificate cannot be used: {cause}"))
        }
    })
}

fn client_verifier(
    roots: RootCertStore,
    mode: ClientCertificates,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let builder = match mode {
        ClientCertificates::Required => builder,
        ClientCertificates::Optional => builder.allow_unauthenticated(),
    };
    builder.build().map_err(|cause| cause.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::{Authority, Certificate};
    use std::fs;
    use std::path::PathBuf;

    fn settings(own: &Certificate, client_ca: Option<&Path>) -> TlsSettings {
        TlsSettings {
            certificate: own.certificate.clone(),
            key: own.key.clone(),
            client_ca: client_ca.map(Path::to_owned),
            client_certificates: ClientCertificates::Required,
            handshake_timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn each_file_problem_is_reported_without_file_content() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "authority");
        let (own, other) = (authority.issue("own", 30), authority.issue("other", 30));
        assert!(Tls::load(settings(&own, Some(&authority.own.certificate))).is_ok());
        let written = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let key = fs::read_to_string(&own.key).unwrap();
        let secret = key.lines().nth(1).unwrap();
        let empty = written("empty", "");
        let no_end = written("no_end", &key.replace("END", "FIN"));
        let no_base64 = written("no_base64", &key.replace(secret, &format!("*{secret}")));
        let bad_start = written("bad_start", &format!("-----BEGIN {secret}\n"));
        let not_der = written("not_der", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
        let no_certificate =
            written("no_certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        let encrypted = written("encrypted", &key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"));
        let large = folder.path().join("large");
        fs::File::create(&large).unwrap().set_len(5 << 20).unwrap();
        let absent = folder.path().join("absent");
        let with_key = |key: &PathBuf| settings(&Certificate { key: key.clone(), ..own.clone() }, None);
        let with_certificate =
            |certificate: &PathBuf| settings(&Certificate { certificate: certificate.clone(), ..own.clone() }, None);
        let with_ca = |file: &PathBuf| settings(&own, Some(file));
        let rows: &[(TlsSettings, &str, &str)] = &[
            (with_key(&absent), "key_file", "cannot be read: No such file"),
            (with_key(&folder.path().to_owned()), "key_file", "is a folder, not a file"),
            (with_key(&large), "key_file", "bytes, which is the maximum"),
            (with_key(&empty), "key_file", "contains no private key"),
            (with_key(&encrypted), "key_file", "or only an encrypted one"),
            (with_key(&no_end), "key_file", "a section has no end"),
            (with_key(&no_base64), "key_file", "is not base64"),
            (with_key(&bad_start), "key_file", "malformed line"),
            (with_key(&not_der), "key_file", "of an unsupported type"),
            (with_key(&other.key), "key_file", "is not the key of the first certificate in"),
            (with_certificate(&absent), "certificate_file", "cannot be read"),
            (with_certificate(&own.key), "certificate_file", "contains no certificate"),
            (with_certificate(&no_certificate), "certificate_file", "cannot be used"),
            (with_ca(&empty), "client_ca_file", "contains no certificate"),
            (with_ca(&no_certificate), "client_ca_file", "cannot be used as an authority"),
        ];
        for (settings, key, text) in rows {
            let problems = Tls::load(settings.clone()).unwrap_err();
            let [(named, problem)] = &problems[..] else { panic!("{key}, {text}: {problems:?}") };
            assert!(named == key && problem.starts_with("is /") && problem.contains(text), "{key}, {text}: {problem}");
            assert!(!problem.contains(secret) && !problem.contains(&format!("{:?}", secret.as_bytes())), "{problem}");
        }
        let all = settings(&Certificate { certificate: absent.clone(), key: absent.clone() }, Some(&absent));
        assert_eq!(Tls::load(all).unwrap_err().len(), 3, "one call reports the problems of all three files");
    }

    #[test]
    fn a_failed_reload_keeps_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "authority");
        let (own, other) = (authority.issue("own", 30), authority.issue("other", 30));
        let tls = Tls::load(settings(&own, None)).unwrap();
        let current = || Arc::clone(&tls.shared.current.read().unwrap());
        let before = current();
        fs::copy(&other.certificate, &own.certificate).unwrap();
        let reason = tls.reload().unwrap_err();
        assert!(reason.contains("key_file is /") && reason.contains("is not the key"), "{reason}");
        assert!(Arc::ptr_eq(&before, &current()));
        fs::copy(&other.key, &own.key).unwrap();
        let summary = tls.clone().reload().unwrap();
        assert!(summary.starts_with("certificates: 1 from /"), "{summary}");
        assert!(!Arc::ptr_eq(&before, &current()));
    }
}
