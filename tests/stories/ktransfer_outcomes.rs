//! The table `outcomes`: the meaning of each status and each transport error for a message.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use socket2::{Domain, Socket, Type};

use crate::harness::dead_letters::letters;
use crate::harness::fleet::{Arrival, Door, Fleet, Reply};
use crate::harness::one_topic::{OneTopic, produce, wait_until_stored};
use crate::harness::{Ktransfer, STOP_DEADLINE, cluster, configs, free_port, unique};

const DEADLINE: Duration = Duration::from_secs(60);

/// How often the statuses of `retry` are answered before a 200.
const N_REFUSED: u32 = 2;

/// A table with an outcome for every status and error, without `default`.
fn table() -> BTreeMap<&'static str, &'static str> {
    let statuses = [
        ("100-199", "retry"),
        ("200-201", "ok"),
        ("202", "retry"),
        ("203-299", "ok"),
        ("300-303", "drop"),
        ("304", "ok"),
        ("305-399", "dead_letter"),
        ("400-403", "dead_letter"),
        ("404", "drop"),
        ("405-408", "dead_letter"),
        ("409", "ok"),
        ("410-428", "drop"),
        ("429", "retry"),
        ("430-499", "dead_letter"),
        ("500-599", "retry"),
        ("600-999", "drop"),
    ];
    let errors = ["connect_refused", "connect_timeout", "connect_failed", "name_lookup", "tls", "write_timeout"];
    let errors = errors.into_iter().chain(["read_timeout", "closed", "not_http"]).map(|error| (error, "retry"));
    statuses.into_iter().chain(errors).collect()
}

#[test]
fn each_status_has_the_outcome_of_the_table() {
    let expected = [
        ("101", "retry"),
        ("200", "ok"),
        ("201", "ok"),
        ("202", "retry"),
        ("204", "ok"),
        ("299", "ok"),
        ("301", "drop"),
        ("304", "ok"),
        ("307", "dead_letter"),
        ("400", "dead_letter"),
        ("401", "dead_letter"),
        ("404", "drop"),
        ("408", "dead_letter"),
        ("409", "ok"),
        ("410", "drop"),
        ("413", "drop"),
        ("422", "drop"),
        ("429", "retry"),
        ("451", "dead_letter"),
        ("500", "retry"),
        ("503", "retry"),
        ("599", "retry"),
        ("600", "drop"),
        ("999", "drop"),
    ];
    let script = move |arrival: &Arrival| {
        let key = arrival.key();
        let status: u16 = key.parse().expect("the key is a status");
        let is_retried = expected.iter().any(|(known, outcome)| *known == key && *outcome == "retry");
        match arrival.attempt() {
            attempt if is_retried && N_REFUSED < attempt => Reply::ok(),
            1 if status == 202 => Reply::retry_after(202, 2),
            1 if status == 429 => Reply::retry_at(429, SystemTime::now() + Duration::from_secs(4)),
            // These have no body.
            _ if matches!(status, 101 | 204 | 304) => {
                Reply::raw(Some(status), &format!("HTTP/1.1 {status} Scripted\r\n\r\n"))
                    .ending(crate::harness::fleet::Ending::Close)
            }
            _ => Reply::status(status),
        }
    };
    let keys = expected.map(|(key, _)| key);
    let dead = cluster().new_topic("outcomes_dead", 2);
    let mut story = OneTopic::start(&keys, 1, script, |file| {
        file.set("outcomes", table()).set("dead_letter_topic", &dead).set("fail_retry_interval_ms", 20)
    });
    story.wait_until_stored(keys.len());
    let (requests, letters) = (story.requests(), letters(cluster(), &dead));
    let mut counts = BTreeMap::from([("delivered", 0), ("dropped", 0), ("dead_letter", 0), ("given_up", 0)]);
    for (key, outcome) in expected {
        let (n_requests, counted) = match outcome {
            "ok" => (1, "delivered"),
            "retry" => (N_REFUSED as usize + 1, "delivered"),
            "drop" => (1, "dropped"),
            _ => (1, "dead_letter"),
        };
        assert_eq!(requests[key], n_requests, "{key}: {outcome}");
        *counts.entry(counted).or_default() += 1;
        let of_key: Vec<_> = letters.iter().filter(|letter| letter.key() == key).collect();
        assert_eq!(of_key.len(), usize::from(outcome == "dead_letter"), "{key}: {outcome}");
        for letter in of_key {
            let fields = ["Reason", "Status", "Attempts"].map(|name| letter.field(name));
            assert_eq!(fields, ["outcome", key, "1"]);
        }
    }
    let metrics = story.member.metrics();
    for (outcome, count) in counts {
        let name = format!("ktransfer_messages_total{{module=\"{}\",outcome=\"{outcome}\"}}", story.module);
        assert_eq!(metrics.value(&name), Some(count), "{outcome}");
    }
    let arrivals = story.fleet.arrivals();
    for (key, pause_ms) in [("202", 2000), ("429", 2900)] {
        let times: Vec<Instant> =
            arrivals.iter().filter(|arrival| arrival.key() == key).map(|arrival| arrival.began).collect();
        let pause = times[1] - times[0];
        assert!(Duration::from_millis(pause_ms) <= pause, "Retry-After of {key}: {pause:?}");
    }
    let log = story.member.daemon.log();
    assert!(log.contains("reason=outcomes has drop for it, attempt=1, http_status_code=404"), "the drop is logged");
    story.member.daemon.stop(STOP_DEADLINE);
}

/// Returns a port whose queue of connections is full, so that a further one gets no answer.
fn full_port() -> (Socket, Vec<std::net::TcpStream>, String) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().expect("an address");
    listener.bind(&any.into()).expect("a port");
    listener.listen(0).expect("the port listens");
    let address = listener.local_addr().expect("an address").as_socket().expect("IPv4");
    let mut fillers = Vec::new();
    while let Ok(filler) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        fillers.push(filler);
        assert!(fillers.len() < 20, "the queue of the port does not fill");
    }
    (listener, fillers, address.to_string())
}

#[test]
fn each_transport_error_has_its_name_and_its_outcome() {
    let cluster = cluster();
    let topic = cluster.new_topic_with("errors", 1, 1, &[("max.message.bytes", "12000000")]);
    // Larger than the buffers of a connection, so that a backend that does not read is noticed while it is sent.
    cluster.produce(&topic, 0, &[(b"k", &vec![b'x'; 10_000_000])]);
    let dead = cluster.new_topic_with("errors_dead", 1, 1, &[("max.message.bytes", "13000000")]);
    let fleet = Fleet::start(4, |arrival| match arrival.server {
        0 => Reply::hang(),
        1 => Reply::close(),
        _ => Reply::garbage(),
    });
    fleet.set_door(3, Door::Silent);
    let backends = fleet.addresses();
    let (_listener, _fillers, full) = full_port();
    let errors = [
        ("read_timeout", backends[0].clone()),
        ("closed", backends[1].clone()),
        ("not_http", backends[2].clone()),
        ("write_timeout", backends[3].clone()),
        ("connect_refused", format!("127.0.0.1:{}", free_port())),
        ("connect_timeout", full),
        ("name_lookup", "no-such-host.invalid:80".to_owned()),
    ];
    let modules: Vec<(String, _)> = errors
        .iter()
        .map(|(error, server)| {
            let file = configs::module(&topic, std::slice::from_ref(server))
                .set("protocol.conn_timeout_ms", 1000)
                .set("protocol.write_timeout_ms", 3000)
                .set("protocol.read_timeout_ms", 3000)
                .set("outcomes", BTreeMap::from([(*error, "dead_letter"), ("default", "retry")]))
                .set("dead_letter_topic", &dead);
            (unique(error), file)
        })
        .collect();
    let modules: Vec<(&str, _)> = modules.iter().map(|(name, file)| (name.as_str(), file.clone())).collect();
    let mut ktransfer = Ktransfer::start_ready(cluster, &modules);
    for (module, _) in &modules {
        wait_until_stored(module, &topic, 1);
    }
    let letters = letters(cluster, &dead);
    assert_eq!(letters.len(), errors.len());
    for (module, (error, _)) in modules.iter().zip(&errors) {
        let of_module: Vec<_> = letters.iter().filter(|letter| letter.field("Module") == module.0).collect();
        let [letter] = of_module[..] else { panic!("{error}: {} letters", of_module.len()) };
        let fields = ["Reason", "Error", "Status", "Attempts"].map(|name| letter.field(name));
        assert_eq!(fields, ["outcome", error, "-", "1"], "{}", letter.field("Detail"));
    }
    ktransfer.daemon.stop(STOP_DEADLINE);
}

#[test]
fn a_wrong_table_is_refused_at_load_with_key_entry_and_reason() {
    let topic = cluster().new_topic("wrong_table", 1);
    produce(cluster(), &topic, &["k"], 1);
    let file = configs::module(&topic, &["127.0.0.1:1".to_owned()])
        .set("outcomes", BTreeMap::from([("400-499", "drop"), ("404", "dead_letter"), ("5xx", "retry")]))
        .text();
    let main = configs::ktransfer(cluster()).set("module_enabled", ["wrong"]).text();
    let files = [("conf/ktransfer.yaml", main.as_str()), ("conf/modules/wrong.yaml", &file)];
    let mut daemon = crate::harness::Daemon::start(crate::harness::Program::Ktransfer, &files);
    assert_eq!(daemon.wait(DEADLINE).code(), Some(1));
    let output = daemon.output();
    for part in [
        "wrong.yaml: outcomes.404: overlaps with the entry 400-499",
        "wrong.yaml: outcomes.5xx: is no entry: it must be a status (404), a range of statuses (400-499)",
        "wrong.yaml: outcomes: has no entry for 100-399, 500-999, connect_refused, connect_timeout",
    ] {
        assert!(output.contains(part), "{part:?} in {output}");
    }
}
