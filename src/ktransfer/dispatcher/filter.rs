//! Decides whether a message is pushed: compares its method with the configured `methods` of the module, and looks for
//! tombstones.

use std::sync::Arc;

use crate::broker::Message;
use crate::ktransfer::config::{FilteredMessages, Tombstones};
use crate::ktransfer::give_up::{GiveUpReason, drop_message};
use crate::ktransfer::job::Unpushable;
use crate::ktransfer::method::method_of;
use crate::ktransfer::worker_context::WorkerContext;

/// The decision about a message that was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Filtered {
    /// Push the message. The method is `None` if the module configures no `methods`, and for a tombstone.
    Push(Option<Arc<str>>),
    /// Store the message as a dead letter, in the order of its key.
    DeadLetter(Unpushable),
    /// Count the message as done without a push.
    Pass,
}

/// Returns whether `message` is to be pushed. Counts a message that is passed, and logs one without a method.
pub(super) fn filter(context: &WorkerContext, message: &Message) -> Filtered {
    let (settings, metrics) = (context.settings(), &context.metrics);
    let config = &settings.config;
    let Some(value) = message.value.as_deref() else {
        if config.tombstones == Tombstones::Push {
            return Filtered::Push(None);
        }
        metrics.tombstones.inc();
        return Filtered::Pass;
    };
    let Some(methods) = &config.methods else { return Filtered::Push(None) };
    match method_of(value) {
        Ok(method) => match methods.get(method) {
            Some(configured) => Filtered::Push(Some(Arc::clone(configured))),
            None if config.filtered == FilteredMessages::DeadLetter => Filtered::DeadLetter(Unpushable::Filtered),
            None => {
                metrics.filtered.inc();
                Filtered::Pass
            }
        },
        Err(cause) if config.dead_letter_topic.is_some() => Filtered::DeadLetter(Unpushable::Undecodable(cause)),
        Err(cause) => {
            drop_message(context, message, None, GiveUpReason::Undecodable(cause));
            Filtered::Pass
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ktransfer::method::NoMethod;
    use crate::ktransfer::test_fixtures::{job, module_config, worker_context};
    use crate::metrics::Registry;

    #[test]
    fn each_kind_of_message_has_its_decision_and_is_counted_once() {
        let ours: &[u8] = b"\x81\xa6method\xa4Ours";
        let other: &[u8] = b"\x81\xa6method\xa5Other";
        let push_ours = || Filtered::Push(Some("Ours".into()));
        let dead = Filtered::DeadLetter;
        for (has_methods, has_topic, tombstones, filtered, value, expected, counted) in [
            (false, false, Tombstones::Push, FilteredMessages::Drop, Some(other), Filtered::Push(None), ""),
            (false, false, Tombstones::Push, FilteredMessages::Drop, None, Filtered::Push(None), ""),
            (false, true, Tombstones::Skip, FilteredMessages::Drop, None, Filtered::Pass, "tombstone"),
            (false, false, Tombstones::Skip, FilteredMessages::Drop, Some(&b""[..]), Filtered::Push(None), ""),
            (true, false, Tombstones::Skip, FilteredMessages::Drop, Some(ours), push_ours(), ""),
            (true, false, Tombstones::Skip, FilteredMessages::Drop, None, Filtered::Pass, "tombstone"),
            (true, false, Tombstones::Push, FilteredMessages::Drop, None, Filtered::Push(None), ""),
            (true, true, Tombstones::Skip, FilteredMessages::Drop, Some(other), Filtered::Pass, "filtered"),
            (true, true, Tombstones::Skip, FilteredMessages::DeadLetter, Some(other), dead(Unpushable::Filtered), ""),
            (true, false, Tombstones::Skip, FilteredMessages::Drop, Some(b""), Filtered::Pass, "undecodable"),
            (
                true,
                true,
                Tombstones::Skip,
                FilteredMessages::Drop,
                Some(b""),
                dead(Unpushable::Undecodable(NoMethod::Empty)),
                "",
            ),
        ] {
            let mut config = module_config(&["a"]);
            config.methods = has_methods.then(|| ["Ours".into()].into());
            config.dead_letter_topic = has_topic.then(|| "dead".into());
            (config.tombstones, config.filtered) = (tombstones, filtered);
            let registry = Registry::new();
            let context = worker_context(config, &registry);
            let what = format!("{has_methods} {has_topic} {tombstones:?} {filtered:?} {value:?}");
            assert_eq!(filter(&context, &job(None, value, &[]).message), expected, "{what}");
            let metrics = String::from_utf8(registry.render()).unwrap();
            for outcome in ["tombstone", "filtered", "undecodable", "given_up", "dropped", "dead_letter", "delivered"] {
                let count = u8::from(outcome == counted);
                let line = format!("ktransfer_messages_total{{module=\"m\",outcome=\"{outcome}\"}} {count}\n");
                assert!(metrics.contains(&line), "{what}: {line}");
            }
        }
    }
}
