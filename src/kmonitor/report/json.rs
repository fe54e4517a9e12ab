//! Formats delays as JSON, `{"cluster":{"module":{"0":12}}}`, as the original did.

use std::sync::Arc;

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::kmonitor::delay::{Delays, by_module};
use crate::kmonitor::view::ClusterView;

/// Formats the delays of these clusters, of all modules or only one. A cluster that is unknown has no modules.
pub(crate) fn render(clusters: &[Arc<ClusterView>], only_module: Option<&str>) -> Vec<u8> {
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut text);
    write(&mut serializer, clusters, only_module).expect("writing numbers and strings into memory does not fail");
    text
}

fn write(
    serializer: &mut serde_json::Serializer<&mut Vec<u8>>,
    clusters: &[Arc<ClusterView>],
    only_module: Option<&str>,
) -> serde_json::Result<()> {
    let mut map = serializer.serialize_map(Some(clusters.len()))?;
    for cluster in clusters {
        map.serialize_entry(&*cluster.name, &Modules(&by_module(cluster, only_module)))?;
    }
    map.end()
}

struct Modules<'a>(&'a [(Arc<str>, Delays)]);

impl Serialize for Modules<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, module)| (&**name, module)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmonitor::delay::tests::Delay::{Gone, Known, Unknown};
    use crate::kmonitor::delay::tests::{cluster, module};

    #[test]
    fn the_json_is_that_of_the_original() {
        let known = cluster(
            "test_cluster",
            vec![
                module("test_module_1", "t", &[Known(12)]),
                module("test_module_2", "t", &[Known(0), Unknown, Gone, Known(7)]),
            ],
        );
        let away = ClusterView { known: false, ..cluster("away \"2\"", Vec::new()) };
        let clusters = [Arc::new(known), Arc::new(away)];
        let text = String::from_utf8(render(&clusters, None)).unwrap();
        let expected = r#"{"test_cluster":{"test_module_1":{"0":12},"test_module_2":{"0":0,"3":7}},"away \"2\"":{}}"#;
        assert_eq!(text, expected);
        let text = String::from_utf8(render(&clusters, Some("test_module_1"))).unwrap();
        assert_eq!(text, r#"{"test_cluster":{"test_module_1":{"0":12}},"away \"2\"":{}}"#);
        assert_eq!(render(&[], None), b"{}");
    }
}
