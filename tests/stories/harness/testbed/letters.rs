//! Dead letters in a testbed: backends refuse the messages of some keys, and the topic of the letters is on one broker.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::super::dead_letters::{Letter, letters_of};
use super::super::fault_oracle::{Disturbance, LettersVerdict, Limits, Position, Push, StoredLetter, judge_letters};
use super::super::fleet::Arrival;
use super::super::{kafka_wire, poll};
use super::{SETTLE_DEADLINE, Testbed};

/// The status with which backends refuse a message for good.
pub(super) const REFUSED: u16 = 422;
/// Every how many-th key is refused.
const ONE_KEY_IN: u64 = 20;

/// The topic of the dead letters, and what is needed to judge them.
pub(super) struct LettersTopic {
    pub(super) name: String,
    /// The time at which the traffic began.
    pub(super) started: SystemTime,
}

/// Whether backends refuse the message.
pub(super) fn is_refused(arrival: &Arrival) -> bool {
    let number = arrival.key().strip_prefix('k').and_then(|number| number.parse::<u64>().ok());
    number.is_some_and(|number| number % ONE_KEY_IN == ONE_KEY_IN / 2)
}

impl Testbed {
    /// Returns the positions of the messages that backends refused.
    pub(super) fn refused(&self) -> BTreeSet<Position> {
        self.fleet.positions_of(|arrival| arrival.status == Some(REFUSED)).into_iter().collect()
    }

    /// Whether there are as many letters as refused messages.
    pub(super) fn are_letters_stored(&self, n_refused: usize) -> bool {
        let Some(topic) = &self.letters else { return true };
        let ends = kafka_wire::log_ends(&self.services.brokers().join(","), &topic.name);
        ends.is_ok_and(|ends| ends.values().sum::<i64>() >= n_refused as i64)
    }

    /// Reads and judges the letters; returns their positions, too. There are none in a testbed without refused keys.
    pub(super) fn judge_letters(
        &self,
        pushes: &[Push],
        disturbances: &[Disturbance],
        limits: &Limits,
    ) -> (BTreeSet<Position>, LettersVerdict) {
        let Some(topic) = &self.letters else { return Default::default() };
        let brokers = self.services.brokers().join(",");
        let is_up = poll(SETTLE_DEADLINE, || kafka_wire::log_ends(&brokers, &topic.name).ok());
        assert!(is_up.is_some(), "the topic {} can be read", topic.name);
        let letters: Vec<StoredLetter> =
            letters_of(&brokers, &topic.name).iter().map(|letter| stored(letter, topic.started)).collect();
        let verdict = judge_letters(&letters, &self.refused(), pushes, disturbances, limits);
        let n_repeats: usize = verdict.repeats_by_disturbance.values().sum();
        eprintln!("{} dead letters, {n_repeats} of them again: {:?}", letters.len(), verdict.repeats_by_disturbance);
        (letters.into_iter().map(|letter| letter.position).collect(), verdict)
    }
}

fn stored(letter: &Letter, started: SystemTime) -> StoredLetter {
    let number = |field: &str| letter.field(field).parse::<i64>().unwrap_or_else(|_| panic!("{field} of {letter:?}"));
    let given_up = UNIX_EPOCH + Duration::from_millis(number("Time") as u64);
    StoredLetter {
        key: letter.key(),
        position: (number("Partition") as i32, number("Offset")),
        given_up: given_up.duration_since(started).unwrap_or_default(),
    }
}
