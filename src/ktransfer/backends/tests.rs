//! Tests of the choice of a backend, of ejections and of probes.

mod operators;
mod retry_waits;

use super::*;
use std::num::NonZeroUsize;
use std::time::Duration;

use crate::ktransfer::metrics::Metrics;
use crate::ktransfer::test_fixtures::module_config;
use crate::metrics::Registry;

const FAILED: AttemptOutcome = AttemptOutcome::Failed { error: None, reason: String::new() };
const INTERVAL: Duration = Duration::from_millis(40);

struct Rig {
    backends: Backends,
    registry: Registry,
    rotation: BackendRotation,
    now: Instant,
}

impl Rig {
    fn new(n_backends: usize) -> Rig {
        Rig::with(n_backends, |_| {})
    }

    fn with(n_backends: usize, change: impl FnOnce(&mut ModuleConfig)) -> Rig {
        let servers: Vec<String> = (0..n_backends).map(|number| format!("b{number}:80")).collect();
        let mut config = module_config(&servers.iter().map(String::as_str).collect::<Vec<_>>());
        config.worker_num = NonZeroUsize::new(100).unwrap();
        change(&mut config);
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).of_module("m", "t");
        let backends = Backends::new(&config, &metrics);
        Rig { backends, registry, rotation: BackendRotation::starting_at(0), now: Instant::now() }
    }

    fn choose(&mut self, last: Option<usize>) -> Choice {
        self.choose_for(NextPush { last, may_retry: true, ..NextPush::default() })
    }

    fn choose_for(&mut self, push: NextPush) -> Choice {
        self.backends.choose(&mut self.rotation, push, self.now)
    }

    #[track_caller]
    fn chosen(&mut self, last: Option<usize>) -> ChosenBackend {
        match self.choose(last) {
            Choice::Use(chosen) => chosen,
            choice => panic!("{choice:?}"),
        }
    }

    /// Chooses a backend and ends the push at once. Returns its index.
    #[track_caller]
    fn push(&mut self, verdict: PushVerdict<'_>) -> usize {
        let chosen = self.chosen(None);
        let index = chosen.index;
        let _ = self.backends.end(chosen, verdict, self.now);
        index
    }

    /// Lets pushes to these backends fail until they are ejected.
    fn eject(&mut self, dead: &[usize]) {
        for _ in 0..100 {
            if dead.iter().all(|index| self.backends.is_ejected(*index)) {
                return;
            }
            let chosen = self.chosen(None);
            let verdict = if dead.contains(&chosen.index) { PushVerdict::Bad(&FAILED) } else { PushVerdict::Good };
            let _ = self.backends.end(chosen, verdict, self.now);
        }
        panic!("not ejected");
    }

    fn metric(&self, line_start: &str) -> u64 {
        let metrics = String::from_utf8(self.registry.render()).unwrap();
        let value = metrics.lines().find_map(|line| line.strip_prefix(line_start)).expect(line_start).trim();
        value.parse().unwrap()
    }

    /// Returns the number of ejections after failures in a row, and because of the failure rate.
    fn ejections(&self, server: &str) -> [u64; 2] {
        ["failures", "failure_percent"].map(|rule| {
            let name = "ktransfer_backend_ejections_total";
            self.metric(&format!("{name}{{backend=\"{server}\",module=\"m\",rule=\"{rule}\"}}"))
        })
    }
}

#[test]
fn backends_take_turns_and_a_retry_goes_to_another_one() {
    let mut rig = Rig::new(3);
    assert_eq!([(); 4].map(|()| rig.push(PushVerdict::Good)), [0, 1, 2, 0]);
    assert_eq!(rig.chosen(Some(1)).index, 2);
    assert_eq!(rig.chosen(Some(1)).index, 0);
    let mut single = Rig::new(1);
    assert_eq!([single.chosen(Some(0)).index, single.chosen(None).index], [0, 0]);
}

#[test]
fn a_backend_that_does_not_answer_gets_at_most_its_share_of_the_pushes() {
    let mut rig = Rig::with(4, |config| config.worker_num = NonZeroUsize::new(8).unwrap());
    // Backend 0 keeps every push, the others answer at once.
    let mut hanging = Vec::new();
    for _ in 0..100 {
        let chosen = rig.chosen(None);
        if chosen.index == 0 {
            hanging.push(chosen);
        } else {
            let _ = rig.backends.end(chosen, PushVerdict::Good, rig.now);
        }
    }
    assert_eq!(hanging.len(), 2, "a quarter of eight workers");
    let _ = rig.backends.end(hanging.pop().unwrap(), PushVerdict::Good, rig.now);
    assert!((0..4).any(|_| rig.push(PushVerdict::Good) == 0));
}

#[test]
fn a_backend_that_does_not_answer_gets_no_retries_of_others_and_no_endless_probes() {
    let mut rig = Rig::with(2, |config| config.worker_num = NonZeroUsize::new(4).unwrap());
    // Backend 0 keeps every push; backend 1 refuses, and its retries prefer another one.
    let mut hanging = 0;
    for _ in 0..20 {
        let chosen = rig.chosen(Some(1));
        if chosen.index == 0 {
            hanging += 1;
        } else {
            let _ = rig.backends.end(chosen, PushVerdict::Good, rig.now);
        }
    }
    assert_eq!(hanging, 2, "half of four workers");

    let mut rig = Rig::with(2, |config| config.worker_num = NonZeroUsize::new(4).unwrap());
    rig.eject(&[0]);
    let mut probes = 0;
    for _ in 0..20 {
        rig.now += Duration::from_secs(60);
        for _ in 0..4 {
            let chosen = rig.chosen(None);
            match chosen.index {
                0 => probes += 1,
                _ => drop(rig.backends.end(chosen, PushVerdict::Good, rig.now)),
            }
        }
    }
    assert_eq!(probes, 2, "half of four workers");
}

#[test]
fn a_backend_is_ejected_after_failures_in_a_row_and_probed_by_one_push() {
    let mut rig = Rig::new(3);
    for verdict in [PushVerdict::Bad(&FAILED), PushVerdict::Good, PushVerdict::Bad(&FAILED)] {
        let failing = if verdict == PushVerdict::Good { 1 } else { 4 };
        for _ in 0..failing {
            let turn = rig.rotation.order(3).next().unwrap();
            rig.push(if turn == 1 { verdict } else { PushVerdict::Good });
            rig.push(PushVerdict::Good);
            rig.push(PushVerdict::Good);
        }
    }
    assert!(!rig.backends.is_ejected(1), "never more than four failures in a row");
    rig.eject(&[1]);
    assert!(!rig.backends.are_all_in_use());
    assert_eq!(rig.metric("ktransfer_backend_ejected{backend=\"b1:80\",module=\"m\"}"), 1);
    assert!((0..30).all(|_| rig.push(PushVerdict::Good) != 1), "no push goes to it");
    assert_eq!(rig.chosen(Some(0)).index, 2, "the only other one");
    assert_eq!(rig.chosen(Some(2)).index, 0);

    rig.now += INTERVAL;
    let risky = NextPush::default();
    assert!(matches!(rig.choose_for(risky), Choice::Use(chosen) if chosen.index != 1), "the last attempt of a message");
    assert_ne!(rig.chosen(Some(1)).index, 1, "a retry goes to another backend");
    let probe = rig.chosen(None);
    assert_eq!(probe.index, 1);
    assert!((0..30).all(|_| rig.push(PushVerdict::Good) != 1), "one push is the probe");
    let _ = rig.backends.end(probe, PushVerdict::Bad(&FAILED), rig.now);
    rig.now += INTERVAL;
    assert!((0..30).all(|_| rig.push(PushVerdict::Good) != 1), "the second interval is longer");
    rig.now += INTERVAL;
    let probe = rig.chosen(None);
    assert_eq!(probe.index, 1);
    let _ = rig.backends.end(probe, PushVerdict::Good, rig.now);
    assert!(!rig.backends.is_ejected(1) && !rig.backends.are_all_in_use(), "it starts slowly");
    rig.now += Duration::from_secs(1);
    assert!((0..3).any(|_| rig.push(PushVerdict::Good) == 1));
    assert!(rig.backends.are_all_in_use());
    assert_eq!(rig.metric("ktransfer_backend_ejected{backend=\"b1:80\",module=\"m\"}"), 0);
    assert_eq!(rig.ejections("b1:80"), [1, 0]);
    for outcome in ["ok", "failed"] {
        let name = format!("ktransfer_backend_probes_total{{backend=\"b1:80\",module=\"m\",outcome=\"{outcome}\"}}");
        assert_eq!(rig.metric(&name), 1, "{outcome}");
    }
}

#[test]
fn a_backend_that_is_back_takes_a_growing_part_of_its_turns() {
    let mut rig = Rig::new(2);
    rig.eject(&[1]);
    rig.now += INTERVAL;
    let probe = rig.chosen(None);
    let _ = rig.backends.end(probe, PushVerdict::Good, rig.now);
    let mut part_after = |millis: u64| {
        rig.now += Duration::from_millis(millis);
        let pushes = (0..1000).map(|number| {
            let push = NextPush { may_retry: true, random: f64::from(number % 100) / 100.0, ..NextPush::default() };
            let Choice::Use(chosen) = rig.choose_for(push) else { panic!("there is a backend") };
            let index = chosen.index;
            let _ = rig.backends.end(chosen, PushVerdict::Good, rig.now);
            index
        });
        pushes.sum::<usize>()
    };
    let (first, half, last) = (part_after(0), part_after(25), part_after(25));
    assert!((50..200).contains(&first) && first < half && half < 500, "{first} {half} {last}");
    assert_eq!(last, 500);
}

#[test]
fn late_results_of_pushes_that_began_before_an_ejection_change_nothing() {
    let mut rig = Rig::new(2);
    let late: Vec<ChosenBackend> = (0..20).map(|_| rig.chosen(None)).filter(|chosen| chosen.index == 1).collect();
    rig.eject(&[1]);
    rig.now += INTERVAL;
    let probe = rig.chosen(None);
    let _ = rig.backends.end(probe, PushVerdict::Good, rig.now);
    for chosen in late {
        let _ = rig.backends.end(chosen, PushVerdict::Bad(&FAILED), rig.now);
    }
    assert!(!rig.backends.is_ejected(1));
}

#[test]
fn while_all_are_ejected_nothing_is_pushed_but_probes_and_a_good_one_wakes_who_waits() {
    let mut rig = Rig::new(2);
    assert_eq!(rig.backends.blocked_until(7, rig.now), None);
    rig.eject(&[0, 1]);
    assert_eq!(rig.backends.blocked_until(7, rig.now), Some(rig.now + INTERVAL));
    assert!(matches!(rig.choose(None), Choice::WaitUntil(until) if until == rig.now + INTERVAL));
    rig.now += INTERVAL;
    assert_eq!(rig.backends.blocked_until(7, rig.now), None);
    // Any push may be a probe now, also the last attempt of a message.
    let pushes = [NextPush { last: Some(0), ..NextPush::default() }, NextPush::default()];
    let probes = pushes.map(|push| match rig.choose_for(push) {
        Choice::Use(chosen) => chosen,
        choice => panic!("a probe is due, not {choice:?}"),
    });
    assert_ne!(probes[0].index, probes[1].index);
    assert_eq!(rig.backends.blocked_until(3, rig.now), Some(rig.now + INTERVAL), "both are probed");
    let [failed, good] = probes;
    assert!(rig.backends.end(failed, PushVerdict::Bad(&FAILED), rig.now).is_empty());
    assert_eq!(rig.backends.end(good, PushVerdict::Good, rig.now), [3, 7]);
    assert_eq!(rig.backends.blocked_until(3, rig.now), None);
}

#[test]
fn a_probe_that_is_not_made_is_made_by_the_next_push_and_one_that_hangs_has_a_successor() {
    let mut rig = Rig::new(2);
    rig.eject(&[1]);
    rig.now += INTERVAL;
    let probe = rig.chosen(None);
    let _ = rig.backends.end(probe, PushVerdict::NotMade, rig.now);
    let hanging = rig.chosen(None);
    assert_eq!(hanging.index, 1);
    rig.now += Duration::from_millis(199);
    assert_eq!([rig.push(PushVerdict::Good), rig.push(PushVerdict::Good)], [0, 0]);
    rig.now += Duration::from_millis(1);
    let second = rig.chosen(None);
    assert_eq!(second.index, 1, "max_interval_ms has passed");
    let _ = rig.backends.end(hanging, PushVerdict::Bad(&FAILED), rig.now);
    let _ = rig.backends.end(second, PushVerdict::Good, rig.now);
    assert!(!rig.backends.is_ejected(1));
}

#[test]
fn a_5xx_to_a_repeated_message_ejects_nobody_but_fails_a_probe() {
    let mut rig = Rig::new(2);
    for _ in 0..100 {
        rig.push(PushVerdict::Repeated(&FAILED));
    }
    assert!(rig.backends.are_all_in_use());
    rig.eject(&[0]);
    rig.now += INTERVAL;
    let probe = rig.chosen(None);
    let _ = rig.backends.end(probe, PushVerdict::Repeated(&FAILED), rig.now);
    assert!(rig.backends.is_ejected(0));
}

const RATE: RateConfig = RateConfig { percent: 50, min_requests: 20, window: Duration::from_secs(10) };

/// Makes a rig in which only the failure rate ejects.
fn rig_with_rate(n_backends: usize) -> Rig {
    Rig::with(n_backends, |config| (config.ejection.failures, config.ejection.rate) = (None, Some(RATE)))
}

impl Rig {
    /// Makes `n` pushes, of which those to `flaky` fail every second time. Returns whether it is ejected.
    fn push_with_flaky(&mut self, flaky: &[usize], n: usize) -> bool {
        let mut turns = [0; 8];
        for _ in 0..n {
            let Choice::Use(chosen) = self.choose(None) else { continue };
            turns[chosen.index] += 1;
            let fails = flaky.contains(&chosen.index) && turns[chosen.index] % 2 == 0;
            let verdict = if fails { PushVerdict::Bad(&FAILED) } else { PushVerdict::Good };
            let _ = self.backends.end(chosen, verdict, self.now);
        }
        flaky.iter().any(|index| self.backends.is_ejected(*index))
    }
}

#[test]
fn a_backend_that_fails_half_of_its_pushes_is_ejected_and_used_again_when_it_is_good() {
    let mut rig = rig_with_rate(4);
    assert!(rig.push_with_flaky(&[1], 4 * 22));
    assert_eq!((rig.ejections("b1:80"), rig.ejections("b0:80")), ([0, 1], [0, 0]));
    rig.now += INTERVAL;
    let probe = rig.chosen(None);
    assert_eq!(probe.index, 1);
    let _ = rig.backends.end(probe, PushVerdict::Good, rig.now);
    rig.now += Duration::from_secs(1);
    // Its failures before the return do not count.
    assert!(!rig.push_with_flaky(&[1], 4 * 18) && rig.backends.are_all_in_use());
    assert!(rig.push_with_flaky(&[1], 4 * 10));
}

#[test]
fn the_failure_rate_never_ejects_the_last_backend_and_none_where_all_fail() {
    for flaky in [&[0, 1, 2][..], &[0, 1]] {
        let mut rig = rig_with_rate(3);
        rig.push_with_flaky(flaky, 3000);
        let n_usable = (0..3).filter(|index| !rig.backends.is_ejected(*index)).count();
        assert_eq!(n_usable, if flaky.len() == 3 { 3 } else { 1 }, "{flaky:?}");
    }
    let mut rig = rig_with_rate(2);
    rig.eject_by_rate(1);
    for _ in 0..1000 {
        let chosen = rig.chosen(None);
        assert_eq!(chosen.index, 0);
        let _ = rig.backends.end(chosen, PushVerdict::Bad(&FAILED), rig.now);
    }
    assert!(!rig.backends.is_ejected(0));
}

impl Rig {
    fn eject_by_rate(&mut self, index: usize) {
        assert!(self.push_with_flaky(&[index], 1000));
    }
}

#[test]
fn a_status_that_depends_on_the_message_ejects_nobody_by_rate() {
    let mut rig = rig_with_rate(2);
    for number in 0..2000 {
        // Answers like 404 are good, and a 5xx of a later attempt says nothing.
        let verdict = if number % 3 == 0 { PushVerdict::Good } else { PushVerdict::Repeated(&FAILED) };
        rig.push(verdict);
    }
    assert!(rig.backends.are_all_in_use());
}

/// A 5xx to a retry does not count, so an answer 200 to one does not either: otherwise retries that come back to a
/// backend would hide how often it fails.
#[test]
fn retries_do_not_count_for_the_failure_rate() {
    let mut rig = rig_with_rate(2);
    for number in 0..200 {
        assert_eq!(rig.push(PushVerdict::Good), 0);
        let verdict = if number % 2 == 0 { PushVerdict::Bad(&FAILED) } else { PushVerdict::Good };
        assert_eq!(rig.push(verdict), 1);
        if rig.backends.is_ejected(1) {
            return;
        }
        for _ in 0..4 {
            let retry = rig.chosen(Some(0));
            assert_eq!(retry.index, 1);
            let _ = rig.backends.end(retry, PushVerdict::Good, rig.now);
        }
    }
    panic!("it fails half of the first attempts");
}

/// A push that chose its backend while that was in use, and of which an ejection and a probe were noted in between.
#[test]
fn a_push_that_began_at_the_moment_of_an_ejection_ends_no_probe() {
    let mut rig = Rig::new(2);
    rig.eject(&[1]);
    let push_of_now = |rig: &Rig| {
        rig.backends.backends[1].n_under_way.fetch_add(1, Ordering::Relaxed);
        let epoch = rig.backends.backends[1].epoch.load(Ordering::Relaxed);
        ChosenBackend { index: 1, is_probe: false, is_first: true, epoch }
    };
    let late = push_of_now(&rig);
    let _ = rig.backends.end(late, PushVerdict::Bad(&FAILED), rig.now);
    assert_eq!(rig.ejections("b1:80"), [1, 0], "it was ejected already");
    rig.now += INTERVAL;
    let probe = rig.chosen(None);
    let late = push_of_now(&rig);
    let _ = rig.backends.end(late, PushVerdict::Bad(&FAILED), rig.now);
    let _ = rig.backends.end(probe, PushVerdict::Good, rig.now);
    assert!(!rig.backends.is_ejected(1), "the probe decides");
}

#[test]
fn a_single_backend_and_0_failures_never_eject() {
    let single = Rig::with(1, |config| config.ejection.rate = Some(RATE));
    for mut rig in [single, Rig::with(2, |config| config.ejection.failures = None)] {
        for _ in 0..1000 {
            rig.push(PushVerdict::Bad(&FAILED));
        }
        assert!(rig.backends.are_all_in_use());
    }
}

#[test]
fn threads_that_push_to_dead_backends_make_one_probe_at_a_time_and_leave_no_push_behind() {
    let rig = Rig::with(3, |config| {
        config.ejection.failures = Some(1);
        (config.ejection.interval, config.ejection.max_interval) = (Duration::from_millis(1), Duration::from_secs(60));
    });
    let probed = [(); 3].map(|()| AtomicBool::new(false));
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (backends, probed) = (&rig.backends, &probed);
            scope.spawn(move || {
                let mut rotation = BackendRotation::starting_at(worker);
                for _ in 0..20_000 {
                    let choice = backends.choose(&mut rotation, NextPush::default(), Instant::now());
                    let Choice::Use(chosen) = choice else { continue };
                    let (index, is_probe) = (chosen.index, chosen.is_probe);
                    assert!(!is_probe || !probed[index].swap(true, Ordering::SeqCst), "two probes at a time");
                    if is_probe {
                        std::thread::yield_now();
                        probed[index].store(false, Ordering::SeqCst);
                    }
                    let _ = backends.end(chosen, PushVerdict::Bad(&FAILED), Instant::now());
                }
            });
        }
    });
    assert!((0..3).all(|index| rig.backends.is_ejected(index)));
    assert!(rig.backends.backends.iter().all(|backend| backend.n_under_way.load(Ordering::SeqCst) == 0));
}
