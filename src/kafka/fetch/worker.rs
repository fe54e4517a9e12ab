//! The thread of one broker: connects, sends the requests that the core plans, and returns the results to it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::{BrokerVersions, FetchPlan, QueryPlan, Work};
use super::event::TopicPartition;
use super::outcome::{FetchOutcome, outcome, throttle};
use super::session::FetchSession;
use super::shared::{Shared, State};
use crate::kafka::config::BrokerAddress;
use crate::kafka::connection::{Connection, ConnectionError, ConnectionErrorKind};
use crate::kafka::metadata::BrokerId;
use crate::kafka::protocol::Request;
use crate::kafka::protocol::fetch::{self, FIRST_FLEXIBLE, FetchRequest, FetchResponse};
use crate::kafka::protocol::list_offsets::{EARLIEST, LATEST, ListOffsetsPartition, ListOffsetsRequest};
use crate::kafka::protocol::offset_for_leader_epoch::{EpochQuery, OffsetForLeaderEpochRequest};

/// The worker of one broker.
struct Worker<'a> {
    shared: &'a Arc<Shared>,
    id: BrokerId,
    connection: Option<Connection>,
    session: FetchSession,
}

/// Runs the worker until the core, the stop or the fetcher's end ends it.
pub(super) fn run(shared: &Arc<Shared>, id: BrokerId) {
    let mut worker = Worker { shared, id, connection: None, session: FetchSession::default() };
    while let Some(work) = worker.next_work() {
        let number = number_of(&work);
        if let Err(cause) = worker.execute(work) {
            worker.failed(number, &cause);
        }
    }
    worker.disconnected();
}

fn number_of(work: &Work) -> Option<u64> {
    match work {
        Work::Fetch(plan) => Some(plan.number),
        Work::Ranges(plan) | Work::EpochEnds(plan) => Some(plan.number),
        Work::Connect(_) | Work::Wait(_) | Work::End => None,
    }
}

impl Worker<'_> {
    /// Waits for work; `None` ends the worker.
    fn next_work(&mut self) -> Option<Work> {
        let mut state = self.shared.lock();
        loop {
            if self.shared.is_ended(&state) {
                return None;
            }
            self.drop_outdated_connection(&mut state);
            match state.core.next_work(self.id, Instant::now()) {
                Work::Wait(until) => state = self.shared.wait(state, until),
                Work::End => return None,
                work => return Some(work),
            }
        }
    }

    /// Drops the connection if the broker has closed it, or has another address now.
    fn drop_outdated_connection(&mut self, state: &mut State) {
        let Some(connection) = &mut self.connection else { return };
        if connection.is_closed() || state.core.address(self.id).is_some_and(|address| address != connection.address())
        {
            self.connection = None;
            self.session.lost();
            state.disconnects.remove(&self.id);
            state.core.on_closed(self.id);
        }
    }

    fn execute(&mut self, work: Work) -> Result<(), ConnectionError> {
        match work {
            Work::Connect(address) => self.connect(&address),
            Work::Fetch(plan) => self.fetch(&plan),
            Work::Ranges(plan) => self.ranges(&plan),
            Work::EpochEnds(plan) => self.epoch_ends(&plan),
            Work::Wait(_) | Work::End => Ok(()),
        }
    }

    fn connect(&mut self, address: &BrokerAddress) -> Result<(), ConnectionError> {
        let connector = &self.shared.connector;
        let connection = connector.connect(address, Instant::now() + connector.config().connect_timeout)?;
        let versions = BrokerVersions {
            fetch: connection.version_of(fetch::API_KEY, fetch::VERSIONS)?,
            has_epoch_ends: connection
                .version_of(OffsetForLeaderEpochRequest::API_KEY, OffsetForLeaderEpochRequest::VERSIONS)
                .is_ok(),
        };
        let mut state = self.shared.lock();
        state.disconnects.insert(self.id, connection.disconnect_handle());
        state.core.on_connected(self.id, versions);
        self.connection = Some(connection);
        // The session of an earlier connection is closed by the first request.
        self.session.lost();
        Ok(())
    }

    /// Returns the connection; the core plans requests only after `on_connected`.
    fn connection(&mut self) -> Option<&mut Connection> {
        self.connection.as_mut()
    }

    fn deadline(&self, wait: Duration) -> Instant {
        Instant::now() + wait + self.shared.connector.config().request_timeout
    }

    fn fetch(&mut self, plan: &FetchPlan) -> Result<(), ConnectionError> {
        let config = &self.shared.config;
        let mut request = FetchRequest {
            max_wait_ms: i32::try_from(plan.max_wait.as_millis()).unwrap_or(i32::MAX),
            max_bytes: i32::try_from(plan.max_bytes).unwrap_or(i32::MAX),
            read_committed: config.read_committed,
            rack: config.client_rack.clone().unwrap_or_default(),
            ..FetchRequest::default()
        };
        self.session.prepare(plan.version, &plan.wanted, &mut request);
        let (version, deadline) = (plan.version, self.deadline(plan.max_wait));
        let Some(connection) = self.connection.as_mut() else { return Ok(()) };
        let sent = connection.send_with(fetch::API_KEY, version, version >= FIRST_FLEXIBLE, deadline, |buffer| {
            request.encode(&mut buffer.bytes, version);
        })?;
        let max_batch_bytes = config.max_batch_bytes();
        let received: Result<FetchOutcome, _> = connection.receive_with(sent, deadline, |body| {
            FetchResponse::decode(body, version).map(|response| outcome(response, plan, max_batch_bytes))
        });
        let outcome = match received {
            Err(cause) if cause.kind == ConnectionErrorKind::TooLarge => {
                self.disconnected();
                let mut state = self.shared.lock();
                state.core.on_too_large(self.id, plan, &cause.to_string(), Instant::now());
                self.shared.changed(&mut state);
                return Ok(());
            }
            received => received?,
        };
        self.session.responded(outcome.error_code, outcome.session_id);
        let mut state = self.shared.lock();
        state.core.on_fetched(self.id, plan, outcome, request.session_epoch > 0, Instant::now());
        self.shared.changed(&mut state);
        Ok(())
    }

    fn ranges(&mut self, plan: &QueryPlan) -> Result<(), ConnectionError> {
        let oldest = self.offsets(plan, EARLIEST)?;
        let newest = self.offsets(plan, LATEST)?;
        let mut ranges = Vec::new();
        for query in &plan.partitions {
            let (Some(oldest), Some(newest)) = (oldest.0.get(&query.name), newest.0.get(&query.name)) else {
                continue;
            };
            let range = oldest.and_then(|oldest| newest.map(|newest| (oldest, newest)));
            ranges.push((query.name.clone(), range));
        }
        let mut state = self.shared.lock();
        state.core.on_ranges(self.id, plan, &ranges, oldest.1.max(newest.1), Instant::now());
        self.shared.changed(&mut state);
        Ok(())
    }

    fn offsets(&mut self, plan: &QueryPlan, timestamp: i64) -> Result<(ListedOffsets, Duration), ConnectionError> {
        let topics = by_topic(plan.partitions.iter().map(|query| {
            let (partition, leader_epoch) = (query.name.partition, query.leader_epoch);
            (query.name.topic.clone(), ListOffsetsPartition { partition, leader_epoch, timestamp })
        }));
        let deadline = self.deadline(Duration::ZERO);
        let Some(connection) = self.connection() else { return Ok(Default::default()) };
        let request = ListOffsetsRequest { topics: &topics, read_committed: false };
        let response = connection.call(&request, deadline)?;
        let mut listed = HashMap::new();
        for (topic, partitions) in response.topics {
            for one in partitions {
                let name = TopicPartition { topic: topic.as_str().into(), partition: one.partition };
                let offset = if one.error_code == 0 { Ok(one.offset) } else { Err(one.error_code) };
                listed.insert(name, offset);
            }
        }
        Ok((listed, throttle(response.throttle_time_ms)))
    }

    fn epoch_ends(&mut self, plan: &QueryPlan) -> Result<(), ConnectionError> {
        let topics = by_topic(plan.partitions.iter().map(|query| {
            let (partition, current_leader_epoch) = (query.name.partition, query.leader_epoch);
            (query.name.topic.clone(), EpochQuery { partition, current_leader_epoch, epoch: query.epoch })
        }));
        let deadline = self.deadline(Duration::ZERO);
        let Some(connection) = self.connection() else { return Ok(()) };
        let response = connection.call(&OffsetForLeaderEpochRequest { topics }, deadline)?;
        let mut ends = Vec::new();
        for (topic, partitions) in &response.topics {
            for one in partitions {
                let name = TopicPartition { topic: topic.as_str().into(), partition: one.partition };
                let end = if one.error_code == 0 { Ok((one.epoch, one.end_offset)) } else { Err(one.error_code) };
                ends.push((name, end));
            }
        }
        let mut state = self.shared.lock();
        let throttled = throttle(response.throttle_time_ms);
        state.core.on_epoch_ends(self.id, plan, &ends, throttled, Instant::now());
        self.shared.changed(&mut state);
        Ok(())
    }

    fn failed(&mut self, number: Option<u64>, cause: &ConnectionError) {
        let was_connected = self.disconnected();
        let mut state = self.shared.lock();
        state.core.on_failed(self.id, number, cause.to_string(), was_connected, Instant::now());
        self.shared.changed(&mut state);
    }

    /// Drops the connection; returns whether there was one.
    fn disconnected(&mut self) -> bool {
        self.session.lost();
        self.shared.lock().disconnects.remove(&self.id);
        self.connection.take().is_some()
    }
}

/// The offset or the error code of each partition.
type ListedOffsets = HashMap<TopicPartition, Result<i64, i16>>;

/// Groups by topic, for requests that are not in a session.
fn by_topic<T>(items: impl Iterator<Item = (Arc<str>, T)>) -> Vec<(Arc<str>, Vec<T>)> {
    let mut topics: HashMap<Arc<str>, Vec<T>> = HashMap::new();
    for (topic, item) in items {
        topics.entry(topic).or_default().push(item);
    }
    topics.into_iter().collect()
}
