//! Tests of connections against servers in this process.

mod plain;
mod sasl;
#[cfg(feature = "tls")]
mod tls;

use std::time::Duration;

use super::{ConnectionError, ConnectionErrorKind, Connector};
use crate::kafka::config::{BrokerAddress, ConnectionConfig, SaslConfig, Security, TlsConfig};
use crate::kafka::protocol::Request;
use crate::kafka::test_server::{later, soon};
use crate::kafka::wire::{Malformed, WireReader};

/// A request with a body of bytes, whose response is a body of bytes.
struct Echo(Vec<u8>);

const ECHO: i16 = 99;
const APIS: &[(i16, i16, i16)] = &[(18, 0, 3), (ECHO, 0, 1), (17, 0, 1), (36, 0, 1)];

impl Request for Echo {
    const API_KEY: i16 = ECHO;
    const VERSIONS: (i16, i16) = (1, 2);
    const FIRST_FLEXIBLE: i16 = 2;
    type Response = Vec<u8>;

    fn encode(&self, buffer: &mut Vec<u8>, _: i16) {
        buffer.extend_from_slice(&self.0);
    }

    fn decode(reader: &mut WireReader, _: i16) -> Result<Vec<u8>, Malformed> {
        let rest = reader.rest();
        reader.take(rest.len()).map(<[u8]>::to_vec)
    }
}

fn connector(tls: Option<TlsConfig>, sasl: Option<SaslConfig>) -> Connector {
    let config = ConnectionConfig {
        client_id: "test".into(),
        connect_timeout: Duration::from_secs(60),
        max_response_bytes: 64 << 20,
        security: Security { tls, sasl },
        ..ConnectionConfig::default()
    };
    Connector::new(config)
}

/// Connects without success, with a short deadline if the peer is `silent`. Returns the error without the broker's
/// name.
fn refusal(connector: &Connector, address: &BrokerAddress, silent: bool) -> (ConnectionErrorKind, String) {
    let deadline = if silent { soon() } else { later() };
    match connector.connect(address, deadline) {
        Ok(_) => panic!("connected"),
        Err(error) => parts(&error, address),
    }
}

fn parts(error: &ConnectionError, address: &BrokerAddress) -> (ConnectionErrorKind, String) {
    let text = error.to_string();
    let reason = text.strip_prefix(&format!("broker {address}: ")).unwrap_or_else(|| panic!("{text}"));
    (error.kind, reason.to_owned())
}
