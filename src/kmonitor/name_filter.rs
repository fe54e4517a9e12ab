//! Lists of names in the configuration, as globs: which modules to monitor.
//!
//! In a glob `*` stands for any characters, `?` for one character, `[ab]` for one of the characters a and b, `{a,b}`
//! for one of the globs a and b. Case matters.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::config::{Problems, Section};

/// A list of globs.
#[derive(Clone)]
pub(super) struct NameFilter {
    globs: Vec<String>,
    set: GlobSet,
}

impl std::fmt::Debug for NameFilter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_list().entries(&self.globs).finish()
    }
}

impl NameFilter {
    /// Takes a list of globs; `None` if the key is absent, or with a problem.
    pub(super) fn take(key: &str, section: &mut Section, problems: &mut Problems) -> Option<Self> {
        let globs = section.strings(key, false, problems)?;
        let mut set = GlobSetBuilder::new();
        for glob in &globs {
            match GlobBuilder::new(glob).build() {
                Ok(parsed) => {
                    set.add(parsed);
                }
                Err(cause) => section.note(key, format!("has {glob:?}, which is no glob: {}", cause.kind()), problems),
            }
        }
        match set.build() {
            Ok(set) => Some(NameFilter { globs, set }),
            Err(cause) => {
                section.note(key, format!("cannot be used: {cause}"), problems);
                None
            }
        }
    }

    /// Makes a list of valid globs.
    #[cfg(test)]
    pub(super) fn of(globs: &[&str]) -> Self {
        let globs: Vec<String> = globs.iter().map(|glob| (*glob).to_owned()).collect();
        let mut set = GlobSetBuilder::new();
        for glob in &globs {
            set.add(GlobBuilder::new(glob).build().unwrap());
        }
        NameFilter { globs, set: set.build().unwrap() }
    }

    /// Whether a glob of the list matches the whole name.
    pub(super) fn matches(&self, name: &str) -> bool {
        self.set.is_match(name)
    }
}

/// Which modules of a cluster are monitored.
#[derive(Clone, Debug, Default)]
pub(super) struct ModuleFilter {
    /// Those that match (`modules`); all without it.
    pub only: Option<NameFilter>,
    /// But not those that match (`ignore`).
    pub ignore: Option<NameFilter>,
}

impl ModuleFilter {
    /// Whether the module is monitored.
    pub(super) fn has(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.matches(name))
            && !self.ignore.as_ref().is_some_and(|ignored| ignored.matches(name))
    }
}
