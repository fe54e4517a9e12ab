//! Decides whether a message is pushed: compares its method with the configured `methods` of the module.

use std::sync::Arc;

use crate::broker::Message;
use crate::ktransfer::give_up::{GiveUpReason, give_up};
use crate::ktransfer::method::method_of;
use crate::ktransfer::worker_context::WorkerContext;

/// The decision about a message that was read.
pub(super) enum Filtered {
    /// Push the message. The method is `None` if the module configures no `methods`.
    Push(Option<Arc<str>>),
    /// Count the message as done without a push: its method is not configured, or it has none.
    Pass,
}

/// Returns whether `message` is to be pushed. Counts a message that is not, and logs one without a method.
pub(super) fn filter(context: &WorkerContext, message: &Message) -> Filtered {
    let Some(methods) = &context.config.methods else { return Filtered::Push(None) };
    match method_of(message.value.as_deref().unwrap_or_default()) {
        Ok(method) => match methods.get(method) {
            Some(configured) => Filtered::Push(Some(Arc::clone(configured))),
            None => {
                context.metrics.filtered.inc();
                Filtered::Pass
            }
        },
        Err(cause) => {
            give_up(context, message, None, GiveUpReason::Undecodable(cause));
            Filtered::Pass
        }
    }
}
