//! Operators act on a running ktransfer: pause, resume, skip and seek, by HTTP and by the command line.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::harness::dead_letters::{Letter, letters};
use crate::harness::fleet::{Fleet, Reply};
use crate::harness::http;
use crate::harness::one_topic::{produce, wait_until_stored};
use crate::harness::operator::{Operator, Operators, TOKEN};
use crate::harness::{ConfigFile, Member, STOP_DEADLINE, cluster, configs, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

/// An instance of a module, and its operators.
struct Operated {
    member: Member,
    operator: Operator,
    _operators: Operators,
}

impl Operated {
    #[track_caller]
    fn start(module: &str, name: &str, file: ConfigFile) -> Operated {
        let operators = Operators::new();
        let member = Member::start_with(cluster(), module, name, file, |config| operators.operate(config));
        let operator = Operator::of(&member, module);
        Operated { member, operator, _operators: operators }
    }

    /// Returns partition 0 of the module in `GET /v1/modules`.
    #[track_caller]
    fn partition(&self) -> Value {
        self.module()["partitions"][0].clone()
    }
}

impl Deref for Operated {
    type Target = Operator;

    fn deref(&self) -> &Operator {
        &self.operator
    }
}

#[test]
fn a_pause_holds_across_a_hand_over_and_a_restart_and_a_resume_loses_and_repeats_nothing() {
    let cluster = cluster();
    let topic = cluster.new_topic("pause", 1);
    let module = unique("pause");
    let fleet = Fleet::start(1, |_| Reply::ok().after(Duration::from_millis(2)));
    let file = || configs::module(&topic, &fleet.addresses()).set("worker_num", 8);
    let mut first = Operated::start(&module, "a", file());
    produce(cluster, &topic, &["a", "b", "c", "d"], 500);
    wait_until(DEADLINE, "pushes are under way", || fleet.n_arrivals() > 200);
    assert_eq!(first.post("pause", "{}").0, 200);
    let n_paused = fleet.n_arrivals();
    assert!(n_paused < 2_000, "the pause came in the middle");
    wait_until(DEADLINE, "the status says so", || first.partition()["state"] == "paused");
    produce(cluster, &topic, &["e"], 20);
    first.member.daemon.stop(STOP_DEADLINE);
    // Another instance takes over, and follows the pause of the first one.
    let second = Operated::start(&module, "b", file());
    wait_until(DEADLINE, "the second instance has it", || second.partition()["state"] == "paused");
    assert_eq!(fleet.n_arrivals(), n_paused, "nothing is pushed while the module is paused");
    let paused = cluster.read(&format!("/consumers/{module}/paused/{topic}")).expect("the pause is stored");
    assert!(paused.contains("\"by\":\"ann\""), "{paused}");
    let resumed = second.command(&["--resume", &module]);
    assert_eq!(resumed.status.code(), Some(0), "{resumed:?}");
    assert!(String::from_utf8_lossy(&resumed.stdout).starts_with("done\n"), "{resumed:?}");
    fleet.wait_until_delivered(2_020, DEADLINE);
    wait_until_stored(&module, &topic, 2_020);
    assert_eq!(fleet.n_arrivals(), 2_020, "every message is pushed once");
    let log = second.member.daemon.log();
    assert!(log.contains("operation resume of module") && log.contains("by ann from"), "{log}");
}

#[test]
fn the_message_that_holds_the_commit_point_is_shown_and_can_be_skipped() {
    let cluster = cluster();
    let topic = cluster.new_topic("skip", 1);
    let module = unique("skip");
    let fleet = Fleet::start(1, |arrival| match arrival.position().1 {
        3 => Reply::status(503),
        // A push that no answer ends.
        7 => Reply::hang(),
        _ => Reply::ok(),
    });
    let file = configs::module(&topic, &fleet.addresses()).set("max_retry_interval_ms", 300);
    let operated = Operated::start(&module, "a", file);
    produce(cluster, &topic, &["a", "b", "c", "d", "e"], 2);
    fleet.wait_until_delivered(7, DEADLINE);
    wait_until(DEADLINE, "the head is known", || operated.partition()["head"]["attempts"].as_u64() > Some(1));
    let head = operated.partition()["head"].clone();
    assert_eq!(
        (&head["offset"], &head["key"], &head["last"]),
        (&3.into(), &"d".into(), &"http_status_code=503".into())
    );
    assert_eq!(head["backend"], fleet.addresses()[0]);
    wait_until(DEADLINE, "the metric shows it", || {
        let metric = format!("ktransfer_head_of_line_seconds{{module=\"{module}\"}}");
        operated.member.metrics().value(&metric) > Some(0)
    });
    // Only the head can be skipped, and a dry run changes nothing.
    let (status, refused) = operated.post("skip", r#"{"partition": 0, "offset": 7}"#);
    assert_eq!((status, &refused["code"]), (409, &"not_at_head".into()), "{refused}");
    let (status, answer) = operated.post("skip?dry_run=1", r#"{"partition": 0, "offset": 3}"#);
    assert_eq!((status, &answer["result"]), (200, &"would_be_done".into()), "{answer}");
    assert_eq!(operated.partition()["head"]["offset"], 3);
    let (status, answer) = operated.post("skip", r#"{"partition": 0, "offset": 3}"#);
    assert_eq!((status, &answer["result"]), (200, &"done".into()), "{answer}");
    // The next head is on the wire: its push is cut.
    fleet.wait_for("the push that hangs", DEADLINE, |arrival| arrival.position().1 == 7);
    let skipped = operated.command(&["--skip", &module, "--partition", "0", "--offset", "7"]);
    assert_eq!(skipped.status.code(), Some(0), "{skipped:?}");
    wait_until_stored(&module, &topic, 10);
    let log = operated.member.daemon.log();
    for offset in [3, 7] {
        let line = format!("module [{module}]: skipped topic={topic}, partition=0, transid={offset}, ");
        assert!(log.contains(&line), "{log}");
    }
    assert!(
        operated
            .member
            .metrics()
            .has(&format!("ktransfer_messages_total{{module=\"{module}\",outcome=\"skipped\"}} 2"))
    );
    let again = operated.command(&["--skip", &module, "--partition", "0", "--offset", "7"]);
    assert_eq!(again.status.code(), Some(1), "{again:?}");
}

/// Ends the load of a story when it is dropped.
struct EndLoad(Arc<AtomicBool>);

impl Drop for EndLoad {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[test]
fn a_seek_in_the_middle_of_the_load_continues_at_an_offset_or_a_time_and_is_stored_first() {
    let cluster = cluster();
    // The brokers set the time of each message.
    let topic = cluster.new_topic_with("seek", 1, 1, &[("message.timestamp.type", "LogAppendTime")]);
    let module = unique("seek");
    let fleet = Fleet::start(1, |_| Reply::ok().after(Duration::from_millis(1)));
    let operated = Operated::start(&module, "a", configs::module(&topic, &fleet.addresses()).set("worker_num", 8));
    let keys = ["a", "b", "c", "d", "e"];
    produce(cluster, &topic, &keys, 100);
    fleet.wait_until_delivered(500, DEADLINE);
    wait_until_stored(&module, &topic, 500);
    let is_busy = Arc::new(AtomicBool::new(true));
    std::thread::scope(|scope| {
        let busy = Arc::clone(&is_busy);
        // Also if an assertion fails: the scope waits for the load.
        let _ends_load = EndLoad(Arc::clone(&is_busy));
        let (fleet, topic) = (&fleet, &topic);
        let load = scope.spawn(move || {
            let mut n_produced = 500;
            while busy.load(Ordering::Relaxed) {
                produce(cluster, topic, &keys, 10);
                n_produced += 50;
                let pushed = || fleet.n_delivered() + 200 > n_produced || !busy.load(Ordering::Relaxed);
                wait_until(DEADLINE, "the load is pushed", pushed);
            }
            n_produced
        });
        wait_until(DEADLINE, "the load runs", || fleet.n_delivered() > 600);
        let (status, answer) = operated.post("seek", r#"{"partition": 0, "offset": 100}"#);
        assert_eq!((status, &answer["result"]), (200, &"done".into()), "{answer}");
        assert!(answer["partitions"][0]["from"].as_i64() > Some(500), "{answer}");
        assert_eq!(answer["partitions"][0]["to"], 100);
        wait_until(DEADLINE, "offset 100 is pushed again", || fleet.count(|a| a.position().1 == 100) == 2);
        is_busy.store(false, Ordering::Relaxed);
        let n_produced = load.join().unwrap();
        wait_until_stored(&module, topic, n_produced);
        assert_eq!(fleet.count(|arrival| arrival.position().1 == 99), 1, "messages below the offset are not repeated");
        assert_eq!(fleet.count(|arrival| arrival.position().1 == 499), 2);
        // To the end, and to a time before the first message.
        let sought = operated.command(&["--seek", &module, "--to", "2001-01-01T00:00:00Z"]);
        assert_eq!(sought.status.code(), Some(0), "{sought:?}");
        wait_until(DEADLINE, "offset 0 is pushed again", || fleet.count(|a| a.position().1 == 0) == 2);
        let (status, answer) = operated.post("seek", r#"{"to": "end"}"#);
        assert_eq!((status, answer["partitions"][0]["to"].as_u64()), (200, Some(n_produced as u64)), "{answer}");
        assert_eq!(cluster.stored_offset(&module, topic, 0), Some(n_produced as i64), "it is stored before the answer");
    });
    let log = operated.member.daemon.log();
    assert!(log.contains("operation seek of module") && log.contains("to 100"), "{log}");
}

#[test]
fn operations_that_are_refused_change_nothing() {
    let cluster = cluster();
    let topic = cluster.new_topic("refused", 1);
    let module = unique("refused");
    let fleet = Fleet::start(1, |_| Reply::ok());
    let operated = Operated::start(&module, "a", configs::module(&topic, &fleet.addresses()));
    produce(cluster, &topic, &["a"], 10);
    wait_until_stored(&module, &topic, 10);
    let deep = "[".repeat(3_000);
    let rows: [(&str, &str, &str, u16, &str); 19] = [
        (TOKEN, "skip", r#"{"partition": 9, "offset": 1}"#, 409, "not_owned"),
        (TOKEN, "skip", r#"{"partition": 0, "offset": 5}"#, 409, "not_at_head"),
        (TOKEN, "seek", r#"{"partition": 9, "to": "end"}"#, 409, "not_owned"),
        (TOKEN, "seek", r#"{"partition": 0, "offset": 11}"#, 422, "out_of_range"),
        (TOKEN, "seek", r#"{"offset": 9223372036854775807}"#, 422, "out_of_range"),
        (TOKEN, "seek?dry_run=1", r#"{"offset": 11}"#, 422, "out_of_range"),
        (TOKEN, "seek", r#"{"offset": -1}"#, 400, "invalid_request"),
        (TOKEN, "seek", "", 400, "invalid_request"),
        (TOKEN, "seek", "{\"offset\": ", 400, "invalid_request"),
        (TOKEN, "pause", &deep, 400, "invalid_request"),
        (TOKEN, "pause", r#"{"partition": -3}"#, 400, "invalid_request"),
        (TOKEN, "pause", r#"{"partition": 9}"#, 409, "not_owned"),
        (TOKEN, "pause?dry_run=maybe", "", 400, "invalid_request"),
        (TOKEN, "pause?force=1", "", 400, "invalid_request"),
        (TOKEN, "resume", r#"{"partition": 9}"#, 409, "not_owned"),
        ("wrong", "pause", "", 401, "unauthorized"),
        ("", "pause", "", 401, "unauthorized"),
        ("b", "pause", "", 403, "topic_not_allowed"),
        (TOKEN, "stop", "", 404, "unknown_path"),
    ];
    for (token, operation, body, status, code) in rows {
        let (got, answer) = operated.post_as(token, operation, body.as_bytes());
        assert_eq!((got, &answer["code"]), (status, &code.into()), "{operation} {body:.60}: {answer}");
    }
    let (status, _) = operated.post_as(TOKEN, "pause", &[b' '; 50_000]);
    assert_eq!(status, 413);
    let url = |path: &str| format!("http://{}{path}", operated.member.admin);
    assert_eq!(http::get(&url("/v1/modules/none")).unwrap().status, 404);
    assert_eq!(http::get(&url(&format!("/v1/modules/{module}/pause"))).unwrap().status, 405);
    assert_eq!(http::post(&url("/v1/modules"), b"").unwrap().status, 405);
    for operation in ["pause?dry_run=1", "resume?dry_run=1", "seek?dry_run=1"] {
        let body = if operation.starts_with("seek") { r#"{"to": "earliest"}"# } else { "" };
        let (status, answer) = operated.post(operation, body);
        assert_eq!((status, &answer["result"]), (200, &"would_be_done".into()), "{operation}: {answer}");
    }
    assert_eq!(operated.partition()["state"], "pushing");
    assert_eq!((cluster.stored_offset(&module, &topic, 0), fleet.n_arrivals()), (Some(10), 10));
    assert!(cluster.read(&format!("/consumers/{module}/paused/{topic}")).is_none());

    // Without credentials_file nobody may operate, and everybody may look.
    let module = unique("closed");
    let member = Member::start(cluster, &module, "a", configs::module(&topic, &fleet.addresses()));
    let answer = http::post(&format!("http://{}/v1/modules/{module}/pause", member.admin), b"").unwrap();
    assert_eq!((answer.status, &answer.json()["code"]), (403, &"operations_disabled".into()));
    let all = http::get(&format!("http://{}/v1/modules", member.admin)).unwrap().json();
    assert_eq!((&all["modules"][0]["name"], &all["modules"][0]["state"]), (&module.as_str().into(), &"running".into()));
}

#[test]
fn dead_letters_go_on_during_a_pause_and_a_message_whose_letter_cannot_be_stored_is_skipped_without_one() {
    let cluster = cluster();
    let (topic, dead) = (cluster.new_topic("letters_paused", 1), unique("letters_paused_dead"));
    let module = unique("letters_paused");
    let fleet = Fleet::start(1, |arrival| match arrival.key().starts_with("bad") {
        true => Reply::status(500),
        false => Reply::ok(),
    });
    let file = configs::module(&topic, &fleet.addresses())
        .set("max_retry_times", 1)
        .set("fail_retry_interval_ms", 20)
        .set("max_retry_interval_ms", 300)
        .set("dead_letter_topic", &dead);
    let operated = Operated::start(&module, "a", file);
    produce(cluster, &topic, &["bad-0", "good", "bad-1"], 1);
    let waiting = format!("ktransfer_dead_letters_waiting{{module=\"{module}\"}}");
    wait_until(DEADLINE, "both letters wait: their topic does not exist", || {
        let head = operated.partition()["head"].clone();
        operated.member.metrics().value(&waiting) == Some(2) && head["state"] == "dead_letter"
    });
    let (status, refused) = operated.post("skip", r#"{"partition": 0, "offset": 0}"#);
    assert_eq!((status, &refused["code"]), (409, &"awaits_dead_letter".into()), "{refused}");
    let skipped = operated.command(&["--skip", &module, "--partition", "0", "--offset", "0", "--no-dead-letter"]);
    assert_eq!(skipped.status.code(), Some(0), "{skipped:?}");
    wait_until_stored(&module, &topic, 2);
    let place = format!("skipped topic={topic}, partition=0, transid=0, method=*, datalen=4");
    let line = format!("module [{module}]: {place}, attempts=2, by=ann, dead_letter=no, key=bad-0");
    operated.member.daemon.wait_for_log(&line, DEADLINE);

    assert_eq!(operated.post("pause", "{}").0, 200, "a message that waits for its letter holds up no pause");
    cluster.create_topic(&dead, 1);
    wait_until_stored(&module, &topic, 3);
    // A letter that was on its way at the skip may be stored as well.
    let mut stored: Vec<i64> = letters(cluster, &dead).iter().map(Letter::offset).collect();
    stored.retain(|offset| *offset != 0);
    assert_eq!(stored, [2], "the letter is stored during the pause");
    produce(cluster, &topic, &["good"], 1);
    assert_eq!(operated.post("resume", "{}").0, 200);
    wait_until_stored(&module, &topic, 4);
    for key in ["bad-0", "bad-1"] {
        assert_eq!(fleet.count(|arrival| arrival.key() == key), 2, "{key} is not pushed again");
    }
}
