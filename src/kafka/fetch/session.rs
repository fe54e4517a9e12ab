//! Fetch sessions (KIP-227): the broker remembers the partitions of the last request, so that a request names only the
//! partitions that changed. Pure.
//!
//! Invariant: `partitions` is what the broker has in the session `id` after the request number `epoch` - 1. After an
//! error or a lost response that is unknown, so the next request starts a new session and closes the old one.

use std::collections::HashMap;
use std::sync::Arc;

use super::event::TopicPartition;
use crate::kafka::error_code::FETCH_SESSION_ID_NOT_FOUND;
use crate::kafka::metadata::TopicId;
use crate::kafka::protocol::fetch::{
    FIRST_WITH_SESSIONS, FIRST_WITH_TOPIC_IDS, FetchPartition, FetchRequest, FetchTopic, ForgottenTopic,
};

/// The number of a request without a session.
const NO_SESSION_EPOCH: i32 = -1;
/// The number of a request that starts a session.
const FIRST_EPOCH: i32 = 0;

/// The fetch session of one broker.
#[derive(Debug, Default)]
pub(super) struct FetchSession {
    /// Id that the broker chose; 0 for none.
    id: i32,
    /// Number of the next request.
    epoch: i32,
    partitions: HashMap<TopicPartition, (TopicId, FetchPartition)>,
    uses_ids: bool,
}

/// A partition to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WantedPartition {
    /// Name of the topic.
    pub(super) topic: Arc<str>,
    /// Id of the topic, zero if unknown.
    pub(super) topic_id: TopicId,
    /// Partition, offset, epochs and size.
    pub(super) fetch: FetchPartition,
}

impl FetchSession {
    /// Fills the session fields and the topics of `request`, so that the broker fetches exactly `wanted`.
    pub(super) fn prepare(&mut self, version: i16, wanted: &[WantedPartition], request: &mut FetchRequest) {
        if version < FIRST_WITH_SESSIONS {
            (request.session_id, request.session_epoch) = (0, NO_SESSION_EPOCH);
            wanted.iter().for_each(|one| add(&mut request.topics, one));
            return;
        }
        let uses_ids = version >= FIRST_WITH_TOPIC_IDS;
        if uses_ids != self.uses_ids {
            // A session names its topics either by id or by name.
            (self.epoch, self.uses_ids) = (FIRST_EPOCH, uses_ids);
        }
        (request.session_id, request.session_epoch) = (self.id, self.epoch);
        if self.epoch == FIRST_EPOCH {
            self.partitions.clear();
        }
        let mut left = std::mem::take(&mut self.partitions);
        for one in wanted {
            let key = TopicPartition { topic: Arc::clone(&one.topic), partition: one.fetch.partition };
            let known = left.remove(&key);
            if let Some((old_id, _)) = known.filter(|(id, _)| uses_ids && *id != one.topic_id) {
                forget(&mut request.forgotten, &key, old_id);
            }
            if known != Some((one.topic_id, one.fetch)) {
                add(&mut request.topics, one);
            }
            self.partitions.insert(key, (one.topic_id, one.fetch));
        }
        for (key, (id, _)) in left {
            forget(&mut request.forgotten, &key, id);
        }
    }

    /// Takes the session fields of the response to the last request.
    pub(super) fn responded(&mut self, error_code: i16, session_id: i32) {
        match error_code {
            0 if session_id == 0 => {
                // The broker's cache of sessions is full.
                *self = FetchSession { uses_ids: self.uses_ids, ..FetchSession::default() };
            }
            0 => {
                self.id = session_id;
                self.epoch = self.epoch.checked_add(1).unwrap_or(FIRST_EPOCH + 1);
            }
            FETCH_SESSION_ID_NOT_FOUND => {
                *self = FetchSession { uses_ids: self.uses_ids, ..FetchSession::default() };
            }
            _ => self.lost(),
        }
    }

    /// The response to the last request was not received, or the request failed.
    pub(super) fn lost(&mut self) {
        // The id is kept, since a request with an id and the first epoch closes the session with that id.
        self.epoch = FIRST_EPOCH;
    }
}

fn add(topics: &mut Vec<FetchTopic>, one: &WantedPartition) {
    // The partitions of a topic mostly follow one another; a topic may be named twice otherwise.
    match topics.last_mut().filter(|last| last.id == one.topic_id && last.name == one.topic) {
        Some(last) => last.partitions.push(one.fetch),
        None => topics.push(FetchTopic { name: Arc::clone(&one.topic), id: one.topic_id, partitions: vec![one.fetch] }),
    }
}

fn forget(forgotten: &mut Vec<ForgottenTopic>, key: &TopicPartition, id: TopicId) {
    match forgotten.last_mut().filter(|last| last.id == id && last.name == key.topic) {
        Some(last) => last.partitions.push(key.partition),
        None => forgotten.push(ForgottenTopic { name: Arc::clone(&key.topic), id, partitions: vec![key.partition] }),
    }
}

#[cfg(test)]
mod tests;
