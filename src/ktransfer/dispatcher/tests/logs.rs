//! A log that is not the one that was read before: a recreated topic, an unclean leader election.

use super::*;

impl DispatcherRig {
    /// Messages of this leader epoch are read.
    fn fetched_of_epoch(&mut self, window: WindowId, offsets: std::ops::Range<Offset>, epoch: i32) {
        let mut batch = batch(window, offsets);
        batch.leader_epoch = Some(epoch);
        self.dispatcher.on_fetched(Fetched::Messages(vec![batch]));
        self.dispatcher.end_turn(Instant::now());
    }

    /// Gains partition 0 at this position.
    fn gain_at(&mut self, position: StoredPosition) -> WindowId {
        self.dispatcher.on_group(GroupEvent::Gained(Claim { position: Some(position), ..claim(0, 1, None) }));
        self.last_assigned().0
    }

    /// Returns what the group would store now, for the next owner.
    fn stored_position(&mut self) -> StoredPosition {
        self.dispatcher.send_snapshots(Instant::now() + Duration::from_secs(3_600));
        let pending = self.group.take();
        let (_, ahead) = pending.done_ahead[&0].clone();
        let (_, next, log) = pending.starts[&0];
        StoredPosition {
            next,
            topic_id: log.topic_id,
            leader_epoch: log.leader_epoch,
            done_ahead: ahead.ranges,
            read_epoch: ahead.read_epoch,
        }
    }
}

#[test]
fn a_recreated_topic_is_read_from_its_beginning_which_is_stored_at_once() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.dispatcher.on_fetched(Fetched::TopicId { window, partition: 0, topic_id: OLD_ID });
    let old = LogIdentity { topic_id: Some(OLD_ID), leader_epoch: None };
    assert_eq!(rig.stored_now(), Some((0, old)), "the group learns the id although no message is done");
    rig.fetched(window, 0..5);
    rig.done(window, 0);
    assert_eq!(rig.stored_now(), Some((1, LogIdentity { leader_epoch: Some(4), ..old })));
    rig.changed(window, LogChange::Recreated { topic_id: NEW_ID });
    let (fresh, start) = rig.last_assigned();
    let log = LogIdentity { topic_id: Some(NEW_ID), leader_epoch: None };
    assert!(fresh != window && start == StartPosition { offset: 0, log });
    assert_eq!((rig.stored_now(), rig.commit_point()), (Some((0, log)), Some(0)));
    // Late acks of the old topic move nothing, and those of the new one are its own.
    rig.done(window, 1);
    assert_eq!(rig.commit_point(), Some(0));
    rig.fetched(fresh, 0..3);
    assert_eq!(rig.jobs(), [0, 1, 2, 3, 4, 0, 1, 2]);
    assert!(rig.has_metric("ktransfer_offset_resets_total{module=\"m\",reason=\"recreated\"} 1"));
    // A release before a message is done hands the new beginning over.
    rig.dispatcher.on_group(GroupEvent::Releasing { partition: 0, generation: Generation(1) });
    for offset in [2, 3, 4] {
        rig.done(window, offset);
    }
    rig.dispatcher.release_all_now();
    assert_eq!(rig.group.take().releases[&0], (Generation(1), Some(0)));
}

#[test]
fn an_offset_beyond_the_end_of_an_unknown_log_continues_at_the_oldest_and_is_stored_at_once() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.fetched(window, 0..5);
    rig.changed(window, LogChange::OffsetGone { offset: 5, oldest: 0, newest: 3 });
    let (fresh, start) = rig.last_assigned();
    assert!(fresh != window && start.offset == 0);
    assert_eq!(rig.stored_now().map(|(next, _)| next), Some(0));
    rig.fetched(fresh, 0..3);
    assert_eq!(rig.jobs(), [0, 1, 2, 3, 4, 0, 1, 2]);
    assert!(rig.has_metric("ktransfer_offset_resets_total{module=\"m\",reason=\"beyond_end\"} 1"));
}

#[test]
fn a_truncated_log_is_read_from_where_the_logs_diverge_or_from_the_first_message_that_is_not_done() {
    for (done, continues_at) in [(0..2, 2), (0..5, 3)] {
        let mut rig = rig(|_| {});
        let window = rig.gain(1);
        rig.fetched(window, 0..5);
        for offset in done {
            rig.done(window, offset);
        }
        rig.changed(window, LogChange::Truncated { position: 5, divergence: 3, leader_epoch: Some(2) });
        let (fresh, start) = rig.last_assigned();
        assert!(fresh != window);
        // The message before offset 2 was read with epoch 4.
        let leader_epoch = Some(if continues_at == 3 { 2 } else { 4 });
        let log = LogIdentity { topic_id: None, leader_epoch };
        assert_eq!(start, StartPosition { offset: continues_at, log });
        assert_eq!(rig.stored_now(), Some((continues_at, log)));
        assert!(rig.has_metric("ktransfer_truncated_messages_total{module=\"m\"} 2"));
        // Messages below the divergence are read again: their jobs go on in their order until then.
        let assignment = &rig.dispatcher.partitions[&0].assignment;
        assert!(!assignment.is_over_for(window, 2, true));
    }
}

#[test]
fn a_single_message_done_ahead_is_reported_within_200_ms_and_so_is_the_end_of_it() {
    let mut rig = rig(|config| config.offset_update_interval = Duration::from_secs(3_600));
    let window = rig.gain(1);
    rig.fetched(window, 0..3);
    let reported = |rig: &mut DispatcherRig, later: Duration| {
        let done = Instant::now();
        rig.dispatcher.send_snapshots(done + later);
        rig.group.take().done_ahead.get(&0).map(|(_, ahead)| ahead.ranges.to_vec())
    };
    rig.done(window, 1);
    assert_eq!(reported(&mut rig, Duration::ZERO), None, "not for each message");
    assert_eq!(reported(&mut rig, Duration::from_millis(200)), Some(vec![1..2; 1]));
    assert_eq!(reported(&mut rig, Duration::from_secs(9)), None, "nothing has changed");
    rig.done(window, 0);
    assert_eq!(reported(&mut rig, Duration::from_millis(200)), Some(vec![]));
}

#[test]
fn messages_done_ahead_are_pushed_again_if_the_leader_has_changed_since() {
    for (stored_epoch, expected) in [(4, &[0, 1, 4][..]), (3, &[0, 1, 2, 3, 4])] {
        let mut rig = rig(|_| {});
        let position = StoredPosition {
            leader_epoch: Some(stored_epoch),
            done_ahead: vec![2..4; 1].into(),
            ..StoredPosition::at(0)
        };
        rig.dispatcher.on_group(GroupEvent::Gained(Claim { position: Some(position), ..claim(0, 1, None) }));
        let window = rig.last_assigned().0;
        // An unclean election may have replaced the messages 2 and 3 by others.
        rig.fetched(window, 0..5);
        assert_eq!(rig.jobs(), expected, "stored with epoch {stored_epoch}");
    }
}

#[test]
fn messages_done_ahead_stay_done_if_the_leader_changed_in_order_before_they_were_read() {
    let mut first = rig(|_| {});
    let window = first.gain(1);
    first.fetched_of_epoch(window, 0..3, 4);
    first.fetched_of_epoch(window, 3..9, 6);
    for offset in [0, 2, 3, 4, 7] {
        first.done(window, offset);
    }
    let position = first.stored_position();
    let epochs = (position.leader_epoch, position.read_epoch);
    assert_eq!((position.next, epochs), (1, (Some(4), Some(6))));
    for (epoch, expected) in [(6, &[1, 5, 6, 8][..]), (7, &[1, 3, 4, 5, 6, 7, 8])] {
        let mut next = rig(|_| {});
        let window = next.gain_at(position.clone());
        next.fetched_of_epoch(window, 1..3, 4);
        next.done(window, 1);
        // What is stored while only older messages were read again has the epoch of what was done before.
        next.dispatcher.send_snapshots(Instant::now() + Duration::from_secs(3_600));
        assert_eq!(next.group.take().done_ahead[&0].1.read_epoch, Some(6));
        // Leader 7 was elected uncleanly and has other messages than leader 6 from offset 3 on.
        next.fetched_of_epoch(window, 3..9, epoch);
        assert_eq!(next.jobs(), expected, "epoch {epoch}");
    }
}

#[test]
fn after_a_pause_messages_stay_done_unless_they_were_replaced_meanwhile() {
    for (epoch, expected) in [(6, &[0, 4][..]), (7, &[0, 2, 3, 4])] {
        let mut rig = rig(|_| {});
        let window = rig.gain(1);
        rig.fetched_of_epoch(window, 0..1, 4);
        rig.fetched_of_epoch(window, 1..5, 6);
        assert_eq!(rig.jobs().len(), 5);
        rig.done(window, 1);
        rig.done(window, 2);
        // Offset 3 was given up, and its dead letter is on its way.
        rig.awaits_letter(window, 3);
        rig.pause();
        for offset in [0, 4] {
            rig.end(window, offset, JobEnd::Abandoned);
        }
        rig.resume();
        let (second, _) = rig.last_assigned();
        rig.fetched_of_epoch(second, 0..1, 4);
        rig.fetched_of_epoch(second, 1..2, 6);
        rig.fetched_of_epoch(second, 2..5, epoch);
        assert_eq!(rig.jobs(), expected, "epoch {epoch}");
        // The letter of the message that was replaced says nothing about the one in its place.
        for offset in expected.iter().filter(|offset| **offset != 3) {
            rig.end(second, *offset, JobEnd::Done);
        }
        rig.end(window, 3, JobEnd::Done);
        assert_eq!(rig.commit_point(), Some(if epoch == 6 { 5 } else { 3 }));
    }
}

#[test]
fn a_dead_letter_counts_for_a_message_that_was_read_again_before_the_leader_changed() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.fetched_of_epoch(window, 0..5, 6);
    assert_eq!(rig.jobs().len(), 5);
    rig.awaits_letter(window, 3);
    rig.pause();
    for offset in [0, 1, 2, 4] {
        rig.end(window, offset, JobEnd::Abandoned);
    }
    rig.resume();
    let (second, _) = rig.last_assigned();
    rig.fetched_of_epoch(second, 0..5, 6);
    assert_eq!(rig.jobs(), [0, 1, 2, 4]);
    rig.fetched_of_epoch(second, 5..6, 7);
    assert_eq!(rig.jobs(), [5]);
    for offset in [0, 1, 2, 4, 5] {
        rig.end(second, offset, JobEnd::Done);
    }
    rig.end(window, 3, JobEnd::Done);
    assert_eq!(rig.commit_point(), Some(6));
}
