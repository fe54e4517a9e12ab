//! Formats delays as lines for `zabbix_sender -i -`: `- cluster.module.0.delay 12`, sorted by cluster, module and
//! partition.
//!
//! Names may have dots, so two modules can have one key: module `b.c` of cluster `a`, and `c` of `a.b`. Such modules
//! are left out, because their values would alternate under one item.

use std::collections::HashMap;
use std::io::Write;

use super::legacy::{ClusterText, DelayPage, Selection};
use crate::http::Body;
use crate::kmonitor::delay::by_module;
use crate::kmonitor::view::View;

/// Formats the delays of all clusters, and returns the modules that are left out because of their names, as
/// `cluster.module`. An unknown delay has no line.
pub(crate) fn render(view: &View) -> (DelayPage, Vec<String>) {
    let mut sorted: Vec<_> = view.clusters.iter().map(|cluster| (cluster, by_module(cluster, None))).collect();
    sorted.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
    let mut uses: HashMap<String, usize> = HashMap::new();
    for (cluster, modules) in &sorted {
        modules.iter().for_each(|(name, _)| *uses.entry(visible(&key_start(&cluster.name, name))).or_default() += 1);
    }
    let (mut text, mut clusters, mut ambiguous) = (Vec::new(), Vec::new(), Vec::new());
    for (cluster, modules) in sorted {
        let (start, mut ranges) = (text.len(), Vec::new());
        for (name, delays) in modules {
            let (start, key) = (text.len(), key_start(&cluster.name, &name));
            if uses[&visible(&key)] > 1 {
                ambiguous.push(visible(&key));
            } else {
                for (number, delay) in delays {
                    let key = quoted(&format!("{key}.{number}.delay"));
                    writeln!(text, "- {key} {delay}").expect("writing into memory does not fail");
                }
            }
            ranges.push((name, start..text.len()));
        }
        let name = cluster.name.clone();
        clusters.push(ClusterText {
            name,
            known: cluster.known && !cluster.is_partial,
            range: start..text.len(),
            modules: ranges,
        });
    }
    (DelayPage { bytes: text.into(), clusters }, ambiguous)
}

/// Returns the lines of a selection.
pub(crate) fn select(page: &DelayPage, selection: Selection<'_>) -> Body {
    let Some(module) = selection.module else { return page.shared(selection.cluster, "", b"") };
    let ranges = page.selected(selection).filter_map(|cluster| cluster.module(module));
    ranges.flat_map(|range| page.bytes[range].to_vec()).collect::<Vec<u8>>().into()
}

fn key_start(cluster: &str, module: &str) -> String {
    format!("{cluster}.{module}")
}

/// Control characters become `?`, so that a group name with a newline cannot begin a further line.
fn visible(text: &str) -> String {
    text.replace(char::is_control, "?")
}

/// Quotes a key that has other characters than visible ASCII, because `zabbix_sender` splits fields at blanks. So has
/// one whose control characters become `?`.
fn quoted(key: &str) -> String {
    let is_plain = |character: char| character.is_ascii_graphic() && !matches!(character, '"' | '\\');
    if key.chars().all(is_plain) {
        return key.to_owned();
    }
    let mut quoted = String::from("\"");
    for character in visible(key).chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmonitor::report::fixture::{cluster, module, partition, unknown, view};

    fn show(page: &DelayPage, cluster: Option<&str>, module: Option<&str>) -> String {
        String::from_utf8(select(page, Selection { cluster, module }).to_vec()).unwrap()
    }

    #[test]
    fn lines_are_sorted_and_a_group_name_cannot_break_a_line() {
        let first = vec![
            module("m1", "t", vec![partition(0, Some(12))]),
            module("m2", "t", vec![partition(0, Some(0)), partition(1, None)]),
        ];
        let ten = (0..11).map(|number| partition(number, Some(number.unsigned_abs().into()))).collect();
        let second = vec![module("m", "t", ten), module("odd \"\n- x 1", "t", vec![partition(0, Some(5))])];
        let all = view(vec![cluster("test_cluster", first), unknown("away"), cluster("common", second)]);
        let (page, ambiguous) = render(&all);
        let common = (0..11).map(|number| format!("- common.m.{number}.delay {number}\n")).collect::<String>()
            + "- \"common.odd \\\"?- x 1.0.delay\" 5\n";
        let test = "- test_cluster.m1.0.delay 12\n- test_cluster.m2.0.delay 0\n";
        assert_eq!(show(&page, None, None), format!("{common}{test}"));
        assert_eq!(show(&page, Some("common"), None), common);
        assert_eq!(show(&page, Some("away"), None), "");
        assert_eq!(show(&page, None, Some("m1")), "- test_cluster.m1.0.delay 12\n");
        assert_eq!(ambiguous, [""; 0]);
    }

    #[test]
    fn modules_that_would_share_a_key_are_left_out() {
        let one = |name: &str| module(name, "t", vec![partition(0, Some(1))]);
        let all = view(vec![
            cluster("a", vec![one("b"), one("b.c")]),
            cluster("a.b", vec![one("c"), one("d\t"), one("d\n"), one("e\t")]),
        ]);
        let (page, ambiguous) = render(&all);
        assert_eq!(show(&page, None, None), "- a.b.0.delay 1\n- \"a.b.e?.0.delay\" 1\n", "quoted, as ever");
        assert_eq!(ambiguous, ["a.b.c", "a.b.c", "a.b.d?", "a.b.d?"]);
        assert_eq!(page.check(Selection { cluster: None, module: Some("c") }), Ok(()), "the module exists");
    }
}
