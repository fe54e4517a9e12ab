//! The same delays as metrics, with the topic: read from the board at each scrape, so what disappeared is gone here too.

use crate::kmonitor::board::Board;
use crate::metrics::{Registry, Row};

/// Adds the tables of the board to the registry.
pub fn register(registry: &Registry, board: &Board) {
    let shown = board.clone();
    registry.table(
        "kmonitor_delay_messages",
        "Messages between the stored and the newest offset of a partition; absent while unknown.",
        &["cluster", "module", "topic", "partition"],
        move || delays(&shown),
    );
    let shown = board.clone();
    registry.table(
        "kmonitor_unknown_partitions",
        "Partitions with a stored offset whose delay is unknown now.",
        &["cluster"],
        move || unknown(&shown),
    );
    let shown = board.clone();
    registry.table(
        "kmonitor_cluster_known",
        "1 while the stored offsets of the cluster are being read, else 0.",
        &["cluster"],
        move || {
            let known = |view: &Option<_>| if view.is_some() { 1.0 } else { 0.0 };
            shown
                .views()
                .iter()
                .map(|(name, view)| Row { labels: vec![name.to_string()], value: known(view) })
                .collect()
        },
    );
}

#[expect(clippy::cast_precision_loss, reason = "a delay beyond 2^53 messages may be off by a few")]
fn delays(board: &Board) -> Vec<Row> {
    let mut rows = Vec::new();
    for (cluster, view) in board.views() {
        for (module, delay) in view.iter().flat_map(|view| &view.modules) {
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

fn unknown(board: &Board) -> Vec<Row> {
    let row = |(cluster, view): (std::sync::Arc<str>, Option<std::sync::Arc<crate::kmonitor::board::View>>)| {
        let partitions =
            view?.modules.values().flat_map(|module| &module.partitions).filter(|p| p.messages().is_none()).count();
        Some(Row { labels: vec![cluster.to_string()], value: f64::from(u32::try_from(partitions).unwrap_or(u32::MAX)) })
    };
    board.views().into_iter().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::view;
    use super::*;
    use crate::kmonitor::delay::LogEnd::{Newest, Unknown};
    use std::sync::Arc;

    #[test]
    fn a_group_that_disappeared_is_no_metric_any_more() {
        let board = Board::new(["c", "away"]);
        let places = board.places();
        let registry = Registry::new();
        register(&registry, &board);
        let text = || String::from_utf8(registry.render()).unwrap();
        let only = |modules: &[(&str, &[(i64, crate::kmonitor::delay::LogEnd)])]| Arc::into_inner(view(modules));
        places[0].put(only(&[("m", &[(3, Newest(15)), (0, Unknown)])]));
        let shown = text();
        let line = r#"kmonitor_delay_messages{cluster="c",module="m",partition="0",topic="t"} 12"#;
        assert!(shown.contains(line), "{shown}");
        assert!(!shown.contains(r#"partition="1""#), "{shown}");
        assert!(shown.contains(r#"kmonitor_unknown_partitions{cluster="c"} 1"#), "{shown}");
        assert!(shown.contains(r#"kmonitor_cluster_known{cluster="away"} 0"#), "{shown}");
        places[0].put(only(&[]));
        assert!(!text().contains("kmonitor_delay_messages{"), "{}", text());
    }
}
