//! The Kafka requests that the harness itself sends, encoded by hand: metadata, topics, log end offsets.
//!
//! They use none of the daemons' engines, and no Java process, which takes a second to start. They work with Kafka 3.9
//! and 4.x.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::{poll, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

const LIST_OFFSETS: i16 = 2;
const METADATA: i16 = 3;
const CREATE_TOPICS: i16 = 19;
const DELETE_TOPICS: i16 = 20;
const DELETE_RECORDS: i16 = 21;
const CREATE_PARTITIONS: i16 = 37;

const TOPIC_ALREADY_EXISTS: i16 = 36;
const NOT_CONTROLLER: i16 = 41;

/// A metadata response.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    /// `host:port` by broker id.
    pub(crate) brokers: BTreeMap<i32, String>,
    pub(crate) controller: i32,
    /// By topic and partition: the broker id of the leader; -1 if the partition has no leader.
    pub(crate) leaders: BTreeMap<String, BTreeMap<i32, i32>>,
    /// By topic and partition: the broker ids of the in-sync replicas.
    pub(crate) in_sync: BTreeMap<String, BTreeMap<i32, Vec<i32>>>,
}

/// Returns metadata from the first broker of the list that answers. An empty `topics` requests all topics.
pub(crate) fn metadata(brokers: &str, topics: &[&str]) -> io::Result<Metadata> {
    let mut request = KafkaRequest::default();
    if topics.is_empty() {
        request.int(-1);
    } else {
        request.int(topics.len() as i32);
        topics.iter().for_each(|topic| request.text(topic));
    }
    let mut last_error = io::Error::other("no broker given");
    for broker in brokers.split(',') {
        match call(broker, METADATA, 1, &request.0).and_then(|answer| read_metadata(&mut KafkaResponse(&answer))) {
            Ok(metadata) => return Ok(metadata),
            Err(error) => last_error = error,
        }
    }
    Err(last_error)
}

/// Creates a topic; returns when every broker of the list names a leader of every partition, and every leader returns
/// the log end offsets of its partitions.
pub(crate) fn create_topic(brokers: &str, name: &str, partitions: i32, replication: i16) {
    create_topic_with(brokers, name, partitions, replication, &[]);
}

/// As [`create_topic`], with these settings of the topic (`max.message.bytes` and the like).
pub(crate) fn create_topic_with(
    brokers: &str,
    name: &str,
    partitions: i32,
    replication: i16,
    settings: &[(&str, &str)],
) {
    let mut last = String::new();
    let created = poll(DEADLINE, || match try_create(brokers, name, partitions, replication, settings) {
        Ok(0 | TOPIC_ALREADY_EXISTS) => Some(()),
        Ok(code) => {
            last = format!("Kafka error {code}");
            assert_eq!(code, NOT_CONTROLLER, "creating topic {name}");
            None
        }
        Err(error) => {
            last = error.to_string();
            None
        }
    });
    assert!(created.is_some(), "cannot create topic {name}: {last}");
    wait_for_leaders(brokers, name, partitions);
    // Metadata may name a broker before it has become the leader. A broker that returns a log end offset is.
    let led = poll(DEADLINE, || {
        let ends = log_ends(brokers, name).ok()?;
        (ends.len() == partitions as usize).then_some(())
    });
    assert!(led.is_some(), "the leaders of {name} do not return its log end offsets");
}

/// Returns the log end offset of each partition, which is the offset of the next message.
pub(crate) fn log_ends(brokers: &str, topic: &str) -> io::Result<BTreeMap<i32, i64>> {
    let metadata = metadata(brokers, &[topic])?;
    let mut ends = BTreeMap::new();
    for (&partition, leader) in metadata.leaders.get(topic).into_iter().flatten() {
        let broker = metadata.brokers.get(leader).ok_or_else(|| io::Error::other("a partition without leader"))?;
        let mut request = KafkaRequest::default();
        request.int(-1);
        request.int(1);
        request.text(topic);
        request.int(1);
        request.int(partition);
        request.long(-1);
        let answer = call(broker, LIST_OFFSETS, 1, &request.0)?;
        let mut reader = KafkaResponse(&answer);
        reader.int()?;
        reader.text()?;
        reader.int()?;
        reader.int()?;
        let code = reader.short()?;
        reader.long()?;
        let end = reader.long()?;
        if code != 0 {
            return Err(io::Error::other(format!("Kafka error {code}")));
        }
        ends.insert(partition, end);
    }
    Ok(ends)
}

/// Deletes the messages of a partition below `offset`, as retention does.
pub(crate) fn delete_records(brokers: &str, topic: &str, partition: i32, offset: i64) {
    let metadata = metadata(brokers, &[topic]).expect("a broker answers");
    let leader = &metadata.brokers[&metadata.leaders[topic][&partition]];
    let mut request = KafkaRequest::default();
    request.int(1);
    request.text(topic);
    request.int(1);
    request.int(partition);
    request.long(offset);
    request.int(DEADLINE.as_millis() as i32);
    let answer = call(leader, DELETE_RECORDS, 0, &request.0).expect("the leader answers");
    let mut reader = KafkaResponse(&answer);
    let code = (|| {
        let _ = (reader.int()?, reader.int()?, reader.text()?, reader.int()?, reader.int()?, reader.long()?);
        reader.short()
    })();
    assert_eq!(code.expect("a whole response"), 0, "the records of {topic}/{partition} are deleted");
}

/// Increases the number of partitions to `partitions`; returns when every broker of the list names all leaders.
pub(crate) fn grow_topic(brokers: &str, name: &str, partitions: i32) {
    let mut request = KafkaRequest::default();
    request.int(1);
    request.text(name);
    request.int(partitions);
    request.int(-1); // No replica assignment.
    request.int(DEADLINE.as_millis() as i32);
    request.0.push(0); // Not validate_only.
    wait_until(DEADLINE, &format!("topic {name} has {partitions} partitions"), || {
        call_controller(brokers, CREATE_PARTITIONS, 0, &request.0).is_ok_and(|code| code == 0)
    });
    wait_for_leaders(brokers, name, partitions);
}

/// Waits until every broker of the list names a leader of each of the `partitions` partitions.
fn wait_for_leaders(brokers: &str, name: &str, partitions: i32) {
    for broker in brokers.split(',') {
        let ready = poll(DEADLINE, || {
            let metadata = metadata(broker, &[name]).ok()?;
            let leaders = metadata.leaders.get(name)?;
            let is_live = |leader: &i32| metadata.brokers.contains_key(leader);
            (leaders.len() == partitions as usize && leaders.values().all(is_live)).then_some(())
        });
        assert!(ready.is_some(), "{broker} names no leaders for the {partitions} partitions of {name}");
    }
}

/// Sends a request about one topic to the controller; returns the error code of the response.
fn call_controller(brokers: &str, api: i16, version: i16, body: &[u8]) -> io::Result<i16> {
    let metadata = metadata(brokers, &[])?;
    let controller = metadata.brokers.get(&metadata.controller);
    let controller = controller.ok_or_else(|| io::Error::other("no controller is elected yet"))?;
    let answer = call(controller, api, version, body)?;
    let mut reader = KafkaResponse(&answer);
    reader.int()?; // The throttle time.
    reader.int()?; // The number of topics.
    reader.text()?;
    reader.short()
}

/// Deletes a topic; returns when no broker of the list names the topic any more.
pub(crate) fn delete_topic(brokers: &str, name: &str) {
    let mut request = KafkaRequest::default();
    request.int(1);
    request.text(name);
    request.int(DEADLINE.as_millis() as i32);
    wait_until(DEADLINE, &format!("topic {name} is deleted"), || {
        call_controller(brokers, DELETE_TOPICS, 1, &request.0).is_ok_and(|code| code == 0)
    });
    for broker in brokers.split(',') {
        let gone = poll(DEADLINE, || {
            let metadata = metadata(broker, &[]).ok()?;
            (!metadata.leaders.contains_key(name)).then_some(())
        });
        assert!(gone.is_some(), "{broker} still names {name}");
    }
}

fn try_create(
    brokers: &str,
    name: &str,
    partitions: i32,
    replication: i16,
    settings: &[(&str, &str)],
) -> io::Result<i16> {
    let mut request = KafkaRequest::default();
    request.int(1);
    request.text(name);
    request.int(partitions);
    request.short(replication);
    request.int(0); // No replica assignment.
    request.int(settings.len() as i32);
    for (name, value) in settings {
        request.text(name);
        request.text(value);
    }
    request.int(DEADLINE.as_millis() as i32);
    request.0.push(0); // Not validate_only.
    call_controller(brokers, CREATE_TOPICS, 2, &request.0)
}

fn read_metadata(reader: &mut KafkaResponse<'_>) -> io::Result<Metadata> {
    let mut metadata = Metadata::default();
    for _ in 0..reader.int()? {
        let id = reader.int()?;
        let host = reader.text()?;
        let port = reader.int()?;
        reader.text()?; // The rack.
        metadata.brokers.insert(id, format!("{host}:{port}"));
    }
    metadata.controller = reader.int()?;
    for _ in 0..reader.int()? {
        reader.short()?;
        let name = reader.text()?;
        reader.take(1)?; // Whether the topic is internal.
        let (mut leaders, mut in_sync) = (BTreeMap::new(), BTreeMap::new());
        for _ in 0..reader.int()? {
            reader.short()?;
            let partition = reader.int()?;
            leaders.insert(partition, reader.int()?);
            let n = reader.int()?;
            reader.take(4 * n as usize)?; // The replicas.
            let n = reader.int()?;
            in_sync.insert(partition, (0..n).map(|_| reader.int()).collect::<io::Result<Vec<i32>>>()?);
        }
        metadata.in_sync.insert(name.clone(), in_sync);
        metadata.leaders.insert(name, leaders);
    }
    Ok(metadata)
}

pub(super) fn call(broker: &str, api: i16, version: i16, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut request = KafkaRequest::default();
    request.short(api);
    request.short(version);
    request.int(1);
    request.text("harness");
    request.0.extend_from_slice(body);
    let mut stream = TcpStream::connect(broker)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut frame = (request.0.len() as i32).to_be_bytes().to_vec();
    frame.append(&mut request.0);
    stream.write_all(&frame)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if !(4..64 << 20).contains(&length) {
        return Err(io::Error::other("not a Kafka response"));
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer)?;
    Ok(answer.split_off(4))
}

#[derive(Default)]
pub(super) struct KafkaRequest(pub(super) Vec<u8>);

impl KafkaRequest {
    pub(super) fn short(&mut self, value: i16) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }
    pub(super) fn int(&mut self, value: i32) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }
    pub(super) fn long(&mut self, value: i64) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }
    pub(super) fn text(&mut self, value: &str) {
        self.short(value.len() as i16);
        self.0.extend_from_slice(value.as_bytes());
    }
}

struct KafkaResponse<'a>(&'a [u8]);

impl<'a> KafkaResponse<'a> {
    fn take(&mut self, n_bytes: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n_bytes).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.0 = rest;
        Ok(taken)
    }
    fn short(&mut self) -> io::Result<i16> {
        Ok(i16::from_be_bytes(self.take(2)?.try_into().expect("two bytes")))
    }
    fn int(&mut self) -> io::Result<i32> {
        Ok(i32::from_be_bytes(self.take(4)?.try_into().expect("four bytes")))
    }
    fn long(&mut self) -> io::Result<i64> {
        Ok(i64::from_be_bytes(self.take(8)?.try_into().expect("eight bytes")))
    }
    fn text(&mut self) -> io::Result<String> {
        let length = self.short()?.max(0) as usize;
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }
}
