//! The certificates and the user that a broker with a SASL_SSL listener needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::certificates::{Authority, Certificate};
use super::jars::{Edition, java};
use super::process::{Process, folder, tail};

/// The user name at every broker with SASL_SSL, for SCRAM-SHA-512 and PLAIN.
pub(crate) const USER: &str = "alice-of-the-stories";
/// The password of [`USER`], which must not appear in any log.
pub(crate) const PASSWORD: &str = "the-password-of-alice";

/// The files of two authorities and of a broker's certificate for 127.0.0.1, which the first authority signed.
pub(crate) struct Certificates {
    authority: Certificate,
    other_authority: Certificate,
    /// The PEM file with the key and the certificate of the broker.
    broker_store: PathBuf,
}

impl Certificates {
    pub(crate) fn make() -> Certificates {
        let folder = folder("certificates");
        let authority = Authority::new(&folder, "authority");
        let broker = authority.issue("broker", 30);
        let broker_store = folder.join("broker_store.pem");
        let read = |file: &Path| fs::read_to_string(file).expect("openssl created the file");
        fs::write(&broker_store, read(&broker.key) + &read(&broker.certificate)).expect("a file in a temporary folder");
        let other_authority = Authority::new(&folder, "another").own;
        Certificates { authority: authority.own, other_authority, broker_store }
    }

    /// Returns the certificate of the authority that signed the broker's certificate.
    pub(crate) fn authority(&self) -> &Path {
        &self.authority.certificate
    }

    /// Returns the certificate of another authority, which a client of the broker must not trust.
    pub(crate) fn other_authority(&self) -> &Path {
        &self.other_authority.certificate
    }

    /// Returns the lines of `server.properties` for TLS and SASL.
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
            self.broker_store.display()
        )
    }
}

/// Adds [`USER`] for SCRAM-SHA-512, through the plaintext listener at `broker` (`host:port`).
pub(super) fn add_scram_user(edition: Edition, broker: &str) {
    let mut command = java(edition, ["-Xmx256m", "-XX:TieredStopAtLevel=1"]);
    command.args(["kafka.admin.ConfigCommand", "--bootstrap-server", broker, "--alter", "--entity-type", "users"]);
    command.args(["--entity-name", USER, "--add-config"]);
    command.arg(format!("SCRAM-SHA-512=[iterations=4096,password={PASSWORD}]"));
    let output = folder("add-user").join("output");
    let status = Process::start("Kafka's ConfigCommand", command, &output).wait(Duration::from_secs(60));
    assert!(status.success(), "adding a user ({status}):\n{}", tail(&output, 40));
}
