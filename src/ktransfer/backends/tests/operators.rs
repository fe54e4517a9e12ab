//! What operators see of the backends.

use super::*;
use crate::ktransfer::operations::BackendState;

#[test]
fn operators_see_which_backends_are_ejected_and_why() {
    let mut rig = Rig::new(2);
    let states = |rig: &Rig| rig.backends.status(rig.now).iter().map(|status| status.state).collect::<Vec<_>>();
    assert_eq!(states(&rig), [BackendState::InUse; 2]);
    let refused = AttemptOutcome::Failed { error: None, reason: "connection refused".to_owned() };
    while !rig.backends.is_ejected(0) {
        let chosen = rig.chosen(Some(1));
        let verdict = if chosen.index == 0 { PushVerdict::Bad(&refused) } else { PushVerdict::Good };
        let _ = rig.backends.end(chosen, verdict, rig.now);
    }
    rig.now += INTERVAL / 4;
    let [status, _] = &rig.backends.status(rig.now)[..] else { panic!("two backends") };
    assert_eq!((status.state, &*status.server), (BackendState::Ejected, "b0:80"));
    assert_eq!((status.since_ms, status.next_probe_ms), (Some(10), Some(30)));
    assert!(status.reason.as_ref().is_some_and(|reason| reason.contains("connection refused")), "{status:?}");

    // A failed probe does not change since when it is ejected.
    rig.now += INTERVAL;
    let probe = rig.chosen(Some(1));
    assert_eq!((probe.index, states(&rig)[0]), (0, BackendState::Probed));
    let _ = rig.backends.end(probe, PushVerdict::Bad(&refused), rig.now);
    assert_eq!((states(&rig)[0], rig.backends.status(rig.now)[0].since_ms), (BackendState::Ejected, Some(50)));
    rig.now += 4 * INTERVAL;
    let probe = rig.chosen(Some(1));
    let _ = rig.backends.end(probe, PushVerdict::Good, rig.now);
    assert_eq!((states(&rig)[0], rig.backends.status(rig.now)[0].since_ms), (BackendState::SlowStart, Some(0)));
    rig.now += 2 * INTERVAL;
    assert_eq!(states(&rig), [BackendState::InUse; 2], "the slow start is over");
}
