//! A Zabbix server that records the values it is sent, the real `zabbix_sender`, and how Zabbix makes the key of an
//! item from the names that a discovery found.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::prometheus::missing;

/// One value as the server received it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) host: String,
    pub(crate) key: String,
    pub(crate) value: String,
    /// Unix seconds; `None` if the sender gave none.
    pub(crate) clock: Option<u64>,
}

/// A server on a free port that accepts every value. It serves until this process ends.
pub(crate) struct ZabbixServer {
    port: u16,
    received: Arc<Mutex<Vec<Received>>>,
}

impl ZabbixServer {
    pub(crate) fn start() -> ZabbixServer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let received = Arc::<Mutex<Vec<Received>>>::default();
        let values = Arc::clone(&received);
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                answer(connection, &values);
            }
        });
        ZabbixServer { port, received }
    }

    /// Sends a file of lines with `zabbix_sender -T`, which exits with 0 if the server accepted all of them. Returns
    /// what arrived.
    #[track_caller]
    pub(crate) fn send_file(&self, file: &Path, host: &str) -> Vec<Received> {
        self.received.lock().expect("no thread panics with it").clear();
        let output = Command::new("zabbix_sender")
            .args(["-z", "127.0.0.1", "-p", &self.port.to_string(), "-s", host, "-T", "-i"])
            .arg(file)
            .stdin(Stdio::null())
            .output();
        let output = output.unwrap_or_else(|cause| panic!("{}", missing("zabbix_sender", &cause)));
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "zabbix_sender: {}\n{text}", output.status);
        self.received.lock().expect("no thread panics with it").clone()
    }
}

/// Reads one request of the protocol of senders (`ZBXD`, a byte of flags, the length, JSON), and accepts its values.
fn answer(mut connection: TcpStream, received: &Mutex<Vec<Received>>) {
    let mut head = [0; 13];
    connection.read_exact(&mut head).expect("a header");
    assert_eq!(&head[..5], b"ZBXD\x01", "the header of an uncompressed message");
    let length = u64::from_le_bytes(head[5..].try_into().expect("8 bytes"));
    let mut body = vec![0; usize::try_from(length).expect("a small message")];
    connection.read_exact(&mut body).expect("the whole message");
    let request: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(request["request"], "sender data", "{request}");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let value = |value: &Value| Received {
        host: text(&value["host"]),
        key: text(&value["key"]),
        value: text(&value["value"]),
        clock: value["clock"].as_u64(),
    };
    let values: Vec<Received> = request["data"].as_array().expect("a list").iter().map(value).collect();
    let count = values.len();
    received.lock().expect("no thread panics with it").extend(values);
    let info = format!("processed: {count}; failed: 0; total: {count}; seconds spent: 0.000001");
    let answer = json!({"response": "success", "info": info}).to_string();
    let length = (answer.len() as u64).to_le_bytes();
    // `zabbix_sender` reports an answer that it cannot read.
    let _ = connection.write_all(&[b"ZBXD\x01", &length[..], answer.as_bytes()].concat());
}

/// Returns the key that Zabbix makes from the key of a prototype and the macros of a discovered object; `None` if
/// Zabbix refuses it. A port of `substitute_key_macros` and `zbx_quote_key_param` for parameters that are one macro
/// each.
pub(crate) fn expanded_key(prototype: &str, macros: &BTreeMap<String, String>) -> Option<String> {
    let Some((name, parameters)) = prototype.split_once('[') else { return Some(prototype.to_owned()) };
    let parameters = parameters.strip_suffix(']').expect("a key ends with its parameters").split(',');
    let expanded: Option<Vec<String>> = parameters.map(|name| quoted_parameter(&macros[name])).collect();
    Some(format!("{name}[{}]", expanded?.join(",")))
}

fn quoted_parameter(text: &str) -> Option<String> {
    let first = text.chars().next();
    if !matches!(first, Some('"' | ' ' | '[')) && !text.contains(',') && !text.contains(']') {
        return Some(text.to_owned());
    }
    if text.ends_with('\\') {
        return None;
    }
    let escaped: String =
        text.chars().flat_map(|letter| (letter == '"').then_some('\\').into_iter().chain([letter])).collect();
    Some(format!("\"{escaped}\""))
}
