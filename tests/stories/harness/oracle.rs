//! Compares posted messages with pushed messages (lost, repeated, out of order), and the answers of kproxy with the
//! messages of a topic.
//!
//! Pure functions. A message is identified by its key and its number within the key. The numbers of a key grow in the
//! order of posting.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::cluster::StoredMessage;

/// A message: its key and its number within the key.
pub(crate) type MessageId = (String, u64);

/// The result of comparing posted messages with pushed messages.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PushCheck {
    pub(crate) n_posted: usize,
    /// Number of posted messages that were pushed, each counted once.
    pub(crate) n_pushed: usize,
    /// Number of repeated pushes. They are allowed, since delivery is at least once.
    pub(crate) n_repeats: usize,
    /// Messages that were posted and not pushed.
    pub(crate) lost: Vec<MessageId>,
    /// Messages that were first pushed after a message of the same key with a higher number.
    pub(crate) out_of_order: Vec<MessageId>,
    /// Messages that were pushed and not posted.
    pub(crate) unknown: Vec<MessageId>,
}

impl PushCheck {
    /// Returns whether no message is lost, out of order or unknown.
    pub(crate) fn is_good(&self) -> bool {
        self.lost.is_empty() && self.out_of_order.is_empty() && self.unknown.is_empty()
    }
}

/// Compares `pushed`, in the order of arrival, with `posted`, the messages that kproxy confirmed. `uncertain` are the
/// messages for which kproxy did not report whether they were stored: each may be pushed or not.
pub(crate) fn check_pushes(posted: &[MessageId], uncertain: &[MessageId], pushed: &[MessageId]) -> PushCheck {
    let expected: BTreeSet<&MessageId> = posted.iter().collect();
    let possible: BTreeSet<&MessageId> = posted.iter().chain(uncertain).collect();
    let mut check = PushCheck { n_posted: posted.len(), ..PushCheck::default() };
    let mut seen: BTreeSet<&MessageId> = BTreeSet::new();
    let mut highest: BTreeMap<&str, u64> = BTreeMap::new();
    for id in pushed {
        if !possible.contains(id) {
            check.unknown.push(id.clone());
        } else if !seen.insert(id) {
            check.n_repeats += 1;
        } else {
            let highest = highest.entry(&id.0).or_default();
            if id.1 < *highest {
                check.out_of_order.push(id.clone());
            }
            *highest = id.1.max(*highest);
        }
    }
    check.n_pushed = expected.intersection(&seen).count();
    check.lost = expected.difference(&seen).map(|id| (*id).clone()).collect();
    check
}

/// The answer of kproxy to a posted message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answered {
    /// Status 200, with partition and offset.
    Stored { partition: i32, offset: i64 },
    /// An error with `"stored":"no"`.
    NotStored,
    /// An error with `"stored":"unknown"`, or no answer at all.
    Unknown,
}

/// The result of comparing the answers of kproxy with the messages of the topic.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct AnswerCheck {
    pub(crate) n_stored: usize,
    pub(crate) n_not_stored: usize,
    pub(crate) n_unknown: usize,
    /// Number of messages answered as unknown that are in the topic.
    pub(crate) n_unknown_stored: usize,
    /// Number of duplicates in the topic: the second and later copies of a message.
    pub(crate) n_repeats: usize,
    /// Messages answered as stored that are not in the topic.
    pub(crate) lost: Vec<MessageId>,
    /// Messages answered as stored that are in the topic, but not at the partition and offset of the answer.
    pub(crate) misplaced: Vec<MessageId>,
    /// Messages answered as not stored that are in the topic.
    pub(crate) denied: Vec<MessageId>,
    /// Messages whose answered offset is not higher than every earlier offset of the same key.
    pub(crate) out_of_order: Vec<MessageId>,
    /// Values in the topic that were not posted.
    pub(crate) invented: Vec<Vec<u8>>,
}

impl fmt::Display for AnswerCheck {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} confirmed, {} not stored, {} unknown ({} of them stored), {} duplicates, {} lost, {} at another \
             position, {} denied, {} out of order",
            self.n_stored,
            self.n_not_stored,
            self.n_unknown,
            self.n_unknown_stored,
            self.n_repeats,
            self.lost.len(),
            self.misplaced.len(),
            self.denied.len(),
            self.out_of_order.len()
        )
    }
}

impl AnswerCheck {
    /// Returns whether every answer is correct and each key is in order.
    pub(crate) fn is_correct(&self) -> bool {
        self.lost.is_empty() && self.misplaced.is_empty() && self.is_correct_but_for_losses()
    }

    /// Returns whether every answer is correct, except that confirmed messages may be lost or misplaced.
    pub(crate) fn is_correct_but_for_losses(&self) -> bool {
        self.denied.is_empty() && self.out_of_order.is_empty() && self.invented.is_empty()
    }
}

/// Returns the value under which a story posts this message, so that [`check_answers`] can find it in the topic.
pub(crate) fn value_of(id: &MessageId) -> Vec<u8> {
    format!("{}/{}", id.0, id.1).into_bytes()
}

/// Compares the answers with the messages of the topic. The answers of each key must be in the order of posting.
pub(crate) fn check_answers(answers: &[(MessageId, Answered)], stored: &[StoredMessage]) -> AnswerCheck {
    let mut check = AnswerCheck::default();
    let mut positions: BTreeMap<&[u8], Vec<(i32, i64)>> = BTreeMap::new();
    for message in stored {
        positions.entry(&message.value).or_default().push((message.partition, message.offset));
    }
    check.n_repeats = positions.values().map(|positions| positions.len() - 1).sum();
    let mut highest: BTreeMap<&str, i64> = BTreeMap::new();
    let mut posted = BTreeSet::new();
    for (id, answered) in answers {
        let value = value_of(id);
        let found = positions.get(&value[..]);
        match *answered {
            Answered::Stored { partition, offset } => {
                check.n_stored += 1;
                match found {
                    None => check.lost.push(id.clone()),
                    Some(positions) if !positions.contains(&(partition, offset)) => check.misplaced.push(id.clone()),
                    Some(_) => {}
                }
                let highest = highest.entry(&id.0).or_insert(-1);
                if offset <= *highest {
                    check.out_of_order.push(id.clone());
                }
                *highest = offset.max(*highest);
            }
            Answered::NotStored => {
                check.n_not_stored += 1;
                check.denied.extend(found.map(|_| id.clone()));
            }
            Answered::Unknown => {
                check.n_unknown += 1;
                check.n_unknown_stored += usize::from(found.is_some());
            }
        }
        posted.insert(value);
    }
    check.invented = positions.keys().filter(|value| !posted.contains(**value)).map(|value| value.to_vec()).collect();
    check
}

#[cfg(test)]
mod tests {
    use super::{AnswerCheck, Answered, MessageId, StoredMessage, check_answers, check_pushes, value_of};

    fn ids(text: &str) -> Vec<MessageId> {
        let id = |word: &str| (word[..1].to_owned(), word[1..].parse().expect("a digit"));
        text.split_whitespace().map(id).collect()
    }

    #[test]
    fn lost_repeated_and_disordered_messages_are_distinguished() {
        let posted = ids("a0 a1 b0 a2");
        // Columns: pushed, n_pushed, n_repeats, lost, out_of_order, unknown.
        for (pushed, n_pushed, n_repeats, lost, out_of_order, unknown) in [
            ("a0 a1 b0 a2", 4, 0, "", "", ""),
            ("b0 a0 a1 a2", 4, 0, "", "", ""),
            ("a0 a1 a0 a1 a2 b0", 4, 2, "", "", ""),
            ("a0 a2 b0", 3, 0, "a1", "", ""),
            ("a0 a2 a1 b0", 4, 0, "", "a1", ""),
            ("a0 a1 a2 b0 b1", 4, 0, "", "", "b1"),
            ("u5 a0 a1 a2 b0 u5", 4, 1, "", "", ""),
            ("", 0, 0, "a0 a1 a2 b0", "", ""),
        ] {
            let check = check_pushes(&posted, &ids("u5"), &ids(pushed));
            assert_eq!((check.n_pushed, check.n_repeats), (n_pushed, n_repeats), "pushed {pushed}");
            assert_eq!(check.lost, ids(lost), "pushed {pushed}");
            assert_eq!(check.out_of_order, ids(out_of_order), "pushed {pushed}");
            assert_eq!(check.unknown, ids(unknown), "pushed {pushed}");
            assert_eq!(check.is_good(), (lost, out_of_order, unknown) == ("", "", ""), "pushed {pushed}");
        }
    }

    #[test]
    fn answers_are_compared_with_the_stored_messages() {
        let id = |number| ("k".to_owned(), number);
        let at = |offset| Answered::Stored { partition: 0, offset };
        let message = |offset, number| {
            let (key, value) = (b"k".to_vec(), value_of(&id(number)));
            StoredMessage { partition: 0, offset, key, value }
        };
        let stored = [message(0, 1), message(1, 2), message(2, 2), message(3, 4), message(4, 5), message(5, 9)];
        let answers = [
            (id(1), at(0)),
            (id(2), at(2)),
            (id(3), at(7)),
            (id(4), Answered::NotStored),
            (id(5), Answered::Unknown),
            (id(6), Answered::Unknown),
            (id(7), Answered::NotStored),
            (id(9), at(4)),
        ];
        let expected = AnswerCheck {
            n_stored: 4,
            n_not_stored: 2,
            n_unknown: 2,
            n_unknown_stored: 1,
            n_repeats: 1,
            lost: vec![id(3)],
            misplaced: vec![id(9)],
            denied: vec![id(4)],
            out_of_order: vec![id(9)],
            invented: vec![],
        };
        assert_eq!(check_answers(&answers, &stored), expected);
        assert!(!expected.is_correct() && !expected.is_correct_but_for_losses());
        assert!(check_answers(&answers[..2], &stored[..3]).is_correct());
        assert_eq!(check_answers(&answers[..1], &stored).invented.len(), 4);
    }
}
