//! For tests: compares a reference file under `conf/` with the code that takes its keys.
//!
//! In a reference file an optional key is commented out with `# `. The tests assert that each key that the code takes
//! is in the file, commented out or not. They also load the file with all keys uncommented; loading fails for a key
//! that the daemon does not take.

use std::collections::BTreeSet;

/// The functions whose first argument is a key; [`keys_taken`] finds their calls in a source.
const TAKERS: [&str; 18] = [
    "boolean",
    "choice",
    "chroot",
    "count",
    "from_section",
    "hosts",
    "integer",
    "millis",
    "optional_integer",
    "optional_millis",
    "timeout",
    "optional_port",
    "port",
    "section",
    "sections",
    "string",
    "strings",
    "take",
];

/// The sources that take keys for several daemons, each with its path.
const SHARED: [(&str, &str); 3] = [
    ("logging.rs", include_str!("../logging.rs")),
    ("daemon.rs", include_str!("../daemon.rs")),
    ("broker/engines.rs", include_str!("../broker/engines.rs")),
];

/// Returns the keys that the source of one daemon takes, and the keys that several daemons share.
pub(crate) fn keys_of(own: &'static str) -> BTreeSet<&'static str> {
    keys_taken(SHARED.iter().map(|(_, source)| source).chain([&own]))
}

fn keys_taken<'a>(sources: impl IntoIterator<Item = &'a &'static str>) -> BTreeSet<&'static str> {
    let mut keys = BTreeSet::new();
    for source in sources {
        let code = source.split("#[cfg(test)]").next().unwrap_or_default();
        for (at, _) in code.match_indices('(') {
            let caller = code[..at].rsplit(|letter: char| !letter.is_ascii_lowercase() && letter != '_').next();
            if caller.is_some_and(|caller| TAKERS.contains(&caller)) {
                let argument = code[at + 1..].trim_start().strip_prefix('"');
                keys.extend(argument.and_then(|text| text.split('"').next()));
            }
        }
    }
    keys
}

/// Returns the text of the file with its optional keys, and the lists below these keys, uncommented.
pub(crate) fn in_force(file: &str, keys: &BTreeSet<&str>) -> String {
    let mut uncommented = String::new();
    for line in file.lines() {
        let optional = line.split_once("# ").filter(|(indent, text)| {
            let is_item = text.trim_start().starts_with("- ");
            let is_key = text.split_once(':').map(|(key, _)| key.trim_start());
            let is_key = is_key.is_some_and(|key| keys.contains(key) || looks_like_a_key(key));
            indent.trim().is_empty() && (is_item || is_key)
        });
        match optional {
            Some((indent, rest)) => uncommented.extend([indent, rest, "\n"]),
            None => uncommented.extend([line, "\n"]),
        }
    }
    uncommented
}

/// Returns whether the text is certainly a key: it has an underscore, and words of a comment have none.
fn looks_like_a_key(text: &str) -> bool {
    text.contains('_') && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// Fails unless every key is in `in_force`, the reference file with all its keys uncommented.
pub(crate) fn assert_has_all(keys: &BTreeSet<&str>, in_force: &str) {
    let is_there = |key: &&str| {
        let begins = format!("{key}:");
        in_force.lines().any(|line| line.trim_start().trim_start_matches("- ").starts_with(&begins))
    };
    let absent: Vec<_> = keys.iter().filter(|key| !is_there(key)).collect();
    assert!(absent.is_empty(), "taken by the code but not in the reference file: {absent:?}");
}

#[test]
fn each_shared_source_takes_keys() {
    for (path, source) in SHARED {
        assert!(!keys_taken([&source]).is_empty(), "src/{path} takes no key: remove it from SHARED");
    }
    let keys = keys_of("");
    for key in ["log_dir", "log_level", "shutdown_grace_ms", "kafka_client", "kafka"] {
        assert!(keys.contains(key), "{key} is not found: add the source that takes it to SHARED");
    }
}

#[test]
fn keys_are_found_in_code_and_uncommented_in_files() {
    let code = "let a = section.millis(\"a_ms\", x);\nsection.choice(\n    \"b\",\n);\nkeeper::chroot(\"c\", s);\n\
                section.note(\"d\", s);\n\
                #[cfg(test)]\nsection.count(\"e\", x);";
    let keys = keys_taken([&code]);
    assert_eq!(keys, BTreeSet::from(["a_ms", "b", "c"]));
    let file = "# About a_ms: words.\n# a_ms: 5\n#   - item\n  # b:\nd: 1 # b: no\n# c words\n# no_such: 1\n# so: it\n";
    let forced = in_force(file, &keys);
    assert_eq!(
        forced,
        "# About a_ms: words.\na_ms: 5\n  - item\n  b:\nd: 1 # b: no\n# c words\nno_such: 1\n# so: it\n"
    );
    let outcome = std::panic::catch_unwind(|| assert_has_all(&keys, &forced));
    assert!(outcome.is_err(), "c is absent");
}
