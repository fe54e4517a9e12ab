//! Exports the delays as metrics, with a label for the topic. Each scrape reads the snapshots, so the metrics of a
//! deleted group disappear.

use std::sync::Arc;

use crate::kmonitor::board::Board;
use crate::kmonitor::view::{ClusterView, ReasonCode};
use crate::metrics::{Registry, Row};

/// Registers the metrics that are computed from the store at each scrape.
pub(crate) fn register(registry: &Registry, board: &Board) {
    let source = board.clone();
    registry.table(
        "kmonitor_delay_messages",
        "Messages between the stored and the newest offset of a partition; absent while unknown.",
        &["cluster", "module", "topic", "partition"],
        move || delays(&source),
    );
    let source = board.clone();
    registry.table(
        "kmonitor_unknown_partitions",
        "Partitions with a stored offset whose delay is unknown now.",
        &["cluster"],
        move || unknown(&source),
    );
    let source = board.clone();
    registry.table(
        "kmonitor_cluster_known",
        "1 while the stored offsets of the cluster can be read, else 0.",
        &["cluster"],
        move || known(&source),
    );
}

#[expect(clippy::cast_precision_loss, reason = "a delay beyond 2^53 messages may be off by a few")]
fn delays(board: &Board) -> Vec<Row> {
    let mut rows = Vec::new();
    for cluster in board.view().clusters {
        for module in &cluster.modules {
            for partition in &module.partitions {
                if let Some(messages) = partition.delay {
                    let number = partition.partition.to_string();
                    let labels = [&*cluster.name, &*module.name, &*module.topic, &number].map(str::to_owned).to_vec();
                    rows.push(Row { labels, value: messages as f64 });
                }
            }
        }
    }
    rows
}

/// A partition that is gone is not unknown.
fn unknown(board: &Board) -> Vec<Row> {
    let clusters = board.view().clusters.into_iter().filter(|cluster| cluster.known);
    let row = |cluster: Arc<ClusterView>| {
        let partitions = cluster.modules.iter().flat_map(|module| &module.partitions);
        let unknown = partitions.filter(|of| of.delay.is_none() && of.reason_code != ReasonCode::Gone).count();
        let value = f64::from(u32::try_from(unknown).unwrap_or(u32::MAX));
        Row { labels: vec![cluster.name.to_string()], value }
    };
    clusters.map(row).collect()
}

fn known(board: &Board) -> Vec<Row> {
    let clusters = board.view().clusters.into_iter();
    let value = |is_known| if is_known { 1.0 } else { 0.0 };
    clusters.map(|cluster| Row { labels: vec![cluster.name.to_string()], value: value(cluster.known) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmonitor::delay::tests::Delay::{Gone, Known, Unknown};
    use crate::kmonitor::delay::tests::{cluster, module};

    #[test]
    fn the_metrics_of_a_deleted_group_disappear() {
        let board = Board::new(["c", "away"]);
        let writers = board.writers();
        let registry = Registry::new();
        register(&registry, &board);
        let text = || String::from_utf8(registry.render()).unwrap();
        writers[0].publish(cluster("c", vec![module("m", "t", &[Known(12), Unknown, Gone])]));
        let shown = text();
        let line = r#"kmonitor_delay_messages{cluster="c",module="m",partition="0",topic="t"} 12"#;
        assert!(shown.contains(line), "{shown}");
        assert!(!shown.contains(r#"partition="1""#), "{shown}");
        assert!(shown.contains(r#"kmonitor_unknown_partitions{cluster="c"} 1"#), "{shown}");
        assert!(shown.contains(r#"kmonitor_cluster_known{cluster="away"} 0"#), "{shown}");
        writers[0].publish(cluster("c", Vec::new()));
        assert!(!text().contains("kmonitor_delay_messages{"), "{}", text());
    }
}
