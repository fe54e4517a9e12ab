//! Formats delays as JSON, `{"cluster":{"module":{"0":12}}}`, as the original did.

use std::sync::Arc;

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::kmonitor::delay::ModuleDelay;
use crate::kmonitor::snapshot::Snapshots;

/// Formats the delays of these clusters, of all modules or only one. A cluster without a snapshot has no modules.
pub(crate) fn render(snapshots: &Snapshots, only_module: Option<&str>) -> Vec<u8> {
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut text);
    write(&mut serializer, snapshots, only_module).expect("writing numbers and strings into memory does not fail");
    text
}

fn write(
    serializer: &mut serde_json::Serializer<&mut Vec<u8>>,
    snapshots: &Snapshots,
    only_module: Option<&str>,
) -> serde_json::Result<()> {
    let mut clusters = serializer.serialize_map(Some(snapshots.len()))?;
    for (cluster, snapshot) in snapshots {
        let modules: Vec<_> = snapshot.iter().flat_map(|snapshot| snapshot.modules(only_module)).collect();
        clusters.serialize_entry(&**cluster, &Modules(&modules))?;
    }
    clusters.end()
}

struct Modules<'a>(&'a [(&'a Arc<str>, &'a ModuleDelay)]);

impl Serialize for Modules<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, module)| (&***name, &module.by_number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmonitor::delay::LogEnd::{Gone, Newest, Unknown};
    use crate::kmonitor::snapshot::tests::snapshot;

    #[test]
    fn the_json_is_that_of_the_original() {
        let known = snapshot(&[
            ("test_module_1", &[(3, Newest(15))]),
            ("test_module_2", &[(1, Newest(1)), (1, Unknown), (1, Gone), (0, Newest(7))]),
        ]);
        let snapshots = vec![("test_cluster".into(), Some(Arc::new(known))), ("away \"2\"".into(), None)];
        let text = String::from_utf8(render(&snapshots, None)).unwrap();
        let expected = r#"{"test_cluster":{"test_module_1":{"0":12},"test_module_2":{"0":0,"3":7}},"away \"2\"":{}}"#;
        assert_eq!(text, expected);
        let text = String::from_utf8(render(&snapshots, Some("test_module_1"))).unwrap();
        assert_eq!(text, r#"{"test_cluster":{"test_module_1":{"0":12}},"away \"2\"":{}}"#);
        assert_eq!(render(&Snapshots::new(), None), b"{}");
    }
}
