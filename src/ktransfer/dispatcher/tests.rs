//! Tests of the dispatcher alone: the test holds the other ends of its channels.

use super::*;
use crate::broker::{Offset, TopicPartition};
use crate::ktransfer::config::ModuleConfig;
use crate::ktransfer::fetcher::OffsetGap;
use crate::ktransfer::group::mailbox;
use crate::ktransfer::job::{ClaimPhase, WorkerMessage};
use crate::ktransfer::memory_budget::MemoryBudget;
use crate::ktransfer::test_fixtures::{claim, module_config, worker_context};
use crate::metrics::Registry;
use crossbeam_channel::{Receiver, Sender, unbounded};

struct DispatcherRig {
    dispatcher: Dispatcher,
    context: Arc<WorkerContext>,
    fetch_commands: Receiver<FetchCommand>,
    inbox: Receiver<WorkerMessage>,
    _reports: Sender<WorkerReport>,
}

fn rig(adapt: impl FnOnce(&mut ModuleConfig)) -> DispatcherRig {
    let mut config = module_config(&["127.0.0.1:1"]);
    adapt(&mut config);
    let context = Arc::new(worker_context(config, &Registry::new()));
    let (_, group_events) = unbounded();
    let (_, fetched) = unbounded();
    let (fetch_commands, fetch_command_receiver) = unbounded();
    let ((worker, inbox), (report_sender, reports)) = (unbounded(), unbounded());
    let (group_commands, memory) = (mailbox().0, MemoryBudget::new(1 << 30));
    let workers = [worker].into();
    let channels = Channels { group_events, group_commands, fetch_commands, fetched, memory, workers, reports };
    let dispatcher = Dispatcher::new(channels, Arc::clone(&context), Stop::new(), Duration::from_secs(1));
    DispatcherRig { dispatcher, context, fetch_commands: fetch_command_receiver, inbox, _reports: report_sender }
}

impl DispatcherRig {
    /// Sends `Gained` for partition 0; returns the window that its messages belong to.
    fn gain(&mut self, generation: u64) -> WindowId {
        self.dispatcher.on_group(GroupEvent::Gained(claim(0, generation, Some(0))));
        self.last_assigned().0
    }

    /// Returns the window and the position of the latest `Assign`.
    fn last_assigned(&self) -> (WindowId, Option<Offset>) {
        let assigned = self.fetch_commands.try_iter().filter_map(|command| match command {
            FetchCommand::Assign { window, position, .. } => Some((window, position)),
            _ => None,
        });
        assigned.last().expect("a partition is assigned")
    }

    fn fetched(&mut self, window: WindowId, offsets: std::ops::Range<Offset>) {
        let message = |offset| Message {
            from: TopicPartition { topic: "t".into(), partition: 0 },
            offset,
            key: Some(b"k".to_vec()),
            value: Some(b"v".to_vec()),
            headers: Vec::new(),
            timestamp_ms: None,
        };
        self.dispatcher.on_fetched(Fetched::Messages(offsets.map(|offset| (window, message(offset))).collect()));
    }

    fn done(&mut self, window: WindowId, offset: Offset) {
        let (worker, has_waited, end) = (0, false, JobEnd::Done);
        let ack = Ack { worker, has_waited, partition: 0, generation: Generation(1), window, offset, end };
        self.dispatcher.on_ack(ack, Instant::now());
    }

    /// Returns the offsets of the jobs that were sent to the worker since the last call.
    fn jobs(&self) -> Vec<Offset> {
        let jobs = self.inbox.try_iter().filter_map(|message| match message {
            WorkerMessage::Job(job) => Some(job.message.offset),
            _ => None,
        });
        jobs.collect()
    }
}

#[test]
fn a_dispatcher_that_panics_ends_all_pushes() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.fetched(window, 0..3);
    let Ok(WorkerMessage::Job(job)) = rig.inbox.try_recv() else { panic!("no job") };
    assert_eq!(job.assignment.phase(), ClaimPhase::Held);
    // A panic of the dispatcher's thread drops the dispatcher too.
    drop(rig.dispatcher);
    assert_eq!(job.assignment.phase(), ClaimPhase::Ended);
    assert!(matches!(rig.inbox.try_iter().last(), Some(WorkerMessage::End)));
    assert!(rig.context.http_client.pusher(0).is_closed());
}

#[test]
fn messages_read_before_an_offset_gap_are_pushed_and_the_commit_point_does_not_skip_them() {
    let mut rig = rig(|config| config.max_commit_gap = 2.try_into().unwrap());
    let window = rig.gain(1);
    rig.fetched(window, 0..5);
    assert_eq!(rig.jobs(), [0, 1], "the other 3 messages are held back by max_commit_gap");
    let gone = Fetched::OffsetGone(OffsetGap { window, partition: 0, offset: 5, oldest: 50, newest: 90 });
    rig.dispatcher.on_fetched(gone);
    let commands: Vec<_> = rig.fetch_commands.try_iter().collect();
    let again = FetchCommand::Assign { partition: 0, window, position: Some(50) };
    assert!(commands.ends_with(&[again]), "{commands:?}");
    rig.fetched(window, 50..52);
    for done in [1, 0, 2, 3, 4, 50] {
        rig.done(window, done);
    }
    assert_eq!(rig.jobs(), [2, 3, 4, 50, 51]);
    assert_eq!(rig.dispatcher.partitions[&0].window.commit_point(), Some(51));
}

#[test]
fn a_partition_of_a_recreated_topic_gets_a_new_window() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.fetched(window, 0..5);
    rig.dispatcher.on_fetched(Fetched::OffsetGone(OffsetGap { window, partition: 0, offset: 5, oldest: 0, newest: 3 }));
    let (fresh, position) = rig.last_assigned();
    assert!(fresh != window && position == Some(0));
    rig.fetched(fresh, 0..3);
    assert_eq!(rig.jobs(), [0, 1, 2, 3, 4, 0, 1, 2]);
}

#[test]
fn a_partition_that_is_being_released_is_not_read_again() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.fetched(window, 0..1);
    rig.dispatcher.on_group(GroupEvent::Releasing { partition: 0, generation: Generation(1) });
    // The fetch loop detected this gap before it received the Revoke.
    rig.dispatcher.on_fetched(Fetched::OffsetGone(OffsetGap {
        window,
        partition: 0,
        offset: 1,
        oldest: 50,
        newest: 90,
    }));
    assert_eq!(rig.fetch_commands.try_iter().collect::<Vec<_>>(), [FetchCommand::Revoke(0)]);
}

#[test]
fn a_paused_partition_is_resumed_when_half_of_what_was_held_back_is_left() {
    let mut rig = rig(|config| config.max_commit_gap = 1.try_into().unwrap());
    let window = rig.gain(1);
    rig.fetched(window, 0..MAX_HELD_BACK as Offset);
    assert_eq!(rig.fetch_commands.try_iter().count(), 0, "a small gap does not pause with every message");
    rig.fetched(window, MAX_HELD_BACK as Offset..MAX_HELD_BACK as Offset + 10);
    assert_eq!(rig.fetch_commands.try_iter().collect::<Vec<_>>(), [FetchCommand::Pause(0)]);
    let resumed_at = (0..).find(|offset| {
        rig.done(window, *offset);
        rig.fetch_commands.try_iter().next() == Some(FetchCommand::Resume(0))
    });
    assert_eq!(resumed_at, Some(MAX_HELD_BACK as Offset / 2 + 8));
    assert_eq!(rig.jobs(), (0..MAX_HELD_BACK as Offset / 2 + 10).collect::<Vec<_>>());
}
