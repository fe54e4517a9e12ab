use super::*;
use crate::admin::Health;
use crate::broker::in_memory::MemoryBroker;
use crate::broker::{LogEnds, LogRange, MetadataError, PartitionInfo, RangeSink};
use crate::ktransfer::config::StartFrom;
use crate::ktransfer::group::{Generation, Mailbox, mailbox};
use crate::ktransfer::metrics::Metrics;
use crate::ktransfer::test_backend::wait_until;
use crate::ktransfer::test_fixtures::module_config;
use crate::metrics::Registry;
use crossbeam_channel::{bounded, unbounded};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

/// Answers for all partitions except 0, whose broker is silent until the deadline while `is_silent` is set.
struct SilentLogEnds {
    is_silent: Arc<AtomicBool>,
}

impl LogEnds for SilentLogEnds {
    fn partitions(&mut self, _: &str) -> Result<Vec<PartitionInfo>, MetadataError> {
        Ok(Vec::new())
    }

    fn newest(&mut self, _: &[TopicPartition]) -> Vec<Result<Offset, MetadataError>> {
        Vec::new()
    }

    fn range(&mut self, _: &TopicPartition) -> Result<LogRange, MetadataError> {
        Ok(LogRange { oldest: 3, newest: 9, stable: 8 })
    }

    fn ranges(&mut self, partitions: &[TopicPartition], deadline: Instant, found: &mut RangeSink<'_>) {
        for (index, partition) in partitions.iter().enumerate() {
            if partition.partition != 0 || !self.is_silent.load(Ordering::SeqCst) {
                found(index, self.range(partition));
            }
        }
        if let Some(index) = partitions.iter().position(|partition| partition.partition == 0)
            && self.is_silent.load(Ordering::SeqCst)
        {
            std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
            found(index, Err(MetadataError::Unreachable("no answer".into())));
        }
    }
}

struct LoopRig {
    broker: MemoryBroker,
    health: Health,
    stop: Stop,
    commands: Sender<FetchCommand>,
    fetched: Receiver<Fetched>,
    read_errors: ReadErrors,
    group: Mailbox,
    threads: Vec<JoinHandle<()>>,
}

impl LoopRig {
    fn start(log_ends: impl FnOnce(&MemoryBroker) -> Box<dyn LogEnds>) -> LoopRig {
        LoopRig::start_with(4, MemoryBudget::new(1 << 30), unbounded(), log_ends)
    }

    fn start_with(
        n_partitions: i32,
        memory: MemoryBudget,
        (batches, fetched): (Sender<Fetched>, Receiver<Fetched>),
        log_ends: impl FnOnce(&MemoryBroker) -> Box<dyn LogEnds>,
    ) -> LoopRig {
        let (broker, health, stop) = (MemoryBroker::new(), Health::new(), Stop::new());
        broker.create_topic("t", n_partitions);
        let mut config = module_config(&[]);
        config.waiting_queue_size = 8_000.try_into().unwrap();
        let metrics = Metrics::new(&Registry::new()).of_module("m", "t");
        let (commands, command_receiver) = bounded(1);
        let (found, found_starts) = bounded(FOUND_STARTS);
        let (group_commands, group) = mailbox();
        let start_requests = StartRequests::new();
        let start_offsets = StartOffsets {
            log_ends: log_ends(&broker),
            topic: "t".into(),
            start_from: StartFrom::Latest,
            requests: start_requests.clone(),
            found,
            group_commands,
        };
        let read_errors = ReadErrors::default();
        let channels = FetchChannels {
            commands: command_receiver,
            batches,
            start_requests,
            found_starts,
            memory,
            read_errors: read_errors.clone(),
        };
        let component = health.component("broker of m");
        let fetch_loop = FetchLoop::new(Box::new(broker.fetcher()), &config, metrics, component, channels);
        let (loop_stop, lookup_stop) = (stop.clone(), stop.clone());
        let threads = vec![
            std::thread::spawn(move || fetch_loop.run(&loop_stop)),
            std::thread::spawn(move || start_offsets.run(&lookup_stop)),
        ];
        LoopRig { broker, health, stop, commands, fetched, read_errors, group, threads }
    }

    fn assign(&self, partition: PartitionId, window: u64, offset: Option<Offset>) {
        let (window, generation) = (WindowId(window), Generation(window));
        let start = offset.map(|offset| StartPosition { offset, log: LogIdentity::default() });
        self.commands.send(FetchCommand::Assign { partition, window, generation, start }).unwrap();
    }

    fn next(&self) -> Fetched {
        loop {
            match self.fetched.recv_timeout(Duration::from_secs(20)).expect("a report") {
                Fetched::TopicId { .. } => {}
                fetched => return fetched,
            }
        }
    }

    fn end(self) {
        self.stop.trigger();
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

#[test]
fn a_partition_that_cannot_be_placed_delays_neither_the_others_nor_a_command() {
    let is_silent = Arc::new(AtomicBool::new(true));
    let silent = Arc::clone(&is_silent);
    let rig = LoopRig::start(|_| Box::new(SilentLogEnds { is_silent: silent }));
    for partition in [0, 1, 2, 3].repeat(8) {
        rig.broker.put("t", partition, None, b"v");
    }
    rig.assign(0, 1, None);
    for partition in [1, 2] {
        rig.assign(partition, 1, None);
        // Partition 0 is looked up all the time.
        let starts_at = Fetched::StartsAt { window: WindowId(1), partition, offset: 8 };
        wait_until("the other partition starts", || rig.fetched.try_iter().any(|fetched| fetched == starts_at));
    }
    rig.assign(3, 1, Some(4));
    let Fetched::Messages(batches) = rig.next() else { panic!("messages") };
    assert_eq!((batches[0].partition, batches[0].messages.len(), batches[0].next), (3, 4, 8));
    let stored = |rig: &LoopRig| rig.group.take().starts.into_iter().map(|(partition, (_, next, _))| (partition, next));
    assert_eq!(stored(&rig).collect::<BTreeMap<_, _>>(), BTreeMap::from([(1, 8), (2, 8)]), "stored at once");
    wait_until("the failure is reported", || {
        rig.health.troubles().iter().any(|(_, reason)| reason.contains("start offset of partition 0"))
    });

    is_silent.store(false, Ordering::SeqCst);
    wait_until("partition 0 starts", || {
        rig.fetched.try_iter().any(|fetched| matches!(fetched, Fetched::StartsAt { partition: 0, offset: 8, .. }))
    });
    assert_eq!(stored(&rig).collect::<Vec<_>>(), [(0, 8)]);
    wait_until("the failure is cleared", || rig.health.troubles().is_empty());
    rig.end();
}

/// Blocks a loop in one of two ways: the memory is used up, or the channel to the dispatcher is full.
fn blocked_loop(n_partitions: i32, by_memory: bool) -> LoopRig {
    let memory = MemoryBudget::new(if by_memory { 500 } else { 1 << 30 });
    let channel = if by_memory { unbounded() } else { bounded(1) };
    let rig = LoopRig::start_with(n_partitions, memory.clone(), channel, |broker| Box::new(broker.log_ends()));
    rig.assign(0, 1, Some(0));
    rig.broker.put("t", 0, None, &[b'v'; 300]);
    wait_until("the first message is held", || memory.used_bytes() > 0);
    rig.broker.put("t", 0, None, &[b'v'; 300]);
    // The id of the topic fills the channel.
    wait_until("a message waits", || memory.is_awaited() || rig.fetched.is_full());
    rig
}

#[test]
fn starts_are_found_and_stored_while_messages_wait() {
    for by_memory in [true, false] {
        let n_partitions = 3 * FOUND_STARTS as i32;
        let rig = blocked_loop(n_partitions, by_memory);
        let mut wanted: Vec<PartitionId> = (1..n_partitions).collect();
        wanted.iter().for_each(|&partition| rig.assign(partition, 1, None));
        wait_until("all starts are on their way to the group", || {
            let stored = rig.group.take().starts;
            wanted.retain(|partition| !stored.contains_key(partition));
            wanted.is_empty()
        });
        // The reports of the starts come, too, each before the messages of its partition.
        if !by_memory {
            let mut missing: Vec<PartitionId> = (1..n_partitions).collect();
            while !missing.is_empty() {
                if let Fetched::StartsAt { partition, .. } = rig.next() {
                    missing.retain(|one| *one != partition);
                }
            }
        }
        rig.end();
    }
}

#[test]
fn errors_begin_and_end_while_messages_wait() {
    for by_memory in [true, false] {
        let rig = blocked_loop(2, by_memory);
        rig.assign(1, 1, Some(0));
        let partition = TopicPartition { topic: "t".into(), partition: 1 };
        let error = || rig.read_errors.of(1, Instant::now()).map(|error| error.reason);
        rig.broker.set_broken(&partition, Some("no right to read"));
        wait_until("the error is kept", || error().as_deref() == Some("no right to read"));
        rig.broker.set_broken(&partition, None);
        wait_until("the error has ended", || error().is_none());
        rig.broker.set_reachable(false);
        let is_reported = || rig.health.troubles().iter().any(|(_, reason)| reason.contains("no broker"));
        wait_until("no broker can be reached", is_reported);
        rig.broker.set_reachable(true);
        wait_until("that is over", || rig.health.troubles().is_empty());
        rig.end();
    }
}

#[test]
fn a_start_offset_of_an_earlier_assignment_is_neither_stored_nor_read_from() {
    let is_silent = Arc::new(AtomicBool::new(true));
    let silent = Arc::clone(&is_silent);
    let rig = LoopRig::start(|_| Box::new(SilentLogEnds { is_silent: silent }));
    rig.assign(0, 1, None);
    wait_until("the look-up fails", || !rig.health.troubles().is_empty());
    rig.commands.send(FetchCommand::Revoke(0)).unwrap();
    wait_until("the failure is cleared", || rig.health.troubles().is_empty());
    is_silent.store(false, Ordering::SeqCst);
    rig.assign(0, 2, None);
    assert_eq!(rig.next(), Fetched::StartsAt { window: WindowId(2), partition: 0, offset: 8 });
    assert_eq!(rig.group.take().starts[&0].0, Generation(2));
    rig.end();
}

#[test]
fn positions_behind_markers_and_changes_of_the_log_are_reported() {
    let rig = LoopRig::start(|broker| Box::new(broker.log_ends()));
    let partition = TopicPartition { topic: "t".into(), partition: 0 };
    for _ in 0..3 {
        rig.broker.put("t", 0, None, b"v");
    }
    rig.broker.put_marker(&partition);
    rig.assign(0, 1, Some(0));
    let Fetched::Messages(batches) = rig.next() else { panic!("messages") };
    assert_eq!((batches[0].messages.len(), batches[0].next), (3, 4));
    rig.broker.put_marker(&partition);
    let Fetched::Messages(batches) = rig.next() else { panic!("a position") };
    assert_eq!((batches[0].messages.len(), batches[0].next), (0, 5));
    rig.broker.truncate(&partition, 2);
    let Fetched::LogChanged { change, .. } = rig.next() else { panic!("a change") };
    assert!(matches!(change, LogChange::Truncated { position: 5, divergence: 2, .. }), "{change:?}");
    rig.assign(0, 2, Some(2));
    rig.broker.put("t", 0, None, b"v");
    let Fetched::Messages(batches) = rig.next() else { panic!("messages") };
    assert_eq!((batches[0].window, batches[0].next), (WindowId(2), 3));
    rig.broker.recreate_topic("t", 4);
    let Fetched::LogChanged { change, .. } = rig.next() else { panic!("a change") };
    assert!(matches!(change, LogChange::Recreated { .. }), "{change:?}");
    rig.end();
}

#[test]
fn without_assigned_partitions_the_broker_counts_as_healthy() {
    let rig = LoopRig::start(|broker| Box::new(broker.log_ends()));
    rig.broker.set_reachable(false);
    rig.assign(0, 1, Some(0));
    let is_reported = || rig.health.troubles().iter().any(|(_, reason)| reason.contains("no broker"));
    wait_until("the error is reported", is_reported);
    rig.commands.send(FetchCommand::Revoke(0)).unwrap();
    wait_until("the error is cleared", || rig.health.troubles().is_empty());
    rig.end();
}

#[test]
fn an_error_of_a_partition_is_kept_until_it_is_read_or_revoked() {
    let rig = LoopRig::start(|broker| Box::new(broker.log_ends()));
    let partitions = [0, 1, 2].map(|partition| TopicPartition { topic: "t".into(), partition });
    let set_broken = |is_broken| {
        let reason = Some("no right to read").filter(|_| is_broken);
        partitions.iter().for_each(|partition| rig.broker.set_broken(partition, reason));
    };
    let error = |partition| rig.read_errors.of(partition, Instant::now()).map(|error| error.reason);
    set_broken(true);
    for partition in 0..3 {
        rig.assign(partition, 1, Some(0));
        wait_until("the error is kept", || error(partition).as_deref() == Some("no right to read"));
    }
    assert!(rig.health.troubles().is_empty(), "it does not last yet");
    rig.commands.send(FetchCommand::Revoke(1)).unwrap();
    wait_until("a revoked partition has no error", || error(1).is_none());
    // No message is in the log, so nothing but the end of the error can be reported.
    set_broken(false);
    wait_until("the partitions are read again", || error(0).is_none() && error(2).is_none());
    rig.end();
}
