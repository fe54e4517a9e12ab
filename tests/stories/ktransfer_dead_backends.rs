//! ktransfer with several backends, some of which are dead in one of the ways in which servers are: what they cost, and
//! how they come back.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::fleet::{Arrival, Door, Fleet, Reply};
use crate::harness::one_topic::{produce, wait_until_stored};
use crate::harness::{ConfigFile, Member, STOP_DEADLINE, cluster, configs, free_port, unique, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);
const WORKERS: usize = 8;
const FAILURES: usize = 5;
/// Messages in the topic of a story; more than any of them pushes while it counts.
const MESSAGES: usize = 4000;
/// Messages of which one instance delivers so many while another one is compared with it.
const MEASURED: usize = 800;
/// Time of an answer of a good backend. It makes the workers the limit, not the machine.
const ANSWER_TIME: Duration = Duration::from_millis(15);

fn module(topic: &str, servers: &[String]) -> ConfigFile {
    configs::module(topic, servers)
        .set("worker_num", WORKERS)
        .set("protocol.read_timeout_ms", 400)
        .set("fail_retry_interval_ms", 20)
        .set("max_retry_interval_ms", 200)
        .set("ejection.failures", FAILURES)
        .set("ejection.interval_ms", 500)
        .set("ejection.max_interval_ms", 1000)
        .set("ejection.slow_start_ms", 500)
}

fn topic_with_messages() -> String {
    let topic = cluster().new_topic("dead_backends", 1);
    let keys: Vec<String> = (0..200).map(|number| format!("k{number}")).collect();
    produce(cluster(), &topic, &keys.iter().map(String::as_str).collect::<Vec<_>>(), MESSAGES / keys.len());
    topic
}

/// The metrics of one backend.
struct BackendState {
    ejected: u64,
    /// After failures in a row.
    ejections: u64,
    /// Because of the failure rate.
    ejections_by_rate: u64,
    probes: u64,
}

fn state(member: &Member, module: &str, server: &str) -> BackendState {
    let metrics = member.metrics();
    let value = |name: &str, more: &str| {
        metrics.value(&format!("{name}{{backend=\"{server}\",module=\"{module}\"{more}}}")).unwrap_or_default()
    };
    let probes = |outcome: &str| value("ktransfer_backend_probes_total", &format!(",outcome=\"{outcome}\""));
    let ejections = |rule: &str| value("ktransfer_backend_ejections_total", &format!(",rule=\"{rule}\""));
    BackendState {
        ejected: value("ktransfer_backend_ejected", ""),
        ejections: ejections("failures"),
        ejections_by_rate: ejections("failure_percent"),
        probes: probes("ok") + probes("failed"),
    }
}

/// Returns how many messages each of two fleets delivers from now on until one has delivered [`MEASURED`]. Measured at
/// the same time, a slow machine slows both down.
fn delivered_at_the_same_time(fleets: [&Fleet; 2]) -> [usize; 2] {
    let begin = Instant::now();
    let delivered = || fleets.map(|fleet| fleet.count(|one| one.is_delivered() && begin <= one.began));
    wait_until(DEADLINE, "enough messages are delivered", || {
        let counts = delivered();
        (counts[0].max(counts[1]) >= MEASURED).then_some(counts)
    })
}

fn good(_: &Arrival) -> Reply {
    Reply::ok().after(ANSWER_TIME)
}

/// Lets all backends answer at once from now on, which ends the story sooner.
fn answer_at_once(fleet: &Fleet) {
    (0..fleet.addresses().len()).for_each(|server| fleet.script(server, |_| Reply::ok()));
}

fn assert_order_per_key(fleet: &Fleet) {
    let mut last = HashMap::new();
    let mut arrivals: Vec<Arrival> = fleet.arrivals().into_iter().filter(Arrival::is_delivered).collect();
    arrivals.sort_by_key(|arrival| arrival.began);
    for arrival in arrivals {
        let (key, offset) = (arrival.key(), arrival.position().1);
        let before = last.insert(key.clone(), offset);
        assert!(before.is_none_or(|before| before < offset), "{key}: {offset} after {before:?}");
    }
}

#[test]
fn one_dead_backend_of_four_costs_single_pushes() {
    let topic = topic_with_messages();
    for kind in ["refused", "silent", "500", "slow"] {
        let fleet = Fleet::start(4, good);
        let mut servers = fleet.addresses();
        match kind {
            "refused" => servers[0] = format!("127.0.0.1:{}", free_port()),
            "silent" => fleet.set_door(0, Door::Silent),
            "500" => fleet.script(0, |_| Reply::status(500)),
            _ => fleet.script(0, |_| Reply::ok().after(Duration::from_secs(20))),
        }
        let name = unique(kind);
        let three = Fleet::start(3, good);
        let mut with_three = Member::start(cluster(), &unique("three"), "a", module(&topic, &three.addresses()));
        let mut member = Member::start(cluster(), &name, "a", module(&topic, &servers));
        three.wait_for("a delivery", DEADLINE, Arrival::is_delivered);
        wait_until(DEADLINE, "the dead backend is ejected", || state(&member, &name, &servers[0]).ejected == 1);
        let [n_delivered, n_with_three] = delivered_at_the_same_time([&fleet, &three]);
        with_three.daemon.stop(STOP_DEADLINE);
        eprintln!("{kind}: {n_delivered} of {n_with_three} with three backends");
        // Not ejected, it would hold up most of the workers most of the time.
        assert!(n_delivered * 10 >= n_with_three * 8, "{kind}: {n_delivered} of {n_with_three} with three backends");
        let dead = state(&member, &name, &servers[0]);
        let n_pushes = match kind {
            "refused" => 0,
            "silent" => usize::try_from(fleet.n_accepted(0)).unwrap(),
            _ => fleet.count(|arrival| arrival.server == 0),
        };
        assert_eq!((dead.ejected, dead.ejections), (1, 1), "{kind}");
        // Pushes that were under way at the ejection end later. One probe may have begun since the metrics were read.
        let max = FAILURES + WORKERS + usize::try_from(dead.probes).unwrap() + 2;
        assert!(n_pushes <= max, "{kind}: {n_pushes} pushes, {} probes", dead.probes);
        let (log, line) = (member.daemon.log(), format!("backend {} is ejected for 500ms after", servers[0]));
        // Both log files have it.
        let lines: BTreeSet<&str> = log.lines().filter(|entry| entry.contains(&line)).collect();
        assert_eq!(lines.len(), 1, "{kind}: {lines:?}");

        if kind != "refused" {
            fleet.script(0, good);
            fleet.set_door(0, Door::Open);
            wait_until(DEADLINE, "the backend is back", || state(&member, &name, &servers[0]).ejected == 0);
            let n_before = fleet.count(|arrival| arrival.server == 0 && arrival.is_delivered());
            wait_until(DEADLINE, "it takes its turns", || {
                fleet.count(|arrival| arrival.server == 0 && arrival.is_delivered()) >= n_before + 50
            });
        }
        answer_at_once(&fleet);
        wait_until_stored(&name, &topic, MESSAGES);
        assert_order_per_key(&fleet);
        assert_eq!(fleet.n_delivered(), MESSAGES, "{kind}");
        member.daemon.stop(STOP_DEADLINE);
    }
}

/// All workers are busy, so the backend that fails is the only one with room.
#[test]
fn a_retry_goes_to_the_other_backend_also_under_full_load() {
    let topic = cluster().new_topic("full_load", 1);
    let keys: Vec<String> = (0..300).map(|number| format!("k{number}")).collect();
    produce(cluster(), &topic, &keys.iter().map(String::as_str).collect::<Vec<_>>(), 4);
    let fleet = Fleet::start(2, good);
    fleet.script(0, |_| Reply::status(500));
    let name = unique("full_load");
    let file = module(&topic, &fleet.addresses())
        .set("max_retry_times", 1)
        .set("ejection.failures", 0)
        .set("ejection.failure_percent", 0);
    let mut member = Member::start(cluster(), &name, "a", file);
    wait_until_stored(&name, &topic, 1200);
    let n_refused = fleet.count(|arrival| arrival.server == 0);
    assert_eq!(fleet.n_delivered(), 1200, "none was given up: {n_refused} of them were refused once");
    assert_eq!(fleet.count(|arrival| arrival.server == 0 && arrival.attempt() > 1), 0);
    assert!(n_refused > 0);
    assert_order_per_key(&fleet);
    member.daemon.stop(STOP_DEADLINE);
}

#[test]
fn a_backend_of_four_that_fails_every_second_push_is_ejected_and_used_again_when_it_is_good() {
    let topic = topic_with_messages();
    let fleet = Fleet::start(4, good);
    let turn = AtomicUsize::new(0);
    fleet.script(0, move |arrival| match turn.fetch_add(1, Ordering::Relaxed) % 2 {
        0 => Reply::status(500),
        _ => good(arrival),
    });
    let (name, servers) = (unique("every_second"), fleet.addresses());
    // Never so many failures in a row.
    let file = module(&topic, &servers).set("ejection.failures", 1000);
    let mut member = Member::start(cluster(), &name, "a", file);
    let first = || state(&member, &name, &servers[0]);
    wait_until(DEADLINE, "it is ejected", || first().ejections_by_rate > 0);
    let line = format!("backend {} is ejected for 500ms after the failure of ", servers[0]);
    member.daemon.wait_for_log(&line, DEADLINE);
    let n_pushes = fleet.count(|arrival| arrival.server == 0);
    assert!(n_pushes < 200, "{n_pushes} pushes to it before the ejection");
    fleet.script(0, good);
    wait_until(DEADLINE, "it is back", || first().ejected == 0);
    let n_before = fleet.count(|arrival| arrival.server == 0 && arrival.is_delivered());
    wait_until(DEADLINE, "it takes its turns", || {
        fleet.count(|arrival| arrival.server == 0 && arrival.is_delivered()) >= n_before + 50
    });
    answer_at_once(&fleet);
    wait_until_stored(&name, &topic, MESSAGES);
    for server in &servers {
        let state = state(&member, &name, server);
        let is_first = *server == servers[0];
        assert_eq!((state.ejections, state.ejected, state.ejections_by_rate > 0), (0, 0, is_first), "{server}");
    }
    assert_order_per_key(&fleet);
    assert_eq!(fleet.n_delivered(), MESSAGES);
    assert_eq!(fleet.count(Arrival::is_delivered), MESSAGES, "none is pushed again after its delivery");
    member.daemon.stop(STOP_DEADLINE);
}

#[test]
fn after_an_outage_of_all_backends_pushes_resume_with_the_first_good_probe() {
    let topic = topic_with_messages();
    let fleet = Fleet::start(3, |_| Reply::status(503));
    let (name, servers) = (unique("all_dead"), fleet.addresses());
    // A message that fails twice is given up; a message that waits for a backend is not.
    let file = module(&topic, &servers).set("max_retry_times", 1).set("worker_num", 20);
    let mut member = Member::start(cluster(), &name, "a", file);
    let all = |member: &Member| servers.iter().map(|server| state(member, &name, server)).collect::<Vec<_>>();
    wait_until(DEADLINE, "all are ejected", || all(&member).iter().all(|state| state.ejected == 1));
    let n_before = all(&member).iter().map(|state| state.probes).sum::<u64>();
    wait_until(DEADLINE, "all are probed", || {
        all(&member).iter().map(|state| state.probes).sum::<u64>() >= n_before + 6
    });
    let cpu = member.daemon.cpu_time();
    let (n_arrivals, began) = (fleet.n_arrivals(), Instant::now());
    wait_until(DEADLINE, "more probes", || began.elapsed() > Duration::from_secs(2));
    let n_probes = fleet.n_arrivals() - n_arrivals;
    assert!(n_probes <= 3 * 5, "{n_probes} pushes to three backends in two seconds: one each 500 ms");
    let spent = member.daemon.cpu_time() - cpu;
    assert!(spent < Duration::from_secs(1), "{spent:?} of processor time in two seconds");

    (0..3).for_each(|server| fleet.script(server, good));
    let first = fleet.wait_for("a good probe", DEADLINE, Arrival::is_delivered);
    let answered = first.ended.unwrap();
    wait_until(DEADLINE, "pushes resume", || fleet.n_delivered() >= 200);
    let mut others: Vec<Instant> =
        fleet.arrivals().into_iter().filter(Arrival::is_delivered).map(|arrival| arrival.began).collect();
    others.sort_unstable();
    let pause = others[20].saturating_duration_since(answered);
    assert!(pause < Duration::from_secs(1), "the next pushes began {pause:?} after the probe was answered");
    answer_at_once(&fleet);
    wait_until_stored(&name, &topic, MESSAGES);
    let n_given_up = MESSAGES - fleet.n_delivered();
    assert!(n_given_up < 100, "{n_given_up} messages were given up");
    member.daemon.stop(STOP_DEADLINE);
}

#[test]
fn a_backend_that_never_answers_keeps_at_most_its_share_of_the_workers() {
    let topic = topic_with_messages();
    let fleet = Fleet::start(4, good);
    fleet.script(0, |_| Reply::hang());
    let name = unique("hanging");
    // As with the original: no limit on the time of an answer. A message that hangs holds up its key.
    let file = module(&topic, &fleet.addresses()).set("protocol.read_timeout_ms", 0).set("serialize_by_key", false);
    let member = Member::start(cluster(), &name, "a", file);
    wait_until(DEADLINE, "most messages are delivered", || fleet.n_delivered() >= MESSAGES / 2);
    let n_hanging = fleet.count(|arrival| arrival.server == 0);
    assert_eq!(n_hanging, WORKERS / 4, "pushes that hang");
    answer_at_once(&fleet);
    fleet.drop_connections(0);
    wait_until_stored(&name, &topic, MESSAGES);
    drop(member);
}
