//! The stop of a module, and a module whose group fails.

use super::*;

#[test]
fn a_push_without_an_answer_is_aborted_when_the_module_stops() {
    abort_at_the_stop(None);
}

#[test]
fn a_push_that_the_stop_aborts_does_not_count_as_a_failed_attempt() {
    abort_at_the_stop(Some(0));
}

fn abort_at_the_stop(max_retry_times: Option<u32>) {
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let mut rig = ModuleRig::start(
        1,
        |config| (config.worker_num, config.retry.max_retry_times) = (one(), max_retry_times),
        move |request| {
            if request.body == b"hangs" {
                while !over.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            200
        },
    );
    rig.broker.put("t", 0, Some(b"k"), b"quick");
    rig.broker.put("t", 0, Some(b"k"), b"hangs");
    rig.gain(0, 1, Some(0));
    wait_until("the first is committed", || rig.commit_point(0) == Some(1));
    let began = Instant::now();
    rig.end();
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(rig.releases(), [(0, Some(1))]);
    is_over.store(true, Ordering::SeqCst);
}

/// A group whose loop fails at once.
struct FailingGroup {
    keeps_claims: bool,
}

impl Group for FailingGroup {
    fn keeps_claims_of_failed_loop(&self) -> bool {
        self.keeps_claims
    }

    fn run(self: Box<Self>, _: Mailbox, _: Sender<GroupEvent>) {
        panic!("on behalf of the test");
    }
}

#[test]
fn a_module_whose_group_fails_is_restarted_only_if_its_claims_end_with_the_loop() {
    for keeps_claims in [true, false] {
        let (registry, health, broker) = (Registry::new(), Health::new(), MemoryBroker::new());
        let module = Module {
            dead_letters: None,
            name: "m".into(),
            live: LiveModule::new(module_config(&["127.0.0.1:1"])),
            metrics: Metrics::new(&registry).of_module("m", "t"),
            health: health.component("module m"),
            broker_health: health.component("broker of m"),
            grace: Duration::from_secs(4),
            max_pause: Duration::from_millis(10),
            report: StopReport::default(),
            operator: OperatorLink::default(),
        };
        let stop = Stop::new();
        let starts = AtomicU32::new(0);
        // Without claims `run` returns at the stop, else before it with an error.
        let ended = module.run(&stop, |_, _| {
            if starts.fetch_add(1, Ordering::SeqCst) == 3 {
                stop.trigger();
            }
            Ok(Connectors {
                group: Box::new(FailingGroup { keeps_claims }),
                fetcher: Box::new(broker.fetcher()),
                log_ends: Box::new(broker.log_ends()),
            })
        });
        let (is_stopped, n_starts) = if keeps_claims { (false, 1) } else { (true, 4) };
        assert_eq!(ended.is_err(), keeps_claims);
        assert_eq!((stop.is_triggered(), starts.load(Ordering::SeqCst)), (is_stopped, n_starts));
    }
}
