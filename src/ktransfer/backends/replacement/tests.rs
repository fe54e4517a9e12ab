//! Tests of a changed list of backends.

use super::*;
use std::time::Duration;

use crate::ktransfer::backends::{BackendRotation, Choice, NextPush};
use crate::ktransfer::metrics::Metrics;
use crate::ktransfer::policy::AttemptOutcome;
use crate::ktransfer::test_fixtures::module_config;
use crate::metrics::Registry;

const FAILED: AttemptOutcome = AttemptOutcome::Failed { error: None, reason: String::new() };

struct Rig {
    metrics: ModuleMetrics,
    registry: Registry,
    now: Instant,
}

impl Rig {
    fn new() -> Rig {
        let registry = Registry::new();
        Rig { metrics: Metrics::new(&registry).of_module("m", "t"), registry, now: Instant::now() }
    }

    fn backends(&self, servers: &[&str]) -> Backends {
        Backends::new(&module_config(servers), &self.metrics)
    }

    fn changed(&self, former: &Backends, servers: &[&str]) -> Backends {
        former.changed(&module_config(servers), &self.metrics, self.now)
    }

    /// Chooses a backend, from index `first` on.
    fn choose(&self, backends: &Backends, first: usize) -> ChosenBackend {
        let push = NextPush { may_retry: true, ..NextPush::default() };
        match backends.choose(&mut BackendRotation::starting_at(first), push, self.now) {
            Choice::Use(chosen) => chosen,
            choice => panic!("no backend: {choice:?}"),
        }
    }

    fn fail(&self, backends: &Backends, index: usize, times: usize) {
        for _ in 0..times {
            let chosen = self.choose(backends, index);
            assert_eq!(chosen.index, index);
            let _ = backends.end(chosen, PushVerdict::Bad(&FAILED), self.now);
        }
    }

    fn has_metrics_of(&self, server: &str) -> bool {
        String::from_utf8(self.registry.render()).unwrap().contains(&format!("backend=\"{server}\""))
    }
}

#[test]
fn backends_that_stay_keep_their_ejection_and_their_failures() {
    let rig = Rig::new();
    let former = rig.backends(&["a", "b", "c"]);
    rig.fail(&former, 1, 5);
    assert!(former.is_ejected(1));
    rig.fail(&former, 2, 4);
    let backends = rig.changed(&former, &["c", "new", "b"]);
    assert_eq!([0, 1, 2].map(|index| backends.is_ejected(index)), [false, false, true]);
    assert!(!backends.are_all_in_use());
    rig.fail(&backends, 0, 1);
    assert!(backends.is_ejected(0), "it failed five times in a row");
    assert_eq!(["a", "b", "c", "new"].map(|server| rig.has_metrics_of(server)), [false, true, true, true]);
    let again = rig.changed(&backends, &["a", "b"]);
    assert!(!again.is_ejected(0) && again.is_ejected(1));
}

#[test]
fn a_single_backend_is_in_use_whatever_it_was_before() {
    let rig = Rig::new();
    let former = rig.backends(&["a", "b"]);
    rig.fail(&former, 0, 5);
    let single = rig.changed(&former, &["a"]);
    assert!(single.are_all_in_use());
    let metrics = String::from_utf8(rig.registry.render()).unwrap();
    assert!(metrics.contains("ktransfer_backend_ejected{backend=\"a\",module=\"m\"} 0"), "{metrics}");
}

#[test]
fn a_push_under_way_counts_for_the_new_list_if_that_has_its_backend() {
    let rig = Rig::new();
    let former = rig.backends(&["a", "b"]);
    rig.fail(&former, 0, 4);
    let (to_a, to_b) = (rig.choose(&former, 0), rig.choose(&former, 1));
    let backends = rig.changed(&former, &["new", "a"]);
    let _ = backends.end_of(&former, to_a, PushVerdict::Bad(&FAILED), rig.now);
    let _ = backends.end_of(&former, to_b, PushVerdict::Bad(&FAILED), rig.now);
    assert_eq!([0, 1].map(|index| backends.is_ejected(index)), [false, true]);
    for backend in former.backends.iter().chain(&backends.backends) {
        assert_eq!(backend.n_under_way.load(Ordering::Relaxed), 0, "{}", backend.server);
    }
    assert!(!rig.has_metrics_of("b"), "the late end of a push brings no metrics back");
}

#[test]
fn a_probe_under_way_ends_in_the_new_list() {
    let mut rig = Rig::new();
    let former = rig.backends(&["a", "b"]);
    rig.fail(&former, 0, 5);
    rig.now += Duration::from_millis(40);
    let probe = rig.choose(&former, 0);
    assert!(probe.is_probe);
    let backends = rig.changed(&former, &["b", "a"]);
    assert!(backends.is_ejected(1));
    let _ = backends.end_of(&former, probe, PushVerdict::Good, rig.now);
    assert!(!backends.is_ejected(1));
}
