//! What was posted against what was pushed: lost, repeated, out of order; and what kproxy answered against what is stored.
//!
//! Pure. A message is known by its key and its number within the key, counted up in the order of posting.

use std::collections::{BTreeMap, BTreeSet};

use super::cluster::StoredMessage;

/// A message: its key and its number within the key.
pub(crate) type Id = (String, u64);

/// What came of the posted messages.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) n_posted: usize,
    /// Posted messages that arrived, each counted once.
    pub(crate) n_pushed: usize,
    /// Arrivals beyond the first of a message: allowed, at least once is what is promised.
    pub(crate) n_repeats: usize,
    /// Posted and never arrived.
    pub(crate) lost: Vec<Id>,
    /// Arrived for the first time after a later one of the same key.
    pub(crate) out_of_order: Vec<Id>,
    /// Arrived and never posted.
    pub(crate) unknown: Vec<Id>,
}

impl Verdict {
    /// Nothing lost, nothing out of order, nothing invented.
    pub(crate) fn is_good(&self) -> bool {
        self.lost.is_empty() && self.out_of_order.is_empty() && self.unknown.is_empty()
    }
}

/// Judges `pushed`, in the order of arrival, against `posted`, the messages kproxy took. Messages of which kproxy could not
/// say whether they were stored are `uncertain`: they may arrive or not.
pub(crate) fn judge(posted: &[Id], uncertain: &[Id], pushed: &[Id]) -> Verdict {
    let expected: BTreeSet<&Id> = posted.iter().collect();
    let possible: BTreeSet<&Id> = posted.iter().chain(uncertain).collect();
    let mut verdict = Verdict { n_posted: posted.len(), ..Verdict::default() };
    let mut seen: BTreeSet<&Id> = BTreeSet::new();
    let mut highest: BTreeMap<&str, u64> = BTreeMap::new();
    for id in pushed {
        if !possible.contains(id) {
            verdict.unknown.push(id.clone());
        } else if !seen.insert(id) {
            verdict.n_repeats += 1;
        } else {
            let highest = highest.entry(&id.0).or_default();
            if id.1 < *highest {
                verdict.out_of_order.push(id.clone());
            }
            *highest = id.1.max(*highest);
        }
    }
    verdict.n_pushed = expected.intersection(&seen).count();
    verdict.lost = expected.difference(&seen).map(|id| (*id).clone()).collect();
    verdict
}

/// What kproxy told about a posted message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// 200, with its place.
    At { partition: i32, offset: i64 },
    /// `"stored":"no"`.
    No,
    /// `"stored":"unknown"`, or no answer at all.
    Unknown,
}

/// What the answers were worth.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) n_stored: usize,
    pub(crate) n_no: usize,
    pub(crate) n_unknown: usize,
    /// Those of unknown fate that are there.
    pub(crate) n_unknown_there: usize,
    /// Copies beyond the first of a message.
    pub(crate) n_repeats: usize,
    /// Told to be stored and not there at all.
    pub(crate) lost: Vec<Id>,
    /// There, but not at the place that was told.
    pub(crate) misplaced: Vec<Id>,
    /// Told not to be stored, and there.
    pub(crate) denied: Vec<Id>,
    /// Told to be stored behind one of its key that was answered later.
    pub(crate) out_of_order: Vec<Id>,
    /// There and never posted.
    pub(crate) invented: Vec<Vec<u8>>,
}

impl Account {
    /// Every answer was true and the order holds.
    pub(crate) fn is_true(&self) -> bool {
        self.lost.is_empty() && self.misplaced.is_empty() && self.is_true_but_for_losses()
    }

    /// As [`Account::is_true`], where a lost leader may have taken confirmed messages with it.
    pub(crate) fn is_true_but_for_losses(&self) -> bool {
        self.denied.is_empty() && self.out_of_order.is_empty() && self.invented.is_empty()
    }
}

/// The bytes under which a message of the account is posted.
pub(crate) fn value_of(id: &Id) -> Vec<u8> {
    format!("{}/{}", id.0, id.1).into_bytes()
}

/// Holds the answers, which stand in the order in which they were given within a key, against the topic's messages.
pub(crate) fn account(told: &[(Id, Told)], stored: &[StoredMessage]) -> Account {
    let mut account = Account::default();
    let mut places: BTreeMap<&[u8], Vec<(i32, i64)>> = BTreeMap::new();
    for message in stored {
        places.entry(&message.value).or_default().push((message.partition, message.offset));
    }
    account.n_repeats = places.values().map(|places| places.len() - 1).sum();
    let mut highest: BTreeMap<&str, i64> = BTreeMap::new();
    let mut posted = BTreeSet::new();
    for (id, told) in told {
        let value = value_of(id);
        let there = places.get(&value[..]);
        match *told {
            Told::At { partition, offset } => {
                account.n_stored += 1;
                match there {
                    None => account.lost.push(id.clone()),
                    Some(places) if !places.contains(&(partition, offset)) => account.misplaced.push(id.clone()),
                    Some(_) => {}
                }
                let highest = highest.entry(&id.0).or_insert(-1);
                if offset <= *highest {
                    account.out_of_order.push(id.clone());
                }
                *highest = offset.max(*highest);
            }
            Told::No => {
                account.n_no += 1;
                account.denied.extend(there.map(|_| id.clone()));
            }
            Told::Unknown => {
                account.n_unknown += 1;
                account.n_unknown_there += usize::from(there.is_some());
            }
        }
        posted.insert(value);
    }
    account.invented = places.keys().filter(|value| !posted.contains(**value)).map(|value| value.to_vec()).collect();
    account
}

#[cfg(test)]
mod tests {
    use super::{Account, Id, StoredMessage, Told, account, judge, value_of};

    fn ids(text: &str) -> Vec<Id> {
        let id = |word: &str| (word[..1].to_owned(), word[1..].parse().expect("a digit"));
        text.split_whitespace().map(id).collect()
    }

    #[test]
    fn lost_repeated_and_disordered_messages_are_told_apart() {
        let posted = ids("a0 a1 b0 a2");
        // Pushed, pushed once or more, repeats, lost, out of order, unknown.
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
            let verdict = judge(&posted, &ids("u5"), &ids(pushed));
            assert_eq!((verdict.n_pushed, verdict.n_repeats), (n_pushed, n_repeats), "pushed {pushed}");
            assert_eq!(verdict.lost, ids(lost), "pushed {pushed}");
            assert_eq!(verdict.out_of_order, ids(out_of_order), "pushed {pushed}");
            assert_eq!(verdict.unknown, ids(unknown), "pushed {pushed}");
            assert_eq!(verdict.is_good(), (lost, out_of_order, unknown) == ("", "", ""), "pushed {pushed}");
        }
    }

    #[test]
    fn answers_are_held_against_what_is_stored() {
        let id = |number| ("k".to_owned(), number);
        let at = |offset| Told::At { partition: 0, offset };
        let message = |offset, number| {
            let (key, value) = (b"k".to_vec(), value_of(&id(number)));
            StoredMessage { partition: 0, offset, key, value }
        };
        let stored = [message(0, 1), message(1, 2), message(2, 2), message(3, 4), message(4, 5), message(5, 9)];
        let told = [
            (id(1), at(0)),
            (id(2), at(2)),
            (id(3), at(7)),
            (id(4), Told::No),
            (id(5), Told::Unknown),
            (id(6), Told::Unknown),
            (id(7), Told::No),
            (id(9), at(4)),
        ];
        let expected = Account {
            n_stored: 4,
            n_no: 2,
            n_unknown: 2,
            n_unknown_there: 1,
            n_repeats: 1,
            lost: vec![id(3)],
            misplaced: vec![id(9)],
            denied: vec![id(4)],
            out_of_order: vec![id(9)],
            invented: vec![],
        };
        assert_eq!(account(&told, &stored), expected);
        assert!(!expected.is_true() && !expected.is_true_but_for_losses());
        assert!(account(&told[..2], &stored[..3]).is_true());
        assert_eq!(account(&told[..1], &stored).invented.len(), 4);
    }
}
