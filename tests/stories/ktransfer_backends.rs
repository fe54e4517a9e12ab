//! Backends that are hostile or broken, and messages that cannot be pushed: each ends in a delivery, a retry or in
//! being given up, in bounded time and memory, and takes no slot of another key's.

use std::time::Duration;

use crate::harness::fleet::{Arrival, Door, Ending, Fleet, Reply};
use crate::harness::message::Message;
use crate::harness::one_topic::{OneTopic, produce, wait_until_stored};
use crate::harness::{ConfigFile, Member, STOP_DEADLINE, cluster, configs, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

/// The replies that are no delivery, by the key of the message.
fn hostile(key: &str, elsewhere: &str) -> Option<Reply> {
    Some(match key {
        "garbage" => Reply::garbage(),
        "endless-garbage" => Reply::raw(None, "x").repeating(&[b'x'; 1000], u64::MAX, Duration::ZERO),
        "endless-head" => Reply { status: None, bytes: Vec::new(), ..Reply::endless_head() },
        "endless-error-head" => Reply { bytes: b"HTTP/1.1 500 No\r\n".to_vec(), ..Reply::endless_head() },
        "huge-error-body" => Reply::huge_body(500),
        "hang" => Reply::hang(),
        "close" => Reply::close(),
        "redirect" => Reply::redirect(&format!("http://{elsewhere}/redirected")),
        "only-interim" => Reply::raw(None, "HTTP/1.1 100 Continue\r\n\r\n").ending(Ending::Hold),
        "no-status" => Reply::raw(None, "HTTP/1.1 \r\n\r\n"),
        "status-99999" => Reply::raw(None, "HTTP/1.1 99999 Many\r\nContent-Length: 0\r\n\r\n"),
        "half-a-line" => Reply::raw(None, "HTTP/1.1 20").ending(Ending::Hold),
        "trickled-head" => Reply::raw(None, "").repeating(b"X", u64::MAX, Duration::from_millis(300)),
        _ => return None,
    })
}

const HOSTILE: [&str; 13] = [
    "garbage",
    "endless-garbage",
    "endless-head",
    "endless-error-head",
    "huge-error-body",
    "hang",
    "close",
    "redirect",
    "only-interim",
    "no-status",
    "status-99999",
    "half-a-line",
    "trickled-head",
];

#[test]
fn hostile_answers_end_in_giving_up_and_hold_up_no_other_key() {
    let elsewhere = Fleet::start(1, |_| Reply::ok());
    let target = elsewhere.addresses()[0].clone();
    let script = move |arrival: &Arrival| match arrival.key().as_str() {
        "huge-body" => Reply::huge_body(200),
        key => hostile(key, &target).unwrap_or_else(Reply::ok),
    };
    let good: Vec<String> = (0..20).map(|number| format!("good-{number}")).collect();
    let mut keys: Vec<&str> = HOSTILE.to_vec();
    keys.push("huge-body");
    keys.extend(good.iter().map(String::as_str));
    let change = |file: ConfigFile| {
        file.set("worker_num", 32)
            .set("protocol.read_timeout_ms", 1000)
            .set("protocol.write_timeout_ms", 1000)
            .set("fail_retry_interval_ms", 50)
            .set("max_retry_times", 1)
    };
    let mut story = OneTopic::start(&keys, 5, script, change);
    // A hostile message takes at least one second with its two attempts, and each key has five of them.
    let n_good = good.len() * 5;
    wait_until(DEADLINE, "the other keys are delivered", || {
        story.fleet.count(|arrival| arrival.is_delivered() && arrival.key().starts_with("good-")) == n_good
    });
    story.wait_until_stored(keys.len() * 5);
    let counts = story.requests();
    for key in HOSTILE {
        assert_eq!(counts[key], 10, "{key}: five messages, two attempts each");
    }
    assert_eq!(counts["huge-body"], 5, "a status 200 is a delivery, however long the body is");
    assert_eq!(elsewhere.n_arrivals(), 0, "a redirect is not followed");
    let peak = story.member.daemon.peak_resident_bytes() >> 20;
    assert!(peak < 100, "{peak} MiB of memory");
    story.member.daemon.stop(STOP_DEADLINE);
}

#[test]
fn a_backend_that_accepts_and_is_silent_or_closes_costs_only_a_retry() {
    let cluster = cluster();
    let topic = cluster.new_topic("doors", 1);
    let keys: Vec<String> = (0..10).map(|number| format!("k{number}")).collect();
    produce(cluster, &topic, &keys.iter().map(String::as_str).collect::<Vec<_>>(), 6);
    let (module, fleet) = (unique("doors"), Fleet::start(3, |_| Reply::ok()));
    fleet.set_door(0, Door::Silent);
    fleet.set_door(1, Door::Closing);
    let file = configs::module(&topic, &fleet.addresses())
        .set("protocol.read_timeout_ms", 500)
        .set("fail_retry_interval_ms", 20)
        .set("max_retry_interval_ms", 100);
    let mut member = Member::start(cluster, &module, "a", file);
    wait_until_stored(&module, &topic, 60);
    assert_eq!((fleet.n_delivered(), fleet.n_arrivals()), (60, 60), "each is delivered once, by the third backend");
    member.daemon.stop(STOP_DEADLINE);
}

#[test]
fn undecodable_messages_of_any_size_are_given_up_and_hold_up_nothing() {
    let cluster = cluster();
    let topic = cluster.new_topic("poison", 1);
    let good = Message { method: "Greeting".to_owned(), id: ("k".to_owned(), 7) }.encode();
    let deep = vec![0x91; 100_000];
    let huge_map = [&[0xdf, 0xff, 0xff, 0xff, 0xff][..], &[0xc0; 1000]].concat();
    let large = vec![0xc1; 900_000];
    let truncated = &good[..10];
    let mut messages: Vec<(&[u8], &[u8])> = Vec::new();
    for poison in [&deep[..], &huge_map, &large, truncated, b"", b"\x80", b"\xc0", b"{\"method\":1}"] {
        messages.push((b"k", poison));
        messages.push((b"k", &good));
    }
    cluster.produce(&topic, 0, &messages);
    let (module, fleet) = (unique("poison"), Fleet::start(1, |_| Reply::ok()));
    let mut member = Member::start(cluster, &module, "a", configs::filtered_module(&topic, &fleet.addresses()));
    wait_until_stored(&module, &topic, messages.len());
    assert_eq!(fleet.n_arrivals(), messages.len() / 2, "only the good messages are pushed");
    assert_eq!(fleet.arrivals()[0].request.body, good);
    member.daemon.stop(STOP_DEADLINE);
}
