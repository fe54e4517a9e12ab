//! Retries under full load: they wait for another backend than the one that failed them.

use super::*;
use crate::ktransfer::unresolved_names::UnresolvedNames;

/// A module with two backends and four workers.
fn rig() -> Rig {
    Rig::with(2, |config| config.worker_num = NonZeroUsize::new(4).unwrap())
}

fn retry(last: usize, may_wait: bool) -> NextPush {
    NextPush { last: Some(last), may_retry: true, may_wait, random: 0.0 }
}

/// Fills backend `index`: it has its share of the pushes.
fn fill(rig: &mut Rig, index: usize) -> Vec<ChosenBackend> {
    let other = 1 - index;
    (0..2).map(|_| rig.chosen(Some(other))).inspect(|chosen| assert_eq!(chosen.index, index)).collect()
}

#[test]
fn a_retry_waits_while_all_other_backends_have_their_share() {
    let mut rig = rig();
    let mut busy = fill(&mut rig, 0);
    assert!(matches!(rig.choose_for(retry(1, true)), Choice::WaitForOther));
    assert!(
        matches!(rig.choose_for(retry(1, false)), Choice::Use(chosen) if chosen.index == 1),
        "it has waited enough"
    );
    let _ = rig.backends.end(busy.remove(0), PushVerdict::Good, rig.now);
    assert!(matches!(rig.choose_for(retry(1, true)), Choice::Use(chosen) if chosen.index == 0));
    // Nothing to wait for.
    let mut single = Rig::new(1);
    assert!(matches!(single.choose_for(retry(0, true)), Choice::Use(_)));
}

#[test]
fn a_retry_waits_for_no_backend_that_is_ejected() {
    let mut rig = rig();
    rig.eject(&[0]);
    assert!(matches!(rig.choose_for(retry(1, true)), Choice::Use(chosen) if chosen.index == 1));
}

#[test]
fn first_attempts_leave_room_to_a_retry_that_waits() {
    let mut rig = rig();
    let mut busy = fill(&mut rig, 0);
    let wait = rig.backends.begin_retry_wait("b1:80", rig.now);
    let _ = rig.backends.end(busy.remove(0), PushVerdict::Good, rig.now);
    assert_eq!([(); 4].map(|()| rig.push(PushVerdict::Good)), [1; 4], "the free place is kept");
    assert!(matches!(rig.choose_for(retry(1, true)), Choice::Use(chosen) if chosen.index == 0));
    drop(wait);
    let _ = rig.backends.end(busy.remove(0), PushVerdict::Good, rig.now);
    assert!((0..2).any(|_| rig.push(PushVerdict::Good) == 0), "nobody waits any more");
    assert!(rig.backends.begin_retry_wait("gone:80", rig.now).is_none());
}

#[test]
fn first_attempts_use_what_is_kept_if_no_other_backend_has_room() {
    let mut rig = rig();
    let _busy = fill(&mut rig, 1);
    let _wait = rig.backends.begin_retry_wait("b1:80", rig.now);
    let chosen = [(); 2].map(|()| rig.chosen(None).index);
    assert_eq!(chosen, [0; 2]);
}

#[test]
fn a_wait_ends_when_no_push_ends_elsewhere_and_after_ten_seconds() {
    let mut rig = rig();
    let wait = rig.backends.begin_retry_wait("b1:80", rig.now).unwrap();
    let (begin, second) = (rig.now, Duration::from_secs(1));
    for n_seconds in 1..=10_u32 {
        let now = begin + second * n_seconds;
        assert!(rig.backends.may_wait(&wait, now - INTERVAL) && !rig.backends.may_wait(&wait, now), "{n_seconds}");
        // A push at the backend that failed says nothing, one at the other one says that there will be room.
        for index in [1, 0] {
            let busy = rig.chosen(Some(1 - index));
            assert_eq!(busy.index, index);
            let _ = rig.backends.end(busy, PushVerdict::Good, now);
            assert_eq!(rig.backends.may_wait(&wait, now), index == 0 && n_seconds < 10, "{n_seconds}");
        }
    }
}

#[test]
fn an_ejected_backend_is_probed_although_one_without_an_address_is_in_use() {
    let unresolved = UnresolvedNames::default();
    unresolved.set(["b1:80".to_owned()].into());
    let rig = rig();
    let mut rig = Rig { backends: rig.backends.sparing(&unresolved), ..rig };
    rig.eject(&[0]);
    let last_attempt = NextPush { may_retry: false, ..retry(0, true) };
    rig.now += Duration::from_secs(600);
    for push in [retry(0, true), last_attempt] {
        match rig.choose_for(push) {
            Choice::Use(chosen) if chosen.index == 0 => {
                let _ = rig.backends.end(chosen, PushVerdict::Bad(&FAILED), rig.now);
            }
            _ => panic!("expected a probe"),
        }
        rig.now += Duration::from_secs(600);
    }
}
