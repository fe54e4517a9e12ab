//! Lines for `zabbix_sender -i -`: `- cluster.module.0.delay 12`, sorted.

use std::fmt::Write;

use super::{Views, modules};

/// The delays of these clusters, of all modules or one. What is not known has no line.
pub fn render(views: &Views, only_module: Option<&str>) -> String {
    let mut views: Vec<_> = views.iter().collect();
    views.sort_unstable_by_key(|(name, _)| name);
    let mut lines = String::new();
    for (cluster, view) in views {
        for (name, module) in modules(view.as_deref(), only_module) {
            for (number, delay) in &module.by_number {
                let key = quoted(format!("{cluster}.{name}.{number}.delay"));
                writeln!(lines, "- {key} {delay}").expect("writing into memory does not fail");
            }
        }
    }
    lines
}

/// The sender reads fields between blanks; others are put in quotes. Nothing a group is called can begin a line of its own.
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
    use super::super::tests::view;
    use super::*;
    use crate::kmonitor::delay::LogEnd::{Newest, Unknown};

    #[test]
    fn lines_are_sorted_and_whole() {
        let first = view(&[("m2", &[(0, Newest(0)), (0, Unknown)]), ("m1", &[(3, Newest(15))])]);
        let ten: Vec<_> = (0..11).map(|number| (0, Newest(number))).collect();
        let second = view(&[("odd \"\n- x 1", &[(0, Newest(5))]), ("m", &ten[..])]);
        let views = vec![("test_cluster".into(), Some(first)), ("away".into(), None), ("common".into(), Some(second))];
        let text = render(&views, None);
        let expected = (0..11).map(|number| format!("- common.m.{number}.delay {number}\n")).collect::<String>()
            + "- \"common.odd \\\"?- x 1.0.delay\" 5\n- test_cluster.m1.0.delay 12\n- test_cluster.m2.0.delay 0\n";
        assert_eq!(text, expected);
        assert_eq!(render(&views, Some("m1")), "- test_cluster.m1.0.delay 12\n");
    }
}
