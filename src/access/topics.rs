//! Lists of topics in the configuration, as globs of topic names.
//!
//! In a glob `*` stands for any characters, `?` for one character, `[ab]` for one of the characters a and b, `{a,b}`
//! for one of the globs a and b. Case matters.

use std::fmt;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::config::{Problems, Section};

/// Characters that are legal in globs but not in topic names.
const GLOB_CHARACTERS: &str = "*?[]{}!^,\\";

/// A set of topics.
#[derive(Clone)]
pub(crate) struct TopicGlobs {
    globs: Vec<String>,
    set: GlobSet,
}

impl TopicGlobs {
    /// Takes a list of globs; returns `None` when the key is absent, or with a problem.
    pub(crate) fn from_section(
        key: &str,
        required: bool,
        section: &mut Section,
        problems: &mut Problems,
    ) -> Option<Self> {
        let globs = section.strings(key, required, problems)?;
        let mut set = GlobSetBuilder::new();
        let mut all_valid = true;
        for glob in &globs {
            match parse(glob) {
                Ok(glob) => {
                    set.add(glob);
                }
                Err(why) => {
                    section.note(key, format!("has {glob:?}, which {why}"), problems);
                    all_valid = false;
                }
            }
        }
        match set.build() {
            Ok(set) if all_valid => Some(TopicGlobs { globs, set }),
            Ok(_) => None,
            Err(cause) => {
                section.note(key, format!("cannot be compiled: {}", cause.kind()), problems);
                None
            }
        }
    }

    /// Returns whether any glob matches the topic.
    pub(crate) fn contain(&self, topic: &str) -> bool {
        self.set.is_match(topic)
    }
}

fn parse(glob: &str) -> Result<globset::Glob, String> {
    let is_allowed =
        |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter) || GLOB_CHARACTERS.contains(letter);
    if let Some(letter) = glob.chars().find(|letter| !is_allowed(*letter)) {
        return Err(format!("matches no topic: topic names cannot contain {letter:?}"));
    }
    GlobBuilder::new(glob)
        .backslash_escape(true)
        .build()
        .map_err(|cause| format!("is not a valid glob: {}", cause.kind()))
}

impl fmt::Debug for TopicGlobs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.globs.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::section;

    fn globs(list: &str) -> Result<TopicGlobs, String> {
        let (mut section, mut problems) = section(&format!("topics: {list}\n"));
        let globs = TopicGlobs::from_section("topics", true, &mut section, &mut problems);
        globs.ok_or_else(|| problems.0.into_iter().map(|problem| problem.text).collect::<Vec<_>>().join("; "))
    }

    #[test]
    fn a_list_of_globs_contains_the_topics_that_a_glob_matches() {
        for (list, topic, is_in) in [
            ("[t]", "t", true),
            ("[t]", "T", false),
            ("[t]", "tt", false),
            ("['*']", "any.thing_at-all", true),
            ("[a, 'b*']", "b.c.d", true),
            ("[a, 'b*']", "ab", false),
            ("['orders.*']", "orders.eu.de", true),
            ("['orders.*']", "orders", false),
            ("['*.audit']", "a.b.audit", true),
            ("['a?c']", "abc", true),
            ("['a?c']", "ac", false),
            ("['a[0-9]']", "a7", true),
            ("['a[!0-9]']", "a7", false),
            ("['{a,b.*}.c']", "b.x.c", true),
            ("['**']", "a.b", true),
        ] {
            assert_eq!(globs(list).unwrap().contain(topic), is_in, "{list} {topic}");
        }
        assert_eq!(format!("{:?}", globs("[a, 'b*']").unwrap()), r#"["a", "b*"]"#);
    }

    #[test]
    fn a_glob_that_is_invalid_or_matches_no_topic_is_a_problem() {
        for (list, expected) in [
            ("[]", "at least one"),
            ("['']", "non-empty"),
            ("t", "a list"),
            ("[a, a]", "distinct"),
            ("['a[']", "\"a[\""),
            ("['a{b']", "\"a{b\""),
            ("['a]b', 'c[']", "\"c[\""),
            ("['[z-a]']", "\"[z-a]\""),
            ("['a/*']", "'/'"),
            ("['a b']", "' '"),
            ("['\u{fc}*']", "'\u{fc}'"),
        ] {
            let text = globs(list).unwrap_err();
            assert!(text.contains(expected), "{list}: {text}");
        }
    }
}
