//! Formats delays as JSON, `{"cluster":{"module":{"0":12}}}`, as the original did.

use std::io::Write;

use super::legacy::{ClusterText, DelayPage, Selection};
use crate::http::Body;
use crate::kmonitor::delay::by_module;
use crate::kmonitor::view::View;

/// Formats the delays of all clusters, in the order of the configuration. A cluster that is not known has no modules.
pub(crate) fn render(view: &View) -> DelayPage {
    let mut text = vec![b'{'];
    let mut clusters = Vec::new();
    for cluster in &view.clusters {
        separate(&mut text);
        let start = text.len();
        open(&mut text, &cluster.name);
        let mut ranges = Vec::new();
        for (name, delays) in by_module(cluster, None) {
            separate(&mut text);
            let start = text.len();
            open(&mut text, &name);
            for (number, delay) in delays {
                separate(&mut text);
                write!(text, "\"{number}\":{delay}").expect("writing into memory does not fail");
            }
            text.push(b'}');
            ranges.push((name, start..text.len()));
        }
        text.push(b'}');
        let name = cluster.name.clone();
        clusters.push(ClusterText {
            name,
            known: cluster.known && !cluster.is_partial,
            range: start..text.len(),
            modules: ranges,
        });
    }
    text.push(b'}');
    DelayPage { bytes: text.into(), clusters }
}

/// Returns the page of a selection.
pub(crate) fn select(page: &DelayPage, selection: Selection<'_>) -> Body {
    let Some(module) = selection.module else { return page.shared(selection.cluster, "{", b"}") };
    let mut text = vec![b'{'];
    for cluster in page.selected(selection) {
        separate(&mut text);
        open(&mut text, &cluster.name);
        text.extend_from_slice(&page.bytes[cluster.module(module).unwrap_or_default()]);
        text.push(b'}');
    }
    text.push(b'}');
    text.into()
}

/// Appends a comma, unless the object has just been opened.
fn separate(text: &mut Vec<u8>) {
    if text.last() != Some(&b'{') {
        text.push(b',');
    }
}

fn open(text: &mut Vec<u8>, name: &str) {
    serde_json::to_writer(&mut *text, name).expect("writing a string into memory does not fail");
    text.extend_from_slice(b":{");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmonitor::report::fixture::{cluster, module, partition, unknown, view};
    use crate::kmonitor::report::legacy::Missing;

    #[test]
    fn the_json_is_that_of_the_original() {
        let modules = vec![
            module("test_module_1", "t", vec![partition(0, Some(12))]),
            module("test_module_2", "t", vec![partition(0, Some(0)), partition(1, None), partition(3, Some(7))]),
        ];
        let all = view(vec![cluster("test_cluster", modules), unknown("away \"2\""), cluster("empty", vec![])]);
        let page = render(&all);
        let show = |cluster, module| {
            let selection = Selection { cluster, module };
            page.check(selection).map(|()| String::from_utf8(select(&page, selection).to_vec()).unwrap())
        };
        let (away, first) = (Some("away \"2\""), Some("test_module_1"));
        let whole =
            r#"{"test_cluster":{"test_module_1":{"0":12},"test_module_2":{"0":0,"3":7}},"away \"2\"":{},"empty":{}}"#;
        assert_eq!(show(None, None).as_deref(), Ok(whole));
        assert_eq!(
            show(Some("test_cluster"), None).as_deref(),
            Ok(r#"{"test_cluster":{"test_module_1":{"0":12},"test_module_2":{"0":0,"3":7}}}"#)
        );
        assert_eq!(
            show(None, first).as_deref(),
            Ok(r#"{"test_cluster":{"test_module_1":{"0":12}},"away \"2\"":{},"empty":{}}"#)
        );
        assert_eq!(show(away, None).as_deref(), Ok(r#"{"away \"2\"":{}}"#));
        assert_eq!(show(Some("empty"), None).as_deref(), Ok(r#"{"empty":{}}"#));
        assert_eq!(show(away, Some("x")).as_deref(), Ok(r#"{"away \"2\"":{}}"#), "it may have the module");
        assert_eq!(show(Some("x"), None), Err(Missing::Cluster));
        assert_eq!(show(Some("test_cluster"), Some("x")), Err(Missing::Module));
        assert_eq!(select(&render(&view(vec![])), Selection::default()).to_vec(), b"{}");
    }
}
