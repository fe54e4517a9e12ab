//! For tests: what the documents name is in the program, and the other way round.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// How the names of metrics begin.
const FAMILIES: [&str; 4] = ["kproxy_", "ktransfer_", "kmonitor_", "http_"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.extension() {
            None if entry.is_dir() => sources(&entry, found),
            Some(extension) if extension == "rs" => found.push(entry),
            _ => {}
        }
    }
}

/// Whole words of a text that are names of metrics, those of binaries left out.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words
        .filter(|word| {
            FAMILIES.iter().any(|family| word.starts_with(family)) && !word.ends_with("_bin") && !word.ends_with('_')
        })
        .collect()
}

/// The names that code registers: whole string literals, in a call that has a help text after them.
fn registered() -> BTreeSet<String> {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let mut literals = code.split('"').skip(1).step_by(2);
        let mut after = code.split('"').skip(2).step_by(2);
        while let (Some(literal), Some(after)) = (literals.next(), after.next()) {
            let is_name = metrics_in(literal).contains(literal);
            if is_name && after.trim() == "," {
                names.insert(literal.to_owned());
            }
        }
    }
    names
}

#[test]
fn the_readme_lists_every_metric_and_no_other() {
    let registered = registered();
    assert!(registered.len() > 20, "{registered:?}");
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let named: BTreeSet<String> = metrics_in(&readme).into_iter().map(str::to_owned).collect();
    assert_eq!(named, registered);
}

#[test]
fn the_alerts_are_over_metrics_that_exist() {
    let rules = fs::read_to_string(root().join("conf/prometheus/rules.yml")).unwrap();
    let registered = registered();
    let named = metrics_in(&rules);
    assert!(!named.is_empty());
    for name in named {
        assert!(registered.contains(name), "{name}");
    }
}
