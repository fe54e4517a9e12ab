//! Dead letters: reads them from their topic, and runs the command that replays them.

use std::collections::BTreeMap;
use std::process::{Command, Output};
use std::time::Duration;

use kafka_http_wrapper::broker::{Header, Record};

use super::engine::read_partition;
use super::{Cluster, Daemon, Program, binary, kafka_wire, poll};

const PREFIX: &str = "X-Dead-Letter-";
const DEADLINE: Duration = Duration::from_secs(30);

/// A dead letter as it is in Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Letter {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    /// The headers of the message itself.
    pub(crate) headers: Vec<Header>,
    /// The fields, by their names without the prefix.
    pub(crate) fields: BTreeMap<String, String>,
}

impl Letter {
    /// Returns the key as text.
    pub(crate) fn key(&self) -> String {
        String::from_utf8_lossy(self.key.as_deref().unwrap_or_default()).into_owned()
    }

    /// Returns the value of a field; `-` if the letter does not have it.
    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("-", String::as_str)
    }

    /// Returns the offset that the message had.
    #[track_caller]
    pub(crate) fn offset(&self) -> i64 {
        self.field("Offset").parse().expect("a number")
    }
}

/// Returns all dead letters in a topic, by partition and in their order.
#[track_caller]
pub(crate) fn letters(cluster: &Cluster, topic: &str) -> Vec<Letter> {
    letters_of(&cluster.brokers, topic)
}

/// As [`letters`], from these brokers.
#[track_caller]
pub(crate) fn letters_of(brokers: &str, topic: &str) -> Vec<Letter> {
    let mut letters = Vec::new();
    let ends = poll(DEADLINE, || kafka_wire::log_ends(brokers, topic).ok()).expect("the leaders answer");
    for (partition, end) in ends {
        let messages = read_partition(brokers, topic, partition, usize::try_from(end).expect("a count"));
        letters.extend(messages.into_iter().map(|message| {
            let (fields, headers): (Vec<Header>, Vec<Header>) =
                message.headers.into_iter().partition(|header| header.name.starts_with(PREFIX));
            let fields = fields.into_iter().map(|header| {
                let value = header.value.expect("a field has a value");
                (header.name[PREFIX.len()..].to_owned(), String::from_utf8(value).expect("text"))
            });
            Letter { key: message.key, value: message.value, headers, fields: fields.collect() }
        }));
    }
    letters
}

/// Appends records with all that they may have: no key, no value, headers.
#[track_caller]
pub(crate) fn append(cluster: &Cluster, records: Vec<Record>) {
    super::engine::append(&cluster.brokers, records);
}

/// Runs `ktransfer_bin --replay-dead-letters MODULE` with further arguments, in the folder of `daemon`.
#[track_caller]
pub(crate) fn replay(daemon: &Daemon, module: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary(Program::Ktransfer));
    command.current_dir(daemon.folder()).args(["-f", "conf/ktransfer.yaml", "--replay-dead-letters", module]);
    command.args(arguments).output().expect("ktransfer runs")
}
