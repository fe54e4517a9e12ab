//! Formats delays as lines for `zabbix_sender -i -`: `- cluster.module.0.delay 12`, sorted by cluster, module and
//! partition.

use std::fmt::Write;

use crate::kmonitor::snapshot::Snapshots;

/// Formats the delays of these clusters, of all modules or only one. An unknown delay has no line.
pub(crate) fn render(snapshots: &Snapshots, only_module: Option<&str>) -> String {
    let mut snapshots: Vec<_> = snapshots.iter().collect();
    snapshots.sort_unstable_by_key(|(name, _)| name);
    let mut lines = String::new();
    for (cluster, snapshot) in snapshots {
        for (name, module) in snapshot.iter().flat_map(|snapshot| snapshot.modules(only_module)) {
            for (number, delay) in &module.by_number {
                let key = quoted(format!("{cluster}.{name}.{number}.delay"));
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
    use crate::kmonitor::delay::LogEnd::{Newest, Unknown};
    use crate::kmonitor::snapshot::tests::snapshot;
    use std::sync::Arc;

    #[test]
    fn lines_are_sorted_and_a_group_name_cannot_break_a_line() {
        let first = snapshot(&[("m2", &[(0, Newest(0)), (0, Unknown)]), ("m1", &[(3, Newest(15))])]);
        let ten: Vec<_> = (0..11).map(|number| (0, Newest(number))).collect();
        let second = snapshot(&[("odd \"\n- x 1", &[(0, Newest(5))]), ("m", &ten[..])]);
        let snapshots = vec![
            ("test_cluster".into(), Some(Arc::new(first))),
            ("away".into(), None),
            ("common".into(), Some(Arc::new(second))),
        ];
        let text = render(&snapshots, None);
        let expected = (0..11).map(|number| format!("- common.m.{number}.delay {number}\n")).collect::<String>()
            + "- \"common.odd \\\"?- x 1.0.delay\" 5\n- test_cluster.m1.0.delay 12\n- test_cluster.m2.0.delay 0\n";
        assert_eq!(text, expected);
        assert_eq!(render(&snapshots, Some("m1")), "- test_cluster.m1.0.delay 12\n");
    }
}
