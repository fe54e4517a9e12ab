//! What was posted against what was pushed: lost, repeated, out of order.
//!
//! Pure. A message is known by its key and its number within the key, counted up in the order of posting.

use std::collections::{BTreeMap, BTreeSet};

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

#[cfg(test)]
mod tests {
    use super::{Id, judge};

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
}
