//! What operators have paused, as ktransfer stores it: in the node `/consumers/MODULE/paused/TOPIC`, or in the texts
//! beside the offsets that a group in Kafka commits. Pure.
//!
//! ktransfer documents both formats (`ktransfer::pauses`, `ktransfer::group::kafka`). Here is read only what is paused,
//! by whom and since when. A node that cannot be read pauses the module, as it does for ktransfer; of a text that
//! cannot be read, which may be that of another program, nothing follows.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};

use crate::broker::PartitionId;

/// Longest name of an operator that is kept, in characters.
const MAX_NAME: usize = 100;

/// A pause.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Pause {
    /// Name of the operator.
    #[serde(deserialize_with = "name")]
    pub by: Arc<str>,
    /// Milliseconds since 1970; 0 if unknown.
    pub at_ms: u64,
}

/// The pauses of one topic of a module.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub(super) struct Pauses {
    #[serde(default)]
    module: Option<Pause>,
    #[serde(default)]
    partitions: BTreeMap<PartitionId, Pause>,
}

impl Pauses {
    /// Reads the data of the node of a topic.
    pub(super) fn of_node(data: &[u8]) -> Pauses {
        let unreadable =
            |_: serde_json::Error| Pauses { module: Some(unknown_operator()), partitions: BTreeMap::new() };
        serde_json::from_slice(data).unwrap_or_else(unreadable)
    }

    /// Reads the texts beside the offsets of a topic: `kt1;…;m=NUMBER,TIME,NAME;p=NUMBER,TIME,NAME;…`. The largest
    /// number of `m`, the module, counts, and is odd while it is paused; a resume of the module has a larger number
    /// than the pauses `p` of partitions that it ends.
    pub(super) fn of_commits<'a>(commits: impl Iterator<Item = (PartitionId, &'a str)>) -> Pauses {
        let (mut number, mut pauses, mut partitions) = (0, Pauses::default(), Vec::new());
        for (partition, text) in commits {
            let Some(fields) = text.strip_prefix("kt1;") else { continue };
            for field in fields.split(';') {
                match field.split_once('=') {
                    Some(("m", value)) => {
                        if let Some((of_module, pause)) = numbered(value).filter(|(found, _)| number < *found) {
                            (number, pauses.module) = (of_module, (of_module % 2 == 1).then_some(pause));
                        }
                    }
                    Some(("p", value)) => partitions.extend(numbered(value).map(|found| (partition, found))),
                    _ => {}
                }
            }
        }
        let resumed = number - number % 2;
        let lasting = partitions.into_iter().filter(|(_, (found, _))| resumed <= *found);
        pauses.partitions = lasting.map(|(partition, (_, pause))| (partition, pause)).collect();
        pauses
    }

    /// Returns the pause that holds `partition`.
    pub(super) fn of(&self, partition: PartitionId) -> Option<&Pause> {
        self.module.as_ref().or_else(|| self.partitions.get(&partition))
    }

    /// Whether nothing is paused.
    pub(super) fn is_empty(&self) -> bool {
        self.module.is_none() && self.partitions.is_empty()
    }
}

fn name<'de, D: Deserializer<'de>>(text: D) -> Result<Arc<str>, D::Error> {
    let text = String::deserialize(text)?;
    Ok(text.char_indices().nth(MAX_NAME).map_or(&*text, |(end, _)| &text[..end]).into())
}

fn unknown_operator() -> Pause {
    Pause { by: "unknown".into(), at_ms: 0 }
}

/// Reads `NUMBER`, or `NUMBER,TIME,NAME`.
fn numbered(value: &str) -> Option<(u64, Pause)> {
    let mut parts = value.splitn(3, ',');
    let number = parts.next()?.parse().ok()?;
    let at_ms = parts.next().map_or(Some(0), |text| text.parse().ok())?;
    let by = parts.next().map_or_else(|| unknown_operator().by, unescaped);
    Some((number, Pause { by, at_ms }))
}

/// Decodes `%HH`; a name that is damaged stays as it is.
fn unescaped(text: &str) -> Arc<str> {
    let mut bytes = Vec::new();
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next().unwrap_or_default().as_bytes());
    for part in parts {
        let Some(byte) = part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) else {
            return text.into();
        };
        bytes.push(byte);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8_lossy(&bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn named(pauses: &Pauses, partition: PartitionId) -> Option<(&str, u64)> {
        pauses.of(partition).map(|pause| (&*pause.by, pause.at_ms))
    }

    #[test]
    fn the_node_of_a_topic_names_the_module_or_partitions() {
        let one = Pauses::of_node(br#"{"partitions":{"3":{"by":"ann","at_ms":7}}}"#);
        assert_eq!((named(&one, 3), named(&one, 4)), (Some(("ann", 7)), None));
        let all = Pauses::of_node(br#"{"module":{"by":"bob","at_ms":9},"partitions":{"3":{"by":"ann","at_ms":7}}}"#);
        assert_eq!((named(&all, 3), named(&all, 4)), (Some(("bob", 9)), Some(("bob", 9))));
        assert!(Pauses::of_node(b"{}").is_empty());
        // ktransfer pushes nothing then.
        assert_eq!(named(&Pauses::of_node(b"yes"), 0), Some(("unknown", 0)));
        let long = format!(r#"{{"module":{{"by":"{}","at_ms":9}}}}"#, "é".repeat(1_000));
        assert_eq!(Pauses::of_node(long.as_bytes()).of(0).unwrap().by.chars().count(), MAX_NAME);
    }

    #[test]
    fn the_texts_beside_the_offsets_say_together_what_is_paused() {
        for (texts, expected) in [
            (["kt1;o=5;t=9", "kt1;o=5;t=9;p=0,7,a%20b;d=AB"], [None, Some(("a b", 7))]),
            (["kt1;o=5;t=9;m=1,8,ann", "kt1;o=5;t=9"], [Some(("ann", 8)), Some(("ann", 8))]),
            // The resume of the module ended the pause of the partition, or the pause is later.
            (["kt1;o=5;t=9;m=2", "kt1;o=5;t=9;m=1,8,ann;p=0,7,ann"], [None, None]),
            (["kt1;o=5;t=9;m=2", "kt1;o=5;t=9;p=2,7,ann"], [None, Some(("ann", 7))]),
            (["kt1;o=5;t=9;m=3", "kt1;o=5;t=9;m=2"], [Some(("unknown", 0)), Some(("unknown", 0))]),
            (["", "another program;m=1,8,ann"], [None, None]),
            (["kt1;o=5;t=9;m=x,8,ann", "kt1;o=5;t=9;p=1,x,ann"], [None, None]),
        ] {
            let pauses = Pauses::of_commits((0..).zip(texts));
            assert_eq!([named(&pauses, 0), named(&pauses, 1)], expected, "{texts:?}");
            assert_eq!(pauses.is_empty(), expected == [None, None]);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_data_never_panics(
            text in "(kt1;)?([mp]=[0-9]{0,20},?[0-9]{0,20},?%?.{0,20};){0,3}",
            data: Vec<u8>,
        ) {
            let _ = (Pauses::of_commits([(0, &*text)].into_iter()), Pauses::of_node(&data));
        }
    }
}
