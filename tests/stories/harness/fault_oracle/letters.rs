//! Judges the dead letters of a run: each refused message has one, in the order of its key, and no other message does.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::{Disturbance, Limits, Position, Push};

/// A dead letter in its topic, in the order of the topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredLetter {
    pub(crate) key: String,
    /// Where the message was read.
    pub(crate) position: Position,
    /// When the message was given up.
    pub(crate) given_up: Duration,
}

/// The judgement of the letters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LettersVerdict {
    /// One line for each broken promise.
    pub(crate) violations: Vec<String>,
    /// Letters that were stored again, by the disturbance that explains them.
    pub(crate) repeats_by_disturbance: BTreeMap<String, usize>,
}

/// Judges the letters of a topic. `refused`: the positions of the messages that backends refused, and whose delivery is
/// not tried again. A letter is stored again only if its claim or process ended before the confirmation came.
pub(crate) fn judge_letters(
    letters: &[StoredLetter],
    refused: &BTreeSet<Position>,
    pushes: &[Push],
    disturbances: &[Disturbance],
    limits: &Limits,
) -> LettersVerdict {
    let mut verdict = LettersVerdict::default();
    let delivered: BTreeSet<Position> =
        pushes.iter().filter(|push| push.is_delivered).map(|push| push.position).collect();
    let (mut first, mut newest) = (BTreeSet::new(), HashMap::new());
    for letter in letters {
        let StoredLetter { key, position, given_up } = letter;
        if !refused.contains(position) || delivered.contains(position) {
            verdict.violations.push(format!("a letter of a message that was not refused: {letter:?}"));
        }
        if first.insert(*position) {
            let newest = newest.entry((key.clone(), position.0)).or_insert(position.1);
            if position.1 < *newest {
                verdict.violations.push(format!("a letter after that of offset {newest}: {letter:?}"));
            }
            *newest = position.1.max(*newest);
            continue;
        }
        let explains = |of: &&Disturbance| of.from <= *given_up && *given_up <= of.until + limits.aftermath;
        match disturbances.iter().filter(explains).max_by_key(|disturbance| disturbance.from) {
            Some(reason) => *verdict.repeats_by_disturbance.entry(reason.what.clone()).or_default() += 1,
            None => verdict.violations.push(format!("a letter that was stored again without a reason: {letter:?}")),
        }
    }
    let missing =
        refused.difference(&first).map(|position| format!("a refused message without a letter: {position:?}"));
    verdict.violations.extend(missing);
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        fence_slack: Duration::from_millis(200),
        aftermath: Duration::from_secs(5),
        commit_lag: Duration::from_secs(2),
    };

    fn letter(key: &str, offset: i64, seconds: u64) -> StoredLetter {
        StoredLetter { key: key.to_owned(), position: (0, offset), given_up: Duration::from_secs(seconds) }
    }

    fn judged(letters: &[StoredLetter], disturbances: &[Disturbance]) -> LettersVerdict {
        let refused = BTreeSet::from([(0, 1), (0, 2), (0, 3)]);
        judge_letters(letters, &refused, &[], disturbances, &LIMITS)
    }

    #[test]
    fn letters_are_exactly_those_of_the_refused_messages_and_in_the_order_of_their_keys() {
        let good = [letter("a", 1, 1), letter("b", 3, 1), letter("a", 2, 2)];
        assert_eq!(judged(&good, &[]), LettersVerdict::default());
        for (letters, expected) in [
            (vec![letter("a", 1, 1), letter("b", 3, 1)], "without a letter: (0, 2)"),
            (vec![letter("a", 1, 1), letter("a", 2, 1), letter("b", 3, 1), letter("b", 4, 1)], "not refused"),
            (vec![letter("a", 2, 1), letter("a", 1, 1), letter("b", 3, 1)], "after that of offset 2"),
            (vec![letter("a", 1, 1), letter("a", 2, 1), letter("b", 3, 1), letter("a", 1, 9)], "without a reason"),
        ] {
            let violations = judged(&letters, &[]).violations;
            assert!(violations.len() == 1 && violations[0].contains(expected), "{violations:?}");
        }
        let push = |is_delivered| Push {
            key: "a".to_owned(),
            position: (0, 1),
            instance: "one".to_owned(),
            claim: None,
            began: Duration::ZERO,
            ended: Some(Duration::ZERO),
            is_delivered,
        };
        let refused = BTreeSet::from([(0, 1)]);
        let of_delivered = judge_letters(&[letter("a", 1, 1)], &refused, &[push(true)], &[], &LIMITS);
        assert_eq!(of_delivered.violations.len(), 1);
    }

    #[test]
    fn a_letter_that_was_stored_again_needs_a_disturbance_before() {
        let letters = [letter("a", 1, 1), letter("a", 2, 1), letter("b", 3, 1), letter("a", 2, 9)];
        let (from, until) = (Duration::from_secs(5), Duration::from_secs(6));
        let kill = Disturbance { what: "a kill".to_owned(), from, until, instance: None, is_pause: false };
        let verdict = judged(&letters, std::slice::from_ref(&kill));
        assert_eq!(verdict.repeats_by_disturbance, BTreeMap::from([("a kill".to_owned(), 1)]));
        assert!(verdict.violations.is_empty());
        let early = Disturbance { from: Duration::ZERO, until: Duration::from_secs(1), ..kill };
        assert_eq!(judged(&letters, &[early]).violations.len(), 1);
    }
}
