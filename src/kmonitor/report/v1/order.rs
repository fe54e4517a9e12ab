//! The order of the modules in `/v1/delay`, and the cursor that says where the next answer goes on.

use std::cmp::Ordering;
use std::fmt::Write;

use crate::kmonitor::facts::{Source, Verdict};
use crate::kmonitor::view::{ModuleView, PartitionView, View};

/// The order of the modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The worst verdict first, then the most seconds, then the largest delay, then by name.
    Worst,
    /// By cluster (in the order of the configuration), module, source and topic.
    Name,
}

/// The place of a module in the order. A cursor is the place of the last module of an answer: the next one begins
/// behind it, wherever the modules have moved since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    /// `None` in the order by name.
    badness: Option<Badness>,
    cluster: String,
    module: String,
    source: String,
    topic: String,
}

/// Severity, seconds and delay. Seconds are not negative, so their bits have the order of their values.
type Badness = (u8, u64, u64);

/// A module in an order.
pub(super) struct Entry<'a> {
    /// Index of its cluster.
    pub(super) cluster: usize,
    pub(super) module: &'a ModuleView,
    badness: Badness,
}

/// Which partitions of the selected modules are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Partitions {
    /// Those whose verdict is not OK.
    Bad,
    /// All of them.
    All,
    /// None of them.
    None,
}

/// Returns the partitions of a module that are listed.
pub(super) fn listed(module: &ModuleView, partitions: Partitions) -> impl Iterator<Item = &PartitionView> {
    let is_listed = move |verdict| match partitions {
        Partitions::All => true,
        Partitions::Bad => verdict != Verdict::Ok,
        Partitions::None => false,
    };
    module.partitions.iter().filter(move |partition| is_listed(partition.verdict))
}

impl<'a> Entry<'a> {
    pub(super) fn new(cluster: usize, module: &'a ModuleView) -> Self {
        let seconds = module.seconds_behind.unwrap_or(0.0).max(0.0);
        let badness = (module.verdict.severity(), seconds.to_bits(), module.delay.unwrap_or(0));
        Entry { cluster, module, badness }
    }

    pub(super) fn compare(&self, other: &Entry<'_>, order: Order) -> Ordering {
        let by_badness = match order {
            Order::Worst => other.badness.cmp(&self.badness),
            Order::Name => Ordering::Equal,
        };
        by_badness.then_with(|| self.name().cmp(&other.name()))
    }

    fn name(&self) -> (usize, &str, Source, &str) {
        (self.cluster, &self.module.name, self.module.source, &self.module.topic)
    }
}

impl Cursor {
    pub(super) fn order(&self) -> Order {
        if self.badness.is_some() { Order::Worst } else { Order::Name }
    }

    pub(super) fn of(entry: &Entry<'_>, view: &View, order: Order) -> Cursor {
        Cursor {
            badness: (order == Order::Worst).then_some(entry.badness),
            cluster: view.clusters[entry.cluster].name.to_string(),
            module: entry.module.name.to_string(),
            source: entry.module.source.word().to_owned(),
            topic: entry.module.topic.to_string(),
        }
    }

    /// Compares this place with that of a module: `Less` if the module follows.
    pub(super) fn compare(&self, entry: &Entry<'_>, view: &View) -> Ordering {
        let by_badness = self.badness.map_or(Ordering::Equal, |badness| entry.badness.cmp(&badness));
        // A cluster that is not configured any more was before all others.
        let cluster = view.clusters.iter().position(|cluster| *cluster.name == *self.cluster);
        let source = [Source::Zookeeper, Source::Kafka].into_iter().find(|source| source.word() == self.source);
        let name = (cluster, Some(&*self.module), source, Some(&*self.topic));
        let (index, module, of, topic) = entry.name();
        by_badness.then_with(|| name.cmp(&(Some(index), Some(module), Some(of), Some(topic))))
    }

    /// Writes the place as text that needs no encoding in a URI: the fields in hexadecimal, separated by `-`. The name
    /// of a group in Kafka may have any character.
    pub(super) fn text(&self) -> String {
        let badness = self.badness.map(|(severity, seconds, delay)| format!("{severity},{seconds},{delay}"));
        let fields = [&badness.unwrap_or_default(), &self.cluster, &self.module, &self.source, &self.topic];
        let mut text = String::with_capacity(2 * fields.iter().map(|field| field.len() + 1).sum::<usize>());
        for (index, field) in fields.into_iter().enumerate() {
            text.push_str(if index == 0 { "" } else { "-" });
            for byte in field.bytes() {
                write!(text, "{byte:02x}").expect("writing into memory does not fail");
            }
        }
        text
    }

    /// Reads what [`Cursor::text`] wrote.
    pub(super) fn parse(text: &str) -> Result<Cursor, String> {
        Self::parsed(text).ok_or_else(|| format!("after is {text:?}, which is no `next` of an answer"))
    }

    fn parsed(text: &str) -> Option<Cursor> {
        let fields: Vec<String> = text.split('-').map(from_hexadecimal).collect::<Option<_>>()?;
        let [badness, cluster, module, source, topic] = <[String; 5]>::try_from(fields).ok()?;
        let badness = match &*badness {
            "" => None,
            text => {
                let numbers: Vec<&str> = text.split(',').collect();
                let [severity, seconds, delay] = numbers[..] else { return None };
                Some((severity.parse().ok()?, seconds.parse().ok()?, delay.parse().ok()?))
            }
        };
        Some(Cursor { badness, cluster, module, source, topic })
    }
}

fn from_hexadecimal(text: &str) -> Option<String> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let bytes: Option<Vec<u8>> = pairs.iter().map(|[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect();
    String::from_utf8(bytes?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_text_and_other_text_is_none() {
        let cursor = Cursor {
            badness: Some((5, 90.5_f64.to_bits(), u64::MAX)),
            cluster: "c".into(),
            module: "a&b=\u{e4}".into(),
            source: "zookeeper".into(),
            topic: String::new(),
        };
        let hostile = Cursor { module: "a\0b-c,d".into(), ..cursor.clone() };
        for cursor in [cursor.clone(), hostile, Cursor { badness: None, ..cursor }] {
            assert_eq!(Cursor::parse(&cursor.text()), Ok(cursor));
        }
        for text in ["", "0", "zz", "ff", "00", "3500", "--", "-----", "35----", "352c362c37-ff---", "352c36----"] {
            assert!(Cursor::parse(text).is_err(), "{text}");
        }
    }
}
