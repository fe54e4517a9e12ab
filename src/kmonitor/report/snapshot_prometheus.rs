//! Exports the delays as metrics, with a label for the topic. Each scrape reads the snapshots, so the metrics of a
//! deleted group disappear.

use std::sync::Arc;

use crate::kmonitor::snapshot::{ClusterSnapshot, SnapshotStore};
use crate::metrics::{Registry, Row};

/// Registers the metrics that are computed from the store at each scrape.
pub(crate) fn register(registry: &Registry, store: &SnapshotStore) {
    let source = store.clone();
    registry.table(
        "kmonitor_delay_messages",
        "Messages between the stored and the newest offset of a partition; absent while unknown.",
        &["cluster", "module", "topic", "partition"],
        move || delays(&source),
    );
    let source = store.clone();
    registry.table(
        "kmonitor_unknown_partitions",
        "Partitions with a stored offset whose delay is unknown now.",
        &["cluster"],
        move || unknown(&source),
    );
    let source = store.clone();
    registry.table(
        "kmonitor_cluster_known",
        "1 while the stored offsets of the cluster can be read, else 0.",
        &["cluster"],
        move || known(&source),
    );
}

#[expect(clippy::cast_precision_loss, reason = "a delay beyond 2^53 messages may be off by a few")]
fn delays(store: &SnapshotStore) -> Vec<Row> {
    let mut rows = Vec::new();
    for (cluster, snapshot) in store.snapshots() {
        for (module, delay) in snapshot.iter().flat_map(|snapshot| &snapshot.modules) {
            for partition in &delay.partitions {
                if let Some(messages) = partition.messages() {
                    let at = &partition.partition;
                    let labels = [&*cluster, module, &at.topic, &at.partition.to_string()].map(str::to_owned).to_vec();
                    rows.push(Row { labels, value: messages as f64 });
                }
            }
        }
    }
    rows
}

fn unknown(store: &SnapshotStore) -> Vec<Row> {
    let row = |(cluster, snapshot): (Arc<str>, Option<Arc<ClusterSnapshot>>)| {
        let partitions =
            snapshot?.modules.values().flat_map(|module| &module.partitions).filter(|p| p.messages().is_none()).count();
        Some(Row { labels: vec![cluster.to_string()], value: f64::from(u32::try_from(partitions).unwrap_or(u32::MAX)) })
    };
    store.snapshots().into_iter().filter_map(row).collect()
}

fn known(store: &SnapshotStore) -> Vec<Row> {
    let row = |(cluster, snapshot): (Arc<str>, Option<Arc<ClusterSnapshot>>)| Row {
        labels: vec![cluster.to_string()],
        value: if snapshot.is_some() { 1.0 } else { 0.0 },
    };
    store.snapshots().into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmonitor::delay::LogEnd::{Newest, Unknown};
    use crate::kmonitor::snapshot::tests::snapshot;

    #[test]
    fn the_metrics_of_a_deleted_group_disappear() {
        let store = SnapshotStore::new(["c", "away"]);
        let writers = store.writers();
        let registry = Registry::new();
        register(&registry, &store);
        let text = || String::from_utf8(registry.render()).unwrap();
        writers[0].put(Some(snapshot(&[("m", &[(3, Newest(15)), (0, Unknown)])])));
        let shown = text();
        let line = r#"kmonitor_delay_messages{cluster="c",module="m",partition="0",topic="t"} 12"#;
        assert!(shown.contains(line), "{shown}");
        assert!(!shown.contains(r#"partition="1""#), "{shown}");
        assert!(shown.contains(r#"kmonitor_unknown_partitions{cluster="c"} 1"#), "{shown}");
        assert!(shown.contains(r#"kmonitor_cluster_known{cluster="away"} 0"#), "{shown}");
        writers[0].put(Some(snapshot(&[])));
        assert!(!text().contains("kmonitor_delay_messages{"), "{}", text());
    }
}
