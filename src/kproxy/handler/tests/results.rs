//! Results that an engine has at the same time.

use super::*;
use crate::broker::{AppendError, AppendResult, Appended, Completion, Producer};
use crate::locks::lock;
use std::sync::Mutex;
use std::time::Duration;

/// A producer whose appends wait for the test.
#[derive(Default)]
struct Collecting(Mutex<Vec<(Record, PendingMessage)>>);

impl Producer<PendingMessage> for Collecting {
    fn append(&self, record: Record, _acks: Acks, completion: PendingMessage) {
        lock(&self.0).push((record, completion));
    }

    fn close(&self, _grace: Duration) {}

    fn reachable(&self) -> Result<(), String> {
        Ok(())
    }

    fn topic_lookups(&self) -> u64 {
        0
    }
}

/// Returns the result of the message at this position: every third fails.
fn result(position: usize) -> AppendResult {
    let refused = || {
        let reason = format!("refused {position}");
        AppendError { kind: AppendFailure::Refused, stored: Stored::No, reason }
    };
    if position % 3 == 2 { Err(refused()) } else { Ok(Appended { partition: 1, offset: Some(position as i64) }) }
}

#[test]
fn each_of_many_results_answers_its_own_request() {
    let mut fixture = fixture();
    let producer = Arc::new(Collecting::default());
    let handler = fixture.handler();
    handler.producers = ProducerPool::new(vec![Arc::<Collecting>::clone(&producer)]);
    handler.slots = SlotPool::new(1000);
    let mut answers: Vec<_> = (0..100).map(|_| fixture.request("POST", "/commit?topic=t&key=k", b"x")).collect();
    // The two messages of a batch are the last ones.
    let fields = [("Content-Type", "application/x-ndjson")];
    let lines = "{\"value\":\"a\"}\n{\"value\":\"b\"}\n".as_bytes();
    answers.push(fixture.request_with("POST", "/commit_batch?topic=t", &fields, lines));
    let pending = std::mem::take(&mut *lock(&producer.0));
    assert_eq!((pending.len(), fixture.handler.slots.used()), (102, 102));
    assert!(answers.iter().all(|answer| answer.try_recv().is_err()));
    let ended = pending.into_iter().enumerate();
    PendingMessage::complete_all(ended.map(|(position, (record, pending))| (pending, result(position), record.into())));
    for (position, answer) in answers.iter().take(100).enumerate() {
        let response = answer.try_recv().unwrap();
        let body = String::from_utf8(response.body.to_vec()).unwrap();
        let expected = match position % 3 == 2 {
            true => (502, format!("refused {position}")),
            false => (200, format!(r#"{{"topic":"t","partition":1,"offset":{position}}}"#)),
        };
        assert!(response.status == expected.0 && body.contains(&expected.1), "{position}: {body}");
    }
    // The messages at 100 and 101: the second is refused.
    let response = answers[100].try_recv().unwrap();
    assert_eq!(response.status, 502);
    assert_eq!(fixture.handler.slots.used(), 0);
    let text = String::from_utf8(fixture.registry.render()).unwrap();
    assert!(text.contains(r#"kproxy_commits_total{acks="1",code="200",topic="t"} 68"#), "{text}");
}
