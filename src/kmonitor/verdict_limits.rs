//! The section `base.verdicts`: when a module gets which verdict, for all modules and for some by name.

use std::ops::RangeInclusive;
use std::time::Duration;

use globset::{GlobBuilder, GlobMatcher};

use super::facts::Limits;
use crate::config::{Problems, Section};

/// The milliseconds that a key may have: a second to a day.
const MILLIS: RangeInclusive<u64> = 1_000..=86_400_000;

/// Largest number of seconds behind that a limit may have: thirty days.
const MAX_SECONDS: i64 = 30 * 86_400;

/// The limits of all modules.
#[derive(Clone, Debug)]
pub(super) struct VerdictLimits {
    /// Of the modules that no entry names.
    general: Limits,
    /// The entries of `modules`, in the order of the file.
    named: Vec<(GlobMatcher, Limits)>,
}

impl VerdictLimits {
    /// Takes the section from `base`; all keys are optional.
    pub(super) fn take(base: &mut Section, fresh_for: Duration, problems: &mut Problems) -> Self {
        let defaults = Limits { fresh_for, ..Limits::default() };
        let Some(mut section) = base.section("verdicts", false, problems) else {
            return VerdictLimits { general: defaults, named: Vec::new() };
        };
        let general = take_limits(&mut section, &defaults, problems);
        let mut named = Vec::new();
        for mut entry in section.sections("modules", false, problems).unwrap_or_default() {
            let name = entry.string("name", None, problems);
            match GlobBuilder::new(&name).build() {
                Ok(glob) => named.push((glob.compile_matcher(), take_limits(&mut entry, &general, problems))),
                Err(cause) => entry.note("name", format!("is {name:?}, which is no glob: {}", cause.kind()), problems),
            }
            entry.finish(problems);
        }
        section.finish(problems);
        VerdictLimits { general, named }
    }

    /// Returns the limits of a module: those of the first entry whose glob matches its name.
    pub(super) fn of(&self, module: &str) -> Limits {
        let named = self.named.iter().find(|(glob, _)| glob.is_match(module));
        named.map_or(&self.general, |(_, limits)| limits).clone()
    }
}

/// Takes the limits of one section; a key that is absent has its value in `defaults`.
fn take_limits(section: &mut Section, defaults: &Limits, problems: &mut Problems) -> Limits {
    let default = |time: Duration| u64::try_from(time.as_millis()).ok();
    let stopped_after = section.millis("stopped_after_ms", default(defaults.stopped_after), MILLIS, problems);
    let unowned_after = section.millis("unowned_after_ms", default(defaults.unowned_after), MILLIS, problems);
    let stalled_after = section.millis("stalled_after_ms", default(defaults.stalled_after), MILLIS, problems);
    let rewound_for = section.millis("rewound_for_ms", default(defaults.rewound_for), MILLIS, problems);
    let seconds = section.optional_integer("lagging_seconds", 0..=MAX_SECONDS, problems);
    let messages = section.optional_integer("lagging_messages", 0..=i64::MAX, problems);
    let seconds = seconds.and_then(|seconds| u32::try_from(seconds).ok());
    let messages = messages.and_then(|messages| u64::try_from(messages).ok());
    Limits {
        stopped_after,
        unowned_after,
        stalled_after,
        rewound_for,
        // 0 switches a limit off.
        lagging_seconds: seconds
            .map_or(defaults.lagging_seconds, |seconds| (0 < seconds).then_some(f64::from(seconds))),
        lagging_messages: messages.map_or(defaults.lagging_messages, |messages| (0 < messages).then_some(messages)),
        ..defaults.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(text: &str) -> Result<VerdictLimits, Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kmonitor.yaml");
        std::fs::write(&file, text).unwrap();
        let mut problems = Problems::default();
        let mut base = Section::load(&file, &mut problems);
        let limits = VerdictLimits::take(&mut base, Duration::from_secs(7), &mut problems);
        base.finish(&mut problems);
        let texts: Vec<String> =
            problems.0.iter().map(|problem| format!("{}: {}", problem.key, problem.text)).collect();
        if texts.is_empty() { Ok(limits) } else { Err(texts) }
    }

    #[test]
    fn an_entry_changes_the_limits_of_the_modules_it_names() {
        let text = "verdicts:\n  stalled_after_ms: 90000\n  lagging_messages: 1000\n  modules:\n  - name: audit*\n    \
                    lagging_seconds: 600\n    lagging_messages: 0\n  - name: '*'\n    lagging_seconds: 0\n    \
                    stopped_after_ms: 20000\n";
        let limits = take(text).unwrap();
        let all = Limits {
            fresh_for: Duration::from_secs(7),
            stalled_after: Duration::from_secs(90),
            lagging_messages: Some(1_000),
            ..Limits::default()
        };
        let audit = Limits { lagging_seconds: Some(600.0), lagging_messages: None, ..all.clone() };
        let other = Limits { lagging_seconds: None, stopped_after: Duration::from_secs(20), ..all };
        assert_eq!((limits.of("audit_2"), limits.of("copy")), (audit, other));
        let none = take("{}").unwrap();
        assert_eq!(none.of("copy"), Limits { fresh_for: Duration::from_secs(7), ..Limits::default() });
    }

    #[test]
    fn a_mistake_is_named_with_its_key() {
        for (text, problem) in [
            ("verdicts: 5", "verdicts: "),
            ("verdicts:\n  stalled_after_ms: 999", "verdicts.stalled_after_ms: "),
            ("verdicts:\n  stalled_after_ms: 86400001", "verdicts.stalled_after_ms: "),
            ("verdicts:\n  lagging_seconds: -1", "verdicts.lagging_seconds: "),
            ("verdicts:\n  stalled_after: 5", "verdicts.stalled_after: "),
            ("verdicts:\n  modules: copy", "verdicts.modules: "),
            ("verdicts:\n  modules:\n  - lagging_seconds: 5", "verdicts.modules[1].name: "),
            ("verdicts:\n  modules:\n  - name: 'a['", "verdicts.modules[1].name: is \"a[\", which is no glob: "),
            ("verdicts:\n  modules:\n  - name: a\n    delay: 5", "verdicts.modules[1].delay: "),
        ] {
            let problems = take(text).unwrap_err();
            assert!(problems.len() == 1 && problems[0].starts_with(problem), "{text}: {problems:?}");
        }
    }
}
