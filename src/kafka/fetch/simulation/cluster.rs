//! The model of a cluster: partitions with leaders, and brokers with fetch sessions.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::super::event::TopicPartition;
use super::log::{Fate, Log};
use super::random::Random;
use crate::kafka::config::BrokerAddress;
use crate::kafka::error_code;
use crate::kafka::metadata::{BrokerId, BrokerInfo, MetadataResponse, PartitionMetadata, TopicId, TopicMetadata};
use crate::kafka::protocol::fetch::{FetchPartition, FetchRequest};

/// The name of a partition as a request of version 13 has it, or of a lower version (zero id).
pub(super) type Key = (Arc<str>, TopicId, i32);

/// A partition of the model.
pub(super) struct Partition {
    pub(super) log: Log,
    pub(super) leader: BrokerId,
}

/// A fetch session of a broker.
struct Session {
    epoch: i32,
    partitions: BTreeMap<Key, FetchPartition>,
}

/// The response for one partition.
pub(super) struct Served {
    pub(super) key: Key,
    pub(super) error_code: i16,
    pub(super) diverging: Option<(i32, i64)>,
    pub(super) hint: Option<(BrokerId, i32)>,
    pub(super) data: Vec<u8>,
    pub(super) aborted: Vec<(i64, i64)>,
}

/// A response of the model.
pub(super) struct Response {
    pub(super) error_code: i16,
    pub(super) session_id: i32,
    pub(super) partitions: Vec<Served>,
}

pub(super) struct Cluster {
    pub(super) topic: Arc<str>,
    pub(super) id: TopicId,
    pub(super) partitions: Vec<Partition>,
    pub(super) brokers: i32,
    pub(super) fates: HashMap<u64, Fate>,
    pub(super) payloads: u64,
    sessions: HashMap<(BrokerId, i32), Session>,
    next_session: i32,
}

impl Cluster {
    pub(super) fn new(partitions: i32, brokers: i32, random: &mut Random) -> Self {
        let partition = |_| Partition { log: Log::default(), leader: random.below(brokers as u64) as i32 };
        Cluster {
            topic: "t".into(),
            id: [1; 16],
            partitions: (0..partitions).map(partition).collect(),
            brokers,
            fates: HashMap::new(),
            payloads: 0,
            sessions: HashMap::new(),
            next_session: 1,
        }
    }

    pub(super) fn append(&mut self, partition: usize, producer: i64, count: u64) {
        let payloads: Vec<u64> = (self.payloads..self.payloads + count).collect();
        self.payloads += count;
        let fate = if producer < 0 { Fate::Committed } else { Fate::Open };
        self.fates.extend(payloads.iter().map(|payload| (*payload, fate)));
        self.partitions[partition].log.append(producer, &payloads);
    }

    pub(super) fn end_transaction(&mut self, partition: usize, producer: i64, abort: bool) {
        let fate = if abort { Fate::Aborted } else { Fate::Committed };
        let payloads = self.partitions[partition].log.end_transaction(producer, abort);
        self.fates.extend(payloads.into_iter().map(|payload| (payload, fate)));
    }

    /// The leader moves; `cut`: an unclean election, in which the log is cut there.
    pub(super) fn elect(&mut self, partition: usize, leader: BrokerId, cut: Option<i64>) {
        let Partition { log, leader: current } = &mut self.partitions[partition];
        *current = leader;
        if let Some(cut) = cut {
            log.truncate(cut);
        }
        log.elect();
    }

    /// The topic is deleted and created again.
    pub(super) fn recreate(&mut self) {
        self.id[0] += 1;
        for partition in &mut self.partitions {
            partition.log = Log::default();
        }
    }

    /// A broker loses its sessions.
    pub(super) fn lose_sessions(&mut self, broker: BrokerId) {
        self.sessions.retain(|(of, _), _| *of != broker);
    }

    pub(super) fn metadata(&self) -> MetadataResponse {
        let address = |id| BrokerAddress { host: "h".into(), port: 9000 + id as u16 };
        let brokers = (0..self.brokers).map(|id| BrokerInfo { id, address: address(id), rack: None }).collect();
        let partitions = self.partitions.iter().enumerate().map(|(index, partition)| PartitionMetadata {
            partition: index as i32,
            error_code: 0,
            leader: Some(partition.leader),
            leader_epoch: partition.log.epoch,
            replicas: Vec::new(),
            in_sync: Vec::new(),
        });
        let topic = TopicMetadata {
            name: self.topic.clone(),
            id: Some(self.id),
            error_code: 0,
            may_write: None,
            partitions: partitions.collect(),
        };
        MetadataResponse { brokers, topics: vec![topic], ..MetadataResponse::default() }
    }

    /// Serves a Fetch request.
    pub(super) fn fetch(&mut self, broker: BrokerId, version: i16, request: &FetchRequest) -> Response {
        let failed = |error_code| Response { error_code, session_id: 0, partitions: Vec::new() };
        let keyed = |topic: &Arc<str>, id: &TopicId, partition| match version >= 13 {
            true => (Arc::from(""), *id, partition),
            false => (Arc::clone(topic), [0; 16], partition),
        };
        let named = request.topics.iter().flat_map(|topic| {
            topic.partitions.iter().map(move |one| (keyed(&topic.name, &topic.id, one.partition), *one))
        });
        if version < 7 || request.session_epoch == -1 {
            let served = named.map(|(key, one)| self.serve(broker, version, request, key, &one)).collect();
            return Response { error_code: 0, session_id: 0, partitions: served };
        }
        let (id, is_new) = if request.session_epoch == 0 {
            self.sessions.remove(&(broker, request.session_id));
            let id = self.next_session;
            self.next_session += 1;
            self.sessions.insert((broker, id), Session { epoch: 0, partitions: named.collect() });
            (id, true)
        } else {
            let Some(session) = self.sessions.get_mut(&(broker, request.session_id)) else {
                return failed(error_code::FETCH_SESSION_ID_NOT_FOUND);
            };
            if session.epoch + 1 != request.session_epoch {
                return failed(error_code::INVALID_FETCH_SESSION_EPOCH);
            }
            session.epoch += 1;
            for topic in &request.forgotten {
                for partition in &topic.partitions {
                    let known = session.partitions.remove(&keyed(&topic.name, &topic.id, *partition));
                    assert!(known.is_some(), "only partitions of the session are forgotten");
                }
            }
            session.partitions.extend(named);
            (request.session_id, false)
        };
        let partitions = self.sessions[&(broker, id)].partitions.clone();
        let served = partitions.into_iter().map(|(key, one)| self.serve(broker, version, request, key, &one));
        let has_news = |one: &Served| is_new || one.error_code != 0 || one.diverging.is_some() || !one.data.is_empty();
        Response { error_code: 0, session_id: id, partitions: served.filter(has_news).collect() }
    }

    fn serve(&self, broker: BrokerId, version: i16, request: &FetchRequest, key: Key, one: &FetchPartition) -> Served {
        let mut served =
            Served { key, error_code: 0, diverging: None, hint: None, data: Vec::new(), aborted: Vec::new() };
        if version >= 13 && served.key.1 != self.id {
            served.error_code = error_code::UNKNOWN_TOPIC_ID;
            return served;
        }
        let Some(partition) = self.partitions.get(one.partition as usize) else {
            served.error_code = error_code::UNKNOWN_TOPIC_OR_PARTITION;
            return served;
        };
        let log = &partition.log;
        served.error_code = self.check_leader(broker, partition, if version >= 9 { one.leader_epoch } else { -1 });
        if served.error_code == error_code::NOT_LEADER_OR_FOLLOWER && version >= 12 {
            served.hint = Some((partition.leader, log.epoch));
        }
        if served.error_code != 0 {
            return served;
        }
        if version >= 12 && one.last_fetched_epoch >= 0 {
            let (epoch, end) = log.epoch_end(one.last_fetched_epoch);
            if epoch < 0 {
                served.error_code = error_code::OFFSET_OUT_OF_RANGE;
                return served;
            }
            if epoch < one.last_fetched_epoch || end < one.offset {
                served.diverging = Some((epoch, end));
                return served;
            }
        }
        if one.offset < log.start || log.end < one.offset {
            served.error_code = error_code::OFFSET_OUT_OF_RANGE;
            return served;
        }
        (served.data, served.aborted) = log.read(one.offset, request.read_committed, one.max_bytes as usize);
        served
    }

    pub(super) fn check_leader(&self, broker: BrokerId, partition: &Partition, epoch: i32) -> i16 {
        match () {
            () if epoch >= 0 && epoch < partition.log.epoch => error_code::FENCED_LEADER_EPOCH,
            () if epoch > partition.log.epoch => error_code::UNKNOWN_LEADER_EPOCH,
            () if partition.leader != broker => error_code::NOT_LEADER_OR_FOLLOWER,
            () => 0,
        }
    }

    pub(super) fn partition_of(&self, name: &TopicPartition) -> &Partition {
        &self.partitions[name.partition as usize]
    }
}
