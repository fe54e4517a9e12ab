//! Whether a message is pushed at all: `methods` of the module against the method in the message.

use std::sync::Arc;

use crate::broker::Message;
use crate::ktransfer::give_up::{GiveUpReason, give_up};
use crate::ktransfer::method::method_of;
use crate::ktransfer::worker_context::WorkerContext;

/// What is done with a message that was read.
pub(super) enum Filtered {
    /// It is pushed. The method is `None` where no methods are configured.
    Push(Option<Arc<str>>),
    /// It is done without a push, and counted.
    Pass,
}

/// Filters a message by its method.
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
