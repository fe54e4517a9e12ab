//! Creates certificates with the `openssl` command. The unit tests of the library use this file, too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// X.509 extensions of issued certificates: names of this machine, and the certificate is not an authority.
const NAMES: &str = "basicConstraints=CA:FALSE\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n";

/// The files of a certificate and its private key.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// A certificate authority, which signs certificates.
pub(crate) struct Authority {
    folder: PathBuf,
    pub(crate) own: Certificate,
}

impl Authority {
    /// Creates an authority whose files are in `folder`.
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

    /// Issues a certificate for a server on this machine or a client, valid for `days` (below 0: expired).
    pub(crate) fn issue(&self, name: &str, days: i32) -> Certificate {
        let issued = files(&self.folder, name);
        let (certificate, key) = (text(&issued.certificate), text(&issued.key));
        let (request, extensions) = (format!("{key}.request"), format!("{key}.extensions"));
        let subject = format!("/CN={name}");
        let mut arguments = vec!["req", "-new", "-subj", &subject, "-out", &request, "-keyout", &key];
        arguments.extend(NEW_KEY);
        openssl(&arguments);
        fs::write(&extensions, NAMES).expect("a file in a temporary folder");
        let (authority, authority_key) = (text(&self.own.certificate), text(&self.own.key));
        let mut arguments = vec!["x509", "-req", "-in", &request, "-out", &certificate, "-extfile", &extensions];
        let days = days.to_string();
        arguments.extend(["-CA", &authority, "-CAkey", &authority_key, "-CAcreateserial", "-days", &days]);
        openssl(&arguments);
        issued
    }
}

const NEW_KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

fn files(folder: &Path, name: &str) -> Certificate {
    let file = |ending: &str| folder.join(format!("{name}.{ending}"));
    Certificate { certificate: file("pem"), key: file("key") }
}

fn text(path: &Path) -> String {
    path.to_str().expect("temporary paths are UTF-8").to_owned()
}

fn openssl(arguments: &[&str]) {
    let outcome = Command::new("openssl").args(arguments).stdin(Stdio::null()).output().expect("openssl is installed");
    assert!(outcome.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&outcome.stderr));
}
