//! Formats delays as lines for `zabbix_sender -i -`: `- cluster.module.0.delay 12`, sorted by cluster, module and
//! partition.

use std::fmt::Write;
use std::sync::Arc;

use crate::kmonitor::delay::by_module;
use crate::kmonitor::view::ClusterView;

/// Formats the delays of these clusters, of all modules or only one. An unknown delay has no line.
pub(crate) fn render(clusters: &[Arc<ClusterView>], only_module: Option<&str>) -> String {
    let mut clusters: Vec<_> = clusters.iter().collect();
    clusters.sort_unstable_by_key(|cluster| &cluster.name);
    let mut lines = String::new();
    for cluster in clusters {
        for (name, delays) in by_module(cluster, only_module) {
            for (number, delay) in delays {
                let key = quoted(format!("{}.{name}.{number}.delay", cluster.name));
                writeln!(lines, "- {key} {delay}").expect("writing into memory does not fail");
            }
        }
    }
    lines
}

/// Quotes a key that has other characters than visible ASCII, because `zabbix_sender` splits fields at blanks. Control
/// characters become `?`, so that a group name with a newline cannot begin a further line.
fn quoted(key: String) -> String {
    let is_plain = |character: char| character.is_ascii_graphic() && !matches!(character, '"' | '\\');
    if key.chars().all(is_plain) {
        return key;
    }
    let mut quoted = String::from("\"");
    for character in key.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control.is_control() => quoted.push('?'),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmonitor::delay::tests::Delay::{Known, Unknown};
    use crate::kmonitor::delay::tests::{cluster, module};

    #[test]
    fn lines_are_sorted_and_a_group_name_cannot_break_a_line() {
        let first = vec![module("m2", "t", &[Known(0), Unknown]), module("m1", "t", &[Known(12)])];
        let ten: Vec<_> = (0..11).map(Known).collect();
        let second = vec![module("odd \"\n- x 1", "t", &[Known(5)]), module("m", "t", &ten)];
        let clusters = [
            Arc::new(cluster("test_cluster", first)),
            Arc::new(ClusterView { known: false, ..cluster("away", Vec::new()) }),
            Arc::new(cluster("common", second)),
        ];
        let text = render(&clusters, None);
        let expected = (0..11).map(|number| format!("- common.m.{number}.delay {number}\n")).collect::<String>()
            + "- \"common.odd \\\"?- x 1.0.delay\" 5\n- test_cluster.m1.0.delay 12\n- test_cluster.m2.0.delay 0\n";
        assert_eq!(text, expected);
        assert_eq!(render(&clusters, Some("m1")), "- test_cluster.m1.0.delay 12\n");
    }
}
