//! `ktransfer_bin --replay-dead-letters MODULE`: appends the dead letters of a module to the topics that they came
//! from, with the key, the value and the headers that the messages had.
//!
//! [`tool`] has the options and makes the connections, [`position`] keeps how far each partition is replayed. A run
//! replays the letters that exist when it begins; a message that is given up again is left to the next run. Invariant:
//! a position is stored only when all letters before it are appended, so a run that is interrupted repeats letters and
//! loses none.

mod position;
mod tool;

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;

use self::position::{Position, PositionStore};
use super::dead_letters::DeadLetter;
use crate::broker::{
    Acks, AppendResult, FetchEvent, Fetcher, LogEnds, LogIdentity, Message, Offset, Producer, TopicId, TopicPartition,
};

pub use tool::REPLAY;

/// Letters that are appended at the same time.
const MAX_IN_FLIGHT: usize = 500;
/// Time limit of the request for the partitions of the topic.
const METADATA_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a run waits for the next letters of a partition.
const MAX_SILENCE: Duration = Duration::from_secs(30);

/// A completion of the replay: sends the result of one append.
type Appended = Box<dyn FnOnce(AppendResult) + Send>;

/// One run.
struct Replay<'a> {
    /// The module whose letters are replayed; those of other modules in the same topic are left.
    module: &'a str,
    /// The dead-letter topic.
    topic: Arc<str>,
    /// Only shows what would be done.
    is_dry_run: bool,
    /// Begins at the oldest letter, not where the last run ended.
    is_from_oldest: bool,
    fetcher: Box<dyn Fetcher>,
    log_ends: Box<dyn LogEnds>,
    producer: Arc<dyn Producer<Appended>>,
    positions: Box<dyn PositionStore + 'a>,
    output: &'a mut dyn Write,
}

/// The result of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    replayed: usize,
    of_others: usize,
    no_letters: usize,
}

impl Replay<'_> {
    /// Replays all partitions, and writes what it does to `output`. Fails with the reason if letters are left.
    fn run(&mut self) -> Result<Counts, String> {
        let mut counts = Counts::default();
        let topics = self.log_ends.topics(std::slice::from_ref(&self.topic), Instant::now() + METADATA_TIMEOUT);
        let topic = topics.into_iter().next().ok_or("no metadata")?.map_err(|cause| cause.to_string())?;
        for info in topic.partitions {
            let partition = TopicPartition { topic: Arc::clone(&self.topic), partition: info.partition };
            let replayed = self.replay_partition(&partition, topic.id, &mut counts);
            replayed.map_err(|reason| format!("{partition}: {reason}"))?;
        }
        let done = if self.is_dry_run { "would be replayed" } else { "replayed" };
        self.say(&format!(
            "{} dead letters of module {} {done}; {} of other modules and {} messages that are no dead letters left",
            counts.replayed, self.module, counts.of_others, counts.no_letters
        ));
        Ok(counts)
    }

    /// Replays a partition of the topic with the id `topic_id`; `None` if the brokers have no ids.
    fn replay_partition(
        &mut self,
        partition: &TopicPartition,
        topic_id: Option<TopicId>,
        counts: &mut Counts,
    ) -> Result<(), String> {
        let range = self.log_ends.range(partition).map_err(|cause| cause.to_string())?;
        let mut position = self.positions.read(partition)?;
        if position.topic_id.zip(topic_id).is_some_and(|(known, present)| known != present) {
            // Also if it has just as many letters.
            self.say(&format!("{partition}: the topic was created again, all of it is replayed"));
            position.restart(topic_id, range.oldest);
        } else if self.is_from_oldest || position.next < range.oldest {
            position.next = range.oldest;
        } else if range.newest < position.next {
            self.say(&format!("{partition}: was replayed up to {}, but ends at {}", position.next, range.newest));
            position.restart(None, range.oldest);
        }
        let end = range.stable;
        if end <= position.next {
            return Ok(());
        }
        self.assign(partition, &position);
        let mut last_progress = Instant::now();
        let mut trouble = "no message came".to_owned();
        while position.next < end {
            for event in self.fetcher.poll(Duration::from_millis(200), MAX_IN_FLIGHT) {
                match event {
                    FetchEvent::Messages(batch) => {
                        let letters = batch.messages.into_iter().filter(|letter| letter.offset < end).collect();
                        self.replay_batch(letters, &mut position, counts)?;
                        position.next = batch.next.min(end).max(position.next);
                    }
                    FetchEvent::Position { next, .. } => position.next = next.min(end).max(position.next),
                    FetchEvent::TopicId { topic_id, .. } => {
                        position.topic_id = Some(topic_id);
                        continue;
                    }
                    FetchEvent::Recreated { topic_id, .. } => {
                        self.say(&format!("{partition}: the topic was created again, all of it is replayed"));
                        position.restart(Some(topic_id), range.oldest);
                        self.assign(partition, &position);
                    }
                    FetchEvent::OffsetGone { offset, oldest, .. } => {
                        self.say(&format!("{partition}: Kafka has deleted the letters from {offset} to {oldest}"));
                        position.next = oldest;
                        self.assign(partition, &position);
                    }
                    FetchEvent::Truncated { position: lost, divergence, .. } => {
                        self.say(&format!("{partition}: the brokers lost the letters from {divergence} to {lost}"));
                        position.next = divergence;
                        self.assign(partition, &position);
                    }
                    FetchEvent::Recovered { .. } => continue,
                    FetchEvent::PartitionError { reason, .. }
                    | FetchEvent::BrokerUnreachable { reason }
                    | FetchEvent::Unreachable { reason } => {
                        trouble = reason;
                        continue;
                    }
                }
                last_progress = Instant::now();
            }
            self.store(partition, &mut position)?;
            if MAX_SILENCE < last_progress.elapsed() {
                return Err(format!("nothing was read for {} s: {trouble}", MAX_SILENCE.as_secs()));
            }
        }
        self.fetcher.revoke(partition);
        Ok(())
    }

    fn assign(&mut self, partition: &TopicPartition, position: &Position) {
        let log = LogIdentity { topic_id: position.topic_id, leader_epoch: None };
        self.fetcher.assign_known(partition, position.next, log);
    }

    /// Appends the letters of this module and waits until all of them are stored. If one is not, `position` ends before
    /// the first of these.
    fn replay_batch(
        &mut self,
        letters: Vec<Message>,
        position: &mut Position,
        counts: &mut Counts,
    ) -> Result<(), String> {
        let (sender, results) = unbounded();
        let mut sent: Vec<(TopicPartition, Offset)> = Vec::new();
        for letter in letters {
            let (from, offset) = (letter.from.clone(), letter.offset);
            let read = match DeadLetter::read(letter) {
                Ok(read) if read.module == self.module => read,
                Ok(_) => {
                    counts.of_others += 1;
                    continue;
                }
                Err(reason) => {
                    counts.no_letters += 1;
                    self.say(&format!("{from} offset {offset} is left: {reason}"));
                    continue;
                }
            };
            counts.replayed += 1;
            if self.is_dry_run {
                self.say(&line(&from, offset, &read));
                continue;
            }
            let (index, sender) = (sent.len(), sender.clone());
            sent.push((from, offset));
            let done = move |result: AppendResult| drop(sender.send((index, result)));
            self.producer.append(read.message, Acks::All, Box::new(done));
        }
        drop(sender);
        let mut failed = results.iter().filter_map(|(index, result)| Some((index, result.err()?)));
        let Some(mut first) = failed.next() else { return Ok(()) };
        for later in failed {
            if later.0 < first.0 {
                first = later;
            }
        }
        let (index, error) = first;
        let (from, offset) = sent[index].clone();
        counts.replayed -= sent.len() - index;
        position.next = offset;
        self.store(&from, position)?;
        Err(format!("the dead letter at offset {offset} cannot be replayed: {error}"))
    }

    fn store(&mut self, partition: &TopicPartition, position: &mut Position) -> Result<(), String> {
        if self.is_dry_run { Ok(()) } else { self.positions.store(partition, position) }
    }

    fn say(&mut self, line: &str) {
        // A reader of the output that has gone away does not end the replay.
        let _ = writeln!(self.output, "{line}");
    }
}

/// Returns the line of a dry run about one letter.
fn line(from: &TopicPartition, offset: Offset, letter: &DeadLetter) -> String {
    let message = &letter.message;
    let partition = message.partition.unwrap_or_default();
    let key = message.key.as_deref().map_or_else(|| "none".to_owned(), |key| key.escape_ascii().to_string());
    let fields: Vec<String> = ["Reason", "Status", "Error", "Attempts", "Time"]
        .iter()
        .filter_map(|name| Some(format!("{}={}", name.to_ascii_lowercase(), letter.field(name)?)))
        .collect();
    format!(
        "{from} offset {offset} -> {}/{partition}, was offset {}, datalen={}, {}, key={key}",
        message.topic,
        letter.offset,
        message.value_bytes(),
        fields.join(", ")
    )
}

#[cfg(test)]
mod tests;
