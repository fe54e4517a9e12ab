//! Tests of the dispatcher alone: the test holds the other ends of its channels.

use super::*;
use crate::broker::TopicPartition;
use crate::ktransfer::config::ModuleConfig;
use crate::ktransfer::fetcher::OffsetGap;
use crate::ktransfer::group::mailbox;
use crate::ktransfer::test_fixtures::{claim, module_config, worker_context};
use crate::metrics::Registry;
use crossbeam_channel::{Receiver, Sender, unbounded};

struct DispatcherRig {
    dispatcher: Dispatcher,
    context: Arc<WorkerContext>,
    fetch_commands: Receiver<FetchCommand>,
    jobs: Receiver<Job>,
    _acks: Sender<Ack>,
}

fn rig(adapt: impl FnOnce(&mut ModuleConfig)) -> DispatcherRig {
    let mut config = module_config(&["127.0.0.1:1"]);
    adapt(&mut config);
    let context = Arc::new(worker_context(config, &Registry::new()));
    let (_, group_events) = unbounded();
    let (_, fetched) = unbounded();
    let (fetch_commands, fetch_command_receiver) = unbounded();
    let ((shared, jobs), (ack_sender, acks)) = (unbounded(), unbounded());
    let jobs_sender = JobQueues { own: vec![shared.clone()], shared };
    let group_commands = mailbox().0;
    let channels = Channels { group_events, group_commands, fetch_commands, fetched, jobs: jobs_sender, acks };
    let dispatcher = Dispatcher::new(channels, Arc::clone(&context), Stop::new(), Duration::from_secs(1));
    DispatcherRig { dispatcher, context, fetch_commands: fetch_command_receiver, jobs, _acks: ack_sender }
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
        self.dispatcher.hand_out();
    }
}

#[test]
fn a_dispatcher_that_panics_ends_all_pushes() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.fetched(window, 0..3);
    let job = rig.jobs.try_recv().unwrap();
    assert!(!job.assignment.stop.is_triggered());
    // A panic of the dispatcher's thread drops the dispatcher too.
    drop(rig.dispatcher);
    assert!(job.assignment.stop.is_triggered() && job.assignment.ending.is_triggered());
    assert!(rig.context.pusher.is_aborted());
}

#[test]
fn messages_read_before_an_offset_gap_are_pushed_and_the_commit_point_does_not_skip_them() {
    let mut rig = rig(|config| config.max_commit_gap = 2.try_into().unwrap());
    let window = rig.gain(1);
    rig.fetched(window, 0..5);
    assert_eq!(rig.jobs.try_iter().count(), 2, "the other 3 messages are held back by max_commit_gap");
    let gone = Fetched::OffsetGone(OffsetGap { window, partition: 0, offset: 5, oldest: 50, newest: 90 });
    rig.dispatcher.on_fetched(gone);
    let commands: Vec<_> = rig.fetch_commands.try_iter().collect();
    let again = FetchCommand::Assign { partition: 0, window, position: Some(50) };
    assert!(commands.ends_with(&[again, FetchCommand::Pause(0)]), "assigned again and still paused: {commands:?}");
    rig.fetched(window, 50..52);
    for done in [1, 0, 2, 3, 4, 50] {
        let end = JobEnd::Done;
        let ack = Ack { partition: 0, generation: Generation(1), window, offset: done, size_bytes: 202, end };
        rig.dispatcher.on_ack(ack);
        rig.dispatcher.hand_out();
    }
    let pushed: Vec<_> = rig.jobs.try_iter().map(|job| job.message.offset).collect();
    assert_eq!(pushed, [2, 3, 4, 50, 51]);
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
    assert_eq!(rig.jobs.try_iter().map(|job| job.message.offset).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 0, 1, 2]);
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
