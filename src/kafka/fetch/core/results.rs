//! Applies the result of a request to the state.

use std::time::{Duration, Instant};

use super::super::event::{FetchEvent, TopicPartition};
use super::super::outcome::{FetchOutcome, PartitionOutcome};
use super::super::partition::{MENDABLE_GRACE, PartitionReader, Phase, REPORT_INTERVAL};
use super::super::record_set::Unpacked;
use super::state::{FetchCore, queue};
use super::work::{BrokerVersions, FetchPlan, QueryPlan, QueryResults};
use crate::kafka::error_code;
use crate::kafka::metadata::BrokerId;

/// Failures of a connection in a row from which they are reported: a broker closes idle connections.
const REPORTED_FAILURES: u32 = 2;
/// Largest size to which the request for a partition is raised.
const MAX_REQUEST_BYTES: usize = 1 << 30;

impl FetchCore {
    /// The worker has connected.
    pub(in super::super) fn on_connected(&mut self, id: BrokerId, versions: BrokerVersions) {
        if let Some(broker) = self.brokers.get_mut(&id) {
            broker.versions = Some(versions);
        }
    }

    /// The worker has closed its connection while no request was in flight.
    pub(in super::super) fn on_closed(&mut self, id: BrokerId) {
        if let Some(broker) = self.brokers.get_mut(&id) {
            broker.versions = None;
        }
    }

    /// The connection of a worker could not be made, or failed; `number` is the request that was in flight.
    /// `was_connected`: the connection was in use before.
    pub(in super::super) fn on_failed(
        &mut self,
        id: BrokerId,
        number: Option<u64>,
        reason: String,
        was_connected: bool,
        now: Instant,
    ) {
        for reader in self.partitions.values_mut() {
            let was_in_flight = number.is_some() && reader.in_flight == number;
            if was_in_flight {
                reader.in_flight = None;
            }
            if reader.replica.is_some_and(|(replica, _)| replica == id) {
                reader.replica = None;
            }
            reader.is_leader_stale |= was_in_flight || reader.leader == Some(id);
        }
        self.has_leader_news = true;
        let is_total = !self.has_working_broker(Some(id), now);
        let Some(broker) = self.brokers.get_mut(&id) else { return };
        (broker.versions, broker.overdue_at) = (None, None);
        broker.failures = broker.failures.saturating_add(1);
        let failures = broker.failures;
        let is_due = broker.reported_at.is_none_or(|at| at + REPORT_INTERVAL <= now);
        let is_reported = is_due && (!was_connected || broker.failures >= REPORTED_FAILURES);
        // An idle connection that was closed is replaced at once.
        let is_first = was_connected && broker.failures == 1;
        broker.not_before = now + if is_first { Duration::ZERO } else { broker.backoff.next() };
        if is_reported {
            broker.reported_at = Some(now);
            self.report(Some(FetchEvent::Unreachable { reason: reason.clone(), is_total }));
        }
        if !is_total && (!was_connected || 1 < failures) {
            self.report_unread(id, &reason, now);
        }
    }

    fn responded(&mut self, id: BrokerId, throttle: Duration, now: Instant) {
        if let Some(broker) = self.brokers.get_mut(&id) {
            broker.backoff.reset();
            (broker.failures, broker.reported_at, broker.overdue_at) = (0, None, None);
            broker.not_before = now + throttle;
        }
    }

    /// Takes the response to a Fetch request. `is_incremental`: the response leaves out partitions without news.
    pub(in super::super) fn on_fetched(
        &mut self,
        id: BrokerId,
        plan: &FetchPlan,
        outcome: FetchOutcome,
        is_incremental: bool,
        now: Instant,
    ) {
        if outcome.error_code != error_code::NONE {
            return self.on_refused(id, plan, outcome.error_code, now);
        }
        self.responded(id, outcome.throttle, now);
        // A broker that throttles a client answers without partitions, whatever their logs have (KIP-219).
        let leaves_out_unchanged = is_incremental && outcome.throttle.is_zero();
        self.take_nodes(&outcome.nodes);
        if let [alone] = &plan.wanted[..] {
            let name = TopicPartition { topic: alone.topic.clone(), partition: alone.fetch.partition };
            self.partitions.get_mut(&name).into_iter().for_each(|reader| reader.is_fetched_alone = false);
        }
        let (mut consumed, mut decoded) = (0, 0);
        for partition in outcome.partitions {
            if let Some(unpacked) = &partition.unpacked {
                consumed += unpacked.consumed_bytes;
                decoded += unpacked.set.total_cost();
            }
            self.on_partition(id, plan.number, partition, now);
        }
        if let Some(latest) = (decoded * 100).checked_div(consumed)
            && let Some(broker) = self.brokers.get_mut(&id)
        {
            broker.expansion_percent = ((broker.expansion_percent + latest) / 2).clamp(100, 100_000);
        }
        // The partitions that the response leaves out.
        for wanted in &plan.wanted {
            let name = TopicPartition { topic: wanted.topic.clone(), partition: wanted.fetch.partition };
            self.with_reader(&name, plan.number, |reader| {
                if leaves_out_unchanged {
                    reader.is_id_confirmed |= reader.topic_id.is_some();
                    reader.succeeded();
                    reader.validated();
                }
                None
            });
        }
    }

    /// The response to a Fetch request is too large: a broker returns at least one batch, however large. The worker has
    /// closed the connection. Then each partition is fetched alone, so that only the one with that batch fails.
    pub(in super::super) fn on_too_large(&mut self, id: BrokerId, plan: &FetchPlan, reason: &str, now: Instant) {
        self.on_closed(id);
        self.responded(id, Duration::ZERO, now);
        let is_alone = plan.wanted.len() == 1;
        for wanted in &plan.wanted {
            let name = TopicPartition { topic: wanted.topic.clone(), partition: wanted.fetch.partition };
            self.with_reader(&name, plan.number, |reader| {
                reader.is_fetched_alone = true;
                is_alone.then(|| reader.failed_for_long(reason.to_owned(), now)).flatten()
            });
        }
    }

    /// The broker refused the whole Fetch request. A lost session is an ordinary event; the next request starts a new
    /// one.
    fn on_refused(&mut self, id: BrokerId, plan: &FetchPlan, code: i16, now: Instant) {
        for wanted in &plan.wanted {
            let name = TopicPartition { topic: wanted.topic.clone(), partition: wanted.fetch.partition };
            self.with_reader(&name, plan.number, |reader| {
                reader.is_leader_stale |= error_code::needs_metadata(code);
                None
            });
        }
        self.has_leader_news = true;
        let (address, is_total) = (self.broker_name(id), !self.has_working_broker(Some(id), now));
        let Some(broker) = self.brokers.get_mut(&id) else { return };
        broker.overdue_at = None;
        broker.failures = broker.failures.saturating_add(1);
        if broker.failures >= REPORTED_FAILURES {
            broker.not_before = now + broker.backoff.next();
            if broker.reported_at.is_none_or(|at| at + REPORT_INTERVAL <= now) {
                broker.reported_at = Some(now);
                let reason = format!("{address} refuses the fetch request: {}", error_code::name(code));
                self.report(Some(FetchEvent::Unreachable { reason, is_total }));
            }
        }
    }

    fn on_partition(&mut self, id: BrokerId, number: u64, outcome: PartitionOutcome, now: Instant) {
        if outcome.error_code != error_code::NONE {
            return self.on_partition_error(id, number, &outcome, now);
        }
        let Some(unpacked) = outcome.unpacked else {
            return self.with_reader(&outcome.name, number, |_| None);
        };
        self.data_count += 1;
        let data_count = self.data_count;
        let (has_records, replica) = (outcome.records_bytes > 0, outcome.preferred_replica);
        let is_known = replica.is_some_and(|replica| replica != id && self.addresses.contains_key(&replica));
        let broker = self.broker_name(id);
        self.has_leader_news |= replica.is_some();
        self.with_reader(&outcome.name, number, |reader| {
            reader.is_id_confirmed |= reader.topic_id.is_some();
            if let Some((epoch, end_offset)) = outcome.diverging {
                reader.diverged(epoch, end_offset);
                return None;
            }
            reader.validated();
            if reader.is_stopped {
                return None;
            }
            if let Some(replica) = replica.filter(|replica| *replica != id && !has_records) {
                if is_known {
                    reader.succeeded();
                    reader.prefer_replica(replica, now);
                    return None;
                }
                // The leader responds at once, without records, until the client reads from the replica.
                reader.is_leader_stale = true;
                let reason = format!("{broker}: it names replica {replica} to read from, which the metadata has not");
                return reader.failed(reason, MENDABLE_GRACE, now);
            }
            if has_records {
                reader.last_data = data_count;
                return take_records(reader, unpacked, outcome.records_bytes, &broker, now);
            }
            reader.succeeded();
            None
        });
    }

    fn on_partition_error(&mut self, id: BrokerId, number: u64, outcome: &PartitionOutcome, now: Instant) {
        let code = outcome.error_code;
        let is_mendable = error_code::needs_metadata(code);
        self.has_leader_news = true;
        let reason = format!("{}: {}", self.broker_name(id), error_code::name(code));
        self.with_reader(&outcome.name, number, |reader| {
            let was_replica = reader.replica.take().is_some();
            reader.is_leader_stale |= is_mendable && !was_replica;
            if code == error_code::OFFSET_OUT_OF_RANGE {
                reader.is_id_confirmed |= reader.topic_id.is_some();
                if !was_replica {
                    reader.out_of_range();
                    return None;
                }
                // A replica may be behind the leader.
                return reader.failed(reason, MENDABLE_GRACE, now);
            }
            let grace = if is_mendable || was_replica { MENDABLE_GRACE } else { Duration::ZERO };
            reader.failed(reason, grace, now)
        });
        if let Some((leader, epoch)) = outcome.current_leader {
            self.take_leader_hint(&outcome.name, leader, epoch, now);
        }
    }

    /// Takes the response to a ListOffsets request: for each partition the oldest and the newest offset, or an error
    /// code.
    pub(in super::super) fn on_ranges(
        &mut self,
        id: BrokerId,
        plan: &QueryPlan,
        ranges: &QueryResults<(i64, i64)>,
        throttle: Duration,
        now: Instant,
    ) {
        self.responded(id, throttle, now);
        let broker = self.broker_name(id);
        for (name, range) in ranges {
            self.with_reader(name, plan.number, |reader| match *range {
                Err(code) => query_failed(reader, "cannot get the range of offsets", &broker, code, now),
                Ok((oldest, newest)) => range_known(reader, oldest, newest, &broker, now),
            });
        }
        self.has_leader_news = true;
        self.end_query(plan);
    }

    /// Takes the response to an OffsetForLeaderEpoch request: for each partition an epoch and its end, or an error
    /// code.
    pub(in super::super) fn on_epoch_ends(
        &mut self,
        id: BrokerId,
        plan: &QueryPlan,
        ends: &QueryResults<(i32, i64)>,
        throttle: Duration,
        now: Instant,
    ) {
        self.responded(id, throttle, now);
        let broker = self.broker_name(id);
        for (name, end) in ends {
            let asked = plan.partitions.iter().find(|query| query.name == *name).map(|query| query.epoch);
            self.with_reader(name, plan.number, |reader| match *end {
                Err(code) => query_failed(reader, "cannot get the end of a leader epoch", &broker, code, now),
                Ok((epoch, end_offset)) => {
                    reader.succeeded();
                    // Without an epoch the leader does not know the epoch, so the logs cannot be compared.
                    let is_comparable = epoch >= 0 && end_offset >= 0 && asked == Some(reader.epochs.last());
                    if is_comparable && (epoch < reader.epochs.last() || end_offset < reader.next) {
                        reader.diverged(epoch, end_offset);
                    } else {
                        reader.validated();
                    }
                    None
                }
            });
        }
        self.has_leader_news = true;
        self.end_query(plan);
    }

    /// Ends the request for partitions that the response left out.
    fn end_query(&mut self, plan: &QueryPlan) {
        for query in &plan.partitions {
            if let Some(reader) = self.partitions.get_mut(&query.name).filter(|one| one.in_flight == Some(plan.number))
            {
                reader.in_flight = None;
                queue(&mut self.turns, reader);
            }
        }
    }

    pub(super) fn broker_name(&self, id: BrokerId) -> String {
        match self.addresses.get(&id) {
            Some(address) => format!("broker {id} at {address}"),
            None => format!("broker {id}"),
        }
    }
}

/// Takes the record data of a successful response, which is not empty.
fn take_records(
    reader: &mut PartitionReader,
    unpacked: Unpacked,
    records_bytes: usize,
    broker: &str,
    now: Instant,
) -> Option<FetchEvent> {
    if unpacked.next_offset > reader.next {
        reader.succeeded();
        // An error behind the decoded messages comes again, with the next request.
        reader.accept(unpacked);
        return None;
    }
    let reason = match unpacked.error {
        Some(cause) => {
            return reader.failed_to_decode(format!("{broker}: {cause}"), unpacked.error_checksum, now);
        }
        None if unpacked.consumed_bytes == 0 => {
            // Brokers since 0.10.1 return the first batch whole (KIP-74).
            reader.min_request_bytes = (records_bytes * 2).min(MAX_REQUEST_BYTES);
            format!("{broker}: the batch at offset {} is cut off after {records_bytes} bytes", reader.next)
        }
        None => format!("{broker}: the response to a request for offset {} has only older messages", reader.next),
    };
    reader.failed(reason, Duration::ZERO, now)
}

/// The broker has no message at the position although its log was expected to.
fn range_known(
    reader: &mut PartitionReader,
    oldest: i64,
    newest: i64,
    broker: &str,
    now: Instant,
) -> Option<FetchEvent> {
    if reader.is_truncating() {
        // The logs are equal up to the position or below; the point is not in the log any more.
        reader.validated();
        return None;
    }
    let offset = reader.next;
    if offset < oldest || newest < offset {
        reader.phase = Phase::ConfirmingRange(oldest, newest);
        return None;
    }
    // A broker that does not know the last epoch refuses the offset, too; without the epoch it does not.
    reader.epochs.clear();
    reader.failed(format!("{broker}: OFFSET_OUT_OF_RANGE, but the offset is in the range"), MENDABLE_GRACE, now)
}

fn query_failed(reader: &mut PartitionReader, what: &str, broker: &str, code: i16, now: Instant) -> Option<FetchEvent> {
    let is_mendable = error_code::needs_metadata(code);
    reader.is_leader_stale |= is_mendable;
    let grace = if is_mendable { MENDABLE_GRACE } else { Duration::ZERO };
    reader.failed(format!("{broker}: {what}: {}", error_code::name(code)), grace, now)
}
