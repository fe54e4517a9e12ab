//! One produce request of the worker, and what its error codes mean.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kafka::client::{KafkaClient, ProduceMessage, RequiredAcks};
use kafka::error::{Error, KafkaCode};

use crate::broker::{Acks, AppendFailure, Offset, PartitionId, Stored};
use crate::locks::lock;

/// Longest time that the broker gets to confirm a produce request.
pub(super) const MAX_CONFIRMING: Duration = Duration::from_secs(10);

/// Topic, partition and acks level: messages that agree in all three go in one request.
pub(super) type QueueKey = (Arc<str>, PartitionId, Acks);

/// Key and value of a message; each `None` is Kafka's null.
pub(super) type KeyAndValue = (Option<Vec<u8>>, Option<Vec<u8>>);

/// Whether a batch is sent: decided once, by the call that sends it or by the worker that has abandoned that call.
#[derive(Default)]
pub(super) struct SendDecision(Mutex<Option<bool>>);

impl SendDecision {
    /// Decides to send; returns false if the worker has prevented it before.
    fn begin(&self) -> bool {
        *lock(&self.0).get_or_insert(true)
    }

    /// Decides not to send; returns false if the call has begun to send before.
    pub(super) fn prevent(&self) -> bool {
        !*lock(&self.0).get_or_insert(false)
    }
}

/// Whether a broker refuses a whole batch with this code because of one of its messages, or of their number.
pub(super) fn may_concern_one(code: KafkaCode) -> bool {
    matches!(
        code,
        KafkaCode::MessageSizeTooLarge
            | KafkaCode::InvalidMessageSize
            | KafkaCode::RecordListTooLarge
            | KafkaCode::CorruptMessage
            | KafkaCode::InvalidTimestamp
    )
}

/// Returns the failure of a batch for an error code of the broker that the worker does not retry.
pub(super) fn failure_of(code: KafkaCode) -> (AppendFailure, Stored) {
    match code {
        // `Unknown` is any failure inside the broker, also one after the append.
        KafkaCode::RequestTimedOut
        | KafkaCode::NotEnoughReplicasAfterAppend
        | KafkaCode::NetworkException
        | KafkaCode::Unknown => (AppendFailure::TimedOut, Stored::Unknown),
        // Brokers before 2.4 refuse a message without a key for a compacted topic with this code.
        KafkaCode::CorruptMessage | KafkaCode::InvalidTimestamp => (AppendFailure::Invalid, Stored::No),
        KafkaCode::TopicAuthorizationFailed | KafkaCode::ClusterAuthorizationFailed | KafkaCode::InvalidTopic => {
            (AppendFailure::NotAuthorized, Stored::No)
        }
        _ => (AppendFailure::Refused, Stored::No),
    }
}

/// Makes the call that sends one batch. The call returns the offset of the first message, or `None` for `acks=0`.
pub(super) fn produce(
    key: &QueueKey,
    records: Arc<Vec<KeyAndValue>>,
    reload: bool,
    left: Duration,
    decision: Arc<SendDecision>,
) -> impl FnOnce(&mut KafkaClient) -> kafka::Result<Option<Offset>> + Send + 'static {
    let (topic, partition, acks) = key.clone();
    move |client| {
        if reload || !client.topics().contains(&topic) {
            client.load_metadata(&[&*topic])?;
        }
        let required = match acks {
            Acks::None => RequiredAcks::None,
            Acks::Leader => RequiredAcks::One,
            Acks::All => RequiredAcks::All,
        };
        let messages = records.iter().map(|(key, value)| ProduceMessage {
            key: key.as_deref(),
            value: value.as_deref(),
            topic: &topic,
            partition,
        });
        if !decision.begin() {
            // The worker has abandoned this call and sends the batch in another call.
            return Err(Error::NoHostReachable);
        }
        let confirms = client.produce_messages(required, left.min(MAX_CONFIRMING), messages)?;
        if acks == Acks::None {
            return Ok(None);
        }
        // The crate does not compare correlation ids, so this may be the response to another request.
        let [confirm] = &confirms[..] else { return Err(Error::CodecError) };
        let [confirmed] = &confirm.partition_confirms[..] else { return Err(Error::CodecError) };
        if confirm.topic != *topic || confirmed.partition != partition {
            return Err(Error::CodecError);
        }
        confirmed.offset.map(Some).map_err(Error::Kafka)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::BrokerConfig;
    use crate::broker::kafka_rust::guarded_client::{CallError, GuardedClient};
    use crate::shutdown::Stop;
    use crossbeam_channel::bounded;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn an_ambiguous_code_leaves_open_whether_the_batch_is_stored() {
        for (code, kind, stored) in [
            (KafkaCode::RequestTimedOut, AppendFailure::TimedOut, Stored::Unknown),
            (KafkaCode::NotEnoughReplicasAfterAppend, AppendFailure::TimedOut, Stored::Unknown),
            (KafkaCode::NetworkException, AppendFailure::TimedOut, Stored::Unknown),
            // The crate maps every code above 35 to this code, also KAFKA_STORAGE_ERROR (a disk error).
            (KafkaCode::Unknown, AppendFailure::TimedOut, Stored::Unknown),
            (KafkaCode::TopicAuthorizationFailed, AppendFailure::NotAuthorized, Stored::No),
            (KafkaCode::CorruptMessage, AppendFailure::Invalid, Stored::No),
        ] {
            assert_eq!(failure_of(code), (kind, stored), "{code:?}");
        }
    }

    /// Reads the next request; `None` if the client closes the connection.
    fn request(client: &mut TcpStream) -> Option<Vec<u8>> {
        let mut length = [0; 4];
        client.read_exact(&mut length).ok()?;
        let mut request = vec![0; u32::from_be_bytes(length) as usize];
        client.read_exact(&mut request).ok()?;
        Some(request)
    }

    /// Encodes the response to a metadata request: topic `t` has one partition, led by the broker at `port`.
    fn metadata_response(request: &[u8], port: u16) -> Vec<u8> {
        let mut response = request[4..8].to_vec();
        let numbers = |response: &mut Vec<u8>, numbers: &[i32]| {
            numbers.iter().for_each(|number| response.extend(number.to_be_bytes()));
        };
        numbers(&mut response, &[1, 0]);
        response.extend(b"\0\x09127.0.0.1");
        numbers(&mut response, &[i32::from(port), 1]);
        response.extend(b"\0\0\0\x01t");
        numbers(&mut response, &[1]);
        response.extend(b"\0\0");
        numbers(&mut response, &[0, 0, 1, 0, 1, 0]);
        [&(response.len() as u32).to_be_bytes(), &response[..]].concat()
    }

    #[test]
    fn an_abandoned_call_sends_nothing_once_sending_is_prevented() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let port = listener.local_addr().expect("it is bound").port();
        let (go_on, late) = bounded::<()>(1);
        // Responds late, then returns the API key of the client's next request, if any.
        let broker = std::thread::spawn(move || {
            let (mut client, first) = loop {
                let (mut client, _) = listener.accept().expect("a client connects");
                // The first connection only tests whether a broker listens.
                if let Some(first) = request(&mut client) {
                    break (client, first);
                }
            };
            late.recv().expect("the test lets the broker respond");
            client.write_all(&metadata_response(&first, port)).expect("the client is still connected");
            let mut next = request(&mut client);
            listener.set_nonblocking(true).expect("a listener can be non-blocking");
            if next.is_none()
                && let Ok((mut client, _)) = listener.accept()
            {
                client.set_nonblocking(false).expect("a socket can be blocking");
                next = request(&mut client);
            }
            next.map(|request| request[..2].to_vec())
        });
        let config = BrokerConfig {
            hosts: vec![format!("127.0.0.1:{port}")],
            engine: Default::default(),
            client_id: "t".into(),
            request_timeout: Duration::from_secs(5),
            settings: Default::default(),
            requests: Default::default(),
        };
        let mut client_under_test = GuardedClient::new(&config, "t", Stop::new());
        let (decision, records) = (Arc::<SendDecision>::default(), Arc::new(vec![(None, Some(b"v".to_vec()))]));
        let key = (Arc::from("t"), 0, Acks::Leader);
        let call = produce(&key, records, true, Duration::from_secs(5), Arc::clone(&decision));
        let outcome = client_under_test.call(Duration::from_millis(200), call);
        assert!(matches!(outcome, Err(CallError::Unclear(_))), "{outcome:?}");
        assert!(decision.prevent(), "the call waits for the metadata and has not begun to send");
        go_on.send(()).expect("the broker waits");
        assert_eq!(broker.join().expect("the broker does not panic"), None, "no produce request follows");
    }
}
