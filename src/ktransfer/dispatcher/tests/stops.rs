//! How long pushes on the wire have at a hand-over and at a stop. The grace of the rig is one second.

use super::*;

/// Reads a message, which goes to a worker; returns its job.
fn job_on_wire(rig: &mut DispatcherRig) -> Box<Job> {
    let window = rig.gain(1);
    rig.fetched(window, 0..1);
    match rig.inbox.try_recv() {
        Ok(WorkerMessage::Job(job)) => job,
        _ => panic!("no job"),
    }
}

#[test]
fn a_hand_over_cuts_pushes_after_half_of_the_grace_and_a_stop_after_all_of_it() {
    for (is_stop, is_releasing, limit_ms) in [(false, true, 500), (true, false, 1_000), (true, true, 1_000)] {
        let mut rig = rig(|_| {});
        let job = job_on_wire(&mut rig);
        let began = Instant::now();
        if is_releasing {
            rig.dispatcher.on_group(GroupEvent::Releasing { partition: 0, generation: Generation(1) });
        }
        if is_stop {
            rig.dispatcher.begin_stop();
        }
        let limit = Duration::from_millis(limit_ms);
        rig.dispatcher.end_turn(began + limit * 9 / 10);
        assert_eq!(job.assignment.phase(), ClaimPhase::Draining, "stop {is_stop}, hand-over {is_releasing}");
        rig.dispatcher.end_turn(Instant::now() + limit);
        assert_eq!(job.assignment.phase(), ClaimPhase::Ended, "stop {is_stop}, hand-over {is_releasing}");
        assert!(rig.group.take().releases.is_empty(), "the end of the push is awaited");
        rig.end(job.window, 0, JobEnd::Abandoned);
        assert_eq!(rig.group.take().releases[&0], (Generation(1), Some(0)));
    }
}

#[test]
fn a_second_request_to_release_a_partition_gives_its_pushes_no_more_time() {
    let mut rig = rig(|_| {});
    let job = job_on_wire(&mut rig);
    for _ in 0..2 {
        rig.dispatcher.on_group(GroupEvent::Releasing { partition: 0, generation: Generation(1) });
    }
    let until = rig.dispatcher.partitions[&0].release.deadline().expect("it is drained");
    rig.dispatcher.on_group(GroupEvent::Releasing { partition: 0, generation: Generation(1) });
    assert_eq!(rig.dispatcher.partitions[&0].release.deadline(), Some(until));
    drop(job);
}

#[test]
fn a_partition_that_is_gained_during_a_stop_is_released_at_once() {
    let mut rig = rig(|_| {});
    rig.dispatcher.begin_stop();
    rig.dispatcher.on_group(GroupEvent::Gained(claim(0, 1, Some(7))));
    assert_eq!(rig.group.take().releases[&0], (Generation(1), Some(7)));
    assert!(rig.dispatcher.has_ended());
}
