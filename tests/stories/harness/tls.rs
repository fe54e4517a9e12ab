//! Certificates as `openssl` makes them, and clients that trust them. The library's own tests use this file, too.

use std::fs;
use std::io::{self, Read};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

/// What the certificates of servers are for.
const NAMES: &str = "basicConstraints=CA:FALSE\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n";

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// Signs certificates.
pub(crate) struct Authority {
    folder: PathBuf,
    pub(crate) own: Certificate,
}

impl Authority {
    /// A new one, whose files are in `folder`.
    pub(crate) fn new(folder: &Path, name: &str) -> Authority {
        let own = files(folder, name);
        let (certificate, key) = (text(&own.certificate), text(&own.key));
        let subject = format!("/CN={name}");
        let mut arguments =
            vec!["req", "-x509", "-days", "30", "-subj", &subject, "-out", &certificate, "-keyout", &key];
        arguments.extend(NEW_KEY);
        arguments.extend(["-addext", "keyUsage=critical,keyCertSign"]);
        openssl(&arguments);
        Authority { folder: folder.to_owned(), own }
    }

    /// A certificate of a server at this machine or of a client, which holds for `days` (less than 0: held before now).
    pub(crate) fn issue(&self, name: &str, days: i32) -> Certificate {
        let issued = files(&self.folder, name);
        let (certificate, key) = (text(&issued.certificate), text(&issued.key));
        let (request, extensions) = (format!("{key}.request"), format!("{key}.extensions"));
        let subject = format!("/CN={name}");
        let mut arguments = vec!["req", "-new", "-subj", &subject, "-out", &request, "-keyout", &key];
        arguments.extend(NEW_KEY);
        openssl(&arguments);
        fs::write(&extensions, NAMES).expect("a file in our own folder");
        let (authority, authority_key) = (text(&self.own.certificate), text(&self.own.key));
        let mut arguments = vec!["x509", "-req", "-in", &request, "-out", &certificate, "-extfile", &extensions];
        let days = days.to_string();
        arguments.extend(["-CA", &authority, "-CAkey", &authority_key, "-CAcreateserial", "-days", &days]);
        openssl(&arguments);
        issued
    }

    /// A client that trusts this authority.
    pub(crate) fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        self.client_with(versions, None)
    }

    /// The same, with a certificate of its own.
    pub(crate) fn client_with(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        identity: Option<&Certificate>,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.own.certificate)).expect("it is an authority");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .expect("versions the provider knows")
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(files) => {
                let key = PrivateKeyDer::from_pem_file(&files.key).expect("a key");
                builder.with_client_auth_cert(vec![certificate(&files.certificate)], key).expect("they belong together")
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

const NEW_KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

fn files(folder: &Path, name: &str) -> Certificate {
    let file = |ending: &str| folder.join(format!("{name}.{ending}"));
    Certificate { certificate: file("pem"), key: file("key") }
}

fn text(path: &Path) -> String {
    path.to_str().expect("our own folders have plain names").to_owned()
}

/// What stands in a file with one certificate.
pub(crate) fn certificate(file: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(file).expect("a certificate")
}

fn openssl(arguments: &[&str]) {
    let outcome = Command::new("openssl").args(arguments).stdin(Stdio::null()).output().expect("openssl is installed");
    assert!(outcome.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&outcome.stderr));
}

/// A connection of TLS; reading its end fails unless the other side said goodbye.
pub(crate) type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// The client's end before anything is said.
pub(crate) fn begin(config: &Arc<ClientConfig>) -> ClientConnection {
    let name = ServerName::try_from("localhost").expect("a name");
    ClientConnection::new(Arc::clone(config), name).expect("the configuration is good")
}

/// Shakes hands.
pub(crate) fn shake(config: &Arc<ClientConfig>, socket: TcpStream) -> io::Result<TlsStream> {
    let mut stream = StreamOwned::new(begin(config), socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// Reads to the end: what came, and whether the other side said goodbye.
pub(crate) fn rest(stream: &mut TlsStream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let ended = stream.read_to_end(&mut bytes);
    (bytes, ended.is_ok())
}
