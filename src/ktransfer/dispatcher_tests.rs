//! The dispatcher alone: the test holds the other ends of its channels.

use super::*;
use crate::broker::TopicPartition;
use crate::ktransfer::client::Names;
use crate::ktransfer::group::{Fence, mailbox};
use crate::ktransfer::metrics::Metrics;
use crate::ktransfer::push::Pusher;
use crate::ktransfer::push::tests::module_config;
use crate::metrics::Registry;
use crossbeam_channel::unbounded;

struct Always;

impl Fence for Always {
    fn valid_until(&self, _: PartitionId, _: Generation) -> Option<Instant> {
        Some(Instant::now() + Duration::from_secs(60))
    }
}

struct Rig {
    dispatcher: Dispatcher,
    shared: Arc<Shared>,
    commands: Receiver<FetchCommand>,
    jobs: Receiver<Job>,
    _acks: Sender<Ack>,
}

fn rig(adapt: impl FnOnce(&mut crate::ktransfer::config::ModuleConfig)) -> Rig {
    let mut config = module_config(&["127.0.0.1:1"]);
    adapt(&mut config);
    let shared = Arc::new(Shared {
        pusher: Pusher::new(&config, Names::new(&config.backend_servers)),
        lease: Arc::new(Always),
        metrics: Metrics::new(&Registry::new()).of_module("m", "t"),
        config,
    });
    let (_, group_events) = unbounded();
    let (_, fetched) = unbounded();
    let ((fetch, commands), (anyone, jobs), (ack_sender, acks)) = (unbounded(), unbounded(), unbounded());
    let ports = Ports { group_events, group: mailbox().0, fetch, fetched, own: vec![anyone.clone()], anyone, acks };
    let dispatcher = Dispatcher::new(ports, Arc::clone(&shared), Stop::new(), Duration::from_secs(1));
    Rig { dispatcher, shared, commands, jobs, _acks: ack_sender }
}

impl Rig {
    /// Gains partition 0; returns the mark of what is read of it.
    fn gain(&mut self, generation: u64) -> WindowId {
        let generation = Generation(generation);
        self.dispatcher.on_group(GroupEvent::Gained { partition: 0, generation, position: Some(0) });
        self.last_assigned().0
    }

    /// The latest order to read: mark and position.
    fn last_assigned(&self) -> (WindowId, Option<Offset>) {
        let orders = self.commands.try_iter().filter_map(|command| match command {
            FetchCommand::Assign { window, position, .. } => Some((window, position)),
            _ => None,
        });
        orders.last().expect("something is read")
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
fn a_dispatcher_that_fails_leaves_no_push_behind() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.fetched(window, 0..3);
    let job = rig.jobs.try_recv().unwrap();
    assert!(!job.assignment.stop.is_triggered());
    // As its thread does when it panics.
    drop(rig.dispatcher);
    assert!(job.assignment.stop.is_triggered() && job.assignment.ending.is_triggered());
    assert!(rig.shared.pusher.is_cut());
}

#[test]
fn what_was_read_before_a_gap_is_pushed_and_the_position_waits_for_it() {
    let mut rig = rig(|config| config.max_commit_gap = 2.try_into().unwrap());
    let window = rig.gain(1);
    rig.fetched(window, 0..5);
    assert_eq!(rig.jobs.try_iter().count(), 2, "the rest is held back");
    let gone = Fetched::Gone { window, partition: 0, offset: 5, oldest: 50, newest: 90 };
    rig.dispatcher.on_fetched(gone);
    let orders: Vec<_> = rig.commands.try_iter().collect();
    let again = FetchCommand::Assign { partition: 0, window, position: Some(50) };
    assert!(orders.ends_with(&[again, FetchCommand::Hold(0, true)]), "read on, but held back still: {orders:?}");
    rig.fetched(window, 50..52);
    for done in [1, 0, 2, 3, 4, 50] {
        let end = JobEnd::Done;
        let ack = Ack { partition: 0, generation: Generation(1), window, offset: done, size: 202, end };
        rig.dispatcher.on_ack(ack);
        rig.dispatcher.hand_out();
    }
    let pushed: Vec<_> = rig.jobs.try_iter().map(|job| job.message.offset).collect();
    assert_eq!(pushed, [2, 3, 4, 50, 51]);
    assert_eq!(rig.dispatcher.partitions[&0].window.commit_point(), Some(51));
}

#[test]
fn a_topic_made_anew_begins_with_a_window_of_its_own() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.fetched(window, 0..5);
    rig.dispatcher.on_fetched(Fetched::Gone { window, partition: 0, offset: 5, oldest: 0, newest: 3 });
    let (fresh, position) = rig.last_assigned();
    assert!(fresh != window && position == Some(0));
    rig.fetched(fresh, 0..3);
    assert_eq!(rig.jobs.try_iter().map(|job| job.message.offset).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 0, 1, 2]);
}

#[test]
fn a_partition_that_is_being_given_back_is_not_read_again() {
    let mut rig = rig(|_| {});
    let window = rig.gain(1);
    rig.fetched(window, 0..1);
    rig.dispatcher.on_group(GroupEvent::Releasing { partition: 0, generation: Generation(1) });
    // Found before the fetcher was told.
    rig.dispatcher.on_fetched(Fetched::Gone { window, partition: 0, offset: 1, oldest: 50, newest: 90 });
    assert_eq!(rig.commands.try_iter().collect::<Vec<_>>(), [FetchCommand::Revoke(0)]);
}
