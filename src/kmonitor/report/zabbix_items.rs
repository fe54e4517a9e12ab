//! `/v1/zabbix` and `/v1/zabbix/discovery`: five items for each module, found by the low-level discovery of Zabbix. The
//! values are lines for `zabbix_sender` or a JSON document.
//!
//! A line is input for `zabbix_sender -i`: `- kmonitor.delay[CLUSTER,MODULE,TOPIC,SOURCE] 1764093790 1204`. Zabbix
//! makes the key of an item from the names that the discovery returned, by its own rule of quoting; the keys here
//! follow the same rule, or the values would be refused. Names that no key can carry are left out and counted.

use std::borrow::Cow;
use std::io::Write;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::kmonitor::facts::Verdict;
use crate::kmonitor::view::{ClusterView, ModuleView, PartitionView, ReasonCode, View};

/// What a request selects.
#[derive(Default)]
pub(crate) struct Filter<'a> {
    /// Only this cluster.
    pub(crate) cluster: Option<&'a str>,
    /// Only modules for which this returns true; `None` selects all.
    pub(crate) module: Option<&'a dyn Fn(&str) -> bool>,
    /// Partitions instead of modules.
    pub(crate) partitions: bool,
}

impl Filter<'_> {
    /// Returns whether all modules are selected.
    pub(crate) fn is_everything(&self) -> bool {
        self.cluster.is_none() && self.module.is_none() && !self.partitions
    }

    /// Returns the number of modules, or partitions, that are selected.
    pub(crate) fn count(&self, view: &View) -> usize {
        selected(view, self).map(|(_, module)| if self.partitions { module.partitions.len() } else { 1 }).sum()
    }
}

/// The moment of the answer, by both clocks.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    pub(crate) wall: SystemTime,
    pub(crate) now: Instant,
}

impl Clock {
    /// Returns Unix seconds of an earlier moment.
    fn seconds_at(self, at: Instant) -> u64 {
        let ago = self.now.saturating_duration_since(at);
        self.wall
            .checked_sub(ago)
            .and_then(|wall| wall.duration_since(UNIX_EPOCH).ok())
            .map_or(0, |since| since.as_secs())
    }
}

/// Formats the values of the selected items; with `clock` each line has the time at which its cluster was read.
pub(crate) fn render_values(view: &View, filter: &Filter<'_>, clock: Option<Clock>) -> Vec<u8> {
    let mut lines = Lines { text: Vec::new(), time: clock.map(|clock| clock.seconds_at(clock.now)) };
    let mut left_out = 0;
    if filter.is_everything() {
        lines.put("kmonitor.alive", 1);
        lines.put("kmonitor.unknown_clusters", view.clusters.iter().filter(|cluster| !cluster.known).count());
    }
    let general_time = lines.time;
    for (cluster, module) in selected(view, filter) {
        lines.time = clock.map(|clock| clock.seconds_at(cluster.published));
        match (names(cluster, module), filter.partitions) {
            (Some(names), false) => module_lines(&mut lines, module, &names),
            (Some(names), true) => {
                counted(module).for_each(|partition| partition_lines(&mut lines, partition, &names));
            }
            (None, _) => left_out += 1,
        }
    }
    if filter.is_everything() {
        lines.time = general_time;
        lines.put("kmonitor.left_out", left_out);
    }
    lines.text
}

fn module_lines(lines: &mut Lines, module: &ModuleView, names: &str) {
    // The sum of what is known would be a wrong low number.
    if let Some(delay) = module.delay.filter(|_| !module.delay_is_partial) {
        lines.put(&format!("kmonitor.delay[{names}]"), delay);
    }
    if let Some(seconds) = module.seconds_behind.filter(|seconds| seconds.is_finite()) {
        lines.put(&format!("kmonitor.seconds[{names}]"), format_args!("{seconds:.1}"));
    }
    lines.put(&format!("kmonitor.verdict[{names}]"), module.verdict.severity());
    let reason = module.reason.replace(char::is_control, " ");
    lines.put(&format!("kmonitor.reason[{names}]"), quoted(&reason));
    lines.put(&format!("kmonitor.bad[{names}]"), bad(module));
}

fn partition_lines(lines: &mut Lines, partition: &PartitionView, names: &str) {
    let number = partition.partition;
    if let Some(delay) = partition.delay {
        lines.put(&format!("kmonitor.partition.delay[{names},{number}]"), delay);
    }
    lines.put(&format!("kmonitor.partition.verdict[{names},{number}]"), partition.verdict.severity());
}

/// Formats the macros of the selected modules or partitions for low-level discovery.
pub(crate) fn render_discovery(view: &View, filter: &Filter<'_>) -> Vec<u8> {
    let mut text = vec![b'['];
    for (cluster, module) in selected(view, filter).filter(|(cluster, module)| names(cluster, module).is_some()) {
        let mut macros = json!({
            "{#ID}": format!("{:016x}", module.id), "{#CLUSTER}": *cluster.name, "{#MODULE}": *module.name,
            "{#TOPIC}": *module.topic, "{#SOURCE}": module.source.word(),
        });
        if filter.partitions {
            for partition in counted(module) {
                macros["{#PARTITION}"] = partition.partition.to_string().into();
                put_json(&mut text, &macros);
            }
        } else {
            put_json(&mut text, &macros);
        }
    }
    text.extend_from_slice(b"\n]\n");
    text
}

/// Formats the values of the selected modules as one document, for an item of Zabbix of which the others are made. A
/// number that is unknown is absent.
pub(crate) fn render_document(view: &View, filter: &Filter<'_>) -> Vec<u8> {
    let (mut modules, mut left_out) = (Vec::new(), 0);
    for (cluster, module) in selected(view, filter) {
        if names(cluster, module).is_none() {
            left_out += 1;
            continue;
        }
        let mut values = json!({
            "id": format!("{:016x}", module.id), "cluster": *cluster.name, "module": *module.name,
            "topic": *module.topic, "source": module.source.word(), "verdict": module.verdict.severity(),
            "reason": *module.reason, "bad": bad(module),
        });
        if let Some(delay) = module.delay.filter(|_| !module.delay_is_partial) {
            values["delay"] = delay.into();
        }
        if let Some(seconds) = module.seconds_behind.filter(|seconds| seconds.is_finite()) {
            values["seconds"] = ((seconds * 10.0).round() / 10.0).into();
        }
        modules.push(values);
    }
    let unknown_clusters = view.clusters.iter().filter(|cluster| !cluster.known).count();
    let document = json!({"unknown_clusters": unknown_clusters, "left_out": left_out, "modules": modules});
    document.to_string().into_bytes()
}

fn bad(module: &ModuleView) -> usize {
    module.partitions.iter().filter(|partition| partition.verdict != Verdict::Ok).count()
}

fn put_json(text: &mut Vec<u8>, macros: &serde_json::Value) {
    let separator = if text.len() == 1 { "\n" } else { ",\n" };
    write!(text, "{separator}{macros}").expect("writing into memory does not fail");
}

fn selected<'a>(view: &'a View, filter: &'a Filter<'_>) -> impl Iterator<Item = (&'a ClusterView, &'a ModuleView)> {
    let clusters = view.clusters.iter().filter(|cluster| filter.cluster.is_none_or(|only| only == &*cluster.name));
    let modules = clusters.flat_map(|cluster| cluster.modules.iter().map(move |module| (&**cluster, module)));
    modules.filter(|(_, module)| {
        let is_current = !matches!(module.reason_code, ReasonCode::Gone | ReasonCode::LeftBehind);
        is_current && filter.module.is_none_or(|matches| matches(&module.name))
    })
}

/// Returns the partitions that exist and that the module pushes.
fn counted(module: &ModuleView) -> impl Iterator<Item = &PartitionView> {
    let counts =
        |partition: &&PartitionView| !matches!(partition.reason_code, ReasonCode::Gone | ReasonCode::LeftBehind);
    module.partitions.iter().filter(counts)
}

/// Returns the parameters of a key; `None` if no key can carry a name.
fn names(cluster: &ClusterView, module: &ModuleView) -> Option<String> {
    let names = [&*cluster.name, &*module.name, &*module.topic, module.source.word()];
    let parameters: Option<Vec<_>> = names.into_iter().map(parameter).collect();
    parameters.map(|parameters| parameters.join(","))
}

/// Returns a name as a parameter of a key, by the rule of Zabbix (`zbx_quote_key_param`): it is quoted only where it
/// must be, and inside of quotes only `"` is escaped. So a quoted name cannot end with a backslash, and the template
/// quotes every name as the context of a macro. `None` if it ends so, or if it has a control character.
fn parameter(name: &str) -> Option<Cow<'_, str>> {
    if name.contains(char::is_control) || name.ends_with('\\') {
        return None;
    }
    if !name.starts_with(['"', ' ', '[']) && !name.contains([',', ']']) {
        return Some(name.into());
    }
    Some(format!("\"{}\"", name.replace('"', "\\\"")).into())
}

/// The lines under construction.
struct Lines {
    text: Vec<u8>,
    /// Unix seconds of the values; `None` leaves them out.
    time: Option<u64>,
}

impl Lines {
    fn put(&mut self, key: &str, value: impl std::fmt::Display) {
        // `zabbix_sender` splits a line at blanks outside of quotes.
        let needs_quotes = key.contains([' ', '"', '\\']);
        let key = if needs_quotes { quoted(key).into() } else { Cow::Borrowed(key) };
        let written = match self.time {
            Some(time) => writeln!(self.text, "- {key} {time} {value}"),
            None => writeln!(self.text, "- {key} {value}"),
        };
        written.expect("writing into memory does not fail");
    }
}

/// Quotes a field of a line for `zabbix_sender`.
fn quoted(field: &str) -> String {
    format!("\"{}\"", field.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmonitor::report::fixture::{cluster, module, partition, unknown, view};
    use std::time::Duration;

    fn sample() -> View {
        let stopped = |number, delay| PartitionView { verdict: Verdict::Stopped, ..partition(number, delay) };
        let late = ModuleView {
            seconds_behind: Some(90.25),
            reason: "nobody \"pushes\"\n2 of 3".into(),
            ..module("m", "t", vec![stopped(0, Some(1200)), stopped(1, Some(4)), partition(2, Some(0))])
        };
        let odd = module("a, \"b\" c", "t", vec![partition(0, None)]);
        let refused = module("x,y\\", "t", vec![partition(0, Some(1))]);
        let gone = ModuleView { reason_code: ReasonCode::Gone, ..module("z", "t", vec![]) };
        view(vec![cluster("c", vec![odd, late, refused, gone]), unknown("away")])
    }

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn each_module_has_five_values_and_an_unknown_delay_has_none() {
        let lines = text(render_values(&sample(), &Filter::default(), None));
        let expected = r#"- kmonitor.alive 1
- kmonitor.unknown_clusters 1
- "kmonitor.verdict[c,\"a, \\\"b\\\" c\",t,zookeeper]" 2
- "kmonitor.reason[c,\"a, \\\"b\\\" c\",t,zookeeper]" "nothing waits"
- "kmonitor.bad[c,\"a, \\\"b\\\" c\",t,zookeeper]" 1
- kmonitor.delay[c,m,t,zookeeper] 1204
- kmonitor.seconds[c,m,t,zookeeper] 90.2
- kmonitor.verdict[c,m,t,zookeeper] 5
- kmonitor.reason[c,m,t,zookeeper] "nobody \"pushes\" 2 of 3"
- kmonitor.bad[c,m,t,zookeeper] 2
- kmonitor.left_out 1
"#;
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_filter_selects_clusters_modules_and_partitions() {
        let (is_m, is_other) = (|name: &str| name == "m", |name: &str| name == "other");
        let filter = Filter { cluster: Some("c"), module: Some(&is_m), partitions: true };
        let lines = text(render_values(&sample(), &filter, None));
        let of = |number, delay, verdict| {
            format!(
                "- kmonitor.partition.delay[c,m,t,zookeeper,{number}] {delay}\n\
                 - kmonitor.partition.verdict[c,m,t,zookeeper,{number}] {verdict}\n"
            )
        };
        assert_eq!(lines, of(0, 1200, 5) + &of(1, 4, 5) + &of(2, 0, 0));
        let found: serde_json::Value = serde_json::from_slice(&render_discovery(&sample(), &filter)).unwrap();
        assert_eq!(found.as_array().unwrap().len(), 3);
        assert_eq!(found[2]["{#PARTITION}"], "2");
        let none = Filter { module: Some(&is_other), ..Filter::default() };
        assert_eq!(text(render_values(&sample(), &none, None)), "");
        assert_eq!(text(render_discovery(&sample(), &none)), "[\n]\n");
    }

    #[test]
    fn the_discovery_has_the_modules_that_have_values() {
        let found: serde_json::Value =
            serde_json::from_slice(&render_discovery(&sample(), &Filter::default())).unwrap();
        let modules: Vec<_> =
            found.as_array().unwrap().iter().map(|found| found["{#MODULE}"].as_str().unwrap()).collect();
        assert_eq!(modules, ["a, \"b\" c", "m"]);
        assert_eq!(found[1]["{#ID}"].as_str().unwrap().len(), 16);
        assert_eq!(found[1]["{#SOURCE}"], "zookeeper");
    }

    #[test]
    fn the_document_has_the_modules_with_what_is_known_of_them() {
        let document: serde_json::Value =
            serde_json::from_slice(&render_document(&sample(), &Filter::default())).unwrap();
        let id = |module: usize| document["modules"][module]["id"].clone();
        let expected = json!({"unknown_clusters": 1, "left_out": 1, "modules": [
            {"id": id(0), "cluster": "c", "module": "a, \"b\" c", "topic": "t", "source": "zookeeper", "verdict": 2,
             "reason": "nothing waits", "bad": 1},
            {"id": id(1), "cluster": "c", "module": "m", "topic": "t", "source": "zookeeper", "verdict": 5,
             "reason": "nobody \"pushes\"\n2 of 3", "bad": 2, "delay": 1204, "seconds": 90.3},
        ]});
        assert_eq!(document, expected);
    }

    #[test]
    fn a_parameter_is_quoted_as_zabbix_does() {
        for (name, expected) in [
            ("plain", Some("plain")),
            ("", Some("")),
            ("a b", Some("a b")),
            ("a\"b", Some("a\"b")),
            ("a\\", None),
            ("a\\b", Some("a\\b")),
            ("a[b", Some("a[b")),
            (" a", Some("\" a\"")),
            ("\"a", Some("\"\\\"a\"")),
            ("[a", Some("\"[a\"")),
            ("a,b", Some("\"a,b\"")),
            ("a]b\\c", Some("\"a]b\\c\"")),
            ("ü,é", Some("\"ü,é\"")),
            ("a,b\\", None),
            ("a\nb", None),
        ] {
            assert_eq!(parameter(name).as_deref(), expected, "{name:?}");
        }
    }

    #[test]
    fn a_value_has_the_time_at_which_its_cluster_was_read() {
        let mut view = sample();
        let wall = UNIX_EPOCH + Duration::from_secs(1_764_093_800);
        let now = view.clusters[0].published + Duration::from_secs(10);
        view.clusters.truncate(1);
        let lines = text(render_values(&view, &Filter::default(), Some(Clock { wall, now })));
        assert!(lines.starts_with("- kmonitor.alive 1764093800 1\n"), "{lines}");
        assert!(lines.contains("- kmonitor.delay[c,m,t,zookeeper] 1764093790 1204\n"), "{lines}");
        assert!(lines.ends_with("- kmonitor.left_out 1764093800 1\n"), "{lines}");
    }
}
