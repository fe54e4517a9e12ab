//! Requests of operators.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Range;

use super::*;
use crate::ktransfer::operations::{Action, PartitionResult, Refusal, Request};
use crate::ktransfer::pauses::{PauseChange, PauseMark};
use crate::ktransfer::turn::Turn;

type Reply = Result<Vec<PartitionResult>, Refusal>;

impl DispatcherRig {
    /// Sends a request; the reply is in the returned channel when there is one.
    fn request(&mut self, action: Action, is_dry_run: bool) -> Receiver<Reply> {
        let (reply, replies) = unbounded();
        let deadline = Instant::now() + Duration::from_secs(60);
        let (by, turn) = ("ann".into(), Arc::new(Turn::default()));
        self.dispatcher.on_request(Request { action, is_dry_run, by, deadline, reply, turn });
        self.dispatcher.end_turn(Instant::now());
        replies
    }

    fn change_pauses(&mut self, change: &PauseChange) {
        self.dispatcher.channels.operator.pauses.change(change).unwrap();
    }

    pub(super) fn pause(&mut self) -> Receiver<Reply> {
        self.change_pauses(&PauseChange::Pause(Some(0), PauseMark { by: "ann".into(), at_ms: 1 }));
        self.request(Action::FollowPauses(Some(0)), false)
    }

    pub(super) fn resume(&mut self) -> Receiver<Reply> {
        self.change_pauses(&PauseChange::Resume(Some(0)));
        self.request(Action::FollowPauses(Some(0)), false)
    }

    /// Acknowledges a job.
    pub(super) fn end(&mut self, window: WindowId, offset: Offset, end: JobEnd) {
        let (worker, has_waited) = (0, false);
        let ack = Ack { worker, has_waited, partition: 0, generation: Generation(1), window, offset, end };
        self.dispatcher.on_ack(ack, Instant::now());
        self.dispatcher.end_turn(Instant::now());
    }

    /// The worker has given a message up.
    pub(super) fn awaits_letter(&mut self, window: WindowId, offset: Offset) {
        let job = JobPlace { partition: 0, generation: Generation(1), window, offset };
        self.dispatcher.on_report(WorkerReport::AwaitsLetter(job), Instant::now());
    }

    fn commands(&self) -> Vec<FetchCommand> {
        self.fetch_commands.try_iter().collect()
    }

    fn metric_names(&self, part: &str) -> Vec<String> {
        let text = String::from_utf8(self.registry.render()).unwrap();
        text.lines().filter(|line| line.contains(part) && !line.starts_with('#')).map(str::to_owned).collect()
    }
}

fn skip(partition: PartitionId, offset: Offset) -> Action {
    Action::Skip { partition, offset, stores_letter: true }
}

fn words(reply: &Receiver<Reply>) -> Vec<(PartitionId, &'static str)> {
    let results = reply.try_recv().expect("there is a reply").expect("it is not refused");
    results.iter().map(|result| (result.partition, result.result)).collect()
}

fn refusal(reply: &Receiver<Reply>) -> (u16, &'static str) {
    let refusal = reply.try_recv().expect("there is a reply").expect_err("it is refused");
    (refusal.status, refusal.code)
}

fn is_open(reply: &Receiver<Reply>) -> bool {
    reply.try_recv().is_err()
}

#[test]
fn a_pause_abandons_what_is_not_on_the_wire_and_a_resume_goes_on_without_what_is_done() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.fetched(window, 0..4);
    rig.done(window, 2);
    let Ok(WorkerMessage::Job(job)) = rig.inbox.try_recv() else { panic!("no job") };
    let paused = rig.pause();
    assert_eq!(rig.commands(), [FetchCommand::Revoke(0)]);
    assert!(!job.assignment.may_push() && job.assignment.may_store_letters());
    rig.end(window, 1, JobEnd::Abandoned);
    rig.end(window, 3, JobEnd::Abandoned);
    assert!(is_open(&paused), "the push of offset 0 is on the wire");
    rig.fetched(window, 4..6);
    rig.end(window, 0, JobEnd::Done);
    assert_eq!(words(&paused), [(0, "done")]);
    assert_eq!(rig.commit_point(), Some(1));
    let pushed_while_paused = rig.jobs().into_iter().filter(|offset| *offset > 3).count();
    assert_eq!((pushed_while_paused, rig.commands().len()), (0, 0), "nothing is read and pushed while it is paused");
    assert_eq!(rig.metric_names("ktransfer_paused_partitions"), ["ktransfer_paused_partitions{module=\"m\"} 0"]);
    rig.dispatcher.show_status(Instant::now() + Duration::from_secs(2));
    assert_eq!(rig.metric_names("ktransfer_paused_partitions"), ["ktransfer_paused_partitions{module=\"m\"} 1"]);

    assert_eq!(words(&rig.resume()), [(0, "done")]);
    let (second, start) = rig.last_assigned();
    assert_eq!((second == window, start.offset), (false, 1));
    rig.fetched(second, 1..5);
    assert_eq!(rig.jobs(), [1, 3, 4], "offset 2 was done before");
    for offset in [1, 3, 4] {
        rig.end(second, offset, JobEnd::Done);
    }
    assert_eq!(rig.commit_point(), Some(5));
}

#[test]
fn a_message_that_waits_for_its_dead_letter_is_done_across_a_pause_and_not_pushed_again() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.fetched(window, 0..5);
    rig.jobs();
    for offset in [0, 2, 4] {
        rig.awaits_letter(window, offset);
    }
    let paused = rig.pause();
    assert!(is_open(&paused), "two pushes are on the wire");
    rig.end(window, 1, JobEnd::Done);
    rig.end(window, 3, JobEnd::Abandoned);
    assert_eq!(words(&paused), [(0, "done")]);
    rig.end(window, 0, JobEnd::Done);
    assert_eq!(rig.commit_point(), Some(2), "letters are stored while the partition is paused");

    assert_eq!(words(&rig.resume()), [(0, "done")], "a letter that waits does not hold up the resume");
    let (second, start) = rig.last_assigned();
    assert_eq!(start.offset, 2);
    // One is stored before its message is read again, one after it.
    rig.end(window, 4, JobEnd::Done);
    rig.fetched(second, 2..7);
    assert_eq!(rig.jobs(), [3, 5, 6]);
    rig.end(second, 3, JobEnd::Done);
    assert_eq!(rig.commit_point(), Some(2));
    rig.end(window, 2, JobEnd::Done);
    assert_eq!(rig.commit_point(), Some(5));
    assert_eq!(rig.dispatcher.partitions[&0].in_flight, 2);
}

#[test]
fn a_seek_abandons_the_dead_letters_and_pushes_their_messages_again() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.fetched(window, 0..2);
    let Ok(WorkerMessage::Job(job)) = rig.inbox.try_recv() else { panic!("no job") };
    rig.jobs();
    rig.awaits_letter(window, 0);
    rig.awaits_letter(window, 1);
    assert_eq!(words(&rig.pause()), [(0, "done")]);
    let sought = rig.request(Action::Seek(BTreeMap::from([(0, 0)])), false);
    assert_eq!(job.assignment.phase(), ClaimPhase::Ended);
    // Its time is over: it continues where it was, and its letters are abandoned all the same.
    rig.dispatcher.settle_requests(Instant::now() + Duration::from_secs(120));
    assert_eq!(words(&sought), [(0, "not_done")]);
    rig.end(window, 0, JobEnd::Abandoned);
    let resumed = rig.resume();
    assert!(is_open(&resumed), "the end of the other letter is not known yet");
    rig.end(window, 1, JobEnd::Abandoned);
    assert_eq!(words(&resumed), [(0, "done")]);
    let (second, _) = rig.last_assigned();
    rig.fetched(second, 0..2);
    assert_eq!(rig.jobs(), [0, 1]);
}

#[test]
fn dead_letters_of_the_log_before_are_not_taken_for_those_of_the_new_one() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.fetched(window, 0..1);
    rig.jobs();
    rig.awaits_letter(window, 0);
    rig.changed(window, LogChange::Recreated { topic_id: NEW_ID });
    let (second, _) = rig.last_assigned();
    rig.fetched(second, 0..1);
    assert_eq!(rig.jobs(), [0], "the first message of the new topic");
    assert_eq!(refusal(&rig.request(skip(0, 1), true)), (409, "not_at_head"));
    assert_eq!(words(&rig.request(skip(0, 0), true)), [(0, "would_be_done")], "it does not wait for a letter");
    rig.end(window, 0, JobEnd::Done);
    assert_eq!((rig.commit_point(), rig.dispatcher.partitions[&0].in_flight), (Some(0), 1));
}

#[test]
fn a_message_that_waits_for_its_dead_letter_is_skipped_only_without_one() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.fetched(window, 0..2);
    rig.jobs();
    let without = Action::Skip { partition: 0, offset: 0, stores_letter: false };
    let skipped = rig.request(skip(0, 0), false);
    // Its last push gives it up before the worker gets the order.
    rig.awaits_letter(window, 0);
    rig.dispatcher.end_turn(Instant::now());
    assert_eq!(words(&skipped), [(0, "not_done")]);
    assert_eq!(refusal(&rig.request(skip(0, 0), false)), (409, "awaits_dead_letter"));
    assert_eq!(words(&rig.request(without.clone(), true)), [(0, "would_be_done")]);
    // Also in the window after a pause.
    rig.pause();
    rig.end(window, 1, JobEnd::Abandoned);
    rig.resume();
    let (second, _) = rig.last_assigned();
    rig.fetched(second, 0..2);
    let skipped = rig.request(without, false);
    let order = rig.inbox.try_iter().filter_map(|message| match message {
        WorkerMessage::Skip(order) => Some(order),
        _ => None,
    });
    let order = order.last().expect("the order");
    assert_eq!((order.window, order.offset, order.stores_letter), (window, 0, false), "the job is of the first window");
    assert!(is_open(&skipped) && order.turn.take());
    rig.end(window, 0, JobEnd::Done);
    assert_eq!((words(&skipped), rig.commit_point()), (vec![(0, "done")], Some(1)));
}

#[test]
fn a_partition_that_is_claimed_while_it_is_paused_is_not_read() {
    let mut rig = rig(|_| {});
    rig.change_pauses(&PauseChange::Pause(None, PauseMark { by: "ann".into(), at_ms: 1 }));
    rig.dispatcher.on_group(GroupEvent::Gained(claim(0, 1, Some(7))));
    rig.dispatcher.end_turn(Instant::now());
    assert_eq!(rig.commands(), []);
    rig.change_pauses(&PauseChange::Resume(None));
    rig.dispatcher.end_turn(Instant::now());
    assert_eq!(rig.last_assigned().1.offset, 7);
    // Without a stored offset, the start is looked up first: it is that of now, not of the resume.
    rig.change_pauses(&PauseChange::Pause(None, PauseMark { by: "ann".into(), at_ms: 1 }));
    rig.dispatcher.on_group(GroupEvent::Gained(claim(0, 2, None)));
    rig.dispatcher.end_turn(Instant::now());
    let commands = rig.commands();
    let Some(FetchCommand::Assign { window, start: None, .. }) = commands.last() else { panic!("{commands:?}") };
    rig.dispatcher.on_fetched(Fetched::StartsAt { window: *window, partition: 0, offset: 30 });
    rig.dispatcher.end_turn(Instant::now());
    assert_eq!(rig.commands(), [FetchCommand::Revoke(0)]);
    rig.change_pauses(&PauseChange::Resume(None));
    rig.dispatcher.end_turn(Instant::now());
    assert_eq!(rig.last_assigned().1.offset, 30);
}

#[test]
fn a_seek_is_read_and_done_only_when_it_is_stored_and_voids_what_is_done_ahead() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.fetched(window, 0..4);
    rig.done(window, 3);
    assert_eq!(rig.jobs().len(), 4);
    let sought = rig.request(Action::Seek(BTreeMap::from([(0, 2)])), false);
    assert_eq!(rig.commands(), [FetchCommand::Revoke(0)]);
    for offset in 0..3 {
        rig.end(window, offset, JobEnd::Abandoned);
    }
    assert_eq!(rig.stored_now().map(|(next, _)| next), Some(2));
    rig.dispatcher.end_turn(Instant::now());
    assert!(is_open(&sought) && rig.commands().is_empty(), "it is not stored yet");
    rig.dispatcher.channels.operator.receipts.note(0, Generation(1), 2);
    rig.dispatcher.end_turn(Instant::now());
    assert_eq!(words(&sought), [(0, "done")]);
    let (second, start) = rig.last_assigned();
    assert_eq!(start.offset, 2);
    rig.fetched(second, 2..5);
    assert_eq!(rig.jobs(), [2, 3, 4], "also what was done ahead");
    rig.end(window, 0, JobEnd::Done);
    assert_eq!(rig.commit_point(), Some(2), "a late acknowledgement of the window before moves nothing");
}

#[test]
fn a_seek_whose_time_is_over_is_not_done_or_unknown_but_never_half_done() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.fetched(window, 0..1);
    let late = Instant::now() + Duration::from_secs(120);
    let sought = rig.request(Action::Seek(BTreeMap::from([(0, 50)])), false);
    rig.dispatcher.settle_requests(late);
    assert_eq!(words(&sought), [(0, "not_done")]);
    rig.end(window, 0, JobEnd::Done);
    assert_eq!((rig.last_assigned().1.offset, rig.commit_point()), (1, Some(1)), "it continues where it was");
    let sought = rig.request(Action::Seek(BTreeMap::from([(0, 50)])), false);
    rig.dispatcher.end_turn(Instant::now());
    rig.dispatcher.settle_requests(late);
    assert_eq!(words(&sought), [(0, "unknown")], "it was sent to be stored");
    let again = rig.request(Action::Seek(BTreeMap::from([(0, 60)])), false);
    assert_eq!(refusal(&again), (409, "busy"));
    let sought = rig.request(skip(0, 50), false);
    assert_eq!(refusal(&sought), (409, "paused"));
    rig.dispatcher.on_group(GroupEvent::Lost { partition: 0, generation: Generation(1) });
    rig.dispatcher.end_turn(Instant::now());
    assert_eq!(rig.dispatcher.partitions.len(), 0);
}

#[test]
fn a_skip_reaches_the_worker_of_the_head_and_no_other_message() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.fetched(window, 0..3);
    assert_eq!(rig.jobs(), [0, 1, 2]);
    for (offset, code) in [(1, "not_at_head"), (-1, "not_at_head"), (99, "not_at_head")] {
        let refused = rig.request(skip(0, offset), false);
        assert_eq!(refusal(&refused), (409, code));
    }
    assert!(rig.inbox.is_empty(), "a refused operation changes nothing");
    assert_eq!(words(&rig.request(skip(0, 0), true)), [(0, "would_be_done")]);
    assert!(rig.inbox.is_empty());
    let skipped = rig.request(skip(0, 0), false);
    let Ok(WorkerMessage::Skip(order)) = rig.inbox.try_recv() else { panic!("no order") };
    assert_eq!((order.window, order.offset, &*order.by), (window, 0, "ann"));
    assert!(order.turn.take());
    rig.end(window, 0, JobEnd::Done);
    assert_eq!((words(&skipped), rig.commit_point()), (vec![(0, "done")], Some(1)));
    // A push ends the message before the worker gets the order.
    let skipped = rig.request(skip(0, 1), false);
    rig.end(window, 1, JobEnd::Done);
    assert_eq!(words(&skipped), [(0, "not_done")]);
    // The worker is busy for too long: the order is cancelled.
    let skipped = rig.request(skip(0, 2), false);
    let order = rig.inbox.try_iter().filter_map(|message| match message {
        WorkerMessage::Skip(order) => Some(order),
        _ => None,
    });
    let order = order.last().expect("the order");
    rig.dispatcher.settle_requests(Instant::now() + Duration::from_secs(120));
    assert_eq!(words(&skipped), [(0, "not_done")]);
    assert!(!order.turn.take(), "a message whose skip was answered with not done is not skipped later");
}

/// A batch of messages without a key.
fn unkeyed_batch(window: WindowId, offsets: Range<Offset>) -> Fetched {
    let message = |offset| Message {
        from: TopicPartition { topic: "t".into(), partition: 0 },
        offset,
        key: None,
        value: None,
        headers: Vec::new(),
        timestamp_ms: None,
    };
    let next = offsets.end;
    let messages = offsets.map(message).collect();
    Fetched::Messages(vec![FetchedBatch { window, partition: 0, messages, next, leader_epoch: None }])
}

#[test]
fn what_is_held_back_behind_a_skipped_message_goes_on_without_an_acknowledgement() {
    let mut rig = rig(|config| config.max_commit_gap = NonZeroUsize::new(2).unwrap());
    let window = rig.gain(1);
    rig.dispatcher.on_fetched(unkeyed_batch(window, 0..3));
    assert_eq!((rig.jobs(), rig.dispatcher.partitions[&0].held_back.len()), (vec![0], 1));
    rig.dispatcher.partitions.get_mut(&0).unwrap().window.close(0);
    let skipped = rig.request(skip(0, 1), false);
    assert_eq!((words(&skipped), rig.dispatcher.partitions[&0].held_back.len()), (vec![(0, "done")], 0));
}

#[test]
fn a_message_that_no_worker_has_is_skipped_at_once() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.dispatcher.on_fetched(unkeyed_batch(window, 0..2));
    assert_eq!(rig.jobs(), [0], "the one worker is busy");
    // Without an end of the turn, in which the next message would be sent.
    let (worker, has_waited, end) = (0, false, JobEnd::Done);
    rig.dispatcher.partitions.get_mut(&0).unwrap().window.close(0);
    let skipped = rig.request(skip(0, 1), false);
    assert_eq!((words(&skipped), rig.commit_point()), (vec![(0, "done")], Some(2)));
    let ack = Ack { worker, has_waited, partition: 0, generation: Generation(1), window, offset: 0, end };
    rig.dispatcher.on_ack(ack, Instant::now());
    rig.dispatcher.end_turn(Instant::now());
    assert_eq!((rig.jobs(), rig.dispatcher.partitions[&0].in_flight), (vec![], 0));
    assert!(rig.has_metric("ktransfer_messages_total{module=\"m\",outcome=\"skipped\"} 1"));
}

#[test]
fn requests_for_other_partitions_and_withdrawn_ones_change_nothing() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.fetched(window, 0..2);
    rig.jobs();
    for action in [Action::FollowPauses(Some(9)), skip(9, 0), Action::Seek(BTreeMap::from([(0, 0), (9, 0)]))] {
        let refused = rig.request(action, false);
        assert_eq!(refusal(&refused), (409, "not_owned"));
    }
    assert_eq!(words(&rig.request(Action::Seek(BTreeMap::from([(0, 0)])), true)), [(0, "would_be_done")]);
    let (reply, replies) = unbounded();
    let turn = Arc::new(Turn::default());
    turn.cancel();
    let (action, deadline) = (Action::Seek(BTreeMap::from([(0, 0)])), Instant::now() + Duration::from_secs(60));
    rig.dispatcher.on_request(Request { action, is_dry_run: false, by: "ann".into(), deadline, reply, turn });
    assert!(replies.try_recv().is_err());
    assert_eq!((rig.commands(), rig.jobs(), rig.stored_now()), (vec![], vec![], None));
    rig.dispatcher.begin_stop();
    let refused = rig.request(Action::FollowPauses(None), false);
    assert_eq!(refusal(&refused), (503, "not_running"));
}
