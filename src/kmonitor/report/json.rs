//! `{"cluster":{"module":{"0":12}}}`: the map of the original.

use serde::Serializer;
use serde::ser::SerializeMap;

use super::{Views, modules};

/// The delays of these clusters, of all modules or one. A cluster of which nothing is known has no modules.
pub fn render(views: &Views, only_module: Option<&str>) -> Vec<u8> {
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut text);
    write(&mut serializer, views, only_module).expect("writing numbers and strings into memory does not fail");
    text
}

fn write(
    serializer: &mut serde_json::Serializer<&mut Vec<u8>>,
    views: &Views,
    only_module: Option<&str>,
) -> serde_json::Result<()> {
    let mut clusters = serializer.serialize_map(Some(views.len()))?;
    for (cluster, view) in views {
        let modules: Vec<_> = modules(view.as_deref(), only_module).collect();
        clusters.serialize_entry(&**cluster, &Modules(&modules))?;
    }
    clusters.end()
}

struct Modules<'a>(&'a [(&'a std::sync::Arc<str>, &'a crate::kmonitor::delay::ModuleDelay)]);

impl serde::Serialize for Modules<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, module)| (&***name, &module.by_number)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::view;
    use super::*;
    use crate::kmonitor::delay::LogEnd::{Gone, Newest, Unknown};

    #[test]
    fn the_map_is_the_seeds() {
        let known = view(&[
            ("test_module_1", &[(3, Newest(15))]),
            ("test_module_2", &[(1, Newest(1)), (1, Unknown), (1, Gone), (0, Newest(7))]),
        ]);
        let views = vec![("test_cluster".into(), Some(known)), ("away \"2\"".into(), None)];
        let text = String::from_utf8(render(&views, None)).unwrap();
        let expected = r#"{"test_cluster":{"test_module_1":{"0":12},"test_module_2":{"0":0,"3":7}},"away \"2\"":{}}"#;
        assert_eq!(text, expected);
        let text = String::from_utf8(render(&views, Some("test_module_1"))).unwrap();
        assert_eq!(text, r#"{"test_cluster":{"test_module_1":{"0":12}},"away \"2\"":{}}"#);
        assert_eq!(render(&Views::new(), None), b"{}");
    }
}
