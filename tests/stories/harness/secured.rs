//! What a broker with a SASL_SSL listener needs: an authority, a certificate for loopback, and a user.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::jars::{Edition, java};
use super::process::{Process, folder, tail};

/// The user that every secured broker knows, by SCRAM-SHA-512 and PLAIN.
pub(crate) const USER: &str = "alice-of-the-stories";
/// Her password; it may not appear in any log.
pub(crate) const PASSWORD: &str = "the-password-of-alice";

/// An authority and the certificate of a broker at 127.0.0.1, in files.
pub(crate) struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes them with the `openssl` command.
    pub(crate) fn make() -> Certificates {
        let folder = folder("certificates");
        fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n")
            .expect("a file in our own folder");
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let run = |arguments: &[&str]| openssl(&folder, arguments);
        for (name, subject) in [("ca", "/CN=the authority of the stories"), ("other", "/CN=another authority")] {
            let (key_file, file) = (format!("{name}.key"), format!("{name}.pem"));
            let own = ["req", "-x509", "-days", "30", "-keyout", &key_file, "-out", &file, "-subj", subject];
            run(&[&own[..], &key].concat());
        }
        run(&[&["req", "-keyout", "broker.key", "-out", "broker.csr", "-subj", "/CN=127.0.0.1"][..], &key].concat());
        run(&[
            "x509",
            "-req",
            "-in",
            "broker.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "30",
            "-extfile",
            "names",
            "-out",
            "broker.pem",
        ]);
        let read = |name: &str| fs::read_to_string(folder.join(name)).expect("openssl made it");
        fs::write(folder.join("broker_store.pem"), read("broker.key") + &read("broker.pem")).expect("our own folder");
        Certificates { folder }
    }

    /// The certificate of the authority that signed the broker's.
    pub(crate) fn authority(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// The certificate of an authority that signed nothing.
    pub(crate) fn other_authority(&self) -> PathBuf {
        self.folder.join("other.pem")
    }

    /// Lines of a broker's properties.
    pub(super) fn broker_properties(&self) -> String {
        let modules = "org.apache.kafka.common.security";
        format!(
            "ssl.keystore.type=PEM\nssl.keystore.location={}\nssl.client.auth=none\n\
             sasl.enabled.mechanisms=SCRAM-SHA-512,PLAIN,OAUTHBEARER\n\
             listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={modules}.scram.ScramLoginModule required;\n\
             listener.name.sasl_ssl.plain.sasl.jaas.config={modules}.plain.PlainLoginModule required \
             user_{USER}=\"{PASSWORD}\";\n\
             listener.name.sasl_ssl.oauthbearer.sasl.jaas.config={modules}.oauthbearer.OAuthBearerLoginModule required \
             unsecuredLoginStringClaim_sub=\"broker\";\n",
            self.folder.join("broker_store.pem").display()
        )
    }
}

/// Makes [`USER`] known to a cluster for SCRAM-SHA-512, through a listener that asks for nothing.
pub(super) fn add_scram_user(edition: Edition, broker: &str) {
    let mut command = java(edition, &["-Xmx256m", "-XX:TieredStopAtLevel=1"]);
    command.args(["kafka.admin.ConfigCommand", "--bootstrap-server", broker, "--alter", "--entity-type", "users"]);
    command.args(["--entity-name", USER, "--add-config"]);
    command.arg(format!("SCRAM-SHA-512=[iterations=4096,password={PASSWORD}]"));
    let output = folder("add-user").join("output");
    let status = Process::start("Kafka's ConfigCommand", command, &output).wait(Duration::from_secs(60));
    assert!(status.success(), "adding a user ({status}):\n{}", tail(&output, 40));
}

fn openssl(folder: &Path, arguments: &[&str]) {
    let mut command = Command::new("openssl");
    let output = command.args(arguments).current_dir(folder).stdin(Stdio::null()).output().expect("openssl is there");
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
