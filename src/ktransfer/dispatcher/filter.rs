//! Whether a message is pushed at all: `methods` of the module against the method in the message.

use std::sync::Arc;

use crate::broker::Message;
use crate::ktransfer::give_up::{GiveUpReason, give_up};
use crate::ktransfer::job::JobEnd;
use crate::ktransfer::method::method_of;
use crate::ktransfer::worker_context::WorkerContext;

/// Returns the method of a message that is to be pushed (`None` where no methods are configured). A message that is not
/// to be pushed is counted here, and `Err` is how it ended.
pub(super) fn method_to_push(context: &WorkerContext, message: &Message) -> Result<Option<Arc<str>>, JobEnd> {
    let Some(methods) = &context.config.methods else { return Ok(None) };
    match method_of(message.value.as_deref().unwrap_or_default()) {
        Ok(method) => match methods.get(method) {
            Some(configured) => Ok(Some(Arc::clone(configured))),
            None => {
                context.metrics.filtered.inc();
                Err(JobEnd::Done)
            }
        },
        Err(cause) => Err(give_up(context, message, GiveUpReason::Undecodable(cause))),
    }
}
