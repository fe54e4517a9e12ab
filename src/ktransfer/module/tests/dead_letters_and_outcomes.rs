//! Messages that are given up: dropped, or stored as dead letters; and which messages wait meanwhile.

use super::*;
use crate::broker::{AppendFailure, Message, Stored};
use crate::ktransfer::config::{FilteredMessages, Tombstones};
use crate::ktransfer::dead_letters::DeadLetter;
use crate::ktransfer::outcomes::OutcomeTable;

fn table(text: &str) -> OutcomeTable {
    OutcomeTable::from_yaml(&serde_yaml::from_str(text).unwrap()).unwrap()
}

/// Returns the dead letters in the order of their offsets, each with the number of its partition.
fn letters(rig: &ModuleRig) -> Vec<DeadLetter> {
    let read = |letter: Message| DeadLetter::read(letter).unwrap();
    rig.broker.messages("dead", 0).into_iter().map(read).collect()
}

fn key(letter: &DeadLetter) -> String {
    String::from_utf8(letter.message.key.clone().unwrap_or_default()).unwrap()
}

fn start(
    adapt: impl FnOnce(&mut ModuleConfig),
    answer: impl Fn(&ReceivedRequest) -> u16 + Send + Sync + 'static,
) -> ModuleRig {
    let adapt = |config: &mut ModuleConfig| {
        config.dead_letter_topic = Some("dead".into());
        config.retry.max_retry_times = Some(2);
        adapt(config);
    };
    ModuleRig::start(1, adapt, answer)
}

#[test]
fn each_refused_message_is_a_dead_letter_after_exactly_its_attempts() {
    let mut rig = start(|_| {}, |request| if request.header("x-kafka-key") == Some("bad") { 500 } else { 200 });
    rig.broker.create_topic("dead", 1);
    for number in 0..60 {
        let key: &[u8] = if number % 3 == 0 { b"bad" } else { b"good" };
        rig.broker.put("t", 0, Some(key), number.to_string().as_bytes());
    }
    rig.gain(0, 1, Some(0));
    wait_until("all are committed", || rig.commit_point(0) == Some(60));
    let letters = letters(&rig);
    assert_eq!(letters.iter().map(|letter| letter.offset).collect::<Vec<_>>(), (0..60).step_by(3).collect::<Vec<_>>());
    for letter in &letters {
        let fields = ["Reason", "Status", "Attempts"].map(|name| letter.field(name).unwrap());
        assert_eq!(fields, ["retries_used_up", "500", "3"]);
        assert_eq!(letter.message.value, Some(letter.offset.to_string().into_bytes()));
    }
    let received = rig.backend.received();
    assert_eq!(received.len(), 40 + 20 * 3);
    assert_one_at_a_time_in_order(received);
    rig.end();
    let metrics = rig.metrics();
    for line in ["outcome=\"dead_letter\"} 20", "outcome=\"delivered\"} 40", "outcome=\"given_up\"} 0"] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    assert!(metrics.contains("ktransfer_dead_letters_total{module=\"m\",result=\"stored\"} 20"), "{metrics}");
    assert_eq!(rig.metric("ktransfer_dead_letters_waiting"), 0);
    assert_eq!(rig.metric("ktransfer_window_in_use"), 0);
}

#[test]
fn the_table_drops_dead_letters_and_accepts_without_a_retry() {
    let outcomes = table("{200-299: ok, 404: drop, 409: ok, 410: dead_letter, default: retry}");
    let rig = start(
        |config| {
            config.outcomes = outcomes;
            config.retry.max_retry_times = None;
        },
        |request| match (request.header("x-kafka-key").unwrap(), request.number("x-kafka-attempt")) {
            ("busy", 1 | 2) => 503,
            ("busy", _) => 200,
            (status, _) => status.parse().unwrap(),
        },
    );
    rig.broker.create_topic("dead", 1);
    for key in ["200", "404", "409", "410", "busy"] {
        rig.broker.put("t", 0, Some(key.as_bytes()), b"v");
    }
    rig.gain(0, 1, Some(0));
    wait_until("all are committed", || rig.commit_point(0) == Some(5));
    let requests = by_key(rig.backend.received());
    for (key, count) in [("200", 1), ("404", 1), ("409", 1), ("410", 1), ("busy", 3)] {
        assert_eq!(requests[key].len(), count, "{key}");
    }
    let letters = letters(&rig);
    assert_eq!(letters.iter().map(key).collect::<Vec<_>>(), ["410"]);
    assert_eq!(["Reason", "Status"].map(|name| letters[0].field(name).unwrap()), ["outcome", "410"]);
    let metrics = rig.metrics();
    for line in ["outcome=\"dead_letter\"} 1", "outcome=\"delivered\"} 3", "outcome=\"dropped\"} 1"] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[test]
fn a_letter_that_cannot_be_stored_holds_up_its_key_alone_and_takes_no_window() {
    const N_BAD: i64 = 40;
    let rig = start(
        |config| config.window_size = NonZeroUsize::new(2).unwrap(),
        |request| if request.header("x-kafka-key").unwrap().starts_with("bad") { 500 } else { 200 },
    );
    // The topic does not exist. There are more refused keys than slots of the window.
    for number in 0..N_BAD {
        rig.broker.put("t", 0, Some(format!("bad-{number}").as_bytes()), b"first");
        rig.broker.put("t", 0, Some(format!("bad-{number}").as_bytes()), b"second");
        rig.broker.put("t", 0, Some(b"good"), b"v");
    }
    rig.gain(0, 1, Some(0));
    wait_until("the other key is delivered, and all letters wait", || {
        rig.backend.delivered().len() as i64 == N_BAD && rig.metric("ktransfer_dead_letters_waiting") == N_BAD
    });
    // The answers to the last pushes may be on their way.
    wait_until("no slot is taken: not by a message that waits for its letter", || {
        rig.metric("ktransfer_window_in_use") == 0
    });
    let first = |request: &ReceivedRequest| request.status == 200 || request.body == b"first";
    assert!(rig.backend.received().iter().all(first), "a later message of a key overtook the letter of the first");
    assert_eq!(rig.commit_point(0), Some(0), "no message is done");
    let trouble = "dead letters cannot be stored in dead: topic dead does not exist".to_owned();
    wait_until("the health names the reason", || {
        rig.health.troubles() == [("dead letters of m".into(), trouble.clone())]
    });

    rig.broker.create_topic("dead", 1);
    wait_until("all are committed", || rig.commit_point(0) == Some(3 * N_BAD));
    let mut offsets: Vec<Offset> = letters(&rig).iter().map(|letter| letter.offset).collect();
    for number in 0..N_BAD {
        let of_key: Vec<Offset> = offsets.iter().copied().filter(|offset| offset / 3 == number).collect();
        assert_eq!(of_key, [3 * number, 3 * number + 1], "the letters of a key are in order");
    }
    offsets.sort_unstable();
    offsets.dedup();
    assert_eq!(offsets.len() as i64, 2 * N_BAD);
    wait_until("healthy again", || rig.health.troubles().is_empty());
}

#[test]
fn undecodable_filtered_and_impossible_messages_are_letters_in_the_order_of_their_key() {
    let rig = start(
        |config| {
            config.methods = Some(["mine".into()].into());
            config.filtered = FilteredMessages::DeadLetter;
            config.retry.max_retry_times = Some(0);
        },
        |_| 500,
    );
    rig.broker.create_topic("dead", 1);
    let long = vec![0xff; 6000];
    let mine: &[u8] = b"\x81\xa6method\xa4mine";
    for (key, value) in
        [(&b"k"[..], mine), (b"k", b"{}"), (b"k", b"\x81\xa6method\xa5other"), (b"k", mine), (&long, mine)]
    {
        rig.broker.put("t", 0, Some(key), value);
    }
    rig.gain(0, 1, Some(0));
    wait_until("all are committed", || rig.commit_point(0) == Some(5));
    let found: Vec<(Offset, String, String)> = letters(&rig)
        .iter()
        .filter(|letter| letter.offset < 4)
        .map(|letter| (letter.offset, letter.field("Reason").unwrap().into(), letter.field("Attempts").unwrap().into()))
        .collect();
    let expected = [
        (0, "retries_used_up".to_owned(), "1".to_owned()),
        (1, "undecodable".to_owned(), "0".to_owned()),
        (2, "filtered".to_owned(), "0".to_owned()),
        (3, "retries_used_up".to_owned(), "1".to_owned()),
    ];
    assert_eq!(found, expected);
    let impossible = letters(&rig).into_iter().find(|letter| letter.offset == 4).unwrap();
    assert_eq!((impossible.field("Reason"), &impossible.message.key), (Some("impossible"), &Some(long)));
    assert_eq!(rig.backend.received().len(), 2);
    assert!(rig.metrics().contains("outcome=\"dead_letter\"} 5"), "{}", rig.metrics());
}

#[test]
fn tombstones_are_pushed_with_a_header_or_skipped_without_a_warning() {
    for (tombstones, n_pushed) in [(Tombstones::Push, 2), (Tombstones::Skip, 1)] {
        let rig = start(
            move |config| {
                config.methods = Some(["mine".into()].into());
                config.tombstones = tombstones;
            },
            |_| 200,
        );
        rig.broker.put_tombstone("t", 0, b"k");
        rig.broker.put("t", 0, Some(b"k"), b"\x81\xa6method\xa4mine");
        rig.gain(0, 1, Some(0));
        wait_until("all are committed", || rig.commit_point(0) == Some(2));
        let received = rig.backend.received();
        assert_eq!(received.len(), n_pushed, "{tombstones:?}");
        for request in received {
            let expected = (request.number("x-kafka-offset") == 0).then_some("null");
            assert_eq!(request.header("x-kafka-value"), expected);
            assert!(expected.is_none() || request.body.is_empty());
        }
        let counted = format!("outcome=\"tombstone\"}} {}", 2 - n_pushed);
        assert!(rig.metrics().contains(&counted), "{}", rig.metrics());
    }
}

#[test]
fn letters_that_are_not_stored_at_the_stop_stay_undone_and_the_stop_is_in_time() {
    let mut rig = start(|_| {}, |request| if request.header("x-kafka-key") == Some("bad") { 500 } else { 200 });
    rig.broker.create_topic("dead", 1);
    // The letter is in the topic, but nobody knows yet.
    rig.broker.hold_completions();
    for key in ["good", "bad", "bad", "good"] {
        rig.broker.put("t", 0, Some(key.as_bytes()), b"v");
    }
    rig.gain(0, 1, Some(0));
    wait_until("the letter is on its way", || rig.broker.held_count() == 1 && rig.backend.delivered().len() == 2);
    let began = Instant::now();
    rig.end();
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(rig.releases(), [(0, Some(1))], "the message of the letter is not done");
    assert_eq!(rig.metric("ktransfer_dead_letters_waiting"), 0);
}

#[test]
fn a_letter_on_its_way_at_the_stop_is_awaited_like_a_push() {
    let mut rig = start(|_| {}, |_| 500);
    rig.broker.create_topic("dead", 1);
    rig.broker.hold_completions();
    rig.broker.put("t", 0, Some(b"bad"), b"v");
    rig.gain(0, 1, Some(0));
    wait_until("the letter is on its way", || rig.broker.held_count() == 1);
    rig.stop.trigger();
    rig.broker.release_completions();
    rig.end();
    assert_eq!(rig.releases(), [(0, Some(1))], "the message is done");
    assert_eq!(letters(&rig).len(), 1);
}

#[test]
fn a_claim_that_is_lost_leaves_its_letters_to_the_next_owner() {
    let rig = start(|_| {}, |_| 500);
    rig.broker.create_topic("dead", 1);
    rig.broker.hold_completions();
    rig.broker.put("t", 0, Some(b"bad"), b"first");
    rig.broker.put("t", 0, Some(b"bad"), b"second");
    rig.gain(0, 1, Some(0));
    wait_until("the letter is on its way", || rig.broker.held_count() == 1);
    rig.script.send(GroupEvent::Lost { partition: 0, generation: Generation(1) }).unwrap();
    wait_until("the message is abandoned", || rig.metric("ktransfer_dead_letters_waiting") == 0);
    rig.gain(0, 2, Some(0));
    wait_until("the letter is on its way again", || rig.broker.held_count() == 2);
    rig.broker.fail_next(AppendFailure::TimedOut, Stored::Unknown);
    rig.broker.release_completions();
    wait_until("all are committed", || rig.commit_point(0) == Some(2));
    let offsets: Vec<Offset> = letters(&rig).iter().map(|letter| letter.offset).collect();
    assert_eq!(offsets, [0, 0, 1], "repeated, never lost, in order");
}
